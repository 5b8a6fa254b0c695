"""Rules on how a BatchNormalization is configured: its momentum, its epsilon, its flags."""

import math

import numpy as np

from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.registry import Needs, rule
from bnfold.audit.subject import Subject
from bnfold.model.channels import Channels

CUDNN_EPSILON = 1.001e-5
"""A little more than CUDNN_BN_MIN_EPSILON, 1e-5, which the fused kernel clamps to."""


@rule("BN001", "invalid-hyperparameter", Severity.ERROR, needs=Needs.SETTINGS)
def invalid_hyperparameter(subject: Subject) -> Diagnosis | None:
    """The momentum is outside [0, 1], or epsilon is not positive."""
    momentum, epsilon = (_number(subject, name) for name in ("momentum", "epsilon"))
    wrong = []
    if momentum is not None and not 0 <= momentum <= 1:
        wrong.append(f"momentum {momentum:g} is outside [0, 1]")
    if epsilon is not None and not 0 < epsilon < math.inf:
        wrong.append(f"epsilon {epsilon:g} is not a positive number")
    if not wrong:
        return None
    given = {"momentum": momentum, "epsilon": epsilon}
    return Diagnosis(
        Severity.ERROR,
        " and ".join(wrong),
        "build the layer with a momentum such as 0.99 and an epsilon such as 1e-3",
        figures={name: value for name, value in given.items() if value is not None},
    )


def _number(subject: Subject, name: str) -> float | None:
    """A setting as a number, even one that cannot be computed with; None for anything else."""
    value = subject.batchnorm.layer.config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


@rule("BN002", "frozen-or-forgetful-momentum", Severity.WARNING, needs=Needs.SETTINGS)
def frozen_or_forgetful_momentum(subject: Subject) -> Diagnosis | None:
    """The momentum is 1 (nothing is ever updated) or 0 (only the last batch counts)."""
    if subject.momentum not in (0, 1) or subject.is_frozen:
        return None
    never = subject.momentum == 1
    return Diagnosis(
        Severity.WARNING,
        "momentum is 1: training never updates the statistics"
        if never
        else "momentum is 0: the statistics are those of the last batch alone",
        "use a momentum such as 0.99, and train or estimate the statistics again",
        figures={"momentum": float(never)},
    )


@rule("BN003", "inverted-momentum", Severity.WARNING, needs=Needs.SETTINGS)
def inverted_momentum(subject: Subject) -> Diagnosis | None:
    """The momentum is so small that it may come from PyTorch, whose convention is 1 - m."""
    momentum = subject.momentum
    if momentum is None or not 0 < momentum < subject.thresholds.inverted_momentum:
        return None
    if subject.is_frozen:
        return None
    return Diagnosis(
        Severity.WARNING,
        f"momentum {momentum:g} keeps {momentum:.0%} of the old statistics at each step, so only "
        "the last few batches count",
        f"PyTorch's momentum is 1 minus Keras': if this value is PyTorch's, use {1 - momentum:g}",
        figures={"momentum": momentum},
    )


@rule("BN004", "epsilon-below-runtime-minimum", Severity.INFO, needs=Needs.SETTINGS)
def epsilon_below_runtime_minimum(subject: Subject) -> Diagnosis | None:
    """Epsilon is below what cuDNN's fused kernel clamps to."""
    epsilon = subject.epsilon
    if epsilon is None or epsilon >= CUDNN_EPSILON:
        return None
    return Diagnosis(
        Severity.INFO,
        f"epsilon {epsilon:g} is below {CUDNN_EPSILON:g}, to which cuDNN's fused kernel raises it",
        "nothing to do for Keras 3 or a folded model; elsewhere use 1.001e-5 or more",
        figures={"epsilon": epsilon},
    )


@rule("BN005", "epsilon-sensitive", Severity.INFO)
def epsilon_sensitive(subject: Subject) -> Diagnosis | None:
    """Epsilon is a notable part of variance + epsilon in some channel."""
    epsilon, variance = subject.epsilon, subject.variance
    if epsilon is None:
        return None
    share = np.where(variance >= 0, epsilon / (np.maximum(variance, 0) + epsilon), 0)
    sensitive = share > subject.thresholds.epsilon_share
    if not np.count_nonzero(sensitive):
        return None
    channels = Channels.of(sensitive)
    return Diagnosis(
        Severity.INFO,
        f"epsilon {epsilon:g} is up to {share.max():.0%} of variance + epsilon in {channels}",
        "keep this epsilon when porting the weights (PyTorch's default is 1e-5, Keras' 1e-3)",
        channels,
        {"epsilon": epsilon, "share": float(share.max())},
    )


@rule("BN008", "frozen", Severity.INFO, needs=Needs.SETTINGS)
def frozen(subject: Subject) -> Diagnosis | None:
    """The layer is not trainable, so it always runs in inference mode."""
    if not subject.is_frozen:
        return None
    return Diagnosis(
        Severity.INFO,
        "trainable is false: it normalizes with its moving statistics in training too, and never "
        "updates them",
        "nothing to do if that is intended",
    )


@rule("BN010", "backend-bound", Severity.INFO, needs=Needs.SETTINGS)
def backend_bound(subject: Subject) -> Diagnosis | None:
    """The layer synchronizes its statistics, which only the TensorFlow backend supports."""
    layer = subject.batchnorm.layer
    if not (layer.config.get("synchronized") or layer.class_name == "SyncBatchNormalization"):
        return None
    return Diagnosis(
        Severity.INFO,
        "synchronized is true: only the TensorFlow backend can build the layer",
        "set synchronized=False for inference, where it has no effect",
    )


@rule("BN011", "not-audited", Severity.WARNING, needs=Needs.SETTINGS)
def not_audited(subject: Subject) -> Diagnosis | None:
    """It is a BatchNormalization, but its settings or its statistics could not be read."""
    batchnorm = subject.batchnorm
    problem, odd = batchnorm.problem, batchnorm.unreadable
    said = [f"its statistics could not be read: {problem.reason}"] if problem is not None else []
    if not batchnorm.is_configured:
        reason = getattr(subject.decision, "reason", "the file does not show them")
        said.append(f"its settings could not be read: {reason}")
    elif odd:
        said.append(f"{' and '.join(odd)} in its config could not be read")
    if not said:
        return None
    replaced = "replace it by Keras' own BatchNormalization, without a wrapper, and "
    return Diagnosis(
        Severity.WARNING,
        f"not audited: {'; '.join(said)}",
        f"{'' if batchnorm.is_configured else replaced}save the model again; "
        "or check its statistics yourself",
    )
