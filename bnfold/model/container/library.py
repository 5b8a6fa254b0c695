"""The HDF5 library, imported when something asks it for anything.

The weights of most files are read from their bytes. An inspection of such a file runs nothing of
the library, whose import takes as long as reading a small model.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError


def imported(name: str) -> Any:
    """A module that nothing can be done without.

    Raises:
        BnfoldError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except MemoryError:
        raise
    except Exception as error:  # a damaged library may raise anything
        text = " ".join(str(error.__cause__ or error).split())[:300]
        raise BnfoldError(f"cannot start: {type(error).__name__}: {text}") from error


_lock = Lock()
_holders = 0
_was_enabled = False


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector, for all threads.

    h5py's objects take its lock when they are freed, also where another thread happens to find one
    of them in a cycle. A thread that has the lock and waits for that other one would wait for ever:
    HDF5 has it while it writes to a file, or reads one, that Python code stands for.
    """
    global _holders, _was_enabled  # noqa: PLW0603 - there is one garbage collector
    with _lock:
        if not _holders:
            _was_enabled = gc.isenabled()
            gc.disable()
        _holders += 1
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders and _was_enabled:
                gc.enable()


if TYPE_CHECKING:
    import h5py
else:

    class _Library:
        def __getattr__(self, name: str) -> Any:
            found = self.__dict__[name] = getattr(imported("h5py"), name)
            return found

    h5py = _Library()

__all__ = ["gc_paused", "h5py", "imported"]
