"""A copy of a loaded model that computes in float64."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy as np

from bnfold.running import keras_graph, precision
from bnfold.running.arrays import ROUNDINGS
from bnfold.running.libraries import CannotRunError, one_line_on_failure
from bnfold.running.loading import LoadedModel

_FLOAT64_LIMIT = 1_200_000_000  # bytes of weights in float64


def float64_copy(loaded: LoadedModel) -> LoadedModel:
    """Return what a model shows rebuilt in float64 with the same weights. Raises CannotRunError."""
    weights = loaded.shown.weights
    if sum(8 * int(np.prod(weight.shape)) for weight in weights) > _FLOAT64_LIMIT:
        raise CannotRunError("the weights are too large for a copy in float64")
    saving = loaded.keras.saving
    with one_line_on_failure():
        with _sharing(loaded):
            config = precision.in_float64(saving.serialize_keras_object(loaded.shown))
        with _sharing(loaded):
            model = saving.deserialize_keras_object(
                config, custom_objects=loaded.custom_objects, safe_mode=not loaded.trust
            )
        for own, weight in zip(model.weights, weights, strict=True):
            own.assign(_widened(weight))
    return LoadedModel(loaded.path, loaded.library, model, loaded.trust, shown=model)


def _sharing(loaded: LoadedModel) -> contextlib.AbstractContextManager[Any]:
    """The scope in which Keras keeps one layer object in several places one object."""
    try:
        library = importlib.import_module(f"{loaded.library}.src.saving.serialization_lib")
        scope: contextlib.AbstractContextManager[Any] = library.ObjectSharingScope()
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return scope


def _widened(weight: Any) -> Any:
    """What a variable holds, as a tensor of TensorFlow's, which takes no further copies."""
    import tensorflow  # noqa: PLC0415

    value = tensorflow.convert_to_tensor(keras_graph.held_by(weight))
    is_float = keras_graph.dtype_name(weight) in ROUNDINGS
    return tensorflow.cast(value, tensorflow.float64) if is_float else value
