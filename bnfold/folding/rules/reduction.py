"""Operations of keras.ops that make one number of all along some axes.

The map must not vary along these axes. Where the largest or smallest number wins, every scale must
be positive, and no number from elsewhere may take part.
"""

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Check, Rule, Site, keeps_order, single
from bnfold.model.refusal import Refusal


def _axes_of(site: Site) -> list[int]:
    """The axes of the input, counted from the end. Raises Refusal if the batch is one."""
    shape, value = site.inputs[0], site.setting("axis")
    listed = value if isinstance(value, list) else [value]
    rank = 0 if shape is None else len(shape)
    if shape is None or any(
        type(axis) is not int or not -rank <= axis < rank or axis % rank == 0 for axis in listed
    ):
        raise Refusal("works along axes that are not known, or along the batch")
    return sorted(axis % rank - rank for axis in listed)


def _constant_along(site: Site, affine: Affine) -> None:
    """Wrong if the map differs between the places that the operation mixes or moves."""
    if affine.varies_on & set(_axes_of(site)):
        raise Refusal("mixes what is normalized along its axis")


def _wide(array: Array, rank: int) -> Array:
    """An array with all axes of a sample of this rank, batch included."""
    return array.reshape((1,) * (rank - 1 - array.ndim) + array.shape)


# A reduction takes its axes away, or leaves them with size 1 (keepdims).


def _to_input(site: Site, affine: Affine) -> Affine:
    axes, rank = _axes_of(site), len(site.inputs[0] or ())
    if site.setting("keepdims"):
        return affine
    places = [axis + rank - 1 for axis in axes]
    return affine.each(lambda array: np.expand_dims(_wide(array, rank - len(axes)), tuple(places)))


def _to_output(site: Site, affine: Affine) -> Affine:
    axes, rank = _axes_of(site), len(site.inputs[0] or ())
    _constant_along(site, affine)
    if site.setting("keepdims"):
        return affine
    return affine.each(lambda array: _wide(array, rank).squeeze(tuple(axes)))


def _from_the_tensor_alone(site: Site, affine: Affine) -> None:
    """Wrong if a number from elsewhere takes part."""
    if site.setting("initial") is not None:
        raise Refusal("compares with an initial value")


def _reduction(*checks: Check) -> Rule:
    return single(*checks, to_input=_to_input, to_output=_to_output)


_EXTREME = _reduction(keeps_order, _from_the_tensor_alone)

OPERATIONS: dict[str, Rule] = {
    "Mean": _reduction(),
    **dict.fromkeys(("Max", "Amax", "Min", "Amin"), _EXTREME),
}
