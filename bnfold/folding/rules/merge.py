"""Layers and operations that put several tensors together, and arithmetic with constants.

What broadcasts by numpy's rules is refused. Arithmetic with constants is an affine map of its own,
c * x + d, with numbers for c and d that follow from the operation:

    x + n    c = 1      d = n           n - x    c = -1     d = n
    x - n    c = 1      d = -n          x * n    c = n      d = 0
    x / n    c = 1 / n  d = 0
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NoReturn

import numpy as np

from bnfold.folding.affine import IDENTITY, NOTHING, Affine, Array, compact
from bnfold.folding.rule import (
    Backward,
    Check,
    Forward,
    Maps,
    Rule,
    Site,
    affine_layer,
    check_size,
    keeps_order,
    no_shift,
)
from bnfold.folding.sentences import NO_OPERATION
from bnfold.model.graph import finite_number
from bnfold.model.refusal import Refusal


def _check_shapes(site: Site, affines: Iterable[Affine]) -> None:
    """Wrong if a tensor is spread over an axis along which a map varies.

    A map cannot be put on a branch of size 1 there. A merging layer with inputs of different ranks
    adds axes of its own.
    """
    if site.masked:
        raise Refusal("merges tensors that may be masked")
    if site.output is None or any(shape is None for shape in site.inputs):
        raise Refusal("joins tensors of unknown shape")
    rank = len(site.output)
    shapes = [shape for shape in site.inputs if shape is not None]
    if any(len(shape) != rank for shape in shapes):
        raise Refusal("joins tensors of different ranks")
    for axis in frozenset[int]().union(*(affine.varies_on for affine in affines)):
        sizes = {shape[axis] for shape in shapes}
        if len(sizes) > 1 or None in sizes:
            raise Refusal("spreads one of its inputs over the normalized axis")
        # keras.ops.add takes what has one axis longer than 1 for a bias, on the last axis first.
        if axis != -1 and any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise Refusal("spreads one of its inputs")


def _count(site: Site) -> int:
    return len(site.inputs)


def _sum_backward(signs: Callable[[int], Sequence[float]]) -> Backward:
    """Every input takes the scale; one takes the shift, with its sign."""

    def backward(site: Site, affine: Affine) -> Iterable[Maps]:
        _check_shapes(site, [affine])
        scaled = [affine.scale_only()] * _count(site)
        if not affine.has_shift:
            return [tuple(scaled)]
        return (
            (*scaled[:slot], Affine(affine.scale, sign * affine.shift), *scaled[slot + 1 :])
            for slot, sign in enumerate(signs(_count(site)))
        )

    return backward


def _sum_forward(weights: Callable[[int], Sequence[float]]) -> Forward:
    """All inputs must have the same scale; the shifts add up."""

    def forward(site: Site, affines: Sequence[Affine]) -> Affine:
        _check_shapes(site, affines)
        if not _same([affine.scale_only() for affine in affines]):
            raise Refusal(_OTHER_BRANCH.format("scaled"))
        check_size(np.broadcast_shapes(*(affine.shift.shape for affine in affines)))
        shift = NOTHING
        for weight, affine in zip(weights(len(affines)), affines, strict=True):
            shift = shift + weight * affine.shift
        return Affine(affines[0].scale, shift)

    return forward


_OTHER_BRANCH = "joins it with a branch that is not {} in the same way"


def _same(affines: Sequence[Affine]) -> bool:
    return all(affines[0].same_as(other) for other in affines[1:])


def _plus(count: int) -> Sequence[float]:
    return [1.0] * count


def _minus(count: int) -> Sequence[float]:
    return [1.0] + [-1.0] * (count - 1)


def _mean(count: int) -> Sequence[float]:
    return [1.0 / count] * count


def _alike(*checks: Check) -> Rule:
    """Every input takes the whole map: the layer picks or averages, so f(s x + t) = s f(x) + t."""

    def check_all(site: Site, affines: Sequence[Affine]) -> None:
        for check in checks:
            for affine in affines:
                check(site, affine)
        _check_shapes(site, affines)

    def backward(site: Site, affine: Affine) -> Sequence[Maps]:
        check_all(site, [affine])
        return [(affine,) * _count(site)]

    def forward(site: Site, affines: Sequence[Affine]) -> Affine:
        check_all(site, affines)
        if not _same(affines):
            raise Refusal(_OTHER_BRANCH.format("normalized"))
        return affines[0]

    return Rule(backward, forward)


def _product_backward(site: Site, affine: Affine) -> Iterable[Maps]:
    no_shift(site, affine)
    _check_shapes(site, [affine])
    count = _count(site)
    return (
        (*(IDENTITY,) * slot, affine, *(IDENTITY,) * (count - slot - 1)) for slot in range(count)
    )


def _product_forward(site: Site, affines: Sequence[Affine]) -> Affine:
    for affine in affines:
        no_shift(site, affine)
    _check_shapes(site, affines)
    check_size(np.broadcast_shapes(*(affine.scale.shape for affine in affines)))
    scale = np.ones(())
    for affine in affines:
        scale = scale * affine.scale
    return Affine(scale, NOTHING)


def _concatenated_axis(site: Site) -> int:
    """The axis along which inputs are put together, counted from the end."""
    shapes = [shape for shape in site.inputs if shape is not None]
    if len(shapes) != len(site.inputs) or len({len(shape) for shape in shapes}) != 1:
        raise Refusal("joins tensors of unknown shape")
    axis, rank = site.setting("axis", -1), len(shapes[0])
    if type(axis) is not int or not -rank <= axis < rank or axis % rank == 0:
        raise Refusal("joins along an unknown axis")
    return axis if axis < 0 else axis - rank


def _concatenate_backward(site: Site, affine: Affine) -> Sequence[Maps]:
    axis = _concatenated_axis(site)
    if axis not in affine.varies_on:
        return [(affine,) * _count(site)]
    ends = np.cumsum([0, *_sizes(site, axis)])
    arrays = (affine.scale, affine.shift)
    if any(one.ndim >= -axis and one.shape[axis] not in (1, ends[-1]) for one in arrays):
        raise Refusal("joins tensors of other sizes than its output has")
    parts = [slice(start, end) for start, end in pairwise(ends)]
    return [tuple(_part(affine, axis, part) for part in parts)]


def _sizes(site: Site, axis: int) -> list[int]:
    sizes = [shape[axis] if shape is not None else None for shape in site.inputs]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise Refusal("joins tensors of unknown size")
    return known


def _part(affine: Affine, axis: int, part: slice) -> Affine:
    def cut(array: Array) -> Array:
        if array.ndim < -axis or array.shape[axis] == 1:
            return array
        return array.take(range(part.start, part.stop), axis=axis)

    return affine.each(cut)


def _concatenate_forward(site: Site, affines: Sequence[Affine]) -> Affine:
    axis = _concatenated_axis(site)
    if axis not in affines[0].varies_on and _same(affines):
        return affines[0]
    sizes = _sizes(site, axis)
    scale = _row([affine.scale for affine in affines], axis, sizes)
    shift = _row([affine.shift for affine in affines], axis, sizes)
    return Affine(compact(scale), compact(shift))


def _row(arrays: Sequence[Array], axis: int, sizes: Sequence[int]) -> Array:
    """Arrays one after the other along an axis, each as long as its tensor is there."""
    rank = max(-axis, *(array.ndim for array in arrays))
    wide = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]
    common = list(np.broadcast_shapes(*(_without(array.shape, axis) for array in wide)))
    check_size([*_without(tuple(common), axis), sum(sizes)])
    rows = []
    for array, size in zip(wide, sizes, strict=True):
        common[axis] = size
        rows.append(np.broadcast_to(array, common))
    return np.concatenate(rows, axis=axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(1 if number == len(shape) + axis else size for number, size in enumerate(shape))


# --- arithmetic with constants -------------------------------------------------------------------


def _with_constant(
    combine: Callable[[float], tuple[float, float]],
    reverse: Callable[[float], tuple[float, float]] | None,
) -> Rule:
    """An operation of a tensor and a number, or, by `reverse`, of a number and a tensor."""

    def constants(site: Site) -> tuple[Array, Array] | None:
        if len(site.operands) != 2 or site.operands.count(None) != 1:
            return None
        first = site.operands[0] is None
        number = finite_number(site.operands[1 if first else 0])
        chosen = combine if first else reverse
        if number is None or chosen is None:
            return None
        c, d = chosen(number)
        return (np.asarray(c), np.asarray(d)) if c and math.isfinite(c) else None

    return affine_layer(constants)


_SUM_WITH = _with_constant(lambda n: (1.0, n), lambda n: (1.0, n))
_DIFFERENCE_WITH = _with_constant(lambda n: (1.0, -n), lambda n: (-1.0, n))
_PRODUCT_WITH = _with_constant(lambda n: (n, 0.0), lambda n: (n, 0.0))
_QUOTIENT = _with_constant(lambda n: (1 / n if n else 0.0, 0.0), None)
_NO_CONSTANT = affine_layer(lambda site: None)


def _by_tensor(site: Site, maps: object) -> NoReturn:
    raise Refusal("divides by another tensor")


def _either(tensors: Rule, constant: Rule) -> Rule:
    """An operation of two tensors, or of a tensor and a constant."""

    def backward(site: Site, affine: Affine) -> Iterable[Maps]:
        cross = (tensors if len(site.inputs) == 2 else constant).backward
        return [] if cross is None else cross(site, affine)

    def forward(site: Site, affines: Sequence[Affine]) -> Affine:
        cross = (tensors if len(site.inputs) == 2 else constant).forward
        if cross is None:
            raise Refusal(NO_OPERATION)
        return cross(site, affines)

    return Rule(backward, forward)


# --- the rows ------------------------------------------------------------------------------------

_SUM = Rule(_sum_backward(_plus), _sum_forward(_plus))
_DIFFERENCE = Rule(_sum_backward(_minus), _sum_forward(_minus))
_AVERAGE = Rule(_alike().backward, _sum_forward(_mean))
_EXTREME = _alike(keeps_order)
_PRODUCT = Rule(_product_backward, _product_forward)
_ROW = Rule(_concatenate_backward, _concatenate_forward)

LAYERS: dict[str, Rule] = {
    # Scale to every input, shift to exactly one; forward, the same scale in all inputs.
    "Add": _SUM,
    "Subtract": _DIFFERENCE,
    # Scale and shift to every input; forward, the same map in all inputs (Average: same scale).
    "Average": _AVERAGE,
    **dict.fromkeys(("Maximum", "Minimum"), _EXTREME),
    # No shift; scale to exactly one input.
    "Multiply": _PRODUCT,
    "Concatenate": _ROW,  # static sizes, if it is along the normalized axis
}

OPERATIONS: dict[str, Rule] = {
    "Add": _either(_SUM, _SUM_WITH),
    "Subtract": _either(_DIFFERENCE, _DIFFERENCE_WITH),
    "Multiply": _either(_PRODUCT, _PRODUCT_WITH),
    **dict.fromkeys(("Divide", "TrueDivide"), _either(Rule(_by_tensor, _by_tensor), _QUOTIENT)),
    **dict.fromkeys(("Maximum", "Minimum"), _either(_EXTREME, _NO_CONSTANT)),
    "Concatenate": _ROW,
}
