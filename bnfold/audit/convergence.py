"""How much of a layer's statistics is still what they were created with.

A moving variance starts at 1 and a mean at 0. After n updates at momentum m these keep the weight
r = m^n, and of a variance v that was recorded, r / (v + e) is the initial 1: nearly all of it where
the data's own variance is small. The larger of the two is the part of the layer that is initial.
"""

import math
from dataclasses import dataclass

import numpy as np

from bnfold.model.batchnorm import BatchNorm


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
