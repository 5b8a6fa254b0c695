"""Layers that mix, choose or add places, and leave channels apart.

The map must be the same in all the places that come together. Where the largest number wins, every
scale must be positive; where zeros are put at the edges, there must be no shift.
"""

from bnfold.folding.affine import Affine
from bnfold.folding.rule import (
    Rule,
    Site,
    constant_in_space,
    each_rank,
    keeps_order,
    no_shift,
    rank_of_class,
    single,
)
from bnfold.folding.sentences import OTHER_SIDE
from bnfold.model.refusal import Refusal


def _no_padding(site: Site, affine: Affine) -> None:
    """Wrong if the layer fills up with zeros, which are not scaled to anything but zero."""
    if site.setting("pad_to_aspect_ratio"):
        raise Refusal("pads with zeros", OTHER_SIDE)


# Global pooling takes the spatial axes away, or leaves them with size 1 (keepdims).


def _global_to_input(site: Site, affine: Affine) -> Affine:
    if site.setting("keepdims") or not site.channels_first:
        return affine
    ones = (1,) * (rank_of_class(site.layer) - 2)
    return affine.each(lambda array: array.reshape((*array.shape, *ones)))


def _global_to_output(site: Site, affine: Affine) -> Affine:
    constant_in_space(site, affine)
    if site.setting("keepdims") or not site.channels_first:
        return affine
    return affine.each(lambda array: array.reshape(array.shape[:1] if array.ndim else ()))


_IN_SPACE = single(constant_in_space)
_LARGEST = single(keeps_order, constant_in_space)
_GLOBAL_MEAN = single(to_input=_global_to_input, to_output=_global_to_output)
_GLOBAL_LARGEST = single(keeps_order, to_input=_global_to_input, to_output=_global_to_output)

LAYERS: dict[str, Rule] = {
    # Means of several places, in which padding does not count.
    **dict.fromkeys(each_rank("AveragePooling", "AdaptiveAveragePooling"), _IN_SPACE),
    **dict.fromkeys(each_rank("UpSampling"), _IN_SPACE),
    "Resizing": single(_no_padding, constant_in_space),
    # A choice of places, whatever is in them.
    **dict.fromkeys((*each_rank("Cropping"), "CenterCrop"), _IN_SPACE),
    # The largest of several places.
    **dict.fromkeys(each_rank("MaxPooling", "AdaptiveMaxPooling"), _LARGEST),
    # The same over all places.
    **dict.fromkeys(each_rank("GlobalAveragePooling"), _GLOBAL_MEAN),
    **dict.fromkeys(each_rank("GlobalMaxPooling"), _GLOBAL_LARGEST),
    # Zeros at the edges stay zeros.
    **dict.fromkeys(each_rank("ZeroPadding"), single(no_shift, constant_in_space)),
}

OPERATIONS: dict[str, Rule] = {"AveragePool": _IN_SPACE, "MaxPool": _LARGEST}
