"""The inputs of a loaded model, with what the layers that read them say of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bnfold.running import keras_graph, ports, ranges
from bnfold.running.keras_graph import PASSED_OVER
from bnfold.running.samples import InputSpec, Mask

_INDEX_READERS = {"Embedding": "input_dim", "CategoryEncoding": "num_tokens"}


def input_specs(model: Any) -> list[InputSpec]:
    """Return the inputs with what the layers that read them say of their numbers."""
    graph = keras_graph.graph_of(model)
    specs = []
    for position, tensor in enumerate(model.inputs):
        readers = [] if graph is None else list(_readers(graph, graph.inputs[position]))
        bounds = [_bound(layer) for layer, _ in readers if type(layer).__name__ in _INDEX_READERS]
        masks = [_mask(layer) for layer, shape in readers if shape == tuple(tensor.shape)]
        mask = next((one for one in masks if one is not None), None)
        port = ports.port(tensor)
        found = () if graph is None else ranges.ranges(graph, graph.inputs[position])
        bound = min(bounds, default=None)
        specs.append(InputSpec(port.name, port.shape, port.dtype, bound, mask, found))
    return specs


def _readers(graph: Any, tensor: Any) -> Iterator[tuple[Any, tuple[int | None, ...]]]:
    """Yield the layers that read an input, nested models included, and its shape there."""
    pending, seen = [(graph, tensor)], set()
    while pending:
        graph, tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        for node in keras_graph.nodes_of(graph):
            places = [
                place
                for place, source in enumerate(keras_graph.inputs_of(node))
                if source is tensor
            ]
            if not places:
                continue
            layer = keras_graph.owner_of(node)
            inner = keras_graph.graph_of(layer)
            if inner is not None:
                pending.extend((inner, inner.inputs[at]) for at in places if at < len(inner.inputs))
                continue
            yield layer, tuple(tensor.shape)
            is_index = type(layer).__name__ in _INDEX_READERS
            is_same = "int" in keras_graph.dtype_name(tensor) or type(layer).__name__ in PASSED_OVER
            if is_same and not is_index:
                pending.extend((graph, output) for output in keras_graph.outputs_of(node))


def _bound(layer: Any) -> int:
    """The size of the table that a layer looks its input up in."""
    return int(getattr(layer, _INDEX_READERS[type(layer).__name__]))


def _mask(layer: Any) -> Mask | None:
    """What a layer takes for a step that is not there."""
    if type(layer).__name__ == "Masking":
        return Mask(float(layer.mask_value), is_whole_step=True)
    if type(layer).__name__ == "Embedding" and layer.mask_zero:
        return Mask(0.0, is_whole_step=False)
    return None
