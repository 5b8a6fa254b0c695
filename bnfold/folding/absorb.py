"""How a layer takes an affine map into its weights: one behind it, or one in front of it.

With s and t the map's scale and shift, c the output channel, i the input channel, k the positions
in the kernel, M a depth multiplier and `...` all other axes.

Behind the layer, which must apply no activation:

    Dense, Conv, SeparableConv (pointwise)  kernel[..., c] * s[c],      bias[c] * s[c] + t[c]
    ConvTranspose                           kernel[..., c, :] * s[c],   bias likewise
    DepthwiseConv                           kernel[..., i, m] * s[i * M + m],  bias likewise
    EinsumDense         the kernel along the letters of the map's axes, the bias likewise
    Embedding                               embeddings[:, c] * s[c] + t[c]
    BatchNormalization                      gamma[c] * s[c],            beta[c] * s[c] + t[c]

In front of the layer, whatever activation it applies:

    Dense, Conv      kernel[k, i, c] * s[i],  bias[c] + sum over k, i of kernel[k, i, c] * t[i]
                     (in group g of a grouped convolution, i counts from g * channels per group)
    DepthwiseConv    kernel[k, i, m] * s[i],  bias[i * M + m] + sum over k of kernel[k, i, m] * t[i]
    SeparableConv    the depthwise kernel likewise; its sum goes through the pointwise kernel
    ConvTranspose    kernel[k, c, i] * s[i],  bias[c] + sum over i of kernel[0, c, i] * t[i]
    EinsumDense      the kernel along the letters; the bias takes the equation's value for t
    SimpleRNN, LSTM, GRU, Bidirectional of them      as Dense, for the kernel that meets the input
    BatchNormalization    gamma[c] * s[c],  beta[c] + gamma / sqrt(v + e) * (t - m + s * m)

Wrong if the layer pads its input with zeros, which are not shifted, so then t must be zero; a
transpose convolution spreads its input unevenly over its strides, which is exact for t = 0 or a
kernel of 1 at stride 1 only. Wrong too if anything else reads the tensor between: `plan` sees to
that.

A layer without a bias gets one where the shift asks for it. What several maps do to one layer is
put together in float64 and rounded once. A refusal is the predicate of a sentence about the layer.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.folding.affine import NOTHING, Affine, Array, channel_count
from bnfold.folding.obstacle import AXIS, NO_TRAINING, OTHER_SIDE, STATIC, AxisObstacle, Obstacle
from bnfold.folding.site import Site
from bnfold.model import catalog, hdf5
from bnfold.model.batchnorm import as_batchnorm
from bnfold.model.einsum import Equation, parse_equation
from bnfold.model.graph import Json, Layer, Weight
from bnfold.model.policy import policy
from bnfold.model.shapes import Shape, window_of

_BLOCK = 1 << 20
"""How many numbers are held in float64 at once."""

Read = Callable[[str], Array]
"""The numbers of a slot in float64, as they are before an effect."""


_BETWEEN = "put BatchNormalization between {layer} and its activation"
OTHER_AXIS = AxisObstacle("not the channel axis", AXIS)
_NO_KERNEL_AXIS = AxisObstacle("not an axis of its kernel", AXIS)


@dataclass(frozen=True, eq=False)
class BiasChange:
    """`scale * bias + shift`, of a bias that has `shape` afterwards.

    `appended` is how many axes of size 1 Keras puts behind its own when it adds it to the output;
    None where it adds it in a way that cannot go wrong.
    """

    shape: tuple[int, ...]
    scale: Array
    shift: Callable[[Read], Array]
    appended: int | None = None


@dataclass(frozen=True, eq=False)
class Effect:
    """What one affine map does to a layer.

    The numbers of a slot are multiplied by `factors` and then `offsets` are added; `biases` change
    likewise. `settings` are what the config must say afterwards.
    """

    factors: Mapping[str, Array] = field(default_factory=dict)
    offsets: Mapping[str, Array] = field(default_factory=dict)
    biases: Mapping[str, BiasChange] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)


# --- a map behind the layer ----------------------------------------------------------------------


def takes_behind(layer: Layer) -> bool:
    """Whether a layer's class is one whose weights can take in a map behind it."""
    known = catalog.facts(layer)
    return known is not None and (
        known.output is not None or layer.class_name == "EinsumDense" or catalog.is_batchnorm(layer)
    )


def behind(site: Site, affine: Affine) -> Effect | str:
    """What a map behind a layer does to it."""
    layer = site.layer
    activation = layer.config.get("activation")
    if activation not in (None, "linear"):  # a dict can be anybody's function of that name
        applied = activation if isinstance(activation, str) else "an activation"
        return Obstacle(f"applies {applied}", _BETWEEN)
    weights = catalog.weights(layer)
    known = catalog.facts(layer)
    if weights is None or known is None:
        return "has other variables in the file than those of its class"
    if catalog.is_batchnorm(layer):
        return _behind_batchnorm(site, weights, affine)
    if layer.class_name == "EinsumDense":
        return _behind_einsum(site, weights, affine)
    if known.output is None:
        return "has no weights that could take it in"
    return _behind_linear(site, known.output, weights, affine)


def _behind_linear(
    site: Site, output: catalog.LinearOutput, weights: dict[str, Weight], affine: Affine
) -> Effect | str:
    kernel, bias = weights[output.kernel].shape, weights.get(output.bias or "")
    channels = math.prod(kernel[axis] for axis in output.axes)
    if bias is not None and bias.shape != (channels,):
        return "has a bias of another length than its kernel"
    first = output.channels == "data_format" and site.channels_first
    axis = -(len(kernel) - 1) if first else -1
    vectors = affine.vectors(axis, channels)
    if vectors is None:
        return OTHER_AXIS
    scale, shift = vectors
    shape = [1] * len(kernel)
    for number in output.axes:
        shape[number] = kernel[number]
    factors = {output.kernel: scale.reshape(shape)}
    if output.bias is None:
        return Effect(factors, {output.kernel: shift.reshape(shape)})
    if output.bias not in weights and not shift.any():
        return Effect(factors)
    change = BiasChange((channels,), scale, lambda read: shift, -1 - axis)
    return Effect(factors, {}, {output.bias: change}, {"use_bias": True})


def _behind_batchnorm(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    vectors = _on_batchnorm_axis(site, weights, affine)
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    change = BiasChange(scale.shape, scale, lambda read: shift)
    return Effect({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


def _on_batchnorm_axis(
    site: Site, weights: dict[str, Weight], affine: Affine
) -> tuple[Array, Array] | str:
    """A map as vectors on the axis that the layer normalizes."""
    batchnorm = as_batchnorm(site.layer, ())
    axis = None if batchnorm is None else batchnorm.axis
    if axis is None:
        return "normalizes over several axes at once"
    if axis >= 0:
        if site.rank is None:
            return AxisObstacle("not the channel axis, as far as the file tells,", AXIS)
        axis -= site.rank
    return affine.vectors(axis, weights["moving_mean"].shape[0]) or OTHER_AXIS


# --- a map in front of the layer -----------------------------------------------------------------


def takes_in_front(layer: Layer) -> bool:
    """Whether a layer's class is one whose weights can take in a map in front of it."""
    return layer.builtin and not layer.is_operation and layer.class_name in _IN_FRONT


def in_front(site: Site, affine: Affine) -> Effect | str:
    """What a map in front of a layer does to it."""
    weights = catalog.weights(site.layer)
    if weights is None:
        return "has other variables in the file than those of its class"
    rule = _IN_FRONT.get(site.layer.class_name)
    if rule is None:
        return "has no weights that could take it in"
    return rule(site, weights, affine)


def _input_vectors(site: Site, affine: Affine, channels: int) -> tuple[Array, Array] | AxisObstacle:
    """A map as vectors over the input channels of a layer."""
    known = catalog.facts(site.layer)
    rank = known.rank if known is not None else None
    axis = 1 - rank if site.channels_first and rank is not None else -1
    return affine.vectors(axis, channels) or OTHER_AXIS


def _input_change(
    site: Site, weights: Mapping[str, Weight], kernel: str, factor: Array, shift: "_Shift | None"
) -> Effect:
    """The effect on a layer with one `bias`, which `shift` is added to."""
    if shift is None:
        return Effect({kernel: factor})
    output = (catalog.FACTS[site.layer.class_name]).output
    units = math.prod(weights[output.kernel].shape[a] for a in output.axes) if output else 0
    appended = len(weights[kernel].shape) - 2 if site.channels_first else 0
    change = BiasChange((units,), np.ones(()), shift, appended)
    return Effect({kernel: factor}, {}, {"bias": change}, {"use_bias": True})


_Shift = Callable[[Read], Array]


def _before_dense(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    vectors = _input_vectors(site, affine, weights["kernel"].shape[0])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    added = (lambda read: shift @ read("kernel")) if shift.any() else None
    return _input_change(site, weights, "kernel", scale[:, None], added)


def _before_conv(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    kernel, groups = weights["kernel"].shape, site.setting("groups", 1)
    if type(groups) is not int or groups < 1 or kernel[-1] % groups:
        return "has a number of groups that is none"
    vectors = _unpadded_vectors(site, affine, kernel[-2] * groups)
    if isinstance(vectors, str):
        return vectors
    # Output channel o reads input channels group(o) * in_per_group + i.
    scale, shift = (_per_group(vector, groups, kernel) for vector in vectors)
    space = tuple(range(len(kernel) - 1))

    def added(read: Read) -> Array:
        total: Array = (read("kernel") * shift).sum(axis=space)
        return total

    return _input_change(site, weights, "kernel", scale, added if shift.any() else None)


def _per_group(vector: Array, groups: int, kernel: tuple[int, ...]) -> Array:
    """A vector over input channels as (in_per_group, out), the last two axes of a kernel."""
    columns = np.repeat(vector.reshape(groups, kernel[-2]), kernel[-1] // groups, axis=0)
    return columns.T if groups > 1 else vector.reshape(-1, 1)


def _before_depthwise(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    kernel = weights["depthwise_kernel"].shape
    vectors = _unpadded_vectors(site, affine, kernel[-2])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    added = partial(_depthwise_sum, shift) if shift.any() else None
    return _input_change(site, weights, "depthwise_kernel", scale[:, None], added)


def _depthwise_sum(shift: Array, read: Read) -> Array:
    """What a constant input makes behind a depthwise kernel, channel i * M + m."""
    kernel = read("depthwise_kernel") * shift[:, None]
    total: Array = kernel.sum(axis=tuple(range(kernel.ndim - 2))).reshape(-1)
    return total


def _before_separable(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    vectors = _unpadded_vectors(site, affine, weights["depthwise_kernel"].shape[-2])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors

    def added(read: Read) -> Array:
        pointwise = read("pointwise_kernel")
        return _depthwise_sum(shift, read) @ pointwise.reshape(-1, pointwise.shape[-1])

    change = added if shift.any() else None
    return _input_change(site, weights, "depthwise_kernel", scale[:, None], change)


def _before_transpose(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    kernel = weights["kernel"].shape
    vectors = _input_vectors(site, affine, kernel[-1])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    plain = set(kernel[:-2]) == {1} and _is_all(site.setting("strides", 1), 1)
    if shift.any() and not (plain and site.setting("output_padding") is None):
        moved = channel_count(affine, affine.shift)
        return Obstacle(
            f"spreads a shift unevenly, and the shift of {moved} is not zero", OTHER_SIDE
        )

    def added(read: Read) -> Array:
        return read("kernel").reshape(kernel[-2:]) @ shift

    return _input_change(site, weights, "kernel", scale, added if shift.any() else None)


def _is_all(value: object, wanted: int) -> bool:
    return all(one == wanted for one in value) if isinstance(value, list) else value == wanted


def _unpadded_vectors(site: Site, affine: Affine, size: int) -> tuple[Array, Array] | str:
    """`_input_vectors` of a convolution, which must not have to move the zeros it pads with."""
    vectors = _input_vectors(site, affine, size)
    if isinstance(vectors, str):
        return vectors
    return _padding_problem(site, affine) or vectors


def _padding_problem(site: Site, affine: Affine) -> str | None:
    """A predicate when the layer pads with zeros, which a shift would have to move too."""
    if not affine.has_shift or not _pads(site):
        return None
    moved = channel_count(affine, affine.shift)
    return Obstacle(f"pads with zeros and the shift of {moved} is not zero", OTHER_SIDE)


def _pads(site: Site) -> bool:
    """Whether a convolution may pad its input, as far as the static sizes tell."""
    padding = site.setting("padding", "valid")
    if padding == "valid":
        return False
    known = catalog.facts(site.layer)
    rank = known.rank if known is not None and known.rank is not None else 0
    shape: Shape = site.inputs[0] or (None,) * rank
    space = shape[2:] if site.channels_first else shape[1:-1]
    windows = [window_of(site.layer, axis) for axis in range(rank - 2)]
    return any(
        window is None or _pads_axis(padding, size, *window)
        for size, window in zip(space, windows, strict=False)
    )


def _pads_axis(padding: str, size: int | None, width: int, stride: int) -> bool:
    if width == 1:
        return False
    if padding != "same" or size is None:
        return True
    return (-(-size // stride) - 1) * stride + width > size


def _before_recurrent(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    vectors = affine.vectors(-1, weights["kernel"].shape[0])
    if vectors is None:
        return OTHER_AXIS
    if _drops(site.layer, site):
        return Obstacle("is called with training=True and drops some of its input", NO_TRAINING)
    factors, biases = _recurrent_change(site.layer, weights, vectors, "")
    return Effect(factors, {}, biases, {"use_bias": True} if biases else {})


def _drops(layer: Layer, site: Site) -> bool:
    return site.training and bool(layer.config.get("dropout", 0))


def _recurrent_change(
    layer: Layer, weights: Mapping[str, Weight], vectors: tuple[Array, Array], prefix: str
) -> tuple[dict[str, Array], dict[str, BiasChange]]:
    """The effect on the input kernel and bias of a recurrent layer, whose slots have a prefix."""
    scale, shift = vectors
    slot = f"{prefix}kernel"
    units = weights[slot].shape[1]
    # A GRU with reset_after has a second bias in row 1, for the recurrent kernel.
    bias = weights.get(f"{prefix}bias")
    reset_after = layer.class_name == "GRU" and layer.config.get("reset_after", True)
    rows = reset_after if bias is None else len(bias.shape) == 2

    def added(read: Read) -> Array:
        total: Array = shift @ read(slot)
        return np.stack([total, np.zeros_like(total)]) if rows else total

    factors = {slot: scale[:, None]}
    if not shift.any():
        return factors, {}
    shape = (2, units) if rows else (units,)
    return factors, {f"{prefix}bias": BiasChange(shape, np.ones(()), added)}


def _before_bidirectional(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    factors: dict[str, Array] = {}
    biases: dict[str, BiasChange] = {}
    settings: Json = {}
    for name, key in catalog.DIRECTIONS.items():
        inside = catalog.direction(site.layer, name)
        if inside is None or policy(inside) != policy(site.layer):
            return "wraps a layer that is not known well enough"
        if _drops(inside, site):
            return Obstacle("is called with training=True and drops some of its input", NO_TRAINING)
        vectors = affine.vectors(-1, weights[f"{name}_kernel"].shape[0])
        if vectors is None:
            return OTHER_AXIS
        changed = _recurrent_change(inside, weights, vectors, f"{name}_")
        factors |= changed[0]
        biases |= changed[1]
        if changed[1] and isinstance(site.setting(key), dict):
            entry = site.setting(key)
            settings[key] = {**entry, "config": {**entry["config"], "use_bias": True}}
    return Effect(factors, {}, biases, settings)


def _before_batchnorm(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    batchnorm = as_batchnorm(site.layer, ())
    epsilon = None if batchnorm is None else batchnorm.epsilon
    if batchnorm is None or epsilon is None:
        return "has an epsilon that is not a finite number"
    if site.training and batchnorm.trainable:
        return Obstacle(
            "is called with training=True, so it normalizes with the batch's statistics",
            NO_TRAINING,
        )
    vectors = _on_batchnorm_axis(site, weights, affine)
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors

    def added(read: Read) -> Array:
        mean = read("moving_mean")
        slope = read("gamma") / np.sqrt(read("moving_variance") + epsilon)
        moved: Array = slope * (shift - mean + scale * mean)
        return moved

    change = BiasChange(scale.shape, np.ones(()), added)
    return Effect({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


# --- EinsumDense ---------------------------------------------------------------------------------


def _behind_einsum(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    equation = parse_equation(site.setting("equation"))
    if equation is None or len(equation.kernel) != len(weights["kernel"].shape):
        return "has an equation in no known form, or not that of its kernel"
    letters = {axis: equation.output_letter(axis, site.rank) for axis in affine.varies_on}
    places = _places(equation, weights["kernel"].shape, letters, affine)
    if places is None:
        return _NO_KERNEL_AXIS
    kernel_rank = len(equation.kernel)
    factors = {"kernel": placed(affine.scale, places, kernel_rank)}
    if "bias" not in weights and not affine.has_shift:
        return Effect(factors)
    layout = _bias_layout(site, weights, equation, "".join(sorted(filter(None, letters.values()))))
    if isinstance(layout, str):
        return layout
    axes, shape, positions = layout
    spots = {axis: positions[letter] for axis, letter in letters.items() if letter is not None}
    scale, shift = (placed(a, spots, len(shape)) for a in (affine.scale, affine.shift))
    change = BiasChange(shape, scale, lambda read: shift, 0)
    return Effect(factors, {}, {"bias": change}, {"bias_axes": axes})


def _before_einsum(site: Site, weights: dict[str, Weight], affine: Affine) -> Effect | str:
    equation = parse_equation(site.setting("equation"))
    if equation is None or len(equation.kernel) != len(weights["kernel"].shape):
        return "has an equation in no known form, or not that of its kernel"
    shape = site.inputs[0]
    rank = None if shape is None else len(shape)
    letters = {axis: equation.input_letter(axis, rank) for axis in affine.varies_on}
    places = _places(equation, weights["kernel"].shape, letters, affine)
    if places is None:
        return _NO_KERNEL_AXIS
    scale, shift = (placed(a, places, len(equation.kernel)) for a in (affine.scale, affine.shift))
    if not affine.has_shift:
        return Effect({"kernel": scale})
    # A letter that is summed out and not in the kernel repeats the shift as often as it is long.
    times = _summed_out(equation, shape)
    if times is None:
        return Obstacle("sums over an axis of unknown size, and the shift is not zero", STATIC)
    kept = [letter for letter in equation.output if letter in equation.kernel]
    layout = _bias_layout(site, weights, equation, "".join(kept))
    if isinstance(layout, str):
        return layout
    axes, bias_shape, positions = layout

    def added(read: Read) -> Array:
        total = np.einsum(f"{equation.kernel}->{''.join(kept)}", read("kernel") * shift * times)
        spots = {number - len(kept): positions[letter] for number, letter in enumerate(kept)}
        return placed(total, spots, len(bias_shape))

    change = BiasChange(bias_shape, np.ones(()), added, 0)
    return Effect({"kernel": scale}, {}, {"bias": change}, {"bias_axes": axes})


def _places(
    equation: Equation, kernel: tuple[int, ...], letters: Mapping[int, str | None], affine: Affine
) -> dict[int, int] | None:
    """The kernel's axis for each axis that a map varies along; None if one has none."""
    found: dict[int, int] = {}
    for axis, letter in letters.items():
        if letter is None or letter not in equation.kernel:
            return None
        found[axis] = equation.kernel.index(letter)
        sizes = {array.shape[axis] for array in (affine.scale, affine.shift) if array.ndim >= -axis}
        if not sizes <= {1, kernel[found[axis]]}:
            return None
    return found


def placed(array: Array, places: Mapping[int, int], rank: int) -> Array:
    """An array with each of its axes, counted from the end, at another place among `rank` axes."""
    sizes = {place: array.shape[axis] for axis, place in places.items() if array.ndim >= -axis}
    axes = sorted((place, axis) for axis, place in places.items() if array.ndim >= -axis)
    order = [axis % array.ndim for _, axis in axes]
    rest = [axis for axis in range(array.ndim) if axis not in order]
    moved: Array = array.transpose([*rest, *order])
    return moved.reshape([sizes.get(place, 1) for place in range(rank)])


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
    site: Site, weights: dict[str, Weight], equation: Equation, letters: str
) -> tuple[str, tuple[int, ...], dict[str, int]] | str:
    """The `bias_axes`, the shape and each letter's place of a bias that varies along `letters`.

    The bias of an EinsumDense spans its output from the first of its `bias_axes` on.
    """
    old = site.setting("bias_axes") or ""
    axes = old + "".join(letter for letter in letters if letter not in old)
    if not axes:
        axes = next((a for a in reversed(equation.output) if a in equation.kernel), "")
    trailing = equation.trailing(site.rank)
    if trailing is None:
        return "has an output of unknown rank, and the shape of its bias depends on it"
    if not axes:
        return "has no axis that a bias could have"
    sizes = dict(zip(equation.kernel, weights["kernel"].shape, strict=True))
    if "bias" in weights:
        spanned = equation.output[min(equation.output.find(a) for a in old) :]
        stored = zip(spanned, weights["bias"].shape, strict=False)
        sizes |= {name: size for name, size in stored if name in old}
    spanned = equation.output[min(equation.output.find(a) for a in axes) :]
    shape = tuple(sizes[a] if a in axes else 1 for a in spanned) + (1,) * trailing
    return axes, shape, {letter: spanned.index(letter) for letter in spanned}


_InFront = Callable[[Site, dict[str, Weight], Affine], Effect | str]

_IN_FRONT: Mapping[str, _InFront] = {
    "Dense": _before_dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _before_conv),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _before_depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _before_separable),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _before_transpose),
    "EinsumDense": _before_einsum,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), _before_recurrent),
    "Bidirectional": _before_bidirectional,
    **dict.fromkeys(catalog.BATCHNORM_CLASSES, _before_batchnorm),
}


# --- all effects on a layer together -------------------------------------------------------------


def take(layer: Layer, effects: Sequence[Effect]) -> Layer:
    """The layer with all effects, one after the other; new numbers are made when they are read."""
    weights = catalog.weights(layer) or {}
    for effect in effects:
        layer = layer.with_config(**effect.settings)
    changed = {slot: _changed(weights, effects, slot) for slot in _slots_of(effects)}
    known = {**weights, **changed}
    ordered = tuple(known[slot.name] for slot in catalog.slots(layer) or ())
    renorm = (layer.weights or ())[len(weights) :]
    return replace(layer, weights=(*ordered, *renorm))


def _slots_of(effects: Iterable[Effect]) -> dict[str, None]:
    """The slots that effects change, in order."""
    return dict.fromkeys(
        slot for effect in effects for slot in (*effect.factors, *effect.offsets, *effect.biases)
    )


def _changed(weights: dict[str, Weight], effects: Sequence[Effect], slot: str) -> Weight:
    old = weights.get(slot)
    changes = [effect.biases[slot] for effect in effects if slot in effect.biases]
    if not changes and old is not None:
        kernel = old
        return replace(kernel, source=None, read=lambda: _fold_kernel(kernel, effects, slot))
    dtype = old.dtype if old is not None else _dtype_beside(weights)
    shape = changes[-1].shape if changes else weights["moving_mean"].shape
    name = old.name if old is not None else _new_name(weights, slot)
    return Weight(shape, dtype, lambda: _cast(_exact(weights, effects, slot), dtype), name)


def _new_name(weights: dict[str, Weight], slot: str) -> str:
    """A new bias of one of two directions is named like the kernel of that direction."""
    beside = weights.get(slot.replace("bias", "kernel"))
    if beside is None or "_" not in slot or "/" not in beside.name:
        return slot
    return re.sub(r"kernel(?=[^/]*$)", "bias", beside.name)


def _exact(weights: dict[str, Weight], effects: Sequence[Effect], slot: str) -> Array:
    """A slot's numbers in float64 behind some effects."""
    old = weights.get(slot)
    if old is None and slot == "gamma":  # without `scale` it is 1
        value: Array = np.ones(weights["moving_mean"].shape)
    else:
        value = NOTHING if old is None else old.read().astype(np.float64)
    for number, effect in enumerate(effects):
        if slot in effect.factors:
            value = value * effect.factors[slot]
        if slot in effect.offsets:
            value = value + effect.offsets[slot]
        change = effect.biases.get(slot)
        if change is not None:
            shift = change.shift(partial(_exact, weights, effects[:number]))
            value = np.broadcast_to(value * change.scale + shift, change.shape)
    return value


def _fold_kernel(kernel: Weight, effects: Sequence[Effect], slot: str) -> NDArray[Any]:
    """A kernel's new numbers, rounded once, a block of them in float64 at a time."""
    values = kernel.read()
    folded = np.empty_like(values)
    steps = list(_steps(effects, slot, values.ndim))
    rows = max(1, _BLOCK * values.shape[0] // max(1, values.size))
    for start in range(0, values.shape[0], rows):
        block = slice(start, start + rows)
        folded[block] = _cast(_stepped(values[block], steps, block), values.dtype)
    return folded


_Step = tuple[Array | None, Array | None]


def _steps(effects: Iterable[Effect], slot: str, rank: int) -> Iterator[_Step]:
    """What each effect multiplies a slot with and adds to it, with as many axes as the slot."""
    for effect in effects:
        factor, offset = effect.factors.get(slot), effect.offsets.get(slot)
        if factor is not None or offset is not None:
            yield _with_rank(factor, rank), _with_rank(offset, rank)


def _with_rank(array: Array | None, rank: int) -> Array | None:
    return None if array is None else array.reshape((1,) * (rank - array.ndim) + array.shape)


def _stepped(values: NDArray[Any], steps: Iterable[_Step], rows: slice) -> Array:
    exact: Array = values.astype(np.float64)
    for factor, offset in steps:
        if factor is not None:
            exact *= factor[rows] if factor.shape[0] > 1 else factor
        if offset is not None:
            exact += offset[rows] if offset.shape[0] > 1 else offset
    return exact


# --- what must not happen ------------------------------------------------------------------------


def misplaced_bias(site: Site, effect: Effect) -> str | None:
    """A predicate when Keras adds the layer's old or new bias along another axis than its own.

    On TensorFlow, `keras.ops.add` takes an array with one axis longer than 1 for a bias on the last
    axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py).
    """
    weights = catalog.weights(site.layer) or {}
    for slot, change in effect.biases.items():
        if change.appended is None:
            continue
        old = [weights[slot].shape] if slot in weights else []
        for shape in (change.shape, *old):
            if _is_misplaced((*shape, *(1,) * change.appended), site.output):
                return (
                    "cannot take it in: TensorFlow adds a bias along the width when the output is, "
                    "or may be, as wide as it has channels"
                )
    return None


def _is_misplaced(bias: tuple[int, ...], output: Shape | None) -> bool:
    long = [axis - len(bias) for axis, size in enumerate(bias) if size > 1]
    if len(long) != 1 or long[0] == -1:
        return False
    if output is None:
        return True
    rivals = {output[-1]} if long[0] % len(output) == 1 else {output[-1], output[1]}
    return bool(rivals & {bias[long[0]], None})


def out_of_range(layer: Layer, effects: Sequence[Effect]) -> str | None:
    """A predicate when a new number is lost in the dtype it is stored or computed in.

    It is lost when it is not finite, and when all of a channel's kernel falls below the smallest
    normal number, where digits go missing.
    """
    weights = catalog.weights(layer) or {}
    used = policy(layer)
    if used is None:
        return "is quantized or has a dtype policy of its own"
    dtypes = (_dtype_beside(weights), _dtype(used.compute))
    for slot in _slots_of(effects):
        with np.errstate(over="ignore", invalid="ignore"):
            before, scaled, exact = _largest(weights, effects, slot)
        for dtype in dtypes:
            lost = int(np.count_nonzero(~np.isfinite(_cast(exact, dtype).astype(np.float64))))
            if lost:
                return (
                    f"cannot take it in: {lost} values of its folded {slot} would not be finite in "
                    f"{dtype.name}"
                )
            # A channel that was as small before, as weight decay leaves dead ones, loses nothing.
            sinks = (np.abs(scaled) < _tiny(dtype)) & (scaled != 0) & (before >= _tiny(dtype))
            faint = int(np.count_nonzero(sinks))
            if faint:
                return (
                    f"cannot take it in: {faint} channels of its folded {slot} would be too small "
                    f"for {dtype.name}"
                )
    return None


_NONE: Array = np.zeros(0)


def _largest(
    weights: dict[str, Weight], effects: Sequence[Effect], slot: str
) -> tuple[Array, Array, Array]:
    """Each channel's largest number, before and after, and numbers that must be finite.

    Scaling keeps order, so along an axis on which no factor varies the number of the largest
    magnitude stays that; NaN spreads. A bias has no scaled numbers that could be too small.
    """
    kernel = weights.get(slot)
    if any(slot in effect.biases for effect in effects):
        return _NONE, _NONE, _exact(weights, effects, slot)
    if kernel is None or 0 in kernel.shape:
        exact = _exact(weights, effects, slot)
        return exact, exact, exact
    values = kernel.read()
    steps = list(_steps(effects, slot, values.ndim))
    arrays = [array for step in steps for array in step if array is not None]
    others = tuple(
        axis for axis in range(values.ndim) if all(array.shape[axis] == 1 for array in arrays)
    )
    low, high = values.min(axis=others, keepdims=True), values.max(axis=others, keepdims=True)
    bound = np.maximum(-low.astype(np.float64), high.astype(np.float64))
    scaled = _stepped(bound, [(factor, None) for factor, _ in steps], slice(None))
    channels = [_channels_of(numbers, effects, slot) for numbers in (bound, scaled)]
    return channels[0], channels[1], _stepped(bound, steps, slice(None))


def _channels_of(scaled: Array, effects: Sequence[Effect], slot: str) -> Array:
    """The largest numbers along the axes of the last effect, so that one small row is none."""
    factor = _with_rank(effects[-1].factors.get(slot), scaled.ndim)
    if factor is None:
        return _NONE
    others = tuple(axis for axis in range(scaled.ndim) if factor.shape[axis] == 1)
    largest: Array = np.abs(scaled).max(axis=others)
    return largest


def _tiny(dtype: np.dtype[Any]) -> float:
    """The smallest normal number of a floating-point dtype."""
    if dtype.name != "bfloat16":
        return float(np.finfo(dtype).tiny)
    import ml_dtypes  # noqa: PLC0415 - few models need it

    return float(ml_dtypes.finfo(dtype).tiny)


def _dtype_beside(weights: dict[str, Weight]) -> np.dtype[Any]:
    """The dtype of a layer's variables."""
    return next(iter(weights.values())).dtype


def _dtype(name: str) -> np.dtype[Any]:
    return hdf5.bfloat16() if name == "bfloat16" else np.dtype(name)


def _cast(values: Array, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
