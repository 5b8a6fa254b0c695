"""What `bnfold doctor` says of libraries that are there, missing, old, damaged, or never ready."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from places import ROOT
from schemas import validate

from bnfold.cli import main
from bnfold.running.requirements import LIBRARIES

MODELS = [name for name, one in LIBRARIES.items() if one.extra]


def libraries(folder: Path, **code: str) -> None:
    """Modules that stand before those that are installed; the others that run models do nothing."""
    for name in MODELS:
        part = folder / name
        part.mkdir()
        text = code.get(name, f"__version__ = '{LIBRARIES[name].lowest}'")
        (part / "__init__.py").write_text(text)
        for inner in ("convert", "interpreter"):
            (part / f"{inner}.py").touch()


def doctor(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bnfold", "doctor", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )


def report(folder: Path, *words: str) -> dict[str, Any]:
    done = doctor(folder, "--format", "json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    validate(found, "doctor")
    return found


def by(key: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


def test_all_is_well(tmp_path: Path) -> None:
    libraries(tmp_path)
    found = report(tmp_path)
    assert found["imported"] is True
    assert [one for one in found["libraries"] if one["problem"]] == []
    assert [one["name"] for one in found["commands"] if not one["works"]] == []
    versions = by("module", found["libraries"])
    assert versions["s3fs"]["use"] == "models at s3://"
    assert versions["keras"]["use"] is None
    assert versions["tensorflow"]["version"] == LIBRARIES["tensorflow"].lowest  # of the module
    assert "CVE-2026-2492" in versions["tensorflow"]["advisories"]
    assert versions["tensorflow"]["fixed_in"] == "2.21.0"


@pytest.mark.slow
def test_every_kind_of_damage_is_told_of_its_library_alone(tmp_path: Path) -> None:
    libraries(
        tmp_path,
        tensorflow="import os; os.kill(os.getpid(), 4)",
        keras="raise ValueError('numpy.dtype size changed')",
        onnx="__version__ = '1.20.0'",
        onnxruntime="import time; time.sleep(60)",
        tf_keras="import sys; sys.exit(3)",
    )
    found = report(tmp_path, "--timeout", "3")
    problems = {one["module"]: one["problem"] for one in found["libraries"] if one["problem"]}
    assert problems.keys() == {"tensorflow", "keras", "onnx", "onnxruntime", "tf_keras"}
    assert "crashed with SIGILL while importing tensorflow" in problems["tensorflow"]
    assert problems["keras"] == "cannot be imported (numpy.dtype size changed)"
    assert problems["onnx"] == "1.20.0 is older than 1.21"
    assert "took more than 3 s while importing onnxruntime" in problems["onnxruntime"]
    commands = by("name", found["commands"])
    works = {name for name, one in commands.items() if one["works"]}
    assert works == {"inspect", "rules", "fold --no-verify"}
    assert "keras cannot be imported (numpy.dtype size changed)" in commands["verify"]["problem"]


def test_a_part_that_a_command_can_do_without_is_a_limitation(tmp_path: Path) -> None:
    libraries(tmp_path, tf2onnx="raise ImportError('no such thing')")
    commands = by("name", report(tmp_path)["commands"])
    assert commands["verify"]["works"] is True
    assert commands["verify"]["limitation"] == "tf2onnx cannot be imported (no such thing)"
    assert commands["export"]["works"] is False
    text = doctor(tmp_path).stdout
    assert re.search(r"\n  verify +yes, but tf2onnx cannot be imported \(no such thing\)\n", text)
    assert re.search(r"\n  export +no: tf2onnx cannot be imported \(no such thing\)\n", text)


def test_nothing_is_imported_where_nobody_wants_it(tmp_path: Path) -> None:
    libraries(tmp_path, tensorflow="open('imported', 'w')", keras="raise ValueError('no')")
    found = report(tmp_path, "--no-import")
    assert found["imported"] is False
    assert [one for one in found["libraries"] if one["problem"]] == []
    assert not (tmp_path / "imported").exists()
    text = doctor(tmp_path, "--no-import").stdout
    assert "which were not imported" in text
    assert re.search(r"\n  fsspec +[\d.]+, for models in stores\n", text)


@pytest.mark.parametrize("name", ["h5py", "rich", "jinja2", "ml_dtypes", "zlib_ng"])
@pytest.mark.few(1)
def test_a_library_that_every_command_needs_is_the_exit_code(name: str, tmp_path: Path) -> None:
    libraries(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise ImportError('is damaged')")
    done = doctor(tmp_path)
    assert done.returncode == 1
    says = rf"  inspect +no: {name.replace('_', '-')} cannot be imported"
    assert re.search(says, done.stdout)


@pytest.mark.parametrize("name", ["click", "numpy"])
def test_what_bnfold_cannot_start_without_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise ValueError('is damaged\\nby something')")
    done = doctor(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bnfold: cannot start: ValueError: is damaged by something\n"


def test_the_report_names_no_file_and_no_user(tmp_path: Path) -> None:
    libraries(tmp_path)
    done = doctor(tmp_path)
    for private in (str(tmp_path), str(ROOT), str(Path.home()), sys.prefix):
        assert private not in done.stdout


def test_json_has_an_option_of_its_own() -> None:
    short, long = (
        CliRunner().invoke(main, ["doctor", "--no-import", *words])
        for words in (["--json"], ["--format", "json"])
    )
    assert short.exit_code == 0
    assert json.loads(short.stdout) == json.loads(long.stdout)
