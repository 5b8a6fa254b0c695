"""Rules that compare a layer's input, as the model runs over data, with its moving statistics."""

import numpy as np

from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.inputs import is_first
from bnfold.audit.registry import Needs, rule
from bnfold.audit.subject import Mask, Subject
from bnfold.model.channels import Channels
from bnfold.model.moments import Divergence, Observed, divergence, median, scale, times

# Sampling noise alone has a KL divergence of about 1 / samples in a channel. It is larger in the
# worst of many channels, and several times that in all channels of a layer with twenty upstream.
_MEDIAN_NOISE = 8.0
_CHANNEL_NOISE = 20.0

_PREPARED = "check that the data were prepared as for training; if so, "
_FROZEN = "nothing to do if it was frozen on purpose: the layers after it were trained with that"


@rule("BN501", "drift", Severity.ERROR, Severity.WARNING, Severity.INFO, needs_data=True)
def drift(subject: Subject) -> Diagnosis | None:
    """The moving statistics do not match the data that the model was run over."""
    observed = subject.observed
    if observed is None:
        return None
    if observed.moments is None:
        if observed.non_finite.any():
            return None  # BN502 reports that
        said = f"not compared with the data: {observed.problem}"
        return Diagnosis(Severity.INFO, said, "nothing to do if the data are the right ones")
    varying = observed.moments.squares > 0
    if not varying.any():
        said = "not compared with the data: its input never changes over them"
        return Diagnosis(Severity.INFO, said, "run the model over more data, or other data")
    seen = (observed.moments.mean, observed.moments.variance)
    found = divergence((subject.mean, subject.variance), seen, subject.batchnorm.epsilon or 0.0)
    judged = varying & ~np.isnan(found.kl)
    return _judge(subject, found, judged, observed) if judged.any() else None


def _judge(
    subject: Subject, found: Divergence, judged: Mask, observed: Observed
) -> Diagnosis | None:
    """The diagnosis of the channels that can be judged."""
    limits, samples = subject.thresholds, observed.samples
    middle = float(median(found.kl[judged]))
    usual = limits.drift_warning + _MEDIAN_NOISE / samples
    lone = judged & (found.kl > limits.drift_channel + _CHANNEL_NOISE / samples)
    fatal = limits.drift_error + _MEDIAN_NOISE / samples
    least = min(usual, fatal)
    if middle <= least and not lone.any():
        return None
    concerned = judged & (found.kl > least) if middle > least else lone
    severity = Severity.ERROR if middle > fatal else Severity.WARNING
    channels = Channels.of(concerned)
    shift, ratio = found.shift[concerned], found.ratio[concerned]
    together = "" if observed.calls < 2 else f" and {observed.calls} calls"
    return Diagnosis(
        Severity.INFO if subject.is_frozen else severity,
        f"over {samples} samples{together} its input does not match its moving statistics: in "
        f"{channels} the mean is up to {shift.max():.3g} standard deviations off, the variance "
        f"{ratio.min():.3g} to {ratio.max():.3g} times as large; the median KL of all channels is "
        f"{middle:.3g} nats{_scaled(subject, observed)}",
        _FROZEN if subject.is_frozen else _PREPARED + subject.estimate_again,
        channels,
        {
            "samples": samples,
            "median_kl": middle,
            "largest_kl": float(found.kl[concerned].max()),
            "largest_shift": float(shift.max()),
            "smallest_ratio": float(ratio.min()),
            "largest_ratio": float(ratio.max()),
        },
    )


def _scaled(subject: Subject, observed: Observed) -> str:
    """By what factor the data differ in scale, where no other layer normalizes them first."""
    if observed.moments is None or subject.place is None or not is_first(subject.place):
        return ""
    seen = observed.moments.mean, observed.moments.variance
    found = scale((subject.mean, subject.variance), seen)
    if found is None or found.excess <= 1 or not found.uniform:
        return ""
    size = times(found.factor)
    return f"; the data are about {size} as large as those that the model was trained on"


@rule("BN502", "non-finite-activations", Severity.ERROR, needs=Needs.SETTINGS, needs_data=True)
def non_finite_activations(subject: Subject) -> Diagnosis | None:
    """The input of the layer has a NaN or an infinity while the model runs over data."""
    if subject.observed is None or not subject.observed.non_finite.any():
        return None
    bad = subject.observed.non_finite
    channels = Channels.of(bad > 0)
    return Diagnosis(
        Severity.ERROR,
        f"its input has NaN or infinite numbers over the data: {int(bad.sum())}, in {channels}",
        "look upstream of the first layer with this finding: for statistics that BN104 or BN105 "
        "reports, and for overflows",
        channels,
        {"numbers": float(bad.sum())},
    )
