"""`recalibrate` against the same estimates made one by one in plain Keras and numpy.

The expected statistics come from functional models of Keras that end where a layer's input is, run
over all data at once, one for each layer in order, with the statistics of the layers in front
assigned before.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from observed_models import (
    CASES,
    GENERATOR,
    Case,
    branches,
    close,
    expected,
    half_precision,
    nested,
    norm,
    save,
    two_dense_layers,
    value,
)
from schemas import validate
from support import chain, keras, open_weights, outputs, randomize
from tiers import some

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError, VerificationFailedError
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container.model_file import open_model
from bnfold.model.container.record import Recalibration, recalibration
from bnfold.model.rounding import rounded
from bnfold.observation.observe import DataRun

layers = keras.layers


def statistics(path: Path) -> dict[str, tuple[Any, Any]]:
    """Mean and variance of every layer, as the file has them."""
    found = {}
    for decision in bnfold.inspect(path).plan.decisions:
        vectors = decision.batchnorm.vectors
        assert vectors is not None
        name = "/".join(decision.batchnorm.path)
        found[name] = (vectors["moving_mean"], vectors["moving_variance"])
    return found


# Every second case by default: each is recalibrated and run again, layer by layer.
@pytest.mark.parametrize("make", some(CASES), ids=lambda make: make.__name__)
@pytest.mark.few(1)
def test_every_layer_gets_the_statistics_of_its_corrected_input(
    make: Callable[[], Case], tmp_path: Path
) -> None:
    case = make()
    randomize(case.model)
    source, data = save(case, tmp_path)
    report = bnfold.recalibrate(
        source,
        tmp_path / "out.keras",
        data=data,
        batch=16,
        trust=True,
        allow_other_scale=True,  # the statistics in the file are random
    )
    assert report.written
    names = {"/".join(change.batchnorm.path) for change in report.recalibrated}
    wanted = expected(case)
    assert names == set(wanted)
    before, after = statistics(source), statistics(tmp_path / "out.keras")
    allowed = 2e-3 if make is half_precision else 2e-5
    for name, found in after.items():
        if name in wanted:
            close(found, wanted[name], allowed)
        else:
            np.testing.assert_array_equal(found, before[name])
    loaded = keras.models.load_model(tmp_path / "out.keras", compile=False)
    for name, _, _ in case.order:
        if "/" not in name and hasattr(loaded.get_layer(name), "moving_mean"):
            one = loaded.get_layer(name)
            found = (one.moving_mean.numpy(), one.moving_variance.numpy())
            close(found, wanted[name], allowed)


# By default both sizes of batches, and the least and the most that is kept.
@pytest.mark.parametrize(
    ("batch", "cache"), some(product([7, 50], [0, 20_000, 60_000, 1 << 30]), 3)
)
@pytest.mark.few(1)
def test_what_is_kept_in_memory_changes_the_work_and_not_the_result(
    cache: int, batch: int, tmp_path: Path
) -> None:
    case = branches()
    randomize(case.model)
    source, data = save(case, tmp_path)
    target = tmp_path / "out.keras"
    report = bnfold.recalibrate(
        source, target, data=data, batch=batch, cache=cache, allow_other_scale=True
    )
    assert report.passes == 3  # b and c share one
    for name, wanted in expected(case).items():
        close(statistics(target)[name], wanted)
    assert (report.work > 1.5) == (cache < 1 << 30)


@pytest.mark.parametrize("form", [".keras", ".h5", ""], ids=["keras", "h5", "directory"])
def test_every_container(form: str, tmp_path: Path) -> None:
    case = nested()
    randomize(case.model)
    source, data = save(case, tmp_path, form)
    target = tmp_path / f"out{form}"
    bnfold.recalibrate(source, target, data=data)
    found = statistics(target)
    for name, wanted in expected(case).items():
        close(found[name], wanted)


# --- what does not change ---


def trained_with_state(path: Path, **options: Any) -> Any:
    """A compiled model that was trained a little, so that its file has an optimizer's state."""
    model = chain((5,), layers.Dense(6), norm("a"), layers.ReLU(), layers.Dense(1), name="x")
    model.compile("adam", "mse")
    data = GENERATOR.normal(3, 2, (64, 5)).astype("float32")
    model.fit(data, data[:, :1], epochs=2, verbose=0)
    model.save(path, **options)
    np.save(path.parent / "data.npy", data)
    return model


def offsets(weights: h5py.File, wanted: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Where in an HDF5 file the numbers of some variables stand."""
    found = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and wanted(name):
            found.append((node.id.get_offset(), node.id.get_storage_size()))

    weights.visititems(visit)
    return found


def differing(before: bytes, after: bytes) -> Any:
    assert len(before) == len(after)
    return np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1"))


def assert_recorded(before: dict[str, Any], after: dict[str, Any], source: Path) -> None:
    """What a file says of itself is what it said, and the record of the recalibration."""
    content = source.read_bytes() if source.is_file() else None
    record = after.pop("bnfold")
    assert before == after
    assert record["recalibrated"] == {"samples": 64, "layers": ["a"], "kept": []}
    assert content is None or record["source_sha256"] == hashlib.sha256(content).hexdigest()


def test_nothing_else_in_an_archive_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "model.keras", tmp_path / "out.keras"
    trained_with_state(source)
    with zipfile.ZipFile(source, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/layers/dense/words.txt", "one\ntwo\n" * 100)
        archive.writestr(zipfile.ZipInfo("extra/", (2001, 2, 3, 4, 5, 6)), b"")
        archive.comment = b"a comment"
    bnfold.recalibrate(source, target, data=tmp_path / "data.npy")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
        assert new.testzip() is None
        assert new.comment == old.comment
        for one, other in zip(old.infolist(), new.infolist(), strict=True):
            for key in ("filename", "date_time", "compress_type", "external_attr"):
                assert getattr(one, key) == getattr(other, key)
            if one.filename == "metadata.json":
                assert_recorded(json.loads(old.read(one)), json.loads(new.read(other)), source)
            elif one.filename != "model.weights.h5":
                assert old.read(one) == new.read(other)
        before, after = old.read("model.weights.h5"), new.read("model.weights.h5")
    with open_weights(source) as weights:
        statistics_at = offsets(
            weights, lambda name: "batch_norm" in name and name.endswith(("vars/2", "vars/3"))
        )
        assert len(statistics_at) == 2
        assert "optimizer" in weights
    changed = differing(before, after)
    assert changed.size
    assert all(any(a <= at < a + size for a, size in statistics_at) for at in changed)
    again = keras.models.load_model(target)
    assert int(again.optimizer.iterations) == 4


def test_nothing_else_in_a_legacy_file_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "model.h5", tmp_path / "out.h5"
    trained_with_state(source)
    bnfold.recalibrate(source, target, data=tmp_path / "data.npy")
    with h5py.File(source) as old, h5py.File(target) as new:
        assert_recorded({}, {"bnfold": json.loads(new.attrs["bnfold"])}, source)
        assert {*old.attrs} == {*new.attrs} - {"bnfold"}
        assert all(np.array_equal(old.attrs[name], new.attrs[name]) for name in old.attrs)
        assert offsets(old, lambda name: True) == offsets(new, lambda name: True)
        stored = offsets(old, lambda name: True)
        statistics_at = offsets(old, lambda name: "moving_" in name and "model_w" in name)
        assert len(statistics_at) == 2
    changed = differing(*(numbers_at(path, stored) for path in (source, target)))
    assert changed.size
    assert all(any(a <= at < a + size for a, size in statistics_at) for at in changed)


def numbers_at(path: Path, places: Sequence[tuple[int, int]]) -> bytes:
    """A file with zeros in place of all but these bytes, up to the last of them."""
    content = path.read_bytes()
    found = bytearray(max(start + size for start, size in places))
    for start, size in places:
        found[start : start + size] = content[start : start + size]
    return bytes(found)


def test_nothing_else_in_a_directory_changes(tmp_path: Path) -> None:
    source, target = tmp_path / "model", tmp_path / "out"
    trained_with_state(source, zipped=False)
    (source / "assets" / "empty").mkdir()
    (source / "assets" / "words.txt").write_text("one")
    bnfold.recalibrate(source, target, data=tmp_path / "data.npy")
    files = {p.relative_to(source) for p in source.rglob("*")}
    assert files == {p.relative_to(target) for p in target.rglob("*")}
    for name in ("config.json", "assets/words.txt"):
        assert (source / name).read_bytes() == (target / name).read_bytes()
    metadata = (json.loads((path / "metadata.json").read_text()) for path in (source, target))
    assert_recorded(*metadata, source)


# --- advice that helps ---


def advice(path: Path) -> dict[str, str]:
    """The remedies of each finding that names a rule's code."""
    return {finding.code: finding.remedy for finding in inspect_file(path).findings}


@pytest.mark.parametrize(
    ("broken", "form"),
    [
        (("moving_variance",), ".keras"),
        (("moving_mean",), ".h5"),
        (("moving_mean", "moving_variance"), ""),
    ],
)
def test_broken_statistics_are_estimated_again(
    broken: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    """Batches of one behind global pooling leave such a file, with all weights good."""
    case = two_dense_layers()
    randomize(case.model)
    layer = case.model.get_layer("a")
    for name in broken:
        getattr(layer, name).assign([np.nan, 1, np.inf, 1, 1, 1])
    source, target = tmp_path / f"model{form}", tmp_path / f"out{form}"
    case.model.save(source, **({} if form else {"zipped": False}))
    assert "bnfold recalibrate" in advice(source)["BN104"]
    bnfold.recalibrate(source, target, data=case.data)
    assert "BN104" not in advice(target)
    for name, wanted in expected(case).items():
        close(statistics(target)[name], wanted)
    better = keras.models.load_model(target) if form else None
    assert better is None or np.isfinite(value(better, better.output, case.data)).all()


@pytest.mark.parametrize("broken", ["gamma", "beta"])
def test_broken_weights_are_not_what_it_mends(broken: str, tmp_path: Path) -> None:
    case = two_dense_layers()
    randomize(case.model)
    for name in (broken, "moving_variance"):
        getattr(case.model.get_layer("a"), name).assign([np.nan, 1, 1, 1, 1, 1])
    source, data = save(case, tmp_path)
    assert advice(source)["BN104"] == "go back to a checkpoint from before the loss diverged"
    with pytest.raises(BnfoldError, match="not finite"):
        bnfold.recalibrate(source, tmp_path / "out.keras", data=data)


def test_a_recalibrated_file_is_not_to_be_recalibrated(tmp_path: Path) -> None:
    """Neither its layers with new statistics nor those that stayed, whatever is found then."""
    frozen = norm("frozen", trainable=False)
    model = chain(
        (5,), layers.Dense(6), layers.Dropout(0.3), norm("a"), layers.ReLU(), layers.Dense(4),
        frozen, layers.Dense(1), name="x",
    )  # fmt: skip
    model.compile("adam", "mse")
    rows = GENERATOR.normal(3, 2, (64, 5)).astype("float32")
    model.fit(rows, rows[:, :1], epochs=2, verbose=0)
    frozen.moving_variance.assign([-1, 1, 1, 1])
    source, target = tmp_path / "model.keras", tmp_path / "out.keras"
    model.save(source)
    before = advice(source)
    assert {"BN103", "BN105", "BN302"} <= set(before)
    assert all("bnfold recalibrate" in before[code] for code in ("BN103", "BN105", "BN302"))
    bnfold.recalibrate(source, target, data=rows)
    after = advice(target)
    assert not {"BN103", "BN302"} & set(after)  # the statistics are those of the data by now
    assert "it is frozen" in after["BN105"]
    other = inspect_file(target, run=DataRun(100 * rows)).findings
    (drifted,) = [one.remedy for one in other if one.code == "BN501" and one.layer == ("a",)]
    assert "from more or other data than those 64 samples" in drifted
    assert "recalibrate" not in "".join([*after.values(), *(one.remedy for one in other)])


def test_a_record_is_kept_through_a_fold_and_a_second_run(tmp_path: Path) -> None:
    case = two_dense_layers()
    randomize(case.model)
    source, data = save(case, tmp_path)
    paths = [tmp_path / f"{name}.keras" for name in ("first", "folded", "second")]
    bnfold.recalibrate(source, paths[0], data=data, layers=["a"])
    bnfold.fold(paths[0], paths[1], keep=["b"], verify=False)
    bnfold.recalibrate(paths[1], paths[2], data={"x": case.data["x"][:200]})
    found = []
    for path in paths:
        with open_model(path) as model:
            found.append(recalibration(model.metadata))
    reason = "no pattern of --layers matches it"
    assert found[0] == found[1] == Recalibration({"a": 300}, {"b": reason})
    assert found[2] == Recalibration({"a": 300, "b": 200}, {})


@pytest.mark.parametrize(
    "record",
    [None, [], {"recalibrated": 3}, {"recalibrated": {"layers": "a", "samples": "many"}},
     {"recalibrated": {"layers": [1], "kept": [2, {"name": 1}]}}, {"earlier": {"earlier": 1}}],
)  # fmt: skip
def test_a_record_of_another_hand_is_no_error(record: Any) -> None:
    found = recalibration({"bnfold": record})
    assert found in (None, Recalibration())


def test_a_compressed_archive_stays_one(tmp_path: Path) -> None:
    case = two_dense_layers()
    randomize(case.model)
    source, data = save(case, tmp_path)
    packed, target = tmp_path / "packed.keras", tmp_path / "out.keras"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    bnfold.recalibrate(packed, target, data=data)
    with zipfile.ZipFile(target) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    for name, wanted in expected(case).items():
        close(statistics(target)[name], wanted)


def test_variables_that_are_compressed_inside_the_weights(tmp_path: Path) -> None:
    case = two_dense_layers()
    randomize(case.model)
    source, data = save(case, tmp_path, ".h5")
    packed, target = tmp_path / "packed.h5", tmp_path / "out.h5"

    def copy(old: Any, new: Any) -> None:
        new.attrs.update(old.attrs)
        for name, node in old.items():
            if isinstance(node, h5py.Group):
                copy(node, new.create_group(name))
            else:
                chunked = {"chunks": node.shape, "compression": "gzip"} if node.shape else {}
                new.create_dataset(name, data=node[()], **chunked)

    with h5py.File(source) as old, h5py.File(packed, "w") as new:
        copy(old, new)
    bnfold.recalibrate(packed, target, data=data)
    for name, wanted in expected(case).items():
        close(statistics(target)[name], wanted)


def test_only_chosen_layers_change(tmp_path: Path) -> None:
    """The first is left out, so the second is estimated behind it as it is."""
    case = two_dense_layers()
    randomize(case.model)
    source, data = save(case, tmp_path)
    target = tmp_path / "out.keras"
    report = bnfold.recalibrate(source, target, data=data, layers=["b*"])
    assert [kept.reason for kept in report.kept] == ["no pattern of --layers matches it"]
    before, after = statistics(source), statistics(target)
    np.testing.assert_array_equal(before["a"], after["a"])
    rows = case.order[1][2]()
    close(after["b"], (rows.mean(0), rows.var(0)))


def test_a_frozen_layer_changes_only_when_it_is_named(tmp_path: Path) -> None:
    case = two_dense_layers()
    randomize(case.model)
    case.model.get_layer("a").trainable = False
    source, data = save(case, tmp_path)
    report = bnfold.recalibrate(source, tmp_path / "out.keras", data=data)
    assert [(kept.batchnorm.path, "frozen" in kept.reason) for kept in report.kept] == [
        (("a",), True)
    ]
    named = bnfold.recalibrate(source, tmp_path / "named.keras", data=data, layers="*")
    assert not named.kept
    for name, wanted in expected(case).items():
        close(statistics(tmp_path / "named.keras")[name], wanted)


def test_a_layer_that_reads_its_own_output_stays(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    again = norm("again")
    x = again(layers.Dense(4)(again(norm("first")(inputs))))
    model = randomize(keras.Model(inputs, norm("behind")(x)))
    source, target = tmp_path / "model.keras", tmp_path / "out.keras"
    model.save(source)
    data = GENERATOR.normal(2, 3, (50, 4)).astype("float32")
    report = bnfold.recalibrate(source, target, data=data)
    assert [kept.reason for kept in report.kept] == ["its own output comes back to it"]
    assert len(report.recalibrated) == 2
    behind = model.get_layer("behind")
    first = model.get_layer("first")
    first.moving_mean.assign(data.mean(0))
    first.moving_variance.assign(data.var(0))
    rows = value(model, behind.input, {"x": data})
    close(statistics(target)["behind"], (rows.mean(0), rows.var(0)))


def test_a_layer_of_several_calls_inside_one_step_stays(tmp_path: Path) -> None:
    """A TimeDistributed runs its model as a whole, in which the norm reads its own output."""
    part_input = keras.Input((4,))
    twice = norm("twice")
    part = keras.Model(part_input, twice(layers.ReLU()(twice(part_input))), name="part")
    model = chain((3, 4), layers.TimeDistributed(part, name="wrapped"), norm("b"), name="x")
    source = tmp_path / "model.keras"
    randomize(model).save(source)
    data = GENERATOR.normal(2, 3, (50, 3, 4)).astype("float32")
    report = bnfold.recalibrate(source, tmp_path / "out.keras", data=data)
    assert [change.batchnorm.path for change in report.recalibrated] == [("b",)]
    assert "2 times inside 'wrapped'" in report.kept[0].reason


@keras.saving.register_keras_serializable("tests")
class Compiled(keras.Model):
    """A model of layers that TensorFlow compiles as a whole."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        import tensorflow

        whole = super().call
        return tensorflow.function(lambda x: whole(x, training=training))(inputs)


def test_a_layer_inside_a_compiled_function_stays(tmp_path: Path) -> None:
    part_input = keras.Input((4,))
    part = Compiled(part_input, norm("hidden")(layers.Dense(4)(part_input)), name="part")
    model = randomize(chain((4,), norm("a"), part, norm("b"), name="x"))
    model.save(tmp_path / "model.keras")
    data = GENERATOR.normal(2, 3, (50, 4)).astype("float32")
    report = bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=data)
    assert [change.batchnorm.path for change in report.recalibrated] == [("a",), ("b",)]
    assert "compiled function" in report.kept[0].reason
    seen = bnfold.inspect(tmp_path / "model.keras", data=data)
    said = [f.message for f in seen.findings if f.code == "BN501" and f.layer[-1] == "hidden"]
    assert said == [f"not compared with the data: {report.kept[0].reason}"]


def test_constant_channels_get_no_variance_and_a_constant_layer_stays(tmp_path: Path) -> None:
    data = GENERATOR.normal(2, 3, (50, 3)).astype("float32")
    data[:, 1] = 4
    inputs = keras.Input((3,), name="x")
    zero = layers.Dense(2, kernel_initializer="zeros", name="zero")(inputs)
    model = keras.Model(inputs, [norm("a")(inputs), norm("dead")(zero)])
    model.save(tmp_path / "model.keras")
    target = tmp_path / "out.keras"
    report = bnfold.recalibrate(tmp_path / "model.keras", target, data=data)
    found = statistics(target)
    assert found["a"][1][1] == 0
    assert found["a"][0][1] == 4
    assert found["dead"][1].tolist() == [1, 1]
    assert [kept.reason for kept in report.kept] == ["its input never changes over the data"]
    assert report.recalibrated[0].to_dict()["constant_channels"] == 1


# --- dtypes ---


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_dtypes_are_rounded_to_once(dtype: str, tmp_path: Path) -> None:
    model = chain((4,), norm("a", dtype=dtype), name="x", dtype=dtype)
    model.save(tmp_path / "model.keras")
    data = (GENERATOR.normal(2, 3, (500, 4)) * [1, 10, 0.1, 1]).astype("float32")
    target = tmp_path / "out.keras"
    assert bnfold.recalibrate(tmp_path / "model.keras", target, data=data).written
    with open_weights(tmp_path / "model.keras") as old, open_weights(target) as new:
        group = "layers/batch_normalization/vars/3"
        assert old[group].dtype == new[group].dtype
        assert dict(old[group].attrs) == dict(new[group].attrs)
    seen = np.asarray(keras.ops.cast(keras.ops.cast(data, dtype), "float32")).astype("float64")
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(statistics(target)["a"][1], seen.var(0), rtol=unit)
    np.testing.assert_allclose(statistics(target)["a"][0], seen.mean(0), rtol=unit)


def test_rounding_to_bfloat16_is_to_the_nearest() -> None:
    """By way of float32 some numbers would go the wrong way from a half."""
    import ml_dtypes

    generator = np.random.default_rng(0)
    halfway = (generator.integers(128, 256, 4000) + 0.5) / 128
    close_by = halfway + generator.choice([-1, 1], 4000) * 2.0 ** -generator.integers(26, 50, 4000)
    values = np.concatenate([close_by, halfway, -close_by, [0.0, 1e39, -1e39, 3e38]])
    found = rounded(values, np.dtype(ml_dtypes.bfloat16)).astype("float64")
    below = np.floor(values[:12000] * 128) / 128
    nearer = np.where(values[:12000] - below < 1 / 256, below, below + 1 / 128)
    tie = np.abs(values[:12000] - below - 1 / 256) == 0
    even = np.where(np.round(below * 128) % 2 == 0, below, below + 1 / 128)
    np.testing.assert_array_equal(found[:12000], np.where(tie, even, nearer))
    assert np.isinf(found[12001:12003]).all()


# --- bad input ---


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["recalibrate", *map(str, arguments)])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    model = chain((5,), layers.Dense(6), norm("a"), name="x")
    randomize(model).save(folder / "model.keras")
    return folder / "model.keras"


NAN = np.ones((6, 5))
NAN[4, 2] = np.nan

BAD = {
    "another name": ({"w": np.ones((6, 5)), "z": np.ones((6, 5))}, "holds 2 arrays"),
    "another shape": ({"x": np.ones((6, 4))}, "takes shape (any, 5)"),
    "NaN": ({"x": NAN}, "not finite in float32, first in sample 4"),
    "too large": ({"x": np.full((6, 5), 1e300)}, "not finite in float32, first in sample 0"),
    "no samples": ({"x": np.ones((0, 5))}, "at least 1"),
    "one sample": ({"x": np.ones((1, 5))}, "one sample has no statistics"),
    "objects": ({"x": np.array([None, {}])}, "not a .npy or .npz file of plain arrays"),
    "words": ({"x": np.array([["a"] * 5] * 4)}, "takes numbers"),
    "constant": ({"x": np.ones((6, 5))}, "no BatchNormalization can be recalibrated: its input"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("command", ["recalibrate", "inspect"])
def test_bad_data_is_one_line(what: str, command: str, small: Path, tmp_path: Path) -> None:
    arrays, says = BAD[what]
    if command == "inspect" and what == "constant":
        return
    np.savez(tmp_path / "data.npz", **arrays)
    arguments = [small, tmp_path / "out.keras"] if command == "recalibrate" else [small]
    result = CliRunner().invoke(
        main, [command, *map(str, arguments), "--data", str(tmp_path / "data.npz")]
    )
    errors = [line for line in result.stderr.splitlines() if not line.endswith("...")]
    assert (result.exit_code, result.stdout, len(errors)) == (2, "", 1), result.output
    assert says in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04nonsense"])
def test_a_file_that_holds_no_arrays(content: bytes, small: Path, tmp_path: Path) -> None:
    (tmp_path / "data.npy").write_bytes(content)
    result = cli(small, tmp_path / "out.keras", "--data", tmp_path / "data.npy")
    assert result.exit_code == 2
    assert "not a .npy or .npz file of plain arrays" in result.stderr


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.few(1)
def test_data_of_every_kind_of_file(
    compressed: bool, order: str, small: Path, tmp_path: Path
) -> None:
    data = np.asarray(GENERATOR.normal(3, 2, (64, 5)), dtype="float64", order=order)  # type: ignore[call-overload]
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "data.npz", x=data)
    np.save(tmp_path / "data.npy", data)
    found = []
    for number, given in enumerate(
        [tmp_path / "data.npz", str(tmp_path / "data.npy"), data, [data], {"x": data}]
    ):
        target = tmp_path / f"{number}.keras"
        bnfold.recalibrate(small, target, data=given)
        found.append(statistics(target)["a"])
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_target_that_exists_needs_force(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.keras"
    target.write_text("mine")
    np.save(tmp_path / "data.npy", GENERATOR.normal(3, 2, (64, 5)))
    result = cli(small, target, "--data", tmp_path / "data.npy")
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert target.read_text() == "mine"


def test_a_model_can_be_recalibrated_in_place(small: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    shutil.copy(small, model)
    data = GENERATOR.normal(3, 2, (64, 5)).astype("float32")
    np.save(tmp_path / "data.npy", data)
    result = cli(model, model, "--data", tmp_path / "data.npy", "--force")
    assert result.exit_code == 0, result.output
    loaded = keras.models.load_model(model)
    rows = value(loaded, loaded.get_layer("a").input, {"x": data})
    close(statistics(model)["a"], (rows.mean(0), rows.var(0)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "model.keras"]


def test_activations_that_overflow_are_refused(tmp_path: Path) -> None:
    model = chain(
        (3,),
        layers.Dense(4, dtype="mixed_float16", name="dense"),
        norm("a", dtype="mixed_float16"),
        name="x",
    )
    model.get_layer("dense").kernel.assign(np.full((3, 4), 3e4))
    model.save(tmp_path / "model.keras")
    data = np.abs(GENERATOR.normal(3, 2, (20, 3)))
    with pytest.raises(BnfoldError, match="input of 'a' is not finite in 4 of 4 channels"):
        bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=data)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = chain((3,), norm("a", dtype="float16"), name="x", dtype="float16")
    model.save(tmp_path / "model.keras")
    data = GENERATOR.normal(0, 400, (50, 3))
    with pytest.raises(BnfoldError, match="'a' do not fit into float16: up to"):
        bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=data)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_pattern_that_matches_nothing_is_refused(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", GENERATOR.normal(3, 2, (64, 5)))
    target = tmp_path / "out.keras"
    result = cli(small, target, "--data", tmp_path / "data.npy", "--layers", "nothing*")
    assert result.exit_code == 2
    assert "--layers 'nothing*' matches no BatchNormalization" in result.stderr


def test_a_model_that_runs_code_is_refused(tmp_path: Path) -> None:
    model = chain((3,), layers.Lambda(lambda x: x + 1), norm("a"), name="x")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "data.npy", GENERATOR.normal(0, 1, (50, 3)))
    arguments = (tmp_path / "model.keras", tmp_path / "out.keras", "--data", tmp_path / "data.npy")
    assert "--trust" in cli(*arguments).stderr
    assert cli(*arguments, "--trust").exit_code == 0


def test_a_model_without_a_norm(tmp_path: Path) -> None:
    chain((3,), layers.Dense(2), name="x").save(tmp_path / "model.keras")
    with pytest.raises(BnfoldError, match="no BatchNormalization can be recalibrated: it has none"):
        bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=np.ones((4, 3)))


def test_a_check_that_fails_writes_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the new statistics had not reached the file."""
    monkeypatch.setattr("bnfold.model.container.hdf5.overwrite", lambda *_: None)
    np.save(tmp_path / "data.npy", GENERATOR.normal(3, 2, (64, 5)))
    result = cli(small, tmp_path / "out.keras", "--data", tmp_path / "data.npy")
    assert result.exit_code == 1
    assert "the new file does not reproduce its statistics: a is off by" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


def test_interrupted_it_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.ones((2_000_000, 5), "float32"))
    arguments = [str(small), str(tmp_path / "out.keras"), "--data", str(tmp_path / "data.npy")]
    words = ["recalibrate", *arguments]
    code = f"import sys; from bnfold.cli import run; sys.argv[1:] = {words}; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "estimating" in line:
            break
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


# --- reports ---


def test_the_reports(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", GENERATOR.normal(3, 2, (64, 5)))
    arguments = (small, tmp_path / "out.keras", "--data", tmp_path / "data.npy", "--force")
    text = cli(*arguments)
    assert text.exit_code == 0
    assert "estimated 1 of 1 BatchNormalization layer from 64 samples" in text.stdout
    assert "checked: the stored statistics match the observed inputs" in text.stdout
    found = json.loads(cli(*arguments, "--format", "json").stdout, parse_constant=pytest.fail)
    validate(found, "recalibrate")
    assert found["written"] is True
    assert found["recalibrated"][0]["shift"]["max"] > 0


def test_the_distances_are_those_of_the_old_statistics_from_the_new(tmp_path: Path) -> None:
    model = chain((2,), norm("a", epsilon=0.5), name="x")
    model.get_layer("a").moving_mean.assign([1.0, 0.0])
    model.get_layer("a").moving_variance.assign([2.0, 4.0])
    model.save(tmp_path / "model.keras")
    data = np.array([[0, 3], [4, 3], [0, 9], [4, 9]], "float32")  # means 2, 6; variances 4, 9
    report = bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=data)
    found = report.recalibrated[0].divergence
    np.testing.assert_allclose(found.shift, [1 / np.sqrt(2.5), 6 / np.sqrt(4.5)])
    np.testing.assert_allclose(found.ratio, [4.5 / 2.5, 9.5 / 4.5])


# --- live models and real ones ---


def test_a_live_model_gives_a_new_one(small: Path) -> None:
    model = keras.models.load_model(small)
    data = GENERATOR.normal(3, 2, (64, 5)).astype("float32")
    before = [w.numpy() for w in model.weights]
    found = bnfold.recalibrate(model, data=data)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight.numpy())
    layer = found.get_layer("a")
    rows = value(model, model.get_layer("a").input, {"x": data})
    close((layer.moving_mean.numpy(), layer.moving_variance.numpy()), (rows.mean(0), rows.var(0)))
    made = (outputs(found, data, training=False)[0] - layer.beta.numpy()) / layer.gamma.numpy()
    used = np.abs(layer.gamma.numpy()) > 0
    np.testing.assert_allclose(made.mean(0)[used], 0, atol=1e-5)
    with pytest.raises(TypeError):
        bnfold.recalibrate(model, "out.keras", data=data)


@pytest.mark.parametrize(
    "name", ["digits_cnn_keras315.keras", "digits_cnn_keras36.keras", "digits_cnn_keras215.h5"]
)
@pytest.mark.few(1)
def test_files_of_several_versions(
    name: str, fixture_model: Callable[[str], Path], tmp_path: Path
) -> None:
    if "keras2" in name:
        pytest.importorskip("tf_keras")
    source = fixture_model(name)
    data = GENERATOR.random((30, 8, 8, 1)).astype("float32")
    target = tmp_path / f"out{source.suffix}"
    report = bnfold.recalibrate(source, target, data=data)
    assert (report.written, len(report.recalibrated)) == (True, 4)


@pytest.mark.slow  # trains; by default tests/audit/test_drift.py recalibrates such a model
def test_statistics_that_lag_behind_are_what_is_wrong_with_a_model(tmp_path: Path) -> None:
    """Momentum 0.999 after a hundred steps: the weights are good, the statistics are not."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images[..., None] / 16).astype("float32"), bunch.target
    held_out = np.arange(len(labels)) % 5 == 0
    keras.utils.set_random_seed(0)
    model = chain(
        (8, 8, 1),
        layers.Conv2D(12, 3, use_bias=False),
        norm("a", momentum=0.999),
        layers.ReLU(),
        layers.Conv2D(24, 3, use_bias=False),
        norm("b", momentum=0.999),
        layers.ReLU(),
        layers.Flatten(),
        layers.Dense(32, use_bias=False),
        norm("c", momentum=0.999),
        layers.ReLU(),
        layers.Dense(10),
        name="x",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.fit(images[~held_out], labels[~held_out], batch_size=64, epochs=4, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=images[~held_out], labels=labels[~held_out])
    bnfold.recalibrate(tmp_path / "model.keras", tmp_path / "out.keras", data=tmp_path / "data.npz")
    test = images[held_out], labels[held_out]
    before = model.evaluate(*test, verbose=0)[1]
    after = keras.models.load_model(tmp_path / "out.keras").evaluate(*test, verbose=0)[1]
    print(f"accuracy {before:.3f} before, {after:.3f} after")
    assert after > 0.95
    assert before < after - 0.2


def test_a_live_model_that_cannot_be_checked_is_not_handed_out(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnfold.jobs import recalibrate

    wrong = recalibrate.Check(("a",), 1.0)
    monkeypatch.setattr(recalibrate, "check_written", lambda *_: wrong)
    model = keras.models.load_model(small)
    with pytest.raises(VerificationFailedError, match="does not reproduce"):
        bnfold.recalibrate(model, data=GENERATOR.normal(3, 2, (64, 5)))


def test_models_of_keras_2(tmp_path: Path) -> None:
    """Run by tf_keras, which does not show the inside of a nested model to be taken apart."""
    tf_keras = pytest.importorskip("tf_keras")
    old = tf_keras.layers
    part_input = tf_keras.Input((5,))
    part = old.BatchNormalization(name="q")(
        old.ReLU()(old.BatchNormalization(name="p")(part_input))
    )
    part = tf_keras.Model(part_input, part, name="part")
    nest_input = tf_keras.Input((6, 5))
    nest = old.BatchNormalization(name="d")(old.Dense(4)(nest_input))
    nest = tf_keras.Model(nest_input, old.BatchNormalization(name="e")(old.ReLU()(nest)), name="n")
    inputs = tf_keras.Input((6, 5), name="x")
    x = old.BatchNormalization(name="a")(old.Masking()(inputs))
    x = nest(old.TimeDistributed(part, name="wrapped")(x))
    x = old.BatchNormalization(name="always")(x, training=True)
    model = tf_keras.Model(inputs, old.BatchNormalization(name="z")(x))
    for weight in model.weights:
        if "moving_variance" in weight.name:
            weight.assign(GENERATOR.uniform(0.5, 2, weight.shape))
    model.save(tmp_path / "model.keras")
    steps = GENERATOR.normal(2, 3, (60, 6, 5)).astype("float32")
    steps[np.arange(6)[None] >= GENERATOR.integers(2, 7, (60, 1))] = 0
    target = tmp_path / "out.keras"
    report = bnfold.recalibrate(tmp_path / "model.keras", target, data=steps, batch=60)
    names = ["/".join(change.batchnorm.path) for change in report.recalibrated]
    assert names == ["a", "wrapped/part/p", "wrapped/part/q", "n/d", "n/e", "z"]
    assert [kept.batchnorm.path for kept in report.kept] == [("always",)]
    assert "in training mode always" in report.kept[0].reason

    new = tf_keras.models.load_model(target, compile=False)
    nest, after = new.get_layer("n"), statistics(target)

    def made(tensor: Any) -> Any:
        return tf_keras.Model(new.inputs, tensor)(steps, training=False)

    real = np.any(steps != 0, axis=-1)
    close(after["a"], (steps[real].mean(0, dtype="f8"), steps[real].var(0, dtype="f8")))
    inside = tf_keras.Model(nest.inputs, nest.get_layer("e").input)
    for name, values in (
        ("n/e", inside(made(new.get_layer("wrapped").output))),
        ("z", made(new.get_layer("z").input)),
    ):
        rows = np.asarray(values).astype("float64")[real]
        close(after[name], (rows.mean(0), rows.var(0)))


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_initial_statistics_tell_nothing_of_the_scale_of_data(scale: float, tmp_path: Path) -> None:
    chain((3,), norm("a"), name="x").save(tmp_path / "model.keras")
    data = np.random.default_rng(0).normal(0, scale, (200, 3)).astype("float32")
    np.save(tmp_path / "data.npy", data)
    words = [tmp_path / "model.keras", tmp_path / "out.keras", "--data", tmp_path / "data.npy"]
    result = CliRunner().invoke(main, ["recalibrate", *map(str, words)])
    assert result.exit_code == 0, result.output
    assert "the scale of the data could not be checked (a: its recorded statistics" in result.stdout
