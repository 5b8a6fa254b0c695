"""The contents of the page on a verification, assembled before the templates lay them out."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bnfold.model.container.remote import Where
from bnfold.reports import terminal
from bnfold.reports.distribution import Axis
from bnfold.reports.html import strips
from bnfold.reports.html.plots import number
from bnfold.reports.text.fold import Statement, statement
from bnfold.verification.result import (
    Comparison,
    Decisions,
    Fidelity,
    Margins,
    Site,
    SiteStatus,
    Verdict,
    Verification,
)

ICONS = {
    Verdict.EQUIVALENT: "right",
    Verdict.APPROXIMATE: "near",
    Verdict.DIFFERENT: "error",
    Verdict.UNDECIDED: "warning",
    SiteStatus.MATCHED: "right",
    SiteStatus.DIFFERENT: "error",
    SiteStatus.NOT_EXERCISED: "quiet",
    SiteStatus.UNPAIRED: "alone",
}
CELLS = {
    SiteStatus.MATCHED: "fine",
    SiteStatus.DIFFERENT: "error",
    SiteStatus.NOT_EXERCISED: "warning",
    SiteStatus.UNPAIRED: "info",
}
_FORMATS = {
    "keras": "two Keras models",
    "onnx": "a Keras model and an ONNX file",
    "tflite": "a Keras model and a LiteRT file",
    "saved_model": "a Keras model and a SavedModel",
}


_AGREES = {
    (kind, status): said
    for kind in ("output", "value")
    for status, said in ((SiteStatus.MATCHED, "agrees"), (SiteStatus.DIFFERENT, "differs"))
}
"""What is said of places that are no fold sites."""


@dataclass(frozen=True)
class Place:
    """Where two models were compared: a fold site, another value inside, or an output.

    `lanes` has the comparison that came worst in each runtime of the page, None where there was
    none; `comparisons` has all. `is_culprit` tells whether the difference begins here.
    """

    number: int
    name: str
    kind: str
    status: SiteStatus
    site: Site | None
    comparisons: tuple[Comparison, ...]
    lanes: tuple[Comparison | None, ...]
    fidelity: tuple[Fidelity, ...]
    is_culprit: bool
    axis: Axis

    @property
    def bars(self) -> strips.Bars:
        """Its bars, a lane for each runtime."""
        return strips.bars(self.lanes, self.axis)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that tells most."""
        told = (one for one in self.comparisons if one.conclusive or not one.passed)
        return max(told, key=lambda one: one.excess, default=None)

    @property
    def summary(self) -> str:
        """What came of it, in few words."""
        worst, status = self.worst, _AGREES.get((self.kind, self.status), str(self.status))
        if worst is None:
            return status
        failed = sum(not one.passed for one in self.comparisons)
        parts = [status, f"{share(worst.excess)} in {worst.runtime}"]
        if failed:
            total = len(self.comparisons)
            parts.append(f"{failed} of {total} {terminal.plural('comparison', total)} failed")
        return "; ".join(parts)

    @property
    def tapped_before(self) -> str | None:
        """The final activation that was left out."""
        return next((one.tapped_before for one in self.comparisons if one.tapped_before), None)

    @property
    def facts(self) -> str:
        """What was compared, and how many channels showed anything."""
        parts = []
        elsewhere = () if self.site is None else self.site.compared_at
        if elsewhere and elsewhere != (self.name,):
            parts.append(f"compared at {terminal.names(list(elsewhere))}")
        if self.site is not None and self.site.call:
            parts.append(f"call {self.site.call + 1}")
        channels, exercised = self._channels
        if channels > (0 if self.site is not None else 1):
            parts.append(
                f"{exercised} of {channels} {terminal.plural('channel', channels)} exercised"
            )
        return " · ".join(parts)

    @property
    def _channels(self) -> tuple[int, int]:
        """All, and those that were exercised."""
        if self.site is not None:
            return self.site.channels, self.site.exercised
        most = max(self.comparisons, key=lambda one: one.exercised, default=None)
        return (0, 0) if most is None else (most.channels, most.exercised)


@dataclass(frozen=True)
class Profile:
    """One runtime over all places inside, from top to bottom."""

    runtime: str
    bars: strips.Bars


@dataclass(frozen=True)
class Page:
    """One verification; `original` and `other` are None where the models have no file."""

    result: Verification
    original: Where | None
    other: Where | None
    strict: bool

    @cached_property
    def said(self) -> Statement:
        """The verdict and what belongs to it, as the report for people says it."""
        return statement(self.result, strict=self.strict)

    @property
    def title(self) -> str:
        """The names of the two files."""
        return f"{_name(self.other, 'the other model')} against {_name(self.original, 'the model')}"

    @property
    def facts(self) -> list[str]:
        """What was compared with what."""
        result = self.result
        kind = _FORMATS.get(result.format, result.format)
        precision = [result.precision] if result.precision else []
        files = [str(one) for one in (self.original, self.other) if one is not None]
        return [*files, ", ".join([kind, *precision])]

    @property
    def samples(self) -> str:
        """On what the models were run."""
        count, kinds = self.result.sample_count, self.result.sample_kinds
        if not count:
            return "none"
        whose = "yours" if self.result.is_user_data else f"random, seed {self.result.seed}"
        kept = dict.fromkeys(kinds)
        listed = f": {'; '.join(kept)}" if kept and not self.result.is_user_data else ""
        return f"{count}, {whose}{listed}"

    @cached_property
    def runtimes(self) -> list[str]:
        """The runtimes in the order in which they come."""
        return list(dict.fromkeys(one.runtime for one in self.result.comparisons))

    @cached_property
    def axis(self) -> Axis:
        """For shares of the tolerance, one for the whole page."""
        return strips.shares(self.result.comparisons)

    @cached_property
    def outputs(self) -> list[Place]:
        """The outputs, and how near each is to the reference."""
        rows = [one for one in self.result.comparisons if one.is_output]
        compared = terminal.grouped(rows, lambda one: one.name)
        near = terminal.grouped(self.result.fidelity, lambda one: one.output)
        names = dict.fromkeys([*compared, *near])
        return [
            self._value(number, name, "output", compared.get(name, ()), near.get(name, ()))
            for number, name in enumerate(names, start=1)
        ]

    @cached_property
    def inside(self) -> list[Place]:
        """The fold sites, and then other values inside at which the models were compared."""
        rows = [one for one in self.result.comparisons if not one.is_output]
        compared = terminal.grouped(rows, lambda one: one.name)
        found = [
            self._place(
                number,
                site.name,
                "fold site",
                site.status,
                [one for name in site.compared_at for one in compared.get(name, ())],
                site=site,
            )
            for number, site in enumerate(self.result.sites, start=1)
        ]
        told = {name for site in self.result.sites for name in site.compared_at}
        others = (name for name in compared if name not in told)
        return found + [
            self._value(number, name, "value", compared[name], ())
            for number, name in enumerate(others, start=len(found) + 1)
        ]

    def _value(
        self,
        number: int,
        name: str,
        kind: str,
        compared: Sequence[Comparison],
        near: Sequence[Fidelity],
    ) -> Place:
        """A place that has no status of its own."""
        if any(not one.passed for one in compared):
            status = SiteStatus.DIFFERENT
        elif any(one.conclusive for one in compared):
            status = SiteStatus.MATCHED
        else:
            status = SiteStatus.NOT_EXERCISED
        return self._place(number, name, kind, status, compared, near=near)

    def _place(
        self,
        number: int,
        name: str,
        kind: str,
        status: SiteStatus,
        compared: Sequence[Comparison],
        *,
        site: Site | None = None,
        near: Sequence[Fidelity] = (),
    ) -> Place:
        worst: dict[str, Comparison] = {}
        for one in compared:
            before = worst.get(one.runtime)
            if before is None or _rank(one) > _rank(before):
                worst[one.runtime] = one
        lanes = tuple(worst.get(runtime) for runtime in self.runtimes)
        culprit = kind != "output" and name in self.result.culprits
        return Place(
            *(number, name, kind, status, site, tuple(compared), lanes, tuple(near), culprit),
            axis=self.axis,
        )

    @cached_property
    def profiles(self) -> list[Profile]:
        """The errors of each runtime over the depth of the network."""
        found = []
        for lane, runtime in enumerate(self.runtimes):
            column = [place.lanes[lane] for place in self.inside]
            if any(one is not None for one in column):
                found.append(Profile(runtime, strips.columns(column, self.axis)))
        return found

    @property
    def culprits(self) -> list[tuple[str, Place | None]]:
        """Where the difference begins, each with its place if it has one."""
        places = {place.name: place for place in reversed(self.inside)}
        return [(name, places.get(name)) for name in self.result.culprits]

    @cached_property
    def counts(self) -> Counter[SiteStatus]:
        """How many fold sites have which status."""
        return Counter(site.status for site in self.result.sites)

    @property
    def failed(self) -> int:
        """How many comparisons failed."""
        return sum(not one.passed for one in self.result.comparisons)

    @property
    def sqnr(self) -> float | None:
        """The smallest SQNR of all outputs in all runtimes."""
        known = [one.sqnr_db for one in self.result.fidelity if one.sqnr_db is not None]
        return min(known, default=None)

    @property
    def changed(self) -> list[tuple[str, Decisions]]:
        """For each output that decides, where it changed most decisions."""
        found: dict[str, Decisions] = {}
        for one in self.result.fidelity:
            before = found.get(one.output)
            if one.decisions is not None and (before is None or one.decisions.share > before.share):
                found[one.output] = one.decisions
        return list(found.items())

    @cached_property
    def error_axis(self) -> Axis:
        """For the percentiles of all errors, in units of the output's scale."""
        return strips.sizes(one.percentiles for one in self.result.fidelity)

    @cached_property
    def margin_axis(self) -> Axis:
        """For the margins of all decisions."""
        told = [one.decisions for one in self.result.fidelity if one.decisions is not None]
        margins = [one.smallest_margin for one in told]
        for one in told:
            if one.margins_of_changed is not None:
                margins += [one.margins_of_changed.smallest, one.margins_of_changed.largest]
        return strips.distances(margins)

    @property
    def tolerance_at(self) -> int:
        """Where the tolerance stands on a strip."""
        return strips.at(self.axis, 1.0)

    @property
    def share_labels(self) -> list[tuple[float, str]]:
        """The numbers at the axis of shares."""
        return strips.decades(self.axis)


def _rank(one: Comparison) -> tuple[bool, bool, float]:
    return not one.passed, one.conclusive, one.excess


def _name(path: Where | None, instead: str) -> str:
    return instead if path is None else path.name or str(path)


def share(excess: float) -> str:
    """How much of its tolerance an error takes."""
    if math.isinf(excess):
        return "beyond any tolerance"
    return f"{excess:.2g} of its tolerance" if excess <= 1 else f"{excess:.2g} times its tolerance"


def ratio(excess: float) -> str:
    """The same as a number alone."""
    return "∞" if math.isinf(excess) else f"{excess:.2g}"


def error(value: float) -> str:
    """An error as the report for people writes it."""
    return "∞" if math.isinf(value) else f"{value:.2e}"


def percent(value: float) -> str:
    """A share of an output's scale."""
    return "0" if not value else f"{value:.1e}"


def margins(found: Margins) -> str:
    """The margins of decisions that changed."""
    low, middle, high = (number(one, 2) for one in (found.smallest, found.median, found.largest))
    if low == high:
        return f"margin of what changed {low}"
    return f"margins of what changed {low} to {high}, median {middle}"
