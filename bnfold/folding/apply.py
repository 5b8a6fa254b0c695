"""Carrying a plan out: every edit of every fold, and the folded layers taken out of the graph."""

from collections.abc import Mapping
from dataclasses import replace

from bnfold.folding import absorb
from bnfold.folding.plan import Edit, Plan
from bnfold.model import config
from bnfold.model.graph import Graph, Layer, Path, Ref
from bnfold.model.order import keras_order


def apply(graph: Graph, plan: Plan) -> Graph:
    """The graph that computes the same without the layers that `plan` folds.

    Layers stand in the order in which Keras will rebuild them. A folded layer that is an output of
    the model leaves a linear Activation of its name, because output names are part of the
    interface.
    """
    removed = {fold.batchnorm.path for fold in plan.folds}
    return _apply_graph(graph, (), _merged(plan), removed, is_model=True)


def _merged(plan: Plan) -> dict[Path, Edit]:
    """One edit for each layer that takes something in: what folds into it in turn, as one map."""
    merged: dict[Path, Edit] = {}
    for edit in (edit for fold in plan.folds for edit in fold.edits):
        before = merged.get(edit.layer)
        merged[edit.layer] = edit if before is None else before.then(edit) or edit
    return merged


def _apply_graph(
    graph: Graph, path: Path, edits: Mapping[Path, Edit], removed: set[Path], *, is_model: bool
) -> Graph:
    layers = {
        name: _apply_layer(layer, (*path, name), edits, removed)
        for name, layer in graph.layers.items()
    }
    graph = replace(graph, layers=layers)
    gone = {name for name in layers if (*path, name) in removed}
    named = {name for name in gone if is_model and Ref(name) in graph.outputs}
    for name in named:
        graph = graph.with_layer(config.stand_in(layers[name]))
    return _in_keras_order(config.bypass(graph, gone - named))


def _apply_layer(layer: Layer, path: Path, edits: Mapping[Path, Edit], removed: set[Path]) -> Layer:
    if layer.graph is not None:
        inside = _apply_graph(layer.graph, path, edits, removed, is_model=False)
        return layer if inside is layer.graph else replace(layer, graph=inside)
    if layer.inner is not None:
        inner = _apply_layer(layer.inner, (*path, layer.inner.name), edits, removed)
        return layer if inner is layer.inner else replace(layer, inner=inner)
    edit = edits.get(path)
    return layer if edit is None else absorb.absorb(layer, edit.place, edit.affine)


def _in_keras_order(graph: Graph) -> Graph:
    """The graph with its layers listed as Keras would list them, those it would leave out last."""
    names = keras_order(graph)
    rest = [name for name in graph.layers if name not in set(names)]
    return replace(graph, layers={name: graph.layers[name] for name in (*names, *rest)})
