r"""When two outputs count as the same: the error against the rounding noise that was measured.

A folded weight is the exact value rounded once, so it is off by at most half a unit in the last
place, u = 2^-24 of its size in float32. Nothing tells a correct fold from the exact one but these
roundings, and what they do to the outputs can be measured: run a model again with every weight
moved by that much, up or down at random, and see how far the outputs move. For each channel j of an
output (over all samples, positions and repetitions, in the same arithmetic for both models):

    noise_j     = max(original_j, min(folded_j, 64 original_j + u scale_j))
    tolerance_j = 4 max(noise_j, relative scale_j, u scale_j)
    passed      = |folded - original| <= tolerance_j   everywhere

where original_j and folded_j are the largest movements of the two models, scale_j is the largest
magnitude of the original's output and relative is the upper quartile of noise_j / scale_j over the
channels.

Why these numbers:

- Moving a weight the whole half unit, not a random part of it, makes the measured movement as large
  as the rounding of the fold can be for one weight, and larger than typical for many. The largest
  of a few repetitions falls short of the largest error of another rounding by a factor that stays
  below 2 in practice; folding in float32 instead of float64 rounds about four times and costs
  another factor of 2. 4 covers both; on forty kinds of models folded in float64 the largest error
  was 0.33 of the tolerance in float64 and 0.40 in float32 and 16 bits. A forgotten epsilon of 1e-5
  beside a variance of one is an error of 5e-6, which is 84 u: well above the tolerance of a layer.
- A forward fold adds up terms that the original never adds up (sum of W_i shift_i), so the folded
  model may honestly be noisier than the original, by the square root of the terms; but a wrong fold
  must not buy itself tolerance by being ill-conditioned, hence the cap at 64 times the original's
  noise.
- A channel whose few measured movements happen to be small is given the noise that is usual in the
  same output, relative to its own magnitude.

Channels are counted along axis 1 and again along the last axis, since either may be the channel
axis, and a value must pass under both.

A comparison is conclusive when the output changes from sample to sample at all, and the tolerance
stays below a quarter of that change, in the median or at the largest. Only the outputs are looked
at: a mistake that the later layers shrink below the noise of the whole model is not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FACTOR = 4.0
NOISE_CAP = 64.0
BLIND = 0.25
UNIT = 2.0**-24


@dataclass(frozen=True)
class Rule:
    """How much error is allowed; `rtol` and `atol` replace the measured noise when one is given."""

    rtol: float | None = None
    atol: float | None = None

    def text(self) -> str:
        """Return the rule in one sentence for the report."""
        if self.rtol is None and self.atol is None:
            return f"error at most {FACTOR:g} times the measured rounding noise of the channel"
        return (
            f"error at most {self.atol or 0:g} + {self.rtol or 0:g} times the channel's magnitude"
        )


@dataclass(frozen=True)
class Measurement:
    """The same output of one model: as it is, and with the weights moved by a rounding error.

    `unit` is half a unit in the last place of the output's dtype, relative to its size.
    """

    value: Array
    moved: tuple[Array, ...] = ()
    unit: float = UNIT


@dataclass(frozen=True)
class Outcome:
    """The result for one output and one kind of samples; see `result.Comparison`."""

    max_abs_error: float
    scale: float
    error: float
    tolerance: float
    excess: float
    finite: bool
    blind: bool
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every error stayed below its tolerance."""
        return self.problem is None and self.excess <= 1


def compare(
    original: Measurement, folded: Measurement, rule: Rule, *, forgive_overflow: bool = False
) -> Outcome:
    """Judge one output; shapes may differ, which is a failure of its own.

    Where the original is not finite nothing can be compared, so the folded model must not be finite
    either, unless `forgive_overflow`: in 16 bits folding removes a step that can overflow.
    """
    if original.value.shape != folded.value.shape:
        return _failed(f"shape {original.value.shape} became {folded.value.shape}")
    if original.value.dtype.kind not in "fc":
        return _compare_discrete(original, folded)
    known, got = np.isfinite(original.value), np.isfinite(folded.value)
    if np.any(known & ~got):
        return _failed("values that are finite in the original are not finite in the folded model")
    if np.any(~known & got) and not forgive_overflow:
        return _failed("values that are not finite in the original are finite in the folded model")
    return _compare_finite(original, folded, known, rule)


def _compare_finite(
    original: Measurement, folded: Measurement, known: npt.NDArray[np.bool_], rule: Rule
) -> Outcome:
    value = _cleared(original.value, known)
    error = np.abs(_cleared(folded.value, known) - value)
    own = _movement(original, known)
    other = _movement(folded, known)
    allowed = _everywhere(np.abs(value), own, other, original.unit, rule)
    if error.size == 0 or not known.any():
        return Outcome(0.0, 0.0, 0.0, 0.0, 0.0, finite=bool(known.all()), blind=True)
    ratio = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
    worst = int(np.argmax(ratio))
    return Outcome(
        max_abs_error=float(error.max()),
        scale=float(np.abs(value).max()),
        error=float(error.flat[worst]),
        tolerance=float(allowed.flat[worst]),
        excess=float(ratio.flat[worst]),
        finite=bool(known.all()),
        blind=_is_blind(np.ptp(value, axis=0) if len(value) > 1 else np.abs(value), allowed),
    )


def _everywhere(size: Array, own: Array, other: Array, unit: float, rule: Rule) -> Array:
    """Return each element's tolerance: the smaller of those along axis 1 and the last axis."""
    axes = {1, size.ndim - 1} if size.ndim > 1 else {None}
    return np.asarray(
        np.minimum.reduce(
            [_tolerance(size, own, other, axis, unit=unit, rule=rule) for axis in axes]
        )
    )


def _tolerance(
    size: Array, own: Array, other: Array, axis: int | None, *, unit: float, rule: Rule
) -> Array:
    scale = _largest(size, axis)
    if rule.rtol is not None or rule.atol is not None:
        allowed = (rule.atol or 0.0) + (rule.rtol or 0.0) * scale
        return np.asarray(np.broadcast_to(allowed, size.shape))
    mine = _largest(own, axis)
    noise = np.maximum(mine, np.minimum(_largest(other, axis), NOISE_CAP * mine + unit * scale))
    heard = scale > 0
    relative = float(np.quantile(noise[heard] / scale[heard], 0.75)) if heard.any() else 0.0
    allowed = FACTOR * np.maximum(noise, max(relative, unit) * scale)
    return np.asarray(np.broadcast_to(allowed, size.shape))


def _largest(values: Array, axis: int | None) -> Array:
    """Return the maximum over all axes but one, in a shape that broadcasts back."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    return np.asarray(np.max(values, axis=others, keepdims=True, initial=0.0))


def _movement(measurement: Measurement, known: npt.NDArray[np.bool_]) -> Array:
    """How far the moved weights took each element; what they made non-finite is left out."""
    value = _cleared(measurement.value, known)
    movement = np.zeros_like(value)
    for moved in measurement.moved:
        distance = np.abs(_cleared(moved, np.isfinite(moved)) - value)
        movement = np.maximum(movement, np.where(np.isfinite(moved) & known, distance, 0.0))
    return movement


def _cleared(values: Array, known: npt.NDArray[np.bool_]) -> Array:
    return np.where(known, values, 0).astype(np.float64)


def _is_blind(variation: Array, allowed: Array) -> bool:
    """Tell whether the tolerance is so wide that passing says nothing."""
    usual = np.median(allowed) > BLIND * np.median(variation)
    return bool(usual and np.max(allowed) > BLIND * np.max(variation))


def _compare_discrete(original: Measurement, folded: Measurement) -> Outcome:
    """Integers and booleans must agree, but for as many ties as rounding alone has tipped over."""
    wrong = original.value != folded.value
    tipped = [float(np.mean(moved != original.value)) for moved in original.moved]
    share = float(np.mean(wrong)) if wrong.size else 0.0
    allowed = FACTOR * max(tipped, default=0.0)
    excess = 0.0 if share == 0 else (share / allowed if allowed > 0 else float("inf"))
    return Outcome(share, 1.0, share, allowed, excess, finite=True, blind=allowed > BLIND)


def _failed(problem: str) -> Outcome:
    infinite = float("inf")
    return Outcome(
        infinite, 0.0, infinite, 0.0, infinite, finite=False, blind=False, problem=problem
    )


def varies(values: Sequence[Array]) -> bool:
    """Whether an output differs between any two samples; one sample alone cannot tell."""
    together = np.concatenate([value.reshape(value.shape[0], -1) for value in values if value.ndim])
    if together.shape[0] < 2:
        return True
    return bool(np.any(together != together[:1]))


def agrees(one: Measurement, other: Array) -> bool:
    """Tell whether another runtime computes this output at all, far more widely than the rule."""
    if one.value.shape != other.shape:
        return False
    if one.value.dtype.kind not in "fc":
        return bool(np.mean(one.value != other) < 0.01)
    known = np.isfinite(one.value) & np.isfinite(other)
    if np.any(np.isfinite(one.value) != np.isfinite(other)):
        return False
    value = _cleared(one.value, known)
    distance = np.abs(_cleared(other, known) - value).max(initial=0.0)
    noise = _movement(one, known).max(initial=0.0)
    return bool(distance <= max(1e-3 * np.abs(value).max(initial=0.0), 64 * noise))
