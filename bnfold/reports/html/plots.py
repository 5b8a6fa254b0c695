"""How the channels of one vector are spread, as paths of SVG: bars, and ticks for odd channels.

A channel is marked as "dead" where its input or output does not vary, as "far" where it stands far
from the layer's other channels, and as "broken" where a number is not finite or a variance is
negative.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold.audit import Subject, Thresholds
from bnfold.folding.plan import Blocked, Fold
from bnfold.jobs.inspect import channel_values
from bnfold.model.batchnorm import Vector
from bnfold.model.moments import median
from bnfold.reports.distribution import Axis, counted, far_out

Mask = NDArray[np.bool_]

BINS, BIN_WIDTH, HEIGHT = 24, 4, 24
WIDTH = BINS * BIN_WIDTH
_NAMED = 4
"""So many channels are named at one tick at most."""

LOGARITHMIC = frozenset({"moving_variance"})
_BY_SIZE = frozenset({"moving_variance", "gamma", "scale"})
"""Vectors whose channels stand out by how many times, and not by how much, they differ."""

NAMES = {"moving_mean": "moving mean", "moving_variance": "variance"}


@dataclass(frozen=True)
class Tick:
    """Marked channels of one kind, "dead", "far" or "broken", at `x` of the plot's width."""

    kind: str
    x: int
    said: str


@dataclass(frozen=True)
class Plot:
    """The spread of one vector in a box of WIDTH times HEIGHT.

    Attributes:
        name: the vector's, for people.
        axis: the one that the channels stand on.
        bars: a path of SVG; empty where no channel is finite.
        zero: where 0 stands, where it is on the axis.
        median: where the middle channel stands.
        ticks: where marked channels stand.
        low: the smallest finite number, with the `middle` and the `high`est one.
        non_finite: how many channels are NaN or infinite.
    """

    name: str
    axis: Axis
    bars: str
    zero: int | None
    median: int
    ticks: tuple[Tick, ...]
    low: str
    middle: str
    high: str
    non_finite: int

    @property
    def labels(self) -> list[tuple[float, str]]:
        """Where round numbers stand on the axis, from 0 to 1."""
        return labels(self.axis)


class LayerVectors:
    """The vectors of one layer, and which of its channels are marked; each mask is (channels,)."""

    def __init__(self, decision: Fold | Blocked, thresholds: Thresholds) -> None:
        self.decision, self.batchnorm = decision, decision.batchnorm
        values = channel_values(self.batchnorm)
        self.vectors: dict[str, Vector] = {k: v for k, v in values.items() if v is not None}
        # Without the file's variables there is nothing to ask a subject for.
        known = self.batchnorm.vectors
        self._subject = (
            None if known is None else Subject(self.batchnorm, known, decision, thresholds)
        )

    @cached_property
    def dead(self) -> Mask:
        """The channels whose input or output does not vary, by the rules' own measure."""
        if self._subject is None:
            return self._none
        with np.errstate(all="ignore"):
            found: Mask = self._subject.dead | self._subject.vanishing
        return found & ~self.broken

    @cached_property
    def broken(self) -> Mask:
        """The channels with a number that is not finite, or a variance below 0."""
        found = self._none
        for name, values in self.vectors.items():
            found = found | ~np.isfinite(values)
            if name == "moving_variance":
                found = found | (values < 0)
        return found

    @cached_property
    def far(self) -> Mapping[str, Mask]:
        """The channels that stand far from the others, in each vector."""
        return {name: self._far(name) for name in self.vectors}

    def _far(self, name: str) -> Mask:
        values = self._usual(name)
        with np.errstate(divide="ignore"):
            return far_out(np.log(np.abs(values)) if name in _BY_SIZE else values)

    def usual(self, name: str) -> Vector | None:
        """A vector with NaN for what is dead or broken; None for one that the layer lacks."""
        return self._usual(name) if name in self.vectors else None

    def _usual(self, name: str) -> Vector:
        return np.where(self.dead | self.broken, np.nan, self.vectors[name])

    @property
    def _none(self) -> Mask:
        return np.zeros(self.batchnorm.channels or 0, dtype=bool)

    @cached_property
    def marks(self) -> Mapping[str, Mask]:
        """The channels of each kind, whatever vector shows it."""
        far = np.any([self._none, *self.far.values()], axis=0)
        return {"broken": self.broken, "dead": self.dead, "far": far}

    def plot(self, name: str, axis: Axis) -> Plot | None:
        """The spread of one vector along an axis; None for one that the layer does not have."""
        values = self.vectors.get(name)
        if values is None:
            return None
        is_finite = np.isfinite(values)
        finite = values[is_finite]
        middle = float(median(finite)) if finite.size else 0.0
        placed = axis.place(np.concatenate([values, (middle, 0.0)]))
        (at_middle, at_zero), placed = placed[-2:].tolist(), placed[:-2]
        has_zero = axis.unit is not None and axis.low < 0 < axis.high
        return Plot(
            name=NAMES.get(name, name),
            axis=axis,
            bars=_bars(counted(placed[is_finite], BINS)) if finite.size else "",
            zero=round(WIDTH * at_zero) if has_zero else None,
            median=round(WIDTH * at_middle),
            ticks=tuple(self._ticks(name, values, placed)),
            low=number(finite.min(), 2) if finite.size else "",
            middle=number(middle) if finite.size else "",
            high=number(finite.max(), 2) if finite.size else "",
            non_finite=int(values.size - finite.size),
        )

    def _ticks(self, name: str, values: Vector, placed: Vector) -> Iterator[Tick]:
        """Marked channels, which are `placed` on the axis; those at the same place share a tick."""
        shown = {"far": self.far[name]}
        if name in _BY_SIZE:
            shown["dead"] = self.dead
        if name == "moving_variance":
            shown["broken"] = self.broken
        for kind, mask in shown.items():
            together: dict[int, list[int]] = {}
            if not mask.any():
                continue
            marked = np.flatnonzero(mask & np.isfinite(values))
            places = (placed[marked] * BINS).astype(int)
            for channel, place in zip(marked.tolist(), places.tolist(), strict=True):
                together.setdefault(place, []).append(channel)
            for place, channels in sorted(together.items()):
                yield Tick(kind, place * BIN_WIDTH, _said(channels, values))


def _said(channels: Sequence[int], values: Vector) -> str:
    """`channel 3: 1e-05, 8: 0 and 2 more`."""
    named = ", ".join(f"{channel}: {number(values[channel])}" for channel in channels[:_NAMED])
    more = len(channels) - _NAMED
    return f"channel {named}" + (f" and {more} more" if more > 0 else "")


def labels(axis: Axis) -> list[tuple[float, str]]:
    """Where round numbers stand on an axis, from 0 to 1."""
    return [(place, number(tick)) for tick, place in axis.ticks()]


def number(value: float, digits: int = 3) -> str:
    """A number as people read it."""
    return f"{value:.{digits}g}"


def _bars(counts: NDArray[np.int64]) -> str:
    """Bars side by side as one outline; one channel alone can be seen beside a thousand."""
    heights = np.ceil(counts * ((HEIGHT - 2) / max(1, counts.max()))).astype(int)
    path, before = [f"M0 {HEIGHT}"], 0
    for place, height in enumerate(heights.tolist()):
        if height != before:
            path.append(f"H{place * BIN_WIDTH}V{HEIGHT - height}")
            before = height
    return "".join([*path, f"H{WIDTH}V{HEIGHT}z"])
