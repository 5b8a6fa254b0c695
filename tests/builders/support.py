"""Small Keras models with telling weights, their files before and after a fold, and a comparison.

Keras itself is the judge: a folded file counts as right when plain Keras loads it and it computes
what the original model computes. Nothing here uses bnfold's arithmetic.
"""

import io
import os
import zipfile

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from comparing import TOLERANCE, difference, numbers
from tiers import by_turns

from bnfold.folding.plan import Plan, apply, plan
from bnfold.model.container.hdf5 import read_names
from bnfold.model.container.model_file import open_model

Customs = Mapping[str, Any]

KERAS = (".keras",)
LEGACY = (".h5",)
BOTH = (".keras", ".h5")
"""Formats in which a model is saved and folded."""


def chain(shape: tuple[int | None, ...], *layers: Any, **options: Any) -> Any:
    """A model of layers one behind the other."""
    first = tensor = keras.Input(shape, **options)
    for layer in layers:
        tensor = layer(tensor)
    return keras.Model(first, tensor)


@keras.saving.register_keras_serializable("tests")
class Settled(keras.layers.Layer):  # type: ignore[misc]
    """A layer that refuses any graph beside those in which Keras puts it while it loads."""

    graphs, allowed = 0, 2

    def compute_output_spec(self, inputs: Any) -> Any:
        self.graphs += 1
        if self.graphs > self.allowed:
            raise ValueError("this layer is settled")
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def call(self, inputs: Any) -> Any:
        return inputs * 2


def randomize(model: Any, seed: int = 0) -> Any:
    """Give every variable numbers under which no mistake of a fold cancels out; returns the model.

    gamma has both signs and one exact 0, the variances span four decades, and no two axes of a
    kernel look alike.
    """
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed" in variable.path or "rate" in variable.name:
            continue
        variable.assign(numbers(variable.name, tuple(variable.shape), generator))
    return model


def samples(model: Any, seed: int = 1, batch: int = 3, vocabulary: int = 5) -> Any:
    """Inputs for a model in its own structure: integers below `vocabulary`, or numbers."""
    generator = np.random.default_rng(seed)

    def one(tensor: Any) -> Any:
        shape = tuple(
            batch if axis == 0 and n is None else n or 4 for axis, n in enumerate(tensor.shape)
        )
        if "int" in tensor.dtype:
            return generator.integers(0, vocabulary, shape).astype(tensor.dtype)
        return generator.normal(0.2, 1.0, shape).astype(
            keras.ops.convert_to_numpy(keras.ops.cast(0, tensor.dtype)).dtype
        )

    return keras.tree.map_structure(one, functional(model).input)


def outputs(model: Any, inputs: Any, **arguments: Any) -> list[Any]:
    """What a model computes, flattened, in float64."""
    found = keras.tree.flatten(model(inputs, **arguments))
    return [np.asarray(keras.ops.convert_to_numpy(value)).astype(np.float64) for value in found]


def functional(model: Any) -> Any:
    """The model whose graph is public: a Sequential keeps one inside."""
    return getattr(model, "_functional", None) or model


def interface(model: Any) -> list[Any]:
    """Names, shapes, dtypes and structure of a model's inputs and outputs."""
    name, model = model.name, functional(model)
    ports = [
        (tensor._keras_history.operation.name, tuple(tensor.shape), tensor.dtype)
        for tensor in (*model.inputs, *model.outputs)
    ]
    structures = [
        str(keras.tree.map_structure(lambda _: 0, side)) for side in (model.input, model.output)
    ]
    return [*ports, *structures, name]


def batchnorms(model: Any) -> list[str]:
    """The names of all BatchNormalization layers at any depth, wrapped ones too."""
    every = model._flatten_layers()
    return sorted({one.name for one in every if isinstance(one, keras.layers.BatchNormalization)})


def fold_file(source: Path, target: Path, keep: Sequence[str] = ()) -> Plan:
    """Fold the model file `source` to `target`."""
    with open_model(source) as file:
        planned = plan(file.graph, keep=keep)
        file.write(apply(file.graph, planned), target, {})
    return planned


def load(path: Path, customs: Customs | None = None) -> Any:
    """A model file as plain Keras loads it."""
    return keras.models.load_model(path, custom_objects=customs, compile=False, safe_mode=False)


def tolerance(model: Any) -> float:
    """What rounding may do to a model: that of the coarsest dtype anything in it computes in."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    return max(TOLERANCE.get(str(dtype), 0.0) for dtype in dtypes)


def examine(
    model: Any,
    folder: Path,
    *,
    left: Sequence[str] | int | None = 0,
    reason: str | Sequence[str] | None = None,
    forms: Sequence[str] | None = None,
    inputs: Any = None,
    customs: Customs | None = None,
    allowed: float | None = None,
    bare: bool = False,
) -> Plan:
    """Save, fold and load a model, and check that nothing changed but the layers that are gone.

    `left` are the BatchNormalization layers that must stay, or how many, None where that does not
    matter; `reason` what the sentences must say of those. With `bare` the models are also called
    without `training`, where Keras 3 lets a call's own training=True have its way. `forms` are the
    suffixes of the files; without it one of the two by default, and both in a run of all tests.
    Returns the last plan.
    """
    forms = by_turns((".keras", ".h5")) if forms is None else forms
    inputs = samples(model) if inputs is None else inputs
    for form in forms:
        model.save(folder / f"original{form}")
    expected = [outputs(model, inputs, **way) for way in ways(bare)]
    planned = None
    for form in forms:
        planned = fold_file(folder / f"original{form}", folder / f"folded{form}")
        reasons = [blocked.reason for blocked in planned.blocked]
        folded = load(folder / f"folded{form}", customs)
        remaining = batchnorms(folded)
        if isinstance(left, int):
            assert len(remaining) == left, (remaining, reasons)
        elif left is not None:
            assert remaining == sorted(left), (remaining, reasons)
        for said in [reason] if isinstance(reason, str) else reason or ():
            assert any(said in sentence for sentence in reasons), reasons
        assert_same(model, folded, inputs, expected, allowed, bare=bare)
    assert planned is not None
    return planned


def ways(bare: bool) -> list[dict[str, Any]]:
    """The arguments with which a model is called to compare it."""
    return [{"training": False}, *([{}] if bare else [])]


def assert_same(
    model: Any,
    folded: Any,
    inputs: Any,
    expected: Sequence[list[Any]],
    allowed: float | None = None,
    *,
    bare: bool = False,
) -> None:
    """The interface is that of `model`, and the outputs are the expected ones, in each way."""
    assert interface(folded) == interface(model)
    allowed = tolerance(model) if allowed is None else allowed
    for before, way in zip(expected, ways(bare), strict=True):
        worst = difference(before, outputs(folded, inputs, **way))
        assert worst <= allowed, f"{way}: off by {worst:.3g}"


def open_weights(path: Path) -> h5py.File:
    """The HDF5 file that a model file of any kind is or holds, in memory."""
    if path.is_dir():
        return h5py.File(path / "model.weights.h5")
    if not zipfile.is_zipfile(path):
        return h5py.File(path)
    with zipfile.ZipFile(path) as archive:
        return h5py.File(io.BytesIO(archive.read("model.weights.h5")))


Stored = tuple[str, tuple[int, ...], bytes]


def datasets(path: Path) -> dict[str, Stored]:
    """Dtype, shape and bytes of every variable of a model file, by where Keras looks for it.

    That is a path in a `.keras` file, and in an `.h5` file the position among what has variables.
    """
    with open_weights(path) as file:
        if "model_weights" in file:
            return dict(_listed(file["model_weights"]))
        found: dict[str, Stored] = {}
        for name in file:
            if name != "optimizer":
                _collect(file, name, found)
        return found


def _collect(parent: h5py.Group, path: str, found: dict[str, Stored]) -> None:
    node = parent[path]
    if isinstance(node, h5py.Dataset):
        found[path] = _stored(node)
        return
    for name in node:
        _collect(parent, f"{path}/{name}", found)


def _listed(weights: h5py.Group) -> Iterator[tuple[str, Stored]]:
    groups = [weights[name] for name in read_names(weights, "layer_names")]
    lists = [[group[name] for name in read_names(group, "weight_names")] for group in groups]
    for position, variables in enumerate(filter(None, lists)):
        for number, variable in enumerate(variables):
            yield f"{position}/{number}", _stored(variable)


def _stored(dataset: h5py.Dataset) -> Stored:
    return dataset.dtype.str, dataset.shape, np.asarray(dataset[()]).tobytes()
