"""The fact table: what bnfold knows of Keras' own layer classes.

One row a class. A class without a row is unknown: it is copied as it is, and it blocks every fold.
Weight slots stand in the order in which the class creates its variables, which is the order in
every file. Kernel layouts are those of the Keras documentation, with `in` and `out` for channels:

    Dense (in, out); Conv (*kernel, in / groups, out); DepthwiseConv (*kernel, in,
    depth_multiplier); ConvTranspose (*kernel, out, in); Embedding (vocabulary, out)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bnfold.model.config import is_keras_class
from bnfold.model.graph import Layer, Weight

BATCHNORM_CLASSES = frozenset(
    {
        "BatchNormalization",
        "BatchNormalizationV1",  # TensorFlow 1.13 to 1.15
        "BatchNormalizationV2",
        "SyncBatchNormalization",
    }
)


@dataclass(frozen=True)
class Slot:
    """One variable of a class. `flag` is the setting without which it does not exist.

    `group` is where a `.keras` file keeps it, seen from the group of the layer.
    """

    name: str
    flag: str | None = None
    trainable: bool = True
    group: str = ""


@dataclass(frozen=True)
class LinearOutput:
    """How a class's output depends on its weights: linearly, channel by channel.

    `kernel` is the slot whose axes `axes` make up the output channels, the slowest first; the
    output is linear in it, and `bias` is added to it. `channels` says which axis of the output
    holds the channels: the last one, or the one that `data_format` names.
    """

    kernel: str
    axes: tuple[int, ...]
    bias: str | None = "bias"
    channels: Literal["last", "data_format"] = "data_format"


@dataclass(frozen=True)
class LinearInput:
    """How a class's weights meet its input: the first thing it does is to multiply by `kernel`.

    `axis` is the axis of `kernel` that the input's channels meet; the layer pads its input with
    zeros where its setting `padding` says so.
    """

    kernel: str
    axis: int


@dataclass(frozen=True)
class Facts:
    """What one class is. `rank` is that of its input and output, None where it takes any."""

    slots: tuple[Slot, ...] = ()
    output: LinearOutput | None = None
    rank: int | None = None
    input: LinearInput | None = None


def _kernel_and_bias(kernel: str = "kernel") -> tuple[Slot, ...]:
    return (Slot(kernel), Slot("bias", "use_bias"))


def _conv(rank: int) -> Facts:
    return Facts(
        _kernel_and_bias(), LinearOutput("kernel", (-1,)), rank, LinearInput("kernel", -2)
    )


def _depthwise(rank: int) -> Facts:
    # Output channel c * depth_multiplier + m comes from kernel[..., c, m].
    return Facts(
        _kernel_and_bias("depthwise_kernel"),
        LinearOutput("depthwise_kernel", (-2, -1)),
        rank,
        LinearInput("depthwise_kernel", -2),
    )


def _separable(rank: int) -> Facts:
    slots = (Slot("depthwise_kernel"), Slot("pointwise_kernel"), Slot("bias", "use_bias"))
    return Facts(
        slots, LinearOutput("pointwise_kernel", (-1,)), rank, LinearInput("depthwise_kernel", -2)
    )


def _transpose(rank: int) -> Facts:
    return Facts(
        _kernel_and_bias(), LinearOutput("kernel", (-2,)), rank, LinearInput("kernel", -1)
    )


def _recurrent() -> Facts:
    slots = (*(Slot(name, group="cell") for name in ("kernel", "recurrent_kernel")),)
    bias = Slot("bias", "use_bias", group="cell")
    return Facts((*slots, bias), None, None, LinearInput("kernel", -2))


_BATCHNORM = Facts(
    (
        Slot("gamma", "scale"),
        Slot("beta", "center"),
        Slot("moving_mean", trainable=False),
        Slot("moving_variance", trainable=False),
    )
)

FACTS: Mapping[str, Facts] = {
    "Dense": Facts(
        _kernel_and_bias(),
        LinearOutput("kernel", (-1,), channels="last"),
        None,
        LinearInput("kernel", -2),
    ),
    "Conv1D": _conv(3),
    "Conv2D": _conv(4),
    "Conv3D": _conv(5),
    "DepthwiseConv1D": _depthwise(3),
    "DepthwiseConv2D": _depthwise(4),
    "SeparableConv1D": _separable(3),
    "SeparableConv2D": _separable(4),
    "Conv1DTranspose": _transpose(3),
    "Conv2DTranspose": _transpose(4),
    "Conv3DTranspose": _transpose(5),
    # The channel axis of an EinsumDense is wherever its equation says: see bnfold.model.einsum.
    "EinsumDense": Facts((Slot("kernel"), Slot("bias", "bias_axes"))),
    "Embedding": Facts(
        (Slot("embeddings"),), LinearOutput("embeddings", (-1,), bias=None, channels="last")
    ),
    **dict.fromkeys(BATCHNORM_CLASSES, _BATCHNORM),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU"), _recurrent()),
}

_FLAG_DEFAULTS = {"use_bias": True, "scale": True, "center": True, "bias_axes": None}

SAME_SHAPE = (
    "Activation", "ActivityRegularization", "AlphaDropout", "Dropout", "ELU", "GaussianDropout",
    "GaussianNoise", "GroupNormalization", "Identity", "LayerNormalization", "LeakyReLU",
    "Masking", "PReLU", "ReLU", "RMSNormalization", "Rescaling", "Softmax", "SpatialDropout1D",
    "SpatialDropout2D", "SpatialDropout3D", "ThresholdedReLU", *sorted(BATCHNORM_CLASSES),
)  # fmt: skip
"""Classes whose output has the shape of their one input."""

RECURRENT = frozenset({"GRU", "LSTM", "SimpleRNN", "CuDNNGRU", "CuDNNLSTM"})

POOLED_RANK: Mapping[str, int] = {
    f"Global{kind}Pooling{n}D": n + 2 for kind in ("Max", "Average") for n in (1, 2, 3)
}
"""The rank of the input of global pooling."""

CONVOLUTIONS = (
    *(f"{kind}{n}D" for kind in ("Conv", "DepthwiseConv", "SeparableConv") for n in (1, 2)),
    *("Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
)

WINDOWED = tuple(
    f"{kind}{n}D"
    for kind in (
        "MaxPooling", "AveragePooling", "AdaptiveMaxPooling", "AdaptiveAveragePooling",
        "ZeroPadding", "UpSampling", "Cropping",
    )
    for n in (1, 2, 3)
)  # fmt: skip
"""Classes that change the spatial axes of their input and leave its channels alone."""

FIXED_RANK: Mapping[str, int] = {
    **{name: int(name[-2]) + 2 for name in WINDOWED},
    **{name: facts.rank for name, facts in FACTS.items() if facts.rank is not None},
}
"""The rank of input and output where the class alone says it."""


def rank_of_output(layer: Layer) -> int | None:
    """The rank that a layer's class gives its output, whatever goes in."""
    return FIXED_RANK.get(layer.class_name)


def facts(layer: Layer) -> Facts | None:
    """The row of a layer's class; None for operations and for classes that are not Keras' own."""
    if not layer.builtin or layer.is_operation:
        return None
    return FACTS.get(layer.class_name)


def setting(layer: Layer, flag: str) -> Any:
    """A layer's setting, with Keras' default where the config leaves it out."""
    return layer.config.get(flag, _FLAG_DEFAULTS.get(flag))


def slots(layer: Layer) -> tuple[Slot, ...] | None:
    """The variables that a layer has by its class and settings; None for an unknown class."""
    if layer.builtin and not layer.is_operation and layer.class_name == "Bidirectional":
        return _slots_of_directions(layer)
    known = facts(layer)
    if known is None:
        return None
    return tuple(s for s in known.slots if s.flag is None or setting(layer, s.flag))


DIRECTIONS: Mapping[str, str] = {"forward": "layer", "backward": "backward_layer"}
"""The two layers of a Bidirectional, and where its config has them."""


def direction(layer: Layer, name: str) -> Layer | None:
    """The recurrent layer for one direction of a Bidirectional; None if it is not Keras' own."""
    entry = layer.config.get(DIRECTIONS[name])
    entry = layer.config.get("layer") if entry is None else entry
    if not isinstance(entry, dict) or not is_keras_class(entry):
        return None
    config = entry.get("config")
    if not isinstance(config, dict) or entry["class_name"] not in ("SimpleRNN", "LSTM", "GRU"):
        return None
    return Layer(name, entry["class_name"], config, entry)


def _slots_of_directions(layer: Layer) -> tuple[Slot, ...] | None:
    found: list[Slot] = []
    for name in DIRECTIONS:
        inside = direction(layer, name)
        known = None if inside is None else slots(inside)
        if known is None:
            return None
        found += [Slot(f"{name}_{s.name}", group=f"{name}_layer/{s.group}") for s in known]
    return tuple(found)


def variable_groups(layer: Layer) -> tuple[str, ...]:
    """The groups, seen from a layer's own, in which a `.keras` file keeps its variables."""
    known = slots(layer) or ()
    return tuple(dict.fromkeys(slot.group for slot in known)) or ("",)


def weights(layer: Layer) -> dict[str, Weight] | None:
    """A layer's variables by the names of their slots.

    None when the class is unknown or the file's variables are not the ones it has (a quantized
    layer has more). The variables of `renorm` come behind those that matter for inference and are
    left out.
    """
    expected = slots(layer)
    if expected is None or layer.weights is None:
        return None
    surplus = len(layer.weights) - len(expected)
    if surplus != 0 and not (surplus > 0 and layer.config.get("renorm")):
        return None
    return {slot.name: weight for slot, weight in zip(expected, layer.weights, strict=False)}


def is_batchnorm(layer: Layer) -> bool:
    """Whether a layer is Keras' own BatchNormalization, of whatever age."""
    return layer.builtin and not layer.is_operation and layer.class_name in BATCHNORM_CLASSES
