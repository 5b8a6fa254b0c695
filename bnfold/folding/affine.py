"""An affine map, and the one that a BatchNormalization is.

    y = scale * x + shift

    scale = gamma / sqrt(moving_variance + epsilon)
    shift = beta - moving_mean * scale

`scale` and `shift` broadcast against a tensor from the right, as numpy does, and have size 1 on
every axis along which they do not vary: (C,) for channels last, (C, 1, 1) for channels first in an
image. So a map keeps its meaning through layers that permute, add or drop axes.

All sums are in float64; the variables' dtypes are for whoever stores a result. Source of the
formula: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, algorithm 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.model.batchnorm import BatchNorm
from bnfold.model.refusal import Refusal

Array = NDArray[np.float64]

MOST_NUMBERS = 1 << 20
"""In one scale or shift. A tensor may have any size in a file of some bytes, as behind a
RepeatVector, but weights that absorb a map are at least as many as its numbers."""


@dataclass(frozen=True, eq=False)
class Affine:
    """`scale` and `shift` in float64, each broadcasting against a tensor from the right."""

    scale: Array
    shift: Array

    def then(self, after: "Affine") -> "Affine":
        """The one map that does what this one and then `after` do."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)

    def each(self, change: Callable[[Array], Array]) -> "Affine":
        """The map whose scale and shift are what `change` makes of this one's."""
        return Affine(compact(change(self.scale)), compact(change(self.shift)))

    def along(self, axis: int) -> "Affine":
        """The map of two vectors, put on an axis of a tensor; `axis` counts from the end."""
        shape = (-1, *(1,) * (-1 - axis))
        return Affine(self.scale.reshape(shape), self.shift.reshape(shape))

    @cached_property
    def varies_on(self) -> frozenset[int]:
        """The axes, counted from the end, along which the map is not the same everywhere."""
        return frozenset(
            -1 - distance
            for array in (self.scale, self.shift)
            for distance, size in enumerate(reversed(array.shape))
            if size > 1
        )

    def fits(self, shape: Sequence[int | None]) -> bool:
        """Whether a tensor of this shape has as many numbers along the axes that it varies on."""
        return all(
            size in (1, wanted) or wanted is None
            for array in (self.scale, self.shift)
            for size, wanted in zip(reversed(array.shape), reversed(shape), strict=False)
        )

    @cached_property
    def has_shift(self) -> bool:
        """Whether the map adds something."""
        return bool(np.count_nonzero(self.shift))

    @cached_property
    def is_identity(self) -> bool:
        """Whether the map changes nothing at all."""
        return not self.has_shift and bool(np.all(self.scale == 1))

    def scale_only(self) -> "Affine":
        """The map without its shift."""
        return self if self.shift is NOTHING else Affine(self.scale, NOTHING)

    def same_as(self, other: "Affine") -> bool:
        """Whether two maps are the same, number for number."""
        pairs = ((self.scale, other.scale), (self.shift, other.shift))
        return self is other or all(
            np.array_equal(compact(one), compact(two)) for one, two in pairs
        )

    def vectors(self, axis: int, size: int) -> tuple[Array, Array] | None:
        """Scale and shift as vectors of `size` along an axis; None if they vary along another."""
        if not self.varies_on <= {axis}:
            return None
        flat = (self.scale.reshape(-1), self.shift.reshape(-1))
        if any(len(vector) not in (1, size) for vector in flat):
            return None
        scale, shift = (spread_to(vector, (size,)) for vector in flat)
        return scale, shift


NOTHING: Array = np.zeros(())
IDENTITY = Affine(np.ones(()), NOTHING)


def spread_to(array: Array, shape: tuple[int, ...]) -> Array:
    """`np.broadcast_to`, which takes longer than most sums where there is nothing to do."""
    return array if array.shape == shape else np.broadcast_to(array, shape)


def compact(array: Array) -> Array:
    """The same numbers with size 1 along every axis on which they are all equal.

    Leading axes of size 1 go away, so that equal maps have equal shapes.
    """
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = array.take([0], axis=axis)
            if np.array_equal(np.broadcast_to(first, array.shape), array):
                array = first
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def channel_count(affine: Affine, numbers: NDArray[Any]) -> str:
    """How many of a map's numbers these are, for a sentence: `5 of 64 channels`."""
    total = max(affine.scale.size, affine.shift.size)
    count = int(np.count_nonzero(numbers)) * (total // max(1, numbers.size))
    return f"{count} of {total} channels"


def from_batchnorm(batchnorm: BatchNorm) -> Affine:
    """The affine map that a BatchNormalization is at inference, as two vectors of its channels.

    Raises Refusal where it has none.
    """
    if batchnorm.problem is not None:
        raise batchnorm.problem
    vectors, epsilon = batchnorm.vectors or {}, batchnorm.epsilon
    if epsilon is None:
        raise Refusal("its epsilon is not a finite number")
    broken = batchnorm.broken
    if broken:
        raise Refusal(f"its {' and '.join(broken)} {_have(broken)} values that are not finite")
    denominator = vectors["moving_variance"] + epsilon
    negative = int(np.count_nonzero(denominator <= 0))
    if negative:
        total = len(denominator)
        raise Refusal(
            f"moving_variance + epsilon is not positive in {negative} of {total} channels"
        )
    scale = vectors["gamma"] / np.sqrt(denominator)
    return Affine(scale, vectors["beta"] - vectors["moving_mean"] * scale)


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
