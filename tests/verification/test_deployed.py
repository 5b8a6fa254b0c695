"""Deployed models that other tools wrote, right ones and wrong ones, against the Keras model."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from deployed_files import network, samples, to_litert, to_onnx, to_saved_model
from onnxruntime import quantization
from schemas import validate
from support import keras

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError, SettingsError, UnreadableModelError, UnsafeModelError
from bnfold.running.deployed.binding import WITHIN
from bnfold.running.deployed.model import Precision
from bnfold.running.deployed.opening import open_deployed
from bnfold.running.options import Bounds
from bnfold.verification import (
    Basis,
    Verdict,
    Verification,
    approximate,
    bounds,
    fidelity,
    trial,
)
from bnfold.verification.values import Value

L = keras.layers


MAKERS: dict[str, Callable[[Any, Path], object]] = {
    "model.keras": lambda model, path: model.save(path),
    "data.npz": lambda _, path: np.savez(path, picture=samples()),
    "plain.onnx": to_onnx,
    "nchw.onnx": lambda model, path: to_onnx(model, path, inputs_as_nchw=["picture"]),
    "plain.tflite": to_litert,
    "float16.tflite": lambda model, path: to_litert(model, path, "float16"),
    "dynamic.tflite": lambda model, path: to_litert(model, path, "dynamic"),
    "int8.tflite": lambda model, path: to_litert(model, path, "int8"),
    "by_keras": to_saved_model,
    "by_tensorflow": lambda model, path: to_saved_model(model, path, by_keras=False),
}


class Files:
    """A folder with the model and what was made of it, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, network()

    def __truediv__(self, name: str | Path) -> Path:
        path = self.folder / name
        if not path.exists() and str(name) in MAKERS:
            MAKERS[str(name)](self.model, path)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("deployed"))


def check(files: Files, other: str | Path, **options: Any) -> Verification:
    return bnfold.verify(files / "model.keras", files / other, in_process=True, **options)


RIGHT = {
    "plain.onnx": Basis.BOTH,
    "nchw.onnx": Basis.BOTH,
    "plain.tflite": Basis.LITERT,
    "by_keras": Basis.TENSORFLOW,
    "by_tensorflow": Basis.TENSORFLOW,
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.few(2)
def test_what_other_tools_wrote_is_equivalent(files: Files, name: str) -> None:
    found = check(files, name)
    assert (found.verdict, found.basis) == (Verdict.EQUIVALENT, RIGHT[name])
    assert found.precision == "float32"
    assert found.max_excess is not None
    assert found.max_excess < 0.3
    assert {one.output for one in found.fidelity} == {"kind", "box"}
    assert all(one.sqnr_db is None or one.sqnr_db > 100 for one in found.fidelity)
    assert all(one.percentiles.p50 <= one.percentiles.max < 1e-5 for one in found.fidelity)


def test_a_layout_is_said(files: Files) -> None:
    assert "channels first" in " ".join(check(files, "nchw.onnx").paired)


def test_made_up_names_are_said(files: Files) -> None:
    found = check(files, "plain.tflite").paired
    assert "output 'kind' is 'output_0' in the file: by its number" in found


@pytest.mark.parametrize("name", ["float16.tflite", "dynamic.tflite", "int8.tflite"])
@pytest.mark.parametrize("of_user", [False, True], ids=["random", "data"])
@pytest.mark.few(2)
def test_reduced_precision_is_approximate(files: Files, name: str, of_user: bool) -> None:
    found = check(files, name, data=files / "data.npz" if of_user else None)
    assert found.verdict is Verdict.APPROXIMATE, found.differences
    assert found.is_user_data is of_user
    assert found.precision == {"dynamic.tflite": "int8 weights"}.get(name, name[:-7])
    assert found
    assert found.accepted()
    if of_user:
        assert found.max_excess is not None
        assert found.max_excess < 0.5
        kind = next(one for one in found.fidelity if one.output == "kind")
        assert kind.decisions is not None
        assert kind.decisions.counted == 48


def test_an_output_that_never_changes_leaves_it_open(tmp_path: Path) -> None:
    """Beside one that does: what no sample reached is not called approximate."""
    given = keras.Input((6,), name="x")
    constant = L.Dense(4, kernel_initializer="zeros", bias_initializer="ones", name="constant")
    model = keras.Model(given, [L.Dense(4, name="alive")(given), constant(given)])
    model.save(tmp_path / "model.keras")
    found = check(tmp_path, to_litert(model, tmp_path / "half.tflite", "float16"))
    assert found.verdict is Verdict.UNDECIDED
    assert "output 'constant' was not exercised" in " ".join(found.warnings)


def off(change: Callable[[Any], Any]) -> Any:
    """The model after something was done to it."""
    model = network()
    found = change(model)
    return model if found is None else found


def stale(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        layer = model.get_layer(name)
        random = np.random.default_rng(1)
        weights = layer.get_weights()
        weights[0] = weights[0] + 0.5 * weights[0].std() * random.normal(size=weights[0].shape)
        layer.set_weights(weights)

    return change


def epsilon(model: Any) -> None:
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.epsilon = 1e-5


def without_preprocessing(model: Any) -> Any:
    given = keras.Input((12, 10, 3), name="picture")
    kind, box = model(given * 0.5)
    named = (L.Identity(name="kind")(kind), L.Identity(name="box")(box))
    return keras.Model(given, list(named))


def without_softmax(model: Any) -> None:
    model.get_layer("kind").activation = keras.activations.linear


WRONG: dict[str, tuple[Callable[[Any], Any], tuple[str, ...] | None]] = {
    "a stale kernel": (stale("body"), ("body",)),
    "a stale BatchNormalization": (stale("dw_bn"), ("dw", "dw_bn")),
    "another epsilon": (epsilon, None),
    "a forgotten preprocessing": (without_preprocessing, None),
    "a missing softmax": (without_softmax, ("kind",)),
}
"""What is wrong, and the layers that are one in the file, of which one is."""


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.few(2)
def test_a_wrong_onnx_file_is_refused_with_the_layer(
    files: Files, name: str, tmp_path: Path
) -> None:
    change, culprits = WRONG[name]
    found = check(files, to_onnx(off(change), tmp_path / "wrong.onnx"))
    assert found.verdict is Verdict.DIFFERENT
    if culprits is not None:
        assert found.culprits == culprits
        assert "the first layer whose value differs is" in found.differences[-1]
        assert all(repr(one) in found.differences[-1] for one in culprits)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "precision",
    ["float32", pytest.param("float16", marks=SLOW), pytest.param("dynamic", marks=SLOW), "int8"],
)
@pytest.mark.few(1)
def test_a_wrong_litert_file_is_refused(files: Files, precision: str, tmp_path: Path) -> None:
    """Also with random samples, and where the precision alone already costs a lot."""
    wrong = to_litert(off(stale("body")), tmp_path / "wrong.tflite", precision)
    for data in (None, files / "data.npz"):
        found = check(files, wrong, data=data)
        assert found.verdict is Verdict.DIFFERENT
        assert not found.accepted()


def test_a_wrong_saved_model_is_refused(files: Files, tmp_path: Path) -> None:
    found = check(files, to_saved_model(off(stale("body")), tmp_path / "wrong"))
    assert found.verdict is Verdict.DIFFERENT
    assert found.culprits == ("body", "post_bn")  # which TensorFlow merges as it freezes the graph


def test_of_several_signatures_the_one_that_fits_is_run(files: Files, tmp_path: Path) -> None:
    """Where none is the default: the first one by name may have another purpose."""
    import tensorflow as tf

    model = keras.models.load_model(files / "model.keras")
    module = tf.Module()
    module.model = model
    given = [tf.TensorSpec((None, 12, 10, 3), tf.float32, name="picture")]
    classify = tf.function(
        lambda picture: dict(zip(("kind", "box"), model(picture), strict=True)),
        input_signature=given,
    )
    other = tf.function(lambda picture: {"size": tf.shape(picture)}, input_signature=given)
    signatures = {"classify": classify, "aside": other}
    tf.saved_model.save(module, str(tmp_path / "several"), signatures=signatures)
    found = check(files, tmp_path / "several")
    assert found.verdict is Verdict.EQUIVALENT
    assert "of its 2 signatures 'classify' was run" in found.warnings
    signatures = {"serving_default": classify, "aside": other}
    tf.saved_model.save(module, str(tmp_path / "default"), signatures=signatures)
    found = check(files, tmp_path / "default")
    assert found.verdict is Verdict.EQUIVALENT
    assert "of its 2 signatures 'serving_default' was run" in found.warnings


def test_weights_that_nothing_sets_are_said(files: Files, tmp_path: Path) -> None:
    """As TensorFlow's converter writes what tf.saved_model.save made: it computes NaN."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(files / "by_tensorflow"))
    (tmp_path / "unset.tflite").write_bytes(converter.convert())
    found = check(files, tmp_path / "unset.tflite")
    assert found.verdict is Verdict.DIFFERENT
    assert "variables that nothing in the file sets" in found.warnings[0]


def test_what_integer_operations_lose_on_a_processor_is_no_fault_of_the_file() -> None:
    """Sums of 8-bit products saturate on some: a file is wrong where it is so in plain ones too."""
    exact = np.random.default_rng(0).normal(0, 1, (64, 4))
    value = Value("y", is_output=True, axes=())
    case: Any = SimpleNamespace(sets=[SimpleNamespace(kind="data")])
    known = approximate.Expected({value: [exact]}, {value: [0.1]})
    precision = Precision("int8", "float32", 8, 8, is_calibrated=True)

    def judged(optimised: float, plain: float) -> approximate.Judged:
        files = {"ort": {value: [exact + optimised]}, "ort plain": {value: [exact + plain]}}
        return approximate.judge(case, known, files, [0.0], precision, is_user_data=True)

    found = judged(1.0, 0.1)
    assert not found.differences
    assert not found.doubts  # which the plain operations leave none of
    assert "10 times what rounding to int8 does" in found.notes[0]
    assert "integer operations on this processor" in found.notes[0]
    assert all(one.passed for one in found.comparisons)
    assert len(judged(2.0, 0.1).differences) == 1
    assert len(judged(1.0, 1.0).differences) == 2


@pytest.mark.parametrize(("narrow", "wide", "counts"), [(0.5, 20, 0), (1.6, 20, 1), (0.5, 0.5, 1)])
def test_what_is_off_in_a_narrow_range_too_is_not_clipped(
    narrow: float, wide: float, counts: int
) -> None:
    """Here the narrow samples make too little of a difference to show anything by themselves."""
    samples_of = (np.zeros((2, 1)), np.array([[0.0], [9.0]]))
    kinds = [
        approximate._Kind(name, exact, exact + 0.4 * excess, 0.1, 0.0, 1.0)
        for name, exact, excess in zip(WITHIN, samples_of, (narrow, wide), strict=True)
    ]
    assert [one.is_visible for one in kinds] == [False, True]
    assert len(approximate._counted(kinds, within_range=True)) == counts


def test_no_output_is_what_another_one_should_be_where_there_are_no_numbers() -> None:
    assert not trial._is_near(np.ones(3), np.full(3, np.nan))
    assert trial._is_near(np.array([1, np.nan]), np.array([1, 2.0]))


def test_exchanged_outputs_are_named(tmp_path: Path) -> None:
    given = keras.Input((6,), name="x")
    both = [L.Dense(4, name=name)(given) for name in ("left", "right")]
    model = keras.Model(given, both)
    model.save(tmp_path / "model.keras")
    path = to_onnx(model, tmp_path / "model.onnx")
    proto = onnx.load(str(path))
    names = {one.name: one for one in proto.graph.output}
    for node in proto.graph.node:
        swap = {"left": "right", "right": "left"}
        node.output[:] = [swap.get(name, name) for name in node.output]
    assert set(names) == {"left", "right"}
    onnx.save(proto, str(path))
    found = check(tmp_path, "model.onnx")
    assert found.verdict is Verdict.DIFFERENT
    assert "output 'left' of the file is what MODEL has as 'right'" in found.differences


def test_exchanged_classes_are_refused_where_random_samples_saturate(tmp_path: Path) -> None:
    """One sample of a softmax that is all but certain says nothing of what rounding does to others.

    Its typical probability is 1e-90, and measured by that, an error of 1e-8 allowed anything.
    """
    given = keras.Input((8,), name="x")
    hidden = L.Dense(16, activation="relu", name="hidden")(given)
    model = keras.Model(given, L.Dense(6, activation="softmax", name="kind")(hidden))
    random = np.random.default_rng(2)
    kernel, bias = random.normal(0, 4, (16, 6)), np.array([-6.0, -7, 0, 0, 0, 0])
    model.get_layer("kind").set_weights([kernel, bias])
    model.save(tmp_path / "model.keras")
    assert check(tmp_path, to_onnx(model, tmp_path / "right.onnx"))
    swapped = [1, 0, 2, 3, 4, 5]
    model.get_layer("kind").set_weights([kernel[:, swapped], bias[swapped]])
    found = check(tmp_path, to_onnx(model, tmp_path / "swapped.onnx"))
    assert found.verdict is Verdict.DIFFERENT
    assert all(one.tolerance < 1e-3 for one in found.comparisons)


@pytest.mark.parametrize(
    "style",
    ["qdq", pytest.param("operators", marks=SLOW), pytest.param("dynamic", marks=SLOW), "float16"],
)
@pytest.mark.few(1)
def test_onnx_of_reduced_precision(files: Files, style: str, tmp_path: Path) -> None:
    source, target = str(files / "plain.onnx"), str(tmp_path / "reduced.onnx")
    data = iter([{"picture": one[None]} for one in samples()])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(data, None)

    if style == "dynamic":
        quantization.quantize_dynamic(source, target)
    elif style == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(source)), target)
    else:
        kind = {"qdq": "QDQ", "operators": "QOperator"}[style]
        quantization.quantize_static(
            source, target, Reader(), quant_format=quantization.QuantFormat[kind]
        )
    found = check(files, target, data=files / "data.npz")
    assert found.verdict is Verdict.APPROXIMATE, found.differences
    assert found.precision is not None
    assert found.precision.startswith({"float16": "float16"}.get(style, "int8"))


@pytest.mark.slow
def test_quantized_inputs_and_outputs(files: Files, tmp_path: Path) -> None:
    """Numbers go through the scale and the zero point that the file states."""
    import tensorflow as tf

    path = to_litert(
        network(),
        tmp_path / "integers.tflite",
        "int8",
        inference_input_type=tf.int8,
        inference_output_type=tf.uint8,
    )
    found = check(files, path, data=files / "data.npz")
    assert found.verdict is Verdict.APPROXIMATE, found.differences
    assert "input 'picture' is int8 in the file, with a scale of" in " ".join(found.paired)
    assert check(files, path).verdict is not Verdict.DIFFERENT


def test_a_file_of_one_batch_size_gets_batches_of_it(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(str(files / "plain.onnx"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(proto, str(tmp_path / "five.onnx"))
    assert check(files, tmp_path / "five.onnx", data=files / "data.npz")


def test_what_figures_are_asked_for_decides(files: Files) -> None:
    data = files / "data.npz"
    found = check(files, "int8.tflite", data=data, min_sqnr=80)
    assert found.verdict is Verdict.APPROXIMATE
    assert not found.accepted()
    assert "less than 80" in found.refused[0]
    assert check(files, "int8.tflite", data=data, min_sqnr=5, max_changed="50%").accepted()
    with pytest.raises(SettingsError, match=r"share such as 0\.5%"):
        check(files, "int8.tflite", max_changed="half")


def test_a_gate_without_a_classifier_is_not_met(tmp_path: Path) -> None:
    given = keras.Input((6,), name="x")
    model = keras.Model(given, L.Dense(1, name="number")(given))
    model.save(tmp_path / "model.keras")
    to_onnx(model, tmp_path / "model.onnx")
    found = check(tmp_path, "model.onnx", max_changed=0)
    assert found.refused == ("no output decides for a class, so that none can be counted",)
    assert not found.accepted()


def test_what_no_figure_can_say_is_said(tmp_path: Path) -> None:
    """Where an output should be zero, its error is all there is; whole numbers have no ratio."""
    silent = fidelity.measured("zero", "litert", [np.zeros((4, 2))], [np.full((4, 2), 1e-3)])
    assert silent is not None
    assert (silent.sqnr_db, silent.percentiles.max) == (None, 1e-3)
    given = keras.Input((6,), name="x")
    real = L.Dense(4, name="real")(given)
    model = keras.Model(given, [real, keras.ops.cast(real > 0, "int32")])
    model.save(tmp_path / "model.keras")
    found = check(tmp_path, to_onnx(model, tmp_path / "model.onnx"), min_sqnr=20)
    assert found.accepted()
    assert "says nothing of" in " ".join(found.warnings)
    zero = replace(found, fidelity=(silent,))
    assert "no signal, less than 20" in bounds.held_to(zero, Bounds(min_sqnr=20.0)).refused[0]


@pytest.mark.slow
def test_samples_are_saved_and_run_again(files: Files, tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    found = check(files, "int8.tflite", save_samples=kept)
    with np.load(kept) as arrays:
        assert {"picture", "output/reference/kind", "output/litert/box"} <= set(arrays)
        count = len(arrays["picture"])
    again = check(files, "int8.tflite", data=kept)
    assert again.is_user_data
    assert (again.sample_count, found.format) == (count, "tflite")


def test_the_command(files: Files) -> None:
    words = ["verify", files / "model.keras", files / "plain.tflite", "--format", "json"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    validate(found, "verify")
    assert (found["verdict"], found["format"]) == ("equivalent", "tflite")
    words[-1] = "text"
    result = CliRunner().invoke(main, [*map(str, words), "--min-sqnr", "500"])
    assert result.exit_code == 1
    assert "not accepted: litert: output 'kind' has an SQNR of" in result.stdout


# --- what cannot be compared ---------------------------------------------------------------------


def test_other_interfaces_are_different(files: Files, tmp_path: Path) -> None:
    given = keras.Input((12, 10, 4), name="picture")
    other = keras.Model(given, L.Dense(3)(L.Flatten()(given)))
    found = check(files, to_onnx(other, tmp_path / "other.onnx"))
    assert (found.verdict, found.basis) == (Verdict.DIFFERENT, Basis.INTERFACE)
    assert any("outputs: 2 in the original, 1 in the file" in one for one in found.differences)
    assert any("the shape" in one for one in found.differences)


def test_damaged_files_are_refused_in_one_line(files: Files, tmp_path: Path) -> None:
    for name in ("plain.onnx", "plain.tflite"):
        whole = (files / name).read_bytes()
        for cut in (len(whole) // 3, len(whole) - 40):
            path = tmp_path / name
            path.write_bytes(whole[:cut])
            with pytest.raises(BnfoldError, match=r"^[^\n]+$"):
                check(files, path)


def test_weights_outside_of_the_folder_are_not_read(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(str(files / "plain.onnx"))
    tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    folder = tmp_path / "inside"
    folder.mkdir()
    for location in ("../weights.bin", str(tmp_path / "weights.bin")):
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(UnsafeModelError, match="not in its folder"):
            check(files, folder / "model.onnx")
    (folder / "linked.bin").symlink_to(tmp_path / "weights.bin")
    entry.value = "linked.bin"
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsafeModelError, match="is a link"):
        check(files, folder / "model.onnx")
    (folder / "linked.bin").unlink()
    with pytest.raises(UnreadableModelError, match="is not there"):
        check(files, folder / "model.onnx")
    (tmp_path / "weights.bin").rename(folder / "linked.bin")
    assert check(files, folder / "model.onnx")


def test_a_saved_model_that_writes_files_is_not_run(files: Files, tmp_path: Path) -> None:
    import tensorflow as tf

    class Writer(tf.Module):  # type: ignore[misc]
        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((None, 12, 10, 3), tf.float32, name="picture")]
        )
        def __call__(self, picture: Any) -> Any:
            tf.io.write_file(str(tmp_path / "canary"), "here")
            return {"kind": picture[:, 0, :, 0], "box": picture[:, 0, :4, 0]}

    module = Writer()
    tf.saved_model.save(module, str(tmp_path / "writer"), signatures=module.__call__)
    with pytest.raises(UnsafeModelError, match="'WriteFile', which is not known to compute only"):
        check(files, tmp_path / "writer")
    assert not (tmp_path / "canary").exists()


def of_table(tf: Any, folder: Path) -> None:
    keys, values = tf.constant([1], tf.int64), tf.constant([2.0])
    module = tf.Module()
    rows = tf.lookup.KeyValueTensorInitializer(keys, values)
    module.table = tf.lookup.StaticHashTable(rows, 0.0)
    save(tf, module, lambda x: module.table.lookup(tf.cast(x, tf.int64)), folder)


def of_asset(tf: Any, folder: Path) -> None:
    module = tf.Module()
    module.asset = tf.saved_model.Asset(__file__)
    save(tf, module, lambda x: x, folder)


def of_version_1(tf: Any, folder: Path) -> None:
    one = tf.compat.v1
    with tf.Graph().as_default(), one.Session() as session:
        given = one.placeholder(tf.float32, (None, 4), "x")
        one.saved_model.simple_save(session, str(folder), {"x": given}, {"y": given + 1.0})


def of_assertions(tf: Any, folder: Path) -> None:
    def checked(x: Any) -> Any:
        tf.debugging.assert_greater(tf.shape(x)[0], 0)
        return tf.debugging.check_numerics(x, "not finite")

    save(tf, tf.Module(), checked, folder)


def save(tf: Any, module: Any, compute: Callable[[Any], Any], folder: Path) -> None:
    given = [tf.TensorSpec((None, 4), tf.float32, name="x")]
    module.serve = tf.function(lambda x: {"y": compute(x)}, input_signature=given)
    tf.saved_model.save(module, str(folder), signatures=module.serve)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (of_table, "the operation '[A-Za-z]*Table[A-Za-z0-9]*', which is not known to compute"),
        (of_asset, "has an asset or a resource that is set up from a file"),
        (of_version_1, "a SavedModel of TensorFlow 1, whose graph is run to load it"),
        (of_assertions, None),
    ],
)
def test_what_a_saved_model_may_do_as_it_is_loaded(
    write: Callable[[Any, Path], None], says: str | None, tmp_path: Path
) -> None:
    import tensorflow as tf

    write(tf, tmp_path / "saved")
    if says is not None:
        with pytest.raises(UnsafeModelError, match=says):
            open_deployed(tmp_path / "saved")
    assert open_deployed(tmp_path / "saved", trust=True).outputs[0].name == "y"
    assert says is not None or open_deployed(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "says"),
    [("FlexWriteFile", "TensorFlow operation 'WriteFile'"), ("Own", "custom operation 'Own'")],
)
def test_operations_that_are_not_its_own_are_not_run(
    files: Files, name: str, says: str, tmp_path: Path
) -> None:
    """In a LiteRT file, where a converter would write them."""
    schema_of = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    content = (files / "plain.tflite").read_bytes()
    model = schema_of.ModelT.InitFromObj(schema_of.Model.GetRootAs(content, 0))
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = name
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = tmp_path / "custom.tflite"
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(UnsafeModelError, match=says):
        check(files, path)


def test_operators_that_nobody_has_are_named(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(str(files / "plain.onnx"))
    proto.graph.node[0].domain = "com.example"
    onnx.save(proto, str(tmp_path / "custom.onnx"))
    with pytest.raises(UnreadableModelError, match=r"operators of 'com\.example'"):
        check(files, tmp_path / "custom.onnx")
