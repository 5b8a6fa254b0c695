"""Rules on the moving statistics: whether they were learnt, and what is wrong with the numbers."""

import math

import numpy as np

from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.updates import rounding
from bnfold.folding.limits import largest_of


def statistics_never_updated(subject: Subject) -> Verdict | None:
    """All means are 0 and all variances 1, exactly as they are created."""
    if subject.is_frozen or np.any(subject.mean != 0) or np.any(subject.variance != 1):
        return None
    return Verdict(
        Severity.ERROR,
        "moving_mean is all 0 and moving_variance all 1, as they were created",
        "train with training=True (a custom loop must pass it), or load trained weights; what is "
        "said of folding here holds for the untrained values only",
    )


def variance_never_updated(subject: Subject) -> Verdict | None:
    """All variances are 1, exactly as they are created, while some mean is not 0."""
    if np.any(subject.variance != 1) or not np.any(subject.mean != 0):
        return None
    return Verdict(
        Severity.ERROR,
        "moving_variance is all 1, as it was created, but moving_mean is not 0",
        "check that the training code assigns the variance, or that the weights were ported whole",
    )


def statistics_not_converged(subject: Subject) -> Verdict | None:
    """Too few training steps: the values that the statistics started from still weigh in them."""
    momentum, updates, thresholds = subject.momentum, subject.updates, subject.thresholds
    if updates is None or momentum is None or not 0 < momentum < 1 or subject.is_frozen:
        return None
    if np.all(subject.variance == 1) or batch_of_one(subject) is not None:
        return None
    weight = momentum**updates
    if weight <= thresholds.unconverged_warning:
        return None
    needed = math.ceil(math.log(thresholds.unconverged_warning) / math.log(momentum))
    return Verdict(
        Severity.ERROR if weight > thresholds.unconverged_error else Severity.WARNING,
        f"after {updates} updates at momentum {momentum:g}, the values that the statistics were "
        f"created with still weigh {weight:.0%}",
        f"train for {needed} steps or more, use a smaller momentum, or estimate the statistics "
        "again from the training data",
        figures={"updates": updates, "momentum": momentum, "weight": weight, "needed": needed},
    )


def non_finite(subject: Subject) -> Verdict | None:
    """A NaN or an infinity stands in gamma, beta, the mean or the variance."""
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
    """A variance is negative; where epsilon does not make up for it, the output is NaN."""
    variance, epsilon = subject.variance, subject.batchnorm.epsilon
    negative = variance < 0
    if not negative.any():
        return None
    channels = Channels.of(negative)
    lowest = float(variance.min())
    fatal = epsilon is not None and lowest + epsilon <= 0
    return Verdict(
        Severity.ERROR if fatal else Severity.WARNING,
        f"moving_variance is negative in {channels}, down to {lowest:.3g}"
        + (", and not positive with epsilon added: the output is NaN" if fatal else ""),
        "estimate the statistics again in float32; a variance is never negative, and clamping it "
        "would hide that",
        channels,
        {"lowest": lowest},
    )


def batch_of_one(subject: Subject) -> Verdict | None:
    """Every variance is a power of the momentum: the variance of each batch was 0."""
    momentum, variance = subject.momentum, subject.variance
    if momentum is None or not 0 < momentum < 1:
        return None
    if np.all(variance == 0):
        power = "0, to which powers of the momentum fall"
        figures = {"momentum": momentum}
        certain = variance.size > 1
    else:
        steps = _power(subject, momentum)
        if steps is None:
            return None
        power = f"{momentum:g}^{steps}"
        figures = {"momentum": momentum, "power": steps}
        # One number can be near a power by chance.
        certain = variance.size > 1 or subject.updates == steps
    if not certain:
        return None
    return Verdict(
        Severity.WARNING,
        f"every moving_variance is {power}: each batch had a variance of 0, as one sample has",
        "train with batches of several samples, or estimate the statistics again from the "
        "training data",
        figures=figures,
    )


def _power(subject: Subject, momentum: float) -> int | None:
    """The k >= 1 for which every variance is m^k, to within the rounding of k updates."""
    variance = subject.variance
    if variance.min() <= 0 or variance.max() >= 1:
        return None
    steps = round(math.log(variance[0]) / math.log(momentum))
    allowed = rounding(subject.batchnorm, steps)
    if steps < 1 or allowed > (1 - momentum) / 4:
        return None
    power = momentum**steps
    return steps if np.all(np.abs(variance - power) <= allowed * power) else None


def vanishing_variance(subject: Subject) -> Verdict | None:
    """A variance is almost 0 beside epsilon: the input of that channel was constant."""
    vanishing = subject.vanishing
    if not vanishing.any():
        return None
    outstanding = vanishing & subject.outstanding
    if outstanding.any() and not (subject.place and subject.place.reads_model_input):
        channels, scale = Channels.of(outstanding), float(subject.scale[outstanding].max())
        times = subject.thresholds.outstanding_scale
        return Verdict(
            Severity.WARNING,
            f"moving_variance is almost 0 in {channels}, whose scale of up to {scale:.3g} is over "
            f"{times:g} times the median",
            "any change of these channels' input is blown up; prune them or raise epsilon",
            channels,
            {"scale": scale, "lowest": float(subject.variance[outstanding].min())},
        )
    channels = Channels.of(vanishing)
    return Verdict(
        Severity.INFO,
        f"moving_variance is almost 0 in {channels}: their input is constant",
        "nothing to do; the channels could be pruned",
        channels,
        {"lowest": float(subject.variance[vanishing].min())},
    )


def cancellation(subject: Subject) -> Verdict | None:
    """The mean is so many standard deviations that float32 loses digits in x - mean."""
    if subject.deviation is None:
        return None
    ratio = np.abs(subject.mean) / subject.deviation
    # A channel without a variance has no digits to lose.
    large = (ratio > subject.thresholds.cancellation) & ~subject.vanishing
    if not large.any():
        return None
    channels, worst = Channels.of(large), float(ratio[large].max())
    return Verdict(
        Severity.WARNING,
        f"moving_mean is up to {worst:.3g} standard deviations in {channels}: float32 has about "
        f"{max(0.0, 7.2 - math.log10(worst)):.0f} digits left for the difference",
        "subtract the offset from the data, or fold the layer, which needs no difference",
        channels,
        {"ratio": worst},
    )


def float16_overflow(subject: Subject) -> Verdict | None:
    """A variance is larger than the dtype that the model will be run in can hold."""
    dtype = subject.dtype
    limit = largest_of(dtype) if dtype is not None else None
    if limit is None:
        return None
    over = subject.variance >= limit
    if not over.any():
        return None
    channels, largest = Channels.of(over), float(subject.variance.max())
    return Verdict(
        Severity.ERROR,
        f"moving_variance is up to {largest:.4g} in {channels}, and {dtype} ends at {limit:.5g}",
        "scale the input of the layer down, keep the layer in float32, or fold it",
        channels,
        {"largest": largest, "limit": limit},
    )
