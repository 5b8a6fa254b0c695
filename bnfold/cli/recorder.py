"""What a command finds out where nobody reads its output: one of many, done by a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.reports.parts import Part


@dataclass
class Recorder:
    """Keeps what a command has to say.

    Attributes:
        wanted: the forms of its report that are wanted beside JSON, by name, each with how.
        report: the JSON report.
        views: the other forms.
        notes: what concerns the run as a whole.
        error: why there is no report.
        said: what was said beside it.
        sha256: that of the model.
        bytes: its size.
    """

    wanted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    views: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    said: list[str] = field(default_factory=list)
    sha256: str | None = None
    bytes: int | None = None


_recorders: list[Recorder] = []


def current() -> Recorder | None:
    """The recorder of what is being done; None where somebody reads the output."""
    return _recorders[-1] if _recorders else None


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Have all that a command says go to this recorder."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.pop()


def drawn(report: Part, how: Mapping[str, Any]) -> str:
    """A report as text for the console of whoever asked for it: its width, and its colours."""
    import io

    from bnfold.reports import terminal

    text = io.StringIO()
    terminal.drawn_into(
        text,
        how["width"],
        force_terminal=how["colors"] is not None,
        color_system=how["colors"],
    ).print(report)
    return terminal.without_blanks_at_ends(text.getvalue())
