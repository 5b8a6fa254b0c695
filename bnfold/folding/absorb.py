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

A layer without a bias gets one where the shift asks for it. A refusal is the predicate of a
sentence about the layer.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from bnfold.folding import einsum_dense
from bnfold.folding.affine import Affine, Array, channel_count
from bnfold.folding.obstacle import AXIS, NO_TRAINING, OTHER_SIDE, AxisObstacle, Obstacle
from bnfold.folding.site import Site
from bnfold.folding.weights import BiasChange, Read, WeightEdit
from bnfold.model import layers
from bnfold.model.batchnorm import as_batchnorm
from bnfold.model.graph import Json, Layer, Weight
from bnfold.model.policy import policy
from bnfold.model.shape_rules import Shape, window_of

_BETWEEN = "put BatchNormalization between {layer} and its activation"
OTHER_AXIS = AxisObstacle("not the channel axis of", AXIS)


# --- a map behind the layer ----------------------------------------------------------------------


def takes_behind(layer: Layer) -> bool:
    """Whether a layer's class is one whose weights can take in a map behind it."""
    return layers.facts(layer).output is not None or layers.is_batchnorm(layer)


def behind(site: Site, affine: Affine) -> WeightEdit | str:
    """What a map behind a layer does to it."""
    layer = site.layer
    activation = layer.config.get("activation")
    if activation not in (None, "linear"):  # a dict can be anybody's function of that name
        applied = activation if isinstance(activation, str) else "an activation"
        return Obstacle(f"applies {applied}", _BETWEEN)
    weights, output = layers.weights(layer), layers.facts(layer).output
    if weights is None:
        return "has other variables in the file than those of its class"
    if layers.is_batchnorm(layer):
        return _behind_batchnorm(site, weights, affine)
    if layer.class_name == "EinsumDense":
        return einsum_dense.behind(site, weights, affine)
    if output is None:
        return "has no weights that could take it in"
    return _behind_linear(site, output, weights, affine)


def _behind_linear(
    site: Site, output: layers.LinearOutput, weights: dict[str, Weight], affine: Affine
) -> WeightEdit | str:
    kernel, bias = weights[output.kernel].shape, weights.get(output.bias or "")
    channels = math.prod(kernel[axis] for axis in output.axes)
    if bias is not None and bias.shape != (channels,):
        return "has a bias of another length than its kernel"
    axis = layers.channel_axis(site.layer)
    vectors = None if axis is None else affine.vectors(axis, channels)
    if vectors is None or axis is None:
        return OTHER_AXIS
    scale, shift = vectors
    shape = [1] * len(kernel)
    for number in output.axes:
        shape[number] = kernel[number]
    factors = {output.kernel: scale.reshape(shape)}
    if output.bias is None:
        return WeightEdit(factors, {output.kernel: shift.reshape(shape)})
    if output.bias not in weights and not shift.any():
        return WeightEdit(factors)
    change = BiasChange((channels,), scale, lambda read: shift, -1 - axis)
    return WeightEdit(factors, {}, {output.bias: change}, {"use_bias": True})


def _behind_batchnorm(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
    vectors = _on_batchnorm_axis(site, weights, affine)
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    change = BiasChange(scale.shape, scale, lambda read: shift)
    return WeightEdit({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


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
            return AxisObstacle("not the channel axis, as far as the file tells, of", AXIS)
        axis -= site.rank
    return affine.vectors(axis, weights["moving_mean"].shape[0]) or OTHER_AXIS


# --- a map in front of the layer -----------------------------------------------------------------


def takes_in_front(layer: Layer) -> bool:
    """Whether a layer's class is one whose weights can take in a map in front of it."""
    return layer.builtin and not layer.is_operation and layer.class_name in IN_FRONT


def in_front(site: Site, affine: Affine) -> WeightEdit | str:
    """What a map in front of a layer does to it."""
    weights = layers.weights(site.layer)
    if weights is None:
        return "has other variables in the file than those of its class"
    rule = IN_FRONT.get(site.layer.class_name)
    if rule is None:
        return "has no weights that could take it in"
    return rule(site, weights, affine)


def _input_vectors(site: Site, affine: Affine, channels: int) -> tuple[Array, Array] | AxisObstacle:
    """A map as vectors over the input channels of a layer."""
    rank = layers.facts(site.layer).rank
    axis = 1 - rank if site.channels_first and rank is not None else -1
    return affine.vectors(axis, channels) or OTHER_AXIS


def _input_change(
    site: Site, weights: Mapping[str, Weight], kernel: str, factor: Array, shift: "_Shift | None"
) -> WeightEdit:
    """The effect on a layer with one `bias`, which `shift` is added to."""
    if shift is None:
        return WeightEdit({kernel: factor})
    output = layers.facts(site.layer).output
    units = math.prod(weights[output.kernel].shape[a] for a in output.axes) if output else 0
    appended = len(weights[kernel].shape) - 2 if site.channels_first else 0
    change = BiasChange((units,), np.ones(()), shift, appended)
    return WeightEdit({kernel: factor}, {}, {"bias": change}, {"use_bias": True})


_Shift = Callable[[Read], Array]


def _before_dense(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
    vectors = _input_vectors(site, affine, weights["kernel"].shape[0])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors
    added = (lambda read: shift @ read("kernel")) if shift.any() else None
    return _input_change(site, weights, "kernel", scale[:, None], added)


def _before_conv(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
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


def _before_depthwise(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
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


def _before_separable(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
    vectors = _unpadded_vectors(site, affine, weights["depthwise_kernel"].shape[-2])
    if isinstance(vectors, str):
        return vectors
    scale, shift = vectors

    def added(read: Read) -> Array:
        pointwise = read("pointwise_kernel")
        return _depthwise_sum(shift, read) @ pointwise.reshape(-1, pointwise.shape[-1])

    change = added if shift.any() else None
    return _input_change(site, weights, "depthwise_kernel", scale[:, None], change)


def _before_transpose(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
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
    rank = layers.facts(site.layer).rank or 0
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


def _before_recurrent(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
    vectors = affine.vectors(-1, weights["kernel"].shape[0])
    if vectors is None:
        return OTHER_AXIS
    if _drops(site.layer, site):
        return Obstacle("is called with training=True and drops some of its input", NO_TRAINING)
    factors, biases = _recurrent_change(site.layer, weights, vectors, "")
    return WeightEdit(factors, {}, biases, {"use_bias": True} if biases else {})


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


def _before_bidirectional(
    site: Site, weights: dict[str, Weight], affine: Affine
) -> WeightEdit | str:
    factors: dict[str, Array] = {}
    biases: dict[str, BiasChange] = {}
    settings: Json = {}
    for name, key in layers.DIRECTIONS.items():
        inside = layers.direction(site.layer, name)
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
    return WeightEdit(factors, {}, biases, settings)


def _before_batchnorm(site: Site, weights: dict[str, Weight], affine: Affine) -> WeightEdit | str:
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
    return WeightEdit({"gamma": scale}, {}, {"beta": change}, {"scale": True, "center": True})


_InFront = Callable[[Site, dict[str, Weight], Affine], WeightEdit | str]

IN_FRONT: Mapping[str, _InFront] = {
    "Dense": _before_dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _before_conv),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _before_depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _before_separable),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _before_transpose),
    "EinsumDense": einsum_dense.in_front,
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), _before_recurrent),
    "Bidirectional": _before_bidirectional,
    **dict.fromkeys(layers.BATCHNORM_CLASSES, _before_batchnorm),
}
"""Keras' own layers that take in a map in front of them."""
