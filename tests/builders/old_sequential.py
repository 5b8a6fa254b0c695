"""Files of Sequential models as Keras 2.3 and older wrote them: without an InputLayer."""

import json
from pathlib import Path
from typing import Any

import h5py


def save(model: Any, path: Path, version: str = "2.2.4") -> Path:
    """Save a model as `.h5`, and let the first layer of each Sequential say what it reads."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = without_input_layers(json.loads(file.attrs["model_config"]))
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = version
    return path


def without_input_layers(value: Any) -> Any:
    """A config in which `batch_input_shape` of the first layer stands for an InputLayer."""
    if isinstance(value, list):
        return [without_input_layers(one) for one in value]
    if not isinstance(value, dict):
        return value
    value = {key: without_input_layers(one) for key, one in value.items()}
    if value.get("class_name") != "Sequential":
        return value
    first, *others = value["config"]["layers"]
    if first["class_name"] == "InputLayer":
        said = first["config"].get("batch_shape") or first["config"]["batch_input_shape"]
        if others[0]["class_name"] not in ("Sequential", "Functional"):
            others[0]["config"]["batch_input_shape"] = said
        value["config"]["layers"] = others
    value["config"].pop("build_input_shape", None)
    return value
