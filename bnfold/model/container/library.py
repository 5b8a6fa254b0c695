"""The HDF5 library, imported when something asks it for anything.

The weights of most files are read from their bytes. An inspection of such a file runs nothing of
the library, whose import takes as long as reading a small model.
"""

from __future__ import annotations

import importlib
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


if TYPE_CHECKING:
    import h5py
else:

    class _Library:
        def __getattr__(self, name: str) -> Any:
            found = self.__dict__[name] = getattr(imported("h5py"), name)
            return found

    h5py = _Library()

__all__ = ["h5py", "imported"]
