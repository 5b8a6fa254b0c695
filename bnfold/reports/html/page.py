"""The contents of the page, assembled before the templates lay them out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bnfold.audit import Finding, Severity
from bnfold.audit.selection import Suppressed
from bnfold.folding.plan import Blocked, Fold
from bnfold.jobs.inspect import Inspection, settings
from bnfold.model.graph import LayerPath
from bnfold.reports import terminal
from bnfold.reports.distribution import Axis
from bnfold.reports.html.plots import LOGARITHMIC, NAMES, LayerVectors, Plot, number
from bnfold.reports.html.profile import Profile, profile
from bnfold.reports.html.rows import Row, rows
from bnfold.reports.html.wires import Wire, wires
from bnfold.reports.terminal import plural
from bnfold.reports.text import inspect

COMPARED = ("moving_mean", "moving_variance", "scale", "shift")
"""The vectors that are shown of all layers on one axis."""
_IN_FULL = ("moving_mean", "moving_variance", "gamma", "beta", "scale", "shift")
_LISTED_CHANNELS = 8
_KINDS = {"broken": "broken", "dead": "dead", "far": "far out"}
_UNUSED = {"renorm": "no", "synchronized": "no", "regularizers": "none", "constraints": "none"}
"""Settings that are left out at these values."""
_HERE = Path()

Fate = Literal["backward", "forward", "stays"]


@dataclass(frozen=True)
class MarkedChannel:
    """A channel that stands out, why, and its numbers by vector."""

    index: int
    kinds: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Norm:
    """One BatchNormalization with everything that is said of it."""

    number: int
    decision: Fold | Blocked
    findings: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...]
    targets: tuple[tuple[LayerPath, int], ...]
    channels: LayerVectors
    axes: Mapping[str, Axis]

    @property
    def path(self) -> LayerPath:
        """Where it stands."""
        return self.decision.batchnorm.path

    @property
    def fate(self) -> Fate:
        """In which direction it folds."""
        return self.decision.direction if isinstance(self.decision, Fold) else "stays"

    @property
    def severity(self) -> Severity | None:
        """That of the worst finding."""
        return min((f.severity for f in self.findings), key=lambda s: s.rank, default=None)

    @property
    def summary(self) -> str:
        """The findings and the fate in few words."""
        found = [f"{finding.severity} {finding.code}" for finding in self.findings]
        fate = "stays" if self.fate == "stays" else f"folds {self.fate}"
        return ", ".join([*(found or ["nothing found"]), fate])

    @property
    def digest(self) -> str:
        """The settings and the marked channels in few words."""
        batchnorm = self.decision.batchnorm
        total = batchnorm.channels
        parts = ["no statistics" if total is None else f"{total} {plural('channel', total)}"]
        parts += [f"{count} {_KINDS[kind]}" for kind, count in self.counts.items() if count]
        if batchnorm.is_configured:
            named = {"ε": batchnorm.epsilon, "momentum": batchnorm.momentum}
            parts += [f"{name} {value:g}" for name, value in named.items() if value is not None]
        return " · ".join(parts)

    @property
    def reason(self) -> str:
        """Why it stays."""
        return self.decision.reason if isinstance(self.decision, Blocked) else ""

    @property
    def remedies(self) -> tuple[str, ...]:
        """What would let it fold."""
        return self.decision.remedies if isinstance(self.decision, Blocked) else ()

    @cached_property
    def compared(self) -> list[Plot]:
        """The plots on the axes of all layers."""
        found = (self.channels.plot(name, self.axes[name]) for name in COMPARED)
        return [plot for plot in found if plot is not None]

    @property
    def in_full(self) -> list[Plot]:
        """The plots of all vectors on axes of their own."""
        found = []
        for name in _IN_FULL:
            values = self.channels.vectors.get(name)
            if values is not None:
                axis = Axis.of([values], logarithmic=name in LOGARITHMIC)
                found.append(self.channels.plot(name, axis))
        return [plot for plot in found if plot is not None]

    @property
    def vector_names(self) -> list[str]:
        """The vectors that the layer has, as the columns of `marked` show them."""
        return [name for name in _IN_FULL if name in self.channels.vectors]

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many channels are marked, by kind."""
        return {kind: int(mask.sum()) for kind, mask in self.channels.marks.items()}

    @property
    def marked(self) -> list[MarkedChannel]:
        """The first channels that are marked or that a finding names."""
        marks = self.channels.marks
        named = {i for f in self.findings if f.channels is not None for i in f.channels.first}
        every = np.flatnonzero(np.any(list(marks.values()), axis=0))
        indices = sorted({*every[:_LISTED_CHANNELS].tolist(), *named})
        return [
            MarkedChannel(
                index,
                tuple(kind for kind, mask in marks.items() if mask[index]),
                tuple(number(self.channels.vectors[name][index]) for name in self.vector_names),
            )
            for index in indices
        ]

    @property
    def unlisted(self) -> int:
        """How many marked channels are not in `marked`."""
        every = np.any(list(self.channels.marks.values()), axis=0)
        return int(every.sum()) - sum(bool(channel.kinds) for channel in self.marked)

    @property
    def facts(self) -> str:
        """How it is configured, without settings at their usual value."""
        batchnorm = self.decision.batchnorm
        found: dict[str, Any] = {"axis": batchnorm.axis, **settings(batchnorm)}
        shown = {name: inspect.value(value) for name, value in found.items()}
        return " · ".join(
            f"{name.replace('_', ' ')} {said}"
            for name, said in shown.items()
            if said != _UNUSED.get(name)
        )


@dataclass(frozen=True)
class Line:
    """A row of the drawing; `mark` is how its node looks."""

    row: Row
    wire: Wire
    norm: Norm | None
    mark: str


@dataclass(frozen=True)
class Group:
    """What one rule found, the same severity together."""

    severity: Severity
    code: str
    name: str
    found: tuple[tuple[Norm, Finding], ...]

    @property
    def messages(self) -> set[str]:
        """What is said, one where it is the same of all layers."""
        return {finding.message for _, finding in self.found}

    @property
    def remedies(self) -> list[str]:
        """What to do, each once."""
        return list(dict.fromkeys(finding.remedy for _, finding in self.found))


@dataclass(frozen=True)
class Stays:
    """BatchNormalizations that stay for the same reason."""

    reason: str
    remedy: str
    norms: tuple[Norm, ...]


@dataclass(frozen=True)
class ModelPage:
    """One model."""

    number: int
    model: Inspection
    lines: tuple[Line, ...]
    width: int
    profiles: tuple[Profile, ...]

    @property
    def file_name(self) -> str:
        """The name of the file without its folders."""
        return self.model.path.name or str(self.model.path)

    @property
    def folder(self) -> str:
        """The folders of the file as they were given; empty where none were."""
        parent = self.model.path.parent
        return "" if parent == _HERE else str(parent)

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        total, bad, poor = len(self.norms), self.worst["error"], self.worst["warning"]
        if not total:
            return "There is no BatchNormalization in this model."
        parts = []
        if bad:
            parts.append(f"{bad} of {total} {plural('layer', total)} {_has(bad)} an error")
        if poor:
            parts.append(f"{poor} {'more ' if bad else ''}{_has(poor)} a warning")
        if not parts:
            parts.append("No errors and no warnings")
        folds = total - self.fates["stays"]
        some = f"{folds} of {total} fold away" if folds else "none folds away"
        parts.append("all fold away" if folds == total else some)
        return f"{'; '.join(parts)}."

    @property
    def aside(self) -> str:
        """How many findings are ignored, and why."""
        return terminal.set_aside(one.by for one in self.model.suppressed)

    def anchor(self, line: int) -> str:
        """The id of a line that links lead to."""
        norm = self.lines[line].norm
        return f"m{self.number}-r{line}" if norm is None else f"m{self.number}-n{norm.number}"

    @cached_property
    def norms(self) -> list[Norm]:
        """Its BatchNormalizations from top to bottom."""
        return [line.norm for line in self.lines if line.norm is not None]

    @cached_property
    def groups(self) -> list[Group]:
        """The findings by rule, the worst first."""
        every = [(norm, one) for norm in self.norms for one in norm.findings]
        every.sort(key=lambda pair: (pair[1].severity.rank, pair[1].code))
        found = terminal.grouped(every, lambda pair: (pair[1].severity, pair[1].code))
        return [Group(*key, same[0][1].name, tuple(same)) for key, same in found.items()]

    def group_number(self, finding: Finding) -> int:
        """The number from 1 of the group that a finding is in."""
        return self._group_numbers[finding.severity, finding.code]

    @cached_property
    def _group_numbers(self) -> Mapping[tuple[Severity, str], int]:
        return {(one.severity, one.code): n for n, one in enumerate(self.groups, start=1)}

    @cached_property
    def stays(self) -> list[Stays]:
        """What cannot be folded, by reason."""
        by_path = {norm.path: norm for norm in self.norms}
        found = []
        for blocked in terminal.by_reason(self.model.plan).values():
            norms = tuple(by_path[one.batchnorm.path] for one in blocked)
            found.append(Stays(*terminal.reason_and_remedy(blocked), norms))
        return found

    @cached_property
    def fates(self) -> Counter[str]:
        """How many fold in each direction, and how many stay."""
        return Counter(norm.fate for norm in self.norms)

    @cached_property
    def worst(self) -> Counter[str]:
        """How many layers have which severity for their worst."""
        return Counter(norm.severity.value for norm in self.norms if norm.severity is not None)

    @cached_property
    def concerned(self) -> Counter[str]:
        """How many layers have a finding of each severity."""
        return Counter(
            severity.value
            for norm in self.norms
            for severity in {f.severity for f in norm.findings}
        )


def model_page(model: Inspection, number: int) -> ModelPage:
    """What the page shows of the model with this number."""
    found = rows(model)
    width, drawn = wires(found)
    channels = {
        place: LayerVectors(row.decision, model.thresholds)
        for place, row in enumerate(found)
        if row.decision is not None
    }
    axes = {name: _axis(name, channels.values()) for name in COMPARED}
    findings = terminal.grouped(model.findings, lambda one: one.layer)
    suppressed = terminal.grouped(model.suppressed, lambda one: one.finding.layer)
    folded = {row.number for row in found if row.into}

    def norm(row: Row, vectors: LayerVectors) -> Norm:
        decision = vectors.decision
        path = decision.batchnorm.path
        ranked = sorted(findings.get(path, ()), key=lambda one: (one.severity.rank, one.code))
        aside = tuple(suppressed.get(path, ()))
        return Norm(row.number or 0, decision, tuple(ranked), aside, row.into, vectors, axes)

    norms = {place: norm(found[place], vectors) for place, vectors in channels.items()}
    lines = tuple(
        Line(row, drawn[place], norms.get(place), _mark(row, is_folded=row.number in folded))
        for place, row in enumerate(found)
    )
    spread = [
        profile(NAMES.get(name, name), [one.usual(name) for one in channels.values()], axes[name])
        for name in COMPARED
    ]
    return ModelPage(number, model, lines, width, tuple(spread))


def _mark(row: Row, *, is_folded: bool) -> str:
    if row.number is not None:
        return "gone" if is_folded else "kept"
    return "taker" if row.takes else "run" if row.is_run else "plain"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def _axis(name: str, layers: Iterable[LayerVectors]) -> Axis:
    vectors = (one.usual(name) for one in layers)
    known = [vector for vector in vectors if vector is not None]
    return Axis.of(known, logarithmic=name in LOGARITHMIC)
