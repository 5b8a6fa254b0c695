"""Exports to ONNX for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from bnfold.exporting import ExportReport
from bnfold.model.guard import printable
from bnfold.reports import fold_text, terminal
from bnfold.verification.exported import Check
from bnfold.verification.tensors import Port


def export(report: ExportReport) -> RenderableType:
    """The report on an export."""
    parts: list[RenderableType] = []
    if report.plan is not None:
        parts += fold_text.decisions(report.plan, report.replaced, report.unused_keep)
    if report.verification is not None:
        parts += fold_text.verdict(report.verification)
    if report.check is not None:
        parts += _check(report.check)
        parts += _ports("input", report.inputs) + _ports("output", report.outputs)
    if report.written:
        parts.append(Text(f"wrote {printable(str(report.target))} (opset {report.opset})"))
    else:
        proof = report.verification if report.check is None else None
        parts.append(fold_text.not_written(report.target, proof))
    return Group(*parts)


def _check(check: Check) -> list[RenderableType]:
    warnings = [
        terminal.indented(f"warning: {printable(text)}", "yellow") for text in check.warnings
    ]
    if not check.passed:
        differences = [terminal.indented(printable(text), "red") for text in check.differences]
        sentence = "ONNX Runtime does not compute what Keras computes"
        return [Text(sentence, style="red"), *differences, *warnings]
    first = Text("checked: ONNX Runtime computes what Keras computes", style="green")
    first.append(
        f" ({check.sample_count} samples, seed {check.seed}, largest error"
        f" {check.max_abs_error:.2g}, {check.max_excess:.0%} of the tolerance)",
        style="default",
    )
    return [first, *warnings]


def _ports(kind: str, ports: Sequence[Port]) -> list[RenderableType]:
    return [
        terminal.indented(f"{kind} {printable(port.name)} {_shape(port)} {port.dtype}", "dim")
        for port in ports
    ]


def _shape(port: Port) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in port.shape) + ")"
