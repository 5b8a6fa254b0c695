"""What the layers of a model see over data: against plain Keras, and what the rules make of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from observed_models import (
    CASES,
    Block,
    Case,
    axis_in_front,
    close,
    half_precision,
    nested,
    norm,
    save,
    shared,
    shared_model,
    time_distributed,
)
from schemas import validate
from support import chain, keras, randomize

import bnfold
from bnfold.audit import Thresholds
from bnfold.cli import main
from bnfold.errors import BnfoldError
from bnfold.observation import observe
from bnfold.running import keras_runner

layers = keras.layers
GENERATOR = np.random.default_rng(3)


def observed(path: Path, **options: Any) -> dict[str, Any]:
    inspection = bnfold.inspect(path, **options)
    assert inspection.observed is not None
    return {"/".join(layer): one for layer, one in inspection.observed.items()}


def codes(inspection: bnfold.Inspection) -> list[tuple[str, str, str]]:
    """Code, severity and layer of what the rules on data find."""
    return [
        (found.code, found.severity.value, "/".join(found.layer))
        for found in inspection.findings
        if found.code.startswith("BN5")
    ]


LEGACY = [axis_in_front, nested, shared, shared_model, time_distributed]
"""Those that Keras itself can load from a legacy file."""


@pytest.mark.parametrize(
    ("make", "form"),
    [*((make, ".keras") for make in CASES), *((make, ".h5") for make in LEGACY)],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.few(6)
def test_every_layer_is_seen_as_plain_keras_sees_it(
    make: Callable[[], Case], form: str, tmp_path: Path
) -> None:
    """With the statistics that the file has: nothing is corrected on the way."""
    case = make()
    randomize(case.model)
    source, data = save(case, tmp_path, form)
    found = observed(source, data=data, batch=13, trust=True)
    assert set(found) >= {name for name, _, _ in case.order}
    for name, _, rows in case.order:
        values = rows()
        moments = found[name].moments
        allowed = 2e-3 if make is half_precision else 2e-5
        close((moments.mean, moments.variance), (values.mean(0), values.var(0)), allowed)
        assert (moments.count == len(values)).all()


def test_the_calls_of_a_shared_layer_are_counted_and_said(tmp_path: Path) -> None:
    case = shared()
    source, data = save(case, tmp_path)
    assert {name: one.calls for name, one in observed(source, data=data).items()} == {
        "a": 2,
        "b": 1,
    }
    inspection = bnfold.inspect(source, data=data)
    (message,) = [f.message for f in inspection.findings if f.code == "BN501" and f.layer == ("a",)]
    assert message.startswith("over 40 samples and 2 calls its input does not match")


def test_one_batch_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    run = keras_runner.run

    def counting(loaded: Any, inputs: Any, **options: Any) -> Any:
        sizes.append(len(inputs[0]))
        return run(loaded, inputs, **options)

    monkeypatch.setattr(observe.keras_runner, "run", counting)
    chain((3,), norm("a"), name="x").save(tmp_path / "model.keras")
    data = GENERATOR.normal(0, 1, (1000, 3)).astype("float32")
    np.save(tmp_path / "data.npy", data)
    bnfold.inspect(tmp_path / "model.keras", data=tmp_path / "data.npy", batch=300)
    assert sizes == [300, 300, 300, 100]
    sizes.clear()
    bnfold.inspect(tmp_path / "model.keras", data=tmp_path / "data.npy")
    assert sizes == [128] * 7 + [104]


def test_a_batch_of_what_is_large_is_small() -> None:
    big = chain((300, 300, 3), layers.Conv2D(64, 1), norm("a"), layers.Conv2D(64, 1), name="x")
    found = observe.keras_graph.bytes_per_sample(big, 1)
    assert found == 4 * 300 * 300 * (3 + 64 + 64 + 64)


# --- the rule ---

FEW = 300  # of 1797, and enough for what is wrong by far


@pytest.fixture(scope="module")
def digits() -> Any:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return (bunch.images[..., None] / 16).astype("float32"), bunch.target


@pytest.fixture(scope="module")
def trained(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy model of three norms, one of them behind a ReLU."""
    images, labels = digits
    keras.utils.set_random_seed(0)
    model = chain(
        (8, 8, 1),
        layers.Conv2D(12, 3, use_bias=False),
        norm("first"),
        layers.ReLU(),
        layers.Conv2D(16, 3, activation="relu"),
        norm("second"),
        layers.Flatten(),
        layers.Dense(32, use_bias=False),
        norm("third"),
        layers.ReLU(),
        layers.Dense(10),
        name="x",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(images, labels, epochs=12, batch_size=32, verbose=0)
    path = tmp_path_factory.mktemp("trained") / "model.keras"
    model.save(path)
    return path


@pytest.mark.parametrize("count", [8, 1797, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.few(1)
def test_a_healthy_model_is_silent_on_its_training_data(
    count: int, trained: Path, digits: Any
) -> None:
    assert codes(bnfold.inspect(trained, data=digits[0][:count])) == []


def test_pixels_of_another_scale_are_an_error(trained: Path, digits: Any) -> None:
    inspection = bnfold.inspect(trained, data=digits[0][:FEW] * 255)
    assert codes(inspection) == [("BN501", "error", name) for name in ("first", "second", "third")]
    first = next(f for f in inspection.findings if f.code == "BN501")
    assert first.channels is not None
    assert first.channels.count == 12
    assert "recalibrate" in first.remedy
    assert first.figures["largest_ratio"] > 1e4


def test_statistics_that_lag_behind_are_found(trained: Path, digits: Any, tmp_path: Path) -> None:
    """As left by a momentum of 0.999 after 100 steps: a tenth of what they should be."""
    model = keras.models.load_model(trained)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            weight = 0.999**100
            layer.moving_mean.assign(layer.moving_mean * (1 - weight))
            layer.moving_variance.assign(weight + layer.moving_variance * (1 - weight))
    model.save(tmp_path / "model.keras")
    found = codes(bnfold.inspect(tmp_path / "model.keras", data=digits[0]))
    assert {name for *_, name in found} == {"first", "second", "third"}
    bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=digits[0])
    assert codes(bnfold.inspect(tmp_path / "out.keras", data=digits[0])) == []


def test_statistics_that_were_never_updated_are_found(
    trained: Path, digits: Any, tmp_path: Path
) -> None:
    model = keras.models.load_model(trained)
    model.get_layer("second").moving_mean.assign(np.zeros(16))
    model.get_layer("second").moving_variance.assign(np.ones(16))
    model.save(tmp_path / "model.keras")
    found = codes(bnfold.inspect(tmp_path / "model.keras", data=digits[0][:FEW]))
    assert ("first" in {name for *_, name in found}) is False
    assert "second" in {name for *_, name in found}


def test_one_column_of_another_unit_is_named(tmp_path: Path) -> None:
    model = chain((6,), norm("a"), name="x")
    data = GENERATOR.normal(0, 1, (400, 6)).astype("float32")
    data[:, 4] = data[:, 4] * 1000 + 300
    model.save(tmp_path / "model.keras")
    (found,) = [
        one
        for one in bnfold.inspect(tmp_path / "model.keras", data=data).findings
        if one.code == "BN501"
    ]
    assert found.severity is bnfold.Severity.WARNING
    assert found.channels is not None
    assert (found.channels.count, found.channels.first) == (1, (4,))


def test_limits_are_settings(trained: Path, digits: Any) -> None:
    changed = digits[0][:FEW] * 2
    assert codes(bnfold.inspect(trained, data=changed))
    calm = Thresholds(drift_warning=50, drift_error=50, drift_channel=50)
    assert not codes(bnfold.inspect(trained, data=changed, thresholds=calm))
    for warning in (1e-6, 50):  # a mild one does not hide what is worse
        strict = Thresholds(drift_warning=warning, drift_error=2e-6)
        found = codes(bnfold.inspect(trained, data=changed, thresholds=strict))
        assert ("BN501", "error", "first") in found


def test_few_samples_tell_less(tmp_path: Path) -> None:
    """The same mean and variance, half a nat away: of 8 samples it says nothing, of 800 it does."""
    chain((1,), norm("a"), name="x").save(tmp_path / "model.keras")
    few = np.array([[0.0], [2.0]] * 4)  # mean 1, variance 1, where 0 and 1 are recorded
    assert codes(bnfold.inspect(tmp_path / "model.keras", data=few)) == []
    many = codes(bnfold.inspect(tmp_path / "model.keras", data=np.tile(few, (100, 1))))
    assert many == [("BN501", "warning", "a")]


def test_a_frozen_layer_is_told_and_not_blamed(trained: Path, digits: Any, tmp_path: Path) -> None:
    model = keras.models.load_model(trained)
    model.get_layer("first").trainable = False
    model.save(tmp_path / "model.keras")
    found = codes(bnfold.inspect(tmp_path / "model.keras", data=digits[0][:FEW] * 255))
    assert [severity for _, severity, name in found if name == "first"] == ["info"]


def test_what_cannot_be_judged_is_said(tmp_path: Path) -> None:
    inputs = keras.Input((3,), name="x")
    zero = layers.Dense(2, kernel_initializer="zeros")(inputs)
    model = keras.Model(inputs, [norm("dead")(zero), Block(name="block")(inputs)])
    model.save(tmp_path / "model.keras")
    data = GENERATOR.normal(0, 1, (50, 3))
    inspection = bnfold.inspect(tmp_path / "model.keras", data=data)
    said = {"/".join(f.layer): f.message for f in inspection.findings if f.code == "BN501"}
    assert said["dead"] == "not compared with the data: its input never changes over them"
    assert "a layer that is not Keras' own runs it" in said["block/norm"]
    assert {severity for code, severity, _ in codes(inspection)} == {"info"}


def test_activations_that_are_not_finite_are_found(tmp_path: Path) -> None:
    model = chain(
        (2,),
        layers.Dense(3, dtype="mixed_float16", name="dense"),
        norm("a"),
        norm("b"),
        name="x",
    )
    model.get_layer("dense").kernel.assign([[1, 0, 1], [1, 1, 0]])
    model.save(tmp_path / "model.keras")
    data = np.array([[1, 2], [5e4, 4e4], [3, 4]])  # 9e4 is too large for float16
    inspection = bnfold.inspect(tmp_path / "model.keras", data=data)
    bad = [f for f in inspection.findings if f.code == "BN502"]
    assert [(f.layer, f.figures["numbers"]) for f in bad] == [(("a",), 1.0), (("b",), 1.0)]
    assert bad[0].channels is not None
    assert bad[0].channels.first == (0,)


def test_a_layer_that_saw_only_nan_is_not_said_to_have_seen_nothing(tmp_path: Path) -> None:
    model = chain((2,), norm("a"), norm("b"), name="x")
    model.get_layer("a").moving_variance.assign([-1.0, -1.0])
    model.save(tmp_path / "model.keras")
    inspection = bnfold.inspect(tmp_path / "model.keras", data=GENERATOR.normal(0, 1, (50, 2)))
    said = {f.code for f in inspection.findings if f.layer == ("b",)}
    assert "BN502" in said
    assert "BN501" not in said


# --- the command ---


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_the_reports(trained: Path, digits: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", digits[0] * 255)
    text = inspect(trained, "--data", tmp_path / "data.npy")
    assert text.exit_code == 1
    assert "run over 1797 samples" in text.stdout
    assert "error BN501 3 layers. " in text.stdout
    assert "  first: over 1797 samples its input does not match its" in text.stdout
    found = inspect(trained, "--data", tmp_path / "data.npy", "--format", "json")
    report = json.loads(found.stdout, parse_constant=pytest.fail)
    validate(report, "inspect")
    seen = report["models"][0]["batchnorms"][0]["observed"]
    assert (seen["samples"], seen["calls"], seen["values"]) == (1797, 1, 1797 * 36)
    assert seen["variance_ratio"]["median"] > 1e4
    one = inspect(trained, "--data", tmp_path / "data.npy", "--format", "json", "--layer", "third")
    report = json.loads(one.stdout, parse_constant=pytest.fail)
    validate(report, "layer")
    assert len(report["layer"]["channel_values"]["observed_mean"]) == 32
    shown = inspect(trained, "--data", tmp_path / "data.npy", "--layer", "third")
    assert "observed variance" in shown.stdout


def test_without_data_nothing_is_said_of_it(trained: Path) -> None:
    report = json.loads(inspect(trained, "--format", "json").stdout)
    assert report["models"][0]["batchnorms"][0]["observed"] is None


@pytest.mark.parametrize("option", [["--batch", "3"], ["--trust"], ["--import", "math"]])
def test_options_for_data_need_data(option: list[str], trained: Path) -> None:
    result = inspect(trained, *option)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{option[0]} goes with --data" in result.stderr


def test_rules_on_data_need_data(trained: Path) -> None:
    result = inspect(trained, "--select", "BN5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "all rules that are selected need --data" in result.stderr


def test_a_baseline_made_with_data_is_not_stale_without(
    trained: Path, digits: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "data.npy", digits[0][:FEW] * 255)
    baseline = tmp_path / "baseline.json"
    data = ["--data", tmp_path / "data.npy"]
    assert inspect(trained, *data, "--write-baseline", baseline).exit_code == 0
    assert inspect(trained, *data, "--baseline", baseline).exit_code == 0
    result = inspect(trained, "--baseline", baseline)
    assert (result.exit_code, result.stderr) == (0, "")


def test_several_models_run_over_the_same_data(trained: Path, digits: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", digits[0])
    chain((5,), norm("a"), name="x").save(tmp_path / "other.keras")
    data = ["--data", tmp_path / "data.npy", "--full"]
    result = inspect(trained, tmp_path / "other.keras", *data)
    assert result.exit_code == 2
    assert "input 'x' takes shape (any, 5)" in result.stderr
    assert "run over 1797 samples" in result.stdout


def test_a_model_that_cannot_run_on_the_data(tmp_path: Path) -> None:
    """The sizes fit the input, and not what is behind it."""
    inputs = keras.Input((None, None, 1), name="x")
    x = norm("a")(layers.Conv2D(2, 5)(inputs))
    keras.Model(inputs, layers.Reshape((3, -1))(x)).save(tmp_path / "model.keras")
    with pytest.raises(BnfoldError, match=r"model\.keras: cannot run on the data: "):
        bnfold.inspect(tmp_path / "model.keras", data=np.ones((4, 3, 3, 1)))


def test_a_live_model_and_arrays(trained: Path, digits: Any) -> None:
    model = keras.models.load_model(trained)
    for data in (digits[0][:FEW] * 255, [digits[0][:FEW] * 255], {"x": digits[0][:FEW] * 255}):
        inspection = bnfold.inspect(model, data=data, select="BN5")
        assert {finding.code for finding in inspection.findings} == {"BN501"}
        assert inspection.path.name == model.name
