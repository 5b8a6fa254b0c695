"""From the evidence to the verdict: which values are right, which sites are wrong, what to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.running.arrays import Array
from bnfold.verification import blame, exercise, pairing
from bnfold.verification.case import Compared
from bnfold.verification.result import (
    Accuracy,
    Basis,
    Comparison,
    Site,
    SiteStatus,
    Verdict,
    Verification,
)
from bnfold.verification.runs import Evidence, Run
from bnfold.verification.tolerance import (
    ByAxis,
    Errors,
    Outcome,
    Rule,
    Truth,
    compare,
    exercised_by_any,
    failed,
    keys,
    pooled,
)
from bnfold.verification.values import Value

_BASES = {
    frozenset({"keras", "onnxruntime"}): Basis.BOTH,
    frozenset({"keras"}): Basis.KERAS,
    frozenset({"onnxruntime"}): Basis.ONNXRUNTIME,
    frozenset({"keras", "litert"}): Basis.LITERT,
    frozenset({"keras", "tensorflow"}): Basis.TENSORFLOW,
    frozenset(): Basis.INTERFACE,
}


@dataclass(frozen=True)
class _Judged:
    """One value in one arithmetic: its worst kind of samples, and which channels varied."""

    comparison: Comparison
    exercised: Array
    problem: str | None
    is_finite: bool
    is_discrete: bool
    is_dominated: bool


_Rows = dict[Value, _Judged]


def conclude(
    case: Compared, rule: Rule, evidence: Evidence
) -> tuple[Verification, list[exercise.Gap]]:
    """The verdict over everything that was found, and what the samples did not exercise."""
    conclusion = _Conclusion(case, rule, evidence)
    return conclusion.verification(), conclusion.gaps


class _Conclusion:
    """What comes of the evidence on a case, found step by step.

    `judged` are the values by arithmetic, the sharpest first; `told` is what each arithmetic says
    of the sites. One that says nothing is in neither, but in `dominated`, with a sentence on it.
    """

    def __init__(self, case: Compared, rule: Rule, evidence: Evidence) -> None:
        self.case, self.rule, self.evidence = case, rule, evidence
        self.judged = {run.name: self._judge(run) for run in evidence.runs}
        self.told = {name: self._findings(rows) for name, rows in self.judged.items()}
        self.dominated = self._dominated()
        for name in self.dominated:
            del self.judged[name], self.told[name]
        self.exercised = self._exercised_anywhere()
        self.culprits = self._culprits()
        self.used = {name: self._used(told) for name, told in self.told.items()}
        self.differences = [
            *evidence.differences,
            *map(_lost, evidence.lost),
            *self._sentences(),
        ]
        self.gaps = [] if self.differences else exercise.gaps(case, self._crossed())

    def verification(self) -> Verification:
        """The whole verdict."""
        case, evidence, differences = self.case, self.evidence, self.differences
        doubts = [
            *evidence.doubts,
            *([] if differences else self._not_exercised()),
            *(gap.text for gap in self.gaps),
            *self.dominated.values(),
        ]
        verdict = Verdict.UNDECIDED if doubts else Verdict.EQUIVALENT
        warnings = [*evidence.warnings, *self._overflows(), *doubts]
        return Verification(
            verdict=Verdict.DIFFERENT if differences else verdict,
            basis=_BASES[frozenset(evidence.runtimes)],
            differences=tuple(differences),
            warnings=tuple(dict.fromkeys(warnings)),
            seed=case.seed,
            library=case.original.library,
            rule=self.rule.text(),
            comparisons=tuple(
                row.comparison
                for name, value, row in self._rows()
                if value.is_output or value in self.used[name]
            ),
            sites=tuple(self._sites()),
            culprits=tuple(dict.fromkeys([*evidence.lost, *self.culprits])),
            agreements=tuple(evidence.agreements),
            reference=evidence.reference,
            merged_by_exporter=evidence.merged,
            sample_count=sum(one.count for one in case.sets),
            sample_kinds=tuple(one.kind for one in case.sets),
            fidelity=tuple(evidence.fidelity),
        )

    def _rows(self) -> Iterator[tuple[str, Value, _Judged]]:
        """Every value in every arithmetic."""
        for name, rows in self.judged.items():
            for value, row in rows.items():
                yield name, value, row

    # --- values ----------------------------------------------------------------------------------

    def _judge(self, run: Run) -> _Rows:
        found = {}
        for value, theirs in run.folded.items():
            column = run.references[value]
            outcomes = [
                failed(run.problems[value])
                if value in run.problems
                else compare(reference, original, folded, self.rule)
                for reference, original, folded in zip(
                    column, self._own(run, value), theirs, strict=True
                )
            ]
            found[value] = self._worst(run, value, outcomes)
        return found

    def _own(self, run: Run, value: Value) -> Sequence[Errors | None]:
        """The errors of the original that count for a run: its own and those of its likes."""
        truths = [one.truth for one in run.references[value]]
        if run.original is None:
            return [None] * len(truths)
        tables = [
            one.original
            for one in self.evidence.runs
            if one.original is not None and _alike(one, run)
        ]
        return pooled(truths, [one[value] for one in tables if value in one])

    def _worst(self, run: Run, value: Value, outcomes: Sequence[Outcome]) -> _Judged:
        """Keep the worst kind of samples of one value."""
        truths = [one.truth for one in run.references[value]]
        found = run.folded[value]
        worst = max(range(len(outcomes)), key=lambda i: outcomes[i].excess)
        counts = [one.count for one in self.case.sets]
        exercised = _exercised(exercised_by_any(truths, outcomes, counts), truths, value)
        if value in run.unseen:
            exercised = np.zeros_like(exercised)
        comparison = Comparison(
            name=value.name,
            is_output=value.is_output,
            tapped_before=value.tapped,
            runtime=run.name,
            samples=self.case.sets[worst].kind,
            original=None if run.original is None else _accuracy(run.original[value], truths),
            folded=_accuracy(found, truths) or Accuracy(math.inf, math.inf, None),
            error=outcomes[worst].error,
            tolerance=outcomes[worst].tolerance,
            excess=outcomes[worst].excess,
            passed=all(outcome.passed for outcome in outcomes),
            channels=len(exercised),
            exercised=int(np.count_nonzero(exercised)),
        )
        return _Judged(
            comparison,
            exercised,
            problem=outcomes[worst].problem,
            is_finite=all(one.finite for one in found),
            is_discrete=found[worst].share is not None,
            is_dominated=any(outcome.is_dominated for outcome in outcomes),
        )

    def _exercised_anywhere(self) -> dict[Value, Array]:
        """By value, which channels varied in any arithmetic."""
        found: dict[Value, Array] = {}
        for _, value, row in self._rows():
            known = found.get(value)
            is_new = known is None or known.shape != row.exercised.shape
            found[value] = row.exercised if is_new else known | row.exercised
        return found

    def _dominated(self) -> dict[str, str]:
        """The arithmetics that say nothing, and the sentence on each.

        Where both models compute the same in float64, but rounding error dominates a value of the
        original, what is computed from that value is chance.
        """
        if "keras float64" not in self.judged or not self._is_right("keras float64"):
            return {}
        found = {}
        for name, rows in self.judged.items():
            dominated = [row.comparison for row in rows.values() if row.is_dominated]
            dominated.sort(key=lambda one: one.is_output)  # where it begins, if that was seen
            overflows = any(row.problem is not None for row in rows.values())
            if dominated and not overflows and not self._is_right(name):
                first = dominated[0].name
                found[name] = (
                    f"{name} cannot judge: rounding error dominates the value of {first!r}"
                )
        return found

    def _is_right(self, name: str) -> bool:
        rows = self.judged[name].items()
        outputs = all(row.comparison.passed for value, row in rows if value.is_output)
        return outputs and not self.told[name].is_wrong

    def _crossed(self) -> list[pairing.Crossing]:
        """The crossings at which the two models do not read the same, or nothing tells."""
        if self.case.pairing is None:
            return []
        return [one for one in self.case.pairing.crossings if not self._reads_the_same(one)]

    def _reads_the_same(self, crossing: pairing.Crossing) -> bool:
        if crossing.places is None:
            return False
        for place in crossing.places:
            value = self.case.inside[place]
            rows = [rows[value].comparison for rows in self.judged.values() if value in rows]
            if not rows or not all(row.passed for row in rows):
                return False
        return True

    # --- sites -----------------------------------------------------------------------------------

    def _findings(self, rows: _Rows) -> blame.Findings:
        """What one arithmetic says of the sites; nothing where it saw outputs only."""
        inside = self.case.inside
        if self.case.pairing is None or not all(value in rows for value in inside):
            return blame.Findings()
        return blame.judge(
            self.case.pairing,
            lambda place: rows[inside[place]].comparison.passed,
            lambda place: inside[place] not in self.evidence.absorbed,
        )

    def _culprits(self) -> tuple[str, ...]:
        """Those of the sharpest arithmetic that finds any; a wrong output alone may have none."""
        is_wrong = any(
            value.is_output and not row.comparison.passed for _, value, row in self._rows()
        )
        for told in self.told.values():
            if self.case.pairing is not None and (told.is_wrong or (is_wrong and told.changed)):
                return blame.culprits(self.case.pairing, told)
        return ()

    def _used(self, told: blame.Findings) -> set[Value]:
        """The values that tell something of a site, or of another layer that is to blame."""
        places = [one.places for one in told.sites]
        places += [one.places for one in told.changed if one.call.name in self.culprits]
        return {self.case.inside[at] for some in places for at in some}

    def _sites(self) -> Iterator[Site]:
        untested = {id(site) for gap in self.gaps for site in gap.crossing.sites}
        pairing = self.case.pairing
        for number, site in enumerate(pairing.sites if pairing is not None else ()):
            told = {name: one.sites[number] for name, one in self.told.items() if one.sites}
            yield self._site(site, told, is_tested=id(site) not in untested)

    def _site(
        self, site: pairing.Site, found: Mapping[str, blame.Finding], *, is_tested: bool
    ) -> Site:
        """One site over all arithmetics: wrong in one is wrong."""
        inside = self.case.inside
        wrong = [one for one in found.values() if one.status is SiteStatus.DIFFERENT]
        told = wrong or [one for one in found.values() if one.status is SiteStatus.MATCHED]
        values = dict.fromkeys(inside[at] for one in told for at in one.places)
        excesses = [
            self.judged[name][inside[at]].comparison.excess
            for name, one in found.items()
            for at in one.places
            if inside[at] in values
        ]
        varied = [self.exercised[value] for value in values]
        status = told[0].status if told else SiteStatus.UNPAIRED
        is_blind = status is SiteStatus.MATCHED and not any(one.any() for one in varied)
        if is_blind or (status is not SiteStatus.DIFFERENT and not is_tested):
            status = SiteStatus.NOT_EXERCISED
        return Site(
            name=site.name,
            call=site.call.key[-1][1],
            status=status,
            compared_at=tuple(dict.fromkeys(value.name for value in values)),
            excess=None if status is SiteStatus.NOT_EXERCISED else max(excesses, default=0.0),
            channels=sum(len(one) for one in varied),
            exercised=sum(int(np.count_nonzero(one)) for one in varied),
        )

    # --- sentences -------------------------------------------------------------------------------

    def _sentences(self) -> Iterator[str]:
        """What differs: the layers at which it begins, then the values that are off."""
        pairing = self.case.pairing
        gone = {site.name for site in pairing.sites} if pairing is not None else set()
        for name in self.culprits:
            if name in gone:
                yield f"BatchNormalization {name!r} was folded wrongly"
            else:
                yield f"layer {name!r} does not compute what it computes in the original"
        for name, value, row in self._rows():
            is_blamed = value in self.used[name] and value.name in self.culprits
            if not row.comparison.passed and (value.is_output or is_blamed):
                yield _sentence(row)

    def _not_exercised(self) -> list[str]:
        """The outputs that passed without having been exercised."""
        if sum(one.count for one in self.case.sets) == 1:
            return ["nothing was exercised: with one sample no value can be told from a constant"]
        return [
            f"output {value.name!r} was not exercised: it never changed, or by less than rounding"
            " error"
            for value in self.case.outputs
            if not self.exercised.get(value, np.zeros(1, bool)).any()
        ]

    def _overflows(self) -> Iterator[str]:
        for name, value, row in self._rows():
            if value.is_output and not row.is_finite:
                yield f"{name}: output {value.name!r} has values that are not finite"


def _alike(one: Run, other: Run) -> bool:
    """Whether two runs are measured by the same references."""
    first, second = (next(iter(run.references.values()))[0] for run in (one, other))
    return first.truth is second.truth


def _accuracy(parts: Sequence[Errors], truths: Sequence[Truth]) -> Accuracy | None:
    """The worst of several kinds of samples."""
    if any(part.problem for part in parts):
        return None
    pairs = list(zip(parts, truths, strict=True))
    ratios = [part.sqnr for part in parts if part.sqnr is not None]
    return Accuracy(
        max(part.max_abs for part in parts),
        max(part.max_abs / truth.max_abs if truth.max_abs else 0.0 for part, truth in pairs),
        min(ratios, default=None),
    )


def _exercised(found: ByAxis, truths: Sequence[Truth], value: Value) -> Array:
    """Which channels changed from sample to sample, along the axes that the layer has them on."""
    axis = keys(truths[0].value.ndim, value.axes)[-1]
    return found.get(axis, next(iter(found.values()), np.zeros(0, bool)))


def _lost(name: str) -> str:
    return f"BatchNormalization {name!r} is no longer called with training=True"


_FAR = 1e6
"""Above this many tolerances their number says nothing but that a value should not vary at all."""


def _sentence(judged: _Judged) -> str:
    row = judged.comparison
    place = f"output {row.name!r}" if row.is_output else f"the value of {row.name!r}"
    if row.tapped_before:
        place += f" before its {row.tapped_before}"
    if judged.problem:
        return f"{row.runtime}: {place}: {judged.problem}"
    if judged.is_discrete:
        said = f"differs in {row.error:.2%} of its numbers, rounding explains {row.tolerance:.2%}"
    elif row.tolerance == 0:
        said = f"is off by {row.error:.3g} where rounding changes nothing"
    elif row.excess >= _FAR:
        said = f"is off by {row.error:.3g}, where {row.tolerance:.3g} is allowed"
    else:
        ratio = f"{row.excess:.3g} times the tolerance of {row.tolerance:.3g}"
        said = f"is off by {row.error:.3g}, {ratio}"
    return f"{row.runtime}: {place} {said} ({row.samples})"
