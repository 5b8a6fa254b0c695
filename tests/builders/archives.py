"""Model files written by hand: small, quick, and without Keras or TensorFlow."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CHANNELS = 4

Json = dict[str, Any]
Edit = Callable[[h5py.File], object]


def entry(class_name: str, name: str, inputs: str | None = None, **settings: Any) -> Json:
    history = {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None, CHANNELS], "dtype": "float32", "keras_history": [inputs, 0, 0]},
    }
    nodes = [] if inputs is None else [{"args": [history], "kwargs": {}}]
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "registered_name": None,
        "name": name,
        "config": {"name": name, **settings},
        "inbound_nodes": nodes,
    }


def functional(layers: list[Json], last: str) -> Json:
    config = {
        "name": "model",
        "layers": layers,
        "input_layers": [["x", 0, 0]],
        "output_layers": [[last, 0, 0]],
    }
    return {"module": "keras", "class_name": "Functional", "config": config}


def model_config(dense: str = "dense", norm: str = "bn") -> Json:
    layers = [
        entry("InputLayer", "x", batch_shape=[None, CHANNELS]),
        entry("Dense", dense, "x", units=CHANNELS, activation="linear", use_bias=True),
        entry("BatchNormalization", norm, dense, axis=-1, epsilon=0.001),
    ]
    return functional(layers, norm)


def fill(group: h5py.Group, arrays: list[Any], names: list[str] | None = None) -> None:
    for number, array in enumerate(arrays):
        group.create_dataset(names[number] if names else str(number), data=array)


def dense_arrays(channels: int = CHANNELS) -> list[Any]:
    return [np.eye(channels, dtype="f4"), np.ones(channels, "f4")]


def norm_arrays(channels: int = CHANNELS) -> list[Any]:
    return [np.full(channels, n, "f4") for n in (2.0, 0.5, 0.1, 3.0)]


def weights(edit: Edit | None = None) -> bytes:
    """The HDF5 part of a .keras file."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file.create_group("layers/dense/vars"), dense_arrays())
        fill(file.create_group("layers/batch_normalization/vars"), norm_arrays())
        if edit is not None:
            edit(file)
    return stream.getvalue()


def keras_file(path: Path, *, config: Any = None, h5: bytes | None = None, **extra: bytes) -> Path:
    config = model_config() if config is None else config
    text = config if isinstance(config, (str, bytes)) else json.dumps(config)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", extra.pop("metadata", b'{"keras_version": "3.15.0"}'))
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", weights() if h5 is None else h5)
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


def legacy_file(path: Path, *, config: Any = None, edit: Edit | None = None) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model_config() if config is None else config)
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"x", b"dense", b"bn"]
        group.attrs["keras_version"] = b"3.15.0"
        group.create_group("x").attrs["weight_names"] = np.zeros(0)
        norm = ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]
        for name, arrays, names in (
            ("dense", dense_arrays(), ["dense/kernel", "dense/bias"]),
            ("bn", norm_arrays(), norm),
        ):
            inside = group.create_group(name)
            inside.attrs["weight_names"] = [n.encode() for n in names]
            fill(inside, arrays, names)
        if edit is not None:
            edit(file)
    return path


def directory_model(path: Path) -> Path:
    with zipfile.ZipFile(keras_file(path.with_suffix(".keras"))) as archive:
        archive.extractall(path)
    return path


def chain(pairs: int) -> tuple[Json, bytes]:
    """A model of many Dense and BatchNormalization layers, one behind the other."""
    layers, last, stream = [entry("InputLayer", "x", batch_shape=[None, 1])], "x", io.BytesIO()
    with h5py.File(stream, "w") as file:
        for number in range(pairs):
            end = f"_{number}" if number else ""
            layers.append(entry("Dense", f"d{number}", last, units=1))
            layers.append(entry("BatchNormalization", f"b{number}", f"d{number}"))
            fill(file.create_group(f"layers/dense{end}/vars"), dense_arrays(1))
            fill(file.create_group(f"layers/batch_normalization{end}/vars"), norm_arrays(1))
            last = f"b{number}"
    return functional(layers, last), stream.getvalue()
