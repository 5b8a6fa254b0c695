"""A TensorFlow Lite file as it is deployed: what it says of itself, and how LiteRT runs it.

The file may come from a stranger. Its own operations are pure; but those that begin with "Flex" are
TensorFlow's, which can read and write files, and custom ones are somebody's: both are refused.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model.container.printing import printable
from bnfold.running import requirements
from bnfold.running.arrays import Array
from bnfold.running.deployed.model import Call, Deployed, Endpoint, Inner, Precision, limits, origin
from bnfold.running.deployed.names import position, scopes
from bnfold.running.libraries import CannotRunError, imported, one_line_on_failure
from bnfold.running.litert_file import METADATA

_CUSTOM = 32  # the code of an operation that is nobody's but its author's
_QUANTIZE = 114
_READ_VARIABLE, _ASSIGN_VARIABLE = 143, 144
_SIGNATURE = "serving_default"
_OWN_CUSTOM = {
    "TFLite_Detection_PostProcess",
    "Convolution2DTransposeBias",
    "MaxPoolingWithArgmax2D",
}


_UNSET = (
    "its weights are variables that nothing in the file sets, so that it cannot compute; convert"
    " the model itself or what model.export writes, not what tf.saved_model.save does"
)


def interpreter_module() -> Any:
    """The module of the interpreter: of ai_edge_litert or, without that, TensorFlow's.

    Raises CannotRunError.
    """
    problem = requirements.lacking([requirements.look("ai_edge_litert")])
    if problem is None:
        return imported("ai_edge_litert.interpreter")
    lite = getattr(imported("tensorflow"), "lite", None)
    if not hasattr(lite, "Interpreter"):
        raise CannotRunError(problem)
    return importlib.import_module("tensorflow.lite.python.interpreter")


def available_threads() -> int:
    """The processors that this process may use; LiteRT by itself takes only one."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@dataclass(frozen=True)
class LiteRTFile(Deployed):
    """A `.tflite` file; `signature` is that of its signatures that is run, None where it has none.

    `places` are the tensors of its inputs, then of its outputs; `constants` those that hold
    weights.
    """

    signature: str | None = None
    places: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    constants: frozenset[int] = frozenset()

    format: ClassVar[str] = "tflite"
    runtime: ClassVar[str] = "litert"
    runtimes: ClassVar[dict[str, bool]] = {"litert": True, "litert without delegates": False}

    def start(self, *, optimised: bool = True) -> Call:
        """Load it into LiteRT. Raises CannotRunError."""
        return _Started(self, _interpreter(self.path, optimised=optimised), self.places[1])

    def inner(self) -> Sequence[Inner]:
        """What its operations make, with the scopes in the names of the tensors."""
        with one_line_on_failure("LiteRT cannot load it: "):
            interpreter = _interpreter(self.path, optimised=False)
            details = interpreter.get_tensor_details()
        passed_over = {*self.places[0], *self.places[1], *self.constants}
        return [
            Inner(str(one["index"]), scopes(one["name"]), *_quantization(one))
            for one in details
            if one["name"] and one["index"] not in passed_over
        ]

    def start_showing(self, inner: Sequence[Inner]) -> Call:
        """The same with these values after the outputs, not optimised. Raises CannotRunError."""
        interpreter = _interpreter(self.path, optimised=False, preserve=True)
        return _Started(self, interpreter, (*self.places[1], *(int(one.name) for one in inner)))


@dataclass
class _Started:
    """One interpreter, whose inputs are given other sizes as samples ask for it."""

    file: LiteRTFile
    interpreter: Any
    taken: Sequence[int]
    shapes: list[tuple[int, ...]] | None = None

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        with one_line_on_failure("LiteRT cannot run it: "):
            shapes = [one.shape for one in inputs]
            if shapes != self.shapes:
                self.shapes = None
                for place, shape in zip(self.file.places[0], shapes, strict=True):
                    self.interpreter.resize_tensor_input(place, shape)
                self.interpreter.allocate_tensors()
                self.shapes = shapes
            for place, array in zip(self.file.places[0], inputs, strict=True):
                self.interpreter.set_tensor(place, array)
            self.interpreter.invoke()
            return [np.array(self.interpreter.get_tensor(place)) for place in self.taken]


def _interpreter(path: Path, *, optimised: bool, preserve: bool = False) -> Any:
    module = interpreter_module()
    with one_line_on_failure("LiteRT cannot load it: "):
        kinds = module.OpResolverType
        kind = kinds.AUTO if optimised else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return module.Interpreter(
            model_path=str(path),
            num_threads=available_threads(),
            experimental_op_resolver_type=kind,
            experimental_preserve_all_tensors=preserve,
        )


def read(path: Path) -> LiteRTFile:
    """Read a `.tflite` file. Raises UnreadableModelError, UnsafeModelError and CannotRunError."""
    label = printable(str(path))
    with one_line_on_failure(f"{label}: damaged: ", UnreadableModelError):
        custom, constants, quantized_at, inside, notes, made = _parsed(path)
    _refuse_foreign_operations(custom, label)
    interpreter = _interpreter(path, optimised=False)
    with one_line_on_failure(f"{label}: damaged: ", UnreadableModelError):
        signatures = interpreter.get_signature_list()
        primary = [interpreter.get_input_details(), interpreter.get_output_details()]
        details = interpreter.get_tensor_details()
    by_index = {one["index"]: one for one in details}
    signature, sides = None, [_plain(side) for side in primary]
    if signatures:
        signature = _SIGNATURE if _SIGNATURE in signatures else next(iter(signatures))
        named = _signed(interpreter, signature, primary)
        if named is not None:
            sides = named
        if len(signatures) > 1:
            notes += (f"of its {len(signatures)} signatures {printable(signature)!r} was run",)
    return LiteRTFile(
        path=path,
        inputs=tuple(
            _endpoint(name, one, by_index.get(quantized_at.get(one["index"], -1)))
            for name, one in sides[0]
        ),
        outputs=tuple(_endpoint(name, one) for name, one in sides[1]),
        precision=_precision(details, constants, inside),
        producer=None,
        notes=notes,
        origin=origin(made),
        signature=signature,
        places=(
            tuple(int(one["index"]) for _, one in sides[0]),
            tuple(int(one["index"]) for _, one in sides[1]),
        ),
        constants=constants,
    )


def _plain(side: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(one["name"], one) for one in side]


def _signed(
    interpreter: Any, signature: str, primary: Sequence[Sequence[Any]]
) -> list[list[tuple[str, Any]]] | None:
    """Inputs and outputs under the names that a signature gives them, in the order of its names.

    None where the signature is that of another graph in the file.
    """
    runner = interpreter.get_signature_runner(signature)
    sides = []
    for side, known in zip(
        (runner.get_input_details(), runner.get_output_details()), primary, strict=True
    ):
        by_place = {one["index"]: one for one in known}
        if sorted(by_place) != sorted({one["index"] for one in side.values()}):
            return None
        pairs = [(name, by_place[one["index"]]) for name, one in side.items()]
        sides.append(sorted(pairs, key=lambda pair: _natural(pair[0])))
    return sides


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which output_2 comes before output_10."""
    return [(int(one), "") if one.isdigit() else (-1, one) for one in re.split(r"(\d+)", name)]


def _endpoint(name: str, details: Any, quantized: Any = None) -> Endpoint:
    """An input or an output; `quantized` is what an input becomes first."""
    sizes = [int(one) for one in details["shape_signature"]]
    if not sizes:  # a file without free sizes may leave the signature out
        sizes = [int(one) for one in details["shape"]]
    dtype = np.dtype(details["dtype"])
    inside = details if quantized is None else quantized
    return Endpoint(
        name,
        tuple(None if size < 0 else size for size in sizes),
        "object" if dtype.kind in "OSU" else dtype.name,
        *_quantization(details),
        position(name),
        limits(np.dtype(inside["dtype"]).name, *_quantization(inside)),
    )


def _quantization(details: Any) -> tuple[float | None, int]:
    """The scale and zero point of a tensor that has one of each."""
    found = details["quantization_parameters"]
    if len(found["scales"]) != 1 or np.dtype(details["dtype"]).kind not in "iu":
        return None, 0
    return float(found["scales"][0]), int(found["zero_points"][0])


def _precision(details: Sequence[Any], constants: Collection[int], inside: _Inside) -> Precision:
    """How precisely it computes, by the dtypes of its tensors and their scales."""
    kinds = {np.dtype(one["dtype"]).name for one in details}
    float_dtype = "float16" if "float16" in kinds or inside.has_float16 else "float32"
    quantized = [
        (one["index"] in constants, np.dtype(one["dtype"]).itemsize * 8)
        for one in details
        if len(one["quantization_parameters"]["scales"])
        and np.dtype(one["dtype"]).kind in "iu"
        and np.dtype(one["dtype"]).itemsize <= 2  # biases have 32 bits and say nothing
    ]
    quantized += [(True, bits) for bits in inside.weight_bits]
    if not quantized:
        return Precision(float_dtype, float_dtype)
    weights = min((bits for is_weight, bits in quantized if is_weight), default=None)
    values = min((bits for is_weight, bits in quantized if not is_weight), default=None)
    if values is None:
        # Their products are computed in integers, of inputs that are quantized by their own range.
        return Precision(f"int{weights} weights", float_dtype, weights, 8)
    name = (
        f"int{values}" if weights in {None, values} else f"int{weights} weights, int{values} values"
    )
    return Precision(name, float_dtype, weights, values, is_calibrated=True)


class _Inside(NamedTuple):
    """What the bodies of loops and branches hold, which the interpreter does not tell of.

    `weight_bits` are those of quantized weights.
    """

    has_float16: bool
    weight_bits: tuple[int, ...]


def _parsed(
    path: Path,
) -> tuple[list[str], frozenset[int], dict[int, int], _Inside, tuple[str, ...], bytes]:
    """The custom operations of a file, its tensors that hold weights, and which are quantized.

    The third are the tensors that others become by being quantized, then come sentences on what is
    odd, and what bnfold has written. All is read from the bytes.
    """
    package = interpreter_module().__name__.rpartition(".")[0]
    schema = importlib.import_module(f"{package}.schema_py_generated")
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    codes = [model.OperatorCodes(at) for at in range(model.OperatorCodesLength())]
    custom = [
        (one.CustomCode() or b"").decode(errors="replace")
        for one in codes
        if max(one.BuiltinCode(), one.DeprecatedBuiltinCode()) == _CUSTOM
    ]
    graph = model.Subgraphs(0)
    constants = frozenset(
        at
        for at in range(graph.TensorsLength())
        if model.Buffers(graph.Tensors(at).Buffer()).DataLength()
    )
    steps = [graph.Operators(at) for at in range(graph.OperatorsLength())]
    kinds = [max(one.BuiltinCode(), one.DeprecatedBuiltinCode()) for one in codes]
    quantized = {
        int(one.Inputs(0)): int(one.Outputs(0))
        for one in steps
        if kinds[one.OpcodeIndex()] == _QUANTIZE
    }
    is_unset = _READ_VARIABLE in kinds and _ASSIGN_VARIABLE not in kinds
    notes = (_UNSET,) if is_unset else ()
    return custom, constants, quantized, _inside(schema, model), notes, _made(model)


def _made(model: Any) -> bytes:
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == METADATA.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    return b""


def _inside(schema: Any, model: Any) -> _Inside:
    kinds = schema.TensorType
    bits = {kinds.INT4: 4, kinds.INT8: 8, kinds.UINT8: 8, kinds.INT16: 16}
    has_float16, found = False, set()
    for graph in map(model.Subgraphs, range(1, model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            has_float16 = has_float16 or tensor.Type() == kinds.FLOAT16
            scales = tensor.Quantization()
            is_weight = model.Buffers(tensor.Buffer()).DataLength() > 0
            if is_weight and scales is not None and scales.ScaleLength() and tensor.Type() in bits:
                found.add(bits[tensor.Type()])
    return _Inside(has_float16, tuple(sorted(found)))


def _refuse_foreign_operations(custom: Sequence[str], label: str) -> None:
    """Refuse operations that are not LiteRT's own."""
    foreign = [one for one in custom if one not in _OWN_CUSTOM]
    flex = [one for one in foreign if one.startswith("Flex")]
    if flex:
        raise UnsafeModelError(
            f"{label}: has the TensorFlow operation {printable(flex[0][4:])!r}, which could read"
            " and write files; convert the model with LiteRT's own operations only"
        )
    if foreign:
        raise UnsafeModelError(
            f"{label}: has the custom operation {printable(foreign[0])!r}, which LiteRT does not"
            " bring along"
        )
