"""Rules on the weights that a fold makes: too large, too small, or too uneven for a dtype.

Nothing is written and nothing is read for it: the plan has measured each kernel, with all folds in
it, to see that the file's own dtype holds them.
"""

import math
from collections.abc import Iterator

import numpy as np

from bnfold.audit.finding import Channels, Severity
from bnfold.audit.subject import Mask, Subject, Verdict
from bnfold.folding.limits import Extent, dtype_named, largest_of
from bnfold.folding.plan import Fold
from bnfold.model.graph import show


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
    """Weights that a fold makes are too large for the dtype, or too small for its digits."""
    faint: Verdict | None = None
    for name, extent in _measured(subject):
        dtypes = [dtype_named(subject.target_dtype)] if subject.target_dtype else extent.dtypes
        for dtype in dtypes:
            lost = extent.lost(dtype)
            if lost.any():
                largest = float(np.abs(extent.exact).max())
                return Verdict(
                    Severity.ERROR,
                    f"folded into {name}, its {extent.slot} would be up to {largest:.3g}, and "
                    f"{dtype.name} ends at {largest_of(dtype.name):.5g}",
                    "keep the layer in float32, or scale its input down before folding",
                    _channels(subject, lost.reshape(-1)),
                    {"largest": largest, "limit": largest_of(dtype.name)},
                )
            small = extent.faint(dtype).reshape(-1)
            speaking = ~subject.dead if small.size == subject.dead.size else np.ones(1, bool)
            if faint is None and (small & speaking).any():
                faint = Verdict(
                    Severity.WARNING,
                    f"folded into {name}, all of its {extent.slot} would be below the smallest "
                    f"normal number of {dtype.name} in "
                    f"{np.count_nonzero(small & speaking)} channels",
                    "keep the layer in float32, or leave it unfolded",
                    _channels(subject, small & speaking),
                    {"smallest": float(extent.scaled.reshape(-1)[small & speaking].min())},
                )
    return faint


def _channels(subject: Subject, mask: Mask) -> Channels | None:
    """The channels of a mask, if they are those of the layer."""
    return Channels.of(mask) if mask.size == subject.batchnorm.channels else None


def per_tensor_quantization_hazard(subject: Subject) -> Verdict | None:
    """Some channels of the folded kernel use too little of its range for 8-bit numbers."""
    if not isinstance(subject.decision, Fold):
        return None
    worst: tuple[float, str, Mask] | None = None
    for name, extent in _measured(subject):
        size = extent.scaled.reshape(-1)
        if extent.slot == "gamma" or size.size != subject.dead.size:
            continue
        live = ~subject.dead & (size > 0)
        if not live.any():
            continue
        share = np.where(live, size / size[live].max(), 1.0)
        if worst is None or share.min() < worst[0]:
            worst = (float(share.min()), name, share < subject.thresholds.quantization_info)
    if worst is None or worst[0] >= subject.thresholds.quantization_info:
        return None
    share_of, name, mask = worst
    bits = 8 + math.log2(share_of)
    warns = share_of < subject.thresholds.quantization_warning
    return Verdict(
        Severity.WARNING if warns else Severity.INFO,
        f"folded into {name}, {Channels.of(mask)} use little of the kernel's range, the least "
        f"{share_of:.2g} of it: of 8 bits for the whole tensor {max(0.0, bits):.1f} are left",
        "quantize per channel, or equalize the channels before",
        Channels.of(mask),
        {"share": share_of, "bits": bits},
    )


def scale_outlier(subject: Subject) -> Verdict | None:
    """The scale of a channel is far above the median of the layer."""
    outstanding = subject.outstanding
    if not outstanding.any():
        return None
    channels, largest = Channels.of(outstanding), float(subject.scale[outstanding].max())
    on_input = subject.place is not None and subject.place.reads_model_input
    return Verdict(
        Severity.INFO if on_input else Severity.WARNING,
        f"the scale of {channels} is up to {largest:.3g}, over "
        f"{subject.thresholds.outstanding_scale:g} times the median",
        "nothing to do if these inputs are constant in the training data, as a border is"
        if on_input
        else "look at the input of these channels; prune them if it is constant",
        channels,
        {"scale": largest},
    )
