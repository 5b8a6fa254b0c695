"""A model from top to bottom: every call of a layer, in the order of the data, as plain values.

Nested models are laid out where they are called first, so that one list shows the whole model. A
branch is followed to its end before the next one begins.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bnfold.model.graph import Call, Graph, Layer, Path, Ref, core_path
from bnfold.model.order import calls_in_order


@dataclass(frozen=True)
class Step:
    """One call of a layer.

    Attributes:
        path: the layer's; that of the outermost wrapper where it has some.
        class_name: such as "Dense"; of a wrapped one "TimeDistributed(Dense)".
        reads: the places in the outline of the steps that make what it reads, each once.
        number: of the call, from 0, of so many `calls` of the layer.
        opens: it is a nested model whose steps follow.
        is_output: the model puts out what it makes.
    """

    path: Path
    class_name: str
    reads: tuple[int, ...]
    number: int = 0
    calls: int = 1
    opens: bool = False
    is_output: bool = False


def outline(graph: Graph) -> tuple[Step, ...]:
    """All calls that the model's outputs depend on, each behind those that make its inputs.

    A subclassed model has none.

    Raises:
        UnreadableModelError: the graph has a cycle.
    """
    layout = _Layout()
    makers = layout.lay_out(graph, (), None)
    ends = {makers(ref) for ref in graph.outputs}
    return tuple(
        replace(step, is_output=True) if place in ends else step
        for place, step in enumerate(layout.steps)
    )


class _Makers:
    """Which step makes a tensor of one graph."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, int], int | None] = {}
        self._outputs: dict[Ref, int | None] = {}

    def __call__(self, ref: Ref) -> int | None:
        """The place of the step; None for an input of a model that has no steps around it."""
        return self._outputs.get(ref, self._calls.get((ref.layer, ref.call)))

    def note(self, name: str, number: int, place: int | None) -> None:
        self._calls[name, number] = place

    def note_outputs(self, name: str, number: int, places: Iterable[int | None]) -> None:
        for output, place in enumerate(places):
            self._outputs[Ref(name, number, output)] = place


class _Layout:
    """Collects the steps of a model and of all models in it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def lay_out(self, graph: Graph, path: Path, around: int | None) -> _Makers:
        """Add the steps of a graph; `around` is the step of the nested model that it is."""
        makers = _Makers()
        entered: set[str] = set()
        for name, number in calls_in_order(graph):
            layer = graph.layers[name]
            if around is not None and layer.class_name == "InputLayer":
                makers.note(name, number, around)
                continue
            opens = layer.nested is not None and name not in entered
            self.steps.append(_step(layer, path, number, makers, around, opens=opens))
            place = len(self.steps) - 1
            makers.note(name, number, place)
            if opens and layer.nested is not None:
                entered.add(name)
                inside = self.lay_out(layer.nested, core_path(layer, (*path, name)), place)
                makers.note_outputs(name, number, map(inside, layer.nested.outputs))
        return makers


def _step(
    layer: Layer, path: Path, number: int, makers: _Makers, around: int | None, *, opens: bool
) -> Step:
    reads = tuple(dict.fromkeys(_read(layer.calls[number], makers, around)))
    return Step(
        (*path, layer.name), _class_name(layer), reads, number, len(layer.calls), opens=opens
    )


def _read(call: Call, makers: _Makers, around: int | None) -> Iterator[int]:
    """The steps that a call reads; the first layer of a nested Sequential reads the model's."""
    found = [makers(ref) for ref in call.inputs] or [around]
    return (place for place in found if place is not None)


def _class_name(layer: Layer) -> str:
    if layer.inner is None:
        return layer.class_name
    return f"{layer.class_name}({_class_name(layer.inner)})"
