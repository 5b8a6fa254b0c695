"""The health rules on models that Keras built: all that depends on what is around a layer."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import keras, open_weights, randomize

from bnfold.audit import Finding
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.model.container.model_file import ModelFile, open_model

layers = keras.layers
Unpack = Callable[[str], Path]


def norm(name: str = "bn", **options: Any) -> Any:
    return layers.BatchNormalization(name=name, **options)


def settle(model: Any) -> Any:
    """Give every norm statistics and a scale that no rule minds; returns the model."""
    generator = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.5, shape))
            layer.moving_variance.assign(generator.uniform(0.5, 1.5, shape))
            if layer.scale:
                layer.gamma.assign(generator.uniform(0.8, 1.2, shape))
    return model


def saved(model: Any, folder: Path, form: str = ".keras") -> Inspection:
    path = folder / f"model{form}"
    model.save(path)
    return inspect_file(path)


def codes(inspected: Inspection) -> dict[str, list[str]]:
    """The codes of each layer that has findings."""
    found: dict[str, list[str]] = {}
    for finding in inspected.findings:
        found.setdefault("/".join(finding.layer), []).append(finding.code)
    return found


def finding(inspected: Inspection, code: str) -> Finding:
    return next(found for found in inspected.findings if found.code == code)


FORMS = pytest.mark.parametrize("form", [".keras", ".h5"])


def sequential(*parts: Any, shape: tuple[int, ...] = (6,)) -> Any:
    return settle(keras.Sequential([keras.Input(shape), *parts]))


# --- BN006: the axis -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "parts", "axes"),
    [
        ((8, 8, 3), lambda: [layers.Conv2D(4, 3), norm(axis=1)], (1, 3)),
        ((8, 8, 3), lambda: [layers.Conv2D(4, 3), norm(axis=2)], (2, 3)),
        ((3, 8, 8), lambda: [layers.Conv2D(4, 3, data_format="channels_first"), norm()], (3, 1)),
        ((8, 8, 3), lambda: [layers.DepthwiseConv2D(3), layers.ReLU(), norm(axis=1)], (1, 3)),
        (
            (8, 8, 3),
            lambda: [layers.Conv2D(4, 3), layers.MaxPooling2D(), layers.Dropout(0.1), norm(axis=1)],
            (1, 3),
        ),
        ((8, 3), lambda: [layers.Conv1D(4, 3), norm(axis=1)], (1, 2)),
        ((8, 3), lambda: [layers.LSTM(4, return_sequences=True), norm(axis=1)], (1, 2)),
        ((8, 3), lambda: [layers.EinsumDense("abc,cd->abd", (8, 4)), norm(axis=1)], (1, 2)),
        ((5, 6, 6, 3), lambda: [layers.ConvLSTM2D(4, 3), norm(axis=1)], (1, 3)),
        (
            (5, 3, 6, 6),
            lambda: [layers.ConvLSTM2D(4, 3, data_format="channels_first"), norm()],
            (3, 1),
        ),
        ((8, 3), lambda: [layers.TimeDistributed(layers.Dense(4)), norm(axis=1)], (1, 2)),
        (
            (5, 8, 8, 3),
            lambda: [
                layers.TimeDistributed(layers.Conv2D(4, 3)),
                layers.TimeDistributed(norm("inner", axis=1), name="bn"),
            ],
            (2, 4),
        ),
    ],
)
def test_an_axis_beside_the_channels(
    shape: tuple[int, ...], parts: Callable[[], list[Any]], axes: tuple[int, int], tmp_path: Path
) -> None:
    inspected = saved(sequential(*parts(), shape=shape), tmp_path)
    found = finding(inspected, "BN006")
    assert (found.figures["axis"], found.figures["channel_axis"]) == axes
    assert "BN303" not in codes(inspected)["bn"]


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((8, 8, 3), lambda: [layers.Conv2D(4, 3), norm(axis=3)]),
        ((8, 8, 3), lambda: [layers.Conv2D(4, 3), norm(axis=-1)]),
        ((3, 8, 8), lambda: [layers.Conv2D(4, 3, data_format="channels_first"), norm(axis=1)]),
        ((6,), lambda: [layers.Dense(4), norm(axis=1)]),
        ((8, 3), lambda: [norm(axis=1)]),  # the model's input
        ((8, 3), lambda: [layers.EinsumDense("abc,bd->adc", (4, 3)), norm()]),  # mixes tokens
        ((8, 3), lambda: [layers.EinsumDense("abc,bd->adc", (4, 3)), norm(axis=1)]),
        ((8, 3), lambda: [layers.EinsumDense("abc,cde->abde", (8, 2, 4)), norm(axis=2)]),
        ((8, 3), lambda: [layers.EinsumDense("abc,c->abc", (8, 3)), norm(axis=1)]),
        ((8, 3), lambda: [layers.Conv1D(4, 3), layers.Permute((2, 1)), norm(axis=1)]),
        ((8, 3), lambda: [layers.Conv1D(4, 3), layers.Reshape((4, 6)), norm(axis=1)]),
        (
            (5, 8, 8, 3),
            lambda: [
                layers.TimeDistributed(layers.Conv2D(4, 3)),
                layers.TimeDistributed(norm("inner", axis=3), name="bn"),
            ],
        ),
    ],
)
def test_an_axis_that_may_be_right(
    shape: tuple[int, ...], parts: Callable[[], list[Any]], tmp_path: Path
) -> None:
    assert "BN006" not in codes(saved(sequential(*parts(), shape=shape), tmp_path)).get("bn", [])


def test_an_axis_behind_an_average_that_takes_the_channels_away(tmp_path: Path) -> None:
    inputs = keras.Input((8, 7, 3))
    averaged = keras.ops.average(layers.Conv2D(4, 3)(inputs), axis=-1)
    model = settle(keras.Model(inputs, norm(axis=1)(averaged)))
    assert "BN006" not in codes(saved(model, tmp_path)).get("bn", [])


def test_an_axis_behind_attention(tmp_path: Path) -> None:
    inputs = keras.Input((5, 6))
    attended = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    inspected = saved(settle(keras.Model(inputs, norm(axis=1)(attended))), tmp_path)
    assert finding(inspected, "BN006").figures == {"axis": 1, "channel_axis": 2}


def test_an_axis_of_joined_branches(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    both = [layers.Conv2D(4, 3, padding="same")(inputs) for _ in range(2)]
    model = settle(keras.Model(inputs, norm(axis=1)(layers.Add()(both))))
    assert "BN006" in codes(saved(model, tmp_path))["bn"]


def test_a_branch_of_unknown_axes_leaves_the_axis_open(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    moved = layers.Permute((2, 1, 3))(layers.Conv2D(4, 3, padding="same")(inputs))
    joined = layers.Add()([layers.Conv2D(4, 3, padding="same")(inputs), moved])
    model = settle(keras.Model(inputs, norm(axis=1)(joined)))
    assert "BN006" not in codes(saved(model, tmp_path)).get("bn", [])


@FORMS
def test_an_axis_across_the_wall_of_a_nested_model(form: str, tmp_path: Path) -> None:
    inner_input = keras.Input((8, 8, 4))
    inner = keras.Model(inner_input, norm(axis=1)(inner_input), name="inner")
    inputs = keras.Input((8, 8, 3))
    model = settle(keras.Model(inputs, inner(layers.Conv2D(4, 1)(inputs))))
    assert "BN006" in codes(saved(model, tmp_path, form))["inner/bn"]


# --- BN007 and BN008: the mode -------------------------------------------------------------------


@FORMS
def test_a_model_frozen_as_a_whole_freezes_what_is_inside(form: str, tmp_path: Path) -> None:
    inner_input = keras.Input((6,))
    inner = keras.Model(inner_input, norm()(layers.Dense(6)(inner_input)), name="inner")
    inputs = keras.Input((6,))
    model = settle(keras.Model(inputs, norm("head")(inner(inputs, training=True))))
    inner.trainable = False
    found = codes(saved(model, tmp_path, form))
    assert "BN008" in found["inner/bn"]
    assert "BN007" not in found["inner/bn"]
    assert "BN008" not in found.get("head", [])


def test_a_layer_set_free_inside_a_frozen_model_is_trained(tmp_path: Path) -> None:
    inner_input = keras.Input((6,))
    inner = keras.Model(inner_input, norm()(layers.Dense(6)(inner_input)), name="inner")
    inputs = keras.Input((6,))
    model = settle(keras.Model(inputs, inner(inputs)))
    inner.trainable = False
    inner.get_layer("bn").trainable = True
    path = tmp_path / "model.keras"
    model.save(path)
    assert "BN008" not in codes(inspect_file(path)).get("inner/bn", [])
    loaded = keras.models.load_model(path)
    inside = loaded.get_layer("inner").get_layer("bn")
    before = np.asarray(inside.moving_mean.numpy())
    loaded(np.ones((4, 6), "float32") * 9, training=True)
    assert np.any(inside.moving_mean.numpy() != before)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layers.TimeDistributed(layer, name="outer"),
        lambda layer: keras.Sequential([layer], name="outer"),
    ],
    ids=["TimeDistributed", "Sequential"],
)
def test_training_mode_from_a_wrapper(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    inputs = keras.Input((5, 6))
    model = settle(keras.Model(inputs, wrap(norm())(layers.Dense(6)(inputs), training=True)))
    inspected = saved(model, tmp_path)
    assert finding(inspected, "BN007").severity == "error"
    assert not [found for found in inspected.findings if found.code == "BN303"]


@pytest.mark.parametrize("between", ["ReLU", "Dropout"])
def test_training_mode_that_another_layer_ends(between: str, tmp_path: Path) -> None:
    middle = layers.Dropout(0.2) if between == "Dropout" else layers.ReLU()
    parts = (layers.Resizing(6, 6), middle, layers.Conv2D(4, 3, use_bias=False), norm())
    inspected = saved(sequential(*parts, shape=(8, 8, 3)), tmp_path)
    ends = between == "Dropout"
    assert set(codes(inspected)["bn"]) == ({"BN302", "BN303"} if ends else {"BN007", "BN012"})
    batch = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    together, alone = np.asarray(loaded(batch)), np.asarray(loaded(batch[:1]))
    assert np.allclose(together[:1], alone, atol=1e-4) == ends


# --- BN009: sharing ------------------------------------------------------------------------------


@FORMS
def test_a_layer_that_is_called_twice(form: str, tmp_path: Path) -> None:
    left, right = keras.Input((6,)), keras.Input((6,))
    shared = norm()
    model = settle(keras.Model([left, right], [shared(left), shared(right)]))
    assert finding(saved(model, tmp_path, form), "BN009").figures == {"calls": 2}


@FORMS
def test_a_nested_model_that_is_called_twice(form: str, tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6), norm()], name="inner")
    left, right = keras.Input((6,)), keras.Input((6,))
    model = settle(keras.Model([left, right], [inner(left), inner(right)]))
    inspected = saved(model, tmp_path, form)
    assert inspected.findings
    assert finding(inspected, "BN009").figures == {"calls": 2}
    assert finding(inspected, "BN009").layer == ("inner", "bn")


def test_a_layer_that_stands_in_two_places(tmp_path: Path) -> None:
    shared = norm()
    inputs = keras.Input((3, 6))
    hidden = layers.Dense(6)(shared(inputs))
    model = settle(keras.Model(inputs, layers.TimeDistributed(shared, name="wrapper")(hidden)))
    found = [f for f in saved(model, tmp_path).findings if f.code == "BN009"]
    assert {f.layer for f in found} == {("bn",), ("wrapper",)}
    assert all("stands in several places" in f.message for f in found)


def test_one_call_is_not_shared(tmp_path: Path) -> None:
    assert "BN009" not in codes(saved(sequential(layers.Dense(4), norm()), tmp_path))["bn"]


# --- BN103: how often the statistics were updated ------------------------------------------------

DATA = 3 * np.random.default_rng(0).normal(size=(80, 6)).astype("float32") + 2


def fitted(
    model: Any, *, steps: int = 20, optimizer: Any = "sgd", size: float = 1.0, **options: Any
) -> Any:
    model.compile(optimizer, "mse", **options)
    target = np.zeros((80, *model.output_shape[1:]), "float32")
    model.fit(size * DATA, target, batch_size=4, epochs=1, steps_per_epoch=steps, verbose=0)
    return model


def small(**options: Any) -> Any:
    return keras.Sequential([keras.Input((6,)), layers.Dense(4), norm(**options)])


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "adam": lambda: keras.optimizers.Adam(),
    "ema": lambda: keras.optimizers.Adam(use_ema=True),
    "accumulating": lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=4),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
}


# Every optimizer and every form by default, but not each with each: all of them train.
@pytest.mark.parametrize(
    ("optimizer", "form"),
    [
        pytest.param(name, form, marks=[pytest.mark.slow] * ((i + k) % 2))
        for i, name in enumerate(OPTIMIZERS)
        for k, form in enumerate((".keras", ".h5"))
    ],
)
@pytest.mark.few(3)
def test_the_steps_of_every_optimizer(optimizer: str, form: str, tmp_path: Path) -> None:
    inspected = saved(fitted(small(), optimizer=OPTIMIZERS[optimizer]()), tmp_path, form)
    found = finding(inspected, "BN103")
    assert found.figures["updates"] == 20
    assert found.severity == "error"


def test_the_steps_under_automatic_loss_scaling(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    model = fitted(small(), auto_scale_loss=True)
    counted = int(model.optimizer.inner_optimizer.iterations)  # a step that overflows is not taken
    assert 10 < counted <= 20
    assert finding(saved(model, tmp_path), "BN103").figures["updates"] == counted


def test_the_steps_in_a_directory(tmp_path: Path) -> None:
    fitted(small()).save(tmp_path / "model", zipped=False)
    assert finding(inspect_file(tmp_path / "model"), "BN103").figures["updates"] == 20


@pytest.mark.parametrize(("momentum", "steps"), [(0.8, 20), (0.99, 0)])
def test_enough_steps_or_none_counted(momentum: float, steps: int, tmp_path: Path) -> None:
    model = settle(small(momentum=momentum))
    model.compile("sgd", "mse")
    if steps:
        fitted(model, steps=steps)
    assert "BN103" not in codes(saved(model, tmp_path)).get("bn", [])


def test_a_model_that_was_compiled_again_is_older_than_its_counter(tmp_path: Path) -> None:
    model = fitted(small(momentum=0.8), steps=20, size=1e-3)
    assert "BN103" not in codes(saved(fitted(model, steps=1, size=1e-3), tmp_path)).get("bn", [])
    assert "BN103" in codes(saved(fitted(small(momentum=0.8), steps=1), tmp_path))["bn"]


@FORMS
def test_a_shared_layer_is_updated_at_each_call(form: str, tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    shared = norm()
    hidden = shared(layers.Dense(6)(shared(inputs)))
    model = fitted(keras.Model(inputs, layers.Dense(2)(hidden)))
    assert finding(saved(model, tmp_path, form), "BN103").figures["updates"] == 40


def test_a_nested_model_has_the_steps_of_both_optimizers(tmp_path: Path) -> None:
    inner = fitted(keras.Sequential([keras.Input((6,)), layers.Dense(6), norm()], name="inner"))
    inputs = keras.Input((6,))
    model = fitted(keras.Model(inputs, norm("head")(inner(inputs))), steps=15)
    found = {f.layer: f for f in saved(model, tmp_path).findings if f.code == "BN103"}
    assert found["inner", "bn"].figures["updates"] == 35
    assert found["head",].figures["updates"] == 15


def test_fit_overrides_the_training_false_of_a_call(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6), norm()], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, norm("head")(inner(inputs, training=False), training=False))
    found = codes(saved(fitted(model), tmp_path))
    assert np.any(inner.get_layer("bn").moving_mean.numpy() != 0)  # Keras agrees
    assert "BN103" in found["inner/bn"]
    assert "BN103" in found["head"]


def test_what_is_in_time_distributed_is_updated_at_each_time_step(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = layers.Reshape((3, 2))(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(norm("inner"), name="bn")(hidden))
    model = fitted(model, optimizer=keras.optimizers.SGD(0.0), steps=10)
    found = finding(saved(model, tmp_path), "BN103")
    assert found.figures["updates"] == 30
    # Keras agrees: with a variance of 0 it would have sunk by 0.99 at each.
    constant = keras.Model(inputs, layers.TimeDistributed(norm("other"), name="bn2")(hidden))
    constant.compile("sgd", "mse")
    constant.fit(np.ones((4, 6)), np.ones((4, 3, 2)), batch_size=4, epochs=10, verbose=0)
    variance = constant.get_layer("bn2").layer.moving_variance.numpy()
    assert variance == pytest.approx(0.99**30, rel=1e-4)


def with_old_backbone(*, trainable: bool, momentum: float = 0.99) -> Any:
    """20 steps of a head with a norm, behind a nested model whose variances took more of them."""
    bn = norm(momentum=momentum)
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6), bn], name="inner")
    inner.trainable = trainable
    inputs = keras.Input((6,))
    model = fitted(keras.Model(inputs, norm("head")(inner(inputs))))
    bn.moving_variance.assign([0.1] * 6)
    return model


def test_a_layer_of_any_model_tells_that_the_counter_is_younger(tmp_path: Path) -> None:
    inspected = saved(with_old_backbone(trainable=True), tmp_path)
    assert [found.layer for found in inspected.findings if found.code == "BN103"] == []


def test_a_frozen_layer_does_not_tell_how_old_the_counter_is(tmp_path: Path) -> None:
    inspected = saved(with_old_backbone(trainable=False), tmp_path)
    assert [found.layer for found in inspected.findings if found.code == "BN103"] == [("head",)]


def test_statistics_that_moved_before_the_momentum_was_1_are_older(tmp_path: Path) -> None:
    inspected = saved(with_old_backbone(trainable=True, momentum=1.0), tmp_path)
    assert "BN103" not in codes(inspected).get("head", [])


def test_steps_of_older_versions(fixture_model: Unpack) -> None:
    expected = {
        "digits_cnn_keras213.keras": 675,
        "digits_cnn_keras215.h5": 675,
        "digits_cnn_keras215.keras": 675,
        "digits_cnn_keras30.keras": 675,
        "digits_cnn_keras36.keras": 675,
        "digits_cnn_keras315_dir": 675,
        "textbook_mlp_keras215.h5": 450,
        "branches_keras215.h5": None,
    }
    for name, steps in expected.items():
        with open_model(fixture_model(name)) as model:
            assert steps_of(model) == ({} if steps is None else {(): steps}), name


def steps_of(model: ModelFile) -> dict[tuple[str, ...], int]:
    """The steps of each optimizer, where the file tells."""
    found = {path: optimizer.steps for path, optimizer in model.optimizers.items()}
    return {path: steps for path, steps in found.items() if steps is not None}


def with_counter(source: Path, target: Path, value: Any) -> Path:
    """A copy of an .h5 file whose optimizer counts something else."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        del file["optimizer_weights/adam/iteration"]
        file["optimizer_weights/adam/iteration"] = value
    return target


@pytest.mark.parametrize(
    "value",
    [-3, 0.5, np.nan, np.inf, 1e300, np.zeros(3), np.zeros((0,)), np.bytes_(b"many"), 2 + 1j],
)
def test_a_counter_that_counts_nothing(value: Any, fixture_model: Unpack, tmp_path: Path) -> None:
    broken = with_counter(fixture_model("digits_cnn_keras315.h5"), tmp_path / "m.h5", value)
    with open_model(broken) as model:
        assert steps_of(model) == {}
    assert not [found for found in inspect_file(broken).findings if found.severity == "error"]


def test_a_linked_counter_is_refused(fixture_model: Unpack, tmp_path: Path) -> None:
    from bnfold.errors import UnsafeModelError

    broken = with_counter(
        fixture_model("digits_cnn_keras315.h5"),
        tmp_path / "m.h5",
        h5py.ExternalLink("/etc/passwd", "/x"),
    )
    with pytest.raises(UnsafeModelError, match="is a link"):
        inspect_file(broken)


# --- BN107 and BN403: the model's input ----------------------------------------------------------


def _image(*parts: Any) -> tuple[tuple[int, ...], list[Any]]:
    return (6, 6, 5), [*parts]


NEAR_THE_INPUT: dict[str, Callable[[], tuple[tuple[int, ...], list[Any]]]] = {
    "input": lambda: _image(),
    "Flatten": lambda: _image(layers.Flatten()),
    "Reshape": lambda: _image(layers.Reshape((36, 5))),
    "Permute": lambda: _image(layers.Permute((2, 1, 3))),
    "Resizing": lambda: _image(layers.Resizing(4, 4)),
    "CenterCrop": lambda: _image(layers.CenterCrop(4, 4)),
    "Cropping2D": lambda: _image(layers.Cropping2D(1)),
    "ZeroPadding2D": lambda: _image(layers.ZeroPadding2D(1)),
    "UpSampling2D": lambda: _image(layers.UpSampling2D(2)),
    "MaxPooling2D": lambda: _image(layers.MaxPooling2D(2)),
    "GlobalAveragePooling2D": lambda: _image(layers.GlobalAveragePooling2D()),
    "GlobalMaxPooling2D": lambda: _image(layers.GlobalMaxPooling2D()),
    "RepeatVector": lambda: ((5,), [layers.RepeatVector(3)]),
    "Rescaling, Dropout": lambda: _image(layers.Rescaling(1 / 255), layers.Dropout(0.1)),
    "Normalization": lambda: ((5,), [layers.Normalization(mean=1.0, variance=2.0)]),
    "RandomFlip": lambda: _image(layers.RandomFlip(), layers.Flatten()),
    "TimeDistributed": lambda: _image(layers.TimeDistributed(layers.Flatten())),
    "nested model": lambda: _image(
        keras.Sequential([layers.Resizing(4, 4), layers.Flatten()], name="prepare")
    ),
    "CategoryEncoding": lambda: ((5,), [layers.CategoryEncoding(4, output_mode="multi_hot")]),
}
INSIDE: dict[str, Callable[[], tuple[tuple[int, ...], list[Any]]]] = {
    "Dense": lambda: ((6,), [layers.Dense(6, use_bias=False)]),
    "Conv2D, Flatten": lambda: _image(layers.Conv2D(4, 3, use_bias=False), layers.Flatten()),
    "GlobalAveragePooling2D": lambda: _image(
        layers.Conv2D(4, 3, use_bias=False), layers.GlobalAveragePooling2D()
    ),
    "Embedding, Flatten": lambda: ((5,), [layers.Embedding(9, 4), layers.Flatten()]),
}


def levels_of_a_constant_channel(model: Any, tmp_path: Path) -> set[str]:
    """The levels of what is said of a first channel without a variance, whose scale is far out."""
    layer = model.get_layer("bn")
    layer.moving_variance.assign([0.0] + [9.0] * (layer.moving_variance.shape[0] - 1))
    layer.gamma.assign(layer.gamma * 0 + 1)
    found = saved(model, tmp_path).findings
    return {str(one.severity) for one in found if one.code in ("BN107", "BN402", "BN403")}


@pytest.mark.parametrize("before", NEAR_THE_INPUT)
def test_constant_inputs_are_no_warning(before: str, tmp_path: Path) -> None:
    shape, parts = NEAR_THE_INPUT[before]()
    parts = [*parts, norm(epsilon=2e-5)]
    assert levels_of_a_constant_channel(sequential(*parts, shape=shape), tmp_path) == {"info"}


@pytest.mark.parametrize("before", INSIDE)
def test_channels_that_died_inside_are_one(before: str, tmp_path: Path) -> None:
    shape, parts = INSIDE[before]()
    model = sequential(*parts, norm(epsilon=2e-5), shape=shape)
    assert "warning" in levels_of_a_constant_channel(model, tmp_path)


@pytest.mark.parametrize("trained", [False, True])
def test_constant_inputs_that_are_joined(trained: bool, tmp_path: Path) -> None:
    image, features = keras.Input((4, 4, 2)), keras.Input((3,))
    flat = keras.ops.reshape(keras.ops.mean(image, axis=1), (-1, 8))
    side = layers.Dense(3)(features) if trained else features
    joined = keras.ops.concatenate([flat, side], axis=-1)
    model = settle(keras.Model([image, features], norm(epsilon=2e-5)(joined)))
    expected = {"warning"} if trained else {"info"}
    assert levels_of_a_constant_channel(model, tmp_path) == expected


# --- BN202: what is behind -----------------------------------------------------------------------


def dead(model: Any, name: str = "bn") -> Any:
    settle(model)
    layer = model.get_layer(name)
    layer.beta.assign([-9.0] + [0.0] * (layer.beta.shape[0] - 1))
    return model


RELUS: dict[str, Callable[[Any], Any]] = {
    "layer": lambda x: layers.ReLU()(x),
    "layer of 6": lambda x: layers.ReLU(6)(x),
    "activation": lambda x: layers.Activation("relu")(x),
    "activation of 6": lambda x: layers.Activation("relu6")(x),
    "activation layer": lambda x: layers.Activation(layers.ReLU(6.0))(x),
    "function": lambda x: keras.activations.relu(x),
    "operation": lambda x: keras.ops.relu(x),
    "operation of 6": lambda x: keras.ops.relu6(x),
    "maximum": lambda x: keras.ops.maximum(x, 0.0),
    "clip": lambda x: keras.ops.clip(x, 0.0, 6.0),
    "leaky without a slope": lambda x: layers.LeakyReLU(negative_slope=0.0)(x),
    "behind Dropout": lambda x: layers.ReLU()(layers.Dropout(0.5)(x)),
    "behind Flatten": lambda x: layers.ReLU()(layers.Flatten()(x)),
    "wrapped": lambda x: layers.TimeDistributed(layers.ReLU())(x),
    "twice": lambda x: layers.Add()([layers.ReLU()(x), layers.Activation("relu")(x)]),
}
NO_RELUS: dict[str, Callable[[Any], Any]] = {
    "leaky": lambda x: layers.ReLU(negative_slope=0.1)(x),
    "leaky by default": lambda x: layers.LeakyReLU()(x),
    "clip from elsewhere": lambda x: keras.ops.clip(x, -1.0, 6.0),
    "beside": lambda x: layers.Add()([layers.ReLU()(x), x]),
    "noise in training mode": lambda x: layers.ReLU()(layers.GaussianNoise(1.0)(x, training=True)),
    "pooled": lambda x: layers.ReLU()(layers.MaxPooling1D()(x)),
    "maximum with another": lambda x: keras.ops.maximum(x, 1.0),
    "maximum of two": lambda x: keras.ops.maximum(x, layers.Dense(6)(x)),
}


def before_relu(relu: Callable[[Any], Any]) -> Any:
    inputs = keras.Input((4, 6))
    return dead(keras.Model(inputs, relu(norm()(layers.Dense(6)(inputs)))))


@pytest.mark.parametrize("relu", RELUS)
def test_forms_of_a_relu(relu: str, tmp_path: Path) -> None:
    assert "BN202" in codes(saved(before_relu(RELUS[relu]), tmp_path))["bn"]


@pytest.mark.parametrize("relu", NO_RELUS)
def test_what_is_no_relu(relu: str, tmp_path: Path) -> None:
    assert "BN202" not in codes(saved(before_relu(NO_RELUS[relu]), tmp_path))["bn"]


def test_an_output_of_the_model_beside_a_relu(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    normed = norm()(layers.Dense(6)(inputs))
    model = dead(keras.Model(inputs, [normed, layers.ReLU()(normed)]))
    assert "BN202" not in codes(saved(model, tmp_path))["bn"]


@FORMS
def test_a_relu_outside_of_the_nested_model(form: str, tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6), norm()], name="inner")
    dead(inner)
    inputs = keras.Input((6,))
    hidden = inner(inputs)
    found = codes(saved(keras.Model(inputs, layers.ReLU()(hidden)), tmp_path, form))
    assert "BN202" in found["inner/bn"]
    found = codes(saved(keras.Model(inputs, layers.Dense(2)(hidden)), tmp_path, form))
    assert "BN202" not in found["inner/bn"]


# --- BN301: the bias -----------------------------------------------------------------------------

BIASED: dict[str, tuple[tuple[int, ...], Callable[[], list[Any]]]] = {
    "Dense": ((6,), lambda: [layers.Dense(4)]),
    "Conv2D": ((8, 8, 3), lambda: [layers.Conv2D(4, 3)]),
    "DepthwiseConv2D": ((8, 8, 3), lambda: [layers.DepthwiseConv2D(3)]),
    "SeparableConv2D": ((8, 8, 3), lambda: [layers.SeparableConv2D(4, 3)]),
    "Conv2DTranspose": ((8, 8, 3), lambda: [layers.Conv2DTranspose(4, 3)]),
    "TimeDistributed": ((5, 6), lambda: [layers.TimeDistributed(layers.Dense(4))]),
    "EinsumDense": ((5, 6), lambda: [layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d")]),
}
UNBIASED: dict[str, tuple[tuple[int, ...], Callable[[], list[Any]]]] = {
    "no bias": ((6,), lambda: [layers.Dense(4, use_bias=False)]),
    "activation": ((6,), lambda: [layers.Dense(4, activation="relu")]),
    "activation layer": ((6,), lambda: [layers.Dense(4), layers.ReLU()]),
    "Embedding": ((6,), lambda: [layers.Embedding(9, 4)]),
    "LSTM": ((5, 6), lambda: [layers.LSTM(4)]),
    "EinsumDense": ((5, 6), lambda: [layers.EinsumDense("abc,cd->abd", (5, 4))]),
    "EinsumDense, a bias for each step": (
        (5, 6),
        lambda: [layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="bd")],
    ),
    "pooling": ((8, 8, 3), lambda: [layers.Conv2D(4, 3), layers.MaxPooling2D()]),
}


@FORMS
@pytest.mark.parametrize("case", BIASED)
def test_a_bias_right_before(case: str, form: str, tmp_path: Path) -> None:
    shape, parts = BIASED[case]
    inspected = saved(sequential(*parts(), norm(), shape=shape), tmp_path, form)
    size = {"DepthwiseConv2D": 3}.get(case, 4)
    assert finding(inspected, "BN301").figures == {"parameters": size}


@pytest.mark.parametrize("case", UNBIASED)
def test_no_bias_right_before(case: str, tmp_path: Path) -> None:
    shape, parts = UNBIASED[case]
    found = codes(saved(sequential(*parts(), norm(), shape=shape), tmp_path))
    assert "BN301" not in found.get("bn", [])


@pytest.mark.parametrize("trainable", [True, False])
def test_a_bias_before_a_frozen_layer_can_still_be_learnt(trainable: bool, tmp_path: Path) -> None:
    model = sequential(layers.Dense(4, trainable=trainable), norm(trainable=False))
    assert ("BN301" in codes(saved(model, tmp_path))["bn"]) != trainable


def test_a_bias_that_something_else_sees_too(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = layers.Dense(4)(inputs)
    model = settle(keras.Model(inputs, layers.Add()([hidden, norm()(hidden)])))
    assert "BN301" not in codes(saved(model, tmp_path)).get("bn", [])


def test_a_bias_on_another_axis(tmp_path: Path) -> None:
    model = sequential(layers.Dense(4), norm(axis=1), shape=(5, 6))
    assert codes(saved(model, tmp_path))["bn"].count("BN301") == 0


# --- BN302: Dropout ------------------------------------------------------------------------------

DROPS: dict[str, Callable[[], list[Any]]] = {
    "right before": lambda: [layers.Dropout(0.2)],
    "before a Dense": lambda: [layers.Dropout(0.2), layers.Dense(6)],
    "spatial": lambda: [layers.Reshape((3, 2)), layers.SpatialDropout1D(0.2)],
    "gaussian": lambda: [layers.GaussianDropout(0.2), layers.Dense(6), layers.ReLU()],
}
NO_DROPS: dict[str, Callable[[], list[Any]]] = {
    "none": lambda: [layers.Dense(6)],
    "rate 0": lambda: [layers.Dropout(0.0)],
    "noise": lambda: [layers.GaussianNoise(0.1)],
    "another norm between": lambda: [layers.Dropout(0.2), layers.Dense(6), norm("first")],
    "LayerNormalization between": lambda: [layers.Dropout(0.2), layers.LayerNormalization()],
}


@pytest.mark.parametrize("case", DROPS)
def test_a_dropout_upstream(case: str, tmp_path: Path) -> None:
    found = finding(saved(sequential(*DROPS[case](), norm()), tmp_path), "BN302")
    assert found.figures["rate"] == pytest.approx(0.2)


@pytest.mark.parametrize("case", NO_DROPS)
def test_no_dropout_upstream(case: str, tmp_path: Path) -> None:
    assert "BN302" not in codes(saved(sequential(*NO_DROPS[case](), norm()), tmp_path)).get(
        "bn", []
    )


@pytest.mark.parametrize(("training", "drops"), [(True, False), (False, True), (None, True)])
def test_a_dropout_with_a_mode_of_its_own(training: Any, drops: bool, tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(inputs, training=training)
    model = settle(keras.Model(inputs, norm()(hidden, training=False)))
    assert ("BN302" in codes(saved(model, tmp_path)).get("bn", [])) == drops


@FORMS
def test_a_dropout_before_the_nested_model(form: str, tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6), norm()], name="inner")
    inputs = keras.Input((6,))
    model = settle(keras.Model(inputs, inner(layers.Dropout(0.2)(inputs))))
    assert "BN302" in codes(saved(model, tmp_path, form))["inner/bn"]


# --- BN303: what stays ---------------------------------------------------------------------------


def test_what_stays_is_said_with_the_reason_of_the_plan(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = layers.Dense(6)(inputs)
    model = settle(keras.Model(inputs, layers.Add()([hidden, norm()(hidden)])))
    inspected = saved(model, tmp_path)
    assert finding(inspected, "BN303").message == inspected.plan.blocked[0].reason


# --- BN401 and BN402: what a fold makes ----------------------------------------------------------


def test_a_kernel_is_measured_with_all_folds_in_it(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    dense = layers.Dense(4, use_bias=False, name="dense", kernel_initializer="ones")
    model = settle(keras.Model(inputs, norm("behind")(dense(norm("front")(inputs)))))
    model.get_layer("front").gamma.assign([1.0, 1.0, 1.0, 1.0, 1.0, 0.003])
    model.get_layer("front").moving_variance.assign([0.999] * 6)
    model.get_layer("front").beta.assign([0.0] * 6)
    model.get_layer("behind").gamma.assign([1.0, 1.0, 1.0, 0.01])
    model.get_layer("behind").moving_variance.assign([0.999] * 4)
    inspected = saved(model, tmp_path)
    assert [fold.direction for fold in inspected.plan.folds] == ["forward", "backward"]
    found = {f.layer: f for f in inspected.findings if f.code == "BN402"}
    assert found["front",].figures["share"] == pytest.approx(0.003, rel=1e-3)
    assert found["behind",].figures["share"] == pytest.approx(0.01, rel=1e-3)


def test_the_largest_number_of_the_file_that_fold_writes(tmp_path: Path) -> None:
    from bnfold.jobs.fold import fold_file

    model = sequential(layers.Conv2D(5, 3, name="conv"), norm(), shape=(8, 8, 3))
    randomize(model)
    model.save(tmp_path / "model.keras")
    inspected = inspect_file(tmp_path / "model.keras")
    (fold,) = inspected.plan.folds
    fold_file(tmp_path / "model.keras", tmp_path / "folded.keras", proof=None)
    with open_weights(tmp_path / "folded.keras") as file:
        kernel = file["layers/conv2d/vars/0"][()]
        bias = file["layers/conv2d/vars/1"][()]
    magnitudes = {magnitude.slot: magnitude for magnitude in fold.absorbers[0].magnitudes}
    assert magnitudes["kernel"].scaled == pytest.approx(
        np.abs(kernel).max(axis=(0, 1, 2)), rel=1e-6
    )
    assert magnitudes["bias"].exact == pytest.approx(bias, rel=1e-6)


# --- what nobody can know ------------------------------------------------------------------------


@keras.saving.register_keras_serializable("audit")
class Mine(keras.Model):
    """A class of somebody's own around a functional graph."""


def test_a_model_of_ones_own_class_has_no_known_neighbours(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.2)(layers.Dense(6)(inputs))
    model = dead(Mine(inputs, layers.ReLU()(norm(axis=1)(hidden))))
    assert codes(saved(model, tmp_path)) == {"bn": ["BN303"]}


def test_what_a_model_of_ones_own_class_makes_is_not_known(tmp_path: Path) -> None:
    inner_input = keras.Input((8, 8, 6))
    hidden = layers.Conv2D(6, 1)(layers.Dropout(0.2)(inner_input))
    inner = Mine(inner_input, hidden, name="inner")
    inputs = keras.Input((8, 8, 6))
    model = settle(keras.Model(inputs, norm(axis=1)(inner(inputs))))
    assert codes(saved(model, tmp_path)) == {"bn": ["BN303"]}


@keras.saving.register_keras_serializable("audit")
class Block(keras.layers.Layer):
    """A layer with a norm that its code alone knows of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = layers.BatchNormalization()

    def build(self, shape: Any) -> None:
        self.norm.build(shape)

    def call(self, inputs: Any) -> Any:
        return self.norm(inputs)


def test_a_norm_inside_a_custom_layer_is_judged_by_its_numbers(tmp_path: Path) -> None:
    model = fitted(keras.Sequential([keras.Input((6,)), layers.Dense(6), Block(name="block")]))
    model.get_layer("block").norm.moving_variance.assign([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
    inspected = saved(model, tmp_path)
    (found,) = codes(inspected).values()
    assert found == ["BN011", "BN105", "BN303"]
    assert finding(inspected, "BN105").severity == "warning"  # epsilon is not known


@keras.saving.register_keras_serializable("audit")
class Norm(layers.BatchNormalization):  # type: ignore[misc]
    """A norm of another name."""


@pytest.mark.parametrize(("custom", "severity"), [(Norm, "warning"), (Block, "error")])
def test_a_custom_layer_is_frozen_but_not_what_is_inside(
    custom: Any, severity: str, tmp_path: Path
) -> None:
    layer = custom(name="bn", trainable=False)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(6), layer])
    inspected = saved(model, tmp_path)
    (found,) = codes(inspected).values()
    assert found == [*(["BN008"] if custom is Norm else []), "BN011", "BN101", "BN303"]
    assert finding(inspected, "BN101").severity == severity
    assert getattr(layer, "norm", layer).trainable == (custom is Block)


# --- healthy models ------------------------------------------------------------------------------


def test_models_in_the_wild_have_no_warning(fixture_model: Unpack) -> None:
    for name in ("digits_cnn_keras315.keras", "digits_cnn_keras215.h5", "textbook_mlp_keras215.h5"):
        found = inspect_file(fixture_model(name)).findings
        assert {finding.severity for finding in found} <= {"info"}, name


def test_the_config_alone_can_spoil_a_healthy_model(fixture_model: Unpack, tmp_path: Path) -> None:
    source = fixture_model("digits_cnn_keras315.keras")
    target = tmp_path / "model.keras"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "config.json":
                config = json.loads(content)
                entries = config["config"]["layers"]
                norms = [e for e in entries if e["class_name"] == "BatchNormalization"]
                norms[1]["config"]["momentum"] = 0.01
                content = json.dumps(config).encode()
            new.writestr(info.filename, content)
    found = [f for f in inspect_file(target).findings if f.severity != "info"]
    assert [f.code for f in found] == ["BN003"]


@pytest.mark.parametrize(("first", "severity"), [([], "info"), ([layers.Dense(8)], "warning")])
def test_the_units_of_the_input_are_no_hazard(
    first: list[Any], severity: str, tmp_path: Path
) -> None:
    bn = norm()
    model = sequential(*first, layers.ReLU(), bn, layers.Dense(3), shape=(8,))
    bn.moving_variance.assign([1e10] + [1.0] * 7)
    assert finding(saved(model, tmp_path), "BN402").severity == severity


@pytest.mark.parametrize(
    ("join", "gamma", "severity"),
    [
        (lambda branch, other: layers.Add()([branch, other]), 0.003, "info"),
        (lambda branch, other: branch + other, 0.003, "info"),
        (lambda branch, other: branch + 1.0, 0.003, "warning"),
        (lambda branch, other: layers.Add()([branch, branch]), 0.003, "warning"),
        (lambda branch, other: layers.Multiply()([branch, other]), 0.003, "warning"),
        (lambda branch, other: [branch + other, layers.ReLU()(branch)], 0.003, "warning"),
        (lambda branch, other: [branch + other, branch], 0.003, "warning"),
        (lambda branch, other: branch + other, 0.6, "warning"),  # the variance makes it small
    ],
)
def test_what_is_next_to_nothing_in_a_sum_is_no_hazard(
    join: Any, gamma: float, severity: str, tmp_path: Path
) -> None:
    inputs = keras.Input((6,))
    other = layers.Dense(6)(inputs)
    model = settle(keras.Model(inputs, join(norm()(layers.Dense(6)(inputs)), other)))
    bn = model.get_layer("bn")
    bn.gamma.assign([1.0, 1.0, gamma, 1.0, 1.0, 1.0])
    bn.moving_variance.assign([1.0, 1.0, 1.0 if gamma < 0.1 else 1e5, 1.0, 1.0, 1.0])
    assert finding(saved(model, tmp_path), "BN402").severity == severity


def test_of_two_kernels_the_one_that_loses_more_than_the_sum_does_is_the_hazard(
    tmp_path: Path,
) -> None:
    inputs = keras.Input((6,))
    joined = layers.Add()([layers.Dense(6, name=name)(inputs) for name in ("first", "second")])
    model = settle(keras.Model(inputs, layers.Add()([norm()(joined), layers.Dense(6)(inputs)])))
    second = np.ones((6, 6))
    second[:, 2:4] = 10, 0.003  # the norm makes channel 2 small in both, channel 3 is so by itself
    model.get_layer("first").kernel.assign(np.ones((6, 6)))
    model.get_layer("second").kernel.assign(second)
    bn = model.get_layer("bn")
    bn.gamma.assign([1.0, 1.0, 0.002, 1.0, 1.0, 1.0])
    bn.moving_variance.assign(np.ones(6))
    found = finding(saved(model, tmp_path), "BN402")
    assert found.severity == "warning"
    assert "'second'" in found.message


@pytest.fixture(scope="module")
def long_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Any, Any]]:
    """A model after 320 steps of Adam, whose variances do not tell how many they were; its data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, norm()(layers.Dense(4)(inputs)))
    generator = np.random.default_rng(0)
    data = generator.normal(0, 30, (64, 6)), generator.normal(0, 3, (64, 4))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(*data, batch_size=8, epochs=40, verbose=0)
    folder = tmp_path_factory.mktemp("trained")
    assert "BN103" not in codes(saved(model, folder)).get("bn", [])
    assert float(np.min(model.get_layer("bn").moving_variance)) > 1
    return folder / "model.keras", data


# Two by default: each trains anew.
@pytest.mark.parametrize(
    ("optimizer", "silent"),
    [
        (lambda: keras.optimizers.Adam(1e-4), True),
        (lambda: keras.optimizers.Adam(0.1), False),  # it may be all there was
        pytest.param(lambda: keras.optimizers.SGD(1e-9), False, marks=pytest.mark.slow),
        pytest.param(
            lambda: keras.optimizers.Adam(
                keras.optimizers.schedules.ExponentialDecay(1e-4, decay_steps=9, decay_rate=1)
            ),
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["slow Adam", "fast Adam", "SGD", "a schedule"],
)
@pytest.mark.few(1)
def test_gammas_tell_that_the_counter_is_younger(
    optimizer: Callable[[], Any],
    silent: bool,
    long_trained: tuple[Path, tuple[Any, Any]],
    tmp_path: Path,
) -> None:
    """Adam moves a weight by 3.2 times its learning rate in a step, at most."""
    path, data = long_trained
    model = keras.models.load_model(path)
    model.compile(optimizer(), "mse")
    model.fit(*data, batch_size=8, epochs=2, verbose=0)
    for form in (".keras", ".h5"):
        assert ("BN103" not in codes(saved(model, tmp_path, form)).get("bn", [])) == silent, form


def test_gammas_that_started_elsewhere_tell_nothing(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    start = keras.initializers.Constant(3.0)
    bn = norm(gamma_initializer=start, beta_initializer=start)
    model = keras.Model(inputs, bn(layers.Dense(4)(inputs)))
    data = np.random.default_rng(0).normal(0, 30, (64, 6))
    model.compile(keras.optimizers.Adam(1e-4), "mse")
    model.fit(data, data[:, :4], batch_size=8, epochs=2, verbose=0)
    assert "BN103" in codes(saved(model, tmp_path))["bn"]


def test_the_steps_that_are_missing_are_those_of_the_optimizer(tmp_path: Path) -> None:
    """A layer that is called four times in a step needs a quarter of them."""
    inputs = [keras.Input((6,)) for _ in range(4)]
    bn = norm(momentum=0.99)
    model = keras.Model(inputs, layers.Add()([bn(one) for one in inputs]))
    data = [np.random.default_rng(n).normal(0, 30, (64, 6)) for n in range(4)]
    model.compile("adam", "mse")
    model.fit(data, data[0], batch_size=8, epochs=1, verbose=0)
    found = finding(saved(model, tmp_path), "BN103")
    assert (found.figures["updates"], found.figures["needed"]) == (32, 75)  # of 299


@FORMS
def test_a_time_distributed_norm_is_called_for_each_step_by_keras_3(
    form: str, tmp_path: Path
) -> None:
    def told(library: Any, steps: int | None) -> list[str]:
        parts = library.layers
        inside = parts.TimeDistributed(parts.BatchNormalization(), name="each")
        model = library.Sequential([library.Input((steps, 6)), inside])
        inspected = saved(model, tmp_path, form)
        return [found.message for found in inspected.findings if found.code == "BN009"]

    (message,) = told(keras, 5)
    assert "for each of 5 time steps" in message
    assert told(keras, None) == []
    assert told(pytest.importorskip("tf_keras"), 5) == []


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_augmentation_in_a_sequential_of_keras_2_hands_no_mode_on(
    form: str, tmp_path: Path
) -> None:
    """Keras 3 hands it on; which of them a Sequential is of, its input shape tells.

    Of HDF5 files of Keras 2 that counts too, because Keras 3 reads them.
    """

    def found(library: Any) -> Inspection:
        parts = library.layers
        model = library.Sequential(
            [
                library.Input((8, 8, 3)),
                parts.RandomTranslation(0.1, 0.1),
                parts.Conv2D(4, 3),
                parts.BatchNormalization(name="bn"),
            ]
        )
        return saved(model, tmp_path, form)

    assert "BN007" in codes(found(keras))["bn"]
    old = found(pytest.importorskip("tf_keras"))
    assert "BN007" not in codes(old)["bn"]
    assert ("BN012" in codes(old)["bn"]) == (form == ".h5")
    assert len(old.plan.folds) == (form == ".keras")
    of_keras_2 = inspect_file(tmp_path / f"model{form}", keras="2.15")
    assert len(of_keras_2.plan.folds) == 1
