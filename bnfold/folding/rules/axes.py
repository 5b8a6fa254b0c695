"""The axes that an operation of keras.ops works along, by the setting that names them."""

from bnfold.folding.affine import Affine
from bnfold.folding.rule import Site
from bnfold.model.refusal import Refusal


def axes_of(site: Site) -> list[int]:
    """The axes of the input, counted from the end. Raises Refusal if the batch is one."""
    shape, value = site.inputs[0], site.setting("axis")
    listed = value if isinstance(value, list) else [value]
    rank = 0 if shape is None else len(shape)
    if shape is None or any(
        type(axis) is not int or not -rank <= axis < rank or axis % rank == 0 for axis in listed
    ):
        raise Refusal("works along axes that are not known, or along the batch")
    return sorted(axis % rank - rank for axis in listed)


def constant_along(site: Site, affine: Affine) -> None:
    """Wrong if the map differs between the places that the operation mixes or moves."""
    if affine.varies_on & set(axes_of(site)):
        raise Refusal("mixes what is normalized along its axis")
