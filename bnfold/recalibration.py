"""Estimating the moving statistics of a model again, from data, and writing them into a copy of it.

The method is PreciseBN (Wu and Johnson, arXiv:2105.07576): the mean and variance of each
BatchNormalization's input over all data, in place of the moving average of the last batches of
training. Front to back, so that a layer sees its input as the corrected layers in front make it.
The file is edited as data: nothing changes but the numbers of moving_mean and moving_variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.audit import Channels
from bnfold.conversion import refuse_inside
from bnfold.errors import BnfoldError
from bnfold.folding.plan import Blocked, Fold, plan
from bnfold.folding.scope import matches
from bnfold.inspection import loose, spread
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.container import Kind, open_model
from bnfold.model.graph import Path as LayerPath
from bnfold.model.graph import finite_number, show
from bnfold.model.guard import printable
from bnfold.model.rounding import rounded
from bnfold.moments import Divergence, Moments, Observed, divergence
from bnfold.staging import Staging, check_target
from bnfold.verification import runtime
from bnfold.verification.observe import (
    DataRun,
    Running,
    Ticker,
    in_one_line,
    observe_running,
    start,
)

SCHEMA_VERSION = 1
MEMORY = 1 << 30
_STATISTICS = ("moving_mean", "moving_variance")

# Of a standard deviation: far more than the order of sums can change, far less than matters.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Change:
    """One layer whose statistics are new.

    Attributes:
        batchnorm: the layer with what was recorded.
        observed: what went into it.
        mean, variance: what it has now, as stored, (channels,) in float64.
        note: what else a user should know of it, a sentence; None for nothing.
    """

    batchnorm: BatchNorm
    observed: Observed
    mean: Vector
    variance: Vector
    note: str | None = None

    @property
    def divergence(self) -> Divergence:
        """How far the new statistics are from those recorded before."""
        before = self.batchnorm.vectors or {}
        recorded = (before["moving_mean"], before["moving_variance"])
        return divergence(recorded, (self.mean, self.variance), self.batchnorm.epsilon or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `recalibrated` in the JSON report."""
        found = self.divergence
        moments = self.observed.moments
        return {
            "name": show(self.batchnorm.path),
            "channels": len(self.mean),
            "constant_channels": int(np.count_nonzero(self.variance == 0)),
            "values": 0 if moments is None else int(moments.count.max(initial=0)),
            "calls": self.observed.calls,
            "shift": spread(found.shift),
            "variance_ratio": spread(found.ratio),
            "kl": spread(found.kl),
            "note": self.note,
        }


@dataclass(frozen=True)
class Kept:
    """One layer that stays as it is, and a clause on why."""

    batchnorm: BatchNorm
    reason: str


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

    @property
    def passed(self) -> bool:
        """Whether what is recorded is what is observed."""
        return self.distance <= _TOLERANCE


@dataclass(frozen=True)
class RecalibrationReport:
    """What a recalibration did.

    Attributes:
        source: the model file that was read.
        target: where the recalibrated model was to go.
        written: whether it is there; False when the check failed.
        container: "keras", "keras-directory" or "h5", of both.
        samples: how many samples the statistics are of.
        passes: how often the data went through parts of the model.
        work: calls of layers that were made, as a multiple of those of one run of the model.
        recalibrated: the layers whose statistics are new, in the order of the file.
        kept: those that stay as they are.
        check: the new file, run over the data again.
    """

    source: Path
    target: Path
    written: bool
    container: Kind
    samples: int
    passes: int
    work: float
    recalibrated: tuple[Change, ...]
    kept: tuple[Kept, ...]
    check: Check

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": str(self.source),
            "target": str(self.target),
            "written": self.written,
            "container": self.container,
            "samples": self.samples,
            "passes": self.passes,
            "work": self.work,
            "recalibrated": [change.to_dict() for change in self.recalibrated],
            "kept": [
                {"name": show(kept.batchnorm.path), "reason": kept.reason} for kept in self.kept
            ],
            "check": {
                "passed": self.check.passed,
                "layer": show(self.check.layer),
                "distance": finite_number(self.check.distance),
            },
        }


def recalibrate_file(
    source: str | Path,
    target: str | Path,
    *,
    run: DataRun,
    layers: Sequence[str] = (),
    memory: int = MEMORY,
    force: bool = False,
) -> RecalibrationReport:
    """Write the model in `source` to `target` with statistics estimated from the data of `run`.

    `layers` are shell patterns of names or nested paths; without them all layers are meant that are
    not frozen. `memory` is how many bytes of values may be kept to save work.

    Raises:
        UnreadableModelError, UnsafeModelError: the source cannot be read or loaded.
        VerificationImpossibleError: Keras cannot be imported, or the model has no graph.
        OutputError: the target cannot be written, or exists and `force` is not given.
        BnfoldError: the data do not fit, the model cannot run on them or what goes into a layer is
            not finite, no layer can be recalibrated, or statistics do not fit into their dtype.
    """
    target = Path(target)
    with open_model(source) as model:
        check_target(target, model.kind, force=force)
        refuse_inside(target, model)
        decisions = [*plan(model.graph).decisions, *loose(model)]
        _refuse_unused(layers, decisions)
        running = start(model.path, run)
        job = _Estimation(running, decisions, run.progress)
        estimates, changes, kept = job.run(layers, memory)
        if not changes:
            reasons = "; ".join(dict.fromkeys(one.reason for one in kept)) or "it has none"
            raise BnfoldError(
                f"{printable(str(source))}: no BatchNormalization can be recalibrated: {reasons}"
            )
        with Staging(target, model.kind, force=force) as staging:
            model.rewrite(_variables(changes), staging.path)
            run.progress("checking the new file")
            check = check_written(staging.path, run, changes)
            if check.passed:
                staging.publish()
    return RecalibrationReport(
        source=Path(source),
        target=target,
        written=check.passed,
        container=model.kind,
        samples=running.samples,
        passes=estimates.passes,
        work=estimates.calls / max(1, estimates.calls_of_model),
        recalibrated=changes,
        kept=kept,
        check=check,
    )


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


def check_written(path: Path, run: DataRun, changes: Sequence[Change]) -> Check:
    """Load the new file, run it over the data, and compare what it records with what is seen."""
    running = start(path, run)
    found = runtime.normalizations(running.loaded)
    seen = observe_running(running, found, run.progress)
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
    epsilon = change.batchnorm.epsilon or 0.0
    apart = []
    for variable, stored, exact, now, size in (
        ("moving_mean", change.mean, before.mean, seen.mean, np.sqrt(seen.variance + epsilon)),
        (
            "moving_variance",
            change.variance,
            before.variance,
            seen.variance,
            seen.variance + epsilon,
        ),
    ):
        recorded = runtime.numbers(getattr(layer, variable))
        beyond = np.abs(recorded - now) - np.abs(stored - exact)
        apart.append(np.where(beyond <= 0, 0.0, beyond / np.where(size > 0, size, 1.0)))
    return float(np.nan_to_num(np.max(apart), nan=math.inf))


class _Estimation:
    """Which layers of a file get new statistics, and what they get."""

    def __init__(
        self, running: Running, decisions: Sequence[Fold | Blocked], report: Callable[[str], None]
    ) -> None:
        self._running, self._report = running, report
        self._decisions = {decision.batchnorm.path: decision for decision in decisions}
        self._found = runtime.normalizations(running.loaded)
        self._reasons: dict[LayerPath, str] = {}
        # By object, of which one may stand in several places.
        self._settled: dict[int, tuple[Vector, Vector]] = {}
        self._unsettled: dict[int, str] = {}
        self._ticker: tuple[str, Ticker] = ("", Ticker(report, 0))

    def run(
        self, patterns: Sequence[str], memory: int
    ) -> tuple[runtime.Estimates, tuple[Change, ...], tuple[Kept, ...]]:
        """All passes over the data: what they cost, the new statistics, and what stays."""
        for path, decision in self._decisions.items():
            reason = next(self._reasons_to_keep(decision, patterns), None)
            if reason is not None:
                self._reasons[path] = reason
        chosen = {p: self._found[p] for p in self._decisions if p not in self._reasons}
        estimates = self._estimate(chosen, memory) if chosen else runtime.Estimates()
        self._reasons |= estimates.refused
        self._reasons |= {
            path: self._unsettled[id(one.layer)]
            for path, one in chosen.items()
            if id(one.layer) in self._unsettled
        }
        changes = tuple(
            self._change(path, estimates.observed[path])
            for path in chosen
            if path not in self._reasons
        )
        kept = (
            Kept(decision.batchnorm, self._reasons[path])
            for path, decision in self._decisions.items()
            if path in self._reasons
        )
        return estimates, changes, tuple(kept)

    def _reasons_to_keep(self, decision: Fold | Blocked, patterns: Sequence[str]) -> Iterator[str]:
        batchnorm = decision.batchnorm
        one = self._found.get(batchnorm.path)
        if patterns and not any(matches(batchnorm.path, pattern) for pattern in patterns):
            yield "no pattern of --layers matches it"
        if not batchnorm.is_configured:
            yield "it is inside a layer that is not Keras' own"
        if one is None:
            yield "the model does not call it"
            return
        if batchnorm.vectors is None:
            yield "the file does not tell its variables apart"
        if not patterns and not one.layer.trainable:
            yield "it is frozen: what follows was trained with these statistics (--layers insists)"
        if _trains(decision) and self._running.loaded.library == "tf_keras":
            yield "it is called with training=True, where Keras 2 never reads its statistics"
        if not _is_loaded(batchnorm, one.layer):
            yield "Keras loads other statistics for it than the file shows"

    def _estimate(
        self, chosen: Mapping[LayerPath, runtime.Normalization], memory: int
    ) -> runtime.Estimates:
        running = self._running
        layers = f"{len(chosen)} {'layer' if len(chosen) == 1 else 'layers'}"
        self._report(f"estimating {layers} from {running.samples} samples")
        with in_one_line(running.loaded.path):
            return runtime.estimate(
                running.loaded,
                runtime.Batches(running.sizes, running.batch),
                chosen,
                self._settle,
                memory=memory,
                report=self._tell,
            )

    def _tell(self, doing: str, samples: int) -> None:
        if doing != self._ticker[0]:
            self._ticker = doing, Ticker(self._report, self._running.samples, f"{doing}: ")
        self._ticker[1].advance(samples)

    def _settle(
        self, path: LayerPath, observed: Observed
    ) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """What a layer gets, rounded to the dtype of its variables; None if that cannot be told."""
        name, moments = printable(show(path)), observed.moments
        layer = id(self._found[path].layer)
        if observed.non_finite.any():
            channels = Channels.of(observed.non_finite > 0)
            raise BnfoldError(f"the input of {name!r} is not finite in {channels}; nothing written")
        if moments is None or not moments.squares.any():
            self._unsettled[layer] = observed.problem or "its input never changes over the data"
            return None
        weights = self._decisions[path].batchnorm.weights or {}
        found = (moments.mean, moments.variance)
        pairs = zip(found, (weights[one] for one in _STATISTICS), strict=True)
        mean, variance = (rounded(values, weight.dtype) for values, weight in pairs)
        if not (_is_finite(mean) and _is_finite(variance)):
            raise BnfoldError(
                f"the statistics of {name!r} do not fit into {mean.dtype}: up to "
                f"{max(float(np.abs(values).max()) for values in found):.3g}; nothing written"
            )
        self._settled[layer] = (mean.astype(np.float64), variance.astype(np.float64))
        return mean, variance

    def _change(self, path: LayerPath, observed: Observed) -> Change:
        mean, variance = self._settled[id(self._found[path].layer)]
        decision = self._decisions[path]
        return Change(decision.batchnorm, observed, mean, variance, _note(decision, observed))


def _trains(decision: Fold | Blocked) -> bool:
    return isinstance(decision, Blocked) and decision.batch_statistics


def _note(decision: Fold | Blocked, observed: Observed) -> str | None:
    notes = []
    if _trains(decision):
        notes.append("called with training=True: only predict reads its statistics")
    if observed.calls > 1:
        notes.append(f"the inputs of its {observed.calls} calls are taken together")
    return "; ".join(notes) or None


def _is_finite(values: NDArray[Any]) -> bool:
    return bool(np.isfinite(values.astype(np.float64)).all())


def _is_loaded(batchnorm: BatchNorm, layer: Any) -> bool:
    """Whether Keras has put the statistics of the file into this layer, and no other ones."""
    vectors = batchnorm.vectors or {}
    return all(
        np.allclose(runtime.numbers(getattr(layer, name)), vectors[name], 0.01, 0, equal_nan=True)
        for name in _STATISTICS
    )
