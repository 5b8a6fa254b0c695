"""A map crosses layers in which numbers change their places only."""

from pathlib import Path

import pytest
from maps import IMAGE, NONE, SERIES, TD, L, Row, crosses_backward, crosses_forward, ops
from tiers import some

pytestmark = pytest.mark.usefixtures("double")


ROWS: dict[str, Row] = {
    "permute": (lambda: L.Permute((3, 1, 2)), IMAGE, NONE),
    "repeat-vector": (lambda: L.RepeatVector(3), (5,), NONE),
    "reshape": (lambda: L.Reshape((4, 6)), SERIES, NONE),
    "reshape-minus-one": (lambda: L.Reshape((-1, 3)), IMAGE, NONE),
    "flatten": (L.Flatten, IMAGE, NONE),
    "flatten-channels-first": (lambda: L.Flatten(data_format="channels_first"), IMAGE, NONE),
    "wrapped-flatten": (lambda: TD(L.Flatten()), IMAGE, NONE),
    "ops-transpose": (lambda: lambda x: ops.transpose(x, (0, 3, 1, 2)), IMAGE, NONE),
    "ops-reshape": (lambda: lambda x: ops.reshape(x, (-1, 4, 6)), SERIES, NONE),
    "ops-expand-dims": (lambda: lambda x: ops.expand_dims(x, -1), SERIES, NONE),
    "ops-squeeze": (lambda: lambda x: ops.squeeze(ops.expand_dims(x, 1), 1), SERIES, NONE),
}


# By default a layer is crossed in one direction: the rows of the layers are shared by both.
@pytest.mark.parametrize("name", some(ROWS))
def test_a_map_crosses_forward(name: str, tmp_path: Path) -> None:
    crosses_forward(ROWS, name, tmp_path)


@pytest.mark.parametrize("name", some(ROWS, first=1))
def test_a_map_crosses_backward(name: str, tmp_path: Path) -> None:
    crosses_backward(ROWS, name, tmp_path)
