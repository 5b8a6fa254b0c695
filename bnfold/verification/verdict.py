"""From the evidence to the verdict: which values are right, which sites are wrong, what to say."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
from bnfold.verification.values import Table, Value

_BASES = {
    frozenset({"keras", "onnxruntime"}): Basis.BOTH,
    frozenset({"keras"}): Basis.KERAS,
    frozenset({"onnxruntime"}): Basis.ONNXRUNTIME,
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
    is_drowned: bool


_Judgement = dict[str, dict[Value, _Judged]]
"""By arithmetic, the sharpest first, then by value."""


def conclude(case: Compared, rule: Rule, evidence: Evidence) -> Verification:
    """The verdict over everything that was found; what was not exercised is noted there."""
    judged = _judge(case, rule, evidence.runs)
    found = {name: _findings(case, rows, evidence.absorbed) for name, rows in judged.items()}
    drowned = _drowned(judged, found)
    for name in drowned:
        del judged[name], found[name]
    exercised = _exercised_anywhere(judged)
    culprits = _culprits(case, judged, found)
    used = {name: _used(case, told, culprits) for name, told in found.items()}
    differences = [
        *evidence.differences,
        *map(_lost, evidence.lost),
        *_sentences(case, judged, culprits, used),
    ]
    if not differences:
        evidence.gaps = exercise.gaps(case, _crossed(case, judged))
    doubts = [
        *evidence.doubts,
        *([] if differences else _not_exercised(case, exercised)),
        *(gap.text for gap in evidence.gaps),
        *drowned.values(),
    ]
    warnings = [*evidence.warnings, *_overflows(judged), *doubts]
    return Verification(
        verdict=_verdict(differences, doubts),
        basis=_BASES[frozenset(evidence.runtimes)],
        differences=tuple(differences),
        warnings=tuple(dict.fromkeys(warnings)),
        seed=case.seed,
        library=case.original.library,
        rule=rule.text(),
        comparisons=tuple(
            row.comparison
            for name, rows in judged.items()
            for value, row in rows.items()
            if value.is_output or value in used[name]
        ),
        sites=_sites(case, judged, found, exercised, _untested(evidence)),
        culprits=tuple(dict.fromkeys([*evidence.lost, *culprits])),
        agreements=tuple(evidence.agreements),
        yardstick=evidence.reference,
        merged_by_exporter=evidence.merged,
        sample_count=sum(one.count for one in case.sets),
        sample_kinds=tuple(one.kind for one in case.sets),
    )


def _crossed(case: Compared, judged: _Judgement) -> list[pairing.Crossing]:
    """The crossings at which the two models do not read the same, or nothing tells."""
    if case.pairing is None:
        return []
    inside = case.inside

    def reads_the_same(crossing: pairing.Crossing) -> bool:
        if crossing.places is None:
            return False
        return all(shows_the_same(inside[place]) for place in crossing.places)

    def shows_the_same(value: Value) -> bool:
        rows = [rows[value].comparison for rows in judged.values() if value in rows]
        return bool(rows) and all(row.passed for row in rows)

    return [one for one in case.pairing.crossings if not reads_the_same(one)]


def _untested(evidence: Evidence) -> set[int]:
    """The ids of the sites whose maps crossed what was not exercised."""
    return {id(site) for gap in evidence.gaps for site in gap.crossing.sites}


def _verdict(differences: Sequence[str], doubts: Sequence[str]) -> Verdict:
    if differences:
        return Verdict.DIFFERENT
    return Verdict.UNDECIDED if doubts else Verdict.EQUIVALENT


# --- values --------------------------------------------------------------------------------------


def _judge(case: Compared, rule: Rule, runs: Sequence[Run]) -> _Judgement:
    owns = {id(run): _own(run, runs) for run in runs}
    return {run.name: _judge_run(case, rule, run, owns[id(run)]) for run in runs}


def _own(run: Run, runs: Sequence[Run]) -> Table | None:
    """The errors of the original that count for a run: its own and those of its likes."""
    if run.original is None:
        return None
    tables = [one.original for one in runs if one.original is not None and _alike(one, run)]
    return {
        value: pooled([one.truth for one in column], [one[value] for one in tables if value in one])
        for value, column in run.references.items()
    }


def _alike(one: Run, other: Run) -> bool:
    """Whether two runs are measured by the same references."""
    first, second = (next(iter(run.references.values()))[0] for run in (one, other))
    return first.truth is second.truth


def _judge_run(case: Compared, rule: Rule, run: Run, own: Table | None) -> dict[Value, _Judged]:
    found = {}
    for value, theirs in run.folded.items():
        column = run.references[value]
        mine = [None] * len(column) if own is None else own[value]
        outcomes = [
            failed(run.problems[value])
            if value in run.problems
            else compare(reference, original, folded, rule)
            for reference, original, folded in zip(column, mine, theirs, strict=True)
        ]
        found[value] = _worst(case, run, value, outcomes)
    return found


def _worst(case: Compared, run: Run, value: Value, outcomes: Sequence[Outcome]) -> _Judged:
    """Keep the worst kind of samples of one value."""
    truths = [one.truth for one in run.references[value]]
    own = [None] * len(truths) if run.original is None else run.original[value]
    found = run.folded[value]
    worst = max(range(len(outcomes)), key=lambda i: outcomes[i].excess)
    counts = [one.count for one in case.sets]
    exercised = _exercised(exercised_by_any(truths, outcomes, counts), truths, value)
    if value in run.unseen:
        exercised = np.zeros_like(exercised)
    comparison = Comparison(
        name=value.name,
        is_output=value.is_output,
        tapped_before=value.tapped,
        runtime=run.name,
        samples=case.sets[worst].kind,
        original=_accuracy(own, truths),
        folded=_accuracy(found, truths) or Accuracy(math.inf, math.inf, None),
        error=outcomes[worst].error,
        tolerance=outcomes[worst].tolerance,
        excess=outcomes[worst].excess,
        passed=all(outcome.passed for outcome in outcomes),
        channels=len(exercised),
        exercised=int(np.count_nonzero(exercised)),
    )
    finite = all(one.finite for one in found)
    drowned = any(outcome.drowned for outcome in outcomes)
    discrete = found[worst].share is not None
    return _Judged(comparison, exercised, outcomes[worst].problem, finite, discrete, drowned)


def _accuracy(parts: Sequence[Errors | None], truths: Sequence[Truth]) -> Accuracy | None:
    """The worst of several kinds of samples."""
    found = [(part, truth) for part, truth in zip(parts, truths, strict=True) if part is not None]
    if not found or any(part.problem for part, _ in found):
        return None
    ratios = [part.sqnr for part, _ in found if part.sqnr is not None]
    return Accuracy(
        max(part.max_abs for part, _ in found),
        max(part.max_abs / truth.max_abs if truth.max_abs else 0.0 for part, truth in found),
        min(ratios, default=None),
    )


def _exercised(found: ByAxis, truths: Sequence[Truth], value: Value) -> Array:
    """Which channels changed from sample to sample, along the axes that the layer has them on."""
    axis = keys(truths[0].value.ndim, value.axes)[-1]
    return found.get(axis, next(iter(found.values()), np.zeros(0, bool)))


def _exercised_anywhere(judged: _Judgement) -> dict[Value, Array]:
    """By value, which channels varied in any arithmetic."""
    found: dict[Value, Array] = {}
    for value, row in (item for rows in judged.values() for item in rows.items()):
        found[value] = _either(found.get(value), row.exercised)
    return found


def _either(one: Array | None, other: Array) -> Array:
    if one is None or one.shape != other.shape:
        return other
    return np.asarray(one | other)


def _drowned(judged: _Judgement, told: Mapping[str, blame.Findings]) -> dict[str, str]:
    """The arithmetics that say nothing, and the sentence on each.

    Where both models compute the same in float64, but rounding error dominates a value of the
    original, what is computed from that value is chance.
    """

    def is_right(name: str) -> bool:
        rows = judged[name].items()
        outputs = all(row.comparison.passed for value, row in rows if value.is_output)
        return outputs and all(one.status != "different" for one in told[name].sites)

    if "keras float64" not in judged or not is_right("keras float64"):
        return {}
    found = {}
    for name, rows in judged.items():
        drowned = [row.comparison for row in rows.values() if row.is_drowned]
        drowned.sort(key=lambda one: one.is_output)  # where it begins, if that was seen
        overflows = any(row.problem is not None for row in rows.values())
        if drowned and not overflows and not is_right(name):
            found[name] = (
                f"{name} cannot judge: rounding error dominates the value of {drowned[0].name!r}"
            )
    return found


# --- sites ---------------------------------------------------------------------------------------


def _findings(
    case: Compared, rows: Mapping[Value, _Judged], absorbed: Collection[Value]
) -> blame.Findings:
    """What one arithmetic says of the sites; nothing where it saw outputs only."""
    inside = case.inside
    if case.pairing is None or not all(value in rows for value in inside):
        return blame.Findings()
    return blame.judge(
        case.pairing,
        lambda place: rows[inside[place]].comparison.passed,
        lambda place: inside[place] not in absorbed,
    )


def _culprits(
    case: Compared, judged: _Judgement, found: Mapping[str, blame.Findings]
) -> tuple[str, ...]:
    """Those of the sharpest arithmetic that finds any; a wrong output alone may have none."""
    rows = [row.comparison for rows in judged.values() for row in rows.values()]
    is_wrong = any(row.is_output and not row.passed for row in rows)
    for told in found.values():
        site_is_wrong = any(one.status == "different" for one in told.sites)
        if case.pairing is not None and (site_is_wrong or (is_wrong and told.changed)):
            return blame.culprits(case.pairing, told)
    return ()


def _used(case: Compared, told: blame.Findings, culprits: Sequence[str]) -> set[Value]:
    """The values that tell something of a site, or of another layer that is to blame."""
    places = [one.places for one in told.sites]
    places += [one.places for one in told.changed if one.name in culprits]
    return {case.inside[at] for some in places for at in some}


def _sites(
    case: Compared,
    judged: _Judgement,
    found: Mapping[str, blame.Findings],
    exercised: Mapping[Value, Array],
    untested: Collection[int],
) -> tuple[Site, ...]:
    if case.pairing is None:
        return ()
    return tuple(
        _site(
            case,
            judged,
            site,
            {name: told.sites[number] for name, told in found.items() if told.sites},
            exercised,
            is_tested=id(site) not in untested,
        )
        for number, site in enumerate(case.pairing.sites)
    )


def _site(
    case: Compared,
    judged: _Judgement,
    site: pairing.Site,
    found: Mapping[str, blame.Finding],
    exercised: Mapping[Value, Array],
    *,
    is_tested: bool,
) -> Site:
    """One site over all arithmetics: wrong in one is wrong."""
    wrong = [one for one in found.values() if one.status == "different"]
    told = wrong or [one for one in found.values() if one.status == "matched"]
    values = tuple(dict.fromkeys(case.inside[at] for one in told for at in one.places))
    rows = [
        judged[name][case.inside[at]].comparison
        for name, one in found.items()
        for at in one.places
        if case.inside[at] in values
    ]
    varied = [exercised[value] for value in values]
    status = SiteStatus(told[0].status) if told else SiteStatus.UNPAIRED
    if status is SiteStatus.MATCHED and not any(one.any() for one in varied):
        status = SiteStatus.NOT_EXERCISED
    if status is not SiteStatus.DIFFERENT and not is_tested:
        status = SiteStatus.NOT_EXERCISED
    excess = max((row.excess for row in rows), default=0.0)
    return Site(
        name=site.name,
        call=site.call.key[-1][1],
        status=status,
        compared_at=tuple(dict.fromkeys(value.name for value in values)),
        excess=None if status is SiteStatus.NOT_EXERCISED else excess,
        channels=sum(len(one) for one in varied),
        exercised=sum(int(np.count_nonzero(one)) for one in varied),
    )


# --- sentences -----------------------------------------------------------------------------------


def _sentences(
    case: Compared,
    judged: _Judgement,
    culprits: Sequence[str],
    used: Mapping[str, Collection[Value]],
) -> list[str]:
    """What differs: the layers at which it begins, then the values that are off."""
    gone = {site.name for site in case.pairing.sites} if case.pairing is not None else set()
    found = [
        f"BatchNormalization {name!r} was folded wrongly"
        if name in gone
        else f"layer {name!r} does not compute what it computes in the original"
        for name in culprits
    ]
    for name, rows in judged.items():
        for value, row in rows.items():
            is_told = value.is_output or (value in used[name] and value.name in culprits)
            if is_told and not row.comparison.passed:
                found.append(_sentence(row))
    return found


def _lost(name: str) -> str:
    return f"BatchNormalization {name!r} is no longer called with training=True"


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
    else:
        ratio = f"{row.excess:.3g} times the tolerance of {row.tolerance:.3g}"
        said = f"is off by {row.error:.3g}, {ratio}"
    return f"{row.runtime}: {place} {said} ({row.samples})"


def _not_exercised(case: Compared, exercised: Mapping[Value, Array]) -> list[str]:
    """The outputs that passed without having been put to the test."""
    if sum(one.count for one in case.sets) == 1:
        return ["nothing was exercised: with one sample no value can be told from a constant"]
    return [
        f"output {value.name!r} was not exercised: it never changed, or by less than rounding error"
        for value in case.outputs
        if not exercised.get(value, np.zeros(1, bool)).any()
    ]


def _overflows(judged: _Judgement) -> list[str]:
    return [
        f"{name}: output {row.comparison.name!r} has values that are not finite"
        for name, rows in judged.items()
        for row in rows.values()
        if row.comparison.is_output and not row.is_finite
    ]
