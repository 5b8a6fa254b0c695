"""Recurrent layers, which absorb a map before them into the kernel that meets the input.

SimpleRNN, LSTM, GRU, Bidirectional of them     kernel[i, c] * s[i],
bias[c] + sum over i of kernel[i, c] * t[i]
"""

from collections.abc import Mapping

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Rule, Site
from bnfold.folding.sentences import NO_TRAINING, other_axis
from bnfold.folding.weights import BiasChange, Read, WeightEdit
from bnfold.model import layers
from bnfold.model.graph import Json, Layer, Weight
from bnfold.model.policy import policy
from bnfold.model.refusal import Refusal


def _before_recurrent(site: Site, affine: Affine) -> WeightEdit:
    vectors = affine.vectors(-1, site.weights["kernel"].shape[0])
    if vectors is None:
        raise other_axis()
    _check_dropout(site.layer, site)
    factors, biases = _input_change(site.layer, site.weights, vectors, "")
    return WeightEdit(factors, {}, biases, {"use_bias": True} if biases else {})


def _check_dropout(layer: Layer, site: Site) -> None:
    if site.training and layer.config.get("dropout", 0):
        raise Refusal("is called with training=True and drops some of its input", NO_TRAINING)


def _input_change(
    layer: Layer, weights: Mapping[str, Weight], vectors: tuple[Array, Array], prefix: str
) -> tuple[dict[str, Array], dict[str, BiasChange]]:
    """What happens to the input kernel and bias of a recurrent layer, whose slots have a prefix."""
    scale, shift = vectors
    slot = f"{prefix}kernel"
    units = weights[slot].shape[1]
    # A GRU with reset_after has a second bias in row 1, for the recurrent kernel.
    bias = weights.get(f"{prefix}bias")
    reset_after = layer.class_name == "GRU" and layer.config.get("reset_after", True)
    rows = reset_after if bias is None else len(bias.shape) == 2

    def added(read: Read) -> Array:
        total: Array = shift @ read(slot)
        return np.stack([total, np.zeros_like(total)]) if rows else total

    factors = {slot: scale[:, None]}
    if not shift.any():
        return factors, {}
    shape = (2, units) if rows else (units,)
    return factors, {f"{prefix}bias": BiasChange(shape, np.ones(()), added)}


def _before_bidirectional(site: Site, affine: Affine) -> WeightEdit:
    factors: dict[str, Array] = {}
    biases: dict[str, BiasChange] = {}
    settings: Json = {}
    for name, key in layers.DIRECTIONS.items():
        inside = layers.direction(site.layer, name)
        if inside is None or policy(inside) != policy(site.layer):
            raise Refusal("wraps a layer that is not known well enough")
        _check_dropout(inside, site)
        vectors = affine.vectors(-1, site.weights[f"{name}_kernel"].shape[0])
        if vectors is None:
            raise other_axis()
        changed = _input_change(inside, site.weights, vectors, f"{name}_")
        factors |= changed[0]
        biases |= changed[1]
        if changed[1] and isinstance(site.setting(key), dict):
            entry = site.setting(key)
            settings[key] = {**entry, "config": {**entry["config"], "use_bias": True}}
    return WeightEdit(factors, {}, biases, settings)


LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), Rule(absorb_before=_before_recurrent)),
    "Bidirectional": Rule(absorb_before=_before_bidirectional),
}
