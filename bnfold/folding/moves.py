"""How an affine map moves with the numbers of its tensor: layers that move, add or drop axes."""

import math
from collections.abc import Sequence

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.crossing import constant_in_space, keeps_order, rank_of_class, single
from bnfold.folding.site import Site
from bnfold.model.shape_rules import Shape

# Global pooling takes the spatial axes away, or leaves them with size 1 (keepdims).


def _before_global(site: Site, affine: Affine) -> Affine:
    if site.setting("keepdims") or not site.channels_first:
        return affine
    ones = (1,) * (rank_of_class(site.layer) - 2)
    return affine.each(lambda array: array.reshape((*array.shape, *ones)))


def _behind_global(site: Site, affine: Affine) -> Affine | str:
    problem = constant_in_space(site, affine)
    if problem is not None:
        return problem
    if site.setting("keepdims") or not site.channels_first:
        return affine
    return affine.each(lambda array: array.reshape(array.shape[:1] if array.ndim else ()))


# Permute: output axis n is input axis dims[n - 1], both from 1.


def _dims(site: Site) -> list[int] | None:
    dims = site.setting("dims")
    if not isinstance(dims, list) or any(type(dim) is not int for dim in dims):
        return None
    if sorted(dims) != [*range(1, len(dims) + 1)]:
        return None
    return [dim - 1 for dim in dims]


def permuted(affine: Affine, order: Sequence[int]) -> Affine:
    """The map on a tensor whose axis n, the batch left out, was axis `order[n]` before."""

    def move(array: Array) -> Array:
        wide: Array = array.reshape((1,) * (len(order) - array.ndim) + array.shape)
        return wide.transpose(order)

    return affine.each(move)


def _before_permute(site: Site, affine: Affine) -> Affine | str:
    dims = _dims(site)
    if dims is None:
        return "has no known order of axes"
    return permuted(affine, [dims.index(axis) for axis in range(len(dims))])


def _behind_permute(site: Site, affine: Affine) -> Affine | str:
    dims = _dims(site)
    return "has no known order of axes" if dims is None else permuted(affine, dims)


# RepeatVector: (batch, channels) to (batch, n, channels).


def _before_repeat(site: Site, affine: Affine) -> Affine | str:
    if not affine.varies_on <= {-1}:
        return "repeats what is normalized along the repetitions"
    return affine


# Reshape and Flatten: the map is written out for every number of a sample and reshaped with it.
# Sizes that are unknown do not matter on axes that both sides share at their end.


def _reshaped(affine: Affine, source: Shape | None, target: Shape | None) -> Affine | str:
    if source is None or target is None:
        return "has an input or output of unknown shape"
    if affine.varies_on <= _shared_end(source, target):
        return affine
    sizes, wanted = _static(source), _static(target)
    if sizes is None or wanted is None or math.prod(sizes) != math.prod(wanted):
        return "has an input or output of unknown size"
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


def _before_reshape(site: Site, affine: Affine) -> Affine | str:
    return _reshaped(affine, site.output, site.inputs[0])


def _behind_reshape(site: Site, affine: Affine) -> Affine | str:
    return _reshaped(affine, site.inputs[0], site.output)


def _channels_moved(site: Site) -> tuple[Shape, list[int]] | None:
    """The input of Flatten(channels_first), which first moves the channels to the end."""
    shape = site.inputs[0]
    if shape is None or len(shape) < 3:
        return None
    axes = list(range(len(shape) - 1))
    return (shape[0], *shape[2:], shape[1]), [*axes[1:], axes[0]]


def _before_flatten(site: Site, affine: Affine) -> Affine | str:
    moved = _channels_moved(site) if site.channels_first else None
    if moved is None:
        return _before_reshape(site, affine)
    shape, order = moved
    found = _reshaped(affine, site.output, shape)
    if isinstance(found, str):
        return found
    return permuted(found, [order.index(axis) for axis in range(len(order))])


def _behind_flatten(site: Site, affine: Affine) -> Affine | str:
    moved = _channels_moved(site) if site.channels_first else None
    if moved is None:
        return _behind_reshape(site, affine)
    shape, order = moved
    return _reshaped(permuted(affine, order), shape, site.output)


GLOBAL_AVERAGE = single(to_input=_before_global, to_output=_behind_global)
GLOBAL_MAX = single(keeps_order, to_input=_before_global, to_output=_behind_global)
PERMUTE = single(to_input=_before_permute, to_output=_behind_permute)
REPEAT_VECTOR = single(to_input=_before_repeat)
RESHAPE = single(to_input=_before_reshape, to_output=_behind_reshape)
FLATTEN = single(to_input=_before_flatten, to_output=_behind_flatten)
