"""Inspections as GitHub Actions workflow commands: each finding an annotation of the run.

Text is escaped as the runner's own toolkit does it, so a name with a newline cannot start a command
of its own.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnfold.fleet.results import how_many_read
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import is_url

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}
MOST = 10
"""How many errors GitHub shows of a step, and how many warnings, and how many notices."""


def inspections(report: Mapping[str, Any]) -> str:
    """A line for what could not be read, for each finding, the worst first, and for each note.

    The order matters, because GitHub shows `MOST` of a kind as annotations; the log has all lines.
    Where several models were found, or not all is shown, a last line says so. Only notices that are
    not shown come after it.
    """
    lines: dict[str, list[str]] = {kind: [] for kind in _COMMANDS.values()}
    for one in report["unreadable"]:
        lines["error"].append(_line("error", one["path"], "unreadable", one["message"]))
    for model in report["models"]:
        if model["note"] is not None:
            lines["notice"].append(_line("notice", model["path"], "note", model["note"]))
    for model in report["models"]:
        for kind, line in _findings(model):
            lines[kind].append(line)
    total = _total(report, lines)
    shown, others = lines["notice"][: MOST - 1], lines["notice"][MOST - 1 :]
    return "\n".join([*lines["error"], *lines["warning"], *shown, *total, *others])


def _total(report: Mapping[str, Any], lines: Mapping[str, Sequence[str]]) -> list[str]:
    """The line that says how much was read and how much is not shown, where it is needed."""
    is_one = report["summary"]["found"] <= 1
    if is_one and all(len(found) <= MOST for found in lines.values()):
        return []
    level = "error" if report["unreadable"] and len(lines["error"]) < MOST else "notice"
    said = [] if is_one else [how_many_read(report["summary"])]
    counts = [(MOST - (kind == level), len(found), kind) for kind, found in lines.items()]
    if cut := [f"{most} of {count} {kind}s" for most, count, kind in counts if count > most]:
        said.append(f"GitHub shows {', '.join(cut)} of this step; the log has them all")
    return [f"::{level} title=bnfold::{_data('; '.join(said))}"]


def _findings(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for found in model["findings"]:
        title = f"{found['code']} {found['name']}"
        message = f"{found['layer']}: {found['message']}. To do: {found['remedy']}"
        kind = _COMMANDS[found["severity"]]
        yield kind, _line(kind, model["path"], title, message)


def _line(command: str, path: str, title: str, message: str) -> str:
    file = _property(path if is_url(path) else os.path.relpath(path))
    return f"::{command} file={file},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
