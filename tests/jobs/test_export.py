"""ONNX files: what they compute in ONNX Runtime, what they call things, and when there is none."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from schemas import validate
from support import chain, keras, outputs, randomize, samples
from tiers import some

import bnfold
from bnfold.cli import main
from bnfold.jobs import export
from bnfold.reports import terminal
from bnfold.reports.text import export as export_text
from bnfold.running import onnx_file
from bnfold.running.deployed.onnx import OnnxFile
from bnfold.running.libraries import CannotRunError
from bnfold.verification import Basis, Verdict, Verification
from bnfold.verification.tolerance import Rule

L = keras.layers
Unpack = Callable[[str], Path]
DIGITS = "digits_cnn_keras315.keras"


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def report(result: Result) -> Any:
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    validate(found, "export")
    return found


def run(path: Path, inputs: Any) -> list[Any]:
    """What ONNX Runtime computes, the inputs given in order."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    flat = keras.tree.flatten(inputs)
    names = [port.name for port in session.get_inputs()]
    found: list[Any] = session.run(None, dict(zip(names, flat, strict=True)))
    return found


def ports(values: Any) -> list[tuple[str, tuple[Any, ...]]]:
    return [
        (value.name, tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim))
        for value in values
    ]


def metadata(model: Any) -> dict[str, str]:
    return {one.key.removeprefix("bnfold."): one.value for one in model.metadata_props}


def operations(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


def assert_same(path: Path, model: Any, inputs: Any) -> None:
    expected = outputs(model, inputs, training=False)
    for before, after in zip(expected, run(path, inputs), strict=True):
        scale = np.abs(before).max(initial=0)
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=max(1e-7, 1e-4 * scale))


def small() -> Any:
    """Conv and Dense, each with a norm that folds."""
    return randomize(
        chain(
            (8, 8, 3),
            L.Conv2D(4, 3, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.Flatten(),
            L.Dense(5, name="scores"),
            L.BatchNormalization(name="result"),
            name="image",
        )
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "small.keras"
    small().save(path)
    return path


# --- the file ---


def test_the_file_computes_what_the_model_does_and_says_what_made_it(
    fixture_model: Unpack, tmp_path: Path
) -> None:
    source, target = fixture_model(DIGITS), tmp_path / "digits.onnx"
    result = command("export", source, target)
    assert result.exit_code == 0
    for said in (
        "folded 4 of 4 BatchNormalization layers",
        "checked: ONNX Runtime computes what Keras computes",
        "input image (any, 8, 8, 1) float32",
        f"wrote {target} (opset 15)",
    ):
        assert said in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["digits.onnx"]
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("bnfold", bnfold.__version__)
    assert ports(model.graph.input) == [("image", ("batch", 8, 8, 1))]
    assert ports(model.graph.output) == [("dense_3", ("batch", 10))]
    assert next((one.domain, one.version) for one in model.opset_import) == ("", 15)
    facts = metadata(model)
    assert facts["version"] == bnfold.__version__
    assert facts["source"] == DIGITS
    assert facts["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert facts["source_keras_version"] == "3.15.1"
    assert facts["keras_version"] == keras.__version__
    assert facts["opset"] == "15"
    assert json.loads(facts["folded"])[0]["into"] == ["conv2d"]
    images = np.load(source.with_name("digits_cnn_keras315_keras.npz"))
    original = keras.models.load_model(source)
    assert_same(target, original, samples(original, batch=len(images.files) + 5))


def test_json_follows_its_schema(saved: Path, tmp_path: Path) -> None:
    result = command("export", saved, tmp_path / "out.onnx", "--format", "json", "--seed", 3)
    found = report(result)
    assert found["written"] is True
    assert found["inputs"] == [{"name": "image", "shape": [None, 8, 8, 3], "dtype": "float32"}]
    assert found["outputs"] == [{"name": "result", "shape": [None, 5], "dtype": "float32"}]
    assert [fold["name"] for fold in found["folded"]] == ["norm", "result"]
    check = found["check"]
    assert (check["passed"], check["library"], check["seed"]) == (True, "keras", 3)
    assert {one["runtime"] for one in check["outputs"]} == set(OnnxFile.runtimes)
    assert all(one["exercised"] and one["excess"] < 0.5 for one in check["outputs"])
    assert found["verification"] is None


def test_the_batch_is_free(saved: Path, tmp_path: Path) -> None:
    bnfold.export(saved, tmp_path / "out.onnx")
    model = keras.models.load_model(saved)
    for batch in (1, 7):
        assert_same(tmp_path / "out.onnx", model, samples(model, batch=batch))


@pytest.mark.slow
def test_a_convolutional_network_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """Also in another process, whose hashes are others; and its stages are told once."""
    here, there = tmp_path / "here.onnx", tmp_path / "there.onnx"
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "fold", str(saved), str(there)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    keras.backend.clear_session(free_memory=False)  # names inside count from 0, as they do there
    assert command("fold", saved, here).exit_code == 0
    assert here.read_bytes() == there.read_bytes()
    assert done.stderr.splitlines().count("bnfold: loading TensorFlow ...") == 1


@pytest.mark.slow
def test_without_a_fold_the_model_is_written_as_it_is(saved: Path, tmp_path: Path) -> None:
    model = randomize(
        chain((4,), L.BatchNormalization(name="norm"), L.ReLU(), L.Dense(2), name="vector")
    )
    model.save(tmp_path / "model.keras")
    result = command(
        "export", tmp_path / "model.keras", tmp_path / "out.onnx", "--no-fold", "--format", "json"
    )
    assert (report(result)["folded"], report(result)["kept"]) == ([], [])
    assert metadata(onnx.load(tmp_path / "out.onnx"))["folded"] == "[]"
    assert_same(tmp_path / "out.onnx", model, samples(model))
    kept = bnfold.export(saved, tmp_path / "kept.onnx", keep="result")
    assert kept.plan is not None
    assert [fold.batchnorm.path for fold in kept.plan.folds] == [("norm",)]


# --- names, shapes and dtypes ---


def named_in_a_dictionary() -> Any:
    image, vector = keras.Input((6, 6, 2), name="image"), keras.Input((3,), name="vector")
    x = L.GlobalAveragePooling2D()(L.BatchNormalization()(L.Conv2D(3, 3)(image)))
    y = L.Dense(3, name="left")(vector)
    joined = L.Add(name="joined")([x, y])
    return keras.Model({"b": vector, "a": image}, {"z": joined, "m": L.Dense(2, name="right")(y)})


def one_tensor_twice_and_an_input() -> Any:
    vector = keras.Input((4,), name="vector")
    x = L.BatchNormalization(name="norm")(L.Dense(3)(vector))
    return keras.Model(vector, [x, x, vector])


def nested_with_two_outputs() -> Any:
    inner_input = keras.Input((4,))
    ends = [L.Dense(3)(inner_input), L.BatchNormalization()(L.Dense(2)(inner_input))]
    inner = keras.Model(inner_input, ends, name="inner")
    vector = keras.Input((4,), name="vector")
    return keras.Model(vector, inner(vector))


def called_like_what_the_exporter_calls_things() -> Any:
    first, second = (keras.Input((5, 5, 3), name=name) for name in ("input_1", "input_0"))
    x = L.GlobalAveragePooling2D()(L.Conv2D(3, 2)(L.Subtract()([first, second])))
    return keras.Model([first, second], L.ReLU(name="constant")(x))


def bare_sequential() -> Any:
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            keras.Sequential([L.Conv2D(3, 3), L.BatchNormalization()]),
            L.Flatten(name="flat"),
        ]
    )


def batch_that_is_divided() -> Any:
    vector = keras.Input((8,), name="vector")
    return keras.Model(vector, keras.ops.reshape(L.Dense(8)(vector), (-1, 4)))


def several_dtypes() -> Any:
    ids, vector = keras.Input((5,), dtype="int32", name="ids"), keras.Input((3,), name="vector")
    x = L.GlobalAveragePooling1D(name="pooled")(L.Embedding(7, 3)(ids))
    half = L.Dense(2, dtype="mixed_float16", name="half")(vector)
    double = L.BatchNormalization(dtype="float64", name="double")(L.Dense(2)(vector))
    return keras.Model([ids, vector], [x, half, double, keras.ops.greater(vector, 0.0)])


def fixed_batch() -> Any:
    return chain((4,), L.Dense(3), L.BatchNormalization(name="norm"), batch_size=3, name="vector")


NAMES: dict[Callable[[], Any], tuple[Sequence[Any], Sequence[Any]]] = {
    named_in_a_dictionary: (
        [("image", ("batch", 6, 6, 2)), ("vector", ("batch", 3))],
        [("right", ("batch", 2)), ("joined", ("batch", 3))],
    ),
    one_tensor_twice_and_an_input: (
        [("vector", ("batch", 4))],
        [("norm", ("batch", 3)), ("norm_1", ("batch", 3)), ("vector_1", ("batch", 4))],
    ),
    nested_with_two_outputs: (
        [("vector", ("batch", 4))],
        [("inner", ("batch", 3)), ("inner_1", ("batch", 2))],
    ),
    called_like_what_the_exporter_calls_things: (
        [("input_1", ("batch", 5, 5, 3)), ("input_0", ("batch", 5, 5, 3))],
        [("constant", ("batch", 3))],
    ),
    bare_sequential: ([("image", ("batch", 6, 6, 2))], [("flat", ("batch", 48))]),
    batch_that_is_divided: (
        [("vector", ("batch", 8))],
        [("reshape", ("reshape_axis_0", 4))],
    ),
    several_dtypes: (
        [("ids", ("batch", 5)), ("vector", ("batch", 3))],
        [
            ("pooled", ("batch", 3)),
            ("half", ("batch", 2)),
            ("double", ("batch", 2)),
            ("greater", ("batch", 3)),
        ],
    ),
    fixed_batch: ([("vector", (3, 4))], [("norm", (3, 3))]),
}


# Each is exported and verified, so the default run takes every second one.
@pytest.mark.parametrize("build", some(NAMES), ids=lambda build: str(build.__name__))
@pytest.mark.few(1)
def test_names_order_and_shapes_are_the_models(build: Callable[[], Any], tmp_path: Path) -> None:
    keras.backend.clear_session()  # for the names that Keras numbers
    model = randomize(build())
    target = tmp_path / "out.onnx"
    found = bnfold.export(model, target)
    assert found.written
    written = onnx.load(target)
    assert (ports(written.graph.input), ports(written.graph.output)) == NAMES[build]
    inputs = samples(model)
    assert_same(target, model, inputs)
    flat = keras.tree.flatten(model(inputs, training=False))
    dtypes = [keras.backend.standardize_dtype(value.dtype) for value in flat]
    assert [str(value.dtype) for value in run(target, inputs)] == dtypes
    assert [port.dtype for port in found.outputs] == dtypes


@pytest.mark.slow
def test_other_free_sizes_stay_free(tmp_path: Path) -> None:
    model = randomize(
        chain(
            (None, None, 3),
            L.Conv2D(4, 3, padding="same"),
            L.BatchNormalization(),
            L.UpSampling2D(2, name="up"),
            name="image",
        )
    )
    found = bnfold.export(model, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert ports(written.graph.input) == [("image", ("batch", "image_axis_1", "image_axis_2", 3))]
    assert ports(written.graph.output) == [("up", ("batch", "up_axis_1", "up_axis_2", 4))]
    for shape in ((1, 5, 9, 3), (3, 8, 4, 3)):
        images = np.random.default_rng(0).normal(size=shape).astype("float32")
        assert_same(tmp_path / "out.onnx", model, images)
    assert found.check is not None
    assert found.check.sample_kinds[-1] == "standard normal, of another size"


# --- layers that need more than a plain conversion ---

DIFFICULT = {
    "grouped": lambda: chain((6, 6, 4), L.Conv2D(4, 3, groups=2), L.BatchNormalization()),
    "gelu": lambda: chain((6,), L.Dense(5, "gelu"), L.Dense(3)),
    "gru": lambda: chain((None, 3), L.BatchNormalization(), L.GRU(4)),
    "saturated": lambda: chain((4,), L.Dense(3, "sigmoid")),
    "underflowing": lambda: chain((4,), L.Rescaling(200.0), L.Dense(5), L.Softmax()),
    "a scalar": lambda: keras.Model(vector := keras.Input((4,)), keras.ops.sum(L.Dense(3)(vector))),
}


@pytest.mark.parametrize("name", some(DIFFICULT))
@pytest.mark.few(1)
def test_difficult_layers(name: str, tmp_path: Path) -> None:
    model = randomize(DIFFICULT[name]())
    if name == "saturated":
        model.layers[-1].bias.assign([-40.0, -60.0, -90.0])
    assert bnfold.export(model, tmp_path / "out.onnx").written
    assert_same(tmp_path / "out.onnx", model, samples(model))


@pytest.mark.parametrize("name", ["branches_keras315.keras", "digits_cnn_keras315.h5"])
@pytest.mark.few(1)
def test_files_of_all_kinds(name: str, fixture_model: Unpack, tmp_path: Path) -> None:
    source, target = fixture_model(name), tmp_path / "out.onnx"
    assert bnfold.export(source, target).written
    original = keras.models.load_model(source, compile=False)
    assert_same(target, original, samples(original))
    assert metadata(onnx.load(target))["source"] == name


def test_what_is_odd_about_the_data_is_said(tmp_path: Path) -> None:
    source, data = tmp_path / "fixed.keras", tmp_path / "data.npy"
    chain((5,), L.Dense(2), batch_size=2).save(source)
    np.save(data, np.random.default_rng(0).normal(size=(3, 5)))
    found = bnfold.export(source, tmp_path / "out.onnx", data=data)
    assert found.check is not None
    assert found.check.warnings == ("data.npy: the first 2 of 3 samples were used",)


@pytest.mark.slow
def test_a_file_that_only_keras_2_reads(fixture_model: Unpack, tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    source, target = fixture_model("branches_keras215.keras"), tmp_path / "out.onnx"
    found = bnfold.export(source, target)
    assert found.check is not None
    assert (found.written, found.check.library) == (True, "tf_keras")
    assert metadata(onnx.load(target))["tf_keras_version"] == tf_keras.__version__
    original = tf_keras.models.load_model(source, compile=False)
    generator = np.random.default_rng(0)
    shapes = [tuple(tensor.shape)[1:] for tensor in original.inputs]
    inputs = [generator.normal(size=(3, *shape)).astype("float32") for shape in shapes]
    expected = keras.tree.flatten(original(inputs, training=False))
    for before, after in zip(expected, run(target, inputs), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)


def test_a_model_directory(tmp_path: Path) -> None:
    model = small()
    model.save(tmp_path / "model", zipped=False)
    assert bnfold.export(tmp_path / "model", tmp_path / "out.onnx").written
    assert_same(tmp_path / "out.onnx", model, samples(model))
    with pytest.raises(bnfold.OutputError, match="inside"):
        bnfold.export(tmp_path / "model", tmp_path / "model" / "out.onnx")


# --- opsets ---


@pytest.mark.parametrize("opset", [8, pytest.param(13, marks=pytest.mark.slow), 18])
@pytest.mark.few(1)
def test_opset(opset: int, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    result = command("export", saved, target, "--opset", opset, "--format", "json")
    assert report(result)["opset"] == opset
    written = onnx.load(target)
    assert next(one.version for one in written.opset_import if not one.domain) == opset
    assert [name for name, _ in ports(written.graph.input)] == ["image"]
    model = keras.models.load_model(saved)
    assert_same(target, model, samples(model))


@pytest.mark.parametrize("opset", [6, 19, 0])
def test_an_opset_that_cannot_be_written(opset: int, saved: Path, tmp_path: Path) -> None:
    result = command("export", saved, tmp_path / "out.onnx", "--opset", opset)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"bnfold: opset {opset}: tf2onnx ")
    assert result.stderr.endswith(" writes 7 to 18\n")
    assert not list(tmp_path.iterdir())


# --- fold IN OUT.onnx ---


@pytest.mark.slow
def test_fold_to_onnx_proves_the_fold_too(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    result = command("fold", saved, target, "--strict", "--format", "json")
    found = report(result)
    assert result.exit_code == 0
    assert found["verification"]["verdict"] == "equivalent"
    assert found["check"]["passed"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    model = keras.models.load_model(saved)
    assert_same(target, model, samples(model))


def test_fold_to_onnx_without_the_proof_checks_nothing(saved: Path, tmp_path: Path) -> None:
    result = command("fold", saved, tmp_path / "OUT.ONNX", "--no-verify", "--format", "json")
    assert (report(result)["verification"], report(result)["check"]) == (None, None)
    assert report(result)["targets"][0]["written"] is True
    assert onnx.load(tmp_path / "OUT.ONNX").producer_name == "bnfold"


def test_fold_to_onnx_makes_depthwise_convolutions_of_leftovers(tmp_path: Path) -> None:
    model = randomize(chain((6, 6, 3), L.BatchNormalization(name="norm"), L.ReLU()))
    model.save(tmp_path / "model.keras")
    words = ["--standalone", "depthwise", "--no-verify", "--format", "json"]
    result = command("fold", tmp_path / "model.keras", tmp_path / "out.onnx", *words)
    assert report(result)["replaced"] == ["norm"]
    assert "Conv" in operations(onnx.load(tmp_path / "out.onnx"))
    assert_same(tmp_path / "out.onnx", model, samples(model))


def test_a_refused_fold_is_not_converted(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Verification(
        Verdict.DIFFERENT, Basis.BOTH, ("it is off",), (), 0, "keras", Rule().text()
    )
    monkeypatch.setattr("bnfold.jobs.verify.verify", lambda *_, **__: wrong)
    result = command("fold", saved, tmp_path / "out.onnx", "--format", "json")
    assert result.exit_code == 1
    assert (report(result)["written"], report(result)["check"]) == (False, None)
    said = command("fold", saved, tmp_path / "out.onnx").stdout
    assert said.startswith(f"{tmp_path / 'out.onnx'} was not written: it would not compute")
    assert "folded " not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "said"), [(0.0, "0%"), (0.004, "under 1%"), (0.006, "1%"), (0.5, "50%")]
)
@pytest.mark.few(1)
def test_a_small_share_of_the_tolerance_is_not_none(
    share: float, said: str, saved: Path, tmp_path: Path
) -> None:
    made = bnfold.export(saved, tmp_path / "out.onnx", fold=False)
    assert made.check is not None
    comparisons = tuple(replace(one, excess=share) for one in made.check.comparisons)
    (target,) = made.targets
    target = replace(target, check=replace(made.check, comparisons=comparisons))
    made = replace(made, targets=(target,))
    text = terminal.plain(lambda _: export_text.export(made))
    assert f", {said} of the tolerance)" in text


# --- refusals ---


def test_a_wrong_file_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    convert = onnx_file.convert

    def wrongly(*arguments: Any, **options: Any) -> Any:
        proto = convert(*arguments, **options)
        largest = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
        weights = onnx.numpy_helper.to_array(largest) * np.float32(1 + 1e-4)
        largest.CopyFrom(onnx.numpy_helper.from_array(weights, largest.name))
        return proto

    monkeypatch.setattr(onnx_file, "convert", wrongly)
    result = command("export", saved, target, "--force")
    assert result.exit_code == 1
    assert "ONNX Runtime does not compute what Keras computes" in result.stdout
    assert "output 'result' is off by" in result.stdout
    assert f"{target} was not written" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert target.read_bytes() == b"precious"


def test_a_final_softmax_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand classes, all of them near 1/1000: an error of 1e-4 before it is 1e-7 behind it."""
    model = chain((8,), L.Dense(1000, kernel_initializer="glorot_normal"), L.Softmax())
    convert = onnx_file.convert

    def wrongly(*arguments: Any, **options: Any) -> Any:
        proto = convert(*arguments, **options)
        for one in proto.graph.initializer:
            if len(one.dims) == 2:
                kernel = onnx.numpy_helper.to_array(one) + np.float32(1e-5) * (np.arange(1000) == 7)
                one.CopyFrom(onnx.numpy_helper.from_array(kernel.astype("float32"), one.name))
        return proto

    monkeypatch.setattr(onnx_file, "convert", wrongly)
    assert not bnfold.export(model, tmp_path / "out.onnx").written


def test_a_conversion_that_fails_is_followed_by_another(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = onnx_file.conversions

    def broken() -> Any:
        raise CannotRunError("not this way")

    monkeypatch.setattr(
        export.onnx_file, "conversions", lambda *given: [broken, *list(ways(*given))[1:]]
    )
    assert bnfold.export(saved, tmp_path / "out.onnx").written
    monkeypatch.setattr(export.onnx_file, "conversions", lambda *_: [broken])
    with pytest.raises(bnfold.ExportImpossibleError, match=r"cannot be converted.*not this way"):
        bnfold.export(saved, tmp_path / "none.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize("way", [0, 1, 2])
@pytest.mark.few(1)
def test_every_way_to_convert_gives_the_names(way: int, tmp_path: Path) -> None:
    ways = onnx_file.conversions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.onnx_file, "conversions", lambda *given: [list(ways(*given))[way]])
        keras.backend.clear_session()
        assert bnfold.export(randomize(named_in_a_dictionary()), tmp_path / "out.onnx").written
    written = onnx.load(tmp_path / "out.onnx")
    assert (ports(written.graph.input), ports(written.graph.output)) == NAMES[named_in_a_dictionary]


@pytest.mark.slow
def test_what_the_exporter_gets_wrong_by_itself_is_refused(tmp_path: Path) -> None:
    model = randomize(chain((None, 6), L.TimeDistributed(L.Dense(3, name="dense"))))
    found = bnfold.export(model, tmp_path / "out.onnx")
    assert not found.written
    assert found.check is not None
    assert "shape (1, 32, 3) became (1, 1, 3)" in found.check.differences[0]
    assert not list(tmp_path.iterdir())


def test_a_model_without_an_onnx_form_is_one_line(tmp_path: Path) -> None:
    model = chain((6, 6, 3), L.UpSampling2D(2, interpolation="lanczos3"))
    model.save(tmp_path / "model.keras")
    result = command("export", tmp_path / "model.keras", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        f"bnfold: {tmp_path / 'model.keras'}: cannot be converted to ONNX (opset 15): tf2onnx"
        " has no translation for the TensorFlow operation ScaleAndTranslate"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["small.keras", "out.keras"], "must end in .onnx or .tflite, or in / or .savedmodel"),
        (["small.keras", "there.onnx"], "exists already; use --force to replace it"),
        (["small.keras", "none/out.onnx"], "none does not exist"),
        (["none.keras", "out.onnx"], "no such file"),
        (["small.keras", "out.onnx", "--no-fold", "--keep", "x"], "--no-fold folds nothing"),
        (["small.keras", "out.onnx", "--opset", "new"], "not a valid integer"),
        (["small.keras", "out.onnx", "--strict"], "--strict"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], says: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.keras").write_bytes(saved.read_bytes())
    (tmp_path / "there.onnx").write_bytes(b"precious")
    result = command("export", *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.keras", "there.onnx"]


def test_code_in_a_model_needs_trust(tmp_path: Path) -> None:
    model = chain((4,), L.Lambda(lambda x: x * 2.0), L.Dense(2))
    model.save(tmp_path / "model.keras")
    words = ["export", tmp_path / "model.keras", tmp_path / "out.onnx"]
    refused = command(*words)
    assert refused.exit_code == 2
    assert "--trust" in refused.stderr
    assert "loading TensorFlow" not in refused.stderr
    assert command(*words, "--trust").exit_code == 0
    assert_same(tmp_path / "out.onnx", model, samples(model))


def test_a_subclassed_model_is_refused(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("export_tests")
    class Own(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.dense = L.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    model = Own()
    model(np.zeros((1, 3), "float32"))
    model.save(tmp_path / "own.keras")
    result = command("export", tmp_path / "own.keras", tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert "a subclassed model" in result.stderr


def test_a_crash_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        assert list(tmp_path.glob(".bnfold-*/folded.keras"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.onnx_file, "write_onnx", full)
    result = command("export", saved, tmp_path / "out.onnx")
    assert result.exit_code == 2
    assert result.stderr.endswith("out.onnx: No space left on device\n")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_tensorflow_cannot_name_is_a_clear_refusal(tmp_path: Path) -> None:
    model = chain((4,), L.Dense(2, name="two words"))
    with pytest.raises(bnfold.ExportImpossibleError, match="'two words' is not a valid"):
        bnfold.export(model, tmp_path / "out.onnx")


# --- Python ---


class Halving(keras.layers.Layer):
    """A class that nobody registered."""

    def call(self, inputs: Any) -> Any:
        return inputs / 2


def test_a_live_model_has_a_name_and_no_file(tmp_path: Path) -> None:
    vector = keras.Input((4,), name="vector")
    x = L.BatchNormalization()(L.Dense(3)(vector))
    model = randomize(keras.Model(vector, Halving(name="half")(x), name="living"))
    found = bnfold.export(model, tmp_path / "out.onnx", opset=17)
    assert (found.written, found.source, found.opset) == (True, Path("living"), 17)
    assert found.plan is not None
    assert len(found.plan.folds) == 1
    written = onnx.load(tmp_path / "out.onnx")
    assert written.graph.name == "living"
    assert metadata(written)["source"] == "living"
    assert "source_sha256" not in metadata(written)
    assert_same(tmp_path / "out.onnx", model, samples(model))
    with pytest.raises(bnfold.OutputError, match="force=True"):
        bnfold.export(model, tmp_path / "out.onnx")
    assert bnfold.export(model, tmp_path / "out.onnx", fold=False, force=True).plan is None
