"""Rules on the weights that a fold makes: too large, too small, or too uneven for a dtype.

Nothing is written and nothing is read for it: the plan has measured each kernel, with all folds in
it, to see that the file's own dtype holds them.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import Mask, Subject, Verdict
from bnfold.folding.limits import Extent, dtype_named, largest_of
from bnfold.folding.plan import Fold
from bnfold.model.batchnorm import Vector
from bnfold.model.graph import show

DType = np.dtype[Any]


def _measured(subject: Subject) -> Iterator[tuple[str, Extent]]:
    """What the plan knows of each slot that takes the layer in, or would, and whose it is."""
    decision = subject.decision
    if isinstance(decision, Fold):
        for edit in decision.edits:
            yield from ((f"{show(edit.layer)!r}", extent) for extent in edit.extents)
    else:
        name = "the layer" if decision.at is None else f"{show(decision.at)!r}"
        yield from ((name, extent) for extent in decision.extents)


def fold_overflows(subject: Subject) -> Verdict | None:
    """Weights that a fold makes are too large for the dtype, or too small for its digits.

    What it finds:
        A folded kernel or bias with numbers beyond the largest one of the dtype (an error), or
        channels whose folded kernel is below the smallest normal number of the dtype as a
        whole, and was not before (a warning; channels that are dead anyway are left out). The
        dtype is `--target-dtype`, or the one in which the layer stores and computes its
        weights; `bnfold fold` refuses such a fold by itself for the latter.

    Why it matters:
        Runtimes fold too: one that folds and then converts to float16 gets infinity, which
        makes the channel NaN, or the largest number there is in its place, or subnormal
        numbers, which have few digits or are flushed to 0.
        The scale gamma / sqrt(v + e) is large where the variance is small.

    Formula:
            W' = W s,  b' = (b - mu) s + beta,  s = gamma / sqrt(v + e)
            error if abs(W') or abs(b') is beyond the dtype
            warning if max abs(W') of a channel is below its smallest normal number

    Example:
            import keras

            dense = keras.layers.Dense(4, kernel_initializer="ones", dtype="mixed_float16")
            norm = keras.layers.BatchNormalization(dtype="mixed_float16", name="norm")
            model = keras.Sequential([keras.Input((4,), dtype="float16"), dense, norm])
            norm.gamma.assign([1.0, 1e5, 1.0, 1.0])

        > error: folded into 'dense', its kernel would be up to 1e+05, and float16 ends at
        > 65504

    What to do:
        Keep the layer in float32 on that target, leave it unfolded (`--keep`), or look at BN107
        and BN403, which name the channels whose scale is out of line.

    References:
        - NVIDIA/TensorRT 3101, weights beyond float16 in a conversion:
          <https://github.com/NVIDIA/TensorRT/issues/3101>
        - blakeblackshear/frigate 5268, convolutions that took a norm in get subnormal weights:
          <https://github.com/blakeblackshear/frigate/issues/5268>
    """
    if isinstance(subject.decision, Fold) and subject.target_dtype is None:
        return None  # the plan has looked at the layer's own dtypes
    found = [
        verdict
        for name, extent in _measured(subject)
        for dtype in _dtypes(subject, extent)
        for judge in (_too_large, _too_small)
        if (verdict := judge(subject, name, extent, dtype)) is not None
    ]
    return min(found, key=lambda verdict: verdict.severity.rank, default=None)


def _dtypes(subject: Subject, extent: Extent) -> tuple[DType, ...]:
    target = subject.target_dtype
    return extent.dtypes if target is None else (dtype_named(target),)


def _too_large(subject: Subject, name: str, extent: Extent, dtype: DType) -> Verdict | None:
    # What is no number before the fold is not the fold's doing.
    lost = extent.lost(dtype) & ~np.isnan(extent.exact)
    if not lost.any() or not np.isfinite(extent.before).all():
        return None
    largest, limit = float(np.abs(extent.exact[lost]).max()), largest_of(dtype.name)
    return Verdict(
        Severity.ERROR,
        f"folded into {name}, its {extent.slot} would be up to {largest:.3g}, and {dtype.name} "
        f"ends at {limit:.5g}",
        "keep the layer in float32, or scale its input down before folding",
        _channels(subject, extent, lost),
        {"largest": largest, "limit": limit},
    )


def _too_small(subject: Subject, name: str, extent: Extent, dtype: DType) -> Verdict | None:
    faint = extent.faint(dtype)
    if faint.size == subject.dead.size:
        faint = faint & ~subject.dead.reshape(faint.shape)
    if not faint.any():
        return None
    smallest = float(extent.scaled[faint].min())
    return Verdict(
        Severity.WARNING,
        f"folded into {name}, the {extent.slot} of {np.count_nonzero(faint)} channels would be "
        f"{smallest:.3g} or less at its largest, which {dtype.name} has not all digits for",
        "keep the layer in float32, or leave it unfolded",
        _channels(subject, extent, faint),
        {"smallest": smallest},
    )


def _channels(subject: Subject, extent: Extent, mask: Mask) -> Channels | None:
    """The channels of a mask, if they are those of the layer."""
    backward = isinstance(subject.decision, Fold) and subject.decision.direction == "backward"
    same = mask.size == subject.batchnorm.channels and (backward or extent.scaled.size)
    return Channels.of(mask.reshape(-1)) if same else None


def per_tensor_quantization_hazard(subject: Subject) -> Verdict | None:
    """Some channels of the folded kernel use too little of its range for 8-bit numbers.

    What it finds:
        Channels of the folded kernel whose largest number is less than `quantization_info`
        (1/16) of the largest one of the whole tensor; below `quantization_warning` (1/256) it
        is a warning, unless the layer is on the model's input, whose features have units of
        their own. Channels of a branch that is only added to others do not warn if their gamma
        is over `outstanding_scale` (100) times below the median. Dead channels, whose output
        does not vary or whose variance is almost 0 beside epsilon (BN107), are not reported,
        though they count for the range. The kernel is measured with all folds in it.

    Why it matters:
        Quantization with one scale for the tensor gives every channel the same step. A channel
        that uses 1/16 of the range has 4 of 8 bits left, one that uses 1/256 none: all of its
        weights round to 0. A fold makes kernels uneven, because each channel is multiplied by
        its own scale; MobileNetV1 fell from 70.5 % to 1.8 % accuracy by that.

    Formula:
            p = max abs(W'[channel]) / max abs(W'),  usable bits = 8 + log2(p)
            dead if abs(g) sqrt(v / (v + e)) < 0.001 or v < 0.01 e

    Example:
            import keras

            dense = keras.layers.Dense(4, kernel_initializer="ones", name="dense")
            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), dense, norm])
            norm.gamma.assign([1.0, 0.003, 1.0, 1.0])

        > warning: folded into 'dense', 1 of 4 channels (1) use little of the kernel's range,
        > the least 0.003 of it: of 8 bits for the whole tensor 0.0 are left

    What to do:
        Quantize per channel, which most runtimes can, equalize the channels of neighbouring
        layers before, or train with quantization in the loop. Nothing is wrong with the model
        in floating point.

    References:
        - Nagel et al., Data-Free Quantization: <https://arxiv.org/abs/1906.04721>
        - Sheng et al., A Quantization-Friendly Separable Convolution for MobileNets:
          <https://arxiv.org/abs/1803.08607>
    """
    if not isinstance(subject.decision, Fold):
        return None
    limit = _limit(subject)
    measured = [(name, one) for name, one in _measured(subject) if one.slot != "gamma"]
    uneven = [
        (not _harms(subject, shares), float(shares.min()), name, shares)
        for name, extent in measured
        if (shares := _shares(subject, extent)).min(initial=1) < limit
    ]
    if not uneven:
        return None
    harmless, share, name, shares = min(uneven, key=lambda one: one[:2])
    bits, few = 8 + math.log2(share), shares < limit
    return Verdict(
        Severity.INFO if harmless else Severity.WARNING,
        f"folded into {name}, {Channels.of(few)} use little of the kernel's range, the least "
        f"{share:.2g} of it: of 8 bits for the whole tensor {max(0.0, bits):.1f} are left",
        "quantize per channel, or equalize the channels before",
        Channels.of(few),
        {"share": share, "bits": bits},
        None if any(_is_uneven(subject, extent) for _, extent in measured) else _VANISHING,
    )


_VANISHING = "BN107"


def _limit(subject: Subject) -> float:
    """The part of a kernel's range from which on a channel is not spoken of."""
    return max(subject.thresholds.quantization_info, subject.thresholds.quantization_warning)


def _is_uneven(subject: Subject, extent: Extent) -> bool:
    """Whether the kernel would be uneven without the channels that vanished, too."""
    shares = _shares(subject, extent, counting=~subject.vanishing)
    return bool(shares.min(initial=1) < _limit(subject))


def _harms(subject: Subject, shares: Vector) -> bool:
    """Whether 8 bits lose a channel that matters, by the parts of a kernel's range, (channels,)."""
    lost = (shares < subject.thresholds.quantization_warning) & ~_lost_in_a_sum(subject)
    return bool(lost.any()) and not subject.reads_model_input


def _shares(subject: Subject, extent: Extent, counting: Mask | None = None) -> Vector:
    """The part of the kernel's range that each channel uses, (channels,); 1 for a dead one.

    The range is that of the channels that are `counting`, of all without it.

    What a dead channel is rounded to does not matter, but its weights count for the range. One
    whose variance is almost 0 beside epsilon is as good as dead: weight decay lets whole filters
    fade in models that are none the worse for it.
    Empty where what the kernel takes in has other channels than the layer.
    """
    size = extent.scaled.reshape(-1)
    if size.size != subject.dead.size:
        return np.zeros(0)
    live = ~(subject.dead | subject.vanishing) & (size > 0)
    counted = size if counting is None else size[counting]
    return np.where(live, size / counted.max(initial=0), 1.0)


def _lost_in_a_sum(subject: Subject) -> Mask:
    """The channels that are next to nothing in the sums that the layer goes into, (channels,).

    A residual branch may add almost nothing in a channel that the other branches carry.
    """
    gamma = np.abs(subject.gamma)
    if subject.place is None or not subject.place.feeds_only_sums:
        return np.zeros(len(gamma), bool)
    small: Mask = gamma * subject.thresholds.outstanding_scale < np.median(gamma)
    return small


def scale_outlier(subject: Subject) -> Verdict | None:
    """The scale of a channel is far above the median of the layer.

    What it finds:
        Channels whose scale is more than `outstanding_scale` (100) times the median of the
        layer's channels, those with a gamma of almost 0 left out. For a layer that normalizes
        the model's input, as it is or as layers that are not trained make it, it is an info,
        because constant inputs are common there.

    Why it matters:
        One channel dominates what the layer makes, small noise in its input becomes large, and
        the folded kernel has one channel that is out of range for float16 or for one
        quantization scale. Mostly its variance was close to 0 in training.

    Formula:
            s = abs(g) / sqrt(v + e)
            warning if max s > 100 median(s)

    Example:
            import keras

            norm = keras.layers.BatchNormalization(name="norm")
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), norm])
            norm.gamma.assign([1.0, 300.0, 1.0, 1.0])

        > warning: the scale of 1 of 4 channels (1) is up to 300, over 100 times the median

    What to do:
        Look at the input of the channel. If it is constant, prune the channel; if it is not,
        train on, with weight decay on gamma.

    References:
        - pytorch/vision 648: <https://github.com/pytorch/vision/issues/648>
    """
    outstanding = subject.outstanding
    if not outstanding.any():
        return None
    channels, largest = Channels.of(outstanding), float(subject.scale[outstanding].max())
    return Verdict(
        Severity.INFO if subject.reads_model_input else Severity.WARNING,
        f"the scale of {channels} is up to {largest:.3g}, over "
        f"{subject.thresholds.outstanding_scale:g} times the median",
        "nothing to do if these inputs are constant in the training data, as a border is"
        if subject.reads_model_input
        else "look at the input of these channels; prune them if it is constant",
        channels,
        {"scale": largest},
        _VANISHING if subject.vanishing[outstanding].all() else None,
    )
