"""Rules on the moving statistics: whether they were learnt, and whether the numbers are sound."""

import math

import numpy as np

from bnfold.audit.averages import Standing, follows_training
from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.registry import Needs, rule
from bnfold.audit.subject import Subject
from bnfold.audit.updates import initial, is_initial, rounding, updates_needed
from bnfold.folding.weights import largest_of
from bnfold.model.channels import Channels
from bnfold.model.optimizer import Averaging


@rule("BN101", "statistics-never-updated", Severity.ERROR, Severity.WARNING)
def statistics_never_updated(subject: Subject) -> Diagnosis | None:
    """All moving means are 0 and all moving variances 1, their initial values."""
    if not is_initial(subject.batchnorm):
        return None
    if subject.is_frozen and not subject.in_untrained_backbone:
        return None
    if subject.is_frozen:
        return Diagnosis(
            Severity.WARNING,
            "frozen with moving_mean all 0 and moving_variance all 1, the initial values",
            "load the pretrained weights of the backbone, or train it before freezing it",
        )
    return Diagnosis(
        Severity.ERROR,
        "moving_mean is all 0 and moving_variance all 1, the initial values",
        "train with training=True (a custom loop must pass it), or load trained weights; if the "
        f"other weights are trained, {subject.estimate_again}; results on folding hold for the "
        "untrained values only",
    )


@rule("BN102", "variance-never-updated", Severity.ERROR)
def variance_never_updated(subject: Subject) -> Diagnosis | None:
    """All moving variances are 1, the initial value, while some moving mean is not 0."""
    if np.count_nonzero(subject.variance != 1) or not np.count_nonzero(subject.mean):
        return None
    return Diagnosis(
        Severity.ERROR,
        "moving_variance is all 1, the initial value, but moving_mean is not 0",
        "check that the training code updates the variance and that all weights were ported, or "
        f"{subject.estimate_again}",
    )


@rule("BN103", "statistics-not-converged", Severity.ERROR, Severity.WARNING)
def statistics_not_converged(subject: Subject) -> Diagnosis | None:
    """Too few training steps: the initial values still have a large weight in the statistics."""
    momentum, updates, thresholds = subject.momentum, subject.updates, subject.thresholds
    if momentum is None or updates is None or subject.is_frozen:
        return None
    if np.all(subject.variance == 1) or batch_of_one(subject) is not None:
        return None
    found = initial(subject.batchnorm, updates, thresholds.vanishing_variance)
    if found is None:
        return None
    error = thresholds.unconverged_error
    weight = min(thresholds.unconverged_warning, error)
    share = min(thresholds.initial_variance, error)
    if found.weight <= weight and found.share <= share:
        return None
    said = f"the initial values still have a weight of {found.weight:.0%}"
    if found.share > found.weight:
        said += f" and make up {found.share:.0%} of the variance"
    per_step = (subject.place.updates_per_step if subject.place is not None else None) or 1
    needed = math.ceil(updates_needed(found, momentum, weight, share) / per_step)
    return Diagnosis(
        Severity.ERROR if found.part > error else Severity.WARNING,
        f"after {updates} updates at momentum {momentum:g}, {said}",
        f"train for {needed} steps or more, use a smaller momentum, or {subject.estimate_again}",
        figures={
            "updates": updates,
            "momentum": momentum,
            "weight": found.weight,
            "share": found.share,
            "needed": needed,
        },
    )


@rule("BN104", "non-finite", Severity.ERROR, needs=Needs.NUMBERS)
def non_finite(subject: Subject) -> Diagnosis | None:
    """A NaN or an infinity is in gamma, beta, the moving mean or the moving variance."""
    bad = {name: ~np.isfinite(subject.vectors[name]) for name in subject.batchnorm.broken}
    if not bad:
        return None
    broken = [f"{name} in {Channels.of(mask)}" for name, mask in bad.items()]
    return Diagnosis(
        Severity.ERROR,
        f"not finite: {', '.join(broken)}",
        _mended(subject, [*bad]),
        Channels.of(np.any(list(bad.values()), axis=0)),
    )


def _mended(subject: Subject, broken: list[str]) -> str:
    """The remedy for a layer in which these vectors are not finite."""
    checkpoint = "go back to a checkpoint from before the loss diverged"
    if not {"moving_mean", "moving_variance"}.issuperset(broken):
        return checkpoint
    return f"if the weights are finite everywhere, {subject.estimate_again}; otherwise {checkpoint}"


@rule("BN105", "negative-variance", Severity.ERROR, Severity.WARNING)
def negative_variance(subject: Subject) -> Diagnosis | None:
    """A variance is negative; where variance + epsilon is not positive, the output is NaN."""
    variance, epsilon = subject.variance, subject.batchnorm.epsilon
    negative = variance < 0
    if not np.count_nonzero(negative):
        return None
    channels = Channels.of(negative)
    lowest = float(variance.min())
    fatal = epsilon is not None and bool(np.any(subject.plus_epsilon(epsilon)[negative] <= 0))
    return Diagnosis(
        Severity.ERROR if fatal else Severity.WARNING,
        f"moving_variance is negative in {channels}, down to {lowest:.3g}"
        + (", and not positive with epsilon added: the output is NaN" if fatal else ""),
        f"{subject.estimate_again}; a variance is never negative, and clamping it would hide that",
        channels,
        {"lowest": lowest},
    )


@rule("BN106", "batch-of-one", Severity.WARNING)
def batch_of_one(subject: Subject) -> Diagnosis | None:
    """Every variance is a power of the momentum: the variance of each batch was 0."""
    momentum, variance = subject.momentum, subject.variance
    if momentum is None or not 0 < momentum < 1:
        return None
    if np.all(variance == 0):
        power = "0, the limit of the powers of the momentum"
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
    return Diagnosis(
        Severity.WARNING,
        f"every moving_variance is {power}: each batch had a variance of 0, as a single sample has",
        f"train with batches of several samples, or {subject.estimate_again}",
        figures=figures,
    )


def _power(subject: Subject, momentum: float) -> int | None:
    """The k >= 1 for which every variance is m^k, to within the rounding of k updates."""
    variance = subject.variance
    if variance.min() <= 0 or variance.max() >= 1:
        return None
    steps = round(math.log(variance[0]) / math.log(momentum))
    allowed = rounding(subject.batchnorm, steps)
    # Neighbouring powers are a factor of m apart. Where rounding blurs them, the logarithm does not
    # tell which one this is, so the optimizer's counter has to name it.
    if allowed > (1 - momentum) / 4:
        steps = _counted(subject)
        allowed = rounding(subject.batchnorm, steps)
    if steps < 1 or allowed > _MOST_ROUNDING:
        return None
    power = momentum**steps
    return steps if np.all(np.abs(variance - power) <= allowed * power) else None


# Relative to a variance. With more rounding than that, any number is near some power.
_MOST_ROUNDING = 0.05


def _counted(subject: Subject) -> int:
    """The updates by the optimizer's counter, where all variances are one number; else 0."""
    alike = subject.variance.size > 1 and np.ptp(subject.variance) == 0
    return subject.updates or 0 if alike else 0


@rule("BN107", "vanishing-variance", Severity.WARNING, Severity.INFO)
def vanishing_variance(subject: Subject) -> Diagnosis | None:
    """A variance is negligible next to epsilon: the input of that channel was constant."""
    vanishing = subject.vanishing
    if not np.count_nonzero(vanishing) or batch_of_one(subject) is not None:
        return None
    outstanding = vanishing & subject.outstanding
    if outstanding.any() and not subject.reads_model_input:
        channels, scale = Channels.of(outstanding), float(subject.scale[outstanding].max())
        times = subject.thresholds.outstanding_scale
        return Diagnosis(
            Severity.WARNING,
            f"moving_variance is almost 0 in {channels}, whose scale of up to {scale:.3g} is over "
            f"{times:g} times the median",
            "any change in the input of these channels is amplified; prune them or raise epsilon",
            channels,
            {"scale": scale, "lowest": float(subject.variance[outstanding].min())},
        )
    channels = Channels.of(vanishing)
    return Diagnosis(
        Severity.INFO,
        f"moving_variance is almost 0 in {channels}: their input is constant",
        "nothing to do; the channels could be pruned",
        channels,
        {"lowest": float(subject.variance[vanishing].min())},
    )


@rule("BN108", "cancellation", Severity.WARNING)
def cancellation(subject: Subject) -> Diagnosis | None:
    """The mean is so many standard deviations from 0 that x - mean loses digits in float32."""
    if subject.deviation is None:
        return None
    ratio = np.abs(subject.mean) / subject.deviation
    # The input of a vanishing channel is constant: its difference has no digits that matter.
    large = (ratio > subject.thresholds.cancellation) & ~subject.vanishing
    if not np.count_nonzero(large):
        return None
    channels, worst = Channels.of(large), float(ratio[large].max())
    return Diagnosis(
        Severity.WARNING,
        f"moving_mean is up to {worst:.3g} standard deviations in {channels}: float32 has about "
        f"{max(0.0, 7.2 - math.log10(worst)):.0f} digits left for the difference",
        "subtract the offset from the data, or fold the layer: a fold computes no difference",
        channels,
        {"ratio": worst},
    )


@rule("BN109", "float16-overflow", Severity.ERROR)
def float16_overflow(subject: Subject) -> Diagnosis | None:
    """A variance overflows the dtype that the model will run in."""
    dtype = subject.dtype
    limit = largest_of(dtype) if dtype is not None else None
    if limit is None:
        return None
    over = subject.variance >= limit
    if not np.count_nonzero(over):
        return None
    channels, largest = Channels.of(over), float(subject.variance.max())
    return Diagnosis(
        Severity.ERROR,
        f"moving_variance is up to {largest:.4g} in {channels}, beyond the {dtype} maximum of "
        f"{limit:.5g}",
        "scale the input of the layer down, keep the layer in float32, or fold it",
        channels,
        {"largest": largest, "limit": limit},
    )


@rule("BN110", "averaged-weights", Severity.WARNING, Severity.INFO)
def averaged_weights(subject: Subject) -> Diagnosis | None:
    """The weights are moving averages, but the moving statistics belong to the raw weights."""
    found = subject.averages
    if found is None or subject.is_frozen or subject.estimated_from is not None:
        return None
    if not follows_training(subject.place):
        return None
    again = subject.estimate_again
    kept = found.averaging
    figures = {} if kept.momentum is None else {"ema_momentum": kept.momentum}
    how = "" if kept.momentum is None else f" (ema_momentum {kept.momentum:g})"
    if found.standing is Standing.OTHERS:
        return Diagnosis(
            Severity.INFO,
            f"the optimizer keeps moving averages{how} that differ from the file's weights; the "
            "file does not tell whether its weights are the raw ones, or averages swapped in for a "
            "checkpoint",
            f"nothing to do if they are the raw ones; after SwapEMAWeights, {again}",
            figures=figures,
        )
    if found.standing is Standing.UNKNOWN:
        return Diagnosis(
            Severity.WARNING,
            f"compiled to end training with moving averages as weights{how}, and the file does not "
            "tell whether it did; if so, the statistics belong to other weights",
            f"if it was trained that far, {again}",
            figures=figures,
        )
    alike = _is_as_long(kept, subject.momentum)
    return Diagnosis(
        Severity.INFO if alike else Severity.WARNING,
        f"the weights are moving averages{how}, but the statistics belong to the raw weights"
        + (", over at least as many steps" if alike else ""),
        f"compare the accuracy after you {again}" if alike else again,
        figures=figures,
    )


def _is_as_long(averaging: Averaging, momentum: float | None) -> bool:
    """Whether a layer's statistics average over at least as many steps as those of the weights.

    A moving average with momentum m spans about 1 / (1 - m) steps. While the statistics span as
    many as the weights do, they lag by as much, and match them.
    """
    span = averaging.span
    if span is None or momentum is None or not 0 <= momentum < 1:
        return False
    return span <= _ROUNDED_UP / (1 - momentum)


_ROUNDED_UP = 1 + 1e-6  # equal momenta may differ in their last digits
