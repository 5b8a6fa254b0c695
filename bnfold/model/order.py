"""The order in which Keras rebuilds layers, and where it therefore looks for their weights.

Keras finds weights by position alone. A `.keras` archive keeps each layer's variables in a group
named after the layer's class and a running number (`layers/conv2d_3`), counted in the order of
`model.layers`; a legacy HDF5 file lists them in that order. The order is not that of the config:
Keras walks the graph again when it loads.

    depth(call)  = 0 at an output, else 1 + the largest depth of a call that reads it
    depth(layer) = the largest depth of its calls
    order        = by depth, falling; ties by the first visit of a depth-first walk from the outputs

Removing one layer lowers the depths before it and can so swap layers that are far from it: a file
that keeps the old paths loads without an error and computes garbage. The rule is `map_graph` of
keras/src/ops/function.py (Keras 3) and `_map_graph_network` of keras/engine/functional.py (Keras
2), which agree.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from bnfold.errors import UnreadableModelError
from bnfold.model.container.printing import shortened
from bnfold.model.graph import Graph, Layer, LayerPath, hand_on, once
from bnfold.model.layers import is_input

Node = tuple[str, int]
"""One call of a layer: its name and the number of the call."""


class Container(Enum):
    """The name of the group that holds a model's layers; the value is that name."""

    LAYERS = "layers"
    CHECKPOINT_DEPENDENCIES = "_layer_checkpoint_dependencies"  # Keras 2.13 and 2.14


@once
def keras_order(graph: Graph) -> tuple[str, ...]:
    """The names of a graph's layers and operations in the order in which Keras rebuilds them.

    Layers that no output depends on are left out, as Keras leaves them out, except unused inputs.

    Raises:
        UnreadableModelError: the graph has a cycle.
    """
    if graph.kind == "sequential":
        return tuple(graph.layers)
    first_visit = _depth_first(graph)[1]
    depths, first_visit = {**_depths(graph)[1]}, {**first_visit}
    for name in graph.inputs:
        if name not in depths:
            depths[name] = 0
            first_visit[name] = -1
    return tuple(sorted(depths, key=lambda name: (-depths[name], first_visit[name])))


def in_same_order(graph: Graph, other: Graph) -> Graph:
    """A graph whose layers have the calls that those of another one have, and the same outputs.

    What has been found of the order of that one holds for it.
    """
    for find in (keras_order, _depth_first, _depths):
        hand_on(find, other, graph)
    return graph


def calls_in_order(graph: Graph) -> list[Node]:
    """All calls that the outputs depend on, each after those that make its inputs."""
    return _depth_first(graph)[0]


@once
def _depth_first(graph: Graph) -> tuple[list[Node], dict[str, int]]:
    """All calls that the outputs depend on, each after its inputs; and each layer's first visit."""
    finished: list[Node] = []
    state: dict[Node, bool] = {}  # False while a call's inputs are being visited
    first_visit: dict[str, int] = {}
    for ref in graph.outputs:
        stack: list[tuple[Node, Iterator[Node]]] = []
        _enter((ref.layer, ref.call), graph, state, first_visit, stack)
        while stack:
            node, remaining = stack[-1]
            following = next(remaining, None)
            if following is None:
                stack.pop()
                state[node] = True
                finished.append(node)
            else:
                _enter(following, graph, state, first_visit, stack)
    return finished, first_visit


def _enter(
    node: Node,
    graph: Graph,
    state: dict[Node, bool],
    first_visit: dict[str, int],
    stack: list[tuple[Node, Iterator[Node]]],
) -> None:
    if state.get(node):
        return
    name, number = node
    if node in state:
        raise UnreadableModelError(f"the config's graph has a cycle through {shortened(name)!r}")
    state[node] = False
    first_visit.setdefault(name, len(first_visit))
    stack.append((node, _inputs(graph, name, number)))


def _inputs(graph: Graph, name: str, number: int) -> Iterator[Node]:
    return ((ref.layer, ref.call) for ref in graph.layers[name].calls[number].reads)


def call_depths(graph: Graph) -> dict[Node, int]:
    """The depth of each call that the outputs depend on; Keras runs the deepest first."""
    if graph.kind == "sequential":
        names = list(graph.layers)
        return {(name, 0): len(names) - number for number, name in enumerate(names)}
    return _depths(graph)[0]


@once
def _depths(graph: Graph) -> tuple[dict[Node, int], dict[str, int]]:
    """The depths of calls and layers; a call knows only its layer's calls before it."""
    call_depths: dict[Node, int] = {}
    layer_depths: dict[str, int] = {}
    for node in reversed(_depth_first(graph)[0]):
        name, number = node
        depth = max(call_depths.get(node, 0), layer_depths.get(name, 0))
        call_depths[node] = layer_depths[name] = depth
        for producer in _inputs(graph, name, number):
            call_depths[producer] = max(depth + 1, call_depths.get(producer, 0))
    return call_depths, layer_depths


def model_layers(graph: Graph) -> list[Layer]:
    """What `model.layers` would be: no operations, and no input layer before a Sequential."""
    layers = [graph.layers[name] for name in keras_order(graph)]
    if graph.kind == "sequential" and layers and is_input(layers[0]):
        return layers[1:]
    return [layer for layer in layers if not layer.is_operation]


class GroupNames(NamedTuple):
    """How a `.keras` file names the groups of its weights.

    `has_weights` tells, of a layer and the group it would have, whether Keras sees weights in it;
    only the Keras 2.13 layout asks, because it counts such a layer twice.
    """

    container: Container
    has_weights: Callable[[Layer, str], bool] = lambda layer, group: False

    def assign(self, graph: Graph) -> dict[LayerPath, str]:
        """The group of each layer's weights, by the layer's path.

        A layer object that stands in several places of the model is stored where Keras meets it
        first, and has that group everywhere.
        """
        found: dict[LayerPath, str] = {}
        self._assign_graph(graph, "", (), found, {})
        return found

    def _assign_graph(
        self,
        graph: Graph,
        prefix: str,
        path: LayerPath,
        found: dict[LayerPath, str],
        shared: dict[int, str],
    ) -> None:
        used: Counter[str] = Counter()
        for layer in model_layers(graph):
            base = snake_case(layer.class_name)
            number = f"_{used[base]}" if used[base] else ""
            group = f"{prefix}{self.container.value}/{base}{number}"
            used[base] += 1 + self._counts_twice(layer, group)
            self._assign_layer(layer, group, (*path, layer.name), found, shared)

    def _counts_twice(self, layer: Layer, group: str) -> bool:
        return self.container is Container.CHECKPOINT_DEPENDENCIES and self.has_weights(
            layer, group
        )

    def _assign_layer(
        self,
        layer: Layer,
        group: str,
        path: LayerPath,
        found: dict[LayerPath, str],
        shared: dict[int, str],
    ) -> None:
        if layer.shared_object_id is not None:
            group = shared.setdefault(layer.shared_object_id, group)
        found[path] = group
        if layer.graph is not None:
            self._assign_graph(layer.graph, f"{group}/", path, found, shared)
        elif layer.inner is not None:
            inner = layer.inner
            self._assign_layer(inner, f"{group}/layer", (*path, inner.name), found, shared)


@lru_cache(maxsize=256)
def snake_case(class_name: str) -> str:
    """The group name that Keras makes of a class: `Conv2DTranspose` is `conv2d_transpose`."""
    name = re.sub(r"\W+", "", class_name.rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
