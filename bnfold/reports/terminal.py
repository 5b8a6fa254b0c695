"""What the reports in the terminal share.

Everything that comes from a file is put into `rich.text.Text` with its control characters shown,
never into markup: a layer's name must not be able to paint the terminal.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from bnfold.audit import Severity
from bnfold.fleet.results import how_many_read
from bnfold.folding.plan import Blocked, Plan
from bnfold.model.container.printing import printable
from bnfold.model.graph import show
from bnfold.reports.parts import RULE, Group, Indented, Part, Text, lines_of, width_of
from bnfold.reports.sparkline import BLOCKS, Sparkline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")

_SHOWN_LAYERS = 4
_BETWEEN_COLUMNS = 3
PIPE_WIDTH = 400


def console() -> Console:
    """Standard output; wide where it is no terminal, so that a pipe gets whole lines."""
    from rich.console import Console  # noqa: PLC0415 - see `bnfold.reports.parts`

    found = Console(highlight=False, force_jupyter=False)
    if found.is_terminal:
        return found
    return Console(highlight=False, force_jupyter=False, width=PIPE_WIDTH)


def printed(report: Callable[[int], Part | RenderableType]) -> None:
    """Print what is made for a width; where nobody sees it in a terminal, as `plain` does."""
    if _is_surely_plain():
        sys.stdout.write(plain(report))
        return
    output = console()
    if output.is_terminal:
        output.print(report(output.width))
        return
    with output.capture() as captured:
        output.print(report(PIPE_WIDTH))
    output.file.write(without_blanks_at_ends(captured.get()))


def _is_surely_plain() -> bool:
    """Whether standard output gets no colours and all characters; else rich says what it gets."""
    asked = {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys()
    output = sys.stdout
    if asked or not isinstance(output, io.TextIOWrapper) or output.closed or output.isatty():
        return False
    return output.encoding.lower().startswith("utf")


def plain(report: Callable[[int], Part | RenderableType]) -> str:
    """What is made for a width as the text for a file: whole lines and no colours."""
    found = report(PIPE_WIDTH)
    lines = lines_of(found, PIPE_WIDTH)
    if lines is not None:
        return without_blanks_at_ends("\n".join([*lines, ""]))
    text = io.StringIO()
    drawn_into(text, PIPE_WIDTH, color_system=None).print(found)
    return without_blanks_at_ends(text.getvalue())


def drawn_into(text: io.StringIO, width: int, **how: Any) -> Console:
    """A console that writes into a text, also in a notebook, where rich would show it."""
    from rich.console import Console  # noqa: PLC0415 - see `bnfold.reports.parts`

    return Console(file=text, width=width, highlight=False, force_jupyter=False, **how)


def without_blanks_at_ends(text: str) -> str:
    """A text without what tables add to make all their lines equally wide."""
    return "\n".join(line.rstrip(" ") for line in text.split("\n"))


def indented(sentence: str, style: str, by: int = 2) -> Indented:
    """A sentence under another one, all its lines in from the left."""
    return Indented(Text(sentence, style), by)


class Columns(Part):
    """A table under a line of headings, without the columns for which a terminal is too narrow.

    Columns of texts may wrap, and count as no wider than `wraps` where it is to be decided whether
    all fit. If they do not, columns that are `optional` are left out, the first of these first, and
    a line below says which, after `left_out`. Columns of `numbers` wrap only if that is not enough,
    as a text beside them would vanish.
    """

    def __init__(
        self,
        headings: Sequence[str],
        *,
        numbers: Collection[str] = (),
        optional: Sequence[str] = (),
        wraps: int = 24,
        left_out: Sequence[str] = (),
    ) -> None:
        self.headings, self.numbers, self.optional = headings, numbers, optional
        self.left_out = left_out
        self._wraps = wraps
        self._rows: list[Sequence[str | Text | Sparkline]] = []
        self._notes: set[int] = set()

    def add_row(self, *cells: str | Text | Sparkline) -> None:
        """Add a row, of a cell for each column, or for the first few."""
        self._rows.append((*cells, *[""] * (len(self.headings) - len(cells))))

    def add_note(self, note: Text) -> None:
        """Add a row with what belongs to the row above, and wraps where that is narrower."""
        self._notes.add(len(self._rows))
        self.add_row(note)

    def shown(self, width: int) -> list[str]:
        """The headings of the columns that fit into this width."""
        found = list(self.headings)
        for heading in (one for one in self.optional if one in found):
            if self._needed(found) > width:
                found.remove(heading)
        return found

    def _needed(self, headings: Iterable[str]) -> int:
        """How wide a table of these columns is."""
        return sum(self._width(one) + _BETWEEN_COLUMNS for one in headings)

    def _width(self, heading: str) -> int:
        place = self.headings.index(heading)
        cells = (row[place] for n, row in enumerate(self._rows) if n not in self._notes)
        widths = (Text(one).cell_len if isinstance(one, str) else one.cell_len for one in cells)
        widest = max(widths, default=0)
        return max(len(heading), widest if heading in self.numbers else min(widest, self._wraps))

    def lines(self, width: int) -> list[str] | None:
        """The table, and the line below, if no row needs several lines."""
        shown = self.shown(width)
        drawn, below = self._lines(shown, width), self._below(shown).lines(width)
        return None if drawn is None or below is None else [*drawn, *below]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment  # noqa: PLC0415 - see `bnfold.reports.parts`

        shown = self.shown(options.max_width)
        is_plain = console.color_system is None and not options.ascii_only
        lines = self._lines(shown, options.max_width) if is_plain else None
        yield (
            self._table(shown, options.max_width)
            if lines is None
            else Segment("\n".join([*lines, ""]))
        )
        yield self._below(shown)

    def _below(self, shown: Sequence[str]) -> Group:
        """Which columns are left out, if any are."""
        hidden = [one for one in self.headings if one not in shown]
        if not hidden and not self.left_out:
            return Group()
        said = ", ".join((*self.left_out, *hidden))
        return Group(Text(f"not shown in a terminal this narrow: {said}", style="dim"))

    def _cells(self, shown: Sequence[str]) -> list[list[str | Text | Sparkline]]:
        places = [self.headings.index(heading) for heading in shown]
        return [[row[place] for place in places] for row in self._rows]

    def _table(self, shown: Sequence[str], width: int) -> Table:
        from rich import box  # noqa: PLC0415 - see `bnfold.reports.parts`
        from rich.table import Table  # noqa: PLC0415

        is_whole = self._needed(shown) <= width
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in shown:
            if heading in self.numbers:
                table.add_column(heading, justify="right", no_wrap=is_whole, overflow="fold")
            else:
                table.add_column(heading, overflow="fold")
        for cells in self._cells(shown):
            table.add_row(*cells)
        return table

    def _lines(self, shown: Sequence[str], most: int) -> list[str] | None:
        """The table as rich draws it without colours; None where a row needs several lines.

        Rich draws each cell like a page of its own, which takes longer than to judge a layer.
        """
        rows = [[_on_a_line(cell) for cell in row] for row in [shown, *self._cells(shown)]]
        if len(rows) == 1 or any(cell is None for row in rows for cell in row):
            return None
        columns = [
            _aligned([cell or "" for cell in cells], right=heading in self.numbers)
            for heading, cells in zip(shown, zip(*rows, strict=True), strict=True)
        ]
        head, *body = (f" {'   '.join(cells)} " for cells in zip(*columns, strict=True))
        width = width_of(head)
        if width > most:
            return None
        blank = " " * width
        return [blank, head, f" {RULE * (width - 2)} ", *body, blank]


def _on_a_line(cell: str | Text | Sparkline) -> str | None:
    """A cell as text; None where rich may make something else of it."""
    if isinstance(cell, Sparkline):
        return cell.drawn(BLOCKS)
    text = cell if isinstance(cell, str) else cell.plain
    is_markup = isinstance(cell, str) and not {"[", ":"}.isdisjoint(cell)
    return text if text.isprintable() and not is_markup else None


def _aligned(cells: Sequence[str], *, right: bool) -> list[str]:
    """Cells in a column that is as wide as the widest, with the blanks at its end."""
    width = max(1, *map(width_of, cells))
    cells = [cell.rstrip() for cell in cells] if right else cells
    blanks = [" " * (width - width_of(cell)) for cell in cells]
    pairs = zip(blanks, cells, strict=True) if right else zip(cells, blanks, strict=True)
    return [f"{one}{other}" for one, other in pairs]


def grouped(values: Iterable[_Value], key: Callable[[_Value], _Key]) -> dict[_Key, list[_Value]]:
    """The values by key, both in the order of their first appearance."""
    found: dict[_Key, list[_Value]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return found


def plural(noun: str, count: int) -> str:
    """A noun in the number that goes with `count`."""
    return noun if count == 1 else f"{noun}s"


def decibels(value: float, digits: int = 0) -> str:
    """A number of decibels, without the minus of one that is rounded to zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def size(count: int) -> str:
    """So many bytes, in the largest unit that leaves a whole number before the point."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} {plural('byte', count)}"


def share(number: float) -> str:
    """A share in percent; what would be rounded to nothing is `under 1%`."""
    return "under 1%" if 0 < number < 0.005 else f"{number:.0%}"


def foldable(folds: int, total: int) -> str:
    """How many layers a model has, and how many of them fold."""
    if not total:
        return "no BatchNormalization layers"
    layers = f"{total} BatchNormalization {plural('layer', total)}"
    return f"{layers}: {folds} can be folded, {total - folds} cannot"


def totals(report: Mapping[str, Any]) -> str:
    """How many findings there are in how many models: `2 errors, 1 warning in 3 models`.

    Also how many of those that were found could be read, unless it is the only one.
    """
    severities: list[str] = []
    by: list[str] = []
    for model in report["models"]:  # once: each may have to be unpacked
        severities += (finding["severity"] for finding in model["findings"])
        by += (one["by"] for one in model["suppressed"])
    found = [f"{count} {plural(str(severity), count)}" for severity, count in counts(severities)]
    read = report["summary"]["read"]
    said = f"{', '.join(found) or 'no findings'} in {read} {plural('model', read)}"
    aside = set_aside(by)
    shares = [how_many_read(report["summary"])] if report["summary"]["found"] > 1 else []
    return "; ".join([said, *([aside] if aside else []), *shares])


def counts(severities: Iterable[str]) -> list[tuple[Severity, int]]:
    """How many findings there are of each severity that there is, the worst first."""
    found = Counter(severities)
    return [(severity, found[severity]) for severity in Severity if found[severity]]


def set_aside(by: Iterable[str]) -> str:
    """How many findings are ignored, and by what, of which there is one for each; empty if none."""
    found = Counter(by)
    said = []
    if found["suppression"]:
        said.append(f"{found['suppression']} suppressed")
    if found["baseline"]:
        said.append(f"{found['baseline']} known from the baseline")
    return ", ".join(said)


def pattern(blocked: Blocked) -> str:
    """A reason without names of layers and counts, so that equal ones can share a line."""
    reason = re.sub(_COUNT, "some channels", blocked.reason)
    reason = re.sub(_GOES_TO, "is also read elsewhere", reason)
    return _without_names(reason, blocked)


def _without_names(sentence: str, blocked: Blocked) -> str:
    for path in blocked.named or (() if blocked.at is None else (blocked.at,)):
        sentence = sentence.replace(f" {show(path)!r}", "")
    return sentence


def reasons(plan: Plan) -> list[tuple[str, str]]:
    """Why layers stay: each reason with its layers, and the remedy.

    A reason that several layers share has no names and counts.
    """
    found = []
    for blocked in by_reason(plan).values():
        reason, remedy = reason_and_remedy(blocked)
        found.append((f"{layers(blocked)}: {printable(reason)}", printable(remedy)))
    return found


def reason_and_remedy(alike: Sequence[Blocked]) -> tuple[str, str]:
    """The reason and the remedy of layers that stay alike, without names if they are several."""
    first = alike[0]
    if len(alike) == 1:
        return first.reason, "; or ".join(first.remedies)
    return pattern(first), "; or ".join(_without_names(r, first) for r in first.remedies)


_COUNT = r"\b\d+ of \d+ channels"
_GOES_TO = r"is also read by '[^']*'"


def by_reason(plan: Plan) -> dict[str, list[Blocked]]:
    """The blocked layers, grouped by reasons that differ only in names of layers and in counts."""
    return grouped(plan.blocked, pattern)


def layers(blocked: Sequence[Blocked]) -> str:
    """The names of the layers of some decisions, the first few of them."""
    return names([show(one.batchnorm.path) for one in blocked])


def names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:_SHOWN_LAYERS])
    more = len(names) - _SHOWN_LAYERS
    return f"{shown} and {more} more" if more > 0 else shown
