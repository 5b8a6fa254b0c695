"""The first layer whose value a deployed model computes otherwise, by the names of its tensors.

Converters keep the names of layers in those of tensors: `net_1/stem_1/BiasAdd` is made by `stem` of
`net`. The last tensor of each layer is held against what the layer makes in Keras. They need not be
the same: a file in which a BatchNormalization was folded has its value where the convolution's
stood. So a layer that differs is excused where all that follow it agree, and what is told is the
first one that is not, with nothing of the kind upstream.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.running import keras_runner
from bnfold.running.arrays import Array
from bnfold.running.deployed.binding import Binding, layouts
from bnfold.running.deployed.model import Inner
from bnfold.running.libraries import CannotRunError, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet
from bnfold.running.unrolled import FlatCall, Unrolled, name_apart, unroll

_SAMPLES = 4


@dataclass(frozen=True)
class Located:
    """Where a difference begins: `layer` is None where all layers that were compared agree."""

    layer: str | None
    error: float
    agreed: tuple[str, ...]
    compared: int

    @property
    def sentence(self) -> str:
        """What is said of it."""
        count = f"{len(self.agreed)} of {self.compared} layers that could be compared agree"
        if self.layer is None:
            after = f"; the difference arises after {self.agreed[-1]!r}" if self.agreed else ""
            return f"{count}{after}"
        return (
            f"the first layer whose value differs is {self.layer!r}, by {self.error:.2g} of its"
            f" magnitude; {count}"
        )


def locate(
    loaded: LoadedModel, binding: Binding, drawn: SampleSet, allowed: float
) -> Located | None:
    """Where a file begins to differ from MODEL, whose layers may be given other names for it.

    `allowed` is the error of a value that agrees, as a share of its root mean square. None where
    nothing can be told.
    """
    try:
        with quiet():
            flat = unroll(loaded.model)
            name_apart(flat)
        inner = binding.file.inner()
    except Exception:  # a layer of the user's may raise anything
        return None
    paired = dict(_paired(flat, inner))
    if not paired:
        return None
    calls = list(paired)
    try:
        few = [one[:_SAMPLES] for one in drawn.inputs]
        shown = keras_runner.showing(loaded, [call.outputs[0] for call in calls])
        expected = keras_runner.run(shown, few, training=False)
        extra = [paired[call] for call in calls]
        call_file = binding.file.start_showing(extra)
        found = binding.run(call_file, few, extra)[len(binding.outputs) :]
    except (CannotRunError, ValueError):
        return None
    errors = {
        id(call): error
        for call, one, other in zip(calls, expected, found, strict=True)
        if (error := _error(one, other)) is not None
    }
    return _located(flat, errors, allowed) if errors else None


def _error(expected: Array, found: Array) -> float | None:
    """The root mean square of the error over that of the value; None for another shape."""
    if expected.dtype.kind != "f" or found.ndim != expected.ndim:
        return None
    for axes in layouts(expected.ndim):
        moved = np.transpose(expected, axes)
        if moved.shape != found.shape:
            continue
        exact = moved.astype(np.float64)
        size = float(np.sqrt(np.mean(np.square(exact)))) if exact.size else 0.0
        off = float(np.sqrt(np.mean(np.square(found - exact)))) if exact.size else 0.0
        return off / size if size else (0.0 if not off else float("inf"))
    return None


# --- names ---------------------------------------------------------------------------------------


def _paired(flat: Unrolled, inner: Sequence[Inner]) -> Iterator[tuple[FlatCall, Inner]]:
    """The last value in the file that each layer makes, by name.

    Layers that are called once only; and none that makes an output, which is compared as such and
    may be called otherwise in the file, so that what is left of its name is before an activation.
    """
    count = Counter(id(call.layer) for call in flat.calls.values())
    ends = {id(tensor) for tensor in flat.outputs}
    calls = [
        one
        for one in flat.calls.values()
        if count[id(one.layer)] == 1 and one.outputs and id(one.outputs[0]) not in ends
    ]
    ending = _ending([call.key[-1][0] for call in calls], inner)
    named = {tuple(name for name, _ in call.key): call for call in calls}
    last: dict[int, tuple[FlatCall, Inner]] = {}
    for value in inner:
        call = _maker(named, value.layer, ending)
        if call is not None:
            last[id(call)] = call, value
    yield from last.values()


def _ending(names: Sequence[str], inner: Sequence[Inner]) -> str:
    """What Keras has appended to all names of layers: `_1` in a model that was called once before.

    That of all that are possible under which most layers are found.
    """
    scopes = {scope for value in inner for scope in value.layer}
    endings: list[str] = ["", *sorted(set(re.findall(r"_\d+(?= |$)", " ".join(scopes))))]
    return max(endings, key=lambda ending: sum(f"{name}{ending}" in scopes for name in names))


def _maker(
    named: Mapping[tuple[str, ...], FlatCall], scopes: Sequence[str], ending: str
) -> FlatCall | None:
    """The layer of the longest path that is in the scopes, from the outside in."""
    plain = [scope.removesuffix(ending) if ending else scope for scope in scopes]
    found = [path for path in named if _is_within(path, plain)]
    return named[max(found, key=len)] if found else None


def _is_within(path: Sequence[str], scopes: Sequence[str]) -> bool:
    left = iter(scopes)
    return all(name in left for name in path)


# --- where it begins -----------------------------------------------------------------------------


def _located(flat: Unrolled, errors: Mapping[int, float], allowed: float) -> Located:
    calls = list(flat.calls.values())
    agrees = {key: error <= allowed for key, error in errors.items()}
    known = [call for call in calls if id(call) in agrees]
    excused: dict[int, bool] = {}
    for call in reversed(known):
        after = list(_next(call, agrees, lambda one: _readers(flat, one)))
        excused[id(call)] = agrees[id(call)] or (
            bool(after) and all(excused.get(id(one), agrees[id(one)]) for one in after)
        )
    agreed = tuple(call.name for call in known if excused[id(call)])
    for call in known:
        before = _next(call, agrees, lambda one: _makers(flat, one))
        if not excused[id(call)] and all(excused[id(one)] for one in before):
            return Located(call.name, errors[id(call)], agreed, len(known))
    return Located(None, 0.0, agreed, len(known))


def _next(call: FlatCall, known: Mapping[int, bool], step: Any) -> Iterator[FlatCall]:
    """The nearest calls in one direction of which something is known."""
    pending, seen = list(step(call)), set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if id(one) in known:
            yield one
        else:
            pending += step(one)


def _readers(flat: Unrolled, call: FlatCall) -> list[FlatCall]:
    return [one for tensor in call.outputs for one, _ in flat.readers.get(id(tensor), ())]


def _makers(flat: Unrolled, call: FlatCall) -> list[FlatCall]:
    return [flat.makers[id(one)] for one in call.inputs if id(one) in flat.makers]
