"""Which layers of a file get statistics that are estimated from data, and what they get.

A frozen layer keeps its statistics unless it is named, because the layers after it were trained
with them. A layer also keeps them if the model never reads them, if the file does not tell its
variables apart, or if its input does not change over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import BnfoldError
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.channels import Channels
from bnfold.model.container.printing import printable
from bnfold.model.graph import LayerPath, show
from bnfold.model.modes import CallModes
from bnfold.model.moments import Divergence, Observed, Scale, divergence, scale, spread, times
from bnfold.model.rounding import rounded
from bnfold.model.training import TrainingRule, training_rules
from bnfold.observation import observer, steps
from bnfold.observation.observe import Running, Ticker, in_one_line
from bnfold.running import keras_runner
from bnfold.serialize import plain

STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True)
class Candidate:
    """A BatchNormalization of a file that may get new statistics.

    Attributes:
        batchnorm: the layer with what is recorded.
        is_first: whether no other BatchNormalization is upstream of it.
        is_named: whether the user named it; None where the user named no layers.
        modes: in which calls of the model it runs in training mode, by version of Keras.
    """

    batchnorm: BatchNorm
    is_first: bool
    is_named: bool | None
    modes: Mapping[TrainingRule, CallModes]

    def modes_in(self, version: str) -> CallModes:
        """In which calls of the model it runs in training mode in a version of Keras."""
        rules = training_rules(version)
        return next((self.modes[rule] for rule in rules if rule in self.modes), CallModes())


@dataclass(frozen=True)
class Change:
    """One layer whose statistics are new.

    Attributes:
        batchnorm: the layer with what was recorded.
        observed: what went into it.
        mean, variance: what it has now, as stored, (channels,) in float64.
        note: what else a user should know about it, a sentence; None for nothing.
    """

    batchnorm: BatchNorm
    observed: Observed
    mean: Vector
    variance: Vector
    note: str | None = None

    def __repr__(self) -> str:
        return f"<Change: {printable(show(self.batchnorm.path))}, {self.observed!r}>"

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

    def to_dict(self) -> dict[str, Any]:
        """One entry of `kept` in the JSON report, and in the record in the file."""
        return {"name": show(self.batchnorm.path), "reason": self.reason}


@dataclass(frozen=True)
class ScaleCheck:
    """Whether the data have the scale that the statistics of a first layer were learnt from.

    Attributes:
        layer: one without another BatchNormalization upstream.
        scale: how large the data are relative to the recorded ones; None where that is unknown.
        problem: why it is unknown, a clause.
    """

    layer: LayerPath
    scale: Scale | None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the data may be of the scale that the model was trained on."""
        return self.scale is None or self.scale.excess <= 1

    @property
    def sentence(self) -> str | None:
        """How the scale of the data is off; None where it is not."""
        if self.scale is None or self.passed:
            return None
        return (
            "the data are not of the scale that the model was trained on: the standard deviation "
            f"of the input of {printable(show(self.layer))} is {times(self.scale.factor)} as "
            f"large as recorded, and the mean is {self.scale.shift:.2g} standard deviations off "
            "(median of the channels)"
        )

    def to_dict(self) -> dict[str, Any]:
        """One entry of `scale` in the JSON report."""
        found = self.scale
        return {
            "name": show(self.layer),
            "passed": None if found is None else self.passed,
            "factor": None if found is None else plain(found.factor),
            "shift": None if found is None else plain(found.shift),
            "problem": self.problem,
        }


class OtherScaleError(Exception):
    """The data are of another scale than those that the model was trained on."""


class Estimation:
    """Which layers of a file get new statistics, and what they get.

    Unless any scale is allowed, a first layer that sees data of another scale ends it all with
    `OtherScaleError`.
    """

    def __init__(
        self,
        running: Running,
        candidates: Sequence[Candidate],
        report: Callable[[str], None],
        *,
        allow_other_scale: bool,
    ) -> None:
        self._running, self._report = running, report
        self._allowed = allow_other_scale
        self._checks: dict[LayerPath, ScaleCheck] = {}
        self._chosen: Mapping[LayerPath, observer.Normalization] = {}
        self._problems: Mapping[LayerPath, str] = {}
        self._candidates = {one.batchnorm.path: one for one in candidates}
        self._found = observer.normalizations(running.loaded)
        # One object in several places has one set of statistics, so all its places must be first.
        self._first = [p for p in self._candidates if self._all_first(self._places(p))]
        self._reasons: dict[LayerPath, str] = {}
        # By object, of which one may stand in several places.
        self._settled: dict[int, tuple[Vector, Vector]] = {}
        self._unsettled: dict[int, str] = {}
        self._ticker: tuple[str, Ticker] = ("", Ticker(report, 0))

    def run(self, memory: int) -> tuple[steps.Estimates, tuple[Change, ...], tuple[Kept, ...]]:
        """All passes over the data: what they cost, the new statistics, and what stays."""
        self._reasons = self._all_reasons()
        chosen = {p: self._found[p] for p in self._candidates if p not in self._reasons}
        self._chosen = chosen
        estimates = self._estimate(memory) if chosen else steps.Estimates()
        self._problems = estimates.refused
        self._reasons |= {p: reason for p, reason in estimates.refused.items() if p in chosen}
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
            Kept(one.batchnorm, self._reasons[path])
            for path, one in self._candidates.items()
            if path in self._reasons
        )
        return estimates, changes, tuple(kept)

    @property
    def scale_checks(self) -> tuple[ScaleCheck, ...]:
        """What became of each of the first layers, in the order of the file."""
        unseen = "it was not run over the data"
        return tuple(
            self._checks.get(path) or ScaleCheck(path, None, self._problems.get(path, unseen))
            for path in self._first
        )

    def _watched(self) -> dict[LayerPath, observer.Normalization]:
        """The first layers that can be looked at, whether they get new statistics or not."""
        readable = (p for p in self._first if self._candidates[p].batchnorm.vectors is not None)
        return {path: self._found[path] for path in readable if path in self._found}

    def _check_scale(self, path: LayerPath, observed: Observed) -> None:
        vectors = self._candidates[path].batchnorm.vectors or {}
        recorded = vectors["moving_mean"], vectors["moving_variance"]
        moments, found = observed.moments, None
        problem = observed.problem or "its input never changes over the data"
        if moments is not None and moments.squares.any():
            found = scale(recorded, (moments.mean, moments.variance))
            problem = "its recorded statistics say nothing about the data that it was trained on"
        check = ScaleCheck(path, found, problem if found is None else None)
        self._checks[path] = check
        if not (check.passed or self._allowed):
            raise OtherScaleError

    def _all_reasons(self) -> dict[LayerPath, str]:
        """Why layers stay; what holds in one place of a layer holds in all."""
        own = {path: next(self._reasons_to_keep(path), None) for path in self._candidates}
        found = {}
        for path in self._candidates:
            reason = next(filter(None, (own[p] for p in (path, *self._places(path)))), None)
            if reason is not None:
                found[path] = reason
        return found

    def _all_first(self, places: Sequence[LayerPath]) -> bool:
        return all(self._candidates[place].is_first for place in places)

    def _places(self, path: LayerPath) -> list[LayerPath]:
        """All places of the file where the layer object of this one stands."""
        layer = self._found[path].layer if path in self._found else None
        same = (p for p, one in self._found.items() if one.layer is layer and p in self._candidates)
        return list(same) or [path]

    def _reasons_to_keep(self, path: LayerPath) -> Iterator[str]:
        candidate, one = self._candidates[path], self._found.get(path)
        batchnorm = candidate.batchnorm
        named = [self._candidates[place].is_named for place in self._places(path)]
        if candidate.is_named is not None and not any(named):
            yield "no pattern of --layers matches it"
        if not batchnorm.is_configured:
            yield "it is inside a custom layer"
        if one is None:
            yield "the model does not call it"
            return
        if batchnorm.vectors is None:
            yield "the file does not tell its variables apart"
        if candidate.is_named is None and not one.layer.trainable:
            yield "it is frozen: later layers were trained with its statistics (--layers overrides)"
        if not all(weight.dtype.kind in "fV" for weight in (batchnorm.weights or {}).values()):
            yield "its variables are not floating-point numbers"
        version = self._running.loaded.keras.__version__
        if candidate.modes_in(version).off:
            yield f"Keras {version} runs it in training mode always, and never reads its statistics"
        if not _is_loaded(batchnorm, one.layer):
            yield "Keras loads other statistics for it than the file shows"

    def _estimate(self, memory: int) -> steps.Estimates:
        running, count = self._running, len(self._chosen)
        layers = f"{count} {'layer' if count == 1 else 'layers'}"
        self._report(f"estimating {layers} from {running.samples} samples")
        with in_one_line(running.loaded.path):
            return steps.estimate(
                running.loaded,
                steps.Batches(running.sizes, running.batch),
                {**self._chosen, **self._watched()},
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
        """What a layer gets, rounded to the dtype of its variables.

        None if that cannot be told, or if the layer stays as it is.
        """
        if path in self._first:
            self._check_scale(path, observed)
        if path not in self._chosen:
            return None
        name, moments = printable(show(path)), observed.moments
        layer = id(self._found[path].layer)
        if observed.non_finite.any():
            channels = Channels.of(observed.non_finite > 0)
            raise BnfoldError(f"the input of {name!r} is not finite in {channels}; nothing written")
        if moments is None or not moments.squares.any():
            self._unsettled[layer] = observed.problem or "its input never changes over the data"
            return None
        weights = self._candidates[path].batchnorm.weights or {}
        found = (moments.mean, moments.variance)
        pairs = zip(found, (weights[one] for one in STATISTICS), strict=True)
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
        candidate = self._candidates[path]
        modes = candidate.modes_in(self._running.loaded.keras.__version__)
        return Change(candidate.batchnorm, observed, mean, variance, _note(modes, observed))


def _note(modes: CallModes, observed: Observed) -> str | None:
    notes = []
    if modes.plain:
        notes.append("called in training mode by model(x): only predict reads its statistics")
    if observed.calls > 1:
        notes.append(f"the inputs of its {observed.calls} calls are pooled")
    return "; ".join(notes) or None


def _is_finite(values: NDArray[Any]) -> bool:
    return bool(np.isfinite(values.astype(np.float64)).all())


def _is_loaded(batchnorm: BatchNorm, layer: Any) -> bool:
    """Whether the loaded layer has the statistics of the file."""
    vectors = batchnorm.vectors or {}
    loaded = {name: np.ravel(keras_runner.numbers(getattr(layer, name))) for name in STATISTICS}
    return all(
        loaded[name].shape == vectors[name].shape
        and np.allclose(loaded[name], vectors[name], 0.01, 0, equal_nan=True)
        for name in STATISTICS
    )
