"""Results of the Python API as text and as HTML for a notebook: the reports of the command line."""

from __future__ import annotations

import html
import io
from importlib import import_module
from typing import Any

from bnfold.audit import Severity
from bnfold.folding.plan import Fold
from bnfold.jobs.gate import Outcome
from bnfold.jobs.inspect import Inspection
from bnfold.model.container.printing import printable
from bnfold.model.graph import show
from bnfold.reports import terminal
from bnfold.reports.parts import Part, Text
from bnfold.reports.text import inspect as inspect_text

_WIDTH = 110
_FUNCTIONS = {
    "FoldReport": ("fold", "fold"),
    "ExportReport": ("export", "export"),
    "Verification": ("fold", "verification"),
    "RecalibrationReport": ("recalibrate", "recalibration"),
    "BenchReport": ("bench", "bench"),
    "PrepareReport": ("prepare", "prepare"),
}
"""The module of `reports.text` and the function in it that show a result, by its class."""
_CELLS = 400
_COLOURS = {Severity.ERROR: "#c62828", Severity.WARNING: "#b26a00", Severity.INFO: "#1565c0"}
_FOLDS, _STAYS = "#2e7d32", "#757575"


def drawn(result: Any, width: int, **how: Any) -> Part:
    """The report of the command line on a result."""
    if isinstance(result, Inspection):
        return inspect_text.inspection(result, width)
    if isinstance(result, Outcome):
        return inspect_text.outcome(result, width)
    kinds = [one.__name__ for one in type(result).__mro__]
    place = next((_FUNCTIONS[kind] for kind in kinds if kind in _FUNCTIONS), None)
    if place is None:
        return Text(repr(result))
    module, function = place
    found: Part = getattr(import_module(f"bnfold.reports.text.{module}"), function)(result, **how)
    return found


def text(result: Any) -> str:
    """A result as text, without colours."""
    return terminal.plain(lambda width: drawn(result, width)).rstrip("\n")


def page(result: Any) -> str:
    """A result for a notebook: what the terminal shows, below a picture of the layers."""
    console = terminal.drawn_into(io.StringIO(), _WIDTH, record=True, force_terminal=True)
    console.print(drawn(result, _WIDTH))
    shown = console.export_html(inline_styles=True, code_format="{code}")
    style = "overflow-x:auto;line-height:1.3;font-size:.85em"
    picture = _picture(result) if isinstance(result, Inspection) else ""
    return f'<div>{picture}<pre style="{style}">{shown}</pre></div>'


def _picture(model: Inspection) -> str:
    """A cell for each layer: its colour is the worst finding, else whether it folds."""
    cells = []
    for decision in model.plan.decisions[:_CELLS]:
        findings = sorted(model.findings_on(decision), key=lambda one: one.severity.rank)
        folds = isinstance(decision, Fold)
        colour = _COLOURS[findings[0].severity] if findings else _FOLDS if folds else _STAYS
        said = [show(decision.batchnorm.path), "folds" if folds else "stays"]
        said += [f"{one.severity} {one.code}" for one in findings]
        title = html.escape(printable(", ".join(said)), quote=True)
        border = "solid" if folds else "dashed"
        cells.append(
            f'<span title="{title}" style="display:inline-block;width:12px;height:12px;margin:1px;'
            f'background:{colour}22;border:2px {border} {colour}"></span>'
        )
    more = len(model.plan.decisions) - _CELLS
    return f"<div>{''.join(cells)}{f' and {more} more' if more > 0 else ''}</div>"
