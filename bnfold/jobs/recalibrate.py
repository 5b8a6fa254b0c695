"""Estimating the moving statistics of a model again, from data, and writing them into a copy of it.

The method is PreciseBN (Wu and Johnson, arXiv:2105.07576): the mean and variance of each
BatchNormalization's input over all data, in place of the moving average of the last batches of
training. Front to back, so that a layer sees its input as the corrected layers in front make it.
The file is edited as data: nothing changes but the numbers of moving_mean and moving_variance, and
the record in its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bnfold.audit.subject import first_layers
from bnfold.errors import BnfoldError
from bnfold.folding.keep import matches
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.jobs.fold import refuse_inside
from bnfold.jobs.planning import planned
from bnfold.jobs.staging import Staging, check_target, target_at
from bnfold.model.container.model_file import Kind, open_model
from bnfold.model.container.printing import printable
from bnfold.model.container.record import record
from bnfold.model.container.remote import Where
from bnfold.model.graph import LayerPath, show
from bnfold.model.modes import CallModes
from bnfold.model.moments import Moments
from bnfold.model.rounding import rounded
from bnfold.model.training import TrainingRule
from bnfold.observation import labels as labelled
from bnfold.observation import observer
from bnfold.observation.estimate import (
    Candidate,
    Change,
    Estimation,
    Kept,
    OtherScaleError,
    ScaleCheck,
)
from bnfold.observation.observe import DataRun, observe_running, start
from bnfold.running import borrowing, keras_runner, options, requirements
from bnfold.running.data import Source
from bnfold.serialize import Report, Shown, plain
from bnfold.version import __version__

CACHE = 1 << 30

# Of a standard deviation: far more than the order of sums can change, far less than matters.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """What running the new file over the data again shows.

    Attributes:
        layer: the one where what is recorded now and what is observed are furthest apart.
        distance: how far: of the means in standard deviations, or of the variances as a share,
            beyond what rounding to the dtype of the variables makes.
    """

    layer: LayerPath
    distance: float

    def __bool__(self) -> bool:
        """Whether it passed."""
        return self.passed

    @property
    def passed(self) -> bool:
        """Whether what is recorded is what is observed."""
        return self.distance <= _TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """The check for JSON."""
        return {
            "passed": self.passed,
            "layer": show(self.layer),
            "distance": plain(self.distance),
        }


@dataclass(frozen=True, repr=False)
class RecalibrationReport(Shown, Report):
    """What a recalibration did.

    Attributes:
        source: the model file that was read.
        target: where the recalibrated model was to go.
        written: whether it is there; False when a check failed.
        container: "keras", "keras-directory" or "h5", of both.
        samples: how many samples the statistics are of.
        scale: whether the data are of the scale that the model was trained on, as far as each of
            the first layers tells. Where they are not, nothing was estimated.
        passes: how often the data went through parts of the model.
        work: calls of layers that were made, as a multiple of those of one run of the model.
        recalibrated: the layers whose statistics are new, in the order of the file.
        kept: those that stay as they are.
        check: the new file, run over the data again; None where nothing was estimated.
        scores: how near each labelled output comes before and after; empty without labels.
        labels_problem: why an array y beside the data was not taken for labels.
        notes: sentences on what had to be done to load the model.
    """

    source: Where
    target: Where
    written: bool
    container: Kind
    samples: int
    scale: tuple[ScaleCheck, ...] = ()
    passes: int = 0
    work: float = 0.0
    recalibrated: tuple[Change, ...] = ()
    kept: tuple[Kept, ...] = ()
    check: Check | None = None
    scores: tuple[labelled.Score, ...] = ()
    labels_problem: str | None = None
    notes: tuple[str, ...] = ()

    json_keys: ClassVar[tuple[str, ...]] = (
        *("source", "target", "written", "container", "samples", "scale", "passes", "work"),
        *("recalibrated", "kept", "scores", "labels_problem", "check", "notes"),
    )

    @property
    def brief(self) -> str:
        """What was done, in a line."""
        written = "" if self.written else " not"
        layers = f"{len(self.recalibrated)} layers from {self.samples} samples"
        return f"recalibrated {layers}, {self.target} was{written} written"

    def __bool__(self) -> bool:
        """Whether the file was written."""
        return self.written

    @property
    def refusal(self) -> str | None:
        """Why the file was not written, in a sentence; None where it was."""
        if self.written:
            return None
        rescaled = next((check for check in self.scale if not check.passed), None)
        if self.check is None and rescaled is not None:
            return rescaled.sentence
        if self.check is not None and not self.check.passed:
            layer = printable(show(self.check.layer))
            return (
                f"the new file does not reproduce its statistics: {layer} is off by "
                f"{self.check.distance:.2g} deviations. Does the model compute the same twice?"
            )
        worse = [score.sentence for score in self.scores if score.worse]
        if worse:
            return f"the new statistics make the model worse: {'; '.join(worse)}"
        return None


@borrowing.guest()
def recalibrate_file(
    source: str | Where,
    target: str | Where,
    *,
    run: DataRun,
    layers: Sequence[str] = (),
    cache: int = CACHE,
    force: bool = False,
    allow_other_scale: bool = False,
    labels: Source | None = None,
    allow_worse: bool = False,
    sha256: Sequence[str] = (),
) -> RecalibrationReport:
    """Write the model in `source` to `target` with statistics estimated from the data of `run`.

    `layers` are shell patterns of names or nested paths; without them all layers are meant that are
    not frozen. `cache` is how many bytes of values may be kept to save work. Data of another scale
    than those that the model was trained on, as its first layers show, end it with nothing written,
    unless `allow_other_scale`; so does a model that fits `labels` worse than before, unless
    `allow_worse`. An array y beside the data is taken for labels.
    `sha256` are digests of which the source must have one, if there are any.

    Raises:
        UnreadableModelError, UnsafeModelError: the source cannot be read or loaded.
        VerificationImpossibleError: Keras is not installed or cannot be imported, or the model has
            no graph.
        OutputError: the target cannot be written, or exists and `force` is not given.
        BnfoldError: the data do not fit, the model cannot run on them or what goes into a layer is
            not finite, no layer can be recalibrated, or statistics do not fit into their dtype.
    """
    layers = options.names("layers", layers)
    cache = options.whole("cache", cache)
    target = target_at(target)
    requirements.require("recalibrate")
    with open_model(source, sha256) as model:
        check_target(target, model.kind, force=force)
        refuse_inside(target, model)
        decided = planned(model)
        decisions = list(decided.decisions)
        _refuse_unused(layers, decisions)
        given = None if labels is None else labelled.read(labels)
        running = start(model.path, run)
        wanted, problem = labelled.targets_for(given, running.loaded.model, running.data, run.data)
        before = labelled.Scorer(wanted)
        if before.wanted:
            observe_running(running, {}, run.report, before.note)
        candidates = list(_candidates(decided, layers))
        job = Estimation(running, candidates, run.report, allow_other_scale=allow_other_scale)
        report = RecalibrationReport(
            source=model.given,
            target=target,
            written=False,
            container=model.kind,
            samples=running.samples,
            labels_problem=problem,
            notes=running.loaded.notes,
        )
        try:
            estimates, changes, kept = job.run(cache)
        except OtherScaleError:
            return replace(report, scale=job.scale_checks)
        if not changes:
            reasons = "; ".join(dict.fromkeys(one.reason for one in kept)) or "it has none"
            raise BnfoldError(
                f"{printable(str(model.given))}: no BatchNormalization can be recalibrated: "
                f"{reasons}"
            )
        made = record(
            model.metadata,
            __version__,
            model.sha256(),
            recalibrated={
                "samples": running.samples,
                "layers": [show(change.batchnorm.path) for change in changes],
                "kept": plain(kept),
            },
        )
        with Staging(target, model.kind, force=force) as staging:
            model.rewrite(_variables(changes), staging.path, made)
            run.report("checking the new file")
            after = labelled.Scorer(before.wanted)
            check = check_written(staging.path, run, changes, after.note)
            scores = labelled.compare(before, after) if before.wanted else ()
            written = check.passed and (allow_worse or not any(one.worse for one in scores))
            if written:
                model.release()
                staging.publish()
    return replace(
        report,
        written=written,
        scale=job.scale_checks,
        scores=scores,
        passes=estimates.passes,
        work=estimates.calls / max(1, estimates.calls_of_model),
        recalibrated=changes,
        kept=kept,
        check=check,
    )


def _candidates(decided: Plan, patterns: Sequence[str]) -> Iterator[Candidate]:
    first = set(first_layers(decided))
    for decision in decided.decisions:
        path = decision.batchnorm.path
        yield Candidate(
            decision.batchnorm,
            is_first=path in first,
            is_named=matches(path, *patterns) if patterns else None,
            modes=_modes(decided, path),
        )


def _modes(decided: Plan, path: LayerPath) -> dict[TrainingRule, CallModes]:
    if decided.modes is None:
        return {}
    return {rule: decided.modes.in_version(path, rule) for rule in decided.modes.readers}


def _refuse_unused(patterns: Sequence[str], decisions: Sequence[Fold | Blocked]) -> None:
    for pattern in patterns:
        if not any(matches(decision.batchnorm.path, pattern) for decision in decisions):
            raise BnfoldError(f"--layers {pattern!r} matches no BatchNormalization of the model")


def _variables(changes: Sequence[Change]) -> dict[str, NDArray[Any]]:
    """The new numbers by where the file has the variables."""
    return {
        weight.source: rounded(values, weight.dtype)
        for change in changes
        for name, values in (("moving_mean", change.mean), ("moving_variance", change.variance))
        for weight in [(change.batchnorm.weights or {})[name]]
        if weight.source is not None
    }


def check_written(
    path: Path,
    run: DataRun,
    changes: Sequence[Change],
    see: Callable[[list[NDArray[Any]]], None] = lambda _: None,
) -> Check:
    """Load the new file, run it over the data, and compare what it records with what is seen.

    `see` is called with the outputs for each batch.
    """
    running = start(path, run)
    found = observer.normalizations(running.loaded)
    seen = observe_running(running, found, run.report, see)
    paths = [change.batchnorm.path for change in changes]
    distances = {
        path: _distance(change, found[path].layer, seen[path].moments)
        for path, change in zip(paths, changes, strict=True)
    }
    worst = max(distances, key=lambda path: distances[path])
    return Check(worst, distances[worst])


def _distance(change: Change, layer: Any, seen: Moments | None) -> float:
    """How far what a layer of the new file records is from what it sees; see `Check`."""
    before = change.observed.moments
    if before is None or seen is None:
        return math.inf
    spread = seen.variance + (change.batchnorm.epsilon or 0.0)
    pairs = (
        ("moving_mean", change.mean, before.mean, seen.mean, np.sqrt(spread)),
        ("moving_variance", change.variance, before.variance, seen.variance, spread),
    )
    worst = 0.0
    for name, stored, exact, now, size in pairs:
        apart = np.abs(keras_runner.numbers(getattr(layer, name)) - now) - np.abs(stored - exact)
        share = np.where(apart <= 0, 0.0, apart / np.where(size > 0, size, 1.0))
        worst = max(worst, float(np.nan_to_num(share, nan=math.inf).max(initial=0.0)))
    return worst
