"""What bnfold reads in a file is what Keras reads in it, or bnfold refuses the file.

Each file is the work of Keras with something odd done to it that two readers could see in two ways.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.errors import BnfoldError
from bnfold.model.container.model_file import open_model

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
Read = dict[str, list[NDArray[np.float32]]]
Odd = Callable[[Path], object]


def model(seed: int) -> keras.Model:
    """Two Dense layers that could be swapped, with BatchNormalization layers that could be."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((4,), name="x")
    for number in range(2):
        x = keras.layers.Dense(4, name=f"d{number}")(x)
        x = keras.layers.BatchNormalization(name=f"b{number}")(x)
    found = keras.Model(inputs, x, name="m")
    generator = np.random.default_rng(seed)
    found.set_weights([generator.uniform(1, 2, one.shape) for one in found.get_weights()])
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for suffix in ("keras", "h5"):
        model(1).save(folder / f"m.{suffix}")
        model(2).save(folder / f"other.{suffix}")
    return folder


def by_keras(path: Path) -> Read:
    loaded = keras.saving.load_model(path, compile=False)
    return {layer.name: layer.get_weights() for layer in loaded.layers if layer.weights}


def by_bnfold(path: Path) -> Read | BnfoldError:
    try:
        with open_model(path) as found:
            layers = found.graph.layers.items()
            return {
                name: [weight.read() for weight in layer.weights]
                for name, layer in layers
                if layer.weights
            }
    except BnfoldError as error:
        return error


def same(one: Read, other: Read) -> bool:
    return one.keys() == other.keys() and all(
        len(one[name]) == len(other[name]) and all(map(np.array_equal, one[name], other[name]))
        for name in one
    )


# --- archives ------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in content.items():
            archive.writestr(name, one)


def more(**extra: bytes) -> Odd:
    """More members; those whose names are written with capitals come first."""
    return lambda path: put(path, {**extra, **members(path)})


def other(path: Path) -> bytes:
    return path.with_name(f"other{path.suffix}").read_bytes()


def other_member(name: str, under: str) -> Odd:
    """The other model's member under another name, before and behind the right one."""

    def edit(path: Path) -> None:
        found = members(path.with_name(f"other{path.suffix}"))[name]
        put(path, {under: found, **members(path), f"{under}2": found})

    return edit


def around(before: Callable[[Path], bytes], behind: Callable[[Path], bytes]) -> Odd:
    return lambda path: path.write_bytes(before(path) + path.read_bytes() + behind(path))


def nothing(_: Path) -> bytes:
    return b""


def twice(name: str) -> Odd:
    def edit(path: Path) -> None:
        content = members(path.with_name(f"other{path.suffix}"))[name]
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, content)

    return edit


@contextmanager
def weights_of(path: Path, userblock: int = 0) -> Iterator[h5py.File]:
    """The weights of an archive, to edit."""
    content = members(path)
    stream = io.BytesIO(content[WEIGHTS])
    with h5py.File(stream, "r+") as file:
        yield file
    put(path, {**content, WEIGHTS: stream.getvalue()})


OLD = "_layer_checkpoint_dependencies"


def renamed(path: Path) -> None:
    with weights_of(path) as file:
        file.move("layers", OLD)


def in_both_places(path: Path) -> None:
    with weights_of(path) as file:
        file.copy("layers", OLD)
        for name in ("dense", "batch_normalization"):
            file[f"{OLD}/{name}/vars/0"][...] = 3.0


def partly_in_both_places(path: Path) -> None:
    with weights_of(path) as file:
        file.create_group(OLD)
        file.move("layers/dense_1", f"{OLD}/dense_1")


def linked(path: Path) -> None:
    with weights_of(path) as file:
        file.move("layers", "elsewhere")
        file["layers"] = h5py.SoftLink("/elsewhere")


def linked_inside(path: Path) -> None:
    with weights_of(path) as file:
        file.move("layers/dense", "elsewhere")
        file["layers/dense"] = h5py.SoftLink("/elsewhere")


def called_bfloat16(path: Path) -> None:
    with weights_of(path) as file:
        file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"


def in_float64(path: Path) -> None:
    with weights_of(path) as file:
        values = file["layers/dense/vars/0"][...]
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = values.astype("f8")


def behind_a_user_block(path: Path) -> None:
    content = members(path)
    stream = io.BytesIO()
    with (
        h5py.File(io.BytesIO(content[WEIGHTS])) as old,
        h5py.File(stream, "w", userblock_size=1024) as new,
    ):
        for name in old:
            old.copy(name, new)
    put(path, {**content, WEIGHTS: b"x" * 1024 + stream.getvalue()[1024:]})


def compressed(path: Path) -> None:
    content = members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, one in content.items():
            archive.writestr(name, one)


def key_twice(path: Path) -> None:
    content = members(path)
    text = content[CONFIG].decode().replace('"name": "d0"', '"name": "d1", "name": "d0"', 1)
    put(path, {**content, CONFIG: text.encode()})


def with_a_mark(path: Path) -> None:
    content = members(path)
    put(path, {**content, CONFIG: json.dumps(json.loads(content[CONFIG])).encode("utf-8-sig")})


SAME, REFUSED = True, False
ARCHIVES: dict[str, tuple[Odd, bool]] = {
    "as it is": (lambda path: None, SAME),
    "bytes in front": (around(lambda _: b"bytes" * 9, nothing), REFUSED),
    "bytes in front that begin like an archive": (
        around(lambda _: b"PK\x03\x04" + bytes(99), nothing),
        SAME,
    ),
    "another archive in front": (around(other, nothing), SAME),
    "another archive behind": (around(nothing, other), SAME),
    "bytes behind": (around(nothing, lambda _: bytes(9)), SAME),
    "the config twice": (twice(CONFIG), REFUSED),
    "the weights twice": (twice(WEIGHTS), REFUSED),
    "another case": (other_member(WEIGHTS, "Model.Weights.H5"), SAME),
    "another case of the config": (other_member(CONFIG, "CONFIG.JSON"), SAME),
    "in a folder": (other_member(CONFIG, "a/config.json"), SAME),
    "in this folder": (other_member(CONFIG, "./config.json"), REFUSED),
    "with an empty folder": (other_member(WEIGHTS, "assets//model.weights.h5"), REFUSED),
    "weights in two formats": (more(**{"model.weights.npz": b"PK"}), SAME),
    "numbered as in Keras 3 where Keras 2.13 had them": (renamed, REFUSED),
    "in both places": (in_both_places, REFUSED),
    "partly in both places": (partly_in_both_places, REFUSED),
    "layers by a link": (linked, REFUSED),
    "a layer by a link": (linked_inside, REFUSED),
    "called bfloat16": (called_bfloat16, REFUSED),
    "in float64": (in_float64, SAME),
    "behind a user block": (behind_a_user_block, SAME),
    "compressed": (compressed, SAME),
    "a key twice": (key_twice, REFUSED),
    "a byte order mark": (with_a_mark, SAME),
}


def check(path: Path, expected: bool) -> None:
    found = by_bnfold(path)
    if expected is REFUSED:
        assert isinstance(found, BnfoldError), found
        return
    assert not isinstance(found, BnfoldError), found
    assert same(found, by_keras(path))


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.few(12)
def test_archives(case: str, saved: Path, tmp_path: Path) -> None:
    for one in saved.glob("*.keras"):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    odd, expected = ARCHIVES[case]
    odd(tmp_path / "m.keras")
    check(tmp_path / "m.keras", expected)


def test_directories(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "m"
    with zipfile.ZipFile(saved / "m.keras") as archive:
        archive.extractall(path)
    (path / "Config.json").write_text("{}")
    (path / "assets").mkdir()
    check(path, SAME)


# --- legacy files --------------------------------------------------------------------------------

GROUP = "model_weights"


def in_another_order(file: h5py.File) -> None:
    file[GROUP].attrs["layer_names"] = ["x", "d1", "b0", "d0", "b1"]


def without_layers_that_have_no_weights(file: h5py.File) -> None:
    file[GROUP].attrs["layer_names"] = ["d0", "b0", "d1", "b1"]


def in_parts(file: h5py.File) -> None:
    names = list(file[GROUP].attrs["layer_names"])
    del file[GROUP].attrs["layer_names"]
    for number in range(2):
        file[GROUP].attrs[f"layer_names{number}"] = names[3 * number : 3 * number + 3]


def whole_and_in_parts(file: h5py.File) -> None:
    file[GROUP].attrs["layer_names0"] = ["d1", "d0"]


def listed_twice(file: h5py.File) -> None:
    file[GROUP].attrs["layer_names"] = ["x", "d0", "d0", "d1", "b1"]


def names_at_the_root(file: h5py.File) -> None:
    file.attrs["layer_names"] = ["d1", "d0"]


def weights_in_another_order(file: h5py.File) -> None:
    group = file[f"{GROUP}/b0"]
    group.attrs["weight_names"] = list(group.attrs["weight_names"])[::-1]


LEGACY: dict[str, tuple[Callable[[h5py.File], object], bool]] = {
    "as it is": (lambda file: None, SAME),
    "in another order": (in_another_order, REFUSED),
    "only layers with weights": (without_layers_that_have_no_weights, SAME),
    "in parts": (in_parts, SAME),
    "whole and in parts": (whole_and_in_parts, SAME),
    "listed twice": (listed_twice, REFUSED),
    "names at the root": (names_at_the_root, SAME),
    "weights in another order": (weights_in_another_order, SAME),
}


@pytest.mark.parametrize("case", LEGACY)
def test_legacy_files(case: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes((saved / "m.h5").read_bytes())
    edit, expected = LEGACY[case]
    with h5py.File(path, "r+") as file:
        edit(file)
    check(path, expected)


# --- two files in one ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["both.keras", "both.h5", "both"])
def test_an_archive_behind_a_legacy_file(name: str, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes((saved / "m.h5").read_bytes() + (saved / "other.keras").read_bytes())
    check(path, REFUSED)
    if path.suffix:  # and Keras reads one or the other
        wanted = {"keras": "other.keras", "h5": "m.h5"}[path.suffix[1:]]
        assert same(by_keras(path), by_keras(saved / wanted))


@pytest.mark.parametrize("name", ["both.h5", "both"])
def test_a_legacy_file_inside_of_an_archive(name: str, saved: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with h5py.File(saved / "m.h5") as old, h5py.File(stream, "w", userblock_size=1024) as new:
        for key in old:
            old.copy(key, new)
        new.attrs.update(old.attrs)
    path = tmp_path / name
    head = b"PK\x03\x04" + bytes(1020)
    path.write_bytes(head + stream.getvalue()[1024:] + (saved / "other.keras").read_bytes())
    check(path, REFUSED)
    if path.suffix:
        assert same(by_keras(path), by_keras(saved / "m.h5"))
