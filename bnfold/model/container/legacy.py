"""The legacy HDF5 container: config in an attribute, weights in one group for each outermost layer.

A layer's group lists its variables in `weight_names`, a nested model's those of everything inside
it: `ownership` tells whose they are. A nested model for which it cannot is left as it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bnfold.errors import BnfoldError, UnreadableModelError
from bnfold.model import keras1, keras_json
from bnfold.model.container import guard, hdf5, unchanging
from bnfold.model.container.budget import Costs
from bnfold.model.container.library import h5py
from bnfold.model.container.ownership import Owned, leaves, owners
from bnfold.model.container.store import RemoteFile
from bnfold.model.graph import Graph, Json, Layer, LayerPath, Weight, title, walk_all
from bnfold.model.layers import facts, slots
from bnfold.model.optimizer import Optimizer
from bnfold.model.order import in_same_order, model_layers
from bnfold.supervision import link

MODEL_WEIGHTS = "model_weights"
OPTIMIZER_WEIGHTS = "optimizer_weights"
TRAINING_CONFIG = "training_config"
TOP_LEVEL = "top_level_model_weights"
RECORD = "bnfold"

_CHUNK = 1 << 20
_COUNTER = re.compile(r"(^|/)iter(ations?)?(_\d+)?(:\d+)?$")
"""The variable of an optimizer that counts its steps, as every version of Keras names it."""


class LegacyHdf5:
    """An open legacy `.h5` file; the attributes are those of `KerasArchive`."""

    def __init__(self, path: Path | RemoteFile, resources: ExitStack) -> None:
        """Read the graph and the places of its weights; `resources` closes what stays open."""
        self._path = path
        stream: Any = resources.enter_context(path.open("rb", buffering=0))
        self._costs = Costs(path.stat().st_size, far_above=hdf5.far_above(path))
        opened = hdf5.open_hdf5(stream, "the HDF5 file", self._costs)
        self._file = resources.enter_context(opened).root
        text = hdf5.read_text(self._file, "model_config")
        if text is None:
            raise UnreadableModelError(_without_model(self._file))
        group = hdf5.group_at(self._file, MODEL_WEIGHTS)
        if group is None:
            raise UnreadableModelError(f"the HDF5 file holds no {MODEL_WEIGHTS}")
        self._weights = group
        self.keras_version = self._read_version()
        self.metadata = self._read_record()
        # In a nested model's list: 0 for the trainable part, 1 for the rest, by both names.
        self._part: dict[tuple[str, str], int] = {}
        self._unattached: dict[str, tuple[Weight, ...]] = {}
        root = guard.parse_json(text, "model_config", self._costs)
        graph = keras_json.parse_model(root)
        link.counted(path, sum(1 for _ in walk_all(graph)))
        if keras1.is_keras1(self.keras_version, root):
            graph = keras1.as_keras1(graph)
        self.graph = self._attach(graph)
        self.dropped = self._training_state()
        self._costs.check_storage()

    def _read_version(self) -> str | None:
        version = hdf5.read_text(self._file, "keras_version")
        return version or hdf5.read_text(self._weights, "keras_version")

    def _read_record(self) -> Json:
        text = hdf5.read_text(self._file, RECORD)
        return {"bnfold": guard.parse_json(text, RECORD, self._costs)} if text is not None else {}

    def _training_state(self) -> tuple[str, ...]:
        found = []
        if TRAINING_CONFIG in self._file.attrs:
            found.append("compile_config")
        if guard.child(self._file, OPTIMIZER_WEIGHTS) is not None:
            found.append("optimizer state")
        return tuple(found)

    @property
    def optimizers(self) -> Mapping[LayerPath, Optimizer]:
        """The optimizer of the outermost model, at ().

        Of several counters of steps, as under a LossScaleOptimizer, the largest one is meant.
        """
        counters = [
            hdf5.counter(weight)
            for weight in self._optimizer_variables(lambda name: bool(_COUNTER.search(name)))
        ]
        known = [steps for steps in counters if steps is not None]
        variables = partial(self._optimizer_variables, lambda _: True)
        return {(): Optimizer(self._optimizer_config(), max(known, default=None), variables)}

    def _optimizer_variables(self, chosen: Callable[[str], bool]) -> Iterator[Weight]:
        group = hdf5.group_at(self._file, OPTIMIZER_WEIGHTS)
        for name in hdf5.read_names(group, "weight_names") if group is not None else ():
            if group is not None and chosen(name):
                weight = hdf5.weight_in(group, name, f"{OPTIMIZER_WEIGHTS}/{name}", name)
                if weight is not None:
                    yield weight

    def _optimizer_config(self) -> Any:
        try:
            text = hdf5.read_text(self._file, TRAINING_CONFIG)
            costs = self._costs
            compiled = None if text is None else guard.parse_json(text, TRAINING_CONFIG, costs)
        except BnfoldError:
            return None  # what was for training may be damaged
        return compiled.get("optimizer_config") if isinstance(compiled, dict) else None

    def _attach(self, graph: Graph) -> Graph:
        layers, filled = {}, set()
        listed = hdf5.read_names(self._weights, "layer_names")
        self._groups = _groups(graph, listed)
        for name, layer in graph.layers.items():
            found = self._listed(self._groups[name]) if name in self._groups else ()
            if found:
                filled.add(self._groups[name])
            if layer.nested is None:
                layers[name] = _with_weights(layer, found)
            else:
                layers[name] = self._distribute(layer, found)
        _check_order(graph, self._groups, [name for name in listed if name in filled])
        return in_same_order(replace(graph, layers=layers), graph)

    def unattached(self) -> Iterator[tuple[LayerPath, tuple[Weight, ...]]]:
        """The variables of which the graph does not tell whose they are, by the outermost layer.

        Those of a nested model whose list cannot be handed out, of layers that the config does not
        have, and all of a subclassed model.
        """
        for name in self._unclaimed():
            yield (name,), self._listed(name)
        for name, weights in self._unattached.items():
            yield (name,), weights

    def listed_as(self, path: LayerPath) -> LayerPath:
        """A layer's path by the name of its group, which a config without a name does not tell."""
        return (self._groups.get(path[0], path[0]), *path[1:])

    def _unclaimed(self) -> Iterator[str]:
        """The groups of weights that belong to no layer of the graph."""
        claimed = set(self._groups.values())
        names = hdf5.read_names(self._weights, "layer_names")
        return (name for name in names if name not in claimed)

    def _listed(self, name: str) -> tuple[Weight, ...]:
        group = hdf5.group_at(self._weights, name)
        if group is None:
            return ()
        weights = []
        for listed in hdf5.read_names(group, "weight_names"):
            source = f"{MODEL_WEIGHTS}/{name}/{listed}"
            weight = hdf5.weight_in(group, listed, source, listed)
            if weight is None:
                raise UnreadableModelError(f"the file lists {guard.shortened(source)} but has none")
            weights.append(weight)
        return tuple(weights)

    def _distribute(self, layer: Layer, listed: tuple[Weight, ...]) -> Layer:
        """The nested model with its variables handed out; none if their owners cannot be told."""
        found = owners(layer, listed)
        if found is None:
            self._unattached[layer.name] = listed
            return _hand_out(layer, (layer.name,), None)
        for number, part in enumerate((found.trainable, found.rest)):
            self._part.update({(layer.name, weight.name): number for weight in part})
        return _hand_out(layer, (layer.name,), found.owned)

    def check_weights(self, most: int | None) -> None:
        """Do nothing: HDF5 has checksums where a filter puts them, and checks them by itself."""

    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return unchanging.sha256(self._path)

    def write(self, graph: Graph, target: Path, record: Callable[[], Json]) -> None:
        """Write `graph` with this file's other parts to `target`, which does not exist yet.

        What `record` tells goes into an attribute of the root.
        """
        text = json.dumps(keras_json.to_json(keras_json.decompile(graph)))
        with hdf5.new_file(target) as new:
            hdf5.copy_attributes(self._file, new, skip={"model_config", TRAINING_CONFIG, RECORD})
            new.attrs["model_config"] = text.encode()
            new.attrs[RECORD] = json.dumps(record()).encode()
            for name, node in hdf5.children(self._file):
                if name not in (MODEL_WEIGHTS, OPTIMIZER_WEIGHTS) and isinstance(node, h5py.Group):
                    hdf5.copy_children(node, new.create_group(name))
            self._write_weights(graph, new.create_group(MODEL_WEIGHTS))
        self._costs.check_storage()

    def rewrite(self, changes: Mapping[str, NDArray[Any]], target: Path, record: Json) -> None:
        """Write a copy to `target`, in which some variables have other numbers."""
        with self._path.open("rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
        hdf5.overwrite(target, changes, {RECORD: json.dumps(record).encode()})

    def _write_weights(self, graph: Graph, target: h5py.Group) -> None:
        if graph.kind == "subclassed":  # what it holds nobody knows
            hdf5.copy_children(self._weights, target)
            return
        lost = next((name for name in self._unclaimed() if self._listed(name)), None)
        if lost is not None:
            raise UnreadableModelError(
                f"the file holds variables of {guard.shortened(lost)}, which its config does not"
                " have: they would be lost"
            )
        groups = {self._groups.get(layer.name, layer.name): layer for layer in model_layers(graph)}
        stored = hdf5.attribute_names(self._weights)
        lists = {name for name in stored if name.startswith("layer_names")}
        hdf5.copy_attributes(self._weights, target, skip=lists)
        hdf5.write_names(target, "layer_names", list(groups))
        # Names that grow: a group "a" made after "a/b" would collide with it.
        for name in sorted(groups):
            self._write_layer(groups[name], hdf5.group_for(target, name))
        top = hdf5.group_at(self._weights, TOP_LEVEL)
        if top is not None:
            hdf5.copy_children(top, target.require_group(TOP_LEVEL))

    def _write_layer(self, layer: Layer, target: h5py.Group) -> None:
        weights = self._flat(layer)
        if weights is None:
            source = hdf5.group_at(self._weights, self._groups.get(layer.name, layer.name))
            if source is not None:
                hdf5.copy_children(source, target)
            return
        hdf5.write_names(target, "weight_names", [weight.name for weight in weights])
        for weight in weights:
            if weight.source is not None:
                hdf5.copy_dataset(self._file, weight.source, target, weight.name)
            else:
                hdf5.write_weight(target, weight.name, weight)

    def _flat(self, layer: Layer) -> list[Weight] | None:
        """A layer's variables as its group lists them."""
        inside = list(leaves(layer, (layer.name,)))
        if any(leaf.weights is None for _, leaf in inside):
            return None
        if layer.nested is None:
            return [weight for _, leaf in inside for weight in _named(leaf)]
        parts: tuple[list[Weight], list[Weight]] = ([], [])
        written: set[str] = set()  # what an object in several places has is listed once
        for _, leaf in inside:
            part = 0
            for weight in _named(leaf):
                # A new variable (a bias) stands behind the one before it.
                part = self._part.get((layer.name, weight.name), part)
                if weight.name not in written:
                    written.add(weight.name)
                    parts[part].append(weight)
        return [*parts[0], *parts[1]]


def _groups(graph: Graph, listed: Sequence[str]) -> dict[str, str]:
    """The group of each layer, which is named like it, by the layer's name.

    That of a layer of a Sequential whose config has no name stands where the layer does, as Keras
    hands groups out; it has none where the others do not stand so.
    """
    layers = model_layers(graph) if graph.kind != "subclassed" else []
    unnamed = {layer.name for layer in layers if not keras_json.is_named(layer.entry)}
    groups = {name: name for name in graph.layers if name not in unnamed}
    if unnamed and len(layers) == len(listed):
        pairs = {layer.name: group for layer, group in zip(layers, listed, strict=True)}
        if all(pairs[layer.name] == layer.name or layer.name in unnamed for layer in layers):
            return {**groups, **pairs}
    return groups


def _check_order(graph: Graph, groups: Mapping[str, str], listed: Sequence[str]) -> None:
    """Refuse groups that are listed in another order than that of the layers they are named after.

    Keras hands them out by their order alone.
    """
    if graph.kind == "subclassed":
        return
    layers = [groups.get(layer.name, layer.name) for layer in model_layers(graph)]
    if [name for name in layers if name in set(listed)] != listed:
        raise UnreadableModelError(
            "the file lists the weights of its layers in another order than the layers: a weight "
            "would belong to one layer by its name and to another by its place"
        )


def _without_model(file: h5py.File) -> str:
    """What an HDF5 file without a model_config is: weights, as Keras 2 or 3 lists them, or data."""
    groups = {"layers", "_layer_checkpoint_dependencies", MODEL_WEIGHTS}
    if not groups & set(hdf5.names(file)) and "layer_names" not in file.attrs:
        return "the HDF5 file holds no model_config, and nothing else that Keras writes"
    return (
        "the HDF5 file holds weights but no model_config, as model.save_weights() writes it;"
        " save the whole model instead, with model.save('model.keras')"
    )


def _with_weights(layer: Layer, weights: tuple[Weight, ...]) -> Layer:
    """A layer with its variables, which are those of what it wraps where it is a wrapper."""
    if layer.inner is not None:
        return replace(layer, inner=_with_weights(layer.inner, weights))
    # A layer that is random in training may keep the state of its seed.
    if weights and slots(layer) == () and facts(layer).training == "same":
        raise UnreadableModelError(
            f"the file lists variables for {guard.printable(title(layer, (layer.name,)))}, a layer"
            " without any: by their place they would belong to another layer than by their name"
        )
    return replace(layer, weights=weights)


def _hand_out(layer: Layer, path: LayerPath, owned: Owned | None) -> Layer:
    if layer.graph is not None:
        layers = {
            name: _hand_out(inside, (*path, name), owned)
            for name, inside in layer.graph.layers.items()
        }
        return replace(layer, graph=replace(layer.graph, layers=layers))
    if layer.inner is not None:
        return replace(layer, inner=_hand_out(layer.inner, (*path, layer.inner.name), owned))
    return replace(layer, weights=None if owned is None else owned.get(path, ()))


def _named(layer: Layer) -> list[Weight]:
    """A layer's variables by their names in the file; a new one is named like those beside it."""
    weights = layer.weights or ()
    beside = next((weight.name for weight in weights if "/" in weight.name), f"{layer.name}/")
    group, _, last = beside.rpartition("/")
    suffix = ":0" if last.endswith(":0") else ""
    return [
        weight
        if weight.source is not None or "/" in weight.name
        else replace(weight, name=f"{group}/{weight.name}{suffix}")
        for weight in weights
    ]
