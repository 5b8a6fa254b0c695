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

from bnfold.serialize import (
    SCHEMA_VERSION,
    Report,
    Serializable,
    Stream,
    parts_of,
    plain,
    text_of,
)


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


ENTRIES = [{"a": [1, {"b": "line\nbreak ##vso["}], "c": {}, "d": []}, [], {}, "text", None, 1.5]


@pytest.mark.parametrize("length", range(len(ENTRIES) + 1))
def test_json_in_parts_is_the_json_of_the_whole(length: int) -> None:
    whole = ENTRIES[:length]
    stream = Stream(lambda: iter(whole))
    text = text_of({"x": {"y": [1]}, "##": whole, "z": []}, indent=2)
    assert "".join(parts_of({"x": {"y": [1]}, "##": stream, "z": []})) == text
    runs = Stream(lambda: [{"results": stream, "rest": 1}])
    text = text_of({"runs": [{"results": whole, "rest": 1}]}, indent=2)
    assert "".join(parts_of({"runs": runs})) == text


def test_json_comes_an_entry_at_a_time() -> None:
    made: list[int] = []
    parts = parts_of({"x": Stream(lambda: (made.append(one) or one for one in range(9)))})
    while next(parts) != "2":
        assert made == [*range(len(made))]
    assert made == [0, 1, 2]
