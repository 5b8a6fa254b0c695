"""Operations of keras.ops that make one number of all along some axes.

The map must not vary along these axes. Where the largest or smallest number wins, every scale must
be positive, and no number from elsewhere may take part.
"""

import math

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Check, Rule, Site, keeps_order, single
from bnfold.folding.rules.axes import axes_of, constant_along
from bnfold.model.refusal import Refusal


def _wide(array: Array, rank: int) -> Array:
    """An array with all axes of a sample of this rank, batch included."""
    return array.reshape((1,) * (rank - 1 - array.ndim) + array.shape)


# A reduction takes its axes away, or leaves them with size 1 (keepdims).


def _to_input(site: Site, affine: Affine) -> Affine:
    axes, rank = axes_of(site), len(site.inputs[0] or ())
    if site.setting("keepdims"):
        return affine
    places = [axis + rank - 1 for axis in axes]
    return affine.each(lambda array: np.expand_dims(_wide(array, rank - len(axes)), tuple(places)))


def _to_output(site: Site, affine: Affine) -> Affine:
    axes, rank = axes_of(site), len(site.inputs[0] or ())
    constant_along(site, affine)
    if site.setting("keepdims"):
        return affine
    return affine.each(lambda array: _wide(array, rank).squeeze(tuple(axes)))


def _from_the_tensor_alone(site: Site, affine: Affine) -> None:
    """Wrong if a number from elsewhere takes part."""
    if site.setting("initial") is not None:
        raise Refusal("compares with an initial value")


def _reduction(*checks: Check) -> Rule:
    return single(*checks, to_input=_to_input, to_output=_to_output)


def _terms(site: Site) -> int:
    """How many numbers a sum adds up."""
    unknown = Refusal("adds up a number of values that is not known")
    try:
        axes = axes_of(site)
    except Refusal:
        raise unknown from None
    sizes = [size for axis in axes if (size := (site.inputs[0] or ())[axis])]
    if not axes or len(sizes) < len(axes):
        raise unknown
    return math.prod(sizes)


# A sum of n numbers: backward s' = s, t' = t / n; forward s' = s, t' = n t.


def _sum_to_input(site: Site, affine: Affine) -> Affine:
    return _to_input(site, Affine(affine.scale, affine.shift / _terms(site)))


def _sum_to_output(site: Site, affine: Affine) -> Affine:
    return _to_output(site, Affine(affine.scale, _terms(site) * affine.shift))


_EXTREME = _reduction(keeps_order, _from_the_tensor_alone)

OPERATIONS: dict[str, Rule] = {
    "Mean": _reduction(),
    "Sum": single(to_input=_sum_to_input, to_output=_sum_to_output),  # of a known number
    **dict.fromkeys(("Max", "Amax", "Min", "Amin"), _EXTREME),
}
