"""What fuzzing has found, each as a model that shows it."""

import io
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
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
from places import FIXTURES

import bnfold
from bnfold.errors import UnreadableModelError
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


def damaged(path: Path) -> h5py.File:
    """A copy of an HDF5 file of Keras 3, open for what is done to it."""
    shutil.copyfile(FIXTURES / "digits_cnn_keras315.h5", path)
    return h5py.File(path, "r+")


def test_variables_that_stand_at_a_layer_without_any(tmp_path: Path) -> None:
    # Keras goes by the order of those that have some, and gives them to the layer beside it.
    path = tmp_path / "m.h5"
    with damaged(path) as file:
        weights = file["model_weights"]
        weights.move("re_lu", "x")
        weights.move("batch_normalization_1", "re_lu")
        weights.move("x", "batch_normalization_1")
    refused(path, says="a layer without any")


def test_a_nan_of_16_bits_is_a_finding_and_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with damaged(path) as file:
        place = file["model_weights/batch_normalization_1/batch_normalization_1"]
        numbers = np.full(place["moving_mean"].shape, np.nan, ml_dtypes.bfloat16)
        numbers.view("u2")[:] = 0xFFBF  # what signals
        del place["moving_mean"]
        place["moving_mean"] = numbers.view("V2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bnfold.inspect(path).findings
    assert "BN104" in {one.code for one in found}


@pytest.mark.parametrize("shape", [[None, 6.0, CHANNELS], [[None, CHANNELS]]])
def test_a_shape_that_no_rule_asks_for(shape: list[object], tmp_path: Path) -> None:
    """A fold wrote such a file, which an inspection then refused."""
    config = model_config()
    for layer in config["config"]["layers"]:
        if layer["class_name"] == "Dense":
            text = json.dumps(layer["inbound_nodes"])
            assert json.dumps([None, CHANNELS]) in text
            text = text.replace(json.dumps([None, CHANNELS]), json.dumps(shape))
            layer["inbound_nodes"] = json.loads(text)
    path = keras_file(tmp_path / "m.keras", config=config)
    with pytest.raises(UnreadableModelError, match="gives a tensor the shape"):
        bnfold.fold(path, tmp_path / "out.keras", keep="*", verify=False)
