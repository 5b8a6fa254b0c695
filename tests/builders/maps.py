"""Models in which a map crosses a layer or is absorbed by one, for the tests of the rules.

A row is what makes the layer, the shape that it reads, and whether it needs positive scales or no
shift.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support import KERAS, LEGACY, chain, examine, keras, randomize
from tiers import by_turns

L = keras.layers
BN = L.BatchNormalization
TD = L.TimeDistributed
ops = keras.ops
Build = Callable[[], Any]
Row = tuple[Build, tuple[int, ...], str]

IMAGE, SERIES, VOLUME = (6, 8, 3), (8, 3), (4, 4, 4, 2)
NONE = ""


def inner(*layers: Any, shape: tuple[int | None, ...] = (4,), name: str = "inner") -> Any:
    """A model to be nested."""
    first = tensor = keras.Input(shape)
    for layer in layers:
        tensor = layer(tensor)
    return keras.Model(first, tensor, name=name)


def tamed(model: Any, *, positive: bool = False, shift: bool = True) -> Any:
    """A random model whose BatchNormalizations have positive scales, or no shift."""
    randomize(model)
    for layer in model._flatten_layers():
        if isinstance(layer, BN):
            if positive and layer.gamma is not None:
                layer.gamma.assign(abs(layer.gamma) + 0.1)
            if not shift:
                layer.beta.assign(layer.beta * 0)
                layer.moving_mean.assign(layer.moving_mean * 0)
    return model


def taming(needs: str) -> dict[str, bool]:
    return {"positive": "positive" in needs, "shift": "no shift" not in needs}


def dense_after(tensor: Any) -> Any:
    """A layer with a weight for every number after the first axis, whatever its rank."""
    letters = "bcdef"[: len(tensor.shape) - 1]
    shape = tuple(int(size) for size in tensor.shape[1:])
    layer = L.EinsumDense(f"a{letters},{letters}z->az", (4,), bias_axes="z")
    assert len(shape) == len(letters)
    return layer(tensor)


def before(row: Build, shape: tuple[int, ...]) -> Any:
    """BN, the row, and a layer that absorbs any map."""
    first = keras.Input(shape)
    return keras.Model(first, dense_after(row()(BN(name="bn")(first))))


def wide(shape: tuple[int, ...]) -> Any:
    """A layer with a weight for every number that it makes, so that it absorbs any map."""
    letters = "bcdef"[: len(shape)]
    return L.EinsumDense(f"az,z{letters}->a{letters}", shape, bias_axes=letters)


def after(row: Build, shape: tuple[int, ...]) -> Any:
    """A layer that absorbs any map, the row, and BN."""
    return chain((5,), wide(shape), row(), BN(name="bn"))


def forms_of(name: str) -> Sequence[str]:
    """Legacy files hold no operations."""
    return LEGACY if len(name) % 3 == 0 and not name.startswith("ops-") else KERAS


def single_precision(build: Build) -> Build:
    """For layers without a float64 kernel."""

    def built() -> Any:
        keras.config.set_floatx("float32")
        return build()

    return built


def crosses_forward(rows: Mapping[str, Row], name: str, folder: Path) -> None:
    """A map before the layer ends up after it."""
    row, shape, needs = rows[name]
    model = tamed(before(row, shape), **taming(needs))
    plan = examine(model, folder, forms=forms_of(name))
    assert plan.folds[0].direction == "forward"


def crosses_backward(rows: Mapping[str, Row], name: str, folder: Path) -> None:
    """A map after the layer ends up before it."""
    row, shape, needs = rows[name]
    model = tamed(after(row, shape), **taming(needs))
    plan = examine(model, folder, forms=forms_of(name))
    assert plan.folds[0].direction == "backward"


def stays_without_condition(rows: Mapping[str, Row], name: str, folder: Path) -> None:
    """A map that does not meet the condition of a layer stays where it is."""
    row, shape, _ = rows[name]
    for build in by_turns((before, after)):
        place = folder / build.__name__
        place.mkdir()
        examine(randomize(build(row, shape)), place, left=["bn"], reason="channels", forms=KERAS)
