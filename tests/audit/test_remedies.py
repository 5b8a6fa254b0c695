"""Every remedy, done to a model: the finding goes, or the layer folds, and Keras predicts the same.

What a page of a rule tells to do in Python is run as it stands there.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import difference, fold_file, keras, load, outputs, randomize, samples
from tiers import some

from bnfold.audit import RULES
from bnfold.cli import main
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.reports.rule_page import sections

layers = keras.layers
Build = Callable[[], Any]


def norm(name: str = "bn", **options: Any) -> Any:
    return layers.BatchNormalization(name=name, **options)


def behind(*first: Any, **arguments: Any) -> Any:
    """A small network behind some layers, which are called with these arguments."""
    inputs = x = keras.Input((8, 8, 3))
    for layer in first:
        x = layer(x, **arguments)
    x = layers.ReLU()(norm()(layers.Conv2D(4, 3)(x)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def inspected(model: Any, path: Path) -> Inspection:
    model.save(path)
    return inspect_file(path)


def remedy(found: Inspection, code: str) -> str:
    return next(finding.remedy for finding in found.findings if finding.code == code)


def recipes(code: str) -> list[str]:
    """The Python under "What to do" on a rule's page, a block each."""
    rule = next(rule for rule in RULES if rule.code == code)
    blocks = re.findall(r"(?:^    .*\n?)+", sections(rule)["What to do"], re.MULTILINE)
    return [inspect.cleandoc("\n" + block) for block in blocks]


# --- BN007 ---------------------------------------------------------------------------------------


def two_inputs() -> Any:
    """Inputs by name, of which one is resized."""
    image, row = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="row")
    made = norm()(layers.Conv2D(4, 3)(layers.Resizing(6, 6)(image)))
    outs = {"made": layers.Flatten()(made), "side": norm("side")(layers.Dense(3)(row))}
    return keras.Model({"image": image, "row": row}, outs)


def own_call(training: Any) -> Any:
    inputs = keras.Input((8, 8, 3))
    made = norm()(layers.Conv2D(4, 3)(inputs), training=training)
    return keras.Model(inputs, layers.Flatten()(made))


def nested() -> Any:
    base = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), norm()], name="base")
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Flatten()(base(inputs, training=True)))


AUGMENTED: dict[str, Build] = {
    "RandomFlip": lambda: behind(layers.RandomFlip()),
    "Resizing": lambda: behind(layers.Resizing(7, 7)),
    "a Sequential of layers": lambda: behind(
        keras.Sequential([layers.RandomRotation(0.1), layers.RandomZoom(0.1)], name="augment")
    ),
    "Sequential": lambda: keras.Sequential(
        [keras.Input((8, 8, 3)), layers.CenterCrop(6, 6), layers.Conv2D(4, 3), norm()]
    ),
    "several inputs": two_inputs,
}
TOLD: dict[str, Build] = {
    "its own call": lambda: own_call(True),
    "a model around it": nested,
    "Dropout at inference": lambda: behind(layers.Dropout(0.5), training=True),
}


def follow(recipe: str, build: Build, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save a model, do what a page says, and compare: no finding, and the same predictions."""
    model = randomize(build())
    before = inspected(model, folder / "model.keras")
    assert "no new training is needed" in remedy(before, "BN007")
    monkeypatch.chdir(folder)
    if recipe.startswith("bnfold "):
        done = CliRunner().invoke(main, recipe.split()[1:])
        assert done.exit_code == 0, done.output
    else:
        exec(recipe, {"keras": keras})
    mended = Path("inference.keras")
    assert not [f for f in inspect_file(mended).findings if f.code == "BN007"]
    x = samples(model)
    expected = outputs(model, x, training=False)  # what predict computes
    assert difference(expected, outputs(load(mended), x, training=False)) < 1e-5
    return mended


@pytest.mark.parametrize("cause", some(AUGMENTED))
@pytest.mark.few(1)
def test_augmentation_is_switched_off_in_a_saved_model(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = follow(recipes("BN007")[0], AUGMENTED[cause], tmp_path, monkeypatch)
    assert not inspect_file(mended).plan.decisions


@pytest.mark.parametrize("cause", some([*TOLD, "RandomFlip", "Sequential"]))
@pytest.mark.few(2)
def test_a_saved_model_is_frozen(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = {**AUGMENTED, **TOLD}[cause]
    mended = follow(recipes("BN007")[1], build, tmp_path, monkeypatch)
    plan = fold_file(mended, Path("folded.keras"))
    assert plan.folds
    assert not plan.blocked
    x = samples(load(mended))
    before, after = (outputs(load(Path(p)), x, training=False) for p in (mended, "folded.keras"))
    assert difference(before, after) < 1e-5


@pytest.mark.parametrize(
    ("build", "told"),
    [(lambda **o: behind(layers.RandomFlip(), **o), {}), (own_call, {"training": True})],
    ids=["augmentation", "its own call"],
)
def test_weights_are_taken_over_by_a_model_that_is_built_anew(
    build: Callable[..., Any], told: dict[str, bool], tmp_path: Path
) -> None:
    trained, anew = randomize(build(**told)), build(training=False)
    assert "set_weights" in remedy(inspected(trained, tmp_path / "model.keras"), "BN007")
    anew.set_weights(trained.get_weights())
    assert not [f for f in inspected(anew, tmp_path / "a.keras").findings if f.code == "BN007"]
    x = samples(trained)
    assert difference(outputs(trained, x, training=False), outputs(anew, x)) == 0


def test_a_frozen_layer_that_makes_others_train(tmp_path: Path) -> None:
    def build(**told: Any) -> Any:
        inputs = keras.Input((6,))
        x = norm(trainable=False)(layers.Dense(5)(inputs), **told)
        return keras.Model(inputs, layers.Dense(2)(norm("next")(layers.ReLU()(x))))

    trained = randomize(build(training=True))
    plan = inspected(trained, tmp_path / "model.keras").plan
    assert any("set_weights" in one for blocked in plan.blocked for one in blocked.remedies)
    anew = build()
    anew.set_weights(trained.get_weights())
    assert not inspected(anew, tmp_path / "a.keras").plan.blocked


# --- a model of one's own class ------------------------------------------------------------------

OWN_CLASS = """
import keras

@keras.saving.register_keras_serializable("remedies")
class OwnSteps(keras.Model):
    def train_step(self, data):
        return super().train_step(data)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Functional model of a class in a module that is not imported, and its file."""
    (tmp_path / "own_steps.py").write_text(OWN_CLASS)
    namespace: dict[str, Any] = {}
    exec(OWN_CLASS, namespace)
    inputs = keras.Input((5,))
    made = layers.Dense(2)(layers.ReLU()(norm()(layers.Dense(4)(inputs))))
    randomize(namespace["OwnSteps"](inputs, made)).save(tmp_path / "own.keras")
    keras.saving.get_custom_objects().pop("remedies>OwnSteps")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(40, 5)).astype("float32"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own.keras"
    keras.saving.get_custom_objects().pop("remedies>OwnSteps", None)
    sys.modules.pop("own_steps", None)


def bnfold(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


COMMANDS: dict[str, tuple[str, ...]] = {
    "verify": ("verify", "own.keras", "own.keras"),
    "fold": ("fold", "own.keras", "folded.keras"),
    "export": ("export", "own.keras", "own.onnx"),
    "recalibrate": ("recalibrate", "own.keras", "better.keras", "--data", "data.npy"),
    "inspect --data": ("inspect", "own.keras", "--data", "data.npy", "--fail-on", "never"),
}
PLAIN = "save keras.Model(model.inputs, model.outputs) in its place"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.few(2)
def test_a_model_of_an_own_class_is_imported(command: str, own: Path) -> None:
    refused = bnfold(*COMMANDS[command])
    assert PLAIN in " ".join(refused.output.split())
    if command != "fold":  # which runs nothing where it folds nothing
        assert refused.exit_code == 2
        assert "the model needs 'remedies>OwnSteps'" in refused.output
        assert "--import MODULE" in refused.output
    else:
        Path("folded.keras").unlink()
    done = bnfold(*COMMANDS[command], "--import", "own_steps")
    assert done.exit_code == 0, done.output


def test_a_model_of_an_own_class_is_saved_as_a_plain_one(own: Path) -> None:
    found = inspect_file(own)
    assert remedy(found, "BN303").startswith(PLAIN)
    assert not found.plan.folds
    kept = bnfold("fold", "own.keras", "kept.keras", "--no-verify")
    assert "not Keras' own" in kept.output
    assert PLAIN in " ".join(kept.output.split())
    own_steps = importlib.import_module("own_steps")
    model = keras.models.load_model(own, custom_objects={"OwnSteps": own_steps.OwnSteps})
    keras.Model(model.inputs, model.outputs).save("plain.keras")
    x = samples(model)
    assert difference(outputs(model, x), outputs(load(Path("plain.keras")), x)) == 0
    plan = fold_file(Path("plain.keras"), Path("folded.keras"))
    assert plan.folds
    assert not plan.blocked
    assert difference(outputs(model, x), outputs(load(Path("folded.keras")), x)) < 1e-5
