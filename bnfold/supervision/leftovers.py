"""Folders that a killed process has left: named so that they can be told, and removed.

The supervisor removes them where only its child is killed. Where both are, the next process that
makes such a folder beside them does. The name says whose a folder is: the boot of the machine and
the process namespace, the process, and when that started. Nothing else is relied on: a folder of
another machine that shares the disk, or of another container, counts as in use, and so does each
where the system tells none of this. That is so on all but Linux.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

REPLACED, TARGET = "replaced", "target"
"""What stood where a folder is being put, and a file with the name of that place beside it."""


def name(prefix: str) -> str:
    """A name for a new folder of this process, which begins with `prefix`."""
    here, start = _here(), _started(os.getpid())
    whose = "" if here is None or start is None else f"{here}_{os.getpid()}_{start}_"
    return f"{prefix}{whose}{os.urandom(8).hex()}"


def remove(folder: str | os.PathLike[str], prefix: str) -> None:
    """Remove the folders with such names from `folder` whose processes are gone.

    What was to be replaced is put back first, where it is missing.
    """
    here = _here()
    if here is None:
        return
    pattern = re.compile(rf"{re.escape(prefix)}{here}_(\d+)_(\d+)_\w+")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = pattern.fullmatch(entry.name)
            if found is not None and _is_ours(entry) and _has_ended(int(found[1]), found[2]):
                put_away(entry.path)


def put_away(folder: str) -> None:
    """Remove a folder; what was to be replaced is put back first, where it is missing."""
    import shutil  # noqa: PLC0415 - large, and hardly ever needed

    _put_back(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _here() -> str | None:
    """This boot of this machine, and the namespace in which its processes have their numbers."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip().replace("-", "")
        return f"{boot}_{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None where nothing is told of it.

    "" for one that has ended, and that its parent has not asked for yet.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            state, *numbers = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return "" if state in (b"Z", b"X") else numbers[18].decode("ascii")


def _has_ended(pid: int, started: str) -> bool:
    """Whether a process that started then is gone, and not only hidden from this user."""
    found = _started(pid)
    if found is not None:
        return found != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _is_ours(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.is_dir(follow_symlinks=False) and (
            entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        )
    return False


def _put_back(folder: str) -> None:
    replaced = os.path.join(folder, REPLACED)
    with suppress(OSError, ValueError):
        with open(os.path.join(folder, TARGET), "rb") as stream:
            name = os.path.basename(os.fsdecode(stream.read()))
        target = os.path.join(os.path.dirname(folder), name)
        if not os.path.lexists(target):
            os.rename(replaced, target)
