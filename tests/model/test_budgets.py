"""Small files that would cost what large ones do: each is refused by the budget that it breaks."""

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from archives import (
    CHANNELS,
    dense_arrays,
    fill,
    keras_file,
    legacy_file,
    norm_arrays,
    weights,
)
from damage import harmless, invoke, refused

from bnfold.model.container import budget, guard

Build = Callable[[h5py.File], object]

# --- texts and attributes ------------------------------------------------------------------------


def texts(data: bytes) -> list[int]:
    """Where a file refers to texts: 4 bytes of length, 8 of a heap's address, 4 of a number."""
    heaps = [match.start() for match in re.finditer(b"GCOL", data)]
    found = []
    for heap in heaps:
        for match in re.finditer(re.escape(heap.to_bytes(8, "little")), data):
            at = match.start() - 4
            found += [at] if 0 < int.from_bytes(data[at + 12 : at + 16], "little") < 65536 else []
    return sorted(found)


def all_as_the_longest(path: Path) -> None:
    """Let all texts of a file be the longest one."""
    data = bytearray(path.read_bytes())
    places = texts(bytes(data))
    longest = max(places, key=lambda at: int.from_bytes(data[at : at + 4], "little"))
    reference = bytes(data[longest : longest + 16])
    for at in places:
        if int.from_bytes(data[at : at + 4], "little") == 3:
            data[at : at + 16] = reference
    path.write_bytes(data)


def a_list_and_a_long_text(file: h5py.File) -> None:
    file.attrs["long"] = "x" * (1 << 20)
    del file["model_weights"].attrs["layer_names"]
    file["model_weights"].attrs["layer_names"] = ["x", "dense", "bn", *["yyy"] * 2000]


def many_and_a_long_text(file: h5py.File) -> None:
    file.attrs["long"] = "x" * (1 << 20)
    group = file.create_group("more")
    for number in range(400):
        group.attrs[f"a{number}"] = "yyy"


@pytest.mark.parametrize("build", [a_list_and_a_long_text, many_and_a_long_text])
def test_one_text_that_is_many_attributes(build: Build, tmp_path: Path) -> None:
    path = legacy_file(tmp_path / "m.h5", edit=build)
    all_as_the_longest(path)
    refused(
        path, says="attributes of its weights would take", only_fold=build is many_and_a_long_text
    )


def test_names_in_a_list_of_texts_beside_a_long_text(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["model_weights"].attrs["layer_names"]
        file["model_weights"].attrs["layer_names"] = ["x", "dense", "bn", *["yyy"] * 1000]
        assert file["model_weights"].attrs.get_id("layer_names").get_type().is_variable_str()
        file.attrs["long"] = "x" * (8 << 20)

    assert harmless(legacy_file(tmp_path / "m.h5", edit=edit)) == []


def test_a_heap_that_is_damaged_behind_the_part_that_is_read_first(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        for number in range(300):
            file.attrs[f"a{number}"] = f"text {number} " * 3

    path = legacy_file(tmp_path / "m.h5", edit=edit)
    data = bytearray(path.read_bytes())
    at = data.index(b"text 299 ") - 16
    assert at - data.rindex(b"GCOL", 0, at) > 0
    start = data.index(b"GCOL")
    assert any(at - heap.start() > 4096 for heap in re.finditer(b"GCOL", data[:at])), start
    data[at : at + 2], data[at + 8 : at + 16] = bytes(2), bytes(8)
    path.write_bytes(data)
    refused(path, says="texts are damaged", only_fold=True)


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("place", ["/", "more"])
def test_more_attributes_than_an_object_has(version: str, place: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with h5py.File(stream, "w", libver=version) as file:
        fill(file.create_group("layers/dense/vars"), dense_arrays())
        fill(file.create_group("layers/batch_normalization/vars"), norm_arrays())
        for number in range(guard.MAX_MESSAGES + 1):
            file.require_group(place).attrs[f"a{number}"] = number
    path = keras_file(tmp_path / "m.keras", h5=stream.getvalue())
    refused(path, says="more than 512 attributes", only_fold=place == "more")


# --- names ---------------------------------------------------------------------------------------


def test_one_name_that_is_many(tmp_path: Path) -> None:
    count, name = 600, "n" * 60_000

    def edit(file: h5py.File) -> None:
        group = file.create_group("more")
        for number in range(count):
            group.create_group(f"g{number:03}")
        group.create_group(name)

    data = bytearray(weights(edit))
    heap = data.rindex(b"HEAP", 0, data.index(name.encode()))
    offset = data.index(name.encode()) - int.from_bytes(data[heap + 24 : heap + 32], "little")
    changed = 0
    for node in re.finditer(b"SNOD", data):
        for entry in range(int.from_bytes(data[node.start() + 6 : node.start() + 8], "little")):
            at = node.start() + 8 + 40 * entry
            start = int.from_bytes(data[heap + 24 : heap + 32], "little")
            here = start + int.from_bytes(data[at : at + 8], "little")
            if data[here : here + 1] == b"g" and data[here + 4 : here + 5] == b"\0":
                data[at : at + 8] = offset.to_bytes(8, "little")
                changed += 1
    assert changed > 560
    path = keras_file(tmp_path / "m.keras", h5=bytes(data))
    refused(path, says="names in its weights would take more than 32 MiB", only_fold=True)


# --- storage -------------------------------------------------------------------------------------


def blocks(file: h5py.File, path: str) -> list[int]:
    """Where the numbers of a variable are in its file."""
    dataset = file[path]
    if dataset.chunks is None:
        return [dataset.id.get_offset()]
    found: list[int] = []
    dataset.id.chunk_iter(lambda chunk: found.append(chunk.byte_offset))
    return found


def sharing(paths: Sequence[str], build: Build) -> bytes:
    """A file of weights in which some variables all have the numbers of the first of them."""
    data = weights(build)
    with h5py.File(io.BytesIO(data)) as file:
        first, *others = (block for path in paths for block in blocks(file, path))
    for other in others:
        reference = other.to_bytes(8, "little")
        assert data.count(reference) == 1
        data = data.replace(reference, first.to_bytes(8, "little"))
    return data


def extras(**settings: object) -> Build:
    def edit(file: h5py.File) -> None:
        for number in range(2):
            values = np.arange(64.0) + number
            file.create_dataset(f"more/{number}", data=values, **settings)

    return edit


EXTRAS = ["more/0", "more/1"]
SHARED: dict[str, tuple[Sequence[str], Build]] = {
    "in one block": (EXTRAS, extras()),
    "in chunks": (EXTRAS, extras(chunks=(64,))),
    "compressed": (EXTRAS, extras(chunks=(64,), compression="gzip")),
    "chunks of one": (["more/0"], extras(chunks=(16,))),
    "of a layer": (["layers/dense/vars/1", "layers/batch_normalization/vars/0"], lambda _: None),
}


@pytest.mark.parametrize("case", SHARED)
def test_variables_that_share_bytes(case: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras", h5=weights(SHARED[case][1]))
    assert harmless(path) == []
    keras_file(path, h5=sharing(*SHARED[case]))
    refused(path, says="share bytes of the file", only_fold=case != "of a layer")
    old = tmp_path / "m.h5"
    legacy_file(old, edit=SHARED[case][1])


def test_variables_of_a_legacy_file_that_share_bytes(tmp_path: Path) -> None:
    path = legacy_file(tmp_path / "m.h5")
    with h5py.File(path) as file:
        gamma, mean = (
            blocks(file, f"model_weights/bn/bn/{n}")[0] for n in ("gamma", "moving_mean")
        )
    data = path.read_bytes()
    assert data.count(mean.to_bytes(8, "little")) == 1
    path.write_bytes(data.replace(mean.to_bytes(8, "little"), gamma.to_bytes(8, "little")))
    refused(path, says="share bytes of the file")


def test_compressed_variables_that_are_not_stored(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        for number in range(10):
            file.create_dataset(
                f"more/{number}", (1 << 22,), "f4", chunks=(1 << 10,), compression="gzip"
            )

    path = keras_file(tmp_path / "m.keras", h5=weights(edit))
    refused(path, says="compressed variables would take more than 128 MiB", only_fold=True)


def test_many_members_that_are_small_bombs(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"assets/{number}", bytes(8 << 20))
    refused(path, says="decompression bomb")


# --- every budget --------------------------------------------------------------------------------

EVERY = [name for name, value in vars(budget).items() if isinstance(value, budget.Budget)]


def compressed(file: h5py.File) -> None:
    file["more"] = 1.0
    file.create_dataset("pieces", data=np.ones(CHANNELS), chunks=(CHANNELS,), compression="gzip")
    file.attrs["some"] = "text"


@pytest.mark.parametrize("kind", ["keras", "directory", "h5"])
@pytest.mark.parametrize("name", EVERY)
def test_every_budget_holds_in_every_container(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "h5":
        path = legacy_file(tmp_path / "m.h5", edit=lambda file: compressed(file.create_group("a")))
    else:
        path = keras_file(tmp_path / "m.keras", h5=weights(compressed))
        if kind == "directory":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(path := tmp_path / "m")
    assert harmless(path) == []
    small = getattr(budget, name)._replace(floor=3, share=0.0)
    monkeypatch.setattr(budget, name, small)
    if name == "TEXT" and kind == "h5":
        assert harmless(path) == []  # there it is an attribute
        return
    result = invoke("fold", "--no-verify", path, tmp_path / f"out{path.suffix}")
    assert result.exit_code == 2
    assert small.what in result.stderr
    assert result.stderr.count("\n") == 1
    if name != "TRANSFER":  # which is the HDF5 part's own
        assert f"the limit for a file of {size(path)} bytes" in result.stderr


def size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def test_a_budget_grows_with_the_file() -> None:
    one = budget.Budget("it takes", 100, 0.5)
    assert (one.limit(10), one.limit(1000)) == (100, 500)
    costs = budget.Costs(1000)
    costs.spend(one, 500)
    with pytest.raises(Exception, match="it takes more than"):
        costs.spend(one)


@pytest.mark.parametrize("mark", [b"TREE", b"HEAP", b"SNOD"])
def test_a_root_that_is_damaged(mark: bytes, tmp_path: Path) -> None:
    path = legacy_file(tmp_path / "m.h5")
    path.write_bytes(path.read_bytes().replace(mark, b"xxxx", 1))
    refused(path, says="damaged")
