"""Writes the map of the modules in development.md: a line a file, in the order to read them.

python docs/module_map.py

A file comes after those of its room that it imports, and the line is the first one of its
docstring.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parent / "development.md"
PACKAGE = Path(__file__).parents[1] / "bnfold"
BEGIN, END = "<!-- written by docs/module_map.py -->\n\n", "\n<!-- end -->\n"

ROOMS = (
    *(
        "errors.py",
        "version.py",
        "serialize.py",
        "supervision",
        "model",
        "folding",
        "audit",
        "running",
    ),
    *("verification", "observation", "jobs", "reports", "api.py", "cli"),
)


def page() -> str:
    """The page with the map as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def table() -> str:
    """A line for every file that is not only the name of a folder."""
    lines = ["| module | what it is for |", "| --- | --- |"]
    for path in in_order():
        summary = (ast.get_docstring(_parsed(path)) or "").partition("\n")[0]
        lines.append(f"| `{path.relative_to(PACKAGE).as_posix()}` | {summary} |")
    return "\n".join(lines) + "\n"


def in_order() -> list[Path]:
    """All files, a room after the other, and in a room what is imported first."""
    found: dict[Path, None] = {}
    names = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    others = sorted(name for name in names - {*ROOMS} if not name.startswith("__"))
    for room in (*ROOMS, *others):
        top = PACKAGE / room
        files = [top] if top.is_file() else top.rglob("*.py")
        for path in sorted(files, key=lambda path: (len(path.parts), path)):
            _follow(path, found)
    return [path for path in found if not path.name.startswith("__")]


def _follow(path: Path, found: dict[Path, None]) -> None:
    if path in found:
        return
    room = path.relative_to(PACKAGE).parts[0]
    for imported in _imports(path):
        if imported != path and imported.relative_to(PACKAGE).parts[0] == room:
            _follow(imported, found)
    found[path] = None


def _imports(path: Path) -> Iterator[Path]:
    """The files that a file imports when it is imported itself."""
    for node in _parsed(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bnfold"):
            for alias in node.names:
                yield from _file_of(f"{node.module}.{alias.name}") or _file_of(f"{node.module}")


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _file_of(name: str) -> list[Path]:
    place = PACKAGE.parent.joinpath(*name.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return [path for path in candidates if path.is_file()]


if __name__ == "__main__":
    PAGE.write_text(page())
