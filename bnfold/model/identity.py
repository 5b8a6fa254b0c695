"""Whose class an entry of a config names: Keras' own, or somebody's of the same name.

A `.keras` file names a module. Keras writes null for one that is no module, as a script or a
notebook is none, and a registered name beside it; a legacy HDF5 file names neither. So a null
module means Keras' own where no name is registered, and nowhere else.

Where no module is named, the settings are left to tell: a class that Keras has no layer of, or one
with a setting that Keras' class of this name does not know in any version, is somebody's own. One
with the same settings cannot be told apart.
"""

from functools import lru_cache

from bnfold.model import layer_settings
from bnfold.model.graph import Json

_KERAS_MODULES = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")


def is_keras_class(entry: Json) -> bool:
    """Whether an entry names a class of Keras itself, not somebody's own of the same name."""
    class_name, registered = entry.get("class_name"), entry.get("registered_name")
    if not isinstance(class_name, str) or ">" in class_name:
        return False
    if registered not in (None, class_name):
        return False
    module = entry.get("module")
    if module is None:
        return registered is None
    return _is_of_keras(str(module))


@lru_cache(maxsize=64)
def _is_of_keras(module: str) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in _KERAS_MODULES)


def is_keras_layer(entry: Json) -> bool:
    """Whether an entry names a layer or model of Keras itself, by its settings too."""
    if not is_keras_class(entry):
        return False
    known_by_module = entry.get("module") is not None
    return known_by_module or (
        entry["class_name"] in layer_settings.table() and not foreign_settings(entry)
    )


def foreign_settings(entry: Json) -> tuple[str, ...]:
    """The settings that Keras' class of this name does not have; () where no class is known."""
    config, known = entry.get("config"), layer_settings.table().get(str(entry.get("class_name")))
    if known is None or not isinstance(config, dict):
        return ()
    return tuple(key for key in config if key not in known)
