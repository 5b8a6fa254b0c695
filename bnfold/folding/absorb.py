"""How a layer whose output is linear in its weights takes in an affine map that follows it.

Supported patterns, with s and t the affine's scale and shift, c the output channel, `...` all other
axes:

    Dense, Conv, SeparableConv (pointwise)   kernel[..., c] * s[c],      bias[c] * s[c] + t[c]
    ConvTranspose                            kernel[..., c, :] * s[c],   bias likewise
    DepthwiseConv, multiplier M              kernel[..., i, m] * s[i * M + m],  bias likewise
    EinsumDense                              the kernel's axis that the equation gives the channel's
    letter Embedding                                embeddings[:, c] * s[c] + t[c]
    BatchNormalization                       gamma[c] * s[c],            beta[c] * s[c] + t[c]

A layer without a bias gets one. Wrong if a nonlinearity stands between, if the channel axis of the
layer is not that of the affine, or if anything else reads the layer's output: `plan` sees to these.
Here a refusal is a sentence.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold.folding.affine import Affine, Vector
from bnfold.model import catalog, hdf5
from bnfold.model.einsum import Equation, parse_equation
from bnfold.model.graph import Layer, Weight
from bnfold.model.policy import policy

_BLOCK = 1 << 20
"""How many numbers are held in float64 at once."""


@dataclass(frozen=True)
class Receiver:
    """Where in a layer an affine map goes.

    The axes `kernel_axes` of the slot `kernel` make up the channels, the slowest first. `bias` is
    the slot that takes the shift, with the shape `bias_shape` and its channels on `bias_axis`; None
    where the kernel takes the shift itself. `output_axis` is the axis of the layer's output that
    holds the channels. `settings` are what the config must say afterwards.
    """

    kernel: str
    kernel_axes: tuple[int, ...]
    bias: str | None
    bias_shape: tuple[int, ...]
    bias_axis: int
    output_axis: int
    settings: dict[str, Any]


def channel_axis(layer: Layer) -> int | None:
    """The axis of a layer's output that its kernel makes, -1 or 1; None where none is fixed."""
    known = catalog.facts(layer)
    if known is None or known.output is None:
        return None
    first = (
        known.output.channels == "data_format"
        and layer.config.get("data_format") == "channels_first"
    )
    return 1 if first else -1


def can_receive(layer: Layer) -> bool:
    """Whether a layer's class is one whose weights can take an affine map in."""
    known = catalog.facts(layer)
    return known is not None and (
        known.output is not None or layer.class_name == "EinsumDense" or catalog.is_batchnorm(layer)
    )


def is_linear(layer: Layer) -> bool:
    """Whether a layer's own activation is none. A dict can be anybody's function of that name."""
    return layer.config.get("activation") in (None, "linear")


def receiver(layer: Layer, axis: int, rank: int | None, channels: int) -> Receiver | str:
    """Where a layer takes in an affine map over `channels` channels on `axis` of its output.

    `rank` is that of the output, None where it is unknown; only an EinsumDense needs the two.
    Returns a sentence when the layer cannot.
    """
    weights = catalog.weights(layer)
    if weights is None:
        return "its variables in the file are not those of its class"
    if catalog.is_batchnorm(layer):
        settings = {"scale": True, "center": True}
        return Receiver("gamma", (0,), "beta", (channels,), 0, -1, settings)
    if layer.class_name == "EinsumDense":
        return _einsum_receiver(layer, weights, axis, rank, channels)
    known = catalog.facts(layer)
    if known is None or known.output is None:
        return "its output is not linear in its weights"
    output = known.output
    shape = weights[output.kernel].shape
    if int(np.prod([shape[a] for a in output.axes])) != channels:
        return f"its {output.kernel} does not have {channels} output channels"
    settings = {"use_bias": True} if output.bias else {}
    output_axis = channel_axis(layer) or -1
    return Receiver(output.kernel, output.axes, output.bias, (channels,), 0, output_axis, settings)


def _einsum_receiver(
    layer: Layer, weights: dict[str, Weight], axis: int, rank: int | None, channels: int
) -> Receiver | str:
    equation = parse_equation(layer.config.get("equation"))
    if equation is None:
        return "its equation is in no known form"
    letter = equation.output_letter(axis, rank)
    if letter is None or letter not in equation.kernel:
        return f"axis {axis} of its output is not an axis of its kernel"
    kernel_axis = equation.kernel.index(letter)
    if weights["kernel"].shape[kernel_axis] != channels:
        return f"its kernel does not have {channels} output channels"
    return _einsum_bias(layer, weights, equation, letter, rank)


def _einsum_bias(
    layer: Layer, weights: dict[str, Weight], equation: Equation, letter: str, rank: int | None
) -> Receiver | str:
    """The place in an EinsumDense, whose bias spans the output from the first of `bias_axes` on."""
    old_axes = layer.config.get("bias_axes") or ""
    new_axes = old_axes if letter in old_axes else old_axes + letter
    trailing = equation.trailing(rank)
    if trailing is None:
        return "the rank of its output is unknown, and the shape of its bias depends on it"
    sizes = dict(zip(equation.kernel, weights["kernel"].shape, strict=True))
    if "bias" in weights:
        spanned = equation.output[min(equation.output.find(a) for a in old_axes) :]
        old_sizes = zip(spanned, weights["bias"].shape, strict=False)
        sizes |= {name: size for name, size in old_sizes if name in old_axes}
    spanned = equation.output[min(equation.output.find(a) for a in new_axes) :]
    shape = tuple(sizes[a] if a in new_axes else 1 for a in spanned) + (1,) * trailing
    kernel_axis = equation.kernel.index(letter)
    settings = {"bias_axes": new_axes}
    bias_axis = spanned.index(letter)
    output_axis = bias_axis - len(shape)
    return Receiver("kernel", (kernel_axis,), "bias", shape, bias_axis, output_axis, settings)


def absorb(layer: Layer, place: Receiver, affine: Affine) -> Layer:
    """The layer that computes what `layer` and then `affine` do; new numbers are made when read."""
    weights = catalog.weights(layer) or {}
    changed = {place.kernel: _new_kernel(weights, place, affine)}
    if place.bias is not None:
        changed[place.bias] = _new_bias(weights, place, affine)
    layer = layer.with_config(**place.settings)
    known = {**weights, **changed}
    ordered = tuple(known[slot.name] for slot in catalog.slots(layer) or ())
    renorm = (layer.weights or ())[len(weights) :]
    return replace(layer, weights=(*ordered, *renorm))


def _new_kernel(weights: dict[str, Weight], place: Receiver, affine: Affine) -> Weight:
    kernel = weights.get(place.kernel)
    if kernel is None:  # the gamma of a BatchNormalization without scale is 1
        dtype = _dtype_beside(weights, place)
        return Weight(affine.scale.shape, dtype, lambda: _cast(affine.scale, dtype), place.kernel)
    return replace(kernel, source=None, read=lambda: _fold_kernel(kernel, place, affine))


def _fold_kernel(kernel: Weight, place: Receiver, affine: Affine) -> NDArray[Any]:
    """Scale * kernel along the channel axes, rounded once, a block of numbers at a time.

    A kernel without a bias beside it takes the shift as well.
    """
    values = kernel.read()
    axes = _channel_axes(kernel, place)
    shape = tuple(size if axis in axes else 1 for axis, size in enumerate(values.shape))
    scale = affine.scale.reshape(shape)
    shift = affine.shift.reshape(shape) if place.bias is None else None
    folded = np.empty_like(values)
    rows = max(1, _BLOCK * values.shape[0] // max(1, values.size))
    for start in range(0, values.shape[0], rows):
        block = slice(start, start + rows)
        channels = block if shape[0] > 1 else slice(None)
        exact = values[block].astype(np.float64)
        exact *= scale[channels]
        if shift is not None:
            exact += shift[channels]
        folded[block] = _cast(exact, values.dtype)
    return folded


def _new_bias(weights: dict[str, Weight], place: Receiver, affine: Affine) -> Weight:
    bias = weights.get(place.bias or "")
    name = bias.name if bias is not None else place.bias or ""
    dtype = _dtype_beside(weights, place)
    return Weight(
        place.bias_shape, dtype, lambda: _cast(_fold_bias(bias, place, affine), dtype), name
    )


def _fold_bias(bias: Weight | None, place: Receiver, affine: Affine) -> Vector:
    """Scale * bias + shift, over a bias that may have to grow an axis for the channels."""
    shape = [1] * len(place.bias_shape)
    shape[place.bias_axis] = -1
    shift = np.broadcast_to(affine.shift.reshape(shape), place.bias_shape)
    if bias is None:
        return np.array(shift)
    old = bias.read().astype(np.float64)
    old = old.reshape((1,) * (len(place.bias_shape) - old.ndim) + old.shape)
    folded: Vector = old * affine.scale.reshape(shape) + shift
    return folded


def misplaced_bias(place: Receiver, shape: tuple[int | None, ...] | None) -> str | None:
    """A sentence when Keras would add the new bias along another axis than the channels.

    On TensorFlow, `keras.ops.add` takes a bias that is a vector but for axes of size 1 for one on
    the last axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py). `shape` is that of the layer's output, None if unknown.
    """
    sizes = [size for size in place.bias_shape if size > 1]
    if len(sizes) != 1 or place.output_axis == -1:
        return None
    if shape is None:
        return "the shape of its output is unknown, and Keras adds some biases along another axis"
    rivals = {shape[-1]} if place.output_axis % len(shape) == 1 else {shape[-1], shape[1]}
    if rivals & {sizes[0], None}:
        return "its output is, or may be, as wide as it has channels, and Keras confuses the two"
    return None


def overflow(layer: Layer, place: Receiver, affine: Affine) -> str | None:
    """A sentence when a folded number is not finite in the dtype it is stored or computed in."""
    weights = catalog.weights(layer) or {}
    used = policy(layer)
    if used is None:
        return "it is quantized or has a dtype policy of its own"
    stored = _dtype_beside(weights, place)
    for slot, exact in _extremes(weights, place, affine).items():
        for dtype in (stored, _dtype(used.compute)):
            lost = int(np.count_nonzero(~np.isfinite(_cast(exact, dtype).astype(np.float64))))
            if lost:
                return f"{lost} values of its folded {slot} would not be finite in {dtype.name}"
    return None


def _extremes(weights: dict[str, Weight], place: Receiver, affine: Affine) -> dict[str, Vector]:
    """For each slot that changes, numbers that are finite if and only if all its new ones are.

    Scaling keeps order, so the smallest and the largest number of a channel stand for all of it.
    """
    found: dict[str, Vector] = {place.kernel: affine.scale}
    kernel = weights.get(place.kernel)
    if kernel is not None and 0 not in kernel.shape:
        values = kernel.read()
        axes = _channel_axes(kernel, place)
        others = tuple(axis for axis in range(values.ndim) if axis not in axes)
        bounds = np.stack([values.min(axis=others), values.max(axis=others)])
        exact = bounds.astype(np.float64).reshape(2, -1) * affine.scale
        found[place.kernel] = exact if place.bias is not None else exact + affine.shift
    if place.bias is not None:
        found[place.bias] = _fold_bias(weights.get(place.bias), place, affine)
    return found


def _channel_axes(kernel: Weight, place: Receiver) -> tuple[int, ...]:
    return tuple(axis % len(kernel.shape) for axis in place.kernel_axes)


def _dtype_beside(weights: dict[str, Weight], place: Receiver) -> np.dtype[Any]:
    """The dtype of a layer's variables, for one that is new."""
    return (weights.get(place.kernel) or next(iter(weights.values()))).dtype


def _dtype(name: str) -> np.dtype[Any]:
    return hdf5.bfloat16() if name == "bfloat16" else np.dtype(name)


def _cast(values: Vector, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
