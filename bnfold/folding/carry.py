"""Which layers an affine map crosses, and on which condition.

One row a class, with its condition as a comment: it is wrong if that does not hold. A class without
a row is unknown and blocks.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.folding import joins, moves
from bnfold.folding.affine import Affine, Array
from bnfold.folding.crossing import (
    Rule,
    constant_in_space,
    keeps_order,
    linear,
    no_shift,
    not_in_training,
    single,
)
from bnfold.folding.obstacle import OTHER_SIDE, Obstacle
from bnfold.folding.operations import OPERATIONS
from bnfold.folding.site import Site
from bnfold.model.graph import Layer, finite_number


def rule_for(layer: Layer) -> Rule | None:
    """The row of a layer's class; None where it is unknown."""
    if not layer.builtin:
        return None
    return (OPERATIONS if layer.is_operation else LAYERS).get(layer.class_name)


def plain_activation(site: Site, affine: Affine) -> str | None:
    """Wrong if the function is not f(s x) = s f(x) for s >= 0, or not linear."""
    activation = site.setting("activation")
    if activation == "linear":
        return None
    if activation not in ("relu", "leaky_relu"):
        applied = activation if isinstance(activation, str) else "an activation"
        return Obstacle(f"applies {applied}", OTHER_SIDE)
    return no_shift(site, affine) or keeps_order(site, affine)


def plain_relu(site: Site, affine: Affine) -> str | None:
    """Wrong if the function bends elsewhere than at 0."""
    if site.setting("max_value") is not None:
        return Obstacle("cuts off at its max_value", OTHER_SIDE)
    if site.setting("threshold") not in (None, 0):
        return Obstacle("has a threshold", OTHER_SIDE)
    return no_shift(site, affine) or keeps_order(site, affine)


def no_padding(site: Site, affine: Affine) -> str | None:
    """Wrong if the layer fills up with zeros, which are not scaled to anything but zero."""
    padded = site.setting("pad_to_aspect_ratio")
    return Obstacle("pads with zeros", OTHER_SIDE) if padded else None


def _rescaling(site: Site) -> tuple[Array, Array] | None:
    scale, offset = finite_number(site.setting("scale")), finite_number(site.setting("offset", 0))
    if not scale or offset is None:
        return None
    # Keras makes float32 tensors of the two before it casts them to what the layer computes in.
    c, d = (np.asarray(np.float32(number), np.float64) for number in (scale, offset))
    return c, d


_ANY = single()
_RANDOM = single(not_in_training)
_HOMOGENEOUS = single(no_shift, keeps_order)
_IN_SPACE = single(constant_in_space)


def _each_rank(*kinds: str) -> list[str]:
    return [f"{kind}{rank}D" for kind in kinds for rank in (1, 2, 3)]


LAYERS: Mapping[str, Rule] = {
    # Nothing happens at inference.
    **dict.fromkeys(("Identity", "ActivityRegularization"), _ANY),
    # Nothing happens at inference, if not called with training=True.
    **dict.fromkeys(("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"), _RANDOM),
    **dict.fromkeys(_each_rank("SpatialDropout"), _RANDOM),
    # A function with f(s x) = s f(x) for s >= 0: no shift, every scale positive.
    "Activation": single(plain_activation),  # 'linear' whatever the map
    "ReLU": single(plain_relu),  # no max_value, no threshold
    **dict.fromkeys(("LeakyReLU", "PReLU"), _HOMOGENEOUS),
    # c * x + d, with numbers for c and d, and c not 0.
    "Rescaling": linear(_rescaling),
    # Means of several places, in which padding does not count: the map is the same in all places.
    **dict.fromkeys(_each_rank("AveragePooling", "AdaptiveAveragePooling"), _IN_SPACE),
    **dict.fromkeys(_each_rank("UpSampling"), _IN_SPACE),
    "Resizing": single(no_padding, constant_in_space),  # no pad_to_aspect_ratio
    # A choice of places, whatever is in them: the map is the same in all places.
    **dict.fromkeys((*_each_rank("Cropping"), "CenterCrop"), _IN_SPACE),
    # The largest of several places: besides, every scale positive.
    **dict.fromkeys(
        _each_rank("MaxPooling", "AdaptiveMaxPooling"), single(keeps_order, constant_in_space)
    ),
    # The same over all places.
    **dict.fromkeys(_each_rank("GlobalAveragePooling"), moves.GLOBAL_AVERAGE),
    **dict.fromkeys(_each_rank("GlobalMaxPooling"), moves.GLOBAL_MAX),
    # Zeros at the edges stay zeros: no shift, the same map in all places.
    **dict.fromkeys(_each_rank("ZeroPadding"), single(no_shift, constant_in_space)),
    # Numbers change their places only.
    "Permute": moves.PERMUTE,
    "RepeatVector": moves.REPEAT_VECTOR,  # the same in all repetitions
    "Reshape": moves.RESHAPE,  # static sizes
    "Flatten": moves.FLATTEN,  # static sizes
    "Concatenate": joins.ROW,  # static sizes, if it is along the normalized axis
    # Scale to every input, shift to exactly one; forward, the same scale in all inputs.
    "Add": joins.SUM,
    "Subtract": joins.DIFFERENCE,
    # Scale and shift to every input; forward, the same map in all inputs (Average: same scale).
    "Average": joins.AVERAGE,
    **dict.fromkeys(("Maximum", "Minimum"), joins.EXTREME),
    # No shift; scale to exactly one input.
    "Multiply": joins.PRODUCT,
}
"""Keras' own layers, with the condition under which a map crosses them."""
