"""A rule's page of documentation as Markdown, from the docstring of its function.

The docstring is a summary of one line and then a text under each of the fixed headings, indented
below a line `Heading:`. The text is Markdown.
"""

from collections.abc import Mapping

from bnfold.audit import Rule

HEADINGS = (
    "What it finds",
    "Why it matters",
    "Formula",
    "Example",
    "What to do",
    "References",
)


def sections(rule: Rule) -> Mapping[str, str]:
    """The text under each heading, in the order in which they stand."""
    found: dict[str, list[str]] = {}
    for line in rule.documentation.splitlines()[1:]:
        if line.endswith(":") and line[:-1] in HEADINGS:
            found[line[:-1]] = []
        elif found:
            list(found.values())[-1].append(line)
    return {heading: _text(lines) for heading, lines in found.items()}


def _text(lines: list[str]) -> str:
    return "\n".join(line.removeprefix("    ") for line in lines).strip("\n")


def markdown(rule: Rule) -> str:
    """The whole page."""
    levels = " or ".join(severity.value for severity in rule.severities)
    parts = [f"# {rule.code} {rule.name}", rule.summary, f"*Level: {levels}.*"]
    for heading, text in sections(rule).items():
        parts += [f"## {heading}", text]
    return "\n\n".join(parts) + "\n"
