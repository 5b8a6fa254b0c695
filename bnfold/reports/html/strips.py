"""Small plots of a verification, as paths of SVG on logarithmic axes: errors, shares, margins.

A strip is WIDTH wide and has one lane, LANE high, for each thing that it compares.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.reports.distribution import Axis
from bnfold.verification.result import Comparison, Margins, Percentiles

WIDTH, LANE = 240, 8
COLUMN, HEIGHT = 10, 60
_LEAST = 2
"""So wide is a bar at least: nothing is not the same as no bar."""
_LOWEST, _HIGHEST = -4, 8
"""Between which powers of ten of its tolerance an error is drawn where it stands."""
_DECIBELS = 160.0
"""What SQNR is drawn on; one rounding to float32 is some 150 dB below the signal."""
_LABELS = 6
"""About so many numbers stand at an axis."""
_SMALLEST, _LARGEST = -12, 300
"""Between which powers of ten errors and margins are drawn where they stand."""


def shares(comparisons: Iterable[Comparison]) -> Axis:
    """The axis for the share of its tolerance that each error takes; 1 is always on it."""
    found = [one.excess for one in comparisons if 0 < one.excess < math.inf]
    high = math.ceil(math.log10(max(found, default=1.0)))
    return Axis(_LOWEST, min(max(1, high), _HIGHEST), None)


def sizes(percentiles: Iterable[Percentiles]) -> Axis:
    """The axis for errors as shares of an output's scale."""
    return _around(n for one in percentiles for n in (one.p50, one.max))


def distances(margins: Iterable[float]) -> Axis:
    """The axis for margins of decisions."""
    return _around(margins)


def _around(numbers: Iterable[float]) -> Axis:
    """An axis from one power of ten to another, around all of these but the smallest."""
    found = [one for one in numbers if 0 < one < math.inf] or [0.1, 1.0]
    low = min(max(_SMALLEST, math.floor(math.log10(min(found)))), _LARGEST - 1)
    high = min(max(low + 1, math.ceil(math.log10(max(found)))), _LARGEST)
    return Axis(low, high, None)


def decades(axis: Axis) -> list[tuple[float, str]]:
    """Where powers of ten stand on an axis for shares, from 0 to 1; one of them is 1."""
    low, high = int(axis.low), int(axis.high)
    step = math.ceil((high - low) / _LABELS)
    return [
        ((exponent - low) / (high - low), f"{10.0**exponent:g}")
        for exponent in range(low, high + 1)
        if exponent % step == 0
    ]


def at(axis: Axis, value: float, length: int = WIDTH) -> int:
    """Where a number stands on so long an axis; 0 and less at its lower end, NaN at the upper."""
    if math.isnan(value):
        return length
    return round(length * float(axis.place(np.asarray([value]))[0]))


@dataclass(frozen=True)
class Bars:
    """Bars of what passed, what failed and what was not exercised."""

    passed: str
    failed: str
    quiet: str


def bars(lanes: Sequence[Comparison | None], axis: Axis) -> Bars:
    """A bar in each lane, from the left to the share of the tolerance; None leaves one empty."""
    paths: dict[str, list[str]] = {"passed": [], "failed": [], "quiet": []}
    for lane, one in enumerate(lanes):
        if one is None:
            continue
        top, right = lane * LANE + 1, max(_LEAST, at(axis, one.excess))
        if state(one) == "quiet":
            right = 3 * _LEAST
        paths[state(one)].append(f"M0 {top}H{right}v{LANE - 2}H0z")
    return Bars(*map("".join, paths.values()))


def columns(column: Sequence[Comparison | None], axis: Axis) -> Bars:
    """The same as columns side by side, COLUMN wide and HEIGHT high, from below."""
    paths: dict[str, list[str]] = {"passed": [], "failed": [], "quiet": []}
    for place, one in enumerate(column):
        if one is None:
            continue
        left, right = place * COLUMN + 2, (place + 1) * COLUMN - 2
        height = max(_LEAST, at(axis, one.excess, HEIGHT))
        if state(one) == "quiet":
            height = _LEAST
        paths[state(one)].append(f"M{left} {HEIGHT}V{HEIGHT - height}H{right}V{HEIGHT}z")
    return Bars(*map("".join, paths.values()))


def state(one: Comparison) -> str:
    """Whether it "passed", "failed", or is "quiet", because the samples showed nothing."""
    return "failed" if not one.passed else "passed" if one.conclusive else "quiet"


def decibels(sqnr: float) -> int:
    """How long the bar of an SQNR is."""
    return round(WIDTH * min(max(sqnr / _DECIBELS, 0.0), 1.0))


DECIBEL_LABELS = tuple((n / _DECIBELS, str(n)) for n in (0, 40, 80, 120, 160))


def spread(found: Percentiles, axis: Axis) -> str:
    """A bar from the median to the 90th percentile, a thinner one to the 99th, then a line."""
    p50, p90, p99, most = (at(axis, n) for n in (found.p50, found.p90, found.p99, found.max))
    middle = LANE // 2
    return (
        f"M{p50} 0H{max(p90, p50 + 1)}V{LANE}H{p50}z"
        f"M{p90} 2H{p99}V{LANE - 2}H{p90}z"
        f"M{p99} {middle - 0.5:g}H{most}v1H{p99}z"
        f"M{most - 1} 0h2V{LANE}h-2z"
    )


def reach(found: Margins, axis: Axis) -> str:
    """A line from the smallest to the largest margin, and a bar across it at the middle one."""
    low, middle, high = (at(axis, n) for n in (found.smallest, found.median, found.largest))
    return f"M{low} {LANE / 2 - 1:g}H{max(high, low + 1)}v2H{low}zM{middle - 2} 0h4V{LANE}h-4z"
