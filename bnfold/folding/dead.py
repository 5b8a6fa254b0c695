"""Channels that a BatchNormalization makes constant, as far as its dtype can tell.

With z for the normalized input, a channel puts out

    y = beta + gamma * z        |gamma * z| <= 100 |gamma|

where gamma is so small, as decay leaves it in a channel that nothing needs any more, a folded
kernel of that channel would be below the smallest normal number of its dtype: it underflows,
and runtimes that flush such numbers to zero drop it whole. That does no harm where 100 |gamma| is
not above the rounding of beta, because the unfolded layer computes beta too. Then the channel is
folded as the constant beta, with a kernel of zeros, which all runtimes agree on.
"""

import math

import numpy as np

from bnfold.folding.affine import Affine
from bnfold.folding.weights import smallest_of, unit_of
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.policy import policy

_FAR = 100.0
"""Standard deviations beyond which nothing needs to be told apart."""


def without_dead_channels(batchnorm: BatchNorm, affine: Affine) -> Affine | None:
    """The map of a layer, (channels,), with its dead channels constant; None if none is dead."""
    vectors, epsilon, used = batchnorm.vectors, batchnorm.epsilon, policy(batchnorm.layer)
    if vectors is None or epsilon is None or used is None:
        return None
    mean, variance = vectors["moving_mean"], vectors["moving_variance"]
    scale, shift = (np.broadcast_to(one, mean.shape) for one in (affine.scale, affine.shift))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is not small
        gamma, beta = np.abs(scale) * np.sqrt(variance + epsilon), scale * mean + shift
        small = (np.abs(scale) < math.sqrt(smallest_of(used.compute))) & (scale != 0)
        dead = small & (_FAR * gamma <= unit_of(used.compute) * np.abs(beta))
    if not dead.any():
        return None
    return Affine(np.where(dead, 0.0, scale), np.where(dead, beta, shift))
