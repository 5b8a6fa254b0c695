"""Data of another scale than those that a model was trained on: what is seen, and what is refused.

The statistics that a model records are given to it by `recalibrate` itself, over data of the right
scale; no training is needed to see that others are wrong. The limits are measured in the
documentation on models that were trained.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from observed_models import norm
from places import ROOT
from schemas import validate
from support import chain, keras, randomize

import bnfold
from bnfold.cli import main
from bnfold.model.moments import FACTOR_LIMIT, SHIFT_LIMIT, Scale, scale, times

layers = keras.layers
GENERATOR = np.random.default_rng(5)


# --- the measure ---


MEAN = GENERATOR.normal(0, 1, 24)
VARIANCE = GENERATOR.lognormal(0, 1, 24)


def found(
    mean: Any, variance: Any, seen_mean: Any = MEAN, seen_variance: Any = VARIANCE
) -> Scale | None:
    return scale((mean, variance), (seen_mean, seen_variance))


def excess(*arguments: Any) -> float:
    result = found(*arguments)
    assert result is not None
    return result.excess


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("factor", [255.0, 127.5, 1 / 255, 1 / 127.5, 1e6])
def test_a_factor_is_seen_whatever_the_size_of_the_data(size: float, factor: float) -> None:
    """Large variances beside the initial 1, and small ones, none of which hides it."""
    mean, variance = MEAN * size**0.5, VARIANCE * size
    result = found(mean, variance, mean * factor, variance * factor**2)
    assert result is not None
    assert result.excess > 1
    assert result.uniform
    assert result.factor == pytest.approx(factor)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98, 0.999])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_statistics_that_training_did_not_bring_to_an_end_are_none(
    share: float, size: float
) -> None:
    """Of a momentum that is too slow a share of the initial 0 and 1 is left, in all channels."""
    mean, variance = MEAN * size**0.5, VARIANCE * size
    drifting = variance * GENERATOR.uniform(0.7, 1.4, 24)
    result = found((1 - share) * mean, share + (1 - share) * drifting, mean, variance)
    assert result is None or result.excess < 0.75  # None where rounding left nothing but initial 1


@pytest.mark.parametrize("factor", [0.3, 0.5, 2, 4])
def test_another_contrast_and_brightness_are_none(factor: float) -> None:
    assert excess(MEAN, VARIANCE, factor * MEAN + 2 * VARIANCE**0.5, factor**2 * VARIANCE) < 0.75


def test_an_offset_is_seen_where_it_is_many_deviations() -> None:
    assert excess(MEAN, VARIANCE, MEAN + 30 * VARIANCE**0.5, VARIANCE) > 1


def test_few_channels_that_are_far_off_are_not_the_data() -> None:
    """Such as one column of another unit, which BN501 names."""
    mean, variance = MEAN.copy(), VARIANCE.copy()
    mean[:8], variance[:8] = 1000 * mean[:8], 1e6 * variance[:8]
    assert excess(MEAN, VARIANCE, mean, variance) < 0.75


@pytest.mark.parametrize(
    ("mean", "variance"),
    [
        (np.zeros(24), np.ones(24)),
        (MEAN, np.full(24, np.nan)),
        (MEAN, -VARIANCE),
        (MEAN, np.zeros(24)),
        (MEAN, np.full(24, 0.05)),
        (MEAN, np.full(24, 1e-20)),
    ],
    ids=["initial", "NaN", "negative", "zero", "batches of one", "batches of one for long"],
)
def test_statistics_that_tell_nothing_of_the_data_are_not_compared(
    mean: Any, variance: Any
) -> None:
    assert found(mean, variance) is None
    assert found(mean, variance, 255 * MEAN, 255**2 * VARIANCE) is None


def test_a_factor_in_words() -> None:
    assert times(255.2) == "255 times"
    assert times(1 / 127.5) == "1/128"


# --- recalibrate ---


@pytest.fixture(scope="module")
def images() -> Any:
    return GENERATOR.uniform(0, 1, (300, 6, 6, 2)).astype("float32")


def convolutional(*before: Any) -> Any:
    return chain(
        (6, 6, 2),
        *before,
        layers.Conv2D(8, 3),
        norm("first"),
        layers.ReLU(),
        layers.Conv2D(8, 3),
        norm("second"),
        layers.Flatten(),
        layers.Dense(3),
        name="x",
    )


@pytest.fixture(scope="module")
def model(images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose statistics are those of images in 0..1."""
    folder = tmp_path_factory.mktemp("model")
    randomize(convolutional()).save(folder / "raw.keras")
    settle(folder / "raw.keras", folder / "model.keras", images)
    return folder / "model.keras"


def settle(source: Path, target: Path, data: Any) -> bnfold.RecalibrationReport:
    """Whatever its statistics were, they are those of the data now."""
    report = bnfold.recalibrate(source, target, data=data, allow_other_scale=True)
    assert report
    return report


def recalibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["recalibrate", *map(str, arguments)])


def test_pixels_times_255_are_refused_in_one_line(model: Path, images: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", images * 255)
    out = tmp_path / "out.keras"
    result = recalibrate(model, out, "--data", tmp_path / "data.npy")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert said.startswith("the data are not of the scale that the model was trained on: ")
    assert "the standard deviation of the input of first is 255 times" in said
    assert "--allow-other-scale" in said
    assert not out.exists()


def test_the_refusal_as_json_and_what_goes_on(model: Path, images: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", images * 255)
    words = (model, tmp_path / "out.keras", "--data", tmp_path / "data.npy", "--format", "json")
    result = recalibrate(*words)
    assert result.exit_code == 1
    refused = json.loads(result.stdout)
    result = recalibrate(*words, "--allow-other-scale")
    assert result.exit_code == 0
    written = json.loads(result.stdout)
    for report in (refused, written):
        validate(report, "recalibrate")
        (check,) = report["scale"]
        assert (check["name"], check["passed"]) == ("first", False)
        assert check["factor"] == pytest.approx(255, rel=1e-3)
    assert (refused["written"], refused["check"], refused["recalibrated"]) == (False, None, [])
    assert written["written"]
    assert (tmp_path / "out.keras").exists()
    text = recalibrate(*words[:-2], "--force", "--allow-other-scale").stdout
    assert "the standard deviation of the input of first is 255 times" in " ".join(text.split())


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x / 255,
        lambda x: x * 20 - 10,
    ],
    ids=["1/255", "20 - 10"],
)
def test_other_scales_are_refused_and_leave_a_live_model_alone(
    change: Callable[[Any], Any], model: Path, images: Any, tmp_path: Path
) -> None:
    report = bnfold.recalibrate(model, tmp_path / "out.keras", data=change(images))
    assert not report
    assert report.refusal is not None
    live = keras.models.load_model(model)
    with pytest.raises(bnfold.VerificationFailedError, match="not of the scale"):
        bnfold.recalibrate(live, data=change(images))


@pytest.mark.parametrize(
    "change",
    [lambda x: 0.4 * x + 0.1, lambda x: 1 - 3 * x[..., ::-1]],
    ids=["dark", "negative, channels turned"],
)
def test_other_data_of_the_same_scale_pass(
    change: Callable[[Any], Any], model: Path, images: Any, tmp_path: Path
) -> None:
    """The last is wrong, and no statistic tells it from other data."""
    report = bnfold.recalibrate(model, tmp_path / "out.keras", data=change(images))
    assert report
    assert report.refusal is None
    assert [check.passed for check in report.scale] == [True]


def test_what_could_not_be_looked_at_is_said(images: Any, tmp_path: Path) -> None:
    """Layers that still have the statistics that they were made with."""
    randomize(convolutional()).save(tmp_path / "model.keras")
    live = keras.models.load_model(tmp_path / "model.keras")
    for layer in (live.get_layer("first"), live.get_layer("second")):
        layer.moving_mean.assign(np.zeros(8))
        layer.moving_variance.assign(np.ones(8))
    live.save(tmp_path / "model.keras")
    np.save(tmp_path / "data.npy", images * 255)
    words = (tmp_path / "model.keras", tmp_path / "out.keras", "--data", tmp_path / "data.npy")
    said = " ".join(recalibrate(*words).stdout.split())
    assert (tmp_path / "out.keras").exists()
    assert "the scale of the data could not be checked (first: its recorded statistics" in said
    found = json.loads(recalibrate(*words, "--force", "--format", "json").stdout)
    assert found["scale"][0]["passed"] is None
    assert "say nothing" in found["scale"][0]["problem"]


def test_a_first_layer_that_stays_as_it_is_still_tells(
    model: Path, images: Any, tmp_path: Path
) -> None:
    """Frozen, or not named: what goes into it is looked at all the same."""
    live = keras.models.load_model(model)
    live.get_layer("first").trainable = False
    live.save(tmp_path / "frozen.keras")
    for source, options in ((tmp_path / "frozen.keras", {}), (model, {"layers": "second"})):
        options |= {"data": images * 255}
        report = bnfold.recalibrate(source, tmp_path / "out.keras", force=True, **options)
        assert not report
        options |= {"data": images}
        report = bnfold.recalibrate(source, tmp_path / "out.keras", force=True, **options)
        assert report
        assert [change.batchnorm.path for change in report.recalibrated] == [("second",)]
        assert {kept.batchnorm.path for kept in report.kept} == {("first",)}


def test_each_input_has_first_layers_of_its_own(tmp_path: Path) -> None:
    """Through nested models, a Rescaling and TimeDistributed, on one of two inputs alone."""
    image, sensor = keras.Input((4, 6), name="image"), keras.Input((5,), name="sensor")
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(7), norm("deep")], name="inner")
    left = layers.TimeDistributed(inner, name="steps")(layers.Rescaling(0.1)(image))
    right = norm("beside")(layers.Dense(7)(sensor))
    joined = layers.Add()([layers.GlobalAveragePooling1D()(left), right])
    built = keras.Model([image, sensor], layers.Dense(2)(norm("last")(joined)))
    randomize(built).save(tmp_path / "raw.keras")
    data = {
        "image": GENERATOR.normal(3, 40, (200, 4, 6)).astype("float32"),
        "sensor": GENERATOR.normal(0, 1, (200, 5)).astype("float32"),
    }
    settle(tmp_path / "raw.keras", tmp_path / "model.keras", data)
    for wrong, layer in (("image", ("steps", "inner", "deep")), ("sensor", ("beside",))):
        changed = data | {wrong: 255 * data[wrong]}
        report = bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "o.keras", data=changed)
        assert not report
        assert [check.layer for check in report.scale if not check.passed] == [layer]


# --- inspect --data ---


def said(path: Path, data: Any) -> list[str]:
    found = bnfold.inspect(path, data=data, select="BN501").findings
    return [one.message.rpartition("; ")[2] for one in found if "as large as those" in one.message]


def test_inspect_names_the_factor_once(model: Path, images: Any) -> None:
    sentence = "the data are about {} as large as those that the model was trained on"
    assert said(model, images * 255) == [sentence.format("255 times")]
    assert said(model, images / 255) == [sentence.format("1/255")]
    assert said(model, images) == []
    assert said(model, 2 * images) == []


def test_the_limit_is_what_the_documentation_says() -> None:
    page = (ROOT / "docs" / "recalibrate.md").read_text()
    assert f"more than {FACTOR_LIMIT:g} times as large as recorded" in page
    assert f"more than {SHIFT_LIMIT:g} standard deviations off" in page
