"""BatchNormalization that is not in the graph of a file, or not as Keras usually writes it.

What could not be read is named by BN011, and never folded.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from archives import keras_file, weights
from click.testing import CliRunner

from bnfold.cli import main
from bnfold.jobs.fold import fold_file
from bnfold.jobs.inspect import Inspection, inspect_file

old, new = tf_keras.layers, keras.layers

Shape = tuple[int, ...]


class BatchNorm(old.BatchNormalization):  # type: ignore[misc]
    """As in Mask R-CNN."""


class Derived(old.BatchNormalization):  # type: ignore[misc]
    """A class whose name does not tell."""


class Block(old.Layer):  # type: ignore[misc]
    """Keeps its layers to itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.first = old.BatchNormalization(name="first")
        self.second = old.BatchNormalization(scale=False, name="second")

    def call(self, inputs: Any) -> Any:
        return self.second(self.first(inputs))


class Twins(old.Layer):  # type: ignore[misc]
    """Has the variables of two in one scope, where the second ones get a number."""

    def build(self, shape: Any) -> None:
        for number in ("", "_1"):
            for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                trainable = not name.startswith("moving")
                self.add_weight(f"{name}{number}", shape=shape[-1:], trainable=trainable)

    def call(self, inputs: Any) -> Any:
        return inputs


class Port(old.Layer):  # type: ignore[misc]
    """Has the variables of a BatchNormalization by the names that another framework gives them."""

    def __init__(self, names: list[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.names = names

    def build(self, shape: Any) -> None:
        for name in self.names:
            self.add_weight(name, shape=shape[-1:], trainable="mean" not in name)

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "names": self.names}


class Quantized(old.Wrapper):  # type: ignore[misc]
    """As the wrappers of quantization-aware training and pruning: its own variables, too."""

    def build(self, shape: Any = None) -> None:
        super().build(shape)
        self.step = self.add_weight("optimizer_step", shape=(), trainable=False)

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


@pytest.fixture(autouse=True)
def fresh_names() -> None:
    tf_keras.backend.clear_session()
    keras.backend.clear_session(free_memory=False)


def spoil(model: Any) -> Any:
    """Every moving variance is NaN."""
    for variable in model.weights:
        shape = tuple(variable.shape)
        if "moving_variance" in variable.name:
            variable.assign(np.full(shape, np.nan))
        elif variable.dtype.is_floating:
            variable.assign(np.random.default_rng(0).normal(0.4, 1.0, shape))
    return model


def nested(*layers: Any, shape: Shape = (6, 4)) -> Any:
    entry = tensor = tf_keras.Input(shape)
    for layer in layers:
        tensor = layer(tensor)
    inside = tf_keras.Model(entry, tensor, name="inside")
    entry = tf_keras.Input(shape)
    return tf_keras.Model(entry, old.Dense(2, name="head")(inside(entry)))


def flat(*layers: Any, shape: Shape = (6, 4)) -> Any:
    return tf_keras.Sequential([tf_keras.Input(shape), *layers, old.Dense(2, name="head")])


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.h5"
    spoil(model).save(path)
    return path


def warned(found: Inspection) -> dict[str, set[str]]:
    """The codes that are no mere facts, by the layer."""
    codes: dict[str, set[str]] = {}
    for finding in found.findings:
        if finding.severity != "info":
            codes.setdefault("/".join(finding.layer), set()).add(finding.code)
    return codes


HIDDEN: dict[str, tuple[Callable[[], list[Any]], set[str]]] = {
    "a class of its own": (lambda: [BatchNorm(name="own/bn")], {"own/bn"}),
    "beside layers that are known": (
        lambda: [old.Dense(4, name="own/d"), BatchNorm(name="own"), old.Dense(4, name="d")],
        {"own"},
    ),
    "inside a custom layer": (lambda: [Block(name="block")], {"block/first", "block/second"}),
    "two in one scope": (lambda: [Twins(name="twins")], {"twins", "twins/twins_1"}),
    "a derived class beside a custom layer": (
        lambda: [Derived(scale=False, center=False, name="derived"), Block(name="block")],
        {"derived", "block/first", "block/second"},
    ),
    "inside a custom wrapper": (
        lambda: [
            Quantized(old.Dense(4, name="dense"), name="quant_dense"),
            Quantized(old.BatchNormalization(name="bn"), name="quant_bn"),
        ],
        {"quant_bn"},
    ),
    "inside a wrapper of Keras": (
        lambda: [old.TimeDistributed(BatchNorm(name="bn"), name="timed")],
        {"timed/bn"},
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("build", [flat, nested])
@pytest.mark.few(7)
def test_the_names_of_variables_show_what_classes_hide(
    build: Any, name: str, tmp_path: Path
) -> None:
    make, paths = HIDDEN[name]
    source = saved(build(*make()), tmp_path)
    around = "inside/" if build is nested else ""
    expected = {f"{around}{path}": {"BN011", "BN104"} for path in paths}
    assert warned(inspect_file(source)) == expected
    report = fold_file(source, tmp_path / "folded.h5", proof=None)
    assert {one["name"] for one in report.to_dict()["kept"]} == set(expected)


@pytest.mark.parametrize("format_", ["text", "json", "sarif", "github", "junit", "markdown"])
def test_every_format_and_the_gate_name_it(format_: str, tmp_path: Path) -> None:
    source = flat(BatchNorm(name="own"))
    source.save(tmp_path / "model.h5")
    command = ["inspect", str(tmp_path / "model.h5"), "--no-config", "--format", format_]
    result = CliRunner().invoke(main, [*command, "--fail-on", "warning"])
    assert result.exit_code == 1
    assert "BN011" in result.stdout


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (["weight", "bias", "running_mean", "running_var"], 1),
        (["running_mean", "running_var"], 1),
        (["gamma", "beta", "moving_mean", "moving_var"], 1),
        (["scale", "offset", "mean", "variance"], 1),
        (["g", "b", "popMean", "popVar"], 1),
        (["w", "x", "y", "z"], 1),  # four vectors of one length
        (["gamma", "beta", "tau"], 0),
        (["gamma"], 0),
        (["mean", "variance", "count"], 0),  # standardizes the model's input
    ],
)
def test_variables_as_other_frameworks_call_them(
    names: list[str], count: int, tmp_path: Path
) -> None:
    model = flat(Port(names, name="port"))
    values = [np.full(4, np.nan) if "ar" in name else np.ones(4) for name in names]
    model.get_layer("port").set_weights(values)
    model.save(tmp_path / "model.h5")
    found = warned(inspect_file(tmp_path / "model.h5"))
    expected = {"BN011", "BN104"} if any("ar" in name for name in names) else {"BN011"}
    assert found.get("port", set()) >= (expected if count else set())
    assert len(found) == count


def test_layers_that_are_none_are_not_taken_for_one(tmp_path: Path) -> None:
    class Scale(old.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight("gamma", shape=shape[-1:])
            self.beta = self.add_weight("beta", shape=shape[-1:])

        def call(self, inputs: Any) -> Any:
            return inputs * self.gamma + self.beta

    source = flat(
        Scale(name="scale"),
        old.LayerNormalization(name="bn"),
        old.GroupNormalization(2),
        old.UnitNormalization(),
        old.Normalization(mean=[0.1] * 4, variance=[0.2] * 4),
        old.Bidirectional(old.LSTM(3, return_sequences=True)),
    )
    assert inspect_file(saved(source, tmp_path)).plan.decisions == ()


# --- classes and groups of Keras 3 ---------------------------------------------------------------


@keras.saving.register_keras_serializable("not_audited")
class Renamed(keras.layers.BatchNormalization):  # type: ignore[misc]
    """A class without BatchNorm in its name."""


@keras.saving.register_keras_serializable("not_audited")
class Counting(Renamed):
    """One with a variable more."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.count = self.add_weight(name="count", shape=(), trainable=False)


@keras.saving.register_keras_serializable("not_audited")
class SyncBN(keras.layers.Layer):  # type: ignore[misc]
    """A class of its own, with these of its variables."""

    def __init__(self, slots: str = "mv", **settings: Any) -> None:
        super().__init__(**settings)
        self.slots = slots

    def build(self, shape: Any) -> None:
        names = {"g": "gamma", "b": "beta", "m": "moving_mean", "v": "moving_variance", "t": "tau"}
        for slot in self.slots:
            first = "ones" if slot in "gv" else "zeros"
            self.add_weight(name=names[slot], shape=shape[-1:], initializer=first)

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "slots": self.slots}


@keras.saving.register_keras_serializable("not_audited")
class Own(SyncBN):
    """The same, with a name that does not tell."""


@keras.saving.register_keras_serializable("not_audited")
class Around(keras.layers.Wrapper):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)


@keras.saving.register_keras_serializable("not_audited")
class MyBatchNorm(keras.layers.BatchNormalization):  # type: ignore[misc]
    """A class with it."""


@keras.saving.register_keras_serializable("not_audited")
class Residual(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bn1 = keras.layers.BatchNormalization(scale=False)
        self.other = keras.layers.LayerNormalization()

    def call(self, inputs: Any) -> Any:
        return self.other(self.bn1(inputs))


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: Renamed(name="norm"), 1),
        (lambda: Renamed(name="norm", scale=False), 1),
        (lambda: Renamed(name="norm", scale=False, center=False), 1),
        (lambda: Counting(name="norm", scale=False), 1),
        (lambda: new.TimeDistributed(Renamed(scale=False)), 1),
        (lambda: keras.Sequential([Renamed(center=False), new.LayerNormalization()]), 1),
        (lambda: Around(Around(Renamed(scale=False))), 1),
        (lambda: SyncBN(), 1),
        (lambda: Own("bmv"), 1),
        (lambda: Own("gbt"), 0),
        (lambda: Own("gb"), 0),
        (lambda: Own("g"), 0),
        (lambda: MyBatchNorm(name="norm", scale=False), 1),
        (lambda: MyBatchNorm(name="norm", scale=False, center=False), 1),
        (lambda: Residual(name="norm"), 1),
        (lambda: new.TimeDistributed(MyBatchNorm(scale=False), name="norm"), 1),
        (lambda: new.SpectralNormalization(new.Dense(4), name="norm"), 0),
        (lambda: new.LayerNormalization(name="batch_norm"), 0),
        (lambda: new.GroupNormalization(2), 0),
        (lambda: new.RNN(new.LSTMCell(4), return_sequences=True), 0),
        (lambda: new.MultiHeadAttention(1, 2), 0),
    ],
)
@pytest.mark.few(13)
def test_what_keras_3_hides(make: Any, count: int, form: str, tmp_path: Path) -> None:
    layer, entry = make(), keras.Input((6, 4))
    inputs = (entry, entry) if isinstance(layer, new.MultiHeadAttention) else (entry,)
    model = keras.Model(entry, new.Dense(2)(layer(*inputs)))
    model.save(tmp_path / f"model{form}")
    found = [f for f in inspect_file(tmp_path / f"model{form}").findings if f.code == "BN011"]
    assert len(found) == count


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Renamed(scale=False),
        lambda: Renamed(scale=False, center=False),
        lambda: new.TimeDistributed(Renamed(center=False)),
        lambda: Around(Around(new.BatchNormalization(scale=False))),
    ],
)
def test_settings_tell_which_statistics_there_are(make: Any, form: str, tmp_path: Path) -> None:
    entry = keras.Input((6, 4))
    model = keras.Model(entry, make()(entry))
    for variable in model.weights:
        if "moving_variance" in variable.path:
            variable.assign([np.nan] * 4)
    model.save(tmp_path / f"model{form}")
    (codes,) = warned(inspect_file(tmp_path / f"model{form}")).values()
    assert codes == {"BN011", "BN104"}


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_an_operation_that_normalizes_is_named(form: str, tmp_path: Path) -> None:
    entry, ones = keras.Input((6, 4)), np.ones(4, "float32")
    inside = keras.Input((6, 4))
    normalized = keras.ops.batch_normalization(new.Dense(4)(inside), ones, ones, -1)
    model = keras.Model(entry, keras.Model(inside, normalized, name="inside")(entry))
    model.save(tmp_path / f"model{form}")
    assert warned(inspect_file(tmp_path / f"model{form}")) == {"inside/batch_norm": {"BN011"}}
    report = fold_file(tmp_path / f"model{form}", tmp_path / f"folded{form}", proof=None)
    assert [one["name"] for one in report.to_dict()["kept"]] == ["inside/batch_norm"]


def test_an_operation_of_an_old_file_is_named(tmp_path: Path) -> None:
    import tensorflow as tf

    entry, ones = tf_keras.Input((6, 6, 4)), np.ones(4, "float32")
    called = tf.compat.v1.nn.fused_batch_norm
    outputs = called(entry, ones, ones, ones, ones, is_training=False)[0]
    tf_keras.Model(entry, outputs).save(tmp_path / "model.h5")
    (codes,) = warned(inspect_file(tmp_path / "model.h5")).values()
    assert codes == {"BN011"}


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_a_subclassed_model_is_looked_into(form: str, tmp_path: Path) -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = new.Dense(4), new.BatchNormalization(name="norm")

        def call(self, inputs: Any) -> Any:
            return self.norm(self.dense(inputs))

        def get_config(self) -> dict[str, Any]:
            return {}

    model = Own()
    model(np.zeros((1, 4)))
    model.norm.moving_variance.assign([np.nan] * 4)
    model.save(tmp_path / f"model{form}")
    (codes,) = warned(inspect_file(tmp_path / f"model{form}")).values()
    assert codes == {"BN011", "BN104"}


@pytest.mark.parametrize("lost", [range(4), [3]])
def test_a_layer_without_its_variables(lost: Any, tmp_path: Path) -> None:
    def lose(file: h5py.File) -> None:
        for number in lost:
            del file[f"layers/batch_normalization/vars/{number}"]

    path = keras_file(tmp_path / "model.keras", h5=weights(lose))
    found = inspect_file(path)
    assert [f.code for f in found.findings if f.severity != "info"] == ["BN011"]


# --- several axes, virtual batches ---------------------------------------------------------------


def test_the_vectors_of_several_axes_are_audited(tmp_path: Path) -> None:
    norm = old.BatchNormalization(axis=[1, 2], name="pixelwise")
    model = flat(norm, shape=(5, 4, 3))
    path = saved(model, tmp_path)
    found = inspect_file(path)
    (decision,) = found.plan.decisions
    assert decision.batchnorm.channels == 20
    assert warned(found) == {"pixelwise": {"BN104"}}
    norm.moving_variance.assign(np.arange(20.0).reshape(norm.moving_variance.shape) - 1)
    model.save(path)
    (negative,) = [f for f in inspect_file(path).findings if f.code == "BN105"]
    assert "1 of 20 channels (0)" in negative.message
    assert not fold_file(path, tmp_path / "folded.h5", proof=None).plan.folds


@pytest.mark.parametrize(("axis", "shape", "expected"), [(-1, (6, 6, 3), 3), (1, (6, 6, 3), 1)])
def test_a_virtual_batch_size_does_not_move_the_axis(
    axis: int, shape: Shape, expected: int, tmp_path: Path
) -> None:
    norm = old.BatchNormalization(axis=axis, virtual_batch_size=2, name="ghost")
    before = [old.Conv2D(4, 3)] if axis == -1 else []
    path = saved(flat(*before, norm, shape=shape), tmp_path)
    with h5py.File(path) as file:
        listed = json.loads(file.attrs["model_config"])["config"]["layers"]
        (config,) = [one["config"] for one in listed if one["config"]["name"] == "ghost"]
        assert config["axis"] == [expected + 1]
    found = inspect_file(path)
    (decision,) = found.plan.decisions
    assert decision.batchnorm.axis == expected
    assert decision.batchnorm.channels == (4 if axis == -1 else 6)
    assert warned(found) == {"ghost": {"BN104"}}
    assert not fold_file(path, tmp_path / "folded.h5", proof=None).plan.folds


# --- a backbone without its weights --------------------------------------------------------------


def backbone(layers: Any, *, trained: bool = False) -> list[Any]:
    made = [layer for _ in range(2) for layer in (layers.Dense(4), layers.BatchNormalization())]
    for layer in made:
        layer.trainable = False
        if trained and hasattr(layer, "moving_mean_initializer"):
            layer.moving_mean_initializer = "random_normal"
    return made


@pytest.mark.parametrize(
    ("library", "form"), [(keras, ".keras"), (keras, ".h5"), (tf_keras, ".h5")]
)
@pytest.mark.parametrize("shape", ["flat", "nested", "flat with a head that trains"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.few(8)
def test_a_frozen_backbone_without_its_weights_is_a_warning(
    shape: str, library: Any, form: str, trained: bool, tmp_path: Path
) -> None:
    layers = library.layers
    made = backbone(layers, trained=trained)
    if shape == "nested":
        made = [library.Sequential([library.Input((4,)), *made])]
    elif shape != "flat":
        made.append(layers.BatchNormalization(moving_mean_initializer="random_normal"))
    library.Sequential([library.Input((4,)), *made]).save(tmp_path / f"model{form}")
    found = inspect_file(tmp_path / f"model{form}").findings
    severities = [f.severity for f in found if f.code == "BN101"]
    assert severities == ([] if trained else ["warning", "warning"])
