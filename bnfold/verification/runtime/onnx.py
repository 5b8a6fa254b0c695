"""Exporting a loaded model with tf2onnx, and running it with ONNX Runtime."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.verification import tensors
from bnfold.verification.compare import Array, Errors, errors
from bnfold.verification.runtime.execution import Weights
from bnfold.verification.runtime.libraries import CannotRunError, one_line, quiet
from bnfold.verification.runtime.loading import LoadedModel
from bnfold.verification.samples import SampleSet, run_all
from bnfold.verification.unrolled import flat_name

_PLAIN: dict[str, Any] = {"optimizers": {}}
_PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; an ONNX file of one piece ends at 2 GiB


@dataclass(frozen=True)
class OnnxModel:
    """An exported model, ready to run."""

    session: Any
    names: tuple[str, ...]
    model: bytes = b""


def exports(loaded: LoadedModel) -> Iterator[tuple[str, Callable[[], OnnxModel]]]:
    """Yield ways to export, the fastest first: a name, and a function that may fail.

    tf2onnx without its optimisers takes a quarter of the time, but writes invalid graphs for some
    recurrent layers; from_function serves models that from_keras does not know.
    """
    yield "from_keras without optimisers", lambda: _export(loaded, _from_keras, **_PLAIN)
    yield "from_keras", lambda: _export(loaded, _from_keras)
    yield "from_function", lambda: _export(loaded, _from_function)


def serialized(loaded: LoadedModel) -> bytes:
    """Return the model as tf2onnx writes it by default. Raises CannotRunError."""
    reasons = []
    for convert, options in ((_from_keras, {}), (_from_keras, _PLAIN), (_from_function, {})):
        try:
            with _convertible(loaded):
                return _converted(loaded, convert, **options)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]


def _export(loaded: LoadedModel, convert: Callable[..., Any], **options: Any) -> OnnxModel:
    with _convertible(loaded):
        return _session(_converted(loaded, convert, **options))


def _converted(loaded: LoadedModel, convert: Callable[..., Any], **options: Any) -> bytes:
    proto, _ = convert(loaded, **options)
    content: bytes = proto.SerializeToString()
    return content


@contextlib.contextmanager
def _convertible(loaded: LoadedModel) -> Iterator[None]:
    """What tf2onnx needs around it. Raises CannotRunError in place of whatever is raised inside."""
    if sum(_bytes(weight) for weight in loaded.runner.weights) > _PROTOBUF_LIMIT:
        raise CannotRunError("an ONNX file of one piece cannot hold more than 2 GiB of weights")
    import tensorflow  # noqa: PLC0415

    eager = tensorflow.config.functions_run_eagerly()
    try:
        with quiet():
            # Keras compiles grouped convolutions with XLA, which tf2onnx cannot see into.
            tensorflow.config.run_functions_eagerly(True)
            yield
    except Exception as error:
        raise CannotRunError(one_line(error)) from error
    finally:
        tensorflow.config.run_functions_eagerly(eager)


def _bytes(weight: Any) -> int:
    size = 2 if tensors.dtype_name(weight) in {"float16", "bfloat16"} else 4
    return size * int(np.prod(weight.shape))


def _signature(loaded: LoadedModel) -> list[Any]:
    import tensorflow  # noqa: PLC0415

    return [
        tensorflow.TensorSpec(tuple(tensor.shape), tensor.dtype, name=f"input_{index}")
        for index, tensor in enumerate(loaded.runner.inputs)
    ]


def _from_keras(loaded: LoadedModel, **options: Any) -> Any:
    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded) if len(loaded.runner.inputs) == 1 else None
    return tf2onnx.convert.from_keras(loaded.runner, input_signature=signature, **options)


def _from_function(loaded: LoadedModel) -> Any:
    import tensorflow  # noqa: PLC0415

    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded)

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return loaded.runner(list(inputs), training=False)

    return tf2onnx.convert.from_function(call, input_signature=signature)


def _session(model: bytes, *, optimise: bool = False) -> OnnxModel:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return OnnxModel(session, tuple(one.name for one in session.get_inputs()), model)


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


def movement_onnx(
    loaded: LoadedModel,
    sets: Sequence[SampleSet],
    values: Sequence[Sequence[Array]],
    *,
    steps: Sequence[float],
    repetitions: int,
    seed: int,
) -> list[list[list[Errors]]]:
    """Like `movement`, with one export for each repetition. Raises CannotRunError."""
    weights = Weights(loaded, steps, seed)
    found: list[list[list[Errors]]] = [[[] for _ in row] for row in values]
    try:
        for repetition in range(1, repetitions + 1):
            weights.move(repetition)
            for into, row, moved in zip(found, values, evaluate_onnx(loaded, sets), strict=True):
                for place, value, other in zip(into, row, moved, strict=True):
                    place.append(errors(value, other))
    finally:
        weights.move(0)
    return found


def optimised(exported: OnnxModel, outputs: int) -> OnnxModel:
    """The same export as ONNX Runtime runs it by default, with its first outputs only.

    Values that are put out cannot be optimised away, so those inside the model are left out. Raises
    CannotRunError.
    """
    onnx = importlib.import_module("onnx")
    try:
        model = onnx.load_model_from_string(exported.model)
        del model.graph.output[outputs:]
        return _session(model.SerializeToString(), optimise=True)
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
