"""The ONNX file that users get: converted, given the model's own names, labelled, checked.

tf2onnx leaves names like `Identity_1:0` and a fresh symbol for every free dimension. The file says
instead what the Keras model says: inputs are named after its inputs, outputs after the layers that
make them, and the free first dimension is `batch` throughout.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bnfold.errors import ExportImpossibleError
from bnfold.running.libraries import CannotRunError, one_line_on_failure
from bnfold.running.loading import LoadedModel
from bnfold.running.onnx_runner import (
    convert,
    from_function,
    from_keras,
    unoptimised,
)
from bnfold.running.ports import Interface, Port

_LOWEST_OPSET = 7  # what ONNX Runtime still runs
_BATCH = "batch"
_COUNTER = re.compile(r"(?:__\d+)+(?=(?::\d+)?$)")


@dataclass(frozen=True)
class Label:
    """What an ONNX file says of itself.

    Attributes:
        name: the name of the graph.
        version: the version of bnfold.
        metadata: `metadata_props`; what is not text becomes JSON.
        batched: for each output, whether its first axis counts the samples.
    """

    name: str
    version: str
    metadata: Mapping[str, Any]
    batched: Sequence[bool]


def choose_opset(wanted: int | None) -> int:
    """Return the ONNX operator set to write: the wanted one, or what tf2onnx writes by default.

    Raises ExportImpossibleError when tf2onnx cannot write it.
    """
    constants = _constants()
    if wanted is None:
        return int(constants.PREFERRED_OPSET)
    highest = max(constants.OPSET_TO_IR_VERSION)
    if not _LOWEST_OPSET <= wanted <= highest:
        version = metadata.version("tf2onnx")
        raise ExportImpossibleError(
            f"opset {wanted}: tf2onnx {version} writes {_LOWEST_OPSET} to {highest}"
        )
    return wanted


def _constants() -> Any:
    """The constants of tf2onnx, which by itself would import TensorFlow."""
    found = importlib.util.find_spec("tf2onnx")
    for folder in (found and found.submodule_search_locations) or ():
        place = Path(folder) / "constants.py"
        spec = importlib.util.spec_from_file_location("tf2onnx.constants", place)
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ExportImpossibleError("tf2onnx does not say which opsets it writes")


def versions(loaded: LoadedModel, *, with_tf2onnx: bool) -> dict[str, str]:
    """Return the versions of the libraries that convert a model, by name."""
    names = (loaded.library, "tensorflow", *(("tf2onnx",) if with_tf2onnx else ()))
    return {f"{name}_version": importlib.import_module(name).__version__ for name in names}


def conversions(loaded: LoadedModel, opset: int) -> Iterator[Callable[[], Any]]:
    """Yield functions that make an onnx.ModelProto of a model, the best one first.

    Each raises CannotRunError when it fails.
    """
    for how in (from_function, from_keras, unoptimised):
        yield functools.partial(convert, loaded, how, opset=opset)


def write_onnx(proto: Any, path: Path, interface: Interface, label: Label) -> None:
    """Name, label and check a converted model, and write it to `path`. Raises CannotRunError."""
    onnx = importlib.import_module("onnx")
    _refuse_unknown_operations(onnx, proto)
    _drop_weights_from_inputs(proto.graph)
    for side, values in (("inputs", proto.graph.input), ("outputs", proto.graph.output)):
        ports = getattr(interface, side)
        if len(values) != len(ports):
            raise CannotRunError(f"the export has {len(values)} {side} instead of {len(ports)}")
    _name_tensors(proto.graph, interface)
    _set_shapes(proto.graph, interface, label)
    _label(onnx, proto, label)
    with one_line_on_failure("tf2onnx wrote an invalid graph: "):
        onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


# --- names ---------------------------------------------------------------------------------------


def named_ports(interface: Interface) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs of the file, each name once: a repeated one gets a number."""
    taken: set[str] = set()
    inputs, outputs = (
        tuple(replace(port, name=_unique(port.name, taken)) for port in ports)
        for ports in (interface.inputs, interface.outputs)
    )
    return inputs, outputs


def _unique(name: str, taken: set[str]) -> str:
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _name_tensors(graph: Any, interface: Interface) -> None:
    """Give inputs and outputs their names, and no other tensor one of those.

    Names that come from layers are kept. What tf2onnx makes up differs from run to run: the numbers
    that it appends, the names of its own constants, the order of the weights.
    """
    inputs, outputs = named_ports(interface)
    made = [value.name for value in (*graph.input, *graph.output)]
    if len(set(made)) != len(made):
        raise CannotRunError("tf2onnx made one tensor of several inputs and outputs")
    names = dict(zip(made, [port.name for port in (*inputs, *outputs)], strict=True))
    taken = {*names.values(), ""}
    weights = {weight.name for one in _graphs(graph) for weight in one.initializer}
    for name in _tensor_names(graph):
        if name and name not in names:
            own = name in weights and "/" not in name
            names[name] = _unique("constant" if own else _COUNTER.sub("", name), taken)
    labels: set[str] = set()
    rank = {name: position for position, name in enumerate(names.values())}
    for one in _graphs(graph):
        _rename(one, names)
        one.initializer.sort(key=lambda weight: rank[weight.name])
        for node in one.node:
            node.name = _unique(_COUNTER.sub("", node.name), labels)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and the graphs of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _tensor_names(graph: Any) -> Iterator[str]:
    """Yield the names of all tensors in the order in which the nodes use them."""
    for one in _graphs(graph):
        for node in one.node:
            yield from (*node.input, *node.output)
    for one in _graphs(graph):
        yield from (value.name for value in (*one.input, *one.output, *one.initializer))


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]


# --- shapes and labels ---------------------------------------------------------------------------


def _drop_weights_from_inputs(graph: Any) -> None:
    """Before opset 9 tf2onnx lists the weights as inputs too, which ONNX no longer asks for."""
    weights = {weight.name for weight in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    if len(kept) < len(graph.input):
        del graph.input[:]
        graph.input.extend(kept)


def _set_shapes(graph: Any, interface: Interface, label: Label) -> None:
    """Declare the shapes that Keras declares, with one symbol for the batch."""
    for value, port in zip(graph.input, interface.inputs, strict=True):
        _set_shape(value, port.shape, batched=True)
    for value, port, batched in zip(graph.output, interface.outputs, label.batched, strict=True):
        _set_shape(value, port.shape, batched=batched)


def _set_shape(value: Any, shape: Sequence[int | None], *, batched: bool) -> None:
    declared = value.type.tensor_type.shape
    del declared.dim[:]
    for axis, size in enumerate(shape):
        if size is not None:
            declared.dim.add(dim_value=size)
        else:
            is_batch = batched and axis == 0
            declared.dim.add(dim_param=_BATCH if is_batch else f"{value.name}_axis_{axis}")


def _label(onnx: Any, proto: Any, label: Label) -> None:
    proto.producer_name, proto.producer_version = "bnfold", label.version
    proto.graph.name, proto.graph.doc_string, proto.doc_string = label.name, "", ""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in label.metadata.items()
    }
    onnx.helper.set_model_props(proto, texts)


def _refuse_unknown_operations(onnx: Any, proto: Any) -> None:
    """tf2onnx leaves in the graph what it has no translation for."""
    known = onnx.defs.has
    unknown = {
        node.op_type
        for graph in _graphs(proto.graph)
        for node in graph.node
        if node.domain in {"", "ai.onnx.ml"} and not known(node.op_type, node.domain)
    }
    if unknown:
        names = ", ".join(sorted(unknown))
        raise CannotRunError(f"tf2onnx has no translation for the TensorFlow operation {names}")
