"""The garbage collector of the command line's own process.

TensorFlow is imported as millions of small objects, and every later search for garbage goes through
all of them. Once it is there they are set aside for good. In a process of the user's, who calls the
API, none of this happens.
"""

import gc
import sys

from bnfold.running import process

_settled: list[bool] = []


def search_rarely() -> None:
    """Search less often: imports and models are many small objects, and hardly any garbage.

    What has been imported by now stays for good. `bnfold.__main__` has it imported without any
    search.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    gc.enable()


def search_later() -> None:
    """Search not at all before TensorFlow starts: a command keeps all that it makes of a model.

    These are millions of objects where there are many layers, and each search goes through those
    that are new. Whoever does one model after another must search again.
    """
    gc.disable()


def settle() -> None:
    """Set aside what is there, once, as soon as TensorFlow is."""
    if process.is_own() and not _settled and "tensorflow" in sys.modules:
        _settled.append(True)
        gc.collect()
        gc.freeze()
