"""What is told of one model among many: a verdict, counts, and how many of its layers fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.audit.finding import Severity
from bnfold.fleet.row import Row
from bnfold.verification.result import Verdict

_VERDICTS = (Verdict.DIFFERENT, Verdict.UNDECIDED, Verdict.APPROXIMATE, Verdict.EQUIVALENT)
"""The worst first."""


@dataclass(frozen=True)
class Summary:
    """One line about a model.

    Attributes:
        row: what came of it.
        verdict: the answer of the command in a few words.
        counts: how many findings there are, by severity.
        folds: how many of its layers can be folded, or were; None where the command does not say.
        layers: how many BatchNormalization layers it has; None likewise.
        note: what of the model `inspect` did not look at, and why; None where there is nothing.
    """

    row: Row
    verdict: str
    counts: Mapping[str, int] = field(default_factory=Counter)
    folds: int | None = None
    layers: int | None = None
    note: str | None = None

    @property
    def badness(self) -> tuple[int, ...]:
        """By which models are sorted, the worst first."""
        return -self.row.exit_code, *(-self.counts[severity] for severity in Severity)


def summary(row: Row) -> Summary:
    """The line about a model, from the JSON report of whichever command was run."""
    report = row.report
    if report is None:
        return Summary(row, "failed")
    findings = report.get("findings", ())
    counts = Counter(finding["severity"] for finding in findings)
    if "batchnorms" in report:
        kinds = [one["fold"]["status"] for one in report["batchnorms"]]
        worst = next((str(severity) for severity in Severity if counts[severity]), "no findings")
        foldable = kinds.count("foldable")
        return Summary(row, worst, counts, foldable, len(kinds), report["note"])
    folded, kept = report.get("folded"), report.get("kept")
    if isinstance(folded, Mapping):  # of `prepare`
        folds, layers = folded["layers"], folded["of"]
    elif folded is not None and kept is not None:
        folds, layers = len(folded), len(folded) + len(kept)
    else:
        folds = layers = None
    return Summary(row, _verdict(report), counts, folds, layers)


def _verdict(report: Mapping[str, Any]) -> str:
    """The worst verdict of all verifications in a report, and whether anything was written."""
    found = {one["verdict"] for one in _verifications(report)}
    said = next((str(one) for one in _VERDICTS if one in found), "not verified")
    is_written = report.get("written")
    return said if is_written is not False else f"not written ({said})"


def _verifications(report: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if "verdict" in report:
        yield report
    targets = report.get("targets") or report.get("exports") or ()
    found = [report.get("verification"), *(one.get("check") for one in targets)]
    yield from (one for one in found if one)
