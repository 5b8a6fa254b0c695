"""What bnfold knows of Keras' own layers: one row a class, one answer a question.

A question that a row leaves open has the safe answer, and so has every question about a class
without a row: such a layer is copied as it is, and it blocks every fold.
`tests/model/test_layers.py` compares the rows with Keras.

Weight slots stand in the order in which the class creates its variables, which is the order in
every file. Kernel layouts are those of the Keras documentation, with `in` and `out` for channels:

    Dense (in, out); Conv (*kernel, in / groups, out); DepthwiseConv (*kernel, in,
    depth_multiplier); ConvTranspose (*kernel, out, in); Embedding (vocabulary, out)

How a scale and a shift cross a layer stands in `bnfold.folding`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from bnfold.model import shape_rules
from bnfold.model.einsum import parse_equation
from bnfold.model.graph import Layer, Weight, once
from bnfold.model.identity import is_keras_layer
from bnfold.model.shape_rules import Shape, ShapeRule

# --- the questions -------------------------------------------------------------------------------


class Slot(NamedTuple):
    """One variable of a class.

    `rank` is how many axes it has, None where a setting decides; `flag` is the setting without
    which it does not exist. `group` is where a `.keras` file keeps it, seen from the layer's group.
    """

    name: str
    rank: int | None
    flag: str | None = None
    trainable: bool = True
    group: str = ""


class LinearOutput(NamedTuple):
    """How a class's output depends on its weights: linearly, channel by channel.

    `kernel` is the slot whose axes `axes` make up the output channels, the slowest first; the
    output is linear in it, and `bias` is added to it. Where a setting decides, `axes` is ().
    """

    kernel: str
    axes: tuple[int, ...]
    bias: str | None = "bias"


ChannelRule = Callable[[Layer], int | None]
"""On which axis of its output, counted from the end, a layer makes channels, by its settings."""


class Facts(NamedTuple):
    """What is known of one class.

    A field without an answer has the safe one, but for `training_default`: if any unknown layer
    might put all layers after it in training mode, nothing after a custom layer would fold.

    Attributes:
        variables: Those that inference reads, in the order of a file; () for none, although a
            Dropout keeps the state of its seed. None: they are not known.
        trained: Whether training may change a variable.
        output: How the output is linear in the weights. None: not known to be.
        rank: The rank of the input, and of the output but for global pooling. None: any.
        shape: How the shape of the output follows from those of the inputs. None: not known.
        channels: Which axis of the output has the channels: one that the layer makes, or "kept",
            that of its inputs. None: not known, as where axes may be moved.
        training: What is different in training mode: nothing ("same"), or it "drops" numbers and
            scales the others up. None: something else, or not known.
        training_default: The default of the argument `training` of `call`, for calls that do not
            say it. None: it has none.
        propagates_default: Whether Keras 3.16 propagates that default too, because `call` passes it
            to layers inside as an argument.
        mask: What an implicit mask does to it. "passes": nothing, it goes on with the output;
            "drops": nothing, and it ends there; "reads": the numbers may depend on it; "makes": a
            mask may begin there. None: all of that is possible.
        dtype: "made": the dtype that it computes in, whatever it is given; "floats": that one, if
            it is given floating-point numbers. None: not known.
        casts_integers: Whether it has weights and takes integers for numbers; a convolution refuses
            them.
        at_inference: "nothing" happens to the numbers; it "moves" them, or puts zeros beside them;
            it "normalizes" them. None: it computes something else.
        gain: The settings, by their names in Keras 2 and 3, of which the largest, or 1, says by how
            much a difference in one input can grow in the output. None: it may grow more.
    """

    variables: tuple[Slot, ...] | None = None
    trained: bool = True
    output: LinearOutput | None = None
    rank: int | None = None
    shape: ShapeRule | None = None
    channels: ChannelRule | Literal["kept"] | None = None
    training: Literal["same", "drops"] | None = None
    training_default: bool | None = None
    propagates_default: bool = False
    mask: Literal["passes", "drops", "reads", "makes"] | None = None
    dtype: Literal["made", "floats"] | None = None
    casts_integers: bool = False
    at_inference: Literal["nothing", "moves", "normalizes"] | None = None
    gain: tuple[str, ...] | None = None


UNKNOWN = Facts()
"""What is known of a class without a row."""

# --- families ------------------------------------------------------------------------------------


def _row(names: str, row: Facts) -> dict[str, Facts]:
    """The same row for several classes."""
    return dict.fromkeys(names.split(), row)


def _by_rank(names: str, row: Callable[[int], Facts], dimensions: str = "123") -> dict[str, Facts]:
    """Classes of one, two and three spatial dimensions, whose tensors have two axes more."""
    return {f"{name}{n}D": row(int(n) + 2) for name in names.split() for n in dimensions}


def _last(layer: Layer) -> int | None:
    return -1


def _first_at(axis: int) -> ChannelRule:
    """The last axis, or this one with data_format="channels_first"."""
    return lambda layer: axis if layer.config.get("data_format") == "channels_first" else -1


def _by_equation(layer: Layer) -> int | None:
    equation = parse_equation(layer.config.get("equation"))
    return None if equation is None or equation.channels is None else -1


def _with_bias(*kernels: Slot) -> tuple[Slot, ...]:
    return (*kernels, Slot("bias", 1, "use_bias"))


# Layers with weights that make floating-point numbers of what they read.
_WEIGHTED = Facts(training="same", mask="reads", dtype="made")


def _convolution(
    rank: int,
    *kernels: str,
    axes: tuple[int, ...] = (-1,),
    size: shape_rules.Size = shape_rules.slid,
) -> Facts:
    return _WEIGHTED._replace(
        variables=_with_bias(*(Slot(kernel, rank) for kernel in kernels)),
        output=LinearOutput(kernels[-1], axes),
        rank=rank,
        shape=shape_rules.in_space(rank, size, makes_channels=True),
        channels=_first_at(1 - rank),
        mask="drops",
    )


def _plain(rank: int) -> Facts:
    return _convolution(rank, "kernel")


def _depthwise(rank: int) -> Facts:
    # Output channel c * depth_multiplier + m comes from kernel[..., c, m].
    return _convolution(rank, "depthwise_kernel", axes=(-2, -1))


def _separable(rank: int) -> Facts:
    return _convolution(rank, "depthwise_kernel", "pointwise_kernel")


def _transposed(rank: int) -> Facts:
    return _convolution(rank, "kernel", axes=(-2,), size=shape_rules.unknown)


def _recurrent(bias_rank: int | None = 1) -> Facts:
    kernels = (Slot("kernel", 2, group="cell"), Slot("recurrent_kernel", 2, group="cell"))
    return _CUDNN._replace(
        variables=(*kernels, Slot("bias", bias_rank, "use_bias", group="cell")),
        training_default=False,
        dtype="made",
    )


_CUDNN = Facts(shape=shape_rules.recurrent, channels=_last, mask="reads", casts_integers=True)


def _recurrent_convolution(space: int) -> Facts:
    return Facts(
        shape=shape_rules.recurrent_convolution(space + 3),
        channels=_first_at(-1 - space),
        mask="reads",
        training_default=False,
    )


def _of_directions(layer: Layer, inputs: Sequence[Shape | None], output: int) -> Shape | None:
    """What one direction makes, or both side by side, and then the states of both."""
    inside, merge = direction(layer, "forward"), layer.config.get("merge_mode", "concat")
    if inside is None:
        return None
    is_state = output >= (2 if merge is None else 1)
    found = shape_rules.recurrent(inside, inputs, int(is_state))
    if is_state or merge != "concat" or found is None or found[-1] is None:
        return found
    return (*found[:-1], 2 * found[-1])


_BATCHNORM = Facts(
    variables=(
        Slot("gamma", 1, "scale"),
        Slot("beta", 1, "center"),
        Slot("moving_mean", 1, trainable=False),
        Slot("moving_variance", 1, trainable=False),
    ),
    shape=shape_rules.same,
    channels="kept",
    mask="passes",
    dtype="made",
    at_inference="normalizes",
)

# Layers without variables.
_WEIGHTLESS = Facts(variables=(), trained=False, mask="reads")
_KEEPS_FLOATS = _WEIGHTLESS._replace(training="same", dtype="floats")
_POINTWISE = _KEEPS_FLOATS._replace(shape=shape_rules.same, channels="kept", mask="passes")
_IDENTITY = _POINTWISE._replace(at_inference="nothing", gain=())
_NOISE = _IDENTITY._replace(training=None, training_default=False)
_DROPOUT = _NOISE._replace(training="drops")
_MERGE = _KEEPS_FLOATS._replace(
    shape=shape_rules.broadcast, channels="kept", mask="passes", gain=()
)
_MOVES = _KEEPS_FLOATS._replace(at_inference="moves", gain=())


def _in_space(size: shape_rules.Size) -> Callable[[int], Facts]:
    """Layers that change the spatial axes of their input and leave its channels alone."""

    def row(rank: int) -> Facts:
        rule = shape_rules.in_space(rank, size)
        return _KEEPS_FLOATS._replace(rank=rank, shape=rule, channels="kept", gain=())

    return row


def _at_edges(size: shape_rules.Size) -> Callable[[int], Facts]:
    return lambda rank: _in_space(size)(rank)._replace(at_inference="moves")


def _global_pooling(rank: int) -> Facts:
    return _KEEPS_FLOATS._replace(rank=rank, shape=shape_rules.without_space(rank), gain=())


_AUGMENTATION = _WEIGHTLESS._replace(training_default=True)
_OPAQUE = Facts(mask="reads")
_UNTRAINED = _OPAQUE._replace(trained=False)
_ATTENTION = _OPAQUE._replace(shape=shape_rules.same_rank)
_INFERS = _OPAQUE._replace(training_default=False)

# --- the rows ------------------------------------------------------------------------------------

ROWS: Mapping[str, Facts] = {
    "InputLayer": _KEEPS_FLOATS,
    # Linear in their weights.
    "Dense": _WEIGHTED._replace(
        variables=_with_bias(Slot("kernel", 2)),
        output=LinearOutput("kernel", (-1,)),
        shape=shape_rules.dense,
        channels=_last,
        mask="passes",
        casts_integers=True,
    ),
    **_by_rank("Conv", _plain),
    **_by_rank("DepthwiseConv", _depthwise, "12"),
    **_by_rank("SeparableConv", _separable, "12"),
    **{f"Conv{n}DTranspose": _transposed(n + 2) for n in (1, 2, 3)},
    "EinsumDense": _WEIGHTED._replace(
        variables=(Slot("kernel", None), Slot("bias", None, "bias_axes")),
        output=LinearOutput("kernel", ()),
        shape=shape_rules.einsum,
        channels=_by_equation,
        casts_integers=True,
    ),
    "Embedding": _WEIGHTED._replace(
        variables=(Slot("embeddings", 2),),
        output=LinearOutput("embeddings", (-1,), bias=None),
        shape=shape_rules.embedding,
        channels=_last,
    ),
    # Normalization.
    **_row(
        "BatchNormalization BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization",
        _BATCHNORM,
    ),
    **_row(
        "GroupNormalization LayerNormalization",
        _POINTWISE._replace(variables=None, trained=True, dtype="made", at_inference="normalizes"),
    ),
    "RMSNormalization": _OPAQUE._replace(shape=shape_rules.same, at_inference="normalizes"),
    "UnitNormalization": _UNTRAINED._replace(shape=shape_rules.same, at_inference="normalizes"),
    # Recurrent.
    **_row("SimpleRNN LSTM", _recurrent()),
    "GRU": _recurrent(None),  # with reset_after the bias has a second row
    **_row("CuDNNGRU CuDNNLSTM", _CUDNN),
    "Bidirectional": _OPAQUE._replace(
        shape=_of_directions, channels=_last, dtype="made", casts_integers=True
    ),
    **{f"ConvLSTM{n}D": _recurrent_convolution(n) for n in (1, 2, 3)},
    # Nothing happens at inference.
    **_row("ActivityRegularization Identity", _IDENTITY),
    **_row("Dropout GaussianDropout", _DROPOUT),
    **_by_rank("SpatialDropout", lambda rank: _DROPOUT),
    **_row("AlphaDropout GaussianNoise", _NOISE),
    # Each number by itself.
    **_row("Activation ThresholdedReLU", _POINTWISE),
    "ELU": _POINTWISE._replace(gain=("alpha",)),
    "LeakyReLU": _POINTWISE._replace(gain=("alpha", "negative_slope")),
    "ReLU": _POINTWISE._replace(gain=("negative_slope",)),
    "PReLU": _POINTWISE._replace(variables=None, trained=True),
    "Rescaling": _POINTWISE._replace(dtype="made", gain=("scale",)),
    "Softmax": _POINTWISE._replace(mask="reads", gain=()),
    "Masking": _POINTWISE._replace(mask="makes"),
    # Several tensors. Since Keras 3.1 Maximum, Minimum and Multiply put out the other tensor alone
    # where a mask is false; the others only propagate masks (Keras 2 and 3.15).
    **_row("Add Average Subtract", _MERGE),
    **_row("Maximum Minimum", _MERGE._replace(mask="reads")),
    "Multiply": _MERGE._replace(mask="reads", gain=None),
    "Concatenate": _MERGE._replace(shape=shape_rules.concatenated, at_inference="moves"),
    # Spatial axes.
    **_by_rank("AveragePooling MaxPooling", _in_space(shape_rules.slid)),
    **_by_rank("AdaptiveAveragePooling AdaptiveMaxPooling", _in_space(shape_rules.unknown)),
    **_by_rank("UpSampling", _in_space(shape_rules.stretched)),
    **_by_rank("ZeroPadding", _at_edges(shape_rules.padded)),
    **_by_rank("Cropping", _at_edges(shape_rules.cropped)),
    **_by_rank("GlobalAveragePooling GlobalMaxPooling", _global_pooling),
    **_row(
        "CenterCrop Resizing",
        _AUGMENTATION._replace(shape=shape_rules.same_rank, training="same", gain=()),
    ),
    # Numbers change their places.
    "Flatten": _MOVES._replace(shape=shape_rules.flattened),
    "Permute": _MOVES._replace(shape=shape_rules.permuted, mask="passes"),
    "RepeatVector": _MOVES._replace(shape=shape_rules.repeated),
    "Reshape": _MOVES._replace(shape=shape_rules.reshaped),
    # Augmentation.
    **_row(
        """AugMix AutoContrast ContrastLimitedAdaptiveHistogramEqualization CutMix Equalization
        MaxNumBoundingBoxes MixUp RandAugment RandomBrightness RandomColorDegeneration
        RandomColorJitter RandomContrast RandomCrop RandomElasticTransform RandomErasing RandomFlip
        RandomGaussianBlur RandomGrayscale RandomHue RandomInvert RandomPerspective
        RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
        RandomTranslation RandomZoom Solarization""",
        _AUGMENTATION,
    ),
    "Pipeline": _OPAQUE._replace(  # of any layers
        training_default=True, propagates_default=True
    ),
    # Attention.
    **_row("AdditiveAttention Attention", _ATTENTION._replace(training_default=False)),
    "MultiHeadAttention": _ATTENTION._replace(channels=_last, dtype="made"),
    **_row("GroupQueryAttention GroupedQueryAttention", _ATTENTION._replace(channels=_last)),
    # Of these it is known only what training does to them, and that no mask begins there.
    **_row("CategoryEncoding Dot HashedCrossing Hashing RandomHeight RandomWidth", _WEIGHTLESS),
    **_row(
        """Discretization IntegerLookup MelSpectrogram Normalization STFTSpectrogram StringLookup
        TextVectorization""",
        _UNTRAINED,
    ),
    **_row(
        """FlaxLayer GRUCell JaxLayer LSTMCell RNN SimpleRNNCell SpectralNormalization
        StackedRNNCells TFSMLayer""",
        _INFERS,
    ),
    **_row(
        """ClassMethod DenseFeatures DynamicEmbedding DynamicLookup Functional GRUCellV1 GRUCellV2
        GRUV1 GRUV2 Highway InstanceMethod InstanceProperty LSTMCellV1 LSTMCellV2 LSTMV1 LSTMV2
        LocallyConnected1D LocallyConnected2D MaxoutDense Model Network RandomFourierFeatures
        ReversibleEmbedding Sequential SlicingOpLambda TFOpLambda TensorFlowOpLayer TimeDistributed
        TorchModuleWrapper""",
        _OPAQUE,
    ),
    "Lambda": UNKNOWN,  # a function of somebody's, which may even make a mask
}
"""Keras' own layers, of every version that `bnfold.model.identity` knows."""

_STILL = Facts(gain=())  # an operation that makes no difference larger
_KEEPS_AXES = Facts(channels="kept", gain=())
_MOVES_NUMBERS = Facts(at_inference="moves", gain=())

OPERATIONS: Mapping[str, Facts] = {
    **_row("Copy StopGradient", Facts(at_inference="nothing", gain=())),
    **_row("Add Maximum Minimum Relu Relu6 Subtract", _KEEPS_AXES),
    **_row("Multiply Softmax", Facts(channels="kept")),
    "Concatenate": Facts(channels="kept", at_inference="moves", gain=()),
    **_row("ExpandDims Reshape Squeeze Transpose", _MOVES_NUMBERS),
    **_row(
        """Amax Amin AveragePool Flip GetItem Max MaxPool Mean Min Moveaxis Pad Repeat Roll Sigmoid
        Swapaxes Tanh""",
        _STILL,
    ),
}
"""The same of the operations of keras.ops, by the class names that Keras writes.

None has variables, computes otherwise in training, or takes a mask: no row need say so.
"""

BATCHNORM_CLASSES = frozenset(name for name, row in ROWS.items() if row is _BATCHNORM)
"""BatchNormalization, of whatever age: TensorFlow 1.13 to 1.15 wrote V1 and V2."""

LINEAR_CLASSES = frozenset(name for name, row in ROWS.items() if row.output is not None)
"""Layers whose output is linear in their weights, unless they have an activation."""

_FLAG_DEFAULTS = {"use_bias": True, "scale": True, "center": True, "bias_axes": None}

_MASKING_PARTS = ("layer", "layers", "backward_layer", "cell", "cells")

# --- what is asked -------------------------------------------------------------------------------


def facts(layer: Layer) -> Facts:
    """The row of a layer's or operation's class; `UNKNOWN` for classes that are not Keras' own."""
    if not layer.builtin:
        return UNKNOWN
    return (OPERATIONS if layer.is_operation else ROWS).get(layer.class_name, UNKNOWN)


def channel_axis(layer: Layer) -> int | None:
    """The axis of a layer's output, counted from the end, on which it makes its channels.

    None where it makes none, or where that is not known.
    """
    channels = facts(layer).channels
    return channels(layer) if callable(channels) else None


def setting(layer: Layer, flag: str) -> Any:
    """A layer's setting, with Keras' default where the config leaves it out."""
    return layer.config.get(flag, _FLAG_DEFAULTS.get(flag))


@once
def slots(layer: Layer) -> tuple[Slot, ...] | None:
    """The variables that a layer has by its class and settings; None for an unknown class."""
    if layer.builtin and not layer.is_operation and layer.class_name == "Bidirectional":
        return _slots_of_directions(layer)
    known = facts(layer).variables
    if known is None:
        return None
    return tuple(s for s in known if s.flag is None or setting(layer, s.flag))


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
    """A layer's variables by the names of their slots; whoever asks must not change the answer.

    None when the class is unknown or the file's variables are not the ones it has (a quantized
    layer has more). The variables of `renorm` come after those that matter for inference and are
    left out. With `any_rank` they may have other numbers of axes than their slots.
    """
    return _weights_of_any_rank(layer) if any_rank else _weights(layer)


@once
def _weights_of_any_rank(layer: Layer) -> dict[str, Weight] | None:
    expected = slots(layer)
    if expected is None or layer.weights is None:
        return None
    surplus = len(layer.weights) - len(expected)
    if surplus != 0 and not (surplus > 0 and layer.config.get("renorm")):
        return None
    pairs = list(zip(expected, layer.weights, strict=False))
    if any(weight.dtype.kind != "f" and weight.dtype.name != "bfloat16" for _, weight in pairs):
        return None
    return {slot.name: weight for slot, weight in pairs}


@once
def _weights(layer: Layer) -> dict[str, Weight] | None:
    found = _weights_of_any_rank(layer)
    ranks = {slot.name: slot.rank for slot in slots(layer) or ()}
    if found is None or any(
        ranks[name] not in (None, len(weight.shape)) for name, weight in found.items()
    ):
        return None
    return found


def drops_mask(layer: Layer) -> bool:
    """Whether the output of a layer or operation has no mask, whatever its inputs have.

    A Cast to the dtype that a tensor has already is that tensor, with its mask.
    """
    if layer.is_operation:
        return layer.class_name != "Cast"
    return facts(layer).mask == "drops"


def may_make_mask(layer: Layer) -> bool:
    """Whether a layer may add a mask to its output, by its class and what its entry holds."""
    if not layer.builtin or layer.is_operation:
        return not layer.builtin
    return _may_make_mask(layer.class_name, layer.config)


def _may_make_mask(class_name: object, config: Any) -> bool:
    if ROWS.get(str(class_name), UNKNOWN).mask in (None, "makes"):
        return True
    if not isinstance(config, dict):
        return False
    if config.get("mask_zero"):
        return True
    parts = [config.get(name) for name in _MASKING_PARTS]
    inside = [one for part in parts for one in (part if isinstance(part, list) else [part])]
    return any(
        not is_keras_layer(one) or _may_make_mask(one.get("class_name"), one.get("config"))
        for one in inside
        if isinstance(one, dict)
    )


def is_input(layer: Layer) -> bool:
    """Whether a layer is Keras' own InputLayer, which passes on what its model is given."""
    return layer.builtin and layer.class_name == "InputLayer"


def is_batchnorm(layer: Layer) -> bool:
    """Whether a layer is Keras' own BatchNormalization, of whatever age."""
    return layer.builtin and not layer.is_operation and layer.class_name in BATCHNORM_CLASSES
