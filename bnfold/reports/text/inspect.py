"""Inspections for people: the table of a model's layers, and one layer in full."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.audit import RULES, Finding, Severity
from bnfold.audit.selection import Suppressed
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.jobs.gate import Outcome
from bnfold.jobs.inspect import Inspection, channel_values, settings
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.container.printing import printable
from bnfold.model.graph import LayerPath, show
from bnfold.model.moments import Observed
from bnfold.reports import terminal
from bnfold.reports.distribution import Axis, histogram
from bnfold.reports.parts import Group, Hanging, Part, Text
from bnfold.reports.sparkline import Sparkline

_HEADINGS = ("layer", "channels", "moving mean", "variance", "spread", "folds into")
_NUMBERS = ("channels", "moving mean", "variance")
_OPTIONAL = ("spread", "moving mean", "channels", "variance")
_OPTIONAL_VECTORS = ("shift", "scale", "gamma", "beta", "observed variance", "observed mean")
_BINS = 12
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_FIGURES = 8
"""Layers of which the figures of a finding are told, where several have it."""
_MOST_ROWS = 200
"""A table of more layers lists those that deviate; drawing thousands of rows takes long."""

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
CONTAINERS = {
    "keras": ".keras archive",
    "keras-directory": "Keras directory",
    "h5": "legacy HDF5",
}
_TABULATED = ("axis", "momentum", "epsilon", "center", "scale", "trainable", "dtype_policy")


def outcome(found: Outcome, width: int) -> Part:
    """The reports on the models of a gate, what could not be read, and the totals."""
    parts = [part for model in found.models for part in (inspection(model, width), Text(""))]
    unread = [
        Hanging(Text("not read ", style="red").append(printable(str(one.error)), "default"))
        for one in found.unreadable
    ]
    return Group(*parts, *unread, Text(terminal.totals(found.to_dict())))


def inspection(model: Inspection, width: int, *, every: bool = False) -> Part:
    """The report on one model: a table of its layers, the reasons for what stays, the findings.

    Where `width` is too small for a table of whole lines, columns of statistics are left out. Of a
    model with very many layers those are listed that deviate, unless `every` one is wanted.
    """
    parts: list[Part] = [_headline(model)]
    if model.plan.decisions:
        parts += [*_table(model, width, every=every), *_reasons(model.plan)]
    if model.note is not None:
        parts.append(Text(model.note))
    parts += _findings(_not_said_yet(model.findings))
    return Group(*parts, *_set_aside(model.suppressed), *_next(model))


def _next(model: Inspection) -> list[Part]:
    """What to do next, as a command to paste; nothing for a model that has no file here."""
    path = model.path
    if not isinstance(path, Path) or not path.exists():
        return []
    serious = [one for one in model.findings if one.severity is not Severity.INFO]
    errors = [one.code for one in serious if one.severity is Severity.ERROR]
    if any("bnfold recalibrate" in one.remedy for one in serious):
        words = ["recalibrate", str(path), f"recalibrated{path.suffix}", "--data", "TRAINING.npz"]
    elif errors:
        words = ["rule", errors[0]]
    elif model.plan.folds:
        words = ["fold", str(path), f"folded{path.suffix}"]
    else:
        return []
    return [Text(f"next: bnfold {printable(shlex.join(words))}")]


def _set_aside(suppressed: Sequence[Suppressed]) -> list[Part]:
    said = terminal.set_aside(one.by for one in suppressed)
    return [Text(f"ignored findings: {said}")] if said else []


def _not_said_yet(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that repeat the plan's own reasons."""
    return [finding for finding in findings if finding.code != "BN303"]


def _headline(model: Inspection) -> Text:
    version = f", Keras {printable(model.keras_version)}" if model.keras_version else ""
    text = Text(printable(str(model.path)), style="bold")
    text.append(f"  {CONTAINERS[model.container]}{version}\n", style="not bold")
    folds, total = len(model.plan.folds), len(model.plan.decisions)
    text.append(terminal.foldable(folds, total), style="not bold")
    samples = max((one.samples for one in (model.observed or {}).values()), default=0)
    text.append(f"; run over {samples} samples" if samples else "", style="not bold")
    found = terminal.counts(finding.severity for finding in model.findings)
    for number, (severity, count) in enumerate(found):
        text.append(", " if number else "; ", style="not bold")
        text.append(
            f"{count} {terminal.plural(severity, count)}", style=f"not bold {COLOURS[severity]}"
        )
    return text


def _table(model: Inspection, width: int, *, every: bool) -> list[Part]:
    """One line a layer; in a narrow terminal codes of infos go first, and names never.

    Below stands how many layers are left out, if any are.
    """
    decisions = model.plan.decisions
    settings_of = [{"axis": d.batchnorm.axis, **settings(d.batchnorm)} for d in decisions]
    usual = {
        key: Counter(row[key] for row in settings_of).most_common(1)[0][0] for key in _TABULATED
    }
    unusual = [_unusual(row, usual) for row in settings_of]
    findings = terminal.grouped(model.findings, lambda finding: finding.layer)
    rows = _Rows(decisions, unusual, findings, every=every)
    numbers = {
        reason: number for number, reason in enumerate(terminal.by_reason(model.plan), start=1)
    }
    listed = [decisions[number] for number in rows.listed]
    axis = _variance_axis(listed)

    def table(least: Severity, left_out: Sequence[str] = ()) -> terminal.Columns:
        """With the codes of findings that are at least as bad."""
        found = terminal.Columns(
            _HEADINGS, numbers=_NUMBERS, optional=_OPTIONAL, wraps=width, left_out=left_out
        )
        for number, decision in zip(rows.listed, listed, strict=True):
            of_it = findings.get(decision.batchnorm.path, ())
            told = [one for one in of_it if one.severity.rank <= least.rank]
            found.add_row(*_row(decision, told, numbers, axis))
            if unusual[number]:
                found.add_note(Text(f"  {', '.join(unusual[number])}", style="dim"))
        return found

    drawn = table(Severity.INFO)
    if len(drawn.shown(width)) < len(_HEADINGS) and any(
        one.severity is Severity.INFO for one in model.findings
    ):
        drawn = table(Severity.WARNING, ["codes of infos"])
    below = [_caption(usual)]
    if "spread" in drawn.shown(width) and any(d.batchnorm.vectors is not None for d in listed):
        below.append(Text(f"spread: channels by variance, {_extent(axis)}", style="dim"))
    return [drawn, *below, *([Text(rows.said)] if rows.said else [])]


class _Rows:
    """Which layers a table lists: all, or of very many those that deviate, the worst of them.

    Attributes:
        listed: the numbers of the layers, in their order.
        said: a sentence on what is left out; empty where nothing is.
    """

    def __init__(
        self,
        decisions: Sequence[Fold | Blocked],
        unusual: Sequence[Sequence[str]],
        findings: Mapping[LayerPath, Sequence[Finding]],
        *,
        every: bool,
    ) -> None:
        total = len(decisions)
        self.listed, self.said = list(range(total)), ""
        if every or total <= _MOST_ROWS:
            return

        def rank(number: int) -> int | None:
            """How far a layer deviates, the lower the more; None for one like most others."""
            decision = decisions[number]
            worst = min(
                (one.severity.rank for one in findings.get(decision.batchnorm.path, ())),
                default=Severity.INFO.rank,
            )
            if worst < Severity.INFO.rank:
                return worst
            stays = isinstance(decision, Blocked)
            return Severity.INFO.rank if stays or unusual[number] else None

        ranks = {n: found for n in self.listed if (found := rank(n)) is not None}
        self.listed = sorted(sorted(ranks, key=lambda number: ranks[number])[:_MOST_ROWS])
        few = "" if len(ranks) == len(self.listed) else f"the {len(self.listed)} worst of "
        self.said = (
            f"listed are {few}{len(ranks)} of {total} layers that stay, have an error or a "
            "warning, or other settings than most; --all lists all"
        )


def _variance_axis(listed: Iterable[Fold | Blocked]) -> Axis:
    """An axis for the variances of all layers that are listed."""
    vectors = (decision.batchnorm.vectors for decision in listed)
    known = (found["moving_variance"] for found in vectors if found is not None)
    return Axis.of(known, logarithmic=True)


def _extent(axis: Axis) -> str:
    low, high = (f"{float(f'{10**end:.1g}'):g}" for end in (axis.low, axis.high))
    return f"all about {low}" if low == high else f"logarithmic from {low} to {high}"


def _caption(usual: dict[str, Any]) -> Text:
    return Text(", ".join(_setting(key, value) for key, value in usual.items()), style="dim")


def _setting(key: str, value: Any) -> str:
    shown = "unknown" if value is None else str(value).lower() if isinstance(value, bool) else value
    return f"{key} {printable(str(shown))}"


def _unusual(row: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    found = [_setting(key, row[key]) for key in _TABULATED if row[key] != usual[key]]
    return found + [flag for flag in ("renorm", "synchronized") if row[flag]]


def _row(
    decision: Fold | Blocked, findings: Sequence[Finding], numbers: dict[str, int], axis: Axis
) -> list[Text | Sparkline]:
    batchnorm = decision.batchnorm
    name = Text(printable(show(batchnorm.path)))
    for finding in findings:
        name.append(f" {finding.code}", style=COLOURS[finding.severity])
    vectors = batchnorm.vectors or {}
    return [
        name,
        Text(str(batchnorm.channels) if batchnorm.channels is not None else "?"),
        Text(_range(vectors.get("moving_mean"))),
        Text(_range(vectors.get("moving_variance"))),
        _spread(vectors.get("moving_variance"), axis),
        _target(decision, numbers),
    ]


def _range(values: Vector | None) -> str:
    if values is None:
        return "?"
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "not finite"
    return f"{finite.min():.2g} to {finite.max():.2g}"


def _spread(values: Vector | None, axis: Axis) -> Sparkline:
    known = np.zeros(0) if values is None else values
    return Sparkline(histogram(known, axis, _BINS).tolist())


def _target(decision: Fold | Blocked, numbers: dict[str, int]) -> Text:
    if isinstance(decision, Fold):
        into = ", ".join(show(absorber.layer) for absorber in decision.absorbers)
        return Text(printable(into), style="green")
    return Text(f"stays [{numbers[terminal.pattern(decision)]}]", style="yellow")


def _reasons(plan: Plan) -> list[Part]:
    lines: list[Part] = []
    for number, (reason, remedy) in enumerate(terminal.reasons(plan), start=1):
        lines.append(Hanging(Text(f"[{number}] {reason}"), by=4))
        if remedy:
            lines.append(terminal.indented(f"to fold it: {remedy}", "dim", by=6))
    return lines


def _findings(findings: Sequence[Finding]) -> list[Part]:
    """The findings, the worst first; those of one rule that are as bad stand together."""
    lines: list[Part] = [Text("")] if findings else []
    ranked = sorted(findings, key=lambda finding: finding.severity.rank)
    for (severity, code), same in terminal.grouped(ranked, _kind).items():
        head = Text(f"{severity} {code} ", style=COLOURS[severity])
        messages = {finding.message for finding in same}
        remedies = {_NUMBER.sub("", one.remedy): one.remedy for one in reversed(same)}
        layers = terminal.names([show(finding.layer) for finding in same])
        if len(messages) == 1 or (severity is Severity.INFO and len(remedies) == 1):
            said = f"{len(same)} layers. {_summary(code)}" if len(messages) > 1 else messages.pop()
            lines.append(Hanging(head.append(f"{layers}: {said}", style="default")))
        else:
            many = f"{len(same)} layers. {_summary(code)}"
            lines += [Hanging(head.append(many, style="default")), *_each(same)]
        lines += [terminal.indented(one, "dim", by=6) for one in reversed(remedies.values())]
    return lines


def _each(same: Sequence[Finding]) -> list[Part]:
    """What was found in each of several layers: of many the first few, and the others' names."""
    lines: list[Part] = [
        terminal.indented(f"{printable(show(one.layer))}: {one.message}", "default")
        for one in same[:_FIGURES]
    ]
    others = [printable(show(one.layer)) for one in same[_FIGURES:]]
    return lines + ([terminal.indented(f"and {', '.join(others)}", "default")] if others else [])


def _kind(finding: Finding) -> tuple[Severity, str]:
    """What findings share that stand together."""
    return finding.severity, finding.code


def _summary(code: str) -> str:
    return next(rule.summary for rule in RULES if rule.code == code)


def layer(model: Inspection, decision: Fold | Blocked) -> Part:
    """One BatchNormalization in full, with its findings."""
    batchnorm = decision.batchnorm
    from rich.table import Table  # noqa: PLC0415 - see `bnfold.reports.parts`

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = {"axis": batchnorm.axis, "channels": batchnorm.channels, **settings(batchnorm)}
    for key, setting in rows.items():
        facts.add_row(key.replace("_", " "), Text(value(setting)))
    facts.add_row("folds", Text(_verdict(decision)))
    if isinstance(decision, Blocked) and decision.remedies:
        facts.add_row("to fold it", Text(printable("; or ".join(decision.remedies))))
    title = Text(printable(show(batchnorm.path)), style="bold")
    return Group(
        title,
        facts,
        _channels(batchnorm, model.observed_at(decision)),
        *_findings(_not_said_yet(model.findings_on(decision))),
        *_set_aside(model.suppressed_on(decision)),
    )


def value(setting: Any) -> str:
    """A setting of a layer as people read it."""
    if isinstance(setting, dict):
        pairs = (f"{key} {value(inside)}" for key, inside in setting.items() if inside is not None)
        return ", ".join(pairs) or "none"
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    return "unknown" if setting is None else printable(str(setting))


def _verdict(decision: Fold | Blocked) -> str:
    if isinstance(decision, Fold):
        into = ", ".join(show(absorber.layer) for absorber in decision.absorbers)
        return printable(f"{decision.direction} into {into}")
    return printable(f"stays: {decision.reason}")


def _channels(batchnorm: BatchNorm, observed: Observed | None) -> Part:
    found = channel_values(batchnorm, observed)
    columns = {name: values for name, values in found.items() if values is not None}
    headings = ["channel", *(name.replace("_", " ") for name in columns)]
    table = terminal.Columns(headings, numbers=headings, optional=_OPTIONAL_VECTORS)
    for channel in range(batchnorm.channels or 0):
        table.add_row(str(channel), *(f"{values[channel]:.6g}" for values in columns.values()))
    return table
