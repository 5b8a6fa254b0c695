"""The rules as documentation: their pages, the commands that show them, the index in the docs."""

import inspect
import io
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from places import ROOT
from rich.console import Console
from schemas import validate

from bnfold.audit import RULES, Rule, Thresholds
from bnfold.cli import main
from bnfold.jobs.inspect import inspect_file
from bnfold.observation.observe import DataRun
from bnfold.reports import terminal
from bnfold.reports.rule_page import markdown, sections

INDEX = (ROOT / "docs" / "rules.md").read_text()

HEADINGS = (
    "What it finds",
    "Why it matters",
    "Formula",
    "Example",
    "What to do",
    "References",
)
"""What a page has a section for, in this order."""

EACH = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)


def bnfold(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def code_of(text: str) -> str:
    """The indented block of a section."""
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
    return inspect.cleandoc("\n".join(lines))


def quote_of(text: str) -> str:
    """What a section quotes, in one line."""
    return " ".join(line[1:].strip() for line in text.splitlines() if line.startswith(">"))


# --- the table and the pages ---------------------------------------------------------------------


def test_codes_and_names_are_in_order_and_never_twice() -> None:
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    assert [rule.code for rule in RULES] == sorted(rule.code for rule in RULES)
    for rule in RULES:
        assert list(rule.severities) == sorted(rule.severities, key=lambda one: one.rank)


@EACH
def test_a_page_has_all_headings_in_order_and_text_under_each(rule: Rule) -> None:
    found = sections(rule)
    assert tuple(found) == HEADINGS
    assert all(text.strip() for text in found.values())
    page = markdown(rule)
    assert page.startswith(f"# {rule.code} {rule.name}\n\n{rule.summary}\n\n*Level: ")
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == list(HEADINGS)
    assert rule.summary.endswith(".")
    assert "https://" in found["References"]


@EACH
def test_a_page_names_only_rules_and_thresholds_that_there_are(rule: Rule) -> None:
    known = {one.code for one in RULES}
    assert set(re.findall(r"BN\d{3}", markdown(rule))) <= known
    names = {field.name for field in fields(Thresholds)}
    mentioned = set(re.findall(r"`([a-z]+_[a-z]+)` \([\d./ %]+\)", markdown(rule)))
    assert mentioned <= names


@pytest.mark.keras
@EACH
@pytest.mark.few(3)
def test_the_example_gives_what_the_page_quotes(rule: Rule, tmp_path: Path) -> None:
    import support

    example = sections(rule)["Example"]
    namespace: dict[str, Any] = {}
    support.keras.backend.clear_session()
    exec(code_of(example), namespace)
    namespace["model"].save(tmp_path / "model.keras")
    data = namespace.get("data")
    run = None if data is None else DataRun(data)
    found = inspect_file(tmp_path / "model.keras", run=run, join=False).findings
    said = [f"{one.severity.value}: {one.message}" for one in found if one.code == rule.code]
    assert said == [quote_of(example)] or said[0] == quote_of(example)


# --- the commands --------------------------------------------------------------------------------


def test_rules_lists_every_rule() -> None:
    result = bnfold("rules")
    assert result.exit_code == 0
    for rule in RULES:
        (line,) = [line for line in result.stdout.splitlines() if f" {rule.code} " in line]
        assert rule.name in line
        assert rule.summary in line
        assert ", ".join(severity.value for severity in rule.severities) in line


def test_rules_as_json_follow_their_schema() -> None:
    found = json.loads(bnfold("rules", "--format", "json").stdout, parse_constant=pytest.fail)
    validate(found, "rules")
    assert [row["code"] for row in found["rules"]] == [rule.code for rule in RULES]
    (row,) = [row for row in found["rules"] if row["code"] == "BN103"]
    assert row == {
        "code": "BN103",
        "name": "statistics-not-converged",
        "severities": ["error", "warning"],
        "summary": "Too few training steps: the initial values still have a large weight in the "
        "statistics.",
    }


@pytest.mark.parametrize("name", ["BN103", "bn103", "statistics-not-converged"])
def test_rule_prints_the_page(name: str) -> None:
    result = bnfold("rule", name)
    assert result.exit_code == 0
    assert result.stdout == markdown(next(rule for rule in RULES if rule.code == "BN103"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BN1O3", "BN103"),
        ("not-converged", "did you mean statistics-not-converged?"),
        ("Frozen-momentum", "did you mean frozen"),
        ("xyz", "'bnfold rules' lists them"),
        ("", "'bnfold rules' lists them"),
    ],
)
def test_an_unknown_rule_is_a_wrong_usage(name: str, hint: str) -> None:
    result = bnfold("rule", name)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"bnfold: no rule is named '{name}'")
    assert hint in line


def test_in_a_terminal_the_page_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=80, file=io.StringIO())
    monkeypatch.setattr(terminal, "console", lambda: console)
    assert CliRunner().invoke(main, ["rule", "BN103"]).exit_code == 0
    shown = console.file.getvalue()
    assert "\x1b[" in shown
    assert "## " not in shown
    assert "What it finds" in shown


# --- the docs ------------------------------------------------------------------------------------


def rows(number: int) -> list[list[str]]:
    """The cells of a table of the index, without its head."""
    tables = re.split(r"\n\n", INDEX)
    lines = [table for table in tables if table.startswith("| ")][number].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_index_lists_the_rules() -> None:
    assert rows(0) == [
        [
            f"[{rule.code}](../bnfold/audit/pages/{rule.code}.md)",
            rule.name,
            " or ".join(severity.value for severity in rule.severities),
            rule.summary,
        ]
        for rule in RULES
    ], "the first table of docs/rules.md"


def test_the_index_lists_the_thresholds() -> None:
    defaults = {row[0]: row[1] for row in rows(1)}
    known = [field.name for field in fields(Thresholds)]
    assert list(defaults) == known, "the second table of docs/rules.md"
    for name, text in defaults.items():
        whole, _, part = text.partition("/")
        assert float(whole) / float(part or 1) == getattr(Thresholds(), name)
