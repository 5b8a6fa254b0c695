"""Whether two files hold the same model, so that there is nothing to verify.

Compared are the configs, without what belongs to training, and every number of every layer, bit for
bit. Where a file does not tell which numbers belong to which layer, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Graph, Layer, Weight
from bnfold.model.layers import slots
from bnfold.verification.result import Basis, Verdict, Verification
from bnfold.verification.tolerance import Rule


def unchanged(original: Path, folded: Path, seed: int) -> Verification | None:
    """The verdict on two files that differ in nothing that computes; None if they may differ.

    Raises UnreadableModelError and UnsafeModelError.
    """
    with open_model(original) as one, open_model(folded) as other:
        if one.kind != other.kind or not _same_graphs(one.graph, other.graph):
            return None
    return Verification(
        Verdict.EQUIVALENT, Basis.FILES, (), (), seed, "keras", Rule().text(), sites=()
    )


def _same_graphs(one: Graph, other: Graph) -> bool:
    if one.kind == "subclassed" or one.kind != other.kind or one.builtin != other.builtin:
        return False
    if _computing(one.entry) != _computing(other.entry) or list(one.layers) != list(other.layers):
        return False
    return all(map(_same_layers, one.layers.values(), other.layers.values()))


def _computing(entry: Any) -> Any:
    """A config without what only training reads."""
    if isinstance(entry, dict):
        return {key: _computing(one) for key, one in entry.items() if key != "compile_config"}
    return [_computing(one) for one in entry] if isinstance(entry, list) else entry


def _same_layers(one: Layer, other: Layer) -> bool:
    if (one.location, one.class_name) != (other.location, other.class_name):
        return False
    if not _both(one.inner, other.inner, _same_layers):
        return False
    if not _both(one.graph, other.graph, _same_graphs):
        return False
    if slots(one) == slots(other) == ():
        return True  # the file may hold the state of a random generator
    return _same_numbers(one.weights, other.weights)


def _both(one: Any, other: Any, same: Callable[[Any, Any], bool]) -> bool:
    """Whether neither is there, or both are and are the same."""
    return one is other if one is None or other is None else same(one, other)


def _same_numbers(one: Sequence[Weight] | None, other: Sequence[Weight] | None) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    return all(map(_same_weights, one, other))


def _same_weights(one: Weight, other: Weight) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return one.read().tobytes() == other.read().tobytes()
