"""What works where nothing is installed that runs models, and what is said of the rest."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isolated import outcomes
from places import FIXTURES, ROOT

import bnfold
from bnfold.errors import VerificationImpossibleError
from bnfold.running import requirements
from bnfold.running.installed import origin

FIXTURE = FIXTURES / "digits_cnn_keras315.keras"
FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai_edge_litert")


def run(
    folder: Path, *commands: list[str], without: tuple[str, ...] = FRAMEWORKS
) -> list[tuple[int, str, str]]:
    """What each command does where none of these libraries is to be found."""
    return outcomes(f"sys.modules.update(dict.fromkeys({without!r}))", commands, folder)


def test_every_report_of_inspect_is_made(tmp_path: Path) -> None:
    words = ["inspect", str(FIXTURE), "--fail-on", "never", "--output"]
    files = [f"report.{ending}" for ending in ("txt", "json", "sarif", "xml", "md", "html")]
    for file, (code, _, said) in zip(
        files, run(tmp_path, *([*words, file] for file in files)), strict=True
    ):
        assert code == 0, (file, said)
        assert FIXTURE.name in (tmp_path / file).read_text()


def test_a_fold_without_proof_is_made(tmp_path: Path) -> None:
    fold = ["fold", str(FIXTURE), "out.keras", "--no-verify"]
    (first, _, _), (second, text, _) = run(tmp_path, fold, ["inspect", "out.keras"])
    assert (first, second) == (0, 0)
    assert "no BatchNormalization layers" in text


RUNNING = [
    ["fold", "no.keras", "out.keras"],
    ["fold", "no.keras", "out.onnx", "--no-verify"],
    ["verify", "no.keras", "no.keras"],
    ["verify", "no.keras", "no.keras", "--strict"],
    ["export", "no.keras", "out.onnx"],
    ["recalibrate", "no.keras", "out.keras", "--data", "data.npy"],
    ["bench", "no.keras"],
    ["inspect", "no.keras", "no.h5", "--data", "data.npy"],
]


def test_what_runs_models_says_what_to_install_before_it_reads_any(tmp_path: Path) -> None:
    for name in ("no.keras", "no.h5"):
        (tmp_path / name).write_text("no model")  # nobody gets as far as to see that
    np.save(tmp_path / "data.npy", np.zeros((4, 8, 8, 1)))
    for words, found in zip(RUNNING, run(tmp_path, *RUNNING), strict=True):
        code, text, said = found
        assert (code, text, len(said.splitlines())) == (2, "", 1), words
        assert said.startswith("bnfold: cannot ")
        assert "tensorflow" in said
        assert 'pip install "bnfold[verify]"' in said
        is_fold = words[:3] == ["fold", "no.keras", "out.keras"]
        assert said.endswith("or use --no-verify\n") == is_fold, words
    assert {path.name for path in tmp_path.iterdir()} == {"no.keras", "no.h5", "data.npy"}


@pytest.mark.keras  # all but one are installed
@pytest.mark.parametrize("missing", ["tf2onnx", "onnx", "onnxruntime"])
def test_what_needs_onnx_runtime_says_which_part_is_missing(missing: str, tmp_path: Path) -> None:
    commands = [
        ["export", "no.keras", "out.onnx"],
        ["verify", "no.keras", "no.keras", "--strict"],
        ["fold", "no.keras", "out.keras", "--strict"],
        ["bench", "no.keras", "--runtime", "onnxruntime"],
    ]
    for code, _, said in run(tmp_path, *commands, without=(missing,)):
        assert code == 2
        assert f": {missing} is not installed: pip install " in said


@pytest.mark.keras
@pytest.mark.slow
def test_what_needs_onnx_runtime_in_part_does_the_rest_and_says_so(tmp_path: Path) -> None:
    """A fold is proved by Keras alone, and `bench` leaves a runtime out. Both in one process."""
    fold = ["fold", str(FIXTURE), "out.keras"]
    bench = ["bench", str(FIXTURE), "--seconds", "0.01", "--format", "json"]
    folded, timed = run(tmp_path, fold, bench, without=("tf2onnx", "ai_edge_litert"))
    code, text, _ = folded
    assert code == 0
    assert "tf2onnx is not installed: pip install" in text
    assert "(keras alone; " in text
    code, text, _ = timed
    assert code == 0
    reasons = {one["runtime"]: one["reason"] for one in json.loads(text)["skipped"]}
    assert reasons["onnxruntime"] == (
        'it cannot run A: tf2onnx is not installed: pip install "bnfold[verify]"'
    )


def test_from_python_it_is_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = lambda module: None if module in FRAMEWORKS else origin(module)  # noqa: E731
    monkeypatch.setattr(requirements, "origin", hidden)
    said = r"tensorflow and keras are not installed: pip install \"bnfold\[verify\]\""
    with pytest.raises(VerificationImpossibleError, match=rf"{said}, or use verify=False$"):
        bnfold.fold("no.keras", tmp_path / "out.keras")
    with pytest.raises(VerificationImpossibleError, match=said):
        bnfold.inspect("no.keras", data=np.zeros((4, 8)))
    assert bnfold.fold(FIXTURE, tmp_path / "out.keras", verify=False)


@pytest.mark.slow
def test_the_light_installation(tmp_path: Path) -> None:
    """Installs bnfold as a user does, and uses it."""
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-m", "venv", str(there)], check=True)
    python = there / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    names = {one["name"].replace("-", "_") for one in json.loads(listed.stdout)}
    assert not names & set(FRAMEWORKS)
    (folder,) = there.glob("lib/*/site-packages")
    tools = {"pip", "setuptools", "pkg_resources"}
    files = [one for one in folder.rglob("*") if one.relative_to(folder).parts[0] not in tools]
    assert sum(one.stat().st_size for one in files if one.is_file()) < 150e6

    def bnfold(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [str(there / "bin" / "bnfold"), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    gate = bnfold("inspect", str(FIXTURE), "--fail-on", "info", "--output", "report.html")
    assert gate.returncode == 1, gate.stderr
    assert (tmp_path / "report.html").exists()
    assert bnfold("fold", str(FIXTURE), "out.keras", "--no-verify").returncode == 0
    assert bnfold("fold", str(FIXTURE), "other.keras").returncode == 2
    assert bnfold("doctor").returncode == 0
