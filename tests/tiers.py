"""Which members of a large family run by default, and which only with `-m slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], step: int = 2, first: int = 0) -> list[Any]:
    """The parameters of a test: one in `step` from the `first` on by default, the others slow."""
    every = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*value, marks=[] if number % step == first else [pytest.mark.slow])
        for number, value in enumerate(every)
    ]
