"""Channels that decay has left with a gamma of almost nothing: they keep no layer from folding.

What the unfolded model computes is compared in real Keras, whose TensorFlow flushes subnormal
numbers to zero, and for one model in ONNX Runtime, which does not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from support import (
    batchnorms,
    chain,
    difference,
    examine,
    fold_file,
    keras,
    load,
    outputs,
    randomize,
    samples,
)

import bnfold

layers = keras.layers

Build = Callable[[Any], Any]


def norm(name: str = "bn", **options: Any) -> Any:
    return layers.BatchNormalization(name=name, **options)


def faded(model: Any, gamma: float, beta: float, channels: Sequence[int] = (1,)) -> Any:
    """The model with a layer "bn" of which some channels have this gamma and beta."""
    randomize(model)
    layer = model.get_layer("bn")
    gammas, betas = np.full(layer.gamma.shape, 0.8), np.asarray(layer.beta.numpy())
    gammas[list(channels)], betas[list(channels)] = gamma, beta
    layer.gamma.assign(gammas)
    layer.beta.assign(betas)
    layer.moving_variance.assign(np.linspace(0.5, 2, layer.gamma.shape[0]))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "Conv2D, an output": lambda: chain((6, 6, 3), layers.Conv2D(4, 3), norm()),
    "Conv2D, pooled": lambda: chain(
        (6, 6, 3), layers.Conv2D(4, 3), norm(), layers.ReLU(), layers.MaxPooling2D(),
        layers.Conv2D(3, 1),
    ),
    "DepthwiseConv2D": lambda: chain(
        (6, 6, 3), layers.DepthwiseConv2D(3, depth_multiplier=2), norm(), layers.Conv2D(2, 1)
    ),
    "Dense": lambda: chain((6,), layers.Dense(5), norm(), layers.Activation("swish"),
                           layers.Dense(3)),
    "LSTM, forward": lambda: chain((5, 4), norm(), layers.LSTM(3)),
    "Dense, forward": lambda: chain((5,), norm(), layers.Dense(3)),
    "another BatchNormalization": lambda: chain(
        (6,), layers.Dense(5), norm(), layers.ReLU(), norm("next"), layers.ReLU(), layers.Dense(3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.few(6)
def test_a_dead_channel_folds(name: str, beta: float, tmp_path: Path) -> None:
    model = faded(MODELS[name](), 1e-39, beta)
    left = 1 if name.startswith("another") else 0
    examine(model, tmp_path, left=left, forms=[".keras"])


@pytest.mark.parametrize(
    ("gamma", "beta", "channels", "left"),
    [
        (1e-39, 0.0, (0, 2), 0),
        (1e-38, 0.0, (1,), 0),
        (0.0, 0.0, (1,), 0),
        (-1e-39, -0.2, (0, 1, 2, 3, 4), 0),
        (0.0, 0.0, (0, 1, 2, 3, 4), 0),
        # Nothing tells what such numbers are small beside of.
        (1e-39, 0.0, (0, 1, 2, 3, 4), 1),
        (1e-39, 0.0, (0, 1, 2), 1),
    ],
)
@pytest.mark.few(4)
def test_several_and_all_channels(
    gamma: float, beta: float, channels: tuple[int, ...], left: int, tmp_path: Path
) -> None:
    model = faded(chain((6,), layers.Dense(5), norm(), layers.Dense(3)), gamma, beta, channels)
    examine(model, tmp_path, left=left, forms=[".keras"])


def test_keras_computes_beta_without_a_fold_too(tmp_path: Path) -> None:
    model = faded(chain((6, 6, 3), layers.Conv2D(4, 3), norm()), 1e-39, 0.25)
    model.save(tmp_path / "model.keras")
    report = bnfold.fold(tmp_path / "model.keras", tmp_path / "folded.keras")
    assert report.written
    assert report.verification is not None
    assert report.verification.verdict == "equivalent"
    folded = load(tmp_path / "folded.keras")
    x = samples(model)
    for one in (model, folded):
        assert np.all(outputs(one, x, training=False)[0][..., 1] == 0.25)
    kernel = folded.layers[1].kernel.numpy()
    assert np.all(kernel[..., 1] == 0)
    assert np.all(np.abs(kernel[..., [0, 2, 3]]) > 0)


def loud(factor: float, *between: Any) -> Any:
    """Another layer without a shift, which multiplies one channel by a factor."""
    model = chain(
        (6,), layers.Dense(5), norm(), *between, norm("next", center=False), layers.ReLU(),
        layers.Dense(3),
    )  # fmt: skip
    faded(model, 1e-39, 0.0)
    after = model.get_layer("next")
    after.gamma.assign([1.0, factor, 1.0, 1.0, 1.0])
    after.moving_mean.assign(np.zeros(5))
    after.moving_variance.assign(np.ones(5))
    return model


@pytest.mark.parametrize(("factor", "left"), [(1e20, []), (1e37, ["bn"])])
def test_a_channel_that_is_blown_up_is_not_dead(
    factor: float, left: list[str], tmp_path: Path
) -> None:
    examine(loud(factor, layers.ReLU()), tmp_path, left=left, forms=[".keras"])


def test_two_layers_that_make_up_for_each_other_fold_to_their_product(tmp_path: Path) -> None:
    """In float64 the channel comes out; TensorFlow loses it between the unfolded layers."""
    model = chain((6,), layers.Dense(5), norm(), norm("next"))
    faded(model, 1e-39, 0.0)
    after = model.get_layer("next")
    after.gamma.assign([1.0, 1e37, 1.0, 1.0, 1.0])
    after.moving_variance.assign(np.ones(5))
    model.save(tmp_path / "model.keras")
    bnfold.fold(tmp_path / "model.keras", tmp_path / "folded.keras", verify=False)
    folded = load(tmp_path / "folded.keras")
    assert batchnorms(folded) == []
    exact = keras.models.clone_model(model, clone_function=in_float64)
    exact.set_weights(model.get_weights())
    x = samples(model)
    truth, found = (outputs(one, x, training=False) for one in (exact, folded))
    assert difference([truth[0][:, 1]], [found[0][:, 1]]) < 1e-5


def in_float64(layer: Any) -> Any:
    return layer.__class__.from_config({**layer.get_config(), "dtype": "float64"})


@pytest.mark.parametrize(
    ("kernel", "left"),
    [
        (lambda random: random, 0),
        (lambda random: np.eye(5), 1),  # keeps the channel apart
        (lambda random: random * (np.arange(5) == 1)[:, None], 1),  # reads no other
    ],
)
def test_what_reads_a_dead_channel_must_read_others(
    kernel: Callable[[Any], Any], left: int, tmp_path: Path
) -> None:
    model = chain((6,), layers.Dense(5), norm(), layers.Dense(5, name="next"), layers.ReLU())
    faded(model, 3e-39, 0.0)
    model.get_layer("next").kernel.assign(kernel(model.get_layer("next").kernel.numpy()))
    examine(model, tmp_path, left=left, forms=[".keras"])


@keras.saving.register_keras_serializable("test")
class Louder(layers.Layer):  # type: ignore[misc]
    """A layer of which only its code tells what it does with small numbers."""

    def call(self, inputs: Any) -> Any:
        return inputs * 1e30


def test_a_reader_that_is_not_known_keeps_the_layer(tmp_path: Path) -> None:
    model = faded(chain((6,), layers.Dense(5), norm(), Louder()), 1e-39, 0.0)
    examine(model, tmp_path, left=1, forms=[".keras"], reason="would underflow float32")
    model = faded(chain((6,), layers.Dense(5), norm(), Louder()), 1e-39, 0.5)
    examine(model, tmp_path, left=0, forms=[".keras"])


def test_a_mask_depends_on_whether_a_number_is_zero(tmp_path: Path) -> None:
    parts = [layers.Dense(5), norm(), layers.ReLU(), layers.Masking(), layers.LSTM(2)]
    model = faded(keras.Sequential([keras.Input((4, 6)), *parts]), 1e-39, 0.0)
    examine(model, tmp_path, left=1, forms=[".keras"], reason="would underflow float32")


def louder(tensor: Any) -> Any:
    return 1e30 * tensor


@pytest.mark.parametrize(
    "operation", [lambda x: x * 1e37, lambda x: 1e37 * x, lambda x: x / 1e-37, lambda x: x**0.01]
)
def test_an_operation_may_blow_a_channel_up(operation: Build, tmp_path: Path) -> None:
    parts = [layers.Dense(5), norm(), layers.ReLU(), operation, layers.Dense(3)]
    model = faded(chain((6,), *parts), 1e-39, 0.0)
    examine(model, tmp_path, left=1, forms=[".keras"], reason="would underflow float32")


@pytest.mark.parametrize("steep", [True, False])
@pytest.mark.parametrize("name", ["setting", "function", "kernel"])
def test_old_files_tell_in_their_own_way_what_multiplies(
    name: str, steep: bool, tmp_path: Path
) -> None:
    old = tf_keras.layers
    reader = {
        "setting": lambda: old.LeakyReLU(alpha=1e30 if steep else 0.1),
        "function": lambda: old.Activation(louder if steep else "tanh"),
        "kernel": lambda: old.DepthwiseConv2D(1, activation=louder if steep else "tanh"),
    }[name]()
    parts = [tf_keras.Input((3, 3, 6)), old.Conv2D(5, 1), old.BatchNormalization(name="bn"), reader]
    model = tf_keras.Sequential(parts)
    gamma, beta, *others = model.get_layer("bn").get_weights()
    gamma[1] = 1e-40
    model.get_layer("bn").set_weights([gamma, beta, *others])
    model.save(tmp_path / "model.h5")
    planned = fold_file(tmp_path / "model.h5", tmp_path / "folded.h5")
    assert len(planned.blocked) == steep


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("gamma", "beta"), [(1e-7, 0.3), (1e-7, 0.0)])
def test_dead_channels_in_sixteen_bits(
    policy: str, gamma: float, beta: float, tmp_path: Path
) -> None:
    model = chain(
        (6,), layers.Dense(5, dtype=policy), norm(dtype=policy), layers.Dense(3, dtype=policy)
    )
    gamma = 1e-39 if "bfloat" in policy else gamma
    examine(faded(model, gamma, beta), tmp_path, left=0, forms=[".keras"])


def test_a_faint_channel_in_float16_is_not_dead(tmp_path: Path) -> None:
    model = chain(
        (6,), *(one(dtype="float16") for one in (lambda **o: layers.Dense(5, **o), norm)),
        layers.Dense(3, dtype="float16"),
    )  # fmt: skip
    examine(faded(model, 2e-5, 0.0), tmp_path, left=1, forms=[".keras"], reason="underflow")
