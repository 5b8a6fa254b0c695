"""The health rules: one function each, in one table.

A rule looks at one BatchNormalization and says nothing, or what it found and how bad that is. Codes
are never reused. In the formulas g is gamma, mu and v are moving_mean and moving_variance, e is
epsilon.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnfold.audit.finding import Channels, Finding, Severity
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.model.batchnorm import BatchNorm, Vector

VANISHING_SHARE_OF_EPSILON = 0.01
OUTSTANDING_SCALE = 100.0
"""How many times the layer's median a channel's scale must be to stand out. No published source."""


@dataclass(frozen=True)
class Subject:
    """What a rule looks at: the layer, its vectors in float64, what the plan decided."""

    batchnorm: BatchNorm
    vectors: dict[str, Vector]
    decision: Fold | Blocked


@dataclass(frozen=True)
class Verdict:
    """What a rule found about its subject."""

    severity: Severity
    message: str
    remedy: str
    channels: Channels | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A row of the table. `check` returns None for a healthy layer.

    A rule that `reads_vectors` has nothing to say of a layer whose variables are not in the file.
    """

    code: str
    name: str
    check: Callable[[Subject], Verdict | None]
    reads_vectors: bool = True


def batch_statistics_at_inference(subject: Subject) -> Verdict | None:
    """A call of the layer, or of a model or wrapper around it, passes training=True."""
    decision = subject.decision
    if not (isinstance(decision, Blocked) and decision.batch_statistics):
        return None
    return Verdict(
        Severity.ERROR,
        f"{decision.reason}: its output depends on what else is in the batch",
        "; or ".join(decision.remedies) or "freeze the layer (trainable=False)",
    )


def statistics_never_updated(subject: Subject) -> Verdict | None:
    """All mu are 0 and all v are 1, exactly as they are created; not said of a frozen layer."""
    mean, variance = subject.vectors["moving_mean"], subject.vectors["moving_variance"]
    if not subject.batchnorm.trainable or np.any(mean != 0) or np.any(variance != 1):
        return None
    return Verdict(
        Severity.ERROR,
        "moving_mean is all 0 and moving_variance all 1, as they were created",
        "train with training=True (a custom loop must pass it), or load trained weights; what is "
        "said of folding here holds for the untrained values only",
    )


def variance_never_updated(subject: Subject) -> Verdict | None:
    """All v are 1, exactly as they are created, while some mu is not 0."""
    mean, variance = subject.vectors["moving_mean"], subject.vectors["moving_variance"]
    if np.any(variance != 1) or not np.any(mean != 0):
        return None
    return Verdict(
        Severity.ERROR,
        "moving_variance is all 1, as it was created, but moving_mean is not 0",
        "check that the training code assigns the variance, or that the weights were ported whole",
    )


def non_finite(subject: Subject) -> Verdict | None:
    """A NaN or an infinity in any of the four vectors."""
    bad = {name: ~np.isfinite(values) for name, values in subject.vectors.items()}
    broken = [f"{name} in {Channels.of(mask)}" for name, mask in bad.items() if mask.any()]
    if not broken:
        return None
    return Verdict(
        Severity.ERROR,
        f"not finite: {', '.join(broken)}",
        "go back to a checkpoint from before the loss diverged",
        Channels.of(np.any(list(bad.values()), axis=0)),
    )


def negative_variance(subject: Subject) -> Verdict | None:
    """V < 0; an error where v + e <= 0, because then the output is NaN."""
    variance, epsilon = subject.vectors["moving_variance"], subject.batchnorm.epsilon
    negative = variance < 0
    if not negative.any():
        return None
    channels = Channels.of(negative)
    fatal = epsilon is not None and bool(np.any(variance + epsilon <= 0))
    lowest = float(np.nanmin(variance))
    return Verdict(
        Severity.ERROR if fatal else Severity.WARNING,
        f"moving_variance is negative in {channels}, down to {lowest:.3g}"
        + (", and stays so with epsilon added: the output is NaN" if fatal else ""),
        "estimate the statistics again in float32; a variance is never negative",
        channels,
        {"lowest": lowest},
    )


def vanishing_variance(subject: Subject) -> Verdict | None:
    """V < 0.01 e; a warning where the channel's scale is 100 times the layer's median."""
    variance, epsilon = subject.vectors["moving_variance"], subject.batchnorm.epsilon
    if epsilon is None or epsilon <= 0:
        return None
    vanishing = (variance >= 0) & (variance < VANISHING_SHARE_OF_EPSILON * epsilon)
    if not vanishing.any():
        return None
    scale = np.abs(subject.vectors["gamma"]) / np.sqrt(np.abs(variance + epsilon))
    outstanding = vanishing & (scale > OUTSTANDING_SCALE * np.median(scale))
    if outstanding.any():
        return Verdict(
            Severity.WARNING,
            f"moving_variance is almost 0 in {Channels.of(outstanding)}, whose scale of up to "
            f"{scale[outstanding].max():.3g} is over {OUTSTANDING_SCALE:g} times the median",
            "any change of these channels' input is blown up; prune them or raise epsilon",
            Channels.of(outstanding),
            {"scale": float(scale[outstanding].max())},
        )
    return Verdict(
        Severity.INFO,
        f"moving_variance is almost 0 in {Channels.of(vanishing)}: their input is constant",
        "nothing to do; the channels could be pruned",
        Channels.of(vanishing),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "BN007",
        "batch-statistics-at-inference",
        batch_statistics_at_inference,
        reads_vectors=False,
    ),
    Rule("BN101", "statistics-never-updated", statistics_never_updated),
    Rule("BN102", "variance-never-updated", variance_never_updated),
    Rule("BN104", "non-finite", non_finite),
    Rule("BN105", "negative-variance", negative_variance),
    Rule("BN107", "vanishing-variance", vanishing_variance),
)


def audit(plan: Plan, rules: Iterable[Rule] = RULES) -> tuple[Finding, ...]:
    """The findings on every layer of a plan, in the order of the layers, then of the table."""
    return tuple(_findings(plan, tuple(rules)))


def _findings(plan: Plan, rules: tuple[Rule, ...]) -> Iterator[Finding]:
    for decision in plan.decisions:
        batchnorm = decision.batchnorm
        subject = Subject(batchnorm, batchnorm.vectors or {}, decision)
        for rule in rules:
            if rule.reads_vectors and batchnorm.vectors is None:
                continue
            found = rule.check(subject)
            if found is not None:
                yield Finding(
                    rule.code,
                    rule.name,
                    found.severity,
                    batchnorm.path,
                    found.message,
                    found.remedy,
                    found.channels,
                    found.figures,
                )
