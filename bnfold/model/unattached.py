"""BatchNormalization in parts of a file whose graph is not told.

A subclassed model, a custom layer and a wrapper keep their layers to themselves: the file has their
variables but not their settings. What shows them depends on the container:

    both      the config of a custom class that derives from BatchNormalization, or that of what a
              wrapper holds, has the settings of one: it tells which variables there are
    both      four vectors of one length side by side are gamma, beta, moving_mean and
              moving_variance: no other layer of Keras looks like that
    .keras    three, if no number of the last one is negative, are those of one without gamma or
              beta; which of them is left out is not told
    .h5       a moving_mean and a moving_variance side by side, by their names or those that other
              frameworks give them

Where the variables do not show it, a name may: that of a custom class (`BatchNorm`), of what a
wrapper's config says it wraps, of a group, of an operation. Then nothing is known but that it is
one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from bnfold.model import layers
from bnfold.model.batchnorm import VECTORS, BatchNorm
from bnfold.model.container import guard, hdf5
from bnfold.model.container.archive import KerasArchive
from bnfold.model.container.library import h5py
from bnfold.model.container.model_file import ModelFile
from bnfold.model.graph import Graph, Json, Layer, LayerPath, Weight, slot_name, walk_all

if TYPE_CHECKING:
    from bnfold.model.container.legacy import LegacyHdf5

_UNKNOWN_SETTINGS = {"axis": None, "epsilon": None, "momentum": None}
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies", "_layers"}
_CALLED_SO = r"batch_?(re)?norm"
_SHORT = r"(^|_)bn_?\d*($|_)"
_SHORT_CLASS = r"(?<![A-Z])BN(?![a-z])"
_OWN_SETTING = "moving_variance_initializer"
"""A setting that no other class of Keras has."""

_ROLES = {
    "moving_mean": r"((moving|running|pop|population)_?)?(mean|avg|average)",
    "moving_variance": r"((moving|running|pop|population)_?)?(var|variance)",
    "gamma": r"gamma|scale|weight",
    "beta": r"beta|bias|offset|shift|center",
}
"""What the variables are called, here and in ports of other frameworks' layers."""


def loose_batchnorms(model: ModelFile) -> Iterator[tuple[BatchNorm, LayerPath | None]]:
    """The BatchNormalization layers that are not in the graph of a file; settings are unknown.

    With each the path of the layer that it is, or is inside of; None in a subclassed model.
    """
    container = model.format
    yield from _operations(model.graph)
    if isinstance(container, KerasArchive):
        if model.graph.kind == "subclassed":
            yield from ((found, None) for found in _in_group(container.weights_root, (), {}))
            return
        for path, layer in _closed(model.graph):
            group = hdf5.group_at(container.weights_root, layer.location or "")
            known = bool(layer.location) and group is not None
            inside = tuple(_in_group(group, path, layer.config)) if known else ()
            # A layer of Keras' own that is not known here may have what name it likes.
            mine = layer.builtin and path
            told = tuple(one for one in inside if one.layer.weights or one.path != mine)
            yield from _of_layer(path, layer, told)
    elif model.kind == "h5":
        container = cast("LegacyHdf5", container)
        shown: set[tuple[str, str]] = set()
        for path, weights in container.unattached():
            # Their paths are none that a layer of the graph could have, whosever they are.
            in_graph = path[0] in model.graph.layers
            for one in _among(weights, path):
                scope = "/".join(one.path[1:])
                shown.add((path[0], one.path[-1]))
                yield (replace(one, path=(*path, f"[{scope}]")) if in_graph else one), None
        for path, layer in _closed(model.graph):
            # What the variables of the model around it have shown is not told again by its class.
            if layer.weights is not None or (path[0], path[-1]) not in shown:
                listed = container.listed_as(path)
                yield from _of_layer(path, layer, tuple(_among(layer.weights or (), listed)))


def _closed(graph: Graph) -> Iterator[tuple[LayerPath, Layer]]:
    """The layers that may hold others, or be more than is known."""
    for path, layer in walk_all(graph):
        inside = layer.graph is not None or layer.inner is not None or layer.is_operation
        if not inside and layers.slots(layer) is None:
            yield path, layer


def _operations(graph: Graph) -> Iterator[tuple[BatchNorm, LayerPath]]:
    """Calls of a function that normalizes a batch, by the function's name."""
    for path, layer in walk_all(graph):
        called = [layer.class_name] if layer.is_operation else []
        if layer.class_name in _FUNCTION:
            called = [str(layer.config.get(_FUNCTION[layer.class_name]))]
        if any(re.search(_CALLED_SO, name, re.I) for name in called):
            yield BatchNorm(path, replace(_layer(path, ()), is_operation=True)), path


_FUNCTION = {"TFOpLambda": "function", "TensorFlowOpLayer": "node_def"}
"""The layers that are a call of a function in files of Keras 2, and which setting names it."""


def _of_layer(
    path: LayerPath, layer: Layer, inside: tuple[BatchNorm, ...]
) -> Iterator[tuple[BatchNorm, LayerPath]]:
    """What was found inside a layer, or the layer itself where its class tells what it is."""
    frozen = layer.config.get("trainable", True) is False
    for found in inside:
        # What is inside it has a flag of its own, of which the file does not tell.
        yield (_frozen(found) if frozen and found.path == path else found), path
    if not inside and _is_called_batchnorm(layer):
        yield BatchNorm(path, _layer(path, None)), path


def _is_called_batchnorm(layer: Layer) -> bool:
    """Whether a custom layer, or what a wrapper says it wraps, has the name or settings of one."""
    opaque = not layer.builtin or layer.class_name == "Lambda"
    if opaque and (_is_class_of_one(layer.class_name) or re.search(_CALLED_SO, layer.name, re.I)):
        return True
    return any(
        _OWN_SETTING in config or (depth > 0 and _is_class_of_one(class_name))
        for depth, (class_name, config) in enumerate(_wrapped(layer.class_name, layer.config))
    )


def _is_class_of_one(class_name: str) -> bool:
    return bool(re.search(_CALLED_SO, class_name, re.I) or re.search(_SHORT_CLASS, class_name))


def _wrapped(class_name: str, config: Json) -> Iterator[tuple[str, Json]]:
    """The classes and configs of a layer and of what it wraps, from the outside in."""
    yield class_name, config
    entry = config.get("layer")
    while isinstance(entry, dict):
        inner = entry.get("config")
        config = inner if isinstance(inner, dict) else {}
        yield str(entry.get("class_name")), config
        entry = config.get("layer")


def _frozen(batchnorm: BatchNorm) -> BatchNorm:
    return replace(batchnorm, layer=batchnorm.layer.with_config(trainable=False))


def _among(weights: tuple[Weight, ...], path: LayerPath) -> Iterator[BatchNorm]:
    """Those among the variables of one layer in a legacy file, by the variables' names."""
    scopes: dict[tuple[str, str], dict[str, Weight]] = {}
    for weight in weights:
        scope, _, last = weight.name.rpartition("/")
        slot = slot_name(weight)
        # Of several in one scope the second is numbered: gamma_1 goes with moving_mean_1.
        number = last.removeprefix(slot).partition(":")[0]
        scopes.setdefault((scope, number), {})[slot] = weight
    for (scope, number), variables in scopes.items():
        own = (*path, *_inside(f"{scope}{number}", path))
        found = _by_role(variables)
        if found:
            config = {"scale": "gamma" in found, "center": "beta" in found}
            vectors = tuple(found[name] for name in VECTORS if name in found)
            yield BatchNorm(own, _layer(own, vectors, **config))
        elif len(variables) == len(VECTORS) and _are_alike(tuple(variables.values())):
            yield BatchNorm(own, _layer(own, tuple(variables.values())))


def _by_role(variables: dict[str, Weight]) -> dict[str, Weight]:
    """Variables of one scope by what they are to a BatchNormalization; none for other variables."""
    found: dict[str, Weight] = {}
    for role, pattern in _ROLES.items():
        exact = variables.get(role)
        like = (w for name, w in variables.items() if re.fullmatch(pattern, name, re.I))
        named = exact or next(like, None)
        mean = found.get("moving_mean", named)
        if named is not None and mean is not None and named.shape == mean.shape:
            found[role] = named
    # A layer that standardizes its input counts what it has seen.
    plain = not any("_" in slot_name(found[name]) for name in _STATISTICS if name in found)
    whole = found.keys() >= _STATISTICS and not (plain and "count" in variables)
    return found if whole else {}


_STATISTICS = {"moving_mean", "moving_variance"}


def _inside(scope: str, path: LayerPath) -> LayerPath:
    """What the scope of a variable's name says beyond the layer at a path, as a part of a path."""
    for name in reversed(path):
        _, found, rest = f"/{scope}/".rpartition(f"/{name}/")
        if found:
            return (rest.rstrip("/"),) if rest else ()
    return (scope,) if scope else ()


def _in_group(
    group: h5py.Group, path: LayerPath, config: Json, depth: int = 0
) -> Iterator[BatchNorm]:
    """Those inside a group of weights of a `.keras` file; `config` is its layer's, if known."""
    if depth > guard.MAX_HDF5_DEPTH:
        return
    for name, node in hdf5.children(group):
        if not isinstance(node, h5py.Group):
            continue
        if name == "vars":
            yield from _in_variables(node, path, config)
        elif depth > 0 or name != "optimizer":
            inside = path if name in _CONTAINERS else (*path, name)
            entry = config.get("layer") if name == "layer" else None
            inner = entry.get("config") if isinstance(entry, dict) else None
            known = inner if isinstance(inner, dict) else {}
            yield from _in_group(node, inside, known, depth + 1)


def _in_variables(variables: h5py.Group, path: LayerPath, config: Json) -> Iterator[BatchNorm]:
    """The one that the variables of a group are, if they are one's."""
    vectors = _vectors(variables)
    if _OWN_SETTING in config:
        flags = {name: config.get(name, True) is not False for name in ("scale", "center")}
        fits = len(vectors) == len(_STATISTICS) + sum(flags.values())
        yield BatchNorm(path, _layer(path, vectors if fits else None, **flags))
    elif len(vectors) == len(VECTORS):
        yield BatchNorm(path, _layer(path, vectors))
    elif len(vectors) > 1 and (_is_named_so(path, variables) or _ends_in_variance(vectors)):
        yield BatchNorm(path, _layer(path, None))


def _ends_in_variance(vectors: tuple[Weight, ...]) -> bool:
    """Whether three vectors can be a gamma or beta, a mean and a variance."""
    last = (
        vectors[-1].read().astype(np.float64) if len(vectors) == len(VECTORS) - 1 else np.zeros(1)
    )
    return bool(np.any(last != 0) and not np.any(last < 0))


def _vectors(variables: h5py.Group) -> tuple[Weight, ...]:
    """The variables of a group, if they are vectors of one length, four at most; else none."""
    count = len(hdf5.names(variables))
    if count > len(VECTORS):
        return ()
    found = [hdf5.weight_in(variables, str(number), "") for number in range(count)]
    weights = tuple(weight for weight in found if weight is not None)
    return weights if len(weights) == count and _are_alike(weights) else ()


def _are_alike(weights: tuple[Weight, ...]) -> bool:
    """Whether they are vectors of one length, of numbers that are no integers."""
    shapes = {weight.shape for weight in weights}
    floats = all(weight.dtype.kind in "fV" for weight in weights)
    return floats and len(shapes) == 1 and len(next(iter(shapes))) == 1


def _is_named_so(path: LayerPath, variables: h5py.Group) -> bool:
    names = (path[-1] if path else "", hdf5.read_text(variables, "name") or "")
    return any(re.search(f"{_CALLED_SO}|{_SHORT}", name, re.I) for name in names)


def _layer(path: LayerPath, weights: tuple[Weight, ...] | None, **config: bool) -> Layer:
    name = path[-1] if path else "batch_normalization"
    settings = {**_UNKNOWN_SETTINGS, **config}
    return Layer(name, "BatchNormalization", settings, {}, weights=weights)
