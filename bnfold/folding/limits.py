"""What must not happen to a layer that takes a map in, though it is exact in real arithmetic."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bnfold.folding.affine import Array
from bnfold.folding.effect import (
    Effect,
    cast,
    dtype_beside,
    exact_numbers,
    slots_of,
    stepped,
    steps_of,
    with_rank,
)
from bnfold.folding.site import Site
from bnfold.model import catalog, hdf5
from bnfold.model.graph import Layer, Weight
from bnfold.model.policy import policy
from bnfold.model.shapes import Shape


def misplaced_bias(site: Site, effect: Effect) -> str | None:
    """A predicate when Keras adds the layer's old or new bias along another axis than its own.

    On TensorFlow, `keras.ops.add` takes an array with one axis longer than 1 for a bias on the last
    axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py).
    """
    weights = catalog.weights(site.layer) or {}
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


def out_of_range(layer: Layer, effects: Sequence[Effect]) -> str | None:
    """A predicate when a new number is lost in the dtype it is stored or computed in.

    It is lost when it is not finite, and when all of a channel's kernel falls below the smallest
    normal number, where digits go missing.
    """
    weights = catalog.weights(layer) or {}
    used = policy(layer)
    if used is None:
        return "is quantized or has a dtype policy of its own"
    dtypes = (dtype_beside(weights), _dtype(used.compute))
    for slot in slots_of(effects):
        with np.errstate(over="ignore", invalid="ignore"):
            before, scaled, exact = _largest(weights, effects, slot)
        for dtype in dtypes:
            lost = int(np.count_nonzero(~np.isfinite(cast(exact, dtype).astype(np.float64))))
            if lost:
                return (
                    f"cannot take it in: {lost} values of its folded {slot} would not be finite in "
                    f"{dtype.name}"
                )
            # A channel that was as small before, as weight decay leaves dead ones, loses nothing.
            sinks = (np.abs(scaled) < _tiny(dtype)) & (scaled != 0) & (before >= _tiny(dtype))
            faint = int(np.count_nonzero(sinks))
            if faint:
                return (
                    f"cannot take it in: {faint} channels of its folded {slot} would be too small "
                    f"for {dtype.name}"
                )
    return None


_NONE: Array = np.zeros(0)


def _largest(
    weights: dict[str, Weight], effects: Sequence[Effect], slot: str
) -> tuple[Array, Array, Array]:
    """Each channel's largest number, before and after, and numbers that must be finite.

    Scaling keeps order, so along an axis on which no factor varies the number of the largest
    magnitude stays that; NaN spreads. A bias has no scaled numbers that could be too small.
    """
    kernel = weights.get(slot)
    if any(slot in effect.biases for effect in effects):
        return _NONE, _NONE, exact_numbers(weights, effects, slot)
    if kernel is None or 0 in kernel.shape:
        exact = exact_numbers(weights, effects, slot)
        return exact, exact, exact
    values = kernel.read()
    steps = list(steps_of(effects, slot, values.ndim))
    arrays = [array for step in steps for array in step if array is not None]
    others = tuple(
        axis for axis in range(values.ndim) if all(array.shape[axis] == 1 for array in arrays)
    )
    low, high = values.min(axis=others, keepdims=True), values.max(axis=others, keepdims=True)
    bound = np.maximum(-low.astype(np.float64), high.astype(np.float64))
    scaled = stepped(bound, [(factor, None) for factor, _ in steps], slice(None))
    channels = [_channels_of(numbers, effects, slot) for numbers in (bound, scaled)]
    return channels[0], channels[1], stepped(bound, steps, slice(None))


def _channels_of(scaled: Array, effects: Sequence[Effect], slot: str) -> Array:
    """The largest numbers along the axes of the last effect, so that one small row is none."""
    factor = with_rank(effects[-1].factors.get(slot), scaled.ndim)
    if factor is None:
        return _NONE
    others = tuple(axis for axis in range(scaled.ndim) if factor.shape[axis] == 1)
    largest: Array = np.abs(scaled).max(axis=others)
    return largest


def _tiny(dtype: np.dtype[Any]) -> float:
    """The smallest normal number of a floating-point dtype."""
    if dtype.name != "bfloat16":
        return float(np.finfo(dtype).tiny)
    import ml_dtypes  # noqa: PLC0415 - few models need it

    return float(ml_dtypes.finfo(dtype).tiny)


def _dtype(name: str) -> np.dtype[Any]:
    return hdf5.bfloat16() if name == "bfloat16" else np.dtype(name)
