"""Showing what a command found out, as text or as JSON."""

from importlib import import_module
from typing import Any

import click

_TEXT = {
    "FoldReport": ("fold", "fold"),
    "ExportReport": ("export", "export"),
    "Verification": ("fold", "verification"),
    "RecalibrationReport": ("recalibrate", "recalibration"),
    "BenchReport": ("bench", "bench"),
}
"""The module of `reports.text` and the function in it that show a result, by its class."""


def show(result: Any, format_: str, *, good: bool = True, **how: Any) -> None:
    """Print a result, and exit with 1 where it is not `good`; `how` is for the text alone."""
    from bnfold.reports import terminal
    from bnfold.reports.formats import json

    if format_ == "json":
        click.echo(json.report(result))
    else:
        module, function = _TEXT[type(result).__name__]
        text = getattr(import_module(f"bnfold.reports.text.{module}"), function)
        terminal.console().print(text(result, **how))
    if not good:
        click.get_current_context().exit(1)
