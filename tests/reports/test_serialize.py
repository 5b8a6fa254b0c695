"""Results as values that JSON can hold."""

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest

from bnfold.serialize import SCHEMA_VERSION, Report, Serializable, plain


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    colours: tuple[Colour, ...]


@dataclass(frozen=True)
class Whole(Serializable):
    json_keys: ClassVar = ("twice", "part")

    number: float
    part: Part

    @property
    def twice(self) -> float:
        return 2 * self.number


@dataclass(frozen=True)
class Result(Report):
    whole: Whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ([1.0, -math.inf, (math.nan, "nan")], [1.0, None, [None, "nan"]]),
        (np.float32(0.5), 0.5),
        (np.float64(math.inf), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, math.nan]], np.float16), [[1.0, None]]),
        (MappingProxyType({"a": Path("b") / "c"}), {"a": "b/c"}),
        (Colour.RED, "red"),
        (10**400, 10**400),
        (Part("x", (Colour.RED,)), {"name": "x", "colours": ["red"]}),
    ],
)
def test_a_value_becomes_what_json_can_hold(value: Any, expected: Any) -> None:
    found = plain(value)
    assert (found, type(found)) == (expected, type(expected))
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_a_result_names_what_it_shows_and_in_which_order() -> None:
    found = Result(Whole(math.inf, Part("x", ()))).to_dict()
    assert json.dumps(found) == json.dumps(
        {"schema_version": SCHEMA_VERSION, "whole": {"twice": None, "part": plain(Part("x", ()))}}
    )
