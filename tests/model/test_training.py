"""In which mode each version of Keras runs the layers of a model, measured by running it.

With BNFOLD_KERAS_SOURCE=DIR, the source of another Keras, that one is measured too: on its own
files, on those of the installed one, and the installed one on its files.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tiers
import training_modes
from click.testing import CliRunner
from places import ROOT
from support import difference, load, outputs, randomize, samples
from training_modes import Found, table

import bnfold
from bnfold.cli import main
from bnfold.errors import SettingsError
from bnfold.folding.plan import plan
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Graph, show
from bnfold.model.inbound_nodes import is_keras3
from bnfold.model.layers import facts
from bnfold.model.modes import CallModes, modes_of
from bnfold.model.program import Program
from bnfold.model.training import (
    KERAS_2,
    KERAS_3,
    KERAS_3_16,
    TRAINING_RULES,
    TrainingRule,
    Use,
    training_rules,
)

SOURCE = os.environ.get("BNFOLD_KERAS_SOURCE")
needs_source = pytest.mark.skipif(SOURCE is None, reason="BNFOLD_KERAS_SOURCE names no folder")

(INSTALLED,) = training_rules(keras.__version__)

pytestmark = pytest.mark.usefixtures("keras_alone")


def draws() -> int:
    return 120 if tiers.EVERYTHING else 6


def check(folder: Path, found: dict[str, Found], rule: TrainingRule) -> None:
    """Compare the modes that were measured with those that the files tell."""
    assert found
    for name, ways in found.items():
        with open_model(folder / name) as file:
            modes = modes_of(Program(file.graph).region)
        told = {show(path): one for path, one in modes.by_version[rule].items()}
        for layer in {layer for way in ways.values() for layer in way}:
            plain, off, predict = (any(ways[way].get(layer, [])) for way in ways)
            assert told.get(layer, CallModes()) == CallModes(plain, off), (name, layer)
            assert predict == off


def elsewhere(folder: Path, *words: str) -> None:
    """Let the Keras of the source do something."""
    assert SOURCE is not None
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, training_modes.__file__, words[0], str(folder), *words[1:]]
    subprocess.run(command, env=environment, check=True)


def test_the_installed_keras_runs_layers_in_the_modes_of_its_rule(tmp_path: Path) -> None:
    training_modes.write(keras, tmp_path, draws())
    check(tmp_path, training_modes.measure(keras, tmp_path), INSTALLED)


@pytest.mark.slow
def test_keras_2_does_and_keras_3_reads_its_files_by_its_own(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    training_modes.write(tf_keras, tmp_path, draws(), ".h5")
    check(tmp_path, training_modes.measure(tf_keras, tmp_path), KERAS_2)
    check(tmp_path, training_modes.measure(keras, tmp_path), INSTALLED)


def test_a_default_counts_as_said_only_in_a_call_of_one_tensor(tmp_path: Path) -> None:
    # As 3.16 writes an LSTM: with mask=None, and without the default of `training`.
    first = keras.Input((4, 3))
    x = keras.layers.Dropout(0.5, name="mc")(first, training=True)
    x = keras.layers.LSTM(3, return_sequences=True)(x)
    model = keras.Model(first, keras.layers.BatchNormalization(name="bn")(x))
    config = model.get_config()
    del config["layers"][2]["inbound_nodes"][0]["kwargs"]["training"]
    model = keras.Model.from_config(config)
    model.save(tmp_path / "m.keras")
    found = training_modes.measured(keras, load(tmp_path / "m.keras"), (4, 3))
    assert found["plain"]["bn"] == [True]
    check(tmp_path, {"m.keras": found}, INSTALLED)


def test_a_wrapped_layer_does_not_take_the_default_of_its_class(tmp_path: Path) -> None:
    layers = keras.layers
    first = keras.Input((1, 6, 6, 3))
    flip = layers.RandomFlip(name="flip")
    x = layers.Reshape((6, 6, 3))(layers.TimeDistributed(flip, name="steps")(first))
    x = layers.BatchNormalization(name="bn")(layers.Dense(3)(x))
    randomize(keras.Model(first, x)).save(tmp_path / "m.keras")
    found = training_modes.measured(keras, load(tmp_path / "m.keras"), (1, 6, 6, 3))
    assert found["plain"] == {"steps/flip": [False], "bn": [False]}
    check(tmp_path, {"m.keras": found}, INSTALLED)
    assert folded_names(tmp_path / "m.keras", "any") == ["bn"]


@needs_source
@pytest.mark.parametrize("written_by", ["installed", "source"])
def test_another_keras_does(written_by: str, tmp_path: Path) -> None:
    if written_by == "source":
        elsewhere(tmp_path, "write", str(draws()))
        check(tmp_path, training_modes.measure(keras, tmp_path), INSTALLED)
    else:
        training_modes.write(keras, tmp_path, draws())
    elsewhere(tmp_path, "measure")
    measured = json.loads((tmp_path / "modes.json").read_text())
    (rule,) = training_rules(measured["keras"])
    check(tmp_path, measured["models"], rule)


# --- what was measured with the source of 3.16, where that is not at hand -------------------------

AS_3_16_READS = {
    "distributed": (True, True),
    "dropout": (True, True),
    "dropout and flip": (True, True),
    "flip": (True, False),
    "flip and plain dropout": (False, False),
    "flip off": (False, False),
    "nested": (True, True),
    "nested flip": (True, False),
    "nested flip off": (True, False),
    "nested leaks": (True, True),
    "nested off inside": (False, False),
    "nested off leaks": (True, True),
    "none": (False, False),
    "none after dropout": (False, False),
    "norm": (True, True),
    "norm off": (False, False),
    "norm off after dropout": (False, False),
    "plain dropout between": (False, True),
    "resizing": (True, False),
}
"""Whether 3.16 runs the norm in training mode, in `predict` too: in files of 3.15 and of 3.16."""


def without_defaults(graph: Graph) -> Graph:
    """The model as 3.16 writes it: without what calls take by default."""
    layers = {}
    for name, layer in graph.layers.items():
        default, calls = facts(layer).training_default, list(layer.calls)
        for number, call in enumerate(calls):
            node = call.node
            if not is_keras3(node) or default is None or call.training is not default:
                continue
            if name == "mc" or (name == "flip" and call.training is False):
                continue  # somebody has said so
            kwargs = {k: v for k, v in node["kwargs"].items() if k != "training"}
            calls[number] = call._replace(node={**node, "kwargs": kwargs}, training=None)
        inside = None if layer.graph is None else without_defaults(layer.graph)
        layers[name] = replace(layer, calls=tuple(calls), graph=inside)
    return replace(graph, layers=layers)


@pytest.mark.parametrize("name", AS_3_16_READS)
def test_the_modes_of_3_16(name: str, tmp_path: Path) -> None:
    first = keras.Input((6, 6, 3))
    model = keras.Model(first, table(keras)[name](first))
    model.save(tmp_path / "m.keras")
    with open_model(tmp_path / "m.keras") as file:
        graph = file.graph
    for each, expected in zip((graph, without_defaults(graph)), AS_3_16_READS[name], strict=True):
        modes = modes_of(Program(each).region)
        found = modes.by_version[KERAS_3_16]
        norm = next(path for path in modes.batchnorms if path[-1] == "bn")
        assert found.get(norm, CallModes()) == CallModes(expected, expected)


def test_every_model_of_the_table_is_in_it() -> None:
    assert set(table(keras)) == set(AS_3_16_READS)


# --- which version a plan is for ------------------------------------------------------------------


def saved(path: Path, name: str) -> Path:
    """A model of the table with a Dense before its norm, so that nothing but the mode decides."""
    first = keras.Input((6, 6, 3))
    layers = keras.layers

    def behind(x: Any) -> Any:
        made = table(keras)[name](x)
        return layers.BatchNormalization(name="last")(layers.Dense(3, name="dense")(made))

    randomize(keras.Model(first, behind(first))).save(path)
    return path


@pytest.mark.parametrize(
    ("version", "rules"),
    [
        ("any", TRAINING_RULES),
        ("2", (KERAS_2,)),
        ("2.15.0", (KERAS_2,)),
        ("3", (KERAS_3, KERAS_3_16)),
        ("3.0", (KERAS_3,)),
        ("3.15.1", (KERAS_3,)),
        ("3.16.0.dev2026010100", (KERAS_3_16,)),
        ("3.16rc0", (KERAS_3_16,)),
        ("3.20", (KERAS_3_16,)),
    ],
)
def test_the_rules_of_a_version(version: str, rules: tuple[TrainingRule, ...]) -> None:
    assert training_rules(version) == rules


@pytest.mark.parametrize("version", ["", "1.2", "4", "3.", "keras", "3.15;", "latest", "03.1"])
def test_no_version(version: str) -> None:
    with pytest.raises(SettingsError, match="is no version of Keras"):
        training_rules(version)


def folded_names(path: Path, keras: str | None = None) -> list[str]:
    found = bnfold.inspect(path, keras=keras).plan.folds
    return [show(fold.batchnorm.path) for fold in found]


def test_a_plan_is_for_all_versions_unless_one_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", "plain dropout between")
    with open_model(path) as file:
        graph = without_defaults(file.graph)
        count = {rule: len(plan(graph, use=Use((rule,))).folds) for rule in TRAINING_RULES[1:]}
        assert count == {KERAS_3: 0, KERAS_3_16: 0}  # no fold relies on what ends training mode
        for one in plan(graph).blocked:
            assert "which Keras 3.16 and later propagates" in one.reason


def test_the_installed_version_counts_by_default(tmp_path: Path) -> None:
    first = keras.Input((6, 6, 3))
    x = keras.layers.Resizing(6, 6)(first)
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(3)(x))
    randomize(keras.Sequential(keras.Model(first, x).layers)).save(tmp_path / "m.keras")
    path = tmp_path / "m.keras"
    assert folded_names(path) == folded_names(path, keras.__version__)
    assert folded_names(path, "3.15") == []
    assert folded_names(path, "any") == []
    assert folded_names(path, "3.16") == ["bn"]
    (stays,) = bnfold.inspect(path, keras="any").plan.blocked
    assert "Keras 3.0 to 3.15 propagates" in stays.reason
    assert any("--keras 3.16" in one for one in stays.remedies)
    found = bnfold.inspect(path, keras="3.16").to_dict()["keras"]
    assert found["versions"] == ["Keras 3.16 and later"]
    assert found["exceptions"] == [{"name": "bn", "versions": ["Keras 3.0 to 3.15"]}]


def test_without_keras_all_versions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.jobs.planning.installed_version", lambda _: None)
    path = saved(tmp_path / "m.keras", "dropout")
    assert bnfold.inspect(path).to_dict()["keras"]["versions"] == [
        "Keras 3.0 to 3.15",
        "Keras 3.16 and later",
    ]


def test_a_fold_that_changes_the_mode_of_another_layer_elsewhere_says_so(tmp_path: Path) -> None:
    """In 3.16 the norm's training=False ends what the first Dropout begins."""
    layers, first = keras.layers, keras.Input((4,))
    x = layers.Dense(3)(layers.Dropout(0.5, name="mc")(first, training=True))
    x = layers.BatchNormalization(name="bn")(x, training=False)
    randomize(keras.Model(first, layers.Dropout(0.5, name="last")(x))).save(tmp_path / "m.keras")
    with open_model(tmp_path / "m.keras") as file:
        graph = without_defaults(file.graph)
        here, there = (plan(graph, use=Use((rule,))) for rule in (KERAS_3, KERAS_3_16))
    assert [fold.batchnorm.path for fold in here.folds] == [("bn",)]
    assert here.exceptions == {("last",): (KERAS_3_16,)}
    assert not there.folds
    assert "'last' would run in another mode" in there.blocked[0].reason


@needs_source
def test_no_statistics_are_estimated_that_another_keras_never_reads(tmp_path: Path) -> None:
    first = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="read")(keras.layers.Dense(3)(first))
    x = keras.layers.BatchNormalization(name="never")(x, training=True)
    keras.Model(first, x).save(tmp_path / "m.keras")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(64, 4)).astype("f4"))
    here = bnfold.recalibrate(
        tmp_path / "m.keras", tmp_path / "here.keras", data=tmp_path / "data.npy"
    )
    assert [change.batchnorm.path for change in here.recalibrated] == [("read",), ("never",)]
    words = ["recalibrate", "m.keras", "there.keras", "--data", "data.npy", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", *words],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    there = json.loads(done.stdout)
    assert [one["name"] for one in there["recalibrated"]] == ["read"]
    assert "in training mode always" in there["kept"][0]["reason"]


# --- BN012 ----------------------------------------------------------------------------------------


def said(path: Path) -> dict[str, str]:
    found = bnfold.inspect(path, select=["BN012"]).findings
    return {show(one.layer): one.message for one in found}


def test_a_norm_that_versions_run_differently(tmp_path: Path) -> None:
    message = said(saved(tmp_path / "m.keras", "dropout"))["bn"]
    both = "in model(x) under Keras 3.0 to 3.15, in model(x) and in predict under Keras 3.16"
    assert f"it runs in training mode {both}" in message
    assert f"'mc' runs in training mode {both}" in message


def test_a_dropout_behind_all_norms(tmp_path: Path) -> None:
    first = keras.Input((4,))
    x = keras.layers.BatchNormalization(name="bn")(first)
    x = keras.layers.Dropout(0.5, name="mc")(x, training=True)
    keras.Model(first, x).save(tmp_path / "m.keras")
    found = said(tmp_path / "m.keras")
    assert set(found) == {"bn"}
    assert found["bn"].startswith("'mc' runs in training mode")


@pytest.mark.parametrize("name", ["none", "norm off"])
def test_a_model_that_all_versions_run_alike(name: str, tmp_path: Path) -> None:
    assert said(saved(tmp_path / "m.keras", name)) == {}


def test_training_mode_that_a_call_around_it_overrides(tmp_path: Path) -> None:
    """It stays, for a fold relies on no such thing, but no batch decides what it computes."""
    first, inside = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    norm = keras.layers.BatchNormalization(name="bn")
    block = keras.Model(inside, norm(keras.layers.Dense(3)(inside), training=True), name="block")
    randomize(keras.Model(first, block(first, training=False))).save(tmp_path / "m.keras")
    for version, is_bad in (("3.15", False), ("3.16", True)):
        found = bnfold.inspect(tmp_path / "m.keras", keras=version)
        assert ("BN007" in {one.code for one in found.findings}) == is_bad
        assert len(found.plan.blocked) == 1
    modes = training_modes.measured(keras, load(tmp_path / "m.keras"))
    assert modes["plain"]["block/bn"] == [False]


# --- the promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flip", ("flip",)),
        ("resizing", ("resizing",)),
        ("nested flip", ("nested/flip",)),
        ("nested flip off", ("nested/flip",)),
    ],
)
@pytest.mark.parametrize("form", tiers.some([".keras", ".h5"]))
@pytest.mark.few(1)
def test_a_promise_is_written_into_the_calls(
    name: str, told: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    path, out = saved(tmp_path / f"m{form}", name), tmp_path / f"out{form}"
    audited = bnfold.inspect(path, keras="any", select=["BN012"])
    assert not audited.plan.folds
    assert all("fold it with --inference" in finding.remedy for finding in audited.findings)
    assert audited.findings
    report = bnfold.fold(path, out, inference=True)
    assert report.written
    assert [show(fold.batchnorm.path) for fold in report.plan.folds][-1] == "last"
    assert report.to_dict()["inference"] == {"told": list(told), "untold": []}
    assert bnfold.inspect(out, keras="any", select=["BN007", "BN012"]).findings == ()
    before, after = load(path), load(out)
    x = samples(before)
    assert difference(outputs(before, x, training=False), outputs(after, x, training=False)) < 1e-5
    assert difference(outputs(before, x, training=False), outputs(after, x)) < 1e-5


def test_a_promise_leaves_what_somebody_has_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", "dropout and flip")
    report = bnfold.fold(path, tmp_path / "out.keras", inference=True)
    assert not report.plan.folds
    assert report.to_dict()["inference"]["told"] == ["flip"]
    modes = training_modes.measured(keras, load(tmp_path / "out.keras"))
    assert modes["plain"]["mc"] == [True]
    assert modes["plain"]["flip"] == [False]


@pytest.mark.parametrize("ending", [".keras", ".onnx"])
def test_what_is_wrong_with_a_promised_model_is_said_of_the_file(
    ending: str, tmp_path: Path
) -> None:
    """The copy that the result is compared with is named nowhere, and nothing of it stays."""
    layers, first = keras.layers, keras.Input((6, 6, 3))
    x = layers.Lambda(lambda x: 2 * x, name="own")(layers.RandomFlip()(first))
    x = layers.BatchNormalization()(layers.Dense(3)(x))
    keras.Model(first, x).save(tmp_path / "m.keras")
    words = ["fold", str(tmp_path / "m.keras"), str(tmp_path / f"out{ending}"), "--inference"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(f"bnfold: {tmp_path / 'm.keras'}: layer 'own'")
    assert [one.name for one in tmp_path.iterdir()] == ["m.keras"]


def test_a_promise_that_the_call_of_a_model_overrides(tmp_path: Path) -> None:
    """Up to 3.15 the True that somebody gives a model wins over what its layers are told."""
    layers, first, inside = keras.layers, keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    block = keras.Model(inside, layers.RandomFlip(name="flip")(inside), name="block")
    x = layers.RandomFlip(name="outer")(block(first, training=True))
    keras.Model(first, layers.Dense(2)(x)).save(tmp_path / "m.keras")
    report = bnfold.fold(tmp_path / "m.keras", tmp_path / "out.keras", inference=True)
    modes = training_modes.measured(keras, load(tmp_path / "out.keras"))["plain"]
    assert {name: any(found) for name, found in modes.items()} == {
        "block/flip": True,
        "outer": False,
    }
    assert report.to_dict()["inference"] == {"told": ["outer"], "untold": ["block/flip"]}


def test_a_sequential_has_no_place_for_a_promise(tmp_path: Path) -> None:
    layers = keras.layers
    rows = [keras.Input((8, 8, 3)), layers.Resizing(6, 6), layers.Conv2D(3, 2)]
    model = randomize(keras.Sequential([*rows, layers.BatchNormalization(name="bn")]))
    model.save(tmp_path / "m.keras")
    report = bnfold.fold(tmp_path / "m.keras", tmp_path / "out.keras", inference=True)
    assert report.written
    assert len(report.plan.folds) == 1
    assert [len(one) for one in report.to_dict()["inference"].values()] == [0, 1]
    assert report.verification is not None
    assert any("for inference only" in one for one in report.verification.warnings)


def test_a_nested_sequential_is_told_where_it_is_called(tmp_path: Path) -> None:
    layers = keras.layers
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomZoom(0.1)], name="augment")
    first = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(3, 2)(augment(first)))
    randomize(keras.Model(first, x)).save(tmp_path / "m.keras")
    report = bnfold.fold(tmp_path / "m.keras", tmp_path / "out.keras", inference=True)
    assert report.written
    assert len(report.plan.folds) == 1
    assert [len(one) for one in report.to_dict()["inference"].values()] == [2, 0]
    modes = training_modes.measured(keras, load(tmp_path / "out.keras"))
    assert not any(one for found in modes["plain"].values() for one in found)


def test_a_promise_takes_the_place_of_an_argument_without_a_name(tmp_path: Path) -> None:
    layers = keras.layers
    augment = keras.Sequential([keras.Input((6, 6, 3)), layers.RandomFlip()], name="augment")
    first = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(3, 2)(augment(first, None)))
    randomize(keras.Model(first, x)).save(tmp_path / "m.keras")
    report = bnfold.fold(tmp_path / "m.keras", tmp_path / "out.keras", inference=True)
    assert report.written
    assert len(report.plan.folds) == 1


def test_the_promise_of_an_export(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.keras", "flip")
    report = bnfold.export(path, tmp_path / "m.onnx", inference=True)
    assert report.written
    assert report.plan is not None
    assert len(report.plan.folds) == 2
    with pytest.raises(TypeError, match="inference"):
        bnfold.export(path, tmp_path / "n.onnx", inference=True, fold=False)
