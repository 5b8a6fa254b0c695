"""How an affine map crosses an operation of keras.ops, on the same conditions as the layers.

An operation is known by the class name that Keras writes for it. Its settings stand in its config,
or among its operands. What broadcasts by numpy's rules is refused, and so is what touches the axis
of the batch.

Arithmetic with constants is an affine map of its own, c * x + d, with numbers or arrays for c and
d that follow from the operation:

    x + n    c = 1      d = n           n - x    c = -1     d = n
    x - n    c = 1      d = -n          x * n    c = n      d = 0
    x / n    c = 1 / n  d = 0           -x       c = -1     d = 0
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.folding import joins, moves, weights
from bnfold.folding.affine import Affine, Array, compact
from bnfold.folding.crossing import (
    Check,
    Maps,
    Rule,
    constant_in_space,
    keeps_order,
    linear,
    no_shift,
    single,
)
from bnfold.folding.site import Site
from bnfold.model.graph import finite_number

# --- arithmetic with constants -------------------------------------------------------------------

_Constants = tuple[Array, Array]


def _constant(site: Site, value: Any) -> Array | None:
    """A number, or an array that broadcasts against the tensor without making it larger."""
    if not isinstance(value, dict):
        number = finite_number(value)
        return None if number is None else np.asarray(number)
    if value.get("class_name") not in ("__numpy__", "__tensor__"):
        return None
    try:
        found: Array = np.asarray((value.get("config") or {}).get("value"), np.float64)
    except (OverflowError, TypeError, ValueError):
        return None
    shape = site.output
    if shape is not None and found.ndim == len(shape) and found.shape[0] == 1:
        found = found[0]  # the same for the whole batch
    fits = shape is not None and shape == site.inputs[0] and found.ndim < len(shape)
    return compact(found) if fits and np.isfinite(found).all() else None


def _is_taken_for_a_bias(site: Site) -> bool:
    """Whether Keras may add a constant along another axis than numpy would: see `limits`."""
    arrays = (value for value in site.operands if isinstance(value, dict))
    values = ((array.get("config") or {}).get("value") for array in arrays)
    shapes = [np.asarray(value, object).shape for value in values]
    return any(weights.is_misplaced(shape, site.output) for shape in shapes)


def _with_constant(
    combine: Callable[[Array], tuple[Any, Any]],
    reverse: Callable[[Array], tuple[Any, Any]] | None,
    *,
    adds: bool = False,
) -> Rule:
    """An operation of a tensor and a constant, or, by `reverse`, of a constant and a tensor."""

    def constants(site: Site) -> _Constants | None:
        if len(site.operands) != 2 or site.operands.count(None) != 1:
            return None
        if adds and _is_taken_for_a_bias(site):
            return None
        first = site.operands[0] is None
        value = _constant(site, site.operands[1 if first else 0])
        chosen = combine if first else reverse
        if value is None or chosen is None:
            return None
        with np.errstate(divide="ignore"):
            c, d = (np.asarray(one, np.float64) for one in chosen(value))
        return (c, d) if np.isfinite(c).all() and (c != 0).all() else None

    return linear(constants)


_SUM_WITH = _with_constant(lambda n: (1, n), lambda n: (1, n), adds=True)
_DIFFERENCE_WITH = _with_constant(lambda n: (1, -n), lambda n: (-1, n))
_PRODUCT_WITH = _with_constant(lambda n: (n, 0), lambda n: (n, 0))
_QUOTIENT = _with_constant(lambda n: (1 / n, 0), None)
_NO_QUOTIENT = Rule(lambda site, affine: _BY_TENSOR, lambda site, affines: _BY_TENSOR)
_BY_TENSOR = "divides by another tensor"
_NEGATIVE = linear(lambda site: (np.asarray(-1.0), np.zeros(())))
_NO_CONSTANT = linear(lambda site: None)


def _either(tensors: Rule, constant: Rule) -> Rule:
    """An operation of two tensors, or of a tensor and a constant."""

    def backward(site: Site, affine: Affine) -> Iterable[Maps] | str:
        return (tensors if len(site.inputs) == 2 else constant).backward(site, affine)

    def forward(site: Site, affines: Sequence[Affine]) -> Affine | str:
        return (tensors if len(site.inputs) == 2 else constant).forward(site, affines)

    return Rule(backward, forward)


# --- axes ----------------------------------------------------------------------------------------


_ODD_AXES = "works along axes that are not known, or along the batch"


def _axes(site: Site, setting: str = "axis") -> list[int] | None:
    """The axes of the input that a setting names, from the end; None if the batch is one."""
    shape, value = site.inputs[0], site.setting(setting)
    listed = value if isinstance(value, list) else [value]
    if shape is None or any(type(axis) is not int for axis in listed):
        return None
    rank = len(shape)
    if any(not -rank <= axis < rank or axis % rank == 0 for axis in listed):
        return None
    return sorted(axis % rank - rank for axis in listed)


def _constant_along(site: Site, affine: Affine) -> str | None:
    """Wrong if the map differs between the places that the operation mixes or moves."""
    axes = _axes(site)
    if axes is None:
        return _ODD_AXES
    if affine.varies_on & set(axes):
        return "mixes what is normalized along its axis"
    return None


def _wide(array: Array, rank: int) -> Array:
    """An array with all axes of a sample of this rank, batch included."""
    return array.reshape((1,) * (rank - 1 - array.ndim) + array.shape)


# A reduction takes its axes away, or leaves them with size 1 (keepdims).


def _before_reduction(site: Site, affine: Affine) -> Affine | str:
    axes, rank = _axes(site), len(site.inputs[0] or ())
    if axes is None:
        return _ODD_AXES
    if site.setting("keepdims"):
        return affine
    places = [axis + rank - 1 for axis in axes]
    return affine.each(lambda array: np.expand_dims(_wide(array, rank - len(axes)), tuple(places)))


def _behind_reduction(site: Site, affine: Affine) -> Affine | str:
    axes, rank = _axes(site), len(site.inputs[0] or ())
    problem = _constant_along(site, affine)
    if axes is None or problem is not None:
        return problem or _ODD_AXES
    if site.setting("keepdims"):
        return affine
    return affine.each(lambda array: _wide(array, rank).squeeze(tuple(axes)))


def _from_the_tensor_alone(site: Site, affine: Affine) -> str | None:
    """Wrong if a number from elsewhere takes part."""
    return None if site.setting("initial") is None else "compares with an initial value"


def _reduction(*checks: Check) -> Rule:
    return single(*checks, to_input=_before_reduction, to_output=_behind_reduction)


def _terms(site: Site) -> int | None:
    """How many numbers a sum adds up."""
    axes, shape = _axes(site), site.inputs[0]
    sizes = [None if shape is None else shape[axis] for axis in axes or ()]
    known = [size for size in sizes if size]
    return math.prod(known) if axes and len(known) == len(sizes) else None


def _before_sum(site: Site, affine: Affine) -> Affine | str:
    """A sum of n numbers: s' = s, t' = t / n."""
    count = _terms(site)
    if count is None:
        return "adds up a number of values that is not known"
    return _before_reduction(site, Affine(affine.scale, affine.shift / count))


def _behind_sum(site: Site, affine: Affine) -> Affine | str:
    """A sum of n numbers: s' = s, t' = n t."""
    count = _terms(site)
    if count is None:
        return "adds up a number of values that is not known"
    return _behind_reduction(site, Affine(affine.scale, count * affine.shift))


# An order of axes: output axis n is input axis order[n], batch included.


def _transposed(site: Site) -> Sequence[int] | None:
    axes, rank = site.setting("axes"), len(site.inputs[0] or ())
    return axes if isinstance(axes, list) and sorted(axes) == [*range(rank)] else None


def _swapped(site: Site) -> Sequence[int] | None:
    rank = len(site.inputs[0] or ())
    pair = [site.setting("axis1"), site.setting("axis2")]
    if any(type(axis) is not int or not -rank <= axis < rank for axis in pair):
        return None
    order = [*range(rank)]
    one, two = (axis % rank for axis in pair)
    order[one], order[two] = order[two], order[one]
    return order


def _moved(site: Site) -> Sequence[int] | None:
    rank = len(site.inputs[0] or ())
    pair = [site.setting("source"), site.setting("destination")]
    if any(type(axis) is not int or not -rank <= axis < rank for axis in pair):
        return None
    source, destination = (axis % rank for axis in pair)
    order = [axis for axis in range(rank) if axis != source]
    order.insert(destination, source)
    return order


def _permutation(order_of: Callable[[Site], Sequence[int] | None]) -> Rule:
    def known(site: Site) -> list[int] | None:
        order = order_of(site)
        return None if not order or order[0] != 0 else [axis - 1 for axis in order[1:]]

    def to_input(site: Site, affine: Affine) -> Affine | str:
        order = known(site)
        if order is None:
            return "has no known order of axes, or moves the batch"
        return moves.permuted(affine, [order.index(axis) for axis in range(len(order))])

    def to_output(site: Site, affine: Affine) -> Affine | str:
        order = known(site)
        if order is None:
            return "has no known order of axes, or moves the batch"
        return moves.permuted(affine, order)

    return single(to_input=to_input, to_output=to_output)


# --- padding and slices --------------------------------------------------------------------------


def _padding(site: Site, affine: Affine) -> str | None:
    """Wrong if the map varies along a padded axis, or moves the zeros that are put there."""
    widths, shape = site.setting("pad_width"), site.inputs[0]
    pairs = isinstance(widths, list) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in widths
    )
    if not pairs or shape is None or len(widths) != len(shape):
        return "pads in an unusual way"
    padded = {axis - len(shape) for axis, pair in enumerate(widths) if any(pair)}
    if -len(shape) in padded:
        return "pads the batch"
    if affine.varies_on & padded:
        return "pads along the normalized axis"
    if site.setting("mode") != "constant":
        return None  # copies of what is there
    if site.keywords.get("constant_values") not in (None, 0):
        return "pads with a number that is not zero"
    return no_shift(site, affine)


def _slices(site: Site, affine: Affine) -> str | None:
    """Wrong if the map varies along an axis from which something is cut."""
    cut = _cut_axes(site)
    if cut is None:
        return "takes a part in an unusual way"
    return "takes a part of the normalized axis" if affine.varies_on & cut else None


def _cut_axes(site: Site) -> set[int] | None:
    """The axes, from the end, of which a slice may leave something out or turn it round."""
    shape, index = site.inputs[0], site.operands[1] if len(site.operands) == 2 else None
    index = index if isinstance(index, list) else [index]
    kinds = [part.get("class_name") if isinstance(part, dict) else None for part in index]
    if shape is None or not set(kinds) <= {"__slice__", "__ellipsis__"}:
        return None
    if "__ellipsis__" in kinds:
        place = kinds.index("__ellipsis__")
        fill = len(shape) - len(index) + 1
        index = [*index[:place], *[_WHOLE] * fill, *index[place + 1 :]]
    if len(index) > len(shape) or any(part["class_name"] != "__slice__" for part in index):
        return None
    cut = {
        axis - len(shape)
        for axis, part in enumerate(index)
        if any(bound is not None for bound in part["config"].values())
    }
    return None if -len(shape) in cut else cut


_WHOLE: dict[str, Any] = {"class_name": "__slice__", "config": {}}


# --- the table -----------------------------------------------------------------------------------

_ANY = single()
_EXTREME_ALONG = _reduction(keeps_order, _from_the_tensor_alone)
_ALONG = single(_constant_along)

OPERATIONS: Mapping[str, Rule] = {
    "Add": _either(joins.SUM, _SUM_WITH),
    "Subtract": _either(joins.DIFFERENCE, _DIFFERENCE_WITH),
    "Multiply": _either(joins.PRODUCT, _PRODUCT_WITH),
    **dict.fromkeys(("Divide", "TrueDivide"), _either(_NO_QUOTIENT, _QUOTIENT)),
    "Negative": _NEGATIVE,
    **dict.fromkeys(("Maximum", "Minimum"), _either(joins.EXTREME, _NO_CONSTANT)),
    "Concatenate": joins.ROW,
    **dict.fromkeys(("Copy", "StopGradient"), _ANY),
    **dict.fromkeys(("Relu", "LeakyRelu"), single(no_shift, keeps_order)),
    # Over axes along which the map does not vary; the largest or smallest: besides, no scale < 0.
    "Mean": _reduction(),
    "Sum": single(to_input=_before_sum, to_output=_behind_sum),  # of a known number
    **dict.fromkeys(("Max", "Amax", "Min", "Amin"), _EXTREME_ALONG),
    "AveragePool": single(constant_in_space),
    "MaxPool": single(keeps_order, constant_in_space),
    # Numbers change their places only.
    "Transpose": _permutation(_transposed),
    "Swapaxes": _permutation(_swapped),
    "Moveaxis": _permutation(_moved),
    **dict.fromkeys(("Reshape", "ExpandDims", "Squeeze"), moves.RESHAPE),
    **dict.fromkeys(("Flip", "Roll", "Repeat"), _ALONG),
    "GetItem": single(_slices),
    "Pad": single(_padding),  # with zeros: no shift
}
"""The operations of keras.ops, with the condition under which a map crosses them."""
