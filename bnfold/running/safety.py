"""What a model file would make Keras run, found out before Keras sees the file.

The file is read as `bnfold.model` reads it, as data. Keras' own safe mode does not cover legacy
HDF5 (CVE-2025-9905) and has been passed by more than once (CVE-2025-1550, CVE-2025-8747), so every
class and function that a file names is resolved here first: it must be one that Keras is known to
have (`keras_names`), in a part of Keras that holds layers and mathematics, or be registered by a
package that the user imports. What is in neither is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import UnsafeModelError
from bnfold.model import declared
from bnfold.model.container.model_file import Kind, open_model
from bnfold.model.declared import Declared
from bnfold.model.keras_json import PLAIN_MODEL
from bnfold.running.declared import input_specs
from bnfold.running.keras_names import CLASSES, FUNCTIONS, KNOWN, REFUSED
from bnfold.running.samples import InputSpec

_RUNS_CODE = {
    "Lambda": "runs code stored in the file",
    "__lambda__": "runs code stored in the file",
    "TFSMLayer": "loads another SavedModel from disk",
    "TorchModuleWrapper": "unpickles a PyTorch module",
    "JaxLayer": "runs code stored in the file",
    "FlaxLayer": "runs code stored in the file",
    "TensorFlowOpLayer": "runs any TensorFlow operation that the file names",
    "ClassMethod": "calls a method that the file names",
    "InstanceMethod": "calls a method that the file names",
    "InstanceProperty": "reads a property that the file names",
    "__typespec__": "looks up a class by name",
    "TypeSpec": "looks up a class by name",
    "CompositeTensor": "looks up a class by name",
}
"""Why what Keras would do is refused, in more words than that a name is not known to be safe."""

_VALUES = {
    *("__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"),
    *("__tuple__", "TensorShape"),
}
"""What is written like an object and is only a value; `nodes` reads them as data, too."""

_FUNCTION_CALLS = {"TFOpLambda", "SlicingOpLambda"}
_BY_NO_OTHER_NAME = (None, "function")
"""What Keras writes in place of a registered name for a function that has none."""

_KERAS_ROOTS = {"keras", "tf_keras"}

# What old files may call of TensorFlow by name (TFOpLambda); tf.io and others touch files.
_TENSORFLOW_PARTS = re.compile(r"(?:math|nn|linalg|image|__operators__)\.[a-z][a-z0-9_]*")
_TENSORFLOW_FUNCTIONS = {
    *("cast", "clip_by_value", "concat", "convert_to_tensor", "expand_dims", "fill", "gather"),
    *("identity", "one_hot", "ones", "ones_like", "pad", "range", "repeat", "reshape", "reverse"),
    *("shape", "slice", "split", "squeeze", "stack", "stop_gradient", "strided_slice", "tile"),
    *("transpose", "unstack", "where", "zeros", "zeros_like", "broadcast_to", "roll"),
}
# keras.backend also has functions that change the process (set_floatx, clear_session).
_BACKEND_FUNCTIONS = {
    *("abs", "all", "any", "arange", "argmax", "argmin", "batch_dot", "batch_flatten"),
    *("batch_normalization", "bias_add", "binary_crossentropy", "cast", "cast_to_floatx"),
    *("categorical_crossentropy", "clip", "concatenate", "constant", "conv1d", "conv2d"),
    *("conv2d_transpose", "conv3d", "cos", "cumprod", "cumsum", "depthwise_conv2d", "dot"),
    *("dropout", "elu", "equal", "exp", "expand_dims", "eye", "flatten", "gather", "greater"),
    *("greater_equal", "hard_sigmoid", "in_top_k", "l2_normalize", "less", "less_equal", "log"),
    *("max", "maximum", "mean", "min", "minimum", "not_equal", "one_hot", "ones", "ones_like"),
    *("permute_dimensions", "pool2d", "pool3d", "pow", "prod", "relu", "repeat"),
    *("repeat_elements", "reshape", "resize_images", "resize_volumes", "reverse", "round"),
    *("separable_conv2d", "shape", "sigmoid", "sign", "sin", "softmax", "softplus", "softsign"),
    *("sparse_categorical_crossentropy", "spatial_2d_padding", "spatial_3d_padding", "sqrt"),
    *("square", "squeeze", "stack", "std", "stop_gradient", "sum", "switch", "tanh"),
    *("temporal_padding", "tile", "transpose", "var", "zeros", "zeros_like"),
}


@dataclass(frozen=True)
class FileFacts:
    """The kind of a model file, its config and which Keras wrote it.

    `inputs` and `outputs` are what it says that the model takes and gives, empty for what the file
    does not tell; `specs` are the inputs with their names, none unless it tells all about all.
    """

    path: Path
    kind: Kind
    config: dict[str, Any]
    keras_version: str
    inputs: tuple[Declared, ...] = ()
    outputs: tuple[Declared, ...] = ()
    specs: tuple[InputSpec, ...] = ()


@dataclass(frozen=True)
class Custom:
    """A class or function that is not part of Keras, under the name it should be registered by.

    What a file names as a class is called with the settings from the file.
    """

    name: str
    layer: str
    is_function: bool = False

    def may_be(self, value: Any) -> bool:
        """Whether a module's value is such a one: a function is not what makes a layer."""
        return callable(value) if self.is_function else hasattr(value, "from_config")


def read_facts(path: Path) -> FileFacts:
    """Read a model file's config as data, with everything that refuses an unsafe file.

    Raises UnreadableModelError and UnsafeModelError.
    """
    with open_model(path) as model, model.named():
        return FileFacts(
            path,
            model.kind,
            model.graph.entry,
            model.keras_version or "",
            declared.inputs(model.graph),
            declared.outputs(model.graph),
            input_specs(model.graph),
        )


def refuse_code(facts: FileFacts) -> None:
    """Raise UnsafeModelError if loading the file could run code that the file brings or names."""
    for layer, entry in _entries(facts.config):
        reason = _danger(entry)
        if reason is not None:
            raise UnsafeModelError(
                f"{facts.path}: {_named(entry, layer)} {reason};"
                " it was not loaded (--trust loads it all the same)"
            )


def custom_entries(facts: FileFacts) -> list[Custom]:
    """Return what must be registered before Keras can load the file."""
    found: dict[tuple[str, bool], Custom] = {}
    for layer, entry in _entries(facts.config):
        if _is_custom(entry):
            custom = Custom(_sought(entry), layer, entry["class_name"] == "function")
            found.setdefault((custom.name, custom.is_function), custom)
    return list(found.values())


def texts(facts: FileFacts) -> set[str]:
    """Every text in a file's config: among others, what legacy files call functions and classes.

    A registered class is there by its own name, too, without its package.
    """
    found: set[str] = set()
    pending: list[Any] = [facts.config]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found |= {value, value.rsplit(">", 1)[-1]}
        elif isinstance(value, (list, dict)):
            pending.extend(value.values() if isinstance(value, dict) else value)
    return found


def refuse_unregistered(facts: FileFacts, unregistered: Sequence[Custom]) -> None:
    """Raise UnsafeModelError for the first class that no imported package has registered."""
    for custom in unregistered:
        is_model = custom.name == _sought(facts.config)
        who = f"layer {_shown(custom.layer)}" if custom.layer and not is_model else "the model"
        plain = f", or {PLAIN_MODEL}" if is_model and _has_graph(facts.config) else ""
        raise UnsafeModelError(
            f"{facts.path}: {who} needs {_shown(custom.name)}, which is not part of Keras: name the"
            f" module that registers it with --import MODULE{plain}"
        )


def _has_graph(entry: dict[str, Any]) -> bool:
    """Whether a model of somebody's own class is written as a graph of layers."""
    config = entry.get("config")
    return isinstance(config, dict) and isinstance(config.get("layers"), list)


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every serialized object with the name of the nearest layer, without recursion.

    The compile_config of the whole model is left out, because the model is loaded without it.
    """
    top = {key: value for key, value in config.items() if key != "compile_config"}
    pending: list[tuple[str, Any]] = [("", top)]
    while pending:
        layer, value = pending.pop()
        if isinstance(value, list):
            pending.extend((layer, item) for item in value)
        elif isinstance(value, dict):
            layer = _layer_name(value, layer)
            if isinstance(value.get("class_name"), str):
                yield layer, value
            pending.extend((layer, item) for item in value.values())


def _layer_name(value: dict[str, Any], outer: str) -> str:
    config = value.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    return (
        name if isinstance(name, str) and "class_name" in value and not _is_policy(value) else outer
    )


def _is_policy(value: dict[str, Any]) -> bool:
    return "Policy" in str(value.get("class_name"))


def _sought(entry: dict[str, Any]) -> str:
    """The name under which Keras looks for a class or function of somebody's own."""
    if entry["class_name"] == "function":
        return str(entry.get("config"))
    return str(entry.get("registered_name") or entry["class_name"])


def _danger(entry: dict[str, Any]) -> str | None:
    """Why loading an entry could do more than build a model of what Keras has; None if not."""
    class_name, config = str(entry["class_name"]), entry.get("config")
    plain = class_name.rsplit(">", 1)[-1].rsplit(".", 1)[-1]
    if plain in _RUNS_CODE:
        return _RUNS_CODE[plain]
    if plain in _FUNCTION_CALLS:
        return _tensorflow_danger(entry)
    if _is_keras(entry):
        return _reading_danger(config)
    module, registered = str(entry.get("module") or ""), entry.get("registered_name")
    if module.split(".", maxsplit=1)[0] in _KERAS_ROOTS:
        return _unknown_part(module, config if class_name == "function" else class_name)
    if class_name in _VALUES or (class_name in REFUSED and plain != _plain(_sought(entry))):
        return f"goes by a second name, {_shown(str(registered))}"
    return None


def _unknown_part(module: str, name: object) -> str:
    if not _is_modelling(module):
        return f"names {_shown(module)}, which is not a part of Keras that models are made of"
    whole = _shown(f"{module}.{name}")
    return f"names {whole}, which is not known to be a harmless part of Keras"


def _plain(name: str) -> str:
    """A registered name without its package."""
    return name.rsplit(">", 1)[-1]


def _reading_danger(config: Any) -> str | None:
    """Lookup layers take a list of words, or the name of a file that they then read."""
    vocabulary = config.get("vocabulary") if isinstance(config, dict) else None
    if isinstance(vocabulary, (str, dict)):
        return f"reads its vocabulary from the file {_shown(str(vocabulary))}"
    return None


def _tensorflow_danger(entry: dict[str, Any]) -> str | None:
    config = entry.get("config")
    function = str(config.get("function")) if isinstance(config, dict) else ""
    plain = function.removeprefix("compat.v1.")
    if plain in _TENSORFLOW_FUNCTIONS or _TENSORFLOW_PARTS.fullmatch(plain):
        return None
    if plain.removeprefix("keras.backend.") in _BACKEND_FUNCTIONS and "." in plain:
        return None
    return f"calls the TensorFlow function {_shown(function)}, which is not plain mathematics"


def _is_modelling(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in _KERAS_ROOTS and _part(module) in KNOWN


def _part(module: str) -> str:
    """The part of Keras that a module is in: "ops" for `keras.src.ops.numpy`, "" for `keras`."""
    packing = {"src", "legacy", "api", "v2"}
    return next((part for part in module.split(".")[1:] if part not in packing), "")


def _is_keras(entry: dict[str, Any]) -> bool:
    """Whether an entry names, by its exact name, what Keras is known to have, and only that.

    Legacy HDF5 files name no module. In other files an entry without one is of the script that
    saved the model.
    """
    class_name, registered = entry["class_name"], entry.get("registered_name")
    module, config = entry.get("module"), entry.get("config")
    if class_name in _VALUES:
        return module is None and registered is None
    if class_name == "function":
        known = isinstance(config, str) and config in FUNCTIONS
        is_there = module == "builtins" or _is_modelling(str(module))
        return known and is_there and registered in (*_BY_NO_OTHER_NAME, config)
    if module is None:
        return registered is None and class_name in CLASSES
    names = KNOWN[_part(str(module))] if _is_modelling(str(module)) else frozenset[str]()
    return class_name in names and registered in (None, class_name)


def _is_custom(entry: dict[str, Any]) -> bool:
    """Whether Keras needs a class or function for an entry that is not its own."""
    return not _is_keras(entry) and _danger(entry) is None


def _named(entry: dict[str, Any], layer: str) -> str:
    return f"layer {_shown(layer)} ({_shown(str(entry['class_name']))})"


def _shown(text: str) -> str:
    """Quote a name from the file, control characters escaped, cut to a sane length."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
