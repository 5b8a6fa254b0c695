"""Starting a process of Python's that is supervised: a new one, or a copy of this one."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from bnfold.supervision import link, platforms
from bnfold.supervision.watch import ASKING, Forked

_CODE = (
    "import sys; sys.path[:] = {path!r}; sys.argv[0] = {name!r}; import {module};"
    " sys.modules[{module!r}].{function}({pipe})"
)
"""What it runs. It finds modules where this process does, and no others: `-m` would look into the
current directory first, where the files of a stranger may lie."""
_MOST_COPIED = 96 << 20  # bytes that a copy has from the start, and that count as its own
_PIPE = 3  # the number of the pipe to the supervisor, after input, output and errors


def start(
    module: str,
    function: str,
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    **streams: Any,
) -> tuple["subprocess.Popen[bytes]", int]:
    """Call a function of a module in a new process, with the pipe to its supervisor.

    `words` are its `sys.argv`. Returns the process, and the end of the pipe to read from.
    """
    reading, writing = os.pipe()
    options: dict[str, Any] = {"env": environment, **streams}
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        handle = msvcrt.get_osfhandle(writing)
        os.set_handle_inheritable(handle, True)
        options["close_fds"] = False
        pipe = f"__import__('msvcrt').open_osfhandle({handle}, {os.O_WRONLY})"
    else:
        options["pass_fds"] = [writing]
        pipe = str(writing)
    path = [entry for entry in sys.path if isinstance(entry, str)]  # Python uses no other
    code = _CODE.format(path=path, name=words[0], module=module, function=function, pipe=pipe)
    try:
        process = subprocess.Popen(  # noqa: S603 - this Python, and the code above
            [sys.executable, "-P", "-c", code, *words[1:]], **options
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


def may_copy() -> bool:
    """Whether copies of this process can do what new ones would, from an earlier start.

    Only of a process of bnfold's, on Linux: on macOS libraries of the system do not survive it. A
    copy has none of the threads, and all that is in memory. So there must be one thread, those of
    libraries counted, and no more memory than a small part of what reading a file may take.
    """
    if sys.platform != "linux" or not link.is_supervised():
        return False
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return False
    size = platforms.resident(os.getpid())
    return len(threads) == 1 and size is not None and size <= _MOST_COPIED


def copy(function: Callable[[int], object]) -> tuple[Forked, int, int, int]:
    """Call a function in a copy of this process, with the pipe to its supervisor; see `may_copy`.

    The copy is in a process group of its own, and has of the files that are open here none. Returns
    the process, and what `start` has as pipes: the end to read from of that one, the end to write
    to of its input, and the end to read from of its output.
    """
    pipes: list[int] = []
    # An exception of a signal must not take the copy back to where this process was going.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for _ in range(3):
            pipes += os.pipe()
        told, telling, input_, asking, answers, output = pipes
        pid = os.fork()
        if not pid:
            _begin_anew(function, (input_, output, telling), held)
    except BaseException:
        for one in pipes:
            os.close(one)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    for one in (telling, input_, output):
        os.close(one)
    return Forked(pid), told, asking, answers


def _begin_anew(
    function: Callable[[int], object], ends: tuple[int, int, int], held: set[Any]
) -> NoReturn:
    """Be what a new process would be, and end as one does, whatever comes."""
    code = 1
    try:
        os.setpgid(0, 0)
        _keep_only(ends)
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                is_key = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if is_key else signal.SIG_DFL)
        sys.argv[:] = ["bnfold"]
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        function(_PIPE)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def _keep_only(ends: tuple[int, int, int]) -> None:
    """Close all files but three: they become the input, the output, and the pipe."""
    import fcntl  # noqa: PLC0415 - not on Windows

    safe = [fcntl.fcntl(one, fcntl.F_DUPFD, _PIPE + 1) for one in ends]  # nothing replaces these
    nothing = os.open(os.devnull, os.O_RDWR)
    for one, number in zip((*safe, nothing), (0, 1, _PIPE, 2), strict=True):
        os.dup2(one, number)
    for one in map(int, os.listdir("/proc/self/fd")):
        if one > _PIPE:
            with suppress(OSError):  # that of the listing itself
                os.close(one)
