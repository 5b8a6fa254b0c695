"""Rules on what goes into a layer while the model runs over data, beside what it records."""

import numpy as np

from bnfold.audit.finding import Channels, Severity
from bnfold.audit.inputs import is_first
from bnfold.audit.subject import Mask, Subject, Verdict
from bnfold.model.moments import Divergence, Observed, divergence, scale, times

# What few samples add to the distance: about 1 / samples in a channel, more in some of many, and
# several times that in all channels of a layer that stands behind twenty others.
_MEDIAN_NOISE = 8.0
_CHANNEL_NOISE = 20.0

_PREPARED = "see that the data were prepared as for training; if so, "
_FROZEN = "nothing to do, if it was frozen on purpose: what follows was trained with it so"


def drift(subject: Subject) -> Verdict | None:
    """The recorded statistics are not those of the data that the model was run over.

    What it finds:
        With `inspect --data` the model is run over the data as `predict` runs it, and the mean and
        variance of every layer's input are taken over all of them, in float64, masked steps left
        out, all calls of a shared layer together. They are compared with moving_mean and
        moving_variance, channel by channel. It is a warning where the median of the channels is
        more than `drift_warning` (0.25 nats) apart, or one of them more than `drift_channel`
        (5 nats), and an error where the median is more than `drift_error` (1 nat) apart. Few
        samples tell less: 8 / n and 20 / n are added to the limits for n samples. On a frozen
        layer, which never followed the data of this model, it is information, and so is a layer
        that cannot be judged, because no data reached it or its input never changed.

    Why it matters:
        At inference a layer normalizes by what it records. If that is not what goes in, what it
        puts out is not what the layers behind it were trained on, and the model is worse on these
        data than it could be, often without anybody's noticing. Either the statistics are to
        blame: never updated, or not for long enough, or taken over from other data, or moved by
        training with dropout in front, with tiny batches or in float16. Or the data are: scaled
        to 0..255 in place of 0..1, normalized twice or not at all, or simply of another kind. A
        layer that drifts makes those behind it drift, so the first is the one to look at.

    Formula:
        With o for observed and r for recorded, and epsilon e added to both variances:

            shift = |mu_o - mu_r| / sqrt(v_r + e)
            ratio = (v_o + e) / (v_r + e)
            KL(o || r) = (ratio - 1 - ln ratio + shift^2) / 2

        The layer puts out numbers of mean `shift` and variance `ratio` where it was to put out mean
        0 and variance 1, before gamma and beta. The KL divergence, in nats, is that of the normal
        distributions with these moments, from the recorded to the observed one. 0.25 nats are a
        shift of 0.7 deviations, or a variance of 2.4 or 0.3 times what is recorded; 1 nat a shift
        of 1.4, or 4.5 or 0.05 times; 5 nats a shift of 3.2, or 14 times. Channels whose input never
        changed are left out. How the limits were set is told with `bnfold recalibrate`.

    Example:
            import keras
            import numpy

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((2,)), norm])
            norm.moving_mean.assign([0.5, 0.5])
            norm.moving_variance.assign([0.08, 0.08])
            data = 255 * numpy.random.default_rng(0).random((1000, 2))

        > error: over 1000 samples its input has other statistics than it records: in 2 of 2
        > channels (0, 1) the mean is up to 451 deviations off, the variance 6.76e+04 to 6.8e+04
        > times as large; KL 1.33e+05 nats in the median of all channels

        The model was trained on numbers in 0..1.

    What to do:
        If the data are the training data, prepared as for training but without augmentation, run
        `bnfold recalibrate` over them. If not, look first at how the data were prepared.

    References:
        - Wu and Johnson, Rethinking "Batch" in BatchNorm: <https://arxiv.org/abs/2105.07576>
        - Li et al., Adaptive Batch Normalization for practical domain adaptation:
          <https://arxiv.org/abs/1603.04779>
    """
    observed = subject.observed
    if observed is None:
        return None
    if observed.moments is None:
        if observed.non_finite.any():
            return None  # it saw data, and BN502 says what was wrong with them
        said = f"not compared with the data: {observed.problem}"
        return Verdict(Severity.INFO, said, "nothing to do, if the data are what they should be")
    varying = observed.moments.squares > 0
    if not varying.any():
        said = "not compared with the data: its input never changes over them"
        return Verdict(Severity.INFO, said, "run the model over more data, or other data")
    seen = (observed.moments.mean, observed.moments.variance)
    found = divergence((subject.mean, subject.variance), seen, subject.batchnorm.epsilon or 0.0)
    judged = varying & ~np.isnan(found.kl)
    return _judge(subject, found, judged, observed) if judged.any() else None


def _judge(subject: Subject, found: Divergence, judged: Mask, observed: Observed) -> Verdict | None:
    """The verdict on the channels that can be judged."""
    limits, samples = subject.thresholds, observed.samples
    median = float(np.median(found.kl[judged]))
    usual = limits.drift_warning + _MEDIAN_NOISE / samples
    lone = judged & (found.kl > limits.drift_channel + _CHANNEL_NOISE / samples)
    fatal = limits.drift_error + _MEDIAN_NOISE / samples
    least = min(usual, fatal)
    if median <= least and not lone.any():
        return None
    concerned = judged & (found.kl > least) if median > least else lone
    severity = Severity.ERROR if median > fatal else Severity.WARNING
    channels = Channels.of(concerned)
    shift, ratio = found.shift[concerned], found.ratio[concerned]
    together = "" if observed.calls < 2 else f" and {observed.calls} calls"
    return Verdict(
        Severity.INFO if subject.is_frozen else severity,
        f"over {samples} samples{together} its input has other statistics than it records: in "
        f"{channels} the mean is up to {shift.max():.3g} deviations off, the variance "
        f"{ratio.min():.3g} to {ratio.max():.3g} times as large; KL {median:.3g} nats in the "
        f"median of all channels{_scaled(subject, observed)}",
        _FROZEN if subject.is_frozen else _PREPARED + subject.estimate_again,
        channels,
        {
            "samples": samples,
            "median_kl": median,
            "largest_kl": float(found.kl[concerned].max()),
            "largest_shift": float(shift.max()),
            "smallest_ratio": float(ratio.min()),
            "largest_ratio": float(ratio.max()),
        },
    )


def _scaled(subject: Subject, observed: Observed) -> str:
    """That the data are so many times as large, where a layer that sees them first tells."""
    if observed.moments is None or subject.place is None or not is_first(subject.place):
        return ""
    seen = observed.moments.mean, observed.moments.variance
    found = scale((subject.mean, subject.variance), seen)
    if found is None or found.excess <= 1 or not found.uniform:
        return ""
    size = times(found.factor)
    return f"; the data are about {size} as large as those that the model was trained on"


def non_finite_activations(subject: Subject) -> Verdict | None:
    """What goes into the layer is NaN or infinite while the model runs over data.

    What it finds:
        With `inspect --data`, numbers in the input of a layer that are not finite, though all
        numbers of the data are.

    Why it matters:
        What the model puts out for these samples is worth nothing. Something in front of the layer
        overflows, most often in float16, or divides by 0, or has weights that are not finite.

    Formula:
            error if any number of the input is NaN or infinite

    Example:
            import keras
            import numpy

            dense = keras.layers.Dense(1, kernel_initializer="ones", dtype="float16")
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((2,)), dense, norm])
            data = numpy.array([[1, 2], [5e4, 4e4]])

        > error: its input has NaN or infinite numbers over the data: 1, in 1 of 1 channels (0)

    What to do:
        Look at the first layer with this finding, and at what is in front of it: BN104 and BN105
        find statistics that do it. In float16, scale the inputs, or keep the layer that overflows
        in float32.

    References:
        - NVIDIA, Train With Mixed Precision:
          <https://docs.nvidia.com/deeplearning/performance/mixed-precision-training/>
    """
    if subject.observed is None or not subject.observed.non_finite.any():
        return None
    bad = subject.observed.non_finite
    channels = Channels.of(bad > 0)
    return Verdict(
        Severity.ERROR,
        f"its input has NaN or infinite numbers over the data: {int(bad.sum())}, in {channels}",
        "look in front of the first layer of which this is said: at statistics that BN104 or BN105 "
        "finds broken, and at what overflows",
        channels,
        {"numbers": float(bad.sum())},
    )
