"""Inspections as GitHub Actions workflow commands: each finding an annotation of the run.

Text is escaped as the runner's own toolkit does it, so a name with a newline cannot start a command
of its own.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from bnfold.audit import Severity
from bnfold.jobs.gate import Unreadable, how_many_read
from bnfold.jobs.inspect import Inspection
from bnfold.model.container.guard import printable
from bnfold.model.container.remote import Where
from bnfold.model.graph import show

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """A line for what could not be read, and one for each finding, the worst first.

    Where several models were found, a last one says how many of them were read.

    The order matters, because GitHub shows ten errors, ten warnings and ten notices of a step.
    """
    lines = [_line("error", one.path, "unreadable", str(one.error)) for one in unreadable]
    ranked = [(rank, line) for model in models for rank, line in _findings(model)]
    lines += [line for _, line in sorted(ranked, key=lambda pair: pair[0])]
    if len(models) + len(unreadable) > 1:
        level = "error" if unreadable else "notice"
        lines.append(f"::{level} title=bnfold::{how_many_read(models, unreadable)}")
    return "\n".join(lines)


def _findings(model: Inspection) -> Iterator[tuple[int, str]]:
    for found in model.findings:
        title = f"{found.code} {found.name}"
        message = f"{show(found.layer)}: {found.message}. To do: {found.remedy}"
        command = _COMMANDS[found.severity]
        yield found.severity.rank, _line(command, model.path, title, message)


def _line(command: str, path: Where, title: str, message: str) -> str:
    file = _property(os.path.relpath(path) if isinstance(path, Path) else str(path))
    return f"::{command} file={file},title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
