"""Files of Keras 1, whose layers have the names of today's and do not compute what these do.

A BatchNormalization with mode=2 normalizes with the statistics of the batch, also at inference, one
with mode=1 every sample by itself, and before Keras 1.1 the last vector is a deviation and no
variance. A Dense with bias=False has no `use_bias`, kernels of Theano are flipped. So nothing is
known of a layer there but what stands in a BatchNormalization.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bnfold.model.graph import Graph, Layer
from bnfold.model.identity import foreign_settings
from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.model.refusal import Refusal

OBSTACLE = Refusal(
    "the file was written by Keras 1, where layers of the same names compute otherwise (a "
    "BatchNormalization with mode=2 uses the statistics of the batch always), so nothing in it can "
    "be folded; Keras 2.0 to 2.3 load most such files: save it there again"
)

_SETTINGS = frozenset(
    {
        "W_constraint", "W_regularizer", "b_constraint", "b_regularizer", "bias", "border_mode",
        "consume_less", "dim_ordering", "init", "inner_init", "mode", "nb_col", "nb_filter",
        "nb_row", "p", "pool_length", "subsample", "subsample_length",
    }
)  # fmt: skip
"""Settings of Keras 1 that no class of this name has had since."""

_CLASSES = frozenset(
    {
        "AtrousConvolution1D", "AtrousConvolution2D", "Convolution1D", "Convolution2D",
        "Convolution3D", "Deconvolution2D", "MaxoutDense", "SeparableConvolution2D",
        "TimeDistributedDense",
    }
)  # fmt: skip
"""Classes that were renamed or went away with Keras 1."""


def is_keras1(version: str | None, root: Any) -> bool:
    """Whether Keras 1 wrote a file, by its version or, where it names none, by its settings."""
    if version is not None:
        return version.startswith(("0.", "1."))
    return any(
        entry.get("class_name") in _CLASSES or not _SETTINGS.isdisjoint(foreign_settings(entry))
        for entry in _entries(root)
    )


def _entries(root: Any) -> Iterator[dict[str, Any]]:
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str):
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def as_keras1(graph: Graph) -> Graph:
    """The same graph, in which nothing is taken for a layer of today's Keras but what can be."""
    layers = {name: _layer(layer) for name, layer in graph.layers.items()}
    return replace(graph, layers=layers, obstacle=OBSTACLE)


def _layer(layer: Layer) -> Layer:
    if layer.graph is not None:
        return replace(layer, graph=as_keras1(layer.graph))
    if layer.inner is not None:
        return replace(layer, inner=_layer(layer.inner))
    known = layer.class_name in {*BATCHNORM_CLASSES, "InputLayer"}
    return replace(layer, builtin=known)
