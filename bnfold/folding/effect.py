"""What affine maps do to a layer's weights, and the layer with all of it done.

What several maps do to one layer is put together in float64 and rounded once, to the dtype of the
variable.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.folding.affine import NOTHING, Array
from bnfold.model import layers
from bnfold.model.graph import Json, Layer, Weight
from bnfold.model.rounding import rounded

_BLOCK = 1 << 20
"""How many numbers are held in float64 at once."""

Read = Callable[[str], Array]
"""The numbers of a slot in float64, as they are before an effect."""


@dataclass(frozen=True, eq=False)
class BiasChange:
    """`scale * bias + shift`, of a bias that has `shape` afterwards.

    `appended` is how many axes of size 1 Keras puts behind its own when it adds it to the output;
    None where it adds it in a way that cannot go wrong.
    """

    shape: tuple[int, ...]
    scale: Array
    shift: Callable[[Read], Array]
    appended: int | None = None


@dataclass(frozen=True, eq=False)
class Effect:
    """What one affine map does to a layer.

    The numbers of a slot are multiplied by `factors` and then `offsets` are added; `biases` change
    likewise. `settings` are what the config must say afterwards. `times` is a size of the call's
    input that the biases depend on.
    """

    factors: Mapping[str, Array] = field(default_factory=dict)
    offsets: Mapping[str, Array] = field(default_factory=dict)
    biases: Mapping[str, BiasChange] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    times: int = 1


def take(layer: Layer, effects: Sequence[Effect]) -> Layer:
    """The layer with all effects, one after the other; new numbers are made when they are read."""
    weights = layers.weights(layer) or {}
    for effect in effects:
        layer = layer.with_config(**effect.settings)
    changed = {slot: _changed(weights, effects, slot) for slot in slots_of(effects)}
    known = {**weights, **changed}
    ordered = tuple(known[slot.name] for slot in layers.slots(layer) or ())
    renorm = (layer.weights or ())[len(weights) :]
    return replace(layer, weights=(*ordered, *renorm))


def slots_of(effects: Iterable[Effect]) -> dict[str, None]:
    """The slots that effects change, in order."""
    return dict.fromkeys(
        slot for effect in effects for slot in (*effect.factors, *effect.offsets, *effect.biases)
    )


def _changed(weights: dict[str, Weight], effects: Sequence[Effect], slot: str) -> Weight:
    old = weights.get(slot)
    changes = [effect.biases[slot] for effect in effects if slot in effect.biases]
    if not changes and old is not None:
        kernel = old
        return replace(kernel, source=None, read=lambda: _fold_kernel(kernel, effects, slot))
    dtype = old.dtype if old is not None else dtype_beside(weights)
    shape = changes[-1].shape if changes else weights["moving_mean"].shape
    name = old.name if old is not None else _new_name(weights, slot)
    return Weight(shape, dtype, lambda: rounded(exact_numbers(weights, effects, slot), dtype), name)


def _new_name(weights: dict[str, Weight], slot: str) -> str:
    """A new bias of one of two directions is named like the kernel of that direction."""
    beside = weights.get(slot.replace("bias", "kernel"))
    if beside is None or "_" not in slot or "/" not in beside.name:
        return slot
    return re.sub(r"kernel(?=[^/]*$)", "bias", beside.name)


def exact_numbers(weights: dict[str, Weight], effects: Sequence[Effect], slot: str) -> Array:
    """A slot's numbers in float64 behind some effects."""
    old = weights.get(slot)
    if old is None and slot == "gamma":  # without `scale` it is 1
        value: Array = np.ones(weights["moving_mean"].shape)
    else:
        value = NOTHING if old is None else old.read().astype(np.float64)
    for number, effect in enumerate(effects):
        if slot in effect.factors:
            value = value * effect.factors[slot]
        if slot in effect.offsets:
            value = value + effect.offsets[slot]
        change = effect.biases.get(slot)
        if change is not None:
            shift = change.shift(partial(exact_numbers, weights, effects[:number]))
            value = np.broadcast_to(value * change.scale + shift, change.shape)
    return value


def _fold_kernel(kernel: Weight, effects: Sequence[Effect], slot: str) -> NDArray[Any]:
    """A kernel's new numbers, rounded once, a block of them in float64 at a time."""
    values = kernel.read()
    folded = np.empty_like(values)
    steps = list(steps_of(effects, slot, values.ndim))
    rows = max(1, _BLOCK * values.shape[0] // max(1, values.size))
    for start in range(0, values.shape[0], rows):
        block = slice(start, start + rows)
        folded[block] = rounded(stepped(values[block], steps, block), values.dtype)
    return folded


_Step = tuple[Array | None, Array | None]


def steps_of(effects: Iterable[Effect], slot: str, rank: int) -> Iterator[_Step]:
    """What each effect multiplies a slot with and adds to it, with as many axes as the slot."""
    for effect in effects:
        factor, offset = effect.factors.get(slot), effect.offsets.get(slot)
        if factor is not None or offset is not None:
            yield with_rank(factor, rank), with_rank(offset, rank)


def with_rank(array: Array | None, rank: int) -> Array | None:
    """An array with axes of size 1 in front, up to this rank."""
    return None if array is None else array.reshape((1,) * (rank - array.ndim) + array.shape)


def stepped(values: NDArray[Any], steps: Iterable[_Step], rows: slice) -> Array:
    """Some rows of a slot in float64 behind some steps."""
    exact: Array = values.astype(np.float64)
    for factor, offset in steps:
        if factor is not None:
            exact *= factor[rows] if factor.shape[0] > 1 else factor
        if offset is not None:
            exact += offset[rows] if offset.shape[0] > 1 else offset
    return exact


def dtype_beside(weights: dict[str, Weight]) -> np.dtype[Any]:
    """The dtype of a layer's variables."""
    return next(iter(weights.values())).dtype
