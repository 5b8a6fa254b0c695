"""Starting a new process of Python's that is supervised."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_CODE = (
    "import sys; sys.path[:] = {path!r}; sys.argv[0] = {name!r}; import {module};"
    " sys.modules[{module!r}].{function}({pipe})"
)
"""What it runs. It finds modules where this process does, and no others: `-m` would look into the
current directory first, where the files of a stranger may lie."""


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
