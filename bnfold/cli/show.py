"""Showing what a command found out, as text, JSON or a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.output import print_text, put
from bnfold.cli.recorder import current, drawn
from bnfold.serialize import SCHEMA_VERSION

if TYPE_CHECKING:
    from bnfold.model.container.remote import Where
    from bnfold.reports.parts import Part


def show(
    result: Any,
    format_: str,
    *,
    good: bool = True,
    output: Path | None = None,
    files: "Sequence[Where]" = (),
    **how: Any,
) -> None:
    """Print a result, or write it to a file, and exit with 1 where it is not `good`.

    A page names the `files` that the result is about; `how` is for people's eyes, not for JSON.
    """
    if (recorder := current()) is not None:
        recorder.report = {"schema_version": SCHEMA_VERSION, **result.to_dict()}
        if wanted := recorder.wanted.get("text"):
            recorder.views["text"] = drawn(_text(result, wanted["width"], how), wanted)
        if "html" in recorder.wanted:
            recorder.views["html"] = _page(result, files, how)
    elif format_ == "json":
        from bnfold.reports.formats import json

        put(json.report(result), output)
    elif format_ == "html":
        put(_page(result, files, how), output)
    else:
        print_text(lambda width: _text(result, width, how), output)
    if not good:
        click.get_current_context().exit(1)


def _text(result: Any, width: int, how: dict[str, Any]) -> "Part":
    from bnfold.reports import notebook

    return notebook.drawn(result, width, **how)


def _page(result: Any, files: "Sequence[Where]", how: dict[str, Any]) -> str:
    from bnfold.reports import html

    return html.verification(result, *files, **how)
