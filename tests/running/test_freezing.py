"""What tf2onnx writes is the same whether weights are kept aside or not."""

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import keras

from bnfold.running import freezing, keras_runner, onnx_runner
from bnfold.running.loading import LoadedModel


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    layers = keras.layers
    inputs = keras.Input((7, 24))
    x = layers.BatchNormalization()(layers.Conv1D(48, 3, activation="gelu")(inputs))
    x = layers.Dense(32)(layers.LSTM(32)(x))
    loaded = LoadedModel(Path("model.keras"), "keras", keras.Model(inputs, x), False)
    keras_runner.prepare_alone(loaded)
    return loaded


def _told(proto: Any) -> list[Any]:
    """What a model computes, without the names that tf2onnx and TensorFlow count up."""
    from onnx.numpy_helper import to_array

    graph = proto.graph
    values = [(one.data_type, tuple(one.dims), to_array(one)) for one in graph.initializer]
    large = [one for one in values if one[2].nbytes >= freezing._LARGE]
    assert len(large) > 3
    nodes = sorted(one.op_type for one in graph.node)
    return [nodes, sorted((kind, size, value.tobytes()) for kind, size, value in values)]


def test_the_same_is_written(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = list[str]()
    take = freezing._taken
    monkeypatch.setattr(
        freezing, "_taken", lambda graph: [taken.append(one[0]) or one for one in take(graph)]
    )
    found = onnx_runner.convert(model, onnx_runner.unoptimised)
    assert len(taken) > 3
    monkeypatch.setattr(freezing, "aside", contextlib.nullcontext)
    assert _told(found) == _told(onnx_runner.convert(model, onnx_runner.unoptimised))


def test_what_goes_wrong_is_left_to_tf2onnx(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tf2onnx.convert
    import tf2onnx.tf_loader

    def fail(*_: Any) -> Any:
        raise AttributeError("no such function in this version")

    before = tf2onnx.tf_loader.from_function, tf2onnx.convert.process_tf_graph
    monkeypatch.setattr(freezing, "_frozen", fail)
    content = onnx_runner.convert(model, onnx_runner.unoptimised).SerializeToString()
    assert (tf2onnx.tf_loader.from_function, tf2onnx.convert.process_tf_graph) == before
    sample = np.random.default_rng(0).normal(size=(2, 7, 24)).astype("f4")
    found = onnx_runner.run_onnx(onnx_runner.session(content), [sample])
    expected = keras_runner.run(model, [sample], training=False)
    assert np.allclose(found[0], expected[0], atol=1e-5)


def test_a_name_that_a_function_has_too_is_not_kept_aside() -> None:
    """tf2onnx looks for the content of constants by their names alone, in every function."""
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef()
    inner = graph.library.function.add().node_def.add(name="shared", op="Const")
    for node in (graph.node.add(name="shared", op="Const"), graph.node.add(name="own", op="Const")):
        value = np.ones(freezing._LARGE, "f4") * np.arange(freezing._LARGE, dtype="f4")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    inner.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    assert [name for name, _ in freezing._taken(graph)] == ["own"]
    assert graph.node[0].attr["value"].tensor.tensor_content


def test_threads_leave_the_functions_of_tf2onnx_as_they_were() -> None:
    import tf2onnx.convert
    import tf2onnx.tf_loader

    before = tf2onnx.tf_loader.from_function, tf2onnx.convert.process_tf_graph
    first_in, other_done = threading.Event(), threading.Event()

    def hold() -> None:
        with freezing.aside():
            first_in.set()
            other_done.wait(0.2)

    def come_later() -> None:
        with freezing.aside():
            first.join(0.4)
        other_done.set()

    first, second = threading.Thread(target=hold), threading.Thread(target=come_later)
    first.start()
    first_in.wait()
    second.start()
    second.join()
    first.join()
    assert (tf2onnx.tf_loader.from_function, tf2onnx.convert.process_tf_graph) == before
