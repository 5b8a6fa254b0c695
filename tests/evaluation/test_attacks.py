"""The pages on safety say what the code does, and each of their promises has a test."""

import re
import warnings
from pathlib import Path

import attacks
import pytest
from places import ROOT

import bnfold
from bnfold.errors import BnfoldError

SECURITY = ROOT / ".github" / "SECURITY.md"
COLUMNS = ("attack", "keras", "unsafe", "inspect", "fold --no-verify", "fold")

ROWS = {
    cells[0]: dict(zip(COLUMNS, cells, strict=True))
    for line in attacks.PAGE.read_text().splitlines()
    if line.startswith("| ") and len(cells := line.strip("| ").split(" | ")) == len(COLUMNS)
}


def test_every_attack_has_its_row_and_every_row_its_attack() -> None:
    assert list(ROWS)[2:] == [attack.name for attack in attacks.ATTACKS], "run attacks.py --write"
    assert len(ROWS) == len(attacks.ATTACKS) + 2


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_names_a_test_that_exists(attack: attacks.Attack) -> None:
    exists(attack.test)


def exists(test: str) -> None:
    name, _, function = test.partition("::")
    assert re.search(rf"^def {function}\(", (ROOT / name).read_text(), re.MULTILINE), test


def test_every_promise_names_tests_that_exist() -> None:
    promises = SECURITY.read_text().partition("## What is promised")[2]
    promises = promises.partition("## What is not promised")[0]
    for block in re.split(r"\n(?=- |### )", promises):
        if block.startswith("- "):
            assert re.search(r"<!-- tests/", block), f"no test: {block}"
    named = re.findall(r"tests/\S+::\w+", promises)
    assert len(named) > 20
    for test in named:
        exists(test)


def test_bnfold_does_nothing_that_the_table_has_in_bold() -> None:
    """But for what it is told to do: `--trust`."""
    bad = {
        name: cells[column]
        for name, cells in ROWS.items()
        for column in COLUMNS[3:]
        if "**" in cells[column] and not name.startswith("**not prevented")
    }
    assert bad == {}


LARGE = ("256 MiB", "asset of 512 MiB")


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            attack,
            id=attack.name,
            marks=[pytest.mark.slow] if attack.name.startswith(LARGE) else [],
        )
        for attack in attacks.ATTACKS
        if attack.build != attacks.any_operation and not attack.name.startswith("TFSMLayer")
    ],
)
def test_what_reads_a_file_does_what_the_table_says(attack: attacks.Attack, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(attacks.SECRET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a name stands twice in an archive is meant
        path = attack.build(tmp_path)
    out = tmp_path / f"out{path.suffix}"
    for column, do, done in (
        ("inspect", lambda: bnfold.inspect(path), "reads"),
        ("fold --no-verify", lambda: bnfold.fold(path, out, verify=False), "writes"),
    ):
        try:
            do()
            found = done
        except BnfoldError:
            found = "refuses"
        assert ROWS[attack.name][column] == found
    assert not list(tmp_path.glob("canary*"))
    assert not out.exists() or attacks.SECRET not in out.read_bytes()
