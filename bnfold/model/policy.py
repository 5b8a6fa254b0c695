"""Dtype policies: in which dtype a layer computes, and in which it keeps its variables."""

from typing import Any, NamedTuple

from bnfold.model.graph import Layer
from bnfold.model.identity import is_keras_class

_CLASSES = ("DTypePolicy", "Policy", "FloatDTypePolicy")
_PLAIN = ("float16", "bfloat16", "float32", "float64")


class Policy(NamedTuple):
    """The dtype of a layer's sums and output, and that of its variables."""

    compute: str
    variable: str


def policy(layer: Layer) -> Policy | None:
    """The dtype policy of a layer; None where it is quantized, a map, or somebody's own."""
    return parse_policy(layer.config.get("dtype"))


def policy_name(layer: Layer) -> str | None:
    """The name of a layer's dtype policy as its config gives it, float32 where it gives none."""
    return _name(layer.config.get("dtype"))


def parse_policy(dtype: Any) -> Policy | None:
    """The policy that a config's `dtype` means: a name, or since Keras 2.4 an object."""
    name = _name(dtype)
    if name in _PLAIN:
        return Policy(name, name)
    if name in ("mixed_float16", "mixed_bfloat16"):
        return Policy(name.removeprefix("mixed_"), "float32")
    return None


def _name(dtype: Any) -> str | None:
    if dtype is None:
        return "float32"
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, dict) and is_keras_class(dtype) and dtype["class_name"] in _CLASSES:
        config = dtype.get("config")
        name = config.get("name") if isinstance(config, dict) else None
        return name if isinstance(name, str) else None
    return None
