"""The table of the health rules, and the audit that asks them.

A rule looks at one BatchNormalization and says nothing, or what it found and how bad that is. Codes
are never reused. Each rule's page of documentation is the docstring of its function.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from bnfold.audit import (
    channels,
    configuration,
    drift,
    folded,
    statistics,
    structure,
    usage,
)
from bnfold.audit.averages import Averages, averages_of
from bnfold.audit.finding import Finding, Severity
from bnfold.audit.flow import Memo
from bnfold.audit.inputs import is_first
from bnfold.audit.neighbours import Place
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.thresholds import Thresholds
from bnfold.audit.updates import untrained_backbones, updates
from bnfold.errors import SettingsError
from bnfold.folding.plan import Plan
from bnfold.folding.scope import Scope
from bnfold.model.batchnorm import as_batchnorm
from bnfold.model.container.record import Recalibration
from bnfold.model.graph import Path
from bnfold.model.moments import NOT_SEEN, Observed

TARGET_DTYPES = ("float16", "bfloat16", "float32")
"""What a model can be said to be run in."""


class Needs(Enum):
    """What a rule must know of a layer to say anything of it."""

    SETTINGS = "settings"
    NUMBERS = "numbers"
    FINITE_NUMBERS = "finite numbers"


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        code: the rule's code, such as "BN103".
        name: its name, such as "statistics-not-converged".
        severities: those that its findings can have, the worst first.
        check: what it finds; None for a healthy layer.
        needs: what must be known of a layer; of any other the rule says nothing.
        needs_data: whether the model must have run over data.
    """

    code: str
    name: str
    severities: tuple[Severity, ...]
    check: Callable[[Subject], Verdict | None]
    needs: Needs = Needs.FINITE_NUMBERS
    needs_data: bool = False

    @property
    def documentation(self) -> str:
        """The page of the rule: its summary, and the text under each heading."""
        return inspect.getdoc(self.check) or ""

    @property
    def summary(self) -> str:
        """What it finds, in one line."""
        return self.documentation.partition("\n")[0]


_ERROR, _WARNING, _INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
_SETTINGS, _NUMBERS = Needs.SETTINGS, Needs.NUMBERS

RULES: tuple[Rule, ...] = (
    Rule(
        "BN001",
        "invalid-hyperparameter",
        (_ERROR,),
        configuration.invalid_hyperparameter,
        _SETTINGS,
    ),
    Rule(
        "BN002",
        "frozen-or-forgetful-momentum",
        (_WARNING,),
        configuration.frozen_or_forgetful_momentum,
        _SETTINGS,
    ),
    Rule("BN003", "inverted-momentum", (_WARNING,), configuration.inverted_momentum, _SETTINGS),
    Rule(
        "BN004",
        "epsilon-below-runtime-minimum",
        (_INFO,),
        configuration.epsilon_below_runtime_minimum,
        _SETTINGS,
    ),
    Rule("BN005", "epsilon-sensitive", (_INFO,), configuration.epsilon_sensitive),
    Rule("BN006", "axis-mismatch", (_WARNING,), usage.axis_mismatch, _SETTINGS),
    Rule(
        "BN007",
        "batch-statistics-at-inference",
        (_ERROR,),
        usage.batch_statistics_at_inference,
        _SETTINGS,
    ),
    Rule("BN008", "frozen", (_INFO,), configuration.frozen, _SETTINGS),
    Rule("BN009", "shared", (_INFO,), usage.shared, _SETTINGS),
    Rule("BN010", "backend-bound", (_INFO,), configuration.backend_bound, _SETTINGS),
    Rule("BN011", "not-audited", (_WARNING,), configuration.not_audited, _SETTINGS),
    Rule(
        "BN101", "statistics-never-updated", (_ERROR, _WARNING), statistics.statistics_never_updated
    ),
    Rule("BN102", "variance-never-updated", (_ERROR,), statistics.variance_never_updated),
    Rule(
        "BN103", "statistics-not-converged", (_ERROR, _WARNING), statistics.statistics_not_converged
    ),
    Rule("BN104", "non-finite", (_ERROR,), statistics.non_finite, _NUMBERS),
    Rule("BN105", "negative-variance", (_ERROR, _WARNING), statistics.negative_variance),
    Rule("BN106", "batch-of-one", (_WARNING,), statistics.batch_of_one),
    Rule("BN107", "vanishing-variance", (_WARNING, _INFO), statistics.vanishing_variance),
    Rule("BN108", "cancellation", (_WARNING,), statistics.cancellation),
    Rule("BN109", "float16-overflow", (_ERROR,), statistics.float16_overflow),
    Rule("BN110", "averaged-weights", (_WARNING, _INFO), statistics.averaged_weights),
    Rule("BN201", "silent-channels", (_WARNING, _INFO), channels.silent_channels),
    Rule("BN202", "dead-after-relu", (_ERROR, _WARNING), channels.dead_after_relu),
    Rule("BN203", "linear-or-saturated", (_INFO,), channels.linear_or_saturated),
    Rule("BN301", "redundant-bias", (_INFO,), structure.redundant_bias, _SETTINGS),
    Rule(
        "BN302",
        "dropout-before-batchnorm",
        (_INFO,),
        structure.dropout_before_batchnorm,
        _SETTINGS,
    ),
    Rule("BN303", "unfoldable", (_INFO,), structure.unfoldable, _SETTINGS),
    Rule("BN401", "fold-overflows", (_ERROR, _WARNING), folded.fold_overflows),
    Rule(
        "BN402",
        "per-tensor-quantization-hazard",
        (_WARNING, _INFO),
        folded.per_tensor_quantization_hazard,
    ),
    Rule("BN403", "scale-outlier", (_WARNING, _INFO), folded.scale_outlier),
    Rule("BN501", "drift", (_ERROR, _WARNING, _INFO), drift.drift, needs_data=True),
    Rule(
        "BN502",
        "non-finite-activations",
        (_ERROR,),
        drift.non_finite_activations,
        _SETTINGS,
        needs_data=True,
    ),
)
"""Every rule, in the order of the codes."""


def audit(
    plan: Plan,
    rules: Iterable[Rule] = RULES,
    *,
    thresholds: Thresholds | None = None,
    target_dtype: str | None = None,
    steps: Mapping[Path, int] | None = None,
    stride: float | None = None,
    averages: Mapping[Path, Averages] | None = None,
    observed: Mapping[Path, Observed] | None = None,
    recalibration: Recalibration | None = None,
) -> tuple[Finding, ...]:
    """The findings on every layer of a plan, in the order of the layers, then of the table.

    Args:
        plan: what a fold would do, with the model that it was made for.
        rules: those to ask.
        thresholds: the settings of the rules; without it their defaults.
        target_dtype: one of TARGET_DTYPES, the dtype that the model will be run in; None stands for
            the one that each layer computes in.
        steps: how many steps the optimizer of each compiled model made, that of the outermost
            at (), as `ModelFile.optimizer_steps` has it.
        stride: the most that one of these steps moves a weight; None where that is not known.
        averages: the averages of the weights that the optimizer of each compiled model keeps, as
            `bnfold.audit.averages.averages` finds them.
        observed: what went into each layer while the model ran over data; None where it did not.
        recalibration: what `recalibrate` did to the file, by its record; None where it did nothing.

    Raises:
        SettingsError: `target_dtype` is none of TARGET_DTYPES.
    """
    if target_dtype is not None and target_dtype not in TARGET_DTYPES:
        raise SettingsError(
            f"no target dtype: {target_dtype!r}; there are {', '.join(TARGET_DTYPES)}"
        )
    subjects = [
        replace(
            subject,
            averages=averages_of(subject.batchnorm, averages or {}),
            observed=_seen(subject.batchnorm.path, observed),
        )
        for subject in _subjects(
            plan,
            thresholds or Thresholds(),
            target_dtype,
            steps or {},
            stride=stride,
            recalibration=recalibration,
        )
    ]
    with np.errstate(all="ignore"):  # a number that is not finite is a finding, or none
        return tuple(_findings(subjects, tuple(rules)))


def first_layers(plan: Plan) -> tuple[Path, ...]:
    """The layers that no other BatchNormalization stands upstream of, as far as that is known."""
    places = {} if plan.scope is None else dict(_places(plan.scope, {}))
    return tuple(path for path, place in places.items() if is_first(place))


def _subjects(
    plan: Plan,
    thresholds: Thresholds,
    target_dtype: str | None,
    steps: Mapping[Path, int],
    *,
    stride: float | None,
    recalibration: Recalibration | None,
) -> list[Subject]:
    places = {} if plan.scope is None else dict(_places(plan.scope, {}))
    layers = [decision.batchnorm for decision in plan.decisions]
    placed = [(one, places[one.path]) for one in layers if one.path in places]
    done = Recalibration() if recalibration is None else recalibration
    estimated = {one.path for one in layers if done.samples_of(one.path) is not None}
    known = updates(placed, steps, stride, estimated)
    untrained = untrained_backbones(layers)
    return [
        Subject(
            batchnorm=decision.batchnorm,
            vectors=decision.batchnorm.vectors or {},
            decision=decision,
            thresholds=thresholds,
            target_dtype=target_dtype,
            place=places.get(decision.batchnorm.path),
            updates=known.get(decision.batchnorm.path),
            in_untrained_backbone=decision.batchnorm.path[:-1] in untrained,
            recalibration=recalibration,
        )
        for decision in plan.decisions
    ]


def _seen(path: Path, observed: Mapping[Path, Observed] | None) -> Observed | None:
    if observed is None:
        return None
    return observed.get(path, NOT_SEEN)


def _places(scope: Scope, memo: Memo) -> Iterator[tuple[Path, Place]]:
    """Where each BatchNormalization stands that is in no class but those of Keras."""
    if not scope.graph.builtin:
        return
    for name, layer in scope.graph.layers.items():
        if name in scope.inside:
            yield from _places(scope.inside[name], memo)
        elif as_batchnorm(layer, ()) is not None:
            yield scope.layer_path(name), Place(scope, name, memo)


def _findings(subjects: Iterable[Subject], rules: tuple[Rule, ...]) -> Iterator[Finding]:
    for subject in subjects:
        known = _known(subject)
        for rule in rules:
            found = rule.check(subject) if rule.needs in known else None
            if found is not None:
                yield _finding(rule, subject, found)


def _known(subject: Subject) -> set[Needs]:
    """What is known of a layer."""
    vectors = subject.vectors.values()
    if not any(vector.size for vector in vectors):
        return {Needs.SETTINGS}
    if not all(np.isfinite(vector).all() for vector in vectors):
        return {Needs.SETTINGS, Needs.NUMBERS}
    return set(Needs)


def _finding(rule: Rule, subject: Subject, found: Verdict) -> Finding:
    values: dict[str, Any] = {
        "severity": found.severity,
        "message": found.message,
        "remedy": found.remedy,
        "channels": found.channels,
        "figures": found.figures,
        "cause": found.cause,
    }
    return Finding(code=rule.code, name=rule.name, layer=subject.batchnorm.path, **values)
