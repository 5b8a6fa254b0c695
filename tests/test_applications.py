"""Whole networks of keras.applications with random statistics: how much folds, how exactly."""

from pathlib import Path
from typing import Any

import pytest
from support import batchnorms, difference, fold_file, keras, load, np, numbers, outputs

LEFT = {
    "MobileNetV2": 0,
    "Xception": 0,
    "NASNetMobile": 0,
    "EfficientNetV2B0": 0,
    "InceptionV3": 0,
    "MobileNetV3Small": 0,
    "ResNet50V2": 17,
    "DenseNet121": 62,
}
"""How many BatchNormalization layers stay."""

SIZES = {"Xception": 71, "InceptionV3": 75, "NASNetMobile": 224}


def network(name: str) -> Any:
    """The network without its head, with telling statistics and few enough pixels."""
    keras.utils.set_random_seed(0)
    size = SIZES.get(name, 64)
    build = getattr(keras.applications, name)
    model = build(weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg")
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                values = numbers(weight.name, tuple(weight.shape), generator)
                # Near 1, or a hundred layers in a row would blow up every rounding error.
                if weight.name == "moving_variance":
                    values = values**0.125
                weight.assign(values)
    return model


def check(name: str, folder: Path) -> None:
    model = network(name)
    model.save(folder / "model.keras")
    fold_file(folder / "model.keras", folder / "folded.keras")
    folded = load(folder / "folded.keras")
    assert len(batchnorms(folded)) == LEFT[name]
    images = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    expected = outputs(model, images, training=False)
    assert np.isfinite(expected[0]).all()
    error = difference(expected, outputs(folded, images, training=False))
    assert error < 1e-4


@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0"])
def test_small_networks(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEFT))
def test_networks(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
