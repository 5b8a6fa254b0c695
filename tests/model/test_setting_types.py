"""Settings, shapes and references that Keras would not take: one line about the model."""

import pytest
from archives import CHANNELS, entry, functional, keras_file, model_config, weights

from bnfold.errors import UnreadableModelError
from bnfold.jobs.inspect import inspect_file

SETTINGS = [
    ("Conv2D", "strides", "a", "a positive integer, or one for each axis"),
    ("Conv2D", "kernel_size", [3, None], "a positive integer, or one for each axis"),
    ("Conv2D", "filters", [CHANNELS], "an integer of 0 or more"),
    ("Conv2D", "strides", [1, 10**400], "a positive integer, or one for each axis"),
    ("MaxPooling2D", "pool_size", -2, "a positive integer, or one for each axis"),
    ("UpSampling1D", "size", True, "a positive integer, or one for each axis"),
    ("ZeroPadding2D", "padding", [[1, "x"], [0, 0]], "a word, an integer of 0 or more"),
    ("Cropping1D", "cropping", {"a": 1}, "a word, an integer of 0 or more"),
    ("Dense", "units", "4", "an integer of 0 or more"),
    ("RepeatVector", "n", 1 << 63, "an integer of 0 or more"),
    ("Reshape", "target_shape", [2, "2"], "a list of integers"),
    ("Permute", "dims", "21", "a list of integers"),
    ("EinsumDense", "bias_axes", 3, "a text"),
    ("InputLayer", "batch_shape", [None, "float32", 8], "a list of sizes"),
    ("Dropout", "batch_input_shape", [None, -4], "a list of sizes"),
]


@pytest.mark.parametrize(("class_name", "name", "value", "wanted"), SETTINGS)
def test_a_setting_of_another_form(tmp_path, class_name, name, value, wanted):
    config = model_config()
    config["config"]["layers"].insert(1, entry(class_name, "odd", "x", **{name: value}))
    with pytest.raises(UnreadableModelError, match=f"`{name}` of {class_name} 'odd'") as found:
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))
    assert f"must be {wanted}" in str(found.value)
    assert len(str(found.value)) < 400


def test_a_setting_of_a_class_of_ones_own_has_any_form(tmp_path):
    config = model_config()
    custom = entry("Conv2D", "odd", "x", strides="a") | {"module": "mine"}
    config["config"]["layers"].insert(1, custom)
    found = inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))
    assert len(found.plan.folds) == 1


@pytest.mark.parametrize("shape", [[None, "a"], [None, -1], [None, False], [None, 10**30]])
def test_the_shape_of_a_tensor(tmp_path, shape):
    config = model_config()
    node = config["config"]["layers"][2]["inbound_nodes"][0]["args"][0]
    node["config"]["shape"] = shape
    with pytest.raises(UnreadableModelError, match="gives a tensor the shape"):
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))


def test_an_output_that_a_layer_does_not_make(tmp_path):
    config = model_config()
    config["config"]["output_layers"] = [["bn", 0, 3]]
    with pytest.raises(UnreadableModelError, match="output 3 of layer 'bn', which makes 1"):
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))


def test_a_layer_that_reads_nothing(tmp_path):
    config = model_config()
    config["config"]["layers"][1]["inbound_nodes"] = []
    with pytest.raises(UnreadableModelError, match="uses layer 'dense', which reads nothing"):
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))


def test_an_output_that_a_nested_model_does_not_make(tmp_path):
    inner = functional([entry("InputLayer", "x", batch_shape=[None, CHANNELS])], "x")
    inner |= {"name": "inner", "inbound_nodes": entry("Dense", "d", "x")["inbound_nodes"]}
    layers = [entry("InputLayer", "x", batch_shape=[None, CHANNELS]), inner]
    config = functional(layers, "inner")
    config["config"]["output_layers"] = [["inner", 1, 1]]
    with pytest.raises(UnreadableModelError, match="output 1 of layer 'inner', which makes 1"):
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))


@pytest.mark.parametrize("class_name", ["Functional", "Sequential"])
def test_a_model_of_keras_own_without_a_graph(tmp_path, class_name):
    config = model_config()
    config["config"]["layers"].insert(1, entry(class_name, "odd", "x"))
    with pytest.raises(UnreadableModelError, match=f"{class_name} 'odd' holds no graph of layers"):
        inspect_file(keras_file(tmp_path / "m.keras", config=config, h5=weights()))
