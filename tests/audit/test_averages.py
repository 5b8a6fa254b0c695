"""BN110 on files of real optimizers: which weights are averages, and what that spoils."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import keras
from tiers import by_turns

from bnfold.audit import averages
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container import hdf5
from bnfold.model.graph import Weight

layers = keras.layers
GENERATOR = np.random.default_rng(5)
SAMPLES = GENERATOR.normal(size=(24, 6)).astype("float32")
TARGETS = GENERATOR.normal(size=(24, 2)).astype("float32")

WARNED, TOLD = {"bn": "warning"}, {"bn": "info"}


def adam(momentum: float = 0.999, **options: Any) -> Any:
    return keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum, **options)


def plain(*before: Any, **options: Any) -> Any:
    """Dense and a norm, or the norm behind other layers."""
    norm = layers.BatchNormalization(name="bn", **options)
    return keras.Sequential(
        [keras.Input((6,)), *(before or (layers.Dense(4),)), norm, layers.Dense(2)]
    )


def fitted(model: Any, optimizer: Any = None, **options: Any) -> Any:
    """A model after two epochs of three steps."""
    model.compile(optimizer or adam(), "mse", run_eagerly=True)
    model.fit(SAMPLES, TARGETS, batch_size=8, epochs=2, verbose=0, **options)
    return model


def stepped(model: Any, optimizer: Any = None) -> Any:
    """A model after three steps along any gradients, and what `fit` does when it ends."""
    model.compile(optimizer or adam(), "mse")
    variables = model.trainable_variables
    for _ in range(3):
        gradients = [
            keras.ops.convert_to_tensor(GENERATOR.normal(size=one.shape), one.dtype)
            for one in variables
        ]
        model.optimizer.apply(gradients, variables)
    model.optimizer.finalize_variable_values(variables)
    return model


def said(path: Path) -> dict[str, str]:
    """The severity of BN110 by layer."""
    findings = inspect_file(path).findings
    return {"/".join(f.layer): f.severity.value for f in findings if f.code == "BN110"}


def said_of(model: Any, folder: Path, form: str = ".keras") -> dict[str, str]:
    path = folder / f"model{form}"
    if path.is_dir():
        shutil.rmtree(path)
    model.save(path, **({} if form else {"zipped": False}))
    return said(path)


def saved_after_each_epoch(folder: Path, *before: Any) -> Path:
    """The file of a checkpoint in the middle of a `fit` with other callbacks in front."""
    checkpoint = keras.callbacks.ModelCheckpoint(str(folder / "model-{epoch}.keras"))
    fitted(plain(), callbacks=[*before, checkpoint])
    return folder / "model-1.keras"


# --- what is found -------------------------------------------------------------------------------


def test_fit_ends_with_averages_for_weights(tmp_path: Path) -> None:
    model = fitted(plain())
    for form in (".keras", "", ".h5"):
        assert said_of(model, tmp_path, form) == WARNED, form
    # What trains on has raw weights again.
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    model.fit(SAMPLES, TARGETS, verbose=0)
    for form in (".keras", "", ".h5"):
        assert said_of(model, tmp_path, form) == {}, form


def test_kernels_are_compared_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = hdf5.Plain.__call__, []

    def noted(self: hdf5.Plain) -> Any:
        whole.append(read(self))
        return whole[-1]

    monkeypatch.setattr(hdf5, "PIECE_BYTES", 8)
    monkeypatch.setattr(hdf5.Plain, "__call__", noted)
    assert said_of(fitted(plain(center=False, scale=False)), tmp_path) == WARNED
    assert [one.shape for one in whole if one.ndim > 1] == []


WRAPPED: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.999),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, use_ema=True, ema_momentum=0.9999),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(adam(), initial_scale=2.0),
    "accumulated": lambda: adam(gradient_accumulation_steps=2),
    "amsgrad": lambda: adam(amsgrad=True),
}


@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.few(3)
def test_whatever_the_optimizer(make: Callable[[], Any], tmp_path: Path) -> None:
    model = stepped(plain(), make())
    for form in by_turns((".keras", ".h5")):
        assert said_of(model, tmp_path, form) == WARNED


PARTS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "without gamma and beta": (lambda: plain(center=False, scale=False), WARNED),
    "behind a Dropout": (lambda: plain(layers.Dense(4), layers.Dropout(0.1)), WARNED),
    "behind an Embedding": (
        lambda: plain(layers.Lambda(lambda x: x > 0), layers.Embedding(2, 3), layers.Flatten()),
        WARNED,
    ),
    "float16": (lambda: plain(layers.Dense(4, dtype="mixed_float16")), WARNED),
    "frozen": (lambda: plain(trainable=False), {}),
    "on the input": (lambda: plain(layers.Rescaling(2.0)), {}),
    "on the input, standardized": (lambda: plain(layers.Normalization()), {}),
    "behind what is frozen": (lambda: plain(layers.Dense(4, trainable=False)), {}),
    "no norm": (lambda: keras.Sequential([keras.Input((6,)), layers.Dense(2)]), {}),
}


@pytest.mark.parametrize(("make", "expected"), PARTS.values(), ids=PARTS)
@pytest.mark.few(4)
def test_whose_statistics_it_spoils(
    make: Callable[[], Any], expected: dict[str, str], tmp_path: Path
) -> None:
    model = stepped(make())
    for form in by_turns((".keras", ".h5")):
        assert said_of(model, tmp_path, form) == expected


def test_every_layer_of_a_nested_model(tmp_path: Path) -> None:
    inside = keras.Sequential([keras.Input((6,)), layers.Dense(4), norm("one"), layers.ReLU()])
    inside.name = "inside"
    model = keras.Sequential([keras.Input((6,)), norm("first"), inside, layers.Dense(2)])
    expected = {"inside/one": "warning"}
    assert said_of(stepped(model), tmp_path) == expected
    assert said_of(model, tmp_path, ".h5") == expected


def norm(name: str) -> Any:
    return layers.BatchNormalization(name=name)


def test_a_nested_model_that_was_trained_on_its_own(tmp_path: Path) -> None:
    inside = stepped(plain())
    inside.name = "inside"
    outer = keras.Sequential([keras.Input((6,)), inside])
    assert said_of(outer, tmp_path) == {"inside/bn": "warning"}
    stepped(outer, keras.optimizers.SGD(0.1))  # the averages of the inner optimizer are stale
    assert said_of(outer, tmp_path) == {}


@keras.saving.register_keras_serializable("averages")
class Subclassed(keras.Model):  # type: ignore[misc]
    """A model whose file shows no graph."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.norm = layers.Dense(4), layers.BatchNormalization(name="bn")
        self.last = layers.Dense(2)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.last(self.norm(self.first(inputs), training=training))


def test_a_subclassed_model_tells_by_gamma_and_beta(tmp_path: Path) -> None:
    assert set(said_of(fitted(Subclassed()), tmp_path).values()) == {"warning"}


# --- by how much ---------------------------------------------------------------------------------

DEGREES: dict[str, tuple[dict[str, Any], float, dict[str, str]]] = {
    "longer than the norm": ({"momentum": 0.999}, 0.99, WARNED),
    "as long": ({"momentum": 0.99}, 0.99, TOLD),
    "shorter": ({"momentum": 0.9}, 0.99, TOLD),
    "longer than a quick norm": ({"momentum": 0.99}, 0.9, WARNED),
    "put in place every 50 steps": ({"ema_overwrite_frequency": 50}, 0.99, TOLD),
    "put in place every 500 steps": ({"ema_overwrite_frequency": 500}, 0.99, WARNED),
    "put in place in every step": ({"ema_overwrite_frequency": 1}, 0.99, {}),
    "no average at all": ({"momentum": 0.0}, 0.99, {}),
}


@pytest.mark.parametrize(("options", "momentum", "expected"), DEGREES.values(), ids=DEGREES)
@pytest.mark.few(4)
def test_how_long_the_averages_are(
    options: dict[str, Any], momentum: float, expected: dict[str, str], tmp_path: Path
) -> None:
    model = stepped(plain(momentum=momentum), adam(**options))
    assert said_of(model, tmp_path) == expected


# --- where the weights are not the averages, or that is not known --------------------------------


def test_a_checkpoint_of_raw_weights(tmp_path: Path) -> None:
    assert said(saved_after_each_epoch(tmp_path)) == TOLD


def test_a_checkpoint_of_swapped_weights(tmp_path: Path) -> None:
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    assert said(saved_after_each_epoch(tmp_path, swap)) == TOLD
    assert said(tmp_path / "model-2.keras") == WARNED


def test_swapped_weights_at_the_end_of_fit(tmp_path: Path) -> None:
    swap = keras.callbacks.SwapEMAWeights()
    model = fitted(plain(), callbacks=[swap], validation_data=(SAMPLES, TARGETS))
    model.evaluate(SAMPLES, TARGETS, verbose=0, callbacks=[swap])
    assert said_of(model, tmp_path) == WARNED


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_compiled_and_not_trained(form: str, tmp_path: Path) -> None:
    model = stepped(plain(), keras.optimizers.SGD(0.1))
    model.compile(adam(), "mse")
    assert said_of(model, tmp_path, form) == {}
    model.optimizer.build(model.trainable_variables)
    assert said_of(model, tmp_path, form) == {}


def test_a_single_step_has_no_average_yet(tmp_path: Path) -> None:
    model = plain()
    model.compile(adam(), "mse", run_eagerly=True)
    model.train_on_batch(SAMPLES, TARGETS)
    assert said_of(model, tmp_path) == {}


@pytest.mark.parametrize("kept", [2, 0])
def test_averages_that_are_not_in_the_file(kept: int, tmp_path: Path) -> None:
    stepped(plain()).save(tmp_path / "model", zipped=False)
    with h5py.File(tmp_path / "model" / "model.weights.h5", "r+") as file:
        for name in list(file["optimizer/vars"]):
            if int(name) >= kept:
                del file[f"optimizer/vars/{name}"]
    assert said(tmp_path / "model") == WARNED
    (found,) = (f for f in inspect_file(tmp_path / "model").findings if f.code == "BN110")
    assert "does not tell whether it did" in found.message


# --- files of Keras 2 ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [".keras", ".h5"])
def test_averages_of_keras_2(form: str, tmp_path: Path) -> None:
    keras2 = pytest.importorskip("tf_keras")
    model = keras2.Sequential(
        [
            keras2.layers.Dense(4, input_shape=(6,)),
            keras2.layers.BatchNormalization(name="bn"),
            keras2.layers.Dense(2),
        ]
    )
    optimizer = keras2.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.999)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(SAMPLES, TARGETS, batch_size=8, verbose=0)
    assert said_of(model, tmp_path, form) == WARNED


def test_averages_of_an_addon(tmp_path: Path) -> None:
    """TensorFlow Addons is no more: its wrapper's config and slots, as its files have them."""
    path = tmp_path / "model.h5"
    stepped(plain()).save(path)
    with h5py.File(path, "r+") as file:
        config = b'{"optimizer_config": {"class_name": "Addons>SWA", "config": {"optimizer": {}}}}'
        file.attrs["training_config"] = config
    assert said(path) == WARNED


# --- what it costs -------------------------------------------------------------------------------


def test_no_other_file_has_its_optimizer_read(tmp_path: Path, monkeypatch: Any) -> None:
    from bnfold.model.container import hdf5

    path = tmp_path / "model.keras"
    stepped(plain(), keras.optimizers.Adam(0.01)).save(path)
    monkeypatch.setattr(hdf5, "all_weights", lambda *_: pytest.fail("read"))
    assert said(path) == {}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3)])
def test_weights_without_two_numbers_tell_nothing(shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, "f4")
    weight = Weight(shape, values.dtype, lambda: values)
    assert list(averages._verbatim([weight], [weight])) == []
