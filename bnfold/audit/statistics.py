"""Rules on the moving statistics: whether they were learnt, and what is wrong with the numbers."""

import math

import numpy as np

from bnfold.audit.averages import Standing, follows_training
from bnfold.audit.convergence import initial, updates_needed
from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.updates import is_initial, rounding
from bnfold.folding.limits import largest_of
from bnfold.model.optimizer import Averaging


def statistics_never_updated(subject: Subject) -> Verdict | None:
    """All means are 0 and all variances 1, exactly as they are created.

    What it finds:
        A layer that is not frozen, whose moving mean is 0 and whose moving variance is 1 in
        every channel, exactly. It is a warning on frozen layers, where it holds for all frozen
        layers of the model (or nested model) that they stand in, and those are several, or all
        that it has: such is a backbone without its weights. What follows a single frozen layer
        has learnt to make do with it.

    Why it matters:
        These are the values that the layer is created with. No data have those statistics
        exactly, so nothing was ever learnt: in training the layer normalized with each batch's
        own statistics, at inference it does not normalize at all, and accuracy collapses. A
        model that was never trained looks the same. So does a frozen backbone into which no
        pretrained weights were loaded.

    Formula:
            error if all mu = 0 and all v = 1, warning in a frozen backbone

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > error: moving_mean is all 0 and moving_variance all 1, as they were created

    What to do:
        In a loop of your own, call the model with `training=True`. In TensorFlow 1 run the
        update operations too. If the layer never saw training mode, estimate the statistics
        from the training data with `bnfold recalibrate`; the other weights may be good. If it
        is frozen, look whether the backbone got its pretrained weights.

    References:
        - tensorflow/tensorflow 16102: <https://github.com/tensorflow/tensorflow/issues/16102>
    """
    if not is_initial(subject.batchnorm):
        return None
    if subject.is_frozen and not subject.in_untrained_backbone:
        return None
    if subject.is_frozen:
        return Verdict(
            Severity.WARNING,
            "frozen, with a moving_mean of all 0 and a moving_variance of all 1, as they were "
            "created",
            "load the weights that the backbone was to be frozen with, or train it before",
        )
    return Verdict(
        Severity.ERROR,
        "moving_mean is all 0 and moving_variance all 1, as they were created",
        "train with training=True (a custom loop must pass it), or load trained weights; if the "
        f"others are trained, {subject.estimate_again}; what is said of folding here holds for the "
        "untrained values only",
    )


def variance_never_updated(subject: Subject) -> Verdict | None:
    """All variances are 1, exactly as they are created, while some mean is not 0.

    What it finds:
        A layer whose moving variance is 1 in every channel, exactly, and whose moving mean is
        not 0.

    Why it matters:
        Half of the statistics were updated, or half of them were ported. The output is centred,
        but not scaled: every layer behind it gets numbers of the wrong size. A version of Keras
        Core did not assign the variance in training.

    Formula:
            error if all v = 1 and some mu != 0

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.moving_mean.assign([0.3, -1.2, 0.0, 0.7])

        > error: moving_variance is all 1, as it was created, but moving_mean is not 0

    What to do:
        Look for the code that assigns the statistics, or that ports the weights: the order is
        gamma, beta, moving_mean, moving_variance. Then estimate the statistics again from the
        training data with `bnfold recalibrate`.

    References:
        - keras-team/keras-core 339: <https://github.com/keras-team/keras-core/pull/339>
    """
    if np.any(subject.variance != 1) or not np.any(subject.mean != 0):
        return None
    return Verdict(
        Severity.ERROR,
        "moving_variance is all 1, as it was created, but moving_mean is not 0",
        "check that the training code assigns the variance, or that the weights were ported "
        f"whole, or {subject.estimate_again}",
    )


def statistics_not_converged(subject: Subject) -> Verdict | None:
    """Too few training steps: the values that the statistics started from still weigh in them.

    What it finds:
        A layer whose moving statistics were updated so rarely that the initial mean 0 and
        variance 1 keep more than `unconverged_warning` (5 %) of their weight, or that the initial
        1 makes up more than `initial_variance` (50 %) of variance + epsilon in the median of the
        channels that vary. Where either is more than `unconverged_error` (65 %), it is an error.
        The number of updates is that of the optimizer's steps, times the calls of the layer. Left
        out are frozen and recalibrated layers, and calls with `training=False` in models of Keras
        2 (in Keras 3 `fit` overrides that).

        The counter starts over when a model is compiled again. Then the statistics are older:
        a variance starts at 1 and only sinks by a factor m at each update, so that none is below
        m^n after n of them, and gamma and beta are no farther from 1 and 0 than n steps of Adam
        or its kin reach at three times the learning rate of the file. Else the rule is silent
        about the model; so it is without a counter, or where BN101, BN102 or BN106 speak.

    Why it matters:
        At momentum 0.99 the initial values weigh half after 69 steps and 5 % after 299, at
        0.999 after 693 and 2,995. A short training, a small data set or a high momentum leaves
        statistics that lie between those of the data and the initial ones: training looks good
        and inference does not. The weight alone does not tell what that costs: the first layers
        of an image network see variances of some hundredths, to which 0.03 of the initial 1 adds
        more than the data did. Of networks of many kinds that had learnt something, every one
        with a layer over 65 % lost accuracy by it, 6 to 92 points of a hundred.

    Formula:
            r = m^n
            s = median of r / (v + e)
            warning if r > 0.05 or s > 0.5, error if r > 0.65 or s > 0.65

        m is the momentum, n the number of updates, e epsilon. What the layer should have is
        (v - r) / (1 - r).

    Example:
            import keras
            import numpy as np

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            model.compile("sgd", "mse")
            data = 3 * np.random.default_rng(0).normal(size=(160, 4))
            model.fit(data, data, batch_size=8, epochs=2, verbose=0)

        > error: after 40 updates at momentum 0.99, the values that the statistics were
        > created with still weigh 67%

    What to do:
        Train longer, set a momentum such as 0.9, or `bnfold recalibrate` from the
        training data, which needs no training.

    References:
        - Wu and Johnson, Rethinking "Batch" in BatchNorm: <https://arxiv.org/abs/2105.07576>
    """
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
    said = f"the values that the statistics were created with still weigh {found.weight:.0%}"
    if found.share > found.weight:
        said += f" and make up {found.share:.0%} of the variance"
    per_step = (subject.place.updates_per_step if subject.place is not None else None) or 1
    needed = math.ceil(updates_needed(found, momentum, weight, share) / per_step)
    return Verdict(
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


def non_finite(subject: Subject) -> Verdict | None:
    """A NaN or an infinity stands in gamma, beta, the mean or the variance.

    What it finds:
        Any number in the four vectors of the layer that is not finite. Other rules say nothing
        of the numbers of such a layer.

    Why it matters:
        Everything behind the channel is NaN. It comes from a loss that diverged, from a float16
        that overflowed, from a layer shared by inputs that differ, or from a batch of one
        sample on a kernel that divides by n - 1. The layer cannot be folded.

    Formula:
            error if any of gamma, beta, mu, v is not finite

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.beta.assign([0.0, float("nan"), 0.0, 0.0])

        > error: not finite: beta in 1 of 4 channels (1)

    What to do:
        If only the mean or the variance is broken, estimating them again from the training data
        with `bnfold recalibrate` is enough; so it is where the batches of training had one
        value for each channel, as behind global pooling with batches of one. Numbers in gamma,
        beta or a kernel that are not finite are lost: go back to a checkpoint from before the
        loss diverged.

    References:
        - keras-team/keras 9646: <https://github.com/keras-team/keras/issues/9646>
        - keras-team/keras 11927, shared layers: <https://github.com/keras-team/keras/issues/11927>
        - tensorflow/tensorflow 34062: <https://github.com/tensorflow/tensorflow/issues/34062>
    """
    bad = {name: ~np.isfinite(values) for name, values in subject.vectors.items()}
    broken = [f"{name} in {Channels.of(mask)}" for name, mask in bad.items() if mask.any()]
    if not broken:
        return None
    return Verdict(
        Severity.ERROR,
        f"not finite: {', '.join(broken)}",
        _mended(subject, [name for name, mask in bad.items() if mask.any()]),
        Channels.of(np.any(list(bad.values()), axis=0)),
    )


def _mended(subject: Subject, broken: list[str]) -> str:
    """What helps a layer of which these vectors are not finite."""
    checkpoint = "go back to a checkpoint from before the loss diverged"
    if not {"moving_mean", "moving_variance"}.issuperset(broken):
        return checkpoint
    return f"if the weights are finite everywhere, {subject.estimate_again}; otherwise {checkpoint}"


def negative_variance(subject: Subject) -> Verdict | None:
    """A variance is negative; where epsilon does not make up for it, the output is NaN.

    What it finds:
        A moving variance below 0. It is an error where variance + epsilon is not positive, else
        a warning.

    Why it matters:
        No variance is negative. It comes from computing E[x^2] - E[x]^2, which cancels where
        the mean is large, in float16 or in float32, and it says that the other variances of the
        layer are inexact too. With v + e <= 0 the layer takes the root of a negative number.
        Such a layer cannot be folded.

    Formula:
            warning if v < 0, error if v + e <= 0

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.moving_variance.assign([1.0, -0.002, 0.5, 1.0])

        > error: moving_variance is negative in 1 of 4 channels (1), down to -0.002, and not
        > positive with epsilon added: the output is NaN

    What to do:
        Estimate the statistics again with `bnfold recalibrate`, which sums up in float64.
        Setting the variance to 0 silences the NaN, and turns the channel into one
        of BN107.

    References:
        - tensorflow/tensorflow 18334: <https://github.com/tensorflow/tensorflow/issues/18334>
        - tensorflow/tensorflow 3290: <https://github.com/tensorflow/tensorflow/issues/3290>
        - keras-team/keras 18795, the same in Keras 3:
          <https://github.com/keras-team/keras/pull/18795>
    """
    variance, epsilon = subject.variance, subject.batchnorm.epsilon
    negative = variance < 0
    if not negative.any():
        return None
    channels = Channels.of(negative)
    lowest = float(variance.min())
    fatal = epsilon is not None and bool(np.any(subject.plus_epsilon(epsilon)[negative] <= 0))
    return Verdict(
        Severity.ERROR if fatal else Severity.WARNING,
        f"moving_variance is negative in {channels}, down to {lowest:.3g}"
        + (", and not positive with epsilon added: the output is NaN" if fatal else ""),
        f"{subject.estimate_again}; a variance is never negative, and clamping it would hide that",
        channels,
        {"lowest": lowest},
    )


def batch_of_one(subject: Subject) -> Verdict | None:
    """Every variance is a power of the momentum: the variance of each batch was 0.

    What it finds:
        A layer all of whose variances are m^k for one whole number k of 1 or more, to within
        the rounding of k updates, or all of whose variances are 0. Of a layer with one channel
        it says so only if the optimizer made k steps, because a single number can be near a
        power by chance; and so it does where k is so large that rounding hides which power it
        is, if all variances are the same number. It shows where a sample is one number for each
        channel: the positions of an image or a sequence vary within one sample, and a
        convolutional network that was trained with one sample at a time looks like any other.

    Why it matters:
        The variance starts at 1 and each update multiplies it by m and adds a part of the
        batch's variance. If nothing was ever added, each batch had a variance of 0 in every
        channel: it had one sample, or the input of the layer never changes. Inference then
        divides by almost nothing.

    Formula:
            warning if v = m^k in all channels, k >= 1

    Example:
            import keras
            import numpy as np

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            model.compile("sgd", "mse")
            data = np.random.default_rng(0).normal(size=(40, 4))
            model.fit(data, data, batch_size=1, verbose=0)

        > warning: every moving_variance is 0.99^40: each batch had a variance of 0, as one
        > sample has

    What to do:
        Train with batches of several samples, or use a layer that does not need them, such as
        GroupNormalization. Estimating the statistics again with `bnfold recalibrate` repairs
        inference, but not what the other layers learnt from normalized constants.

    References:
        - tensorflow/tensorflow 34062: <https://github.com/tensorflow/tensorflow/issues/34062>
        - Wu and He, Group Normalization: <https://arxiv.org/abs/1803.08494>
    """
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
    if allowed > (1 - momentum) / 4:  # the powers beside it are as near
        steps = _counted(subject)
        allowed = rounding(subject.batchnorm, steps)
    if steps < 1 or allowed > _MOST_ROUNDING:
        return None
    power = momentum**steps
    return steps if np.all(np.abs(variance - power) <= allowed * power) else None


_MOST_ROUNDING = 0.05  # of a variance; above it a power says nothing any more


def _counted(subject: Subject) -> int:
    """The updates by the optimizer's counter, where all variances are one number; else 0."""
    alike = subject.variance.size > 1 and np.ptp(subject.variance) == 0
    return subject.updates or 0 if alike else 0


def vanishing_variance(subject: Subject) -> Verdict | None:
    """A variance is almost 0 beside epsilon: the input of that channel was constant.

    What it finds:
        Channels whose variance is below `vanishing_variance` (1 %) of epsilon. It is a warning
        where the scale of such a channel is more than `outstanding_scale` (100) times the
        median of the layer's channels, those with a gamma of almost 0 left out. It stays an
        info for a layer that normalizes the model's input, as it is or as layers that are not
        trained make it (Flatten, Resizing, pooling, Rescaling, Normalization and the like),
        because borders of images are constant in good data sets. It is silent where BN106
        speaks. What BN402 and BN403 find of the layer is a part of this finding, and its level
        the worst of theirs, if they would find nothing without these channels.

    Why it matters:
        A channel that never changed in training, because its filter died or its pixel is always
        black, gets the scale gamma / sqrt(e): 32 with Keras' default epsilon, 1000 with 1e-6.
        Nothing happens until it changes once. Healthy models have a few such channels, and with
        an ordinary scale they do no harm.

    Formula:
            s = abs(g) / sqrt(v + e)
            info if 0 <= v < 0.01 e, warning if also s > 100 median(s)

    Example:
            import keras

            norm = keras.layers.BatchNormalization(epsilon=1e-6, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.moving_variance.assign([1.0, 0.0, 0.5, 1.0])

        > warning: moving_variance is almost 0 in 1 of 4 channels (1), whose scale of up to
        > 1e+03 is over 100 times the median

    What to do:
        Nothing, for an info; the channels could be pruned. Otherwise prune them, or raise
        epsilon and train on.

    References:
        - pytorch/vision 648, a scale near 1000: <https://github.com/pytorch/vision/issues/648>
    """
    vanishing = subject.vanishing
    if not vanishing.any() or batch_of_one(subject) is not None:
        return None
    outstanding = vanishing & subject.outstanding
    if outstanding.any() and not subject.reads_model_input:
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
    """The mean is so many standard deviations that float32 loses digits in x - mean.

    What it finds:
        Channels whose mean is more than `cancellation` (1000) times the standard deviation.
        Channels without a variance (BN107) are left out: they have no digits to lose.

    Why it matters:
        The layer subtracts two large numbers that are almost equal. float32 has about seven
        digits, and a ratio of 1000 takes three of them, float16 all. It also points to data
        that were not centred. A fold helps: the folded layer does not form the difference.

    Formula:
            warning if abs(mu) / sqrt(v + e) > 1000

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), norm])
            norm.moving_mean.assign([20000.0, 0.0, 0.0, 0.0])

        > warning: moving_mean is up to 2e+04 standard deviations in 1 of 4 channels (0):
        > float32 has about 3 digits left for the difference

    What to do:
        Subtract the offset of the data before the model, in float64 if need be, or fold the
        layer.

    References:
        - Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, 1983:
          <https://doi.org/10.1080/00031305.1983.10483115>
    """
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
    """A variance is larger than the dtype that the model will be run in can hold.

    What it finds:
        A variance of 65504 or more where the layer will be run in float16: with `--target-dtype
        float16`, or without it where the layer's own policy computes in float16. For other
        dtypes it compares with their own largest number.

    Why it matters:
        65504 is the largest float16. Keras computes a BatchNormalization in float32 also under
        mixed_float16, so nothing is seen there. A runtime that converts all weights to float16
        makes infinity of the variance and 0 of the channel.

    Formula:
            error if v >= 65504

    Example:
            import keras

            norm = keras.layers.BatchNormalization(dtype="mixed_float16", name="norm")
            model = keras.Sequential([keras.Input((4,)), norm])
            norm.moving_variance.assign([90000.0, 1.0, 1.0, 1.0])

        > error: moving_variance is up to 9e+04 in 1 of 4 channels (0), and float16 ends at
        > 65504

    What to do:
        Scale the input of the layer down, for example by a Rescaling in front of the model,
        keep the layer in float32, or fold it: the folded weights hold gamma / sqrt(v + e), not
        v.

    References:
        - IEEE 754-2019, binary16: <https://doi.org/10.1109/IEEESTD.2019.8766229>
    """
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


def averaged_weights(subject: Subject) -> Verdict | None:
    """The weights are moving averages, and the moving statistics those of the raw weights.

    What it finds:
        A layer of a model that was compiled with `use_ema`, whose weights stand among the
        optimizer's variables bit for bit: they are the averages that the optimizer kept, and `fit`
        put them in place when it ended. It is an info where the optimizer averages over no more
        steps than the layer does, because mean and variance are then of about the same span, and
        where the file's weights are not those averages. It is a warning where the file holds no
        averages to compare with, because `fit` puts them in place. It
        says nothing of a frozen layer, of one that sees nothing that was trained, and of one with
        statistics from `bnfold recalibrate`.

    Why it matters:
        The statistics were updated in each step with the activations of the raw weights. The
        averaged weights give other activations for the same data, and nothing has measured those.
        Two networks with an `ema_momentum` of 0.999 had an accuracy of 0.56 and 0.39, and of 0.97
        and 0.87 after `bnfold recalibrate`. With 0.99, over as many steps as its layers' own
        statistics, the first of them lost nothing. Validation in `fit` does not show it: it uses
        the raw weights.

        `SwapEMAWeights(swap_on_epoch=True)` before a `ModelCheckpoint` saves averages too,
        and the raw weights among the optimizer's variables. Nothing in the file tells that from
        an ordinary checkpoint, in which it is the other way round and nothing is wrong.

    Formula:
            warning if W = ema(W), bit for bit, and 1 / (1 - m_ema) > 1 / (1 - m)

        m_ema is the momentum of the averages, m that of the layer.

    Example:
            import keras
            import numpy as np

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.999), "mse")
            data = np.random.default_rng(0).normal(size=(160, 4))
            model.fit(data, data, batch_size=8, verbose=0)

        > warning: the weights are moving averages (ema_momentum 0.999), and the statistics those of
        > the weights before they were averaged

    What to do:
        `bnfold recalibrate` with training data. In Python: run the model over them with
        training=True and without an optimizer, after `fit` has ended.

    References:
        - Izmailov and others, Averaging Weights Leads to Wider Optima and Better Generalization,
          section 3.2: <https://arxiv.org/abs/1803.05407>
        - fadel/pytorch_ema 13: <https://github.com/fadel/pytorch_ema/issues/13>
        - keras.callbacks.SwapEMAWeights:
          <https://keras.io/api/callbacks/swap_ema_weights/>
    """
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
        return Verdict(
            Severity.INFO,
            f"the optimizer keeps moving averages{how} that differ from the file's weights; the "
            "file does not say whether these are the raw ones or were swapped in for a checkpoint",
            f"nothing, if they are the raw ones; after SwapEMAWeights, {again}",
            figures=figures,
        )
    if found.standing is Standing.UNKNOWN:
        return Verdict(
            Severity.WARNING,
            f"compiled so that training ends with moving averages as weights{how}, and the file "
            "does not say whether it did; if so, the statistics are those of other weights",
            f"if it was trained so, {again}",
            figures=figures,
        )
    alike = _is_as_long(kept, subject.momentum)
    return Verdict(
        Severity.INFO if alike else Severity.WARNING,
        f"the weights are moving averages{how}, and the statistics those of the weights before "
        "they were averaged" + (", over at least as many steps" if alike else ""),
        f"compare the accuracy after you {again}" if alike else again,
        figures=figures,
    )


def _is_as_long(averaging: Averaging, momentum: float | None) -> bool:
    """Whether a layer's statistics are of no fewer steps than the averages of the weights."""
    span = averaging.span
    if span is None or momentum is None or not 0 <= momentum < 1:
        return False
    return span <= _ROUNDED_UP / (1 - momentum)


_ROUNDED_UP = 1 + 1e-6
