"""What a runtime puts out: numpy arrays of any dtype, and how precise their floats are."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

ROUNDINGS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of each floating dtype, relative to the number's size."""
