"""Carry and absorb, forward and backward, proved on real models: a row for every rule.

A row is a model. Plain Keras loads what the fold made of it, and it computes the same; in float64
wherever TensorFlow has kernels, so that an error has nowhere to hide.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import BOTH, KERAS, LEGACY, chain, examine, keras, randomize, samples
from tiers import by_turns, some

L = keras.layers
BN = L.BatchNormalization
TD = L.TimeDistributed
ops = keras.ops
Build = Callable[[], Any]

pytestmark = pytest.mark.usefixtures("double")


def inner(*layers: Any, shape: tuple[int | None, ...] = (4,), name: str = "inner") -> Any:
    """A model to be nested."""
    first = tensor = keras.Input(shape)
    for layer in layers:
        tensor = layer(tensor)
    return keras.Model(first, tensor, name=name)


def tamed(model: Any, *, positive: bool = False, shift: bool = True) -> Any:
    """A random model whose BatchNormalizations have positive scales, or no shift."""
    randomize(model)
    for layer in model._flatten_layers():
        if isinstance(layer, BN):
            if positive and layer.gamma is not None:
                layer.gamma.assign(abs(layer.gamma) + 0.1)
            if not shift:
                layer.beta.assign(layer.beta * 0)
                layer.moving_mean.assign(layer.moving_mean * 0)
    return model


# --- through each row of the table, backward and forward -----------------------------------------
# What the row is, the shape that it reads, and whether it needs positive scales or no shift.

IMAGE, SERIES, VOLUME = (6, 8, 3), (8, 3), (4, 4, 4, 2)
NONE = ""
OPERATIONS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], str]] = {
    "mean": (lambda x: ops.mean(x, axis=(1, 2)), IMAGE, NONE),
    "mean-keepdims": (lambda x: ops.mean(x, axis=[-2], keepdims=True), IMAGE, NONE),
    "max": (lambda x: ops.max(x, axis=(1, 2)), IMAGE, "positive"),
    "amin": (lambda x: ops.amin(x, axis=2, keepdims=True), IMAGE, "positive"),
    "average-pool": (lambda x: ops.average_pool(x, 2, 1, "same"), IMAGE, NONE),
    "max-pool": (lambda x: ops.max_pool(x, 2, 1, "same"), IMAGE, "positive"),
    "transpose": (lambda x: ops.transpose(x, (0, 3, 1, 2)), IMAGE, NONE),
    "reshape": (lambda x: ops.reshape(x, (-1, 4, 6)), SERIES, NONE),
    "expand-dims": (lambda x: ops.expand_dims(x, -1), SERIES, NONE),
    "squeeze": (lambda x: ops.squeeze(ops.expand_dims(x, 1), 1), SERIES, NONE),
    "leaky-relu": (lambda x: ops.leaky_relu(x, 0.1), SERIES, "positive, no shift"),
    "stop-gradient": (ops.stop_gradient, SERIES, NONE),
    "copy": (ops.copy, SERIES, NONE),
}
ROWS: dict[str, tuple[Build, tuple[int, ...], str]] = {
    "identity": (L.Identity, SERIES, NONE),
    "activity-regularization": (lambda: L.ActivityRegularization(0.1), SERIES, NONE),
    "dropout": (lambda: L.Dropout(0.5), SERIES, NONE),
    "alpha-dropout": (lambda: L.AlphaDropout(0.5), SERIES, NONE),
    "gaussian-dropout": (lambda: L.GaussianDropout(0.5), SERIES, NONE),
    "gaussian-noise": (lambda: L.GaussianNoise(0.5), SERIES, NONE),
    "spatial-dropout-1d": (lambda: L.SpatialDropout1D(0.5), SERIES, NONE),
    "spatial-dropout-2d": (lambda: L.SpatialDropout2D(0.5), IMAGE, NONE),
    "spatial-dropout-3d": (lambda: L.SpatialDropout3D(0.5), VOLUME, NONE),
    "activation-linear": (lambda: L.Activation("linear"), SERIES, NONE),
    "activation-relu": (lambda: L.Activation("relu"), SERIES, "positive, no shift"),
    "activation-leaky-relu": (lambda: L.Activation("leaky_relu"), SERIES, "positive, no shift"),
    "relu": (L.ReLU, SERIES, "positive, no shift"),
    "relu-slope": (lambda: L.ReLU(negative_slope=0.2), SERIES, "positive, no shift"),
    "leaky-relu": (L.LeakyReLU, SERIES, "positive, no shift"),
    "prelu": (L.PReLU, SERIES, "positive, no shift"),
    "rescaling": (lambda: L.Rescaling(2.5, offset=-0.7), SERIES, NONE),
    "rescaling-negative": (lambda: L.Rescaling(-1 / 3), SERIES, NONE),
    "average-pooling-1d": (lambda: L.AveragePooling1D(3, padding="same"), SERIES, NONE),
    "average-pooling-2d": (lambda: L.AveragePooling2D(2, strides=1), IMAGE, NONE),
    "average-pooling-2d-same": (
        lambda: L.AveragePooling2D(3, strides=2, padding="same"),
        IMAGE,
        NONE,
    ),
    "adaptive-average-pooling-1d": (lambda: L.AdaptiveAveragePooling1D(3), SERIES, NONE),
    "adaptive-average-pooling-2d": (lambda: L.AdaptiveAveragePooling2D(3), IMAGE, NONE),
    "max-pooling-1d": (lambda: L.MaxPooling1D(3, padding="same"), SERIES, "positive"),
    "max-pooling-2d": (lambda: L.MaxPooling2D(3, strides=2, padding="same"), IMAGE, "positive"),
    "adaptive-max-pooling-2d": (lambda: L.AdaptiveMaxPooling2D(2), IMAGE, "positive"),
    "global-average-1d": (L.GlobalAveragePooling1D, SERIES, NONE),
    "global-average-2d-keepdims": (lambda: L.GlobalAveragePooling2D(keepdims=True), IMAGE, NONE),
    "global-average-3d": (L.GlobalAveragePooling3D, VOLUME, NONE),
    "global-max-1d-keepdims": (lambda: L.GlobalMaxPooling1D(keepdims=True), SERIES, "positive"),
    "global-max-2d": (L.GlobalMaxPooling2D, IMAGE, "positive"),
    "up-sampling-1d": (lambda: L.UpSampling1D(2), SERIES, NONE),
    "up-sampling-2d": (lambda: L.UpSampling2D((2, 1)), IMAGE, NONE),
    "up-sampling-3d": (lambda: L.UpSampling3D(2), VOLUME, NONE),
    "cropping-1d": (lambda: L.Cropping1D((1, 2)), SERIES, NONE),
    "cropping-2d": (lambda: L.Cropping2D(((1, 0), (2, 1))), IMAGE, NONE),
    "cropping-3d": (lambda: L.Cropping3D(1), VOLUME, NONE),
    "center-crop": (lambda: L.CenterCrop(3, 4), IMAGE, NONE),
    "resizing-nearest": (lambda: L.Resizing(3, 5, interpolation="nearest"), IMAGE, NONE),
    "zero-padding-1d": (lambda: L.ZeroPadding1D(2), SERIES, "no shift"),
    "zero-padding-2d": (lambda: L.ZeroPadding2D(((1, 0), (2, 1))), IMAGE, "no shift"),
    "zero-padding-3d": (lambda: L.ZeroPadding3D(1), VOLUME, "no shift"),
    "permute": (lambda: L.Permute((3, 1, 2)), IMAGE, NONE),
    "repeat-vector": (lambda: L.RepeatVector(3), (5,), NONE),
    "reshape": (lambda: L.Reshape((4, 6)), SERIES, NONE),
    "reshape-minus-one": (lambda: L.Reshape((-1, 3)), IMAGE, NONE),
    "flatten": (L.Flatten, IMAGE, NONE),
    "flatten-channels-first": (lambda: L.Flatten(data_format="channels_first"), IMAGE, NONE),
    **{
        f"ops-{name}": (lambda operation=operation: operation, shape, needs)
        for name, (operation, shape, needs) in OPERATIONS.items()
    },
    "wrapped": (lambda: TD(L.Dropout(0.3)), SERIES, NONE),
    "wrapped-pooling": (lambda: TD(L.AveragePooling1D(2)), IMAGE, NONE),
    "wrapped-flatten": (lambda: TD(L.Flatten()), IMAGE, NONE),
}
SINGLE = {
    "average-pooling-3d": (lambda: L.AveragePooling3D(2), VOLUME, NONE),
    "max-pooling-3d": (lambda: L.MaxPooling3D(2), VOLUME, "positive"),
    "up-sampling-2d-bilinear": (
        lambda: L.UpSampling2D(2, interpolation="bilinear"),
        IMAGE,
        NONE,
    ),
    "up-sampling-2d-bicubic": (lambda: L.UpSampling2D(2, interpolation="bicubic"), IMAGE, NONE),
    "resizing": (lambda: L.Resizing(4, 3), IMAGE, NONE),
    "resizing-crop": (lambda: L.Resizing(4, 3, crop_to_aspect_ratio=True), IMAGE, NONE),
    "adaptive-average-pooling-3d": (lambda: L.AdaptiveAveragePooling3D(2), VOLUME, NONE),
}


def taming(needs: str) -> dict[str, bool]:
    return {"positive": "positive" in needs, "shift": "no shift" not in needs}


def dense_behind(tensor: Any) -> Any:
    """A layer with a weight for every number behind the first axis, whatever its rank."""
    letters = "bcdef"[: len(tensor.shape) - 1]
    shape = tuple(int(size) for size in tensor.shape[1:])
    layer = L.EinsumDense(f"a{letters},{letters}z->az", (4,), bias_axes="z")
    assert len(shape) == len(letters)
    return layer(tensor)


def before(row: Build, shape: tuple[int, ...]) -> Any:
    """BN, the row, and a layer that takes any map in."""
    first = keras.Input(shape)
    return keras.Model(first, dense_behind(row()(BN(name="bn")(first))))


def wide(shape: tuple[int, ...]) -> Any:
    """A layer with a weight for every number that it makes, so that it takes any map in."""
    letters = "bcdef"[: len(shape)]
    return L.EinsumDense(f"az,z{letters}->a{letters}", shape, bias_axes=letters)


def behind(row: Build, shape: tuple[int, ...]) -> Any:
    """A layer that takes any map in, the row, and BN."""
    return chain((5,), wide(shape), row(), BN(name="bn"))


def forms_of(name: str) -> Sequence[str]:
    """Legacy files hold no operations."""
    return LEGACY if len(name) % 3 == 0 and not name.startswith("ops-") else KERAS


# By default a layer is crossed in one direction: the rows of the layers are shared by both.
@pytest.mark.parametrize("name", some([*ROWS, *SINGLE]))
def test_a_map_crosses_forward(name: str, tmp_path: Path) -> None:
    if name in SINGLE:
        keras.config.set_floatx("float32")
    row, shape, needs = {**ROWS, **SINGLE}[name]
    model = tamed(before(row, shape), **taming(needs))
    plan = examine(model, tmp_path, forms=forms_of(name))
    assert plan.folds[0].direction == "forward"


HANDS_TRAINING_ON = ("resizing-nearest", "resizing", "resizing-crop", "center-crop")
"""Layers that Keras 3 calls with training=True, so that a BN behind them has no fixed map."""


@pytest.mark.parametrize(
    "name",
    [one for one in some([*ROWS, *SINGLE], first=1) if one.values[0] not in HANDS_TRAINING_ON],
)
def test_a_map_crosses_backward(name: str, tmp_path: Path) -> None:
    if name in SINGLE:
        keras.config.set_floatx("float32")
    row, shape, needs = {**ROWS, **SINGLE}[name]
    model = tamed(behind(row, shape), **taming(needs))
    plan = examine(model, tmp_path, forms=forms_of(name))
    assert plan.folds[0].direction == "backward"


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n][2]])
def test_a_map_that_does_not_meet_the_condition_stays(name: str, tmp_path: Path) -> None:
    row, shape, _ = ROWS[name]
    for build in by_turns((before, behind)):
        folder = tmp_path / build.__name__
        folder.mkdir()
        examine(randomize(build(row, shape)), folder, left=["bn"], reason="channels", forms=KERAS)


OPAQUE_OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "times-zero": lambda x: x * 0.0,
    "times-vector": lambda x: x * np.array([0.5, -2.0, 3.0]),
    "flip": lambda x: ops.flip(x, axis=1),
    "larger": lambda x: ops.mean(x, axis=1, keepdims=True) * np.arange(1.0, 9).reshape(8, 1),
    "number-over": lambda x: 2.0 / x,
    "max-initial": lambda x: ops.max(x, axis=1, initial=0.5),
    "slice-channels": lambda x: x[..., :2],
    "index": lambda x: x[:, 2],
    "clip": lambda x: ops.clip(x, -1.0, 1.0),
    "maximum-number": lambda x: ops.maximum(x, 0.1),
}


@pytest.mark.parametrize("name", OPAQUE_OPERATIONS)
def test_a_map_does_not_cross_other_operations(name: str, tmp_path: Path) -> None:
    operation = OPAQUE_OPERATIONS[name]
    for build in by_turns((before, behind)):
        folder = tmp_path / build.__name__
        folder.mkdir()
        model = tamed(build(lambda: operation, SERIES), positive=True, shift=False)
        examine(model, folder, left=["bn"], forms=KERAS)


def test_a_map_of_channels_does_not_cross_their_mean_forward(tmp_path: Path) -> None:
    model = before(lambda: lambda x: ops.mean(x, axis=-1), SERIES)
    examine(randomize(model), tmp_path, left=["bn"], reason="along its axis", forms=KERAS)


def test_sizes_that_keras_notes_in_reverse_are_not_relied_on(tmp_path: Path) -> None:
    # Keras notes (4, 5) for the image behind an ellipsis; the convolution seems to pad nothing.
    model = chain(
        (5, 4, 3),
        L.EinsumDense("...c,cd->...d", (4,), activation="relu"),
        BN(name="bn"),
        L.Conv2D(4, (2, 1), strides=(2, 1), padding="same"),
    )
    examine(randomize(model), tmp_path, left=["bn"], reason="pads with zeros")


# --- layers that join ----------------------------------------------------------------------------


def split(join: Callable[[list[Any]], Any], *, last: int = 4, count: int = 2) -> Build:
    """Dense layers, the join, BN."""

    def build() -> Any:
        first = keras.Input((3, 5))
        parts = [L.Dense(4 if n == 0 else last, use_bias=n != 1)(first) for n in range(count)]
        return keras.Model(first, BN(name="bn")(join(parts)))

    return build


def joined(join: Callable[[list[Any]], Any], **options: Any) -> Build:
    """BN beside something else, the join, Dense."""

    def build() -> Any:
        first, second = keras.Input((3, 4)), keras.Input((3, options.get("second", 4)))
        return keras.Model([first, second], L.Dense(2)(join([BN(name="bn")(first), second])))

    return build


JOIN_BACKWARD: dict[str, tuple[Build, str]] = {
    "add": (split(lambda p: L.Add()(p)), NONE),
    "add-three": (split(lambda p: L.Add()(p), count=3), NONE),
    "subtract": (split(lambda p: L.Subtract()(p)), NONE),
    "average": (split(lambda p: L.Average()(p), count=3), NONE),
    "maximum": (split(lambda p: L.Maximum()(p)), "positive"),
    "minimum": (split(lambda p: L.Minimum()(p)), "positive"),
    "multiply": (split(lambda p: L.Multiply()(p)), "no shift"),
    "concatenate": (split(lambda p: L.Concatenate()(p), last=2), NONE),
    "concatenate-other-axis": (split(lambda p: L.Concatenate(axis=1)(p)), NONE),
    "ops-add": (split(lambda p: p[0] + p[1]), NONE),
    "ops-subtract": (split(lambda p: p[0] - p[1]), NONE),
    "ops-multiply": (split(lambda p: p[0] * p[1]), "no shift"),
    "ops-maximum": (split(lambda p: ops.maximum(*p)), "positive"),
    "ops-minimum": (split(lambda p: ops.minimum(*p)), "positive"),
    "ops-concatenate": (split(lambda p: ops.concatenate(p, axis=-1), last=3), NONE),
    "ops-relu": (split(lambda p: ops.relu(p[0]) - p[1]), "positive, no shift"),
    "numbers": (split(lambda p: 3 - (p[0] * 2 + 1.5 - p[1]) / 4), NONE),
    "negative": (split(lambda p: -p[0] + p[1] * 0.5), NONE),
}


@pytest.mark.parametrize("name", JOIN_BACKWARD)
def test_a_map_crosses_a_join_backward(name: str, tmp_path: Path) -> None:
    build, needs = JOIN_BACKWARD[name]
    forms = KERAS if "ops" in name or name in ("numbers", "negative") else forms_of(name)
    examine(tamed(build(), **taming(needs)), tmp_path, forms=forms)


JOIN_FORWARD: dict[str, tuple[Build, str]] = {
    "concatenate": (joined(lambda p: L.Concatenate()(p), second=2), NONE),
    "ops-concatenate": (joined(lambda p: ops.concatenate([p[1], p[0]], axis=-1)), NONE),
    "multiply": (joined(lambda p: L.Multiply()(p)), "no shift"),
    "ops-numbers": (joined(lambda p: L.Concatenate()([2 * p[0] - 1, p[1]])), NONE),
}


@pytest.mark.parametrize("name", JOIN_FORWARD)
def test_a_map_crosses_a_join_forward(name: str, tmp_path: Path) -> None:
    build, needs = JOIN_FORWARD[name]
    examine(tamed(build(), **taming(needs)), tmp_path, forms=KERAS)


def siamese(join: Callable[[list[Any]], Any]) -> Build:
    """One BN on both branches: the same map in both."""

    def build() -> Any:
        first, second, shared = keras.Input((3, 4)), keras.Input((3, 4)), BN(name="bn")
        return keras.Model([first, second], L.Dense(2)(join([shared(first), shared(second)])))

    return build


@pytest.mark.parametrize("join", ["Add", "Subtract", "Average", "Concatenate", "Maximum"])
def test_one_map_on_all_branches_crosses_forward(join: str, tmp_path: Path) -> None:
    model = siamese(getattr(L, join)())()
    examine(tamed(model, positive=join == "Maximum"), tmp_path)


# --- every layer that can take a map in from in front --------------------------------------------

ABSORB: dict[str, Build] = {
    "dense": lambda: chain((5,), BN(), L.Dense(4, activation="relu")),
    "dense-no-bias": lambda: chain((5,), BN(), L.Dense(4, use_bias=False)),
    "dense-3d": lambda: chain((3, 5), BN(), L.Dense(4)),
    "conv1d": lambda: chain((8, 3), BN(), L.Conv1D(4, 3, activation="tanh")),
    "conv1d-causal-1": lambda: chain((8, 3), BN(), L.Conv1D(4, 1, padding="causal")),
    "conv1d-groups": lambda: chain((8, 4), BN(), L.Conv1D(6, 3, groups=2)),
    "conv2d": lambda: chain((6, 5, 3), BN(), L.Conv2D(4, (3, 2), use_bias=False)),
    "conv2d-1x1-same": lambda: chain((6, 5, 3), BN(), L.Conv2D(4, 1, strides=2, padding="same")),
    "conv2d-same-that-pads-nothing": lambda: chain(
        (6, 4, 3), BN(), L.Conv2D(4, 2, strides=2, padding="same")
    ),
    "conv2d-groups": lambda: chain((6, 5, 6), BN(), L.Conv2D(6, 3, groups=3, dilation_rate=1)),
    "conv2d-dilated": lambda: chain((7, 6, 3), BN(), L.Conv2D(4, 2, dilation_rate=(2, 3))),
    "conv3d": lambda: chain((4, 5, 3, 2), BN(), L.Conv3D(3, (2, 3, 1))),
    "depthwise1d": lambda: chain((8, 3), BN(), L.DepthwiseConv1D(3, depth_multiplier=2)),
    "depthwise2d": lambda: chain((6, 5, 3), BN(), L.DepthwiseConv2D((3, 2), use_bias=False)),
    "depthwise2d-3": lambda: chain((6, 5, 2), BN(), L.DepthwiseConv2D(2, depth_multiplier=3)),
    "separable1d": lambda: chain((8, 3), BN(), L.SeparableConv1D(4, 3, depth_multiplier=2)),
    "separable2d": lambda: chain((6, 5, 3), BN(), L.SeparableConv2D(4, 3, use_bias=False)),
    "transpose1d-1": lambda: chain((5, 3), BN(), L.Conv1DTranspose(4, 1, padding="same")),
    "transpose2d-1": lambda: chain((4, 3, 3), BN(), L.Conv2DTranspose(4, 1, use_bias=False)),
    "einsum": lambda: chain((4,), BN(), L.EinsumDense("ab,bc->ac", 5, bias_axes="c")),
    "einsum-heads": lambda: chain((3, 4), BN(), L.EinsumDense("abc,cde->abde", (3, 5, 2))),
    "einsum-widens": lambda: chain(
        (3, 4), BN(), L.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="e")
    ),
    "einsum-label-in-all": lambda: chain(
        (3, 4), BN(), L.EinsumDense("abc,bcd->abd", (3, 5), bias_axes="d")
    ),
    "einsum-per-channel": lambda: chain((3, 4), BN(), L.EinsumDense("abc,c->abc", (3, 4))),
    "einsum-summed-out": lambda: chain((3, 4), BN(), L.EinsumDense("abc,cd->ad", 5, bias_axes="d")),
    "einsum-left": lambda: chain((2, 3, 4), BN(), L.EinsumDense("...b,bc->...c", 5)),
    "einsum-right": lambda: chain(
        (3, 4, 5), BN(axis=1), L.EinsumDense("ab...,bd->ad...", (6,), bias_axes="d")
    ),
    "einsum-time": lambda: chain((3, 4), BN(axis=1), L.EinsumDense("abc,bd->adc", (5, 4))),
    "einsum-two-axes": lambda: chain(
        (3, 4), BN(), BN(axis=1), L.EinsumDense("abc,bcd->ad", 5, bias_axes="d")
    ),
    "simple-rnn": lambda: chain((3, 4), BN(), L.SimpleRNN(5)),
    "simple-rnn-no-bias": lambda: chain((3, 4), BN(), L.SimpleRNN(5, use_bias=False)),
    "lstm": lambda: chain((3, 4), BN(), L.LSTM(5, return_sequences=True, dropout=0.3)),
    "lstm-no-bias": lambda: chain((3, 4), BN(), L.LSTM(5, use_bias=False, go_backwards=True)),
    "gru": lambda: chain((3, 4), BN(), L.GRU(5)),
    "gru-no-bias": lambda: chain((3, 4), BN(), L.GRU(5, use_bias=False)),
    "gru-reset-before": lambda: chain((3, 4), BN(), L.GRU(5, reset_after=False)),
    "gru-reset-before-no-bias": lambda: chain(
        (3, 4), BN(), L.GRU(5, reset_after=False, use_bias=False)
    ),
    "bidirectional-lstm": lambda: chain((3, 4), BN(), L.Bidirectional(L.LSTM(5))),
    "bidirectional-gru-no-bias": lambda: chain(
        (3, 4), BN(), L.Bidirectional(L.GRU(5, use_bias=False), merge_mode="sum")
    ),
    "bidirectional-two-kinds": lambda: chain(
        (3, 4),
        BN(),
        L.Bidirectional(
            L.LSTM(5, use_bias=False), backward_layer=L.SimpleRNN(5, go_backwards=True)
        ),
    ),
    "wrapped-dense": lambda: chain((3, 4), BN(), TD(L.Dense(2))),
    "wrapped-both": lambda: chain((3, 4), TD(BN()), TD(L.Dense(2, use_bias=False))),
    "wrapped-conv": lambda: chain((2, 6, 3), BN(axis=3), TD(L.Conv1D(2, 3))),
    "wrapped-lstm": lambda: chain((2, 3, 4), TD(BN()), TD(L.LSTM(2))),
    "between-two": lambda: chain((3, 4), L.ReLU(), BN(), L.Dropout(0.2), L.Conv1D(2, 2)),
    "several-readers": lambda: several_readers(),
    "row": lambda: chain((5,), BN(), BN(), BN(scale=False), L.Dense(3)),
    "both-sides": lambda: chain((5,), BN(), L.Dense(4), BN(), L.ReLU(), L.Dense(3)),
}
ABSORB_SINGLE: dict[str, Build] = {
    "transpose3d-1": lambda: chain((3, 3, 3, 2), BN(), L.Conv3DTranspose(4, 1)),
}


def several_readers() -> Any:
    first = keras.Input((6, 5, 3))
    normal = BN()(first)
    tops = [L.Flatten()(L.Conv2D(2, 3)(normal)), L.Dense(2)(L.GlobalAveragePooling2D()(normal))]
    return keras.Model(first, [*tops, L.Dense(2)(normal)])


@pytest.mark.parametrize("name", [*ABSORB, *ABSORB_SINGLE])
def test_layer_takes_a_map_in_from_in_front(name: str, tmp_path: Path) -> None:
    if name in ABSORB_SINGLE:
        keras.config.set_floatx("float32")
    build = {**ABSORB, **ABSORB_SINGLE}[name]
    forms = KERAS if name.startswith("wrapped") else forms_of(name)
    examine(randomize(build()), tmp_path, forms=forms)


ABSORB_NO_SHIFT: dict[str, Build] = {
    "conv1d-causal": lambda: chain((8, 3), BN(), L.Conv1D(4, 3, padding="causal")),
    "conv2d-same": lambda: chain((6, 5, 3), BN(), L.Conv2D(4, 3, padding="same")),
    "depthwise-same": lambda: chain((6, 5, 3), BN(), L.DepthwiseConv2D(3, padding="same")),
    "separable-same": lambda: chain((8, 3), BN(), L.SeparableConv1D(4, 3, padding="same")),
    "transpose2d": lambda: chain((4, 3, 3), BN(), L.Conv2DTranspose(4, 3, strides=2)),
    "transpose1d-1-stride": lambda: chain((4, 3), BN(), L.Conv1DTranspose(4, 1, strides=2)),
    "zero-padding": lambda: chain((6, 5, 3), BN(), L.ZeroPadding2D(1), L.Conv2D(4, 3)),
    "conv2d-same-stride": lambda: chain((6, 5, 3), BN(), L.Conv2D(4, 2, strides=2, padding="same")),
}


@pytest.mark.parametrize("name", ABSORB_NO_SHIFT)
def test_zeros_stay_zeros(name: str, tmp_path: Path) -> None:
    build = ABSORB_NO_SHIFT[name]
    (tmp_path / "without").mkdir()
    examine(tamed(build(), shift=False), tmp_path / "without", forms=KERAS)
    examine(randomize(build()), tmp_path, left=1, reason="3 of 3 channels", forms=KERAS)


def test_no_bias_is_made_that_nothing_asks_for(tmp_path: Path) -> None:
    model = tamed(chain((6, 5, 3), BN(), L.Conv2D(4, 3, use_bias=False)), shift=False)
    examine(model, tmp_path, forms=KERAS)
    assert not keras.models.load_model(tmp_path / "folded.keras").layers[1].use_bias


@pytest.mark.parametrize("first", [{}, {"center": False}, {"scale": False}])
@pytest.mark.parametrize("second", [{}, {"center": False}, {"scale": False}])
def test_batchnorm_takes_one_in_from_in_front(
    first: dict[str, bool], second: dict[str, bool], tmp_path: Path
) -> None:
    """The last one stays: what reads it is not linear, what makes it neither."""
    model = chain((3, 4), L.ReLU(), BN(**first), L.Dropout(0.1), BN(name="b", **second), L.ELU())
    examine(randomize(model), tmp_path, left=1)


# --- structure -----------------------------------------------------------------------------------


def nested_forward() -> Any:
    return chain((4,), BN(), inner(L.Dense(3), L.ReLU()))


def nested_backward() -> Any:
    return chain((4,), inner(L.ReLU(), L.Dense(3)), BN())


def out_of_a_nested_model() -> Any:
    return chain((4,), inner(L.ReLU(), BN()), L.Dense(3))


def into_a_nested_model_from_inside() -> Any:
    return chain((4,), L.Dense(4), inner(BN(), L.ReLU()), L.Dense(3))


def nested_deep() -> Any:
    lowest = inner(L.Dropout(0.1), L.Dense(4), name="lowest")
    return chain((4,), BN(), inner(inner(lowest, name="middle"), name="upper"), BN())


def nested_only_batchnorm() -> Any:
    return chain((4,), L.Dense(4), inner(BN()), L.ReLU(), inner(BN(), name="again"), L.Dense(2))


def nested_sequential() -> Any:
    block = keras.Sequential([keras.Input((4,)), BN(), L.Dense(3), L.ReLU(), BN()], name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dropout(0.1), L.Dense(2)])


def nested_only_batchnorm_sequential() -> Any:
    block = keras.Sequential([keras.Input((4,)), BN()], name="block")
    return keras.Sequential([keras.Input((4,)), block, L.Dense(2)])


def nested_wrapped() -> Any:
    block = inner(L.ReLU(), L.Dense(3), shape=(4,))
    return chain((2, 4), BN(), L.Dense(4), TD(block), BN())


def nested_wrapped_inside() -> Any:
    block = keras.Sequential([keras.Input((4,)), L.ReLU(), BN()])
    return chain((2, 4), TD(block), L.Dense(3))


def nested_twice() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    block = inner(L.ReLU(), BN(), L.Dropout(0.1), L.Dense(4))
    return keras.Model([left, right], L.Subtract()([block(left), block(L.ReLU()(block(right)))]))


def nested_several_inputs() -> Any:
    inside = [keras.Input((4,)), keras.Input((3,))]
    block = keras.Model(inside, L.Dense(2)(L.Concatenate()(inside)), name="block")
    left, right = keras.Input((4,)), keras.Input((3,))
    return keras.Model([left, right], block([BN()(left), BN()(right)]))


def nested_several_outputs() -> Any:
    inside = keras.Input((4,))
    block = keras.Model(inside, [L.Dense(3)(inside), L.Dense(2)(inside)], name="block")
    first = keras.Input((4,))
    one, two = block(first)
    return keras.Model(first, [BN()(one), L.ReLU()(BN()(two))])


def shared_producer() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    dense, norm = L.Dense(3), BN()
    parts = [norm(dense(left)), norm(dense(right))]
    return keras.Model([left, right], L.Concatenate()(parts))


def shared_consumer() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    dense, norm = L.Dense(3), BN()
    parts = [dense(norm(left)), dense(norm(right))]
    return keras.Model([left, right], L.Multiply()(parts))


def shared_batchnorm_alone() -> Any:
    left, right, norm = keras.Input((4,)), keras.Input((4,)), BN()
    parts = [norm(L.Dense(3)(left)), norm(L.Dense(3, use_bias=False)(right))]
    return keras.Model([left, right], L.Subtract()(parts))


def shared_activation() -> Any:
    left, right, drop = keras.Input((4,)), keras.Input((4,)), L.Dropout(0.1)
    parts = [L.Dense(3)(drop(BN()(left))), L.Dense(3)(drop(right))]
    return keras.Model([left, right], L.Subtract()(parts))


def shared_in_an_add() -> Any:
    """The shift must go to the third branch: the shared layer's calls must ask for the same."""
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    parts = [dense(left), dense(right), L.Dense(3)(left)]
    return keras.Model([left, right], BN()(L.Add()(parts)))


def shared_in_an_average() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], BN()(L.Average()([dense(left), dense(right)])))


def tutorial() -> Any:
    """What every tutorial does, with average pooling."""
    layers = [
        *(L.Conv2D(4, 3, activation="relu"), BN(), L.AveragePooling2D(2), L.Dropout(0.2)),
        *(L.Conv2D(5, 2, activation="relu"), BN(), L.Flatten(), L.Dense(6, activation="relu")),
        *(BN(), L.Dropout(0.5), L.Dense(3, activation="softmax")),
    ]
    return keras.Sequential([keras.Input((10, 9, 1)), *layers])


def dcgan() -> Any:
    layers = [
        *(L.Dense(2 * 3 * 4, use_bias=False), L.Reshape((2, 3, 4)), BN(), L.ReLU()),
        *(L.Conv2DTranspose(3, 3, strides=2, padding="same", use_bias=False), BN(), L.LeakyReLU()),
    ]
    return keras.Sequential([keras.Input((5,)), *layers])


def branches() -> Any:
    first = keras.Input((6, 5, 3))
    parts = [L.Conv2D(2, 1)(first), L.Conv2D(3, 3, padding="same")(first)]
    parts.append(L.Conv2D(2, 1)(L.MaxPooling2D(3, strides=1, padding="same")(first)))
    top = BN()(L.Dropout(0.2)(L.Concatenate()(parts)))
    return keras.Model(first, L.ReLU()(BN()(L.Add()([top, L.Conv2D(7, 1)(first)]))))


def into_both_sides() -> Any:
    first = keras.Input((6, 5, 3))
    middle = L.Conv2D(4, 2)(BN()(first))
    return keras.Model(first, L.Dense(2)(BN()(L.ReLU()(BN()(middle)))))


def axes_in_a_row() -> Any:
    """One layer takes in maps on two of its axes, one behind the other."""
    layer = L.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="e")
    return chain((3, 4), layer, BN(axis=2), BN(axis=3))


def wrapped_rows() -> Any:
    return chain((3, 4), TD(BN()), BN(), L.Dropout(0.1), TD(BN()), TD(L.Dense(3)))


def ops_and_layers() -> Any:
    first = keras.Input((4,))
    tensor = L.Dense(4)(first) * 0.5
    tensor = BN()(tensor + L.Dense(4)(first))
    return keras.Model(first, L.Dense(2)(BN()(ops.tanh(tensor)) / 3 - 1))


STRUCTURE: dict[str, tuple[Build, tuple[str, ...]]] = {
    build.__name__: (build, forms)
    for build, forms in [
        (nested_forward, BOTH),
        (nested_backward, BOTH),
        (out_of_a_nested_model, BOTH),
        (into_a_nested_model_from_inside, BOTH),
        (nested_deep, BOTH),
        (nested_only_batchnorm, BOTH),
        (nested_sequential, BOTH),
        (nested_only_batchnorm_sequential, BOTH),
        (nested_wrapped, KERAS),
        (nested_wrapped_inside, KERAS),
        (nested_twice, BOTH),
        (nested_several_inputs, BOTH),
        (nested_several_outputs, BOTH),
        (shared_producer, BOTH),
        (shared_consumer, BOTH),
        (shared_batchnorm_alone, BOTH),
        (shared_activation, BOTH),
        (shared_in_an_add, BOTH),
        (shared_in_an_average, BOTH),
        (tutorial, BOTH),
        (dcgan, BOTH),
        (branches, BOTH),
        (into_both_sides, BOTH),
        (axes_in_a_row, BOTH),
        (wrapped_rows, KERAS),
        (ops_and_layers, KERAS),
    ]
}


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(name: str, tmp_path: Path) -> None:
    build, forms = STRUCTURE[name]
    examine(randomize(build()), tmp_path, forms=by_turns(forms))


# --- what must stay ------------------------------------------------------------------------------


def added_twice() -> Any:
    first = keras.Input((4,))
    hidden = L.Dense(4)(first)
    return keras.Model(first, BN()(L.Add()([hidden, hidden])))


def siamese_subtract() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], BN()(L.Subtract()([dense(left), dense(right)])))


def one_of_two_calls() -> Any:
    left, right, dense = keras.Input((4,)), keras.Input((4,)), L.Dense(3)
    return keras.Model([left, right], L.Concatenate()([BN()(dense(left)), dense(right)]))


def one_consumer_of_two() -> Any:
    first = keras.Input((4,))
    normal = BN()(first)
    return keras.Model(first, [L.Dense(2)(normal), ops.tanh(normal)])


def output_in_the_middle() -> Any:
    first = keras.Input((4,))
    normal = L.Dropout(0.1)(BN()(first))
    return keras.Model(first, [L.Dense(2)(normal), normal])


def branch_read_elsewhere() -> Any:
    first = keras.Input((4,))
    one, two = L.Dense(3)(first), L.Dense(3)(first)
    return keras.Model(first, [BN()(L.Add()([one, two])), L.ReLU()(two)])


def spread_branch() -> Any:
    first = keras.Input((3, 5))
    return keras.Model(first, BN()(L.Add()([L.Dense(4)(first), L.Dense(1)(first)])))


def spread_branch_ops() -> Any:
    first, second = keras.Input((3, 5)), keras.Input((2,))
    return keras.Model([first, second], BN(axis=1)(L.Conv1D(4, 1)(first) + L.Dense(4)(second)))


def ranks_that_differ() -> Any:
    first, second = keras.Input((3, 5)), keras.Input((2,))
    return keras.Model([first, second], BN()(L.Add()([L.Dense(4)(first), L.Dense(4)(second)])))


def initial_state() -> Any:
    first, state = keras.Input((4, 3)), keras.Input((2,))
    return keras.Model([first, state], L.GRU(2)(first, initial_state=BN()(state)))


def live_dropout() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, L.Dense(3)(L.Dropout(0.0)(BN()(first), training=True)))


def live_lstm() -> Any:
    first = keras.Input((3, 4))
    return keras.Model(first, L.LSTM(3, dropout=0.2)(BN()(first), training=True))


def live_nested_dropout() -> Any:
    first = keras.Input((4,))
    block = inner(L.Dropout(0.0), L.Dense(3))
    return keras.Model(first, block(BN()(first), training=True))


def integers() -> Any:
    first = keras.Input((6, 4), dtype="int32")
    return keras.Model(first, L.Conv1D(3, 2)(BN()(first)))


def integers_handed_on() -> Any:
    layers = [keras.Input((4, 1), dtype="int32"), L.Flatten(), BN(), L.Dense(3)]
    return keras.Sequential(layers)


def other_dtype() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, L.Dense(3, dtype="float32")(BN()(first)))


def other_dtype_between() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(L.Dropout(0.1, dtype="float32")(L.Dense(4)(first))))


def nested_called_twice_outside() -> Any:
    left, right = keras.Input((4,)), keras.Input((4,))
    block = inner(L.Dense(4))
    return keras.Model([left, right], L.Subtract()([block(BN()(left)), block(right)]))


def nested_output_used_twice() -> Any:
    inside = keras.Input((4,))
    hidden = L.Dense(4)(inside)
    block = keras.Model(inside, [hidden, L.ReLU()(hidden)])
    first = keras.Input((4,))
    one, two = block(first)
    return keras.Model(first, [BN()(one), two])


def time_axis_around() -> Any:
    return chain((4, 4), TD(L.Dense(4)), BN(axis=1))


def bidirectional_axis() -> Any:
    return chain((4, 4), BN(axis=1), L.Bidirectional(L.LSTM(3)))


def custom_between() -> Any:
    return chain((4,), L.Dense(4), L.Lambda(lambda x: x), BN())


def batch_axis() -> Any:
    return chain((4,), L.Dense(4), BN(axis=0), batch_size=3)


def feeds_itself() -> Any:
    first, norm = keras.Input((4,)), BN()
    return keras.Model(first, norm(norm(first)))


def divided_by() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(1.0 / L.Dense(4)(first)))


def maximum_with_a_number() -> Any:
    first = keras.Input((4,))
    return keras.Model(first, BN()(ops.maximum(L.Dense(4)(first), 0.0)))


STAY: dict[str, tuple[Build, str]] = {
    build.__name__: (build, reason)
    for build, reason in [
        (added_twice, "would need two maps"),
        (siamese_subtract, "called 2 times"),
        (one_of_two_calls, "called 2 times"),
        (one_consumer_of_two, "is an operation that cannot"),
        (output_in_the_middle, "is an output of the model"),
        (branch_read_elsewhere, "is also read by"),
        (spread_branch, "spreads one of its inputs"),
        (spread_branch_ops, "joins tensors of different ranks"),
        (ranks_that_differ, "different ranks"),
        (initial_state, "another place than its input"),
        (live_dropout, "training=True"),
        (live_lstm, "training=True"),
        (live_nested_dropout, "training=True"),
        (integers, "would read int32 instead of float64"),
        (integers_handed_on, "is not known"),
        (other_dtype, "another dtype"),
        (other_dtype_between, "another dtype"),
        (nested_called_twice_outside, "called 2 times"),
        (nested_output_used_twice, "also an output of Functional"),
        (time_axis_around, "axis"),
        (bidirectional_axis, "not the channel axis"),
        (custom_between, "can neither absorb"),
        (batch_axis, "the batch"),
        (feeds_itself, "first layer"),
        (divided_by, "multiplies with zero"),
        (maximum_with_a_number, "multiplies with zero"),
    ]
}


@pytest.mark.parametrize("name", STAY)
def test_what_must_stay_says_why(name: str, tmp_path: Path) -> None:
    build, reason = STAY[name]
    plan = examine(randomize(build()), tmp_path, left=1, reason=reason, forms=KERAS)
    assert plan.blocked[0].reason.startswith("backward: ")
    assert "; forward: " in plan.blocked[0].reason


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: L.ReLU(max_value=6), "max_value"),
        (lambda: L.ReLU(threshold=0.5), "threshold"),
        (lambda: L.Activation("sigmoid"), "applies sigmoid"),
        (lambda: L.Rescaling(0.0), "multiplies with zero"),
        (lambda: L.LayerNormalization(), "can neither absorb"),
        (lambda: L.Softmax(), "can neither absorb"),
    ],
)
def test_layers_that_are_not_transparent(layer: Build, reason: str, tmp_path: Path) -> None:
    for number, build in enumerate((before, behind)):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = tamed(build(layer, (3, 4)), positive=True, shift=False)
        examine(model, folder, left=1, reason=reason, forms=KERAS)


def test_padding_to_an_aspect_ratio_stays(tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    model = before(lambda: L.Resizing(4, 4, pad_to_aspect_ratio=True), IMAGE)
    examine(randomize(model), tmp_path, left=1, reason="pads with zeros", forms=KERAS)


def test_both_directions_name_their_obstacle(tmp_path: Path) -> None:
    layers = [L.Conv2D(4, 3, activation="relu", name="c1"), BN()]
    model = chain((8, 8, 3), *layers, L.Conv2D(2, 3, padding="same", name="c2"))
    plan = examine(randomize(model), tmp_path, left=1, forms=KERAS)
    assert plan.blocked[0].reason == (
        "backward: Conv2D 'c1' before it applies relu; forward: Conv2D 'c2' after it pads with "
        "zeros and the shift of 4 of 4 channels is not zero"
    )
    assert plan.blocked[0].named == (("c1",), ("c2",))


def test_kept_layers_are_neither_folded_nor_edited(tmp_path: Path) -> None:
    from support import fold_file

    model = randomize(chain((4,), BN(name="a"), BN(name="b"), L.Dense(3, name="d"), BN(name="c")))
    model.save(tmp_path / "m.keras")
    for keep, folded in ((["a"], ["b", "c"]), (["b"], ["c"]), (["d"], ["b"]), (["c"], ["a", "b"])):
        plan = fold_file(tmp_path / "m.keras", tmp_path / f"{keep[0]}.keras", keep=keep)
        assert [fold.batchnorm.path[-1] for fold in plan.folds] == folded, keep


def test_masks_do_not_matter_to_a_map(tmp_path: Path) -> None:
    layers = [L.Embedding(6, 4, mask_zero=True), L.ReLU(), BN(), L.LSTM(3)]
    model = randomize(chain((5,), *layers, dtype="int32"))
    inputs = samples(model)
    inputs[:, ::2] = 0
    examine(model, tmp_path, inputs=inputs, forms=KERAS)


CHANNELS_FIRST: dict[str, Build] = {
    "conv2d-forward": lambda: chain((3, 6, 7), BN(axis=1), L.Conv2D(4, 3)),
    "depthwise-forward": lambda: chain((3, 6, 7), BN(axis=1), L.DepthwiseConv2D(3)),
    "conv1d-forward": lambda: chain((3, 7), BN(axis=1), L.Conv1D(4, 2, groups=1)),
    "pooling": lambda: chain((3, 6, 7), L.Conv2D(4, 3), L.AveragePooling2D(2), BN(axis=1)),
    "global": lambda: chain((3, 6, 7), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), BN()),
    "global-keepdims": lambda: chain(
        (3, 6, 7), L.Conv2D(4, 3), L.GlobalAveragePooling2D(keepdims=True), BN(axis=1)
    ),
    "global-forward": lambda: chain(
        (3, 6, 7), L.ReLU(), BN(axis=1), L.GlobalAveragePooling2D(), L.Dense(2)
    ),
    "flatten-forward": lambda: chain((3, 2, 5), L.ReLU(), BN(axis=1), L.Flatten(), L.Dense(2)),
    "concatenate": lambda: _channels_first_concatenate(),
}


def _channels_first_concatenate() -> Any:
    first = keras.Input((3, 6, 7))
    parts = [L.Conv2D(4, 1)(first), L.Conv2D(3, 1)(first)]
    return keras.Model(first, BN(axis=1)(L.Concatenate(axis=1)(parts)))


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name: str, tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_first")
    try:
        examine(randomize(CHANNELS_FIRST[name]()), tmp_path)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("form", BOTH)
def test_folding_again_changes_nothing(form: str, tmp_path: Path) -> None:
    from support import fold_file, load

    first, second, third = (tmp_path / f"{name}{form}" for name in ("first", "second", "third"))
    randomize(nested_sequential()).save(first)
    assert fold_file(first, second).folds
    assert not fold_file(second, third).decisions
    for old, new in zip(load(second).get_weights(), load(third).get_weights(), strict=True):
        assert np.array_equal(old, new)


# --- advice --------------------------------------------------------------------------------------


def advice(model: Any, folder: Path) -> list[tuple[str, ...]]:
    plan = examine(randomize(model), folder, left=None, forms=KERAS)
    return [blocked.remedies for blocked in plan.blocked]


ADVICE: dict[str, tuple[Build, Build, str]] = {
    "activation": (
        lambda: chain(
            (8, 3), L.Conv1D(4, 3, activation="relu"), BN(), L.Conv1D(4, 3, padding="same")
        ),
        lambda: chain((8, 3), L.Conv1D(4, 3), BN(), L.ReLU(), L.Conv1D(4, 3, padding="same")),
        "between Conv1D 'conv1d' and its activation",
    ),
    "relu": (
        lambda: chain((8, 3), L.Conv1D(4, 3), L.ReLU(), BN(), L.Softmax()),
        lambda: chain((8, 3), L.Conv1D(4, 3), BN(), L.ReLU(), L.Softmax()),
        "on the other side of ReLU 're_lu'",
    ),
    "padding": (
        lambda: chain((8, 3), BN(), L.Conv1D(4, 3, padding="same"), L.Softmax()),
        lambda: chain((8, 3), L.Conv1D(4, 3, padding="same"), BN(), L.Softmax()),
        "on the other side of Conv1D 'conv1d'",
    ),
    "training mode": (
        lambda: dropping(training=True),
        lambda: dropping(),
        "call Dropout 'dropout' without training=True",
    ),
}


@keras.saving.register_keras_serializable("carry")
class Opaque(L.Layer):  # type: ignore[misc]
    """A layer behind which no shape is known, where the file notes none."""

    def call(self, inputs: Any) -> Any:
        return inputs


def dropping(**arguments: Any) -> Any:
    inputs = keras.Input((5,))
    dropped = L.Dropout(0.5)(L.Dense(4)(inputs), **arguments)
    return keras.Model(inputs, L.Softmax()(BN(trainable=False)(dropped)))


@pytest.mark.parametrize("name", ADVICE)
def test_who_follows_the_advice_gets_a_model_that_folds(name: str, tmp_path: Path) -> None:
    before_it, after_it, sentence = ADVICE[name]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert [
        sentence in "; ".join(remedies) for remedies in advice(before_it(), tmp_path / "a")
    ] == [True]
    assert advice(after_it(), tmp_path / "b") == []


NO_ADVICE: dict[str, Build] = {
    # On the other side of the activation it would stand behind a layer that applies one itself.
    "activations": lambda: chain(
        (8, 3), L.Conv1D(4, 3, activation="tanh"), L.ReLU(), BN(), L.Softmax()
    ),
    # On the other side of the convolution it would stand behind an activation.
    "padding": lambda: chain((8, 3), BN(), L.Conv1D(4, 3, padding="same", activation="relu")),
}


@pytest.mark.parametrize("name", NO_ADVICE)
def test_there_is_no_advice_that_does_not_help(name: str, tmp_path: Path) -> None:
    assert advice(NO_ADVICE[name](), tmp_path) == [()]


UNKNOWN_RANK: dict[str, tuple[Callable[[], Sequence[Any]], bool]] = {
    "Dense": (lambda: [L.Dense(4)], True),
    "Dense with an activation": (lambda: [L.Dense(4, activation="relu")], False),
    "nothing": (list, False),
}


@pytest.mark.parametrize("name", UNKNOWN_RANK)
def test_an_axis_counts_from_the_end_where_no_rank_is_known(name: str, tmp_path: Path) -> None:
    """A legacy Sequential notes no shapes behind a layer that is not known."""
    between, folds = UNKNOWN_RANK[name]
    found = []
    for axis in (2, -1):
        parts = [keras.Input((5, 3)), Opaque(), *between(), BN(axis=axis), L.Softmax()]
        model = randomize(keras.Sequential(parts))
        found.append(examine(model, tmp_path, left=None, forms=[".h5"]))
    (before,) = found[0].blocked
    assert "the rank is unknown" in before.reason
    assert bool(found[1].folds) == folds
