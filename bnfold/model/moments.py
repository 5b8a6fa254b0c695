"""Mean and variance of channels, merged from parts, and how far two pairs of them are apart.

Everything is float64. A part's own moments take two passes over it; parts are merged by the formula
of Chan, Golub and LeVeque (1979). With d = mean_b - mean_a and n = n_a + n_b

    mean = mean_a + d n_b / n
    M    = M_a + M_b + d^2 n_a n_b / n        M: the sum of squared distances from the mean

so that no large sum is ever taken from another, and the order and the size of the parts do not
matter. Variances are those of the population, M / n, as BatchNormalization takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.model.container.printing import printable

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]

_PIECE = 1 << 18  # numbers that are in memory as float64 at a time


@dataclass(frozen=True, eq=False)
class Moments:
    """How many numbers each channel had, their mean, and their squared distances from it summed.

    All three have the shape (channels,).
    """

    count: Counts
    mean: Vector
    squares: Vector

    @property
    def variance(self) -> Vector:
        """Of the population; NaN for a channel without numbers."""
        with np.errstate(invalid="ignore"):
            return self.squares / self.count

    def merge(self, other: Moments) -> Moments:
        """The moments of both together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            apart = other.mean - self.mean
            mean = self.mean + apart * share
            squares = self.squares + other.squares + apart**2 * self.count * share
        return Moments(count, mean, squares)


def none_of(channels: int) -> Moments:
    """The moments of no numbers."""
    return Moments(np.zeros(channels, np.int64), np.zeros(channels), np.zeros(channels))


@dataclass(eq=False)
class Tally:
    """What went into one layer so far.

    Attributes:
        moments: of the finite numbers; None before the first.
        non_finite: how many numbers of each channel were NaN or infinite, (channels,).
    """

    moments: Moments | None = None
    non_finite: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: NDArray[Any], axis: int, mask: NDArray[Any] | None = None) -> None:
        """Take in an array whose channels lie along `axis`.

        `mask` has the shape of `values` without its last axis; where it is false, nothing counts.
        """
        rows = _as_rows(values, axis)
        where = None
        if mask is not None:
            where = _as_rows(np.broadcast_to(mask.astype(bool)[..., None], values.shape), axis)
        channels = rows.shape[1]
        if self.moments is None:
            self.moments = none_of(channels)
            self.non_finite = np.zeros(channels, np.int64)
        step = max(1, _PIECE // max(1, channels))
        for start in range(0, len(rows), step):
            piece = slice(start, start + step)
            numbers = rows[piece].astype(np.float64)
            found = self._of(numbers, None if where is None else where[piece])
            self.moments = self.moments.merge(found)

    def _of(self, numbers: Vector, where: NDArray[np.bool_] | None) -> Moments:
        """The moments of rows of channels, (rows, channels); what is not finite is counted."""
        found = _moments(numbers) if where is None else _moments_where(numbers, where)
        if np.isfinite(found.squares).all():
            return found
        where = np.ones(numbers.shape, bool) if where is None else where
        finite = np.isfinite(numbers)
        self.non_finite = self.non_finite + np.count_nonzero(where & ~finite, axis=0)
        return _moments_where(numbers, where & finite)


def _as_rows(values: NDArray[Any], axis: int) -> NDArray[Any]:
    moved = np.moveaxis(values, axis, -1)
    return moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])


def _moments(numbers: Vector) -> Moments:
    with np.errstate(over="ignore", invalid="ignore"):
        mean = numbers.mean(axis=0)
        apart = numbers - mean
        count = np.full(len(mean), len(numbers))
        return Moments(count, mean, np.einsum("ij,ij->j", apart, apart))


def _moments_where(numbers: Vector, where: NDArray[np.bool_]) -> Moments:
    count = np.count_nonzero(where, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(where, numbers, 0.0).sum(axis=0) / np.maximum(count, 1)
        apart = np.where(where, numbers - mean, 0.0)
        return Moments(count, mean, np.einsum("ij,ij->j", apart, apart))


@dataclass(frozen=True, eq=False, repr=False)
class Observed:
    """What went into one BatchNormalization while a model ran over data, in inference mode.

    Attributes:
        samples: how many samples the data have.
        calls: how many calls of the layer the model has, whose inputs are taken together.
        moments: of what is finite and not masked; None where nothing was seen.
        non_finite: how many numbers of each channel were NaN or infinite, (channels,).
        problem: why nothing was seen, a clause; None where something was.
    """

    samples: int
    calls: int
    moments: Moments | None
    non_finite: Counts
    problem: str | None = None

    def __repr__(self) -> str:
        seen = self.problem or f"{self.samples} samples, {self.calls} calls"
        return f"<Observed: {printable(seen)}>"


NOT_SEEN = Observed(
    samples=0,
    calls=0,
    moments=None,
    non_finite=np.zeros(0, np.int64),
    problem="no output depends on it, or a layer that is not Keras' own runs it",
)
"""Of a layer of which nothing was seen."""


class Divergence(NamedTuple):
    """How far observed statistics are from recorded ones, by channel; all are (channels,).

    With the layer's epsilon e added to both variances, as the layer adds it, and o for observed and
    r for recorded:

        shift = |mu_o - mu_r| / sqrt(v_r + e)
        ratio = (v_o + e) / (v_r + e)
        kl    = KL(N(mu_o, v_o + e) || N(mu_r, v_r + e)) = (ratio - 1 - ln ratio + shift^2) / 2

    That is: the layer puts out numbers of mean `shift` (but for its sign, gamma and beta) and
    variance `ratio` where it was to put out mean 0 and variance 1, and `kl` is what that costs in
    nats. It is not symmetric: a variance that was recorded too small weighs more. NaN where the
    recorded statistics are not finite, or v_r + e is not positive.
    """

    shift: Vector
    ratio: Vector
    kl: Vector


def divergence(
    recorded: tuple[Vector, Vector], observed: tuple[Vector, Vector], epsilon: float
) -> Divergence:
    """How far the observed mean and variance are from the recorded ones."""
    (mean_r, variance_r), (mean_o, variance_o) = recorded, observed
    with np.errstate(all="ignore"):
        scale = np.where(variance_r + epsilon > 0, variance_r + epsilon, np.nan)
        shift = np.abs(mean_o - mean_r) / np.sqrt(scale)
        ratio = (variance_o + epsilon) / scale
        return Divergence(shift, ratio, (ratio - 1 - np.log(ratio) + shift**2) / 2)


FACTOR_LIMIT = 12.0
SHIFT_LIMIT = 10.0
"""How many times larger or smaller the deviations of a first layer's input may be than those that
it records, and how many deviations its mean may be off, in half of its channels: see `Scale`."""

_INITIAL_LIMIT = 0.99
_ALIKE = 1.5
_SAME = 1e-6


class Scale(NamedTuple):
    """How large the data are beside those that a first layer's recorded statistics are of.

    What goes into a layer that no BatchNormalization stands upstream of follows from the data and
    the weights alone. Multiply the data by s, and its standard deviations are s times as large,
    and its means move by deviations. Honest statistics can be far off as well, but otherwise:
    what training did not bring to an end is a mixture of the initial values and the right ones,

        mu_r = (1 - w) mu      v_r = w + (1 - w) v

    with one share w for all channels. So the share that explains the most, up to 0.99, is taken off
    before the two are compared.

    Attributes:
        factor: the observed deviation over the recorded one, the median of the channels.
        shift: how many deviations, of the larger of the two, the mean is off; the median.
        uniform: whether the factor is the same in all channels, but for chance.
        excess: what is left of both without the initial share, beside the limits of honest data:
            over 1 in more than half of the channels where it is over 1.
    """

    factor: float
    shift: float
    uniform: bool
    excess: float


def scale(recorded: tuple[Vector, Vector], observed: tuple[Vector, Vector]) -> Scale | None:
    """How large the data are beside those that a first layer recorded its mean and variance of.

    None where these tell nothing of the data: in no channel finite and positive, still the initial
    0 and 1, or one and the same variance everywhere, as batches of a single sample leave it.
    """
    (mean_r, variance_r), (_, variance_o) = recorded, observed
    with np.errstate(all="ignore"):
        known = np.isfinite(mean_r) & np.isfinite(variance_r) & (variance_r > 0) & (variance_o > 0)
        known &= ~((mean_r == 0) & (variance_r == 1))
        if not known.any():
            return None
        old = mean_r[known], variance_r[known]
        now = observed[0][known], variance_o[known]
        if known.sum() > 1 and np.ptp(old[1]) <= _SAME * old[1].max():
            return None
        ratios = np.sqrt(now[1] / old[1])
        excess = min(float(_excess(old, now, w)) for w in _shares(old, now))
        low, high = quantiles(ratios, (0.05, 0.95))
        return Scale(
            factor=float(median(ratios)),
            shift=float(median(_shifts(old, now))),
            uniform=bool(high <= _ALIKE * low),
            excess=excess,
        )


def times(factor: float) -> str:
    """A positive factor in words, before "as large as": `255 times` or `1/255`."""
    return f"{factor:.3g} times" if factor >= 1 else f"1/{1 / factor:.3g}"


def _shares(old: tuple[Vector, Vector], now: tuple[Vector, Vector]) -> list[float]:
    """Shares of the initial values that may be in the old ones: none, and what channels tell."""
    found = [0.0]
    for shares in ((old[1] - now[1]) / (1 - now[1]), 1 - old[0] / now[0]):
        possible = shares[(shares > 0) & (shares < _INITIAL_LIMIT)]
        if possible.size:
            found += [float(share) for share in quantiles(possible, np.linspace(0, 1, 41))]
    return [*found, _INITIAL_LIMIT]


def _excess(old: tuple[Vector, Vector], now: tuple[Vector, Vector], share: float) -> float:
    """How far the one is from the other without this share of the initial 0 and 1 in it."""
    freed = old[0] / (1 - share), (old[1] - share) / (1 - share)
    by_factor = np.abs(np.log(now[1] / freed[1])) / 2 / math.log(FACTOR_LIMIT)
    by_factor[freed[1] <= 0] = np.inf
    apart = np.maximum(by_factor, _shifts(freed, now) / SHIFT_LIMIT)
    return float(np.sort(apart)[(len(apart) - 1) // 2])


def _shifts(old: tuple[Vector, Vector], now: tuple[Vector, Vector]) -> Vector:
    """How far the means are apart, in deviations of the larger of the two."""
    shifts: Vector = np.abs(now[0] - old[0]) / np.sqrt(np.maximum(now[1], old[1]))
    return shifts


def median(values: Vector) -> Vector:
    """The middle of the numbers along the last axis: that of `np.median`, to the last digit.

    Which imports all of numpy's masked arrays for it, as `np.quantile` does.
    """
    size = values.shape[-1]
    low, high = (size - 1) // 2, size // 2
    ordered = np.partition(values, [low, high, size - 1], axis=-1)  # NaN comes last
    middle = np.add.reduce(ordered[..., low : high + 1], axis=-1) / (high - low + 1)
    last: Vector = ordered[..., -1]
    return np.where(np.isnan(last), last, middle)


def quantiles(values: Vector, shares: Sequence[float] | Vector) -> Vector:
    """The numbers below which these shares of a vector are, as `np.quantile` finds them."""
    ordered = np.sort(values)
    places = (len(ordered) - 1) * np.asarray(shares)
    below = np.floor(places).astype(np.int64)
    low, high = ordered[below], ordered[np.minimum(below + 1, len(ordered) - 1)]
    part, step = places - below, high - low
    found: Vector = np.where(part >= 0.5, high - step * (1 - part), low + step * part)
    return np.full_like(found, np.nan) if np.isnan(ordered[-1]) else found


def spread(values: Vector) -> dict[str, float | None]:
    """The smallest, middle and largest of a vector's numbers, None where there is none."""
    known = values[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(("min", "median", "max"))
    found = {"min": known.min(), "median": median(known), "max": known.max()}
    return {name: float(one) if np.isfinite(one) else None for name, one in found.items()}
