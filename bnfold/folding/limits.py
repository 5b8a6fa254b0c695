"""What must not happen to a layer that takes a map in, though it is exact in real arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.folding.affine import Array
from bnfold.folding.effect import (
    Effect,
    dtype_beside,
    exact_numbers,
    slots_of,
    stepped,
    steps_of,
    with_rank,
)
from bnfold.folding.site import Site
from bnfold.model import layers
from bnfold.model.container import hdf5
from bnfold.model.graph import Layer, Weight
from bnfold.model.policy import policy
from bnfold.model.rounding import rounded
from bnfold.model.shape_rules import Shape


def misplaced_bias(site: Site, effect: Effect) -> str | None:
    """A predicate when Keras adds the layer's old or new bias along another axis than its own.

    On TensorFlow, `keras.ops.add` takes an array with one axis longer than 1 for a bias on the last
    axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py).
    """
    weights = layers.weights(site.layer) or {}
    for slot, change in effect.biases.items():
        if change.appended is None:
            continue
        old = [weights[slot].shape] if slot in weights else []
        for shape in (change.shape, *old):
            if is_misplaced((*shape, *(1,) * change.appended), site.output):
                return (
                    "cannot take it in: TensorFlow adds a bias along the width when the output is, "
                    "or may be, as wide as it has channels"
                )
    return None


def is_misplaced(bias: tuple[int, ...], output: Shape | None) -> bool:
    """Whether Keras adds an array of this shape along another axis than numpy would, or may."""
    long = [axis - len(bias) for axis, size in enumerate(bias) if size > 1]
    if len(long) != 1 or long[0] == -1:
        return False
    if output is None:
        return True
    rivals = {output[-1]} if long[0] % len(output) == 1 else {output[-1], output[1]}
    return bool(rivals & {bias[long[0]], None})


@dataclass(frozen=True, eq=False)
class Extent:
    """How large the numbers of one slot get with some effects, in float64.

    Attributes:
        slot: the slot.
        before, scaled: the largest magnitudes in the file, and with the factors of the effects,
            along all axes on which factors vary; empty for a bias.
        exact: numbers that must be finite, with all of the effects; of a bias all numbers.
        dtypes: those in which the slot is stored and computed with.
    """

    slot: str
    before: Array
    scaled: Array
    exact: Array
    dtypes: tuple[np.dtype[Any], ...]

    def along(self, effect: Effect) -> "Extent":
        """The same by the channels of one of the effects, (channels,) or as its factor's axes."""
        factor = with_rank(effect.factors.get(self.slot), self.scaled.ndim)
        if factor is None or self.slot in effect.biases:
            return replace(self, before=_NONE, scaled=_NONE)
        others = tuple(axis for axis in range(self.scaled.ndim) if factor.shape[axis] == 1)
        before, scaled, exact = (
            np.abs(array).max(axis=others) if array.size else array
            for array in (self.before, self.scaled, self.exact)
        )
        return replace(self, before=before, scaled=scaled, exact=exact)

    def lost(self, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
        """Which of the `exact` numbers are not finite in a dtype."""
        return ~np.isfinite(rounded(self.exact, dtype).astype(np.float64))

    def faint(self, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
        """The channels that fall below the smallest normal number of a dtype, and were not before.

        A channel that was as small before, as weight decay leaves dead ones, loses nothing.
        """
        tiny = smallest_of(dtype.name)
        found: NDArray[np.bool_] = (self.scaled < tiny) & (self.scaled != 0) & (self.before >= tiny)
        return found


def extents(layer: Layer, effects: Sequence[Effect]) -> tuple[Extent, ...]:
    """How large each slot gets that effects change; reads each of them once."""
    weights = layers.weights(layer) or {}
    used = policy(layer)
    dtypes = (dtype_beside(weights), *([] if used is None else [dtype_named(used.compute)]))
    with np.errstate(over="ignore", invalid="ignore"):
        return tuple(
            Extent(slot, *_largest(weights, effects, slot), dtypes) for slot in slots_of(effects)
        )


def out_of_range(layer: Layer, measured: Sequence[Extent]) -> str | None:
    """A predicate when a new number is lost in the dtype it is stored or computed in.

    It is lost when it is not finite, and when all of a channel's kernel falls below the smallest
    normal number, where digits go missing. Where that does no harm, `dead` leaves no such kernel.
    """
    if policy(layer) is None:
        return "is quantized or has a dtype policy of its own"
    loss = loss_of(measured, "folded ")
    return None if loss is None else f"cannot take it in: {loss}"


def loss_of(measured: Sequence[Extent], kind: str = "") -> str | None:
    """What new numbers would lose in the dtypes that they are stored or computed in."""
    for extent in measured:
        for dtype in extent.dtypes:
            lost = int(np.count_nonzero(extent.lost(dtype)))
            if lost:
                return (
                    f"{lost} values of its {kind}{extent.slot} would not be finite in {dtype.name}"
                )
            faint = int(np.count_nonzero(extent.faint(dtype)))
            if faint:
                return (
                    f"{faint} channels of its {kind}{extent.slot} would be too small for "
                    f"{dtype.name}"
                )
    return None


_NONE: Array = np.zeros(0)


def _largest(
    weights: dict[str, Weight], effects: Sequence[Effect], slot: str
) -> tuple[Array, Array, Array]:
    """The largest numbers of a slot, before and after, and numbers that must be finite.

    Scaling keeps order, so along an axis on which no factor varies the number of the largest
    magnitude stays that; NaN spreads. A bias has no scaled numbers that could be too small.
    """
    kernel = weights.get(slot)
    if any(slot in effect.biases for effect in effects):
        return _NONE, _NONE, exact_numbers(weights, effects, slot)
    if kernel is None or 0 in kernel.shape:
        exact = exact_numbers(weights, effects, slot)
        return exact, exact, exact
    steps = list(steps_of(effects, slot, len(kernel.shape)))
    arrays = [array for step in steps for array in step if array is not None]
    others = tuple(
        axis for axis in range(len(kernel.shape)) if all(array.shape[axis] == 1 for array in arrays)
    )
    bound = _largest_along(kernel, others)
    scaled = stepped(bound, [(factor, None) for factor, _ in steps], slice(None))
    return bound, scaled, stepped(bound, steps, slice(None))


def _largest_along(kernel: Weight, axes: tuple[int, ...]) -> Array:
    """The largest magnitudes along some axes, which keep size 1; read a part at a time."""
    lead = next((n for n in range(len(kernel.shape)) if n not in axes), len(kernel.shape))
    if lead == 0 or not isinstance(kernel.read, hdf5.Stored):
        values = kernel.read()
        return _magnitude(
            values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)
        )
    within = (0, *(1 + axis - lead for axis in axes if axis >= lead))
    pieces = (
        (piece.min(axis=within), piece.max(axis=within)) for piece in kernel.read.pieces(lead)
    )
    low, high = reduce(lambda a, b: (np.minimum(a[0], b[0]), np.maximum(a[1], b[1])), pieces)
    shape = [1 if axis in axes else size for axis, size in enumerate(kernel.shape)]
    return _magnitude(low, high).reshape(shape)


def _magnitude(low: NDArray[Any], high: NDArray[Any]) -> Array:
    return np.maximum(-low.astype(np.float64), high.astype(np.float64))


def smallest_of(name: str) -> float:
    """The smallest normal number of a floating-point dtype."""
    return 2.0**-126 if name == "bfloat16" else float(np.finfo(name).tiny)


def unit_of(name: str) -> float:
    """The largest relative error of rounding to a floating-point dtype."""
    return 2.0**-8 if name == "bfloat16" else float(np.finfo(name).eps) / 2


def largest_of(name: str) -> float:
    """The largest finite number of a floating-point dtype."""
    return 255.0 * 2.0**120 if name == "bfloat16" else float(np.finfo(name).max)


def dtype_named(name: str) -> np.dtype[Any]:
    """Numpy's dtype of this name, "bfloat16" among them."""
    return hdf5.bfloat16() if name == "bfloat16" else np.dtype(name)
