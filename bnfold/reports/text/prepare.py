"""Preparations for people."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.jobs.prepare import PrepareReport, Product
from bnfold.model.container.guard import printable
from bnfold.model.graph import show
from bnfold.reports import terminal
from bnfold.reports.text.inspect import COLOURS


def prepare(report: PrepareReport) -> RenderableType:
    """The report on a preparation: what was found, done and made, then whether it is there."""
    parts: list[RenderableType] = [*_findings(report), *_done(report)]
    if report.products:
        parts.append(_table(report))
    if report.labels_problem is not None:
        why = printable(report.labels_problem)
        parts.append(Text(f"not scored: {why}", style="yellow"))
    if report.written:
        parts.append(Text(f"wrote {printable(str(report.directory))}", style="green"))
    else:
        parts.append(Text(f"{printable(str(report.directory))} was not written", style="red"))
        parts += [terminal.indented(printable(one), "red") for one in report.refused]
    return Group(*parts)


def _findings(report: PrepareReport) -> Iterator[RenderableType]:
    for one in report.findings:
        text = f"{one.severity} {one.code} {show(one.layer)}: {one.message}"
        yield Text(printable(text), style=COLOURS[one.severity])


def _done(report: PrepareReport) -> Iterator[RenderableType]:
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


def _table(report: PrepareReport) -> Table:
    scores = report.products[0].scores
    numbers = ("size", "of tolerance", *(f"{one.measure} of {one.output}" for one in scores))
    table = terminal.table("model", "precision", "verdict", numbers=numbers)
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
