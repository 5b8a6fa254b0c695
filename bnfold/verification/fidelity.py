"""How near one runtime's outputs are to the reference, in figures that need no tolerance.

    sqnr   = 10 log10(sum reference^2 / sum (output - reference)^2), in dB
    error  = |output - reference| / scale, scale the largest magnitude of the reference

over all numbers of an output that both have finite. Of a classifier, how many samples change their
class, and how far the reference's decision was from another one there: the margin is the largest
entry less the next one, or for a single probability its distance from one half. Outputs that are
read before their softmax or sigmoid have their margins there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.running.arrays import Array
from bnfold.verification.result import Decisions, Fidelity, Margins, Percentiles

_BOUNDARIES = {"sigmoid": 0.5, "logit": 0.0}
_SHARES = (0.5, 0.9, 0.99)


def measured(
    name: str,
    runtime: str,
    exact: Sequence[Array],
    found: Sequence[Array],
    *,
    decides: str | None = None,
) -> Fidelity | None:
    """The figures of one output over all kinds of samples; None where there are no numbers.

    `decides` is what `decides` gives.
    """
    pairs = [
        (one.astype(np.float64), other.astype(np.float64))
        for one, other in zip(exact, found, strict=True)
        if one.dtype.kind == "f" and other.dtype.kind == "f" and one.shape == other.shape
    ]
    pairs = [(one, other) for one, other in pairs if one.size]
    if not pairs:
        return None
    known = [np.isfinite(one) & np.isfinite(other) for one, other in pairs]
    truth = np.concatenate([one[mask] for (one, _), mask in zip(pairs, known, strict=True)])
    off = np.concatenate(
        [np.abs(other[mask] - one[mask]) for (one, other), mask in zip(pairs, known, strict=True)]
    )
    if not truth.size:
        return None
    signal, noise = float(np.sum(np.square(truth))), float(np.sum(np.square(off)))
    scale = float(np.abs(truth).max())
    relative = off / scale if scale else off
    p50, p90, p99 = (float(one) for one in np.quantile(relative, _SHARES))
    return Fidelity(
        output=name,
        runtime=runtime,
        sqnr_db=10 * math.log10(signal / noise) if signal and noise else None,
        scale=scale,
        percentiles=Percentiles(p50, p90, p99, float(relative.max())),
        decisions=None if decides is None else _decisions(pairs, decides),
    )


def decides(activation: str | None, *, counts_all: bool, is_tapped: bool = False) -> str | None:
    """By what an output with this final activation decides for a class; None where it does not.

    With `counts_all` an output without one decides by its largest entry. Where it `is_tapped`, it
    was read before that activation, and a sigmoid decides at zero instead of one half.
    """
    if activation is None:
        return "largest" if counts_all else None
    return "logit" if is_tapped and activation == "sigmoid" else activation


def _decisions(pairs: Sequence[tuple[Array, Array]], decides: str) -> Decisions | None:
    """How many decisions differ, and their margins in the reference."""
    margins: list[Array] = []
    changed: list[Array] = []
    for one, other in pairs:
        if decides in _BOUNDARIES:
            at = _BOUNDARIES[decides]
            margin, differs = np.abs(one - at), np.not_equal(one > at, other > at)
            rows, others = one.reshape(-1, 1), other.reshape(-1, 1)
            margin, differs = margin.reshape(-1), differs.reshape(-1)
        else:
            if one.ndim < 2 or one.shape[-1] < 2:
                return None
            rows, others = (array.reshape(-1, one.shape[-1]) for array in (one, other))
            top = np.sort(rows, axis=-1)
            margin, differs = top[:, -1] - top[:, -2], rows.argmax(-1) != others.argmax(-1)
        known = np.isfinite(rows).all(-1) & np.isfinite(others).all(-1)
        margins.append(margin[known])
        changed.append(differs[known])
    margin, differs = np.concatenate(margins), np.concatenate(changed)
    if not len(margin):
        return None
    there = margin[differs]
    return Decisions(
        by="sigmoid" if decides == "logit" else decides,
        counted=len(margin),
        changed=int(np.count_nonzero(differs)),
        smallest_margin=float(margin.min()),
        margins_of_changed=None
        if not len(there)
        else Margins(float(there.min()), float(np.median(there)), float(there.max())),
    )
