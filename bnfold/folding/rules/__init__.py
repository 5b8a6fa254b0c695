"""The rules, one family of layers a file: a row says what a class does with a map.

A class that is linear in its weights, as its row in `model/layers.py` says, absorbs a map after it
without a row here. Any other class without a row is unknown and blocks.
"""

from bnfold.folding.rule import Rule
from bnfold.folding.rules import (
    batchnorm,
    einsum,
    linear,
    merge,
    pointwise,
    recurrent,
    reduction,
    reshape,
    spatial,
)
from bnfold.model.graph import Layer
from bnfold.model.layers import facts

LAYERS: dict[str, Rule] = {
    **pointwise.LAYERS,
    **spatial.LAYERS,
    **reshape.LAYERS,
    **merge.LAYERS,
    **linear.LAYERS,
    **einsum.LAYERS,
    **recurrent.LAYERS,
    **batchnorm.LAYERS,
}
"""Keras' own layers."""

OPERATIONS: dict[str, Rule] = {
    **pointwise.OPERATIONS,
    **spatial.OPERATIONS,
    **reshape.OPERATIONS,
    **reduction.OPERATIONS,
    **merge.OPERATIONS,
}
"""The operations of keras.ops, by the class name that Keras writes for them."""


def rule_of(layer: Layer) -> Rule | None:
    """The row of a layer or operation; None where its class is unknown, or somebody's own."""
    if not layer.builtin:
        return None
    rule = (OPERATIONS if layer.is_operation else LAYERS).get(layer.class_name)
    if rule is None and facts(layer).output is not None:
        return linear.OUTPUT_ALONE
    return rule
