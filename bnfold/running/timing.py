"""Turning a loaded model into something that can be timed, in each runtime.

    keras           a tf.function of the call with training=False: graph mode, not eager
    onnxruntime     the tf2onnx export on the CPU, with ONNX Runtime's default optimisations
    litert          the same graph converted to LiteRT (TensorFlow Lite), with its default settings

Every runtime gets the same inputs and the same number of threads, and what it computes must be
what Keras computes: a conversion that went wrong would be timed for nothing. A model can be started
anew without being converted anew: its weights then lie elsewhere in memory, and its threads are
others.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from bnfold.running import keras_graph, onnx_runner
from bnfold.running.arrays import Array
from bnfold.running.deployed import leftovers
from bnfold.running.deployed.leftovers import Leftover
from bnfold.running.deployed.litert import available_threads, interpreter_module
from bnfold.running.keras_runner import run
from bnfold.running.libraries import CannotRunError, imported, one_line_on_failure
from bnfold.running.loading import LoadedModel

Call: TypeAlias = Callable[[], Any]
Start: TypeAlias = Callable[[Sequence[Array]], Call]

_ALIKE = 0.02  # of an output's largest number; runtimes may compute with other roundings


def prepare(name: str, loaded: LoadedModel, threads: int | None) -> Start:
    """Return what starts the model in a runtime of `RUNTIMES`. Raises CannotRunError."""
    with one_line_on_failure():
        return RUNTIMES[name].prepare(loaded, threads)


def started(prepared: Start, inputs: Sequence[Array]) -> Call:
    """Start the model anew and return its inference of these inputs, which has run once.

    Raises CannotRunError.
    """
    with one_line_on_failure():
        call = prepared(inputs)
        call()
        return call


def check(prepared: Start, loaded: LoadedModel, inputs: Sequence[Array]) -> None:
    """See that the runtime runs the model, and computes what Keras computes.

    Where Keras itself cannot run the model there is nothing to hold it against. Raises
    CannotRunError.
    """
    with one_line_on_failure():
        found = [_widened(output) for output in _flat(prepared(inputs)())]
    try:
        expected = run(loaded, inputs, training=False)
    except CannotRunError:
        return
    if len(found) != len(expected) or not all(map(_alike, expected, found)):
        raise CannotRunError("what it makes of the model computes something else than Keras does")


def left_behind(prepared: Start, loaded: LoadedModel) -> tuple[Leftover, ...] | None:
    """What is left of each BatchNormalization in a runtime that was started; None of others."""
    try:
        if isinstance(prepared, _OnnxStart):
            return leftovers.in_onnx(prepared.content, loaded)
        if isinstance(prepared, _LiteRTStart) and prepared.content:
            return leftovers.in_litert(prepared.content, loaded)
    except CannotRunError:
        return None
    return None


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def _widened(output: Any) -> Array:
    array = np.asarray(output)
    return array if array.dtype.kind in "biuOSU" else array.astype(np.float64)


def _alike(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype.kind != "f":
        return expected.shape == found.shape
    finite = np.abs(expected[np.isfinite(expected)], dtype=np.float64)
    allowed = _ALIKE * float(finite.max(initial=0.0))
    return bool(np.allclose(expected, found, rtol=0, atol=allowed, equal_nan=True))


# --- Keras ---------------------------------------------------------------------------------------


def _keras(loaded: LoadedModel, threads: int | None) -> Start:
    tensorflow = importlib.import_module("tensorflow")
    has = tensorflow.config.threading.get_intra_op_parallelism_threads()
    if threads not in (None, has):
        raise CannotRunError(
            "TensorFlow has started already, and its threads cannot be changed any more"
        )
    function = _function(loaded)

    def start(inputs: Sequence[Array]) -> Call:
        for weight in loaded.shown.weights:
            weight.assign(np.array(weight))  # which moves it
        fed = [
            tensorflow.convert_to_tensor(array, dtype=keras_graph.dtype_name(tensor))
            for array, tensor in zip(inputs, loaded.shown.inputs, strict=True)
        ]
        return functools.partial(function, *fed)

    return start


def _function(loaded: LoadedModel) -> Any:
    def call(*inputs: Any) -> Any:
        return loaded.shown(list(inputs), training=False)

    return importlib.import_module("tensorflow").function(call, autograph=False)


# --- ONNX Runtime --------------------------------------------------------------------------------


def _onnxruntime(loaded: LoadedModel, threads: int | None) -> Start:
    return _OnnxStart(onnx_runner.serialized(loaded), threads)


@dataclass
class _OnnxStart:
    """Starts an ONNX model in ONNX Runtime."""

    content: bytes
    threads: int | None

    def __call__(self, inputs: Sequence[Array]) -> Call:
        onnxruntime = imported("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self.threads or 0
        # Two sessions take turns: the threads of one must not wait busily while the other computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            self.content, options, providers=["CPUExecutionProvider"]
        )
        names = [one.name for one in session.get_inputs()]
        if len(names) != len(inputs):
            raise CannotRunError("the export lost an input")
        return functools.partial(session.run, None, dict(zip(names, inputs, strict=True)))


# --- LiteRT --------------------------------------------------------------------------------------


def _litert(loaded: LoadedModel, threads: int | None) -> Start:
    return _LiteRTStart(loaded, threads, interpreter_module().Interpreter, _function(loaded))


@dataclass
class _LiteRTStart:
    """Starts a model in LiteRT, which plans its memory for fixed shapes: `content` is for one."""

    loaded: LoadedModel
    threads: int | None
    interpreter: Any
    function: Any
    shape: tuple[int, ...] | None = None
    content: bytes = b""

    def __call__(self, inputs: Sequence[Array]) -> Call:
        shape = inputs[0].shape
        if shape != self.shape:
            self.shape, self.content = None, b""
            self.content = _converted(self.loaded, self.function, inputs)
            self.shape = shape
        interpreter = self.interpreter(
            model_content=self.content, num_threads=self.threads or available_threads()
        )
        interpreter.allocate_tensors()
        return _invocation(interpreter, inputs)


def _converted(loaded: LoadedModel, function: Any, inputs: Sequence[Array]) -> bytes:
    tensorflow = importlib.import_module("tensorflow")
    specs = [
        tensorflow.TensorSpec(array.shape, tensor.dtype, name=f"input_{index}")
        for index, (array, tensor) in enumerate(zip(inputs, loaded.shown.inputs, strict=True))
    ]
    # Given the model beside the function, the converter leaves out the values of Keras' variables.
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(*specs)]
    )
    content: bytes = converter.convert()
    return content


def _invocation(interpreter: Any, inputs: Sequence[Array]) -> Call:
    """One inference as an application does it: inputs in, run, outputs out."""
    places = {_position(one["name"]): one["index"] for one in interpreter.get_input_details()}
    fed = [(places[at], array) for at, array in enumerate(inputs) if at in places]
    taken = [one["index"] for one in interpreter.get_output_details()]

    def invoke() -> list[Array]:
        for place, array in fed:
            interpreter.set_tensor(place, array)
        interpreter.invoke()
        return [interpreter.get_tensor(place) for place in taken]

    return invoke


def _position(name: str) -> int:
    """The position of the input that `_converted` named input_POSITION."""
    found = re.search(r"input_(\d+)", name)
    if found is None:
        raise CannotRunError("the conversion lost an input")
    return int(found[1])


# --- all of them ---------------------------------------------------------------------------------


class Runtime(NamedTuple):
    """How a model is made ready for a runtime and a number of threads, and by which packages."""

    prepare: Callable[[LoadedModel, int | None], Start]
    packages: tuple[str, ...]


RUNTIMES: dict[str, Runtime] = {
    "keras": Runtime(_keras, ("keras", "tensorflow")),
    "onnxruntime": Runtime(_onnxruntime, ("onnxruntime", "tf2onnx")),
    "litert": Runtime(_litert, ("ai-edge-litert", "tensorflow")),
}


def version(name: str, library: str) -> str:
    """Which runtime of which version it is; `library` is keras or tf_keras."""
    names = [library if one == "keras" else one for one in RUNTIMES[name].packages]
    packages = [one.replace("_", "-") for one in names]
    return ", ".join(f"{package} {number}" for package in packages if (number := _of(package)))


def _of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
