"""The model as values: layers, their calls, the tensors between them, and their weights.

Everything here is immutable; an edit makes a new `Graph`. A weight knows its shape and dtype at
once and its numbers on demand, so that a model larger than memory can be planned, folded and
copied.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import UnreadableModelError
from bnfold.model.container.printing import shortened
from bnfold.model.refusal import Refusal

T = TypeVar("T")
Found = TypeVar("Found")
Json = dict[str, Any]
LayerPath = tuple[str, ...]
"""The names of the layers around, outermost first, then its own: `("backbone", "bn1")`."""


_UNKNOWN = object()


def once(find: Callable[[T], Found]) -> Callable[[T], Found]:
    """Have a function of a graph, a layer or a region find its answer once for each of them.

    They are immutable; whoever asks must not change the answer.
    """
    key = _key(find)

    @wraps(find)
    def known(one: T) -> Found:
        found: Any = one.__dict__.get(key, _UNKNOWN)
        if found is _UNKNOWN:
            found = one.__dict__[key] = find(one)
        return found  # type: ignore[no-any-return]

    return known


def hand_on(find: Callable[[T], Any], one: T, other: T) -> None:
    """Have what such a function has found of one thing, if it has, hold for another one too."""
    key = _key(find)
    if key in one.__dict__:
        other.__dict__[key] = one.__dict__[key]


def _key(find: Callable[..., Any]) -> str:
    return f"{find.__module__}.{find.__qualname__}"


def changed(one: T, **changes: Any) -> T:
    """`dataclasses.replace` for a graph or a layer, which a model of many has often, and faster."""
    made = object.__new__(type(one))
    values, fields = one.__dict__, one.__dataclass_fields__  # type: ignore[attr-defined]
    if len(values) > len(fields):  # what has been found once of the old one need not hold
        values = {name: values[name] for name in fields}
    made.__dict__.update(values)
    made.__dict__.update(changes)
    return made


def show(path: LayerPath) -> str:
    """A layer's path as users write it: `backbone/bn1`."""
    return "/".join(path)


class Ref(NamedTuple):
    """One tensor of a graph: output number `output` of call number `call` (from 0) of a layer."""

    layer: str
    call: int = 0
    output: int = 0


class Numbering(NamedTuple):
    """The first call number of each layer as its config counts, in calls and in outputs.

    Keras 3 counts from 0, and adds 1 only where `output_layers` names a nested Functional model;
    Keras 2 counts the calls of nested models from 1, because building the model was call 0.
    """

    in_calls: Mapping[str, int]
    in_outputs: Mapping[str, int]

    def decode(self, triple: list[Any], *, output: bool = False) -> Ref:
        """The tensor that `[layer, call, output]` means.

        Raises:
            UnreadableModelError: there is no such layer, or the numbers are no numbers.
        """
        name, call, number = triple[:3]
        first = (self.in_outputs if output else self.in_calls).get(name)
        if first is None or call < first or number < 0:
            raise UnreadableModelError(
                f"the config uses the tensor {shortened(str(triple[:3]))}, which does not exist"
            )
        return Ref(name, call - first, number)

    def encode(self, ref: Ref, *, output: bool = False) -> list[Any]:
        """The `[layer, call, output]` that means this tensor; the inverse of `decode`."""
        first = (self.in_outputs if output else self.in_calls)[ref.layer]
        return [ref.layer, ref.call + first, ref.output]


@dataclass(frozen=True)
class Weight:
    """One variable of a layer.

    `shape` is a tuple of ints, `dtype` the variable's dtype, `read` returns the numbers as an array
    of both. `name` is the variable's own name where the file gives one. `source` is where the file
    stores it; None means that the numbers are new. One that `is_far` is large, and would have to be
    fetched from a store: what can do without its numbers does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]] = field(compare=False)
    name: str = ""
    source: str | None = None
    is_far: bool = field(default=False, compare=False)


def slot_name(weight: Weight) -> str:
    """`block/conv/kernel_1:0` is a `kernel`."""
    return re.sub(r"(_\d+)?(:\d+)?$", "", weight.name.rpartition("/")[2])


class Call(NamedTuple):
    """One call of a layer.

    `reads` are the tensors that go in, in the order in which Keras flattens the arguments. `node`
    is the call as the file has it. `training` and `mask` are what the call passes explicitly under
    these names, None where it passes nothing.
    """

    reads: tuple[Ref, ...]
    node: Any = None
    training: Any = None
    mask: Any = None


@dataclass(frozen=True)
class Layer:
    """One layer (or operation) of a graph.

    `entry` is its JSON as the file has it and `config` the part of it that the layer's class reads.
    `builtin` is false for every class that is not Keras' own, whatever its name. `weights` are its
    own variables in the file's order, None where the file does not tell them apart. `graph` is the
    inside of a nested model, `inner` the layer that a wrapper wraps. `location` is the group of its
    weights in the source file.
    """

    name: str
    class_name: str
    config: Json = field(repr=False)
    entry: Json = field(repr=False)
    builtin: bool = True
    is_operation: bool = False
    calls: tuple[Call, ...] = ()
    weights: tuple[Weight, ...] | None = ()
    graph: "Graph | None" = None
    inner: "Layer | None" = None
    location: str | None = None

    @property
    def shared_object_id(self) -> int | None:
        """The number under which one layer object appears in several places of a config."""
        found = self.entry.get("shared_object_id")
        return found if isinstance(found, int) else None

    @property
    def nested(self) -> "Graph | None":
        """The graph inside this layer, looking through wrappers."""
        return self.graph if self.inner is None else self.inner.nested

    def with_config(self, **changes: Any) -> "Layer":
        """The same layer with some settings changed."""
        return changed(self, config={**self.config, **changes})


@dataclass(frozen=True)
class Graph:
    """A model's layers and the tensors between them.

    `layers` are in the file's order. `outputs` are the tensors that leave the graph, in the order
    in which Keras flattens them, `inputs` the names of the input layers likewise. `entry` is the
    model's own JSON. `builtin` is false where the model's class is not Keras' own; a "subclassed"
    model shows none of its layers. `obstacle` says why nothing in it can be folded, where its file
    alone forbids it.
    """

    name: str
    kind: Literal["functional", "sequential", "subclassed"]
    layers: Mapping[str, Layer]
    inputs: tuple[str, ...]
    outputs: tuple[Ref, ...]
    entry: Json = field(repr=False)
    builtin: bool = True
    numbering: Numbering | None = field(default=None, repr=False)
    obstacle: Refusal | None = None

    @cached_property
    def readers(self) -> Mapping[Ref, tuple[tuple[str, int], ...]]:
        """For each tensor, the calls (layer, number) that read it, once for each slot it fills."""
        found: dict[Ref, list[tuple[str, int]]] = {}
        for layer in self.layers.values():
            for number, call in enumerate(layer.calls):
                for ref in call.reads:
                    found.setdefault(ref, []).append((layer.name, number))
        return {ref: tuple(calls) for ref, calls in found.items()}

    def with_layer(self, layer: Layer) -> "Graph":
        """The same graph with the layer of this name replaced."""
        return replace(self, layers={**self.layers, layer.name: layer})


def finite_number(value: object) -> float | None:
    """A number of a config; None for anything else, and for what is not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def unwrapped(layer: Layer) -> tuple[Layer, int]:
    """The layer inside all wrappers, with the wrapper's calls, and how many wrappers there are."""
    wrappers, calls = 0, layer.calls
    while layer.inner is not None:
        layer, wrappers = layer.inner, wrappers + 1
    return (replace(layer, calls=calls) if wrappers else layer), wrappers


def chain(layer: Layer) -> list[Layer]:
    """A layer and everything it wraps."""
    return [part for part, _ in parts(layer, ())]


def parts(layer: Layer, path: LayerPath) -> Iterator[tuple[Layer, LayerPath]]:
    """A layer and everything it wraps, each with its path; `path` is that of the layer."""
    yield layer, path
    if layer.inner is not None:
        yield from parts(layer.inner, (*path, layer.inner.name))


def title(layer: Layer, path: LayerPath) -> str:
    """A layer as sentences name it: `Conv2D 'block/conv'`."""
    return f"{layer.class_name} {show(path)!r}"


def core_path(layer: Layer, path: LayerPath) -> LayerPath:
    """The path of the layer inside all wrappers, from that of the outermost one."""
    return [where for _, where in parts(layer, path)][-1]


def each_once(waiting: list[T]) -> Iterator[T]:
    """What is in a list that its reader adds to meanwhile, the last first, and each once."""
    seen: set[T] = set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            yield one


def walk_all(graph: Graph, path: LayerPath = ()) -> Iterator[tuple[LayerPath, Layer]]:
    """Every layer of a model at any depth with its path, also those inside wrappers."""
    for layer in graph.layers.values():
        for part, where in parts(layer, (*path, layer.name)):
            yield where, part
            if part.graph is not None:
                yield from walk_all(part.graph, where)
