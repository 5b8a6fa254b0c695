"""Folds and verifications for people."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.conversion import FoldReport
from bnfold.folding.plan import Plan
from bnfold.model.graph import Path, show
from bnfold.model.guard import printable
from bnfold.reports import terminal
from bnfold.verification import Comparison, Verdict, Verification


def fold(report: FoldReport) -> RenderableType:
    """The report on a fold."""
    target = printable(str(report.target))
    parts = decisions(report.plan, report.replaced, report.unused_keep)
    if report.dropped:
        dropped = " and ".join(report.dropped)
        parts.append(Text(f"  left out {dropped}: the result is for inference", style="dim"))
    if report.verification is not None:
        parts += verdict(report.verification)
    if report.written:
        parts.append(Text(f"wrote {target}"))
    else:
        parts.append(Text(f"{target} was not written", style="red"))
    return Group(*parts)


def decisions(plan: Plan, replaced: Sequence[Path], unused_keep: Sequence[str]) -> list[Text]:
    """What was folded, what was not and why, and which patterns of --keep said nothing."""
    folded, total = len(plan.folds), len(plan.decisions)
    parts = [
        Text(f"folded {folded} of {total} BatchNormalization {terminal.plural('layer', total)}")
    ]
    parts += [Text(f"  kept {reason}", style="dim") for reason, _ in terminal.reasons(plan)]
    if replaced:
        names = terminal.names([show(path) for path in replaced])
        parts.append(Text(f"  now depthwise convolutions: {names}", style="dim"))
    parts += [
        Text(f"  warning: --keep {unused!r} matches no layer", style="yellow")
        for unused in unused_keep
    ]
    return parts


def verification(result: Verification) -> RenderableType:
    """The report on a verification: every comparison, then the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("output", overflow="fold")
    for column in ("runtime", "largest error", "relative", "of the tolerance"):
        table.add_column(column, justify="left" if column == "runtime" else "right", no_wrap=True)
    for comparison in result.comparisons:
        table.add_row(*_comparison(comparison))
    parts: list[RenderableType] = [table] if result.comparisons else []
    return Group(*parts, *verdict(result))


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


def verdict(result: Verification) -> list[Text]:
    """The verdict of a proof with what contradicts or limits it."""
    sentence, colour = _VERDICTS[result.verdict]
    first = Text(sentence, style=colour)
    if result.verdict is not Verdict.DIFFERENT:
        worst = "" if result.max_excess is None else f", {result.max_excess:.0%} of the tolerance"
        first.append(
            f" ({result.basis}, {result.sample_count} samples, seed {result.seed}{worst})",
            style="default",
        )
    differences = [Text(f"  {printable(text)}", style="red") for text in result.differences]
    warnings = [Text(f"  warning: {printable(text)}", style="yellow") for text in result.warnings]
    return [first, *differences, *warnings]
