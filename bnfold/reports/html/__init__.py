"""Inspections as one HTML file that needs nothing else: no network, no script, no font.

Whatever comes from a file is put in by Jinja with autoescape on, after its control characters were
made visible, and only as text or as a quoted `title` or `aria-label`; links and ids are numbers.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bnfold.jobs.gate import Unreadable, how_many_read
from bnfold.jobs.inspect import Inspection
from bnfold.model.container.guard import printable
from bnfold.model.graph import show
from bnfold.reports.html import page, plots, profile, wires
from bnfold.reports.terminal import plural
from bnfold.reports.text import inspect
from bnfold.version import __version__


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """The report on some models, and on what could not be read, as an HTML file in UTF-8."""
    pages = [page.model_page(model, number) for number, model in enumerate(models, start=1)]
    template = _environment().get_template("page.html.j2")
    ran = any(model.observed is not None for model in models)
    ran = ran or any(one.may_have_run for one in unreadable)
    read = how_many_read(models, unreadable)
    return template.render(pages=pages, unreadable=unreadable, ran=ran, read=read)


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
    found.filters |= {"show": show, "plural": plural}
    found.globals |= {
        "version": __version__,
        "containers": inspect.CONTAINERS,
        "plot_box": {"width": plots.WIDTH, "height": plots.HEIGHT},
        "column": profile.COLUMN,
        "profile_height": profile.HEIGHT,
        "node": wires.NODE,
    }
    return found


def _visible(value: Any) -> Any:
    """What is put into the page: no control character of a name is."""
    return printable(value) if type(value) is str else value
