"""Inspections and verifications as HTML files that need nothing else: no network, script or font.

Whatever comes from a file is put in by Jinja with autoescape on, after its control characters were
made visible, and only as text or as a quoted `title` or `aria-label`; links and ids are numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bnfold.audit import Severity
from bnfold.fleet.results import Results, how_many_read
from bnfold.fleet.row import Row
from bnfold.jobs.gate import Unreadable
from bnfold.jobs.inspect import Inspection
from bnfold.jobs.prepare import PrepareReport
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Where
from bnfold.model.graph import show
from bnfold.reports.html import page, plots, profile, strips, wires
from bnfold.reports.html import verification as verified
from bnfold.reports.summary import Summary, summary
from bnfold.reports.terminal import decibels, plural, size
from bnfold.reports.text import inspect, prepare
from bnfold.verification.result import Fidelity, Verification
from bnfold.version import __version__


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """The report on some models, and on what could not be read, as an HTML file in UTF-8."""
    is_alone = len(models) == 1 and not unreadable
    found = [_fragment(model, number, is_alone) for number, model in enumerate(models, start=1)]
    ran = any(model.observed is not None for model in models)
    ran = ran or any(one.may_have_run for one in unreadable)
    return _page(found, [str(one.error) for one in unreadable], ran=ran)


def fragment(model: Inspection, number: int) -> dict[str, Any]:
    """What a page of several has of one model, with its number: plain values, which can be sent."""
    return _fragment(model, number, is_alone=False)


def _fragment(model: Inspection, number: int, is_alone: bool) -> dict[str, Any]:
    one = page.model_page(model, number)
    template = _environment().get_template("model.html.j2")
    return {
        "number": number,
        "path": str(model.path),
        "file_name": one.file_name,
        "layers": len(one.norms),
        "stay": one.fates["stays"],
        "concerned": {str(severity): one.concerned[severity] for severity in Severity},
        "html": template.render(one=one, single=is_alone),
    }


def _page(models: Sequence[Mapping[str, Any]], unreadable: Sequence[str], *, ran: bool) -> str:
    template = _environment().get_template("page.html.j2")
    read = how_many_read({"read": len(models), "found": len(models) + len(unreadable)})
    return template.render(models=models, unreadable=unreadable, ran=ran, read=read)


def together(results: Results, *, ran: bool) -> str:
    """Several models on one page, which is made of what `fragment` made of each."""
    views = [row.views["html"] for row in results.done]
    return _page(views, [row.error or row.path for row in results.failed], ran=ran)


def file_name(number: int) -> str:
    """The name of the file for the page of one of many models, from 1."""
    return f"{number:05d}.html"


def index(rows: Sequence[Row], totals: str, folder: str) -> str:
    """What leads to the pages of many models, which are in a `folder` beside it."""
    lines: list[dict[str, Any]] = []
    for number, one in enumerate(map(summary, rows), start=1):
        lines.append(
            {
                "href": f"{quote(folder)}/{file_name(number)}" if one.row.is_done else None,
                "kind": _kind(one),
                "path": one.row.path,
                "verdict": one.verdict,
                "counts": one.counts,
                "folds": one.folds,
                "layers": one.layers,
                "bytes": one.row.bytes,
                "error": one.row.error,
                "note": one.note,
                "badness": one.badness,
            }
        )
    lines.sort(key=lambda line: line["badness"])
    kinds = [{"name": "all", "count": len(lines)}]
    for name, kind in _KINDS.items():
        kinds.append({"name": name, "count": sum(kind in line["kind"].split() for line in lines)})
    template = _environment().get_template("index.html.j2")
    return template.render(rows=lines, totals=totals, kinds=kinds)


_KINDS = {
    "failed": "failed",
    "negative": "negative",
    "with findings": "findings",
    "without findings": "clean",
}
"""What the index can be narrowed to, and the class of the rows that are left."""


def _kind(one: Summary) -> str:
    """The classes of a row of the index."""
    if not one.row.is_done:
        return "failed"
    found = "findings" if any(one.counts.values()) else "clean"
    return f"{found} negative" if one.row.exit_code else found


def verification(
    result: Verification,
    original: Where | None = None,
    other: Where | None = None,
    *,
    strict: bool = False,
) -> str:
    """The report on a verification as an HTML file in UTF-8; `original` and `other` are its files.

    With `strict` it says where the verdict is not enough for that.
    """
    template = _environment().get_template("verification.html.j2")
    return template.render(page=verified.Page(result, original, other, strict))


def prepared(found: PrepareReport, inspection: Inspection) -> str:
    """The report on a preparation, and on the model that was prepared, as an HTML file in UTF-8."""
    codes = dict.fromkeys(one.code for one in found.asked_for)
    template = _environment().get_template("prepared.html.j2")
    return template.render(
        report=found,
        done=found.recalibration,
        codes=list(codes),
        scored=prepare.scored(found),
        figures=list(_figures(found)),
        page=page.model_page(inspection, 1),
    )


def _figures(report: PrepareReport) -> Iterator[tuple[str, Fidelity]]:
    """The figures of every output, with the name of the file that they are of."""
    proofs = [report.verification, *(one.check for one in report.exports)]
    for product, proof in zip(report.products, proofs, strict=True):
        yield from ((product.name, one) for one in (() if proof is None else proof.fidelity))


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("bnfold.reports.html", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"show": show, "plural": plural, "size": size, "decibels": decibels}
    found.globals |= {
        "version": __version__,
        "containers": inspect.CONTAINERS,
        "plot_box": {"width": plots.WIDTH, "height": plots.HEIGHT},
        "column": profile.COLUMN,
        "profile_height": profile.HEIGHT,
        "node": wires.NODE,
        "strips": strips,
        "verified": verified,
        "axis_labels": plots.labels,
    }
    return found


def _visible(value: Any) -> Any:
    """What is put into the page: no control character of a name is."""
    return printable(value) if type(value) is str else value
