"""Inspections as GitHub-flavoured Markdown, for the summary of a job or a comment.

Characters that Markdown or HTML could interpret are written as character references, so a name
appears literally.
"""

import re
from collections.abc import Mapping
from typing import Any

from bnfold.audit import Severity
from bnfold.model.container.printing import printable
from bnfold.reports import terminal

_HEAD = "| level | rule | layer | finding | what to do |\n| --- | --- | --- | --- | --- |"

# Underscores, full stops and colons are only escaped where they have a meaning: at the edge of a
# word they make emphasis, in www. and http:// links.
_MARKUP = re.compile(
    r"[]\[\\`*<>&|~@#$!{}^]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=/)", re.IGNORECASE
)


def inspections(report: Mapping[str, Any]) -> str:
    """The report on some models, and on what could not be read."""
    blocks = [f"## bnfold: {terminal.totals(report)}"]
    if report["unreadable"]:
        lines = (f"- **unreadable** {_text(one['message'])}" for one in report["unreadable"])
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, *map(_model, report["models"])]) + "\n"


def _model(model: Mapping[str, Any]) -> str:
    layers = [one["fold"]["status"] == "foldable" for one in model["batchnorms"]]
    blocks = [f"### {_code(model['path'])}", f"{terminal.foldable(sum(layers), len(layers))}."]
    if model["note"] is not None:
        blocks.append(f"{_text(model['note'])}.")
    if model["findings"]:
        rows = sorted(model["findings"], key=lambda one: Severity(one["severity"]).rank)
        blocks.append("\n".join([_HEAD, *map(_row, rows)]))
    if model["suppressed"]:
        blocks.append(f"{terminal.set_aside(one['by'] for one in model['suppressed'])}.")
    return "\n\n".join(blocks)


def _row(finding: Mapping[str, Any]) -> str:
    rule = f"{finding['code']} {_text(finding['name'])}"
    cells = (_code(finding["layer"]), _text(finding["message"]), _text(finding["remedy"]))
    return f"| {finding['severity']} | {rule} | {' | '.join(cells)} |"


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


def _text(value: object) -> str:
    return _MARKUP.sub(_reference, printable(str(value)))


def _reference(mark: re.Match[str]) -> str:
    # The empty comment separates an @ from the name after it: that user would get a notification.
    return f"&#{ord(mark[0])};" + ("<!-- -->" if mark[0] == "@" else "")
