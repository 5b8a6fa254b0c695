"""Layers in which numbers change their places only, and the map with them."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Rule, Site, check_size, single
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape

# An order of axes: output axis n is input axis order[n], from 0 without the batch.


def _permuted(affine: Affine, order: Sequence[int]) -> Affine:
    """The map on a tensor whose axis n was axis `order[n]` before."""

    def move(array: Array) -> Array:
        wide: Array = array.reshape((1,) * (len(order) - array.ndim) + array.shape)
        return wide.transpose(order)

    return affine.each(move)


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def _permutation(order_of: Callable[[Site], Sequence[int] | None], unknown: str) -> Rule:
    """`order_of` counts the batch in; `unknown` is said where it knows no order, or moves that."""

    def order(site: Site) -> list[int]:
        found = order_of(site)
        if not found or found[0] != 0:
            raise Refusal(unknown)
        return [axis - 1 for axis in found[1:]]

    return single(
        to_input=lambda site, affine: _permuted(affine, _inverse(order(site))),
        to_output=lambda site, affine: _permuted(affine, order(site)),
    )


def _dims(site: Site) -> list[int] | None:
    dims = site.setting("dims")
    if not isinstance(dims, list) or any(type(dim) is not int for dim in dims):
        return None
    return [0, *dims] if sorted(dims) == [*range(1, len(dims) + 1)] else None


def _transposed(site: Site) -> Sequence[int] | None:
    axes, rank = site.setting("axes"), len(site.inputs[0] or ())
    return axes if isinstance(axes, list) and sorted(axes) == [*range(rank)] else None


# RepeatVector: (batch, channels) to (batch, n, channels).


def _repeat_to_input(site: Site, affine: Affine) -> Affine:
    if not affine.varies_on <= {-1}:
        raise Refusal("repeats what is normalized along the repetitions")
    return affine


# Reshape and Flatten: the map is written out for every number of a sample and reshaped with it.
# Sizes that are unknown do not matter on axes that both sides share at their end.


def _reshaped(affine: Affine, source: Shape | None, target: Shape | None) -> Affine:
    if source is None or target is None:
        raise Refusal("has an input or output of unknown shape")
    if affine.varies_on <= _shared_end(source, target):
        return affine
    sizes, wanted = _static(source), _static(target)
    if sizes is None or wanted is None or math.prod(sizes) != math.prod(wanted):
        raise Refusal("has an input or output of unknown size")
    check_size(sizes)
    return affine.each(lambda array: np.broadcast_to(array, sizes).reshape(wanted))


def _shared_end(source: Shape, target: Shape) -> frozenset[int]:
    """The last axes of two shapes, counted from the end, as far as their sizes agree."""
    shared = 0
    pairs = zip(reversed(source[1:]), reversed(target[1:]), strict=False)
    for one, other in pairs:
        if one is None or one != other:
            break
        shared += 1
    return frozenset(range(-shared, 0))


def _static(shape: Shape) -> tuple[int, ...] | None:
    sizes = tuple(size for size in shape[1:] if size is not None)
    return sizes if len(sizes) == len(shape) - 1 else None


def _reshape_to_input(site: Site, affine: Affine) -> Affine:
    return _reshaped(affine, site.output, site.inputs[0])


def _reshape_to_output(site: Site, affine: Affine) -> Affine:
    return _reshaped(affine, site.inputs[0], site.output)


def _channels_last(site: Site) -> tuple[Shape, list[int]] | None:
    """The input of Flatten(channels_first), which first moves the channels to the end."""
    shape = site.inputs[0]
    if shape is None or len(shape) < 3:
        return None
    axes = list(range(len(shape) - 1))
    return (shape[0], *shape[2:], shape[1]), [*axes[1:], axes[0]]


def _flatten_to_input(site: Site, affine: Affine) -> Affine:
    last = _channels_last(site) if site.channels_first else None
    if last is None:
        return _reshape_to_input(site, affine)
    shape, order = last
    return _permuted(_reshaped(affine, site.output, shape), _inverse(order))


def _flatten_to_output(site: Site, affine: Affine) -> Affine:
    last = _channels_last(site) if site.channels_first else None
    if last is None:
        return _reshape_to_output(site, affine)
    shape, order = last
    return _reshaped(_permuted(affine, order), shape, site.output)


_RESHAPED = single(to_input=_reshape_to_input, to_output=_reshape_to_output)
LAYERS: dict[str, Rule] = {
    "Permute": _permutation(_dims, "has an unknown order of axes"),
    "RepeatVector": single(to_input=_repeat_to_input),  # the same in all repetitions
    "Reshape": _RESHAPED,  # static sizes
    "Flatten": single(to_input=_flatten_to_input, to_output=_flatten_to_output),  # static sizes
}

OPERATIONS: dict[str, Rule] = {
    "Transpose": _permutation(_transposed, "has an unknown order of axes, or moves the batch"),
    **dict.fromkeys(("Reshape", "ExpandDims", "Squeeze"), _RESHAPED),
}
