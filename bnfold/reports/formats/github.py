"""Inspections as GitHub Actions workflow commands: each finding an annotation of the run.

Text is escaped as the runner's own toolkit does it, so a name with a newline cannot start a command
of its own.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bnfold.audit import Severity
from bnfold.jobs.gate import how_many_read
from bnfold.model.container.guard import printable
from bnfold.model.container.remote import is_url

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def inspections(report: Mapping[str, Any]) -> str:
    """A line for what could not be read, and one for each finding, the worst first.

    Where several models were found, a last one says how many of them were read.

    The order matters, because GitHub shows ten errors, ten warnings and ten notices of a step.
    """
    unreadable = report["unreadable"]
    lines = [_line("error", one["path"], "unreadable", one["message"]) for one in unreadable]
    ranked = [(rank, line) for model in report["models"] for rank, line in _findings(model)]
    lines += [line for _, line in sorted(ranked, key=lambda pair: pair[0])]
    if report["summary"]["found"] > 1:
        level = "error" if unreadable else "notice"
        lines.append(f"::{level} title=bnfold::{how_many_read(report['summary'])}")
    return "\n".join(lines)


def _findings(model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    for found in model["findings"]:
        title = f"{found['code']} {found['name']}"
        message = f"{found['layer']}: {found['message']}. To do: {found['remedy']}"
        command = _COMMANDS[found["severity"]]
        yield Severity(found["severity"]).rank, _line(command, model["path"], title, message)


def _line(command: str, path: str, title: str, message: str) -> str:
    file = _property(path if is_url(path) else os.path.relpath(path))
    return f"::{command} file={file},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
