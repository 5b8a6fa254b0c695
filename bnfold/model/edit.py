"""Edits of a graph: layers replaced or taken out, and readers that read something else instead."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bnfold.model import inbound_nodes, layers
from bnfold.model.graph import (
    Call,
    Graph,
    Json,
    Layer,
    LayerPath,
    Ref,
    Weight,
    chain,
    changed,
    core_path,
)
from bnfold.model.order import in_same_order, keras_order
from bnfold.model.training import is_set


def edited(
    graph: Graph, replaced: Mapping[LayerPath, Layer], removed: Collection[LayerPath]
) -> Graph:
    """The whole model with some layers replaced and others taken out, at any depth.

    `replaced` are layers without wrappers, whose calls stay those of the graph. Layers stand in the
    order in which Keras will rebuild them. A removed layer that is an output of the model leaves a
    linear Activation of its name, because output names are part of the interface; so does one that
    a nested model consists of.
    """
    return _edited(graph, (), replaced, set(removed))


def _edited(
    graph: Graph,
    path: LayerPath,
    replaced: Mapping[LayerPath, Layer],
    removed: Collection[LayerPath],
) -> Graph:
    inside = {
        name: _edited_layer(layer, (*path, name), replaced, removed)
        for name, layer in graph.layers.items()
    }
    gone = {name for name in inside if (*path, name) in removed}
    ends = _ends(_bypassed(graph, gone)) if path else {}
    named = {
        ref.layer
        for ref in graph.outputs
        # With nothing between, an input of a nested model would become an output.
        if ref.layer in gone and (not path or layers.is_input(graph.layers[ends[ref].layer]))
    }
    graph = replace(graph, layers={**inside, **{name: stand_in(inside[name]) for name in named}})
    return _in_keras_order(bypass(graph, gone - named))


def _edited_layer(
    layer: Layer,
    path: LayerPath,
    replaced: Mapping[LayerPath, Layer],
    removed: Collection[LayerPath],
) -> Layer:
    if layer.graph is not None:
        inside = _edited(layer.graph, path, replaced, removed)
        return layer if inside is layer.graph else replace(layer, graph=inside)
    if layer.inner is not None:
        inner = _edited_layer(layer.inner, (*path, layer.inner.name), replaced, removed)
        return layer if inner is layer.inner else replace(layer, inner=inner)
    found = replaced.get(path)
    return layer if found is None else changed(found, calls=layer.calls)


class ForInference(NamedTuple):
    """A model in which layers that take training=True by default are called without it.

    Attributes:
        graph: the whole model.
        told: these layers, whose calls, or those of a Sequential around them, say training=False.
        untold: those that this does not reach: in a Sequential that is not called, or not to be
            told, whose file has no calls; or in a model that somebody calls with training=True,
            which up to Keras 3.15 wins over the calls inside.
    """

    graph: Graph
    told: tuple[LayerPath, ...] = ()
    untold: tuple[LayerPath, ...] = ()


def for_inference(graph: Graph, path: LayerPath = ()) -> ForInference:
    """The whole model with training=False in the calls of layers that take True by default.

    A True that anything else is called with stays, and so do models of classes that are not Keras'
    own. Keras 3 up to 3.15 writes the default into the calls of a file, so there it is the same as
    one that somebody has said.
    """
    if not graph.builtin:
        return ForInference(graph)
    found, told, untold = {}, list[LayerPath](), list[LayerPath]()
    for name, layer in graph.layers.items():
        own, changed = (*path, name), layer
        if _is_on_by_default(layer):
            (untold if graph.kind == "sequential" else told).append(own)
            changed = _told(layer)
        elif layer.nested is not None:
            inside = for_inference(layer.nested, core_path(layer, own))
            changed = _with_nested(layer, inside.graph)
            tells = graph.kind != "sequential" and bool(inside.untold) and not _is_meant(layer)
            changed = _told(changed) if tells else changed
            if tells or _is_called_on(layer):
                (told if tells else untold).extend((*inside.told, *inside.untold))
            else:
                told += inside.told
                untold += inside.untold
        found[name] = changed
    return ForInference(replace(graph, layers=found), tuple(told), tuple(untold))


def _is_on_by_default(layer: Layer) -> bool:
    """Whether it, or what it wraps, is of a class whose calls take training=True by default."""
    return layers.facts(chain(layer)[-1]).training_default is True


def _is_meant(layer: Layer) -> bool:
    """Whether somebody has called a model, or a layer in it, with training=True."""
    inside = () if layer.nested is None else layer.nested.layers.values()
    return _is_called_on(layer) or any(map(_is_meant, inside))


def _is_called_on(layer: Layer) -> bool:
    """Whether somebody has called it with training=True, which is not the default of its class."""
    return not _is_on_by_default(layer) and any(is_set(call.training) for call in layer.calls)


def _told(layer: Layer) -> Layer:
    """A layer whose calls say training=False."""
    calls = (
        call
        if call.node is None
        else call._replace(node=inbound_nodes.with_training(call.node, False), training=False)
        for call in layer.calls
    )
    return replace(layer, calls=tuple(calls))


def _with_nested(layer: Layer, graph: Graph) -> Layer:
    """A nested model, or what wraps it, with another inside."""
    if layer.inner is not None:
        return replace(layer, inner=_with_nested(layer.inner, graph))
    return replace(layer, graph=graph)


def _in_keras_order(graph: Graph) -> Graph:
    """The graph with its layers listed as Keras would list them, those it would leave out last."""
    names = keras_order(graph)
    listed = {name: graph.layers[name] for name in (*names, *graph.layers)}
    return in_same_order(replace(graph, layers=listed), graph)


def rewire(graph: Graph, instead: Mapping[Ref, Ref]) -> Graph:
    """The same graph, where every reader of some tensors, outputs too, reads others `instead`."""
    rewired = {name: _rewire_layer(layer, graph, instead) for name, layer in graph.layers.items()}
    outputs = tuple(instead.get(ref, ref) for ref in graph.outputs)
    return replace(graph, layers=rewired, outputs=outputs)


def _rewire_layer(layer: Layer, graph: Graph, instead: Mapping[Ref, Ref]) -> Layer:
    if not any(ref in instead for call in layer.calls for ref in call.reads):
        return layer
    return changed(layer, calls=tuple(_rewire_call(call, graph, instead) for call in layer.calls))


def _rewire_call(call: Call, graph: Graph, instead: Mapping[Ref, Ref]) -> Call:
    reads = tuple(instead.get(ref, ref) for ref in call.reads)
    if graph.numbering is None:
        return call._replace(reads=reads)
    count = graph.numbering

    def visit(triple: list[Any]) -> list[Any]:
        ref = count.decode(triple)
        return count.encode(instead[ref]) if ref in instead else triple

    return call._replace(
        reads=reads, node=inbound_nodes.map_tensors(call.node, visit, count.in_calls)
    )


def bypass(graph: Graph, names: Collection[str]) -> Graph:
    """The same graph without some layers; their readers read the one input of each instead."""
    graph = rewire(graph, _ends(_bypassed(graph, names)))
    return replace(graph, layers={k: layer for k, layer in graph.layers.items() if k not in names})


def _bypassed(graph: Graph, names: Collection[str]) -> Mapping[Ref, Ref]:
    """What is read instead of what these layers make: the one tensor that each call reads."""
    return {
        Ref(name, number): call.reads[0]
        for name in names
        for number, call in enumerate(graph.layers[name].calls)
    }


def _ends(instead: Mapping[Ref, Ref]) -> Mapping[Ref, Ref]:
    """Where chains of tensors that are read instead of others end, each walked once."""
    ends: dict[Ref, Ref] = {}
    for start in instead:
        ref, way = start, list[Ref]()
        while ref in instead and ref not in ends:
            way.append(ref)
            ref = instead[ref]
        ends |= dict.fromkeys(way, ends.get(ref, ref))
    return ends


def stand_in(layer: Layer) -> Layer:
    """A linear Activation of the same name, for a layer whose name is part of the interface."""
    return standing_in(layer, "Activation", {"activation": "linear"})


def standing_in(
    layer: Layer, class_name: str, settings: Json, weights: tuple[Weight, ...] = ()
) -> Layer:
    """A layer of Keras' own of another class, with the same name, in the same place."""
    config = {"name": layer.name, "trainable": layer.config.get("trainable", True)}
    if "dtype" in layer.config:
        config["dtype"] = layer.config["dtype"]
    kept = ("build_config", "name")
    entry: Json = {key: layer.entry[key] for key in kept if key in layer.entry}
    if "module" in layer.entry:
        entry |= {"module": "keras.layers", "registered_name": None}
    return replace(
        layer,
        class_name=class_name,
        config={**config, **settings},
        entry={**entry, "class_name": class_name},
        calls=tuple(
            call._replace(node=inbound_nodes.without_arguments(call.node)) for call in layer.calls
        ),
        weights=weights,
        inner=None,
        location=layer.location if weights else None,
    )
