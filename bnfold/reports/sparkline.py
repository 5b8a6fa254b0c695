"""A histogram on one line of a terminal, drawn in ASCII where blocks cannot be encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement

BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*#@"


class Sparkline(NamedTuple):
    """One character for each count, the higher the larger it is; a blank for 0."""

    counts: Sequence[int]

    @property
    def cell_len(self) -> int:
        """How many columns it takes."""
        return len(self.counts)

    def drawn(self, levels: str) -> str:
        """The characters, of `levels` from low to high."""
        top = max(self.counts, default=0)
        return "".join(
            levels[-(-count * len(levels) // top) - 1] if count else " " for count in self.counts
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment  # noqa: PLC0415 - see `bnfold.reports.parts`

        # Text would lose the blanks at its end.
        yield Segment(self.drawn(_ASCII if options.ascii_only else BLOCKS))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement  # noqa: PLC0415 - see `bnfold.reports.parts`

        return Measurement(self.cell_len, self.cell_len)
