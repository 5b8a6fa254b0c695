"""An affine map per channel, and the one that a BatchNormalization is.

    y = scale * x + shift

    scale = gamma / sqrt(moving_variance + epsilon)
    shift = beta - moving_mean * scale

All sums are in float64; the variables' dtypes are for whoever stores a result. Source of the
formula: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167, algorithm 2.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnfold.model.batchnorm import BatchNorm

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """`scale` and `shift`, each (channels,) in float64."""

    scale: Vector
    shift: Vector

    def then(self, after: "Affine") -> "Affine":
        """The one map that does what this one and then `after` do."""
        return Affine(after.scale * self.scale, after.scale * self.shift + after.shift)


def from_batchnorm(batchnorm: BatchNorm) -> Affine | str:
    """The affine map that a BatchNormalization is at inference; or a sentence, why it is none."""
    vectors, epsilon = batchnorm.vectors, batchnorm.epsilon
    if vectors is None:
        return "the file does not hold the variables of a BatchNormalization for it"
    if epsilon is None:
        return "its epsilon is not a finite number"
    broken = [name for name, values in vectors.items() if not np.isfinite(values).all()]
    if broken:
        return f"its {' and '.join(broken)} {_have(broken)} values that are not finite"
    denominator = vectors["moving_variance"] + epsilon
    negative = int(np.count_nonzero(denominator <= 0))
    if negative:
        total = len(denominator)
        return f"moving_variance + epsilon is not positive in {negative} of {total} channels"
    scale = vectors["gamma"] / np.sqrt(denominator)
    return Affine(scale, vectors["beta"] - vectors["moving_mean"] * scale)


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
