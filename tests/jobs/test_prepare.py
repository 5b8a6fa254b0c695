"""One command from a trained model to what is deployed."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from places import FIXTURES
from schemas import validate
from support import keras, randomize

import bnfold
from bnfold.cli import main
from bnfold.cli.prepare import prepare as cli_prepare
from bnfold.errors import SettingsError
from bnfold.jobs import prepare
from bnfold.jobs.products import PRODUCTS, RECALIBRATIONS
from bnfold.running.deployed.model import Origin
from bnfold.running.deployed.opening import open_deployed

L = keras.layers
REPORTS = {"report.html", "report.json", "report.sarif"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model whose statistics are far from those of its data, and samples with labels."""
    path = tmp_path_factory.mktemp("prepare")
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 240)
    x = (random.normal(size=(240, 6)) + 2.0 * np.eye(6)[labels]).astype("float32")
    keras.utils.set_random_seed(1)
    layers = [L.Dense(12, name="wide"), L.BatchNormalization(name="bn"), L.ReLU()]
    model = keras.Sequential([keras.Input((6,), name="x"), *layers, L.Dense(3, name="kind")])
    model.layers[-1].activation = keras.activations.softmax
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.05), loss)
    model.fit(x, labels, epochs=12, verbose=0, batch_size=40)
    bn = model.get_layer("bn")
    bn.moving_mean.assign(np.full(12, 3.0))
    bn.moving_variance.assign(np.full(12, 0.01))
    model.save(path / "model.keras")
    np.savez(path / "data.npz", x=x, y=labels)
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["prepare", *map(str, words)])


def report(result: Result) -> Any:
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    validate(found, "prepare")
    return found


VERDICTS = {
    "onnx": ("model.onnx", "equivalent"),
    "tflite:int8": ("model_int8.tflite", "approximate"),
    "tflite": ("model.tflite", "equivalent"),
    "tflite:float16": ("model_float16.tflite", "approximate"),
    "saved_model": ("model.savedmodel", "equivalent"),
}


@pytest.mark.parametrize("to", [[*VERDICTS][:2], [*VERDICTS]], ids=["two", "all"])
@pytest.mark.few(1)
def test_all_of_it(to: list[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "deploy"
    words = [folder / "model.keras", out, "--data", folder / "data.npz", "--recalibrate", "auto"]
    given = [word for one in to for word in ("--to", one)]
    result = command(*words, *given, "--format", "json")
    assert result.exit_code == 0, result.stderr
    found = report(result)
    assert {one["code"] for one in found["asked_for"]} & {"BN103", "BN110", "BN501"}
    assert found["folded"] == {"layers": 1, "of": 1}
    expected = {"model.keras": "equivalent", **dict(VERDICTS[one] for one in to)}
    models = expected.keys()
    assert {one.name for one in out.iterdir()} == models | REPORTS
    assert {one["name"]: one["verdict"] for one in found["products"]} == expected
    for one in found["products"]:
        (score,) = one["scores"]
        assert score["after"] > score["before"] + 0.2, one["name"]
    assert json.loads((out / "report.json").read_text()) == found
    page = (out / "report.html").read_text("utf-8")
    assert all(name in page for name in models)
    assert "script" not in page
    digest = sha256((folder / "model.keras").read_bytes()).hexdigest()
    for name in models - {"model.keras"}:
        made = open_deployed(out / name).origin
        assert made == Origin("model.keras", digest, is_recalibrated=True), name
    against = bnfold.verify(folder / "model.keras", out / "model.onnx", in_process=True)
    assert against.verdict is bnfold.Verdict.DIFFERENT
    assert "the statistics of 'model.keras' were estimated again" in against.warnings[0]
    assert bnfold.verify(out / "model.keras", out / "model.onnx", in_process=True)


@pytest.mark.slow
def test_the_same_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Of a SavedModel too, but from one process to the next: functions in one are numbered."""
    options = ("--to", "onnx", "--to", "tflite")
    held = []
    for _ in range(2):
        result = command(folder / "model.keras", tmp_path / "out", *options, "--force")
        assert result.exit_code == 0, result.output
        every = sorted(one for one in (tmp_path / "out").rglob("*") if one.is_file())
        held.append({one.name: one.read_bytes() for one in every})
    different = [name for name in held[0] if held[0][name] != held[1][name]]
    assert different == []


def test_a_finding_stops_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (folder / "model.keras", out, "--data", folder / "data.npz", "--fail-on", "warning")
    result = command(*words)
    assert result.exit_code == 1
    assert "was not written" in result.stdout
    assert "as bad as --fail-on" in result.stdout
    lines = " ".join(result.stdout.split())
    assert lines.count("BN501") == 1
    assert "to do: " in lines
    assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_labels_are_counted_before_anything_is_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "inspect_file", pytest.fail)
    with np.load(folder / "data.npz") as arrays:
        x = arrays["x"]
    np.savez(tmp_path / "data.npz", x=x)
    np.save(tmp_path / "short.npy", np.zeros(7))
    words = [folder / "model.keras", tmp_path / "out", "--data", tmp_path / "data.npz"]
    result = command(*words, "--labels", tmp_path / "short.npy")
    assert result.exit_code == 2
    assert "short.npy: 7 labels, the data have 240 samples" in result.stderr
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(7))
    result = command(*words)
    assert (result.exit_code, "array 'y': 7 labels" in result.stdout) == (1, True)


def test_a_figure_that_is_not_met_stops_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(folder / "model.keras", out, "--min-sqnr", 500)
    assert result.exit_code == 1
    assert "SQNR" in result.stdout
    assert not out.exists()


def test_a_model_that_fits_worse_stops_it(folder: Path, tmp_path: Path) -> None:
    """Here the statistics are what the labels were made with, and the data are others."""
    model = keras.models.load_model(folder / "model.keras")
    random = np.random.default_rng(3)
    x = random.normal(size=(240, 6)).astype("float32")
    labels = model.predict(x, verbose=0).argmax(-1)
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    words = (folder / "model.keras", tmp_path / "out", "--data", tmp_path / "data.npz")
    result = command(*words, "--recalibrate", "always", "--fail-on", "never")
    assert result.exit_code == 1
    assert "make the model worse" in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_its_settings_stand_in_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.bnfold.prepare]\nto = ["tflite:float16"]\nmax-changed = "5%"\nfail-on = "never"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert command(folder / "model.keras", "out").exit_code == 0
    assert {one.name for one in Path("out").iterdir()} == {
        "model.keras",
        "model_float16.tflite",
        *REPORTS,
    }
    result = command(folder / "model.keras", "out", "--force", "--to", "onnx")
    assert result.exit_code == 0
    assert Path("out/model.onnx").exists()  # what is said on the command line wins
    for wrong, says in (
        ('to = ["onx"]', "must be onnx"),
        ("max-changed = 1.5", "whole number"),
        ("too = []", "unknown key; did you mean to?"),
        ("force = true", "unknown key; known are to, data, labels, test-data,"),
    ):
        Path("pyproject.toml").write_text(f"[tool.bnfold.prepare]\n{wrong}\n")
        result = command(folder / "model.keras", "other")
        assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_what_is_in_the_way_stays(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("all of it")
    for words in ((other,), (other, "--force")):
        result = command(folder / "model.keras", *words)
        assert result.exit_code == 2
        assert (other / "thesis.txt").read_text() == "all of it"


def test_an_input_called_y_is_no_label(tmp_path: Path) -> None:
    given = keras.Input((4,), name="y")
    keras.Model(given, L.Dense(3, name="out")(given)).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", y=np.random.default_rng(0).normal(size=(8, 4)), x=np.zeros(8))
    words = (tmp_path / "model.keras", tmp_path / "out", "--data", tmp_path / "data.npz")
    found = report(command(*words, "--format", "json"))
    assert (found["written"], found["scored_on"]) == (True, None)


@pytest.mark.slow
def test_all_steps_are_about_one_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.keras"
    model.write_bytes((folder / "model.keras").read_bytes())
    export = prepare.export_file

    def changed(*args: Any, **options: Any) -> Any:
        model.touch()
        return export(*args, **options)

    monkeypatch.setattr(prepare, "export_file", changed)
    result = command(model, tmp_path / "out", "--fail-on", "never")
    assert result.exit_code == 2
    assert "changed while it was read" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_only_what_it_made_is_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command(folder / "model.keras", out, "--to", "onnx").exit_code == 0
    (out / "notes.txt").write_text("mine")
    result = command(folder / "model.keras", out, "--force")
    assert result.exit_code == 2
    assert "something else than what 'bnfold prepare' makes" in result.stderr
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_scores_on_other_samples(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "data.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    np.savez(tmp_path / "train.npz", x=x[:160], y=y[:160])
    np.savez(tmp_path / "test.npz", x=x[160:], y=y[160:])
    np.savez(tmp_path / "short.npz", x=x[160:], y=y[160:170])
    words = [folder / "model.keras", tmp_path / "out", "--data", tmp_path / "train.npz"]
    words += ["--recalibrate", "always", "--format", "json"]
    found = report(command(*words))
    assert (found["scored_on"], found["is_held_out"]) == ("train.npz", False)
    assert found["source_sha256"] == sha256((folder / "model.keras").read_bytes()).hexdigest()
    found = report(command(*words, "--force", "--test-data", tmp_path / "test.npz"))
    assert (found["scored_on"], found["is_held_out"]) == ("test.npz", True)
    assert found["products"][0]["scores"][0]["samples"] == 80
    result = command(*words, "--force", "--test-data", tmp_path / "short.npz")
    assert result.exit_code == 1  # the gate does not open because its labels are wrong
    assert "the labels cannot be used" in report(result)["refused"][0]


def test_what_needs_data_says_so(folder: Path, tmp_path: Path) -> None:
    for words in (("--to", "tflite:int8"), ("--recalibrate", "auto")):
        result = command(folder / "model.keras", tmp_path / "out", *words)
        assert result.exit_code == 2
        assert "needs --data" in result.stderr


def test_the_words_of_the_options_are_the_same_everywhere() -> None:
    parameters = {one.name: one for one in cli_prepare.params}
    assert tuple(parameters["to"].type.choices) == tuple(PRODUCTS) == tuple(prepare.FILES)
    assert tuple(parameters["recalibrate"].type.choices) == RECALIBRATIONS


def test_from_python(folder: Path, tmp_path: Path) -> None:
    model = randomize(keras.models.load_model(folder / "model.keras"))
    found = bnfold.prepare(model, tmp_path / "out", in_process=True, fail_on=None)
    assert found
    assert [one.name for one in found.products] == ["model.keras", "model.onnx"]
    with pytest.raises(SettingsError, match="there is no 'onx'"):
        bnfold.prepare(model, tmp_path / "other", to=["onx"])


@pytest.mark.slow
def test_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    found = bnfold.prepare(
        folder / "model.keras",
        tmp_path / "out",
        data=folder / "data.npz",
        recalibrate="always",
        in_process=False,
    )
    assert found.recalibration is not None
    assert found.written
    assert found.products[0].scores[0].after > 0.8


STORY = FIXTURES / "story"


@pytest.mark.slow
def test_the_story_of_the_readme(tmp_path: Path) -> None:
    report = bnfold.prepare(
        STORY / "three_epochs.keras",
        tmp_path / "deploy",
        data=STORY / "train.npz",
        test_data=STORY / "test.npz",
        recalibrate="auto",
        to=["onnx", "tflite"],
    )
    assert report.written
    assert [one.name for one in report.products] == ["model.keras", "model.onnx", "model.tflite"]
    for one in report.products:
        (score,) = one.scores
        assert score.before < 0.12
        assert score.after > 0.9
