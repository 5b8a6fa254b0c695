"""What fuzzing has found, each as a model that shows it."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from archives import (
    CHANNELS,
    dense_arrays,
    entry,
    fill,
    functional,
    keras_file,
    model_config,
    norm_arrays,
)
from damage import refused

import bnfold
from bnfold.folding.plan import Blocked


def test_an_archive_without_members(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    zipfile.ZipFile(path, "w").close()
    refused(path, says="config.json")


@pytest.mark.parametrize("name", ["dense", "bn"])
def test_an_input_that_reads_other_layers(name: str, tmp_path: Path) -> None:
    # Keras would cut the graph there and make an input of its own.
    config = model_config()
    config["config"]["input_layers"] = [[name, 0, 0]]
    refused(keras_file(tmp_path / "m.keras", config=config), says="as an input")


def test_a_nested_model_without_a_class(tmp_path: Path) -> None:
    nested = model_config()["config"]
    inside = {**entry("?", "inside", "x"), "config": nested}
    del inside["class_name"]
    layers = [
        entry("InputLayer", "x", batch_shape=[None, CHANNELS]),
        inside,
        entry("Dense", "dense", "inside", units=CHANNELS),
    ]
    path = keras_file(tmp_path / "m.keras", config=functional(layers, "dense"))
    assert bnfold.inspect(path).graph.layers["inside"].class_name == "None"


def test_a_bias_of_another_size_than_its_kernel(tmp_path: Path) -> None:
    layers = [
        entry("InputLayer", "x", batch_shape=[None, CHANNELS]),
        entry("BatchNormalization", "bn", "x"),
        entry("Dense", "dense", "bn", units=2),
    ]
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file.create_group("layers/dense/vars"), [dense_arrays()[0], np.ones(2, "f4")])
        fill(file.create_group("layers/batch_normalization/vars"), norm_arrays())
    config = functional(layers, "dense")
    path = keras_file(tmp_path / "m.keras", config=config, h5=stream.getvalue())
    (stays,) = bnfold.inspect(path).plan.decisions
    assert isinstance(stays, Blocked)
    assert "bias of shape (2,)" in stays.reason
    json.dumps(bnfold.fold(path, tmp_path / "out.keras", verify=False).to_dict())
