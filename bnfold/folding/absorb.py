"""How a layer whose output is linear in its weights takes in an affine map that follows it.

Supported patterns, with s and t the affine's scale and shift, c the output channel, `...` all other
axes:

    Dense, Conv, SeparableConv (pointwise)   kernel[..., c] * s[c],      bias[c] * s[c] + t[c]
    ConvTranspose                            kernel[..., c, :] * s[c],   bias likewise
    DepthwiseConv, multiplier M              kernel[..., i, m] * s[i * M + m],  bias likewise
    EinsumDense                              the kernel's axis with the channel's letter,  likewise
    Embedding                                embeddings[:, c] * s[c] + t[c]
    BatchNormalization                       gamma[c] * s[c],            beta[c] * s[c] + t[c]

A layer without a bias gets one. Wrong if a nonlinearity stands between, if the channel axis of the
layer is not that of the affine, or if anything else reads the layer's output: `plan` sees to these.
Here a refusal is a sentence.
"""

import math
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
    holds the channels. `changes` are what the config must say afterwards.
    """

    kernel: str
    kernel_axes: tuple[int, ...]
    bias: str | None
    bias_shape: tuple[int, ...]
    bias_axis: int
    output_axis: int
    changes: dict[str, Any]


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
        return _batchnorm_receiver(weights, channels)
    if layer.class_name == "EinsumDense":
        return _einsum_receiver(layer, weights, axis, rank, channels)
    known = catalog.facts(layer)
    if known is None or known.output is None:
        return "its output is not linear in its weights"
    output = known.output
    kernel, bias = weights[output.kernel], weights.get(output.bias or "")
    sizes = [kernel.shape[axis] for axis in output.axes]
    if math.prod(sizes) != channels or (bias is not None and bias.shape != (channels,)):
        return f"it does not have {channels} output channels"
    changes = {"use_bias": True} if output.bias else {}
    output_axis = channel_axis(layer) or -1
    return Receiver(output.kernel, output.axes, output.bias, (channels,), 0, output_axis, changes)


def _batchnorm_receiver(weights: dict[str, Weight], channels: int) -> Receiver | str:
    if any(weight.shape != (channels,) for weight in weights.values()):
        return f"it does not have {channels} channels"
    changes = {"scale": True, "center": True}
    return Receiver("gamma", (0,), "beta", (channels,), 0, -1, changes)


def _einsum_receiver(
    layer: Layer, weights: dict[str, Weight], axis: int, rank: int | None, channels: int
) -> Receiver | str:
    equation = parse_equation(layer.config.get("equation"))
    if equation is None or len(equation.kernel) != len(weights["kernel"].shape):
        return "its equation is in no known form, or not that of its kernel"
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
    changes = {"bias_axes": new_axes}
    bias_axis = spanned.index(letter)
    output_axis = bias_axis - len(shape)
    return Receiver("kernel", (kernel_axis,), "bias", shape, bias_axis, output_axis, changes)


def absorb(layer: Layer, place: Receiver, affine: Affine) -> Layer:
    """The layer that computes what `layer` and then `affine` do; new numbers are made when read."""
    weights = catalog.weights(layer) or {}
    changed = {place.kernel: _new_kernel(weights, place, affine)}
    if place.bias is not None:
        changed[place.bias] = _new_bias(weights, place, affine)
    layer = layer.with_config(**place.changes)
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
    with np.errstate(over="ignore", invalid="ignore"):
        folded: Vector = old * affine.scale.reshape(shape) + shift
    return folded


def misplaced_bias(
    layer: Layer, place: Receiver, shape: tuple[int | None, ...] | None
) -> str | None:
    """A sentence when Keras adds the layer's old or new bias along another axis than its own.

    On TensorFlow, `keras.ops.add` takes an array with one axis longer than 1 for a bias on the last
    axis if that is as long, else for one on axis 1 if that is (Keras 3.15,
    src/backend/tensorflow/numpy.py). `shape` is that of the layer's output, None if unknown.
    """
    if place.bias is None or catalog.is_batchnorm(layer):
        return None
    old = (catalog.weights(layer) or {}).get(place.bias)
    for bias_shape in (place.bias_shape, *([old.shape] if old is not None else [])):
        # Keras appends axes of size 1 to the bias of a channels_first convolution.
        appended = len(shape or ()) - 2 if place.output_axis == 1 else 0
        if _is_misplaced((*bias_shape, *(1,) * appended), place.output_axis, shape):
            return (
                "TensorFlow adds a bias along the width when the output is, or may be, as wide as "
                "it has channels"
            )
    return None


def _is_misplaced(
    bias_shape: tuple[int, ...], output_axis: int, shape: tuple[int | None, ...] | None
) -> bool:
    long = [axis - len(bias_shape) for axis, size in enumerate(bias_shape) if size > 1]
    if len(long) != 1 or (long[0] == -1 and output_axis != 1):
        return False
    if shape is None:
        return True
    rivals = {shape[-1]} if long[0] % len(shape) == 1 else {shape[-1], shape[1]}
    return bool(rivals & {bias_shape[long[0]], None})


def out_of_range(layer: Layer, place: Receiver, affine: Affine) -> str | None:
    """A sentence when a folded number is lost in the dtype it is stored or computed in.

    It is lost when it is not finite, and when all of a channel's kernel falls below the smallest
    normal number, where digits go missing.
    """
    weights = catalog.weights(layer) or {}
    used = policy(layer)
    if used is None:
        return "it is quantized or has a dtype policy of its own"
    kernel, bias = _largest(weights, place, affine)
    for dtype in (_dtype_beside(weights, place), _dtype(used.compute)):
        for slot, exact in ((place.kernel, kernel), (place.bias, bias)):
            lost = int(np.count_nonzero(~np.isfinite(_cast(exact, dtype).astype(np.float64))))
            if lost:
                return f"{lost} values of its folded {slot} would not be finite in {dtype.name}"
        tiny = float(_finfo(dtype).tiny)
        faint = int(np.count_nonzero((np.abs(kernel) < tiny) & (kernel != 0)))
        if faint:
            return (
                f"{faint} channels of its folded {place.kernel} would be too small for {dtype.name}"
            )
    return None


def _largest(weights: dict[str, Weight], place: Receiver, affine: Affine) -> tuple[Vector, Vector]:
    """The folded kernel's largest numbers, one for each channel, and the whole folded bias.

    Scaling keeps order, so a channel's number of largest magnitude stays that; NaN spreads.
    """
    kernel, largest = weights.get(place.kernel), affine.scale
    if kernel is not None and 0 not in kernel.shape:
        values = kernel.read()
        axes = _channel_axes(kernel, place)
        others = tuple(axis for axis in range(values.ndim) if axis not in axes)
        low, high = values.min(axis=others), values.max(axis=others)
        magnitude = np.maximum(-low.astype(np.float64), high.astype(np.float64)).reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            largest = magnitude * affine.scale
    if place.bias is None:
        with np.errstate(over="ignore", invalid="ignore"):
            return largest, largest + affine.shift
    return largest, _fold_bias(weights.get(place.bias), place, affine)


def _channel_axes(kernel: Weight, place: Receiver) -> tuple[int, ...]:
    return tuple(axis % len(kernel.shape) for axis in place.kernel_axes)


def _dtype_beside(weights: dict[str, Weight], place: Receiver) -> np.dtype[Any]:
    """The dtype of a layer's variables, for one that is new."""
    return (weights.get(place.kernel) or next(iter(weights.values()))).dtype


def _finfo(dtype: np.dtype[Any]) -> Any:
    """The limits of a floating-point dtype."""
    if dtype.name != "bfloat16":
        return np.finfo(dtype)
    import ml_dtypes  # noqa: PLC0415 - few models need it

    return ml_dtypes.finfo(dtype)


def _dtype(name: str) -> np.dtype[Any]:
    return hdf5.bfloat16() if name == "bfloat16" else np.dtype(name)


def _cast(values: Vector, dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
