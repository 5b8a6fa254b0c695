"""An ONNX file as it is deployed: what it says of itself, and how ONNX Runtime runs it.

The file may come from a stranger. It holds no code. But weights in other files may be anywhere, so
only regular files in the folder of the model are read; and operators of domains that ONNX Runtime
does not bring along are refused by name.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model.container.printing import printable
from bnfold.running.arrays import Array
from bnfold.running.deployed.model import Call, Deployed, Endpoint, Inner, Precision, limits, origin
from bnfold.running.deployed.names import position, scopes
from bnfold.running.libraries import CannotRunError, imported, one_line_on_failure

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"}
_QUANTIZE = "QuantizeLinear"
_DEQUANTIZE = "DequantizeLinear"
_STATIC = {_QUANTIZE, "QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm"}
"""Operations that quantize values by a scale that stands in the file."""
_DYNAMIC = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
"""Operations that quantize values by the range that these have."""
_WEIGHTS_ALONE = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}
_PASSING = {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
_MEMORY = "_ORT_MEM_ADDR_"
"""In a location, it says that the offset of a tensor is an address, which ONNX Runtime reads."""


@dataclass(frozen=True)
class OnnxFile(Deployed):
    """An ONNX file; `proto` is its content without what is in other files."""

    proto: Any = None

    format: ClassVar[str] = "onnx"
    runtime: ClassVar[str] = "onnxruntime"
    runtimes: ClassVar[dict[str, bool]] = {
        "onnxruntime": True,
        "onnxruntime without optimisations": False,
    }

    def start(self, *, optimised: bool = True) -> Call:
        """Load it into ONNX Runtime. Raises CannotRunError."""
        return self._started(str(self.path), optimised=optimised)

    def inner(self) -> Sequence[Inner]:
        """What its operations make, with the scopes in the names of the tensors."""
        ends = {value.name for value in self.proto.graph.output}
        scales = {
            node.output[0]: _scale_of(self.proto.graph, node)
            for node in self.proto.graph.node
            if node.op_type == _QUANTIZE
        }
        return [
            Inner(name, scopes(name or node.name), *scales.get(name, (None, 0)))
            for node in self.proto.graph.node
            if node.op_type not in {_DEQUANTIZE, "Constant", "Shape"}
            for name in node.output
            if name and name not in ends
        ]

    def start_showing(self, inner: Sequence[Inner]) -> Call:
        """The same with these values after the outputs, not optimised. Raises CannotRunError."""
        onnx = importlib.import_module("onnx")
        with one_line_on_failure("ONNX Runtime cannot load it: "):
            proto = onnx.load(str(self.path))  # with what is in other files, which was checked
            proto.graph.output.extend(onnx.ValueInfoProto(name=one.name) for one in inner)
            return self._started(proto.SerializeToString(), optimised=False)

    def _started(self, model: bytes | str, *, optimised: bool) -> Call:
        onnxruntime = imported("onnxruntime")
        options = onnxruntime.SessionOptions()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        with one_line_on_failure("ONNX Runtime cannot load it: "):
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        names = [one.name for one in self.inputs]
        return functools.partial(_run, session, names)


def _run(session: Any, names: Sequence[str], inputs: Sequence[Array]) -> list[Array]:
    with one_line_on_failure("ONNX Runtime cannot run it: "):
        found = session.run(None, dict(zip(names, inputs, strict=True)))
    if any(not isinstance(one, np.ndarray) for one in found):
        raise CannotRunError("an output is no tensor")
    return list(found)


def read(path: Path) -> OnnxFile:
    """Read an ONNX file. Raises UnreadableModelError and UnsafeModelError."""
    onnx = imported("onnx")
    label = printable(str(path))
    with one_line_on_failure(f"{label}: damaged: ", UnreadableModelError):
        proto = onnx.load(str(path), load_external_data=False)
    if not proto.graph.node and not proto.graph.output:
        raise UnreadableModelError(f"{label}: holds no graph")
    _refuse_other_files(proto, path, label)
    weights = {one.name for one in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in weights]
    _refuse_unknown_dtypes(proto, inputs, label)
    domains = sorted({node.domain for one in _graphs(proto) for node in one.node} - _DOMAINS)
    functions = {one.domain for one in proto.functions}
    if unknown := [one for one in domains if one not in functions]:
        raise UnreadableModelError(
            f"{label}: has operators of {printable(unknown[0])!r}, which ONNX Runtime does not have"
        )
    producer = f"{proto.producer_name} {proto.producer_version}".removesuffix(" None").strip()
    return OnnxFile(
        path=path,
        inputs=tuple(_endpoint(one, proto.graph, label, is_input=True) for one in inputs),
        outputs=tuple(
            _endpoint(one, proto.graph, label, is_input=False) for one in proto.graph.output
        ),
        precision=_precision(proto),
        producer=printable(producer) or None,
        notes=(),
        origin=origin({one.key.removeprefix("bnfold."): one.value for one in proto.metadata_props}),
        proto=proto,
    )


def _refuse_unknown_dtypes(proto: Any, inputs: Sequence[Any], label: str) -> None:
    """Refuse numbers of dtypes that are none of ONNX."""
    known = importlib.import_module("onnx.helper").get_all_tensor_dtypes()
    kinds = [one.data_type for one in _tensors(proto) if one.data_type]
    kinds += [
        value.type.tensor_type.elem_type
        for value in (*inputs, *proto.graph.output)
        if value.type.HasField("tensor_type")
    ]
    if unknown := [one for one in kinds if one not in known]:
        raise UnreadableModelError(
            f"{label}: damaged: has numbers of dtype {unknown[0]}, which ONNX does not have"
        )


def _graphs(proto: Any) -> Iterator[Any]:
    """The graph, those of its branches and loops, and the bodies of its functions."""
    pending = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]


def _tensors(proto: Any) -> Iterator[Any]:
    """Every tensor that the file holds."""
    for graph in _graphs(proto):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else ())
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def _refuse_other_files(proto: Any, path: Path, label: str) -> None:
    """Refuse weights in other files, but for regular ones in the folder of the model."""
    for tensor in _tensors(proto):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            parts = PurePosixPath(entry.value.replace("\\", "/"))
            named = f"{label}: its weights are in {printable(entry.value)!r}"
            if _MEMORY in entry.value:
                raise UnsafeModelError(f"{named}, which is an address in memory")
            if parts.is_absolute() or ".." in parts.parts or ":" in entry.value:
                raise UnsafeModelError(f"{named}, which is not in its folder")
            place = path.parent / parts
            if any(
                one.is_symlink() for one in (place, *place.parents) if path.parent in one.parents
            ):
                raise UnsafeModelError(f"{named}, which is a link")
            if not place.is_file():
                raise UnreadableModelError(f"{named}, which is not there")


def _endpoint(value: Any, graph: Any, label: str, *, is_input: bool) -> Endpoint:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        side = "input" if is_input else "output"
        raise UnreadableModelError(f"{label}: {side} {printable(value.name)!r} is no tensor")
    declared = value.type.tensor_type
    shape = None
    if declared.HasField("shape"):
        sizes = (one.dim_value if one.HasField("dim_value") else None for one in declared.shape.dim)
        shape = tuple(sizes)
    dtype = _dtype(declared.elem_type)
    scale, zero_point = None, 0
    is_integer = np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize <= 2
    if is_integer:
        beside = _DEQUANTIZE if is_input else _QUANTIZE
        for node in graph.node:
            at = next(iter(node.input if is_input else node.output), "")
            if node.op_type == beside and at == value.name:
                scale, zero_point = _scale_of(graph, node)
    ends = limits(dtype, scale, zero_point) if is_integer else _quantized_at(graph, value.name)
    return Endpoint(value.name, shape, dtype, scale, zero_point, position(value.name), ends)


def _quantized_at(graph: Any, name: str) -> tuple[float, float] | None:
    """The limits of the quantization that an input goes into, where that is all it goes into."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for one in set(node.input):
            readers.setdefault(one, []).append(node)
    seen: set[str] = set()
    while True:
        if name in seen or len(readers.get(name, ())) != 1:
            return None
        seen.add(name)
        (reader,) = readers[name]
        if reader.op_type not in _PASSING or not reader.output:
            break
        name = reader.output[0]
    if reader.op_type != _QUANTIZE:
        return None
    scale, zero_point = _scale_of(graph, reader)
    zero = next((one for one in graph.initializer if one.name in reader.input[2:3]), None)
    return limits("uint8" if zero is None else _dtype(zero.data_type), scale, zero_point)


def _scale_of(graph: Any, node: Any) -> tuple[float | None, int]:
    """The scale and the zero point of a (de)quantization, where they are one number each."""
    constants = {one.name: one for one in graph.initializer}
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    known = {name for name, one in constants.items() if not one.external_data}
    found = [to_array(constants[name]) if name in known else None for name in node.input[1:3]]
    if not found or found[0] is None or found[0].size != 1:
        return None, 0
    zero = found[1] if len(found) > 1 else None
    return float(found[0].reshape(())), 0 if zero is None else int(zero.reshape(-1)[0])


def _dtype(kind: int) -> str:
    helper = importlib.import_module("onnx.helper")
    found = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    return "object" if found.kind in "OUS" else found.name


def _precision(proto: Any) -> Precision:
    """How precisely it computes: by its operations and the dtypes of its weights."""
    operations = Counter(node.op_type for graph in _graphs(proto) for node in graph.node)
    dtypes = {_dtype(one.data_type) for one in _tensors(proto) if one.data_type}
    floats = [one for one in ("float16", "bfloat16") if one in dtypes or _casts_to(proto, one)]
    float_dtype = floats[-1] if floats else "float32"
    eights = [one for one in dtypes if "float8" in one or "float4" in one]
    is_static = bool(_STATIC & operations.keys())
    is_dynamic = bool(_DYNAMIC & operations.keys())
    is_quantized = is_static or is_dynamic or _DEQUANTIZE in operations
    if not (is_quantized or _WEIGHTS_ALONE & operations.keys()):
        return Precision(float_dtype, float_dtype)
    bits = min((_bits(one) for one in dtypes if _bits(one) <= 16), default=8)
    if eights:
        name = sorted(eights)[0]
    elif is_static:
        name = f"int{bits}"
    elif is_dynamic:
        name = f"int{bits} weights, values quantized by their own range"
    else:
        name = f"int{bits} weights"
    if _WEIGHTS_ALONE & operations.keys():
        bits, name = 4, "4-bit weights"
    values = 8 if is_static or is_dynamic else None
    return Precision(name, float_dtype, bits, values, is_static)


def _bits(dtype: str) -> int:
    """The bits of an integer or a tiny float; many for others."""
    found = re.fullmatch(r"(?:u?int|float)(\d+)(?:_\w+)?", dtype)
    if found is None or (dtype.startswith("float") and int(found[1]) > 8):
        return 64
    return int(found[1])


def _casts_to(proto: Any, dtype: str) -> bool:
    """Whether anything is computed in this dtype, whatever the weights have."""
    number = {"float16": 10, "bfloat16": 16}[dtype]
    casts = (node for graph in _graphs(proto) for node in graph.node if node.op_type == "Cast")
    return any(one.name == "to" and one.i == number for node in casts for one in node.attribute)
