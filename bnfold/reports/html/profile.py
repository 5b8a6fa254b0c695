"""One vector of all layers side by side: the spread of each over the depth of the network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.model.batchnorm import Vector
from bnfold.model.moments import quantiles
from bnfold.reports.distribution import Axis
from bnfold.reports.html.plots import labels

COLUMN, HEIGHT = 10, 60


@dataclass(frozen=True)
class Profile:
    """A column COLUMN wide for each layer, HEIGHT high, as paths of SVG.

    `ranges` runs from the smallest to the largest channel, `boxes` around the middle half of them,
    `medians` across the middle one. `labels` are where numbers of the axis stand, from 0 at
    its lower end to 1.
    """

    name: str
    ranges: str
    boxes: str
    medians: str
    labels: tuple[tuple[float, str], ...]


def profile(name: str, vectors: Sequence[Vector | None], axis: Axis) -> Profile:
    """The spread of the vectors of all layers along an axis; None leaves a column empty."""
    ranges, boxes, medians = [], [], []
    for column, values in enumerate(vectors):
        finite = np.zeros(0) if values is None else values[np.isfinite(values)]
        if not finite.size:
            continue
        low, first, middle, third, high = (
            round(HEIGHT * (1 - float(place)), 1)
            for place in axis.place(quantiles(finite, [0, 0.25, 0.5, 0.75, 1]))
        )
        left, center, right = (column * COLUMN + part for part in (2, COLUMN // 2, COLUMN - 2))
        ranges.append(f"M{center} {low:g}V{min(high, low - 0.5):g}")
        boxes.append(f"M{left} {first:g}H{right}V{min(third, first - 0.5):g}H{left}z")
        medians.append(f"M{left} {middle:g}H{right}")
    return Profile(name, "".join(ranges), "".join(boxes), "".join(medians), tuple(labels(axis)))
