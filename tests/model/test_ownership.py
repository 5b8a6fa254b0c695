"""Whose each variable of a nested model is, in legacy files as Keras 2 writes them.

Keras 2 is the judge: the folded file computes in it what the original does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bnfold.errors import UnreadableModelError
from bnfold.folding.plan import Plan, apply, plan
from bnfold.jobs.fold import fold_file
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container.hdf5 import read_names, write_names
from bnfold.model.container.model_file import open_model

keras = pytest.importorskip("tf_keras")
layers = keras.layers

SHAPE = (8, 8, 3)

Nested = Callable[[], Any]


@pytest.fixture(autouse=True)
def fresh_names() -> None:
    keras.backend.clear_session()


def block(tensor: Any, name: str, filters: int = 4) -> Any:
    """As in Keras' DenseNet: layers with slashes in their names."""
    tensor = layers.Conv2D(filters, 3, use_bias=False, name=f"{name}/conv")(tensor)
    tensor = layers.BatchNormalization(name=f"{name}/bn")(tensor)
    return layers.ReLU(name=f"{name}/relu")(tensor)


def backbone(name: str = "base", blocks: int = 2, more: Any = None) -> Any:
    entry = tensor = keras.Input(SHAPE)
    for number in range(blocks):
        tensor = block(tensor, f"conv{number}")
    return keras.Model(entry, tensor if more is None else more(tensor), name=name)


def randomize(model: Any) -> None:
    generator = np.random.default_rng(0)
    for variable in model.weights:
        name, shape = variable.name.rpartition("/")[2], tuple(variable.shape)
        if name.startswith("moving_variance"):
            variable.assign(10.0 ** generator.uniform(-1, 1, shape))
        elif variable.dtype.is_floating:
            variable.assign(generator.normal(0.4, 1.0, shape) / np.sqrt(np.prod(shape[:-1]) or 1))


def headed(inside: Any) -> Any:
    """A model around a nested one."""
    entry = keras.Input(inside.input_shape[1:])
    return keras.Model(entry, layers.Dense(2, name="head")(layers.Flatten()(inside(entry))))


def save(model: Any, path: Path) -> Path:
    randomize(model)
    model.save(path)
    return path


def fold(source: Path, target: Path) -> Plan:
    with open_model(source) as file:
        planned = plan(file.graph)
        file.write(apply(file.graph, planned), target, {})
    return planned


def inputs(model: Any) -> list[Any]:
    generator = np.random.default_rng(1)
    return [
        generator.normal(0.2, 1.0, (3, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]


CASES: dict[str, Callable[[], tuple[Any, int]]] = {}


def case(build: Callable[[], tuple[Any, int]]) -> Callable[[], tuple[Any, int]]:
    CASES[build.__name__] = build
    return build


@case
def slashes() -> tuple[Any, int]:
    return headed(backbone()), 2


@case
def a_slash_in_the_name_of_the_model() -> tuple[Any, int]:
    return headed(backbone("encoder/base")), 2


@case
def two_levels() -> tuple[Any, int]:
    entry = keras.Input(SHAPE)
    middle = keras.Model(entry, block(backbone("inner")(entry), "conv0/outer"), name="conv0")
    return headed(middle), 3


@case
def names_that_begin_others() -> tuple[Any, int]:
    def more(tensor: Any) -> Any:
        tensor = layers.Conv2D(4, 1, use_bias=False, name="c")(tensor)
        tensor = layers.BatchNormalization(name="c/bn")(tensor)
        tensor = layers.Conv2D(4, 1, use_bias=False, name="c/bn/c")(tensor)
        tensor = layers.BatchNormalization(name="bn")(tensor)
        return layers.Conv2D(4, 1, name="bn/c")(tensor)

    return headed(backbone(more=more)), 4


@case
def the_same_names_in_two_models() -> tuple[Any, int]:
    """Told apart by the scopes in which they were built."""
    from tensorflow import name_scope

    def part(name: str) -> Any:
        entry = tensor = keras.Input((6, 6, 4))
        conv = layers.Conv2D(4, 1, use_bias=False, name="conv")
        for layer in (conv, layers.BatchNormalization(name="n/bn")):
            with name_scope(f"{name}/{layer.name}"):
                layer.build((None, 6, 6, 4))
            tensor = layer(tensor)
        return keras.Model(entry, tensor, name=name)

    entry = keras.Input((6, 6, 4))
    return headed(keras.Model(entry, part("b")(part("a")(entry)), name="both")), 2


@case
def wrappers() -> tuple[Any, int]:
    entry = tensor = keras.Input((5, 4))
    tensor = layers.TimeDistributed(layers.Dense(6, name="in/d"), name="t/dense")(tensor)
    tensor = layers.TimeDistributed(layers.BatchNormalization(name="in/bn"), name="t/bn")(tensor)
    both = layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="l/stm"), name="b/d")
    tensor = layers.Dense(3, name="d/d")(both(tensor))
    return headed(keras.Model(entry, layers.BatchNormalization(name="z/bn")(tensor), name="m/m")), 2


@case
def a_model_in_a_wrapper() -> tuple[Any, int]:
    entry = keras.Input((2, *SHAPE))
    tensor = layers.TimeDistributed(backbone(), name="time/base")(entry)
    return keras.Model(entry, layers.Dense(2)(layers.Flatten()(tensor))), 2


@case
def siamese() -> tuple[Any, int]:
    twin, entries = backbone("twin/s"), [keras.Input(SHAPE) for _ in range(2)]
    return keras.Model(entries, layers.Subtract()([twin(entry) for entry in entries])), 2


@case
def layers_of_unknown_classes() -> tuple[Any, int]:
    def more(tensor: Any) -> Any:
        tensor = layers.LayerNormalization(name="conv0/ln")(tensor)
        tensor = block(layers.PReLU(shared_axes=[1, 2], name="p/relu")(tensor), "mid", 5)
        tensor = layers.Reshape((4, 5))(tensor)
        tensor = layers.MultiHeadAttention(1, 2, name="at/mha")(tensor, tensor)
        return layers.BatchNormalization(name="z/bn")(layers.Dense(4, name="z/d")(tensor))

    return headed(backbone(more=more)), 4


@case
def settings_with_other_variables() -> tuple[Any, int]:
    def more(tensor: Any) -> Any:
        tensor = layers.Conv2D(4, 1, name="r/c")(tensor)
        tensor = layers.BatchNormalization(renorm=True, name="r/bn")(tensor)
        tensor = layers.Conv2D(4, 1, name="r/c1")(tensor)
        tensor = layers.BatchNormalization(scale=False, name="r/bn1")(tensor)
        tensor = layers.Conv2D(4, 1, name="r/c2")(tensor)
        return layers.BatchNormalization(synchronized=True, name="r/bn2")(tensor)

    return headed(backbone(more=more)), 5


@case
def the_first_half_is_frozen() -> tuple[Any, int]:
    inside = backbone(blocks=3)
    for layer in inside.layers[:4]:
        layer.trainable = False
    return headed(inside), 3


@case
def the_second_half_is_frozen() -> tuple[Any, int]:
    inside = backbone(blocks=3)
    for layer in inside.layers[4:]:
        layer.trainable = False
    return headed(inside), 3


@case
def all_is_frozen_but_one_layer() -> tuple[Any, int]:
    inside = backbone(blocks=3)
    inside.trainable = False
    inside.layers[4].trainable = inside.layers[5].trainable = True
    return headed(inside), 3


@case
def the_inner_model_is_frozen() -> tuple[Any, int]:
    entry, inner = keras.Input(SHAPE), backbone("inner")
    inner.trainable = False
    return headed(keras.Model(entry, block(inner(entry), "outer"), name="middle")), 3


@pytest.mark.parametrize("name", CASES)
@pytest.mark.few(4)
def test_what_is_inside_a_nested_model_is_read_and_folded(name: str, tmp_path: Path) -> None:
    model, count = CASES[name]()
    source = save(model, tmp_path / "model.h5")
    found = inspect_file(source)
    assert [d.batchnorm.problem for d in found.plan.decisions] == [None] * count
    planned = fold(source, tmp_path / "folded.h5")
    unfolded = [one.reason for one in planned.blocked if "the rank is unknown" not in one.reason]
    assert unfolded == []
    assert planned.folds
    folded = keras.models.load_model(tmp_path / "folded.h5", compile=False)
    expected = np.asarray(model(inputs(model), training=False))
    outputs = np.asarray(folded(inputs(model), training=False))
    np.testing.assert_allclose(outputs, expected, 0, 1e-5 * np.abs(expected).max())


def edited(path: Path, edit: Callable[[list[str]], list[str]]) -> Path:
    """The file with another list of the variables of the nested model."""
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]["base"]
        names = [str(name) for name in group.attrs["weight_names"]]
        new = edit(names)
        for old, name in zip(names, new, strict=True):
            group.copy(group[old], group, f"new/{name}")
        for name in {name.partition("/")[0] for name in names}:
            del group[name]
        for name in list(group["new"]):
            group.move(f"new/{name}", name)
        del group["new"]
        write_names(group, "weight_names", new)
    return path


def swapped(names: list[str]) -> list[str]:
    """The list in an order that Keras does not write."""
    return names[::-1]


def renamed(names: list[str]) -> list[str]:
    """Every variable is named after a layer that it cannot be of."""
    return [name.replace("conv0/", "x/").replace("conv1/", "conv0/") for name in names]


@pytest.mark.parametrize("edit", [swapped, renamed])
def test_what_cannot_be_told_apart_stays_and_says_why(edit: Any, tmp_path: Path) -> None:
    source = edited(save(headed(backbone()), tmp_path / "model.h5"), edit)
    planned = fold(source, tmp_path / "folded.h5")
    reasons = {one.reason for one in planned.blocked}
    assert reasons == {"its variables cannot be told from those of other layers in the file"}
    with h5py.File(source) as old, h5py.File(tmp_path / "folded.h5") as new:
        listed = [read_names(f["model_weights"]["base"], "weight_names") for f in (old, new)]
        assert listed[0] == listed[1]


def test_names_that_were_seen_before_are_numbered(tmp_path: Path) -> None:
    """TensorFlow 1 numbers the scopes of a model that is built a second time."""

    def again(names: list[str]) -> list[str]:
        return [name.replace("/conv/", "/conv_1/").replace("/bn/", "/bn_1/") for name in names]

    model = headed(backbone(more=layers.LayerNormalization(name="ln")))
    source = edited(save(model, tmp_path / "model.h5"), again)
    assert len(fold(source, tmp_path / "folded.h5").folds) == 2


def test_one_layer_in_two_nested_models_is_listed_once(tmp_path: Path) -> None:
    conv, norm = layers.Conv2D(4, 3, name="s/conv"), layers.BatchNormalization(name="s/bn")

    def part(name: str) -> Any:
        entry = keras.Input(SHAPE)
        return keras.Model(entry, norm(conv(entry)), name=name)

    entry = keras.Input(SHAPE)
    both = layers.Subtract()([part("a")(entry), layers.ReLU()(part("b")(entry))])
    source = save(headed(keras.Model(entry, both, name="base")), tmp_path / "model.h5")
    with h5py.File(source, "r+") as file:  # Keras 2 numbers the second place alone
        config = json.loads(file.attrs["model_config"])
        parts = config["config"]["layers"][1]["config"]["layers"]
        shared = [one for part in parts[1:3] for one in part["config"]["layers"][1:]]
        for entry, number in zip(shared, (1, 2, 1, 2), strict=True):
            entry["shared_object_id"] = number
        file.attrs["model_config"] = json.dumps(config)
    found = inspect_file(source)
    assert [d.batchnorm.problem for d in found.plan.decisions] == [None, None]
    planned = fold(source, tmp_path / "folded.h5")
    assert not planned.folds
    with h5py.File(source) as old, h5py.File(tmp_path / "folded.h5") as new:
        listed = [read_names(f["model_weights"]["base"], "weight_names") for f in (old, new)]
        assert listed[0] == listed[1]


@pytest.mark.parametrize("count", [1, 2])
def test_legacy_layers_whose_config_has_no_name_keep_their_variables(
    count: int, tmp_path: Path
) -> None:
    class Bare(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight("own", shape=(shape[-1], 4))

        def call(self, inputs: Any) -> Any:
            return inputs @ self.kernel

        def get_config(self) -> dict[str, Any]:
            return {}

    bare = [Bare() for _ in range(count)]
    norm = layers.BatchNormalization(axis=-1)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), norm, *bare])
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, one.shape) for one in model.get_weights()])
    model.save(tmp_path / "model.h5")
    report = fold_file(tmp_path / "model.h5", tmp_path / "folded.h5", proof=None)
    assert len(report.plan.folds) == 1
    fold_file(tmp_path / "folded.h5", tmp_path / "again.h5", proof=None)
    samples = rng.normal(size=(5, 4))
    for name in ("folded.h5", "again.h5"):
        folded = keras.models.load_model(tmp_path / name, custom_objects={"Bare": Bare})
        np.testing.assert_allclose(folded(samples), model(samples), rtol=1e-5)


def test_legacy_variables_that_no_layer_has_are_not_lost(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="here")])
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "a") as file:
        weights = file["model_weights"]
        weights.copy("here", "elsewhere")
        weights.attrs["layer_names"] = [b"here", b"elsewhere"]
        del weights["elsewhere/here"]
        weights["elsewhere/own:0"] = np.ones(3, "float32")
        weights["elsewhere"].attrs["weight_names"] = [b"own:0"]
    with pytest.raises(UnreadableModelError, match="variables of elsewhere"):
        fold_file(tmp_path / "model.h5", tmp_path / "folded.h5", proof=None)
    assert not (tmp_path / "folded.h5").exists()
