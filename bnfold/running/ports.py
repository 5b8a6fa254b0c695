"""The inputs and outputs of a loaded model: what it promises to those who call it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.model.order import snake_case
from bnfold.running import keras_graph


@dataclass(frozen=True)
class Port:
    """An input or an output as the model's user sees it.

    `is_automatic` says that Keras made the name up: by counting, so that the same code run again
    gives another one, on which nobody can rely. `is_normalized` says that it is the name of a
    BatchNormalization, which may be gone.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    is_automatic: bool = False
    is_normalized: bool = False

    def excuse(self, new: Port) -> str | None:
        """Why it may be called what `new` is called; None if nothing but its own name will do."""
        if self.is_automatic:
            return "a name that Keras made up"
        if self.is_normalized and not new.is_normalized:
            return "the name of a BatchNormalization that is gone"
        return None


@dataclass(frozen=True)
class Interface:
    """What a model promises to those who call it; `structure` is like "{'a': 0, 'b': [1, 2]}"."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    input_structure: str
    output_structure: str


def interface(model: Any) -> Interface:
    """Return the interface of a model that has symbolic inputs and outputs."""
    return Interface(
        tuple(port(tensor) for tensor in model.inputs),
        tuple(port(tensor) for tensor in model.outputs),
        _structure(keras_graph.nested(model, "inputs"), model.inputs),
        _structure(keras_graph.nested(model, "outputs"), model.outputs),
    )


def port(tensor: Any) -> Port:
    """What a user sees of an input or an output."""
    owner = keras_graph.origin_of(tensor).layer
    return Port(
        owner.name,
        tuple(tensor.shape),
        keras_graph.dtype_name(tensor),
        is_automatic=_is_automatic(owner),
        is_normalized=type(owner).__name__ in BATCHNORM_CLASSES,
    )


def _is_automatic(owner: Any) -> bool:
    """Whether a layer is called what Keras 2 or 3 calls a layer that nobody names."""
    own = snake_case(type(owner).__name__)
    counted = "|".join((own, "input", "model", "keras_tensor"))
    return re.fullmatch(rf"(?:{counted})(?:_\d+)?(?:CLONE)*", owner.name) is not None


def _structure(value: Any, flat: Sequence[Any]) -> str:
    """Return the nesting of lists and dictionaries, each tensor replaced by its position."""
    if isinstance(value, dict):
        inner = [f"{key!r}: {_structure(item, flat)}" for key, item in sorted(value.items())]
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_structure(item, flat) for item in value) + "]"
    found = (str(index) for index, tensor in enumerate(flat) if tensor is value)
    return next(found, "?")


def differences(original: Interface, folded: Interface) -> list[str]:
    """Sentences on all in which the folded model breaks the original's interface."""
    found = []
    for kind, before, after in _sides(original, folded):
        if len(before) != len(after):
            found.append(f"{kind}s: {len(before)} in the original, {len(after)} in the other model")
            continue
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            found.extend(_port_differences(f"{kind} {index}", old, new))
    if not found and original.input_structure != folded.input_structure:
        found.append("the inputs are structured differently")
    if not found and original.output_structure != folded.output_structure:
        found.append("the outputs are structured differently")
    return found


def renamed(original: Interface, folded: Interface) -> list[str]:
    """Sentences on the ports that are called otherwise, where that breaks no promise."""
    return [
        f"{kind} {index} is called {new.name!r} instead of {old.name!r}, {old.excuse(new)}"
        for kind, before, after in _sides(original, folded)
        for index, (old, new) in enumerate(zip(before, after, strict=True))
        if old.name != new.name
    ]


def _sides(
    original: Interface, folded: Interface
) -> Iterator[tuple[str, tuple[Port, ...], tuple[Port, ...]]]:
    yield "input", original.inputs, folded.inputs
    yield "output", original.outputs, folded.outputs


def _port_differences(label: str, old: Port, new: Port) -> Iterator[str]:
    for field in ("name", "shape", "dtype"):
        before, after = getattr(old, field), getattr(new, field)
        if before != after and not (field == "name" and old.excuse(new)):
            yield f"{label} ({old.name!r}): the {field} changed from {before!r} to {after!r}"
