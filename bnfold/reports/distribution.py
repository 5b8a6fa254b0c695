"""The distribution of a vector over its channels: axes, histograms, far-out channels.

A variance has a logarithmic axis. A vector with both signs has an arcsinh axis, which is linear
around 0 and logarithmic far from it.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.model.batchnorm import Vector
from bnfold.model.moments import median, quantiles

_FENCE = 3.0
"""How many quartile distances beyond the quartiles a value is "far out": Tukey, 1977."""
_OUTER_SHARE = 0.01
"""The share of values on either side that may stand beyond the end of an axis."""
_SLACK = 1.0
_APART = 0.16
"""The share of an axis between two of its ticks."""
_MAX = 700.0
"""Where logarithms of the largest numbers end."""


class Axis(NamedTuple):
    """The numbers from `low` to `high`, as logarithms or, with a `unit`, as arcsinh(x / unit)."""

    low: float
    high: float
    unit: float | None

    @classmethod
    def of(cls, vectors: Iterable[Vector], *, logarithmic: bool) -> "Axis":
        """An axis for all of these; a few that stand far from all others may be off its ends."""
        values = np.concatenate([np.zeros(0), *vectors])
        values = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
        unit = None if logarithmic else _unit(values)
        placed = _transformed(values, unit)
        if not placed.size:
            return cls(-1.0, 1.0, unit)
        low, high = quantiles(placed, [_OUTER_SHARE, 1 - _OUTER_SHARE])
        low, high = max(low - _SLACK, placed.min()), min(high + _SLACK, placed.max())
        return cls(low - 0.5, high + 0.5, unit) if low == high else cls(low, high, unit)

    def place(self, values: Vector) -> Vector:
        """Where numbers stand, from 0 to 1; what is off an end stands at it, NaN stays NaN."""
        placed = (_transformed(values, self.unit) - self.low) / self._length
        return _between(placed, 0.0, 1.0)

    def ticks(self) -> list[tuple[float, float]]:
        """A few round numbers, 0 and powers of ten, none near another, with their places."""
        candidates = list(self._round_numbers())
        placed = _transformed(np.asarray(candidates, dtype=np.float64), self.unit) - self.low
        found: list[tuple[float, float]] = []
        for number, place in zip(candidates, (placed / self._length).tolist(), strict=True):
            if 0 <= place <= 1 and all(abs(place - other) > _APART for _, other in found):
                found.append((number, place))
        return sorted(found)

    def _round_numbers(self) -> Iterator[float]:
        """Candidates, those first that matter most."""
        if self.unit is None:
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1)
            yield from (10.0**n for n in exponents[:: max(1, math.ceil(len(exponents) / 4))])
            return
        yield 0.0
        with np.errstate(over="ignore"):
            ends = [float(np.sinh(end) * self.unit) for end in (self.low, self.high)]
        for end in ends:
            if end and math.isfinite(end):
                largest = math.floor(math.log10(abs(end)))
                yield from (math.copysign(10.0**n, end) for n in range(largest, largest - 3, -1))

    @property
    def _length(self) -> float:
        return self.high - self.low


def _unit(values: Vector) -> float:
    """The size of an ordinary number of these."""
    sizes = np.abs(values[values != 0])
    if not sizes.size:
        return 1.0
    with np.errstate(over="ignore"):  # of two of the largest there are, the sum is infinite
        found = float(median(sizes))
    return found if math.isfinite(found) else float(sizes.max())


def _transformed(values: Vector, unit: float | None) -> Vector:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.log10(np.maximum(values, 0)) if unit is None else np.arcsinh(values / unit)
        return _between(found, -_MAX, _MAX)


def _between(values: Vector, low: float, high: float) -> Vector:
    """What `np.clip` does, in a fifth of its time for a few numbers."""
    return np.minimum(np.maximum(values, low), high)


def histogram(values: Vector, axis: Axis, bins: int) -> NDArray[np.int64]:
    """How many values stand in each of so many equal parts of an axis; NaN in none."""
    return counted(axis.place(values[~np.isnan(values)]), bins)


def counted(placed: Vector, bins: int) -> NDArray[np.int64]:
    """How many of some places on an axis are in each of so many equal parts of it."""
    return np.bincount(np.minimum((placed * bins).astype(np.int64), bins - 1), minlength=bins)


def far_out(values: Vector) -> NDArray[np.bool_]:
    """The channels that stand far from the others, by Tukey's outer fence; not finite is not far.

    A vector whose middle half is one number has no scale to compare with, and no channel far out.
    """
    finite = np.isfinite(values)
    found: NDArray[np.bool_] = np.zeros(values.shape, dtype=bool)
    if not finite.any():
        return found
    with np.errstate(over="ignore"):
        first, third = quantiles(values[finite], [0.25, 0.75])
        reach = _FENCE * (third - first)
    if reach > 0:
        found |= finite & ((values < first - reach) | (values > third + reach))
    return found
