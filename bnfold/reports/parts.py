"""What a report in the terminal is made of, and its lines where nobody sees colours.

Rich draws what has colours, and what does not fit on a line. Its import, and drawing each text like
a page of its own, takes as long as reading a small model. So every part knows its own lines as far
as they need nothing of that, and `bnfold.reports.terminal` asks rich only for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.reports.sparkline import BLOCKS

if TYPE_CHECKING:
    from rich import text as rich_text
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

RULE = "─"
_NARROW = frozenset((*map(chr, range(ord(" "), ord("~") + 1)), *BLOCKS, RULE))
"""Characters of which it is known that each takes one column of a terminal."""


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if _NARROW.issuperset(text):
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415 - see above

    return cell_len(text)


class Part:
    """Something that stands in a report, for rich too."""

    def lines(self, width: int) -> list[str] | None:
        """Its lines without colours, at most so wide; None where rich has to draw them.

        There may be blanks at their ends.
        """
        raise NotImplementedError


def lines_of(part: Part | RenderableType, width: int) -> list[str] | None:
    """The lines of a part as it knows them; None for what only rich can draw."""
    return part.lines(width) if isinstance(part, Part) else None


class Text(Part):
    """A text in pieces, each of a style of rich's over that of the first one."""

    def __init__(self, text: str = "", style: str = "") -> None:
        self._pieces = [(text, style)]

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.plain)

    def append(self, text: str, style: str = "") -> Text:
        """Add a piece; the text itself is returned."""
        self._pieces.append((text, style))
        return self

    @property
    def plain(self) -> str:
        """All of it, without styles."""
        return "".join(text for text, _ in self._pieces)

    @property
    def cell_len(self) -> int:
        """How many columns of a terminal it takes on one line."""
        plain = self.plain
        return len(plain) if _NARROW.issuperset(plain) else self.__rich__().cell_len

    def lines(self, width: int) -> list[str] | None:
        """Its lines, if none of them wraps."""
        found = self.plain.split("\n")
        is_odd = len(found) > 1 and not found[-1]
        if is_odd or not all(one.isprintable() and width_of(one) <= width for one in found):
            return None
        return found

    def __rich__(self) -> rich_text.Text:
        from rich.text import Text as RichText  # noqa: PLC0415 - see above

        (text, style), *others = self._pieces
        found = RichText(text, style)
        for text, style in others:
            found.append(text, style)
        return found


class Group(Part):
    """Parts one below the other."""

    def __init__(self, *parts: Part | RenderableType) -> None:
        self._parts = parts

    def lines(self, width: int) -> list[str] | None:
        """Those of all parts, if each knows its own."""
        found: list[str] = []
        for part in self._parts:
            lines = lines_of(part, width)
            if lines is None:
                return None
            found += lines
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts  # type: ignore[misc]


class Indented(Part):
    """A text all of whose lines are in from the left."""

    def __init__(self, text: Text, by: int) -> None:
        self._text, self._by = text, by

    def lines(self, width: int) -> list[str] | None:
        """Those of the text."""
        found = self._text.lines(width - self._by)  # none where that is negative
        return found and [f"{' ' * self._by}{line}" for line in found]

    def __rich__(self) -> RenderableType:
        from rich.padding import Padding  # noqa: PLC0415 - see above

        return Padding(self._text, (0, 0, 0, self._by), expand=False)


class Hanging(Part):
    """A text whose lines but the first are in from the left."""

    def __init__(self, text: Text, by: int = 2) -> None:
        self._text, self._by = text, by

    def lines(self, width: int) -> list[str] | None:
        """Those of the text."""
        found = self._text.lines(max(1, width - self._by))
        return found and [found[0], *(f"{' ' * self._by}{line}" for line in found[1:])]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding  # noqa: PLC0415 - see above

        first, *others = self._text.__rich__().wrap(console, max(1, options.max_width - self._by))
        yield first
        for line in others:
            yield Padding(line, (0, 0, 0, self._by), expand=False)
