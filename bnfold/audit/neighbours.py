"""What stands before and behind a BatchNormalization, through the walls of nested models.

A tensor that a nested model hands on is the one inside it, and its input is what it is called with;
of a model that is called several times there are several. A layer in a class that is not Keras' own
has no known neighbours, because that class may use it freely.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from bnfold.folding.scope import Scope, Tensor, readers
from bnfold.folding.training import is_keras2, is_off
from bnfold.model.graph import Call, Graph, Layer, Path, Ref, show, unwrapped
from bnfold.model.inbound_nodes import is_keras3
from bnfold.model.shape_rules import Shape


class Node(NamedTuple):
    """One call of a layer, or of a wrapper with the layer in it."""

    scope: Scope
    name: str
    number: int

    @property
    def layer(self) -> Layer:
        """The layer inside all wrappers."""
        return unwrapped(self.scope.graph.layers[self.name])[0]

    @property
    def call(self) -> Call:
        """What the graph says of the call."""
        return self.scope.graph.layers[self.name].calls[self.number]

    @property
    def path(self) -> Path:
        """The path of the layer, or of its outermost wrapper."""
        return self.scope.layer_path(self.name)

    @property
    def title(self) -> str:
        """The layer as sentences name it: `Conv2D 'block/conv'`."""
        return f"{self.layer.class_name} {show(self.path)!r}"

    @property
    def output(self) -> Ref:
        """The first tensor that it makes."""
        return Ref(self.name, self.number)

    @property
    def is_known(self) -> bool:
        """Whether the layer, and the model that it is a layer of, are of Keras' own classes."""
        return self.layer.builtin and self.scope.graph.builtin

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the whole model."""
        return self.layer.class_name == "InputLayer" and self.is_known

    @property
    def is_sum(self) -> bool:
        """Whether it adds several tensors: the layer Add, or that operation of Keras 3."""
        several = len(set(self.call.inputs)) > 1
        return self.is_known and self.layer.class_name == "Add" and several

    @property
    def trains_always(self) -> bool:
        """Whether the call is in training mode also when the model is called without `training`."""
        return self.scope.around.trains_for_sure(self.path, self.call)

    def sources(self) -> tuple["Node", ...]:
        """The calls that make what this one reads; none at an input of the model."""
        refs = self.call.inputs
        if refs:
            return tuple(node for ref in refs for node in makers(self.scope, ref))
        # The first layer of a Sequential that lists no InputLayer.
        return tuple(n for outer in _outside(self.scope, 0) for n in makers(*outer))

    def readers(self) -> tuple["Node | None", ...]:
        """The calls that read the first tensor it makes; None for the outside of the model."""
        found = readers(self.scope, self.output)
        return tuple(None if position is None else Node(*position) for position in found)

    def input_shape(self) -> Shape | None:
        """The shape of its first input, batch included."""
        refs = self.call.inputs
        return self.scope.shapes.of(refs[0]) if refs else None


def makers(scope: Scope, ref: Ref) -> Iterator[Node]:
    """The calls that make a tensor, inside of nested models and outside of them."""
    waiting: list[Tensor] = [(scope, ref)]
    seen: set[Tensor] = set()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        scope, ref = tensor
        nested = scope.inside.get(ref.layer)
        node = Node(scope, ref.layer, ref.call)
        if nested is not None and ref.output < len(nested.graph.outputs):
            waiting.append((nested, nested.graph.outputs[ref.output]))
        elif node.is_input and scope.parent is not None and ref.layer in scope.graph.inputs:
            waiting += _outside(scope, scope.graph.inputs.index(ref.layer))
        else:
            yield node


def _outside(scope: Scope, slot: int) -> list[Tensor]:
    """The tensors that a nested model is given for one of its inputs."""
    if scope.parent is None:
        return []
    calls = scope.parent.graph.layers[scope.name].calls
    return [(scope.parent, call.inputs[slot]) for call in calls if slot < len(call.inputs)]


@dataclass(frozen=True, eq=False)
class Place:
    """A BatchNormalization, or the wrapper it is in, where it stands.

    `memo` is what was found out about the whole model, shared by all places in it.
    """

    scope: Scope
    name: str
    memo: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Its calls, as its own graph counts them."""
        calls = self.scope.graph.layers[self.name].calls
        return tuple(Node(self.scope, self.name, number) for number in range(len(calls)))

    @property
    def count(self) -> int:
        """How often it is called in one call of the whole model."""
        around = (scope.graph.layers[name].calls for scope, name in _around(self.scope))
        return math.prod(map(len, (self.nodes, *around)))

    @property
    def feeds_only_sums(self) -> bool:
        """Whether all that reads what it makes adds other tensors to it."""
        found = [reader for node in self.nodes for reader in node.readers()]
        return bool(found) and all(node is not None and node.is_sum for node in found)

    @property
    def stands_elsewhere(self) -> bool:
        """Whether the same layer object is in several places of the model."""
        return any(
            scope.around.repeats(scope.graph.layers[name])
            for scope, name in ((self.scope, self.name), *_around(self.scope))
        )

    @property
    def updates_per_step(self) -> int | None:
        """How often a training step updates the statistics at most; None where that is not known.

        Keras 3 calls what is in a TimeDistributed once for each step of a static time axis (2.13
        and 2.15 once in all).
        """
        updates = 1
        for scope, name in ((self.scope, self.name), *_around(self.scope)):
            layer = scope.graph.layers[name]
            updates *= sum(not stays_out_of_training(call) for call in layer.calls)
            _, wrappers = unwrapped(layer)
            if wrappers and not _is_keras2(layer.calls[0], scope.graph):
                shape = Node(scope, name, 0).input_shape() or ()
                axes = shape[1 : 1 + wrappers]
                if len(axes) < wrappers or None in axes:
                    return None
                updates *= math.prod(size for size in axes if size is not None)
        return updates


def _around(scope: Scope) -> Iterator[tuple[Scope, str]]:
    """The nested models around what is in a graph, each with the graph that it stands in."""
    while scope.parent is not None:
        yield scope.parent, scope.name
        scope = scope.parent


def stays_out_of_training(call: Call) -> bool:
    """Whether a call is in inference mode also when the model is trained.

    Keras 2 heeds the training=False of a call. In Keras 3 the training=True that `fit` hands down
    overrides it (measured with 3.15, `operation_fn` of functional.py), and a Dropout has it noted
    by default.
    """
    return is_off(call.training) and _is_keras2(call)


def _is_keras2(call: Call, graph: Graph | None = None) -> bool:
    """Whether a call is of Keras 2; those of a Sequential leave that to their graph."""
    if call.node is None:
        return graph is not None and is_keras2(graph)
    return not is_keras3(call.node)
