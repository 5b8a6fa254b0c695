"""What is loaded is the model that is in the file."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tf_keras
from click.testing import CliRunner
from old_sequential import save
from schemas import validate
from support import chain, keras, outputs, randomize
from tiers import some

import bnfold
from bnfold.cli import main
from bnfold.errors import UnreadableModelError
from bnfold.model import declared
from bnfold.model.container import hdf5
from bnfold.running import libraries, loading, process, safety
from bnfold.running.loading import LoadedModel
from bnfold.running.options import Loading

L = keras.layers
NOTE = "loaded with an InputLayer before"


def sequential(*layers: Any, shape: tuple[int | None, ...] = (10,), **options: Any) -> Any:
    return keras.Sequential([keras.Input(shape, **options), *layers])


MODELS = {
    "dense": lambda: sequential(L.Dense(8), L.BatchNormalization(), L.Dense(3)),
    "dropout": lambda: sequential(L.Dropout(0.2), L.Dense(8), L.BatchNormalization()),
    "norm": lambda: sequential(L.BatchNormalization(), L.Dense(3)),
    "embedding": lambda: sequential(L.Embedding(7, 4), L.BatchNormalization(), shape=(5,)),
    "recurrent": lambda: sequential(L.LSTM(4), L.BatchNormalization(), shape=(5, 3)),
    "convolution": lambda: sequential(L.Conv1D(4, 3), L.BatchNormalization(), shape=(None, 3)),
    "images": lambda: sequential(L.Conv2D(4, 3), L.BatchNormalization(), shape=(6, 6, 2)),
    "wrapped": lambda: sequential(
        L.TimeDistributed(L.Dense(3)), L.BatchNormalization(), shape=(5, 6)
    ),
    "both ways": lambda: sequential(
        L.Bidirectional(L.GRU(3)), L.BatchNormalization(), shape=(5, 6)
    ),
    "one in another": lambda: sequential(
        sequential(L.Dense(8), L.BatchNormalization()), L.Dense(3)
    ),
    "in a functional model": lambda: chain(
        (10,), sequential(L.Dense(8), L.BatchNormalization()), L.Dense(3)
    ),
}


def load(path: Path) -> LoadedModel:
    libraries.start()
    (loaded,) = loading.load_all([safety.read_facts(path)], Loading())
    return loaded


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.few(5)
def test_a_sequential_without_an_input_layer_reads_what_its_first_layer_says(
    name: str, tmp_path: Path
) -> None:
    """Keras 3 takes its `batch_input_shape` for a shape without the batch."""
    model = randomize(MODELS[name]())
    shape = tuple(model.inputs[0].shape)
    loaded = load(save(model, tmp_path / "old.h5"))
    assert loaded.library == "keras"
    assert tuple(loaded.model.inputs[0].shape) == shape
    assert len(loaded.notes) == 1
    drawn = np.random.default_rng(3).uniform(0, 5, (4, *(size or 9 for size in shape[1:])))
    inputs = drawn.astype("float32")
    np.testing.assert_allclose(outputs(loaded.model, inputs)[0], outputs(model, inputs)[0], 1e-6)


def test_a_batch_that_is_fixed_stays_fixed(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input(batch_shape=(4, 10)), L.Dense(8), L.BatchNormalization()])
    loaded = load(save(model, tmp_path / "old.h5"))
    assert tuple(loaded.model.inputs[0].shape) == (4, 10)


def test_the_bare_list_of_layers_before_keras_2_2_3_is_read_too(tmp_path: Path) -> None:
    model = randomize(MODELS["dense"]())
    path = save(model, tmp_path / "old.h5")
    with h5py.File(path) as file:
        entry = json.loads(file.attrs["model_config"])
    hdf5.replace_text(
        path, "model_config", json.dumps({**entry, "config": entry["config"]["layers"]})
    )
    loaded = load(path)
    assert (loaded.library, tuple(loaded.model.inputs[0].shape)) == ("keras", (None, 10))
    inputs = np.random.default_rng(3).normal(size=(4, 10)).astype("float32")
    np.testing.assert_allclose(outputs(loaded.model, inputs)[0], outputs(model, inputs)[0], 1e-6)


def test_a_config_of_any_length_can_be_replaced(tmp_path: Path) -> None:
    """Texts of a fixed length end at 64 KiB."""
    path = save(MODELS["dense"](), tmp_path / "old.h5")
    hdf5.replace_text(path, "model_config", text := "long" * (1 << 16))
    with h5py.File(path) as file:
        assert file.attrs["model_config"] == text


def test_no_number_is_drawn_for_a_weight_that_the_file_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [L.Embedding(7, 6), L.Conv1D(4, 2), L.LSTM(4, recurrent_initializer="orthogonal")]
    model = sequential(*layers, L.Dense(3, kernel_initializer="random_normal"), shape=(5,))
    model.save(tmp_path / "model.keras")
    drawn, own = [], process.is_own
    draw = keras.initializers.VarianceScaling.__call__

    def call(*args: Any, **more: Any) -> Any:
        drawn.append(args)
        return draw(*args, **more)

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", call)
    for is_own in (True, own()):
        monkeypatch.setattr(process, "is_own", lambda is_own=is_own: is_own)
        loaded = load(tmp_path / "model.keras")
        assert bool(drawn) is not is_own
        for one, other in zip(loaded.model.weights, model.weights, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert keras.initializers.VarianceScaling.__call__ is call


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    path = save(MODELS["dense"](), tmp_path / "old.h5")
    before = path.read_bytes()
    load(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["old.h5"]


def test_what_keras_misreads_all_the_same_is_left_to_keras_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tf_keras.layers
    model = tf_keras.Sequential([tf_keras.Input((10,)), layers.Dense(8), layers.Dense(3)])
    path = save(model, tmp_path / "old.h5")
    monkeypatch.setattr(declared, "with_input_layers", lambda entry: (entry, ()))
    loaded = load(path)
    assert (loaded.library, tuple(loaded.model.inputs[0].shape)) == ("tf_keras", (None, 10))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"batch_shape": [None, 10]}, None),
        ({"batch_shape": [None, 5, 10]}, r"input 0 is \(any, 10\) float32, not \(any, 5, 10\)"),
        ({"batch_shape": [None, 11]}, r"input 0 is \(any, 10\) float32, not \(any, 11\)"),
        ({"dtype": "int32"}, r"input 0 is \(any, 10\) float32, not \(any, 10\) int32"),
    ],
)
def test_another_model_than_the_file_describes_is_refused(
    spoil: dict[str, Any], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if Keras had misread the config, whatever the reason."""
    model = chain((10,), L.Dense(3), L.BatchNormalization())
    model.save(tmp_path / "described.keras")
    facts = safety.read_facts(tmp_path / "described.keras")
    layer = facts.config["config"]["layers"][0]["config"]
    layer |= spoil
    with monkeypatch.context() as patch:
        patch.setattr(keras.models, "load_model", lambda *_, **__: model)
        path = save_config(tmp_path / "spoilt.h5", facts.config)
        if said is None:
            load(path)
            return
        with pytest.raises(UnreadableModelError, match=f"keras loads another model .*{said}"):
            load(path)


def save_config(path: Path, config: dict[str, Any]) -> Path:
    chain((10,), L.Dense(3)).save(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "3.15.0"
    return path


# --- what runs a model says so ---


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    save(randomize(MODELS["dense"]()), folder / "old.h5")
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(64, 10)))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    # Each loads the model anew, so the default run takes every second command.
    some(
        [
            ("export", ["export", "old.h5", "out.onnx", "--data", "data.npy"]),
            ("fold", ["fold", "old.h5", "out.h5", "--data", "data.npy"]),
            ("verify", ["verify", "old.h5", "old.h5", "--data", "data.npy"]),
            ("recalibrate", ["recalibrate", "old.h5", "new.h5", "--data", "data.npy"]),
            ("inspect", ["inspect", "old.h5", "--data", "data.npy", "--fail-on", "never"]),
            ("bench", ["bench", "old.h5", "--runtime", "keras", "--seconds", "0.01"]),
        ]
    ),
)
def test_every_command_that_runs_the_model_takes_right_data_and_says_what_it_loaded(
    name: str, words: list[str], old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(old)
    result = CliRunner().invoke(main, [*words, "--format", "json"])
    assert result.exit_code == 0, result.stderr
    assert NOTE in result.stdout
    validate(json.loads(result.stdout), name)


def test_an_export_has_the_rank_of_the_file(old: Path, tmp_path: Path) -> None:
    found = bnfold.export(old / "old.h5", tmp_path / "out.onnx")
    assert [port.shape for port in found.inputs] == [(None, 10)]
    assert found.inputs[0].name.endswith("_input")


def test_a_lack_of_memory_is_not_a_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed has nothing to do with it."""

    def imported(_: str) -> None:
        raise MemoryError

    monkeypatch.setattr(libraries, "imported", imported)
    with pytest.raises(MemoryError):
        libraries.start()
