r"""When two values count as the same: the folded model's error beside the original's own.

The reference is the original evaluated in float64. Against it stand the errors of the original and
the error of the folded model. For each channel j of a value (over all samples and positions):

    own_j       = the largest error of the original in Keras and in ONNX Runtime
    noise_j     = max(original_j, min(folded_j, 64 original_j + u scale_j))
    rounding_j  = max(own_j, noise_j, u scale_j)
    tolerance_j = 4 max(rounding_j, min(usual scale_j, 16 rounding_j))
    passed      = the largest error of the folded model <= tolerance_j, for every channel

where scale_j is the largest magnitude of the reference, u half a unit in the last place of the
stored weights or of the value, and usual the upper quartile of rounding_j / scale_j. original_j and
folded_j tell what the rounding of *weights* does: how far the value moves, in float64, when every
weight of that model is perturbed by half a unit in its last place, up or down at random. A folded
weight is the exact number rounded once, so this is the error that a right fold may have where the
original has none. In float64 itself own_j is 0, and the noise alone decides: that is the sharpest
comparison.

Why these numbers:

- Moving a weight the whole half unit, not a random part of it, makes the measured movement as large
  as the rounding of the fold can be for one weight, and larger than typical for many. The largest
  of a few repetitions falls short of the largest error of another rounding by a factor that stays
  below 2 in practice, and sums in float32 are rounded in another order by another factor of 2: 4.
  A forgotten epsilon of 1e-5 beside a variance of one is an error of 5e-6, which is 84 u: well
  above the tolerance of a layer.
- A forward fold adds up terms that the original never adds up (sum of W_i shift_i), so the folded
  model may honestly be noisier than the original, by the square root of the terms; but a wrong fold
  must not buy itself tolerance by being ill-conditioned, hence the cap at 64 times the original's.
- Rounding is chance, and few roundings may all happen to be small. So a channel is given what is
  usual in the same value, relative to its own magnitude; the roundings of a channel in all kinds of
  samples count for each kind, relative to the magnitude of the whole value; and every runtime adds
  up in its own order, so that the errors of the original in each of them are so many draws of one
  and the same thing, and the largest counts.
- What is usual counts no more than chance explains. Two sums of random signs both come to less than
  a sixteenth of their deviation once in four hundred times, and the fold would have to be off by
  four deviations just there. Without that bound a few channels with means of many deviations would
  buy tolerance for all others.
- In other arithmetics than float64 weights are perturbed by a unit of the dtype computed in.

Channels are counted along axis 1 and again along the last axis, since either may be the channel
axis, and along every other axis, or several together, that the place of the value names; a value
must pass under each. Where no float64 is to be had, the original as it is takes
the place of the reference: own_j is 0 then, noise is measured in the model's own arithmetic, and
the claim is weaker, because an error that both models make is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.running.arrays import Array
from bnfold.running.options import MEASURED, Tolerance

Axis = int | tuple[int, ...] | None
Axes = Sequence[tuple[int, ...]]
"""Axes that have the channels of a value, beside axis 1 and the last one; several may do it
together."""
ByAxis = Mapping[Axis, Array]
"""For each axis that may be the channels': a number for each channel."""

FACTOR = 4.0
NOISE_CAP = 64.0
USUAL_CAP = 16.0
BLIND = 0.25
UNIT = 2.0**-24


@dataclass(frozen=True)
class Rule:
    """How much error is allowed: what the user says, or else what is measured.

    `slack` is what another runtime is given, in which the original itself was not run.
    """

    wanted: Tolerance = MEASURED
    slack: float = 1.0

    def text(self) -> str:
        """Return the rule in one sentence for the report."""
        if not self.wanted.is_given:
            return (
                f"error against float64 at most {FACTOR * self.slack:g} times the original's own "
                "rounding, or what rounding its weights does, in each channel"
            )
        return (
            f"error at most {self.wanted.atol or 0:g} + {self.wanted.rtol or 0:g} times the "
            "channel's magnitude"
        )


@dataclass(frozen=True)
class Errors:
    """How far one evaluation of a value is from the reference.

    `largest` is by channel; `power` the mean square of the error over that of the reference, 0 for
    equal values. `problem` says why nothing can be compared. Of integers and booleans, `share` is
    the share that differs.
    """

    largest: ByAxis = field(default_factory=dict)
    max_abs: float = 0.0
    power: float = 0.0
    finite: bool = True
    share: float | None = None
    problem: str | None = None

    @property
    def sqnr(self) -> float | None:
        """Signal to noise, in dB; None where there is no noise at all, or no signal."""
        return -10 * math.log10(self.power) if 0 < self.power < math.inf else None


@dataclass(frozen=True)
class Truth:
    """What a value should be, and what is asked of it again and again.

    `axes` are those that have the channels, beside axis 1 and the last one.
    """

    value: Array
    axes: Axes = ()

    @property
    def is_float(self) -> bool:
        """Whether it consists of floating-point numbers."""
        return self.value.dtype.kind in "fc"

    @cached_property
    def scale(self) -> ByAxis:
        """The largest magnitude of each channel; texts have none."""
        if self.value.dtype.kind == "O":
            return {}
        return _by_axis(np.abs(self.finite), self.axes)

    @cached_property
    def typical(self) -> float:
        """The median magnitude of the channels, of those that are not zero."""
        channels = max(self.scale.values(), key=len, default=np.zeros(0))
        some = channels[channels > 0]
        return float(np.median(some)) if some.size else 1.0

    @property
    def max_abs(self) -> float:
        """The largest magnitude."""
        if self.value.dtype == bool:
            return 1.0
        return max((float(one.max(initial=0.0)) for one in self.scale.values()), default=0.0)

    @cached_property
    def variation(self) -> ByAxis:
        """How far each channel varies over samples and positions; one sample alone cannot tell."""
        if len(self.value) < 2 and self.value.ndim < 3:
            return self.scale
        exact = self.finite
        return {
            axis: _channels(exact, axis, np.max) - _channels(exact, axis, np.min)
            for axis in self.scale
        }

    @cached_property
    def change(self) -> ByAxis:
        """How far each channel changes from sample to sample where it changes most.

        What only differs from position to position may be a constant, as one sample always may.
        """
        exact = self.finite
        spread = np.ptp(exact, axis=0, keepdims=True) if len(exact) else exact
        return _by_axis(np.broadcast_to(spread, exact.shape), self.axes) if self.scale else {}

    @property
    def finite(self) -> Array:
        """The value in float64, with zero for what is not finite."""
        return _cleared(self.value, np.isfinite(self.value))


@dataclass(frozen=True)
class Reference:
    """What a value should be, and what rounding the weights of the two models does to it.

    `unit` is half a unit in the last place of the stored weights or of the value's dtype, whichever
    is larger, relative to its size. `tipped` is the share of integers and booleans that rounding
    tips over.
    """

    truth: Truth
    unit: float = UNIT
    original: ByAxis = field(default_factory=dict)
    folded: ByAxis = field(default_factory=dict)
    tipped: float = 0.0

    @property
    def value(self) -> Array:
        """What the value should be."""
        return self.truth.value

    def twice_as_noisy(self) -> Reference:
        """The same value with the noise of weights that are moved twice as far."""
        return replace(self, original=_times(self.original, 2), folded=_times(self.folded, 2))


def errors(
    reference: Array, value: Array, *, where: Array | None = None, axes: Axes = ()
) -> Errors:
    """How far a value is from the reference, where that is finite, and `where` is true.

    Channels are along `axes` too, beside axis 1 and the last one.
    """
    if reference.shape != value.shape:
        return Errors(problem=f"shape {reference.shape} became {value.shape}")
    if reference.dtype.kind not in "fc":
        return Errors(share=float(np.mean(reference != value)) if value.size else 0.0)
    known = np.isfinite(reference) & np.isfinite(value)
    if where is not None:
        known &= where
    exact = _cleared(reference, known)
    distance = _distance(exact, value, known)
    by_axis = _by_axis(distance, axes)
    with np.errstate(over="ignore"):
        noise = float(np.sum(np.square(distance, out=distance)))
        signal = float(np.sum(np.square(exact, out=distance)))
    return Errors(
        by_axis,
        max((float(one.max(initial=0.0)) for one in by_axis.values()), default=0.0),
        noise / signal if signal else (math.inf if noise else 0.0),
        finite=bool(known.all()),
    )


def not_finite(
    original: Array,
    folded: Array,
    names: tuple[str, str] = ("the original", "the folded model"),
    *,
    forgive_overflow: bool,
    where: Array | None = None,
) -> str | None:
    """What is wrong with the numbers that are not finite, if anything.

    Those that are finite in the original must be so in the folded model, where `where` is true.
    Where the original is not finite nothing can be compared, so the folded model must not be finite
    either, unless `forgive_overflow`: in 16 bits folding removes a step that can overflow. `names`
    are those of the two.
    """
    if original.shape != folded.shape or original.dtype.kind not in "fc":
        return None
    known, got = np.isfinite(original), np.isfinite(folded)
    if np.any(known & ~got & (True if where is None else where)):
        return f"values that are finite in {names[0]} are not finite in {names[1]}"
    if np.any(~known & got) and not forgive_overflow:
        return f"values that are not finite in {names[0]} are finite in {names[1]}"
    return None


@dataclass(frozen=True)
class Outcome:
    """The result for one value and one kind of samples.

    `excess` is the largest ratio of a channel's error to its tolerance, `error` and `tolerance` are
    those of that channel. `exercised` tells of each channel whether it changes from one sample to
    another by more than four times its tolerance, which is in `allowed`; where none of those that
    vary does, the value is `is_dominated` by rounding error.
    """

    error: float
    tolerance: float
    excess: float
    exercised: ByAxis = field(default_factory=dict)
    allowed: ByAxis = field(default_factory=dict)
    is_dominated: bool = False
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every error stayed below its tolerance."""
        return self.problem is None and self.excess <= 1


def compare(reference: Reference, original: Errors | None, folded: Errors, rule: Rule) -> Outcome:
    """Judge one value; `original` is None where the original itself is the reference."""
    if folded.problem is not None:
        return failed(folded.problem)
    if folded.share is not None:
        return _compare_discrete(reference, original, folded)
    scale = reference.truth.scale
    allowed = {axis: _tolerance(reference, scale, original, axis, rule) for axis in scale}
    worst = (0.0, 0.0, 0.0)
    for axis, tolerance in allowed.items():
        error = folded.largest[axis]
        ratio = np.divide(
            error, tolerance, out=np.where(error > 0, np.inf, 0.0), where=tolerance > 0
        )
        if ratio.size:
            at = int(np.argmax(ratio))
            worst = max(worst, (float(ratio[at]), float(error[at]), float(tolerance[at])))
    excess, error_there, tolerance_there = worst
    truth = reference.truth
    exercised = {axis: truth.change[axis] > one / BLIND for axis, one in allowed.items()}
    dominated = any(
        bool(truth.variation[axis].any()) and not np.any(truth.variation[axis] > one / BLIND)
        for axis, one in allowed.items()
    )
    return Outcome(error_there, tolerance_there, excess, exercised, allowed, dominated)


def exercised_by_any(
    truths: Sequence[Truth], outcomes: Sequence[Outcome], counts: Sequence[int]
) -> ByAxis:
    """Which channels of one value change from sample to sample, over all kinds of samples.

    `counts` says how many samples each kind has. Kinds of one sample each are held against one
    another, as far as they are of one size; one sample alone cannot be told from a constant.
    """
    found: dict[Axis, Array] = {}
    single: dict[tuple[int, ...], list[tuple[Truth, Outcome]]] = {}
    for truth, outcome, count in zip(truths, outcomes, counts, strict=True):
        if outcome.problem is not None:
            continue
        if count > 1 and len(truth.value) == count:
            _unite(found, outcome.exercised)
        else:  # one sample, or what was made of all of them together
            single.setdefault(truth.value.shape, []).append((truth, outcome))
    for alike in single.values():
        _unite(found, _exercised_together(alike))
    return found


def _exercised_together(pairs: Sequence[tuple[Truth, Outcome]]) -> ByAxis:
    """Which channels differ between values of one sample each."""
    first = pairs[0][0]
    tolerance = _largest([one.allowed for _, one in pairs])
    if not first.is_float:
        differ = any(np.any(first.value != one.value) for one, _ in pairs)
        return {axis: differ & (one < BLIND) for axis, one in tolerance.items()}
    stacked = np.stack([one.finite for one, _ in pairs])
    spread = _by_axis(np.ptp(stacked, axis=0), first.axes)
    return {axis: spread[axis] > one / BLIND for axis, one in tolerance.items()}


def _unite(found: dict[Axis, Array], more: ByAxis) -> None:
    for axis, one in more.items():
        known = found.get(axis)
        found[axis] = one if known is None or known.shape != one.shape else known | one


def _tolerance(
    reference: Reference, scale: ByAxis, original: Errors | None, axis: Axis, rule: Rule
) -> Array:
    size = scale[axis]
    if rule.wanted.is_given:
        return np.asarray((rule.wanted.atol or 0.0) + (rule.wanted.rtol or 0.0) * size)
    nothing = np.zeros_like(size)
    mine, other = reference.original.get(axis, nothing), reference.folded.get(axis, nothing)
    unit = reference.unit
    rounding = np.maximum(mine, np.minimum(other, NOISE_CAP * mine + unit * size))
    if original is not None and axis in original.largest:
        rounding = np.maximum(rounding, original.largest[axis])
    rounding = np.maximum(rounding, unit * size)
    some = size > 0
    usual = np.quantile(rounding[some] / size[some], 0.75) if some.any() else 0.0
    usually = np.minimum(usual * size, USUAL_CAP * rounding)
    return np.asarray(rule.slack * FACTOR * np.maximum(rounding, usually))


def _compare_discrete(reference: Reference, original: Errors | None, folded: Errors) -> Outcome:
    """Integers and booleans must agree, but for as many ties as rounding alone has tipped over."""
    share = folded.share or 0.0
    own = original.share or 0.0 if original is not None else 0.0
    allowed = FACTOR * max(reference.tipped, own)
    excess = 0.0 if share == 0 else (share / allowed if allowed > 0 else math.inf)
    value = reference.value
    exercised = np.asarray([bool(np.any(value != value[:1])) and allowed < BLIND])
    return Outcome(share, allowed, excess, {-1: exercised}, {-1: np.asarray([allowed])})


def failed(problem: str) -> Outcome:
    """The outcome where nothing could be compared."""
    return Outcome(math.inf, 0.0, math.inf, problem=problem)


_TINY = float(np.finfo(np.float32).tiny)
"""Below it a value is lost in float32, and its error, all of it, says nothing of rounding."""


def pooled(truths: Sequence[Truth], evaluations: Sequence[Sequence[Errors]]) -> list[Errors]:
    """Each channel's largest errors of one value over several evaluations and all kinds of samples.

    They count relative to the magnitude of the whole value: a kind of one sample has few roundings,
    which may happen to be small. But a channel far above the others, as the one class of a softmax
    that is left of a saturated sample, is no measure of them: its roundings count relative to
    itself too, and the smaller of the two is taken.
    """
    sides = [_largest([one[kind].largest for one in evaluations]) for kind in range(len(truths))]
    shares = [one.share for column in evaluations for one in column if one.share is not None]
    shapes = [{axis: one.shape for axis, one in side.items()} for side in sides]
    if all(shape == shapes[0] for shape in shapes):
        sizes = [max(truth.typical, _TINY) for truth in truths]
        relative = [_times(side, 1 / size) for side, size in zip(sides, sizes, strict=True)]
        shared = [_times(_largest(relative), size) for size in sizes]
        apart = [
            {axis: one / _above(truth, axis) for axis, one in side.items()}
            for side, truth in zip(sides, truths, strict=True)
        ]
        most = _largest(apart)
        sides = [
            {axis: np.minimum(one[axis], most[axis] * _above(truth, axis)) for axis in one}
            for one, truth in zip(shared, truths, strict=True)
        ]
    return [Errors(side, share=max(shares, default=None)) for side in sides]


def _above(truth: Truth, axis: Axis) -> Array:
    """The magnitude of each channel, or that of the whole value where this is larger."""
    return np.maximum(truth.scale[axis], max(truth.typical, _TINY))


def _largest(sides: Sequence[ByAxis]) -> ByAxis:
    """The largest number of each channel, of those sides that have any."""
    some = [side for side in sides if side]
    axes = some[0] if some else {}
    return {axis: np.maximum.reduce([side[axis] for side in some]) for axis in axes}


def _times(side: ByAxis, factor: float) -> ByAxis:
    return {axis: factor * one for axis, one in side.items()}


def rough(steps: Sequence[float]) -> float:
    """What `agrees` allows of a runtime, where rounding moves each weight by these steps.

    A few roundings of 16 bits, and a thousandth where all is computed in 32 bits or more.
    """
    return max(1e-3, _ROUGH * max(steps, default=0.0))


_ROUGH = 32
"""How many rounding steps a runtime may be off and still count as computing the same."""


def agrees(
    reference: Reference, found: Array, allowed: float = 1e-3, *, where: Array | None = None
) -> bool:
    """Tell whether an evaluation is one of this value at all, far more widely than the rule.

    `allowed` is the error, relative to the largest magnitude. What overflowed says nothing, nor
    does what comes of it, where `where` is false.
    """
    value = reference.value
    if value.shape != found.shape:
        return False
    if not reference.truth.is_float:
        return bool(np.mean(value != found) < 0.01)
    asked = np.isfinite(value) & (True if where is None else where)
    known = asked & np.isfinite(found)
    if np.any(asked) and not known.any():
        return False
    exact = _cleared(value, known)
    distance = _distance(exact, found, known).max(initial=0.0)
    noise = max((float(one.max(initial=0.0)) for one in reference.original.values()), default=0)
    return bool(distance <= max(allowed * np.abs(exact).max(initial=0.0), 64 * noise))


def keys(rank: int, axes: Axes) -> list[Axis]:
    """By which axes the channels of a value of this rank are counted; the value's own come last."""
    own = []
    for group in axes:
        if all(-rank <= axis < rank for axis in group):
            numbers = tuple(sorted({axis % rank for axis in group}))
            own.append(numbers[0] if len(numbers) == 1 else numbers)
    plain: list[Axis] = [1, rank - 1] if rank > 1 else [None]
    return list(dict.fromkeys([*(one for one in plain if one not in own), *own]))


def _by_axis(values: Array, axes: Axes = ()) -> dict[Axis, Array]:
    """The largest number of each channel, for all axes from one look at the values."""
    every = keys(values.ndim, axes)
    kept = {number for axis in every for number in _numbers(axis)}
    others = tuple(number for number in range(values.ndim) if number not in kept)
    if others and values.size:
        values = values.max(axis=others, keepdims=True)
    return {axis: _channels(values, axis, np.max) for axis in every}


def _numbers(axis: Axis) -> tuple[int, ...]:
    return (axis,) if isinstance(axis, int) else axis or ()


def _channels(values: Array, axis: Axis, reduce: Any) -> Array:
    """One number for each channel along an axis, or several; one in all without an axis."""
    if 0 in values.shape:
        return np.zeros(0)
    kept = _numbers(axis)
    others = tuple(number for number in range(values.ndim) if number not in kept)
    return np.atleast_1d(np.asarray(reduce(values, axis=others))).reshape(-1)


def _cleared(values: Array, known: npt.NDArray[np.bool_]) -> Array:
    """The values in float64, with zero for what is not known; not to be written to."""
    kept = values if known.all() else np.where(known, values, 0)
    return kept.astype(np.float64, copy=False)


def _distance(exact: Array, values: Array, known: npt.NDArray[np.bool_]) -> Array:
    """How far each number is from the exact one; an array of its own, to be written to."""
    distance: Array = np.asarray(np.subtract(_cleared(values, known), exact))
    np.abs(distance, out=distance)
    return distance
