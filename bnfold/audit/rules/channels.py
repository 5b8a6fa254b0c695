"""Rules on the output of a BatchNormalization: constant channels, and ReLUs without an effect.

A channel of the output has the mean beta and the standard deviation abs(gamma), if the layer's
statistics are those of its input.
"""

import math

import numpy as np

from bnfold.audit.activation import relus_after
from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.registry import rule
from bnfold.audit.subject import SILENT_GAMMA, Subject
from bnfold.model.channels import Channels

DEVIATIONS = 3
"""The range that counts as all of a channel, to either side: 99.73 % of a Gaussian."""


@rule("BN201", "silent-channels", Severity.WARNING, Severity.INFO)
def silent_channels(subject: Subject) -> Diagnosis | None:
    """The gamma of a channel is almost 0, so its output does not depend on its input."""
    silent = np.abs(subject.gamma) < SILENT_GAMMA
    if not np.count_nonzero(silent):
        return None
    channels, share = Channels.of(silent), float(silent.mean())
    many = share > subject.thresholds.silent_share
    return Diagnosis(
        Severity.WARNING if many else Severity.INFO,
        f"gamma is almost 0 in {channels}, {share:.0%} of them",
        "prune them; if gamma was not meant to be sparse, check its regularizer"
        if many
        else "nothing to do; the channels could be pruned",
        channels,
        {"share": share},
    )


@rule("BN202", "dead-after-relu", Severity.ERROR, Severity.WARNING)
def dead_after_relu(subject: Subject) -> Diagnosis | None:
    """The output of a channel is almost always negative, and the ReLU after it sets it to 0."""
    gamma, beta = np.abs(subject.gamma), subject.beta
    certain = (gamma == 0) & (beta <= 0)
    dead = certain | (beta + DEVIATIONS * gamma < 0)
    if not np.count_nonzero(dead) or subject.place is None or relus_after(subject.place) is None:
        return None
    channels, likely = Channels.of(dead), dead & ~certain
    bounds = np.where(gamma > 0, gamma**2 / (gamma**2 + beta**2), 0)
    bound = float(bounds[dead].max())
    said = []
    if certain.any():
        said.append(f"gamma is 0 and beta not positive in {Channels.of(certain)}")
    if likely.any():
        where = Channels.of(likely) if certain.any() else "all of these"
        share = min(99, math.floor(100 * (1 - bound)))  # it is a bound, and never certain
        said.append(
            f"beta + {DEVIATIONS} abs(gamma) is negative in {where} (if their output is "
            f"Gaussian, 99.9% of it is negative; under any distribution, at least {share}%)"
        )
    return Diagnosis(
        Severity.ERROR if certain.any() else Severity.WARNING,
        f"the ReLU after it zeroes {channels}: {'; '.join(said)}",
        "prune the channels, or retrain with a smaller learning rate",
        channels,
        {"bound": bound, "certain": int(np.count_nonzero(certain))},
    )


@rule("BN203", "linear-or-saturated", Severity.INFO)
def linear_or_saturated(subject: Subject) -> Diagnosis | None:
    """The output of a channel is almost always on one side of a breakpoint of the ReLU."""
    if subject.place is None:
        return None
    gamma, beta = np.abs(subject.gamma), subject.beta
    low, high = beta - DEVIATIONS * gamma, beta + DEVIATIONS * gamma
    speaking = gamma >= SILENT_GAMMA
    if not np.count_nonzero(speaking & (low > 0)):
        return None
    caps = relus_after(subject.place)
    if caps is None:
        return None
    linear = speaking & (low > 0) & (high < min(caps))
    saturated = speaking & (low > max(caps))
    if not (linear | saturated).any():
        return None
    kinds = {f"passes {Channels.of(linear)} unchanged": linear}
    kinds[f"cuts {Channels.of(saturated)} off at {max(caps):g}"] = saturated
    said = " and ".join(text for text, mask in kinds.items() if mask.any())
    channels = Channels.of(linear | saturated)
    return Diagnosis(
        Severity.INFO,
        f"the ReLU after it almost always {said}",
        "nothing to do; the nonlinearity is wasted on these channels",
        channels,
        {"linear": int(linear.sum()), "saturated": int(saturated.sum())},
    )
