"""The command line as a user meets it: what is printed where, and with which exit code."""

import io
import json
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from places import FIXTURES
from rich.console import Console
from schemas import validate

from bnfold.cli import main
from bnfold.cli.group import COMMANDS
from bnfold.reports.text import fold as fold_text
from bnfold.running.options import Tolerance
from bnfold.verification import Basis, Comparison, Verdict, Verification
from bnfold.verification.result import Accuracy
from bnfold.verification.tolerance import Rule

Unpack = Callable[[str], Path]
DIGITS = "digits_cnn_keras315.keras"


def bnfold(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments])


def report(result: Result, name: str) -> Any:
    """The JSON that a command printed, checked against its schema."""
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    validate(found, name)
    return found


def with_statistics(source: Path, target: Path, edit: Callable[[h5py.Group], None]) -> Path:
    """A copy of a legacy file in which `edit` changed the first norm's variables."""
    content = source.read_bytes()
    target.write_bytes(content)
    with h5py.File(target, "r+") as file:
        edit(file["model_weights"])
    return target


def spoil_variance(weights: h5py.Group) -> None:
    name = next(name for name in weights if name.startswith("batch_normalization"))
    variance = weights[f"{name}/{name}/moving_variance"]
    values = variance[()]
    values[2] = -1.0
    variance[...] = values


# --- inspect ---


def test_inspect_shows_every_layer_and_where_it_folds(fixture_model: Unpack) -> None:
    result = bnfold("inspect", fixture_model(DIGITS))
    assert result.exit_code == 0
    assert "4 BatchNormalization layers: 4 can be folded, 0 cannot" in result.stdout
    for target in ("conv2d", "depthwise_conv2d", "separable_conv2d", "dense_2"):
        assert target in result.stdout
    assert result.stderr == ""


def test_inspect_says_why_a_layer_stays(fixture_model: Unpack) -> None:
    result = bnfold("inspect", fixture_model("branches_keras315.keras"), "--fail-on", "never")
    assert re.search(r"live_norm: it is called with training=True, ", result.stdout)
    assert re.search(
        r"scores_norm: .* propagates to layers that run later, though not to this one",
        result.stdout,
    )
    assert "to fold it: no new training is needed: freeze the saved model" in result.stdout


def test_inspect_json_follows_its_schema(fixture_model: Unpack) -> None:
    names = [DIGITS, "branches_keras215.keras", "branches_keras215.h5"]
    result = bnfold("inspect", *map(fixture_model, names), "--format", "json", "--fail-on", "never")
    models = report(result, "inspect")["models"]
    assert [model["container"] for model in models] == ["keras", "keras", "h5"]
    assert [model["keras_version"] for model in models] == ["3.15.1", "2.15.0", "2.15.0"]
    nested = {norm["name"]: norm for norm in models[1]["batchnorms"]}["block/block_norm"]
    assert nested["fold"] == {
        "status": "foldable",
        "direction": "backward",
        "into": ["block/block_conv"],
        "reason": None,
        "remedies": [],
    }
    live = {norm["name"]: norm for norm in models[2]["batchnorms"]}["live_norm"]
    assert live["fold"]["status"] == "blocked"
    assert "training=True" in live["fold"]["reason"]
    assert len(live["fold"]["remedies"]) == 1
    codes = {finding["layer"]: [] for finding in models[2]["findings"]}
    for finding in models[2]["findings"]:
        codes[finding["layer"]].append(finding["code"])
    assert [layer for layer, found in codes.items() if "BN007" in found] == ["live_norm"]


def test_inspect_reports_the_statistics_of_the_file(fixture_model: Unpack) -> None:
    path = fixture_model("digits_cnn_keras315.h5")
    first = report(bnfold("inspect", path, "--format", "json"), "inspect")["models"][0][
        "batchnorms"
    ][0]
    with h5py.File(path) as file:
        mean = file[f"model_weights/{first['name']}/{first['name']}/moving_mean"][()]
    assert first["statistics"]["moving_mean"] == {
        "min": pytest.approx(mean.min()),
        "median": pytest.approx(np.median(mean)),
        "max": pytest.approx(mean.max()),
        "non_finite": 0,
    }
    assert first["epsilon"] == 0.001
    assert first["initializers"]["gamma"] == "Ones"


def test_inspect_one_layer_channel_by_channel(fixture_model: Unpack) -> None:
    path = fixture_model("branches_keras315.keras")
    shown = report(
        bnfold("inspect", path, "--layer", "block/block_norm", "--format", "json"), "layer"
    )
    values = {name: np.array(found) for name, found in shown["layer"]["channel_values"].items()}
    scale = values["gamma"] / np.sqrt(values["moving_variance"] + shown["layer"]["epsilon"])
    np.testing.assert_allclose(values["scale"], scale)
    np.testing.assert_allclose(values["shift"], values["beta"] - values["moving_mean"] * scale)
    by_name = bnfold("inspect", path, "--layer", "block_norm")
    assert by_name.exit_code == 0
    assert f"{values['shift'][0]:.6g}" in by_name.stdout


def test_inspect_of_an_unknown_layer_says_so(fixture_model: Unpack) -> None:
    result = bnfold("inspect", fixture_model(DIGITS), "--layer", "nothing")
    assert result.exit_code == 2
    assert "no single BatchNormalization is named 'nothing'; there are: " in result.stderr


@pytest.mark.parametrize(
    ("fail_on", "code"), [("error", 1), ("warning", 1), ("info", 1), ("never", 0)]
)
def test_fail_on(fail_on: str, code: int, fixture_model: Unpack, tmp_path: Path) -> None:
    source = fixture_model("digits_cnn_keras315.h5")
    broken = with_statistics(source, tmp_path / "broken.h5", spoil_variance)
    result = bnfold("inspect", broken, "--fail-on", fail_on)
    assert "error BN105" in result.stdout
    assert result.exit_code == code


def test_a_finding_below_the_limit_is_no_failure(fixture_model: Unpack) -> None:
    assert bnfold("inspect", fixture_model(DIGITS), "--fail-on", "warning").exit_code == 0
    assert bnfold("inspect", fixture_model(DIGITS), "--fail-on", "info").exit_code == 1


def test_inspect_reports_the_readable_ones_beside_one_that_is_not(
    fixture_model: Unpack, tmp_path: Path
) -> None:
    result = bnfold("inspect", tmp_path / "none.keras", fixture_model(DIGITS))
    assert result.exit_code == 2
    assert "4 of 4" in result.stdout
    assert "1 of 2 read" in result.stdout
    assert result.stderr.splitlines() == [f"bnfold: {tmp_path / 'none.keras'}: no such file"]


# --- errors ---


@pytest.mark.parametrize(
    ("command", "target"), [("inspect", None), ("fold", "out.keras"), ("export", "out.onnx")]
)
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.keras", None, "no such file"),
        ("empty.keras", b"", "the file is empty"),
        ("text.keras", b"a text, not a model", "neither a .keras archive nor an HDF5 file"),
        ("model.tflite", b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
        ("model.keras", b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
        ("model.json", b'{"class_name": "Sequential"}', "the architecture of a Keras model"),
        ("model.json", b'{"format": "layers-model"}', "a TensorFlow.js model"),
        ("model.yaml", b"backend: tensorflow\n", "the architecture of a Keras model"),
        ("model.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80", "a PyTorch file"),
        ("pytorch_model.bin", b"\x80\x02}q\0(X", "a Python pickle"),
        ("model.pkl", b"\x80\x04\x95\x10", "a Python pickle"),
        ("model.h5", b'\x40\0\0\0\0\0\0\0{"weight":', "a safetensors file"),
        ("frozen.pb", b"\n\x0b\n\x01x\x12", "a TensorFlow graph (GraphDef)"),
        ("saved_model.pb", b"\x08\x01\x12", "the graph of a SavedModel, which is a folder"),
        ("model.ckpt.index", b"\0\0\x03", "a part of a TensorFlow checkpoint"),
        ("model.ckpt-7.data-00000-of-00001", b"\0\1", "a part of a TensorFlow checkpoint"),
        ("checkpoint", b'model_checkpoint_path: "m"', "a part of a TensorFlow checkpoint"),
        ("model.keras", b"\x08\x08\x12\x07pytorch\x1a", "an ONNX model"),
        ("data.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
        ("model.h5.gz", b"\x1f\x8b\x08", "compressed (gzip); unpack it"),
        ("model.h5", b"\n<!DOCTYPE html>", "a web page, not a model"),
        (
            "model.onnx",
            b"\x08\x08 ONNX, perhaps",
            "bnfold writes ONNX files and reads those of Keras",
        ),
        ("cut.keras", b"PK\x03\x04 cut", "damaged"),
        (
            "pointer.h5",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:f429\nsize 1052880\n",
            "a pointer of Git LFS, not the model: run 'git lfs pull'",
        ),
    ],
)
def test_an_unreadable_model_is_one_line_and_exit_2(
    command: str,
    target: str | None,
    name: str,
    content: bytes | None,
    says: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = bnfold(command, path, *([] if target is None else [tmp_path / target]))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert result.stderr.startswith("bnfold: ")


def test_a_cut_file_is_named_once(fixture_model: Unpack, tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(fixture_model("digits_cnn_keras315.h5").read_bytes()[:3000])
    told = bnfold("fold", path, tmp_path / "out.h5").stderr
    assert told.startswith(f"bnfold: {path}: the HDF5 file is damaged: ")


def test_a_cut_file_does_not_crash_the_process(fixture_model: Unpack, tmp_path: Path) -> None:
    """HDF5 would, when Python ends, with what it opened the file with."""
    path = tmp_path / "cut.h5"
    path.write_bytes(fixture_model("digits_cnn_keras315.h5").read_bytes()[:3000])
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "inspect", str(path)], capture_output=True, check=False
    )
    assert done.returncode == 2


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "inspect", str(tmp_path / "none.keras"), "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    "words", [["inspect"], ["fold", "a.keras"], ["frob"], ["inspect", "--bad", "a.keras"]]
)
def test_wrong_usage_is_one_line_and_exit_2(words: list[str]) -> None:
    result = bnfold(*words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "--help" in result.stderr


@pytest.mark.parametrize("command", [[], ["inspect"], ["fold"], ["verify"], ["export"], ["bench"]])
def test_help_has_examples_and_exit_codes(command: list[str]) -> None:
    result = bnfold(*command, "--help")
    assert result.exit_code == 0
    assert ("Examples:" if command else "Exit codes:") in result.stdout
    assert "proof" not in result.stdout.lower()
    assert "RANGE" not in result.stdout, "an option without a metavar"


@pytest.mark.parametrize("command", ["inspect", "fold", "verify", "export", "prepare"])
def test_options_are_listed_by_what_they_are_about(command: str) -> None:
    text = bnfold(command, "--help").stdout
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles[0] == "Options:"
    assert {"Many models:", "Report:", "Limits, and trouble:"} <= {*titles}
    (of_it,) = (one for one in main.commands.values() if one.name == command)
    names = [one.opts[0] for one in of_it.params if isinstance(one, click.Option)]
    assert [name for name in names if not re.search(rf"^ .*{name}\b", text, re.MULTILINE)] == []
    first = text.partition("Options:")[2].partition("Many models:")[0]
    assert "--jobs" not in first


def test_the_list_of_commands_cuts_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, _, listed = bnfold("--help").stdout.partition("Commands:")
    assert "Measure how long the models A and B take for the same inputs, side by side." in (
        " ".join(listed.split())
    )
    assert "..." not in listed
    assert max(map(len, listed.splitlines())) <= 80
    names = re.findall(r"^  (\w+)  ", listed, re.MULTILINE)
    assert names[0] == "inspect", "what one begins with"
    assert sorted(names) == sorted(main.commands)


def test_the_list_of_commands_has_their_own_first_sentences() -> None:
    assert {name: main.commands[name].get_short_help_str(limit=400) for name in main.commands} == {
        name: sentence for name, (_, sentence) in COMMANDS.items()
    }


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    script = (
        "import sys\n"
        "from bnfold.cli import main\n"
        "for words in (['--help'], ['doctor', '--nope']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('bnfold.cli.')))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.rpartition(".")[2] for name in ran.stdout.splitlines()[-1].split()}
    assert "doctor" in loaded
    assert loaded & {"inspect", "fold", "many"} == set()


@pytest.mark.parametrize("command", ["fold", "verify", "export", "bench"])
def test_examples_fit_a_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, bnfold(command, "--help").stdout.splitlines())) <= 80


# --- fold ---


def test_fold_writes_and_reports(fixture_model: Unpack, tmp_path: Path) -> None:
    source, target = fixture_model(DIGITS), tmp_path / "folded.keras"
    result = bnfold("fold", source, target, "--no-verify")
    assert result.exit_code == 0
    assert "folded 4 of 4 BatchNormalization layers" in result.stdout
    assert "left out compile_config and optimizer state" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["folded.keras"]
    with zipfile.ZipFile(target) as archive:
        record = json.loads(archive.read("metadata.json"))["bnfold"]
        config = json.loads(archive.read("config.json"))
    import hashlib

    assert record["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record["folded"][0]["into"] == ["conv2d"]
    assert "compile_config" not in config


def test_fold_json_follows_its_schema(fixture_model: Unpack, tmp_path: Path) -> None:
    source = fixture_model("branches_keras315.keras")
    result = bnfold("fold", source, tmp_path / "out.keras", "--no-verify", "--format", "json")
    found = report(result, "fold")
    assert found["written"] is True
    forward = {fold["name"] for fold in found["folded"] if fold["direction"] == "forward"}
    assert len(found["folded"]) == 8
    assert forward == {"curved_norm", "deep_shared_norm", "flat_shared_norm"}
    assert {kept["name"] for kept in found["kept"]} == {
        "live_norm",
        "scores_norm",  # Keras 3 may run it after live_norm, which sets training mode
    }
    assert found["verification"] is None


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("block/*", {"block/block_norm"}),
        ("block_norm", {"block/block_norm"}),
        ("deep_norm_?", {"deep_norm_1", "deep_norm_2"}),
        ("deep_conv_1", {"deep_norm_1"}),
    ],
)
def test_keep_leaves_layers_alone(
    pattern: str, kept: set[str], fixture_model: Unpack, tmp_path: Path
) -> None:
    source, target = fixture_model("branches_keras315.keras"), tmp_path / "out.keras"
    result = bnfold("fold", source, target, "--no-verify", "--keep", pattern, "--format", "json")
    on_request = {
        one["name"]
        for one in report(result, "fold")["kept"]
        if "backward" not in one["reason"] or "before it is kept on request" in one["reason"]
    }
    assert on_request - {"live_norm", "scores_norm"} == kept


def test_an_existing_target_needs_force(fixture_model: Unpack, tmp_path: Path) -> None:
    target = tmp_path / "out.keras"
    target.write_text("precious")
    refused = bnfold("fold", fixture_model(DIGITS), target, "--no-verify")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert target.read_text() == "precious"
    assert bnfold("fold", fixture_model(DIGITS), target, "--no-verify", "--force").exit_code == 0
    assert zipfile.is_zipfile(target)


def test_the_target_has_the_suffix_of_its_kind(fixture_model: Unpack, tmp_path: Path) -> None:
    result = bnfold("fold", fixture_model(DIGITS), tmp_path / "out.h5", "--no-verify")
    assert result.exit_code == 2
    assert "must end in .keras" in result.stderr


def test_a_model_in_which_nothing_folds_is_written(fixture_model: Unpack, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.keras", tmp_path / "twice.keras"
    bnfold("fold", fixture_model(DIGITS), once, "--no-verify")
    result = bnfold("fold", once, twice, "--no-verify")
    assert result.exit_code == 0
    assert "folded 0 of 0" in result.stdout
    with zipfile.ZipFile(twice) as archive:
        record = json.loads(archive.read("metadata.json"))["bnfold"]
    assert len(record["earlier"]["folded"]) == 4


def test_a_pattern_that_matches_nothing_is_a_warning(fixture_model: Unpack, tmp_path: Path) -> None:
    options = ["--no-verify", "--keep", "typo*"]
    result = bnfold("fold", fixture_model(DIGITS), tmp_path / "out.keras", *options)
    assert result.exit_code == 0
    assert "--keep 'typo*' matches no layer" in result.stdout


def outcome(verdict: Verdict, basis: Basis = Basis.BOTH) -> Verification:
    rule = Rule().text()
    return Verification(verdict, basis, ("it is off",), ("a warning",), 0, "keras", rule)


def verified(result: Verification, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(fold_text.verification(result))
    return console.file.getvalue()


def test_the_comparisons_fit_a_terminal() -> None:
    accuracy = Accuracy(1.25e-06, 1e-07, 134.0)
    runtimes = ("keras float64", "keras", "onnxruntime", "onnxruntime optimised")
    rows = [
        Comparison(
            *("the_scores_of_all_classes", True, "softmax", runtime, "standard normal"),
            *(accuracy, accuracy, 1e-06, 2e-06, 0.5, True, 4, 4),
        )
        for runtime in runtimes
    ]
    result = replace(outcome(Verdict.EQUIVALENT), comparisons=tuple(rows))
    lines = [line.strip() for line in verified(result, 80).splitlines()]
    assert "the_scores_of_all_classes before softmax" in " ".join(lines)
    for runtime in runtimes:
        assert f"{runtime} 1.25e-06 1.25e-06 134 0.5" in [" ".join(line.split()) for line in lines]


def test_what_became_nan_is_neither_near_nor_quiet() -> None:
    became_nan = Comparison(
        *("scores", True, None, "keras", "standard normal", None, Accuracy(0.0, 0.0, None)),
        *(math.inf, 0.0, math.inf, False, 0, 0),
    )
    result = replace(outcome(Verdict.DIFFERENT), comparisons=(became_nan,))
    assert "keras inf none inf" in " ".join(verified(result, 80).split())


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line runs: jobs stay in its process, whatever backend this one's Keras has."""
    monkeypatch.setattr("bnfold.running.process.is_own", lambda: True)


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize(
    ("verdict", "basis", "strict", "code"),
    [
        (Verdict.EQUIVALENT, Basis.BOTH, True, 0),
        (Verdict.EQUIVALENT, Basis.KERAS, False, 0),
        (Verdict.EQUIVALENT, Basis.KERAS, True, 1),
        (Verdict.UNDECIDED, Basis.BOTH, False, 0),
        (Verdict.UNDECIDED, Basis.BOTH, True, 1),
        (Verdict.DIFFERENT, Basis.BOTH, False, 1),
    ],
)
def test_the_target_appears_only_when_the_proof_is_accepted(
    verdict: Verdict,
    basis: Basis,
    strict: bool,
    code: int,
    fixture_model: Unpack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bnfold.jobs.verify.verify", lambda *_, **__: outcome(verdict, basis))
    target = tmp_path / "out.keras"
    result = bnfold("fold", fixture_model(DIGITS), target, *(["--strict"] if strict else []))
    assert result.exit_code == code
    assert target.exists() == (code == 0)
    assert ("--strict needs a verdict by both Keras" in result.stdout) == (strict and code == 1)
    assert not list(tmp_path.glob(".bnfold-*"))


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("words", [["--strict"], []])
def test_verify_says_what_strict_refuses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.jobs.verify.verify", lambda *_, **__: outcome(Verdict.UNDECIDED))
    path = FIXTURES / "digits_cnn_keras315.keras"
    result = bnfold("verify", path, path, *words)
    assert result.exit_code == len(words)
    assert ("not accepted: --strict needs a verdict" in result.stdout) == bool(words)


def test_the_tolerance_of_the_user_is_in_the_verdict() -> None:
    rule = Rule(Tolerance(rtol=0.1))
    result = replace(outcome(Verdict.EQUIVALENT), rule=rule.text())
    assert f"\n  tolerance by --rtol and --atol: {rule.text()}\n" in verified(result, 400)


def test_of_many_differences_the_first_are_told() -> None:
    said = tuple(f"value {number} is off" for number in range(20))
    shown = verified(replace(outcome(Verdict.DIFFERENT), differences=said), 80)
    assert shown.count("is off") == 8
    assert "  and 12 more, which --format json has" in shown


def test_what_is_indented_is_indented_in_all_its_lines() -> None:
    shown = verified(replace(outcome(Verdict.DIFFERENT), differences=("off " * 40,)), 60)
    first, *more = shown.splitlines()
    assert len(more) > 3
    assert not first.startswith(" ")
    assert all(line.startswith("  ") for line in more)


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "a.keras", "b.keras", "--rtol", "nan"],
        ["verify", "a.keras", "b.keras", "--atol", "inf"],
        ["bench", "a.keras", "--seconds", "inf"],
    ],
)
def test_a_limit_is_a_finite_number(words: list[str]) -> None:
    result = bnfold(*words)
    assert result.exit_code == 2
    assert "is not a finite number" in result.stderr


def test_a_limit_of_zero_contradicts_no_verify_too() -> None:
    result = bnfold("fold", "a.keras", "b.keras", "--no-verify", "--rtol", "0")
    assert "--no-verify contradicts --rtol" in result.stderr


@pytest.mark.parametrize("name", ["none.npz", "."])
def test_data_that_is_not_there_is_told_before_anything_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bnfold("verify", "a.keras", "b.keras", "--data", name)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"'{name}'" in result.stderr


# --- the whole way, with the real judge ---


@pytest.mark.keras
def test_fold_proves_and_verify_agrees(fixture_model: Unpack, tmp_path: Path) -> None:
    source, target = fixture_model(DIGITS), tmp_path / "folded.keras"
    folded = bnfold("fold", source, target, "--format", "json")
    assert folded.exit_code == 0
    proof = report(folded, "fold")["verification"]
    assert (proof["verdict"], proof["basis"]) == ("equivalent", "keras and onnxruntime")
    assert "exporting" in folded.stderr
    judged = bnfold("verify", source, target, "--format", "json")
    assert judged.exit_code == 0
    assert report(judged, "verify")["verdict"] == "equivalent"


@pytest.mark.keras
def test_verify_refuses_another_model(fixture_model: Unpack) -> None:
    result = bnfold("verify", fixture_model(DIGITS), fixture_model("digits_cnn_keras36.keras"))
    assert result.exit_code == 1
    assert "do not compute the same" in result.stdout


SEARCHED = """
import gc, sys
from bnfold.cli import group
from bnfold.model.container import model_file

def noted(*given, **more):
    print(gc.isenabled(), file=sys.stderr)
    return opened(*given, **more)

opened, model_file.open_model = model_file.open_model, noted
group.run()
"""


@pytest.mark.parametrize(("count", "is_on"), [(1, "False"), (2, "True")])
def test_garbage_is_searched_for_where_one_model_is_read_after_another(
    count: int, is_on: str, fixture_model: Unpack
) -> None:
    """What is made of one model is kept until its report is there."""
    models = (DIGITS, "digits_cnn_keras36.keras")[:count]
    paths = [str(fixture_model(model)) for model in models]
    words = [sys.executable, "-c", SEARCHED, "inspect", "--debug", *paths]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.stderr.split()[:count] == [is_on] * count


STARTED = """
import gc
from bnfold.running import libraries, process
gc.disable()
process.take_over()
libraries.start()
print(gc.isenabled())
"""


@pytest.mark.keras
def test_garbage_is_searched_for_as_soon_as_tensorflow_is_there() -> None:
    words = [sys.executable, "-c", STARTED]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"


SETTLED = """
import gc, sys, types
from bnfold.running import process
from bnfold.cli import garbage
sys.modules["tensorflow"] = types.ModuleType("tensorflow")
thresholds = gc.get_threshold()
garbage.settle()
print(gc.get_freeze_count(), gc.get_threshold() == thresholds)
process.take_over()
garbage.settle()
print(gc.get_freeze_count() > 1000)
"""


def test_only_the_command_line_sets_aside_what_tensorflow_makes() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["0", "True", "True"]


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"rules", "rule", "merge"}))
@pytest.mark.parametrize("mistyped", ["--out-file", "--trusted", "--tru", "--imports", "--impor"])
def test_no_option_that_lets_code_run_is_proposed(command: str, mistyped: str) -> None:
    result = CliRunner().invoke(main, [command, "model.keras", f"{mistyped}=x"])
    assert result.exit_code == 2
    assert mistyped in result.stderr
    proposed = result.stderr.replace(mistyped, "")
    assert "--trust" not in proposed
    assert "--import" not in proposed


def test_a_harmless_option_is_proposed() -> None:
    result = CliRunner().invoke(main, ["fold", "model.keras", "out.keras", "--forse"])
    assert "--force" in result.stderr  # in words that are click's, and differ between versions


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (["archive/data.pkl", "archive/data/0"], "a PyTorch file"),
        (["net/code/net.py", "net/constants.pkl"], "a PyTorch file"),
        (["x.npy", "y.npy"], "a NumPy archive (.npz), not a model"),
        (["model/saved_model.pb", "model/variables/variables.index"], "around a SavedModel"),
        (["model.keras", "readme.txt"], "a ZIP archive around a model; unpack it"),
        (["readme.txt"], "there is no config.json inside"),
    ],
)
def test_an_archive_that_is_no_model_is_named(
    members: list[str], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, b"x")
    result = bnfold("inspect", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (["layers/dense/vars"], "as model.save_weights() writes it"),
        (["_layer_checkpoint_dependencies/dense/vars"], "as model.save_weights() writes it"),
        (["images"], "nothing else that Keras writes"),
    ],
)
def test_an_hdf5_file_that_is_no_model_is_named(
    groups: list[str], says: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "some.weights.h5", "w") as file:
        for name in groups:
            file.create_dataset(f"{name}/0", data=[1.0])
    result = bnfold("inspect", tmp_path / "some.weights.h5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["saved_model.pb", "keras_metadata.pb"], "a TensorFlow SavedModel"),
        (["config.json", "model.safetensors"], "a folder of a Hugging Face model"),
        (["checkpoint", "model.ckpt.index"], "a folder of TensorFlow checkpoints"),
    ],
)
def test_a_folder_that_is_no_model_is_named(names: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    result = bnfold("fold", tmp_path, tmp_path.parent / "out", "--no-verify")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
