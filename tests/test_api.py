"""The Python API with live models; with paths it is what the command line calls."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import keras, outputs, randomize

import bnfold
from bnfold.running import data as user_data
from bnfold.running.samples import InputSpec

pytestmark = pytest.mark.usefixtures("keras_alone")


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


def test_inspections_can_be_compared(model: Any) -> None:
    """Arrays cannot, so that what holds them is equal to itself alone."""
    one, other = bnfold.inspect(model), bnfold.inspect(model)
    assert one.plan == one.plan
    assert one.plan != other.plan
    assert one.plan.folds[0] != other.plan.folds[0]


def test_inspect_takes_rules_thresholds_and_a_target(model: Any) -> None:
    def codes(**settings: Any) -> list[str]:
        return [finding.code for finding in bnfold.inspect(model, **settings).findings]

    assert codes(select=["BN003"]) == []
    strict = bnfold.Thresholds(inverted_momentum=0.999)
    assert codes(select=["BN003"], thresholds=strict) == ["BN003"]
    assert codes(select=["BN003"], ignore="BN003", thresholds=strict) == []
    with pytest.raises(ValueError, match="no target dtype: 'int8'"):
        codes(target_dtype="int8")


def test_errors_name_parameters_and_not_the_options_of_the_command(
    model: Any, tmp_path: Path
) -> None:
    path, there = tmp_path / "live.keras", tmp_path / "there.keras"
    model.save(path)
    there.write_bytes(b"precious")
    with pytest.raises(bnfold.OutputError, match=r"exists already; use force=True to replace it$"):
        bnfold.fold(path, there, verify=False)
    with pytest.raises(bnfold.BnfoldError, match=r"^imports no_such_module: No module named"):
        bnfold.verify(path, path, imports=["no_such_module"])


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

    judged = bnfold.verify(model, keras.models.clone_model(model))
    monkeypatch.setattr("bnfold.jobs.verify.verify", lambda *_, **__: judged)
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
    with pytest.raises(TypeError, match=r"fold of .* takes (no|an) out path"):
        bnfold.fold(given, out)


def test_anything_else_is_a_type_error() -> None:
    given: Any = 3
    with pytest.raises(TypeError, match="expected a path"):
        bnfold.inspect(given)


# --- what is given ---

BAD: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("fold", {"rtol": -1.0}, bnfold.SettingsError, "rtol must be finite and at least 0, not -1.0"),
    ("fold", {"rtol": float("nan")}, bnfold.SettingsError, "rtol must be finite"),
    ("verify", {"atol": float("inf")}, bnfold.SettingsError, "atol must be finite"),
    ("verify", {"atol": "1e-3"}, TypeError, "atol must be a number, not '1e-3'"),
    ("verify", {"rtol": True}, TypeError, "rtol must be a number, not True"),
    ("verify", {"seed": -1}, bnfold.SettingsError, "seed must be at least 0, not -1"),
    ("export", {"seed": 0.5}, TypeError, "seed must be a whole number, not 0.5"),
    ("export", {"opset": "17"}, TypeError, "opset must be a whole number, not '17'"),
    ("export", {"keep": [None]}, TypeError, "keep must be names, not None"),
    ("export", {"fold": False, "keep": "norm"}, TypeError, "fold=False folds nothing"),
    ("fold", {"keep": 3}, TypeError, "keep must be names, not 3"),
    ("fold", {"keep": [""]}, bnfold.SettingsError, "keep has an empty name"),
    ("fold", {"standalone": "conv"}, bnfold.SettingsError, "there is no 'conv'; there are keep"),
    ("fold", {"verify": False, "rtol": 1.0}, TypeError, "verify=False contradicts rtol"),
    ("fold", {"verify": "no"}, TypeError, "verify must be True or False, not 'no'"),
    ("fold", {"strict": 1}, TypeError, "strict must be True or False, not 1"),
    ("fold", {"progress": "loud"}, TypeError, "progress must be a function, not str"),
    ("fold", {"data": 3}, TypeError, "data must be the path of an .npz or .npy file, an array"),
    ("verify", {"trust": "False"}, TypeError, "trust must be True or False, not 'False'"),
    ("verify", {"imports": b"os"}, TypeError, "imports must be names"),
    ("inspect", {"select": [3]}, TypeError, "select must be names, not 3"),
    ("inspect", {"batch": 3}, TypeError, "batch goes with data"),
    ("inspect", {"data": np.ones((4, 6, 6, 3)), "batch": 0}, bnfold.SettingsError, "batch must"),
    ("inspect", {"thresholds": {}}, TypeError, "thresholds must be bnfold.Thresholds, not dict"),
    ("recalibrate", {"data": None}, TypeError, "data is missing"),
    ("recalibrate", {"data": np.ones(3), "cache": -1}, bnfold.SettingsError, "cache must be at"),
    ("recalibrate", {"data": np.ones(3), "layers": [2]}, TypeError, "layers must be names"),
    ("bench", {"seconds": 0}, bnfold.SettingsError, "seconds must be finite and more than 0"),
    ("bench", {"seconds": float("nan")}, bnfold.SettingsError, "seconds must be finite"),
    ("bench", {"threads": 0}, bnfold.SettingsError, "threads must be at least 1, not 0"),
    ("bench", {"threads": 10**6}, bnfold.SettingsError, "more than the"),
    ("bench", {"batch": [1, 0]}, bnfold.SettingsError, "batch must be at least 1, not 0"),
    ("bench", {"batch": 1.5}, TypeError, "batch"),
    ("bench", {"seed": -1}, bnfold.SettingsError, "seed must be at least 0"),
    ("bench", {"runtimes": "tvm"}, bnfold.SettingsError, "there is no 'tvm'; there are keras"),
]


@pytest.mark.parametrize(
    ("function", "options", "error", "message"), BAD, ids=[f"{b[0]} {[*b[1]][-1]}" for b in BAD]
)
def test_what_an_option_cannot_be_is_said_before_anything_is_loaded(
    function: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """By its name, and of a file that does not even exist nothing is said."""
    path = tmp_path / "none.keras"
    paths = {"fold": (path, "out.keras"), "verify": (path, path), "export": (path, "out.onnx")}
    given = paths.get(function, (path, "out.keras") if function == "recalibrate" else (path,))
    with pytest.raises(error, match=re.escape(message)) as caught:
        getattr(bnfold, function)(*given, **options)
    assert isinstance(caught.value, (TypeError, bnfold.BnfoldError))


def test_a_path_without_an_out_says_what_is_missing() -> None:
    untyped: Any = bnfold
    for function in (untyped.fold, untyped.recalibrate):
        data = {} if function is untyped.fold else {"data": np.ones(3)}
        with pytest.raises(TypeError, match=r"takes an out path.*\(model, out\)"):
            function("a.keras", **data)
        with pytest.raises(TypeError, match="out must be a path, not int"):
            function("a.keras", 3, **data)


def test_numbers_of_numpy_are_numbers(model: Any) -> None:
    same = bnfold.verify(model, model, seed=np.int64(3), rtol=np.float32(1), atol=np.float64(1))
    assert json.dumps(same.to_dict()["seed"]) == "3"


def test_arrays_in_every_form_are_data(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    np.save(tmp_path / "data.npy", images)
    for data in (
        images,
        [images],
        {"image": images},
        keras.ops.convert_to_tensor(images),
        tmp_path / "data.npy",
        str(tmp_path / "data.npy"),
    ):
        source = user_data.given(data)
        assert source is not None
        found = user_data.open_data(source, [InputSpec("image", (None, 6), "float32")])
        np.testing.assert_array_equal(found.take(0, 5)[0], images)


def test_arrays_will_do_wherever_a_file_does(model: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype("float32")
    result = bnfold.verify(model, model, data=images)
    assert result.sample_count == 5
    report = bnfold.export(model, tmp_path / "m.onnx", data=images)
    assert report.check is not None
    assert report.check.sample_count == 5
    with pytest.raises(bnfold.BnfoldError, match=r"data: input 'image' takes shape \(any, 6, 6, 3"):
        bnfold.fold(model, data=images[:, :5])


# --- what is named ---


@pytest.mark.slow
def test_a_live_model_is_named_by_its_name_alone(model: Any, tmp_path: Path) -> None:
    """In results and in errors, whatever of them knows only the temporary file."""
    images = np.zeros((4, 6, 6, 3), "float32")
    other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="other")
    results = [
        bnfold.inspect(model, data=images).to_dict(),
        bnfold.verify(model, other).to_dict(),
        bnfold.export(model, tmp_path / "m.onnx").to_dict(),
        bnfold.bench(model, seconds=0.01, runtimes="onnxruntime").to_dict(),
    ]
    said = [json.dumps(result) for result in results]
    for call in (
        lambda: bnfold.bench(model, other),
        lambda: bnfold.recalibrate(model, data=images),
        lambda: bnfold.recalibrate(other, data=np.ones((3, 2))),
        lambda: bnfold.fold(model, rtol=0, atol=0),
        lambda: bnfold.inspect(subclassed(), data=images),
        lambda: bnfold.export(subclassed(), tmp_path / "s.onnx"),
    ):
        with pytest.raises(bnfold.BnfoldError) as caught:
            call()
        said.append(str(caught.value))
    for text in said:
        assert "bnfold-" not in text
        assert tempfile.gettempdir() not in text.replace(str(tmp_path), "")
    assert "live and other take different inputs" in said[4]
    assert said[5].startswith("live: no BatchNormalization can be recalibrated")


def subclassed() -> Any:
    """A model of a class of its own, with weights, named "live"."""

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="live")
            self.dense = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    made = Own()
    made(np.zeros((1, 3), "float32"))
    return made
