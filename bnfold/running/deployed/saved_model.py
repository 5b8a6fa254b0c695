"""A TensorFlow SavedModel as it is deployed: what it says of itself, and how TensorFlow runs it.

A SavedModel is a program of TensorFlow's operations, and some of these read and write files or run
code. So what can run when it is loaded or called is read from its graph first, and every operation
must be on a list of those that only compute. `--trust` lets the others pass.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model.container.guard import read_whole
from bnfold.model.container.printing import printable
from bnfold.running.arrays import Array
from bnfold.running.deployed.model import Call, Deployed, Endpoint, Inner, Origin, Precision, origin
from bnfold.running.deployed.names import position, scopes
from bnfold.running.deployed.pure_operations import PURE
from bnfold.running.libraries import imported, one_line_on_failure
from bnfold.running.saved_model_file import RECORD

_SIGNATURE = "serving_default"
_OF_KERAS = "serve"
"""What Keras calls the same function as well."""
_MOST_BYTES = 16 << 20
_PASSING = {"Const", "Placeholder", "Identity", "NoOp", "ReadVariableOp", "IdentityN"}
_CALLS = {"StatefulPartitionedCall", "PartitionedCall"}


@dataclass(frozen=True)
class SavedModel(Deployed):
    """A SavedModel folder, of which one signature is run."""

    signature: str = _SIGNATURE

    format: ClassVar[str] = "saved_model"
    runtime: ClassVar[str] = "tensorflow"
    runtimes: ClassVar[dict[str, bool]] = {"tensorflow": True}

    def start(self, *, optimised: bool = True) -> Call:
        """Load it into TensorFlow. Raises CannotRunError."""
        loaded, function = self._loaded()
        names = [one.name for one in self.inputs]
        taken = [one.name for one in self.outputs]
        return functools.partial(_run, loaded, function, names, taken)

    def inner(self) -> Sequence[Inner]:
        """What its operations make, once what they call is written in place of the calls."""
        frozen = self._frozen()
        return [
            Inner(operation.outputs[0].name, scopes(operation.name))
            for operation in frozen.graph.get_operations()
            if operation.type not in _PASSING and len(operation.outputs) == 1
        ]

    def start_showing(self, inner: Sequence[Inner]) -> Call:
        """The same with these values after the outputs. Raises CannotRunError."""
        frozen = self._frozen()
        with one_line_on_failure("TensorFlow cannot load it: "):
            graph = frozen.graph
            fed = {one.name.partition(":")[0]: one for one in frozen.inputs}
            inputs = [fed[_placeholder(fed, one.name)] for one in self.inputs]
            # The outputs of a signature are flattened by name.
            ordered = sorted(one.name for one in self.outputs)
            ends = [frozen.outputs[ordered.index(one.name)] for one in self.outputs]
            shown = frozen.prune(
                inputs, [*ends, *(graph.get_tensor_by_name(one.name) for one in inner)]
            )
        return functools.partial(_run_flat, shown)

    def _loaded(self) -> tuple[Any, Any]:
        """The whole, whose variables go when it goes, and the function of the signature."""
        tensorflow = imported("tensorflow")
        with one_line_on_failure("TensorFlow cannot load it: "):
            loaded = tensorflow.saved_model.load(str(self.path))
            return loaded, loaded.signatures[self.signature]

    def _frozen(self) -> Any:
        _, function = loaded = self._loaded()
        name = "tensorflow.python.framework.convert_to_constants"
        with one_line_on_failure("TensorFlow cannot take it apart: "):
            freeze = importlib.import_module(name).convert_variables_to_constants_v2
            frozen = freeze(function)
            del loaded  # its variables are constants now
            return frozen


def _placeholder(fed: dict[str, Any], name: str) -> str:
    return name if name in fed else next(one for one in fed if one.endswith(name))


def _run(
    _: Any, function: Any, names: Sequence[str], taken: Sequence[str], inputs: Sequence[Array]
) -> list[Array]:
    tensorflow = importlib.import_module("tensorflow")
    with one_line_on_failure("TensorFlow cannot run it: "):
        fed = {name: tensorflow.constant(one) for name, one in zip(names, inputs, strict=True)}
        found = function(**fed)
        return [_as_numpy(found[name]) for name in taken]


def _run_flat(function: Any, inputs: Sequence[Array]) -> list[Array]:
    tensorflow = importlib.import_module("tensorflow")
    with one_line_on_failure("TensorFlow cannot run it: "):
        found = function(*map(tensorflow.constant, inputs))
        return [_as_numpy(one) for one in found]


def _as_numpy(tensor: Any) -> Array:
    found = np.asarray(tensor.numpy())
    return found.astype(np.float32) if tensor.dtype.name == "bfloat16" else found


def read(path: Path, *, trust: bool = False) -> SavedModel:
    """Read a SavedModel folder. Raises UnreadableModelError and UnsafeModelError."""
    label = printable(str(path))
    imported("tensorflow")
    protos = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2")
    content = protos.SavedModel()
    with one_line_on_failure(f"{label}: damaged: ", UnreadableModelError):
        content.ParseFromString((path / "saved_model.pb").read_bytes())
    graphs = [one for one in content.meta_graphs if "serve" in one.meta_info_def.tags]
    if len(graphs) != 1:
        raise UnreadableModelError(
            f"{label}: has {len(graphs) or 'no'} graphs that are tagged 'serve'; one is needed"
        )
    graph = graphs[0]
    if not trust:
        _refuse_impure(graph, label)
    names = sorted(one for one in graph.signature_def if graph.signature_def[one].outputs)
    usable = [one for one in names if not one.startswith("__")]
    if not usable:
        raise UnreadableModelError(f"{label}: has no signature, so nothing says how it is called")
    called = [_SIGNATURE] if _SIGNATURE in usable else usable
    count = len(set(usable) - {_OF_KERAS}) if _SIGNATURE in usable else len(usable)
    first, *others = [_called_by(one, graph, path, is_one_of=count) for one in called]
    return replace(first, others=tuple(others))


def _called_by(signature: str, graph: Any, path: Path, *, is_one_of: int) -> SavedModel:
    """The model as one of its signatures calls it."""
    entry = graph.signature_def[signature]
    version = graph.meta_info_def.tensorflow_version
    return SavedModel(
        path=path,
        inputs=tuple(_endpoint(name, entry.inputs[name]) for name in _ordered(entry.inputs)),
        outputs=tuple(_endpoint(name, entry.outputs[name]) for name in _ordered(entry.outputs)),
        precision=_precision(graph),
        producer=f"tensorflow {printable(version)}" if version else None,
        notes=(f"of its {is_one_of} signatures {printable(signature)!r} was run",)
        if is_one_of > 1
        else (),
        origin=_origin(path),
        signature=signature,
    )


def _origin(path: Path) -> Origin | None:
    try:
        return origin(read_whole(path.joinpath(*RECORD), _MOST_BYTES))
    except OSError:
        return None


def _ordered(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (position(name) or 0, name))


def _endpoint(name: str, entry: Any) -> Endpoint:
    tensorflow = importlib.import_module("tensorflow")
    shape = None
    if not entry.tensor_shape.unknown_rank:
        shape = tuple(None if one.size < 0 else int(one.size) for one in entry.tensor_shape.dim)
    dtype = tensorflow.dtypes.as_dtype(entry.dtype).name
    return Endpoint(name, shape, {"string": "object"}.get(dtype, dtype), position=position(name))


def _refuse_impure(graph: Any, label: str) -> None:
    """Refuse operations that may do more than compute, where loading or calling reaches them."""
    if not graph.HasField("object_graph_def"):
        raise UnsafeModelError(
            f"{label}: a SavedModel of TensorFlow 1, whose graph is run to load it; --trust allows"
            " that"
        )
    functions = {one.signature.name: one for one in graph.graph_def.library.function}
    if hiding := sorted(PURE & functions.keys()):
        raise UnsafeModelError(
            f"{label}: has a function with the name of the operation {hiding[0]!r}; --trust allows"
            " that"
        )
    pending = list(graph.object_graph_def.concrete_functions)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in functions[name].node_def:
            _refuse_node(node, label)
            pending += _called(node)
    for node in graph.object_graph_def.nodes:
        kind = node.WhichOneof("kind")
        if kind in {"asset", "resource"}:
            raise UnsafeModelError(
                f"{label}: has an asset or a resource that is set up from a file when it is loaded;"
                " --trust allows that"
            )


def _refuse_node(node: Any, label: str) -> None:
    if node.op not in PURE:
        raise UnsafeModelError(
            f"{label}: has the operation {printable(node.op)!r}, which is not known to compute"
            " only; --trust allows it"
        )


def _called(node: Any) -> list[str]:
    """The functions that a node calls: bodies of loops and branches among them."""
    found = []
    for attribute in node.attr.values():
        found += [attribute.func.name] if attribute.HasField("func") else []
        found += [one.name for one in attribute.list.func]
    return found


def _precision(graph: Any) -> Precision:
    types = importlib.import_module("tensorflow").dtypes
    dtypes = {
        types.as_dtype(node.attr["dtype"].type).name
        for node in graph.graph_def.node
        if node.op == "VarHandleOp"
    }
    nodes = [node for one in graph.graph_def.library.function for node in one.node_def]
    for node in nodes:
        if node.op in {"Cast", "Const"}:
            kind = node.attr["DstT" if node.op == "Cast" else "dtype"].type
            dtypes.add(types.as_dtype(kind).name)
    if any(node.op.startswith(("FakeQuant", "QuantizeAndDequantize")) for node in nodes):
        return Precision("fake-quantized", "float32", 8, 8, is_calibrated=True)
    found = next((one for one in ("bfloat16", "float16") if one in dtypes), "float32")
    return Precision(found, found)
