"""Text from files as it is shown, with nothing in it that a terminal or a log would obey."""

import re

# What a CI runner obeys when it stands in a log: `::error::` and its kind at the start of a line
# on GitHub, `##[command]`, `##vso[task...]` or `##teamcity[...]` anywhere on others.
_COMMAND = re.compile(
    r":(?=:(?:add-|debug|echo|end|error|group|notice|remove-|save-|set-|stop-|warning)[^:]*::)"
    r"|#(?=#\w*\[)",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """Text from a file with what a terminal or a CI log would obey made visible.

    That is control characters (terminal escapes, newlines) and the commands of CI runners.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if "::" in text or "##" in text:
        text = _COMMAND.sub(lambda mark: f"\\x{ord(mark[0]):x}", text)
    return text


def shortened(text: str, limit: int = 200) -> str:
    """`printable` text for a message, cut where it is long."""
    return printable(text if len(text) <= limit else f"{text[: limit - 3]}...")
