"""How an affine map crosses layers that join several tensors."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from bnfold.folding.affine import IDENTITY, NOTHING, Affine, Array, compact
from bnfold.folding.crossing import Backward, Check, Forward, Maps, Rule, keeps_order, no_shift
from bnfold.folding.site import Site


def _join_problem(site: Site, affines: Iterable[Affine]) -> str | None:
    """Wrong if a tensor is spread over an axis along which a map varies.

    A map cannot be put on a branch of size 1 there. A merging layer with inputs of different ranks
    adds axes of its own.
    """
    if site.masked:
        return "merges tensors that may be masked"
    if site.output is None or any(shape is None for shape in site.inputs):
        return "joins tensors of unknown shape"
    rank = len(site.output)
    shapes = [shape for shape in site.inputs if shape is not None]
    if any(len(shape) != rank for shape in shapes):
        return "joins tensors of different ranks"
    for axis in frozenset[int]().union(*(affine.varies_on for affine in affines)):
        sizes = {shape[axis] for shape in shapes}
        if len(sizes) > 1 or None in sizes:
            return "spreads one of its inputs over the normalized axis"
        # keras.ops.add takes what has one axis longer than 1 for a bias, on the last axis first.
        if axis != -1 and any(shape[1:] != shapes[0][1:] for shape in shapes):
            return "spreads one of its inputs"
    return None


def _count(site: Site) -> int:
    return len(site.inputs)


def _sum_backward(signs: Callable[[int], Sequence[float]]) -> Backward:
    """Every input takes the scale; one takes the shift, with its sign."""

    def backward(site: Site, affine: Affine) -> Iterable[Maps] | str:
        problem = _join_problem(site, [affine])
        if problem is not None:
            return problem
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

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        problem = _join_problem(site, affines) or _differ(affines, scale_only=True)
        if problem is not None:
            return problem
        shift = NOTHING
        for weight, affine in zip(weights(len(affines)), affines, strict=True):
            shift = shift + weight * affine.shift
        return Affine(affines[0].scale, shift)

    return forward


def _differ(affines: Sequence[Affine], *, scale_only: bool = False) -> str | None:
    maps = [affine.scale_only() if scale_only else affine for affine in affines]
    if all(maps[0].same_as(other) for other in maps[1:]):
        return None
    what = "scaled" if scale_only else "normalized"
    return f"joins it with a branch that is not {what} in the same way"


def _plus(count: int) -> Sequence[float]:
    return [1.0] * count


def _minus(count: int) -> Sequence[float]:
    return [1.0] + [-1.0] * (count - 1)


def _mean(count: int) -> Sequence[float]:
    return [1.0 / count] * count


def _alike(*checks: Check) -> Rule:
    """Every input takes the whole map: the layer picks or averages, so f(s x + t) = s f(x) + t."""

    def problem_of(site: Site, affines: Sequence[Affine]) -> str | None:
        problems = [check(site, affine) for check in checks for affine in affines]
        return next(filter(None, problems), None) or _join_problem(site, affines)

    def backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
        return problem_of(site, [affine]) or [(affine,) * _count(site)]

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        return problem_of(site, affines) or _differ(affines) or affines[0]

    return Rule(backward, forward)


def _product_backward(site: Site, affine: Affine) -> Iterable[Maps] | str:
    problem = no_shift(site, affine) or _join_problem(site, [affine])
    if problem is not None:
        return problem
    count = _count(site)
    return (
        (*(IDENTITY,) * slot, affine, *(IDENTITY,) * (count - slot - 1)) for slot in range(count)
    )


def _product_forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
    problems = [no_shift(site, affine) for affine in affines]
    problem = next(filter(None, problems), None) or _join_problem(site, affines)
    if problem is not None:
        return problem
    scale = np.ones(())
    for affine in affines:
        scale = scale * affine.scale
    return Affine(scale, NOTHING)


def _concatenated_axis(site: Site) -> int | str:
    """The axis along which inputs are put together, counted from the end."""
    shapes = [shape for shape in site.inputs if shape is not None]
    if len(shapes) != len(site.inputs) or len({len(shape) for shape in shapes}) != 1:
        return "joins tensors of unknown shape"
    axis, rank = site.setting("axis", -1), len(shapes[0])
    if type(axis) is not int or not -rank <= axis < rank or axis % rank == 0:
        return "joins along no axis that is known"
    return axis if axis < 0 else axis - rank


def _concatenate_backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
    axis = _concatenated_axis(site)
    if isinstance(axis, str):
        return axis
    if axis not in affine.varies_on:
        return [(affine,) * _count(site)]
    sizes = _sizes(site, axis)
    if sizes is None:
        return "joins tensors of unknown size"
    ends = np.cumsum([0, *sizes])
    parts = [slice(start, end) for start, end in pairwise(ends)]
    return [tuple(_part(affine, axis, part) for part in parts)]


def _sizes(site: Site, axis: int) -> list[int] | None:
    sizes = [shape[axis] if shape is not None else None for shape in site.inputs]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(sizes) else None


def _part(affine: Affine, axis: int, part: slice) -> Affine:
    def cut(array: Array) -> Array:
        if array.ndim < -axis or array.shape[axis] == 1:
            return array
        return array.take(range(part.start, part.stop), axis=axis)

    return affine.each(cut)


def _concatenate_forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
    axis = _concatenated_axis(site)
    if isinstance(axis, str):
        return axis
    if axis not in affines[0].varies_on and _differ(affines) is None:
        return affines[0]
    sizes = _sizes(site, axis)
    if sizes is None:
        return "joins tensors of unknown size"
    scale = _row([affine.scale for affine in affines], axis, sizes)
    shift = _row([affine.shift for affine in affines], axis, sizes)
    return Affine(compact(scale), compact(shift))


def _row(arrays: Sequence[Array], axis: int, sizes: Sequence[int]) -> Array:
    """Arrays one behind the other along an axis, each as long as its tensor is there."""
    rank = max(-axis, *(array.ndim for array in arrays))
    wide = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]
    common = list(np.broadcast_shapes(*(_without(array.shape, axis) for array in wide)))
    rows = []
    for array, size in zip(wide, sizes, strict=True):
        common[axis] = size
        rows.append(np.broadcast_to(array, common))
    return np.concatenate(rows, axis=axis)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(1 if number == len(shape) + axis else size for number, size in enumerate(shape))


SUM = Rule(_sum_backward(_plus), _sum_forward(_plus))
DIFFERENCE = Rule(_sum_backward(_minus), _sum_forward(_minus))
AVERAGE = Rule(_alike().backward, _sum_forward(_mean))
EXTREME = _alike(keeps_order)
PRODUCT = Rule(_product_backward, _product_forward)
ROW = Rule(_concatenate_backward, _concatenate_forward)
