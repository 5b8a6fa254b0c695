"""Carrying a plan out: every edit of every fold, and the folded layers taken out of the graph."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bnfold.folding.effect import Effect, take
from bnfold.model import keras_json
from bnfold.model.graph import Graph, Layer, Path, Ref
from bnfold.model.layers import is_input
from bnfold.model.order import keras_order

if TYPE_CHECKING:
    from bnfold.folding.plan import Plan

Effects = Mapping[Path, Sequence[Effect]]


def apply(graph: Graph, plan: "Plan") -> Graph:
    """The graph that computes the same without the layers that `plan` folds.

    Layers stand in the order in which Keras will rebuild them. A folded layer that is an output of
    the model leaves a linear Activation of its name, because output names are part of the
    interface; so does one that a nested model consists of.
    """
    removed = {fold.batchnorm.path for fold in plan.folds}
    return _apply_graph(graph, (), _by_layer(plan), removed, is_model=True)


def without(graph: Graph, paths: Collection[Path]) -> Graph:
    """The graph without some layers, its others as they are: for what depends on order alone."""
    return _apply_graph(graph, (), {}, set(paths), is_model=True)


def _by_layer(plan: "Plan") -> Effects:
    """What each layer takes in, in turn."""
    found: dict[Path, list[Effect]] = {}
    edits = [edit for fold in plan.folds for edit in fold.edits]
    for edit in sorted(edits, key=lambda edit: edit.turn):
        found.setdefault(edit.layer, []).append(edit.effect)
    return found


def _apply_graph(
    graph: Graph, path: Path, effects: Effects, removed: set[Path], *, is_model: bool
) -> Graph:
    layers = {
        name: _apply_layer(layer, (*path, name), effects, removed)
        for name, layer in graph.layers.items()
    }
    graph = replace(graph, layers=layers)
    gone = {name for name in layers if (*path, name) in removed}
    named = {
        ref.layer
        for ref in graph.outputs
        if ref.layer in gone and (is_model or _reaches_an_input(graph, ref, gone))
    }
    for name in named:
        graph = graph.with_layer(keras_json.stand_in(layers[name]))
    return _in_keras_order(keras_json.bypass(graph, gone - named))


def _reaches_an_input(graph: Graph, ref: Ref, gone: set[str]) -> bool:
    """Whether an input would become an output, with nothing between."""
    while ref.layer in gone:
        ref = graph.layers[ref.layer].calls[ref.call].inputs[0]
    return is_input(graph.layers[ref.layer])


def _apply_layer(layer: Layer, path: Path, effects: Effects, removed: set[Path]) -> Layer:
    if layer.graph is not None:
        inside = _apply_graph(layer.graph, path, effects, removed, is_model=False)
        return layer if inside is layer.graph else replace(layer, graph=inside)
    if layer.inner is not None:
        inner = _apply_layer(layer.inner, (*path, layer.inner.name), effects, removed)
        return layer if inner is layer.inner else replace(layer, inner=inner)
    taken = effects.get(path)
    return layer if taken is None else take(layer, taken)


def _in_keras_order(graph: Graph) -> Graph:
    """The graph with its layers listed as Keras would list them, those it would leave out last."""
    names = keras_order(graph)
    rest = [name for name in graph.layers if name not in set(names)]
    return replace(graph, layers={name: graph.layers[name] for name in (*names, *rest)})
