"""The table of the rules, for people."""

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from bnfold.audit import Rule
from bnfold.reports.inspect_text import COLOURS


def rules(every: Iterable[Rule]) -> Table:
    """One line a rule: its code, name, severities and summary."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("code", "name", "level"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it finds", overflow="fold")
    for rule in every:
        levels = Text(", ").join(Text(s.value, style=COLOURS[s]) for s in rule.severities)
        table.add_row(rule.code, rule.name, levels, rule.summary)
    return table
