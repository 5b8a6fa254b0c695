"""Model files of many layers, of forms in which what is done for each layer could grow with others.

Written by hand, so that a model of tens of thousands of layers takes seconds to make. A form is a
function of a size; the number of its layers and tensors grows in proportion to it.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Json = dict[str, Any]

WIDTH = 4


def _snake(class_name: str) -> str:
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in class_name).lstrip("_")
    return words.replace("re_l_u", "re_lu")


class Sketch:
    """A functional model under construction; tensors are named by the layer that makes them."""

    def __init__(self, width: int = WIDTH, *, states_shapes: bool = True) -> None:
        self.width = width
        self.states_shapes = states_shapes
        self.layers: dict[str, Json] = {}
        self.weights: dict[str, list[Any]] = {}
        self._random = np.random.default_rng(0)

    def input(self, name: str = "x") -> str:
        return self.add("InputLayer", [], name, batch_shape=[None, self.width])

    def add(
        self, class_name: str, reads: list[str], name: str | None = None, **settings: Any
    ) -> str:
        name = name or f"{_snake(class_name)}_{len(self.layers)}"
        self.layers[name] = {
            "module": "keras.layers",
            "class_name": class_name,
            "registered_name": None,
            "name": name,
            "config": {"name": name, **settings},
            "inbound_nodes": [],
        }
        if reads:
            self.call(name, reads)
        return name

    def call(self, name: str, reads: list[str], calls: list[int] | None = None) -> None:
        numbers = calls or [0] * len(reads)
        tensors = [
            {
                "class_name": "__keras_tensor__",
                "config": {
                    "shape": [None, self.width] if self.states_shapes else None,
                    "dtype": "float32",
                    "keras_history": [one, number, 0],
                },
            }
            for one, number in zip(reads, numbers, strict=True)
        ]
        first: Any = tensors if len(tensors) > 1 else tensors[0]
        self.layers[name]["inbound_nodes"].append({"args": [first], "kwargs": {}})

    def dense(self, read: str | None, name: str | None = None) -> str:
        name = self.add("Dense", [read] if read else [], name, units=self.width, use_bias=True)
        kernel = self._random.normal(0, 1 / np.sqrt(self.width), (self.width, self.width))
        self.weights[name] = [kernel.astype("f4"), np.zeros(self.width, "f4")]
        return name

    def norm(self, read: str, name: str | None = None) -> str:
        name = self.add("BatchNormalization", [read], name, axis=-1, epsilon=0.001, momentum=0.99)
        low, high = np.full(self.width, 0.8), np.full(self.width, 1.2)
        gamma, variance = (self._random.uniform(low, high) for _ in range(2))
        beta, mean = (self._random.normal(0, 0.1, self.width) for _ in range(2))
        self.weights[name] = [one.astype("f4") for one in (gamma, beta, mean, variance)]
        return name

    def relu(self, read: str) -> str:
        return self.add("ReLU", [read], max_value=None, negative_slope=0.0, threshold=0.0)

    def join(self, class_name: str, reads: list[str]) -> str:
        return self.add(class_name, reads)

    def config(self, outputs: list[str], name: str = "model") -> Json:
        inputs = [key for key, one in self.layers.items() if one["class_name"] == "InputLayer"]
        return {
            "module": "keras",
            "class_name": "Functional",
            "config": {
                "name": name,
                "layers": list(self.layers.values()),
                "input_layers": [[key, 0, 0] for key in inputs],
                "output_layers": [[key, 0, 0] for key in outputs],
            },
        }

    def write(self, path: Path, outputs: list[str]) -> Path:
        stream = io.BytesIO()
        with h5py.File(stream, "w", libver="latest") as file:
            self.fill(file, "")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')
            archive.writestr("config.json", json.dumps(self.config(outputs)))
            archive.writestr("model.weights.h5", stream.getvalue())
        return path

    def fill(self, file: h5py.File, prefix: str) -> None:
        """The weights, in the order of the layers, which must be that of Keras."""
        used: Counter[str] = Counter()
        for name, layer in self.layers.items():
            base = _snake(layer["class_name"])
            group = f"{prefix}layers/{base}" + (f"_{used[base]}" if used[base] else "")
            used[base] += 1
            for number, array in enumerate(self.weights.get(name, [])):
                file[f"{group}/vars/{number}"] = array


def chain(size: int, path: Path, width: int = WIDTH) -> Path:
    """Dense, BatchNormalization, ReLU, one after the other."""
    sketch = Sketch(width)
    last = sketch.input()
    for _ in range(size):
        last = sketch.relu(sketch.norm(sketch.dense(last)))
    return sketch.write(path, [last])


def norms(size: int, path: Path) -> Path:
    """BatchNormalization layers in a row, with nothing that absorbs them."""
    sketch = Sketch()
    last = sketch.input()
    for _ in range(size):
        last = sketch.norm(last)
    return sketch.write(path, [last])


def norms_after_dense(size: int, path: Path) -> Path:
    """A Dense, then BatchNormalization layers in a row."""
    sketch = Sketch()
    last = sketch.dense(sketch.input())
    for _ in range(size):
        last = sketch.norm(last)
    return sketch.write(path, [last])


def norms_and_relus(size: int, path: Path) -> Path:
    """BatchNormalization and ReLU in turn: no ReLU can be crossed."""
    sketch = Sketch()
    last = sketch.input()
    for _ in range(size):
        last = sketch.relu(sketch.norm(last))
    return sketch.write(path, [last])


def norms_and_dropouts(size: int, path: Path) -> Path:
    """Many layers that are crossed, between a few that cannot be: long ways for each."""
    sketch = Sketch()
    last = sketch.input()
    for number in range(size):
        last = sketch.add("Identity", [last])
        if number % 2:
            last = sketch.norm(last)
    return sketch.write(path, [last])


def residual(size: int, path: Path) -> Path:
    """Each block adds what it makes to what it read."""
    sketch = Sketch()
    last = sketch.dense(sketch.input())
    for _ in range(size):
        inner = sketch.norm(sketch.dense(last))
        last = sketch.join("Add", [last, inner])
    return sketch.write(path, [last])


def residual_norms(size: int, path: Path) -> Path:
    """BatchNormalization first in each block, and nothing that absorbs it on the other branch."""
    sketch = Sketch()
    last = sketch.input()
    for _ in range(size):
        inner = sketch.norm(last)
        last = sketch.join("Add", [last, inner])
    return sketch.write(path, [last])


def ladder(size: int, path: Path, join: str = "Add") -> Path:
    """Each joins the two before it; BatchNormalization at the end."""
    sketch = Sketch()
    one, two = sketch.dense(sketch.input()), sketch.dense("x")
    for _ in range(size):
        one, two = two, sketch.join(join, [one, two])
    return sketch.write(path, [sketch.norm(two)])


def ladder_from_norms(size: int, path: Path) -> Path:
    """A ladder of sums, each with a BatchNormalization of its own before and after."""
    sketch = Sketch()
    one, two = sketch.dense(sketch.input()), sketch.dense("x")
    for _ in range(size):
        one, two = two, sketch.norm(sketch.join("Add", [one, two]))
    return sketch.write(path, [two])


def doubled(size: int, path: Path) -> Path:
    """Add([h, h]) again and again, a BatchNormalization before and after each."""
    sketch = Sketch()
    last = sketch.dense(sketch.input())
    for _ in range(size):
        last = sketch.norm(sketch.join("Add", [last, last]))
    return sketch.write(path, [last])


def fan_out(size: int, path: Path) -> Path:
    """One BatchNormalization that many Dense layers read."""
    sketch = Sketch()
    last = sketch.norm(sketch.input())
    return sketch.write(path, [sketch.dense(last) for _ in range(size)])


def fan_of_norms(size: int, path: Path) -> Path:
    """One Dense that many BatchNormalization layers read."""
    sketch = Sketch()
    last = sketch.dense(sketch.input())
    return sketch.write(path, [sketch.norm(last) for _ in range(size)])


def wide_sum(size: int, path: Path, join: str = "Add") -> Path:
    """Many pairs of Dense and BatchNormalization, joined at once, and one after the join."""
    sketch = Sketch()
    start = sketch.input()
    ends = [sketch.norm(sketch.dense(start)) for _ in range(size)]
    return sketch.write(path, [sketch.norm(sketch.join(join, ends))])


def wide_norms(size: int, path: Path, join: str = "Add") -> Path:
    """Many BatchNormalization layers of one input, joined at once."""
    sketch = Sketch()
    start = sketch.input()
    ends = [sketch.norm(start) for _ in range(size)]
    return sketch.write(path, [sketch.join(join, ends)])


def bipartite(size: int, path: Path) -> Path:
    """As many sums as BatchNormalization layers, each sum of all; `size` is that of the edges."""
    sketch = Sketch()
    start, side = sketch.input(), max(2, round(size**0.5))
    norms = [sketch.norm(start) for _ in range(side)]
    return sketch.write(path, [sketch.join("Add", norms) for _ in range(side)])


def dense_blocks(size: int, path: Path) -> Path:
    """Each BatchNormalization reads the sum of all before it; `size` is the number of edges."""
    sketch = Sketch()
    ends = [sketch.dense(sketch.input()) for _ in range(1)]
    while len(ends) ** 2 / 2 < size:
        read = sketch.join("Add", ends) if len(ends) > 1 else ends[0]
        ends.append(sketch.dense(sketch.norm(read)))
    return sketch.write(path, [ends[-1]])


def one_dense(size: int, path: Path) -> Path:
    """One Dense that is called again and again, and a BatchNormalization after each call."""
    sketch = Sketch()
    last, shared = sketch.input(), sketch.dense(None, "shared")
    for number in range(size):
        sketch.call(shared, [last])
        norm = sketch.norm(shared)
        node = sketch.layers[norm]["inbound_nodes"][0]["args"][0]
        node["config"]["keras_history"][1] = number
        last = norm
    return sketch.write(path, [last])


def one_norm(size: int, path: Path) -> Path:
    """One BatchNormalization that is called again and again."""
    sketch = Sketch()
    start = sketch.dense(sketch.input())
    shared = sketch.norm(start, "shared")
    for number in range(size):
        sketch.call(shared, ["shared"], [number])
    last = sketch.add("Activation", [], activation="linear")
    sketch.call(last, ["shared"], [size])
    return sketch.write(path, [last])


def outputs(size: int, path: Path) -> Path:
    """Dense and BatchNormalization in turn, each of which is an output."""
    sketch = Sketch()
    last, found = sketch.input(), []
    for _ in range(size):
        last = sketch.norm(sketch.dense(last))
        found.append(last)
    return sketch.write(path, found)


def same_output(size: int, path: Path) -> Path:
    """One tensor that is an output many times over."""
    sketch = Sketch()
    last = sketch.norm(sketch.dense(sketch.input()))
    return sketch.write(path, [last] * size)


def inputs(size: int, path: Path) -> Path:
    """An input for each BatchNormalization, and one sum."""
    sketch = Sketch()
    ends = [sketch.norm(sketch.input(f"x{number}")) for number in range(size)]
    return sketch.write(path, [sketch.join("Add", ends)])


def nested(size: int, path: Path, depth: int = 16) -> Path:
    """Models inside models, `depth` of them, and `size` layers in all."""
    sketch, inner, weights = Sketch(), None, {}
    for level in range(depth):
        sketch = Sketch()
        last = sketch.input(f"x{level}")
        for _ in range(max(1, size // depth // 2)):
            last = sketch.norm(sketch.dense(last))
        if inner is not None:
            name = f"model{level}"
            sketch.layers[name] = {**inner, "name": name, "inbound_nodes": []}
            sketch.layers[name]["config"] = {**inner["config"], "name": name}
            sketch.call(name, [last])
            last = name
        inner = sketch.config([last], f"inside{level}")
        fill, below = sketch.fill, weights

        def weights(file: h5py.File, prefix: str, fill=fill, below=below) -> None:
            fill(file, prefix)
            if callable(below):
                below(file, f"{prefix}layers/functional/")

    stream = io.BytesIO()
    with h5py.File(stream, "w", libver="latest") as file:
        weights(file, "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')
        archive.writestr("config.json", json.dumps(inner))
        archive.writestr("model.weights.h5", stream.getvalue())
    return path


FORMS: Mapping[str, Callable[[int, Path], Path]] = {
    form.__name__: form
    for form in (
        chain,
        norms,
        norms_after_dense,
        norms_and_relus,
        norms_and_dropouts,
        residual,
        residual_norms,
        ladder,
        ladder_from_norms,
        doubled,
        fan_out,
        fan_of_norms,
        wide_sum,
        wide_norms,
        bipartite,
        dense_blocks,
        one_dense,
        one_norm,
        outputs,
        same_output,
        inputs,
        nested,
    )
}
