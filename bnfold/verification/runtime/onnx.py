"""Exporting a loaded model with tf2onnx, and running it with ONNX Runtime."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.verification import tensors
from bnfold.verification.compare import Array, Measurement
from bnfold.verification.runtime.execution import Weights, gathered, output_units
from bnfold.verification.runtime.libraries import CannotRunError, one_line, quiet
from bnfold.verification.runtime.loading import LoadedModel
from bnfold.verification.samples import SampleSet, run_all

_PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; an ONNX file of one piece ends at 2 GiB


@dataclass(frozen=True)
class OnnxModel:
    """An exported model, ready to run."""

    session: Any
    names: tuple[str, ...]


def exports(loaded: LoadedModel) -> Iterator[tuple[str, Callable[[], OnnxModel]]]:
    """Yield ways to export, the fastest first: a name, and a function that may fail.

    tf2onnx without its optimisers takes a quarter of the time, but writes invalid graphs for some
    recurrent layers; from_function serves models that from_keras does not know.
    """
    yield "from_keras without optimisers", lambda: _export(loaded, from_keras, optimizers={})
    yield "from_keras", lambda: _export(loaded, from_keras)
    yield "from_function", lambda: _export(loaded, from_function)


def _export(loaded: LoadedModel, way: Callable[..., Any], **options: Any) -> OnnxModel:
    proto = convert(loaded, way, **options)
    try:
        with quiet():
            return session(proto.SerializeToString())
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
    size = 2 if tensors.dtype_name(weight) in {"float16", "bfloat16"} else 4
    return size * int(np.prod(weight.shape))


def _signature(loaded: LoadedModel) -> list[Any]:
    import tensorflow  # noqa: PLC0415

    return [
        tensorflow.TensorSpec(tuple(tensor.shape), tensor.dtype, name=f"input_{index}")
        for index, tensor in enumerate(loaded.runner.inputs)
    ]


def from_keras(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as tf2onnx does Keras models; the only way that takes `optimizers`."""
    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded) if len(loaded.runner.inputs) == 1 else None
    return tf2onnx.convert.from_keras(loaded.runner, input_signature=signature, **options)


def from_function(loaded: LoadedModel, **options: Any) -> Any:
    """Convert as a function of the flat inputs to the flat outputs, in the model's order."""
    import tensorflow  # noqa: PLC0415

    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded)

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return loaded.runner(list(inputs), training=False)

    return tf2onnx.convert.from_function(call, input_signature=signature, **options)


def session(model: bytes | str, *, optimised: bool = False) -> OnnxModel:
    """Load a serialized model, or a file, into ONNX Runtime.

    With `optimised` it rewrites the graph as it does for its users.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.log_severity_level = 4
    loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return OnnxModel(loaded, tuple(one.name for one in loaded.get_inputs()))


def run_onnx(exported: OnnxModel, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of ONNX Runtime, in the order of the model's. Raises CannotRunError."""
    if len(exported.names) != len(inputs):
        raise CannotRunError("the export lost an input")
    feed = dict(zip(exported.names, inputs, strict=True))
    try:
        with quiet():
            return [np.asarray(value) for value in exported.session.run(None, feed)]
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def measure_onnx(
    loaded: LoadedModel,
    sets: Sequence[SampleSet],
    steps: Sequence[float],
    repetitions: int,
    seed: int,
) -> list[list[Measurement]]:
    """Like `measure`, with one export for each movement of the weights. Raises CannotRunError."""
    weights = Weights(loaded, steps, seed)
    runs = []
    for repetition in range(repetitions + 1):
        weights.move(repetition)
        runs.append(_first_run(loaded, sets))
    weights.move(0)
    return gathered(runs, output_units(loaded, steps))


def _first_run(loaded: LoadedModel, sets: Sequence[SampleSet]) -> list[list[Array]]:
    reasons = []
    for _, export in exports(loaded):
        try:
            exported = export()
            return run_all(functools.partial(run_onnx, exported), sets)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]
