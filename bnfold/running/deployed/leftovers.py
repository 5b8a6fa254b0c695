"""What is left of each BatchNormalization in what a runtime computes.

Exporters write the layer as a multiplication and an addition, so that no operation of its name
proves nothing. But operations are named after the layers that they come from
(`net_1/stem_bn_1/batchnorm/mul_1`), and what the layer does is arithmetic with constants. So of
each file and of the graph that the runtime makes of it

    left      an operation of plain arithmetic has the name of the layer, or a constant of its name
    merged    all operations of plain arithmetic with constants have the names of other layers

A convolution or a product of matrices that is named after the layer has absorbed it; so has what
only moves numbers about. Where arithmetic with constants has nobody's name, whatever is not seen to
be left is unknown. ONNX Runtime writes the graph down that it has optimised; LiteRT runs what is in
the file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bnfold.model.layers import BATCHNORM_CLASSES
from bnfold.running import keras_graph
from bnfold.running.deployed.litert import interpreter_module
from bnfold.running.libraries import imported, one_line_on_failure
from bnfold.running.loading import LoadedModel
from bnfold.supervision import link


class State(StrEnum):
    """What became of a BatchNormalization."""

    EXPORTER = "exporter"
    RUNTIME = "runtime"
    LEFT = "left"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Leftover:
    """What is left of one layer.

    Attributes:
        name: its path.
        state: who merged it, or that it is left, or that the names do not tell.
        nodes: the operations that are left of it, in the order in which they run.
    """

    name: str
    state: State
    nodes: tuple[str, ...] = ()


Path_ = tuple[str, ...]

_ARITHMETIC = {
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Rsqrt", "Reciprocal"),
    *("BatchNormalization", "SquaredDifference"),
}
_RENAMED = re.compile(r"_(?:mul|bn)_nchwc(?:_token_\d+)?$")
"""How ONNX Runtime calls a convolution that it makes of a multiplication, one number a channel."""
_COUNTER = re.compile(r"(?:__\d+)+$")
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Node:
    """An operation: its kind, the names that it goes by, and those of the constants it reads."""

    kind: str
    names: tuple[str, ...]
    constants: tuple[str, ...]

    @property
    def computes(self) -> bool:
        """Whether it is plain arithmetic with constants, as a BatchNormalization is."""
        is_made = any(_RENAMED.search(name) for name in self.names)
        return is_made or (self.kind in _ARITHMETIC and bool(self.constants))


@dataclass(frozen=True)
class Layers:
    """The BatchNormalization layers of a model, by path, and how operations are named after layers.

    Attributes:
        root: the scope around all of them.
        plain: those whose calls have a scope of their own.
        wrapped: those in wrappers, whose calls may have none.
    """

    root: str
    plain: tuple[Path_, ...]
    wrapped: tuple[Path_, ...] = ()

    @classmethod
    def of(cls, loaded: LoadedModel) -> Layers:
        """Those of what a model shows, in the order of its layers."""
        plain: list[Path_] = []
        wrapped: list[Path_] = []
        for path, layer, is_wrapped in _layers(loaded.model):
            if type(layer).__name__ in BATCHNORM_CLASSES:
                (wrapped if is_wrapped else plain).append(path)
        return cls(loaded.shown.name, tuple(plain), tuple(wrapped))

    def path(self, name: str) -> Path_ | None:
        """The scopes in the name of an operation, as layers are called; None without the root."""
        scopes = [one for one in name.partition(":")[0].split("/") if one]
        starts = [at for at, one in enumerate(scopes) if _NUMBER.sub("", one) == self.root]
        if scopes[:1] == [self.root]:  # no calls are counted, but for repeated ones
            known = {part for path in (*self.plain, *self.wrapped) for part in path}
            return tuple(one if one in known else _NUMBER.sub("", one) for one in scopes[1:])
        if not starts:
            return None
        return tuple(_NUMBER.sub("", one) for one in scopes[starts[0] + 1 :])

    def owner(self, name: str) -> Path_ | None:
        """The BatchNormalization that a name is of."""
        path = self.path(name)
        if path is None:
            return None
        every = (*self.plain, *self.wrapped)
        return next((one for one in every if path[: len(one)] == one), None)


def _layers(
    model: Any, around: Path_ = (), *, is_wrapped: bool = False
) -> Iterator[tuple[Path_, Any, bool]]:
    """All layers with their paths, and whether they are in a wrapper such as TimeDistributed."""
    for layer in model.layers:
        path, inner = (*around, str(layer.name)), getattr(layer, "layer", None)
        yield path, layer, is_wrapped
        if keras_graph.graph_of(layer) is not None:
            yield from _layers(layer, path, is_wrapped=is_wrapped)
        elif inner is not None:
            yield (*path, str(inner.name)), inner, True
            if keras_graph.graph_of(inner) is not None:
                yield from _layers(inner, (*path, str(inner.name)), is_wrapped=True)


@dataclass(frozen=True)
class _Found:
    """What one graph has of which layer, and whether it has arithmetic without a name."""

    left: Mapping[Path_, tuple[str, ...]]
    anonymous: bool


def _look(layers: Layers, nodes: Sequence[Node]) -> _Found:
    left: dict[Path_, list[str]] = {}
    anonymous = False
    for node in nodes:
        if not node.computes:
            continue
        # The first name is that of what comes last, such as an activation that is in it too.
        names = (*node.names, *node.constants)
        owner = next((one for one in map(layers.owner, names) if one is not None), None)
        if owner is not None:
            left.setdefault(owner, []).append(node.kind)
        elif all(layers.path(name) is None for name in node.names):
            anonymous = True
    return _Found({one: tuple(kinds) for one, kinds in left.items()}, anonymous)


def leftovers(
    layers: Layers, converted: Sequence[Node], running: Sequence[Node] | None = None
) -> tuple[Leftover, ...]:
    """What is left of each layer in a file, and in the graph that the runtime makes of it."""
    before = _look(layers, converted)
    after = before if running is None else _look(layers, running)
    found = []
    for path in (*layers.plain, *layers.wrapped):
        state, nodes = State.EXPORTER, after.left.get(path, ())
        if nodes:
            state = State.LEFT
        elif after.anonymous or (before.anonymous and path not in before.left):
            state = State.UNKNOWN
        elif path in before.left:
            state = State.RUNTIME
        elif path in layers.wrapped:
            state = State.UNKNOWN
        found.append(Leftover("/".join(path), state, nodes))
    return tuple(found)


# --- ONNX ----------------------------------------------------------------------------------------


def in_onnx(model: Path | bytes, loaded: LoadedModel) -> tuple[Leftover, ...]:
    """What is left of a model's layers in an ONNX file, as ONNX Runtime runs it.

    Raises CannotRunError.
    """
    onnx, onnxruntime = imported("onnx"), imported("onnxruntime")
    with one_line_on_failure(), link.temporary_folder() as folder:
        content = model if isinstance(model, bytes) else model.read_bytes()
        optimised = folder / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(optimised)
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        graphs = [onnx.load_model_from_string(content), onnx.load(str(optimised))]
    return leftovers(Layers.of(loaded), *map(_onnx_nodes, graphs))


def _onnx_nodes(proto: Any) -> list[Node]:
    constants = {one.name for one in proto.graph.initializer}
    return [
        Node(
            node.op_type,
            tuple(_COUNTER.sub("", one) for one in (node.name, *node.output[:1]) if one),
            tuple(one for one in node.input if one in constants),
        )
        for node in proto.graph.node
    ]


# --- LiteRT --------------------------------------------------------------------------------------


def in_litert(model: Path | bytes, loaded: LoadedModel) -> tuple[Leftover, ...]:
    """What is left of a model's layers in a LiteRT file. Raises CannotRunError."""
    package = interpreter_module().__name__.rpartition(".")[0]
    with one_line_on_failure():
        schema = importlib.import_module(f"{package}.schema_py_generated")
        content = model if isinstance(model, bytes) else model.read_bytes()
        nodes = _litert_nodes(schema, schema.Model.GetRootAs(content, 0))
    return leftovers(Layers.of(loaded), nodes)


def _litert_nodes(schema: Any, model: Any) -> list[Node]:
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(at) for at in range(graph.TensorsLength())]
    names = [tuple(filter(None, one.Name().decode().split(";"))) for one in tensors]
    constant = [bool(model.Buffers(one.Buffer()).DataLength()) for one in tensors]
    steps = [graph.Operators(at) for at in range(graph.OperatorsLength())]
    for step in steps:  # of weights in 16 bits
        if _kind(kinds, model, step) == "Dequantize" and constant[step.Inputs(0)]:
            constant[step.Outputs(0)] = True
    return [
        Node(
            _kind(kinds, model, step),
            names[step.Outputs(0)],
            tuple(
                name
                for at in map(step.Inputs, range(step.InputsLength()))
                if at >= 0 and constant[at]
                for name in names[at]
            ),
        )
        for step in steps
        if step.OutputsLength()
    ]


def _kind(kinds: Mapping[int, str], model: Any, step: Any) -> str:
    code = model.OperatorCodes(step.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return "".join(part.capitalize() for part in kinds.get(number, "custom").split("_"))
