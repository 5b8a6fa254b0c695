"""The LiteRT (TensorFlow Lite) file that users get: converted, given the model's names, labelled.

TensorFlow's own converter does the work, from a SavedModel, because only such a file has a
signature by whose names programs call it. LiteRT's own operations only: others would need
TensorFlow beside LiteRT. What made the file is in its metadata, under "bnfold".
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bnfold.running.arrays import Array
from bnfold.running.libraries import CannotRunError, one_line_on_failure
from bnfold.running.loading import LoadedModel
from bnfold.running.onnx_file import named_ports
from bnfold.running.ports import Interface
from bnfold.running.samples import SampleSet
from bnfold.running.saved_model_file import SIGNATURE, write_saved_model

LitePrecision = Literal["float32", "float16", "int8"]

METADATA = "bnfold"
_RECURRENT = (
    "LiteRT has no recurrent layers with a free batch: save the model with one of a fixed size, as"
    " by keras.Input(..., batch_size=1)"
)
CALIBRATION_SAMPLES = 500
"""How many samples at most the ranges of values are measured on; these are spread over all."""


def write_litert(
    loaded: LoadedModel,
    path: Path,
    interface: Interface,
    *,
    metadata: Mapping[str, Any] | None = None,
    precision: LitePrecision = "float32",
    calibration: SampleSet | None = None,
) -> None:
    """Convert a model to the file `path`, which has a free batch.

    For "int8" the ranges of all values are measured on `calibration`; weights are quantized by
    channel, and inputs and outputs stay floats. Raises CannotRunError.
    """
    folder = path.with_name(f"_{path.name}-saved")
    try:
        inputs = write_saved_model(loaded, folder, interface, plainly=True)
        names = [port.name for port in inputs]
        try:
            with one_line_on_failure("TensorFlow's converter cannot write it: "):
                content = _converted(folder, precision, _calibrating(names, calibration))
        except CannotRunError as error:
            is_free = any(None in port.shape for port in inputs)
            if is_free and "TensorList" in str(error):
                raise CannotRunError(_RECURRENT) from error
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wanted = [port.name for port in named_ports(interface)[0]]
    renamed = dict(zip(names, wanted, strict=True))
    with one_line_on_failure("TensorFlow's converter wrote an invalid file: "):
        path.write_bytes(_labelled(content, renamed, metadata))


def _converted(
    folder: Path, precision: LitePrecision, samples: Callable[[], Iterator[Any]] | None
) -> bytes:
    tensorflow = importlib.import_module("tensorflow")
    lite = tensorflow.lite
    converter = lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[SIGNATURE])
    if precision != "float32":
        converter.optimizations = [lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tensorflow.float16]
    if precision == "int8":
        if samples is None:
            raise CannotRunError("int8 needs samples to measure the ranges of values on")
        converter.representative_dataset = samples
    content: bytes = converter.convert()
    return content


def _calibrating(
    names: Sequence[str], calibration: SampleSet | None
) -> Callable[[], Iterator[dict[str, Array]]] | None:
    """What yields samples one by one, by the name of the input."""
    if calibration is None:
        return None
    chosen = chosen_samples(calibration.count)

    def each() -> Iterator[dict[str, Array]]:
        for at in chosen:
            arrays = (np.ascontiguousarray(one[at : at + 1]) for one in calibration.inputs)
            yield dict(zip(names, arrays, strict=True))

    return each


def chosen_samples(count: int) -> list[int]:
    """Which of so many samples are used to calibrate."""
    wanted = min(count, CALIBRATION_SAMPLES)
    return [int(at) for at in np.linspace(0, count - 1, wanted).round()]


def _labelled(
    content: bytes, renamed: Mapping[str, str], metadata: Mapping[str, Any] | None
) -> bytes:
    """The file with other names of inputs in its signature, and with this metadata."""
    schema = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    flatbuffers = importlib.import_module("flatbuffers")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for signature in model.signatureDefs or ():
        for one in signature.inputs:
            name = one.name.decode()
            one.name = renamed.get(name, name).encode()
    if metadata is not None:
        held = schema.BufferT()
        held.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        model.buffers.append(held)
        entry = schema.MetadataT()
        entry.name, entry.buffer = METADATA.encode(), len(model.buffers) - 1
        model.metadata = [*(model.metadata or ()), entry]
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
