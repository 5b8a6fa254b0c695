"""A rule's page of documentation: its head, and the text of its Markdown file below."""

import re
from collections.abc import Mapping
from textwrap import indent

from bnfold.audit import Rule


def markdown(rule: Rule) -> str:
    """The whole page."""
    levels = " or ".join(severity.value for severity in rule.severities)
    return f"# {rule.code} {rule.name}\n\n{rule.summary}\n\n*Level: {levels}.*\n\n{rule.page}"


def sections(rule: Rule) -> Mapping[str, str]:
    """The text under each heading, in the order in which they stand."""
    _, *parts = re.split(r"^## (.*)$", rule.page, flags=re.MULTILINE)
    texts = (text.strip("\n") for text in parts[1::2])
    return dict(zip(parts[::2], texts, strict=True))


def plain(rule: Rule) -> str:
    """The page for readers of plain text, without the code and the levels."""
    texts = (f"{name}:\n{indent(text, '    ')}" for name, text in sections(rule).items())
    return "\n\n".join((rule.summary, *texts))
