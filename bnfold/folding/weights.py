"""What absorbed affine maps do to a layer's weights, and whether the result fits its dtype.

What several maps do to one layer is put together in float64 and rounded once, to the dtype of the
variable. `magnitudes` measures the result without making it: what is exact in real arithmetic may
still overflow or underflow where it is stored or computed with.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.folding.affine import NOTHING, Array, spread_to
from bnfold.model import layers
from bnfold.model.container import hdf5
from bnfold.model.graph import Json, Layer, LayerPath, Weight, changed
from bnfold.model.policy import policy
from bnfold.model.refusal import Refusal
from bnfold.model.rounding import rounded

Read = Callable[[str], Array]
"""The numbers of a slot in float64, as they are before an edit."""


@dataclass(frozen=True, eq=False)
class BiasChange:
    """`scale * bias + shift`, of a bias that has `shape` afterwards.

    `appended` is how many axes of size 1 Keras puts after its own when it adds it to the output;
    None where it adds it in a way that cannot go wrong.
    """

    shape: tuple[int, ...]
    scale: Array
    shift: Callable[[Read], Array]
    appended: int | None = None


@dataclass(frozen=True, eq=False)
class WeightEdit:
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


def edited(layer: Layer, edits: Sequence[WeightEdit]) -> Layer:
    """The layer with all edits, one after the other; new numbers are made when they are read."""
    weights = layers.weights(layer) or {}
    for edit in edits:
        layer = layer.with_config(**edit.settings)
    known = {**weights, **{slot: _changed(weights, edits, slot) for slot in slots_of(edits)}}
    ordered = tuple(known[slot.name] for slot in layers.slots(layer) or ())
    renorm = (layer.weights or ())[len(weights) :]
    return changed(layer, weights=(*ordered, *renorm))


def slots_of(edits: Iterable[WeightEdit]) -> dict[str, None]:
    """The slots that edits change, in order."""
    return dict.fromkeys(
        slot for edit in edits for slot in (*edit.factors, *edit.offsets, *edit.biases)
    )


def _changed(weights: dict[str, Weight], edits: Sequence[WeightEdit], slot: str) -> Weight:
    old = weights.get(slot)
    changes = [edit.biases[slot] for edit in edits if slot in edit.biases]
    if not changes and old is not None:
        return replace(old, source=None, read=_Folded(old, edits, slot))
    dtype = old.dtype if old is not None else dtype_beside(weights)
    shape = changes[-1].shape if changes else weights["moving_mean"].shape
    name = old.name if old is not None else _new_name(weights, slot)
    return Weight(shape, dtype, lambda: rounded(exact_numbers(weights, edits, slot), dtype), name)


def _new_name(weights: dict[str, Weight], slot: str) -> str:
    """A new bias of one of two directions is named like the kernel of that direction."""
    beside = weights.get(slot.replace("bias", "kernel"))
    if beside is None or "_" not in slot or "/" not in beside.name:
        return slot
    return re.sub(r"kernel(?=[^/]*$)", "bias", beside.name)


def exact_numbers(weights: dict[str, Weight], edits: Sequence[WeightEdit], slot: str) -> Array:
    """A slot's numbers in float64 after some edits."""
    old = weights.get(slot)
    if old is None and slot == "gamma":  # without `scale` it is 1
        value: Array = np.ones(weights["moving_mean"].shape)
    else:
        value = NOTHING if old is None else old.read().astype(np.float64)
    for number, edit in enumerate(edits):
        if slot in edit.factors:
            value = value * edit.factors[slot]
        if slot in edit.offsets:
            value = value + edit.offsets[slot]
        change = edit.biases.get(slot)
        if change is not None:
            shift = change.shift(partial(exact_numbers, weights, edits[:number]))
            value = spread_to(value * change.scale + shift, change.shape)
    return value


class _Folded:
    """A kernel's new numbers, rounded once, a piece of them in float64 at a time."""

    __slots__ = ("_edits", "_kernel", "_slot")

    def __init__(self, kernel: Weight, edits: Sequence[WeightEdit], slot: str) -> None:
        self._kernel, self._edits, self._slot = kernel, edits, slot

    def __call__(self) -> NDArray[Any]:
        """All numbers."""
        folded = np.empty(self._kernel.shape, self._kernel.dtype)
        for start, piece in self.pieces():
            folded[hdf5.within(start, piece.shape)] = piece
        return folded

    def pieces(self) -> Iterator[tuple[hdf5.Shape, NDArray[Any]]]:
        """The numbers in order, in pieces as `hdf5.cuts` makes them, each good until the next."""
        exact = new = None
        steps = list(steps_of(self._edits, self._slot, len(self._kernel.shape)))
        for start, piece in hdf5.pieces_of(self._kernel):
            if exact is None or new is None:  # the first piece is the largest
                exact, new = np.empty(piece.size), np.empty(piece.size, piece.dtype)
            there = exact[: piece.size].reshape(piece.shape)
            np.copyto(there, piece, casting="unsafe")  # of whatever dtype
            _step(there, steps, hdf5.within(start, piece.shape))
            yield start, rounded(there, piece.dtype, new[: piece.size].reshape(piece.shape))


_Step = tuple[Array | None, Array | None]


def steps_of(edits: Iterable[WeightEdit], slot: str, rank: int) -> Iterator[_Step]:
    """What each edit multiplies a slot with and adds to it, with as many axes as the slot."""
    for edit in edits:
        factor, offset = edit.factors.get(slot), edit.offsets.get(slot)
        if factor is not None or offset is not None:
            yield with_rank(factor, rank), with_rank(offset, rank)


def with_rank(array: Array | None, rank: int) -> Array | None:
    """An array with axes of size 1 before its own, up to this rank."""
    return None if array is None else array.reshape((1,) * (rank - array.ndim) + array.shape)


def _stepped(values: Array, steps: Iterable[_Step]) -> Array:
    """All numbers of a slot after some steps."""
    exact = values.copy()
    _step(exact, steps, (slice(None),) * exact.ndim)
    return exact


def _step(exact: Array, steps: Iterable[_Step], at: tuple[slice, ...]) -> None:
    """Take some steps with the numbers that a slot has `at` a place."""
    for factor, offset in steps:
        if factor is not None:
            exact *= _part(factor, at)
        if offset is not None:
            exact += _part(offset, at)


def _part(array: Array, at: tuple[slice, ...]) -> Array:
    """What an array has at a place; along an axis of size 1 it has the same everywhere."""
    pairs = zip(array.shape, at, strict=True)
    return array[tuple(slice(None) if size == 1 else part for size, part in pairs)]


def dtype_beside(weights: dict[str, Weight]) -> np.dtype[Any]:
    """The dtype of a layer's variables."""
    return next(iter(weights.values())).dtype


# --- whether it fits ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """How large the numbers of one slot get with some edits, in float64.

    Attributes:
        slot: the slot.
        before, scaled: the largest magnitudes in the file, and with the factors of the edits,
            along all axes on which factors vary; empty for a bias.
        exact: numbers that must be finite, with all of the edits; of a bias all numbers. Empty
            where the numbers are far, so that nobody has looked.
        dtypes: those in which the slot is stored and computed with.
    """

    slot: str
    before: Array
    scaled: Array
    exact: Array
    dtypes: tuple[np.dtype[Any], ...]

    def along(self, edit: WeightEdit) -> "Magnitudes":
        """The same by the channels of one of the edits, (channels,) or as its factor's axes."""
        factor = with_rank(edit.factors.get(self.slot), self.scaled.ndim)
        if factor is None or self.slot in edit.biases:
            return Magnitudes(self.slot, _NONE, _NONE, self.exact, self.dtypes)
        others = tuple(axis for axis, size in enumerate(factor.shape) if size == 1)
        every = (self.before, self.scaled, self.exact)
        before, scaled, exact = (_largest_by(array, others) for array in every)
        return Magnitudes(self.slot, before, scaled, exact, self.dtypes)

    def overflows(self, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
        """Which of the `exact` numbers are not finite in a dtype."""
        return ~np.isfinite(rounded(self.exact, dtype).astype(np.float64))

    def underflows(self, dtype: np.dtype[Any]) -> NDArray[np.bool_]:
        """The channels that fall below the smallest normal number of a dtype, and were not before.

        A channel that was as small before, as weight decay leaves dead ones, loses nothing.
        """
        tiny = _smallest(dtype)
        found: NDArray[np.bool_] = (self.scaled < tiny) & (self.scaled != 0) & (self.before >= tiny)
        return found


def _largest_by(array: Array, others: tuple[int, ...]) -> Array:
    """The largest magnitudes along some axes, which are not there any more.

    Of numbers that are far there are none.
    """
    if not array.size:
        return array
    sizes = np.abs(array)
    kept = tuple(size for axis, size in enumerate(array.shape) if axis not in others)
    if math.prod(kept) == array.size:  # there is one number along them, as nearly always
        return sizes.reshape(kept)
    largest: Array = sizes.max(axis=others)
    return largest


def misfit(layer: Layer, edit: WeightEdit) -> str | None:
    """Which bias has another shape than its layer's kernel gives it, as in a damaged file."""
    weights = layers.weights(layer) or {}
    for slot, change in edit.biases.items():
        old = weights.get(slot)
        if old is not None and not _widens_to(old.shape, change.shape):
            return f"has a {slot} of shape {old.shape}, where its kernel needs {change.shape}"
    return None


def _widens_to(shape: tuple[int, ...], wider: tuple[int, ...]) -> bool:
    """Whether numpy broadcasts one shape to another."""
    pairs = zip(reversed(shape), reversed(wider), strict=False)
    return len(shape) <= len(wider) and all(size in (1, wide) for size, wide in pairs)


def magnitudes(layer: Layer, edits: Sequence[WeightEdit]) -> tuple[Magnitudes, ...]:
    """How large each slot gets that edits change; reads each of them once.

    One that depends on numbers that are far is not measured, and its `Magnitudes` are empty.
    """
    weights = {slot: _near(one) for slot, one in (layers.weights(layer) or {}).items()}
    used = policy(layer)
    stored, computed = dtype_beside(weights), None if used is None else dtype_named(used.compute)
    dtypes = (stored,) if computed in (None, stored) else (stored, computed)
    with np.errstate(over="ignore", invalid="ignore"):
        return tuple(
            Magnitudes(slot, *_measured(weights, edits, slot), dtypes) for slot in slots_of(edits)
        )


class _FarError(Exception):
    """Numbers would have to be fetched; never leaves this module."""


def _near(weight: Weight) -> Weight:
    """A weight that raises _FarError where its numbers are far."""
    return replace(weight, read=_refuse_to_fetch) if weight.is_far else weight


def _refuse_to_fetch() -> NDArray[Any]:
    raise _FarError


def _measured(
    weights: dict[str, Weight], edits: Sequence[WeightEdit], slot: str
) -> tuple[Array, Array, Array]:
    """`_largest`, or nothing where that is far."""
    try:
        return _largest(weights, edits, slot)
    except _FarError:
        return _NONE, _NONE, _NONE


class OutOfRange(Refusal):
    """New numbers do not fit the dtypes that they are stored or computed in.

    Attributes:
        magnitudes: those of all slots that the edit in question changes.
    """

    def __init__(self, reason: str, magnitudes: tuple[Magnitudes, ...], at: LayerPath) -> None:
        super().__init__(reason, at=at)
        self.magnitudes = magnitudes


def check_range(measured: Sequence[Magnitudes], kind: str = "") -> None:
    """Raise Refusal where new numbers overflow or underflow the dtypes that they are held in.

    They underflow when all of a channel's kernel falls below the smallest normal number, where
    digits go missing. Where that does no harm, `dead` leaves no such kernel.
    """
    for one in measured:
        for dtype in one.dtypes:
            many = int(np.count_nonzero(one.overflows(dtype)))
            if many:
                values = "1 value" if many == 1 else f"{many} values"
                raise Refusal(
                    f"{values} of its {kind}{one.slot} would not be finite in {dtype.name}"
                )
            many = int(np.count_nonzero(one.underflows(dtype)))
            if many:
                channels = "1 channel" if many == 1 else f"{many} channels"
                raise Refusal(f"{channels} of its {kind}{one.slot} would underflow {dtype.name}")


_NONE: Array = np.zeros(0)


def _largest(
    weights: dict[str, Weight], edits: Sequence[WeightEdit], slot: str
) -> tuple[Array, Array, Array]:
    """The largest numbers of a slot, before and after, and numbers that must be finite.

    Scaling keeps order, so along an axis on which no factor varies the number of the largest
    magnitude stays that; NaN spreads. A bias has no scaled numbers that could be too small.
    """
    kernel = weights.get(slot)
    if any(slot in edit.biases for edit in edits):
        return _NONE, _NONE, exact_numbers(weights, edits, slot)
    if kernel is None or 0 in kernel.shape:
        exact = exact_numbers(weights, edits, slot)
        return exact, exact, exact
    steps = list(steps_of(edits, slot, len(kernel.shape)))
    arrays = [array for step in steps for array in step if array is not None]
    others = tuple(
        axis for axis in range(len(kernel.shape)) if all(array.shape[axis] == 1 for array in arrays)
    )
    bound = _largest_along(kernel, others)
    scaled = _stepped(bound, [(factor, None) for factor, _ in steps])
    shifts = any(offset is not None for _, offset in steps)
    return bound, scaled, _stepped(bound, steps) if shifts else scaled


def _largest_along(kernel: Weight, axes: tuple[int, ...]) -> Array:
    """The largest magnitudes along some axes, which keep size 1; read a part at a time."""
    lead = next((n for n in range(len(kernel.shape)) if n not in axes), len(kernel.shape))
    if lead == 0 or not isinstance(kernel.read, hdf5.Stores):
        values = kernel.read()
        return _magnitude(
            values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)
        )
    within = (0, *(1 + axis - lead for axis in axes if axis >= lead))
    pieces = (piece.reshape(-1, *kernel.shape[lead:]) for _, piece in kernel.read.pieces(lead))
    ranges = (
        (_extreme(np.minimum, piece, within), _extreme(np.maximum, piece, within))
        for piece in pieces
    )
    low, high = reduce(lambda a, b: (np.minimum(a[0], b[0]), np.maximum(a[1], b[1])), ranges)
    shape = [1 if axis in axes else size for axis, size in enumerate(kernel.shape)]
    return _magnitude(low, high).reshape(shape)


_TOGETHER = 4096


def _extreme(kind: np.ufunc, rows: NDArray[Any], within: tuple[int, ...]) -> NDArray[Any]:
    """The smallest or largest numbers of rows along some axes, the first of them among these.

    Some rows are compared with others as one long row first: each takes numpy as much time as some
    hundred numbers, and of a layer of few channels a row has hardly more.
    """
    many = max(1, _TOGETHER // rows[0].size)
    whole = len(rows) // many * many
    if whole <= many:
        return np.asarray(kind.reduce(rows, axis=within))
    found = kind.reduce(rows[:whole].reshape(-1, many, *rows.shape[1:]), axis=0)
    rest = rows[whole:]
    found[: len(rest)] = kind(found[: len(rest)], rest)
    return np.asarray(kind.reduce(found, axis=within))


def _magnitude(low: NDArray[Any], high: NDArray[Any]) -> Array:
    return np.maximum(-low.astype(np.float64), high.astype(np.float64))


@lru_cache(maxsize=16)
def _smallest(dtype: np.dtype[Any]) -> float:
    return smallest_of(dtype.name)


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
