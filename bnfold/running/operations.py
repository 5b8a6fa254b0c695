"""What one call of a graph does: the name of its operation, and the numbers that it is given.

Keras 3 has classes for `keras.ops` (`TrueDivide`), tf_keras one layer for all of TensorFlow's
functions (`TFOpLambda`, with the symbol `math.truediv`); here both have one name, in lower case and
without underscores. Everything reads attributes of Keras objects and imports nothing of Keras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.running import keras_graph
from bnfold.running.arrays import Array

_SYNONYMS = {
    "truediv": "divide",
    "truedivide": "divide",
    "realdiv": "divide",
    "sub": "subtract",
    "mul": "multiply",
    "neg": "negative",
    "clipbyvalue": "clip",
    "hardswish": "hardsilu",
    "absolute": "abs",
}


@dataclass(frozen=True)
class Operation:
    """One call.

    Attributes:
        name: of the layer or operation; that of the layer inside for a TimeDistributed.
        owner: what is called; the layer inside for a TimeDistributed.
        operands: what it is given, in order: tensors of the graph, and constants as arrays.
        tensors: the tensors among them.
    """

    name: str
    owner: Any
    operands: tuple[Any, ...]
    tensors: tuple[Any, ...]

    @property
    def constants(self) -> tuple[Array, ...]:
        """The operands that are no tensors."""
        return tuple(one for one in self.operands if isinstance(one, np.ndarray))


def operation(node: Any) -> Operation:
    """What a call of a graph does."""
    owner = keras_graph.owner_of(node)
    owner = owner.layer if type(owner).__name__ == "TimeDistributed" else owner
    read = tuple(keras_graph.inputs_of(node))
    args, kwargs = keras_graph.arguments_of(node)
    operands = []
    for one in keras_graph.leaves([*args, *kwargs.values()]):
        if any(one is tensor for tensor in read):
            operands.append(one)
        elif (constant := _constant(one)) is not None:
            operands.append(constant)
    return Operation(plain_name(owner), owner, tuple(operands), read)


def plain_name(owner: Any) -> str:
    """The name of a layer's or an operation's class, or of TensorFlow's function."""
    text = type(owner).__name__
    if text == "TFOpLambda":
        text = str(getattr(owner, "symbol", text)).rpartition(".")[2]
    return simplified(text)


def simplified(name: str) -> str:
    """A name in lower case and without underscores, one of its synonyms."""
    plain = name.replace("_", "").lower()
    return _SYNONYMS.get(plain, plain)


def _constant(value: Any) -> Array | None:
    if value is None or isinstance(value, (str, bool, slice, type(Ellipsis))):
        return None
    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return found
