"""The Python API with live models; with paths it is what the command line calls."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import keras, outputs, randomize

import bnfold


@pytest.fixture(scope="module")
def model() -> Any:
    inputs = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    built = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x), name="live")
    built.compile("adam", "mse")
    return randomize(built)


def test_inspect_takes_a_live_model(model: Any) -> None:
    inspection = bnfold.inspect(model)
    assert [fold.batchnorm.path for fold in inspection.plan.folds] == [("norm",)]


def test_fold_gives_a_live_model_back_and_leaves_the_first_alone(model: Any) -> None:
    before = [weight.numpy().copy() for weight in model.weights]
    folded = bnfold.fold(model)
    assert isinstance(folded, keras.Model)
    assert not [x for x in folded.layers if isinstance(x, keras.layers.BatchNormalization)]
    images = np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(outputs(folded, images)[0], outputs(model, images)[0], atol=1e-6)
    assert model.optimizer is not None
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())


def test_verify_takes_live_models_and_refuses_a_changed_one(model: Any) -> None:
    folded = bnfold.fold(model, verify=False)
    assert bnfold.verify(model, folded).verdict is bnfold.Verdict.EQUIVALENT
    kernel = folded.get_layer("conv").kernel
    changed = kernel.numpy()
    changed[..., 0] *= 1.001
    kernel.assign(changed)
    assert bnfold.verify(model, folded).verdict is bnfold.Verdict.DIFFERENT


def test_a_refused_live_fold_raises(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold import conversion

    judged = bnfold.verify(model, keras.models.clone_model(model))
    monkeypatch.setattr(conversion, "verify", lambda *_, **__: judged)
    with pytest.raises(bnfold.VerificationFailedError, match="refused"):
        bnfold.fold(model)


def test_a_model_that_keras_cannot_save_is_a_clear_error() -> None:
    class Stubborn(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs

        def get_config(self) -> Any:
            raise NotImplementedError("not today")

    inputs = keras.Input((2,))
    with pytest.raises(bnfold.BnfoldError, match="cannot save"):
        bnfold.inspect(keras.Model(inputs, Stubborn()(inputs)))


@pytest.mark.parametrize(("live", "out"), [(True, "out.keras"), (False, None)])
def test_a_path_needs_an_out_and_a_live_model_has_none(
    model: Any, live: bool, out: str | None, tmp_path: Path
) -> None:
    given: Any = model if live else tmp_path / "model.keras"
    with pytest.raises(TypeError, match="fold takes"):
        bnfold.fold(given, out)


def test_anything_else_is_a_type_error() -> None:
    given: Any = 3
    with pytest.raises(TypeError, match="expected a path"):
        bnfold.inspect(given)
