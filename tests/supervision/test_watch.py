"""What a supervisor does itself while it watches."""

import os
import threading
import time

from bnfold.supervision.watch import TICK, Watch


class Told:
    """A process that only tells something, and how often it was asked whether it has ended."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.code: int | None = None
        self.asked = 0

    def poll(self) -> int | None:
        self.asked += 1
        return self.code

    def wait(self) -> int:
        return self.code or 0

    def kill(self) -> None:
        self.code = -9

    def send_signal(self, number: int) -> None:
        self.code = -number


def test_it_does_not_look_at_a_process_for_each_line() -> None:
    process, heard = Told(), list[list[str]]()
    reading, writing = os.pipe()

    def tell() -> None:
        for number in range(200):
            os.write(writing, f"told\t{number}\n".encode())
            time.sleep(0.001)
        os.write(writing, b"finished\t1\n")
        process.code = 1
        os.close(writing)

    teller = threading.Thread(target=tell)
    start = time.monotonic()
    teller.start()
    watch = Watch(process, reading, heard.append)
    watch.run()
    assert process.asked < 5 + (time.monotonic() - start) / TICK
    teller.join()
    assert heard == [["told", str(number)] for number in range(200)]
    assert (watch.code, watch.problem) == (1, None)
