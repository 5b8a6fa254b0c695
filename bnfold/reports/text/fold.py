"""Folds and verifications for people."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bnfold.folding.plan import Plan
from bnfold.jobs.fold import FoldReport, Promise
from bnfold.jobs.gate import InputFindings
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Where
from bnfold.model.graph import LayerPath, show
from bnfold.model.training import named_versions
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Hanging, Part, Text
from bnfold.reports.text.inspect import COLOURS
from bnfold.verification import Basis, Comparison, SiteStatus, Verdict, Verification
from bnfold.verification.result import Decisions


def fold(report: FoldReport) -> Part:
    """The report on a fold."""
    parts: list[Part] = []
    if not report.written:
        parts.append(not_written(report.target, report.audit, report.verification))
    parts += findings(report.audit)
    parts += decisions(report.plan, report.replaced, report.unused_keep, done=report.written)
    parts += promised(report.inference)
    if report.dropped and report.written:
        dropped = " and ".join(report.dropped)
        parts.append(terminal.indented(f"left out {dropped}: the result is for inference", "dim"))
    if report.verification is not None:
        parts += verdict(report.verification)
    if report.written:
        parts.append(Text(f"wrote {printable(str(report.target))}"))
    return Group(*parts)


def findings(audit: InputFindings) -> list[Part]:
    """The findings on the source model, a line each."""
    lines: list[Part] = [
        Hanging(
            Text(f"{one.severity} {one.code} ", style=COLOURS[one.severity]).append(
                f"{printable(show(one.layer))}: {printable(one.message)}", style="default"
            )
        )
        for one in audit.findings
    ]
    if audit.problem is not None:
        lines.append(Text(f"not audited: {printable(audit.problem)}", style="yellow"))
    return lines


def not_written(target: Where, audit: InputFindings, proof: Verification | None) -> Text:
    """That the result was refused, and why."""
    if audit.stops:
        reason = f"findings on the model are as bad as --fail-on {audit.fail_on}"
    elif proof is not None and proof.accepted(strict=False):
        reason = _STRICT
    else:
        reason = "it would not compute what the model computes"
    return Text(f"{printable(str(target))} was not written: {reason}", style="red")


_STRICT = (
    "--strict needs a verdict by both Keras and ONNX Runtime, with every site and output exercised"
)


_HINT = "'bnfold inspect' says what change would let them fold"


def decisions(
    plan: Plan, replaced: Sequence[LayerPath], unused_keep: Sequence[str], *, done: bool
) -> list[Part]:
    """What was folded, what was not and why, and which patterns of --keep matched no layer.

    Unless it was `done`, the report says what can be folded, not what was.
    """
    folded, total = len(plan.folds), len(plan.decisions)
    said = f"folded {folded} of {total} BatchNormalization {terminal.plural('layer', total)}"
    parts: list[Part] = [Text(said if done else terminal.foldable(folded, total))]
    reasons = terminal.reasons(plan)
    parts += [terminal.indented(f"kept {reason}", "dim") for reason, _ in reasons]
    remedies = {remedy for _, remedy in reasons}
    if remedies != {""} and remedies:
        only = remedies.pop() if len(remedies) == 1 else None
        parts.append(terminal.indented(_HINT if only is None else f"to do: {only}", "dim"))
    if replaced:
        names = terminal.names([show(path) for path in replaced])
        became = "now" if done else "would become"
        parts.append(terminal.indented(f"{became} depthwise convolutions: {names}", "dim"))
    parts += [
        terminal.indented(f"warning: --keep {unused!r} matches no layer", "yellow")
        for unused in unused_keep
    ]
    alike: dict[str, list[str]] = {}
    for path, rules in plan.exceptions.items():
        alike.setdefault(named_versions(rules), []).append(show(path))
    for versions, paths in alike.items():
        said = (
            f"warning: not for {versions}, where {terminal.names(paths)} may run in training mode"
        )
        parts.append(terminal.indented(said, "yellow"))
    return parts


def promised(promise: Promise | None) -> list[Part]:
    """What `--inference` changed, and what it could not."""
    if promise is None:
        return []
    lines = []
    if promise.told:
        names = terminal.names([show(path) for path in promise.told])
        lines.append(f"called with training=False from now on: {names}")
    if promise.untold:
        names = terminal.names([show(path) for path in promise.untold])
        lines.append(
            f"call the result with training=False, or by predict: {names} could not be told so, in "
            "a Sequential, whose file has no calls, or a model that is called with training=True"
        )
    if not lines:
        lines.append("--inference changes nothing: no layer takes training=True by default")
    return [terminal.indented(line, "dim") for line in lines]


def verification(result: Verification, *, strict: bool = False) -> Part:
    """The report on a verification: the outputs and the worst sites, then the verdict."""
    parts: list[Part] = []
    outputs = [one for one in result.comparisons if one.is_output]
    has_figures = result.format != "keras" and bool(result.fidelity)
    if outputs:
        parts.append(_table("output", outputs, with_sqnr=not has_figures))
    inside = sorted(
        (one for one in result.comparisons if not one.is_output),
        key=lambda one: -one.excess if one.conclusive or not one.passed else 1.0,
    )
    if inside:
        title = "value inside" if len(inside) <= _SHOWN else f"the worst of {len(inside)} inside"
        parts.append(_table(title, inside[:_SHOWN]))
    if has_figures:
        parts.append(figures(result))
    parts += verdict(result)
    return Group(*parts, *(Text(one, style="red") for one in _refused(result, strict=strict)))


def _refused(result: Verification, *, strict: bool) -> Iterator[str]:
    """Why a verdict that says nothing against the models is not accepted all the same."""
    for one in result.refused:
        yield f"not accepted: {printable(one)}"
    if result.accepted(strict=False) and not result.accepted(strict=strict):
        yield f"not accepted: {_STRICT}"


_SHOWN = 6


def _table(
    title: str, comparisons: Sequence[Comparison], *, with_sqnr: bool = True
) -> terminal.Columns:
    """One block of rows for each value, a row for each runtime, in the order that they come in.

    The SQNR is that of the worst kind of samples; where figures follow, theirs is that of all.
    """
    shown = ("error", "original's", *(["SQNR dB"] if with_sqnr else []), "of tolerance")
    optional = ("original's", "SQNR dB") if with_sqnr else ("original's",)
    table = terminal.Columns((title, *shown), numbers=shown, optional=optional)
    for block in terminal.grouped(comparisons, lambda one: one.name).values():
        table.add_row(_value(block[0]))
        for comparison in block:
            row = _comparison(comparison)
            table.add_row(*(row if with_sqnr else [*row[:3], *row[4:]]))
    return table


def figures(result: Verification) -> Part:
    """How near every output is to the reference, in each runtime: the figures of its errors."""
    numbers = ("SQNR dB", "50%", "90%", "99%", "100%", "decisions changed")
    table = terminal.Columns(("output", *numbers), numbers=numbers, optional=numbers[1:4])
    for block in terminal.grouped(result.fidelity, lambda one: one.output).values():
        table.add_row(Text(printable(block[0].output)))
        for one in block:
            told = one.percentiles
            shares = [f"{share:.1e}" for share in (told.p50, told.p90, told.p99, told.max)]
            noise = "none" if one.sqnr_db is None else terminal.decibels(one.sqnr_db, 1)
            table.add_row(f"  {one.runtime}", noise, *shares, _changed(one.decisions))
    said = "percentiles of the error, as shares of the output's largest magnitude"
    return Group(table, Text(said, style="dim"))


def _changed(decisions: Decisions | None) -> str:
    if decisions is None:
        return ""
    found = f"{decisions.changed} of {decisions.counted}"
    margins = decisions.margins_of_changed
    return found if margins is None else f"{found}, margins up to {margins.largest:.2g}"


def _value(comparison: Comparison) -> Text:
    name = Text(printable(comparison.name))
    if comparison.tapped_before:
        name.append(f" before {comparison.tapped_before}", style="dim")
    return name


def _comparison(comparison: Comparison) -> list[Text]:
    quiet = comparison.passed and not comparison.conclusive
    share = "not exercised" if quiet else f"{comparison.excess:.2g}"
    own, folded = comparison.original, comparison.folded
    error = max(folded.max_abs_error, comparison.error)  # infinite where there is no number
    noise = "none" if folded.sqnr_db is None else terminal.decibels(folded.sqnr_db)
    return [
        Text(f"  {comparison.runtime}"),
        Text(f"{error:.2e}"),
        Text("" if own is None else f"{own.max_abs_error:.2e}", style="dim"),
        Text(noise),
        Text(share, style="default" if comparison.passed else "red"),
    ]


_VERDICTS = {
    Verdict.EQUIVALENT: ("verified: the two models compute the same", "green"),
    Verdict.APPROXIMATE: (
        "approximate: the file computes what the model does, as far as its precision goes",
        "green",
    ),
    Verdict.UNDECIDED: (
        "undecided: no difference found, but some values were not exercised",
        "yellow",
    ),
    Verdict.DIFFERENT: ("the two models do not compute the same", "red"),
}


def verdict(result: Verification) -> list[Part]:
    """The verdict of a verification, with its differences, notes and warnings."""
    compared, differences = _what_was_compared(result), _first(result.differences)
    return conclusion(_VERDICTS, result, compared, _notes(result), differences)


@dataclass(frozen=True)
class Statement:
    """What a report says of a verification: the verdict, and whatever belongs to it.

    `compared` is empty where the models differ; `refused` says why what was found is not accepted.
    """

    verdict: str
    compared: str
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    refused: tuple[str, ...]


def statement(result: Verification, *, strict: bool = False) -> Statement:
    """The verdict in the words of this report, with all differences, for a report of another form.

    It is printable as it stands.
    """
    return Statement(
        verdict=_VERDICTS[result.verdict][0],
        compared="" if result.verdict is Verdict.DIFFERENT else _what_was_compared(result),
        differences=tuple(map(printable, result.differences)),
        notes=tuple(map(printable, _notes(result))),
        warnings=tuple(map(printable, result.warnings)),
        refused=tuple(_refused(result, strict=strict)),
    )


def conclusion(
    verdicts: Mapping[Verdict, tuple[str, str]],
    found: Verification,
    compared: str,
    notes: Iterable[str],
    differences: Iterable[str],
) -> list[Part]:
    """The sentence and colour of a verdict, with its differences, notes and warnings, a line each.

    Unless the models differ, the sentence says what was `compared`.
    """
    sentence, colour = verdicts[found.verdict]
    said = Text(sentence, style=colour)
    if found.verdict is not Verdict.DIFFERENT:
        said.append(f" ({compared})", style="default")
    return [
        said,
        *(terminal.indented(printable(text), "red") for text in differences),
        *(terminal.indented(printable(text), "dim") for text in notes),
        *(terminal.indented(f"warning: {printable(text)}", "yellow") for text in found.warnings),
    ]


_SENTENCES = 8


def _first(differences: Sequence[str]) -> list[str]:
    """The first few: they are where the difference begins, and the others may be very many."""
    more = len(differences) - _SENTENCES
    if more <= 1:
        return list(differences)
    return [*differences[:_SENTENCES], f"and {more} more, which --format json has"]


def _what_was_compared(result: Verification) -> str:
    matched = len(result.sites_that_are(SiteStatus.MATCHED))
    if result.basis is Basis.FILES:
        return "nothing was folded, and both files hold the same model"
    parts = [str(result.basis), *([] if result.precision is None else [result.precision])]
    if result.sites:
        parts.append(f"{matched} of {len(result.sites)} fold sites")
    drawn = "samples of yours" if result.is_user_data else f"samples, seed {result.seed}"
    parts.append(f"{result.sample_count} {drawn}")
    if result.worst is not None:
        parts.append(
            f"worst {printable(result.worst.name)} at {terminal.share(result.worst.excess)} of "
            "tolerance"
        )
    return "; ".join(parts)


def _is_usual(rule: str) -> bool:
    """Whether a verdict follows a rule that nobody asked for."""
    from bnfold.verification.tolerance import Rule  # noqa: PLC0415 - most folds verify nothing here
    from bnfold.verification.trial import STANDARD_RULE  # noqa: PLC0415

    return rule in {Rule().text(), STANDARD_RULE}


def _notes(result: Verification) -> Iterator[str]:
    """What a reader should know beside the verdict."""
    yield from result.paired
    if result.precision not in {None, "float32"}:
        yield f"tolerance: {result.rule}"
    elif not _is_usual(result.rule):
        yield f"tolerance by --rtol and --atol: {result.rule}"
    quiet = result.sites_that_are(SiteStatus.NOT_EXERCISED)
    if quiet:
        yield f"not exercised: {terminal.names([site.name for site in quiet])}"
    alone = result.sites_that_are(SiteStatus.UNPAIRED)
    if alone:
        names = terminal.names([site.name for site in alone])
        yield f"compared at the outputs only (no matching downstream layer): {names}"
    silent = sum(site.channels - site.exercised for site in result.sites)
    if silent:
        total = sum(site.channels for site in result.sites)
        yield f"{silent} of {total} channels of the sites saw no signal"
    for one in result.agreements:
        counted = "samples" if one.samples == result.sample_count else "positions"
        yield (
            f"{one.output}: {one.changed} of {one.samples} {counted} changed their class; the "
            f"smallest margin is {one.smallest_margin:.2g}"
        )
    if result.merged_by_exporter:
        names = terminal.names(list(result.merged_by_exporter))
        yield f"merged by the exporter in the original's ONNX graph already: {names}"
