"""A map crosses layers that mix, choose or add places, and leave channels apart."""

from pathlib import Path

import pytest
from maps import (
    IMAGE,
    NONE,
    SERIES,
    TD,
    VOLUME,
    L,
    Row,
    before,
    crosses_backward,
    crosses_forward,
    ops,
    stays_without_condition,
)
from support import KERAS, examine, keras, randomize
from tiers import some

pytestmark = pytest.mark.usefixtures("double")


ROWS: dict[str, Row] = {
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
    "wrapped-pooling": (lambda: TD(L.AveragePooling1D(2)), IMAGE, NONE),
    "ops-average-pool": (lambda: lambda x: ops.average_pool(x, 2, 1, "same"), IMAGE, NONE),
    "ops-max-pool": (lambda: lambda x: ops.max_pool(x, 2, 1, "same"), IMAGE, "positive"),
}
SINGLE: dict[str, Row] = {
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
"""Those for which TensorFlow has no kernel in float64."""


# By default a layer is crossed in one direction: the rows of the layers are shared by both.
@pytest.mark.parametrize("name", some([*ROWS, *SINGLE]))
@pytest.mark.few(4)
def test_a_map_crosses_forward(name: str, tmp_path: Path) -> None:
    if name in SINGLE:
        keras.config.set_floatx("float32")
    crosses_forward({**ROWS, **SINGLE}, name, tmp_path)


HANDS_TRAINING_ON = ("resizing-nearest", "resizing", "resizing-crop", "center-crop")
"""Layers that Keras 3 calls with training=True, so that a BN after them has no fixed map."""


@pytest.mark.parametrize(
    "name",
    [one for one in some([*ROWS, *SINGLE], first=1) if one.values[0] not in HANDS_TRAINING_ON],
)
@pytest.mark.few(6)
def test_a_map_crosses_backward(name: str, tmp_path: Path) -> None:
    if name in SINGLE:
        keras.config.set_floatx("float32")
    crosses_backward({**ROWS, **SINGLE}, name, tmp_path)


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n][2]])
@pytest.mark.few(5)
def test_a_map_that_does_not_meet_the_condition_stays(name: str, tmp_path: Path) -> None:
    stays_without_condition(ROWS, name, tmp_path)


def test_padding_to_an_aspect_ratio_stays(tmp_path: Path) -> None:
    keras.config.set_floatx("float32")
    model = before(lambda: L.Resizing(4, 4, pad_to_aspect_ratio=True), IMAGE)
    examine(randomize(model), tmp_path, left=1, reason="pads with zeros", forms=KERAS)
