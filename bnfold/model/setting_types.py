"""The forms of the settings that bnfold computes with, checked once, when a config is read.

Keras checks them when it makes the layer. Whoever reads a setting later can therefore rely on its
form, and a file in which it has another one is refused, as Keras refuses it. Settings that a health
rule judges, such as the epsilon of a BatchNormalization, are not among them.
"""

import json
from collections.abc import Callable
from typing import Any

from bnfold.errors import UnreadableModelError
from bnfold.model.container.printing import shortened
from bnfold.model.graph import Layer
from bnfold.model.layers import facts
from bnfold.model.shape_rules import LARGEST_SIZE, is_shape

_Form = tuple[str, Callable[[Any], bool]]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIZE


def _is_amount(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _are_counts(value: Any) -> bool:
    return _is_count(value) or _is_list(value, _is_count)


def _are_amounts(value: Any) -> bool:
    def is_end_or_pair(one: Any) -> bool:
        return _is_amount(one) or _is_list(one, _is_amount)

    return isinstance(value, str) or _is_amount(value) or _is_list(value, is_end_or_pair)


_AMOUNT: _Form = ("an integer of 0 or more", _is_amount)
_COUNTS: _Form = ("a positive integer, or one for each axis", _are_counts)
_AMOUNTS: _Form = ("a word, an integer of 0 or more, or such for each axis", _are_amounts)
_INTEGERS: _Form = (
    "a list of integers",
    lambda value: _is_list(value, lambda one: type(one) is int and abs(one) <= LARGEST_SIZE),
)
_TEXT: _Form = ("a text", lambda value: isinstance(value, str))
_SHAPE: _Form = ("a list of sizes", is_shape)

_FORMS: dict[str, _Form] = {
    **dict.fromkeys(("units", "filters", "output_dim", "n", "depth_multiplier"), _AMOUNT),
    **dict.fromkeys(("kernel_size", "pool_size", "size", "strides", "dilation_rate"), _COUNTS),
    **dict.fromkeys(("padding", "cropping"), _AMOUNTS),
    **dict.fromkeys(("dims", "target_shape"), _INTEGERS),
    **dict.fromkeys(("bias_axes", "data_format", "equation"), _TEXT),
}
_SHAPES: dict[str, _Form] = dict.fromkeys(("batch_shape", "batch_input_shape"), _SHAPE)
"""By the name of the setting; null is the default of each."""
_EVERY = _FORMS | _SHAPES


def check_settings(layer: Layer) -> None:
    """Raise UnreadableModelError for a setting of Keras' own layer that Keras would not take."""
    if layer.is_operation or not layer.builtin:
        return
    is_computed = facts(layer).shape is not None or facts(layer).output is not None
    for name, (wanted, fits) in (_EVERY if is_computed else _SHAPES).items():
        value = layer.config.get(name)
        if value is not None and not fits(value):
            raise UnreadableModelError(
                f"`{name}` of {layer.class_name} {shortened(layer.name)!r} must be {wanted}; it is "
                f"{shortened(json.dumps(value), 60)}"
            )
