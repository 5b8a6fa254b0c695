"""The folder that `bnfold prepare` makes: the models, and beside them the reports.

A run with the same inputs gives the same reports: they hold no time and no path but the source's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfold.jobs import gate
from bnfold.jobs.inspect import Inspection
from bnfold.jobs.prepare import PrepareReport, Wanted, prepare_model
from bnfold.jobs.settings import Settings
from bnfold.model.container.remote import Where
from bnfold.reports import html
from bnfold.reports.formats import json, sarif


def prepare_folder(
    source: str | Where,
    directory: str | Path,
    *,
    wanted: Wanted,
    settings: Settings,
    force: bool = False,
    name: str | None = None,
    progress: Any = None,
    sha256: Sequence[str] = (),
) -> PrepareReport:
    """`prepare_model`, with the reports in the folder. Raises what that raises."""
    return prepare_model(
        source,
        directory,
        write_reports,
        wanted=wanted,
        settings=settings,
        force=force,
        name=name,
        progress=progress,
        sha256=sha256,
    )


def write_reports(report: PrepareReport, inspection: Inspection, folder: Path) -> None:
    """Put report.json, report.html and report.sarif into a folder."""
    texts = {
        "report.json": json.dump(report.to_dict()),
        "report.html": html.prepared(report, inspection),
        "report.sarif": "".join(sarif.inspections(gate.report([inspection.to_dict()], []))),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
