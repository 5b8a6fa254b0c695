"""A rule that somebody adds: a function and a page, and every command knows it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from places import ROOT

from bnfold.audit import RULES, Diagnosis, Needs, Severity, Subject, named, registry, rule
from bnfold.audit.registry import alike
from bnfold.cli import main

Fixture = Callable[[str], Path]

PAGE = "## What it finds\n\nEvery layer.\n\n## Why it matters\n\nIt does not.\n"
DEVELOPMENT = ROOT / "docs" / "development.md"


def bnfold(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rule BN250 made-up, which warns of every layer, and its page."""
    pages = shutil.copytree(registry.PAGES, tmp_path / "pages")
    (pages / "BN250.md").write_text(PAGE)
    monkeypatch.setattr(registry, "PAGES", pages)
    before = list(RULES)

    @rule("BN250", "made-up", Severity.WARNING, Severity.INFO, needs=Needs.SETTINGS)
    def made_up(subject: Subject) -> Diagnosis | None:
        """It is a layer."""
        return Diagnosis(Severity.WARNING, "it is a layer", "nothing to do", figures={"one": 1})

    yield
    RULES[:] = before


@pytest.fixture
def model(fixture_model: Fixture) -> str:
    return str(fixture_model("digits_cnn_keras315.keras"))


@pytest.mark.usefixtures("made_up")
def test_it_stands_among_the_others_by_its_code() -> None:
    codes = [one.code for one in RULES]
    assert "BN250" in codes
    assert codes == sorted(codes)


@pytest.mark.usefixtures("made_up")
def test_inspect_asks_it(model: str) -> None:
    assert "BN250" in bnfold("inspect", model, "--no-config").stdout
    assert "BN250" in bnfold("inspect", model, "--no-config", "--select", "made-up").stdout
    for chosen in (["--ignore", "made-up"], ["--select", "BN1"]):
        assert "BN250" not in bnfold("inspect", model, "--no-config", *chosen).stdout
    assert bnfold("inspect", model, "--no-config", "--fail-on", "warning").exit_code == 1


def test_it_may_be_added_after_an_inspection(model: str, request: pytest.FixtureRequest) -> None:
    assert "BN250" not in bnfold("inspect", model, "--no-config").stdout
    request.getfixturevalue("made_up")
    assert "BN250" in bnfold("inspect", model, "--no-config").stdout


@pytest.mark.usefixtures("made_up")
def test_json_and_sarif_have_it(model: str) -> None:
    report = json.loads(bnfold("inspect", model, "--no-config", "--format", "json").stdout)
    found = [one for one in report["models"][0]["findings"] if one["code"] == "BN250"]
    assert len(found) == len(report["models"][0]["batchnorms"])
    assert found[0]["name"] == "made-up"
    assert found[0]["severity"] == "warning"
    assert found[0]["figures"] == {"one": 1}

    report = json.loads(bnfold("inspect", model, "--no-config", "--format", "sarif").stdout)
    (run,) = report["runs"]
    (result, *_) = [one for one in run["results"] if one["ruleId"] == "BN250"]
    described = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert described["id"] == "BN250"
    assert described["shortDescription"] == {"text": "It is a layer."}
    assert described["fullDescription"] == {"text": "Every layer."}


@pytest.mark.usefixtures("made_up")
def test_it_is_listed_and_explained() -> None:
    (line,) = [line for line in bnfold("rules").stdout.splitlines() if "BN250" in line]
    assert line.split() == ["BN250", "made-up", "warning,", "info", "It", "is", "a", "layer."]
    rows = json.loads(bnfold("rules", "--format", "json").stdout)["rules"]
    assert {"BN250": "It is a layer."}.items() <= {r["code"]: r["summary"] for r in rows}.items()
    for name in ("BN250", "bn250", "made-up", "Made-Up"):
        assert bnfold("rule", name).stdout == (
            f"# BN250 made-up\n\nIt is a layer.\n\n*Level: warning or info.*\n\n{PAGE}"
        )


@pytest.mark.usefixtures("made_up")
def test_it_can_be_suppressed(model: str, tmp_path: Path) -> None:
    settings = tmp_path / "pyproject.toml"
    settings.write_text(
        '[[tool.bnfold.suppress]]\nlayer = "*"\nrules = ["made-up"]\nreason = "it is made up"\n'
    )
    result = bnfold("inspect", model, "--config", str(settings), "--format", "json")
    (report,) = json.loads(result.stdout)["models"]
    assert "BN250" not in {one["code"] for one in report["findings"]}
    reasons = {one["reason"] for one in report["suppressed"] if one["code"] == "BN250"}
    assert reasons == {"it is made up"}


@pytest.mark.usefixtures("made_up")  # puts the rules back as they were
def test_the_rule_in_the_documentation_does_what_it_says() -> None:
    (code,) = re.findall(r"```python\n(.*?@rule.*?)```", DEVELOPMENT.read_text(), re.DOTALL)
    exec(code, {})
    found = named("shifted-channels")
    assert found is not None
    said = found.check(subject(gamma=[1.0, 1.0, 1.0], beta=[0.0, 20.0, 0.0]))
    assert said is not None
    assert said.message == "beta is over 10 times gamma in 1 of 3 channels (1)"
    assert found.check(subject(gamma=[1.0, 1.0, 1.0], beta=[0.0, 1.0, 0.0])) is None


def subject(**vectors: list[float]) -> Subject:
    """A layer of which a rule may ask these vectors only."""
    nothing: Any = None
    return Subject(nothing, {name: np.array(one) for name, one in vectors.items()}, nothing)


# --- the pages and the names ---------------------------------------------------------------------


def test_every_page_is_that_of_a_rule() -> None:
    assert sorted(path.stem for path in registry.PAGES.iterdir()) == [one.code for one in RULES]


def test_an_inspection_reads_no_page(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "PAGES", tmp_path / "missing")
    assert bnfold("inspect", model, "--no-config").exit_code == 0
    assert bnfold("rules").exit_code == 0


def test_a_rule_is_found_by_its_code_and_its_name() -> None:
    for one in RULES:
        for word in (one.code, one.code.lower(), one.name, one.name.upper()):
            assert named(word) is one
    assert named("BN1") is None
    assert named("") is None
    assert "BN110" in alike("BN11")
    assert alike("") == []
