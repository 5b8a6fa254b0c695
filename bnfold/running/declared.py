"""What a model's file says of its inputs, before anything is loaded."""

from __future__ import annotations

import numpy as np

from bnfold.model import declared
from bnfold.model.declared import Declared
from bnfold.model.graph import Graph
from bnfold.running.samples import InputSpec, storage


def input_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """The inputs that a file declares in Keras' order; none unless it tells all about all of them.

    Of what the layers that read them say of their numbers nothing is looked for.
    """
    found = [_spec(one) for one in declared.inputs(graph)]
    known = tuple(spec for spec in found if spec is not None)
    return known if len(known) == len(found) else ()


def _spec(one: Declared) -> InputSpec | None:
    if one.name is None or not one.shape or one.dtype is None:
        return None
    if any(size is not None and (not isinstance(size, int) or size < 0) for size in one.shape):
        return None
    try:
        np.dtype(storage(one.dtype))
    except TypeError:
        return None
    return InputSpec(one.name, one.shape, one.dtype)
