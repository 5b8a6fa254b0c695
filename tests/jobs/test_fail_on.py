"""What `fold` and `export` say of a model that is sick already, and where they stop."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from schemas import validate
from support import chain, keras, randomize

import bnfold
from bnfold.cli import main
from bnfold.reports.schema import schema

L = keras.layers
OUT = {"fold": "out.keras", "export": "out.onnx"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sick() -> Any:
    """One norm with the error BN104, and one that only has a warning: a redundant scale."""
    model = randomize(
        chain((4,), L.Dense(3), L.BatchNormalization(name="sick"), L.Dense(2, name="scores"))
    )
    norm = model.get_layer("sick")
    norm.gamma.assign(np.ones(3))
    norm.moving_variance.assign([1.0, np.nan, 2.0])
    return model


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("sick") / "sick.keras"
    sick().save(path)
    return path.read_bytes()


@pytest.fixture
def model(content: bytes) -> Path:
    path = Path("sick.keras")
    path.write_bytes(content)
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_an_error_is_a_line_and_stops_nothing(model: Path) -> None:
    result = command("fold", model, "out.keras", "--no-verify")
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("error BN104 sick: ")]
    assert len(lines) == 1
    assert Path("out.keras").exists()


@pytest.mark.parametrize("name", OUT)
def test_fail_on_stops_before_anything_is_run(name: str, model: Path) -> None:
    target = Path(OUT[name])
    target.write_bytes(b"precious")
    words = [name, model, target, "--force", "--fail-on", "error"]
    result = command(*words, "--format", "json")
    report = json.loads(result.stdout)
    validate(report, name)
    assert result.exit_code == 1
    assert "TensorFlow" not in result.stderr
    assert (report["written"], report["verification"]) == (False, None)
    assert (report["fail_on"], report["stopped_by_findings"]) == ("error", True)
    assert [found["code"] for found in report["findings"]] == ["BN104"]
    assert target.read_bytes() == b"precious"
    said = command(*words).stdout
    assert said.startswith(
        f"{target} was not written: findings on the model are as bad as --fail-on error"
    )
    assert "1 BatchNormalization layer: 0 can be folded, 1 cannot" in said
    assert "folded 0" not in said


@pytest.mark.parametrize("name", OUT)
def test_a_finding_is_described_as_by_inspect(name: str) -> None:
    assert schema(name)["$defs"]["finding"] == schema("inspect")["$defs"]["finding"]


def test_the_short_form_stops_too(model: Path) -> None:
    assert command("fold", model, "out.onnx", "--fail-on", "error").exit_code == 1
    assert not Path("out.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "options", "code"),
    [
        ("", ["--fail-on", "error"], 1),
        ('fail-on = "error"', [], 0),
        ('ignore = ["BN104"]', ["--fail-on", "error"], 0),
        ('ignore = ["BN104"]', ["--fail-on", "error", "--no-config"], 1),
        (
            '[[tool.bnfold.suppress]]\nlayer = "sick"\nrules = ["BN104"]\nreason = "known"',
            ["--fail-on", "error"],
            0,
        ),
        ('baseline = "known.json"', ["--fail-on", "error"], 0),
        ('select = ["BN1"]\nignore = ["BN104"]', ["--fail-on", "info"], 0),
    ],
)
def test_the_settings_are_those_of_inspect(
    settings: str, options: list[str], code: int, model: Path
) -> None:
    if "baseline" in settings:
        assert command("inspect", model, "--write-baseline", "known.json").exit_code == 0
    Path("pyproject.toml").write_text(f"[tool.bnfold]\n{settings}\n")
    result = command("fold", model, "out.keras", "--no-verify", *options)
    assert result.exit_code == code, result.stdout + result.stderr
    assert Path("out.keras").exists() == (code == 0)


def test_a_model_that_cannot_be_audited_is_not_taken_for_healthy(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose optimizer's part is damaged, which a fold leaves out."""

    def damaged(*_: Any, **__: Any) -> Any:
        raise bnfold.UnreadableModelError("sick.keras: the optimizer is damaged")

    monkeypatch.setattr("bnfold.jobs.gate.inspect_model", damaged)
    result = command("fold", model, "out.keras", "--no-verify")
    assert result.exit_code == 0
    assert "not audited: sick.keras: the optimizer is damaged" in result.stdout
    assert command("fold", model, "a.keras", "--no-verify", "--fail-on", "error").exit_code == 1
    assert not Path("a.keras").exists()


def test_python_can_stop_too(model: Path) -> None:
    report = bnfold.fold(model, "out.keras", verify=False)
    assert (report.written, [one.code for one in report.audit.findings]) == (True, ["BN104"])
    report = bnfold.fold(model, "none.keras", verify=False, fail_on="error")
    assert (report.written, report.audit.stops) == (False, True)
    exported = bnfold.export(model, "out.onnx", fail_on="error")
    assert (exported.written, exported.opset, exported.check) == (False, None, None)
    with pytest.raises(bnfold.SettingsError, match="fail_on: there is no 'errors'"):
        bnfold.fold(model, "none.keras", verify=False, fail_on="errors")  # type: ignore[call-overload]
    with pytest.raises(bnfold.FindingsError, match="not folded: BN104 sick"):
        bnfold.fold(sick(), verify=False, fail_on="error")
