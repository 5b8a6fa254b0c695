"""What Windows refuses is not needed: nothing that is open is replaced, moved or removed."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import directory_model, keras_file, legacy_file
from click.testing import CliRunner
from places import FIXTURES

import bnfold
from bnfold.cli import main
from bnfold.jobs import staging
from bnfold.supervision import link

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that plays Windows")


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    import windows

    windows.refuse_as_windows(monkeypatch)


def test_the_rules_are_those_of_windows(tmp_path: Path, as_on_windows: None) -> None:
    held, other = tmp_path / "held", tmp_path / "other"
    other.write_text("other")
    with held.open("w") as stream:
        stream.write("held")
        for move in (other.replace, other.rename):
            with pytest.raises(PermissionError):
                move(held)
        with pytest.raises(PermissionError):
            held.unlink()
        with pytest.raises(PermissionError):
            tmp_path.rename(tmp_path.with_name("elsewhere"))
    other.replace(held)
    assert held.read_text() == "other"


@pytest.mark.parametrize("make", [keras_file, legacy_file, directory_model])
def test_a_model_is_folded_in_place(
    make: Callable[[Path], Path], tmp_path: Path, as_on_windows: None
) -> None:
    suffix = {keras_file: ".keras", legacy_file: ".h5"}.get(make, "")
    model = make(tmp_path / f"m{suffix}")
    command = ["fold", "--no-verify", "--force", str(model), str(model)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert not [one.name for one in tmp_path.iterdir() if one.name.startswith(".")]
    assert not bnfold.inspect(model).plan.decisions


def test_what_is_read_only_is_replaced_with_force(tmp_path: Path, as_on_windows: None) -> None:
    source, target = keras_file(tmp_path / "m.keras"), tmp_path / "out.keras"
    target.write_bytes(b"before")
    target.chmod(0o444)
    result = CliRunner().invoke(main, ["fold", "--no-verify", "--force", str(source), str(target)])
    assert result.exit_code == 0, result.output
    assert not target.stat().st_mode & 0o222


def test_reports_and_baselines_are_written_twice(tmp_path: Path, as_on_windows: None) -> None:
    source = keras_file(tmp_path / "m.keras")
    for name in ("report.json", "report.html"):
        for _ in range(2):
            words = ["inspect", str(source), "--output", str(tmp_path / name)]
            result = CliRunner().invoke(main, [*words, "--fail-on", "never"])
            assert result.exit_code == 0, result.output
    for _ in range(2):
        baseline = ["--write-baseline", str(tmp_path / "baseline.json")]
        result = CliRunner().invoke(main, ["inspect", str(source), *baseline])
        assert result.exit_code == 0, result.output


def test_a_folder_called_dev_holds_files(monkeypatch: pytest.MonkeyPatch) -> None:
    # C:\dev is a folder like any other; here /dev/null stands for a file in it.
    assert staging.is_stream(Path("/dev/stdout"))
    monkeypatch.setattr(staging, "_IS_WINDOWS", True)
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert not staging.is_stream(Path("/dev/null"))


def test_a_supervisor_that_is_gone_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, content: bytes) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")  # what it calls a broken pipe

    reading, writing = os.pipe()
    monkeypatch.setattr(link._link, "pipe", writing)
    monkeypatch.setattr(os, "write", write)
    link.call(1, "[]")
    monkeypatch.undo()
    os.close(reading)
    os.close(writing)


@pytest.mark.keras
@pytest.mark.parametrize("name", ["digits_cnn_keras315.keras", "digits_cnn_keras315.h5"])
@pytest.mark.few(1)
def test_what_runs_models_lets_go_of_their_files(
    name: str, tmp_path: Path, as_on_windows: None
) -> None:
    model = tmp_path / name
    model.write_bytes((FIXTURES / name).read_bytes())
    data = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
    recalibrated = bnfold.recalibrate(
        model, model, data=data, force=True, allow_other_scale=True, in_process=True
    )
    assert recalibrated.written
    for _ in range(2):
        exported = bnfold.export(model, tmp_path / "m.onnx", force=True, in_process=True)
        assert exported.written
    assert bnfold.fold(model, model, force=True, in_process=True).written
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([name, "m.onnx"])
