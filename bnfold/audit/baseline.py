"""The baseline: findings that were there when the gate was introduced, and are ignored.

A finding is identified by its rule, its layer and its model, not by its figures: a changed number
is not a new finding.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from bnfold.audit import selection
from bnfold.audit.finding import Finding
from bnfold.audit.selection import Suppressed
from bnfold.errors import SettingsError
from bnfold.model.container.guard import parse_json
from bnfold.model.graph import show

VERSION = 1


class Entry(NamedTuple):
    """One known finding; `model` is the path of its file from the baseline's folder."""

    model: str
    layer: str
    rule: str

    @classmethod
    def of(cls, finding: Finding, model: str) -> "Entry":
        """What a finding on a model is known by."""
        return cls(model, show(finding.layer), finding.code)


def parse(text: bytes) -> frozenset[Entry]:
    """The entries of a baseline file.

    Raises:
        SettingsError: it is not a baseline.
        UnreadableModelError, UnsafeModelError: it is not JSON, or JSON of an unsafe size or depth.
    """
    content = parse_json(text, "the baseline")
    if not isinstance(content, dict) or set(content) != {"version", "findings"}:
        raise SettingsError("not a baseline that --write-baseline wrote")
    if content["version"] != VERSION:
        raise SettingsError("a baseline of another version; write it again with --write-baseline")
    if not isinstance(content["findings"], list):
        raise SettingsError("findings must be a list")
    return frozenset(_entry(number, value) for number, value in enumerate(content["findings"], 1))


def _entry(number: int, value: Any) -> Entry:
    keys = Entry._fields
    if not isinstance(value, dict) or set(value) != set(keys):
        raise SettingsError(f"finding {number} must have {', '.join(keys)} and nothing else")
    if not all(isinstance(text, str) for text in value.values()):
        raise SettingsError(f"finding {number}: {', '.join(keys)} must be strings")
    return Entry(**value)


def dump(entries: Iterable[Entry]) -> str:
    """A baseline file: sorted, one line a finding, so that a diff shows what changed."""
    lines = ",".join(f"\n    {json.dumps(entry._asdict())}" for entry in sorted(entries))
    end = "\n  " if lines else ""
    return f'{{\n  "version": {VERSION},\n  "findings": [{lines}{end}]\n}}\n'


def set_aside(
    findings: Iterable[Finding], model: str, known: Collection[Entry]
) -> tuple[tuple[Finding, ...], tuple[Suppressed, ...]]:
    """The findings on a model that the baseline does not know, and those that it knows."""

    def reason(finding: Finding) -> str | None:
        return "it is in the baseline" if Entry.of(finding, model) in known else None

    return selection.set_aside(findings, "baseline", reason)
