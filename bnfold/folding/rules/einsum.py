"""EinsumDense, which absorbs a map by the letters of its equation.

After the layer, the kernel is scaled along the letters of the map's axes, and the bias takes the
shift along them. Before it, the kernel likewise, and the bias takes the equation's value for
the shift. A bias that does not vary along a letter it needs is widened.
"""

from collections.abc import Mapping

import numpy as np

from bnfold.folding.affine import Affine, Array
from bnfold.folding.rule import Rule, Site, no_activation
from bnfold.folding.sentences import other_axis
from bnfold.folding.weights import BiasChange, Read, WeightEdit
from bnfold.model.einsum import Equation, parse_equation
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape

_NO_KERNEL_AXIS = "no axis of the kernel of"


def _equation(site: Site) -> Equation:
    equation = parse_equation(site.setting("equation"))
    if equation is None or len(equation.kernel) != len(site.weights["kernel"].shape):
        raise Refusal("has an equation of an unknown form, or not that of its kernel")
    return equation


def _absorb_after(site: Site, affine: Affine) -> WeightEdit:
    no_activation(site)
    weights, equation = site.weights, _equation(site)
    letters = {axis: equation.output_letter(axis, site.rank) for axis in affine.varies_on}
    places = _places(equation, weights["kernel"].shape, letters, affine)
    kernel_rank = len(equation.kernel)
    factors = {"kernel": _placed(affine.scale, places, kernel_rank)}
    if "bias" not in weights and not affine.has_shift:
        return WeightEdit(factors)
    along = "".join(sorted(filter(None, letters.values())))
    axes, shape, positions = _bias_layout(site, equation, along)
    spots = {axis: positions[letter] for axis, letter in letters.items() if letter is not None}
    scale, shift = (_placed(a, spots, len(shape)) for a in (affine.scale, affine.shift))
    change = BiasChange(shape, scale, lambda read: shift, 0)
    return WeightEdit(factors, {}, {"bias": change}, {"bias_axes": axes})


def _absorb_before(site: Site, affine: Affine) -> WeightEdit:
    weights, equation = site.weights, _equation(site)
    shape = site.inputs[0]
    rank = None if shape is None else len(shape)
    letters = {axis: equation.input_letter(axis, rank) for axis in affine.varies_on}
    places = _places(equation, weights["kernel"].shape, letters, affine)
    scale, shift = (_placed(a, places, len(equation.kernel)) for a in (affine.scale, affine.shift))
    if not affine.has_shift:
        return WeightEdit({"kernel": scale})
    # A letter that is summed out and not in the kernel repeats the shift as often as it is long.
    times = _summed_out(equation, shape)
    if times is None:
        raise Refusal("sums over an axis of unknown size, and the shift is not zero")
    kept = [letter for letter in equation.output if letter in equation.kernel]
    axes, bias_shape, positions = _bias_layout(site, equation, "".join(kept))

    def added(read: Read) -> Array:
        total = np.einsum(f"{equation.kernel}->{''.join(kept)}", read("kernel") * shift * times)
        spots = {number - len(kept): positions[letter] for number, letter in enumerate(kept)}
        return _placed(total, spots, len(bias_shape))

    change = BiasChange(bias_shape, np.ones(()), added, 0)
    return WeightEdit({"kernel": scale}, {}, {"bias": change}, {"bias_axes": axes}, times)


def _places(
    equation: Equation, kernel: tuple[int, ...], letters: Mapping[int, str | None], affine: Affine
) -> dict[int, int]:
    """The kernel's axis for each axis that a map varies along. Raises Refusal if one has none."""
    found: dict[int, int] = {}
    for axis, letter in letters.items():
        if letter is None or letter not in equation.kernel:
            raise other_axis(_NO_KERNEL_AXIS)
        found[axis] = equation.kernel.index(letter)
        sizes = {array.shape[axis] for array in (affine.scale, affine.shift) if array.ndim >= -axis}
        if not sizes <= {1, kernel[found[axis]]}:
            raise other_axis(_NO_KERNEL_AXIS)
    return found


def _placed(array: Array, places: Mapping[int, int], rank: int) -> Array:
    """An array with each of its axes, counted from the end, at another place among `rank` axes."""
    sizes = {place: array.shape[axis] for axis, place in places.items() if array.ndim >= -axis}
    axes = sorted((place, axis) for axis, place in places.items() if array.ndim >= -axis)
    order = [axis % array.ndim for _, axis in axes]
    rest = [axis for axis in range(array.ndim) if axis not in order]
    ordered: Array = array.transpose([*rest, *order])
    return ordered.reshape([sizes.get(place, 1) for place in range(rank)])


def _summed_out(equation: Equation, shape: Shape | None) -> int | None:
    """The product of the sizes of the input's letters in neither kernel nor output."""
    gone = [letter for letter in equation.inputs if letter not in equation.kernel + equation.output]
    if not gone:
        return 1
    if shape is None:
        return None
    first = len(shape) - len(equation.inputs) if equation.ellipsis == "left" else 0
    sizes = [shape[first + equation.inputs.index(letter)] for letter in gone]
    known = [size for size in sizes if size is not None]
    return int(np.prod(known)) if len(known) == len(sizes) else None


def _bias_layout(
    site: Site, equation: Equation, letters: str
) -> tuple[str, tuple[int, ...], dict[str, int]]:
    """The `bias_axes`, the shape and each letter's place of a bias that varies along `letters`.

    The bias of an EinsumDense spans its output from the first of its `bias_axes` on.
    """
    weights, old = site.weights, site.setting("bias_axes") or ""
    axes = old + "".join(letter for letter in letters if letter not in old)
    if not axes:
        axes = next((a for a in reversed(equation.output) if a in equation.kernel), "")
    trailing = equation.trailing(site.rank)
    if trailing is None:
        raise Refusal("has an output of unknown rank, and the shape of its bias depends on it")
    if not axes:
        raise Refusal("has no axis that a bias could have")
    sizes = dict(zip(equation.kernel, weights["kernel"].shape, strict=True))
    if "bias" in weights:
        spanned = equation.output[min(equation.output.find(a) for a in old) :]
        stored = zip(spanned, weights["bias"].shape, strict=False)
        sizes |= {name: size for name, size in stored if name in old}
    spanned = equation.output[min(equation.output.find(a) for a in axes) :]
    shape = tuple(sizes[a] if a in axes else 1 for a in spanned) + (1,) * trailing
    return axes, shape, {letter: spanned.index(letter) for letter in spanned}


LAYERS: dict[str, Rule] = {
    "EinsumDense": Rule(absorb_after=_absorb_after, absorb_before=_absorb_before)
}
