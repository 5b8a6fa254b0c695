"""Inspections as GitHub-flavoured Markdown, for the summary of a job or a comment.

Characters that Markdown or HTML could interpret are written as character references, so a name
appears literally.
"""

import re
from collections.abc import Sequence

from bnfold.audit import Finding
from bnfold.jobs.gate import Unreadable
from bnfold.jobs.inspect import Inspection
from bnfold.model.container.guard import printable
from bnfold.model.graph import show
from bnfold.reports import terminal

_HEAD = "| level | rule | layer | finding | what to do |\n| --- | --- | --- | --- | --- |"

# Underscores, full stops and colons are only escaped where they have a meaning: at the edge of a
# word they make emphasis, in www. and http:// links.
_MARKUP = re.compile(
    r"[]\[\\`*<>&|~@#$!{}^]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.|:(?=/)", re.IGNORECASE
)


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """The report on some models, and on what could not be read."""
    blocks = [f"## bnfold: {terminal.totals(models, unreadable)}"]
    if unreadable:
        blocks.append("\n".join(f"- **unreadable** {_text(one.error)}" for one in unreadable))
    return "\n\n".join([*blocks, *map(_model, models)]) + "\n"


def _model(model: Inspection) -> str:
    blocks = [f"### {_code(model.path)}", f"{terminal.foldable(model.plan)}."]
    if model.findings:
        rows = sorted(model.findings, key=lambda finding: finding.severity.rank)
        blocks.append("\n".join([_HEAD, *map(_row, rows)]))
    if model.suppressed:
        blocks.append(f"{terminal.set_aside(model.suppressed)}.")
    return "\n\n".join(blocks)


def _row(finding: Finding) -> str:
    rule = f"{finding.code} {_text(finding.name)}"
    cells = (_code(show(finding.layer)), _text(finding.message), _text(finding.remedy))
    return f"| {finding.severity} | {rule} | {' | '.join(cells)} |"


def _code(value: object) -> str:
    return f"<code>{_text(value)}</code>"


def _text(value: object) -> str:
    return _MARKUP.sub(_reference, printable(str(value)))


def _reference(mark: re.Match[str]) -> str:
    # The empty comment separates an @ from the name after it: that user would get a notification.
    return f"&#{ord(mark[0])};" + ("<!-- -->" if mark[0] == "@" else "")
