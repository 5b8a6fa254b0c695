"""The garbage collector of the command line's own process.

TensorFlow is imported as millions of small objects, and every later search for garbage goes through
all of them. Once it is there they are set aside for good. In a process of the user's, who calls the
API, none of this happens.
"""

import gc
import sys
from dataclasses import dataclass


@dataclass
class _Process:
    is_own: bool = False
    is_settled: bool = False


_process = _Process()


def own() -> None:
    """Say that the process is the command line's own, which may search for garbage as it likes."""
    _process.is_own = True
    # Reading a model makes many small objects and no garbage worth looking for so often.
    gc.set_threshold(100_000, 20, 20)


def settle() -> None:
    """Set aside what is there, once, as soon as TensorFlow is."""
    if _process.is_own and not _process.is_settled and "tensorflow" in sys.modules:
        _process.is_settled = True
        gc.collect()
        gc.freeze()
