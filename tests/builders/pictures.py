"""Models to draw, and the pages on them."""

from support import keras  # isort: skip - it chooses the backend

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from archives import entry, fill, functional, keras_file
from pages import Element, parsed

from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.reports import html

L = keras.layers
CHANNELS = 32


def residual(count: int) -> Any:
    """A model of so many BatchNormalization layers, with a branch around every second one."""
    first = tensor = keras.Input((CHANNELS,), name="features")
    for number in range(count):
        before = tensor
        tensor = L.Dense(CHANNELS, name=f"dense_{number}")(tensor)
        tensor = L.BatchNormalization(name=f"norm_{number}")(tensor)
        tensor = L.ReLU(name=f"relu_{number}")(tensor)
        if number % 2:
            tensor = L.Add(name=f"add_{number}")([before, tensor])
    return trained(keras.Model(first, L.Dense(2, name="scores")(tensor)))


def residual_file(path: Path, count: int) -> Path:
    """The same as a file written by hand: Keras takes seconds to build so many layers."""
    width = {"shape": [None, CHANNELS], "dtype": "float32"}

    def reading(class_name: str, name: str, *sources: str, **settings: Any) -> Any:
        tensors = [
            {
                "class_name": "__keras_tensor__",
                "config": {**width, "keras_history": [source, 0, 0]},
            }
            for source in sources
        ]
        node = {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": {}}
        return {**entry(class_name, name, **settings), "inbound_nodes": [node]}

    made, last, stream = [entry("InputLayer", "x", batch_shape=[None, CHANNELS])], "x", io.BytesIO()
    generator = np.random.default_rng(0)
    with h5py.File(stream, "w") as file:
        for number in range(count):
            before, end = last, f"_{number}" if number else ""
            dense, norm, last = f"dense_{number}", f"norm_{number}", f"relu_{number}"
            made += [
                reading("Dense", dense, before, units=CHANNELS, activation="linear", use_bias=True),
                reading("BatchNormalization", norm, dense, axis=-1, epsilon=0.001),
                reading("ReLU", last, norm),
            ]
            kernel = generator.normal(0, 0.2, (CHANNELS, CHANNELS)).astype("f4")
            fill(file.create_group(f"layers/dense{end}/vars"), [kernel, np.zeros(CHANNELS, "f4")])
            vectors = [vector.astype("f4") for vector in statistics(generator)]
            fill(file.create_group(f"layers/batch_normalization{end}/vars"), vectors)
            if number % 2:
                made.append(reading("Add", f"add_{number}", before, last))
                last = f"add_{number}"
    return keras_file(path, config=functional(made, last), h5=stream.getvalue())


def five() -> Any:
    """A small model with a fold in each direction, one that stays and one through other layers."""
    first = tensor = keras.Input((12, 12, 3), name="image")
    for layer in (
        L.Conv2D(CHANNELS, 3, name="conv_1"),
        L.BatchNormalization(name="after_conv"),
        L.ReLU(name="relu"),
        L.BatchNormalization(name="stays"),
        L.Conv2D(CHANNELS, 3, padding="same", name="conv_2"),
        L.MaxPooling2D(name="pool"),
        L.BatchNormalization(name="after_pool"),
        L.GlobalAveragePooling2D(name="average"),
        L.Dense(CHANNELS, activation="relu", name="dense"),
        L.BatchNormalization(name="before_scores"),
        L.Dense(4, name="scores"),
        L.BatchNormalization(name="last"),
    ):
        tensor = layer(tensor)
    model = trained(keras.Model(first, tensor, name="five"))
    model.get_layer("after_pool").gamma.assign(np.full(CHANNELS, 0.9))  # a maximum keeps order
    return model


def trained(model: Any, seed: int = 0) -> Any:
    """Statistics as training leaves them; returns the model."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights(statistics(generator, layer.moving_mean.shape[0]))
    return model


def statistics(generator: np.random.Generator, count: int = CHANNELS) -> list[Any]:
    """gamma, beta, mean and variance of a layer, as training leaves them."""
    variance = 10 ** generator.normal(-0.5, 0.5) * generator.lognormal(0, 0.6, count)
    gamma, beta = generator.normal(1, 0.2, count), generator.normal(0.3, 0.4, count)
    return [gamma, beta, generator.normal(0, 1, count) * np.sqrt(variance), variance]


def spoiled(model: Any) -> Any:
    """The first six layers broken, each in its own way; returns the model."""
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    _edit(norms[0].gamma, {5: np.nan})
    _edit(norms[1].moving_variance, {3: -0.5, 7: -1e-5})
    norms[2].moving_mean.assign(np.zeros(CHANNELS))
    norms[2].moving_variance.assign(np.ones(CHANNELS))
    _edit(norms[3].moving_variance, {2: 1e-30, 4: 0.0})
    _edit(norms[4].gamma, {0: 0.0, 1: 1e-7})
    _edit(norms[5].moving_mean, {9: 1e6})
    return model


def _edit(variable: Any, values: dict[int, float]) -> None:
    changed = variable.numpy()
    for channel, value in values.items():
        changed[channel] = value
    variable.assign(changed)


def saved(model: Any, path: Path) -> Inspection:
    """The inspection of a model in a file."""
    model.save(path)
    return inspect_file(path)


def page(*models: Inspection) -> Element:
    """The elements of the page on some models."""
    return parsed(html.inspections(models))
