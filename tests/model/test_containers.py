"""What a file holds survives: all of it a round trip, all but what folds a fold."""

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import graphs
import h5py
import numpy as np
import pytest
import support
import tensorflow
from places import FIXTURES
from support import keras
from tiers import some

from bnfold.errors import UnreadableModelError
from bnfold.folding.plan import Plan, plan
from bnfold.model import keras_json
from bnfold.model.container.hdf5 import read_names
from bnfold.model.container.model_file import ModelFile, open_model
from bnfold.model.graph import walk_all

layers = keras.layers

FORMS = (".keras", "", ".h5")
"""A suffix for each container; none is a directory."""

STORED = {
    "textbook_mlp_keras215.h5": True,
    "textbook_mlp_explicit_keras315.keras": True,
    "digits_cnn_keras213.keras": False,
    "digits_cnn_keras215.keras": False,
    "digits_cnn_keras215.h5": False,
    "digits_cnn_keras30.keras": True,
    "digits_cnn_keras36.keras": True,
    "digits_cnn_keras315.keras": True,
    "digits_cnn_keras315_dir": True,
    "digits_cnn_keras315.h5": True,
    "branches_keras215.keras": False,
    "branches_keras215.h5": False,
    "branches_keras30.keras": True,
    "branches_keras36.keras": True,
    "branches_keras315.keras": True,
}
"""Every stored model, and whether Keras 3.15 can load it."""


# What files hold.


def save(model: keras.Model, path: Path) -> Path:
    model.save(path, **({} if path.suffix else {"zipped": False}))
    return path


def round_trip(source: Path, target: Path) -> Path:
    with open_model(source) as file:
        file.write(file.graph, target, {})
    return target


def members(path: Path) -> dict[str, bytes]:
    """The files in a `.keras` archive or directory."""
    if path.is_dir():
        files = (found for found in path.rglob("*") if found.is_file())
        return {found.relative_to(path).as_posix(): found.read_bytes() for found in files}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def settings(path: Path) -> Any:
    """A file's config, without what `compile` left in it."""
    if path.suffix == ".h5":
        with support.open_weights(path) as file:
            return without_compile_config(json.loads(file.attrs["model_config"]))
    return without_compile_config(json.loads(members(path)["config.json"]))


def without_compile_config(value: Any) -> Any:
    if isinstance(value, list):
        return [without_compile_config(item) for item in value]
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "compile_config"}
        return {key: without_compile_config(item) for key, item in kept.items()}
    return value


def variables(path: Path) -> dict[str, support.Stored]:
    """Every variable but those of optimizers, nested ones included."""
    found = support.datasets(path)
    return {name: stored for name, stored in found.items() if not is_of_optimizer(name)}


def is_of_optimizer(name: str) -> bool:
    return not {"optimizer", "optimizer_weights"}.isdisjoint(name.split("/"))


def attributes(path: Path) -> dict[str, Any]:
    """Every attribute of every group of the weights but optimizers'."""
    found: dict[str, Any] = {}

    def note(name: str, node: Any) -> None:
        if not is_of_optimizer(name):
            found.update({f"{name}@{key}": plain(node.attrs[key]) for key in node.attrs})

    with support.open_weights(path) as file:
        file.visititems(note)
    return found


def plain(value: Any) -> Any:
    """An attribute without the difference between texts of fixed and of any length."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    return value.decode() if isinstance(value, bytes) else str(value)


def assets(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in members(path).items() if name.startswith("assets/")}


def check_lossless(source: Path, target: Path) -> None:
    assert settings(target) == settings(source)
    assert variables(target) == variables(source)
    assert attributes(target) == attributes(source)
    if source.suffix != ".h5":
        assert assets(target) == assets(source)
        old, new = (json.loads(members(path)["metadata.json"]) for path in (source, target))
        assert {key: value for key, value in new.items() if key != "bnfold"} == old


def by_layer(file: ModelFile) -> dict[tuple[str, ...], list[bytes] | None]:
    """The bytes of every variable, by the layer whose they are."""
    return {
        path: None if layer.weights is None else [w.read().tobytes() for w in layer.weights]
        for path, layer in walk_all(file.graph)
    }


def check_untouched(source: Path, target: Path) -> Plan:
    """All layers that a fold does not name have the variables they had; returns the fold's plan."""
    with open_model(source) as before, open_model(target) as after:
        planned = plan(before.graph)
        gone = {fold.batchnorm.path for fold in planned.folds}
        changed = {absorber.layer for fold in planned.folds for absorber in fold.absorbers}
        old, new = by_layer(before), by_layer(after)
    stand_ins = {path for path in gone if path in new}
    assert not any(new[path] for path in stand_ins)
    assert set(new) - stand_ins == set(old) - gone - {p for p in old if p[:-1] in gone}
    for path in set(new) - changed - stand_ins:
        assert new[path] == old[path], path
    return planned


# Models, each with inputs and with something to fold.

Case = tuple[keras.Model, Any]
MODELS: dict[str, Callable[[], Case]] = {}


def model_case(build: Callable[[], Case]) -> Callable[[], Case]:
    MODELS[build.__name__] = build
    return build


def normed(tensor: Any, units: int = 4) -> Any:
    return layers.BatchNormalization()(layers.Dense(units)(tensor))


def finish(model: keras.Model, seed: int = 0) -> Case:
    support.randomize(model, seed)
    return model, support.samples(model)


def compile_and_build(model: keras.Model) -> None:
    """Compile a model, with an optimizer that has variables of its own already."""
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)


@model_case
def compiled() -> Case:
    entry = keras.Input((4,))
    model, inputs = finish(keras.Model(entry, layers.Dense(2)(normed(entry))))
    compile_and_build(model)
    return model, inputs


@model_case
def compiled_inside() -> Case:
    inside = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()])
    entry = keras.Input((4,))
    deep = keras.Model(entry, inside(normed(entry)))
    compile_and_build(inside)
    compile_and_build(deep)
    model = keras.Sequential([keras.Input((4,)), deep, layers.Dense(2)])
    compile_and_build(model)
    return finish(model)


@model_case
def unknown_class() -> Case:
    first, second = keras.Input((3,)), keras.Input((3,))
    mixed = graphs.Gate()(normed(first, 3), second, gate=first, mask=normed(second, 3))
    return finish(keras.Model([first, second], normed(mixed, 3)))


@model_case
def layers_in_layers() -> Case:
    entry = keras.Input((5, 4))
    state = layers.Bidirectional(layers.LSTM(2, return_sequences=True))(normed(entry))
    state = layers.MultiHeadAttention(2, 3)(state, normed(entry))
    state = layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True)(state)
    state = layers.SpectralNormalization(layers.Dense(4))(state)
    state = layers.TimeDistributed(layers.Dense(4))(state)
    return finish(keras.Model(entry, layers.BatchNormalization()(state)))


@model_case
def random_layers() -> Case:
    entry = keras.Input((4,))
    state = layers.Dropout(0.5, seed=3)(normed(entry))
    return finish(keras.Model(entry, normed(layers.GaussianNoise(0.5)(state))))


@model_case
def late_sequential() -> Case:
    inside = keras.Sequential([layers.Dense(3), layers.BatchNormalization()])
    model = keras.Sequential([inside, layers.Dense(4), layers.BatchNormalization()])
    model.build((None, 4))
    return finish(model)


@model_case
def one_layer_in_two_places() -> Case:
    """Stored where Keras meets it first: inside its wrapper only when the norm is gone."""
    entry = keras.Input((5, 4))
    shared = layers.Dense(4)
    wrapped = layers.ReLU()(layers.TimeDistributed(shared)(entry))
    return finish(keras.Model(entry, layers.Subtract()([wrapped, normed(shared(entry))])))


@pytest.fixture(params=["bfloat16", "float16", "float64", "mixed_float16", "mixed_bfloat16"])
def policy(request: pytest.FixtureRequest) -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.fixture(autouse=True)
def fresh_names() -> None:
    keras.backend.clear_session(free_memory=False)


# By default every second pair. There are three forms, so that each model and each form is there,
# and the forms that one test leaves out are those that the next one takes.
@pytest.mark.parametrize(("name", "form"), some(product(MODELS, FORMS), 2, 0))
@pytest.mark.few(3)
def test_nothing_is_lost(name: str, form: str, tmp_path: Path) -> None:
    model, inputs = MODELS[name]()
    source = save(model, tmp_path / f"original{form}")
    target = round_trip(source, tmp_path / f"written{form}")
    check_lossless(source, target)
    check_same_outputs(model, target, inputs, allowed=0.0)


@pytest.mark.parametrize(("name", "form"), some(product(MODELS, FORMS), 2, 1))
@pytest.mark.few(2)
def test_a_fold_leaves_the_rest_alone(name: str, form: str, tmp_path: Path) -> None:
    model, inputs = MODELS[name]()
    source = save(model, tmp_path / f"original{form}")
    support.fold_file(source, tmp_path / f"folded{form}")
    assert check_untouched(source, tmp_path / f"folded{form}").folds
    check_same_outputs(model, tmp_path / f"folded{form}", inputs)


def check_same_outputs(
    model: keras.Model, file: Path, inputs: Any, allowed: float | None = None
) -> None:
    allowed = support.tolerance(model) if allowed is None else allowed
    expected = support.outputs(model, inputs, training=False)
    found = support.outputs(support.load(file), inputs, training=False)
    assert support.difference(expected, found) <= allowed


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.few(2)
def test_dtypes(policy: str, form: str, tmp_path: Path) -> None:
    entry = keras.Input((5, 4))
    inside = keras.Sequential([layers.Dense(4, use_bias=False), layers.BatchNormalization()])
    state = inside(layers.Conv1D(4, 2)(entry))
    model, inputs = finish(keras.Model(entry, normed(state)))
    source = save(model, tmp_path / f"original{form}")
    target = round_trip(source, tmp_path / f"written{form}")
    check_lossless(source, target)
    support.fold_file(source, tmp_path / f"folded{form}")
    check_untouched(source, tmp_path / f"folded{form}")
    if (policy, form) != ("bfloat16", ".h5"):  # Keras cannot load it, nor the original
        check_same_outputs(model, target, inputs, allowed=0.0)
        check_same_outputs(model, tmp_path / f"folded{form}", inputs)


# What training left.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [compiled, compiled_inside])
@pytest.mark.few(3)
def test_training_state_is_dropped(build: Any, form: str, tmp_path: Path) -> None:
    model, _ = build()
    source = save(model, tmp_path / f"original{form}")
    target = round_trip(source, tmp_path / f"written{form}")
    with open_model(source) as before, open_model(target) as after:
        assert before.dropped == ("compile_config", "optimizer state")
        assert after.dropped == ()
    assert "optimizer" not in str(settings(target))
    with support.open_weights(target) as file:
        names: list[str] = []
        file.visit(names.append)
        assert not any("optimizer" in name for name in names)
        assert "training_config" not in file.attrs
    assert not keras.models.load_model(target).compiled


# Assets.


def lookup_branches(words: str) -> keras.Model:
    """Two vocabularies that change places when the norm is removed."""
    entry = keras.Input((1,), dtype="string")
    sides = [looked_up(layers.StringLookup(), words[offset:], entry) for offset in range(2)]
    norm, active = layers.BatchNormalization()(sides[0]), layers.LeakyReLU()(sides[1])
    return keras.Model(entry, layers.Subtract()([norm, active]))


def looked_up(layer: layers.Layer, words: str, entry: Any) -> Any:
    layer.adapt(list(words))
    numbers = layers.Embedding(len(set(words)) + 2, 3)(layer(entry))
    return layers.Dense(3)(layers.GlobalMaxPooling1D()(numbers))


def text_model() -> Case:
    entry = keras.Input((1,), dtype="string")
    text = looked_up(layers.TextVectorization(), "aabc", entry)
    nested = [lookup_branches("aaabbc")(entry), lookup_branches("eeeddcb")(entry)]
    state = layers.Subtract()(
        [normed(nested[0], 3), layers.LeakyReLU()(layers.Dense(3)(nested[1]))]
    )
    model = keras.Model(entry, layers.Subtract()([normed(text, 3), state]))
    support.randomize(model)
    return model, tensorflow.constant([["a"], ["b"], ["e"], ["unknown"]])


@pytest.mark.parametrize("form", [".keras", ""])
@pytest.mark.few(1)
def test_assets_move_with_their_layer(form: str, tmp_path: Path) -> None:
    model, inputs = text_model()
    source = save(model, tmp_path / f"original{form}")
    target = round_trip(source, tmp_path / f"written{form}")
    check_lossless(source, target)
    planned = support.fold_file(source, tmp_path / f"folded{form}")
    assert len(planned.folds) == 4
    before, after = assets(source), assets(tmp_path / f"folded{form}")
    assert sorted(before.values()) == sorted(after.values())
    assert before != after
    check_same_outputs(model, tmp_path / f"folded{form}", inputs)


# Shapes that a container can take.


def test_a_compressed_archive_is_read_all_the_same(tmp_path: Path) -> None:
    model, _ = compiled_inside()
    source = save(model, tmp_path / "stored.keras")
    with zipfile.ZipFile(tmp_path / "small.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members(source).items():
            archive.writestr(name, content)
    for name in ("stored", "small"):
        support.fold_file(tmp_path / f"{name}.keras", tmp_path / f"{name}_folded.keras")
    folded = [(tmp_path / f"{name}_folded.keras").read_bytes() for name in ("stored", "small")]
    assert folded[0] == folded[1]


def test_extra_members_survive(tmp_path: Path) -> None:
    source = save(compiled()[0], tmp_path / "original.keras")
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("notes/readme.txt", b"mine")
    assert members(round_trip(source, tmp_path / "written.keras"))["notes/readme.txt"] == b"mine"


@pytest.mark.parametrize(("form", "wrong"), [(".keras", ".h5"), (".h5", ".keras"), ("", ".keras")])
def test_a_wrong_suffix_is_no_obstacle(form: str, wrong: str, tmp_path: Path) -> None:
    model, inputs = late_sequential()
    source = save(model, tmp_path / f"original{form}")
    source.rename(tmp_path / f"renamed{wrong}")
    support.fold_file(tmp_path / f"renamed{wrong}", tmp_path / f"folded{form}")
    check_same_outputs(model, tmp_path / f"folded{form}", inputs)


def test_names_longer_than_an_hdf5_attribute(tmp_path: Path) -> None:
    entry = state = keras.Input((2,), name="entry")
    for number in range(90):
        state = layers.Activation("linear", name=f"{number:02}_{'long' * 200}")(state)
    state = layers.Dense(2, name="dense")(state)
    model, inputs = finish(keras.Model(entry, layers.BatchNormalization(name="bn")(state)))
    source = save(model, tmp_path / "original.h5")
    with support.open_weights(source) as file:
        assert "layer_names1" in file["model_weights"].attrs
    target = round_trip(source, tmp_path / "written.h5")
    assert settings(target) == settings(source)
    assert variables(target) == variables(source)
    assert listed_layers(target) == listed_layers(source)
    support.fold_file(source, tmp_path / "folded.h5")
    check_same_outputs(model, tmp_path / "folded.h5", inputs)


def listed_layers(path: Path) -> list[str]:
    with support.open_weights(path) as file:
        return read_names(file["model_weights"], "layer_names")


def test_new_biases_in_a_legacy_file_get_names_of_their_own(tmp_path: Path) -> None:
    """Two of one shape in one group once went by one name."""
    pair = [layers.Dense(4, use_bias=False), layers.BatchNormalization()]
    other = [layers.Dense(4, use_bias=False), layers.BatchNormalization(), layers.Dense(4)]
    inside = keras.Sequential([keras.Input((4,)), *pair, *other])
    model, inputs = finish(keras.Sequential([keras.Input((4,)), inside]))
    support.fold_file(save(model, tmp_path / "original.h5"), tmp_path / "folded.h5")
    with support.open_weights(tmp_path / "folded.h5") as file:
        group = file["model_weights"][inside.name]
        directories = {layer.name: 0 for layer in inside.layers if isinstance(layer, layers.Dense)}
        for name in group.attrs["weight_names"]:
            directories[str(name).split("/")[-2]] += 1
    assert set(directories.values()) == {2}
    check_same_outputs(model, tmp_path / "folded.h5", inputs)


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("frozen", ["first", "second", "norm", "model"])
@pytest.mark.few(3)
def test_frozen_parts_of_a_nested_model(kind: str, frozen: str, tmp_path: Path) -> None:
    """A legacy file lists the trainable variables of a nested model before all others."""
    entry = keras.Input((4,))
    first, second = layers.Dense(4, use_bias=False), layers.Dense(4, use_bias=False)
    norm = layers.BatchNormalization()
    chain = [first, norm, second, layers.BatchNormalization()]
    if kind == "sequential":
        inside = keras.Sequential([entry, *chain])
    else:
        state = entry
        for layer in chain:
            state = layer(state)
        inside = keras.Model(entry, state)
    model, inputs = finish(keras.Sequential([keras.Input((4,)), inside, layers.Dense(2)]))
    {"first": first, "second": second, "norm": norm, "model": inside}[frozen].trainable = False
    for form in (".keras", ".h5"):
        source = save(model, tmp_path / f"original{form}")
        planned = support.fold_file(source, tmp_path / f"folded{form}")
        assert len(planned.folds) == 2
        check_same_outputs(model, tmp_path / f"folded{form}", inputs)


# The same again.


def test_same_input_same_bytes(tmp_path: Path) -> None:
    model, _ = compiled_inside()
    sources = [save(model, tmp_path / f"original{form}") for form in FORMS]
    here = [folded_copy(source, tmp_path / "here") for source in sources]
    time.sleep(1.1)  # HDF5 and ZIP count in seconds
    assert [folded_copy(source, tmp_path / "there") for source in sources] == here


def folded_copy(source: Path, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    copy, target = folder / source.name, folder / f"folded{source.suffix}"
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
    support.fold_file(copy, target)
    return members(target) if target.is_dir() else target.read_bytes()


@pytest.mark.parametrize(("name", "form"), some(product(MODELS, FORMS), 4, 2))
def test_folding_a_folded_file_changes_nothing(name: str, form: str, tmp_path: Path) -> None:
    source = save(MODELS[name]()[0], tmp_path / f"original{form}")
    once, twice = tmp_path / f"once{form}", tmp_path / f"twice{form}"
    support.fold_file(source, once)
    assert not support.fold_file(once, twice).folds
    assert support.datasets(twice) == support.datasets(once)
    assert settings(twice) == settings(once)


# Files of other versions.


@pytest.mark.parametrize("name", some(STORED))
def test_stored_files_lose_nothing(
    name: str, fixture_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_model(name)
    check_lossless(source, round_trip(source, tmp_path / f"written{source.suffix}"))


@pytest.mark.parametrize("name", some(STORED, first=1))
@pytest.mark.few(3)
def test_stored_files_fold(name: str, fixture_model: Callable[[str], Path], tmp_path: Path) -> None:
    source = fixture_model(name)
    target = tmp_path / f"folded{source.suffix}"
    support.fold_file(source, target)
    assert check_untouched(source, target).folds
    with open_model(source) as before, open_model(target) as after:
        assert after.keras_version == before.keras_version
        assert after.graph.inputs == before.graph.inputs
        assert len(after.graph.outputs) == len(before.graph.outputs)
        assert (
            keras_json.to_json(after.graph).keys()
            == keras_json.to_json(keras_json.decompile(before.graph)).keys()
        )
    if STORED[name]:
        check_stored_outputs(name, target)


def check_stored_outputs(name: str, folded: Path) -> None:
    """The folded file computes what the version that wrote the original computed."""
    with np.load(FIXTURES / f"{name.replace('.', '_')}.npz") as stored:
        inputs = [stored[key] for key in sorted(stored) if key.startswith("input_")]
        expected = [stored[key] for key in sorted(stored) if key.startswith("output_")]
    model = support.load(folded)
    found = support.outputs(model, inputs if len(inputs) > 1 else inputs[0], training=False)
    assert support.difference([value.astype(np.float64) for value in expected], found) < 1e-4


def as_on_windows(source: Path, target: Path) -> Path:
    """The file as Keras 2 saves it on Windows: names of groups are joined as paths are there."""

    def flat(group: h5py.Group, place: str = "") -> None:
        for key, node in group.items():
            if key == "vars":
                new.require_group(place or "/").copy(node, "vars")
            else:
                flat(node, f"{place}\\{key}" if place else key)

    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as archive:
        for member in old.namelist():
            content = old.read(member)
            if member == "model.weights.h5":
                made = io.BytesIO()
                with h5py.File(io.BytesIO(content)) as weights, h5py.File(made, "w") as new:
                    flat(weights)
                content = made.getvalue()
            archive.writestr(member, content)
    return target


@pytest.mark.parametrize("name", ["digits_cnn_keras215.keras", "branches_keras215.keras"])
def test_a_file_that_was_saved_on_windows_is_read_and_folded_as_any_other(
    name: str, fixture_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_model(name)
    windows = as_on_windows(source, tmp_path / "windows.keras")
    assert any("\\" in key for key in support.open_weights(windows))
    with open_model(source) as one, open_model(windows) as other:
        assert by_layer(other) == by_layer(one)
        assert other.optimizers[()].steps == one.optimizers[()].steps
        planned = [
            support.fold_file(p, tmp_path / f"{p.stem}_folded.keras") for p in (source, windows)
        ]
    assert len(planned[1].folds) == len(planned[0].folds) > 0
    folded = [support.datasets(tmp_path / f"{p.stem}_folded.keras") for p in (source, windows)]
    assert folded[0] == folded[1]


def test_statistics_are_rewritten_in_a_file_that_was_saved_on_windows(
    fixture_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_model("digits_cnn_keras215.keras")
    windows = as_on_windows(source, tmp_path / "windows.keras")
    with open_model(windows) as file:
        (path, layer) = next(one for one in walk_all(file.graph) if one[1].weights)
        changes = {w.source: w.read() + 1 for w in layer.weights or () if w.source is not None}
        expected = {**by_layer(file), path: [values.tobytes() for values in changes.values()]}
        file.rewrite(changes, tmp_path / "changed.keras", {})
    with open_model(tmp_path / "changed.keras") as file:
        assert by_layer(file) == expected
    assert any("\\" in key for key in support.open_weights(tmp_path / "changed.keras"))


@pytest.mark.parametrize("version", ["2.14.0", "2.14.1", "2.13.1"])
def test_keras_2_14_numbers_layers_as_later_ones_do_under_the_name_of_2_13(
    version: str, fixture_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source, path = fixture_model("branches_keras215.keras"), tmp_path / "m.keras"
    stream = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        stream.write(old.read("model.weights.h5"))
        with h5py.File(stream, "r+") as file:
            names: list[str] = []
            file.visit(lambda name: names.append(name) if name.endswith("layers") else None)
            for name in sorted(names, key=len, reverse=True):
                file.move(name, f"{name.removesuffix('layers')}_layer_checkpoint_dependencies")
        new.writestr("metadata.json", json.dumps({"keras_version": version}))
        new.writestr("config.json", old.read("config.json"))
        new.writestr("model.weights.h5", stream.getvalue())
    if version == "2.13.1":
        with pytest.raises(UnreadableModelError, match="belong to no layer"), open_model(path):
            pass
        return
    with open_model(source) as before, open_model(path) as after:
        found = [
            {n: one.weights or () for n, one in m.graph.layers.items()} for m in (before, after)
        ]
        assert [*found[0]] == [*found[1]]
        for name, weights in found[0].items():
            pairs = zip(weights, found[1][name], strict=True)
            assert all(np.array_equal(a.read(), b.read()) for a, b in pairs), name
