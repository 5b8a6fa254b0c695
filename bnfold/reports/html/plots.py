"""How the channels of one vector are spread, as paths of SVG: bars, and ticks for odd channels.

A channel is marked as "dead" where its input or its gamma is almost nothing, as "far" where it
stands far from the layer's other channels, and as "broken" where no variance can be what is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold.audit.rules import VANISHING_SHARE_OF_EPSILON
from bnfold.inspection import channel_values
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.reports.distribution import Axis, far_out, histogram

Mask = NDArray[np.bool_]

BINS, BIN_WIDTH, HEIGHT = 32, 3, 24
WIDTH = BINS * BIN_WIDTH
_NAMED = 4
"""So many channels are named at one tick at most."""

SILENT_GAMMA = 1e-3
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
    """The vectors of one layer, and which of its channels are marked."""

    def __init__(self, batchnorm: BatchNorm) -> None:
        self.batchnorm = batchnorm
        values = channel_values(batchnorm)
        self.vectors: dict[str, Vector] = {k: v for k, v in values.items() if v is not None}

    @cached_property
    def dead(self) -> Mapping[str, Mask]:
        """The channels that carry nothing, by the vectors that show it."""
        found: dict[str, Mask] = {}
        gamma, variance = self.vectors.get("gamma"), self.vectors.get("moving_variance")
        if gamma is not None:
            silent = np.abs(gamma) < SILENT_GAMMA
            found |= {"gamma": silent, "scale": silent}
        epsilon = self.batchnorm.epsilon
        if variance is not None and epsilon is not None and epsilon > 0:
            found["moving_variance"] = (variance >= 0) & (
                variance < VANISHING_SHARE_OF_EPSILON * epsilon
            )
        return found

    @cached_property
    def broken(self) -> Mapping[str, Mask]:
        """The channels of which no variance can be what is stored."""
        variance = self.vectors.get("moving_variance")
        return {} if variance is None else {"moving_variance": variance < 0}

    @cached_property
    def far(self) -> Mapping[str, Mask]:
        """The channels that stand far from the others, in each vector."""
        return {name: self._far(name, values) for name, values in self.vectors.items()}

    def _far(self, name: str, values: Vector) -> Mask:
        if name in _BY_SIZE:
            with np.errstate(divide="ignore"):
                values = np.log(np.abs(values))
        return far_out(np.where(self._odd, np.nan, values))

    def usual(self, name: str) -> Vector | None:
        """A vector with NaN for what is dead or broken; None for one that the layer lacks."""
        values = self.vectors.get(name)
        return None if values is None else np.where(self._odd, np.nan, values)

    @cached_property
    def _odd(self) -> Mask:
        return self._any(self.dead) | self._any(self.broken)

    @cached_property
    def non_finite(self) -> Mask:
        """The channels in which some vector holds a NaN or an infinity."""
        return self._any({name: ~np.isfinite(values) for name, values in self.vectors.items()})

    def _any(self, masks: Mapping[str, Mask]) -> Mask:
        found: Mask = np.zeros(self.batchnorm.channels or 0, dtype=bool)
        for mask in masks.values():
            found |= mask
        return found

    @cached_property
    def marks(self) -> Mapping[str, Mask]:
        """The channels of each kind, whatever vector shows it."""
        return {
            "broken": self._any(self.broken) | self.non_finite,
            "dead": self._any(self.dead),
            "far": self._any(self.far),
        }

    def plot(self, name: str, axis: Axis) -> Plot | None:
        """The spread of one vector along an axis; None for one that the layer does not have."""
        values = self.vectors.get(name)
        if values is None:
            return None
        finite = values[np.isfinite(values)]
        middle = float(np.median(finite)) if finite.size else 0.0
        has_zero = axis.unit is not None and axis.low < 0 < axis.high
        return Plot(
            name=NAMES.get(name, name),
            axis=axis,
            bars=_bars(histogram(finite, axis, BINS)) if finite.size else "",
            zero=_x(axis, 0.0) if has_zero else None,
            median=_x(axis, middle),
            ticks=tuple(self._ticks(name, values, axis)),
            low=number(finite.min(), 2) if finite.size else "",
            middle=number(middle) if finite.size else "",
            high=number(finite.max(), 2) if finite.size else "",
            non_finite=int(values.size - finite.size),
        )

    def _ticks(self, name: str, values: Vector, axis: Axis) -> Iterator[Tick]:
        """Marked channels; those that stand at the same place share a tick."""
        shown = {"dead": self.marks["dead"]} if name in _BY_SIZE else {}
        shown |= {"far": self.far[name]}
        shown |= {"broken": self.broken[name]} if name in self.broken else {}
        for kind, mask in shown.items():
            together: dict[int, list[int]] = {}
            marked = np.flatnonzero(mask & np.isfinite(values))
            places = (axis.place(values[marked]) * BINS).astype(int)
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


def _x(axis: Axis, value: float) -> int:
    return round(WIDTH * float(axis.place(np.asarray([value]))[0]))


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
