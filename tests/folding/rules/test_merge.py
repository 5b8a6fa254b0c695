"""A map crosses layers that put several tensors together, and arithmetic with numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maps import BN, NONE, SERIES, Build, L, after, before, forms_of, ops, tamed, taming
from support import KERAS, examine, keras
from tiers import by_turns

pytestmark = pytest.mark.usefixtures("double")


def split(join: Callable[[list[Any]], Any], *, last: int = 4, count: int = 2) -> Build:
    """Dense layers, the join, BN."""

    def build() -> Any:
        first = keras.Input((3, 5))
        parts = [L.Dense(4 if n == 0 else last, use_bias=n != 1)(first) for n in range(count)]
        return keras.Model(first, BN(name="bn")(join(parts)))

    return build


def joined(join: Callable[[list[Any]], Any], **options: Any) -> Build:
    """BN beside something else, the join, Dense."""

    def build() -> Any:
        first, second = keras.Input((3, 4)), keras.Input((3, options.get("second", 4)))
        return keras.Model([first, second], L.Dense(2)(join([BN(name="bn")(first), second])))

    return build


JOIN_BACKWARD: dict[str, tuple[Build, str]] = {
    "add": (split(lambda p: L.Add()(p)), NONE),
    "add-three": (split(lambda p: L.Add()(p), count=3), NONE),
    "subtract": (split(lambda p: L.Subtract()(p)), NONE),
    "average": (split(lambda p: L.Average()(p), count=3), NONE),
    "maximum": (split(lambda p: L.Maximum()(p)), "positive"),
    "minimum": (split(lambda p: L.Minimum()(p)), "positive"),
    "multiply": (split(lambda p: L.Multiply()(p)), "no shift"),
    "concatenate": (split(lambda p: L.Concatenate()(p), last=2), NONE),
    "concatenate-other-axis": (split(lambda p: L.Concatenate(axis=1)(p)), NONE),
    "ops-add": (split(lambda p: p[0] + p[1]), NONE),
    "ops-subtract": (split(lambda p: p[0] - p[1]), NONE),
    "ops-multiply": (split(lambda p: p[0] * p[1]), "no shift"),
    "ops-maximum": (split(lambda p: ops.maximum(*p)), "positive"),
    "ops-minimum": (split(lambda p: ops.minimum(*p)), "positive"),
    "ops-concatenate": (split(lambda p: ops.concatenate(p, axis=-1), last=3), NONE),
    "ops-relu": (split(lambda p: ops.relu(p[0]) - p[1]), "positive, no shift"),
    "numbers": (split(lambda p: 3 - (p[0] * 2 + 1.5 - p[1]) / 4), NONE),
    "negative": (split(lambda p: -p[0] + p[1] * 0.5), NONE),
}


@pytest.mark.parametrize("name", JOIN_BACKWARD)
@pytest.mark.few(6)
def test_a_map_crosses_a_join_backward(name: str, tmp_path: Path) -> None:
    build, needs = JOIN_BACKWARD[name]
    forms = KERAS if "ops" in name or name in ("numbers", "negative") else forms_of(name)
    examine(tamed(build(), **taming(needs)), tmp_path, forms=forms)


JOIN_FORWARD: dict[str, tuple[Build, str]] = {
    "concatenate": (joined(lambda p: L.Concatenate()(p), second=2), NONE),
    "ops-concatenate": (joined(lambda p: ops.concatenate([p[1], p[0]], axis=-1)), NONE),
    "multiply": (joined(lambda p: L.Multiply()(p)), "no shift"),
    "ops-numbers": (joined(lambda p: L.Concatenate()([2 * p[0] - 1, p[1]])), NONE),
}


@pytest.mark.parametrize("name", JOIN_FORWARD)
def test_a_map_crosses_a_join_forward(name: str, tmp_path: Path) -> None:
    build, needs = JOIN_FORWARD[name]
    examine(tamed(build(), **taming(needs)), tmp_path, forms=KERAS)


def siamese(join: Callable[[list[Any]], Any]) -> Build:
    """One BN on both branches: the same map in both."""

    def build() -> Any:
        first, second, shared = keras.Input((3, 4)), keras.Input((3, 4)), BN(name="bn")
        return keras.Model([first, second], L.Dense(2)(join([shared(first), shared(second)])))

    return build


@pytest.mark.parametrize("join", ["Add", "Subtract", "Average", "Concatenate", "Maximum"])
def test_one_map_on_all_branches_crosses_forward(join: str, tmp_path: Path) -> None:
    model = siamese(getattr(L, join)())()
    examine(tamed(model, positive=join == "Maximum"), tmp_path)


OPAQUE_OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "times-zero": lambda x: x * 0.0,
    "times-vector": lambda x: x * np.array([0.5, -2.0, 3.0]),
    "flip": lambda x: ops.flip(x, axis=1),
    "larger": lambda x: ops.mean(x, axis=1, keepdims=True) * np.arange(1.0, 9).reshape(8, 1),
    "number-over": lambda x: 2.0 / x,
    "max-initial": lambda x: ops.max(x, axis=1, initial=0.5),
    "slice-channels": lambda x: x[..., :2],
    "index": lambda x: x[:, 2],
    "clip": lambda x: ops.clip(x, -1.0, 1.0),
    "maximum-number": lambda x: ops.maximum(x, 0.1),
}


@pytest.mark.parametrize("name", OPAQUE_OPERATIONS)
@pytest.mark.few(5)
def test_a_map_does_not_cross_other_operations(name: str, tmp_path: Path) -> None:
    operation = OPAQUE_OPERATIONS[name]
    for build in by_turns((before, after)):
        folder = tmp_path / build.__name__
        folder.mkdir()
        model = tamed(build(lambda: operation, SERIES), positive=True, shift=False)
        examine(model, folder, left=["bn"], forms=KERAS)
