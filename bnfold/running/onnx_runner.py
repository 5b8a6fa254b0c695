"""Exporting a loaded model with tf2onnx, and running it with ONNX Runtime."""

from __future__ import annotations

import functools
import importlib
import io
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from bnfold.running import freezing, keras_graph, requirements
from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError, imported, one_line_on_failure, release
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet, run_all
from bnfold.running.unrolled import flat_name

Conversion = Callable[..., Any]
"""Of a loaded model, with the options of tf2onnx."""

_PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; an ONNX file of one piece ends at 2 GiB


@dataclass(frozen=True)
class OnnxModel:
    """A model that ONNX Runtime has loaded.

    Attributes:
        session: what runs it.
        names: those of its inputs.
    """

    session: Any
    names: tuple[str, ...]


class Export:
    """An exported model, kept in a file without a name until it is run.

    In memory it would be there beside the float64 values, which need the most.

    Attributes:
        operations: the names of its nodes.
    """

    def __init__(self, proto: Any) -> None:
        """`proto` is its onnx.ModelProto."""
        self.operations = tuple(node.name for node in proto.graph.node)
        self._file = _kept(proto.SerializeToString())

    def _content(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def load(self) -> OnnxModel:
        """The model as it is. Raises CannotRunError."""
        with one_line_on_failure():
            return session(self._content())

    def optimised(self, outputs: int) -> OnnxModel:
        """The model as ONNX Runtime runs it by default, with its first outputs only.

        Values that are put out cannot be optimised away, so those inside the model are left out.
        Raises CannotRunError.
        """
        onnx = importlib.import_module("onnx")
        with one_line_on_failure():
            model = onnx.load_model_from_string(self._content())
            del model.graph.output[outputs:]
            content = model.SerializeToString()
            del model  # it is as large
            return session(content, optimise=True)


def _kept(content: bytes) -> IO[bytes]:
    """A file without a name that has these bytes, closed with the last reference to it.

    It is in memory where a disk has no room for it, which says nothing of the model.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.write(content)
        file.flush()
    except OSError:
        return io.BytesIO(content)
    return file


def exports(loaded: LoadedModel) -> Iterator[Callable[[], Export]]:
    """Yield functions that export and may fail, the fastest first.

    tf2onnx without its optimisers takes a quarter of the time, but writes invalid graphs for some
    recurrent layers; from_function serves models that from_keras does not know.
    """
    for how in (unoptimised, from_keras, from_function):
        yield functools.partial(_export, loaded, how)


def _export(loaded: LoadedModel, how: Conversion) -> Export:
    proto = convert(loaded, how)
    with one_line_on_failure():
        return Export(proto)


def serialized(loaded: LoadedModel) -> bytes:
    """Return the model as tf2onnx writes it by default. Raises CannotRunError."""
    proto = _first(functools.partial(convert, loaded), (from_keras, unoptimised, from_function))
    content: bytes = proto.SerializeToString()
    return content


def _first(call: Callable[[Any], Any], every: Iterable[Any]) -> Any:
    """What the first call gives that does not fail. Raises the CannotRunError of the very first."""
    reasons = []
    for one in every:
        try:
            return call(one)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]


def convert(loaded: LoadedModel, how: Conversion, **options: Any) -> Any:
    """Return what a model shows as an onnx.ModelProto, made by `how(loaded, **options)`.

    Raises CannotRunError.
    """
    problem = requirements.lacking(map(requirements.look, requirements.ONNX))
    if problem is not None:
        raise CannotRunError(problem)
    if sum(_bytes(weight) for weight in loaded.shown.weights) > _PROTOBUF_LIMIT:
        raise CannotRunError("an ONNX file of one piece cannot hold more than 2 GiB of weights")
    import tensorflow  # noqa: PLC0415

    eager = tensorflow.config.functions_run_eagerly()
    with one_line_on_failure(), freezing.aside():
        try:
            # Keras compiles grouped convolutions with XLA, which tf2onnx cannot see into.
            tensorflow.config.run_functions_eagerly(True)
            proto, _ = how(loaded, custom_op_handlers=dict(_TRANSLATIONS), **options)
            return proto
        finally:
            tensorflow.config.run_functions_eagerly(eager)


def _erfc(context: Any, node: Any, name: str, _: Any) -> None:
    """erfc(x) = 1 - erf(x); Keras' exact gelu is 0.5 x erfc(-x / sqrt(2))."""
    dtype, shape = context.get_dtype(node.output[0]), context.get_shape(node.output[0])
    context.remove_node(name)
    kind = importlib.import_module("tf2onnx").utils.map_onnx_to_numpy_type(dtype)
    one = context.make_const(f"{name}_one", np.array(1, kind))
    erf = context.make_node("Erf", [node.input[0]], dtypes=[dtype], shapes=[shape])
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=list(node.output),
        dtypes=[dtype],
        shapes=[shape],
    )


_TRANSLATIONS: dict[str, tuple[Callable[..., None], list[str]]] = {"Erfc": (_erfc, [])}
"""What tf2onnx lacks: by TensorFlow operation, what to make of a node, and no arguments."""


def _bytes(weight: Any) -> int:
    size = 2 if keras_graph.dtype_name(weight) in {"float16", "bfloat16"} else 4
    return size * int(np.prod(weight.shape))


def _signature(loaded: LoadedModel) -> list[Any]:
    import tensorflow  # noqa: PLC0415

    return [
        tensorflow.TensorSpec(tuple(tensor.shape), tensor.dtype, name=f"input_{index}")
        for index, tensor in enumerate(loaded.shown.inputs)
    ]


def from_keras(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as tf2onnx does Keras models; only this takes `optimizers`."""
    convert = imported("tf2onnx.convert")
    signature = _signature(loaded) if len(loaded.shown.inputs) == 1 else None
    return convert.from_keras(loaded.shown, input_signature=signature, **options)


unoptimised = functools.partial(from_keras, optimizers={})
"""Without the optimisers of tf2onnx."""


def from_function(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as a function of the flat inputs to the flat outputs, in the model's order."""
    import tensorflow  # noqa: PLC0415

    convert = imported("tf2onnx.convert")
    signature = _signature(loaded)

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return loaded.shown(list(inputs), training=False)

    return convert.from_function(call, input_signature=signature, **options)


def session(model: bytes | str, *, optimise: bool = False) -> OnnxModel:
    """Load a serialized model, or a file, into ONNX Runtime.

    With `optimise` it rewrites the graph as it does for its users.
    """
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    # Threads that wait for the next operation would keep a processor busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = tuple(one.name for one in loaded.get_inputs())
    return OnnxModel(loaded, names)


class Exports:
    """The exports of one model, the fastest first, each made when it is asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.reason = ""
        self._coming = self._make(loaded)
        self._made: list[Export] = []

    def _make(self, loaded: LoadedModel) -> Iterator[Export]:
        for export in exports(loaded):
            try:
                exported = export()
            except CannotRunError as error:
                self.reason = self.reason or str(error)
                continue
            finally:
                release()  # an export leaves several copies of the weights behind
            yield exported

    def prepare(self) -> None:
        """Make the first one that can be made."""
        if not self._made:
            self._made += itertools.islice(self._coming, 1)

    def __iter__(self) -> Iterator[Export]:
        """All of them, those made before first."""
        yield from list(self._made)
        for exported in self._coming:
            self._made.append(exported)
            yield exported


def run_onnx(exported: OnnxModel, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of ONNX Runtime, in the order of the model's, of one axis at least.

    Raises CannotRunError.
    """
    if len(exported.names) != len(inputs):
        raise CannotRunError("the export lost an input")
    feed = dict(zip(exported.names, inputs, strict=True))
    with one_line_on_failure():
        return [np.atleast_1d(value) for value in exported.session.run(None, feed)]


def evaluate_onnx(loaded: LoadedModel, sets: Sequence[SampleSet]) -> list[list[Array]]:
    """All values of the first export that runs, by sample set. Raises CannotRunError."""

    def run(export: Callable[[], Export]) -> list[list[Array]]:
        return run_all(functools.partial(run_onnx, export().load()), sets)

    found: list[list[Array]] = _first(run, exports(loaded))
    return found


def merged(exported: Export, names: Sequence[str]) -> tuple[str, ...]:
    """The layers of which an export has no operation any more, by their names.

    tf2onnx names operations after TensorFlow's, and these after the layers: `model/bn_1/mul`.
    """
    parts: set[str] = set()
    for operation in exported.operations:
        for part in operation.split("/"):
            parts |= {part, re.sub(r"_\d+$", "", part)}
    return tuple(name for name in names if not {name.rpartition("/")[2], flat_name(name)} & parts)
