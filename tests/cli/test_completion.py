"""What a shell proposes, as it asks for it."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from projects import model

from bnfold.cli import main
from bnfold.version import __version__

pytestmark = pytest.mark.usefixtures("folder")


def proposed(*words: str) -> list[str]:
    """The proposals for the last word, with their kinds, as bash gets them."""
    asked = {"_BNFOLD_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(("bnfold", *words))}
    place = {"COMP_CWORD": str(len(words))}
    result = CliRunner(env={**asked, **place}).invoke(main, prog_name="bnfold")
    return result.stdout.split("\n")[:-1] if result.stdout.strip() else []


def test_commands_choices_and_files() -> None:
    assert proposed("insp") == ["plain,inspect"]
    assert proposed("inspect", "--fail-on", "w") == ["plain,warning"]
    for words in (["inspect", "m"], ["inspect", "--baseline", "m"], ["fold", "m"], ["bench", "m"]):
        assert proposed(*words) == ["file,m"], words


@pytest.mark.parametrize("words", [["inspect", "--select"], ["inspect", "--ignore"], ["rule"]])
def test_rules(words: list[str]) -> None:
    assert proposed(*words, "bn10")[:2] == ["plain,BN101", "plain,BN102"]
    assert proposed(*words, "neg") == ["plain,negative-variance"]


def test_the_last_rule_of_a_list() -> None:
    assert proposed("inspect", "--select", "BN4,BN105") == ["plain,BN4,BN105"]


def test_layers_of_the_model_that_was_named() -> None:
    model(Path("m.keras"), "first", "fine-2", "$(touch x)", "a b", "-f")
    assert proposed("inspect", "m.keras", "--layer", "fi") == ["plain,first", "plain,fine-2"]
    assert proposed("inspect", "m.keras", "--layer", "") == ["plain,first", "plain,fine-2"]
    assert proposed("inspect", "lost.keras", "--layer", "f") == []
    assert os.listdir() == ["m.keras"]


def test_the_version_in_short() -> None:
    result = CliRunner().invoke(main, ["-V"])
    assert result.stdout == f"bnfold, version {__version__}\n"
