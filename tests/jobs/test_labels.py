"""How near a model comes to labels, before and after its statistics are estimated again.

What is measured is compared with Keras' own metrics on `predict`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from observed_models import norm
from schemas import validate
from support import chain, keras

import bnfold
from bnfold.cli import main
from bnfold.observation import labels

layers = keras.layers
GENERATOR = np.random.default_rng(11)


# --- what labels are ---


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have `targets` see outputs of these names, shapes and last activations."""

    def stand_in(*found: tuple[str, tuple[int | None, ...], str | None]) -> None:
        ports = [SimpleNamespace(name=name, shape=shape) for name, shape, _ in found]
        taps = [None if a is None else SimpleNamespace(activation=a) for *_, a in found]
        interface = SimpleNamespace(outputs=ports)
        monkeypatch.setattr("bnfold.running.ports.interface", lambda _: interface)
        monkeypatch.setattr("bnfold.running.taps.find", lambda _: taps)

    return stand_in


def scored(given: Any, values: Any) -> tuple[str, list[float]]:
    (target,) = labels.targets(labels.read(given), None, len(values))
    scorer = labels.Scorer([target])
    for start in range(0, len(values), 2):
        piece = [np.asarray(values, "float32")[start : start + 2]]
        scorer.note(piece)
    return target.measure, [float(score) for score in scorer.scores()[0]]


def test_classes_are_numbers_or_single_ones(outputs: Any) -> None:
    outputs(("out", (None, 3), "softmax"))
    values = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]]
    wanted = np.array([1, 0, 1])
    for given in (wanted, wanted[:, None], wanted.astype("float32"), np.eye(3)[wanted]):
        assert scored(given, values) == ("accuracy", [1, 1, 0])
    assert scored(wanted, [[np.nan, 1, 0], *values[1:]]) == ("accuracy", [0, 1, 0])


def test_a_class_for_each_pixel(outputs: Any) -> None:
    outputs(("out", (None, 2, 2, 3), None))
    wanted = np.array([[[0, 1], [2, 2]], [[1, 1], [0, 0]]])
    values = np.eye(3)[wanted]
    values[1, 0, 0] = (1, 0, 0)
    assert scored(wanted, values) == ("accuracy", [1, 0.75])


@pytest.mark.parametrize("shape", [(None, 1), (None,)])
@pytest.mark.parametrize("column", [True, False])
def test_zero_and_one(outputs: Any, shape: Any, column: bool) -> None:
    """Behind a sigmoid, as probabilities of any kind, and as logits."""
    wanted = np.array([0, 1, 1, 0])
    given = wanted[:, None] if column and len(shape) == 2 else wanted

    def found(values: Sequence[float]) -> list[float]:
        return scored(given, np.reshape(values, (4, *shape[1:])))[1]

    outputs(("out", shape, "sigmoid"))
    assert found([0.2, 0.9, 0.4, 0.6]) == [1, 1, 0, 0]
    outputs(("out", shape, None))
    assert found([0.2, 0.9, 0.4, 0.6]) == [1, 1, 0, 0]
    assert found([-2, 3, 0.4, 0.6]) == [1, 1, 1, 0]


def test_several_that_are_right_or_wrong_each(outputs: Any) -> None:
    outputs(("out", (None, 3), "sigmoid"))
    wanted = np.array([[1, 1, 0], [0, 0, 0]])
    assert scored(wanted, [[0.9, 0.2, 0.1], [0.1, 0.1, 0.1]]) == (
        "accuracy",
        [pytest.approx(2 / 3), 1],
    )


def test_other_numbers_have_an_error(outputs: Any) -> None:
    outputs(("out", (None, 1), None))
    assert scored(np.array([3, 40]), [[2.0], [41.5]]) == ("mean absolute error", [1, 1.5])
    outputs(("out", (None, 2), None))
    given = np.array([[0.5, 1], [2, 2]])
    assert scored(given, [[1, 1], [2, 0]]) == ("mean absolute error", [0.25, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array([0, 1]), "the labels of 'out' are 2, the data have 3 samples"),
        (np.array([0, 1, 3]), "must be in 0 to 2, one is 3"),
        (np.array([0, 1, -1]), "must be in 0 to 2, one is -1"),
        (np.array([0, 1, 0.5]), "must be whole numbers"),
        (np.array([0, 1, np.nan]), "not finite"),
        (np.array(["a", "b", "c"]), "must be an array of numbers"),
        (np.array(3), "must be an array of numbers"),
        (np.zeros((3, 4)), r"have the shape \(3, 4\), which does not fit \(3,\)"),
        (np.full((3, 3), 0.5), "neither classes nor zeros and ones, as for softmax"),
        ({"other": np.zeros(3), "out": np.zeros(3)}, "named after the outputs, which are 'out'"),
    ],
)
def test_labels_that_do_not_fit(outputs: Any, given: Any, message: str) -> None:
    outputs(("out", (None, 3), "softmax"))
    with pytest.raises(bnfold.BnfoldError, match=message):
        labels.targets(labels.read(given), None, 3)


def test_several_outputs_are_told_by_name(outputs: Any) -> None:
    outputs(("class", (None, 2), "softmax"), ("size", (None, 1), None))
    found = labels.targets(labels.read({"size": np.array([2.5, 3])}), None, 2)
    assert [(target.output, target.measure) for target in found] == [(1, "mean absolute error")]
    with pytest.raises(bnfold.BnfoldError, match="which are 'class', 'size'"):
        labels.targets(labels.read(np.array([0, 1])), None, 2)


def compare(before: Any, after: Any) -> labels.Score:
    target = labels.Target(0, "out", "accuracy", np.zeros(len(before), int))
    scorers = [labels.Scorer([target]) for _ in (before, after)]
    for scorer, right in zip(scorers, (before, after), strict=True):
        scorer.note([np.stack([right, 1 - right], axis=1)])
    (score,) = labels.compare(*scorers)
    return score


def test_worse_is_more_than_chance_and_more_than_a_hundredth() -> None:
    right = np.ones(1000)
    for wrong, worse in ((0, False), (5, False), (50, True)):
        after = right.copy()
        after[:wrong] = 0
        score = compare(right, after)
        assert (score.before, score.after, score.worse) == (1, 1 - wrong / 1000, worse)
        assert not compare(after, right).worse
    assert not compare(np.ones(8), np.array([0] + 7 * [1.0])).worse  # one of eight is chance


# --- recalibrate ---


def classifier() -> Any:
    """Tells the sign of the first column, if its statistics are right."""
    model = chain(
        (2,), norm("norm"), layers.Dense(2, use_bias=False, activation="softmax"), name="x"
    )
    model.layers[-1].kernel.assign([[-3, 3], [0, 0]])
    return model


@pytest.fixture(scope="module")
def columns() -> tuple[Any, Any]:
    data = GENERATOR.normal(0, 1, (400, 2)).astype("float32")
    return data + np.float32([5, 0]), (data[:, 0] > 0).astype("int64")


@pytest.fixture(scope="module")
def lagging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The means are 0 as at the beginning of training; the variances have been learnt."""
    model = classifier()
    model.get_layer("norm").moving_variance.assign([1.1, 0.9])
    path = tmp_path_factory.mktemp("lagging") / "model.keras"
    model.save(path)
    return path


def recalibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["recalibrate", *map(str, arguments)])


def test_the_accuracy_before_and_after_is_that_of_keras(
    lagging: Path, columns: Any, tmp_path: Path
) -> None:
    data, wanted = columns
    np.savez(tmp_path / "data.npz", x=data, y=wanted)
    out = tmp_path / "out.keras"
    text = " ".join(recalibrate(lagging, out, "--data", tmp_path / "data.npz").stdout.split())
    shown = []
    for path in (lagging, out):
        predicted = keras.models.load_model(path).predict(data, verbose=0)
        metric = keras.metrics.SparseCategoricalAccuracy()
        metric.update_state(wanted, predicted)
        shown.append(float(metric.result()))
    assert shown[0] < 0.6
    assert shown[1] > 0.98
    said = f"on 400 labelled samples: {shown[0]:.4g} before, {shown[1]:.4g} after"
    assert said in text
    np.save(tmp_path / "data.npy", data)
    np.save(tmp_path / "labels.npy", np.eye(2)[wanted])
    words = (lagging, out, "--force", "--data", tmp_path / "data.npy", "--format", "json")
    found = json.loads(recalibrate(*words, "--labels", tmp_path / "labels.npy").stdout)
    validate(found, "recalibrate")
    (score,) = found["scores"]
    assert (score["measure"], score["samples"], score["worse"]) == ("accuracy", 400, False)
    assert (score["before"], score["after"]) == pytest.approx(tuple(shown))


def test_what_becomes_worse_is_not_written(columns: Any, tmp_path: Path) -> None:
    """Right statistics, and data that are shifted: the classes come out another."""
    data, wanted = columns
    model = classifier()
    model.get_layer("norm").moving_mean.assign([5, 0])
    model.get_layer("norm").moving_variance.assign([1.1, 0.9])
    model.save(tmp_path / "model.keras")
    chosen = wanted == 1
    np.savez(tmp_path / "data.npz", x=data[chosen], y=wanted[chosen])
    words = (tmp_path / "model.keras", tmp_path / "out.keras", "--data", tmp_path / "data.npz")
    result = recalibrate(*words)
    assert result.exit_code == 1
    assert "the new statistics make the model worse" in result.stdout
    assert "--allow-worse" in result.stdout
    assert not (tmp_path / "out.keras").exists()
    assert recalibrate(*words, "--allow-worse").exit_code == 0
    assert (tmp_path / "out.keras").exists()
    with pytest.raises(bnfold.VerificationFailedError, match="make the model worse"):
        bnfold.recalibrate(model, data=data[chosen], labels=wanted[chosen])


def test_labels_that_are_wrong_are_one_line(lagging: Path, columns: Any, tmp_path: Path) -> None:
    """Those that were given; what stands beside the data may be something else."""
    data, wanted = columns
    np.savez(tmp_path / "data.npz", x=data, y=wanted[:-1])
    np.save(tmp_path / "labels.npy", wanted + 1)
    words = (lagging, tmp_path / "out.keras", "--data", tmp_path / "data.npz")
    result = recalibrate(*words, "--labels", tmp_path / "labels.npy")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("bnfold: labels.npy: the labels of ")
    assert last.endswith("must be in 0 to 1, one is 2")
    assert not (tmp_path / "out.keras").exists()
    result = recalibrate(*words)
    assert result.exit_code == 0
    assert "not used as labels: data.npz" in " ".join(result.stdout.split())


def test_labels_are_read_before_anything_is_loaded(lagging: Path, tmp_path: Path) -> None:
    with pytest.raises(bnfold.BnfoldError, match="not finite"):
        bnfold.recalibrate(
            lagging, tmp_path / "out.keras", data=tmp_path / "none.npy", labels=np.array([np.nan])
        )
