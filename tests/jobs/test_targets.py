"""Exports to several formats at once: LiteRT, SavedModel and ONNX, each run by its own runtime."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from click.testing import CliRunner, Result
from schemas import validate
from support import chain, keras, outputs, randomize
from tensorflow.core.protobuf import fingerprint_pb2
from tensorflow.lite.python import schema_py_generated

import bnfold
from bnfold.cli import main
from bnfold.jobs import export, targets
from bnfold.jobs.export import ExportReport, TargetReport
from bnfold.running import litert_file, saved_model_file
from bnfold.running.libraries import CannotRunError
from bnfold.running.ports import Interface, Port
from bnfold.verification import Verdict

L = keras.layers


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def two_of_each() -> Any:
    """Inputs and outputs of different shapes, whose names are not in the order of the alphabet."""
    image, vector = keras.Input((12, 10, 3), name="the-image"), keras.Input((4,), name="a_vector")
    x = L.BatchNormalization(name="norm")(L.Conv2D(5, 3, name="conv")(image))
    x = L.GlobalMaxPooling2D()(L.ReLU()(x))
    y = L.BatchNormalization(name="vector_norm")(L.Dense(6, name="dense")(vector))
    both = L.Concatenate()([x, y])
    scores = L.Dense(3, activation="softmax", name="scores")(both)
    return randomize(keras.Model([image, vector], [scores, L.Dense(2, name="place")(both)]))


def drawn(count: int, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "the-image": generator.normal(size=(count, 12, 10, 3)).astype("float32"),
        "a_vector": generator.normal(size=(count, 4)).astype("float32"),
    }


def close(found: dict[str, Any], model: Any, samples: dict[str, Any], *, within: float) -> None:
    expected = outputs(model, list(samples.values()), training=False)
    for name, wanted in zip(("scores", "place"), expected, strict=True):
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, atol=within * np.abs(wanted).max(), rtol=0)


def lite(path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    interpreter = Interpreter(str(path))
    runner = interpreter.get_signature_runner("serving_default")

    def run(samples: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = runner(**samples)
        return found

    return run


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    return two_of_each()


@pytest.fixture(scope="module")
def source(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("source") / "two.keras"
    model.save(path)
    return path


NAMES = ("m.onnx", "m.tflite", "half.tflite", "small.tflite")


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport, int]:
    """A folder with every target, the report, and how often the model was run for them."""
    folder: Path = tmp_path_factory.mktemp("made")
    expect, runs = export.expect, []

    def counted(*given: Any, **options: Any) -> Any:
        runs.append(1)
        return expect(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "expect", counted)
        found = bnfold.export(
            source,
            [*(folder / name for name in NAMES), f"{folder / 'serving'}/"],
            precision=["float32", "float16", "int8"],
            data=drawn(40),
            in_process=True,
        )
    return folder, found, len(runs)


def verdict_of(told: TargetReport) -> Verdict | None:
    return None if told.check is None else told.check.verdict


def test_a_recurrent_model_with_a_free_batch_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteRT's converter says this on three lines, of its own operations."""
    free = (Port("s", (None, 9, 6), "float32"),)

    def fails(*_: object) -> bytes:
        raise RuntimeError("<unknown>:0: error: TensorListReserve: 'tf.TensorListReserve' op")

    monkeypatch.setattr(litert_file, "_converted", fails)
    loaded: Any = None
    fixed = (replace(free[0], shape=(1, 9, 6)),)
    for ports, says in ((free, "batch_size=1"), (fixed, "unknown")):
        monkeypatch.setattr(litert_file, "write_saved_model", lambda *_, _now=ports, **__: _now)
        with pytest.raises(CannotRunError, match=says):
            litert_file.write_litert(loaded, tmp_path / "out.tflite", Interface((), (), "", ""))


def test_all_are_written_for_one_run_of_the_model(made: tuple[Path, ExportReport, int]) -> None:
    folder, found, runs = made
    assert found
    assert runs == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, "serving"])
    said = [(one.format, one.precision, verdict_of(one)) for one in found.targets]
    assert said == [
        ("onnx", "float32", Verdict.EQUIVALENT),
        ("tflite", "float32", Verdict.EQUIVALENT),
        ("tflite", "float16", Verdict.APPROXIMATE),
        ("tflite", "int8", Verdict.APPROXIMATE),
        ("saved_model", "float32", Verdict.EQUIVALENT),
    ]
    validate(json.loads(json.dumps(found.to_dict(), allow_nan=False)), "export")
    for one in found.targets:
        assert [port.name for port in one.inputs] == ["the-image", "a_vector"]
        assert [port.name for port in one.outputs] == ["scores", "place"]
        assert [port.shape for port in one.outputs] == [(None, 3), (None, 2)]
    assert [one.calibration_samples for one in found.targets] == [None, None, None, 40, None]
    assert (found.target, found.check) == (folder / "m.onnx", found.targets[0].check)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize(
    ("name", "within"), [("m.tflite", 1e-5), ("half.tflite", 0.01), ("small.tflite", 0.15)]
)
def test_litert_calls_it_by_the_names_of_the_model(
    name: str, within: float, batch: int, made: tuple[Path, ExportReport, int], model: Any
) -> None:
    samples = drawn(batch, seed=1)
    close(lite(made[0] / name)(samples), model, samples, within=within)


def test_int8_has_weights_by_channel_and_floats_outside(
    made: tuple[Path, ExportReport, int],
) -> None:
    interpreter = Interpreter(str(made[0] / "small.tflite"))
    ends = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    assert {one["dtype"] for one in ends} == {np.float32}
    assert all(one["shape_signature"][0] == -1 for one in ends)
    kernels = [
        one for one in interpreter.get_tensor_details() if list(one["shape"]) == [5, 3, 3, 3]
    ]
    assert [one["dtype"] for one in kernels] == [np.int8]
    assert len(kernels[0]["quantization_parameters"]["scales"]) == 5


def metadata(path: Path) -> Any:
    """What a LiteRT file has under "bnfold" in its metadata."""
    model = schema_py_generated.Model.GetRootAs(path.read_bytes(), 0)
    (entry,) = (
        one
        for one in map(model.Metadata, range(model.MetadataLength()))
        if one.Name() == litert_file.METADATA.encode()
    )
    return json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())


def test_litert_files_say_what_made_them(made: tuple[Path, ExportReport, int]) -> None:
    found = metadata(made[0] / "half.tflite")
    assert (found["version"], found["precision"]) == (bnfold.__version__, "float16")
    assert [one["name"] for one in found["folded"]] == ["norm", "vector_norm"]
    assert found["source"] == "two.keras"
    assert "tf2onnx_version" not in found


def test_tensorflow_serves_the_folder(made: tuple[Path, ExportReport, int], model: Any) -> None:
    loaded = tf.saved_model.load(str(made[0] / "serving"))
    serve = loaded.signatures["serving_default"]
    for batch in (1, 7):
        samples = drawn(batch, seed=1)
        found = serve(**{name: tf.constant(one) for name, one in samples.items()})
        close({name: one.numpy() for name, one in found.items()}, model, samples, within=1e-5)
    record = json.loads((made[0] / "serving" / "assets.extra" / "bnfold.json").read_text())
    assert record["version"] == bnfold.__version__
    assert [one["name"] for one in record["folded"]] == ["norm", "vector_norm"]


def test_the_report_says_what_runtimes_leave(made: tuple[Path, ExportReport, int]) -> None:
    for one in made[1].targets[:4]:
        assert one.left_behind is not None
        assert one.left_behind.original is not None
        assert [found.name for found in one.left_behind.original] == ["norm", "vector_norm"]
        assert one.left_behind.exported == ()
    assert made[1].targets[4].left_behind is None


def test_litert_files_have_the_same_bytes_each_time(source: Path, tmp_path: Path) -> None:
    for name in ("one.tflite", "two.tflite"):
        bnfold.export(source, tmp_path / name, verify=False, in_process=True)
    assert (tmp_path / "one.tflite").read_bytes() == (tmp_path / "two.tflite").read_bytes()


def test_a_fingerprint_tells_what_is_in_a_saved_model(
    made: tuple[Path, ExportReport, int], tmp_path: Path
) -> None:
    """TensorFlow names each one at random, so that the same model would be another folder."""
    place = tmp_path / "fingerprint.pb"
    written = (made[0] / "serving" / "fingerprint.pb").read_bytes()
    found = fingerprint_pb2.FingerprintDef.FromString(written)
    found.uuid = "1234"
    place.write_bytes(found.SerializeToString())
    saved_model_file._settle_fingerprint(place)
    assert place.read_bytes() == written


# --- what is wrong is refused ---


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what is saved for LiteRT and TensorFlow compute with kernels that are a little off."""
    traced = saved_model_file._traced

    def wrongly(loaded: Any, *given: Any) -> Any:
        shown = loaded.shown
        last = shown.get_layer("place").kernel
        last.assign(np.asarray(last) * (1 + 2e-3 * (np.arange(2) == 1)))
        return traced(loaded, *given)

    monkeypatch.setattr(saved_model_file, "_traced", wrongly)


@pytest.mark.usefixtures("spoilt")
@pytest.mark.parametrize("name", ["out.tflite", "out/"])
@pytest.mark.few(1)
def test_a_wrong_conversion_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    result = command("export", source, f"{tmp_path}/{name}")
    assert result.exit_code == 1
    assert "does not compute what Keras computes" in result.stdout
    assert "output 'place' is off by" in result.stdout
    assert "'scores' is off" not in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_swapped_output_is_refused_at_any_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = keras.Input((4,), name="vector")
    x = L.BatchNormalization()(L.Dense(6)(vector))
    one = randomize(keras.Model(vector, [L.Dense(2, name="a")(x), L.Dense(2, name="b")(x)]))
    ports = saved_model_file.named_ports
    monkeypatch.setattr(
        saved_model_file, "named_ports", lambda given: (ports(given)[0], ports(given)[1][::-1])
    )
    found = bnfold.export(
        one, tmp_path / "out.tflite", precision=precision, data=drawn(30)["a_vector"]
    )
    assert found.check is not None
    assert (found.written, found.check.verdict) == (False, Verdict.DIFFERENT)


@pytest.mark.usefixtures("spoilt")
def test_where_one_is_wrong_none_appears(source: Path, tmp_path: Path) -> None:
    result = command("export", source, tmp_path / "right.onnx", tmp_path / "wrong.tflite")
    assert result.exit_code == 1
    assert f"{tmp_path / 'wrong.tflite'} was not written: it would not compute" in result.stdout
    assert f"{tmp_path / 'right.onnx'}: not written either" in result.stdout
    assert not list(tmp_path.iterdir())


def test_a_batch_that_is_not_free_any_more_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = saved_model_file._traced

    def fixed(loaded: Any, *given: Any) -> Any:
        concrete = traced(loaded, *given)
        names = concrete._arg_keywords
        specs = [
            tf.TensorSpec([2, *tensor.shape[1:]], tensor.dtype, name=name)
            for name, tensor in zip(names, concrete.inputs, strict=False)
        ]
        return tf.function(lambda *fed: concrete(*fed)).get_concrete_function(*specs)

    monkeypatch.setattr(saved_model_file, "_traced", fixed)
    with pytest.raises(bnfold.ExportImpossibleError, match=r"the shape \(any, .* became \(2, "):
        bnfold.export(source, tmp_path / "out.tflite", in_process=True)


def test_the_process_that_runs_a_saved_model_must_not_have_keras(tmp_path: Path) -> None:
    """Here it is imported, so here nothing would be proved."""
    interface: Any = None
    assert targets.run_alone(tmp_path, interface, []) == "Keras is imported already"


# --- without verification ---


def test_what_is_not_verified_is_called_so(
    source: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("the model was run")

    monkeypatch.setattr(export, "expect", refuse)
    result = command(
        "export", source, tmp_path / "m.onnx", f"{tmp_path / 'serving'}/", "--no-verify"
    )
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'm.onnx'} (opset 15, not verified)" in result.stdout
    assert f"wrote {tmp_path / 'serving'} (SavedModel, not verified)" in result.stdout
    assert "checked" not in result.stdout
    short = command("fold", source, tmp_path / "m.tflite", "--no-verify")
    assert f"wrote {tmp_path / 'm.tflite'} (LiteRT float32, not verified)" in short.stdout
    samples = drawn(3)
    close(lite(tmp_path / "m.tflite")(samples), model, samples, within=1e-5)
    contradiction = command("export", source, tmp_path / "n.onnx", "--no-verify", "--rtol", "1")
    assert "--no-verify contradicts --rtol" in contradiction.stderr


# --- names of places ---


def test_fold_is_short_for_an_export(source: Path, tmp_path: Path) -> None:
    for name in ("m.tflite", "serving/", "other.savedmodel"):
        result = command("fold", source, f"{tmp_path}/{name}", "--no-verify")
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "serving" / "saved_model.pb").is_file()
    assert (tmp_path / "other.savedmodel" / "saved_model.pb").is_file()


def test_a_folder_of_keras_folds_to_one_of_keras(model: Any, tmp_path: Path) -> None:
    """Whatever slash a shell has added to the names."""
    model.save(tmp_path / "unzipped", zipped=False)
    result = command("fold", f"{tmp_path}/unzipped/", f"{tmp_path}/folded/", "--no-verify")
    assert result.exit_code == 0
    assert (tmp_path / "folded" / "config.json").is_file()
    exported = command("fold", f"{tmp_path}/unzipped", f"{tmp_path}/a.savedmodel/", "--no-verify")
    assert exported.exit_code == 0
    assert (tmp_path / "a.savedmodel" / "saved_model.pb").is_file()


def test_a_saved_model_is_replaced_and_nothing_else(source: Path, tmp_path: Path) -> None:
    place, other = tmp_path / "serving", tmp_path / "mine"
    assert bnfold.export(source, f"{place}/", verify=False, in_process=True)
    (place / "old").write_text("x")
    with pytest.raises(bnfold.OutputError, match="exists already"):
        bnfold.export(source, place, verify=False, in_process=True)
    assert bnfold.export(source, place, verify=False, force=True, in_process=True)
    assert not (place / "old").exists()
    other.mkdir()
    (other / "precious").write_text("x")
    with pytest.raises(bnfold.OutputError, match="something else than a model"):
        bnfold.export(source, f"{other}/", verify=False, force=True, in_process=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "serving"]


HARD = {"class": ["class", "1x"], "collision": ["a-b", "a_b"], "self": ["self", "B"]}


@pytest.mark.parametrize("names", HARD.values(), ids=HARD)
@pytest.mark.few(1)
def test_names_that_python_has_no_parameters_for(names: list[str], tmp_path: Path) -> None:
    """LiteRT has them all the same; a SavedModel numbers its inputs, and says so."""
    first, second = (
        keras.Input((size,), name=name) for size, name in zip((3, 4), names, strict=True)
    )
    both = L.Concatenate()([L.Dense(2)(first), L.Dense(3)(second)])
    one = randomize(keras.Model([first, second], L.BatchNormalization(name="out")(both)))
    found = bnfold.export(one, [tmp_path / "m.tflite", f"{tmp_path}/sm/"], in_process=True)
    assert found
    lite_, saved = ([port.name for port in told.inputs] for told in found.targets)
    assert (lite_, saved) == (names, ["input_0", "input_1"])
    signatures = Interpreter(str(tmp_path / "m.tflite")).get_signature_list()
    assert sorted(signatures["serving_default"]["inputs"]) == sorted(names)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["m.keras"], "must end in .onnx or .tflite, or in / or .savedmodel"),
        (["a.onnx", "./a.onnx"], "is named twice"),
        (["there/", "there/a.onnx"], "is inside of there"),
        (["a.onnx", "--precision", "float16"], "for a LiteRT file (.tflite) only"),
        (["a.tflite", "--precision", "int8"], "int8 needs --data"),
        (["a.tflite", "--opset", "13"], "no target ends in .onnx"),
        (["a.tflite", "b.tflite", "c.tflite", *["--precision", "float16"] * 2], "2 precisions"),
        (["x.keras/"], "cannot have a model file's suffix"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], says: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    result = command("export", source, *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_what_litert_has_no_operations_for_is_one_line(tmp_path: Path) -> None:
    one = randomize(chain((None, 3), L.GRU(4)))
    with pytest.raises(bnfold.ExportImpossibleError, match="cannot be converted to LiteRT: "):
        bnfold.export(one, tmp_path / "out.tflite", in_process=True)
    assert not list(tmp_path.iterdir())
