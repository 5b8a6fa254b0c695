"""Dense layers, convolutions and embeddings absorb a map after them or before them."""

from pathlib import Path
from typing import Any

import pytest
from maps import BN, TD, Build, L, forms_of, single_precision, tamed
from support import (
    BOTH,
    KERAS,
    LEGACY,
    batchnorms,
    chain,
    difference,
    examine,
    fold_file,
    interface,
    keras,
    load,
    outputs,
    randomize,
    samples,
)
from tiers import by_turns, some, some_of_each

from bnfold.model.container import hdf5

pytestmark = pytest.mark.usefixtures("double")


# --- a map after the layer -----------------------------------------------------------------------

FOLDED: dict[str, Build] = {
    "dense": lambda: chain((5,), L.Dense(4), BN()),
    "dense-one-unit": lambda: chain((5,), L.Dense(1), BN()),
    "dense-no-bias": lambda: chain((5,), L.Dense(4, use_bias=False), BN()),
    "dense-3d": lambda: chain((3, 5), L.Dense(4), BN()),
    "dense-3d-positive-axis": lambda: chain((4, 5), L.Dense(4), BN(axis=2)),
    "dense-4d": lambda: chain((2, 3, 5), L.Dense(4), BN()),
    "dense-4d-positive-axis": lambda: chain((2, 4, 5), L.Dense(4, use_bias=False), BN(axis=3)),
    "dense-linear-by-name": lambda: chain((5,), L.Dense(4, activation="linear"), BN()),
    "dense-unknown-length": lambda: chain((None, 5), L.Dense(4), BN(axis=2)),
    "conv1d": lambda: chain((8, 3), L.Conv1D(4, 3), BN()),
    "conv1d-same": lambda: chain((8, 3), L.Conv1D(4, 3, padding="same"), BN(axis=2)),
    "conv1d-causal": lambda: chain((8, 3), L.Conv1D(4, 3, padding="causal"), BN()),
    "conv1d-causal-dilated": lambda: chain(
        (9, 3), L.Conv1D(4, 3, padding="causal", dilation_rate=2, use_bias=False), BN()
    ),
    "conv1d-stride": lambda: chain((9, 3), L.Conv1D(4, 3, strides=2, padding="same"), BN()),
    "conv1d-dilated": lambda: chain((9, 3), L.Conv1D(4, 3, dilation_rate=2), BN(axis=-1)),
    "conv1d-groups": lambda: chain((8, 4), L.Conv1D(6, 3, groups=2), BN()),
    "conv2d": lambda: chain((6, 5, 3), L.Conv2D(4, (3, 2)), BN()),
    "conv2d-no-bias": lambda: chain((6, 5, 3), L.Conv2D(4, 3, use_bias=False), BN(axis=3)),
    "conv2d-same-stride": lambda: chain(
        (6, 5, 3), L.Conv2D(4, 3, strides=(2, 1), padding="same"), BN()
    ),
    "conv2d-dilated": lambda: chain((7, 6, 3), L.Conv2D(4, 2, dilation_rate=(2, 3)), BN()),
    "conv2d-groups": lambda: chain((6, 5, 4), L.Conv2D(6, 3, groups=2, use_bias=False), BN()),
    "conv2d-groups-as-depthwise": lambda: chain((6, 5, 4), L.Conv2D(8, 3, groups=4), BN()),
    "conv3d": lambda: chain((4, 5, 3, 2), L.Conv3D(3, (2, 3, 1)), BN()),
    "conv3d-same-stride": lambda: chain(
        (4, 5, 3, 2), L.Conv3D(3, 2, strides=2, padding="same", use_bias=False), BN(axis=4)
    ),
    "conv3d-dilated": lambda: chain((5, 5, 4, 2), L.Conv3D(3, 2, dilation_rate=2), BN()),
    "conv3d-groups": lambda: chain((4, 5, 3, 4), L.Conv3D(6, 2, groups=2), BN()),
    "depthwise1d-1": lambda: chain((8, 3), L.DepthwiseConv1D(3), BN()),
    "depthwise1d-2": lambda: chain(
        (8, 3), L.DepthwiseConv1D(3, depth_multiplier=2, padding="same", use_bias=False), BN()
    ),
    "depthwise1d-3": lambda: chain(
        (9, 3), L.DepthwiseConv1D(2, depth_multiplier=3, dilation_rate=2), BN(axis=2)
    ),
    "depthwise2d-1": lambda: chain((6, 5, 3), L.DepthwiseConv2D(3, padding="same"), BN()),
    "depthwise2d-2": lambda: chain((6, 5, 3), L.DepthwiseConv2D((3, 2), depth_multiplier=2), BN()),
    "depthwise2d-2-stride": lambda: chain(
        (6, 6, 3), L.DepthwiseConv2D(3, strides=2, depth_multiplier=2, use_bias=False), BN()
    ),
    "depthwise2d-3": lambda: chain(
        (6, 5, 2), L.DepthwiseConv2D(2, depth_multiplier=3, dilation_rate=2), BN()
    ),
    "separable1d": lambda: chain((8, 3), L.SeparableConv1D(4, 3), BN()),
    "separable1d-2": lambda: chain(
        (8, 3), L.SeparableConv1D(4, 3, depth_multiplier=2, padding="same", use_bias=False), BN()
    ),
    "separable2d": lambda: chain((6, 5, 3), L.SeparableConv2D(4, 3), BN()),
    "separable2d-3": lambda: chain(
        (6, 5, 3), L.SeparableConv2D(4, 3, depth_multiplier=3, strides=2, padding="same"), BN()
    ),
    "transpose1d": lambda: chain((5, 3), L.Conv1DTranspose(4, 3), BN()),
    "transpose1d-stride": lambda: chain(
        (5, 3), L.Conv1DTranspose(4, 3, strides=2, output_padding=1, use_bias=False), BN()
    ),
    "transpose1d-same-square": lambda: chain(
        (5, 4), L.Conv1DTranspose(4, 3, strides=3, padding="same"), BN()
    ),
    "transpose2d": lambda: chain((4, 3, 3), L.Conv2DTranspose(4, (3, 2)), BN()),
    "transpose2d-stride": lambda: chain(
        (4, 3, 4),
        L.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1, use_bias=False),
        BN(axis=3),
    ),
    "transpose2d-dilated": single_precision(
        lambda: chain((4, 3, 3), L.Conv2DTranspose(4, 2, dilation_rate=2), BN())
    ),
    "transpose3d": lambda: chain((3, 2, 3, 2), L.Conv3DTranspose(4, 2), BN()),
    "transpose3d-stride": lambda: chain(
        (3, 2, 3, 4), L.Conv3DTranspose(4, 2, strides=2, padding="same", use_bias=False), BN()
    ),
    "embedding": lambda: chain((6,), L.Embedding(5, 4), BN(), dtype="int32"),
    "embedding-4d": lambda: chain((3, 2), L.Embedding(5, 4), BN(axis=3), dtype="int64"),
    "time-distributed-dense": lambda: chain((3, 5), TD(L.Dense(4)), BN()),
    "time-distributed-dense-positive-axis": lambda: chain((4, 5), TD(L.Dense(4)), BN(axis=2)),
    "dense-time-distributed": lambda: chain((3, 5), L.Dense(4), TD(BN())),
    "dense-time-distributed-positive-axis": lambda: chain((4, 5), L.Dense(4), TD(BN(axis=1))),
    "time-distributed-both": lambda: chain((3, 5), TD(L.Dense(4, use_bias=False)), TD(BN())),
    "time-distributed-conv2d": lambda: chain((2, 5, 6, 3), TD(L.Conv2D(4, 3)), TD(BN(axis=3))),
    "time-distributed-conv2d-outer": lambda: chain(
        (2, 5, 6, 3), TD(L.Conv2D(4, 3, use_bias=False)), BN(axis=4)
    ),
    "time-distributed-depthwise": lambda: chain(
        (2, 6, 3), TD(L.DepthwiseConv1D(2, depth_multiplier=2)), TD(BN())
    ),
    "time-distributed-twice": lambda: chain((2, 3, 5), TD(TD(L.Dense(4))), TD(BN(axis=2))),
    "time-distributed-twice-both": lambda: chain((2, 3, 5), TD(TD(L.Dense(4))), TD(TD(BN(axis=1)))),
    "time-distributed-embedding": lambda: chain(
        (3, 4), TD(L.Embedding(5, 4)), TD(BN()), dtype="int32"
    ),
    "time-distributed-einsum": lambda: chain(
        (2, 3, 5), TD(L.EinsumDense("abc,cd->adb", (4, 3))), BN(axis=2)
    ),
    "time-distributed-batchnorms": lambda: chain(
        (3, 5), L.Dense(4), TD(BN()), BN(), TD(BN(axis=1))
    ),
}


@pytest.mark.parametrize("name", some_of_each(FOLDED))
@pytest.mark.few(12)
def test_layer_absorbs_a_map_after_it(name: str, tmp_path: Path) -> None:
    forms = LEGACY if list(FOLDED).index(name) % 2 else KERAS
    examine(randomize(FOLDED[name]()), tmp_path, forms=forms)


IN_PIECES: dict[str, tuple[Build, int]] = {
    **{
        name: (FOLDED[name], 0)
        for name in ("dense", "conv2d", "depthwise2d-3", "transpose2d-stride", "embedding")
    },
    "channels-first-in-the-kernel": (
        lambda: chain((4,), L.EinsumDense("ab,cb->ac", 5, bias_axes="c"), BN()),
        0,
    ),
    "batchnorm": (lambda: chain((5,), BN(), BN()), 1),
}


# By default each with one of the two sizes: what a piece is does not depend on the layer.
@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[pytest.mark.slow] * ((i + k) % 2))
        for i, name in enumerate(IN_PIECES)
        for k, size in enumerate((1, 7))
    ],
)
def test_kernels_are_folded_in_pieces(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "PIECE_BYTES", size * 4)
    build, left = IN_PIECES[name]
    examine(randomize(build()), tmp_path, left=left, forms=KERAS)


CHANNELS_FIRST: dict[str, Build] = {
    "conv1d": lambda: chain((4, 8), L.Conv1D(4, 3), BN(axis=1)),
    "conv1d-negative-axis": lambda: chain((4, 8), L.Conv1D(4, 3, padding="same"), BN(axis=-2)),
    "conv2d": lambda: chain((3, 6, 5), L.Conv2D(4, 3, use_bias=False), BN(axis=1)),
    "conv2d-same-stride": lambda: chain(
        (3, 6, 5), L.Conv2D(4, 3, strides=2, padding="same"), BN(axis=-3)
    ),
    "conv3d": lambda: chain((2, 4, 5, 3), L.Conv3D(3, 2), BN(axis=1)),
    "depthwise1d": lambda: chain((3, 9), L.DepthwiseConv1D(3, depth_multiplier=2), BN(axis=1)),
    "depthwise2d": lambda: chain((3, 6, 5), L.DepthwiseConv2D(3, depth_multiplier=3), BN(axis=1)),
    "separable1d": lambda: chain((3, 8), L.SeparableConv1D(4, 3), BN(axis=1)),
    "separable2d": lambda: chain((3, 6, 5), L.SeparableConv2D(4, 3), BN(axis=1)),
    "transpose1d": lambda: chain((3, 5), L.Conv1DTranspose(4, 3, strides=2), BN(axis=1)),
    "transpose2d": lambda: chain(
        (3, 4, 3), L.Conv2DTranspose(4, 3, strides=2, use_bias=False), BN(axis=1)
    ),
    "transpose3d": lambda: chain((2, 3, 2, 4), L.Conv3DTranspose(4, 2), BN(axis=1)),
    "time-distributed": lambda: chain((2, 3, 8), TD(L.Conv1D(4, 3)), BN(axis=2)),
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
@pytest.mark.few(6)
def test_channels_first(name: str, tmp_path: Path) -> None:
    """TensorFlow runs few of these on a CPU: the weights go into a channels-last twin instead."""
    keras.config.set_image_data_format("channels_first")
    try:
        model = randomize(CHANNELS_FIRST[name]())
        model.save(tmp_path / "original.keras")
        fold_file(tmp_path / "original.keras", tmp_path / "folded.keras")
        folded = load(tmp_path / "folded.keras")
    finally:
        keras.config.set_image_data_format("channels_last")
    assert interface(folded) == interface(model)
    assert batchnorms(folded) == []
    original, after = _channels_last(model), _channels_last(folded)
    inputs = samples(original)
    assert difference(outputs(original, inputs), outputs(after, inputs)) < 1e-12


def _channels_last(model: Any) -> Any:
    """The same layers with the same weights on inputs whose channels are last."""
    wrapped = int(any(isinstance(layer, TD) for layer in model.layers))
    shape = model.inputs[0].shape[1:]
    layers = [_channels_last_layer(layer) for layer in model.layers[1:]]
    twin = chain((*shape[:wrapped], *shape[wrapped + 1 :], shape[wrapped]), *layers)
    twin.set_weights(model.get_weights())
    return twin


def _channels_last_layer(layer: Any) -> Any:
    if isinstance(layer, TD):
        return TD(_channels_last_layer(layer.layer))
    settings = layer.get_config()
    changes = {"data_format": "channels_last", "axis": -1}
    return type(layer).from_config(
        {**settings, **{k: v for k, v in changes.items() if k in settings}}
    )


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    "name", some(["conv1d", "conv2d", "depthwise", "conv3d", "einsum", "transpose"])
)
def test_axes_of_one_size_confuse_keras(name: str, use_bias: bool, tmp_path: Path) -> None:
    """The bias of a channels-first layer as wide as it has channels lands on the wrong axis."""
    keras.config.set_floatx("float32")
    first: Any = {"use_bias": use_bias, "data_format": "channels_first"}
    build: dict[str, Build] = {
        "conv1d": lambda: chain((3, 6), L.Conv1D(4, 3, **first), BN(axis=1)),
        "conv2d": lambda: chain((3, 5, 6), L.Conv2D(4, 3, **first), BN(axis=1)),
        "conv3d": lambda: chain((3, 5, 4, 6), L.Conv3D(4, 3, **first), BN(axis=1)),
        "depthwise": lambda: chain((3, 5), L.DepthwiseConv1D(3, **first), BN(axis=1)),
        "transpose": lambda: chain((3, 6), L.Conv1DTranspose(8, 3, **first), BN(axis=1)),
        "einsum": lambda: chain(
            (3, 4),
            L.EinsumDense("abc,cde->abde", (3, 5, 5), bias_axes="d" if use_bias else None),
            BN(axis=2),
        ),
    }
    examine(randomize(build[name]()), tmp_path, left=1, reason="along the width", forms=KERAS)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "depthwise1d", "transpose1d"])
def test_channels_first_on_a_cpu(name: str, tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_first")
    try:
        examine(randomize(CHANNELS_FIRST[name]()), tmp_path)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.few(4)
def test_every_set_of_variables(use_bias: bool, center: bool, scale: bool, tmp_path: Path) -> None:
    model = chain((5,), L.Dense(4, use_bias=use_bias), BN(center=center, scale=scale))
    for form in by_turns(BOTH):
        examine(randomize(model), tmp_path, forms=[form])
        assert load(tmp_path / f"folded{form}").layers[1].use_bias


# --- a map before the layer ----------------------------------------------------------------------

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
    "wrapped-dense": lambda: chain((3, 4), BN(), TD(L.Dense(2))),
    "wrapped-both": lambda: chain((3, 4), TD(BN()), TD(L.Dense(2, use_bias=False))),
    "wrapped-conv": lambda: chain((2, 6, 3), BN(axis=3), TD(L.Conv1D(2, 3))),
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


@pytest.mark.parametrize("name", some_of_each([*ABSORB, *ABSORB_SINGLE]))
@pytest.mark.few(6)
def test_layer_absorbs_a_map_before_it(name: str, tmp_path: Path) -> None:
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
@pytest.mark.few(4)
def test_zeros_stay_zeros(name: str, tmp_path: Path) -> None:
    build = ABSORB_NO_SHIFT[name]
    (tmp_path / "without").mkdir()
    examine(tamed(build(), shift=False), tmp_path / "without", forms=KERAS)
    examine(randomize(build()), tmp_path, left=1, reason="3 of 3 channels", forms=KERAS)


def test_no_bias_is_made_that_nothing_asks_for(tmp_path: Path) -> None:
    model = tamed(chain((6, 5, 3), BN(), L.Conv2D(4, 3, use_bias=False)), shift=False)
    examine(model, tmp_path, forms=KERAS)
    assert not keras.models.load_model(tmp_path / "folded.keras").layers[1].use_bias


def test_sizes_that_keras_notes_in_reverse_are_not_relied_on(tmp_path: Path) -> None:
    # Keras notes (4, 5) for the image behind an ellipsis; the convolution seems to pad nothing.
    model = chain(
        (5, 4, 3),
        L.EinsumDense("...c,cd->...d", (4,), activation="relu"),
        BN(name="bn"),
        L.Conv2D(4, (2, 1), strides=(2, 1), padding="same"),
    )
    examine(randomize(model), tmp_path, left=["bn"], reason="pads with zeros")
