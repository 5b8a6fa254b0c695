"""What stands before and behind a BatchNormalization, through the walls of nested models.

A tensor that a nested model hands on is the one inside it, and its input is what it is called with;
of a model that is called several times there are several. A layer in a class that is not Keras' own
has no known neighbours, because that class may use it freely.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bnfold.folding.scope import Scope
from bnfold.folding.training import is_off
from bnfold.model import catalog
from bnfold.model.graph import Call, Layer, Path, Ref, show, unwrapped
from bnfold.model.shapes import Shape


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
    def trains_always(self) -> bool:
        """Whether the call may be in training mode whatever the model is called with."""
        return self.scope.around.trains(self.path, self.call)

    def sources(self) -> tuple["Node", ...]:
        """The calls that make what this one reads; none at an input of the model."""
        refs = self.call.inputs
        if refs:
            return tuple(node for ref in refs for node in makers(self.scope, ref))
        return tuple(_outside(self.scope, 0))

    def readers(self) -> tuple["Node | None", ...]:
        """The calls that read the first tensor it makes; None for the outside of the model."""
        return tuple(readers(self.scope, self.output))

    def input_shape(self) -> Shape | None:
        """The shape of its first input, batch included."""
        refs = self.call.inputs
        return self.scope.shapes.of(refs[0]) if refs else None


def makers(scope: Scope, ref: Ref) -> Iterator[Node]:
    """The calls that make a tensor, inside of nested models and outside of them."""
    nested = scope.inside.get(ref.layer)
    if nested is not None and ref.output < len(nested.graph.outputs):
        yield from makers(nested, nested.graph.outputs[ref.output])
        return
    node = Node(scope, ref.layer, ref.call)
    if node.is_input and scope.parent is not None:
        yield from _outside(scope, scope.graph.inputs.index(ref.layer))
    else:
        yield node


def _outside(scope: Scope, slot: int) -> Iterator[Node]:
    """The calls that make one input of a nested model."""
    if scope.parent is None:
        return
    for call in scope.parent.graph.layers[scope.name].calls:
        if slot < len(call.inputs):
            yield from makers(scope.parent, call.inputs[slot])


def readers(scope: Scope, ref: Ref) -> Iterator[Node | None]:
    """The calls that read a tensor; None where it leaves the model."""
    for name, number in dict.fromkeys(scope.graph.readers.get(ref, ())):
        nested = scope.inside.get(name)
        if nested is None:
            yield Node(scope, name, number)
            continue
        inputs = scope.graph.layers[name].calls[number].inputs
        for slot, source in enumerate(inputs):
            if source == ref:
                yield from _reading(nested, slot)
    for number, output in enumerate(scope.graph.outputs):
        if output == ref and scope.parent is None:
            yield None
        elif output == ref and scope.parent is not None:
            for call in range(len(scope.parent.graph.layers[scope.name].calls)):
                yield from readers(scope.parent, Ref(scope.name, call, number))


def _reading(scope: Scope, slot: int) -> Iterator[Node | None]:
    """The calls inside a nested model that read one of its inputs."""
    if slot < len(scope.graph.inputs):
        yield from readers(scope, Ref(scope.graph.inputs[slot]))
    elif scope.graph.kind == "sequential":
        yield Node(scope, next(iter(scope.graph.layers)), 0)


@dataclass(frozen=True, eq=False)
class Place:
    """A BatchNormalization, or the wrapper it is in, where it stands."""

    scope: Scope
    name: str

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Its calls, as its own graph counts them."""
        calls = self.scope.graph.layers[self.name].calls
        return tuple(Node(self.scope, self.name, number) for number in range(len(calls)))

    @property
    def count(self) -> int:
        """How often it is called in one call of the whole model."""
        return len(self.nodes) * _times(self.scope)

    @property
    def stands_elsewhere(self) -> bool:
        """Whether the same layer object is in several places of the model."""
        return self.scope.around.repeats(self.scope.graph.layers[self.name]) or any(
            scope.parent.around.repeats(scope.parent.graph.layers[scope.name])
            for scope in _scopes_around(self.scope)
            if scope.parent is not None
        )

    @property
    def updates_per_step(self) -> int | None:
        """How often a training step updates the statistics at most; None where that is not known.

        A call that says training=False updates nothing. Keras 3 calls what is in a TimeDistributed
        once for each step of a static time axis.
        """
        steps = 1
        for scope, name in ((self.scope, self.name), *_wrapped_around(self.scope)):
            _, wrappers = unwrapped(scope.graph.layers[name])
            shape = Node(scope, name, 0).input_shape() if wrappers else None
            for axis in range(1, wrappers + 1):
                size = shape[axis] if shape is not None and axis < len(shape) else None
                if size is None:
                    return None
                steps *= size
        calls = sum(not is_off(node.call.training) for node in self.nodes)
        for scope in _scopes_around(self.scope):
            calls *= sum(not is_off(call.training) for call in _outer_calls(scope))
        return calls * steps

    @cached_property
    def reads_model_input(self) -> bool:
        """Whether nothing with weights stands between the model's input and this layer."""
        return all(
            node is not None and _is_weightless(node)
            for start in self.nodes
            for node in upstream(start, _is_weightless)
        )


def _is_weightless(node: Node) -> bool:
    layer = node.layer
    return node.is_known and (layer.is_operation or layer.class_name in catalog.WEIGHTLESS)


def upstream(start: Node, through: Callable[[Node], bool]) -> Iterator[Node | None]:
    """The calls before one, against the data, each once; on behind those that `through` allows.

    The last one is None where there are too many of them.
    """
    waiting, seen = list(start.sources()), set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if len(seen) > _MAX_NODES:
            yield None
            return
        yield node
        if through(node):
            waiting += node.sources()


def downstream(start: Node, through: Callable[[Node], bool]) -> Iterator[Node | None]:
    """The calls behind one, with the data, each once; on behind those that `through` allows.

    One is None where a tensor leaves the model, is read by nothing, or has too many readers.
    """
    waiting: list[Node | None] = [start]
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        if node is None or len(seen) > _MAX_NODES:
            yield None
            return
        seen.add(node)
        if node != start:
            yield node
        if node == start or through(node):
            waiting += node.readers() or [None]


_MAX_NODES = 1000


def _scopes_around(scope: Scope) -> Iterator[Scope]:
    while scope.parent is not None:
        yield scope
        scope = scope.parent


def _wrapped_around(scope: Scope) -> Iterator[tuple[Scope, str]]:
    for inner in _scopes_around(scope):
        if inner.parent is not None:
            yield inner.parent, inner.name


def _outer_calls(scope: Scope) -> tuple[Call, ...]:
    return () if scope.parent is None else scope.parent.graph.layers[scope.name].calls


def _times(scope: Scope) -> int:
    times = 1
    for inner in _scopes_around(scope):
        times *= len(_outer_calls(inner))
    return times
