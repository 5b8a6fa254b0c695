"""Whether the figures of a verification are what the user asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bnfold.running.options import Bounds
from bnfold.verification.result import Fidelity, Verification


def held_to(found: Verification, bounds: Bounds) -> Verification:
    """The same with a sentence on each figure that is not what was asked for.

    What was asked for and could not be measured is not met.
    """
    refused = [*_by_sqnr(found.fidelity, bounds), *_by_decisions(found.fidelity, bounds)]
    if bounds != Bounds() and not found.fidelity:
        refused.append("nothing was run, so that no figure can be what was asked for")
    return replace(found, refused=tuple(refused))


def _by_sqnr(every: tuple[Fidelity, ...], bounds: Bounds) -> Iterator[str]:
    for one in every:
        least = bounds.min_sqnr
        if least is not None and one.sqnr_db is not None and not one.sqnr_db >= least:
            yield (
                f"{one.runtime}: output {one.output!r} has an SQNR of {one.sqnr_db:.1f} dB, less"
                f" than {least:g}"
            )


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
