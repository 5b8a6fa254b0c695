"""What a model file would make Keras run, found out before Keras sees the file.

The file is read as `bnfold.model` reads it, as data. Keras' own safe mode does not cover legacy
HDF5 (CVE-2025-9905) and has been passed by more than once (CVE-2025-1550, CVE-2025-8747), so every
class and function a file names must come from the parts of Keras that hold layers and mathematics,
or be registered by a package that the user imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import UnsafeModelError
from bnfold.model.container import Kind, open_model

_RUNS_CODE = {
    "Lambda": "runs code stored in the file",
    "__lambda__": "runs code stored in the file",
    "TFSMLayer": "loads another SavedModel from disk",
    "TorchModuleWrapper": "unpickles a PyTorch module",
    "JaxLayer": "runs code stored in the file",
    "FlaxLayer": "runs code stored in the file",
    "__typespec__": "looks up a class by name",
}

_KERAS_ROOTS = {"keras", "tf_keras"}
_KERAS_EXTENSIONS = {"keras_hub", "keras_cv", "keras_nlp"}
_KERAS_PARTS = {
    *("activations", "backend", "constraints", "dtype_policies", "engine", "initializers"),
    *("layers", "losses", "metrics", "mixed_precision", "models", "ops", "optimizers"),
    *("quantizers", "random", "regularizers", "export"),
}

# What old files may call of TensorFlow by name (TFOpLambda); tf.io and others touch files.
_TENSORFLOW_PREFIXES = ("math.", "nn.", "linalg.", "image.", "__operators__.", "keras.backend.")
_TENSORFLOW_FUNCTIONS = {
    *("cast", "clip_by_value", "concat", "convert_to_tensor", "expand_dims", "fill", "gather"),
    *("identity", "one_hot", "ones", "ones_like", "pad", "range", "repeat", "reshape", "reverse"),
    *("shape", "slice", "split", "squeeze", "stack", "stop_gradient", "strided_slice", "tile"),
    *("transpose", "unstack", "where", "zeros", "zeros_like", "broadcast_to", "roll"),
}


@dataclass(frozen=True)
class FileFacts:
    """The kind of a model file, its config and which Keras wrote it."""

    path: Path
    kind: Kind
    config: dict[str, Any]
    keras_version: str


@dataclass(frozen=True)
class Custom:
    """A class or function that is not part of Keras, under the name it should be registered by."""

    name: str
    layer: str


def read_facts(path: Path) -> FileFacts:
    """Read a model file's config as data, with everything that refuses an unsafe file.

    Raises UnreadableModelError and UnsafeModelError.
    """
    with open_model(path) as model:
        return FileFacts(path, model.kind, model.graph.entry, model.keras_version or "")


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
    found: dict[str, Custom] = {}
    for layer, entry in _entries(facts.config):
        if _is_custom(entry):
            name = str(_registered_name(entry))
            found.setdefault(name, Custom(name, layer))
    return list(found.values())


def refuse_unregistered(facts: FileFacts, unregistered: Sequence[Custom]) -> None:
    """Raise UnsafeModelError for the first class that no imported package has registered."""
    for custom in unregistered:
        who = f"layer {_shown(custom.layer)}" if custom.layer else "the model"
        raise UnsafeModelError(
            f"{facts.path}: {who} needs {_shown(custom.name)}, which is not part of Keras: name the"
            " module that registers it with --import MODULE"
        )


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


def _registered_name(entry: dict[str, Any]) -> Any:
    if entry["class_name"] == "function":
        return entry.get("registered_name") or entry.get("config")
    return entry.get("registered_name") or entry["class_name"]


def _danger(entry: dict[str, Any]) -> str | None:
    name = str(entry["class_name"]).rsplit(">", 1)[-1]
    if name in _RUNS_CODE:
        return _RUNS_CODE[name]
    if name in {"TFOpLambda", "SlicingOpLambda"}:
        return _tensorflow_danger(entry)
    parts = str(entry.get("module") or "").split(".")
    if parts[0] in _KERAS_ROOTS and not _is_modelling(parts):
        return (
            f"names {_shown('.'.join(parts))}, which is not a part of Keras that models are made of"
        )
    return None


def _tensorflow_danger(entry: dict[str, Any]) -> str | None:
    config = entry.get("config")
    function = str(config.get("function")) if isinstance(config, dict) else ""
    plain = function.removeprefix("compat.v1.")
    if plain in _TENSORFLOW_FUNCTIONS or plain.startswith(_TENSORFLOW_PREFIXES):
        return None
    return f"calls the TensorFlow function {_shown(function)}, which is not plain mathematics"


def _is_modelling(parts: list[str]) -> bool:
    inner = [part for part in parts[1:] if part not in {"src", "legacy", "api", "v2"}]
    return not inner or inner[0] in _KERAS_PARTS


def _is_custom(entry: dict[str, Any]) -> bool:
    """Tell a custom class by a registered name with a ">" or no module, or by its module.

    Keras writes no module for a class of the script that saved the model.
    """
    name = str(_registered_name(entry))
    module = entry.get("module")
    if ">" in name:
        return name.split(">", 1)[0] not in _KERAS_EXTENSIONS
    root = str(module or "").split(".")[0]
    if module == "builtins" and entry["class_name"] == "function":
        return False
    if not root:
        return entry.get("registered_name") is not None
    known = {"builtins", *_KERAS_ROOTS, *_KERAS_EXTENSIONS}
    return root not in known or (root == "builtins" and "registered_name" in entry)


def _named(entry: dict[str, Any], layer: str) -> str:
    return f"layer {_shown(layer)} ({_shown(str(entry['class_name']))})"


def _shown(text: str) -> str:
    """Quote a name from the file, control characters escaped, cut to a sane length."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
