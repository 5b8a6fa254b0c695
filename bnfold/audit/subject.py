"""What a rule looks at, a layer and all that is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bnfold.audit.averages import Averages, averages, averages_of
from bnfold.audit.finding import RECALIBRATE
from bnfold.audit.flow import Memo
from bnfold.audit.inputs import is_first, near_input
from bnfold.audit.neighbours import Place
from bnfold.audit.thresholds import Thresholds
from bnfold.audit.updates import untrained_backbones, updates
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.model.batchnorm import BatchNorm, Vector, as_batchnorm
from bnfold.model.container.record import Recalibration
from bnfold.model.graph import LayerPath, show
from bnfold.model.moments import NOT_SEEN, Observed, median
from bnfold.model.optimizer import Optimizer
from bnfold.model.policy import policy

SILENT_GAMMA = 1e-3
"""A channel whose output varies less than this is silent (arXiv 1905.04967)."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Subject:
    """One BatchNormalization, with all that rules may ask of it.

    Attributes:
        batchnorm: the layer.
        vectors: its four vectors in float64, each (channels,); empty where the file has none.
        decision: what the plan does with it.
        thresholds: the settings of the rules.
        target_dtype: what the model will be run in, None for what each layer computes in.
        place: where it stands, None where the file does not tell what is around it.
        updates: how often training updated its statistics, at most; None where that is not known.
        averages: the averages that the optimizer keeps of the weights, and whether they are in the
            file in place of these; None where it keeps none.
        in_untrained_backbone: whether it is frozen, and it and all frozen layers beside it have the
            statistics that they were created with, which are several, or all layers beside it.
        speaks_for_model: whether it is the layer that findings on the whole model are told of.
        observed: what went into it while the model ran over data; None where it did not.
        recalibration: what `recalibrate` did to the file; None where it did nothing.
    """

    batchnorm: BatchNorm
    vectors: dict[str, Vector]
    decision: Fold | Blocked
    thresholds: Thresholds = field(default_factory=Thresholds)
    target_dtype: str | None = None
    place: Place | None = None
    updates: int | None = None
    averages: Averages | None = None
    in_untrained_backbone: bool = False
    speaks_for_model: bool = False
    observed: Observed | None = None
    recalibration: Recalibration | None = None

    @property
    def gamma(self) -> Vector:
        """(channels,), 1 without `scale`."""
        return self.vectors["gamma"]

    @property
    def beta(self) -> Vector:
        """(channels,), 0 without `center`."""
        return self.vectors["beta"]

    @property
    def mean(self) -> Vector:
        """moving_mean, (channels,)."""
        return self.vectors["moving_mean"]

    @property
    def variance(self) -> Vector:
        """moving_variance, (channels,)."""
        return self.vectors["moving_variance"]

    @property
    def epsilon(self) -> float | None:
        """None where the file does not tell, or where it is not above 0."""
        found = self.batchnorm.epsilon
        return found if found is not None and found > 0 else None

    @property
    def momentum(self) -> float | None:
        """None where the file does not tell."""
        return self.batchnorm.momentum

    @property
    def is_frozen(self) -> bool:
        """Whether it runs in inference mode always."""
        return not self.batchnorm.trainable

    @property
    def dtype(self) -> str | None:
        """The dtype that the rules assume for the layer; None where it is not known."""
        if self.target_dtype is not None:
            return self.target_dtype
        used = policy(self.batchnorm.layer)
        return None if used is None else used.compute

    @property
    def estimated_from(self) -> int | None:
        """From how many samples `recalibrate` made its statistics; None where training did."""
        found = self.recalibration
        return None if found is None else found.samples_of(self.batchnorm.path)

    @property
    def estimate_again(self) -> str:
        """How to get good statistics for the layer if the weights are good; part of a remedy.

        It does not name `recalibrate` where that was done already, or leaves the layer alone.
        """
        name = show(self.batchnorm.path)
        if self.estimated_from is not None:
            return (
                "train on, or estimate its statistics from more or other data than those "
                f"{self.estimated_from} samples: of every kind that the model will see"
            )
        if self.recalibration is not None:
            reason = self.recalibration.kept.get(name)
            because = "" if reason is None else f", because {reason}"
            return f"train on, or estimate its statistics too: they were left unchanged{because}"
        if not self.batchnorm.is_configured:
            return "train on: its statistics cannot be estimated outside of its own class"
        return RECALIBRATE + (f", with --layers {name!r}" if self.is_frozen else "")

    @cached_property
    def reads_model_input(self) -> bool:
        """Whether nothing between the model's input and the layer is trained."""
        return self.place is not None and near_input(self.place)

    @cached_property
    def deviation(self) -> Vector | None:
        """sqrt(v + e), (channels,), NaN where that is not positive; None without an epsilon."""
        if self.epsilon is None:
            return None
        inside = self.variance + self.epsilon
        return np.sqrt(np.where(self.plus_epsilon(self.epsilon) > 0, inside, np.nan))

    def plus_epsilon(self, epsilon: float) -> Vector:
        """The sum v + e as the layer rounds it, (channels,): 0 where the two cancel."""
        exact = np.dtype("float64" if self.dtype == "float64" else "float32")
        total: Vector = (self.variance.astype(exact) + exact.type(epsilon)).astype(np.float64)
        return total

    @cached_property
    def vanishing(self) -> Mask:
        """The channels whose variance is negligible next to epsilon, (channels,)."""
        if self.epsilon is None:
            return np.zeros(len(self.variance), bool)
        limit = self.thresholds.vanishing_variance * self.epsilon
        return (self.variance >= 0) & (self.variance < limit)

    @cached_property
    def dead(self) -> Mask:
        """The channels whose output does not vary: g sqrt(v / (v + e)) is about 0, (channels,)."""
        if self.deviation is None:
            return np.zeros(len(self.variance), bool)
        varies = np.abs(self.gamma) * np.sqrt(np.maximum(self.variance, 0)) / self.deviation
        return ~(varies >= SILENT_GAMMA)

    @cached_property
    def outstanding(self) -> Mask:
        """The channels whose scale is far above the median of those that are not silent."""
        scale = self.scale
        speaking = scale[(np.abs(self.gamma) >= SILENT_GAMMA) & np.isfinite(scale)]
        if not speaking.size:
            return np.zeros(len(scale), bool)
        return scale > self.thresholds.outstanding_scale * median(speaking)

    @cached_property
    def scale(self) -> Vector:
        """abs(g) / sqrt(v + e), (channels,); NaN where that is not known."""
        if self.deviation is None:
            return np.full(len(self.gamma), np.nan)
        return np.abs(self.gamma) / self.deviation


def subjects(
    plan: Plan,
    *,
    thresholds: Thresholds,
    target_dtype: str | None,
    optimizers: Mapping[LayerPath, Optimizer],
    observed: Mapping[LayerPath, Observed] | None,
    recalibration: Recalibration | None,
) -> tuple[Subject, ...]:
    """Every BatchNormalization of a plan; the arguments are those of `bnfold.audit.audit`."""
    layers = [decision.batchnorm for decision in plan.decisions]
    places = _places(plan)
    done = Recalibration() if recalibration is None else recalibration
    counted = updates(
        [(one, places[one.path]) for one in layers if one.path in places],
        {path: one.steps for path, one in optimizers.items() if one.steps is not None},
        optimizers[()].stride if () in optimizers else None,
        {one.path for one in layers if done.samples_of(one.path) is not None},
    )
    averaged = averages(plan, optimizers)
    untrained = untrained_backbones(layers)
    return tuple(
        Subject(
            batchnorm=one,
            vectors=one.vectors or {},
            decision=decision,
            thresholds=thresholds,
            target_dtype=target_dtype,
            place=places.get(one.path),
            updates=counted.get(one.path),
            averages=averages_of(one, averaged),
            in_untrained_backbone=one.path[:-1] in untrained,
            speaks_for_model=one.path == next(iter(places), None),
            observed=None if observed is None else observed.get(one.path, NOT_SEEN),
            recalibration=recalibration,
        )
        for one, decision in zip(layers, plan.decisions, strict=True)
    )


def first_layers(plan: Plan) -> tuple[LayerPath, ...]:
    """The layers that no other BatchNormalization is upstream of, as far as that is known."""
    return tuple(path for path, place in _places(plan).items() if is_first(place))


def _places(plan: Plan) -> dict[LayerPath, Place]:
    """Where each BatchNormalization stands, without those inside a custom class."""
    memo: Memo = {}
    return {
        region.layer_path(name): Place(region, name, memo)
        for region in (() if plan.program is None else plan.program.regions)
        for name, layer in region.graph.layers.items()
        if region.is_known and name not in region.inside and as_batchnorm(layer, ()) is not None
    }
