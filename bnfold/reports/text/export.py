"""Exports for people."""

from collections.abc import Sequence

from bnfold.jobs.export import ExportReport, LeftBehind, TargetReport
from bnfold.jobs.targets import KINDS
from bnfold.model.container.printing import printable
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Part, Text
from bnfold.reports.text import fold
from bnfold.running.deployed.leftovers import Leftover, State
from bnfold.running.ports import Port
from bnfold.verification import Verdict
from bnfold.verification.trial import STANDARD_RULE, Check


def export(report: ExportReport) -> Part:
    """The report on an export: what keeps it from being written, the fold, then every target."""
    parts: list[Part] = []
    if not report.written:
        parts += _not_written(report)
    parts += fold.findings(report.audit)
    if report.plan is not None:
        kept, written = report.unused_keep, report.written
        parts += fold.decisions(report.plan, report.replaced, kept, done=written)
    parts += fold.promised(report.inference)
    if report.verification is not None:
        parts += fold.verdict(report.verification)
    for one in report.targets:
        parts += _target(one, report)
    return Group(*parts)


def _not_written(report: ExportReport) -> list[Part]:
    """A line for each target that is refused, and one for those that go with it."""
    refused = [one for one in report.targets if not one.accepted(strict=False)]
    if not refused:  # findings, the proof of the fold, or --strict refuse all alike
        check = next((one.check for one in report.targets if one.check is not None), None)
        proof = report.verification if check is None else check
        return [fold.not_written(one.target, report.audit, proof) for one in report.targets]
    lines: list[Part] = [fold.not_written(one.target, report.audit, one.check) for one in refused]
    others = [printable(str(one.target)) for one in report.targets if one not in refused]
    if others:
        names = terminal.names(others)
        lines.append(Text(f"{names}: not written either, though nothing is wrong there", "red"))
    return lines


def _target(told: TargetReport, report: ExportReport) -> list[Part]:
    parts: list[Part] = []
    if told.check is not None:
        parts += _check(told.check, told)
    if told.inputs:
        parts += _ports("input", told.inputs) + _ports("output", told.outputs)
    if told.left_behind is not None:
        parts += _left_behind(told.left_behind, KINDS[told.format].runtime)
    if told.written:
        unverified = "" if report.is_checked else ", not verified"
        parts.append(Text(f"wrote {printable(str(told.target))} ({_form(told)}{unverified})"))
    return parts


def _form(told: TargetReport) -> str:
    if told.format == "onnx":
        return f"opset {told.opset}"
    if told.format == "saved_model":
        return "SavedModel"
    if told.calibration_samples is None:
        return f"LiteRT {told.precision}"
    count = told.calibration_samples
    return f"LiteRT {told.precision}, calibrated on {count} {terminal.plural('sample', count)}"


def _check(check: Check, told: TargetReport) -> list[Part]:
    compared = _what_was_compared(check)
    is_standard = check.rule == STANDARD_RULE or check.verdict is Verdict.APPROXIMATE
    notes = [] if is_standard else [f"tolerance by --rtol and --atol: {check.rule}"]
    if check.precision not in {"float32", None}:
        notes = [check.rule]
    return fold.conclusion(_verdicts(told, check), check, compared, notes, check.differences)


def _verdicts(told: TargetReport, check: Check) -> dict[Verdict, tuple[str, str]]:
    runtime = KINDS[told.format].runtime
    return {
        Verdict.EQUIVALENT: (f"checked: {runtime} computes what Keras computes", "green"),
        Verdict.APPROXIMATE: (
            f"checked: {runtime} computes what Keras computes, as far as {check.precision} goes",
            "green",
        ),
        Verdict.UNDECIDED: (
            "undecided: no difference found, but some outputs could not be compared",
            "yellow",
        ),
        Verdict.DIFFERENT: (f"{runtime} does not compute what Keras computes", "red"),
    }


def _left_behind(found: LeftBehind, runtime: str) -> list[Part]:
    """How many BatchNormalization layers still cost something, without bnfold and with it."""
    lines = []
    if found.original:
        lines.append(f"{runtime} with MODEL as it is: {leftovers(found.original)}")
    if found.exported and found.exported != found.original:
        lines.append(f"{runtime} with this file: {leftovers(found.exported)}")
    if found.original and not found.exported:
        lines.append(f"{runtime} with this file: no BatchNormalization")
    return [terminal.indented(line, "dim") for line in lines]


def leftovers(found: Sequence[Leftover]) -> str:
    """What is left of how many layers, in a line."""
    total = f"of {len(found)} BatchNormalization {terminal.plural('layer', len(found))}"
    parts = []
    for state, said in _STATES.items():
        names = [_leftover(one) for one in found if one.state is state]
        if names and state in {State.LEFT, State.UNKNOWN}:
            parts.append(f"{len(names)} {said}: {terminal.names(names)}")
        elif names:
            parts.append(f"{len(names)} {said}")
    return f"{total}, {'; '.join(parts)}"


_STATES = {
    State.EXPORTER: "merged by the exporter",
    State.RUNTIME: "merged by the runtime",
    State.LEFT: "left",
    State.UNKNOWN: "unknown",
}


def _leftover(one: Leftover) -> str:
    kinds = dict.fromkeys(one.nodes)  # each once, of a layer that is called several times
    nodes = f" as {' and '.join(kinds)}" if kinds else ""
    return f"{printable(one.name)}{nodes}"


def _what_was_compared(check: Check) -> str:
    parts = [f"{check.sample_count} samples", f"seed {check.seed}"]
    exercised = [one for one in check.outputs if one.exercised]
    if exercised:
        error = max(one.max_abs_error for one in exercised)
        excess = max(one.excess for one in exercised)
        parts += [f"largest error {error:.2g}", f"{terminal.share(excess)} of the tolerance"]
    return ", ".join(parts)


def _ports(kind: str, ports: Sequence[Port]) -> list[Part]:
    return [
        terminal.indented(f"{kind} {printable(port.name)} {_shape(port)} {port.dtype}", "dim")
        for port in ports
    ]


def _shape(port: Port) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in port.shape) + ")"
