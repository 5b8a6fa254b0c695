"""Exports to ONNX for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from bnfold.jobs.export import ExportReport
from bnfold.model.container.guard import printable
from bnfold.reports import terminal
from bnfold.reports.text import fold
from bnfold.running.ports import Port
from bnfold.verification import Verdict
from bnfold.verification.deployed import STANDARD_RULE, Check


def export(report: ExportReport) -> RenderableType:
    """The report on an export."""
    parts: list[RenderableType] = []
    if not report.written:
        proof = report.verification if report.check is None else report.check
        parts.append(fold.not_written(report.target, report.audit, proof))
    parts += fold.findings(report.audit)
    if report.plan is not None:
        kept, written = report.unused_keep, report.written
        parts += fold.decisions(report.plan, report.replaced, kept, done=written)
    parts += fold.promised(report.inference)
    if report.verification is not None:
        parts += fold.verdict(report.verification)
    if report.check is not None:
        parts += _check(report.check)
        parts += _ports("input", report.inputs) + _ports("output", report.outputs)
    if report.written:
        parts.append(Text(f"wrote {printable(str(report.target))} (opset {report.opset})"))
    return Group(*parts)


_VERDICTS = {
    Verdict.APPROXIMATE: (
        "checked: the file computes what Keras computes, as far as its precision goes",
        "green",
    ),
    Verdict.EQUIVALENT: ("checked: ONNX Runtime computes what Keras computes", "green"),
    Verdict.UNDECIDED: (
        "inconclusive: no difference found, but some outputs could not be compared",
        "yellow",
    ),
    Verdict.DIFFERENT: ("ONNX Runtime does not compute what Keras computes", "red"),
}


def _check(check: Check) -> list[RenderableType]:
    compared = _what_was_compared(check)
    notes = [] if check.rule == STANDARD_RULE else [f"tolerance by --rtol and --atol: {check.rule}"]
    return fold.conclusion(_VERDICTS, check, compared, notes, check.differences)


def _what_was_compared(check: Check) -> str:
    parts = [f"{check.sample_count} samples", f"seed {check.seed}"]
    exercised = [one for one in check.outputs if one.exercised]
    if exercised:
        error = max(one.max_abs_error for one in exercised)
        excess = max(one.excess for one in exercised)
        parts += [f"largest error {error:.2g}", f"{terminal.share(excess)} of the tolerance"]
    return ", ".join(parts)


def _ports(kind: str, ports: Sequence[Port]) -> list[RenderableType]:
    return [
        terminal.indented(f"{kind} {printable(port.name)} {_shape(port)} {port.dtype}", "dim")
        for port in ports
    ]


def _shape(port: Port) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in port.shape) + ")"
