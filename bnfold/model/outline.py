"""A model from top to bottom: every call of a layer, in the order of the data, as plain values.

Nested models are laid out where they are called first, so that one list shows the whole model. A
branch is followed to its end before the next one begins.
"""

from typing import NamedTuple

from bnfold.model.graph import Layer, LayerPath
from bnfold.model.program import Call, Program, Region, Value


class Step(NamedTuple):
    """One call of a layer.

    Attributes:
        path: the layer's; that of the outermost wrapper where it has some.
        class_name: such as "Dense"; of a wrapped one "TimeDistributed(Dense)".
        reads: the places in the outline of the steps that make what it reads, each once.
        number: of the call, from 0, of so many `calls` of the layer.
        opens: it is a nested model whose steps follow.
        is_output: the model puts out what it makes.
    """

    path: LayerPath
    class_name: str
    reads: tuple[int, ...]
    number: int = 0
    calls: int = 1
    opens: bool = False
    is_output: bool = False


def outline(program: Program) -> tuple[Step, ...]:
    """All calls that the model's outputs depend on, each after those that make its inputs.

    A subclassed model has none.

    Raises:
        UnreadableModelError: the graph has a cycle.
    """
    layout = _Layout()
    for call in program.calls:
        layout.add(call)
    ends = {layout.producer(value) for value in program.region.outputs}
    return tuple(
        step._replace(is_output=True) if place in ends else step
        for place, step in enumerate(layout.steps)
    )


class _Layout:
    """The steps so far, and where each call is among them."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._places: dict[Call, int] = {}
        # The first call of each nested model, whose steps follow.
        self._opening: dict[Region, Call] = {}

    def add(self, call: Call) -> None:
        """Add a step; the input of a nested model is the step of that model."""
        around = self._opening.get(call.region)
        if around is not None and call.outer.class_name == "InputLayer":
            self._places[call] = self._places[around]
            return
        opens = call.body is not None and call.body not in self._opening
        if opens and call.body is not None:
            self._opening[call.body] = call
        # The first layer of a Sequential that lists no InputLayer reads what the model does.
        reads = [self.producer(value) for value in call.reads]
        if not reads and around is not None:
            reads = [self._places[around]]
        self._places[call] = len(self.steps)
        self.steps.append(
            Step(
                call.path,
                _class_name(call.outer),
                tuple(dict.fromkeys(reads)),
                call.number,
                len(call.outer.calls),
                opens=opens,
            )
        )

    def producer(self, value: Value) -> int:
        """The step that makes a tensor, inside of a nested model where its steps are."""
        call, output = value
        body = call.body
        if body is not None and self._opening[body] is call and output < len(body.outputs):
            return self.producer(body.outputs[output])
        return self._places[call]


def _class_name(layer: Layer) -> str:
    if layer.inner is None:
        return layer.class_name
    return f"{layer.class_name}({_class_name(layer.inner)})"
