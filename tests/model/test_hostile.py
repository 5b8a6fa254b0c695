"""Files that lie, climb out, blow up or break off: one line, exit 2, and nothing else happens.

The files are built here, byte by byte where need be; neither Keras nor TensorFlow takes part.
"""

import contextlib
import io
import json
import lzma
import os
import random
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import mutations
import numpy as np
import pytest
from archives import (
    CHANNELS,
    Edit,
    Json,
    chain,
    dense_arrays,
    directory_model,
    entry,
    fill,
    functional,
    keras_file,
    legacy_file,
    model_config,
    norm_arrays,
    weights,
)
from damage import MEMORY, harmless, invoke, refused, refused_in_little_memory
from places import FIXTURES, ROOT
from tiers import IS_ROOT, some

import bnfold
from bnfold.errors import UnsafeModelError
from bnfold.folding import state
from bnfold.folding.plan import plan
from bnfold.model import keras_json as config_module
from bnfold.model.container import guard, hdf5
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Weight
from bnfold.model.keras_json import parse_model
from bnfold.model.shapes import Shapes

# --- what must hold ------------------------------------------------------------------------------


def test_the_honest_files_are_read(tmp_path: Path) -> None:
    for path in (keras_file(tmp_path / "m.keras"), legacy_file(tmp_path / "m.h5")):
        assert len(bnfold.inspect(path).plan.folds) == 1
        assert harmless(path) == []


# --- no file at all ------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


NO_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "text": (lambda path: path.write_bytes(b"hello, world"), "neither"),
    "fifo": (fifo, "not a regular file"),
    "empty directory": (lambda path: path.mkdir(), "not a Keras model"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "link to itself": (lambda path: path.symlink_to(path), ""),
    "magic of a zip only": (lambda path: path.write_bytes(b"PK\x03\x04"), "damaged"),
    "magic of hdf5 only": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), ""),
}


@pytest.mark.parametrize("case", NO_MODELS)
def test_what_is_no_model(case: str, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    NO_MODELS[case][0](path)
    refused(path, says=NO_MODELS[case][1])


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    refused(tmp_path / ("n" * 300 + ".keras"))
    refused(tmp_path / ("n" * 9000 + ".keras"))


@pytest.mark.skipif(IS_ROOT, reason="root can read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    path.chmod(0)
    refused(path, says="Permission denied")


def test_a_link_to_a_model_is_read(tmp_path: Path) -> None:
    keras_file(tmp_path / "m.keras")
    (tmp_path / "link.keras").symlink_to("m.keras")
    assert harmless(tmp_path / "link.keras") == []


@pytest.mark.parametrize("part", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_linked_part_of_a_directory(part: str, tmp_path: Path) -> None:
    path = directory_model(tmp_path / "m")
    (path / part).rename(tmp_path / "elsewhere")
    (path / part).symlink_to(tmp_path / "elsewhere")
    refused(path, says="not a Keras model" if part == "nothing" else "symbolic link")


@pytest.mark.parametrize("part", ["config.json", "model.weights.h5"])
def test_a_part_that_is_a_pipe(part: str, tmp_path: Path) -> None:
    path = directory_model(tmp_path / "m")
    (path / part).unlink()
    os.mkfifo(path / part)
    refused(path)


def test_a_directory_of_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_MEMBERS", 2)
    refused(directory_model(tmp_path / "m"), says="more than 2 files")


def test_a_result_inside_its_source(tmp_path: Path) -> None:
    path = directory_model(tmp_path / "m")
    before = sorted(path.rglob("*"))
    result = invoke("fold", "--no-verify", path, path / "folded")
    assert result.exit_code == 2
    assert sorted(path.rglob("*")) == before


# --- ZIP -----------------------------------------------------------------------------------------


def with_member(path: Path, info: zipfile.ZipInfo | str, content: bytes = b"x") -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(info, content)


def named(name: str) -> Callable[[Path], None]:
    return lambda path: with_member(path, name)


def linked(path: Path) -> None:
    info = zipfile.ZipInfo("assets/link")
    info.external_attr = 0o120777 << 16
    with_member(path, info, b"/etc/passwd")


def patched(find: bytes, offset: int, value: bytes, *, last: bool = True) -> Callable[[Path], None]:
    """Overwrite bytes at an offset from the last (or first) occurrence of some others."""

    def patch(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = (data.rindex(find) if last else data.index(find)) + offset
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return patch


def central(name: bytes, offset: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite a field of a member's entry in the listing at the archive's end."""

    def patch(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.rindex(name) - 46 + offset
        assert data[at - offset : at - offset + 4] == b"PK\x01\x02"
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return patch


def deflated(name: str, content: bytes) -> Callable[[Path], None]:
    """Put a compressed member in the place of one of this name."""

    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        members[name] = content
        with zipfile.ZipFile(path, "w") as archive:
            for key, value in members.items():
                kind = zipfile.ZIP_DEFLATED if key == name else zipfile.ZIP_STORED
                archive.writestr(key, value, kind)

    return rewrite


def compressed_by(kind: int) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        content = weights()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps(model_config()))
            archive.writestr("model.weights.h5", content, kind)

    return rewrite


def corrupt_deflate(path: Path) -> None:
    deflated("config.json", json.dumps(model_config()).encode())(path)
    patched(b"config.json", len("config.json") + 40, b"\xff" * 40, last=False)(path)


WEIGHTS = b"model.weights.h5"
ZIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "duplicate": (named("config.json"), "two members"),
    "parent": (named("../evil"), "outside"),
    "parent inside": (named("assets/../../evil"), "outside"),
    "absolute": (named("/etc/evil"), "outside"),
    "backslash": (named("assets\\..\\evil"), "outside"),
    "drive": (named("C:/evil"), "outside"),
    "link": (linked, "symbolic link"),
    "encrypted": (central(WEIGHTS, 8, b"\x01\x00"), "encrypted"),
    "encrypted config": (central(b"config.json", 8, b"\x01\x00"), "encrypted"),
    "lzma": (compressed_by(zipfile.ZIP_LZMA), "compressed"),
    "bzip2": (compressed_by(zipfile.ZIP_BZIP2), "compressed"),
    "unknown method": (central(WEIGHTS, 10, b"\x63\x00"), "compressed"),
    "corrupt deflate": (corrupt_deflate, "damaged"),
    "bomb in config": (deflated("config.json", b" " * (20 << 20)), "bomb"),
    "bomb in metadata": (deflated("metadata.json", b" " * (20 << 20)), "bomb"),
    "bomb in weights": (deflated("model.weights.h5", b"\0" * (20 << 20)), "bomb"),
    "bomb in assets": (deflated("assets/a", b"\0" * (20 << 20)), "bomb"),
    "claims more": (central(WEIGHTS, 24, b"\xff\xff\xff\x7f"), "claims"),
    "claims less": (central(WEIGHTS, 24, b"\x10\x00\x00\x00"), ""),
    "config claims less": (central(b"config.json", 24, b"\x10\x00\x00\x00"), "damaged"),
    "offset past the end": (central(WEIGHTS, 42, b"\xff\xff\xff\x7f"), "damaged"),
    "offset into another": (central(WEIGHTS, 42, b"\0\0\0\0"), "overlaps"),
    "no local header": (central(WEIGHTS, 42, b"\x01\0\0\0"), "overlaps"),
    "other local name": (patched(WEIGHTS, 0, b"other.weights.h5", last=False), "damaged"),
    "zip64 without its field": (central(WEIGHTS, 20, b"\xff" * 8), "damaged"),
    "listing past the end": (patched(b"PK\x05\x06", 12, b"\xff\xff\xff\x7f"), "damaged"),
    "no listing": (patched(b"PK\x05\x06", 0, b"XXXX"), "damaged"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_archives_that_lie(case: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    ZIPS[case][0](path)
    refused(path, says=ZIPS[case][1])


def test_overlapping_members(tmp_path: Path) -> None:
    # One quoted inside the other: both share the same compressed bytes.
    path = keras_file(tmp_path / "m.keras", **{"assets/a": b"x"})
    data = path.read_bytes()
    at = data.rindex(b"assets/a") - 46
    offset = data[data.rindex(WEIGHTS) - 4 : data.rindex(WEIGHTS)]
    path.write_bytes(data[: at + 42] + offset + data[at + 46 :])
    refused(path, only_fold=True)


def test_a_long_listing(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    name = b"n" * 60000
    one = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0,
                      len(name), 0, 0, 0, 0, 0, 0) + name  # fmt: skip
    listing = one * 200
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 200, 200, len(listing), 4, 0)
    path.write_bytes(b"PK\x03\x04" + listing + end)
    refused(path, says="listing is too long")


def test_every_truncation(tmp_path: Path) -> None:
    whole = keras_file(tmp_path / "whole.keras").read_bytes()
    old = legacy_file(tmp_path / "whole.h5").read_bytes()
    for suffix, data in ((".keras", whole), (".h5", old)):
        path = tmp_path / f"m{suffix}"
        for size in range(0, len(data), 64 if suffix == ".keras" else 256):
            path.write_bytes(data[:size])
            assert len(harmless(path)) == 2, size


def test_a_deflated_bomb_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    text = b"[" + b"{}," * 20_000_000 + b"{}]"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", weights())
    refused_in_little_memory(path)


# --- HDF5 ----------------------------------------------------------------------------------------

GAMMA = "layers/batch_normalization/vars/0"
OLD_GAMMA = "model_weights/bn/bn/gamma"


def replaced(make: Callable[[h5py.Group, str], object]) -> Callable[[h5py.File, str], object]:
    """Put something else in the place of a variable."""

    def edit(file: h5py.File, path: str) -> object:
        del file[path]
        parent, _, name = path.rpartition("/")
        return make(file[parent], name)

    return edit


def by_plist(size: int, set_up: Callable[[Any], object]) -> Callable[[h5py.Group, str], object]:
    def make(group: h5py.Group, name: str) -> object:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        set_up(plist)
        space = h5py.h5s.create_simple((size,))
        return h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)

    return make


def virtual(group: h5py.Group, name: str) -> object:
    layout = h5py.VirtualLayout((CHANNELS,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hosts", "x", (CHANNELS,))
    return group.create_virtual_dataset(name, layout)


def chunk_bomb(group: h5py.Group, name: str) -> None:
    data = group.create_dataset(name, (CHANNELS,), "f4", chunks=(CHANNELS,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(2 << 20)))


def named_type(group: h5py.Group, name: str) -> None:
    group[name] = np.dtype("f4")


F4 = np.dtype("f4")
COMPOUND = np.dtype([("a", "f4"), ("b", "f4")])
DATASETS: dict[str, tuple[Callable[[h5py.Group, str], object], str]] = {
    "soft link": (lambda g, n: g.__setitem__(n, h5py.SoftLink("/layers/dense/vars/0")), "link"),
    "dangling link": (lambda g, n: g.__setitem__(n, h5py.SoftLink("/nowhere")), "link"),
    "external link": (lambda g, n: g.__setitem__(n, h5py.ExternalLink("/etc/hosts", "x")), "link"),
    "hard link": (lambda g, n: g.__setitem__(n, g["2"] if "2" in g else g["moving_mean"]),
                  "several places"),
    "virtual": (virtual, "other files"),
    "external": (lambda g, n: g.create_dataset(n, (CHANNELS,), "f4",
                 external=[("/etc/hosts", 0, 4 * CHANNELS)]), "other files"),
    "named type": (named_type, "neither"),
    "reference": (lambda g, n: g.create_dataset(n, data=[g.ref], dtype=h5py.ref_dtype), "plain"),
    "region": (lambda g, n: g.create_dataset(n, (4,), h5py.regionref_dtype), "plain"),
    "vlen": (lambda g, n: g.create_dataset(n, (4,), h5py.vlen_dtype(F4)), "plain"),
    "vlen text": (lambda g, n: g.create_dataset(n, data=["a"] * 4), "plain"),
    "compound": (lambda g, n: g.create_dataset(n, (4,), COMPOUND, data=np.zeros(4, COMPOUND)),
                 "plain"),
    "array": (lambda g, n: g.create_dataset(n, (4,), np.dtype(("f4", (2,)))), "plain"),
    "lzf": (lambda g, n: g.create_dataset(n, data=np.ones(4, "f4"), compression="lzf"), "filters"),
    "scale offset": (lambda g, n: g.create_dataset(n, data=np.ones(4, "i4"), scaleoffset=2),
                     "filters"),
    "deflated twice": (by_plist(4, lambda p: (p.set_chunk((4,)), p.set_deflate(9),
                                              p.set_deflate(9))), "filters"),
    "unknown filter": (by_plist(4, lambda p: (p.set_chunk((4,)), p.set_filter(
        32000, h5py.h5z.FLAG_OPTIONAL))), "filters"),
    "huge, not stored": (by_plist(1 << 50, lambda p: None), "claims"),
    "huge, in chunks": (by_plist(1 << 50, lambda p: p.set_chunk((1 << 10,))), "claims"),
    "huge, compressed": (by_plist(1 << 50, lambda p: (p.set_chunk((1 << 10,)), p.set_deflate(9))),
                         "claims"),
    "chunk larger than itself": (lambda g, n: g.create_dataset(
        n, (4,), "f4", maxshape=(None,), chunks=(1 << 28,), compression="gzip"), "chunks"),
    "bomb in a chunk": (chunk_bomb, "unpacks to more"),
}  # fmt: skip


@pytest.mark.parametrize("case", DATASETS)
def test_variables_that_are_not_plain(case: str, tmp_path: Path) -> None:
    make, says = DATASETS[case]
    edit = replaced(make)
    refused(keras_file(tmp_path / "m.keras", h5=weights(lambda f: edit(f, GAMMA))), says=says)
    refused(legacy_file(tmp_path / "m.h5", edit=lambda f: edit(f, OLD_GAMMA)), says=says)


ODD: dict[str, Callable[[h5py.Group, str], object]] = {
    "scalar": lambda g, n: g.create_dataset(n, data=np.float32(1)),
    "null": lambda g, n: g.create_dataset(n, data=h5py.Empty("f4")),
    "zero length": lambda g, n: g.create_dataset(n, (0,), "f4"),
    "zero and huge": lambda g, n: g.create_dataset(n, (0, 1 << 40, 1 << 40), "f4"),
    "rank 32": lambda g, n: g.create_dataset(n, data=np.ones((1,) * 32, "f4")),
    "longer": lambda g, n: g.create_dataset(n, data=np.ones(CHANNELS + 1, "f4")),
    "matrix": lambda g, n: g.create_dataset(n, data=np.ones((CHANNELS, 1), "f4")),
    "fixed text": lambda g, n: g.create_dataset(n, data=np.full(CHANNELS, b"1.0")),
    "opaque": lambda g, n: g.create_dataset(n, data=np.zeros(CHANNELS, "V7")),
    "bfloat16": lambda g, n: g.create_dataset(n, data=np.zeros(CHANNELS, "V2")),
    "complex": lambda g, n: g.create_dataset(n, data=np.ones(CHANNELS, "c8")),
    "boolean": lambda g, n: g.create_dataset(n, data=np.ones(CHANNELS, "?")),
    "integer": lambda g, n: g.create_dataset(n, data=np.ones(CHANNELS, "i8")),
    "big endian": lambda g, n: g.create_dataset(n, data=np.ones(CHANNELS, ">f8")),
    "long double": lambda g, n: g.create_dataset(n, data=np.full(CHANNELS, 1e4000, "g")),
    "not finite": lambda g, n: g.create_dataset(n, data=np.array([np.nan, np.inf, -np.inf, 0])),
    "huge numbers": lambda g, n: g.create_dataset(n, data=np.full(CHANNELS, 1e308)),
    "a group": lambda g, n: g.create_group(n),
    "missing": lambda g, n: None,
    "compressed": lambda g, n: g.create_dataset(
        n, data=np.ones(CHANNELS, "f4"), compression="gzip", shuffle=True, fletcher32=True
    ),
}
OLD_NAMES = {
    "gamma": "bn/gamma", "beta": "bn/beta", "mean": "bn/moving_mean",
    "variance": "bn/moving_variance", "kernel": "dense/kernel", "bias": "dense/bias",
}  # fmt: skip
NEW_NAMES = {
    **{name: f"batch_normalization/vars/{n}" for n, name in
       enumerate(("gamma", "beta", "mean", "variance"))},
    "kernel": "dense/vars/0", "bias": "dense/vars/1",
}  # fmt: skip


# A third by default, so that every shape meets some variable, and every variable some shape.
@pytest.mark.parametrize(
    ("variable", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] * ((i + k) % 3 > 0))
        for i, name in enumerate(OLD_NAMES)
        for k, case in enumerate(ODD)
    ],
)
@pytest.mark.few(16)
def test_variables_of_odd_shapes(case: str, variable: str, tmp_path: Path) -> None:
    edit = replaced(ODD[case])
    old, new = OLD_NAMES[variable], f"layers/{NEW_NAMES[variable]}"
    place = f"model_weights/{old.partition('/')[0]}/{old}"
    harmless(keras_file(tmp_path / "m.keras", h5=weights(lambda f: edit(f, new))))
    harmless(legacy_file(tmp_path / "m.h5", edit=lambda f: edit(f, place)))


@pytest.mark.skipif(np.dtype("g").itemsize <= 8, reason="has no wider numbers")
def test_numbers_with_bytes_that_mean_nothing_are_not_read(tmp_path: Path) -> None:
    """Those bytes of a folded one would be what the process had in its memory."""

    def edit(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = np.eye(CHANNELS, dtype="g")

    path = keras_file(tmp_path / "m.keras", h5=weights(edit))
    refused(path, says="layers/dense/vars/0 does not hold the numbers of a layer")


def raw_attribute(group: h5py.Group, name: str, kind: Any) -> None:
    """An attribute of this type, never written to."""
    h5py.h5a.create(group.id, name.encode(), kind, h5py.h5s.create_simple((3,)))


ATTRIBUTES: dict[str, Callable[[h5py.Group, str], object]] = {
    "reference": lambda g, n: g.attrs.create(n, g.ref, dtype=h5py.ref_dtype),
    "region": lambda g, n: raw_attribute(g, n, h5py.h5t.STD_REF_DSETREG),
    "vlen": lambda g, n: raw_attribute(g, n, h5py.h5t.py_create(h5py.vlen_dtype(F4))),
    "compound": lambda g, n: g.attrs.create(n, np.zeros(3, COMPOUND)),
    "empty": lambda g, n: g.attrs.create(n, h5py.Empty("S9")),
    "nothing": lambda g, n: g.attrs.create(n, np.zeros(0)),
    "number": lambda g, n: g.attrs.create(n, 7),
    "not UTF-8": lambda g, n: g.attrs.create(n, np.bytes_(b"\xff\xfe\x00\x80")),
    "list not UTF-8": lambda g, n: g.attrs.create(n, np.array([b"\xff\xfe", b"\x80"])),
    "long": lambda g, n: g.attrs.create(n, np.bytes_(b"x" * 60000)),
    "outside": lambda g, n: g.attrs.create(n, np.array([b"../bn/gamma", b"/model_weights/bn"])),
    "absolute": lambda g, n: g.attrs.create(n, np.array([b"/model_weights/dense/dense/kernel"])),
    "blank": lambda g, n: g.attrs.create(n, np.array([b"", b"."])),
    "twice": lambda g, n: g.attrs.create(n, np.array([b"dense/kernel", b"dense/kernel"])),
    "escape": lambda g, n: g.attrs.create(n, np.array([b"\x1b[31mred", b"a\nb"])),
    "name not UTF-8": lambda g, n: g.attrs.create(n.encode() + b"\xff", 1),
    "text not UTF-8": lambda g, n: g.attrs.create(n, b"\xff\xfe", dtype=h5py.string_dtype()),
}  # fmt: skip


# Every second pair by default: nine places are an odd number, so each meets every kind by turns.
@pytest.mark.parametrize(("case", "name"), some(product(ATTRIBUTES, [
    "model_config", "keras_version", "backend", "bnfold",
    "model_weights.layer_names", "model_weights.keras_version",
    "model_weights/dense.weight_names", "model_weights/bn.weight_names",
    "model_weights/dense/dense/kernel.x",
])))  # fmt: skip
@pytest.mark.few(32)
def test_attributes_of_odd_kinds(case: str, name: str, tmp_path: Path) -> None:
    group, _, attribute = name.rpartition(".")

    def edit(file: h5py.File) -> None:
        file[group or "/"].attrs.pop(attribute, None)
        ATTRIBUTES[case](file[group or "/"], attribute)

    harmless(legacy_file(tmp_path / "m.h5", edit=edit))


# Every second pair by default, shifted from place to place: each is read in two ways.
@pytest.mark.parametrize(
    ("place", "case"),
    [
        pytest.param(place, case, marks=[pytest.mark.slow] * ((i + k) % 2))
        for i, place in enumerate(["layers/dense/vars", "layers/dense/vars/0", "layers", "/"])
        for k, case in enumerate(ATTRIBUTES)
    ],
)
@pytest.mark.few(16)
def test_attributes_of_odd_kinds_in_archives(case: str, place: str, tmp_path: Path) -> None:
    for name in ("name", "dtype"):
        h5 = weights(lambda f, name=name: ATTRIBUTES[case](f[place], name))  # type: ignore[misc]
        harmless(keras_file(tmp_path / "m.keras", h5=h5))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_names_of_groups_that_are_not_utf_8(suffix: str, tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file.create_group(b"odd\xff")

    path = tmp_path / f"m{suffix}"
    if suffix == ".h5":
        legacy_file(path, edit=edit)
    else:
        keras_file(path, h5=weights(edit))
    errors = harmless(path)
    assert errors
    assert all("the name b'odd\\xff' in / is no UTF-8" in str(error) for error in errors)


def many_links(levels: int) -> Edit:
    """Groups of which each is in the next one twice: 2**levels ways down."""

    def edit(file: h5py.File) -> None:
        group = file.create_group("more")
        for _ in range(levels):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner

    return edit


def circle(file: h5py.File) -> None:
    file["more"] = file["layers"]
    file["layers/up"] = file["/"]


def deep(file: h5py.File) -> None:
    group = file.create_group("more")
    for _ in range(1000):
        group = group.create_group("a")


@pytest.mark.parametrize("edit", [many_links(100), circle, deep])
def test_groups_without_end(edit: Edit, tmp_path: Path) -> None:
    refused(keras_file(tmp_path / "m.keras", h5=weights(edit)), only_fold=True)
    subclassed = {"module": "mine", "class_name": "Mine", "config": {}}
    path = keras_file(tmp_path / "s.keras", config=subclassed, h5=weights(edit))
    started = time.process_time()
    harmless(path)
    assert time.process_time() - started < 5

    def old(file: h5py.File) -> None:
        file.create_group("layers")
        edit(file)

    path = legacy_file(tmp_path / "m.h5", edit=old)
    started = time.process_time()
    harmless(path)
    assert time.process_time() - started < 5


def test_a_heap_of_texts_without_end(tmp_path: Path) -> None:
    # The library never comes back from a free entry of no size.
    path = legacy_file(tmp_path / "m.h5")
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL")
    end, at = at + int.from_bytes(data[at + 8 : at + 16], "little"), at + 16
    while at < end and any(data[at : at + 2]):
        at += 16 + (int.from_bytes(data[at + 8 : at + 16], "little") + 7) // 8 * 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)
    refused_in_little_memory(path, says="texts are damaged")


def test_many_groups(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        group = file.create_group("layers/dense/vars/more")
        for number in range(1_000):
            group.create_group(str(number))

    started = time.process_time()
    harmless(keras_file(tmp_path / "m.keras", h5=weights(edit)))
    assert time.process_time() - started < 10


def test_walks_refuse_to_meet_a_group_again() -> None:
    with h5py.File(io.BytesIO(), "w") as file:
        walk = hdf5.Walk()
        walk.enter(file, 0)
        walk.enter(file.create_group("a"), 1)
        with pytest.raises(UnsafeModelError, match="several places"):
            walk.enter(file["a"], 2)


# --- JSON ----------------------------------------------------------------------------------------


def layers_of(config: Json) -> list[Json]:
    found: list[Json] = config["config"]["layers"]
    return found


def history(config: Json, triple: Any, layer: int = 2) -> None:
    argument = layers_of(config)[layer]["inbound_nodes"][0]["args"][0]
    argument["config"]["keras_history"] = triple


def edited(edit: Callable[[Json], object]) -> str:
    config = model_config()
    edit(config)
    return json.dumps(config)


def wrapped(levels: int) -> str:
    text = json.dumps(entry("BatchNormalization", "inner"))
    start = json.dumps(entry("TimeDistributed", "w", "x", layer=0))
    for _ in range(levels):
        text = start.replace('"layer": 0', f'"layer": {text}')
    config = functional([entry("InputLayer", "x", batch_shape=[None, 4]), {"w": 0}], "w")
    return json.dumps(config).replace('{"w": 0}', text)


CONFIGS: dict[str, tuple[Any, str]] = {
    "empty": ("", "not valid JSON"),
    "list": ("[]", "not that of a Keras model"),
    "number": ("7", "not that of a Keras model"),
    "string": ('"x"', "not that of a Keras model"),
    "null": ("null", "not that of a Keras model"),
    "not UTF-8": (b"\xff\xff\xff", "not valid JSON"),
    "deep": ("[" * 100_000 + "]" * 100_000, "deep"),
    "deep objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "deep"),
    "deeper than need be": ("[" * 300 + "]" * 300, "deeper than 200"),
    "many values": ("[" + "0," * 6_300_000 + "0]", "more than 384 MiB"),
    "long number": ("[" + "9" * 100_000 + "]", "not valid JSON"),
    "duplicate key": ('{"class_name": "Sequential", "class_name": "x"}', "repeats the key"),
    "many keys, one twice": (
        "{" + ",".join(f'"k{n}":0' for n in range(100_000)) + ',"k99999":1}', "repeats the key"),
    "NaN": ('{"a": NaN}', "NaN"),
    "self loop": (edited(lambda c: history(c, ["bn", 0, 0])), "cycle"),
    "cycle": (edited(lambda c: history(c, ["bn", 0, 0], layer=1)), "cycle"),
    "unknown layer": (edited(lambda c: history(c, ["nobody", 0, 0])), "does not exist"),
    "unknown call": (edited(lambda c: history(c, ["dense", 7, 0])), "call 7"),
    "negative call": (edited(lambda c: history(c, ["dense", -1, 0])), "does not exist"),
    "negative output": (edited(lambda c: history(c, ["dense", 0, -1])), "does not exist"),
    "gigantic call": (edited(lambda c: history(c, ["dense", 10**40, 0])), "call 1000"),
    "boolean call": (edited(lambda c: history(c, ["dense", False, 0])), "names a tensor"),
    "float call": (edited(lambda c: history(c, ["dense", 0.0, 0])), "names a tensor"),
    "layers in a string": (edited(lambda c: c["config"].update(layers="x")), ""),
    "layer is a list": (edited(lambda c: layers_of(c).append([])), "known form"),  # type: ignore[arg-type]
    "two layers of a name": (edited(lambda c: layers_of(c).append(layers_of(c)[1])), "two layers"),
    "no outputs": (edited(lambda c: c["config"].update(output_layers=[])), "no layer"),
    "outputs from nowhere": (edited(lambda c: c["config"].update(output_layers=[["y", 0, 0]])),
                             "does not exist"),
    "wrapped deep": (wrapped(40), "deeper than 32"),
    "wrapped very deep": (wrapped(150), "deep"),
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in CONFIGS if case != "layers in a string"])
def test_configs_that_are_none(case: str, tmp_path: Path) -> None:
    text, says = CONFIGS[case]
    refused(keras_file(tmp_path / "m.keras", config=text), says=says)
    if isinstance(text, str) and len(text) < 60_000:

        def edit(file: h5py.File) -> None:
            file.attrs["model_config"] = text

        refused(legacy_file(tmp_path / "m.h5", edit=edit), says=says)


def test_a_gigantic_output_number(tmp_path: Path) -> None:
    config = edited(lambda c: history(c, ["dense", 0, 10**40]))
    harmless(keras_file(tmp_path / "m.keras", config=config))


def test_large_numbers(tmp_path: Path) -> None:
    for number in ("1e999", "-1e999", "1e308", "0", "-1", str(10**400), "Infinity"):
        text = json.dumps(model_config()).replace("0.001", number)
        harmless(keras_file(tmp_path / "m.keras", config=text))


def test_memory_for_one_large_object(tmp_path: Path) -> None:
    pairs = ",".join(f'"{n}":[0]' for n in range(300_000))
    path = keras_file(tmp_path / "m.keras", config="{" + pairs + "}")
    refused_in_little_memory(path, says="not that of a Keras model")


NAMES = {
    "empty": "", "slash": "a/b", "dots": "..", "dot": ".", "parent": "../../x", "absolute": "/x",
    "nul": "a\0b", "newline": "a\nb\r\nbnfold: fine", "ansi": "\x1b[31mred\x1b]0;title\x07",
    "markup": "[red]x[/red]", "link": "[link=http://x]y[/link]", "bidi": "\u202egnp.exe\u2066",
    "surrogate": "\ud800", "surrogates": "\udcff", "separator": "a\u2028b\x85c",
    "long": "n" * 10**5, "wide": "\U0001f4a9" * 100,
    "zero width": "a\u200bb", "command": "::error::x",
    "formula": "=1+1",
}  # fmt: skip


def renamed(old: str, name: str) -> Edit:
    """Give a layer's group another name, where HDF5 can."""

    def edit(file: h5py.File) -> None:
        with contextlib.suppress(ValueError, KeyError, RuntimeError):
            file["model_weights"].move(old, name)

    return edit


# Every name by default, in the two kinds of file by turns: each is read by four commands.
@pytest.mark.parametrize(
    ("suffix", "case"),
    [
        *((".keras", name) for name in list(NAMES)[::2]),
        *((".h5", name) for name in list(NAMES)[1::2]),
        *(pytest.param(".h5", name, marks=pytest.mark.slow) for name in list(NAMES)[::2]),
        *(pytest.param(".keras", name, marks=pytest.mark.slow) for name in list(NAMES)[1::2]),
    ],
)
@pytest.mark.few(8)
def test_names_cannot_paint_the_terminal(case: str, suffix: str, tmp_path: Path) -> None:
    name = NAMES[case]
    path = tmp_path / f"m{suffix}"
    for old in ("bn", "dense"):
        config = model_config(**{"norm" if old == "bn" else old: name})
        if suffix == ".keras":
            keras_file(path, config=config)
        else:
            legacy_file(path, config=config, edit=renamed(old, name))
        target = tmp_path / f"out{suffix}"
        for arguments in (
            ("inspect", path),
            ("inspect", path, "--format", "json"),
            ("fold", "--no-verify", "--force", path, target),
            ("fold", "--no-verify", "--force", path, target, "--format", "json"),
        ):
            result = invoke(*arguments)
            assert result.exit_code in {0, 2}, result.stderr
            assert "internal error" not in result.stderr
            assert all(c.isprintable() or c == "\n" for c in set(result.output))
            assert result.stderr.count("\n") <= 1
            assert "\nbnfold: fine" not in result.output
            if case == "markup" and arguments[0] == "inspect" and result.exit_code == 0:
                assert "[red]x[/red]" in result.output


def shared(number: Any) -> Callable[[Json], None]:
    def edit(config: Json) -> None:
        for layer in layers_of(config)[1:]:
            layer["shared_object_id"] = number

    return edit


@pytest.mark.parametrize("number", [1, -1, True, 10**40, 1.5, "x", [], {}, None])
def test_shared_object_ids(number: Any, tmp_path: Path) -> None:
    harmless(keras_file(tmp_path / "m.keras", config=edited(shared(number))))


def test_models_of_no_layers(tmp_path: Path) -> None:
    for layers in ([], [entry("InputLayer", "x")]):
        empty = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
        harmless(keras_file(tmp_path / "m.keras", config=empty))
        harmless(legacy_file(tmp_path / "m.h5", config=empty))


def test_a_layer_without_a_class_name(tmp_path: Path) -> None:
    for name in ("", ">", "a>", "/", "..", "a/b"):
        config = edited(lambda c, name=name: layers_of(c)[1].update(class_name=name))  # type: ignore[misc]
        harmless(keras_file(tmp_path / "m.keras", config=config))


JUNK: tuple[Any, ...] = (None, -1, 1e308, "", "x", [], {}, [[]], True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    keys = range(len(value)) if isinstance(value, list) else ()
    for key in value if isinstance(value, dict) else keys:
        yield from places(value[key], (*path, key))


def with_junk(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    changed = deepcopy(value)
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = junk
    return changed


def fixture(name: str) -> bytes:
    path = FIXTURES / name
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def config_mutants(name: str) -> Iterator[Callable[[Path], object]]:
    """Honest files with one value of their config replaced."""
    data = fixture(name)
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            config, h5 = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    else:
        with h5py.File(io.BytesIO(data)) as file:
            config, h5 = json.loads(file.attrs["model_config"]), data

    def write(path: Path, mutant: Any) -> None:
        if data.startswith(b"PK"):
            keras_file(path, config=json.dumps(mutant), h5=h5)
            return
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(mutant)

    for place in places(config):
        for junk in JUNK:
            yield lambda path, p=place, j=junk: write(path, with_junk(config, p, j))  # type: ignore[misc]


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_values_of_a_config_replaced(count: int, tmp_path: Path) -> None:
    config, h5 = model_config(), weights()
    every = [(place, junk) for place in places(config) for junk in JUNK]
    for place, junk in random.Random(3).sample(every, count):
        mutant = json.dumps(with_junk(config, place, junk))
        harmless(keras_file(tmp_path / "m.keras", config=mutant, h5=h5))


FUZZED = ("branches_keras315.keras.xz", "branches_keras215.h5.xz", "digits_cnn_keras315.keras")


# A few by default, drawn from those that the next test takes one and all.
@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.few(1)
def test_some_values_of_real_configs_replaced(name: str, tmp_path: Path) -> None:
    mutants = list(config_mutants(name))
    for write in random.Random(7).sample(mutants, 6):
        path = tmp_path / name.removesuffix(".xz")
        write(path)
        harmless(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_all_values_of_real_configs_replaced(name: str, tmp_path: Path) -> None:
    for write in config_mutants(name):
        path = tmp_path / name.removesuffix(".xz")
        write(path)
        harmless(path)


@pytest.mark.parametrize("count", [6, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.few(1)
def test_configs_that_are_wrong_in_some_places(name: str, count: int, tmp_path: Path) -> None:
    source, choose = tmp_path / name.removesuffix(".xz"), random.Random(count)
    source.write_bytes(fixture(name))
    config = mutations.config_of(source)
    for _ in range(count):
        target = tmp_path / f"mutant{source.suffix}"
        harmless(mutations.with_config(source, mutations.mutated(config, choose), target))


# --- random damage -------------------------------------------------------------------------------

_FUZZ = """
import faulthandler, random, resource, sys
from pathlib import Path
faulthandler.enable()
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
sys.path.insert(0, {builders!r})
from damage import damage
damage(Path(sys.argv[1]), seed=int(sys.argv[2]), count=int(sys.argv[3]))
"""


def fuzz(path: Path, seed: int, count: int) -> None:
    code = _FUZZ.format(memory=2 * MEMORY, builders=str(ROOT / "tests" / "builders"))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(seed), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]


# Half of the mutants by default; the seed is the same, so that the longer run begins with them.
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("count", [60, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.few(1)
def test_random_damage(suffix: str, count: int, tmp_path: Path) -> None:
    make = keras_file if suffix == ".keras" else legacy_file
    fuzz(make(tmp_path / f"m{suffix}"), seed=1, count=count)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("seed", range(2, 6))
def test_much_random_damage(suffix: str, seed: int, tmp_path: Path) -> None:
    make = keras_file if suffix == ".keras" else legacy_file
    fuzz(make(tmp_path / f"m{suffix}"), seed=seed, count=2000)


# --- large models --------------------------------------------------------------------------------


def tensor(name: str, call: int = 0, shape: tuple[int | None, ...] = (None, CHANNELS)) -> Json:
    config = {"shape": [*shape], "dtype": "float32", "keras_history": [name, call, 0]}
    return {"class_name": "__keras_tensor__", "config": config}


def reading(class_name: str, name: str, inputs: list[str], **settings: Any) -> Json:
    nodes = [{"args": [[tensor(one) for one in inputs]], "kwargs": {}}]
    return {**entry(class_name, name, None, **settings), "inbound_nodes": nodes}


def wide(kind: str, count: int) -> tuple[list[Json], str]:
    """The layers of a model that has so many of something beside or behind one another."""
    dense = {"units": CHANNELS, "use_bias": True, "activation": "linear"}
    numbers = range(count)
    if kind in ("Add", "Multiply"):  # many branches before one norm
        branches = [entry("Dense", f"d{n}", "x", **dense) for n in numbers]
        merged = reading(kind, "merged", [f"d{n}" for n in numbers])
        return [*branches, merged, entry("BatchNormalization", "bn", "merged")], "bn"
    if kind == "norms before Add":
        norms = [entry("BatchNormalization", f"b{n}", f"r{n}") for n in numbers]
        branches = [entry("ReLU", f"r{n}", "x") for n in numbers]
        return [*branches, *norms, reading("Add", "sum", [f"b{n}" for n in numbers])], "sum"
    before = {0: "d"}  # a row of norms
    row = [
        entry("BatchNormalization", f"b{n}", before.get(n, f"b{n - 1}"), epsilon=0.01)
        for n in numbers
    ]
    return [entry("Dense", "d", "x", **dense), *row], f"b{count - 1}"


def wide_file(path: Path, kind: str, count: int) -> Path:
    """The file of a model that is as wide as that."""
    layers, last = wide(kind, count)
    config = functional([entry("InputLayer", "x", batch_shape=[None, CHANNELS]), *layers], last)
    numbers: dict[str, int] = {}
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for layer in layers:
            group = {"Dense": "dense", "BatchNormalization": "batch_normalization"}.get(
                layer["class_name"]
            )
            if group is not None:
                number = numbers[group] = numbers.get(group, -1) + 1
                end = f"_{number}" if number else ""
                arrays = dense_arrays() if group == "dense" else norm_arrays()
                fill(file.create_group(f"layers/{group}{end}/vars"), arrays)
    return keras_file(path, config=config, h5=stream.getvalue())


def seconds_to_plan(path: Path) -> float:
    """CPU time of a plan for the model in a file."""
    with open_model(path) as model:
        started = time.process_time()
        plan(model.graph)
        return time.process_time() - started


@pytest.mark.parametrize("kind", ["Add", "Multiply", "norms before Add", "row"])
@pytest.mark.few(1)
def test_a_plan_takes_no_square_of_the_width(kind: str, tmp_path: Path) -> None:
    narrow, wide = (wide_file(tmp_path / f"{count}.keras", kind, count) for count in (15, 120))
    seconds_to_plan(narrow)  # what is imported and remembered at the first time
    assert fastest(wide) < 3 * 8 * fastest(narrow)


def fastest(path: Path) -> float:
    return min(seconds_to_plan(path) for _ in range(3))


def test_a_plan_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_MAX_WORK", 0)
    monkeypatch.setattr(state, "_WORK_FOR_EACH_SLOT", 2)
    layers, last = wide("norms before Add", 20)
    config = functional([entry("InputLayer", "x", batch_shape=[None, CHANNELS]), *layers], last)
    graph = parse_model(config)
    for number in range(20):
        slots = zip(("gamma", "beta", "moving_mean", "moving_variance"), norm_arrays(), strict=True)
        weights = tuple(Weight((CHANNELS,), a.dtype, lambda a=a: a, name) for name, a in slots)
        graph = graph.with_layer(replace(graph.layers[f"b{number}"], weights=weights))
    reasons = [blocked.reason for blocked in plan(graph).blocked]
    assert "the search for layers to absorb it reached its limit" in reasons[-1]
    assert all("joins it with a branch" in reason for reason in reasons[:3])


def nested_twice(levels: int) -> Json:
    """Models in one another, each called twice in a row; behind that a norm."""
    start = entry("InputLayer", "x", batch_shape=[None, CHANNELS])
    model = functional([start, entry("BatchNormalization", "bn", "x")], "bn")
    for number in range(levels):
        nodes = [{"args": [tensor(*one)], "kwargs": {}} for one in (("x", 0), (f"m{number}", 0))]
        inside = {**model, "name": f"m{number}", "inbound_nodes": nodes}
        inside["config"] = {**model["config"], "name": f"m{number}"}
        behind = [{"args": [tensor(f"m{number}", 1)], "kwargs": {}}]
        norm = {**entry("BatchNormalization", "bn"), "inbound_nodes": behind}
        model = functional([start, inside, norm], "bn")
    return model


def test_a_plan_takes_no_power_of_the_nesting(tmp_path: Path) -> None:
    started = time.process_time()
    graph = parse_model(nested_twice(config_module.MAX_NESTING - 1))
    assert len(plan(graph).decisions) == config_module.MAX_NESTING
    assert Shapes(graph).dtype(graph.outputs[0]) == "float32"
    assert time.process_time() - started < 10


def test_shapes_inside_a_model_that_is_called_with_very_many_are_those_that_it_declares() -> None:
    open_shape = (None, None, CHANNELS)
    start = entry("InputLayer", "x", batch_shape=[*open_shape])
    calls = [{"args": [tensor(f"c{n}", 0, (None, 128 - n, CHANNELS))]} for n in range(100)]
    nested = entry("Sequential", "m", layers=[start, entry("Identity", "same")])
    nested["inbound_nodes"] = calls
    crops = [
        {
            **entry("Cropping1D", f"c{number}", cropping=[0, number], data_format="channels_last"),
            "inbound_nodes": [{"args": [tensor("y", 0, (None, 128, CHANNELS))]}],
        }
        for number in range(100)
    ]
    outer = entry("InputLayer", "y", batch_shape=[None, 128, CHANNELS])
    config = functional([outer, *crops, nested], "m")
    config["config"].update(
        input_layers=[["y", 0, 0]], output_layers=[["m", number + 1, 0] for number in range(100)]
    )
    shapes = Shapes(graph := parse_model(config))
    found = [shapes.of(ref) for ref in graph.outputs]
    assert found[:64] == [(None, 128 - number, CHANNELS) for number in range(64)]
    assert found[64:] == [open_shape] * 36


@pytest.mark.slow
def test_a_model_of_many_layers(tmp_path: Path) -> None:
    config, h5 = chain(5000)
    path = keras_file(tmp_path / "m.keras", config=config, h5=h5)
    started = time.process_time()
    assert len(bnfold.inspect(path).plan.folds) == 5000
    inspected = time.process_time()
    bnfold.fold(path, tmp_path / "out.keras", verify=False)
    assert inspected - started < 30
    assert time.process_time() - inspected < 60


# --- nothing runs --------------------------------------------------------------------------------


def test_nothing_that_a_file_names_is_imported(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')")
    lambda_layer = entry("Lambda", "evil", "bn", function={
        "class_name": "__lambda__", "config": {"code": "4wEAAAAAAAAAAAAAAAQ="}})  # fmt: skip
    custom = {
        **entry("Evil", "custom", "evil"),
        "module": "evil_module",
        "registered_name": "e>Evil",
    }
    config = model_config()
    layers_of(config).extend([lambda_layer, custom])
    config["config"]["output_layers"] = [["custom", 0, 0]]
    path = keras_file(tmp_path / "m.keras", config=config)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bnfold\n"
        "bnfold.inspect(sys.argv[2]); bnfold.fold(sys.argv[2], sys.argv[3], verify=False)\n"
        "print([m for m in ('evil_module', 'tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, path, tmp_path / "out.keras"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def run_model(command: str, path: Path, folder: Path) -> object:
    """What hands a file to Keras: six commands, by their functions."""
    data, out = np.ones((4, CHANNELS), np.float32), folder / f"out{path.suffix}"
    np.save(folder / "data.npy", data)
    calls: dict[str, Callable[[], object]] = {
        "verify": lambda: bnfold.verify(path, path),
        "fold": lambda: bnfold.fold(path, out),
        "export": lambda: bnfold.export(path, folder / "out.onnx"),
        "bench": lambda: bnfold.bench(path, path),
        "recalibrate": lambda: bnfold.recalibrate(path, out, data=folder / "data.npy"),
        "inspect --data": lambda: bnfold.inspect(path, data=folder / "data.npy"),
    }
    return calls[command]()


COMMANDS = ["verify", "fold", "export", "bench", "recalibrate", "inspect --data"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["legacy", "archive"])
def test_no_command_hands_a_dangerous_class_to_keras(
    command: str, kind: str, tmp_path: Path
) -> None:
    config = model_config()
    if kind == "legacy":
        layers_of(config).append(
            {**entry("TensorFlowOpLayer", "op", "bn", node_def="", constants={}), "module": None}
        )
    else:
        layers_of(config).append({**entry("layers.Lambda", "op", "bn"), "module": "keras"})
    config["config"]["output_layers"] = [["op", 0, 0]]
    make = legacy_file if kind == "legacy" else keras_file
    path = make(tmp_path / f"m{'.h5' if kind == 'legacy' else '.keras'}", config=config)
    with pytest.raises(UnsafeModelError, match=r"'op' .* it was not loaded \(trust=True"):
        run_model(command, path, tmp_path)
    assert not {found.name for found in tmp_path.iterdir()} - {path.name, "data.npy"}


@pytest.mark.parametrize(
    "value",
    [
        np.arange(9.0),
        np.zeros(2, np.dtype([("odd", "f8")])),
        b"{",
        b'{"optimizer_config": {"config": 3}}',
    ],
)
def test_what_was_for_training_may_be_damaged(value: Any, tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        file.attrs["training_config"] = value

    assert bnfold.inspect(legacy_file(tmp_path / "m.h5", edit=edit)).plan.decisions


@pytest.mark.parametrize("place", ["optimizer", "optimizer/vars", "optimizer/vars/1"])
def test_what_an_optimizer_left_is_looked_at(place: str, tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        fill(file.require_group("optimizer/vars"), [np.int64(3), np.ones(CHANNELS, "f4")])
        file["other"] = file[place]

    optimizer = {"class_name": "SGD", "config": {"use_ema": True, "ema_momentum": 0.9}}
    config = {**model_config(), "compile_config": {"optimizer": optimizer}}
    path = keras_file(tmp_path / "m.keras", config=config, h5=weights(edit))
    with pytest.raises(UnsafeModelError, match=f"m.keras: /{place} .* several places"):
        bnfold.inspect(path)
    if place == "optimizer":
        refused(path, says="several places")
