"""`bnfold` and `python -m bnfold`: a supervisor, and the command itself in a child process.

With `--debug` there is no child and no limit, so that a debugger
and a traceback show all there is.
"""

from __future__ import annotations

import os
import sys

# Everything else is imported in functions: until `run` is there, Ctrl-C is a traceback of Python's.

TYPE_CHECKING = False  # that of `typing` costs the import of `typing`
if TYPE_CHECKING:
    from types import FrameType, ModuleType
    from typing import NoReturn

    from bnfold.supervision.watch import Watch


def run() -> None:
    """The console script."""
    words = sys.argv[1:]
    if "--debug" in (words[: words.index("--")] if "--" in words else words):
        _fill_closed_streams()
        _cli().run()
        return
    try:
        _hold_signals(True)
        _fill_closed_streams()
        (_fork if hasattr(os, "fork") else _spawn)()
    except KeyboardInterrupt:
        _end(130, "interrupted")
    except (OSError, MemoryError) as error:  # no process, no pipe or no thread
        _end(2, f"cannot start: {getattr(error, 'strerror', None) or error or 'no memory'}")


def _hold_signals(hold: bool) -> None:
    """Have all signals wait until somebody is in charge of them, or let them come."""
    built_in = __import__("_signal")  # what is in `signal` takes time to import
    if hasattr(built_in, "pthread_sigmask"):  # not on Windows
        how = built_in.SIG_BLOCK if hold else built_in.SIG_UNBLOCK
        built_in.pthread_sigmask(how, built_in.valid_signals())


def _fill_closed_streams() -> None:
    """Open what was closed of input, output and errors, or a model file would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _end(code: int, problem: str | None) -> NoReturn:
    from contextlib import suppress  # noqa: PLC0415

    if problem is not None:
        with suppress(OSError):  # nobody wants to know
            os.write(2, f"bnfold: {problem}\n".encode(errors="backslashreplace"))
    os._exit(code)  # which leaves out what Python does at its end


def _cli() -> ModuleType:
    """What commands have in common; until it runs there is no garbage to search for."""
    import gc  # noqa: PLC0415

    gc.disable()
    from bnfold import cli  # noqa: PLC0415

    return cli


def command(pipe: int) -> None:
    """The command itself, in the child process, which tells its supervisor through a pipe."""
    try:
        stderr = os.dup(2)
        from bnfold.supervision import link  # noqa: PLC0415

        link.connect(pipe)
        os.write(pipe, b"stage\tstarting\n")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # some libraries say at length what is amiss
        os.close(nowhere)
        cli = _cli()
    except Exception as error:
        _end_with_last_words(pipe, "cannot start", error)
    os.dup2(stderr, 2)
    os.close(stderr)
    try:
        cli.run()
    except Exception as error:  # or it would go on as a supervisor that cannot start
        _end_with_last_words(pipe, "ended early", error)


def _end_with_last_words(pipe: int, what: str, error: Exception) -> NoReturn:
    """Have the supervisor say why this process ends, where little may work any more."""
    text = " ".join(str(error.__cause__ or error).split())
    words = f"{what}: {type(error).__name__}: {text[:300]}"
    plain = words.replace("\\", r"\\").encode("ascii", "backslashreplace")
    try:
        os.write(pipe, b"finished\t2\t" + plain + b"\n")
    finally:
        os._exit(2)  # also where nobody listens


def _fork() -> None:
    """Run the command in a copy of this process, in which little is loaded as yet."""
    import signal  # noqa: PLC0415

    from bnfold.supervision.watch import ASKING, Forked, Watch  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nothing is told of a child
    obeyed = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        _supervise(Watch(Forked(pid), reading, adopts=True), obeyed)
    os.close(reading)
    for number in obeyed:  # as long as there is nothing to clean up, the child ends by them at once
        signal.signal(number, signal.SIG_DFL)
    _hold_signals(False)
    command(writing)


def _spawn() -> None:
    """Run the command in a new process, where the system knows no fork."""
    import signal  # noqa: PLC0415

    from bnfold.supervision import spawning  # noqa: PLC0415
    from bnfold.supervision.watch import ASKING, Watch  # noqa: PLC0415

    obeyed = [number for number in ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    process, reading = spawning.start("bnfold.__main__", "command", sys.argv)
    _supervise(Watch(process, reading, adopts=True), obeyed)


def _supervise(watch: Watch, obeyed: list[int]) -> None:
    """Watch the child to its end, and end likewise."""
    import signal  # noqa: PLC0415

    def stop(number: int, _: FrameType | None) -> None:
        watch.stop(number)

    for number in obeyed:
        signal.signal(number, stop)
    _hold_signals(False)
    watch.run()
    _end(watch.code, watch.problem)


if __name__ == "__main__":
    run()
