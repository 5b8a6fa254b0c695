"""A loaded model as a list of calls that can be run piece by piece, on real numbers.

Nested models are taken apart where that changes nothing; what is not, a TimeDistributed or a class
of the user's, is one step. Every step runs inside the call of an outer layer with training=False,
as all layers do in `predict`: there Keras 3 overrides what a call or a layer says of training
itself, and Keras 2 does not.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.libraries import one_line_on_failure
from bnfold.running.loading import LoadedModel
from bnfold.running.unrolled import inside_of

Values = dict[int, Any]
"""Tensors by the number of the value."""


@dataclass(frozen=True, eq=False)
class PlacedCall:
    """One call of a graph where it stands.

    Attributes:
        node: the call.
        given: the number of each tensor that it reads, by the id of the graph's own tensor.
        writes: the numbers of those that it makes.
    """

    node: Any
    given: Mapping[int, int]
    writes: tuple[int, ...]

    @property
    def owner(self) -> Any:
        """The layer or operation that is called."""
        return keras_graph.owner_of(self.node)

    @property
    def reads(self) -> tuple[int, ...]:
        """The numbers of the values that it reads."""
        return tuple(dict.fromkeys(self.given.values()))


class Program:
    """The calls of a model in the order in which Keras makes them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._host = _host(loaded.keras)
        self._count = len(loaded.model.inputs)
        self.calls: list[PlacedCall] = []
        graph = keras_graph.graph_of(loaded.model)
        if graph is not None:
            self._place(graph, {id(one): slot for slot, one in enumerate(graph.inputs)})

    def _place(self, graph: Any, slots: dict[int, int]) -> list[int]:
        """Note the calls of a graph; the numbers of its outputs."""
        for node in keras_graph.in_order(graph):
            read = keras_graph.inputs_of(node)
            made = keras_graph.outputs_of(node)
            inside = _taken_apart(node)
            if inside is not None:
                given = [slots[id(one)] for one in read]
                inner = dict(zip(map(id, inside.inputs), given, strict=True))
                slots.update(zip(map(id, made), self._place(inside, inner), strict=True))
                continue
            writes = tuple(range(self._count, self._count + len(made)))
            self._count += len(made)
            slots.update(zip(map(id, made), writes, strict=True))
            placed = PlacedCall(node, {id(one): slots[id(one)] for one in read}, writes)
            self.calls.append(placed)
        return [slots[id(one)] for one in graph.outputs]

    def start(self, inputs: Sequence[Array]) -> Values:
        """The values to start from: the model's inputs."""
        tensorflow = importlib.import_module("tensorflow")
        pairs = zip(inputs, self._loaded.model.inputs, strict=True)
        return {
            slot: tensorflow.convert_to_tensor(array, dtype=keras_graph.dtype_name(tensor))
            for slot, (array, tensor) in enumerate(pairs)
        }

    def run(
        self,
        numbers: Sequence[int],
        values: Values,
        *,
        final: Callable[[int], bool] = lambda _: True,
        keep: Collection[int] = (),
        entered: Callable[[int], None] = lambda _: None,
    ) -> Values:
        """Make some calls, by number and in order; those of all values that are in `keep`.

        What only calls that are not `final` make is not kept. `entered` is told of each call before
        it is made. Raises CannotRunError.
        """
        live = dict(values)
        readers = Counter(slot for number in numbers for slot in self.calls[number].reads)

        def job() -> None:
            for number in numbers:
                call = self.calls[number]
                entered(number)
                made = self._make(call, live)
                if final(number):
                    live.update(zip(call.writes, made, strict=True))
                del made
                for slot in call.reads:
                    readers[slot] -= 1
                    if not readers[slot] and slot not in keep:
                        del live[slot]

        with one_line_on_failure():
            self._host.inside(job)
        return {slot: live[slot] for slot in keep if slot in live}

    def _make(self, call: PlacedCall, live: Values) -> list[Any]:
        values = {key: live[slot] for key, slot in call.given.items()}
        args, kwargs = keras_graph.filled_in(call.node, values, inference=True)
        return keras_graph.leaves(call.owner(*args, **kwargs))


def _taken_apart(node: Any) -> Any:
    """The graph of a nested model whose layers can be called in its place; None for all else.

    A model casts its inputs, and hands the mask of the first one on to outputs that have none.
    """
    inside = inside_of(node)
    if inside is None:
        return None
    pairs = zip(keras_graph.inputs_of(node), inside.inputs, strict=True)
    same = all(keras_graph.dtype_name(one) == keras_graph.dtype_name(other) for one, other in pairs)
    masked = any(keras_graph.mask_of(one) is not None for one in keras_graph.inputs_of(node))
    return inside if same and not masked else None


def _host(keras: Any) -> Any:
    """A layer in whose call others are called, and that says training=False to them."""

    class Host(keras.layers.Layer):  # type: ignore[misc]
        """Runs a function inside its own call."""

        def inside(self, job: Callable[[], None]) -> None:
            self._jobs = (job,)
            self(importlib.import_module("tensorflow").zeros(1), training=False)

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            self._jobs[0]()
            return inputs

    return Host(dtype="float32", name="host")
