"""Rules on what a BatchNormalization makes: channels that say nothing, and ReLUs that do nothing.

What a channel makes has the mean beta and the standard deviation abs(gamma), if its statistics are
those of its input.
"""

import math

import numpy as np

from bnfold.audit.activation import relus_behind
from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import SILENT_GAMMA, Subject, Verdict

DEVIATIONS = 3
"""How many standard deviations count as all of a channel: 99.73 % of a Gaussian."""


def silent_channels(subject: Subject) -> Verdict | None:
    """The gamma of a channel is almost 0, so what it makes does not depend on its input.

    What it finds:
        Channels with abs(gamma) < 0.001. More than `silent_share` (10 %) of the channels is a
        warning.

    Why it matters:
        Such a channel puts out beta, whatever comes in: the layers before it compute it for
        nothing. Weight decay, or an L1 penalty on gamma, drives useless channels there, and
        pruning finds them by it. Many of them in a model that was not meant to be sparse tell
        of a learning rate or a regularizer that is too large.

    Formula:
            info if abs(g) < 0.001, warning if in more than 10 % of the channels

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.gamma.assign([1.0, 0.0002, 0.9, 1.1])

        > warning: gamma is almost 0 in 1 of 4 channels (1), 25% of them

    What to do:
        Prune the channels: their beta goes into the bias of the layer behind. If nothing was to
        be pruned, look at the regularizer of gamma and at weight decay.

    References:
        - Mehta et al., Implicit Filter Sparsification In Convolutional Neural Networks:
          <https://arxiv.org/abs/1905.04967>
    """
    silent = np.abs(subject.gamma) < SILENT_GAMMA
    if not silent.any():
        return None
    channels, share = Channels.of(silent), float(silent.mean())
    many = share > subject.thresholds.silent_share
    return Verdict(
        Severity.WARNING if many else Severity.INFO,
        f"gamma is almost 0 in {channels}, {share:.0%} of them",
        "prune them; if nothing was meant to drive gamma to 0, look at its regularizer"
        if many
        else "nothing to do; the channels could be pruned",
        channels,
        {"share": share},
    )


def dead_after_relu(subject: Subject) -> Verdict | None:
    """What a channel makes is negative almost always, and the ReLU behind it makes 0 of that.

    What it finds:
        Channels with beta + 3 abs(gamma) < 0 in a layer all of whose output goes into a ReLU,
        in any of its forms: the layer, with or without max_value, an Activation of relu or
        relu6, keras.ops, maximum(x, 0) or clip(x, 0, cap). Between the two may stand what does
        nothing at inference, such as Dropout, and what only moves numbers, such as Flatten.
        Pooling is not looked through. It is an error where gamma is 0 and beta not above it:
        then the channel is 0 for certain.

    Why it matters:
        The channel is 0 for almost every input, no gradient passes it, and it does not come
        back. The layers before it compute it for nothing.

    Formula:
            warning if b + 3 abs(g) < 0, error if g = 0 and b <= 0

        If the statistics are right, the channel has the mean b and the standard deviation
        abs(g). That 99.87 % of it is negative takes the Gaussian for granted. Without that,
        Cantelli's inequality gives P(x > 0) <= g^2 / (g^2 + b^2), which is 10 % at the limit:
        that bound is in the message.

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            relu = keras.layers.ReLU()
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm, relu])
            norm.beta.assign([0.1, -5.0, 0.0, 0.2])

        > warning: the ReLU behind it zeroes 1 of 4 channels (1): beta + 3 abs(gamma) is
        > negative in all of these (if what they make is Gaussian, 99.9 % of it is negative;
        > whatever its distribution, 96% or more)

    What to do:
        Prune the channels; nothing changes at inference. If there are many, train again with a
        smaller learning rate, or with a leaky ReLU.

    References:
        - Lu et al., Dying ReLU and Initialization: <https://arxiv.org/abs/1903.06733>
        - Cantelli's inequality: <https://en.wikipedia.org/wiki/Cantelli%27s_inequality>
    """
    gamma, beta = np.abs(subject.gamma), subject.beta
    certain = (gamma == 0) & (beta <= 0)
    dead = certain | (beta + DEVIATIONS * gamma < 0)
    if not dead.any() or subject.place is None or relus_behind(subject.place) is None:
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
            f"beta + {DEVIATIONS} abs(gamma) is negative in {where} (if what they make is "
            f"Gaussian, 99.9 % of it is negative; whatever its distribution, {share}% or more)"
        )
    return Verdict(
        Severity.ERROR if certain.any() else Severity.WARNING,
        f"the ReLU behind it zeroes {channels}: {'; '.join(said)}",
        "prune the channels, or train again with a smaller learning rate",
        channels,
        {"bound": bound, "certain": int(np.count_nonzero(certain))},
    )


def linear_or_saturated(subject: Subject) -> Verdict | None:
    """What a channel makes is on one side of the ReLU's bend almost always.

    What it finds:
        Channels, behind which a ReLU stands (as for BN202), with beta - 3 abs(gamma) > 0: the
        ReLU passes them on as they are. And channels before a ReLU with a max_value, such as
        ReLU6, that are above it: the ReLU makes a constant of them. Channels with a gamma of
        almost 0 are left to BN201.

    Why it matters:
        The nonlinearity does nothing for a channel that it passes on, which may be what the
        model wants: a shortcut. A channel that is cut off always carries nothing.

    Formula:
            linear if b - 3 abs(g) > 0, and b + 3 abs(g) < max_value
            saturated if b - 3 abs(g) > max_value

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            relu = keras.layers.ReLU(max_value=6)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm, relu])
            norm.beta.assign([0.1, 20.0, 0.0, 0.2])

        > info: the ReLU behind it cuts 1 of 4 channels (1) off at 6, almost always

    What to do:
        Nothing, in general. If most channels of a layer are linear, the activation behind it
        can be left out; saturated ones can be pruned.

    References:
        - Sandler et al., MobileNetV2, on ReLU6 and layers without a nonlinearity:
          <https://arxiv.org/abs/1801.04381>
    """
    if subject.place is None:
        return None
    gamma, beta = np.abs(subject.gamma), subject.beta
    low, high = beta - DEVIATIONS * gamma, beta + DEVIATIONS * gamma
    speaking = gamma >= SILENT_GAMMA
    if not (speaking & (low > 0)).any():
        return None
    caps = relus_behind(subject.place)
    if caps is None:
        return None
    linear = speaking & (low > 0) & (high < min(caps))
    saturated = speaking & (low > max(caps))
    if not (linear | saturated).any():
        return None
    kinds = {f"passes {Channels.of(linear)} as they are": linear}
    kinds[f"cuts {Channels.of(saturated)} off at {max(caps):g}"] = saturated
    said = " and ".join(text for text, mask in kinds.items() if mask.any())
    channels = Channels.of(linear | saturated)
    return Verdict(
        Severity.INFO,
        f"the ReLU behind it {said}, almost always",
        "nothing to do; the nonlinearity is wasted on these channels",
        channels,
        {"linear": int(linear.sum()), "saturated": int(saturated.sum())},
    )
