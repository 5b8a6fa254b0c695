"""A model as one program: all calls of its layers, with wrappers peeled and nested models entered.

The tree of graphs is how a file is written. Who asks what a tensor is made of, or where it goes,
walks this instead: values and the calls that make them. A nested model that is called several times
stands here once, with all its callers: what goes into it is any of what these give it.

Everything is found when it is asked for, and once.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from bnfold.model import graph as tree
from bnfold.model import inbound_nodes, layers
from bnfold.model.graph import (
    Graph,
    Layer,
    LayerPath,
    Ref,
    chain,
    core_path,
    each_once,
    parts,
    title,
    unwrapped,
)
from bnfold.model.order import calls_in_order
from bnfold.model.refusal import Refusal
from bnfold.model.shape_rules import Shape
from bnfold.model.shapes import Shapes, input_shape, without_axes
from bnfold.model.training import ANY_USE, Use, is_set


class Value(NamedTuple):
    """One tensor: output number `output` of a call."""

    call: "Call"
    output: int = 0

    @property
    def ref(self) -> Ref:
        """What the graph around calls it."""
        return Ref(self.call.name, self.call.number, self.output)

    @property
    def shape(self) -> Shape | None:
        """Batch included; None where it is not known."""
        return self.call.region.shapes.of(self.ref)

    @property
    def dtype(self) -> str | None:
        """None where it is not known."""
        return self.call.region.shapes.dtype(self.ref)

    @property
    def is_output(self) -> bool:
        """Whether it is an output of the model or nested model that the call is in."""
        return self.ref in self.call.region.output_numbers

    def readers(self) -> tuple["Call", ...]:
        """The calls in its own region that read it, nested models among them, each once."""
        region = self.call.region
        found = dict.fromkeys(region.graph.readers.get(self.ref, ()))
        return tuple(region.call(*node) for node in found)

    def producers(self) -> Iterator["Value"]:
        """The value as its layer makes it, inside of nested models and outside of them.

        There are several for the input of a nested model that is called several times.
        """
        waiting = [self]
        for value in each_once(waiting):
            (call, output), slot = value, value.call.input_slot
            if call.body is not None and output < len(call.body.outputs):
                waiting.append(call.body.outputs[output])
            elif slot is not None and call.region.parent is not None:
                waiting += call.region.given(slot)
            else:
                yield value

    def uses(self) -> Iterator["Call | None"]:
        """The calls of layers that read it, through nested models; None for an output of the model.

        A nested Sequential without an InputLayer is read by its first layer.
        """
        waiting = [self]
        for value in each_once(waiting):
            for reader in value.readers():
                body = reader.body
                if body is None:
                    yield reader
                    continue
                slots = [slot for slot, read in enumerate(reader.reads) if read == value]
                if max(slots) < len(body.inputs):
                    waiting += [Value(body.inputs[slot]) for slot in slots]
                else:
                    yield body.call(next(iter(body.graph.layers)))
            if value.is_output:
                waiting += value.call.region.handed_on(value)
                if value.call.region.parent is None:
                    yield None


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of a nested model.

    It reads what the graph's own `Call` does; its `inputs` may be fewer.

    Attributes:
        region: the model that it is a part of.
        outer: the layer as the file has it, with its wrappers.
        number: of the call, from 0.
    """

    region: "Region" = field(repr=False)
    outer: Layer
    number: int

    @property
    def name(self) -> str:
        """The layer's name, or that of its outermost wrapper."""
        return self.outer.name

    @property
    def written(self) -> tree.Call:
        """What the graph says of the call."""
        return self.outer.calls[self.number]

    @cached_property
    def layer(self) -> Layer:
        """The layer inside all wrappers."""
        return unwrapped(self.outer)[0]

    @property
    def wrappers(self) -> int:
        """How many TimeDistributed are around the layer."""
        return unwrapped(self.outer)[1]

    @property
    def path(self) -> LayerPath:
        """The path of the layer, or of its outermost wrapper."""
        return (*self.region.path, self.name)

    @property
    def core_path(self) -> LayerPath:
        """The path of the layer inside all wrappers."""
        return core_path(self.outer, self.path)

    @property
    def title(self) -> str:
        """The layer as sentences name it: `Conv2D 'block/conv'`."""
        return title(self.layer, self.path)

    @property
    def body(self) -> "Region | None":
        """The nested model that is called."""
        return self.region.inside.get(self.name)

    @cached_property
    def reads(self) -> tuple[Value, ...]:
        """All tensors that go in, in the order in which Keras flattens the arguments."""
        return tuple(map(self.region.value, self.written.reads))

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Those in the first argument; of an operation all."""
        return self.reads[: self._leading]

    @property
    def others(self) -> tuple[Value, ...]:
        """The rest: masks, states, keys."""
        return self.reads[self._leading :]

    @property
    def _leading(self) -> int:
        node, numbering = self.written.node, self.region.graph.numbering
        if self.outer.is_operation or node is None or numbering is None:
            return len(self.written.reads)
        return inbound_nodes.leading(node, numbering.in_calls)

    def output(self, number: int = 0) -> Value:
        """One of the tensors that it makes."""
        return Value(self, number)

    @property
    def is_known(self) -> bool:
        """Whether the layer, and the model that it is a part of, are of Keras' own classes."""
        return self.layer.builtin and self.region.graph.builtin

    @property
    def input_slot(self) -> int | None:
        """Which input of its region it is; None for any other call."""
        if not layers.is_input(self.layer) or not self.region.graph.builtin:
            return None
        return self.region.slots.get(self.name)

    def producers(self) -> tuple["Call", ...]:
        """The calls of layers that make what it reads; none at an input of the model."""
        # The first layer of a Sequential that lists no InputLayer reads what that is given.
        reads = self.reads or self.region.given(0)
        return tuple(made.call for value in reads for made in value.producers())

    def uses(self) -> tuple["Call | None", ...]:
        """The calls of layers that read the first tensor it makes; None for the model's output."""
        return tuple(self.output().uses())


@dataclass(frozen=True, eq=False)
class Region:
    """A model: the whole one, or a nested one where it stands.

    Attributes:
        graph: what the file says of it.
        path: that of the nested model, inside all wrappers; () for the whole model.
        parent: the model around it, None for the whole one.
        layer: the layer of the parent that it is, or that wraps it.
        use: how the whole model is going to be used.
    """

    graph: Graph = field(repr=False)
    path: LayerPath = ()
    parent: "Region | None" = field(default=None, repr=False)
    layer: Layer | None = field(default=None, repr=False)
    use: Use = field(default=ANY_USE, repr=False)

    @property
    def name(self) -> str:
        """The name of the layer of the parent."""
        return "" if self.layer is None else self.layer.name

    @cached_property
    def wrappers(self) -> int:
        """How many TimeDistributed are around it."""
        return 0 if self.layer is None else unwrapped(self.layer)[1]

    @cached_property
    def inside(self) -> "Mapping[str, Region]":
        """The nested models in it, by the name of the layer."""
        return {
            name: Region(layer.nested, core_path(layer, (*self.path, name)), self, layer)
            for name, layer in self.graph.layers.items()
            if layer.nested is not None
        }

    @cached_property
    def _calls(self) -> dict[str, tuple[Call, ...]]:
        return {}

    def call(self, name: str, number: int = 0) -> Call:
        """One call of one of its layers."""
        return self.calls_of(name)[number]

    def value(self, ref: Ref) -> Value:
        """One of its tensors."""
        return Value(self.call(ref.layer, ref.call), ref.output)

    def calls_of(self, name: str) -> tuple[Call, ...]:
        """All calls of one of its layers."""
        found = self._calls.get(name)
        if found is None:
            layer = self.graph.layers[name]
            found = tuple(Call(self, layer, number) for number in range(len(layer.calls)))
            self._calls[name] = found
        return found

    @property
    def all_calls(self) -> tuple[Call, ...]:
        """All calls of its layers, in the file's order, also those that no output depends on."""
        return tuple(call for name in self.graph.layers for call in self.calls_of(name))

    @property
    def callers(self) -> tuple[Call, ...]:
        """The calls of the nested model; none of the whole one."""
        return () if self.parent is None else self.parent.calls_of(self.name)

    @cached_property
    def inputs(self) -> tuple[Call, ...]:
        """Its input layers, in the order in which it is given tensors."""
        return tuple(map(self.call, self.graph.inputs))

    @cached_property
    def slots(self) -> Mapping[str, int]:
        """The numbers of its inputs by the names of their layers; of one named twice the first."""
        numbered = [*enumerate(self.graph.inputs)]
        return {name: slot for slot, name in reversed(numbered)}

    @cached_property
    def output_numbers(self) -> Mapping[Ref, Sequence[int]]:
        """As which outputs a tensor leaves it, for those that do."""
        found: dict[Ref, list[int]] = {}
        for number, ref in enumerate(self.graph.outputs):
            found.setdefault(ref, []).append(number)
        return found

    @cached_property
    def outputs(self) -> tuple[Value, ...]:
        """The tensors that leave it."""
        return tuple(map(self.value, self.graph.outputs))

    def given(self, slot: int) -> list[Value]:
        """What its callers give it for one of its inputs."""
        return [caller.reads[slot] for caller in self.callers if slot < len(caller.reads)]

    def handed_on(self, value: Value) -> list[Value]:
        """What an output of a nested model is outside of it."""
        numbers = self.output_numbers.get(value.ref, ())
        return [Value(caller, number) for caller in self.callers for number in numbers]

    @cached_property
    def is_known(self) -> bool:
        """Whether it and all models around it are of Keras' own classes."""
        return self.graph.builtin and (self.parent is None or self.parent.is_known)

    def with_nested(self) -> "Iterator[Region]":
        """It and all models in it, each after the one around it."""
        yield self
        for nested in self.inside.values():
            yield from nested.with_nested()

    def layer_path(self, name: str) -> LayerPath:
        """The path of one of its layers."""
        return (*self.path, name)

    def reads(self, ref: Ref) -> int:
        """How often a tensor is read: by slots of calls, and as an output."""
        return len(self.graph.readers.get(ref, ())) + len(self.output_numbers.get(ref, ()))

    @cached_property
    def _repeated(self) -> frozenset[int]:
        return _repeated_objects(self.graph.entry) if self.parent is None else self.parent._repeated

    def repeats(self, layer: Layer) -> bool:
        """Whether a layer, or one that it wraps, stands in several places of the whole model."""
        numbers = {part.shared_object_id for part in chain(layer)} - {None}
        return bool(numbers) and not numbers.isdisjoint(self._repeated)

    @cached_property
    def obstacle(self) -> Refusal | None:
        """Why nothing in it can be changed; None where it can."""
        if self.parent is None:
            return self.graph.obstacle
        found = self.parent.obstacle
        for layer, path in self._walls:
            if self.repeats(layer):
                found = Refusal(f"{title(layer, path)} stands in several places of the model")
            if not layer.builtin:
                found = Refusal(
                    f"it is inside {title(layer, path)}, a class that is not Keras' own"
                )
        return found

    @cached_property
    def training(self) -> str | None:
        """The nested model around its layers that is called with training=True, if one is."""
        found = None if self.parent is None else self.parent.training
        for layer, path in self._walls:
            if any(is_set(call.training) for call in layer.calls):
                found = title(layer, path)
        return found

    @property
    def _walls(self) -> Iterable[tuple[Layer, LayerPath]]:
        """The layers between its parent and it, wrappers first, each with its path."""
        if self.parent is None or self.layer is None:
            return ()
        return parts(self.layer, self.parent.layer_path(self.name))

    @cached_property
    def _boundary(self) -> Refusal | None:
        problem = next(_boundary_problems(self), None)
        return None if problem is None else Refusal(problem)

    @cached_property
    def closed(self) -> Refusal | None:
        """A predicate, why nothing can cross its boundary; None where it can, and for the whole."""
        if self.parent is None or self._boundary is not None or self.obstacle is None:
            return self._boundary
        return Refusal(f"stays as it is: {self.obstacle.reason}")

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes and dtypes of its tensors."""
        if self.parent is None or self._boundary is not None:
            return Shapes(self.graph)
        return self.parent.shapes.inside(self.name, 0)


@dataclass(frozen=True, eq=False)
class Program:
    """A whole model.

    Attributes:
        graph: what the file says of it.
        use: how it is going to be used, which decides what may run in training mode.
    """

    graph: Graph
    use: Use = ANY_USE

    @cached_property
    def region(self) -> Region:
        """The whole model as the outermost region."""
        return Region(self.graph, use=self.use)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """All calls that the outputs depend on, each after those that make its inputs.

        What is inside a nested model follows its first call.

        Raises:
            UnreadableModelError: the graph has a cycle.
        """
        return tuple(_in_order(self.region))

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The whole model and all nested ones, each after the one around it."""
        return tuple(self.region.with_nested())


def _in_order(region: Region) -> Iterator[Call]:
    entered: set[str] = set()
    for name, number in calls_in_order(region.graph):
        call = region.call(name, number)
        yield call
        if call.body is not None and name not in entered:
            entered.add(name)
            yield from _in_order(call.body)


def _repeated_objects(value: object) -> frozenset[int]:
    """The objects that a config holds in more than one place, whoever holds them."""
    count: Counter[int] = Counter()
    level: list[Any] = [value]
    while level:
        numbers = [
            node["shared_object_id"]
            for node in level
            if isinstance(node, dict) and "shared_object_id" in node
        ]
        count.update(number for number in numbers if isinstance(number, int))
        level = [
            one
            for node in level
            for one in (node.values() if isinstance(node, dict) else node)
            if isinstance(one, (dict, list))
        ]
    return frozenset(number for number, times in count.items() if times > 1)


def _boundary_problems(region: Region) -> Iterator[str]:
    """Why nothing can cross the boundary of a nested model."""
    graph, parent = region.graph, region.parent
    if parent is None:
        return
    if not graph.builtin:
        yield "is of a class that is not Keras' own"
    if len(region.callers) != 1:
        yield f"is a nested model that is called {len(region.callers)} times"
        return
    (caller,) = region.callers
    call = caller.written
    if call.mask is not None:
        yield "is a nested model that is given a mask"
    if len(call.reads) != len(graph.inputs) or caller.others:
        yield "is a nested model that is called in an unusual way"
        return
    given_keys = () if call.node is None else inbound_nodes.keys_of_first(call.node)
    listed = graph.entry["config"].get("input_layers") if graph.kind == "functional" else []
    declared_keys = sorted(listed) if isinstance(listed, dict) else []
    if len(graph.inputs) > 1 and (given_keys is None or sorted(given_keys) != declared_keys):
        yield "is a nested model whose inputs are a dictionary, and other ones than it is given"
    given = [without_axes(value.shape, region.wrappers) for value in caller.reads]
    declared = [input_shape(graph.layers[name]) for name in graph.inputs]
    if not all(map(_fits, given, declared)):
        yield "is a nested model that is given a tensor of another rank, or of an unknown one"


def _fits(outer: Shape | None, declared: Shape | None) -> bool:
    """Whether a tensor goes in as it is: Keras adds or drops a last axis of size 1 otherwise."""
    return declared is None or (outer is not None and len(outer) == len(declared))
