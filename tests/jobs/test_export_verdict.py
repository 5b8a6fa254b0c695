"""What `export` says of its file: the same verdicts as `verify`, and none by luck."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from schemas import validate
from support import Settled, chain, keras, randomize

import bnfold
from bnfold.cli import main
from bnfold.running import onnx_file
from bnfold.running.deployed import onnx as onnx_deployed
from bnfold.verification import Verdict, trial

L = keras.layers
ops = keras.ops


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.keras"
    model.save(path)
    return path


def plain(*layers: Any) -> Any:
    """A model of finite numbers with one norm that folds, and some layers behind it."""
    return randomize(chain((6,), L.Dense(8), L.BatchNormalization(name="norm"), *layers))


def from_tiny_to_half(*head: Any) -> Any:
    """A head whose inputs stand around numbers from -24 to 0."""
    last = L.Dense(10, name="last")
    model = plain(L.ReLU(), last, *head)
    kernel, _ = last.get_weights()
    last.set_weights([0.3 * kernel, np.linspace(-24, -0.1, 10)])
    return model


HEADS: dict[str, Callable[[], Any]] = {
    "sigmoid": lambda: L.Activation("sigmoid"),
    "silu": lambda: L.Activation("silu"),
    "gelu": lambda: L.Activation("gelu"),
    "an operation": lambda: ops.sigmoid,
}


@pytest.mark.parametrize(
    ("name", "seed"),
    [("sigmoid", 0), ("sigmoid", 1), ("sigmoid", 2), ("silu", 0), ("gelu", 0), ("an operation", 1)],
)
@pytest.mark.few(1)
def test_the_verdict_on_tiny_outputs_does_not_depend_on_the_samples(
    name: str, seed: int, tmp_path: Path
) -> None:
    """ONNX Runtime's sigmoid is off by up to 2.8 u, also where the exact value is 1e-10."""
    found = bnfold.export(from_tiny_to_half(HEADS[name]()), tmp_path / "out.onnx", seed=seed)
    assert found.check is not None
    assert found.check.differences == ()
    assert (found.written, found.check.verdict) == (True, Verdict.EQUIVALENT)
    assert found.check.max_excess < 0.5


def test_sigmoids_are_moved_and_put_back() -> None:
    layers = [L.LSTM(4, return_sequences=True), L.Dense(3, activation="sigmoid")]
    model = randomize(chain((5, 3), *layers))
    loaded = trial.LoadedModel(Path("model"), "keras", model, trust=False, shown=model)
    inputs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    before = np.asarray(model(inputs))
    with trial.keras_runner.approximated(loaded, 1e-3, 0):
        moved = np.asarray(model(inputs))
    assert 1e-3 < np.abs(moved - before).max() < 1e-2  # of the gates and of the output
    np.testing.assert_array_equal(np.asarray(model(inputs)), before)


def spoilt(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], *, smallest: int = 2
) -> None:
    """Have every conversion write other kernels."""
    convert = onnx_file.convert

    def wrongly(*arguments: Any, **options: Any) -> Any:
        proto = convert(*arguments, **options)
        for one in proto.graph.initializer:
            if len(one.dims) >= smallest:
                values = np.asarray(change(onnx.numpy_helper.to_array(one)), "float32")
                one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
        return proto

    monkeypatch.setattr(onnx_file, "convert", wrongly)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.few(1)
def test_a_wrong_conversion_is_seen_behind_a_sigmoid(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt(monkeypatch, lambda kernel: kernel * (1 + 1e-4))
    model = from_tiny_to_half(L.Activation("sigmoid"))
    found = bnfold.export(model, tmp_path / "out.onnx", seed=seed)
    assert found.check is not None
    assert (found.written, found.check.verdict) == (False, Verdict.DIFFERENT)


@pytest.mark.parametrize("nested", ["", "nested", "unknown"])
@pytest.mark.few(1)
def test_channels_on_a_middle_axis_are_told_apart(
    nested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel of small numbers is nothing beside the others that share its positions."""

    def without_one(kernel: Any) -> Any:  # ONNX has the output channels first
        return np.where(np.arange(4)[:, None, None, None] == 1, 0.0, kernel)

    parts: list[Any] = [L.Reshape((3, 4, 5)), L.Conv2D(4, 1, name="last"), L.Permute((1, 3, 2))]
    if nested:
        monkeypatch.setattr(Settled, "allowed", 1)  # it is in the nested model alone
        unknown = [Settled()] if nested == "unknown" else []
        parts = [keras.Sequential([keras.Input((60,)), *parts, *unknown])]
    model = randomize(chain((60,), *parts))
    last = next(one for one in model._flatten_layers() if one.name == "last")
    kernel, bias = last.get_weights()
    last.set_weights([kernel * [1, 2e-6, 1, 1], bias * [1, 2e-6, 1, 1]])
    spoilt(monkeypatch, without_one, smallest=4)
    found = bnfold.export(model, tmp_path / "out.onnx")
    assert found.check is not None
    assert (found.written, found.check.verdict) == (False, Verdict.DIFFERENT)


def not_a_number() -> Any:
    model = plain(L.Dense(3, name="scores"))
    norm = model.get_layer("norm")
    norm.moving_variance.assign(np.full(8, -1.0))
    return model


def one_of_two_not_a_number() -> Any:
    inputs = keras.Input((6,))
    hidden = L.BatchNormalization()(L.Dense(4)(inputs))
    return randomize(keras.Model(inputs, [L.Dense(2)(hidden), ops.sqrt(hidden) + 1.0]))


def infinite() -> Any:
    model = plain(L.Dense(3, activation="exponential", name="scores"))
    model.get_layer("scores").set_weights([np.ones((8, 3)), np.full(3, 500.0)])
    return model


def constant() -> Any:
    model = plain(L.Dense(3, name="scores"))
    model.get_layer("scores").kernel.assign(np.zeros((8, 3)))
    return model


UNDECIDED: dict[str, tuple[Callable[[], Any], str]] = {
    "not a number": (not_a_number, "has values that are not finite in Keras itself"),
    "one of two": (one_of_two_not_a_number, "has values that are not finite in Keras itself"),
    "infinite": (infinite, "has values that are not finite in Keras itself"),
    "constant": (constant, "was not exercised"),
}


@pytest.mark.parametrize("name", UNDECIDED)
@pytest.mark.few(1)
def test_what_cannot_be_compared_is_not_called_checked(name: str, tmp_path: Path) -> None:
    build, said = UNDECIDED[name]
    source, target = saved(build(), tmp_path), tmp_path / "out.onnx"
    result = command("export", source, target, "--format", "json")
    report = json.loads(result.stdout, parse_constant=pytest.fail)
    validate(report, "export")
    assert result.exit_code == 0
    assert (report["check"]["verdict"], report["check"]["passed"]) == ("undecided", False)
    assert any(said in warning for warning in report["check"]["warnings"])
    told = command("export", source, target, "--force", "--no-fold")
    assert told.exit_code == 0
    assert "checked" not in told.stdout
    assert "undecided" in told.stdout


def test_the_short_form_is_as_careful(tmp_path: Path) -> None:
    result = command("fold", saved(not_a_number(), tmp_path), tmp_path / "out.onnx")
    assert "undecided" in result.stdout


def test_numbers_where_keras_has_none_are_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = onnx_deployed._run
    monkeypatch.setattr(
        onnx_deployed, "_run", lambda *given: [np.nan_to_num(one) for one in run(*given)]
    )
    found = bnfold.export(not_a_number(), tmp_path / "out.onnx")
    assert found.check is not None
    assert (found.written, found.check.verdict) == (False, Verdict.DIFFERENT)
    assert "not finite in Keras are finite in the ONNX file" in found.check.differences[0]


def test_one_sample_tells_nothing(tmp_path: Path) -> None:
    """Whatever it gives, it may be a constant."""
    sample = np.random.default_rng(0).normal(size=(1, 6))
    found = bnfold.export(plain(L.Dense(3)), tmp_path / "out.onnx", data=sample)
    assert found.check is not None
    assert (found.check.verdict, found.check.passed) == (Verdict.UNDECIDED, False)


@pytest.mark.parametrize(
    "head", [lambda x: ops.cast(x > 0, "int32"), lambda x: x > 0], ids=["integers", "booleans"]
)
def test_outputs_that_are_no_floats_are_checked(head: Any, tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    hidden = L.BatchNormalization()(L.Dense(4)(inputs))
    model = randomize(keras.Model(inputs, head(hidden)))
    found = bnfold.export(model, tmp_path / "out.onnx")
    assert found.check is not None
    assert found.check.verdict is Verdict.EQUIVALENT


@pytest.mark.slow
def test_the_tolerance_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = saved(plain(L.Dense(3)), tmp_path), tmp_path / "out.onnx"
    strict = command("export", source, target, "--rtol", "0", "--atol", "1e-12")
    assert strict.exit_code == 1
    spoilt(monkeypatch, lambda kernel: kernel * (1 + 1e-4))
    assert command("export", source, target).exit_code == 1
    loose = command("export", source, target, "--rtol", "0.01")
    assert loose.exit_code == 0
    assert "tolerance by --rtol and --atol: error at most 0 + 0.01 times" in loose.stdout
    assert bnfold.export(source, tmp_path / "api.onnx", rtol=0.01).written
