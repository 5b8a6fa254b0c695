"""The documentation says what the code's own tables say."""

import re
import runpy
from collections.abc import Iterator

import click
import pytest
from places import ROOT

from bnfold import errors
from bnfold.cli import main
from bnfold.folding.rules import LAYERS, OPERATIONS
from bnfold.model import layers

DOCS = ROOT / "docs"


def tables(page: str) -> list[list[str]]:
    """The first cells of each table of a page."""
    found: list[list[str]] = []
    before = ""
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            if not before.startswith("|"):
                found.append([])
            else:
                found[-1].append(line.split("|")[1].strip())
        before = line
    return found


def classes(cell: str) -> Iterator[str]:
    """The classes that a cell names: `Conv{1,2}D (anything), Dense`."""
    for name in re.findall(r"[A-Z]\w*(?:\{[\d,]+\}\w*)?", re.sub(r"\([^)]*\)", "", cell)):
        numbers = re.search(r"\{([\d,]+)\}", name)
        if numbers is None:
            yield name
        else:
            yield from (name.replace(numbers[0], one) for one in numbers[1].split(","))


BACKWARD = layers.LINEAR_CLASSES
TABLES = {
    0: BACKWARD,
    1: {name for name, rule in LAYERS.items() if rule.absorb_before} - layers.BATCHNORM_CLASSES,
    2: {name for name, rule in LAYERS.items() if rule.backward},
    3: set(OPERATIONS),
}


@pytest.mark.parametrize("number", TABLES)
def test_the_page_on_folding_lists_what_the_code_does(number: int) -> None:
    listed = [name for cell in tables("folding.md")[number] for name in classes(cell)]
    assert sorted(set(listed) - {"BatchNormalization"}) == sorted(TABLES[number])
    assert len(listed) == len(set(listed))


def test_the_table_of_all_layers_is_what_the_rows_say() -> None:
    written = runpy.run_path(str(DOCS / "layer_table.py"))
    assert written["page"]() == (DOCS / "folding.md").read_text(), "run docs/layer_table.py"


def test_the_map_for_developers_has_every_module_and_no_other() -> None:
    named = set()
    for cell in tables("development.md")[0]:
        names = re.findall(r"`([^`]+)`", cell)
        folder = names[0].rpartition("/")[0]  # the first one says it for those behind it
        named |= {name if "/" in name else f"{folder}/{name}".lstrip("/") for name in names}
    modules = {
        path.relative_to(ROOT / "bnfold").as_posix()
        for path in (ROOT / "bnfold").rglob("*.py")
        if not path.name.startswith("__")
    }
    whole = tuple(name for name in named if name.endswith("/"))
    assert {name for name in modules if not name.startswith(whole)} == named - set(whole)


def test_the_page_on_use_has_every_option_and_every_error() -> None:
    page = (DOCS / "usage.md").read_text()
    commands = [main.get_command(click.Context(main), name) for name in main.commands]
    options = {
        option
        for command in commands
        if command is not None
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    found = {name for name in vars(errors) if name.endswith("Error")} - {"BnfoldError"}
    assert {option for option in options if not re.search(rf"{option}\b(?!-)", page)} == set()
    assert {name for name in found if f"| `{name}` |" not in page} == set()
