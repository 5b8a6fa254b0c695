"""The lists of what a config may name, held against what the installed Keras and tf_keras have."""

import importlib
import inspect
import pkgutil

import pytest

from bnfold.folding import rules
from bnfold.running import safety
from bnfold.running.keras_names import CLASSES, FUNCTIONS, OPERATIONS

pytestmark = pytest.mark.keras

CLASS_PARTS = (
    *("constraints", "dtype_policies", "initializers", "layers", "losses", "metrics", "models"),
    *("mixed_precision", "optimizers", "optimizers.legacy", "optimizers.schedules", "quantizers"),
    *("regularizers",),
)
FUNCTION_PARTS = ("activations", "initializers", "losses", "metrics", "regularizers")
BASES = {
    *("Constraint", "Initializer", "InputSpec", "Layer", "LearningRateSchedule", "Loss", "Metric"),
    *("Optimizer", "Quantizer", "Reduction", "Regularizer"),
}
RUN_CODE = {
    *("DenseFeatures", "FlaxLayer", "JaxLayer", "Lambda", "TFSMLayer", "TorchModuleWrapper"),
}
TAKE_FUNCTIONS = {
    *("AssociativeScan", "Cond", "ForiLoop", "Function", "Map", "Operation", "Scan", "Switch"),
    *("SegmentReduction", "VectorizedMap", "WhileLoop"),
}


def members(library, parts, kind):
    found = set()
    for part in parts:
        try:
            module = importlib.import_module(f"{library}.{part}")
        except ImportError:
            continue
        found |= {name for name, value in vars(module).items() if kind(value)}
    return found


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_every_class_of_keras_is_known_or_refused(library):
    pytest.importorskip(library)
    found = members(library, CLASS_PARTS, inspect.isclass)
    new = sorted(found - CLASSES - BASES - RUN_CODE)
    assert new == [], "they belong into running/keras_names.py, or here if they run code"
    assert not CLASSES & (BASES | RUN_CODE)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_every_function_that_configs_name_is_known(library):
    pytest.importorskip(library)
    found = members(library, FUNCTION_PARTS, inspect.isfunction)
    new = sorted(found - FUNCTIONS - {"deserialize", "get", "serialize"})
    assert new == [], "they belong into running/keras_names.py"


def test_every_operation_is_known_or_refused():
    from keras.src import ops
    from keras.src.ops.operation import Operation

    names = {found.name for found in pkgutil.walk_packages(ops.__path__, "keras.src.ops.")}
    modules = [importlib.import_module(name) for name in names if "test" not in name]
    found = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Operation)
    }
    new = sorted(found - OPERATIONS - TAKE_FUNCTIONS)
    assert new == [], "they belong into running/keras_names.py, or here if they take functions"
    assert not OPERATIONS & TAKE_FUNCTIONS


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
