"""Files that are deployed, as other tools write them, of one small model with two outputs."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from support import keras, randomize

L = keras.layers
SHAPE = (12, 10, 3)


def network(seed: int = 3) -> Any:
    """A stem, a depthwise branch and two heads; every BatchNormalization has other statistics."""
    keras.utils.set_random_seed(seed)
    given = keras.Input(SHAPE, name="picture")
    stem = L.BatchNormalization(name="stem_bn")(L.Conv2D(8, 3, padding="same", name="stem")(given))
    stem = L.ReLU(name="stem_relu")(stem)
    other = L.DepthwiseConv2D(3, padding="same", name="dw")(stem)
    other = L.ReLU(6, name="dw_relu")(L.BatchNormalization(name="dw_bn")(other))
    both = L.MaxPooling2D(name="pool")(L.Add(name="add")([stem, other]))
    body = L.Conv2D(16, 3, name="body", activation="relu")(both)
    body = L.GlobalAveragePooling2D(name="gap")(L.BatchNormalization(name="post_bn")(body))
    kind = L.Dense(10, activation="softmax", name="kind")(L.Dense(24, name="wide")(body))
    model = keras.Model(given, [kind, L.Dense(4, name="box")(body)], name="net")
    return spread(randomize(model))


def spread(model: Any) -> Any:
    """The same with a last layer that calls samples of every class, none of them for certain."""
    kind = model.get_layer("kind")
    before = keras.Model(model.inputs, kind.input).predict(samples(), verbose=0)
    kernel, bias = kind.get_weights()
    logits = before @ kernel
    scale = 0.7 / logits.std(axis=0)
    kind.set_weights([kernel * scale, bias * 0 - logits.mean(axis=0) * scale])
    return model


def samples(count: int = 48, seed: int = 0) -> Any:
    """What a user's data may be."""
    return np.random.default_rng(seed).normal(0, 1, (count, *SHAPE)).astype("float32")


def to_onnx(model: Any, path: Path, **options: Any) -> Path:
    """As tf2onnx writes it."""
    import tensorflow as tf
    import tf2onnx

    names = {one.name: tuple(one.shape) for one in model.inputs}
    signature = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in names.items()]
    proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, **options)
    path.write_bytes(proto.SerializeToString())
    return path


def to_litert(model: Any, path: Path, precision: str = "float32", **options: Any) -> Path:
    """As TensorFlow's converter writes it: float32, float16, dynamic or int8."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = lambda: ([one[None]] for one in samples())
    for name, value in options.items():
        setattr(converter, name, value)
    with contextlib.redirect_stdout(io.StringIO()):
        path.write_bytes(converter.convert())
    return path


def to_saved_model(model: Any, path: Path, *, by_keras: bool = True) -> Path:
    """As `model.export` writes it, or tf.saved_model.save."""
    import tensorflow as tf

    if by_keras:
        model.export(str(path), verbose=False)
    else:
        tf.saved_model.save(model, str(path))
    return path
