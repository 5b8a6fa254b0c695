"""What Windows refuses to do with files, on Linux: for tests of what must work on both."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold.jobs import staging


def refuse_as_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to move, replace or remove what this process has open, or a folder of it.

    Neither may something read-only be replaced, nor something be flushed that is open for reading.
    """
    moving: dict[str, Callable[..., Any]] = {"replace": os.replace, "rename": os.rename}
    for name, move in moving.items():
        monkeypatch.setattr(os, name, _guarded(move, 2))
    for name in ("unlink", "remove"):
        monkeypatch.setattr(os, name, _guarded(getattr(os, name), 1))
    by_system = os.fsync

    def fsync(descriptor: int) -> None:
        is_read = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if is_read and stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        by_system(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(staging, "_IS_WINDOWS", True)


def _guarded(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function, for paths that Windows lets it have: the first `count` arguments."""

    def guarded(*arguments: Any, **options: Any) -> Any:
        if options.get("dir_fd") is not None:  # by shutil.rmtree, below an open folder
            place = Path(f"/proc/self/fd/{options['dir_fd']}").resolve()
            paths = [place / os.fspath(one) for one in arguments[:count]]
        else:
            paths = [Path(os.fspath(one)) for one in arguments[:count]]
        for path in paths:
            if is_open(path):
                raise PermissionError(errno.EACCES, "The file is used by another process", path)
        if count == 2 and paths[1].is_file() and not paths[1].stat().st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "Access is denied", paths[1])
        return function(*arguments, **options)

    return guarded


def is_open(path: Path) -> bool:
    """Whether this process has a regular file open that is there, or in a folder there."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = Path(os.readlink(f"/proc/self/fd/{entry}"))
        except OSError:
            continue
        if target.is_file() and path.absolute() in (target, *target.parents):
            return True
    return False
