"""Which rules are applied, and which findings are ignored with a reason."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

from bnfold.audit.finding import Finding
from bnfold.audit.registry import RULES, Rule, named
from bnfold.errors import SettingsError
from bnfold.model.graph import show

ALL = ("BN",)
"""The prefix of every code."""


def codes(words: Sequence[str]) -> tuple[str, ...]:
    """The codes, or prefixes of codes, that words stand for: `BN103`, `bn1`, `non-finite`.

    Raises:
        SettingsError: no rule's code begins so, and none has that name.
    """
    found = tuple(_code(word) for word in words)
    for word, code in zip(words, found, strict=True):
        if not code.startswith(ALL) or not any(rule.code.startswith(code) for rule in RULES):
            raise SettingsError(
                f"no rule has the code or the name {word!r}, nor a code that begins with it; "
                "'bnfold rules' lists them"
            )
    return found


def _code(word: str) -> str:
    rule = named(word)
    return word.upper() if rule is None else rule.code


def chosen(select: tuple[str, ...] = ALL, ignore: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """The rules that `select` names and `ignore` does not, each by codes or prefixes of codes.

    Where both name a rule, the longer one counts: BN1 without BN107, or BN107 without BN1.
    """
    return _chosen(tuple(RULES), select, ignore)


@lru_cache(maxsize=16)
def _chosen(
    rules: tuple[Rule, ...], select: tuple[str, ...], ignore: tuple[str, ...]
) -> tuple[Rule, ...]:
    return tuple(
        rule for rule in rules if _longest(rule.code, select) > _longest(rule.code, ignore)
    )


def _longest(code: str, prefixes: Sequence[str]) -> int:
    return max((len(prefix) for prefix in prefixes if code.startswith(prefix)), default=0)


@dataclass(frozen=True)
class Suppression:
    """Findings that somebody decided to live with.

    Attributes:
        layer: a shell pattern of names or nested paths of layers.
        rules: codes or prefixes of codes.
        reason: why, in the words of whoever decided.
        model: a shell pattern of names of model files, or of their paths from the settings' folder.
    """

    layer: str
    rules: tuple[str, ...]
    reason: str
    model: str = "*"

    def concerns(self, model: str) -> bool:
        """Whether it is about this model, by its path from the settings' folder, or its URL."""
        return any(fnmatchcase(name, self.model) for name in (model.rpartition("/")[2], model))

    def covers(self, finding: Finding) -> bool:
        """Whether it is about this finding, on a model that it concerns."""
        names = (show(finding.layer), *finding.layer[-1:])
        return finding.code.startswith(self.rules) and any(
            fnmatchcase(name, self.layer) for name in names
        )


@dataclass(frozen=True)
class Suppressed:
    """A finding that is ignored, by a suppression or because the baseline has it."""

    finding: Finding = field(repr=False)
    by: Literal["suppression", "baseline"]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The finding for JSON, with what suppressed it and why."""
        return {**self.finding.to_dict(), "by": self.by, "reason": self.reason}


def suppress(
    findings: Iterable[Finding], suppressions: Sequence[Suppression]
) -> tuple[tuple[Finding, ...], tuple[Suppressed, ...]]:
    """The findings that none of the suppressions covers, and the others with the reason."""

    def reason(finding: Finding) -> str | None:
        return next((one.reason for one in suppressions if one.covers(finding)), None)

    return set_aside(findings, "suppression", reason)


def set_aside(
    findings: Iterable[Finding],
    by: Literal["suppression", "baseline"],
    reason: Callable[[Finding], str | None],
) -> tuple[tuple[Finding, ...], tuple[Suppressed, ...]]:
    """The findings without a reason to ignore them, and the others with it."""
    known = [(finding, reason(finding)) for finding in findings]
    return (
        tuple(finding for finding, why in known if why is None),
        tuple(Suppressed(finding, by, why) for finding, why in known if why is not None),
    )
