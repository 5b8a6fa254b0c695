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

from bnfold.model.graph import Json, Layer, Weight
from bnfold.model.identity import is_keras_layer

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
    """One variable of a class.

    `rank` is how many axes it has, None where a setting decides; `flag` is the setting without
    which it does not exist. `group` is where a `.keras` file keeps it, seen from the layer's group.
    """

    name: str
    rank: int | None
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
class Facts:
    """What one class is. `rank` is that of its input and output, None where it takes any."""

    slots: tuple[Slot, ...] = ()
    output: LinearOutput | None = None
    rank: int | None = None


def _conv(rank: int) -> Facts:
    return Facts(_slots(Slot("kernel", rank)), LinearOutput("kernel", (-1,)), rank)


def _depthwise(rank: int) -> Facts:
    # Output channel c * depth_multiplier + m comes from kernel[..., c, m].
    slots = _slots(Slot("depthwise_kernel", rank))
    return Facts(slots, LinearOutput("depthwise_kernel", (-2, -1)), rank)


def _separable(rank: int) -> Facts:
    slots = _slots(Slot("depthwise_kernel", rank), Slot("pointwise_kernel", rank))
    return Facts(slots, LinearOutput("pointwise_kernel", (-1,)), rank)


def _transpose(rank: int) -> Facts:
    return Facts(_slots(Slot("kernel", rank)), LinearOutput("kernel", (-2,)), rank)


def _slots(*kernels: Slot) -> tuple[Slot, ...]:
    return (*kernels, Slot("bias", 1, "use_bias"))


def _recurrent(bias_rank: int | None = 1) -> Facts:
    kernels = (Slot("kernel", 2, group="cell"), Slot("recurrent_kernel", 2, group="cell"))
    return Facts((*kernels, Slot("bias", bias_rank, "use_bias", group="cell")))


_BATCHNORM = Facts(
    (
        Slot("gamma", 1, "scale"),
        Slot("beta", 1, "center"),
        Slot("moving_mean", 1, trainable=False),
        Slot("moving_variance", 1, trainable=False),
    )
)

FACTS: Mapping[str, Facts] = {
    "Dense": Facts(_slots(Slot("kernel", 2)), LinearOutput("kernel", (-1,), channels="last")),
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
    "EinsumDense": Facts((Slot("kernel", None), Slot("bias", None, "bias_axes"))),
    "Embedding": Facts(
        (Slot("embeddings", 2),), LinearOutput("embeddings", (-1,), bias=None, channels="last")
    ),
    **dict.fromkeys(BATCHNORM_CLASSES, _BATCHNORM),
    **dict.fromkeys(("SimpleRNN", "LSTM"), _recurrent()),
    "GRU": _recurrent(None),  # with reset_after the bias has a second row
}

_FLAG_DEFAULTS = {"use_bias": True, "scale": True, "center": True, "bias_axes": None}

_SAME_RANK = (
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average",
    "BatchNormalization", "Concatenate", "Dense", "Dropout", "ELU", "GaussianDropout",
    "GaussianNoise", "GroupNormalization", "Identity", "LayerNormalization", "LeakyReLU",
    "Masking", "Maximum", "Minimum", "Multiply", "PReLU", "Permute", "ReLU", "Rescaling",
    "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "Subtract",
    "ThresholdedReLU",
)  # fmt: skip

_DROPOUT = frozenset(
    {
        "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "SpatialDropout1D",
        "SpatialDropout2D", "SpatialDropout3D",
    }
)  # fmt: skip

TRAINS_BY_DEFAULT = frozenset(
    {
        "AugMix", "AutoContrast", "CenterCrop", "ContrastLimitedAdaptiveHistogramEqualization",
        "CutMix", "Equalization", "MaxNumBoundingBoxes", "MixUp", "Pipeline", "RandAugment",
        "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast",
        "RandomCrop", "RandomElasticTransform", "RandomErasing", "RandomFlip",
        "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective",
        "RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness",
        "RandomShear", "RandomTranslation", "RandomZoom", "Resizing", "Solarization",
    }
)  # fmt: skip
"""The classes whose `call` has training=True for its default, so that a call need not say it."""

INFERS_BY_DEFAULT = frozenset(
    {
        "AdditiveAttention", "AlphaDropout", "Attention", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
        "Dropout", "FlaxLayer", "GRU", "GRUCell", "GaussianDropout", "GaussianNoise", "JaxLayer",
        "LSTM", "LSTMCell", "RNN", "SimpleRNN", "SimpleRNNCell", "SpatialDropout1D",
        "SpatialDropout2D", "SpatialDropout3D", "SpectralNormalization", "StackedRNNCells",
        "TFSMLayer",
    }
)  # fmt: skip
"""The classes whose `call` has training=False for its default."""

RECURRENT = frozenset({"GRU", "LSTM", "SimpleRNN", "CuDNNGRU", "CuDNNLSTM"})

CASTS_INTEGERS = frozenset({"Bidirectional", "Dense", "EinsumDense"} | RECURRENT)
"""The classes with weights that take integers for numbers; a convolution refuses them."""

MAKES_FLOATS = frozenset(
    {
        *FACTS, "Bidirectional", "GroupNormalization", "LayerNormalization", "MultiHeadAttention",
        "Rescaling",
    }
)  # fmt: skip
"""Classes that make numbers of the dtype that they compute in, whatever they read."""

POOLED_RANK: Mapping[str, int] = {
    f"Global{kind}Pooling{n}D": n + 2 for kind in ("Max", "Average") for n in (1, 2, 3)
}
"""The rank of the input of global pooling."""

CONVOLUTIONS = frozenset(name for name in FACTS if "Conv" in name)

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

MERGING = frozenset({"Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"})
"""Layers that put tensors together number by number."""

_JOINS = (*MERGING, "Concatenate")

SAME_SHAPE = tuple(sorted({*_SAME_RANK} - {*_JOINS, "Dense", "Permute"} | BATCHNORM_CLASSES))
"""Classes whose output has the shape of their one input."""

_MOVES = ("Flatten", "InputLayer", "RepeatVector", "Reshape")

KEEPS_FLOATS = frozenset({*_SAME_RANK, *FIXED_RANK, *POOLED_RANK, *_MOVES})
"""Classes that make floating-point numbers of such; some of them integers of integers."""

WEIGHTLESS = {*_SAME_RANK, *FIXED_RANK, "InputLayer", "Reshape"} - {
    *FACTS,
    "GroupNormalization",
    "LayerNormalization",
    "PReLU",
}
"""The classes without a variable that inference reads; a Dropout keeps the state of its seed."""

UNTRAINED = frozenset(
    {
        *WEIGHTLESS, *POOLED_RANK, *_MOVES, *TRAINS_BY_DEFAULT, "CategoryEncoding",
        "Discretization", "Dot", "HashedCrossing", "Hashing", "IntegerLookup", "MelSpectrogram",
        "Normalization", "RandomHeight", "RandomWidth", "STFTSpectrogram", "StringLookup",
        "TextVectorization", "UnitNormalization",
    }
) - {"Pipeline"}  # fmt: skip
"""The classes without a variable that training changes; a Pipeline may hold any others."""

SAME_IN_TRAINING = (
    {*FACTS, *_SAME_RANK, *FIXED_RANK, *POOLED_RANK, *_MOVES}
    - BATCHNORM_CLASSES
    - _DROPOUT
    - RECURRENT
)
"""The classes that compute the same in training mode."""

DROPS_MASK = CONVOLUTIONS
"""The classes that take no mask and behind which there is none."""

_READS_MASK = {"Masking", "Maximum", "Minimum", "Multiply", "Softmax"}

MASK_BLIND = {*_SAME_RANK, *DROPS_MASK} - _READS_MASK
"""The classes that compute the same with and without an implicit mask; most hand it on.

Since Keras 3.1 Maximum, Minimum and Multiply put out the other tensor alone where a mask is false;
Add, Average, Subtract and Concatenate read masks only to hand them on (Keras 2 and 3.15).
"""

_MASKING_PARTS = ("layer", "layers", "backward_layer", "cell", "cells")


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
    if not isinstance(entry, dict) or not is_keras_layer(entry):
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
        found += [Slot(f"{name}_{s.name}", s.rank, group=f"{name}_layer/{s.group}") for s in known]
    return tuple(found)


def variable_groups(layer: Layer) -> tuple[str, ...]:
    """The groups, seen from a layer's own, in which a `.keras` file keeps its variables."""
    known = slots(layer) or ()
    return tuple(dict.fromkeys(slot.group for slot in known)) or ("",)


def weights(layer: Layer, *, any_rank: bool = False) -> dict[str, Weight] | None:
    """A layer's variables by the names of their slots.

    None when the class is unknown or the file's variables are not the ones it has (a quantized
    layer has more). The variables of `renorm` come behind those that matter for inference and are
    left out. With `any_rank` they may have other numbers of axes than their slots.
    """
    expected = slots(layer)
    if expected is None or layer.weights is None:
        return None
    surplus = len(layer.weights) - len(expected)
    if surplus != 0 and not (surplus > 0 and layer.config.get("renorm")):
        return None
    pairs = list(zip(expected, layer.weights, strict=False))
    if not any_rank and any(s.rank not in (None, len(weight.shape)) for s, weight in pairs):
        return None
    if any(weight.dtype.kind != "f" and weight.dtype.name != "bfloat16" for _, weight in pairs):
        return None
    return {slot.name: weight for slot, weight in pairs}


def drops_mask(layer: Layer) -> bool:
    """Whether there is no mask behind a layer or operation, whatever it reads.

    A Cast to the dtype that a tensor has already is that tensor, with its mask.
    """
    if layer.is_operation:
        return layer.class_name != "Cast"
    return layer.builtin and layer.class_name in DROPS_MASK


def may_make_mask(layer: Layer) -> bool:
    """Whether there may be a mask behind a layer that reads none, by what its entry holds.

    What a class of somebody's own does is unknown, and so is a function in a Lambda.
    """
    return _may_make_mask(layer.entry, layer.config) if layer.builtin else True


def _may_make_mask(entry: Json, config: Any) -> bool:
    if entry.get("class_name") in ("Masking", "Lambda"):
        return True
    if not isinstance(config, dict):
        return False
    if config.get("mask_zero"):
        return True
    parts = [config.get(name) for name in _MASKING_PARTS]
    inside = [one for part in parts for one in (part if isinstance(part, list) else [part])]
    return any(
        not is_keras_layer(one) or _may_make_mask(one, one.get("config"))
        for one in inside
        if isinstance(one, dict)
    )


def is_input(layer: Layer) -> bool:
    """Whether a layer is Keras' own InputLayer, which only hands on what its model is given."""
    return layer.builtin and layer.class_name == "InputLayer"


def is_batchnorm(layer: Layer) -> bool:
    """Whether a layer is Keras' own BatchNormalization, of whatever age."""
    return layer.builtin and not layer.is_operation and layer.class_name in BATCHNORM_CLASSES
