"""Reports for people, in the terminal.

Everything that comes from a file is put into `rich.text.Text` with its control characters shown,
never into markup: a layer's name must not be able to paint the terminal.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.audit import Finding, Severity
from bnfold.conversion import FoldReport
from bnfold.folding.affine import Affine, from_batchnorm
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.inspection import Inspection, settings
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.graph import show
from bnfold.model.guard import printable
from bnfold.verification import Comparison, Verdict, Verification

_SHOWN_LAYERS = 4
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_CONTAINERS = {
    "keras": ".keras archive",
    "keras-directory": "Keras directory",
    "h5": "legacy HDF5",
}
_TABULATED = ("momentum", "epsilon", "center", "scale", "trainable", "dtype_policy")


def inspection(model: Inspection) -> RenderableType:
    """The report on one model: a table of its layers, the reasons for what stays, the findings."""
    parts: list[RenderableType] = [_headline(model)]
    if model.plan.decisions:
        parts += [_table(model), *_reasons(model.plan)]
    if model.note is not None:
        parts.append(Text(model.note))
    parts += _findings(model.findings)
    return Group(*parts)


def _headline(model: Inspection) -> Text:
    version = f", Keras {printable(model.keras_version)}" if model.keras_version else ""
    folds, total = len(model.plan.folds), len(model.plan.decisions)
    text = Text(printable(str(model.path)), style="bold")
    text.append(f"  {_CONTAINERS[model.container]}{version}\n", style="not bold")
    text.append(f"{total} BatchNormalization {_plural('layer', total)}: ", style="not bold")
    text.append(f"{folds} can be folded, {total - folds} cannot", style="not bold")
    return text


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _table(model: Inspection) -> Table:
    rows = [settings(decision.batchnorm) for decision in model.plan.decisions]
    usual = {key: Counter(row[key] for row in rows).most_common(1)[0][0] for key in _TABULATED}
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(usual), caption_justify="left"
    )
    table.add_column("layer", overflow="fold", ratio=3)
    table.add_column("axis", justify="right", no_wrap=True)
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("moving mean", justify="right", no_wrap=True)
    table.add_column("moving variance", justify="right", no_wrap=True)
    table.add_column("folds into", overflow="fold", ratio=2)
    codes = _codes(model.findings)
    numbers = {reason: number for number, reason in enumerate(_by_reason(model.plan), start=1)}
    for decision, row in zip(model.plan.decisions, rows, strict=True):
        table.add_row(*_row(decision, _unusual(row, usual), codes, numbers))
    return table


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
    decision: Fold | Blocked,
    unusual: list[str],
    codes: dict[str, list[Finding]],
    numbers: dict[str, int],
) -> list[Text]:
    batchnorm = decision.batchnorm
    name = Text(printable(show(batchnorm.path)))
    for finding in codes.get(show(batchnorm.path), []):
        name.append(f" {finding.code}", style=_COLOURS[finding.severity])
    if unusual:
        name.append(f"\n{', '.join(unusual)}", style="dim")
    vectors = batchnorm.vectors or {}
    return [
        name,
        Text(str(batchnorm.axis) if batchnorm.axis is not None else "?"),
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
    return f"{finite.min():.3g} … {finite.max():.3g}"


def _target(decision: Fold | Blocked, numbers: dict[str, int]) -> Text:
    if isinstance(decision, Fold):
        return Text(
            printable(", ".join(show(edit.layer) for edit in decision.edits)), style="green"
        )
    return Text(f"stays [{numbers[_pattern(decision)]}]", style="yellow")


def _pattern(blocked: Blocked) -> str:
    """A reason without the name of the layer in the way, so that equal ones can share a line."""
    if blocked.at is None:
        return blocked.reason
    return blocked.reason.replace(f" {show(blocked.at)!r}", "")


def _by_reason(plan: Plan) -> dict[str, list[Blocked]]:
    grouped: dict[str, list[Blocked]] = {}
    for blocked in plan.blocked:
        grouped.setdefault(_pattern(blocked), []).append(blocked)
    return grouped


def _reasons(plan: Plan) -> list[Text]:
    lines = []
    for number, (pattern, blocked) in enumerate(_by_reason(plan).items(), start=1):
        reason = blocked[0].reason if len(blocked) == 1 else pattern
        lines.append(Text(f"[{number}] {printable(reason)} ({_layers(blocked)})"))
    return lines


def _layers(blocked: Sequence[Blocked]) -> str:
    return _names([show(one.batchnorm.path) for one in blocked])


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_SHOWN_LAYERS])
    more = len(names) - _SHOWN_LAYERS
    return f"{shown} and {more} more" if more > 0 else shown


def _findings(findings: Sequence[Finding]) -> list[Text]:
    """The findings, the worst first; what is said of several layers alike is said once."""
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.severity.rank):
        message = finding.message if finding.severity is not Severity.INFO else finding.remedy
        alike.setdefault((finding.severity, finding.code, message), []).append(finding)
    lines = [Text("")] if findings else []
    for (severity, code, _), same in alike.items():
        head = Text(f"{severity} {code} ", style=_COLOURS[severity])
        layers = _names([show(finding.layer) for finding in same])
        messages = {finding.message for finding in same}
        said = messages.pop() if len(messages) == 1 else f"{len(same)} layers"
        lines += [
            head.append(f"{layers}: {said}", style="default"),
            Text(f"      {same[0].remedy}", style="dim"),
        ]
    return lines


def layer(decision: Fold | Blocked) -> RenderableType:
    """One BatchNormalization in full."""
    batchnorm = decision.batchnorm
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    rows = {"axis": batchnorm.axis, "channels": batchnorm.channels, **settings(batchnorm)}
    for key, value in rows.items():
        facts.add_row(key.replace("_", " "), Text(_value(value)))
    facts.add_row("folds", Text(_verdict(decision)))
    title = Text(printable(show(batchnorm.path)), style="bold")
    return Group(title, facts, _channels(batchnorm))


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
    vectors = dict(batchnorm.vectors or {})
    affine = from_batchnorm(batchnorm)
    if isinstance(affine, Affine):
        vectors |= {"scale": affine.scale, "shift": affine.shift}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("channel", justify="right")
    stored = {*(batchnorm.weights or {}), "scale", "shift"}
    shown = [name for name in vectors if name in stored]
    for name in shown:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for channel in range(batchnorm.channels or 0):
        table.add_row(str(channel), *(f"{vectors[name][channel]:.6g}" for name in shown))
    return table


def fold(report: FoldReport) -> RenderableType:
    """The report on a fold."""
    target = printable(str(report.target))
    folded, total = len(report.plan.folds), len(report.plan.decisions)
    parts = [Text(f"folded {folded} of {total} BatchNormalization {_plural('layer', total)}")]
    for pattern, blocked in _by_reason(report.plan).items():
        reason = blocked[0].reason if len(blocked) == 1 else pattern
        parts.append(Text(f"  kept {_layers(blocked)}: {printable(reason)}", style="dim"))
    if report.dropped:
        dropped = " and ".join(report.dropped)
        parts.append(Text(f"  left out {dropped}: the result is for inference", style="dim"))
    if report.verification is not None:
        parts += _verification(report.verification)
    if report.written:
        parts.append(Text(f"wrote {target}"))
    else:
        parts.append(Text(f"{target} was not written", style="red"))
    return Group(*parts)


def verification(result: Verification) -> RenderableType:
    """The report on a verification: every comparison, then the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("output", overflow="fold")
    for column in ("runtime", "largest error", "relative", "of the tolerance"):
        table.add_column(column, justify="left" if column == "runtime" else "right", no_wrap=True)
    for comparison in result.comparisons:
        table.add_row(*_comparison(comparison))
    parts: list[RenderableType] = [table] if result.comparisons else []
    return Group(*parts, *_verification(result))


def _comparison(comparison: Comparison) -> list[Text]:
    output = Text(printable(comparison.output))
    if comparison.tapped_before:
        output.append(f" before {comparison.tapped_before}", style="dim")
    share = "not exercised" if not comparison.conclusive else f"{comparison.excess:.2g}"
    style = "default" if comparison.passed else "red"
    return [
        output,
        Text(comparison.runtime),
        Text(f"{comparison.max_abs_error:.2e}"),
        Text(f"{comparison.relative_error:.2e}"),
        Text(share, style=style),
    ]


_VERDICTS = {
    Verdict.EQUIVALENT: ("verified: the two models compute the same", "green"),
    Verdict.UNDECIDED: ("not fully proved: nothing differs, but not all could be seen", "yellow"),
    Verdict.DIFFERENT: ("the two models do not compute the same", "red"),
}


def _verification(result: Verification) -> list[Text]:
    sentence, colour = _VERDICTS[result.verdict]
    verdict = Text(sentence, style=colour)
    if result.verdict is not Verdict.DIFFERENT:
        verdict.append(
            f" ({result.basis}, {result.sample_count} samples, seed {result.seed}, largest error "
            f"{result.max_abs_error:.2g})",
            style="default",
        )
    differences = [Text(f"  {printable(text)}", style="red") for text in result.differences]
    warnings = [Text(f"  warning: {printable(text)}", style="yellow") for text in result.warnings]
    return [verdict, *differences, *warnings]


def console() -> Console:
    """Standard output; wide where it is no terminal, so that a pipe gets whole lines."""
    found = Console(highlight=False, soft_wrap=False)
    return found if found.is_terminal else Console(highlight=False, width=160)
