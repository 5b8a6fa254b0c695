"""How an affine map crosses a layer that is transparent to it.

Backward, f(x) is followed by the map A, and the rule finds a map B with A(f(x)) = f(B(x)); for a
layer that reads several tensors one map for each, and where there is a choice several answers.
Forward, f is applied to A(x), and the rule finds B with f(A(x)) = B(f(x)).

One row a class, with its condition as a comment: it is wrong if that does not hold. A class without
a row is unknown and blocks. A refusal is the predicate of a sentence about the layer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bnfold.folding.affine import IDENTITY, NOTHING, Affine, Array, channel_count, compact
from bnfold.folding.site import Site
from bnfold.model.graph import Layer
from bnfold.model.shapes import Shape

Maps = tuple[Affine, ...]
"""One map for each tensor that a layer reads."""

Backward = Callable[[Site, Affine], Sequence[Maps] | str]
Forward = Callable[[Site, Sequence[Affine]], Affine | str]


@dataclass(frozen=True)
class Rule:
    """How a map crosses a layer from its output to its inputs, and the other way."""

    backward: Backward
    forward: Forward


def rule_for(layer: Layer) -> Rule | None:
    """The row of a layer's class; None where it is unknown."""
    if not layer.builtin:
        return None
    return (OPERATIONS if layer.is_operation else LAYERS).get(layer.class_name)


# --- layers that read one tensor -----------------------------------------------------------------

Check = Callable[[Site, Affine], str | None]
Move = Callable[[Site, Affine], Affine | str]


def _stay(site: Site, affine: Affine) -> Affine:
    return affine


def _single(*checks: Check, to_input: Move = _stay, to_output: Move = _stay) -> Rule:
    """A layer of one input: the map moves as its tensor does, if the checks find nothing."""

    def moved(site: Site, affine: Affine, move: Move) -> Affine | str:
        if len(site.inputs) != 1:
            return f"reads {len(site.inputs)} tensors"
        problems = (check(site, affine) for check in checks)
        problem = next((found for found in problems if found is not None), None)
        return move(site, affine) if problem is None else problem

    def backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
        found = moved(site, affine, to_input)
        return found if isinstance(found, str) else [(found,)]

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        return moved(site, affines[0], to_output)

    return Rule(backward, forward)


def not_in_training(site: Site, affine: Affine) -> str | None:
    """Wrong if the layer drops or adds something at random."""
    return "is called with training=True" if site.training else None


def keeps_order(site: Site, affine: Affine) -> str | None:
    """Wrong if a map turns the largest number into the smallest: max(s x) is not s max(x)."""
    negative = affine.scale < 0
    if not negative.any():
        return None
    return f"needs every scale positive, and {channel_count(affine, negative)} are negative"


def no_shift(site: Site, affine: Affine) -> str | None:
    """Wrong if 0 does not stay 0."""
    if not affine.has_shift:
        return None
    return f"needs a shift of zero, and {channel_count(affine, affine.shift)} have another"


def _space(site: Site, rank: int) -> frozenset[int]:
    """The spatial axes of a tensor of this rank, counted from the end."""
    count = rank - 2
    last = -1 if site.channels_first else -2
    return frozenset(range(last, last - count, -1))


def constant_in_space(site: Site, affine: Affine) -> str | None:
    """Wrong if the map differs between places that the layer mixes or moves."""
    rank = _rank_of_class(site.layer)
    if affine.varies_on & _space(site, rank):
        return "mixes what is normalized along a spatial axis"
    return None


def _rank_of_class(layer: Layer) -> int:
    """The rank that a class's name tells; what works on images without saying so has four axes."""
    name = layer.class_name
    return int(name[-2]) + 2 if name[-2:] in ("1D", "2D", "3D") else 4


def plain_activation(site: Site, affine: Affine) -> str | None:
    """Wrong if the function is not f(s x) = s f(x) for s >= 0, or not linear."""
    activation = site.setting("activation")
    if activation == "linear":
        return None
    if activation not in ("relu", "leaky_relu"):
        return f"applies {activation if isinstance(activation, str) else 'an activation'}"
    return no_shift(site, affine) or keeps_order(site, affine)


def plain_relu(site: Site, affine: Affine) -> str | None:
    """Wrong if the function bends elsewhere than at 0."""
    if site.setting("max_value") is not None:
        return "cuts off at its max_value"
    if site.setting("threshold") not in (None, 0):
        return "has a threshold"
    return no_shift(site, affine) or keeps_order(site, affine)


def no_padding(site: Site, affine: Affine) -> str | None:
    """Wrong if the layer fills up with zeros, which are not scaled to anything but zero."""
    return "pads with zeros" if site.setting("pad_to_aspect_ratio") else None


# Global pooling takes the spatial axes away, or leaves them with size 1 (keepdims).


def _before_global(site: Site, affine: Affine) -> Affine:
    if site.setting("keepdims") or not site.channels_first:
        return affine
    ones = (1,) * (_rank_of_class(site.layer) - 2)
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


def _permuted(affine: Affine, order: Sequence[int]) -> Affine:
    def move(array: Array) -> Array:
        wide: Array = array.reshape((1,) * (len(order) - array.ndim) + array.shape)
        return wide.transpose(order)

    return affine.each(move)


def _before_permute(site: Site, affine: Affine) -> Affine | str:
    dims = _dims(site)
    if dims is None:
        return "has no known order of axes"
    return _permuted(affine, [dims.index(axis) for axis in range(len(dims))])


def _behind_permute(site: Site, affine: Affine) -> Affine | str:
    dims = _dims(site)
    return "has no known order of axes" if dims is None else _permuted(affine, dims)


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
    return _permuted(found, [order.index(axis) for axis in range(len(order))])


def _behind_flatten(site: Site, affine: Affine) -> Affine | str:
    moved = _channels_moved(site) if site.channels_first else None
    if moved is None:
        return _behind_reshape(site, affine)
    shape, order = moved
    return _reshaped(_permuted(affine, order), shape, site.output)


# --- a number and a tensor: c * x + d ------------------------------------------------------------


def _linear(constants: Callable[[Site], tuple[float, float] | None]) -> Rule:
    """A layer that computes c * x + d, which is an affine map of its own.

    Backward s' = s, t' = (s d + t - d) / c; forward s' = s, t' = c t + d - s d.
    """

    def to_input(site: Site, affine: Affine) -> Affine | str:
        found = constants(site)
        if found is None:
            return "is no arithmetic with one number that could be undone"
        c, d = found
        return Affine(affine.scale, (affine.scale * d + affine.shift - d) / c)

    def to_output(site: Site, affine: Affine) -> Affine | str:
        found = constants(site)
        if found is None:
            return "is no arithmetic with one number that could be undone"
        c, d = found
        return Affine(affine.scale, c * affine.shift + d - affine.scale * d)

    return _single(to_input=to_input, to_output=to_output)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _usable(c: float | None, d: float | None) -> tuple[float, float] | None:
    return None if c is None or d is None or c == 0 else (c, d)


def _rescaling(site: Site) -> tuple[float, float] | None:
    scale, offset = _number(site.setting("scale")), _number(site.setting("offset", 0))
    if scale is None or offset is None:
        return None
    # Keras makes float32 tensors of the two before it casts them to what the layer computes in.
    return _usable(float(np.float32(scale)), float(np.float32(offset)))


def _with_number(
    combine: Callable[[float], tuple[float, float]],
    reverse: Callable[[float], tuple[float, float]] | None,
) -> Callable[[Site], tuple[float, float] | None]:
    """The c and d of an operation of a tensor and a number, or of a number and a tensor."""

    def constants(site: Site) -> tuple[float, float] | None:
        if len(site.operands) != 2 or site.operands.count(None) != 1:
            return None
        first = site.operands[0] is None
        number = _number(site.operands[1 if first else 0])
        chosen = combine if first else reverse
        if number is None or chosen is None or (chosen is _divided and number == 0):
            return None
        return _usable(*chosen(number))

    return constants


def _divided(number: float) -> tuple[float, float]:
    return 1 / number, 0.0


# --- layers that join several tensors ------------------------------------------------------------


def _join_problem(site: Site, affines: Iterable[Affine]) -> str | None:
    """Wrong if a tensor is spread over an axis along which a map varies.

    A map cannot be put on a branch of size 1 there. A merging layer with inputs of different ranks
    adds axes of its own.
    """
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

    def backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
        problem = _join_problem(site, [affine])
        if problem is not None:
            return problem
        scaled = [affine.scale_only()] * _count(site)
        if not affine.has_shift:
            return [tuple(scaled)]
        return [
            (*scaled[:slot], Affine(affine.scale, sign * affine.shift), *scaled[slot + 1 :])
            for slot, sign in enumerate(signs(_count(site)))
        ]

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
    return f"joins it with what is not {what} alike"


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


def _product_backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
    problem = no_shift(site, affine) or _join_problem(site, [affine])
    if problem is not None:
        return problem
    count = _count(site)
    alone = [
        [IDENTITY] * slot + [affine] + [IDENTITY] * (count - slot - 1) for slot in range(count)
    ]
    return [tuple(maps) for maps in alone]


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


# --- the table -----------------------------------------------------------------------------------

_ANY = _single()
_RANDOM = _single(not_in_training)
_HOMOGENEOUS = _single(no_shift, keeps_order)
_IN_SPACE = _single(constant_in_space)
_SUM = Rule(_sum_backward(_plus), _sum_forward(_plus))
_DIFFERENCE = Rule(_sum_backward(_minus), _sum_forward(_minus))
_PRODUCT = Rule(_product_backward, _product_forward)
_ROW = Rule(_concatenate_backward, _concatenate_forward)


def _each_rank(*kinds: str) -> list[str]:
    return [f"{kind}{rank}D" for kind in kinds for rank in (1, 2, 3)]


LAYERS: Mapping[str, Rule] = {
    # Nothing happens at inference.
    **dict.fromkeys(("Identity", "ActivityRegularization"), _ANY),
    # Nothing happens at inference, if not called with training=True.
    **dict.fromkeys(("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"), _RANDOM),
    **dict.fromkeys(_each_rank("SpatialDropout"), _RANDOM),
    # A function with f(s x) = s f(x) for s >= 0: no shift, every scale positive.
    "Activation": _single(plain_activation),  # 'linear' whatever the map
    "ReLU": _single(plain_relu),  # no max_value, no threshold
    **dict.fromkeys(("LeakyReLU", "PReLU"), _HOMOGENEOUS),
    # c * x + d, with numbers for c and d, and c not 0.
    "Rescaling": _linear(_rescaling),
    # Means of several places, in which padding does not count: the map is the same in all places.
    **dict.fromkeys(_each_rank("AveragePooling", "AdaptiveAveragePooling"), _IN_SPACE),
    **dict.fromkeys(_each_rank("UpSampling"), _IN_SPACE),
    "Resizing": _single(no_padding, constant_in_space),  # no pad_to_aspect_ratio
    # A choice of places, whatever is in them: the map is the same in all places.
    **dict.fromkeys((*_each_rank("Cropping"), "CenterCrop"), _IN_SPACE),
    # The largest of several places: besides, every scale positive.
    **dict.fromkeys(
        _each_rank("MaxPooling", "AdaptiveMaxPooling"), _single(keeps_order, constant_in_space)
    ),
    # The same over all places.
    **dict.fromkeys(
        _each_rank("GlobalAveragePooling"),
        _single(to_input=_before_global, to_output=_behind_global),
    ),
    **dict.fromkeys(
        _each_rank("GlobalMaxPooling"),
        _single(keeps_order, to_input=_before_global, to_output=_behind_global),
    ),
    # Zeros at the edges stay zeros: no shift, the same map in all places.
    **dict.fromkeys(_each_rank("ZeroPadding"), _single(no_shift, constant_in_space)),
    # Numbers change their places only.
    "Permute": _single(to_input=_before_permute, to_output=_behind_permute),
    "RepeatVector": _single(to_input=_before_repeat),  # the same in all repetitions
    "Reshape": _single(to_input=_before_reshape, to_output=_behind_reshape),  # static sizes
    "Flatten": _single(to_input=_before_flatten, to_output=_behind_flatten),  # static sizes
    "Concatenate": _ROW,  # static sizes, if it is along the normalized axis
    # Scale to every input, shift to exactly one; forward, the same scale in all inputs.
    "Add": _SUM,
    "Subtract": _DIFFERENCE,
    # Scale and shift to every input; forward, the same map in all inputs (Average: same scale).
    "Average": Rule(_alike().backward, _sum_forward(_mean)),
    **dict.fromkeys(("Maximum", "Minimum"), _alike(keeps_order)),
    # No shift; scale to exactly one input.
    "Multiply": _PRODUCT,
}
"""Keras' own layers, with the condition under which a map crosses them."""


def _either(joins: Rule, numbers: Rule) -> Rule:
    """An operation of two tensors, or of a tensor and a number."""

    def backward(site: Site, affine: Affine) -> Sequence[Maps] | str:
        return (joins if _count(site) == 2 else numbers).backward(site, affine)

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        return (joins if _count(site) == 2 else numbers).forward(site, affines)

    return Rule(backward, forward)


def _negated(site: Site) -> tuple[float, float]:
    return -1.0, 0.0


def _no_number(site: Site) -> None:
    return None


_QUOTIENT = _linear(_with_number(_divided, None))

OPERATIONS: Mapping[str, Rule] = {
    "Add": _either(_SUM, _linear(_with_number(lambda n: (1.0, n), lambda n: (1.0, n)))),
    "Subtract": _either(
        _DIFFERENCE, _linear(_with_number(lambda n: (1.0, -n), lambda n: (-1.0, n)))
    ),
    "Multiply": _either(_PRODUCT, _linear(_with_number(lambda n: (n, 0.0), lambda n: (n, 0.0)))),
    "Divide": _QUOTIENT,  # by a number
    "TrueDivide": _QUOTIENT,
    "Negative": _linear(_negated),
    **dict.fromkeys(("Maximum", "Minimum"), _either(_alike(keeps_order), _linear(_no_number))),
    "Concatenate": _ROW,
    "Relu": _HOMOGENEOUS,
}
"""The operations of keras.ops, on the same conditions; numpy's broadcasting is refused."""
