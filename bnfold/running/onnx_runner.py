"""Exporting a loaded model with tf2onnx, and running it with ONNX Runtime."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.running import keras_graph
from bnfold.running.arrays import Array
from bnfold.running.keras_runner import Weights
from bnfold.running.libraries import CannotRunError, imported, one_line, quiet
from bnfold.running.loading import LoadedModel
from bnfold.running.samples import SampleSet, run_all
from bnfold.running.unrolled import flat_name

_PLAIN: dict[str, Any] = {"optimizers": {}}
_PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; an ONNX file of one piece ends at 2 GiB


@dataclass(frozen=True)
class OnnxModel:
    """An exported model, ready to run; `model` is its content where it is not in a file."""

    session: Any
    names: tuple[str, ...]
    model: bytes = b""


def exports(loaded: LoadedModel) -> Iterator[tuple[str, Callable[[], OnnxModel]]]:
    """Yield ways to export, the fastest first: a name, and a function that may fail.

    tf2onnx without its optimisers takes a quarter of the time, but writes invalid graphs for some
    recurrent layers; from_function serves models that from_keras does not know.
    """
    yield "from_keras without optimisers", lambda: _export(loaded, from_keras, **_PLAIN)
    yield "from_keras", lambda: _export(loaded, from_keras)
    yield "from_function", lambda: _export(loaded, from_function)


def serialized(loaded: LoadedModel) -> bytes:
    """Return the model as tf2onnx writes it by default. Raises CannotRunError."""
    reasons = []
    for way, options in ((from_keras, {}), (from_keras, _PLAIN), (from_function, {})):
        try:
            return _serialized(loaded, way, **options)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]


def _serialized(loaded: LoadedModel, way: Callable[..., Any], **options: Any) -> bytes:
    content: bytes = convert(loaded, way, **options).SerializeToString()
    return content


def _export(loaded: LoadedModel, way: Callable[..., Any], **options: Any) -> OnnxModel:
    content = _serialized(loaded, way, **options)
    try:
        with quiet():
            return session(content)
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def convert(loaded: LoadedModel, way: Callable[..., Any], **options: Any) -> Any:
    """Return the runner as an onnx.ModelProto, made by `way(loaded, **options)`.

    Raises CannotRunError.
    """
    if sum(_bytes(weight) for weight in loaded.runner.weights) > _PROTOBUF_LIMIT:
        raise CannotRunError("an ONNX file of one piece cannot hold more than 2 GiB of weights")
    import tensorflow  # noqa: PLC0415

    eager = tensorflow.config.functions_run_eagerly()
    try:
        with quiet():
            # Keras compiles grouped convolutions with XLA, which tf2onnx cannot see into.
            tensorflow.config.run_functions_eagerly(True)
            proto, _ = way(loaded, custom_op_handlers=dict(_TRANSLATIONS), **options)
            return proto
    except Exception as error:
        raise CannotRunError(one_line(error)) from error
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
        for index, tensor in enumerate(loaded.runner.inputs)
    ]


def from_keras(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as tf2onnx does Keras models; the only way that takes `optimizers`."""
    convert = imported("tf2onnx.convert")
    signature = _signature(loaded) if len(loaded.runner.inputs) == 1 else None
    return convert.from_keras(loaded.runner, input_signature=signature, **options)


def from_function(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as a function of the flat inputs to the flat outputs, in the model's order."""
    import tensorflow  # noqa: PLC0415

    convert = imported("tf2onnx.convert")
    signature = _signature(loaded)

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return loaded.runner(list(inputs), training=False)

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
    loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = tuple(one.name for one in loaded.get_inputs())
    return OnnxModel(loaded, names, model if isinstance(model, bytes) else b"")


def run_onnx(exported: OnnxModel, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of ONNX Runtime, in the order of the model's, of one axis at least.

    Raises CannotRunError.
    """
    if len(exported.names) != len(inputs):
        raise CannotRunError("the export lost an input")
    feed = dict(zip(exported.names, inputs, strict=True))
    try:
        with quiet():
            return [np.atleast_1d(value) for value in exported.session.run(None, feed)]
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def evaluate_onnx(loaded: LoadedModel, sets: Sequence[SampleSet]) -> list[list[Array]]:
    """All values of the first export that runs, by sample set. Raises CannotRunError."""
    reasons = []
    for _, export in exports(loaded):
        try:
            exported = export()
            return run_all(functools.partial(run_onnx, exported), sets)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]


def perturbed_onnx(
    loaded: LoadedModel,
    sets: Sequence[SampleSet],
    *,
    steps: Sequence[float],
    repetitions: int,
    seed: int,
) -> Generator[list[list[Array]]]:
    """Like `perturbed`, with one export for each repetition. Raises CannotRunError."""
    evaluated = functools.partial(evaluate_onnx, loaded, sets)
    return Weights(loaded, steps, seed).perturbed(evaluated, repetitions)


def optimised(exported: OnnxModel, outputs: int) -> OnnxModel:
    """The same export as ONNX Runtime runs it by default, with its first outputs only.

    Values that are put out cannot be optimised away, so those inside the model are left out. Raises
    CannotRunError.
    """
    onnx = importlib.import_module("onnx")
    try:
        model = onnx.load_model_from_string(exported.model)
        del model.graph.output[outputs:]
        return session(model.SerializeToString(), optimise=True)
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def merged(exported: OnnxModel, names: Sequence[str]) -> tuple[str, ...]:
    """The layers of which an export has no operation any more, by their names.

    tf2onnx names operations after TensorFlow's, and these after the layers: `model/bn_1/mul`.
    """
    onnx = importlib.import_module("onnx")
    parts: set[str] = set()
    for node in onnx.load_model_from_string(exported.model).graph.node:
        for part in node.name.split("/"):
            parts |= {part, re.sub(r"_\d+$", "", part)}
    return tuple(name for name in names if not {name.rpartition("/")[2], flat_name(name)} & parts)
