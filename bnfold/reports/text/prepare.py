"""Preparations for people."""

from collections.abc import Iterator

from bnfold.audit import Severity
from bnfold.jobs.prepare import PrepareReport, Product
from bnfold.model.container.printing import printable
from bnfold.model.graph import show
from bnfold.reports import terminal
from bnfold.reports.parts import Group, Part, Text
from bnfold.reports.text.inspect import COLOURS


def prepare(report: PrepareReport) -> Part:
    """The report on a preparation: what was found, done and made, then whether it is there."""
    parts: list[Part] = [*_findings(report), *_done(report)]
    if report.products:
        parts.append(_table(report))
    if report.scored_on is not None:
        parts.append(Text(scored(report)))
    if report.written:
        parts.append(Text(f"wrote {printable(str(report.directory))}", style="green"))
    else:
        parts.append(Text(f"{printable(str(report.directory))} was not written", style="red"))
        parts += [terminal.indented(printable(one), "red") for one in _refused(report)]
    return Group(*parts)


def scored(report: PrepareReport) -> str:
    """What the scores are of, in a sentence."""
    on = f"scored on {printable(report.scored_on or '')}"
    if report.is_held_out:
        return f"{on}, which nothing else was taken from"
    if report.recalibration is None and not any(one.precision == "int8" for one in report.products):
        return on
    return f"{on}, which also gave the statistics or ranges: --test-data takes other samples"


def _findings(report: PrepareReport) -> Iterator[Part]:
    """The findings, with what to do about those for which nothing was written; infos as a number.

    Infos are told one by one only where they stop it.
    """
    told = [
        one
        for one in report.findings
        if one.severity is not Severity.INFO or one in report.stopped_by
    ]
    for one in told:
        text = f"{one.severity} {one.code} {show(one.layer)}: {one.message}"
        yield Text(printable(text), style=COLOURS[one.severity])
        if one in report.stopped_by:
            yield terminal.indented(f"to do: {printable(one.remedy)}", "dim")
    count = len(report.findings) - len(told)
    if count:
        where = "; report.html has them" if report.written else ""
        yield Text(f"{count} {terminal.plural('info', count)}{where}", style="dim")


def _refused(report: PrepareReport) -> Iterator[str]:
    """Why nothing was written: of findings how many, since they stand above."""
    count = len(report.stopped_by)
    if count:
        yield f"{count} {terminal.plural('finding', count)} as bad as --fail-on"
    else:
        yield from report.refused


def _done(report: PrepareReport) -> Iterator[Part]:
    done = report.recalibration
    if done is not None and done.written:
        codes = ", ".join(dict.fromkeys(one.code for one in report.asked_for))
        asked = f", for {codes}" if codes else ""
        count = len(done.recalibrated)
        layers = terminal.plural("layer", count)
        yield Text(f"recalibrated {count} {layers} on {done.samples} samples{asked}")
        yield from (terminal.indented(one.sentence, "dim") for one in done.scores)
    if report.folded is not None:
        count, total = report.folded
        yield Text(f"folded {count} of {total} BatchNormalization layers")


def _table(report: PrepareReport) -> terminal.Columns:
    scores = report.products[0].scores
    numbers = ("size", "of tolerance", *(f"{one.measure} of {one.output}" for one in scores))
    table = terminal.Columns(
        ("model", "precision", "verdict", *numbers),
        numbers=numbers,
        optional=("size", "precision", "of tolerance"),
    )
    for one in report.products:
        share = "" if one.max_excess is None else f"{one.max_excess:.2g}"
        colour = "red" if one.refused else "default"
        table.add_row(
            Text(printable(one.name), style=colour),
            one.precision,
            one.verdict,
            terminal.size(one.size),
            share,
            *_scores(one),
        )
    return table


def _scores(product: Product) -> list[Text]:
    return [
        Text(f"{one.after:.4g} ({one.before:.4g} before)", style="red" if one.worse else "default")
        for one in product.scores
    ]
