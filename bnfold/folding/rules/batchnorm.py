"""BatchNormalization, which absorbs another one after it or before it.

after     gamma[c] * s[c],  beta[c] * s[c] + t[c]
before    gamma[c] * s[c],  beta[c] + gamma / sqrt(v + e) * (t - m + s * m)
"""

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Rule, Site
from bnfold.folding.sentences import NO_TRAINING, other_axis
from bnfold.folding.weights import BiasChange, Read, WeightEdit
from bnfold.model import layers
from bnfold.model.batchnorm import as_batchnorm
from bnfold.model.refusal import Refusal


def _absorb_after(site: Site, affine: Affine) -> WeightEdit:
    scale, shift = _vectors(site, affine)
    change = BiasChange(scale.shape, scale, lambda read: shift)
    return WeightEdit({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


def _vectors(site: Site, affine: Affine) -> tuple[Array, Array]:
    """A map as vectors on the axis that the layer normalizes."""
    batchnorm = as_batchnorm(site.layer, ())
    axis = None if batchnorm is None else batchnorm.axis
    if axis is None:
        raise Refusal("normalizes over several axes at once")
    if axis >= 0:
        if site.rank is None:
            raise other_axis("not the channel axis, as far as the file tells, of")
        axis -= site.rank
    vectors = affine.vectors(axis, site.weights["moving_mean"].shape[0])
    if vectors is None:
        raise other_axis()
    return vectors


def _absorb_before(site: Site, affine: Affine) -> WeightEdit:
    batchnorm = as_batchnorm(site.layer, ())
    epsilon = None if batchnorm is None else batchnorm.epsilon
    if batchnorm is None or epsilon is None:
        raise Refusal("has an epsilon that is not a finite number")
    if site.training and batchnorm.trainable:
        raise Refusal(
            "is called with training=True, so it normalizes with the batch's statistics",
            NO_TRAINING,
        )
    scale, shift = _vectors(site, affine)

    def added(read: Read) -> Array:
        mean = read("moving_mean")
        slope = read("gamma") / np.sqrt(read("moving_variance") + epsilon)
        total: Array = slope * (shift - mean + scale * mean)
        return total

    change = BiasChange(scale.shape, np.ones(()), added)
    return WeightEdit({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


LAYERS: dict[str, Rule] = dict.fromkeys(
    layers.BATCHNORM_CLASSES, Rule(absorb_after=_absorb_after, absorb_before=_absorb_before)
)
