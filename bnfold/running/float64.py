"""A copy of a loaded model that computes in float64."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import numpy as np

from bnfold.running import keras_graph, precision
from bnfold.running.arrays import ROUNDINGS, Array
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
        model.set_weights([_widened(weight) for weight in weights])
    return LoadedModel(loaded.path, loaded.library, model, loaded.trust, shown=model)


def _sharing(loaded: LoadedModel) -> contextlib.AbstractContextManager[Any]:
    """The scope in which Keras keeps one layer object in several places one object."""
    try:
        library = importlib.import_module(f"{loaded.library}.src.saving.serialization_lib")
        scope: contextlib.AbstractContextManager[Any] = library.ObjectSharingScope()
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return scope


def _widened(weight: Any) -> Array:
    value = np.asarray(weight.numpy())
    return value.astype(np.float64) if keras_graph.dtype_name(weight) in ROUNDINGS else value
