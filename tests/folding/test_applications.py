"""Whole networks of keras.applications with random statistics: how much folds, how exactly."""

from pathlib import Path
from typing import Any

import pytest
from networks import network
from support import batchnorms, difference, fold_file, keras, load, np, outputs
from tiers import some

import bnfold
from bnfold.verification import Verdict

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

CHAOTIC = {"EfficientNetV2B0"}
"""Those that amplify rounding until it drowns their last values, with random weights."""


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


# One by default: most of the time goes to Keras, which builds the network.
@pytest.mark.parametrize("name", some(["MobileNetV3Small", "EfficientNetV2B0"]))
@pytest.mark.slow
def test_small_networks(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEFT))
def test_networks(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def calibrated(name: str) -> Any:
    """The network with the statistics that its layers really see; else rounding drowns it all."""
    model = network(name)
    normalizing = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalizing]
    for layer in normalizing:
        layer.momentum = 0.0
    model(np.random.default_rng(2).normal(size=(8, *model.input_shape[1:])), training=True)
    for layer, momentum in zip(normalizing, momenta, strict=True):
        layer.momentum = momentum
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEFT))
def test_the_judge_accepts_networks(name: str, tmp_path: Path) -> None:
    calibrated(name).save(tmp_path / "model.keras")
    fold_file(tmp_path / "model.keras", tmp_path / "folded.keras")
    for seed in range(3):
        found = bnfold.verify(tmp_path / "model.keras", tmp_path / "folded.keras", seed=seed)
        assert not found.differences
        assert found.verdict is (Verdict.UNDECIDED if name in CHAOTIC else Verdict.EQUIVALENT)
        unsure = {"not exercised"} if name in CHAOTIC else set()
        assert {site.status for site in found.sites} - unsure == {"matched"}


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50V2", "InceptionV3"])
def test_the_judge_finds_one_channel_off_by_a_thousandth(
    name: str, depth: float, tmp_path: Path
) -> None:
    calibrated(name).save(tmp_path / "model.keras")
    planned = fold_file(tmp_path / "model.keras", tmp_path / "folded.keras")
    folds = [fold for fold in planned.folds if fold.direction == "backward"]
    fold = folds[int(depth * len(folds))]
    wrong = load(tmp_path / "folded.keras")
    kernel = wrong.get_layer(fold.absorbers[0].layer[-1]).weights[0]
    values = np.array(kernel)
    values[:, :, 0 if "depthwise" in kernel.path else slice(None), 0] *= 1.001
    kernel.assign(values)
    wrong.save(tmp_path / "wrong.keras")
    found = bnfold.verify(tmp_path / "model.keras", tmp_path / "wrong.keras")
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == (fold.batchnorm.path[-1],)
