"""The SavedModel folder that users get: one signature, with the model's own names and a free batch.

TensorFlow alone runs it: the folder holds the operations of the model and its variables, and
nothing of Keras. What made it is in `assets.extra/bnfold.json`, where TensorFlow leaves room for
such files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bnfold.running import keras_graph
from bnfold.running.libraries import one_line_on_failure
from bnfold.running.loading import LoadedModel
from bnfold.running.onnx_file import named_ports
from bnfold.running.ports import Interface, Port

SIGNATURE = "serving_default"
RECORD = ("assets.extra", "bnfold.json")
"""Where a SavedModel says how it was made."""


def write_saved_model(
    loaded: LoadedModel,
    path: Path,
    interface: Interface,
    *,
    metadata: Mapping[str, Any] | None = None,
    plainly: bool = False,
) -> tuple[Port, ...]:
    """Write a model to the folder `path`; its inputs, as the folder names them.

    They have the names of the model's inputs where TensorFlow can call a function by these; else
    all are numbered. With `plainly`, what Keras compiles with XLA is written as plain operations,
    which converters can read, and which TensorFlow may not be able to run. Raises CannotRunError.
    """
    inputs, outputs = named_ports(interface)
    numbered = tuple(
        Port(f"input_{at}", port.shape, port.dtype) for at, port in enumerate(interface.inputs)
    )
    with one_line_on_failure("TensorFlow cannot save it: "), _eagerly(wanted=plainly):
        try:
            _save(loaded, path, inputs, outputs)
        except (TypeError, ValueError):  # of names that Python or TensorFlow has no parameters for
            shutil.rmtree(path, ignore_errors=True)
            inputs = numbered
            _save(loaded, path, inputs, outputs)
    with one_line_on_failure("TensorFlow wrote an invalid fingerprint: "):
        _settle_fingerprint(path / "fingerprint.pb")
    if metadata is not None:
        place = path.joinpath(*RECORD)
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(metadata, indent=2) + "\n")
    return inputs


def _settle_fingerprint(path: Path) -> None:
    """Put what the content gives in place of the random number, so that the same is the same."""
    if not path.exists():
        return  # older versions of TensorFlow write none
    proto = importlib.import_module("tensorflow.core.protobuf.fingerprint_pb2").FingerprintDef()
    proto.ParseFromString(path.read_bytes())
    proto.uuid = ""
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).digest()
    proto.uuid = str(int.from_bytes(digest[:16], "big"))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _save(loaded: LoadedModel, path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    tensorflow = importlib.import_module("tensorflow")
    function, module = _traced(loaded, inputs, outputs), tensorflow.Module()
    module.kept = [keras_graph.held_by(one) for one in loaded.shown.variables]
    module.tables = list(_tables(loaded))
    tensorflow.saved_model.save(module, str(path), signatures={SIGNATURE: function})


def _traced(loaded: LoadedModel, inputs: Sequence[Port], outputs: Sequence[Port]) -> Any:
    """The function from inputs of these names to a dictionary of outputs."""
    tensorflow = importlib.import_module("tensorflow")

    def serve(*given: Any) -> dict[str, Any]:
        made = loaded.shown(list(given), training=False)
        flat = list(made) if isinstance(made, (list, tuple)) else [made]
        return dict(zip((port.name for port in outputs), flat, strict=True))

    specs = [
        tensorflow.TensorSpec(tuple(tensor.shape), tensor.dtype, name=port.name)
        for port, tensor in zip(inputs, loaded.shown.inputs, strict=True)
    ]
    return tensorflow.function(serve, autograph=False).get_concrete_function(*specs)


def _tables(loaded: LoadedModel) -> Iterator[Any]:
    """The lookup tables of layers such as StringLookup, which are no variables."""
    for layer in keras_graph.layers_of(loaded.shown):
        table = getattr(layer, "lookup_table", None)
        if table is not None:
            yield table


@contextmanager
def _eagerly(*, wanted: bool) -> Iterator[None]:
    """Have inner functions written out in place, as those that Keras compiles with XLA."""
    tensorflow = importlib.import_module("tensorflow")
    before = tensorflow.config.functions_run_eagerly()
    try:
        tensorflow.config.run_functions_eagerly(wanted or before)
        yield
    finally:
        tensorflow.config.run_functions_eagerly(before)
