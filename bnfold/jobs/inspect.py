"""What `inspect` finds out: every BatchNormalization, the plan for it, and its health."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from bnfold.audit import RULES, Finding, Rule, Severity, Thresholds, audit, joined
from bnfold.audit.selection import Suppressed
from bnfold.folding.affine import from_batchnorm
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.jobs.planning import SUBCLASSED, planned
from bnfold.model.batchnorm import BatchNorm, Vector
from bnfold.model.container.model_file import Kind, ModelFile, open_model
from bnfold.model.container.record import recalibration
from bnfold.model.container.remote import Where
from bnfold.model.graph import Graph, LayerPath, show
from bnfold.model.moments import Divergence, Observed, divergence, median, spread
from bnfold.model.outline import Step, outline
from bnfold.model.policy import policy_name
from bnfold.model.program import Program
from bnfold.model.refusal import Refusal
from bnfold.serialize import Shown, plain

if TYPE_CHECKING:
    from bnfold.observation.observe import DataRun


CHECKED_AT_ONCE = 256 << 20
"""Weights of how many bytes are read as a whole, to see that they have their checksum.

The plan has read most of it by then. Of larger ones the checksum takes a noticeable time, and is
left out. Whatever makes another file of a model checks all of it.
"""


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """One model file, inspected.

    Attributes:
        path: the file, or the URL of a model in a store.
        container: "keras", "keras-directory" or "h5".
        keras_version: the version that wrote it, where it tells.
        plan: one decision for each BatchNormalization.
        findings: what the health rules say.
        graph: the model that the plan is for.
        note: why nothing can be folded at all, where that is so, and what had to be done to load
            the model, where it ran.
        suppressed: findings that do not count, for a reason that somebody gave.
        observed: what went into each layer while the model ran over data; None where it did not.
        thresholds: the settings of the rules that were asked.
    """

    path: Where
    container: Kind
    keras_version: str | None
    plan: Plan = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    graph: Graph = field(repr=False)
    note: str | None = None
    suppressed: tuple[Suppressed, ...] = field(default=(), repr=False)
    observed: Mapping[LayerPath, Observed] | None = field(default=None, repr=False)
    thresholds: Thresholds = field(default_factory=Thresholds, repr=False)

    @property
    def brief(self) -> str:
        """What was found, in a line."""
        folds, layers = len(self.plan.folds), len(self.plan.decisions)
        counts = Counter(finding.severity for finding in self.findings)
        found = [f"{counts[s]} {s}{'s' * (counts[s] > 1)}" for s in Severity if counts[s]]
        said = ", ".join(found) or "no findings"
        return f"{self.path}, {folds} of {layers} BatchNormalization layers fold, {said}"

    def __bool__(self) -> NoReturn:
        """Refuse: which findings count is not for an inspection to say.

        Raises:
            TypeError: always.
        """
        raise TypeError("an inspection is neither true nor false: look at its findings")

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The model from top to bottom; empty for a subclassed one, whose file has no graph."""
        return outline(self.plan.program or Program(self.graph))

    def to_dict(self) -> dict[str, Any]:
        """One entry of `models` in the JSON report."""
        return {
            "path": str(self.path),
            "container": self.container,
            "keras_version": self.keras_version,
            "note": self.note,
            "keras": keras_versions(self.plan),
            "batchnorms": [describe(one, self.observed_at(one)) for one in self.plan.decisions],
            "findings": plain(self.findings),
            "suppressed": plain(self.suppressed),
        }

    def observed_at(self, decision: Fold | Blocked) -> Observed | None:
        """What went into one layer; None where the model did not run, or the layer was not seen."""
        return (self.observed or {}).get(decision.batchnorm.path)

    def findings_on(self, decision: Fold | Blocked) -> tuple[Finding, ...]:
        """The findings on one layer."""
        return tuple(found for found in self.findings if found.layer == decision.batchnorm.path)

    def suppressed_on(self, decision: Fold | Blocked) -> tuple[Suppressed, ...]:
        """The findings on one layer that do not count."""
        path = decision.batchnorm.path
        return tuple(one for one in self.suppressed if one.finding.layer == path)

    def layer(self, name: str) -> Fold | Blocked | None:
        """The decision for the layer of this nested path, or of this name if it is the only one."""
        by_path = [d for d in self.plan.decisions if show(d.batchnorm.path) == name]
        by_name = [d for d in self.plan.decisions if d.batchnorm.path[-1:] == (name,)]
        found = by_path or by_name
        return found[0] if len(found) == 1 else None


def inspect_file(
    path: str | Where,
    *,
    rules: Iterable[Rule] = RULES,
    thresholds: Thresholds | None = None,
    target_dtype: str | None = None,
    run: "DataRun | None" = None,
    join: bool = True,
    sha256: Sequence[str] = (),
    keras: str | None = None,
) -> Inspection:
    """Inspect a model file without running or importing anything that it names, unless `run`.

    Args:
        path: the file, or the URL of a model in a store. Of a large one there only parts are
            fetched, unless it runs or must have a digest; `note` says what that leaves out.
        rules: the health rules to ask.
        thresholds: their settings; without it the defaults.
        target_dtype: what the model will be run in, as for `bnfold.audit.audit`.
        run: data to load the model for and run it over, to see what goes into its layers.
        join: whether a finding that follows from another one becomes a part of that.
        sha256: digests of which the file must have one; none for any file.
        keras: the version that will run the model, as for `planned`.

    Raises:
        SettingsError: `target_dtype` is not known, or `keras` is no version.
        UnreadableModelError: it is no Keras model, or a damaged one.
        UnsafeModelError: it asks for what a model file must not ask for.
        VerificationImpossibleError: Keras is not installed or cannot be imported, or the model has
            no graph to run.
        BnfoldError: the data do not fit, or the model cannot run on them.
    """
    if run is not None:
        require_data()
    opened = open_model(path, sha256, ranged=run is None)
    with opened as model:
        return inspect_model(
            model,
            planned(model, keras=keras),
            rules=rules,
            thresholds=thresholds,
            target_dtype=target_dtype,
            run=run,
            join=join,
            unchecked=partial(model.check_weights, CHECKED_AT_ONCE),
        )


def inspect_model(
    model: ModelFile,
    decided: Plan,
    *,
    rules: Iterable[Rule],
    thresholds: Thresholds | None,
    target_dtype: str | None,
    run: "DataRun | None",
    join: bool,
    unchecked: Callable[[], str | None] = lambda: None,
) -> Inspection:
    """Inspect an open model file for which there is a plan; see `inspect_file`.

    `unchecked` says at the end what of the file has not been checked, if anything.
    """
    optimizers = model.optimizers  # before anything runs: this part of the file may be damaged
    observed, notes = (None, ()) if run is None else _observe(model.path, run)
    with model.named():
        found = audit(
            decided,
            rules,
            thresholds=thresholds,
            target_dtype=target_dtype,
            optimizers=optimizers,
            observed=observed,
            recalibration=recalibration(model.metadata),
        )
    return Inspection(
        path=model.given,
        container=model.kind,
        keras_version=model.keras_version,
        plan=_read(decided),
        findings=joined(found) if join else found,
        graph=model.graph,
        note="; ".join([*_notes(model.graph), *filter(None, [unchecked(), model.note]), *notes])
        or None,
        observed=observed,
        thresholds=Thresholds() if thresholds is None else thresholds,
    )


def keras_versions(decided: Plan) -> dict[str, Any]:
    """For which versions of Keras a plan holds, for reports."""
    return {
        "versions": [] if decided.modes is None else [r.versions for r in decided.modes.rules],
        "exceptions": [
            {"name": show(path), "versions": [rule.versions for rule in rules]}
            for path, rules in decided.exceptions.items()
        ],
    }


def _notes(graph: Graph) -> Iterator[str]:
    """Why nothing in a model can be folded at all."""
    if graph.kind == "subclassed":
        yield SUBCLASSED
    if graph.obstacle is not None:
        yield graph.obstacle.reason


def require_data() -> None:
    """See that what runs models over data is there. Raises VerificationImpossibleError."""
    from bnfold.running import requirements  # noqa: PLC0415 - most inspections run nothing

    requirements.require("inspect --data")


def _observe(path: Path, run: "DataRun") -> tuple[dict[LayerPath, Observed], tuple[str, ...]]:
    from bnfold.observation.observe import observe  # noqa: PLC0415 - most inspections run nothing

    return observe(path, run)


def _read(decided: Plan) -> Plan:
    """The plan with every vector read, because the file is about to be closed."""
    for decision in decided.decisions:
        _ = decision.batchnorm.vectors
    return decided


def describe(decision: Fold | Blocked, observed: Observed | None = None) -> dict[str, Any]:
    """One BatchNormalization for JSON: where, how configured, its statistics, the verdict."""
    batchnorm = decision.batchnorm
    return {
        "name": show(batchnorm.path),
        "axis": batchnorm.axis,
        "channels": batchnorm.channels,
        **settings(batchnorm),
        "statistics": _statistics(batchnorm),
        "observed": None if observed is None else _observed(batchnorm, observed),
        "fold": _fold(decision),
    }


_OBJECTS = (
    "beta_initializer",
    "gamma_initializer",
    "moving_mean_initializer",
    "moving_variance_initializer",
    "beta_regularizer",
    "gamma_regularizer",
    "beta_constraint",
    "gamma_constraint",
)


_SETTINGS = (
    "momentum",
    "epsilon",
    "center",
    "scale",
    "trainable",
    "renorm",
    "synchronized",
    "dtype_policy",
    "initializers",
    "regularizers",
    "constraints",
)


def settings(batchnorm: BatchNorm) -> dict[str, Any]:
    """How a BatchNormalization is configured; None for all that the file does not tell."""
    if not batchnorm.is_configured:
        return dict.fromkeys(_SETTINGS)
    config = batchnorm.layer.config
    return {
        "momentum": batchnorm.momentum,
        "epsilon": batchnorm.epsilon,
        "center": batchnorm.center,
        "scale": batchnorm.scale,
        "trainable": batchnorm.trainable,
        "renorm": bool(config.get("renorm", False)),
        "synchronized": bool(config.get("synchronized", False)),
        "dtype_policy": policy_name(batchnorm.layer),
        "initializers": _named(config, "_initializer"),
        "regularizers": _named(config, "_regularizer"),
        "constraints": _named(config, "_constraint"),
    }


def _named(config: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The settings of one kind by the vector they are for: `{"gamma": "Ones"}`."""
    return {
        name.removesuffix(suffix): _object(config.get(name))
        for name in _OBJECTS
        if name.endswith(suffix)
    }


def _object(value: Any) -> Any:
    """A Keras object as its class's name, or as name and arguments where it has some."""
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    arguments = value.get("config")
    if not arguments:
        return value["class_name"]
    return {"class_name": value["class_name"], "config": plain(arguments)}


def _statistics(batchnorm: BatchNorm) -> dict[str, Any] | None:
    if batchnorm.vectors is None:
        return None
    stored = batchnorm.weights or {}
    return {
        name: summary(values) if name in stored else None
        for name, values in batchnorm.vectors.items()
    }


def _observed(batchnorm: BatchNorm, observed: Observed) -> dict[str, Any]:
    """What went into a layer, and how far that is from what it records."""
    moments, apart = observed.moments, apart_from_recorded(batchnorm, observed)
    return {
        "problem": observed.problem,
        "samples": observed.samples,
        "calls": observed.calls,
        "values": 0 if moments is None else int(moments.count.max(initial=0)),
        "non_finite": int(observed.non_finite.sum()),
        "mean": None if moments is None else summary(moments.mean),
        "variance": None if moments is None else summary(moments.variance),
        "shift": None if apart is None else spread(apart.shift),
        "variance_ratio": None if apart is None else spread(apart.ratio),
        "kl": None if apart is None else spread(apart.kl),
    }


def apart_from_recorded(batchnorm: BatchNorm, observed: Observed) -> Divergence | None:
    """How far what went into a layer is from what it records; None where either is not known."""
    vectors, moments = batchnorm.vectors, observed.moments
    if vectors is None or moments is None or batchnorm.epsilon is None:
        return None
    recorded = vectors["moving_mean"], vectors["moving_variance"]
    return divergence(recorded, (moments.mean, moments.variance), batchnorm.epsilon)


def summary(values: Vector) -> dict[str, float | int | None]:
    """The smallest, middle and largest finite number of a vector, and how many are not finite."""
    finite = values[np.isfinite(values)]
    return {
        "min": float(finite.min()) if finite.size else None,
        # Halved, because the sum of two large numbers may not be finite.
        "median": 2 * float(median(finite / 2)) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
        "non_finite": int(values.size - finite.size),
    }


def _fold(decision: Fold | Blocked) -> dict[str, Any]:
    if isinstance(decision, Fold):
        return {
            "status": "foldable",
            "direction": decision.direction,
            "into": [show(absorber.layer) for absorber in decision.absorbers],
            "reason": None,
            "remedies": [],
        }
    return {
        "status": "blocked",
        "direction": None,
        "into": [],
        "reason": decision.reason,
        "remedies": list(decision.remedies),
    }


def channel_values(
    batchnorm: BatchNorm, observed: Observed | None = None
) -> dict[str, Vector | None]:
    """The vectors that a layer has, and the scale and shift that they amount to, by channel.

    Where a model ran over data, also the mean and variance of what went in.
    """
    stored = batchnorm.weights or {}
    found: dict[str, Vector | None] = {
        name: values if name in stored else None
        for name, values in (batchnorm.vectors or {}).items()
    }
    with suppress(Refusal):  # it is no map
        affine = from_batchnorm(batchnorm)
        found |= {"scale": affine.scale, "shift": affine.shift}
    if observed is not None and observed.moments is not None:
        moments = observed.moments
        found |= {"observed_mean": moments.mean, "observed_variance": moments.variance}
    return found


def describe_layer(decision: Fold | Blocked, observed: Observed | None = None) -> dict[str, Any]:
    """`describe` and every channel, with the scale and shift that the layer amounts to."""
    channels = {
        name: plain(values) for name, values in channel_values(decision.batchnorm, observed).items()
    }
    return {**describe(decision, observed), "channel_values": channels}
