"""What is wrong in what the user gives is said before TensorFlow is loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isolated import outcomes
from support import chain, keras

from bnfold.model.keras_json import parse_model
from bnfold.running import inputs
from bnfold.running.declared import input_specs
from bnfold.running.safety import read_facts

layers = keras.layers

# TensorFlow is installed here, and cannot be imported, nor can the libraries that import it.
DAMAGED = """
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

damaged = SimpleNamespace(create_module=lambda spec: None, exec_module=lambda _: {}["damaged"])
found = {name: ModuleSpec(name, damaged, origin="there") for name in ("tensorflow", "keras")}
sys.meta_path.insert(0, SimpleNamespace(find_spec=lambda name, *_: found.get(name)))
"""


def run(commands: list[list[str]], folder: Path) -> list[tuple[int, str]]:
    """The exit code of each command and what it says on standard error, without TensorFlow."""
    return [(code, said) for code, _, said in outcomes(DAMAGED, commands, folder)]


ONE = ["one.keras", "one.h5", "directory", "row.keras", "row.h5"]


def one_input(folder: Path) -> None:
    """A model of one input of 4 numbers in every container, and as a Sequential."""
    model = chain((4,), layers.Dense(3), layers.BatchNormalization(name="norm"), name="one")
    for name in ("one.keras", "one.h5"):
        model.save(folder / name)
    model.save(folder / "directory", zipped=False)
    parts = [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization(name="norm")]
    for name in ("row.keras", "row.h5"):
        keras.Sequential(parts).save(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and data that do not fit them."""
    path = tmp_path_factory.mktemp("models")
    one_input(path)
    ones = np.ones((8, 4))
    a, b = keras.Input((4,), name="a"), keras.Input((2, 3), name="b")
    both = layers.Concatenate()([layers.BatchNormalization(name="norm")(a), layers.Flatten()(b)])
    keras.Model({"b": b, "a": a}, both).save(path / "two.keras")
    fixed = keras.Input((4,), batch_size=16)
    keras.Model(fixed, layers.BatchNormalization(name="norm")(fixed)).save(path / "fixed.keras")
    text = keras.Input((1,), dtype="string")
    keras.Model(text, layers.Identity()(text)).save(path / "text.keras")
    arrays: dict[str, Any] = {
        "good": ones,
        "wide": np.ones((8, 5)),
        "deep": np.ones((8, 4, 1)),
        "words": np.array([["x"] * 4] * 8),
        "few": ones[:1],
        "none": ones[:0],
        "nan": np.where(np.eye(8, 4, -3) == 1, np.nan, ones),
    }
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    np.save(path / "objects.npy", np.array([{}], dtype=object))
    np.savez(path / "names.npz", x=ones, z=np.ones((8, 2, 3)))
    np.savez(path / "swapped.npz", a=np.ones((8, 2, 3)), b=ones)
    np.savez(path / "uneven.npz", a=ones, b=np.ones((7, 2, 3)))
    np.savez_compressed(path / "fits.npz", a=ones, b=np.ones((8, 2, 3)), labels=np.ones(8))
    (path / "no.npz").write_text("no array")
    return path


WRONG = [
    ("no.npz", "not a .npy or .npz file of plain arrays"),
    ("objects.npy", "not a .npy or .npz file of plain arrays"),
    ("wide.npy", "takes shape (any, 4), the array has (8, 5)"),
    ("deep.npy", "takes shape (any, 4), the array has (8, 4, 1)"),
    ("words.npy", "takes numbers, not <U1"),
    ("none.npy", "the same number of samples, at least 1"),
    ("names.npz", "holds 2 arrays ('x', 'z'), the model takes 1"),
]
USELESS = [("few.npy", "give at least 2"), ("nan.npy", "not finite in float32, first in sample 3")]


def commands(model: str) -> dict[str, list[str]]:
    """All that takes data, of one model."""
    return {
        "inspect": ["inspect", model],
        "verify": ["verify", model, model],
        "fold": ["fold", model, f"out{Path(model).suffix}"],
        "fold to onnx": ["fold", model, "out.onnx"],
        "export": ["export", model, "out.onnx"],
        "recalibrate": ["recalibrate", model, f"out{Path(model).suffix}"],
    }


def test_data_are_looked_at_before_tensorflow_is_loaded(folder: Path) -> None:
    cases = [
        (words, data, said)
        for model in ONE
        for words in (commands(model) if model == ONE[0] else {"": ["inspect", model]}).values()
        for data, said in (*WRONG, *(USELESS if words[0] in ("inspect", "recalibrate") else ()))
    ]
    outcomes = run([[*words, "--data", data] for words, data, _ in cases], folder)
    for (words, data, said), (code, text) in zip(cases, outcomes, strict=True):
        assert code == 2, (words, data, text)
        assert said in text, (words, data, text)
        assert "TensorFlow" not in text, (words, data, text)
    assert not list(folder.glob("out*"))


def test_data_for_several_inputs_are_looked_at(folder: Path) -> None:
    cases = [
        (["verify", "two.keras", "two.keras"], "names.npz", "name the arrays after the inputs"),
        (["inspect", "two.keras"], "swapped.npz", "input 'a' takes shape (any, 4)"),
        (["export", "two.keras", "out.onnx"], "uneven.npz", "the same number of samples"),
        (["inspect", "two.keras"], "good.npy", "holds 1 array, the model takes 2"),
        (["verify", "fixed.keras", "fixed.keras"], "good.npy", "needs batches of 16 samples"),
        (["inspect", "fixed.keras"], "good.npy", "needs batches of 16 samples"),
    ]
    outcomes = run([[*words, "--data", data] for words, data, _ in cases], folder)
    for (words, data, said), (code, text) in zip(cases, outcomes, strict=True):
        assert (code, said in text) == (2, True), (words, data, text)


def test_other_mistakes_are_seen_too(folder: Path) -> None:
    good = ["--data", "good.npy"]
    cases = [
        (["verify", "one.keras", "one.keras", "--import", "nowhere"], "No module named 'nowhere'"),
        (["bench", "one.keras", "--import", "no.where"], "No module named 'no'"),
        (["export", "one.h5", "out.onnx", "--import", "own.py"], "say own: a module goes by its"),
        (["inspect", "one.h5", *good, "--import", "nowhere"], "No module named 'nowhere'"),
        (["inspect", "one.h5", *good, "--layer", "morn"], "there are: norm"),
        (["recalibrate", "one.h5", "out.h5", *good, "--layers", "x*"], "matches no BatchNorm"),
        (["export", "one.keras", "out.onnx", "--opset", "99"], "opset 99: tf2onnx"),
        (["export", "one.keras", "out.onnx", "--opset", "3"], "opset 3: tf2onnx"),
        (["bench", "fixed.keras", "--batch", "3"], "take batches of 16 only"),
        (["bench", "one.keras", "two.keras"], "take different inputs"),
        (["bench", "text.keras"], "has string inputs"),
        (["verify", "text.keras", "text.keras"], "give samples with --data"),
        (["export", "text.keras", "out.onnx"], "give samples with --data"),
    ]
    outcomes = run([words for words, _ in cases], folder)
    for (words, said), (code, text) in zip(cases, outcomes, strict=True):
        assert (code, said in text) == (2, True), (words, text)


def test_what_is_right_goes_on_to_load_tensorflow(folder: Path) -> None:
    (folder / "own.py").write_text("")
    cases = [
        ["verify", "one.h5", "one.h5", "--data", "good.npy", "--import", "own"],
        ["verify", "one.keras", "one.keras", "--data", "few.npy", "--import", "own.deeper"],
        ["verify", "two.keras", "two.keras", "--data", "fits.npz"],
        ["recalibrate", "directory", "other", "--data", "good.npy"],
        ["export", "one.keras", "out.onnx", "--data", "nan.npy", "--opset", "13"],
        ["verify", "text.keras", "text.keras", "--data", "word.npy"],
    ]
    np.save(folder / "word.npy", np.array([["x"]] * 8))
    for code, text in run(cases, folder):
        line = text.splitlines()[-1]
        assert (code, "TensorFlow with Keras 3 cannot be imported: 'damaged'" in line) == (2, True)
        assert "'bnfold doctor'" in line


def test_a_file_says_what_the_loaded_model_says(folder: Path) -> None:
    """Or says nothing: what is refused for it must be what would be refused later."""
    built = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
    built(np.ones((5, 4)))
    built.save(folder / "built.keras")
    bare = {"class_name": "Sequential", "config": {"name": "bare", "layers": []}}
    assert input_specs(parse_model(bare)) == ()
    for path in (*folder.glob("*.keras"), *folder.glob("*.h5")):
        loaded = inputs.input_specs(keras.models.load_model(path))
        found = [(spec.name, spec.shape, spec.dtype) for spec in loaded]
        said = [(spec.name, spec.shape, spec.dtype) for spec in read_facts(path).specs]
        assert said == found, path
