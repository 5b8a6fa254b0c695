"""`bnfold` and `python -m bnfold`: a supervisor, and the command itself in a child process.

With `--debug` there is no child and no limit, so that a debugger
and a traceback show all there is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from bnfold.supervision.watch import ASKING, Watch

TYPE_CHECKING = False  # that of `typing` costs the import of `typing`
if TYPE_CHECKING:
    from types import FrameType


def run() -> None:
    """The console script."""
    _fill_closed_streams()
    words = sys.argv[1:]
    if "--debug" in (words[: words.index("--")] if "--" in words else words):
        from bnfold import cli  # noqa: PLC0415 - loads all that a command needs

        cli.run()
    elif hasattr(os, "fork"):
        _fork()
    else:
        _spawn()


def _fill_closed_streams() -> None:
    """Open what was closed of input, output and errors, or a model file would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def command(pipe: int) -> None:
    """The command itself, in the child process, which tells its supervisor through a pipe."""
    from bnfold.supervision import link  # noqa: PLC0415

    link.connect(pipe)
    try:
        from bnfold import cli  # noqa: PLC0415
    except Exception as error:  # as libraries raise when they are not installed properly
        text = " ".join(str(error).split())[:300]
        print(f"bnfold: cannot start: {type(error).__name__}: {text}", file=sys.stderr)
        link.finished(2)
        sys.exit(2)
    cli.run()


def _fork() -> None:
    """Run the command in a copy of this process, in which little is loaded as yet."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nothing is told of a child
    obeyed = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, obeyed)  # nobody is in charge of the child yet
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        _supervise(Watch(_Forked(pid), reading), obeyed)
    os.close(reading)
    for number in obeyed:  # as long as there is nothing to clean up, the child ends by them at once
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, obeyed)
    command(writing)


def _spawn() -> None:
    """Run the command in a new process, where the system knows no fork."""
    from bnfold.supervision import spawning  # noqa: PLC0415

    obeyed = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    process, reading = spawning.start("bnfold.__main__", "command", sys.argv)
    _supervise(Watch(process, reading), obeyed)


def _supervise(watch: Watch, obeyed: list[int]) -> None:
    """Watch the child to its end, and end likewise."""

    def stop(number: int, _: FrameType | None) -> None:
        watch.stop(number)

    for number in obeyed:
        signal.signal(number, stop)
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, obeyed)
    watch.run()
    if watch.problem is not None:
        with contextlib.suppress(OSError):  # nobody wants to know
            os.write(2, f"bnfold: {watch.problem}\n".encode(errors="backslashreplace"))
    os._exit(watch.code)  # which leaves out what Python does at its end


class _Forked:
    """A forked process, to be used like a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        code = self._wait(0)
        return 0 if code is None else code

    def _wait(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


if __name__ == "__main__":
    run()
