"""Which members of a large family run by default, and which only in the slow tier."""

import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def thorough(config: pytest.Config) -> bool:
    """Whether slow tests are asked for: `-m slow`, or `-m "slow or not slow"` for all there are."""
    return "slow" in str(config.option.markexpr).replace("not slow", "")


def some(values: Iterable[Any], step: int = 2, first: int = 0) -> list[Any]:
    """The parameters of a test: one in `step` from the `first` on by default, the others slow."""
    every = (value if isinstance(value, tuple) else (value,) for value in values)
    return [
        pytest.param(*value, marks=[] if number % step == first else [pytest.mark.slow])
        for number, value in enumerate(every)
    ]


def by_turns(values: Sequence[Any]) -> Sequence[Any]:
    """All values in the slow tier; by default one, which the name of the running test chooses."""
    if EVERYTHING:
        return values
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0].rpartition("::")[2]
    return [values[zlib.crc32(test.encode()) % len(values)]]


EVERYTHING = False
"""Whether this run is thorough, which `conftest` knows."""
