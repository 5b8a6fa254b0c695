"""Files of models that are not Keras', or not whole ones, named for what they are.

What they hold tells more than what they are called, so the first bytes are looked at before the
name. Nothing else in them is read.
"""

import re
from collections.abc import Collection
from pathlib import Path

HEAD = 512
"""How many of the first bytes tell what a file is."""

_KERAS_NEEDED = "bnfold reads what model.save('model.keras') writes"
_PYTORCH = "a PyTorch file; bnfold reads Keras models"
_UNPACK = "unpack it and name the model in it"
_CHECKPOINT = f"a part of a TensorFlow checkpoint, weights without a model; {_KERAS_NEEDED}"
_GRAPH = f"a TensorFlow graph (GraphDef) without separate layers; {_KERAS_NEEDED}"
SAVED_MODEL = f"a TensorFlow SavedModel; {_KERAS_NEEDED}"

_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"TFL3", f"a TensorFlow Lite model, which cannot be converted back; {_KERAS_NEEDED}"),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", _PYTORCH),
    (0, b"\x93NUMPY", "a NumPy array (.npy), not a model"),
    (0, b"GGUF", "a GGUF file of weights; bnfold reads Keras models"),
    (0, b"\x1f\x8b", f"compressed (gzip); {_UNPACK}"),
    (0, b"BZh", f"compressed (bzip2); {_UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"compressed (xz); {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"an archive (7z); {_UNPACK}"),
    (0, b"Rar!", f"an archive (rar); {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"compressed (zstd); {_UNPACK}"),
    (257, b"ustar", f"an archive (tar); {_UNPACK}"),
    (0, b"model_checkpoint_path", _CHECKPOINT),
)
"""What stands where in a file, and what the file then is."""

_ONNX = "an ONNX model; bnfold writes ONNX files and reads those of Keras"

_NAMES: tuple[tuple[str, str], ...] = (
    (r"\.onnx$", _ONNX),
    (r"^saved_model\.pb(txt)?$", f"the graph of a SavedModel, which is a folder; {_KERAS_NEEDED}"),
    (r"^keras_metadata\.pb$", f"a part of a SavedModel; {_KERAS_NEEDED}"),
    (r"\.pb(txt)?$", _GRAPH),
    (r"\.ckpt$|\.ckpt-\d+|\.(meta|index)$|\.data-\d{5}-of-\d{5}$|^checkpoint$", _CHECKPOINT),
    (r"\.tflite$", f"called a TensorFlow Lite model; {_KERAS_NEEDED}"),
    (r"\.safetensors$", "called a safetensors file; bnfold reads Keras models"),
    (r"\.(pt|pth|pt2|torchscript)$", _PYTORCH),
    (r"\.mlmodel$", "a Core ML model; bnfold reads Keras models"),
    (r"\.(pdmodel|pdparams)$", "a PaddlePaddle file; bnfold reads Keras models"),
    (r"\.caffemodel$", "a Caffe model; bnfold reads Keras models"),
)
"""What a name that matches says, of what the content does not tell apart."""

_ARCHITECTURE = (
    "the architecture of a Keras model without its weights, as model.to_json() writes it;"
    " save the whole model with model.save('model.keras')"
)


def named(name: str, head: bytes) -> str | None:
    """What a file of this name that begins with `head` is, if it is known."""
    for offset, magic, what in _STARTS:
        if head[offset:].startswith(magic):
            return what
    return _by_form(head) or _by_name(name.lower()) or _pickled(head)


def deployed(path: Path, head: bytes) -> str | None:
    """The format of a deployed model that begins with `head`: "onnx", "tflite", None for others."""
    if head[4:8] == b"TFL3":
        return "tflite"
    return "onnx" if named(path.name, head) == _ONNX else None


def _by_form(head: bytes) -> str | None:
    """What a file is by a form that needs more than a few bytes to be told."""
    length = int.from_bytes(head[:8], "little")
    if 2 <= length < 1 << 32 and head[8:10] == b'{"':
        return "a safetensors file of weights; bnfold reads Keras models"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a model; the model may be a file that it links to"
    if text.startswith(b"{"):
        return _json(text)
    if re.match(rb"(backend|class_name|config|keras_version): ", text):
        return _ARCHITECTURE.replace("to_json", "to_yaml")
    # A ModelProto: the version of the format, then who produced it.
    if re.match(rb"\x08[\x03-\x1f](\x12[\x01-\x40][\w .-]+|:)", head):
        return _ONNX
    return None


def _json(text: bytes) -> str:
    if b'"modelTopology"' in text or b'"weightsManifest"' in text or b'"layers-model"' in text:
        return "a TensorFlow.js model, whose weights are in other files; bnfold reads Keras models"
    if re.search(rb'"(class_name|module|registered_name|keras_version)"', text):
        return _ARCHITECTURE
    return f"a JSON text; {_KERAS_NEEDED}"


def _by_name(name: str) -> str | None:
    return next((what for pattern, what in _NAMES if re.search(pattern, name)), None)


def _pickled(head: bytes) -> str | None:
    if re.match(rb"\x80[\x02-\x05][\x63\x7d\x8c\x95(\]]", head):
        return "a Python pickle, which may run code when it is loaded, and is not a Keras model"
    return None


def archived(names: Collection[str]) -> str | None:
    """What a ZIP archive with members of these names is, if it is known."""
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in last or "constants.pkl" in last:
        return _PYTORCH
    if {"saved_model.pb", "saved_model.pbtxt"} & last:
        return f"a ZIP archive around a SavedModel; {_KERAS_NEEDED}"
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), not a model"
    inside = sorted(name for name in names if name.lower().endswith((".keras", ".h5", ".hdf5")))
    if inside and "model.weights.h5" not in last:
        return f"a ZIP archive around a model; {_UNPACK}"
    return None


def foldered(names: Collection[str]) -> str | None:
    """What a folder with files of these names is, if it is known."""
    if {"saved_model.pb", "saved_model.pbtxt"} & set(names):
        return SAVED_MODEL
    weights = {"model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"}
    if weights & set(names):
        return "a folder of a Hugging Face model; bnfold reads Keras models"
    if "checkpoint" in names:
        return f"a folder of TensorFlow checkpoints, weights without a model; {_KERAS_NEEDED}"
    return None
