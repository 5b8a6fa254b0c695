"""The pages of a report on many models: each is written when it is there, all appear together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.output import put
from bnfold.fleet.row import Row

if TYPE_CHECKING:
    from bnfold.jobs.staging import Staging

MOST_TOGETHER = 25
"""Models in one HTML file; more get a file each, and an index."""


@dataclass
class Pages:
    """Where the pages go: to a folder beside their index, which is the file of --output."""

    output: Path
    staging: Staging
    count: int = 0

    @property
    def folder(self) -> str:
        """The name of the folder."""
        return self.staging.path.name

    def add(self, row: Row) -> Row:
        """Write the page of the next model, if it has one; the row without it."""
        self.count += 1
        if row.is_done:
            from bnfold.reports import html

            path = self.staging.path / html.file_name(self.count)
            path.write_text(row.views["html"], encoding="utf-8", newline="")
        return row.without_views()

    def publish(self, index: str) -> None:
        """Let the pages and the index take their places."""
        from bnfold.jobs.staging import Staging, is_stream, publish_all

        if is_stream(self.output):
            self.staging.publish()
            put(index, self.output)
            return
        with Staging(self.output, "text", force=True) as staging:
            staging.path.write_text(f"{index}\n", encoding="utf-8", newline="")
            publish_all([self.staging, staging])


@contextlib.contextmanager
def place_for_pages(output: Path | None) -> Iterator[Pages]:
    """A place for pages, of which nothing is left that was not published; `output` is their index.

    Raises:
        click.UsageError: the index would go to standard output.
        OutputError: something else has the place of the folder.
    """
    from bnfold.jobs.staging import Staging

    if output is None:
        raise click.UsageError("pages of many models need --output FILE")
    with Staging(output.with_name(f"{output.stem}_pages"), "pages", force=True) as staging:
        staging.path.mkdir()
        yield Pages(output, staging)
