"""The documentation says what the code's own tables say."""

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from places import ROOT

import bnfold
from bnfold import errors
from bnfold.cli import main
from bnfold.folding.rules import LAYERS, OPERATIONS
from bnfold.model import layers
from bnfold.reports.schema import schema
from bnfold.running.timing import RUNTIMES

DOCS = ROOT / "docs"
LIBRARIES = (DOCS / "versions.md").read_text("utf-8").partition("## Other libraries")[2]


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


def compat() -> dict[str, Any]:
    """The names of `tests/compat.py`."""
    return runpy.run_path(str(ROOT / "tests/compat.py"))


def test_every_row_of_versions_is_in_the_page() -> None:
    script = compat()
    names = [row.name for row in script["rows"]()]
    assert tables("versions.md") == [names, names]


def test_the_lowest_versions_are_those_that_were_tried() -> None:
    script, (line,) = compat(), re.findall(r"^\| 3.6, all lowest \|.*", LIBRARIES, re.MULTILINE)
    tried = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    for (name, lowest), version in zip(script["bounds"]().items(), tried, strict=True):
        assert re.sub(r"(\.0)+$", "", version) == re.sub(r"(\.0)+$", "", lowest), name


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
    named, known = set(listed) - {"BatchNormalization"}, set(TABLES[number])
    where = f"table {number + 1} of docs/folding.md"
    assert sorted(known - named) == [], f"not in {where}"
    assert sorted(named - known) == [], f"in {where}, and not in the code"
    assert len(listed) == len(set(listed))


def test_the_table_of_all_layers_is_what_the_rows_say() -> None:
    written = runpy.run_path(str(DOCS / "layer_table.py"))
    assert written["page"]() == (DOCS / "folding.md").read_text(), "run docs/layer_table.py"


REPORTS = (
    *("inspect", "layer", "rules", "fold", "export", "prepare", "verify", "recalibrate", "bench"),
    *("doctor", "many", "line"),
)


def keys(node: Any) -> Iterator[str]:
    """The keys that a JSON Schema speaks of, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", ())
        for inside in node.values():
            yield from keys(inside)
    elif isinstance(node, list):
        for inside in node:
            yield from keys(inside)


@pytest.mark.parametrize("report", REPORTS)
def test_the_page_on_reports_has_every_key(report: str) -> None:
    page = (DOCS / "json.md").read_text()
    assert [key for key in keys(schema(report)) if not re.search(rf'[`"]{key}[`"]', page)] == []


def test_one_place_has_the_address_of_the_repository() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    source = urls["Source"]
    assert all(url.startswith(source) for url in urls.values())
    places = [ROOT / "README.md", ROOT / "Dockerfile", ROOT / ".pre-commit-hooks.yaml"]
    for folder in ("docs", ".github", "bnfold"):
        places += [path for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"]
    address = source.removeprefix("https://")
    texts = (path for path in places if path.is_file())
    assert [path for path in texts if address.encode() in path.read_bytes()] == []


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose heading begins so."""
    _, _, found = text.partition(first)
    lines = (first + found).split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_readme_counts_what_the_page_on_other_tools_has() -> None:
    page = rows((DOCS / "peers.md").read_text(), "|  | bnfold")
    stay = next(number for number, row in enumerate(page) if row[0] == "**must stay**")
    assert (stay - 3, len(page) - stay - 1) == (12, 3)
    heading, _, folded, wrong = rows((ROOT / "README.md").read_text(), "| | bnfold")
    names = [name for cell in heading[1:] for name in cell.split(", ")]
    assert sorted(names) == sorted(page[0][1:])
    for number, cell in enumerate(heading[1:], start=1):
        for name in cell.split(", "):
            column = [row[page[0].index(name)] for row in page]
            assert folded[number] == str(column[:stay].count("folds")), name
            assert wrong[number] == str(column.count("**wrong**")), name


def test_the_map_for_developers_is_what_the_modules_say() -> None:
    written = runpy.run_path(str(DOCS / "module_map.py"))
    assert written["page"]() == (DOCS / "development.md").read_text(), "run docs/module_map.py"


def test_the_map_for_developers_has_every_module_once_after_what_it_imports() -> None:
    listed = [f"bnfold/{cell.strip('`')}" for cell in tables("development.md")[2]]
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "bnfold").rglob("*.py")]
    assert sorted(listed) == sorted(name for name in modules if "/__" not in name)
    place = {name: number for number, name in enumerate(listed)}
    for name in listed:
        room = name.split("/")[1]
        text = (ROOT / name).read_text()
        imported = re.findall(rf"^from (bnfold\.{room}(?:\.\w+)*) import", text, re.MULTILINE)
        files = {f"{one.replace('.', '/')}.py" for one in imported} & place.keys()
        assert [one for one in files if place[one] > place[name]] == [], name


def test_the_core_is_as_long_as_the_page_says() -> None:
    page = (DOCS / "development.md").read_text()
    stated = dict(re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", page, re.MULTILINE))
    assert len(stated) == 7
    for name, lines in stated.items():
        real = len((ROOT / "bnfold" / name).read_text().splitlines())
        assert abs(int(lines) - real) <= real / 5, f"{name} has {real} lines by now"
    (total,) = re.findall(r"some ([\d,]+) lines", page)
    real = sum(map(int, stated.values()))
    assert abs(int(total.replace(",", "")) - real) <= 50, f"together {real} lines"


def test_the_pages_have_every_format_of_inspect() -> None:
    formats = choices("inspect", "format_")
    assert [cell.strip("`") for cell in tables("ci.md")[1]] == formats, "the table in docs/ci.md"
    usage = (DOCS / "usage.md").read_text()
    (row,) = re.findall(r"^\| `--format` \| (.*`markdown`.*) \|$", usage, re.MULTILINE)
    assert [name for name in formats if f"`{name}`" not in row] == [], "docs/usage.md"


def test_runtimes_are_the_same_wherever_they_are_listed() -> None:
    assert choices("bench", "runtimes") == list(RUNTIMES), "cli/bench.py"
    usage = (DOCS / "usage.md").read_text()
    (row,) = re.findall(r"^\| `--runtime NAME` \| (.*) \|$", usage, re.MULTILINE)
    assert [name for name in RUNTIMES if f"`{name}`" not in row] == [], "docs/usage.md"
    listed = [one["enum"] for one in parts(schema("bench"), "runtime")]
    assert listed == [list(RUNTIMES)] * 3, "reports/schema.json"


def choices(command: str, parameter: str) -> list[str]:
    """The values that an option of a command may have."""
    found = main.get_command(click.Context(main), command)
    (kind,) = (one.type for one in found.params if one.name == parameter) if found else ()
    assert isinstance(kind, click.Choice)
    return list(kind.choices)


def parts(value: Any, key: str) -> Iterator[Any]:
    """What stands under a key, wherever it is in a value of JSON."""
    if isinstance(value, dict):
        yield from (one for name, one in value.items() if name == key and "enum" in one)
    for one in value.values() if isinstance(value, dict) else value:
        if isinstance(one, (dict, list)):
            yield from parts(one, key)


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


def written_pages() -> list[Path]:
    """The Markdown files of the repository, without those that the build of the site makes."""
    made = {"changelog.md", "contributing.md", "security.md"}
    pages = [page for page in DOCS.rglob("*.md") if page.parent.name != "rules"]
    return [
        *(page for page in pages if page.relative_to(DOCS).as_posix() not in made),
        *(ROOT / "bnfold" / "audit" / "pages").glob("*.md"),
        *(ROOT / ".github").glob("*.md"),
        *ROOT.glob("*.md"),
    ]


@pytest.mark.parametrize(
    "page", written_pages(), ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    missing = [one for one in targets if not (page.parent / one).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    listed = {"index.md"}
    for index in ("index.md", "decisions/index.md"):
        entries = re.findall(r"^- \[[^]]+\]\(([^)#]+)\)", (DOCS / index).read_text("utf-8"), re.M)
        listed |= {(Path(index).parent / entry).as_posix() for entry in entries}
    pages = {page.relative_to(DOCS).as_posix() for page in written_pages() if DOCS in page.parents}
    assert pages == {one for one in listed if not one.startswith("../")}


def test_the_page_on_settings_has_every_key() -> None:
    from bnfold.jobs.settings import _KEYS

    (cells,) = tables("reference/settings.md")
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(cells))) == sorted(_KEYS)


def test_the_page_on_python_has_every_public_name() -> None:
    page = (DOCS / "reference" / "python.md").read_text("utf-8")
    errors_of_all = "automodule:: bnfold.errors"
    assert errors_of_all in page
    known = {name for name in vars(errors) if name.endswith("Error")} | {"__version__"}
    assert [name for name in bnfold.__all__ if name not in known and name not in page] == []
