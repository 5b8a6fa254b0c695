"""How often training updated the statistics, and how much of their initial values remains.

The optimizer counts its steps, and each step updates the statistics once per call of the layer. But
the counter restarts when a model is compiled again, so it can be too low. Two bounds reveal that:

- A variance starts at 1, and updates add nothing negative. After n updates it is at least m^n; a
  smaller one has seen more of them.
- Some optimizers change a weight by a bounded amount per step. gamma and beta start at 1 and 0 and
  cannot be farther from there than n such steps.

If either is violated, the counter is not used for any layer of the file: a network that is trained
on with a new head has one new counter for both. Frozen layers are no evidence, because a head may
have been trained from scratch on top of them.

A moving variance starts at 1 and a moving mean at 0. After n updates at momentum m the initial
values keep the weight r = m^n. In a recorded variance v, the share r / (v + e) is the initial 1:
nearly all of it where the variance of the data is small. The larger of weight and share is the part
of the layer's statistics that is initial.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnfold.audit.neighbours import Place
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.graph import LayerPath
from bnfold.model.identity import is_keras_class
from bnfold.model.moments import median


def updates(
    layers: Iterable[tuple[BatchNorm, Place]],
    steps: Mapping[LayerPath, int],
    stride: float | None = None,
    estimated: Collection[LayerPath] = (),
) -> dict[LayerPath, int]:
    """The number of updates by the path of the layer; layers where it is not known are left out.

    `steps` are the steps of each compiled model's optimizer, the outermost one's at (), and
    `stride` is the most that one step can change a weight, if that is known. The statistics of
    `estimated` layers do not come from training, so they and the counter say nothing of each other.
    """
    if not steps.get(()):
        return {}
    known: dict[LayerPath, int] = {}
    for batchnorm, place in layers:
        per_step = place.updates_per_step
        if not per_step:
            continue
        around = (batchnorm.path[:length] for length in range(len(batchnorm.path)))
        taken = min(sum(steps.get(path, 0) for path in around), _MOST)
        count = min(per_step * taken, _MOST)
        if batchnorm.path not in estimated:
            known[batchnorm.path] = count
        if batchnorm.trainable and (
            (batchnorm.path in known and _saw_more(batchnorm, count))
            or (stride is not None and _went_farther(batchnorm, _LONGER * stride * taken))
        ):
            return {}
    return known


def is_initial(batchnorm: BatchNorm) -> bool:
    """Whether its moving statistics are exactly 0 and 1, the initial values."""
    vectors = batchnorm.vectors
    if vectors is None:
        return False
    return not (
        np.count_nonzero(vectors["moving_mean"])
        or np.count_nonzero(vectors["moving_variance"] != 1)
    )


def untrained_backbones(layers: Sequence[BatchNorm]) -> set[LayerPath]:
    """The models, by their paths, whose frozen layers all have the initial statistics.

    A model with a single frozen layer beside trained ones is not among them: the trained layers
    have adapted to it.
    """
    beside: dict[LayerPath, list[BatchNorm]] = {}
    for batchnorm in layers:
        beside.setdefault(batchnorm.path[:-1], []).append(batchnorm)
    found = set()
    for path, every in beside.items():
        frozen = [one for one in every if not one.trainable]
        enough = len(frozen) > 1 or len(frozen) == len(every)
        if enough and all(map(is_initial, frozen)):
            found.add(path)
    return found


_LONGER = 3.0  # times the stride, because the learning rate may have been larger earlier
_MOST = 2**53  # updates; beyond, a float is not exact, and the initial weight is 0 anyway


def _saw_more(batchnorm: BatchNorm, count: int) -> bool:
    """Whether a variance is below m^count, or changed although the momentum is 1."""
    vectors, momentum = batchnorm.vectors, batchnorm.momentum
    if vectors is None or momentum is None or not 0 < momentum <= 1:
        return False
    variance = vectors["moving_variance"]
    if momentum == 1:
        return bool(np.any(variance != 1))
    return bool(np.any(variance < momentum**count * (1 - rounding(batchnorm, count))))


def _went_farther(batchnorm: BatchNorm, reach: float) -> bool:
    """Whether gamma or beta is farther from its initial value than training can reach.

    Only initial values of 1 for gamma and 0 for beta are known; others say nothing.
    """
    vectors, config = batchnorm.vectors, batchnorm.layer.config
    if vectors is None:
        return False
    return any(
        _is_initializer(config.get(f"{name}_initializer", usual), usual)
        and bool(np.any(np.abs(vectors[name] - start) > reach))
        for name, usual, start in (("gamma", "ones", 1.0), ("beta", "zeros", 0.0))
    )


def _is_initializer(entry: object, name: str) -> bool:
    if isinstance(entry, dict):
        entry = entry["class_name"] if is_keras_class(entry) else None
    return isinstance(entry, str) and entry.lower() == name


def rounding(batchnorm: BatchNorm, count: int) -> float:
    """The relative rounding error of so many updates in the dtype of the variable."""
    weights = batchnorm.weights or {}
    dtype = weights["moving_variance"].dtype
    digits = {"float16": 11, "bfloat16": 8, "float64": 53}.get(dtype.name, 24)
    return float(min(1.0, (count + 1) * 2.0**-digits))


class Initial(NamedTuple):
    """How much of one layer's statistics is initial.

    Attributes:
        weight: r, the weight that the initial values still have.
        share: the share of variance + epsilon that is the initial 1, in the median of the channels
            whose input varies; 0 if none does.
        own: variance + epsilon of the data, (v - r) / (1 - r) + e, in the same median.
    """

    weight: float
    share: float
    own: float

    @property
    def part(self) -> float:
        """How much of the layer's statistics is initial."""
        return max(self.weight, self.share)


def initial(batchnorm: BatchNorm, updates: int, vanishing: float) -> Initial | None:
    """How much of a layer's statistics is initial after so many updates; None if unknown.

    The statistics must be finite. Channels where the data's own variance, without the initial 1, is
    below `vanishing` times epsilon are constant: the initial 1 decays there without harm, so they
    are left out.
    """
    vectors, momentum = batchnorm.vectors, batchnorm.momentum
    if vectors is None or momentum is None or not 0 < momentum < 1 or not updates:
        return None
    variance, epsilon = vectors["moving_variance"], max(0.0, batchnorm.epsilon or 0.0)
    weight = momentum**updates
    own = variance - weight
    varying = (own > 0) & (own >= vanishing * epsilon)
    if not varying.any():
        return Initial(weight, 0.0, 1.0)
    share = float(median(weight / (variance[varying] + epsilon)))
    return Initial(weight, share, float(median(own[varying])) / (1 - weight) + epsilon)


def updates_needed(layer: Initial, momentum: float, weight: float, share: float) -> int:
    """After how many updates the initial values keep at most this weight and this share.

    Solves r / (r + (1 - r) own) = share for r, then m^n = r for n.
    """
    weight, share = min(weight, _ALMOST_ALL), min(share, _ALMOST_ALL)
    weight = min(weight, layer.own * share / (1 - share + share * layer.own))
    return math.ceil(math.log(weight) / math.log(momentum))


_ALMOST_ALL = 0.999
