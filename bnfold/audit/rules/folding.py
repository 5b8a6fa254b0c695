"""Rules on folded weights: too large, too small, or too uneven for a dtype.

They read and write nothing: the plan has already measured each kernel with all folds in it, to see
whether the result fits the dtype of the file.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bnfold.audit.finding import Diagnosis, Severity
from bnfold.audit.registry import rule
from bnfold.audit.subject import Mask, Subject
from bnfold.folding.plan import Fold
from bnfold.folding.weights import Magnitudes, dtype_named, largest_of
from bnfold.model.batchnorm import Vector
from bnfold.model.channels import Channels
from bnfold.model.graph import show
from bnfold.model.moments import median

DType = np.dtype[Any]


def _measured(subject: Subject) -> Iterator[tuple[str, Magnitudes]]:
    """What the plan measured of each weight that absorbs the layer, or would, and whose it is."""
    decision = subject.decision
    if isinstance(decision, Fold):
        for absorber in decision.absorbers:
            name = f"{show(absorber.layer)!r}"
            yield from ((name, magnitude) for magnitude in absorber.magnitudes)
    else:
        name = "the layer" if decision.at is None else f"{show(decision.at)!r}"
        yield from ((name, magnitude) for magnitude in decision.magnitudes)


@rule("BN401", "fold-overflows", Severity.ERROR, Severity.WARNING)
def fold_overflows(subject: Subject) -> Diagnosis | None:
    """Folded weights overflow the dtype, or underflow it."""
    if isinstance(subject.decision, Fold) and subject.target_dtype is None:
        return None  # the plan has looked at the layer's own dtypes
    found = [
        diagnosis
        for name, magnitude in _measured(subject)
        for dtype in _dtypes(subject, magnitude)
        for judge in (_too_large, _too_small)
        if (diagnosis := judge(subject, name, magnitude, dtype)) is not None
    ]
    return min(found, key=lambda one: one.severity.rank, default=None)


def _dtypes(subject: Subject, magnitude: Magnitudes) -> tuple[DType, ...]:
    target = subject.target_dtype
    return magnitude.dtypes if target is None else (dtype_named(target),)


def _too_large(
    subject: Subject, name: str, magnitude: Magnitudes, dtype: DType
) -> Diagnosis | None:
    # A fold is not to blame for what was NaN or infinite before it.
    lost = magnitude.overflows(dtype) & ~np.isnan(magnitude.exact)
    if not lost.any() or not np.isfinite(magnitude.before).all():
        return None
    largest, limit = float(np.abs(magnitude.exact[lost]).max()), largest_of(dtype.name)
    return Diagnosis(
        Severity.ERROR,
        f"folded into {name}, its {magnitude.slot} would be up to {largest:.3g}, beyond the "
        f"{dtype.name} maximum of {limit:.5g}",
        "keep the layer in float32, or scale its input down before folding",
        _channels(subject, magnitude, lost),
        {"largest": largest, "limit": limit},
    )


def _too_small(
    subject: Subject, name: str, magnitude: Magnitudes, dtype: DType
) -> Diagnosis | None:
    faint = magnitude.underflows(dtype)
    if faint.size == subject.dead.size:
        faint = faint & ~subject.dead.reshape(faint.shape)
    if not faint.any():
        return None
    smallest, count = float(magnitude.scaled[faint].min()), np.count_nonzero(faint)
    channels = "1 channel" if count == 1 else f"{count} channels"
    return Diagnosis(
        Severity.WARNING,
        f"folded into {name}, the {magnitude.slot} of {channels} would "
        f"underflow {dtype.name}: its largest number is down to {smallest:.3g}",
        "keep the layer in float32, or leave it unfolded",
        _channels(subject, magnitude, faint),
        {"smallest": smallest},
    )


def _channels(subject: Subject, magnitude: Magnitudes, mask: Mask) -> Channels | None:
    """The channels of a mask, if they are those of the layer."""
    backward = isinstance(subject.decision, Fold) and subject.decision.direction == "backward"
    same = mask.size == subject.batchnorm.channels and (backward or magnitude.scaled.size)
    return Channels.of(mask.reshape(-1)) if same else None


@rule("BN402", "per-tensor-quantization-hazard", Severity.WARNING, Severity.INFO)
def per_tensor_quantization_hazard(subject: Subject) -> Diagnosis | None:
    """Some channels of the folded kernel use too little of its range for 8-bit quantization."""
    if not isinstance(subject.decision, Fold):
        return None
    limit = _limit(subject)
    measured = [(name, one) for name, one in _measured(subject) if one.slot != "gamma"]
    uneven = [
        (not _harms(subject, shares), float(shares.min()), name, shares)
        for name, magnitude in measured
        if (shares := _shares(subject, magnitude)).min(initial=1) < limit
    ]
    if not uneven:
        return None
    harmless, share, name, shares = min(uneven, key=lambda one: one[:2])
    bits, few = 8 + math.log2(share), shares < limit
    return Diagnosis(
        Severity.INFO if harmless else Severity.WARNING,
        f"folded into {name}, {Channels.of(few)} use little of the kernel's range, down to "
        f"{share:.2g} of it: of 8 bits per tensor, {max(0.0, bits):.1f} are left",
        "quantize per channel, or equalize the channels first",
        Channels.of(few),
        {"share": share, "bits": bits},
        None if any(_is_uneven(subject, magnitude) for _, magnitude in measured) else _VANISHING,
    )


_VANISHING = "BN107"


def _limit(subject: Subject) -> float:
    """The share of a kernel's range above which a channel is not reported."""
    return max(subject.thresholds.quantization_info, subject.thresholds.quantization_warning)


def _is_uneven(subject: Subject, magnitude: Magnitudes) -> bool:
    """Whether the kernel would be uneven without the channels that vanished, too."""
    shares = _shares(subject, magnitude, counting=~subject.vanishing)
    return bool(shares.min(initial=1) < _limit(subject))


def _harms(subject: Subject, shares: Vector) -> bool:
    """Whether 8 bits lose a channel that matters, by the parts of a kernel's range, (channels,)."""
    lost = (shares < subject.thresholds.quantization_warning) & ~_lost_in_a_sum(subject)
    return bool(lost.any()) and not subject.reads_model_input


def _shares(subject: Subject, magnitude: Magnitudes, counting: Mask | None = None) -> Vector:
    """The part of the kernel's range that each channel uses, (channels,); 1 for a dead one.

    The range is that of the channels that are `counting`, of all without it.

    How a dead channel is rounded does not matter, but its weights count for the range. A channel
    whose variance is negligible next to epsilon counts as dead: weight decay lets whole filters
    fade without harm to the model.
    Empty where the kernel absorbs other channels than those of the layer.
    """
    size = magnitude.scaled.reshape(-1)
    if size.size != subject.dead.size:
        return np.zeros(0)
    live = ~(subject.dead | subject.vanishing) & (size > 0)
    counted = size if counting is None else size[counting]
    return np.where(live, size / counted.max(initial=0), 1.0)


def _lost_in_a_sum(subject: Subject) -> Mask:
    """The channels that are negligible in the sums downstream of the layer, (channels,).

    A residual branch may add almost nothing to a channel that the other branches fill.
    """
    gamma = np.abs(subject.gamma)
    if subject.place is None or not subject.place.feeds_only_sums:
        return np.zeros(len(gamma), bool)
    small: Mask = gamma * subject.thresholds.outstanding_scale < median(gamma)
    return small


@rule("BN403", "scale-outlier", Severity.WARNING, Severity.INFO)
def scale_outlier(subject: Subject) -> Diagnosis | None:
    """The scale of a channel is far above the median of the layer."""
    outstanding = subject.outstanding
    if not np.count_nonzero(outstanding):
        return None
    channels, largest = Channels.of(outstanding), float(subject.scale[outstanding].max())
    return Diagnosis(
        Severity.INFO if subject.reads_model_input else Severity.WARNING,
        f"the scale of {channels} is up to {largest:.3g}, over "
        f"{subject.thresholds.outstanding_scale:g} times the median",
        "nothing to do if these inputs are constant in the training data, as a border is"
        if subject.reads_model_input
        else "check the input of these channels; prune them if it is constant",
        channels,
        {"scale": largest},
        _VANISHING if subject.vanishing[outstanding].all() else None,
    )
