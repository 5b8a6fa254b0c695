"""Whether layers of the same name stand in the same place in two models.

Names alone can mislead: Keras numbers the layers that nobody named, so that the `dense_2` of one
model may be the `dense_3` of another. The *origins* of a tensor are the nearest calls upstream that
both models have, by name, class and shapes. Two calls are aligned when what they read has the same
origins in both models, and those are aligned; or when what they read holds the same numbers, which
says as much without any name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from bnfold.running.unrolled import FlatCall, Key, Unrolled

Origins = frozenset[tuple[Key, int]] | None
"""Calls and the numbers of their outputs; None after a layer with weights without a namesake."""

_NOWHERE: Origins = frozenset()


class Alignment:
    """Which calls of the original stand where their namesakes stand.

    `gone` are the calls that the folded model does not have to have; `holds_the_same` tells whether
    two tensors are known to hold the same numbers.
    """

    def __init__(
        self,
        original: Unrolled,
        folded: Unrolled,
        gone: Collection[Key],
        holds_the_same: Callable[[Any, Any], bool],
    ) -> None:
        both = {key for key in original.calls if key not in gone and _alike(original, folded, key)}
        lost = {
            key for key, call in original.calls.items() if call.has_weights and key not in gone
        } - both
        self._origins = _origins(original, both, lost, gone)
        self._others = _origins(folded, both, set(), set())
        self._aligned = {_input(number) for number in range(len(original.inputs))}
        for key in (key for key in original.calls if key in both):
            read = zip(original.calls[key].inputs, folded.calls[key].inputs, strict=False)
            if all(self.same(*pair) or holds_the_same(*pair) for pair in read):
                self._aligned.add(key)

    def same(self, tensor: Any, other: Any) -> bool:
        """Whether a tensor of the original and one of the folded model have the same origins."""
        origins = self._origins.get(id(tensor), _NOWHERE)
        if origins is None or origins != self._others.get(id(other), _NOWHERE):
            return False
        return all(key in self._aligned for key, _ in origins)


def _alike(original: Unrolled, folded: Unrolled, key: Key) -> bool:
    one, other = original.calls[key], folded.calls.get(key)
    return other is not None and one.class_name == other.class_name and _made(one) == _made(other)


def _made(call: FlatCall) -> list[tuple[Any, ...]]:
    return [tuple(one.shape) for one in call.outputs]


def _input(number: int) -> Key:
    return (("", number),)


def _origins(
    model: Unrolled, both: Collection[Key], lost: Collection[Key], gone: Collection[Key]
) -> dict[int, Origins]:
    """The origins of every tensor, by its id; those of what is gone are those of what it reads."""
    found: dict[int, Origins] = {
        id(one): frozenset({(_input(number), 0)}) for number, one in enumerate(model.inputs)
    }
    for key, call in model.calls.items():
        read = call.inputs[:1] if key in gone else call.inputs  # the others are masks
        through = None if key in lost else _united([found.get(id(one), _NOWHERE) for one in read])
        for number, tensor in enumerate(call.outputs):
            found[id(tensor)] = frozenset({(key, number)}) if key in both else through
    return found


def _united(parts: list[Origins]) -> Origins:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None
