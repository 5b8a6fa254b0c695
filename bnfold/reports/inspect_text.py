"""Inspections for people: the table of a model's layers, and one layer in full."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, JustifyMethod, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.audit import Finding, Severity
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.inspection import Inspection, channel_values, settings
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.graph import show
from bnfold.model.guard import printable
from bnfold.reports import terminal

_HEADINGS = ("layer", "channels", "moving mean", "variance", "folds into")
_NAME_COLUMNS = (0, 4)
_DROPPED_IN_TURN = (2, 1, 3)
_PADDING = 3

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_CONTAINERS = {
    "keras": ".keras archive",
    "keras-directory": "Keras directory",
    "h5": "legacy HDF5",
}
_TABULATED = ("axis", "momentum", "epsilon", "center", "scale", "trainable", "dtype_policy")


def inspection(model: Inspection, width: int) -> RenderableType:
    """The report on one model: a table of its layers, the reasons for what stays, the findings.

    Where `width` is too small for a table of whole lines, columns of statistics are left out.
    """
    parts: list[RenderableType] = [_headline(model)]
    if model.plan.decisions:
        parts += [_table(model, width), *_reasons(model.plan)]
    if model.note is not None:
        parts.append(Text(model.note))
    parts += _findings(_not_said_yet(model.findings))
    return Group(*parts)


def _not_said_yet(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without what the plan's own reasons have said."""
    return [finding for finding in findings if finding.code != "BN303"]


def _headline(model: Inspection) -> Text:
    version = f", Keras {printable(model.keras_version)}" if model.keras_version else ""
    folds, total = len(model.plan.folds), len(model.plan.decisions)
    text = Text(printable(str(model.path)), style="bold")
    text.append(f"  {_CONTAINERS[model.container]}{version}\n", style="not bold")
    text.append(f"{total} BatchNormalization {terminal.plural('layer', total)}: ", style="not bold")
    text.append(f"{folds} can be folded, {total - folds} cannot", style="not bold")
    return text


def _table(model: Inspection, width: int) -> Table:
    """One line a layer; in a narrow terminal the statistics go first, and names never."""
    rows = [
        {"axis": decision.batchnorm.axis, **settings(decision.batchnorm)}
        for decision in model.plan.decisions
    ]
    usual = {key: Counter(row[key] for row in rows).most_common(1)[0][0] for key in _TABULATED}
    numbers = {
        reason: number for number, reason in enumerate(terminal.by_reason(model.plan), start=1)
    }
    codes = _codes(model.findings)
    cells = [_row(decision, codes, numbers) for decision in model.plan.decisions]
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(usual), caption_justify="left"
    )
    shown = _columns_that_fit(cells, width)
    for column in shown:
        justify: JustifyMethod = "left" if column in _NAME_COLUMNS else "right"
        overflow: OverflowMethod = "fold" if column in _NAME_COLUMNS else "ellipsis"
        table.add_column(_HEADINGS[column], justify=justify, overflow=overflow)
    for row, row_cells in zip(rows, cells, strict=True):
        table.add_row(*(row_cells[column] for column in shown))
        unusual = _unusual(row, usual)
        if unusual:
            table.add_row(Text(f"  {', '.join(unusual)}", style="dim"))
    return table


def _columns_that_fit(cells: list[list[Text]], width: int) -> list[int]:
    widths = [
        max(len(heading), *(cell[column].cell_len for cell in cells))
        for column, heading in enumerate(_HEADINGS)
    ]
    shown = list(range(len(_HEADINGS)))
    for column in _DROPPED_IN_TURN:
        if sum(widths[c] + _PADDING for c in shown) > width:
            shown.remove(column)
    return shown


def _caption(usual: dict[str, Any]) -> Text:
    return Text(", ".join(_setting(key, value) for key, value in usual.items()), style="dim")


def _setting(key: str, value: Any) -> str:
    shown = "unknown" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"{key} {printable(str(shown))}"


def _unusual(row: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    found = [_setting(key, row[key]) for key in _TABULATED if row[key] != usual[key]]
    return found + [flag for flag in ("renorm", "synchronized") if row[flag]]


def _codes(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    codes: dict[str, list[Finding]] = {}
    for finding in findings:
        codes.setdefault(show(finding.layer), []).append(finding)
    return codes


def _row(
    decision: Fold | Blocked, codes: dict[str, list[Finding]], numbers: dict[str, int]
) -> list[Text]:
    batchnorm = decision.batchnorm
    name = Text(printable(show(batchnorm.path)))
    for finding in codes.get(show(batchnorm.path), []):
        name.append(f" {finding.code}", style=COLOURS[finding.severity])
    vectors = batchnorm.vectors or {}
    return [
        name,
        Text(str(batchnorm.channels) if batchnorm.channels is not None else "?"),
        Text(_range(vectors.get("moving_mean"))),
        Text(_range(vectors.get("moving_variance"))),
        _target(decision, numbers),
    ]


def _range(values: Vector | None) -> str:
    if values is None:
        return "?"
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "not finite"
    return f"{finite.min():.2g} … {finite.max():.2g}"


def _target(decision: Fold | Blocked, numbers: dict[str, int]) -> Text:
    if isinstance(decision, Fold):
        into = ", ".join(show(edit.layer) for edit in decision.edits)
        return Text(printable(into), style="green")
    return Text(f"stays [{numbers[terminal.pattern(decision)]}]", style="yellow")


def _reasons(plan: Plan) -> list[Text]:
    lines = []
    for number, (reason, remedy) in enumerate(terminal.reasons(plan), start=1):
        lines.append(Text(f"[{number}] {reason}"))
        if remedy:
            lines.append(Text(f"      to fold it: {remedy}", style="dim"))
    return lines


def _findings(findings: Sequence[Finding]) -> list[Text]:
    """The findings, the worst first; what is said of several layers alike is said once."""
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity.rank):
        message = finding.message if finding.severity is not Severity.INFO else finding.remedy
        alike.setdefault((finding.severity, finding.code, message), []).append(finding)
    lines = [Text("")] if findings else []
    for (severity, code, _), same in alike.items():
        head = Text(f"{severity} {code} ", style=COLOURS[severity])
        layers = terminal.names([show(finding.layer) for finding in same])
        messages = {finding.message for finding in same}
        said = messages.pop() if len(messages) == 1 else f"{len(same)} layers"
        lines += [
            head.append(f"{layers}: {said}", style="default"),
            Text(f"      {same[0].remedy}", style="dim"),
        ]
    return lines


def layer(decision: Fold | Blocked, findings: Sequence[Finding]) -> RenderableType:
    """One BatchNormalization in full, with what the rules say of it."""
    batchnorm = decision.batchnorm
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = {"axis": batchnorm.axis, "channels": batchnorm.channels, **settings(batchnorm)}
    for key, value in rows.items():
        facts.add_row(key.replace("_", " "), Text(_value(value)))
    facts.add_row("folds", Text(_verdict(decision)))
    if isinstance(decision, Blocked) and decision.remedies:
        facts.add_row("to fold it", Text(printable("; or ".join(decision.remedies))))
    title = Text(printable(show(batchnorm.path)), style="bold")
    return Group(title, facts, _channels(batchnorm), *_findings(_not_said_yet(findings)))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{key} {_value(inside)}" for key, inside in value.items() if inside is not None)
        return ", ".join(pairs) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else printable(str(value))


def _verdict(decision: Fold | Blocked) -> str:
    if isinstance(decision, Fold):
        into = ", ".join(show(edit.layer) for edit in decision.edits)
        return printable(f"{decision.direction} into {into}")
    return printable(f"stays: {decision.reason}")


def _channels(batchnorm: BatchNorm) -> RenderableType:
    columns = {name: v for name, v in channel_values(batchnorm).items() if v is not None}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("channel", justify="right")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for channel in range(batchnorm.channels or 0):
        table.add_row(str(channel), *(f"{values[channel]:.6g}" for values in columns.values()))
    return table
