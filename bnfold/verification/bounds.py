"""Whether the figures of a verification are what the user asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bnfold.running.options import Bounds
from bnfold.verification.result import Fidelity, Verification


def held_to(found: Verification, bounds: Bounds) -> Verification:
    """The same with a sentence on each figure that is not what was asked for.

    What was asked for and could not be measured of any output is not met; where it could of some,
    the others are named, of which only the verdict tells.
    """
    measured = {one.output for one in found.fidelity}
    outputs = dict.fromkeys(one.name for one in found.comparisons if one.is_output)
    unmeasured = [name for name in outputs if name not in measured]
    if bounds.min_sqnr is not None and measured and unmeasured:
        names = ", ".join(map(repr, unmeasured))
        warning = f"the SQNR that was asked for says nothing of {names}, without floating numbers"
        found = replace(found, warnings=(*found.warnings, warning))
    refused = [*_by_sqnr(found.fidelity, bounds), *_by_decisions(found.fidelity, bounds)]
    if bounds != Bounds() and not found.fidelity:
        refused.append("nothing was run, so that no figure can be what was asked for")
    return replace(found, refused=tuple(refused))


def _by_sqnr(every: tuple[Fidelity, ...], bounds: Bounds) -> Iterator[str]:
    least = bounds.min_sqnr
    if least is None:
        return
    for one in every:
        where = f"{one.runtime}: output {one.output!r}"
        if one.sqnr_db is not None and not one.sqnr_db >= least:
            yield f"{where} has an SQNR of {one.sqnr_db:.1f} dB, less than {least:g}"
        elif one.sqnr_db is None and one.percentiles.max > 0:
            yield f"{where} has an error and no signal, less than {least:g} dB"


def _by_decisions(every: tuple[Fidelity, ...], bounds: Bounds) -> Iterator[str]:
    if bounds.max_changed is None:
        return
    told = [(one, one.decisions) for one in every if one.decisions is not None]
    if every and not told:
        yield "no output decides for a class, so that none can be counted"
    for one, decisions in told:
        if decisions.changed > bounds.allowed(decisions.counted):
            yield (
                f"{one.runtime}: output {one.output!r} changes {decisions.changed} of"
                f" {decisions.counted} decisions, more than {bounds.max_changed}"
            )
