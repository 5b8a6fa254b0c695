"""Keras JSON to `Graph` and back, without loss.

A config is parsed into layers and tensors and keeps its own JSON beside them: whatever bnfold does
not need to understand is written back as it was read. Only layers whose class is Keras' own count
as known; a class is told by its module and registered name, because anybody may call a class of
their own `BatchNormalization`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bnfold.errors import UnreadableModelError
from bnfold.model import inbound_nodes, shape_rules
from bnfold.model.container.printing import shortened
from bnfold.model.graph import Call, Graph, Json, Layer, Numbering, Ref, changed, unwrapped
from bnfold.model.identity import is_keras_layer
from bnfold.model.layers import BATCHNORM_CLASSES, facts, is_input
from bnfold.model.setting_types import check_settings

_MODEL_CLASSES = {"Functional", "Model", "Sequential", "Network"}
_WRAPPERS = {"TimeDistributed"}
MAX_NESTING = 32

PLAIN_MODEL = (
    "save keras.Model(model.inputs, model.outputs) in its place, unless its class overrides `call` "
    "(a train_step of its own does no harm)"
)
"""What makes a plain model of one whose class is somebody's own, but whose file has a graph."""


def parse_model(root: Any) -> Graph:
    """The graph of a whole model from the JSON of its config.

    A subclassed model has no graph in its file: its `kind` is "subclassed" and it has no layers.

    Raises:
        UnreadableModelError: the JSON is no Keras config, or its graph names what does not exist.
    """
    if not isinstance(root, dict) or "class_name" not in root:
        raise UnreadableModelError("the config is not that of a Keras model")
    return parse_graph(root, depth=0)


def settings(entry: Json) -> Json:
    """The `config` of an entry as a dict: Keras before 2.2.3 wrote a Sequential as a list.

    Raises:
        UnreadableModelError: it has none.
    """
    config = entry.get("config")
    if isinstance(config, list) and entry.get("class_name") == "Sequential":
        return {"layers": config}
    if not isinstance(config, dict):
        raise UnreadableModelError("the config holds a layer in no known form")
    return config


def parse_graph(entry: Json, depth: int) -> Graph:
    """The graph of one model, the outermost or a nested one."""
    if depth > MAX_NESTING:
        raise UnreadableModelError(f"models are nested deeper than {MAX_NESTING} levels")
    config, class_name = settings(entry), str(entry.get("class_name"))
    name = str(config.get("name", entry.get("name", class_name)))
    known = is_keras_layer(entry) and class_name in _MODEL_CLASSES
    if class_name == "Sequential" and known and isinstance(config.get("layers"), list):
        return _parse_sequential(entry, name, depth)
    if _is_functional(config):
        return _parse_functional(entry, name, depth, builtin=known)
    if known and class_name in ("Functional", "Sequential"):
        raise UnreadableModelError(
            f"the config of {class_name} {shortened(name)!r} holds no graph of layers"
        )
    return Graph(name, "subclassed", {}, (), (), entry, builtin=False)


def _is_functional(config: Any) -> bool:
    return (
        isinstance(config, dict)
        and isinstance(config.get("layers"), list)
        and "input_layers" in config
        and "output_layers" in config
    )


def _entries(config: Json) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for entry in config["layers"]:
        if not isinstance(entry, dict):
            raise UnreadableModelError("the config holds a layer in no known form")
        name = _layer_name(entry, len(found))
        if name in found:
            raise UnreadableModelError(f"the config names two layers {shortened(name)!r}")
        found[name] = entry
    return found


def _layer_name(entry: Json, number: int) -> str:
    if not is_named(entry):
        return f"{entry.get('class_name', 'layer')}_{number}"
    return str(entry.get("name", settings(entry).get("name")))


def is_named(entry: Json) -> bool:
    """Whether the file names a layer; a custom layer in a Sequential may save no name."""
    return isinstance(entry.get("name", settings(entry).get("name")), str)


def _parse_functional(entry: Json, name: str, depth: int, *, builtin: bool) -> Graph:
    config = entry["config"]
    entries = _entries(config)
    count = inbound_nodes.numbering(entries, config["output_layers"])
    layers = {
        key: changed(_parse_layer(key, found, depth), calls=_parse_calls(found, count))
        for key, found in entries.items()
    }
    inputs = tuple(str(triple[0]) for triple in inbound_nodes.flatten(config["input_layers"]))
    outputs = tuple(
        count.decode(triple, output=True)
        for triple in inbound_nodes.flatten(config["output_layers"])
    )
    graph = Graph(
        name, "functional", layers, inputs, outputs, entry, builtin=builtin, numbering=count
    )
    _check_references(graph)
    return graph


def _parse_calls(entry: Json, count: Numbering) -> tuple[Call, ...]:
    # Of all that Keras has, only these take more than tensors by position, in this order.
    kinds = {*_MODEL_CLASSES, *_WRAPPERS, *BATCHNORM_CLASSES}
    positional = _is_functional(settings(entry)) or str(entry.get("class_name")) in kinds
    calls = tuple(
        inbound_nodes.parse_call(node, count, positional=positional)
        for node in inbound_nodes.calls_of(entry)
    )
    return calls or (Call(()),)


def _is_operation(entry: Json) -> bool:
    """Whether an entry is an operation of keras.ops, as `x + y` makes one."""
    module = str(entry.get("module") or "")
    return is_keras_layer(entry) and module.startswith(("keras.src.ops", "keras.ops"))


def _check_references(graph: Graph) -> None:
    wanted = [ref for layer in graph.layers.values() for call in layer.calls for ref in call.reads]
    for ref in (*wanted, *graph.outputs):
        if ref.call >= len(graph.layers[ref.layer].calls):
            raise UnreadableModelError(
                f"the config uses call {ref.call} of layer {shortened(ref.layer)!r}, "
                f"which is called {len(graph.layers[ref.layer].calls)} times"
            )
        layer = graph.layers[ref.layer]
        most = _output_count(layer)
        if most is not None and ref.output >= most:
            raise UnreadableModelError(
                f"the config uses output {ref.output} of layer {shortened(ref.layer)!r}, "
                f"which makes {most}"
            )
        if facts(unwrapped(layer)[0]).shape is not None and not layer.calls[ref.call].reads:
            raise UnreadableModelError(
                f"the config uses layer {shortened(ref.layer)!r}, which reads nothing"
            )
    missing = [name for name in graph.inputs if name not in graph.layers]
    if missing or not graph.outputs:
        raise UnreadableModelError("the config's inputs or outputs name no layer of it")
    for name in graph.inputs:
        if any(call.reads for call in graph.layers[name].calls):
            raise UnreadableModelError(
                f"the config has layer {shortened(name)!r} as an input, which reads other layers"
            )


def _output_count(layer: Layer) -> int | None:
    """How many tensors each call of a layer makes; None where that is not known."""
    core, _ = unwrapped(layer)
    if core.graph is not None:
        return None if core.graph.kind == "subclassed" else len(core.graph.outputs)
    rule = facts(core).shape
    return None if rule in (None, shape_rules.recurrent) else 1


def _parse_sequential(entry: Json, name: str, depth: int) -> Graph:
    layers: dict[str, Layer] = {}
    previous: tuple[Ref, ...] = ()
    for key, found in _entries(settings(entry)).items():
        layers[key] = replace(_parse_layer(key, found, depth), calls=(Call(previous),))
        previous = (Ref(key),)
    inputs = tuple(key for key, layer in layers.items() if is_input(layer))[:1]
    return Graph(name, "sequential", layers, inputs, previous, entry)


def _parse_layer(name: str, entry: Json, depth: int) -> Layer:
    config = settings(entry)
    class_name = str(entry.get("class_name"))
    builtin = is_keras_layer(entry)
    layer = Layer(
        name=name,
        class_name=class_name,
        config=config,
        entry=entry,
        builtin=builtin,
        is_operation=_is_operation(entry),
    )
    check_settings(layer)
    if (builtin and class_name in _MODEL_CLASSES) or _is_functional(config):
        return replace(layer, graph=parse_graph(entry, depth + 1))
    if builtin and class_name in _WRAPPERS and isinstance(config.get("layer"), dict):
        return replace(layer, inner=_parse_wrapped(config["layer"], depth + 1))
    return layer


def _parse_wrapped(entry: Json, depth: int) -> Layer:
    if depth > MAX_NESTING:
        raise UnreadableModelError(f"layers are wrapped deeper than {MAX_NESTING} levels")
    return _parse_layer(_layer_name(entry, 0), entry, depth)


def tensor_types(graph: Graph) -> Mapping[Ref, tuple[tuple[int | None, ...], str]]:
    """Shape and dtype of the graph's tensors as Keras 3 notes them; Keras 2 notes none."""
    if graph.numbering is None:
        return {}
    return {
        graph.numbering.decode(history): (shape, dtype)
        for layer in graph.layers.values()
        for call in layer.calls
        for history, shape, dtype in inbound_nodes.tensor_shapes(call.node)
    }


def to_json(graph: Graph) -> Json:
    """The config of a graph: its own JSON with what was edited put in."""
    if graph.kind == "subclassed":
        return graph.entry
    layers = [_layer_json(layer, graph) for layer in graph.layers.values()]
    if isinstance(graph.entry["config"], list):
        return {**graph.entry, "config": layers}
    config = {**graph.entry["config"], "layers": layers}
    if graph.kind == "functional":
        count = _count(graph)
        remaining = iter(graph.outputs)
        config["output_layers"] = inbound_nodes.map_structure(
            config["output_layers"], lambda _: count.encode(next(remaining), output=True)
        )
    return {**graph.entry, "config": config}


def _count(graph: Graph) -> Numbering:
    if graph.numbering is None:
        raise TypeError(f"a {graph.kind} graph numbers no calls")
    return graph.numbering


def _layer_json(layer: Layer, graph: Graph) -> Json:
    entry = _bare_json(layer)
    if graph.kind == "functional":
        entry["inbound_nodes"] = [call.node for call in layer.calls if call.node is not None]
    return entry


def _bare_json(layer: Layer) -> Json:
    if layer.graph is not None:
        return to_json(layer.graph)
    if layer.inner is not None:
        return {**layer.entry, "config": {**layer.config, "layer": _bare_json(layer.inner)}}
    return {**layer.entry, "config": layer.config}


def decompile(graph: Graph) -> Graph:
    """The same model without what `compile` left in its config, nested models included."""
    entry = {key: value for key, value in graph.entry.items() if key != "compile_config"}
    layers = {name: _decompile_layer(layer) for name, layer in graph.layers.items()}
    return replace(graph, entry=entry, layers=layers)


def is_compiled(graph: Graph) -> bool:
    """Whether the model, or one nested in it, keeps what `compile` was told."""
    nested = (layer.nested for layer in graph.layers.values())
    return bool(graph.entry.get("compile_config")) or any(
        is_compiled(inside) for inside in nested if inside is not None
    )


def _decompile_layer(layer: Layer) -> Layer:
    if layer.graph is not None:
        return replace(layer, graph=decompile(layer.graph))
    if layer.inner is not None:
        return replace(layer, inner=_decompile_layer(layer.inner))
    return layer
