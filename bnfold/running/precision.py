"""The same Keras config in float64: a pure rewrite of every floating dtype that the config names.

Keras writes a dtype as text ("float32") or as a serialized policy (DTypePolicy, Policy); both stand
under the key "dtype", in layers and in the constants and arguments of operations alike. Quantized
policies name integer arithmetic that has no float64 form; with one of them there is no copy.

Random initial values become zeros: all weights are set anyway, and drawing millions takes time.
"""

from __future__ import annotations

from typing import Any

_FLOATS = {"float16", "bfloat16", "float32", "float64", "half", "double"}
_POLICIES = _FLOATS | {"mixed_float16", "mixed_bfloat16"}
_RANDOM = {
    *("RandomNormal", "RandomUniform", "TruncatedNormal", "VarianceScaling", "Orthogonal"),
    *("GlorotNormal", "GlorotUniform", "HeNormal", "HeUniform", "LecunNormal", "LecunUniform"),
    "OrthogonalInitializer",
}
_POLICY_CLASSES = {"DTypePolicy", "FloatDTypePolicy", "Policy", "PolicyV1"}


def in_float64(config: Any) -> Any:
    """Return a config that computes in float64. Raises ValueError for quantized layers."""
    if isinstance(config, dict):
        return {key: _entry(key, value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(in_float64(item) for item in config)
    return config


def _entry(key: str, value: Any) -> Any:
    if key.endswith("_initializer") and _is_random(value):
        return {"module": "keras.initializers", "class_name": "Zeros", "config": {}}
    if key != "dtype":
        return in_float64(value)
    if isinstance(value, str):
        return "float64" if value in _POLICIES else value
    if isinstance(value, dict) and value.get("class_name") in _POLICY_CLASSES:
        return "float64"
    if isinstance(value, dict):
        raise ValueError("quantized layers have no float64 form")
    return value


def _is_random(value: Any) -> bool:
    """Whether an initializer of Keras' own draws its values."""
    return (
        isinstance(value, dict)
        and value.get("module") == "keras.initializers"
        and value.get("class_name") in _RANDOM
    )
