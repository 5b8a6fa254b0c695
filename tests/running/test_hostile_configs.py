"""What a config can name is refused before Keras sees the file, wherever in it the name stands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archives import directory_model, entry, keras_file, legacy_file, model_config

from bnfold.errors import UnsafeModelError
from bnfold.running.options import SAFELY
from bnfold.running.session import look

CODE = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None}}
LAMBDA = {"class_name": "Lambda", "config": {"function": CODE}, "module": "keras.layers"}
GET_FILE = {"module": "keras.utils", "config": "get_file", "registered_name": "get_file"}
UNSAFE = {"module": "keras", "class_name": "config.enable_unsafe_deserialization", "config": {}}
SECOND = {"module": "keras.activations", "config": "relu", "registered_name": "Lambda"}


def named(**names: Any) -> dict[str, Any]:
    return {**entry("ReLU", "op", "bn"), **names}


def old(class_name: str, **settings: Any) -> dict[str, Any]:
    """As legacy files have it, without a module."""
    found = entry(class_name, "op", "bn", **settings)
    return {key: found[key] for key in ("class_name", "config", "name", "inbound_nodes")}


def nested(compiled: Any) -> dict[str, Any]:
    """A model as a layer that was compiled by itself, which Keras compiles again."""
    return {**entry("Sequential", "op", "bn", layers=[]), "compile_config": compiled}


CASES = {
    "Lambda in a list in an argument": named(inbound_nodes=[{"args": [[[LAMBDA]]], "kwargs": {}}]),
    "code as an activation": entry("Activation", "op", "bn", activation=CODE),
    "code in a slice": entry(
        "Activation", "op", "bn", activation={"class_name": "__slice__", "config": {"start": CODE}}
    ),
    "a function that loads files": entry(
        "Activation", "op", "bn", activation={"class_name": "function", **GET_FILE}
    ),
    "a function that is registered as a class": entry(
        "Activation", "op", "bn", activation={"class_name": "function", **SECOND}
    ),
    "a switch of Keras' safe mode": entry("ReLU", "op", "bn", dtype=UNSAFE),
    "a wrapped Lambda": entry("TimeDistributed", "op", "bn", layer=LAMBDA),
    "a Lambda in build_config": named(build_config={"input_shape": LAMBDA}),
    "a loss of a nested model": nested({"loss": LAMBDA}),
    "a class of another part": named(module="keras.initializers"),
    "a class of Keras' own modules": named(module="keras.src.models.cloning"),
    "a registered name beside a value": entry(
        "ReLU", "op", "bn", negative_slope={"class_name": "__tensor__", "registered_name": "a>B"}
    ),
    "an operation that calls a function": named(module="keras.src.ops.core", class_name="Map"),
    "a class under another's name": {**old("DenseFeatures"), "registered_name": "mine>Layer"},
    "a vocabulary as bytes": entry(
        "StringLookup", "op", "bn", vocabulary={"class_name": "__bytes__", "value": "/etc/passwd"}
    ),
    "a function of TensorFlow": old("TFOpLambda", function="io.write_file"),
    "a class of TensorFlow": old("TFOpLambda", function="nn.rnn_cell.DropoutWrapper"),
    "a wrapper with stored code": old("ClassMethod", cls_symbol="io.gfile.GFile"),
}


def in_directory(path: Path, *, config: Any) -> Path:
    folder = directory_model(path)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


MAKERS: dict[str, Callable[..., Path]] = {
    "m.keras": keras_file,
    "m": in_directory,
    "m.h5": legacy_file,
}


@pytest.mark.parametrize("file", MAKERS)
@pytest.mark.parametrize("case", CASES)
def test_what_a_config_can_name(case: str, file: str, tmp_path: Path) -> None:
    config = model_config()
    config["config"]["layers"].append(CASES[case])
    path = MAKERS[file](tmp_path / file, config=config)
    with pytest.raises(UnsafeModelError, match="it was not loaded") as caught:
        look([path], SAFELY, None)
    assert "'op'" in str(caught.value) or "'model'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["m.keras", "m"])
def test_what_a_model_was_compiled_with_is_not_asked_for(file: str, tmp_path: Path) -> None:
    """Keras loads without it, so that a loss of the user's own does not matter."""
    loss = {"module": "mine", "class_name": "function", "config": "mine>loss"}
    config = {**model_config(), "compile_config": {"loss": loss, "optimizer": LAMBDA}}
    path = MAKERS[file](tmp_path / file, config=config)
    (facts,) = look([path], SAFELY, None).files
    assert facts.config["class_name"] == "Functional"
