"""Saving a live model as a file, and loading a file made from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError
from bnfold.running import keras_graph
from bnfold.running.borrowing import guest, keep_keras
from bnfold.running.libraries import imported, library, one_line_on_failure


@guest()
def save_live(model: Any, path: Path) -> None:
    """Save a model in memory as a `.keras` file.

    Raises BnfoldError when Keras cannot.
    """
    keep_keras(imported(_library_of(model)))
    with one_line_on_failure("Keras cannot save this model: ", BnfoldError):
        model.save(path)


def own_classes(model: Any) -> dict[str, Any]:
    """The classes of a live model's layers that are not the library's, by name."""
    classes = {type(part) for part in (model, *keras_graph.layers_of(model))}
    own = (c for c in classes if not c.__module__.startswith(("keras.", "tf_keras.")))
    return {found.__name__: found for found in own}


@guest()
def load_live(path: Path, like: Any) -> Any:
    """Load a `.keras` file made from the model `like`, with the library of that model."""
    with one_line_on_failure("Keras cannot load the folded model: ", BnfoldError):
        return library(_library_of(like)).models.load_model(
            str(path), custom_objects=own_classes(like), compile=False, safe_mode=False
        )


def _library_of(model: Any) -> str:
    """The library that a live model is of: keras or tf_keras."""
    bases = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return "tf_keras" if "tf_keras" in bases else "keras"
