"""How far many models are, on standard error: a bar in a terminal, elsewhere a line at times."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

import click

from bnfold.fleet.row import Row
from bnfold.model.container.printing import printable

_EVERY = 10.0  # seconds between two lines
_NAME = 40  # characters of a name in the bar


class Progress:
    """Counts models; nothing is shown if there is one alone, or with `is_quiet`.

    A bar is drawn over itself: not with `is_live` false, where results go to the same terminal.
    """

    def __init__(self, total: int, *, is_quiet: bool, is_live: bool) -> None:
        self._total, self._done, self._failed = total, 0, 0
        self._is_quiet = is_quiet or total < 2
        self._start = self._told = time.monotonic()
        is_bar = _is_terminal(sys.stderr) and (is_live or not _is_terminal(sys.stdout))
        self._bar: Any = None if self._is_quiet or not is_bar else self._made()

    def __enter__(self) -> Progress:
        """Begin to show it."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def add(self, row: Row) -> None:
        """One more is done."""
        self._done += 1
        self._failed += row.exit_code == 2
        if self._bar is not None:
            name = printable(row.path)[-_NAME:]
            failed = f"{self._failed} failed" if self._failed else ""
            self._bar.update(self._bar.task_ids[0], advance=1, name=name, failed=failed)
        elif not self._is_quiet and time.monotonic() - self._told >= _EVERY:
            self._told = time.monotonic()
            click.echo(f"bnfold: {self._line(row)}", err=True)

    def _line(self, row: Row) -> str:
        rate = self._done / (time.monotonic() - self._start)
        left = (self._total - self._done) / rate
        failed = f", {self._failed} failed" if self._failed else ""
        done = f"{self._done} of {self._total}{failed}, {rate:.3g} per s, {left:.0f} s left"
        return f"{done}: {printable(row.path)}"

    def _made(self) -> Any:
        from rich import progress
        from rich.console import Console

        found = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("[red]{task.fields[failed]}"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[name]}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        found.add_task("", total=self._total, name="", failed="")
        return found


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether people see what is written there; None is a stream that was closed from the start."""
    return stream is not None and stream.isatty()
