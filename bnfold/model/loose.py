"""BatchNormalization in parts of a file whose graph is not told.

A subclassed model, a custom layer and a wrapper keep their layers to themselves: the file has their
variables but not their settings. What shows them depends on the container:

    .keras    four vectors of one length in one group are gamma, beta, moving_mean and
              moving_variance: no other layer of Keras looks like that
    .h5       a moving_mean and a moving_variance side by side, by their names

Where the variables do not show it, the name of a custom class may (`BatchNorm`), or that of what a
wrapper's config says it wraps, or that of a group. Then nothing is known but that it is one.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import h5py

from bnfold.model import catalog, guard, hdf5
from bnfold.model.archive import KerasArchive
from bnfold.model.batchnorm import VECTORS, BatchNorm
from bnfold.model.container import ModelFile
from bnfold.model.graph import Graph, Layer, Path, Weight, walk_all
from bnfold.model.legacy import LegacyHdf5
from bnfold.model.ownership import slot_name

_UNKNOWN_SETTINGS = {"axis": None, "epsilon": None, "momentum": None}
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies", "_layers"}
_CALLED_SO = re.compile(r"batch_?(re)?norm", re.IGNORECASE)
_SHORT = re.compile(r"(^|_)bn_?\d*($|_)", re.IGNORECASE)


def loose_batchnorms(model: ModelFile) -> Iterator[tuple[BatchNorm, Path | None]]:
    """The BatchNormalization layers that are not in the graph of a file; settings are unknown.

    With each the path of the layer that it is, or is inside of; None in a subclassed model.
    """
    container = model.format
    if isinstance(container, KerasArchive):
        if model.graph.kind == "subclassed":
            yield from ((found, None) for found in _in_group(container.weights_root, ()))
            return
        for path, layer in _closed(model.graph):
            group = hdf5.group_at(container.weights_root, layer.location or "")
            inside = () if not layer.location or group is None else _in_group(group, path)
            # A layer of Keras' own that is not known here may have what name it likes.
            mine = layer.builtin and path
            told = tuple(one for one in inside if one.layer.weights or one.path != mine)
            yield from _of_layer(path, layer, told)
    elif isinstance(container, LegacyHdf5):
        for path, weights in container.unattached():
            # Their paths are none that a layer of the graph could have, whosever they are.
            in_graph = path[0] in model.graph.layers
            for one in _among(weights, path):
                scope = "/".join(one.path[1:])
                yield (replace(one, path=(*path, f"[{scope}]")) if in_graph else one), None
        for path, layer in _closed(model.graph):
            yield from _of_layer(path, layer, tuple(_among(layer.weights or (), path)))


def _closed(graph: Graph) -> Iterator[tuple[Path, Layer]]:
    """The layers that may hold others, or be more than is known."""
    for path, layer in walk_all(graph):
        inside = layer.graph is not None or layer.inner is not None or layer.is_operation
        known = layer.builtin and layer.class_name in catalog.WEIGHTLESS
        if not inside and not known and catalog.slots(layer) is None:
            yield path, layer


def _of_layer(
    path: Path, layer: Layer, inside: tuple[BatchNorm, ...]
) -> Iterator[tuple[BatchNorm, Path]]:
    """What was found inside a layer, or the layer itself where its class tells what it is."""
    frozen = layer.config.get("trainable", True) is False
    for found in inside:
        # What is inside it has a flag of its own, of which the file does not tell.
        yield (_frozen(found) if frozen and found.path == path else found), path
    if not inside and _is_called_batchnorm(layer):
        yield BatchNorm(path, _layer(path, None)), path


def _is_called_batchnorm(layer: Layer) -> bool:
    """Whether a custom class, or what a wrapper says it wraps, has the name of one."""
    if not layer.builtin and _CALLED_SO.search(layer.class_name):
        return True
    entry = layer.config.get("layer")
    while isinstance(entry, dict):
        if _CALLED_SO.search(str(entry.get("class_name"))):
            return True
        config = entry.get("config")
        entry = config.get("layer") if isinstance(config, dict) else None
    return False


def _frozen(batchnorm: BatchNorm) -> BatchNorm:
    return replace(batchnorm, layer=batchnorm.layer.with_config(trainable=False))


def _among(weights: tuple[Weight, ...], path: Path) -> Iterator[BatchNorm]:
    """Those among the variables of one layer in a legacy file, by the variables' names."""
    found: dict[tuple[str, str], dict[str, Weight]] = {}
    for weight in weights:
        scope, _, last = weight.name.rpartition("/")
        slot = slot_name(weight)
        # Of several in one scope the second is numbered: gamma_1 goes with moving_mean_1.
        number = last.removeprefix(slot).partition(":")[0]
        found.setdefault((scope, number), {})[slot] = weight
    for (scope, number), variables in found.items():
        if not {"moving_mean", "moving_variance"} <= variables.keys():
            continue
        names = [name for name in VECTORS if name in variables]
        own = (*path, *_inside(f"{scope}{number}", path))
        config = {"scale": "gamma" in names, "center": "beta" in names}
        yield BatchNorm(own, _layer(own, tuple(variables[name] for name in names), **config))


def _inside(scope: str, path: Path) -> Path:
    """What the scope of a variable's name says beyond the layer at a path, as a part of a path."""
    for name in reversed(path):
        _, found, rest = f"/{scope}/".rpartition(f"/{name}/")
        if found:
            return (rest.rstrip("/"),) if rest else ()
    return (scope,) if scope else ()


def _in_group(group: h5py.Group, path: Path, depth: int = 0) -> Iterator[BatchNorm]:
    """Those inside a group of weights of a `.keras` file."""
    if depth > guard.MAX_HDF5_DEPTH:
        return
    for name, node in hdf5.children(group):
        if not isinstance(node, h5py.Group):
            continue
        if name == "vars":
            vectors = _vectors(node)
            if len(vectors) == len(VECTORS):
                yield BatchNorm(path, _layer(path, vectors))
            elif len(vectors) > 1 and _is_named_so(path, node):
                yield BatchNorm(path, _layer(path, None))
        elif depth > 0 or name != "optimizer":
            inside = path if name in _CONTAINERS else (*path, name)
            yield from _in_group(node, inside, depth + 1)


def _vectors(variables: h5py.Group) -> tuple[Weight, ...]:
    """The variables of a group, if they are vectors of one length, four at most; else none."""
    count = len(hdf5.names(variables))
    if count > len(VECTORS):
        return ()
    found = [hdf5.weight_in(variables, str(number), "") for number in range(count)]
    weights = tuple(weight for weight in found if weight is not None)
    alike = len(weights) == count and len({weight.shape for weight in weights}) == 1
    floats = all(weight.dtype.kind in "fV" for weight in weights)
    return weights if alike and floats and len(weights[0].shape) == 1 else ()


def _is_named_so(path: Path, variables: h5py.Group) -> bool:
    names = (path[-1] if path else "", hdf5.read_text(variables, "name") or "")
    return any(_CALLED_SO.search(name) or _SHORT.search(name) for name in names)


def _layer(path: Path, weights: tuple[Weight, ...] | None, **config: bool) -> Layer:
    name = path[-1] if path else "batch_normalization"
    settings = {**_UNKNOWN_SETTINGS, **config}
    return Layer(name, "BatchNormalization", settings, {}, weights=weights)
