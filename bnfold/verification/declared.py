"""What a model's file says of its inputs, before anything is loaded."""

from __future__ import annotations

import numpy as np

from bnfold.model.graph import Graph, Layer
from bnfold.model.policy import policy_name
from bnfold.model.shapes import input_shape
from bnfold.verification.samples import InputSpec, storage


def input_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """The inputs that a file declares in Keras' order; none unless it tells all about all of them.

    Of what the layers that read them say of their numbers nothing is looked for.
    """
    if graph.kind == "functional":
        first = [graph.layers[name] for name in graph.inputs]
    else:
        first = list(graph.layers.values())[:1]
    found = [_declared(layer) for layer in first]
    known = tuple(spec for spec in found if spec is not None)
    return known if len(known) == len(found) else ()


def _declared(layer: Layer) -> InputSpec | None:
    shape, dtype = input_shape(layer), policy_name(layer)
    is_plain = layer.class_name == "InputLayer" and layer.builtin and "dtype" in layer.config
    if not is_plain or not shape or dtype is None:
        return None
    if any(size is not None and (not isinstance(size, int) or size < 0) for size in shape):
        return None
    try:
        np.dtype(storage(dtype))
    except TypeError:
        return None
    return InputSpec(layer.name, shape, dtype)
