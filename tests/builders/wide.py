"""Models that are read from stores, and what is said of them."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from archives import (
    CHANNELS,
    entry,
    fill,
    functional,
    keras_file,
    legacy_file,
    norm_arrays,
    weights,
)
from click.testing import Result

from bnfold.jobs.inspect import inspect_file

WIDTH = 1024


def wide_config() -> dict[str, Any]:
    layers = [
        entry("InputLayer", "x", batch_shape=[None, WIDTH]),
        entry("Dense", "dense", "x", units=WIDTH, activation="linear", use_bias=True),
        entry("BatchNormalization", "bn", "dense", axis=-1, epsilon=0.001),
    ]
    text = json.dumps(functional(layers, "bn"))
    found: dict[str, Any] = json.loads(text.replace(f"[null, {CHANNELS}]", f"[null, {WIDTH}]"))
    return found


def wide_arrays() -> list[Any]:
    return [np.eye(WIDTH, dtype="f4"), np.ones(WIDTH, "f4")]


def wide_keras(path: Path) -> Path:
    """A model of 4 MiB, nearly all of which is one kernel."""

    def widen(file: Any) -> None:
        for name, arrays in (("dense", wide_arrays()), ("batch_normalization", norm_arrays(WIDTH))):
            del file[f"layers/{name}/vars"]
            fill(file.create_group(f"layers/{name}/vars"), arrays)

    return keras_file(path, config=wide_config(), h5=weights(widen))


def wide_h5(path: Path) -> Path:
    """The same in the legacy format."""

    def widen(file: Any) -> None:
        norm = ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
        for name, arrays, names in (
            ("dense", wide_arrays(), ["dense/kernel", "dense/bias"]),
            ("bn", norm_arrays(WIDTH), norm),
        ):
            inside = file[f"model_weights/{name}"]
            del inside[name]
            fill(inside, arrays, names)

    return legacy_file(path, config=wide_config(), edit=widen)


WIDE = {".keras": wide_keras, ".h5": wide_h5}


def many_layers(path: Path, number: int = 300) -> Path:
    """A model whose weights have so many groups that their names are a tree of two levels."""
    names = [f"bn_{one}" for one in range(number)]
    layers = [entry("InputLayer", "x", batch_shape=[None, CHANNELS])]
    layers += [
        entry("BatchNormalization", name, before, axis=-1, epsilon=0.001)
        for before, name in pairwise(["x", *names])
    ]

    def widen(file: Any) -> None:
        for name in list(file["layers"]):
            del file["layers"][name]
        for one in range(number):
            name = f"batch_normalization_{one}" if one else "batch_normalization"
            fill(file.create_group(f"layers/{name}/vars"), norm_arrays(CHANNELS))
            file.create_dataset(f"far_{one}", data=np.zeros(2 << 10, "f4"))

    return keras_file(path, config=functional(layers, names[-1]), h5=weights(widen))


def refused(result: Result, says: str) -> None:
    """A command has ended with one line and exit code 2, and has no secret in it."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("bnfold: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert says in result.stderr, result.stderr
    assert "secret" not in result.stderr


def report(model: Any) -> dict[str, Any]:
    """What `inspect` says of a model, but for where it is and what was not looked at."""
    said = inspect_file(model).to_dict()
    return {key: value for key, value in said.items() if key not in ("path", "note")}
