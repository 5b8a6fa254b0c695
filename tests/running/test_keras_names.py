"""The lists of what a config may name, held against what the installed Keras and tf_keras have."""

import keras_parts
import pytest

from bnfold.folding import rules
from bnfold.running import safety
from bnfold.running.keras_names import CLASSES, FUNCTIONS, KNOWN, OPERATIONS, REFUSED

pytestmark = pytest.mark.keras

LIBRARIES = ["keras", "tf_keras"]


@pytest.mark.parametrize("part", [part for part in KNOWN if part])
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_class_of_keras_is_known_or_refused(library, part):
    pytest.importorskip(library)
    new = sorted(keras_parts.classes(library, part) - KNOWN[part] - REFUSED)
    assert new == [], f"they belong to {part} in running/keras_names.py, or are refused there"


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_function_that_configs_name_is_known(library):
    pytest.importorskip(library)
    new = sorted(keras_parts.functions(library) - FUNCTIONS)
    assert new == [], "they belong into running/keras_names.py"


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_legacy_files_could_name_is_known_or_refused(library):
    """Without a module Keras looks in a table of all its layers, and in more than those."""
    layers = pytest.importorskip(f"{library}.src.layers")
    if library == "tf_keras":
        from tf_keras.src.layers import serialization

        serialization.populate_deserializable_objects()
        found = serialization.LOCAL.ALL_OBJECTS
    else:
        found = vars(layers)
    named = {name for name, value in found.items() if isinstance(value, type) and name[0].isupper()}
    assert sorted(named - CLASSES - REFUSED) == []


def test_nothing_is_both_known_and_refused():
    assert sorted((CLASSES | OPERATIONS) & REFUSED) == []


def test_the_functions_of_tensorflow_that_old_files_call():
    """All that the pattern lets through are functions, and none has to do with files or code."""
    from tensorflow.python.util import tf_export

    pattern = safety._TENSORFLOW_PARTS
    symbols = tf_export._NAME_TO_SYMBOL_MAPPING
    found = {name: symbols[name] for name in symbols if pattern.fullmatch(name)}
    assert len(found) > 300
    assert [name for name, value in found.items() if isinstance(value, type)] == []
    words = {"file", "save", "load", "py_func", "eval", "read", "write", "import", "module"}
    assert [name for name in found if words & set(name.split(".")[1].split("_"))] == []


def test_what_a_fold_deals_with_may_be_loaded():
    """A layer that folds and that the judge then refuses to load would be of no use."""
    unloadable = {*(rules.LAYERS.keys() - CLASSES), *(rules.OPERATIONS.keys() - OPERATIONS)}
    assert sorted(unloadable) == [], "not in running/keras_names.py"


def reason(entry):
    return safety._danger({"config": {}, **entry})


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "layers.Lambda", "module": "keras"},
        {"class_name": "layers.TFSMLayer", "module": "keras"},
        {"class_name": "Lambda", "module": "keras.src.layers.core.lambda_layer"},
        {"class_name": "config.enable_unsafe_deserialization", "module": "keras"},
        {"class_name": "utils.get_file", "module": "keras"},
        {"class_name": "src.layers.core.lambda_layer.Lambda", "module": "tf_keras"},
        {"class_name": "function", "module": "keras", "config": "utils.get_file"},
        {"class_name": "function", "module": "keras.layers", "config": "deserialize"},
        {"class_name": "get_file", "module": "keras.utils"},
        {"class_name": "get_file", "module": "keras.src.utils.file_utils"},
        {"class_name": "load_model", "module": "keras.models"},
        {"class_name": "deserialize", "module": "keras.layers"},
        {"class_name": "Dense", "module": "keras.layers", "registered_name": "a>Dense"},
        {"class_name": "TensorFlowOpLayer"},
        {"class_name": "TensorFlowOpLayer", "module": "tf_keras.src.engine.base_layer"},
        {"class_name": "any>TensorFlowOpLayer"},
        {"class_name": "InstanceMethod"},
        {"class_name": "TFSMLayer"},
        {"class_name": "__typespec__"},
        {"class_name": "TypeSpec"},
        {"class_name": "TFOpLambda", "config": {"function": "keras.backend.set_floatx"}},
        {"class_name": "TFOpLambda", "config": {"function": "keras.backend.clear_session"}},
        {"class_name": "TFOpLambda", "config": {"function": "raw_ops.WriteFile"}},
        {"class_name": "TFOpLambda", "config": {"function": "math"}},
        {"class_name": "TFOpLambda", "config": {"function": "nn.rnn_cell.DropoutWrapper"}},
        {"class_name": "Dense", "module": "keras.initializers"},
        {"class_name": "Sequential", "module": "keras.losses"},
        {"class_name": "Lambda", "module": "keras.layers", "registered_name": "mine>Layer"},
        {"class_name": "DenseFeatures", "registered_name": "mine>Layer"},
        {"class_name": "WideDeepModel", "module": "mine", "registered_name": "mine>Model"},
        {"class_name": "__tensor__", "module": "mine", "registered_name": "mine>Layer"},
        {"class_name": "TensorShape", "registered_name": "mine>Layer"},
        {"class_name": "JVP", "module": "keras.src.ops.core"},
        {
            "class_name": "function",
            "module": "keras.activations",
            "config": "relu",
            "registered_name": "Lambda",
        },
        {"class_name": "function", "module": "keras.activations", "config": {"name": "relu"}},
        {"class_name": "StringLookup", "config": {"vocabulary": {"class_name": "__bytes__"}}},
        {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
        {
            "class_name": "TextVectorization",
            "module": "keras.layers",
            "config": {"vocabulary": "words.txt"},
        },
    ],
)
def test_what_could_do_more_than_build_a_model_is_refused(entry):
    assert reason(entry) is not None


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "deserialize"},  # the loader of legacy files finds any name of keras.layers
        {"class_name": "BatchNorm"},  # of keras.ops only where that is said
        {"class_name": "Dense.build"},
        {"class_name": "system", "module": "os"},
        {"class_name": "function", "module": "os", "config": "system", "registered_name": "relu"},
        {"class_name": "function", "module": "builtins", "config": "eval"},
        {"class_name": "Block", "module": "keras_hub.models", "registered_name": "keras_hub>Block"},
        {"class_name": "Dense", "module": None, "registered_name": "Dense"},
        {"class_name": "__wrapped__"},
        {"class_name": "ResidualWrapper", "module": "m", "registered_name": "m>ResidualWrapper"},
        {"class_name": "function", "module": "builtins", "config": ["relu"]},
    ],
)
def test_what_is_not_known_to_be_of_keras_must_be_registered(entry):
    assert reason(entry) is None
    assert safety._is_custom({"config": {}, **entry})


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "Dense"},
        {"class_name": "Dense", "module": None, "registered_name": None},
        {"class_name": "Dense", "module": "keras.layers", "registered_name": None},
        {"class_name": "Functional", "module": "keras.src.models.functional"},
        {
            "class_name": "Functional",
            "module": "tf_keras.src.engine.functional",
            "registered_name": "Functional",
        },
        {"class_name": "Add", "module": "keras.src.ops.numpy", "registered_name": "Add"},
        {"class_name": "SGD", "module": "keras.optimizers.experimental", "registered_name": None},
        {"class_name": "function", "module": "builtins", "config": "relu"},
        {"class_name": "DTypePolicy", "module": "keras", "registered_name": None},
        {"class_name": "TFOpLambda", "config": {"function": "math.add"}},
        {"class_name": "TFOpLambda", "config": {"function": "keras.backend.mean"}},
        {"class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}},
        {"class_name": "__keras_tensor__"},
    ],
)
def test_what_keras_writes_is_known(entry):
    assert reason(entry) is None
    assert not safety._is_custom({"config": {}, **entry})
