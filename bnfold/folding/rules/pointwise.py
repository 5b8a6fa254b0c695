"""Layers that do the same to each number by itself, and those that do nothing at inference."""

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import (
    Rule,
    Site,
    affine_layer,
    each_rank,
    keeps_order,
    no_shift,
    not_in_training,
    single,
)
from bnfold.folding.sentences import OTHER_SIDE
from bnfold.model.graph import finite_number
from bnfold.model.refusal import Refusal


def _homogeneous(site: Site, affine: Affine) -> None:
    """Wrong if not f(s x) = s f(x), which holds for s >= 0."""
    no_shift(site, affine)
    keeps_order(site, affine)


def _plain_activation(site: Site, affine: Affine) -> None:
    """Wrong if the function is neither linear nor homogeneous."""
    activation = site.setting("activation")
    if activation == "linear":
        return
    if activation not in ("relu", "leaky_relu"):
        applied = activation if isinstance(activation, str) else "an activation"
        raise Refusal(f"applies {applied}", OTHER_SIDE)
    _homogeneous(site, affine)


def _plain_relu(site: Site, affine: Affine) -> None:
    """Wrong if the function bends elsewhere than at 0."""
    if site.setting("max_value") is not None:
        raise Refusal("cuts off at its max_value", OTHER_SIDE)
    if site.setting("threshold") not in (None, 0):
        raise Refusal("has a threshold", OTHER_SIDE)
    _homogeneous(site, affine)


def _rescaling(site: Site) -> tuple[Array, Array] | None:
    scale, offset = finite_number(site.setting("scale")), finite_number(site.setting("offset", 0))
    if not scale or offset is None:
        return None
    # Keras makes float32 tensors of the two before it casts them to what the layer computes in.
    c, d = (np.asarray(np.float32(number), np.float64) for number in (scale, offset))
    return c, d


_ANY = single()
_RANDOM = single(not_in_training)

LAYERS: dict[str, Rule] = {
    # Nothing happens at inference.
    **dict.fromkeys(("Identity", "ActivityRegularization"), _ANY),
    # Nothing happens at inference, if not called with training=True.
    **dict.fromkeys(("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"), _RANDOM),
    **dict.fromkeys(each_rank("SpatialDropout"), _RANDOM),
    # A function with f(s x) = s f(x) for s >= 0: no shift, every scale positive.
    "Activation": single(_plain_activation),  # 'linear' whatever the map
    "ReLU": single(_plain_relu),  # no max_value, no threshold
    **dict.fromkeys(("LeakyReLU", "PReLU"), single(_homogeneous)),
    # c * x + d, with numbers for c and d, and c not 0.
    "Rescaling": affine_layer(_rescaling),
}

OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(("Copy", "StopGradient"), _ANY),
    **dict.fromkeys(("Relu", "LeakyRelu"), single(_homogeneous)),
    "Negative": affine_layer(lambda site: (np.asarray(-1.0), np.zeros(()))),
}
