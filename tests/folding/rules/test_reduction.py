"""A map crosses operations that make one number of all along some axes."""

from pathlib import Path

import pytest
from maps import (
    IMAGE,
    NONE,
    SERIES,
    Row,
    before,
    crosses_backward,
    crosses_forward,
    ops,
    stays_without_condition,
)
from support import KERAS, examine, randomize
from tiers import some

pytestmark = pytest.mark.usefixtures("double")


ROWS: dict[str, Row] = {
    "ops-mean": (lambda: lambda x: ops.mean(x, axis=(1, 2)), IMAGE, NONE),
    "ops-mean-keepdims": (lambda: lambda x: ops.mean(x, axis=[-2], keepdims=True), IMAGE, NONE),
    "ops-max": (lambda: lambda x: ops.max(x, axis=(1, 2)), IMAGE, "positive"),
    "ops-amin": (lambda: lambda x: ops.amin(x, axis=2, keepdims=True), IMAGE, "positive"),
}


# By default a layer is crossed in one direction: the rows of the layers are shared by both.
@pytest.mark.parametrize("name", some(ROWS))
def test_a_map_crosses_forward(name: str, tmp_path: Path) -> None:
    crosses_forward(ROWS, name, tmp_path)


@pytest.mark.parametrize("name", some(ROWS, first=1))
def test_a_map_crosses_backward(name: str, tmp_path: Path) -> None:
    crosses_backward(ROWS, name, tmp_path)


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n][2]])
def test_a_map_that_does_not_meet_the_condition_stays(name: str, tmp_path: Path) -> None:
    stays_without_condition(ROWS, name, tmp_path)


def test_a_map_of_channels_does_not_cross_their_mean_forward(tmp_path: Path) -> None:
    model = before(lambda: lambda x: ops.mean(x, axis=-1), SERIES)
    examine(randomize(model), tmp_path, left=["bn"], reason="along its axis", forms=KERAS)
