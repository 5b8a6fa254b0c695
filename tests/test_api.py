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
    assert inspection.to_dict()["path"] == "live"


def test_inspect_takes_rules_thresholds_and_a_target(model: Any) -> None:
    def codes(**settings: Any) -> list[str]:
        return [finding.code for finding in bnfold.inspect(model, **settings).findings]

    assert codes(select=["BN003"]) == []
    strict = bnfold.Thresholds(inverted_momentum=0.999)
    assert codes(select=["BN003"], thresholds=strict) == ["BN003"]
    assert codes(select=["BN003"], ignore="BN003", thresholds=strict) == []
    with pytest.raises(ValueError, match="no target dtype: 'int8'"):
        codes(target_dtype="int8")


def test_fold_takes_tolerances(model: Any) -> None:
    with pytest.raises(bnfold.VerificationFailedError, match="was refused"):
        bnfold.fold(model, rtol=0, atol=0)


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


class Doubling(keras.layers.Layer):
    """A class that nobody registered."""

    def call(self, inputs: Any) -> Any:
        return 2 * inputs


def test_a_live_model_brings_its_own_classes() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs))
    folded = bnfold.fold(randomize(keras.Model(inputs, Doubling()(x))))
    assert [type(layer).__name__ for layer in folded.layers][1:] == ["Dense", "Doubling"]


def test_a_norm_called_by_keyword_can_be_an_output() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="out")(inputs=keras.layers.Dense(3)(inputs))
    folded = bnfold.fold(randomize(keras.Model(inputs, x)))
    assert [type(layer).__name__ for layer in folded.layers][1:] == ["Dense", "Activation"]
    assert folded.output_names == ["out"]


def test_settings_that_are_infinite_are_reported_as_null() -> None:
    inputs = keras.Input((4,))
    limit = keras.constraints.MaxNorm(float("inf"))
    norm = keras.layers.BatchNormalization(gamma_constraint=limit)
    inspection = bnfold.inspect(keras.Model(inputs, norm(keras.layers.Dense(3)(inputs))))
    constraint = inspection.to_dict()["batchnorms"][0]["constraints"]["gamma"]
    assert constraint["config"]["max_value"] is None


def test_a_norm_in_training_mode_is_reported_whatever_else_stops_the_fold() -> None:
    class Own(keras.Model):
        pass

    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs), training=True)
    inspection = bnfold.inspect(randomize(Own(inputs, x)), select=["BN0"], ignore=["BN004"])
    assert [finding.code for finding in inspection.findings] == ["BN007"]


def test_two_norms_on_two_axes_of_one_einsum() -> None:
    """The second cannot join the first; both sizes alike would hide a mistake from the shapes."""
    for sizes in ((5, 5), (4, 5)):
        inputs = keras.Input((3,))
        x = keras.layers.EinsumDense("ab,bcd->acd", sizes, bias_axes="cd")(inputs)
        x = keras.layers.BatchNormalization(axis=1)(keras.layers.BatchNormalization()(x))
        model = randomize(keras.Model(inputs, x))
        folded = bnfold.fold(model)
        vectors = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
        np.testing.assert_allclose(
            outputs(folded, vectors)[0], outputs(model, vectors)[0], 1e-4, 1e-5
        )


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
