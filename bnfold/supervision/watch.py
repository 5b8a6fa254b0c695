"""Watching a process: its time, its memory, its end, and what it leaves behind.

The supervisor of the command line has this in memory for as long as the command runs, so hardly
anything is imported that is not there as soon as Python has started.
"""

from __future__ import annotations

import _thread
import os
import signal
import time

from bnfold.supervision import platforms

TYPE_CHECKING = False  # that of `typing` costs the import of `typing`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Process(Protocol):
        """A child process, as `subprocess.Popen` has them."""

        pid: int

        def poll(self) -> int | None:
            """The exit code, negative for a signal; None while it runs."""

        def wait(self) -> int:
            """The exit code, when there is one."""

        def kill(self) -> None:
            """End it at once."""

        def send_signal(self, number: int, /) -> None:
            """Ask it to end."""


TICK = 0.05
"""Seconds between two looks at a process."""
_LONG = 1.0  # seconds; whoever has not looked for longer was stopped, and does not count it
_PATIENCE = 0.7  # seconds for a process to put away what it was writing, when it is asked to end
_LINE = 1 << 20  # bytes, more than any
OURS = (".bnfold-", "bnfold-")
"""How the names of folders begin that are removed."""
_AFTERWARDS = 5.0  # seconds for a process to end that has nothing to do any more
ASKING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
"""The signals by which people and batch systems ask a process to end."""
_CRASHES = {
    getattr(signal, name, None)
    for name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS")
}


class Forked:
    """A forked process, to be used like a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """The exit code, when there is one."""
        code = self._wait(0)
        return 0 if code is None else code

    def _wait(self, how: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Ask it to end."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Watch:
    """A process under supervision.

    `pipe` is read, and closed in the end; `bnfold.supervision.link` of the process writes to it.
    Lines of which nothing is known here are handed to `told`, as lists of texts. With `adopts`
    this process has no other children: those of the process that outlive it are ended too.

    Attributes:
        code: what the process ended with; 128 and a signal's number where that asked it to end, and
            2 where something else stopped it.
        problem: a sentence on what stopped it; None where it came to its end.
        signal: the number of the signal that asked it to end.
        has_crashed: whether it ended early for a reason of its own, and no limit.
    """

    def __init__(
        self,
        process: Process,
        pipe: int,
        told: Callable[[list[str]], None] | None = None,
        *,
        adopts: bool = False,
    ) -> None:
        self.code = 0
        self.problem: str | None = None
        self.signal: int | None = None
        self.has_crashed = False
        self._process, self._pipe, self._told = process, pipe, told
        self._file = self._stage = ""
        # Two clocks: what has passed, and that without the time in which other processes ran.
        self._passed = self._worked = 0.0
        self._looked, self._waited = time.monotonic(), 0.0
        self._whole: float | None = None  # seconds, by the first clock
        self._within: tuple[float, float] | None = None  # how many, and when, by the second
        self._memory: int | None = None
        self._to_kill: float | None = None  # when, by the first clock
        self._finished: int | None = None
        self._last_words: str | None = None
        self._asked: list[int] = []
        self._may_adopt, self._adopts = adopts, False
        self._folders: set[str] = set()
        self._arrived = [b""]
        self._bell = _thread.allocate_lock()
        self._closed = _thread.allocate_lock()

    def run(self) -> None:
        """Wait until the process has ended, see to that, and remove what it has left."""
        self._bell.acquire()
        self._closed.acquire()
        try:
            self._listen()
            self._wait()
        finally:
            if self._process.poll() is None:
                self._end()
            code = self._process.wait()
            if self._adopts:
                platforms.end_children()
            self._closed.acquire(timeout=_PATIENCE)  # a process of its own may hold the pipe
            self._hear()
            self._ask()
            self._remove_folders()
        self._conclude(code)

    def stop(self, number: int) -> None:
        """Ask the process to end, as a signal asks; soon, and when asked again, it is killed.

        Only noted here: a handler of signals may interrupt anything, also a look at the process.
        """
        self._asked.append(number)

    def _ask(self) -> None:
        while self._asked:
            number = self._asked.pop(0)
            if self.signal is not None:
                self._process.kill()
                return
            self.signal = number
            self._to_kill = self._passed + _PATIENCE
            if os.name == "posix":  # on Windows every signal kills, and Ctrl-C goes to all anyway
                self._process.send_signal(number)

    def _end(self) -> None:
        """End the process for a reason that lies here, such as an exception."""
        self.stop(signal.SIGTERM)
        while self._process.poll() is None:
            time.sleep(TICK)
            self._look()

    def _listen(self) -> None:
        try:
            _thread.start_new_thread(self._read, ())
        except RuntimeError as error:
            self.problem = f"cannot start: {error}"
            self._process.kill()
            os.close(self._pipe)
            self._closed.release()

    def _read(self) -> None:
        """Take what is told, and ring the bell where that must be heard before the next look.

        That is the end, and where processes are adopted all else: before they have lost their
        parent it must be known that there may be some. Small files have a dozen lines each.
        """
        while True:
            try:
                content = os.read(self._pipe, 1 << 16)
            except OSError:
                content = b""
            self._arrived.append(content)
            if not content:
                os.close(self._pipe)
                self._closed.release()
            if (self._may_adopt or not content) and self._bell.locked():
                self._bell.release()
            if not content:
                return

    def _wait(self) -> None:
        soon = TICK / 64  # when nobody has the pipe any more, the end is near as a rule
        while self._process.poll() is None:
            self._bell.acquire(timeout=TICK if self._closed.locked() else soon)
            if not self._closed.locked():
                soon = min(2 * soon, TICK)
            self._hear()
            self._look()

    def _hear(self) -> None:
        """Take notice of the lines that have arrived, as far as they are complete."""
        count = len(self._arrived)
        *lines, rest = b"".join(self._arrived[:count]).split(b"\n")
        self._arrived[:count] = [rest[-_LINE:]]
        for line in lines:
            try:
                words = [word.decode("unicode_escape") for word in line.split(b"\t")]
                is_known = self._heed(words)
            except ValueError:
                continue  # code that a model needs may write anything to the pipe
            if not is_known and self._told is not None:
                self._told(words)

    def _heed(self, words: list[str]) -> bool:
        """Take notice of a line; whether it is one of these. Raises ValueError for no number."""
        match words:
            case ["file", name]:
                self._file = name
            case ["stage", name, *models]:
                self._stage = name
                if models and self._may_adopt and not self._adopts:
                    self._adopts = platforms.adopt_orphans()
            case ["next"]:
                self._file = self._stage = ""
                self._whole = self._within = self._memory = None
                self._passed = self._worked = 0.0
            case ["whole", seconds]:
                self._whole = float(seconds)
            case ["within", seconds]:
                self._within = (float(seconds), self._worked + float(seconds))
            case ["longer", seconds]:
                if self._within is not None:
                    before, until = self._within
                    self._within = (before + float(seconds), until + float(seconds))
            case ["memory", size]:
                self._memory = int(size)
            case ["made" | "gone" as what, folder]:
                self._heed_folder(folder, is_there=what == "made")
            case ["finished", code, *problem]:
                self._finished, self._last_words = int(code), " ".join(problem) or None
                self._to_kill = self._passed + _AFTERWARDS
            case _:
                return False
        return True

    def _heed_folder(self, folder: str, *, is_there: bool) -> None:
        if is_there and os.path.basename(folder).startswith(OURS):
            self._folders.add(folder)
        elif not is_there:
            self._folders.discard(folder)

    def _look(self) -> None:
        """Pass a signal on, count the time, and kill the process if it takes more than it may."""
        self._ask()
        now, waited = time.monotonic(), platforms.waited(self._process.pid)
        gap = min(now - self._looked, _LONG)
        self._passed += gap
        self._worked += max(0.0, gap - max(0.0, waited - self._waited))
        self._looked, self._waited = now, waited
        if self._to_kill is not None:
            if self._passed > self._to_kill:
                self._process.kill()
        elif self.problem is None:
            self.problem = self._excess()
            if self.problem is not None:
                self._process.kill()

    def _excess(self) -> str | None:
        if self._whole is not None and self._passed > self._whole:
            return self._said(f"took more than {self._whole:g} s", "--timeout")
        if self._within is not None and self._worked > self._within[1]:
            return self._said(f"took more than {self._within[0]:.0f} s", "--timeout")
        if self._memory is not None:
            size = platforms.resident(self._process.pid)
            if size is not None and size > self._memory:
                what = f"took more than {self._memory / (1 << 20):.0f} MiB of memory"
                return self._said(what, "--memory")
        return None

    def _said(self, what: str, option: str | None = None) -> str:
        where = f"{self._file}: " if self._file else ""
        stage = f" while {self._stage}" if self._stage else ""
        return f"{where}{what}{stage}" + (f"; {option} sets another limit" if option else "")

    def _conclude(self, code: int) -> None:
        if self.signal is None and self.problem is None and -code in ASKING:
            self.signal = -code  # which somebody sent to the process alone
        if self._finished is not None:
            self.code, self.problem = self._finished, self._last_words
        elif self.signal is not None:
            self.code = 128 + self.signal
            self.problem = "interrupted" if self.signal == signal.SIGINT else None
        else:
            self.code, self.has_crashed = 2, self.problem is None
            self.problem = self.problem or self._said(_how(code))

    def _remove_folders(self) -> None:
        """Remove what the process could not; what it was about to replace is put back."""
        for folder in filter(os.path.isdir, self._folders):
            from bnfold.supervision import leftovers  # noqa: PLC0415 - hardly ever needed

            leftovers.put_away(folder)


def _how(code: int) -> str:
    """How a process ended that did not come to its end."""
    if code >= 0:
        return f"ended early, with exit code {code if code < 256 else hex(code)}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code in _CRASHES:
        return f"crashed with {name}"
    if name == "SIGKILL":
        return "was killed, most likely because the machine ran out of memory,"
    return f"was ended by {name}"
