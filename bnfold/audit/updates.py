"""How often training updated the statistics, and how much of their initial values that leaves.

The optimizer counts its steps, and each step updates the statistics once for each call of the
layer. The counter starts over when a model is compiled again, so it can be younger than the
statistics. The variance tells: it started at 1 and nothing negative was added, so that after n
updates it is m^n at least. A smaller one has seen more updates, and then the counter says nothing
of any layer of the file: a network that is trained on with a new head has a new counter for both.
So do gamma and beta, where the optimizer moves a weight by so much at most: from 1 and 0, as they
were created, they cannot be farther than n such steps. Frozen layers do not tell, because a head
may have been trained from the start on top of them.

A moving variance starts at 1 and a mean at 0. After n updates at momentum m these keep the weight
r = m^n, and of a variance v that was recorded, r / (v + e) is the initial 1: nearly all of it where
the data's own variance is small. The larger of the two is the part of the layer that is initial.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.audit.neighbours import Place
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.graph import LayerPath
from bnfold.model.identity import is_keras_class


def updates(
    layers: Iterable[tuple[BatchNorm, Place]],
    steps: Mapping[LayerPath, int],
    stride: float | None = None,
    estimated: Collection[LayerPath] = (),
) -> dict[LayerPath, int]:
    """The number of updates by the path of the layer, without those of which nothing is known.

    `steps` are the steps of each compiled model's optimizer, the outermost one's at (), and
    `stride` is the most that one of them moves a weight, if that is known. The statistics of
    `estimated` layers are not from training: its steps tell nothing of them, nor they of its steps.
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
    """Whether its moving statistics are 0 and 1, exactly as they are created."""
    vectors = batchnorm.vectors
    if vectors is None:
        return False
    return not np.any(vectors["moving_mean"]) and bool(np.all(vectors["moving_variance"] == 1))


def untrained_backbones(layers: Sequence[BatchNorm]) -> set[LayerPath]:
    """The models, by their paths, whose frozen layers all have the statistics of their creation.

    A model with a single such layer beside others that are trained is not among them: those have
    learnt to live with it.
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


_LONGER = 3.0  # times the stride, for the learning rate may have been larger before
_MOST = 2**53  # more of them weigh nothing, and a float holds no more


def _saw_more(batchnorm: BatchNorm, count: int) -> bool:
    """Whether a variance is smaller than so many updates can leave it, or changed at m = 1."""
    vectors, momentum = batchnorm.vectors, batchnorm.momentum
    if vectors is None or momentum is None or not 0 < momentum <= 1:
        return False
    variance = vectors["moving_variance"]
    if momentum == 1:
        return bool(np.any(variance != 1))
    return bool(np.any(variance < momentum**count * (1 - rounding(batchnorm, count))))


def _went_farther(batchnorm: BatchNorm, reach: float) -> bool:
    """Whether gamma or beta is farther from its initial value than training can have taken it.

    Only where that is the usual one, 1 and 0.
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
    """The relative error that so many updates can make in the dtype of the variable."""
    weights = batchnorm.weights or {}
    dtype = weights["moving_variance"].dtype
    digits = {"float16": 11, "bfloat16": 8, "float64": 53}.get(dtype.name, 24)
    return float(min(1.0, (count + 1) * 2.0**-digits))


@dataclass(frozen=True)
class Initial:
    """What of one layer's statistics is initial.

    Attributes:
        weight: r, the weight that the initial values have left.
        share: the share of variance + epsilon that is the initial 1, the median of the channels
            whose input varies; 0 without any.
        own: variance + epsilon of the data as far as the file tells, the median likewise.
    """

    weight: float
    share: float
    own: float

    @property
    def part(self) -> float:
        """How much of the layer's statistics is initial."""
        return max(self.weight, self.share)


def initial(batchnorm: BatchNorm, updates: int, vanishing: float) -> Initial | None:
    """What of a layer's statistics is initial after so many updates; None where that is not known.

    The statistics are finite. Channels whose own variance is below `vanishing` times epsilon are
    constant, and are left out.
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
    share = float(np.median(weight / (variance[varying] + epsilon)))
    return Initial(weight, share, float(np.median(own[varying])) / (1 - weight) + epsilon)


def updates_needed(layer: Initial, momentum: float, weight: float, share: float) -> int:
    """After how many updates the initial values keep no more than this weight and this share.

    Solves r / (r + (1 - r) v + e) = share for r.
    """
    weight, share = min(weight, _ALMOST_ALL), min(share, _ALMOST_ALL)
    weight = min(weight, layer.own * share / (1 - share + share * layer.own))
    return math.ceil(math.log(weight) / math.log(momentum))


_ALMOST_ALL = 0.999
