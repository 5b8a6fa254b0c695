"""Inspections and verifications as HTML files that need nothing else: no network, script or font.

Whatever comes from a file is put in by Jinja with autoescape on, after its control characters were
made visible, and only as text or as a quoted `title` or `aria-label`; links and ids are numbers.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bnfold.jobs.gate import Unreadable, how_many_read
from bnfold.jobs.inspect import Inspection
from bnfold.jobs.prepare import PrepareReport
from bnfold.model.container.guard import printable
from bnfold.model.container.remote import Where
from bnfold.model.graph import show
from bnfold.reports.html import page, plots, profile, strips, wires
from bnfold.reports.html import verification as verified
from bnfold.reports.terminal import decibels, plural, size
from bnfold.reports.text import inspect, prepare
from bnfold.verification.result import Fidelity, Verification
from bnfold.version import __version__


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """The report on some models, and on what could not be read, as an HTML file in UTF-8."""
    pages = [page.model_page(model, number) for number, model in enumerate(models, start=1)]
    template = _environment().get_template("page.html.j2")
    ran = any(model.observed is not None for model in models)
    ran = ran or any(one.may_have_run for one in unreadable)
    read = how_many_read(models, unreadable)
    return template.render(pages=pages, unreadable=unreadable, ran=ran, read=read)


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


def prepared(report: PrepareReport, inspection: Inspection) -> str:
    """The report on a preparation, and on the model that was prepared, as an HTML file in UTF-8."""
    codes = dict.fromkeys(one.code for one in report.asked_for)
    template = _environment().get_template("prepared.html.j2")
    return template.render(
        report=report,
        done=report.recalibration,
        codes=list(codes),
        scored=prepare.scored(report),
        figures=list(_figures(report)),
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
