"""Telling weights and a comparison, for any Keras: nothing but NumPy is needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

TOLERANCE = {"float64": 1e-12, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""The largest difference allowed, as a share of the largest output of the original."""


def numbers(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Any:
    """Random numbers fit for a variable of this name."""
    if name in ("moving_variance", "renorm_stddev"):
        return 10.0 ** generator.uniform(-2, 2, shape)
    if name == "gamma":
        gamma = generator.uniform(0.5, 2, shape) * generator.choice([-1.0, 1.0], shape)
        if gamma.size > 2:
            gamma[1] = 0.0
        return gamma
    if name in ("beta", "moving_mean", "bias", "renorm_mean"):
        return generator.normal(0.3, 1.0, shape)
    return generator.normal(0.05, 1.0, shape) / np.sqrt(max(1, np.prod(shape[:-1])))


def difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """The largest difference, as a share of an output's largest number; NaN agrees with NaN."""
    worst = 0.0
    assert len(expected) == len(found)
    for before, after in zip(expected, found, strict=True):
        assert before.shape == after.shape
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        if same.all():
            continue
        scale = max(float(np.max(np.abs(np.where(np.isfinite(before), before, 0)))), 1e-30)
        with np.errstate(invalid="ignore"):
            gaps = np.where(same, 0.0, np.abs(before - after)) / scale
        worst = max(worst, float(np.nan_to_num(gaps, nan=np.inf, posinf=np.inf).max()))
    return worst
