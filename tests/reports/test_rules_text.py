"""The list of the rules in terminals of any width, and hints at rules."""

import io

import pytest
from click.testing import CliRunner
from rich.console import Console

from bnfold.audit import RULES
from bnfold.cli import main
from bnfold.reports.text import rules


@pytest.mark.parametrize("width", [60, 80, 160])
def test_no_line_is_wider_than_the_terminal_and_none_is_a_sliver(width: int) -> None:
    text = io.StringIO()
    Console(file=text, width=width).print(rules.rules(RULES, width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 4 * len(RULES)
    assert all(rule.code in text.getvalue() for rule in RULES)


def test_the_beginning_of_a_code_hints_at_its_rules() -> None:
    result = CliRunner().invoke(main, ["rule", "BN1"])
    assert result.exit_code == 2
    assert "BN101 or BN102" in result.stderr
