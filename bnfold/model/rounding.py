"""Rounding numbers to the dtype of a variable, once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def rounded(
    values: NDArray[np.float64], dtype: np.dtype[Any], out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The nearest numbers of a floating-point dtype; infinite where there is none.

    `out` is an array of the dtype to put them into.
    numpy takes bfloat16 from float64 by way of float32 and so rounds twice; through float32 rounded
    to odd (Boldo and Melquiond, 2008) the second rounding is the only one that counts.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.kind != "f" and dtype.name == "bfloat16":
            values = _to_odd(values)
        if out is None:
            return values.astype(dtype)
        np.copyto(out, values, casting="unsafe")
        return out


def _to_odd(values: NDArray[np.float64]) -> NDArray[Any]:
    """In float32, cut off towards zero, the last bit set where anything was cut off."""
    nearest = values.astype(np.float32)
    further = np.abs(nearest) > np.abs(values)
    cut = np.where(further, np.nextafter(nearest, np.float32(0)), nearest)
    odd: NDArray[Any] = (cut.view(np.uint32) | (cut != values)).view(np.float32)
    return odd
