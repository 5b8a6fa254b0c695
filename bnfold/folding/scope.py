"""The graphs of a model where they stand, and whether their boundaries can be crossed.

A map may leave a nested model, or enter one, only if the model is called once: inside one that is
called several times the same weights serve all calls. A model inside a TimeDistributed does not see
the axis of time, so a map that varies along it stays outside.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from bnfold.folding.training import exposed, is_set, training_in_bare_call
from bnfold.model import inbound_nodes
from bnfold.model.graph import Call, Graph, Layer, Path, Ref, show, walk_all
from bnfold.model.order import calls_in_order
from bnfold.model.shape_rules import Shape
from bnfold.model.shapes import Shapes, input_shape, without_axes


@dataclass(frozen=True)
class Surroundings:
    """What a graph inherits from what is around it; an `obstacle` blocks everything inside.

    `exposed` are the layers that another one's training=True may reach, with the name of that one,
    and `reached` those of them that it does reach.
    """

    keep: Sequence[str]
    repeated: frozenset[int]
    exposed: Mapping[Path, str]
    reached: frozenset[Path] = frozenset()
    obstacle: str | None = None
    training: str | None = None

    def keeps(self, path: Path) -> bool:
        """Whether the user asked for this layer to be left alone."""
        return any(matches(path, pattern) for pattern in self.keep)

    def trains(self, path: Path, call: Call) -> bool:
        """Whether a call of a layer may run in training mode."""
        return is_set(call.training) or self.training is not None or path in self.exposed

    def trains_for_sure(self, path: Path, call: Call) -> bool:
        """Whether a call of a layer runs in training mode, if none is said to the model."""
        return is_set(call.training) or self.training is not None or path in self.reached

    def makes_others_train(self, path: Path) -> bool:
        """Whether a layer that is called with training=True may have made others train."""
        return any(other != path for other in self.exposed)

    def repeats(self, layer: Layer) -> bool:
        """Whether a layer, or one that it wraps, stands in several places of the model."""
        return any(part.shared_object_id in self.repeated for part in chain(layer))

    def inside(self, layer: Layer, path: Path) -> "Surroundings":
        """The surroundings of what stands inside this layer."""
        obstacle, training = self.obstacle, self.training
        if self.repeats(layer):
            obstacle = f"{title(layer, path)} stands in several places of the model"
        if not layer.builtin:
            obstacle = f"it is inside {title(layer, path)}, a class that is not Keras' own"
        if any(is_set(call.training) for call in layer.calls):
            training = title(layer, path)
        return replace(self, obstacle=obstacle, training=training)


def matches(path: Path, pattern: str) -> bool:
    """Whether a shell pattern matches the name or nested path of a layer, or of one around it."""
    around = (path[:length] for length in range(1, len(path) + 1))
    return any(fnmatchcase(name, pattern) for p in around for name in (p[-1], show(p)))


def chain(layer: Layer) -> list[Layer]:
    """A layer and everything it wraps."""
    return [layer] if layer.inner is None else [layer, *chain(layer.inner)]


def title(layer: Layer, path: Path) -> str:
    """A layer as sentences name it: `Conv2D 'block/conv'`."""
    return f"{layer.class_name} {show(path)!r}"


def repeated_objects(value: object) -> frozenset[int]:
    """The objects that a config holds in more than one place, whoever holds them."""
    count: Counter[int] = Counter()
    level = [value]
    while level:
        dicts = [node for node in level if isinstance(node, dict)]
        count.update(n for n in (d.get("shared_object_id") for d in dicts) if isinstance(n, int))
        level = [
            inside
            for node in level
            if isinstance(node, (dict, list))
            for inside in (node.values() if isinstance(node, dict) else node)
        ]
    return frozenset(number for number, times in count.items() if times > 1)


def unused_patterns(graph: Graph, keep: Sequence[str]) -> tuple[str, ...]:
    """The patterns of `keep` that match no layer of the model."""
    paths = [path for path, _ in walk_all(graph)]
    return tuple(p for p in keep if not any(matches(path, p) for path in paths))


@dataclass(frozen=True, eq=False)
class Scope:
    """One graph of a model where it stands.

    Attributes:
        graph: the graph.
        path: that of the layer it is, or is inside of; () for the model itself.
        around: what it inherits.
        shapes: those of its tensors.
        parent: the graph around it, None for the model itself.
        name: the layer of the parent that it is, or that wraps it.
        wrappers: how many TimeDistributed stand between.
        closed: a sentence, why nothing can cross its boundary; None where it can.
        inside: the scopes of the nested models in it, by the name of the layer.
    """

    graph: Graph
    path: Path
    around: Surroundings
    shapes: Shapes
    parent: "Scope | None" = None
    name: str = ""
    wrappers: int = 0
    closed: str | None = None
    inside: "dict[str, Scope]" = field(default_factory=dict)

    def layer_path(self, name: str) -> Path:
        """The path of one of its layers."""
        return (*self.path, name)

    def reads(self, ref: Ref) -> int:
        """How often a tensor is read: by slots of calls, and as an output."""
        return len(self.graph.readers.get(ref, ())) + self.graph.outputs.count(ref)

    def leading(self, call: Call) -> int:
        """How many of a call's inputs are in its first argument."""
        if self.graph.numbering is None or call.node is None:
            return len(call.inputs)
        return inbound_nodes.leading(call.node, self.graph.numbering.in_calls)

    def outer_call(self) -> Call | None:
        """The one call of the nested model that this is."""
        return None if self.parent is None else self.parent.graph.layers[self.name].calls[0]


def build_scopes(graph: Graph, keep: Sequence[str]) -> Scope:
    """The scope of a whole model, with those of all models in it."""
    found = exposed(graph)
    reached = training_in_bare_call(graph) if found else frozenset()
    obstacle = None if graph.obstacle is None else f"the file was {graph.obstacle}"
    around = Surroundings(keep, repeated_objects(graph.entry), found, reached, obstacle)
    scope = Scope(graph, (), around, Shapes(graph))
    _fill(scope)
    return scope


def _fill(scope: Scope) -> None:
    for name, layer in scope.graph.layers.items():
        path, around, wrappers = scope.layer_path(name), scope.around, 0
        current: Layer = layer
        around = around.inside(current, path)
        while current.inner is not None:
            current, wrappers = current.inner, wrappers + 1
            path = (*path, current.name)
            around = around.inside(current, path)
        if current.graph is not None:
            closed = next(_boundary(scope, layer, current.graph, wrappers), None)
            shapes = Shapes(current.graph) if closed else scope.shapes.inside(name, 0)
            if closed is None and around.obstacle is not None:
                closed = f"stays as it is: {around.obstacle}"
            nested = Scope(current.graph, path, around, shapes, scope, name, wrappers, closed)
            scope.inside[name] = nested
            _fill(nested)


def _boundary(scope: Scope, layer: Layer, graph: Graph, wrappers: int) -> Iterator[str]:
    """Why nothing can cross the boundary of a nested model."""
    if not graph.builtin:
        yield "is of a class that is not Keras' own"
    if len(layer.calls) != 1:
        yield f"is a nested model that is called {len(layer.calls)} times"
        return
    call = layer.calls[0]
    if call.mask is not None:
        yield "is a nested model that is given a mask"
    if len(call.inputs) != len(graph.inputs) or scope.leading(call) != len(call.inputs):
        yield "is a nested model that is called in an unusual way"
        return
    given_keys = () if call.node is None else inbound_nodes.keys_of_first(call.node)
    listed = graph.entry["config"].get("input_layers") if graph.kind == "functional" else []
    declared_keys = sorted(listed) if isinstance(listed, dict) else []
    if len(graph.inputs) > 1 and (given_keys is None or sorted(given_keys) != declared_keys):
        yield "is a nested model whose inputs are a dictionary, and other ones than it is given"
    given = [without_axes(scope.shapes.of(ref), wrappers) for ref in call.inputs]
    declared = [input_shape(graph.layers[name]) for name in graph.inputs]
    if not all(map(_fits, given, declared)):
        yield "is a nested model that is given a tensor of another rank, or of an unknown one"


def _fits(outer: Shape | None, declared: Shape | None) -> bool:
    """Whether a tensor goes in as it is: Keras adds or drops a last axis of size 1 otherwise."""
    return declared is None or (outer is not None and len(outer) == len(declared))


Position = tuple[Scope, str, int]
"""One call: the scope, the layer's name and the number of the call."""

Tensor = tuple[Scope, Ref]


def readers(scope: Scope, ref: Ref) -> Iterator[Position | None]:
    """The calls that read a tensor, through nested models; None where it leaves the whole model."""
    waiting: list[Tensor] = [(scope, ref)]
    seen: set[Tensor] = set()
    while waiting:
        tensor = waiting.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        scope, ref = tensor
        for name, number in dict.fromkeys(scope.graph.readers.get(ref, ())):
            nested = scope.inside.get(name)
            inputs = scope.graph.layers[name].calls[number].inputs
            slots = [slot for slot, source in enumerate(inputs) if source == ref]
            if nested is None:
                yield scope, name, number
            elif max(slots) < len(nested.graph.inputs):
                waiting += [(nested, Ref(nested.graph.inputs[slot])) for slot in slots]
            else:
                yield nested, next(iter(nested.graph.layers)), 0
        if ref in scope.graph.outputs:
            waiting += _handed_on(scope, ref)
            if scope.parent is None:
                yield None


def _handed_on(scope: Scope, ref: Ref) -> list[Tensor]:
    """What an output of a nested model is outside of it."""
    if scope.parent is None:
        return []
    calls = range(len(scope.parent.graph.layers[scope.name].calls))
    numbers = [number for number, output in enumerate(scope.graph.outputs) if output == ref]
    return [(scope.parent, Ref(scope.name, call, n)) for call in calls for n in numbers]


def positions(scope: Scope) -> Iterator[Position]:
    """All calls of a model, each behind those that make its inputs.

    What is inside a nested model follows its call.
    """
    entered: set[str] = set()
    for name, number in calls_in_order(scope.graph):
        yield scope, name, number
        if name in scope.inside and name not in entered:
            entered.add(name)
            yield from positions(scope.inside[name])
