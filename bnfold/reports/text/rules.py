"""The table of the rules, for people."""

from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bnfold.audit import Rule
from bnfold.reports import terminal
from bnfold.reports.text.inspect import COLOURS

_ROOM_FOR_A_TABLE = 120


def rules(every: Iterable[Rule], width: int) -> RenderableType:
    """One line a rule: its code, name, severities and summary; in a narrow terminal several."""
    if width < _ROOM_FOR_A_TABLE:
        return Group(*(part for rule in every for part in _lines(rule)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("code", "name", "level"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it finds", overflow="fold")
    for rule in every:
        table.add_row(rule.code, rule.name, _levels(rule), rule.summary)
    return table


def _lines(rule: Rule) -> tuple[RenderableType, ...]:
    head = Text.assemble((rule.code, "bold"), f" {rule.name}  ", _levels(rule))
    return head, terminal.indented(rule.summary, "", by=6)


def _levels(rule: Rule) -> Text:
    return Text(", ").join(Text(s.value, style=COLOURS[s]) for s in rule.severities)
