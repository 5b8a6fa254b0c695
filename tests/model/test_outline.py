"""The outline of a model: every call once, behind what it reads, nested models where they stand."""

from support import keras  # isort: skip - it chooses the backend

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold.jobs.inspect import inspect_file
from bnfold.model.graph import show
from bnfold.model.outline import Step

L = keras.layers


def steps(model: Any, path: Path) -> tuple[Step, ...]:
    model.save(path)
    return inspect_file(path).steps


def named(found: tuple[Step, ...]) -> list[tuple[str, list[str]]]:
    """Each step with what it reads, by name; later calls have their number."""
    names = [show(s.path) + (f"#{s.number}" if s.number else "") for s in found]
    return [(name, [names[n] for n in s.reads]) for name, s in zip(names, found, strict=True)]


def test_nested_models_stand_where_they_are_called(tmp_path: Path) -> None:
    inside = keras.Input((4,))
    left = L.Dense(4, name="left")(inside)
    block = keras.Model(inside, L.Add(name="sum")([inside, left]), name="block")
    stem = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, name="d"), L.ReLU(name="r")], name="stem"
    )
    first = keras.Input((4,), name="in")
    once = block(stem(first))
    twice = block(once)
    model = keras.Model(first, [L.Concatenate(name="cat")([once, twice]), twice])
    found = steps(model, tmp_path / "m.keras")
    assert named(found) == [
        ("in", []),
        ("stem", ["in"]),
        ("stem/d", ["stem"]),
        ("stem/r", ["stem/d"]),
        ("block", ["stem/r"]),
        ("block/left", ["block"]),
        ("block/sum", ["block", "block/left"]),
        ("block#1", ["block/sum"]),
        ("cat", ["block/sum", "block#1"]),
    ]
    assert [show(s.path) for s in found if s.opens] == ["stem", "block"]
    assert [show(s.path) for s in found if s.is_output] == ["block", "cat"]
    assert [(s.number, s.calls) for s in found if s.path == ("block",)] == [(0, 2), (1, 2)]


def test_a_branch_is_followed_to_its_end(tmp_path: Path) -> None:
    first = keras.Input((4,), name="in")
    one = L.ReLU(name="b")(L.Dense(4, name="a")(first))
    other = L.ReLU(name="d")(L.Dense(4, name="c")(first))
    model = keras.Model(first, L.Add(name="sum")([one, other]))
    assert [show(s.path) for s in steps(model, tmp_path / "m.keras")] == [
        *("in", "a", "b", "c", "d", "sum")
    ]


def test_a_wrapper_names_what_it_holds(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((4,)), L.Dense(3, name="dense")], name="inner")
    first = keras.Input((5, 4), name="in")
    model = keras.Model(first, L.TimeDistributed(inner, name="each")(first))
    found = steps(model, tmp_path / "m.keras")
    assert named(found) == [
        ("in", []),
        ("each", ["in"]),
        ("each/inner/dense", ["each"]),
    ]
    assert found[1].class_name == "TimeDistributed(Sequential)"


@pytest.mark.parametrize(
    "name", ["branches_keras315.keras", "branches_keras215.h5", "branches_keras30.keras"]
)
def test_every_step_stands_behind_what_it_reads(
    name: str, fixture_model: Callable[[str], Path]
) -> None:
    inspected = inspect_file(fixture_model(name))
    found = inspected.steps
    assert all(read < place for place, step in enumerate(found) for read in step.reads)
    assert len({(step.path, step.number) for step in found}) == len(found)
    assert {d.batchnorm.path for d in inspected.plan.decisions} <= {step.path for step in found}
