"""Rules on how a BatchNormalization is configured: its momentum, its epsilon, its flags."""

import math

import numpy as np

from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import Subject, Verdict

CUDNN_EPSILON = 1.001e-5
"""A little more than CUDNN_BN_MIN_EPSILON, 1e-5, which the fused kernel clamps to."""


def invalid_hyperparameter(subject: Subject) -> Verdict | None:
    """The momentum is outside [0, 1], or epsilon is not positive.

    What it finds:
        A `momentum` below 0 or above 1, an `epsilon` of 0 or less, or one of them that is not
        finite.

    Why it matters:
        Keras accepts these values without a word. With a momentum outside [0, 1] the moving
        statistics are no average any more: they swing or grow without limit. Without a positive
        epsilon a channel of variance 0 divides by 0, and the output is NaN.

    Formula:
            error if not 0 <= m <= 1, or not 0 < e < infinity

        m is the momentum, e is epsilon. m = 0 and m = 1 are legal: see BN002.

    Example:
            import keras

            norm = keras.layers.BatchNormalization(momentum=1.1, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > error: momentum 1.1 is outside [0, 1]

    What to do:
        Build the layer with a momentum between 0.9 and 0.999 and an epsilon such as 1e-3. If
        the model was trained with the wrong momentum, its statistics are wrong too: estimate
        them again from the training data.

    References:
        - keras-team/keras 23623, a proposed check: <https://github.com/keras-team/keras/pull/23623>
    """
    momentum, epsilon = (_number(subject, name) for name in ("momentum", "epsilon"))
    wrong = []
    if momentum is not None and not 0 <= momentum <= 1:
        wrong.append(f"momentum {momentum:g} is outside [0, 1]")
    if epsilon is not None and not 0 < epsilon < math.inf:
        wrong.append(f"epsilon {epsilon:g} is not a positive number")
    if not wrong:
        return None
    given = {"momentum": momentum, "epsilon": epsilon}
    return Verdict(
        Severity.ERROR,
        " and ".join(wrong),
        "build the layer with a momentum such as 0.99 and an epsilon such as 1e-3",
        figures={name: value for name, value in given.items() if value is not None},
    )


def _number(subject: Subject, name: str) -> float | None:
    """A setting that is a number, also where it is none that could be computed with."""
    value = subject.batchnorm.layer.config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def frozen_or_forgetful_momentum(subject: Subject) -> Verdict | None:
    """The momentum is 1, so nothing is updated, or 0, so that the last batch is all that counts.

    What it finds:
        A `momentum` of exactly 1 or exactly 0 in a layer that is not frozen.

    Why it matters:
        With 1 a training step keeps all of the old statistics: they stay what they were created
        as, and inference does not normalize. With 0 a step keeps nothing: inference normalizes
        with the mean and variance of whatever batch came last. Pretrained models have shipped
        with 0; nothing is wrong with them until somebody trains them on.

    Formula:
            mu <- m mu + (1 - m) mean(batch)
            v  <- m v  + (1 - m) variance(batch)

        A warning if m = 0 or m = 1.

    Example:
            import keras

            norm = keras.layers.BatchNormalization(momentum=0.0, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > warning: momentum is 0: the statistics are those of the last batch alone

    What to do:
        Set a momentum such as 0.99, and train, or estimate the statistics again. To keep
        statistics as they are on purpose, set `trainable=False`, which says so.

    References:
        - keras-team/keras 16726, ResNet-RS: <https://github.com/keras-team/keras/pull/16726>
    """
    if subject.momentum not in (0, 1) or subject.is_frozen:
        return None
    never = subject.momentum == 1
    return Verdict(
        Severity.WARNING,
        "momentum is 1: training never updates the statistics"
        if never
        else "momentum is 0: the statistics are those of the last batch alone",
        "use a momentum such as 0.99, and train or estimate the statistics again",
        figures={"momentum": float(never)},
    )


def inverted_momentum(subject: Subject) -> Verdict | None:
    """The momentum is so small that it may be meant in the convention of PyTorch, 1 - m.

    What it finds:
        A `momentum` above 0 and below `inverted_momentum` (0.5) in a layer that is not frozen.

    Why it matters:
        Keras' momentum is the share of the old statistics that a step keeps, PyTorch's the
        share of the new ones that it takes. A 0.1 or 0.01 that is carried over as it is makes
        the moving statistics those of the last one or two batches: inference depends on how the
        last epoch was shuffled.

    Formula:
            warning if 0 < m < 0.5

        After n steps the batches before them weigh m^n: with m = 0.1 the last batch alone has
        90 %.

    Example:
            import keras

            norm = keras.layers.BatchNormalization(momentum=0.1, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > warning: momentum 0.1 keeps 10% of the old statistics at each step, so that they are
        > those of the last few batches

    What to do:
        Use 1 - m (0.9 for PyTorch's 0.1, 0.99 for its 0.01), and train or estimate the
        statistics again. If the small value is meant, ignore the rule for this layer.

    References:
        - ludwig-ai/ludwig 2100, momenta of the other convention:
          <https://github.com/ludwig-ai/ludwig/pull/2100>
    """
    momentum = subject.momentum
    if momentum is None or not 0 < momentum < subject.thresholds.inverted_momentum:
        return None
    if subject.is_frozen:
        return None
    return Verdict(
        Severity.WARNING,
        f"momentum {momentum:g} keeps {momentum:.0%} of the old statistics at each step, so that "
        "they are those of the last few batches",
        f"PyTorch counts the other way round: if that was meant, use {1 - momentum:g}",
        figures={"momentum": momentum},
    )


def epsilon_below_runtime_minimum(subject: Subject) -> Verdict | None:
    """Epsilon is below what cuDNN's fused kernel clamps to.

    What it finds:
        A positive `epsilon` below 1.001e-5.

    Why it matters:
        The fused BatchNormalization of cuDNN takes no epsilon below 1e-5. Keras 2 raised it to
        1.001e-5 for that kernel, Keras 3 takes what it is given: the same file can compute
        different numbers in the two, in channels of small variance.

    Formula:
            info if 0 < e < 1.001e-5

    Example:
            import keras

            norm = keras.layers.BatchNormalization(epsilon=1e-6, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > info: epsilon 1e-06 is below 1.001e-05, which cuDNN's fused kernel takes instead

    What to do:
        Nothing, where Keras 3 or a folded model runs: a fold uses the epsilon of the file.
        Compare the outputs where another runtime takes over. BN005 tells whether any channel is
        small enough for epsilon to matter.

    References:
        - NVIDIA cuDNN, CUDNN_BN_MIN_EPSILON: <https://docs.nvidia.com/deeplearning/cudnn/>
    """
    epsilon = subject.epsilon
    if epsilon is None or epsilon >= CUDNN_EPSILON:
        return None
    return Verdict(
        Severity.INFO,
        f"epsilon {epsilon:g} is below {CUDNN_EPSILON:g}, which cuDNN's fused kernel takes instead",
        "nothing to do where Keras 3 or a folded model runs; elsewhere use 1.001e-5 or more",
        figures={"epsilon": epsilon},
    )


def epsilon_sensitive(subject: Subject) -> Verdict | None:
    """Epsilon is a notable part of variance + epsilon in some channel.

    What it finds:
        Channels in which epsilon makes up more than `epsilon_share` (10 %) of the variance +
        epsilon that the layer divides by.

    Why it matters:
        In such a channel epsilon is not a safeguard but a part of the model. Weights ported
        from PyTorch, whose default is 1e-5, into a layer with Keras' 1e-3 give other outputs
        there, and so does the way back.

    Formula:
            info if max over channels of e / (v + e) > 0.1

        e is epsilon, v the moving variance of a channel. Negative variances are left to BN105.

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.moving_variance.assign([1.0, 1.0, 0.002, 1.0])

        > info: epsilon 0.001 is up to 33% of variance + epsilon in 1 of 4 channels (2)

    What to do:
        Nothing, as long as the model keeps the epsilon that it was trained with; a fold does.
        When weights are ported, port epsilon with them.

    References:
        - Ioffe and Szegedy, Batch Normalization, algorithm 1: <https://arxiv.org/abs/1502.03167>
    """
    epsilon, variance = subject.epsilon, subject.variance
    if epsilon is None:
        return None
    share = np.where(variance >= 0, epsilon / (np.maximum(variance, 0) + epsilon), 0)
    sensitive = share > subject.thresholds.epsilon_share
    if not sensitive.any():
        return None
    channels = Channels.of(sensitive)
    return Verdict(
        Severity.INFO,
        f"epsilon {epsilon:g} is up to {share.max():.0%} of variance + epsilon in {channels}",
        "keep this epsilon when the weights are ported (PyTorch's default is 1e-5, Keras' 1e-3)",
        channels,
        {"epsilon": epsilon, "share": float(share.max())},
    )


def frozen(subject: Subject) -> Verdict | None:
    """The layer is not trainable, so it runs in inference mode always.

    What it finds:
        `trainable=False` in the layer's own config. Freezing a model or a wrapper writes that
        into every layer inside, and the layer's own flag is the one that Keras heeds: one that
        was set free again inside a frozen model is trained.

    Why it matters:
        Since TensorFlow 2 a frozen BatchNormalization uses its moving statistics in training as
        well and never updates them. That is what one wants of a pretrained backbone. It also
        means that the statistics are those of the data it was trained on before. BN101 only
        warns of a frozen layer, and BN103 says nothing of it.

    Formula:
            info if trainable is false

    Example:
            import keras

            norm = keras.layers.BatchNormalization(trainable=False, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > info: trainable is false: it uses its moving statistics in training too, and keeps
        > them

    What to do:
        Nothing, if it is meant. If the data differ much from those of the first training,
        estimate the statistics again, or train with the layer unfrozen.

    References:
        - keras-team/keras 9965, on frozen layers that used the batch's statistics:
          <https://github.com/keras-team/keras/pull/9965>
    """
    if not subject.is_frozen:
        return None
    return Verdict(
        Severity.INFO,
        "trainable is false: it uses its moving statistics in training too, and keeps them",
        "nothing to do, if that is meant",
    )


def backend_bound(subject: Subject) -> Verdict | None:
    """The layer synchronizes its statistics, which only the TensorFlow backend can.

    What it finds:
        `synchronized=True`, or the class SyncBatchNormalization of Keras 2.

    Why it matters:
        Keras 3 refuses to build such a layer on another backend than TensorFlow: the model does
        not load there, though synchronizing matters in distributed training only.

    Formula:
            info if synchronized is true

    Example:
            import keras

            norm = keras.layers.BatchNormalization(synchronized=True, name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > info: synchronized is true: the layer cannot be built on another backend than
        > TensorFlow

    What to do:
        Set `synchronized=False` before saving a model for inference, or fold the layer.

    References:
        - Keras, BatchNormalization:
          <https://keras.io/api/layers/normalization_layers/batch_normalization/>
    """
    layer = subject.batchnorm.layer
    if not (layer.config.get("synchronized") or layer.class_name == "SyncBatchNormalization"):
        return None
    return Verdict(
        Severity.INFO,
        "synchronized is true: the layer cannot be built on another backend than TensorFlow",
        "set synchronized=False for inference, where it changes nothing",
    )


def not_audited(subject: Subject) -> Verdict | None:
    """It is a BatchNormalization, but its settings or its statistics could not be read.

    What it finds:
        A layer that is a BatchNormalization by its class, its name or its variables, and whose
        settings or statistics the file does not show: a custom class; a layer inside one, or
        inside a wrapper such as those of quantization-aware training and pruning; a layer
        whose variables are missing from the file, or are not those of its class; a layer of a
        nested model in a legacy file whose variables cannot be told from those beside it.

    Why it matters:
        Silence of the other rules is no clearance here: those that need what could not be read
        were not asked. Where the statistics can be read and the settings cannot, the rules on
        statistics apply. Such a layer is never folded.

    Formula:
            warning if the settings or the statistics could not be read

    Example:
            import keras

            @keras.saving.register_keras_serializable("mine")
            class BatchNorm(keras.layers.BatchNormalization):
                pass

            norm = BatchNorm(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])

        > warning: not audited: its settings could not be read: it is, or is inside, a custom
        > layer or wrapper, and the file does not say what that does

    What to do:
        Put Keras' own BatchNormalization in the place of the custom one, or take the wrapper
        away (`strip_pruning`; quantize the folded model), hand over the weights, and save the
        model again. Otherwise look at the layer's statistics yourself. If the layer is known
        to be good, suppress the finding with that reason.

    References:
        - TensorFlow Model Optimization, wrappers around BatchNormalization:
          <https://www.tensorflow.org/model_optimization/guide/quantization/training>
        - matterport/Mask_RCNN, a class of its own: <https://github.com/matterport/Mask_RCNN>
    """
    batchnorm = subject.batchnorm
    problem, odd = batchnorm.problem, batchnorm.unreadable
    said = [f"its statistics could not be read: {problem}"] if problem is not None else []
    if not batchnorm.is_configured:
        reason = getattr(subject.decision, "reason", "the file does not show them")
        said.append(f"its settings could not be read: {reason}")
    elif odd:
        said.append(f"{' and '.join(odd)} in its config could not be read")
    if not said:
        return None
    return Verdict(
        Severity.WARNING,
        f"not audited: {'; '.join(said)}",
        "put Keras' own BatchNormalization in its place, without a wrapper, and save the model "
        "again, or look at its statistics yourself",
    )
