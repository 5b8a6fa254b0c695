"""The inputs of BatchNormalization layers while a model runs as `predict` runs it.

The layers' own `call` is wrapped, so values are seen exactly as the layer gets them, wherever it
is: inside nested models and TimeDistributed, after a cast to float16, with its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bnfold.model.graph import LayerPath
from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.model.moments import Observed, Tally
from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.keras_runner import as_numpy
from bnfold.running.loading import LoadedModel

Note: TypeAlias = Callable[[Any, Array, Array | None], None]
"""Called with a layer, the numbers that go into it and their mask."""


@dataclass(frozen=True, eq=False)
class Normalization:
    """A BatchNormalization of a loaded model.

    Attributes:
        layer: the Keras object.
        calls: how many calls of it the model has.
    """

    layer: Any
    calls: int

    @property
    def axis(self) -> int | None:
        """The axis that it normalizes, as its own input counts; None for several at once."""
        axis = self.layer.axis
        axes = [axis] if isinstance(axis, int) else list(axis)
        return int(axes[0]) if len(axes) == 1 else None


def normalizations(loaded: LoadedModel) -> dict[LayerPath, Normalization]:
    """The BatchNormalization layers that a model calls, by nested path.

    A wrapped one has its wrapper's path. Those inside custom layers are left out.
    One object in several places of the model counts all calls in each.
    """
    found: dict[LayerPath, Any] = {}
    calls: dict[int, int] = {}
    for path, layer in _calls_in(keras_graph.graph_of(loaded.model), ()):
        kind = type(layer)
        own = kind.__module__.startswith(("keras.", "tf_keras."))
        if own and kind.__name__ in BATCHNORM_CLASSES:
            found[path] = layer
            calls[id(layer)] = calls.get(id(layer), 0) + 1
    return {path: Normalization(layer, calls[id(layer)]) for path, layer in found.items()}


def _calls_in(graph: Any, path: LayerPath) -> Iterator[tuple[LayerPath, Any]]:
    for node in keras_graph.nodes_of(graph) if graph is not None else ():
        yield from called_by(keras_graph.owner_of(node), path)


def called_by(layer: Any, path: LayerPath) -> Iterator[tuple[LayerPath, Any]]:
    """Every call that one call of a layer makes, as far as graphs tell, with the layer's path.

    A nested model calls its layers, a wrapper what it wraps, any other layer itself.
    """
    outer = inner = (*path, str(layer.name))
    while type(layer).__name__ == "TimeDistributed":
        layer = layer.layer
        inner = (*inner, str(layer.name))
    nested = keras_graph.graph_of(layer)
    if nested is None:
        yield outer, layer
    else:
        yield from _calls_in(nested, inner)


@contextmanager
def watching(layers: Iterable[Any], note: Note, hidden: Callable[[Any], None]) -> Iterator[None]:
    """Have `note` called for every call of these layers; `hidden` for one that has no numbers.

    A call has none while TensorFlow traces a function that somebody compiled.
    """
    watched = {id(layer): layer for layer in layers}.values()
    for layer in watched:
        layer.call = _watched(layer, layer.call, note, hidden)
    try:
        yield
    finally:
        for layer in watched:
            del layer.call


def _watched(
    layer: Any, original: Callable[..., Any], note: Note, hidden: Callable[[Any], None]
) -> Callable[..., Any]:
    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        if hasattr(inputs, "numpy"):
            note(layer, as_numpy(inputs), None if mask is None else np.asarray(mask))
        else:
            hidden(layer)
        return original(inputs, *args, **kwargs)

    return call


class Observer:
    """The tallies of some layers."""

    def __init__(self, found: Mapping[LayerPath, Normalization]) -> None:
        self._found = found
        self._by_layer = {id(one.layer): one for one in found.values() if one.axis is not None}
        self._tallies: dict[int, Tally] = {}
        self._hidden: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tally the inputs of the layers meanwhile."""
        layers = [one.layer for one in self._by_layer.values()]
        with watching(layers, self._note, lambda layer: self._hidden.add(id(layer))):
            yield

    def _note(self, layer: Any, values: Array, mask: Array | None) -> None:
        axis = self._by_layer[id(layer)].axis
        if axis is not None:
            self._tallies.setdefault(id(layer), Tally()).add(values, axis, mask)

    def observed(self, samples: int) -> dict[LayerPath, Observed]:
        """What went into each layer, while a model ran over so many samples."""
        return {path: self._of(one, samples) for path, one in self._found.items()}

    def _of(self, one: Normalization, samples: int) -> Observed:
        tally = self._tallies.get(id(one.layer), Tally())
        problem = None
        if one.axis is None:
            problem = "it normalizes several axes at once"
        elif id(one.layer) in self._hidden:
            problem = "it runs inside a compiled function, where nothing can be seen"
        elif tally.moments is None or not tally.moments.count.any():
            problem = "it saw no data"
        moments = tally.moments if problem is None else None
        return Observed(samples, one.calls, moments, tally.non_finite, problem)
