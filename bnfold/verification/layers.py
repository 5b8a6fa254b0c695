"""Where a deployed model begins to compute something else, by the names of its tensors.

Converters keep the names of layers in those of tensors: `net_1/stem_1/BiasAdd` is made by `stem` of
`net`. The last tensor of each layer is held against what the layer makes in Keras, and against what
those make that follow it and have no tensor of their own: a file in which a BatchNormalization was
folded has its value where the convolution's stood. The outputs have been judged already. A layer
that differs is excused where all that follow it agree, and what is told is the first one that is
not, with nothing of the kind upstream.

Its value differs by its own fault or by that of a layer whose name is in no tensor, since a
converter merged it with others: one upstream, back to values that agree, or one downstream that its
kernel has absorbed. All of these are named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bnfold.model.layers import ROWS, UNKNOWN
from bnfold.running import keras_runner
from bnfold.running.arrays import Array
from bnfold.running.deployed.binding import Binding, layouts
from bnfold.running.deployed.model import Inner
from bnfold.running.libraries import CannotRunError, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.unrolled import FlatCall, Unrolled, name_apart, unroll

_SAMPLES = 4


@dataclass(frozen=True)
class Located:
    """Where a difference begins.

    Attributes:
        first: the first layer whose value differs; None where all differ by too little to tell.
        error: by how much, as a share of its magnitude.
        layers: those that may be wrong: `first`, and what is merged with it.
        agreed: how many of the layers agree that could be compared.
        compared: how many these are.
    """

    first: str | None
    error: float
    layers: tuple[str, ...]
    agreed: int
    compared: int

    @property
    def sentence(self) -> str:
        """What is said of it."""
        count = f"{self.agreed} of {self.compared} layers that could be compared agree"
        if self.first is None:
            return f"{count}, and no value differs by enough to tell where it begins"
        said = (
            f"the first layer whose value differs is {self.first!r}, by {self.error:.2g} of its"
            f" magnitude; {count}"
        )
        if len(self.layers) == 1:
            return said
        *others, last = map(repr, self.layers)
        return f"{said}; wrong may be {', '.join(others)} or {last}, which the file has as one"


def locate(
    loaded: LoadedModel,
    binding: Binding,
    samples: Sequence[Array],
    wrong: Sequence[bool],
    allowed: float,
) -> Located | None:
    """Where a file begins to differ from MODEL, whose layers may be given other names for it.

    `samples` are those that showed it, for each input, and `wrong` says for each output whether it
    differs. `allowed` is the error of a value that agrees, as a share of its root mean square. None
    where nothing can be told.
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
    ends = {id(flat.makers.get(id(tensor))) for tensor in flat.outputs}
    known = {id(call) for call in paired} | ends
    holds = {call: [call, *_absorbed(flat, call, known)] for call in paired}
    shown = list(dict.fromkeys(one for several in holds.values() for one in several))
    try:
        few = [one[:_SAMPLES] for one in samples]
        tensors = [*flat.outputs, *(call.outputs[0] for call in shown)]
        expected = keras_runner.run(keras_runner.showing(loaded, tensors), few, training=False)
        extra = list(paired.values())
        found = binding.run(binding.file.start_showing(extra), few, extra)
    except (CannotRunError, ValueError):
        return None
    count = len(flat.outputs)
    values = dict(zip(shown, expected[count:], strict=True))
    states: dict[int, _State] = {}
    for call, other in zip(paired, found[count:], strict=True):
        errors = [_error(values[one], other) for one in holds[call]]
        told = [error for error in errors if error is not None]
        if told:
            states[id(call)] = _State(min(told), min(told) <= allowed)
    if not states:
        return None
    for tensor, is_wrong, one, other in zip(flat.outputs, wrong, expected, found, strict=False):
        if (maker := flat.makers.get(id(tensor))) is not None:
            error = max(_error(one, other) or 0.0, states.get(id(maker), _NOTHING).error)
            agrees = not is_wrong and states.get(id(maker), _NOTHING).agrees
            states[id(maker)] = _State(error, agrees)
    return _located(flat, states, allowed)


class _State(NamedTuple):
    """How far a layer's value in the file is off, as a share of its size; and if it agrees."""

    error: float
    agrees: bool


_NOTHING = _State(0.0, True)


def _error(expected: Array, found: Array) -> float | None:
    """The root mean square of the error over that of the value; None for another shape.

    In the layout in which it is the least, where a shape allows several.
    """
    if expected.dtype.kind != "f" or found.ndim != expected.ndim:
        return None
    exact = expected.astype(np.float64)
    size = float(np.sqrt(np.mean(np.square(exact)))) if exact.size else 0.0
    moved = (np.transpose(exact, axes) for axes in layouts(exact.ndim))
    squares = [np.square(found - one) for one in moved if one.shape == found.shape]
    if not squares:
        return None
    off = min(float(np.sqrt(np.mean(one))) if one.size else 0.0 for one in squares)
    return off / size if size else (0.0 if not off else float("inf"))


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


def _absorbed(flat: Unrolled, call: FlatCall, known: Collection[int]) -> list[FlatCall]:
    """What follows a layer and has no tensor of its own, up to the next layer with a kernel.

    A converter may have merged these into the layer, whose tensor has the value of one of them.
    """

    def is_end(one: FlatCall) -> bool:
        return id(one) in known or _has_kernel(one)

    def readers(one: FlatCall) -> list[FlatCall]:
        return _readers(flat, one)

    return [one for one in _around(call, is_end, readers)[1] if one.outputs]


def _located(flat: Unrolled, states: Mapping[int, _State], allowed: float) -> Located:
    known = [call for call in flat.calls.values() if id(call) in states]
    ends = {id(flat.makers.get(id(tensor))) for tensor in flat.outputs}

    def readers(call: FlatCall) -> list[FlatCall]:
        return _readers(flat, call)

    def makers(call: FlatCall) -> list[FlatCall]:
        return _makers(flat, call)

    def is_known(call: FlatCall) -> bool:
        return id(call) in states

    excused: dict[int, bool] = {}
    for call in reversed(known):
        after = _around(call, is_known, readers)[0]
        excused[id(call)] = states[id(call)].agrees or (
            bool(after) and all(excused[id(one)] for one in after)
        )
    agreed = sum(excused.values())
    for call in known:
        before, merged_before = _around(call, is_known, makers)
        if excused[id(call)] or not all(excused[id(one)] for one in before):
            continue
        if states[id(call)].error <= allowed:  # an output, which is judged more strictly
            break
        # What a converter put into a kernel is found where the layer of the kernel was.
        is_whole = id(call) in ends or not _has_kernel(call)
        merged_after = [] if is_whole else _absorbed(flat, call, states)
        at = {id(one) for one in (*merged_before, call, *merged_after)}
        names = [one.name for one in flat.calls.values() if id(one) in at and _computes(one)]
        layers = tuple(dict.fromkeys(names))
        return Located(call.name, states[id(call)].error, layers, agreed, len(known))
    return Located(None, 0.0, (), agreed, len(known))


def _computes(call: FlatCall) -> bool:
    """Whether a layer does something to its values, so that it can do it wrongly."""
    return ROWS.get(call.class_name, UNKNOWN).at_inference != "nothing"


def _has_kernel(call: FlatCall) -> bool:
    row = ROWS.get(call.class_name, UNKNOWN)
    return row is UNKNOWN or row.output is not None


def _around(
    call: FlatCall,
    is_end: Callable[[FlatCall], bool],
    step: Callable[[FlatCall], list[FlatCall]],
) -> tuple[list[FlatCall], list[FlatCall]]:
    """The nearest calls in one direction at which the search ends, and those between."""
    pending, seen = step(call), set()
    found: list[FlatCall] = []
    between: list[FlatCall] = []
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if is_end(one):
            found.append(one)
        else:
            between.append(one)
            pending += step(one)
    return found, between


def _readers(flat: Unrolled, call: FlatCall) -> list[FlatCall]:
    return [one for tensor in call.outputs for one, _ in flat.readers.get(id(tensor), ())]


def _makers(flat: Unrolled, call: FlatCall) -> list[FlatCall]:
    return [flat.makers[id(one)] for one in call.inputs if id(one) in flat.makers]
