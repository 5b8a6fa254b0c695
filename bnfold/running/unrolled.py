"""A loaded model as one flat list of calls, nested models taken apart.

A tensor inside a nested model cannot be read from outside: calling the model makes new tensors of
its outputs only. So the layers inside are called once more, on the tensors of the model around
them, and every value between two layers becomes a tensor of one flat graph. A model without nested
ones is read as it is. What a TimeDistributed, a Bidirectional or a class of the user's holds is not
taken apart.

Everything here reads and calls Keras objects and imports nothing of Keras.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnfold.running import keras_graph

Key = tuple[tuple[str, int], ...]
"""A call: name and number of the call, for each model around it and then for the layer."""


@dataclass(frozen=True, eq=False)
class FlatCall:
    """One call of one layer (or operation), with the tensors that go in and come out.

    `node` is Keras' own record of the call.
    """

    key: Key
    layer: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    node: Any = None

    @property
    def name(self) -> str:
        """The layer's path as users write it: `block/bn1`."""
        return "/".join(name for name, _ in self.key)

    @property
    def class_name(self) -> str:
        """The name of the layer's class."""
        return type(self.layer).__name__

    @property
    def inner_class_name(self) -> str:
        """The same of the layer in a wrapper, as in a TimeDistributed; its own without one."""
        return type(getattr(self.layer, "layer", self.layer)).__name__

    @property
    def has_weights(self) -> bool:
        """Whether the layer has variables that its output depends on."""
        return bool(getattr(self.layer, "weights", None))

    @property
    def may_absorb(self) -> bool:
        """Whether a fold may end in the layer; PReLU has weights, but a fold can only cross it."""
        return self.has_weights and self.inner_class_name != "PReLU"


@dataclass
class Unrolled:
    """All calls of a model in the order in which they run, and what goes in and comes out."""

    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    calls: dict[Key, FlatCall] = field(default_factory=dict)
    readers: dict[int, list[tuple[FlatCall, int]]] = field(default_factory=dict)
    makers: dict[int, FlatCall] = field(default_factory=dict)
    replaced: dict[int, Any] = field(default_factory=dict)

    def tensor(self, original: Any) -> Any:
        """The tensor of the flat graph that stands for one of the model's own."""
        return self.replaced.get(id(original), original)

    def add(self, call: FlatCall) -> None:
        """Note a call, what reads its inputs and what makes its outputs."""
        self.calls[call.key] = call
        self.makers.update((id(tensor), call) for tensor in call.outputs)
        for slot, tensor in enumerate(call.inputs):
            self.readers.setdefault(id(tensor), []).append((call, slot))


def unroll(model: Any) -> Unrolled:
    """The flat graph of a model. Raises whatever Keras raises when a layer cannot be called."""
    graph = keras_graph.graph_of(model)
    if graph is None:
        return Unrolled(tuple(model.inputs), tuple(model.outputs))
    flat = Unrolled(tuple(model.inputs))
    given = dict(zip(map(id, graph.inputs), model.inputs, strict=True))
    again = any(inside_of(node) is not None for node in keras_graph.nodes_of(graph))
    flat.outputs = tuple(_walk(graph, given, (), flat, again=again))
    return flat


def name_apart(flat: Unrolled) -> None:
    """Give layers of one name, from different models, names of their own, as a graph needs."""
    owners: dict[str, dict[int, FlatCall]] = {}
    for call in flat.calls.values():
        owners.setdefault(call.layer.name, {})[id(call.layer)] = call
    for same in owners.values():
        for call in same.values() if len(same) > 1 else ():
            call.layer.name = flat_name(call.name)


def flat_name(name: str) -> str:
    """What a layer of this nested path is called in a flat graph, if its own name is taken."""
    return name.replace("/", "__")


def _walk(
    graph: Any,
    given: Mapping[int, Any],
    around: Key,
    flat: Unrolled,
    *,
    again: bool,
    inference: bool = False,
) -> list[Any]:
    """Note the calls of one graph; its outputs.

    With `again` its layers are called once more, with `inference` all with training=False.
    """
    values = dict(given)
    numbers = _numbers(graph)
    for node in keras_graph.in_order(graph):
        owner = keras_graph.owner_of(node)
        key = (*around, (str(owner.name), numbers[id(node)]))
        made: Sequence[Any] = keras_graph.outputs_of(node)
        if again:
            made = _call(node, values, key, flat, inference=inference)
            values.update(zip(map(id, keras_graph.outputs_of(node)), made, strict=True))
        if inside_of(node) is None:
            read = (values.get(id(one), one) for one in keras_graph.inputs_of(node))
            flat.add(FlatCall(key, owner, tuple(read), tuple(made), node))
    flat.replaced.update(values)
    return [values.get(id(tensor), tensor) for tensor in graph.outputs]


def _call(
    node: Any, values: Mapping[int, Any], key: Key, flat: Unrolled, *, inference: bool
) -> Sequence[Any]:
    owner, inside = keras_graph.owner_of(node), inside_of(node)
    args, kwargs = keras_graph.filled_in(node, values, inference=inference and inside is None)
    if inside is None:
        return keras_graph.leaves(owner(*args, **kwargs))
    read = [values.get(id(one), one) for one in keras_graph.inputs_of(node)]
    given = dict(zip(map(id, inside.inputs), read, strict=True))
    inference = inference or kwargs.get("training") is False
    return _walk(inside, given, key, flat, again=True, inference=inference)


def inside_of(node: Any) -> Any:
    """The graph of the nested model that a call is of; None where it is left as one piece.

    Left whole is what is called in a way of its own: in training mode or with a mask given, with
    tensors of other ranks than its inputs, or by tf_keras, which keeps the arguments of calls
    elsewhere.
    """
    owner = keras_graph.owner_of(node)
    graph = keras_graph.graph_of(owner)
    is_plain = type(owner).__name__ in _PLAIN_MODELS
    if graph is None or not is_plain or not keras_graph.is_of_keras_3(node):
        return None
    (args, kwargs), read = keras_graph.arguments_of(node), keras_graph.inputs_of(node)
    ranks = [len(one.shape) for one in read] == [len(one.shape) for one in graph.inputs]
    said = {name: value for name, value in kwargs.items() if _says_something(value)}
    plain = not said or (list(said) == ["training"] and said["training"] is False)
    return graph if ranks and plain and len(args) == 1 else None


_PLAIN_MODELS = {"Functional", "Model", "Sequential"}


def _says_something(value: Any) -> bool:
    return any(leaf is not None for leaf in keras_graph.leaves(value))


def _numbers(graph: Any) -> dict[int, int]:
    """The number of each call among those of its layer in this graph, by the id of its node."""
    mine = {id(node) for node in keras_graph.nodes_of(graph)}
    counted: Counter[int] = Counter()
    found = {}
    for node in keras_graph.nodes_of(graph):
        owner = keras_graph.owner_of(node)
        if not counted[id(owner)]:
            for one in keras_graph.calls_of(owner):
                if id(one) in mine:
                    found[id(one)] = counted[id(owner)]
                    counted[id(owner)] += 1
    return found
