"""Classes and functions that the user's process has registered with Keras, for a child process.

They go there as names: only what a model file asks for is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from bnfold.running import keras_graph
from bnfold.running.libraries import one_line_on_failure, without_bytecode


def places() -> dict[str, str]:
    """Where the custom objects of this process are defined, by the names that Keras has for them.

    Such as `{"lab>Twice": "lab.layers:Twice"}`; nothing where Keras is not imported.
    """
    libraries = filter(None, map(sys.modules.get, ("keras", "tf_keras")))  # None where forbidden
    found = [item for library in libraries for item in keras_graph.custom_objects(library).items()]
    return {name: place(one) for name, one in found if hasattr(one, "__qualname__")}


def place(custom: Any) -> str:
    """The module and the name in it by which another process may find a class or a function."""
    return f"{custom.__module__}:{custom.__qualname__}"


def importable(place: str) -> str:
    """The place, if a process that runs models can import it. Raises BnfoldError."""
    module, _, name = place.partition(":")
    if module != "__main__" and "<locals>" not in name:
        return place
    where = "a function" if "<locals>" in name else "the running script"
    raise BnfoldError(_not_importable(name, where))


def find(keras: Any, name: str, elsewhere: Mapping[str, str], file: Path) -> Any:
    """What Keras has under a name that a model file needs, or has in the user's process.

    `elsewhere` is what `places` found there. Returns None where neither has anything, and raises
    BnfoldError for what this process cannot import.
    """
    found = keras.saving.get_registered_object(name)
    if found is not None or name not in elsewhere:
        return found
    try:
        module, _, path = importable(elsewhere[name]).partition(":")
        with one_line_on_failure(kind=ImportError), without_bytecode():
            return attrgetter(path)(importlib.import_module(module))
    except BnfoldError as error:
        raise BnfoldError(f"{file}: {error}") from None
    except ImportError as error:
        where = f"the module {module!r} ({error})"
        raise BnfoldError(f"{file}: {_not_importable(path, where)}") from error


def _not_importable(name: str, where: str) -> str:
    return (
        f"{name.rpartition('.')[2]!r} is defined in {where}, and models are run in a process of"
        " their own here, which cannot import it: put it into a module, or work in this process"
        " (in_process=True, and KERAS_BACKEND=tensorflow)"
    )
