"""The outcome of a verification, as plain values that need no numerical library.

A verdict has four values, because "this runtime cannot run the model" speaks neither for a model
nor against it:

    equivalent   every comparison that could see anything passed, and at least one could
    approximate  a model of reduced precision: the error is what that precision explains, and is
                 told in figures
    different    at least one comparison failed, or the interface of the two models differs
    undecided    nothing failed, but what ran could not have seen a difference
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar

from bnfold.serialize import Serializable, Shown


class Verdict(StrEnum):
    """What was found out about the two models."""

    EQUIVALENT = "equivalent"
    APPROXIMATE = "approximate"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


class Basis(StrEnum):
    """Which runtimes the verdict rests on."""

    BOTH = "keras and onnxruntime"
    KERAS = "keras alone"
    ONNXRUNTIME = "onnxruntime alone"
    LITERT = "keras and litert"
    TENSORFLOW = "keras and tensorflow"
    INTERFACE = "interface alone"
    FILES = "files alone"


@dataclass(frozen=True)
class Accuracy:
    """How near one evaluation of a value is to the reference.

    `max_abs_error` is the largest error, `relative_error` that over the largest magnitude of the
    value, `sqnr_db` the signal-to-quantization-noise ratio in dB, None where there is no error.
    """

    max_abs_error: float
    relative_error: float
    sqnr_db: float | None


@dataclass(frozen=True)
class Comparison(Serializable):
    """One value in one runtime, at the kind of samples where the folded model came out worst.

    `name` is that of an output, or the nested path of the layer that makes the value in the
    original. `tapped_before` names the final activation ("softmax", "sigmoid") that was left out,
    or is None. `original` and `folded` say how near the two models are to the reference; `original`
    is None where it is the reference itself. `excess` is the largest ratio of a channel's error to
    its tolerance, so `passed` means `excess <= 1`; `error` and `tolerance` are those of that
    channel. `exercised` of `channels` channels varied enough for an error to be seen.
    """

    name: str
    is_output: bool
    tapped_before: str | None
    runtime: str
    samples: str
    original: Accuracy | None
    folded: Accuracy
    error: float
    tolerance: float
    excess: float
    passed: bool
    channels: int
    exercised: int

    @property
    def conclusive(self) -> bool:
        """Whether the samples made the value vary at all, beyond its tolerance."""
        return self.exercised > 0


class SiteStatus(StrEnum):
    """What was found out about one BatchNormalization that is gone."""

    MATCHED = "matched"
    DIFFERENT = "different"
    NOT_EXERCISED = "not exercised"
    UNPAIRED = "unpaired"


@dataclass(frozen=True)
class Site(Serializable):
    """A BatchNormalization of the original that the folded model does not have.

    `name` is its nested path, `call` the number of the call from 0. `compared_at` names the values
    that were compared: its own where the layer before it absorbed it, those of the layers after it
    where these did. `excess` is the largest share of the tolerance that an error took. `exercised`
    of `channels` channels saw a signal.
    """

    name: str
    call: int
    status: SiteStatus
    compared_at: tuple[str, ...] = ()
    excess: float | None = 0.0
    channels: int = 0
    exercised: int = 0


@dataclass(frozen=True)
class Agreement(Serializable):
    """Of a classifier's output: how many samples changed their largest entry, and by what margin.

    `smallest_margin` is the smallest distance between the largest entry and the next one in the
    reference, over all samples, in the output's unit.
    """

    output: str
    samples: int
    changed: int
    smallest_margin: float


@dataclass(frozen=True)
class Percentiles(Serializable):
    """Below which so many of a hundred errors are; each a share of the output's scale."""

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Margins(Serializable):
    """The smallest, the median and the largest of some margins, in the output's unit."""

    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class Decisions(Serializable):
    """How many decisions of a classifier differ from those of the reference.

    `by` is what decides: "softmax" or "sigmoid", or "largest" for the largest entry of an output
    without either. `counted` are the samples, or positions in them; `smallest_margin` is that of
    all decisions, `margins_of_changed` those of the ones that differ, None where none does.
    """

    by: str
    counted: int
    changed: int
    smallest_margin: float
    margins_of_changed: Margins | None

    @property
    def share(self) -> float:
        """The share of decisions that differ."""
        return self.changed / self.counted


@dataclass(frozen=True)
class Fidelity(Serializable):
    """How near one runtime's output is to the reference, over all samples.

    `sqnr_db` is the signal-to-quantization-noise ratio in dB, None where there is no error, or no
    signal: then the percentiles tell which. `scale`
    is the largest magnitude of the output in the reference, of which the percentiles of the error
    are shares. `decisions` is None where the output decides nothing.
    """

    output: str
    runtime: str
    sqnr_db: float | None
    scale: float
    percentiles: Percentiles
    decisions: Decisions | None


@dataclass(frozen=True, repr=False)
class Verification(Shown, Serializable):
    """The verdict, what it rests on, and every comparison that was made.

    `differences` says in sentences why the verdict is "different", `culprits` names the layers of
    the original at which that begins, as far as the two models can be paired; `warnings` says what
    limits the verdict. `reference` is the evaluation that all others are compared with.
    `merged_by_exporter` are the layers that the exporter had already folded in the original's ONNX
    graph, None where there is no such graph.

    `fidelity` has the figures of each output in each runtime. Where the other model is a deployed
    one, `precision` says how precisely it computes, `format` what it is, and `paired` how its
    inputs and outputs were paired, where names did not say it. `is_user_data` tells whether all of
    this is about the user's samples, or about random ones. `refused` says which of the figures are
    not what was asked for.
    """

    verdict: Verdict
    basis: Basis
    differences: tuple[str, ...]
    warnings: tuple[str, ...]
    seed: int
    library: str
    rule: str
    comparisons: tuple[Comparison, ...] = ()
    sites: tuple[Site, ...] = ()
    culprits: tuple[str, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    reference: str | None = None
    merged_by_exporter: tuple[str, ...] | None = None
    sample_count: int = 0
    sample_kinds: tuple[str, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    format: str = "keras"
    precision: str | None = None
    paired: tuple[str, ...] = ()
    is_user_data: bool = False
    refused: tuple[str, ...] = ()

    json_keys: ClassVar[tuple[str, ...]] = (
        *("verdict", "basis", "reference", "library", "rule", "seed", "sample_count"),
        *("sample_kinds", "is_user_data", "format", "precision", "paired", "max_abs_error"),
        *("max_excess", "culprits", "differences", "refused", "warnings", "merged_by_exporter"),
        *("sites", "agreements", "fidelity", "comparisons"),
    )
    json_names: ClassVar[Mapping[str, str]] = {"reference": "yardstick"}

    @property
    def brief(self) -> str:
        """The verdict in a line, with the first reason for it."""
        said = [f"{self.verdict} by {self.basis}"]
        if self.culprits:
            said.append(f"beginning at {', '.join(self.culprits)}")
        said += [*self.differences, *self.refused, *self.warnings][:1]
        return "; ".join(said)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that came nearest to its tolerance, or went furthest beyond it.

        What the samples did not exercise is the worst of nothing, unless it failed all the same.
        """
        told = (one for one in self.comparisons if one.conclusive or not one.passed)
        return max(told, key=lambda one: one.excess, default=None)

    @property
    def max_abs_error(self) -> float | None:
        """The largest error of the folded model in all comparisons; None when there was none."""
        return max((one.folded.max_abs_error for one in self.comparisons), default=None)

    @property
    def max_excess(self) -> float | None:
        """The largest share of its tolerance that an error took; None where nothing tells."""
        return None if self.worst is None else self.worst.excess

    def sites_that_are(self, status: SiteStatus) -> tuple[Site, ...]:
        """The sites of one status."""
        return tuple(site for site in self.sites if site.status is status)

    def __bool__(self) -> bool:
        """Whether the two were seen to compute the same, as precisely as the other one computes.

        False where that is undecided, and where a figure is not what was asked for.
        """
        return self.verdict in {Verdict.EQUIVALENT, Verdict.APPROXIMATE} and not self.refused

    def reworded(self, change: Callable[[str], str]) -> Verification:
        """The same with other sentences, as where a file that they name is a temporary one."""
        differences, warnings = map(change, self.differences), map(change, self.warnings)
        return replace(self, differences=tuple(differences), warnings=tuple(warnings))

    def accepted(self, *, strict: bool = False) -> bool:
        """Whether the command line ends with 0.

        Without `strict` it is enough that nothing contradicts; with it, both runtimes must have
        judged, and every output and every site must have been exercised; or the files must hold
        the same model, which leaves nothing to verify. Figures that are not what was asked for are
        never accepted.
        """
        if self.refused:
            return False
        if strict:
            seen = not self.sites_that_are(SiteStatus.NOT_EXERCISED)
            judged = self.basis in _WHOLE
            is_right = self.verdict in {Verdict.EQUIVALENT, Verdict.APPROXIMATE}
            return is_right and judged and seen
        return self.verdict is not Verdict.DIFFERENT


_WHOLE = {Basis.BOTH, Basis.LITERT, Basis.TENSORFLOW, Basis.FILES}
"""On what a verdict rests where nothing that could have judged is missing."""
