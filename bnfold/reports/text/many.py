"""Many models for people's eyes: a line each, the worst first, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bnfold.audit.finding import Severity
from bnfold.fleet.results import INSPECTED, Results, how_many
from bnfold.fleet.row import Row
from bnfold.model.container.printing import printable
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Hanging, Part, Text
from bnfold.reports.summary import Summary, summary
from bnfold.reports.text.inspect import COLOURS

_HEADINGS = ("verdict", "model", "errors", "warnings", "infos", "fold", "size", "time")
_OPTIONAL = ("time", "size", "fold", "infos", "warnings")
_FINDINGS = 20
_EXIT_COLOURS = ("green", "yellow", "red")


def short(results: Results, totals: str) -> Part:
    """A line for each model, the worst first, what was not looked at, what has failed, the totals.

    Columns without anything in them are left out.
    """
    every = sorted(map(summary, results.rows), key=lambda one: one.badness)
    done = [_cells(one) for one in every if one.row.is_done]
    shown = [n for n, _ in enumerate(_HEADINGS) if any(cells[n] for cells in done)]
    headings = [_HEADINGS[n] for n in shown]
    table = terminal.Columns(headings, numbers=_HEADINGS[2:], optional=_OPTIONAL)
    for cells in done:
        table.add_row(*(cells[column] for column in shown))
    failed = "not read" if results.kind is INSPECTED else "failed"
    lines = [failure(one.row, failed) for one in every if not one.row.is_done]
    parts = [table] if done else []
    return Group(*parts, *_worst(every), *_notes(every), *lines, Text(totals))


def _worst(every: Sequence[Summary]) -> list[Part]:
    """The worst findings of the models that fail, as many as a terminal holds."""
    lines = []
    for one in every:
        findings = (one.row.report or {}).get("findings", ()) if one.row.exit_code == 1 else ()
        worst = min((Severity(found["severity"]).rank for found in findings), default=None)
        for found in findings:
            severity = Severity(found["severity"])
            if severity.rank == worst:
                said = Text(f"{severity} {found['code']} ", style=COLOURS[severity])
                text = f"{one.row.path}, {found['layer']}: {found['message']}"
                lines.append(Hanging(said.append(printable(text), "default")))
    more = len(lines) - _FINDINGS
    left = [Text(f"and {more} more; --full shows all of each model", style="dim")]
    return [*lines[:_FINDINGS], *(left if more > 0 else [])]


def _notes(every: Sequence[Summary]) -> list[Part]:
    """What was not looked at, of which models; as many lines as a terminal holds."""
    about: dict[str, list[str]] = {}
    for one in every:
        if one.note is not None:
            about.setdefault(one.note, []).append(one.row.path)
    lines: list[Part] = [
        Hanging(Text("note ", style="dim").append(f"{terminal.names(paths)}: {note}", ""))
        for note, paths in about.items()
    ]
    more = len(lines) - _FINDINGS
    left = [Text(f"and {more} more notes; --full shows all of each model", style="dim")]
    return [*lines[:_FINDINGS], *(left if more > 0 else [])]


def _cells(one: Summary) -> list[Text]:
    row = one.row
    counts = [
        Text(str(one.counts[severity] or ""), style=COLOURS[severity]) for severity in Severity
    ]
    return [
        Text(one.verdict, style=_EXIT_COLOURS[row.exit_code]),
        Text(printable(row.path)),
        *counts,
        Text("" if one.layers is None else f"{one.folds} of {one.layers}"),
        Text("" if row.bytes is None else terminal.size(row.bytes)),
        Text("before" if row.seconds is None else f"{row.seconds:.2f} s"),
    ]


def failure(row: Row, failed: str) -> Part:
    """That a model could not be done, and why."""
    said = Text(f"{failed} ", style="red").append(printable(row.error or row.path), "default")
    return Hanging(said)


def totals(results: Results) -> str:
    """What came of all of them, in a line: `28 equivalent, 1 different; 29 of 32 done`."""
    verdicts = Counter(summary(row).verdict for row in results.done)
    said = [", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())]
    others = results.uncompared
    more = [f"compared with no model: {terminal.names(others)}"] if others else []
    about = results.summary
    return "; ".join([*filter(None, said), how_many(about["done"], "done", about), *more])
