"""Dense layers, convolutions and embeddings, whose weights absorb a map after them or before them.

With s and t the map's scale and shift, c the output channel, i the input channel, k the positions
in the kernel, M a depth multiplier and `...` all other axes.

A map after the layer, which must apply no activation:

    Dense, Conv, SeparableConv (pointwise)  kernel[..., c] * s[c],      bias[c] * s[c] + t[c]
    ConvTranspose                           kernel[..., c, :] * s[c],   bias likewise
    DepthwiseConv                           kernel[..., i, m] * s[i * M + m],  bias likewise
    Embedding                               embeddings[:, c] * s[c] + t[c]

A map before the layer, whatever activation it applies:

    Dense, Conv      kernel[k, i, c] * s[i],  bias[c] + sum over k, i of kernel[k, i, c] * t[i]
                     (in group g of a grouped convolution, i counts from g * channels per group)
    DepthwiseConv    kernel[k, i, m] * s[i],  bias[i * M + m] + sum over k of kernel[k, i, m] * t[i]
    SeparableConv    the depthwise kernel likewise; its sum goes through the pointwise kernel
    ConvTranspose    kernel[k, c, i] * s[i],  bias[c] + sum over i of kernel[0, c, i] * t[i]

Wrong if the layer pads its input with zeros, which are not shifted, so then t must be zero; a
transpose convolution spreads its input unevenly over its strides, which is exact for t = 0 or a
kernel of 1 at stride 1 only. Wrong too if anything else reads the tensor between: the search sees
to that.

A layer without a bias gets one where the shift asks for it.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from bnfold.folding.affine import Affine, Array, channel_count
from bnfold.folding.rule import Absorb, Rule, Site, each_rank, no_activation
from bnfold.folding.sentences import OTHER_SIDE, other_axis
from bnfold.folding.weights import BiasChange, Read, WeightEdit
from bnfold.model import layers
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape, window_of


def _absorb_after(site: Site, affine: Affine) -> WeightEdit:
    no_activation(site)
    weights, output = site.weights, layers.facts(site.layer).output
    if output is None:
        raise Refusal("has no weights that could absorb it")
    kernel, bias = weights[output.kernel].shape, weights.get(output.bias or "")
    channels = math.prod(kernel[axis] for axis in output.axes)
    if bias is not None and bias.shape != (channels,):
        raise Refusal("has a bias of another length than its kernel")
    axis = layers.channel_axis(site.layer)
    vectors = None if axis is None else affine.vectors(axis, channels)
    if vectors is None or axis is None:
        raise other_axis()
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


def _input_vectors(site: Site, affine: Affine, channels: int) -> tuple[Array, Array]:
    """A map as vectors over the input channels of a layer."""
    rank = layers.facts(site.layer).rank
    axis = 1 - rank if site.channels_first and rank is not None else -1
    vectors = affine.vectors(axis, channels)
    if vectors is None:
        raise other_axis()
    return vectors


def _input_change(
    site: Site, kernel: str, factor: Array, shift: "Callable[[Read], Array] | None"
) -> WeightEdit:
    """The edit of a layer with one `bias`, which `shift` is added to."""
    if shift is None:
        return WeightEdit({kernel: factor})
    output = layers.facts(site.layer).output
    units = math.prod(site.weights[output.kernel].shape[a] for a in output.axes) if output else 0
    appended = len(site.weights[kernel].shape) - 2 if site.channels_first else 0
    change = BiasChange((units,), np.ones(()), shift, appended)
    return WeightEdit({kernel: factor}, {}, {"bias": change}, {"use_bias": True})


def _before_dense(site: Site, affine: Affine) -> WeightEdit:
    scale, shift = _input_vectors(site, affine, site.weights["kernel"].shape[0])
    added = (lambda read: shift @ read("kernel")) if shift.any() else None
    return _input_change(site, "kernel", scale[:, None], added)


def _before_conv(site: Site, affine: Affine) -> WeightEdit:
    kernel, groups = site.weights["kernel"].shape, site.setting("groups", 1)
    if type(groups) is not int or groups < 1 or kernel[-1] % groups:
        raise Refusal("has an invalid `groups` setting")
    vectors = _unpadded_vectors(site, affine, kernel[-2] * groups)
    # Output channel o reads input channels group(o) * in_per_group + i.
    scale, shift = (_per_group(vector, groups, kernel) for vector in vectors)
    space = tuple(range(len(kernel) - 1))

    def added(read: Read) -> Array:
        total: Array = (read("kernel") * shift).sum(axis=space)
        return total

    return _input_change(site, "kernel", scale, added if shift.any() else None)


def _per_group(vector: Array, groups: int, kernel: tuple[int, ...]) -> Array:
    """A vector over input channels as (in_per_group, out), the last two axes of a kernel."""
    columns = np.repeat(vector.reshape(groups, kernel[-2]), kernel[-1] // groups, axis=0)
    return columns.T if groups > 1 else vector.reshape(-1, 1)


def _before_depthwise(site: Site, affine: Affine) -> WeightEdit:
    scale, shift = _unpadded_vectors(site, affine, site.weights["depthwise_kernel"].shape[-2])
    added = partial(_depthwise_sum, shift) if shift.any() else None
    return _input_change(site, "depthwise_kernel", scale[:, None], added)


def _depthwise_sum(shift: Array, read: Read) -> Array:
    """What a depthwise kernel makes of a constant input, channel i * M + m."""
    kernel = read("depthwise_kernel") * shift[:, None]
    total: Array = kernel.sum(axis=tuple(range(kernel.ndim - 2))).reshape(-1)
    return total


def _before_separable(site: Site, affine: Affine) -> WeightEdit:
    scale, shift = _unpadded_vectors(site, affine, site.weights["depthwise_kernel"].shape[-2])

    def added(read: Read) -> Array:
        pointwise = read("pointwise_kernel")
        return _depthwise_sum(shift, read) @ pointwise.reshape(-1, pointwise.shape[-1])

    change = added if shift.any() else None
    return _input_change(site, "depthwise_kernel", scale[:, None], change)


def _before_conv_transpose(site: Site, affine: Affine) -> WeightEdit:
    kernel = site.weights["kernel"].shape
    scale, shift = _input_vectors(site, affine, kernel[-1])
    plain = set(kernel[:-2]) == {1} and _is_all(site.setting("strides", 1), 1)
    if shift.any() and not (plain and site.setting("output_padding") is None):
        count = channel_count(affine, affine.shift)
        raise Refusal(f"spreads a shift unevenly, and the shift of {count} is not zero", OTHER_SIDE)

    def added(read: Read) -> Array:
        return read("kernel").reshape(kernel[-2:]) @ shift

    return _input_change(site, "kernel", scale, added if shift.any() else None)


def _is_all(value: object, wanted: int) -> bool:
    return all(one == wanted for one in value) if isinstance(value, list) else value == wanted


def _unpadded_vectors(site: Site, affine: Affine, size: int) -> tuple[Array, Array]:
    """`_input_vectors` of a convolution, which must not pad with zeros where there is a shift."""
    vectors = _input_vectors(site, affine, size)
    if affine.has_shift and _pads(site):
        count = channel_count(affine, affine.shift)
        raise Refusal(f"pads with zeros and the shift of {count} is not zero", OTHER_SIDE)
    return vectors


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


def _linear(absorb_before: Absorb) -> Rule:
    return Rule(absorb_after=_absorb_after, absorb_before=absorb_before)


OUTPUT_ALONE = Rule(absorb_after=_absorb_after)
"""A class of which no more is known than how its output depends on its weights."""

LAYERS: dict[str, Rule] = {
    "Dense": _linear(_before_dense),
    **dict.fromkeys(each_rank("Conv"), _linear(_before_conv)),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _linear(_before_depthwise)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _linear(_before_separable)),
    **{f"Conv{rank}DTranspose": _linear(_before_conv_transpose) for rank in (1, 2, 3)},
}
