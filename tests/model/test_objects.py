"""Groups and variables that are read from their bytes are what HDF5 says they are."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bnfold.errors import BnfoldError
from bnfold.model.container import hdf5, headers, objects
from bnfold.model.container.budget import Costs
from bnfold.model.graph import Weight

VARS = "layers/dense/vars"
ARRAYS = [np.arange(12, dtype="f4").reshape(3, 4), np.float32(7), np.arange(5, dtype="f2")]


class Bytes(io.BytesIO):
    """A file in memory that can be opened as one of a user's."""


@contextmanager
def groups(content: bytes) -> Iterator[hdf5.Groups]:
    with hdf5.open_hdf5(Bytes(content), "w.h5", Costs(len(content))) as found:
        yield found


@contextmanager
def by_hdf5(content: bytes) -> Iterator[hdf5.Groups]:
    with groups(content) as found:
        found._objects = None
        found._seen.clear()
        yield found


def written(fill: Callable[[h5py.Group], object], **settings: Any) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w", **settings) as file:
        fill(file.require_group(VARS))
    return stream.getvalue()


def plain(group: h5py.Group) -> None:
    group.attrs["name"] = "dense_\u00fc"
    for number, array in enumerate(ARRAYS):
        group[str(number)] = array


def told(found: hdf5.Groups) -> Any:
    try:
        weights = found.variables(VARS)
    except BnfoldError as error:
        return str(error)
    return values(weights), found.text(VARS, "name")


def values(weights: tuple[Weight, ...] | None) -> Any:
    if weights is None:
        return None
    return [(one.shape, one.dtype, one.source, one.read().tobytes()) for one in weights]


def test_a_file_as_keras_writes_it_is_read_past_hdf5() -> None:
    content = written(plain)
    with groups(content) as found, by_hdf5(content) as other:
        weights = found.variables(VARS)
        assert weights is not None
        assert [type(one.read) for one in weights] == [hdf5.Plain] * 3
        assert "root" not in vars(found)  # the library has not opened it
        assert told(found) == told(other)
        assert found.text(VARS, "name") == "dense_\u00fc"
        assert found.text(VARS, "none") is found.text("layers/none", "name") is None
        assert found.variables("layers/none/vars") == ()


NAMES: dict[str, Any] = {
    "none": {},
    "a text": {"name": "dense_\u00fc"},
    "several texts": {"other": "one", "name": "dense"},
    "a text and a number": {"name": "dense", "count": 3},
    "a fixed text": {"name": np.bytes_("dense")},
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("place", [VARS, "layers/dense", "layers/none/vars"])
def test_attributes_are_copied_as_hdf5_copies_them(names: str, place: str) -> None:
    def fill(group: h5py.Group) -> None:
        plain(group)
        del group.attrs["name"]
        group.file[place if place in group.file else VARS].attrs.update(NAMES[names])

    def copied(found: hdf5.Groups) -> bytes:
        found.variables(VARS)
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            found.copy_attributes(place, file.require_group("new"))
        return stream.getvalue()

    content = written(fill)
    with groups(content) as found, by_hdf5(content) as other:
        assert copied(found) == copied(other)
        is_text = all(isinstance(value, str) for value in NAMES[names].values())
        assert ("root" in vars(found)) == (not is_text and "none" not in place)


def test_headers_that_begin_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a kernel and of its bias differ in where they say where the numbers are."""
    parsed = []
    by_parts = objects.Objects._block
    monkeypatch.setattr(
        objects.Objects, "_block", lambda *one: parsed.append(one) or by_parts(*one)
    )

    def fill(group: h5py.Group) -> None:
        for number in range(10):
            group.create_dataset(f"{number}", data=ARRAYS[number % 2 * 2].astype("f4"))

    content = written(fill)
    with groups(content) as found, by_hdf5(content) as other:
        assert values(found.variables(VARS)) == values(other.variables(VARS))
    assert len(parsed) == 2


def test_variables_without_attributes_are_not_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with groups(written(lambda group: group.create_dataset("0", data=ARRAYS[0]))) as found:
        found.variables(VARS)
        found.variables("layers/other/vars")  # so that it is not the last one that was seen
        monkeypatch.setattr(found, "_look", None)
        found.copy_attributes(VARS, None)


FORMS: dict[str, Callable[[h5py.Group], object]] = {
    "big-endian": lambda group: group.create_dataset("0", data=np.arange(3, dtype=">f4")),
    "integers": lambda group: group.create_dataset("0", data=np.arange(3)),
    "in chunks": lambda group: group.create_dataset("0", data=ARRAYS[0], chunks=(2, 2)),
    "compressed": lambda group: group.create_dataset("0", data=ARRAYS[0], compression="gzip"),
    "may grow": lambda group: group.create_dataset("0", data=ARRAYS[0], maxshape=(None, 4)),
    "of no numbers": lambda group: group.create_dataset("0", data=np.zeros((0, 3), "f4")),
    "never written": lambda group: group.create_dataset("0", (3,), "f4"),
    "opaque": lambda group: group.create_dataset("0", data=np.arange(3, dtype="u2").view("V2")),
    "with an attribute": lambda group: group.create_dataset("0", data=ARRAYS[0]).attrs.update(a=1),
    "a gap": lambda group: group.create_dataset("1", data=ARRAYS[0]),
    "a group": lambda group: group.create_group("0"),
    "many": lambda group: [group.create_dataset(str(n), data=np.float32(n)) for n in range(400)],
    "a fixed text": lambda group: group.attrs.update(name=np.bytes_("dense")),
    "several texts": lambda group: group.attrs.update(name="dense", other="one", third="two" * 99),
    "a long text": lambda group: group.attrs.update(name="dense" * 2000),
    "a list of texts": lambda group: group.attrs.update(name=["a", "b"]),
}


@pytest.mark.parametrize("settings", [{}, {"libver": "latest"}, {"userblock_size": 1024}], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.few(24)
def test_any_other_form_is_read_as_hdf5_reads_it(form: str, settings: dict[str, Any]) -> None:
    content = written(FORMS[form], **settings)
    with groups(content) as found, by_hdf5(content) as other:
        assert told(found) == told(other)


def test_a_soft_link_is_refused_all_the_same() -> None:
    content = written(lambda group: (plain(group), group.__setitem__("3", h5py.SoftLink("0"))))
    with groups(content) as found, pytest.raises(BnfoldError, match="is a link"):
        found.variables(VARS)


def test_a_name_without_an_end_is_left_to_hdf5() -> None:
    content = bytearray(written(plain))
    content[content.index(b"name\0") + 4] = 0xF9
    with groups(bytes(content)) as found, by_hdf5(bytes(content)) as other:
        assert found.text(VARS, "name") == other.text(VARS, "name")


def test_what_the_system_reads_in_parts_is_read_whole() -> None:
    """As it does more than 2 GiB, and over a network whatever it likes."""

    class InParts(Bytes):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7])

    content = written(plain)
    file = InParts(content)
    with hdf5.open_hdf5(file, "w.h5", Costs(len(content))) as found, by_hdf5(content) as other:
        assert told(found) == told(other)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0x00, 0x01, 0x08, 0x10, 0x7F, 0x80, 0xF9, 0xFF])
def test_no_damaged_byte_is_read_otherwise_than_hdf5_reads_it(value: int) -> None:
    content = written(plain)
    differing = [
        position
        for position in range(len(content))
        if content[position] != value and differs(content, position, value)
    ]
    assert differing == []


def differs(content: bytes, position: int, value: int) -> bool:
    damaged = bytearray(content)
    damaged[position] = value
    try:
        read = of_bytes(bytes(damaged))
    except (BnfoldError, *objects.ODD):
        return False
    return read != of_hdf5(bytes(damaged))


def of_bytes(content: bytes) -> Any:
    """What is read without the library; raises where that has to say something."""
    with groups(content) as found:
        text = found.text(VARS, "name")
        read = found.names(), values(found._variables(VARS)), text
        if "root" in vars(found):
            raise objects.OddError
        return read


def of_hdf5(content: bytes) -> Any:
    try:
        with by_hdf5(content) as found:
            return found.names(), values(found.variables(VARS)), found.text(VARS, "name")
    except BnfoldError as error:
        return str(error)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x10, 0xFF])
@pytest.mark.few(2)
def test_a_damaged_byte_is_never_read_otherwise_than_hdf5_reads_it(value: int) -> None:
    content = written(plain)
    others = np.flatnonzero(np.frombuffer(content, "u1") != value)
    read = 0
    for position in np.random.default_rng(value).choice(others, 120, replace=False).tolist():
        damaged = bytearray(content)
        damaged[position] = value
        try:
            found = of_bytes(bytes(damaged))
        except (BnfoldError, *objects.ODD):
            continue
        read += 1
        assert found == of_hdf5(bytes(damaged)), position
    assert read > 10


def test_what_the_end_of_the_file_cuts_off_is_left_to_hdf5() -> None:
    """HDF5 reads a node of links whole, however few are in it."""
    content = written(lambda group: group.create_group("a"))
    assert content.rindex(b"SNOD") > len(content) - 400
    for size in range(len(content) - 600, len(content), 8):
        cut = put(content[:size], 40, size)  # where it says that it ends
        with suppress(BnfoldError, *objects.ODD):
            found = of_bytes(cut)
            assert found == of_hdf5(cut), size


@pytest.mark.parametrize("beyond", [0, 8])
def test_what_is_free_among_names_is_inside_of_them(beyond: int) -> None:
    content = written(plain)
    _, heap = of_links(content, VARS)
    size, free, names = (
        int.from_bytes(content[at : at + 8], "little") for at in range(heap + 8, heap + 32, 8)
    )
    left = size - free
    changed = put(content, names + free + 8, left + beyond)
    with groups(changed) as found, by_hdf5(changed) as other:
        assert told(found) == told(other)
        assert ("damaged" in told(found)) == (beyond > 0)


def test_a_text_whose_number_is_there_twice_is_left_to_hdf5() -> None:
    """It takes the last one."""
    content = written(lambda group: group.attrs.update(name="dense", other="layer"))
    heap = content.index(b"GCOL")
    again = content.index(b"layer", heap) - 16
    assert content[again : again + 2] == b"\2\0"
    changed = put(content, again, 1, 2)
    with groups(changed) as found, by_hdf5(changed) as other:
        assert found.text(VARS, "name") == other.text(VARS, "name")


def test_a_tree_of_no_links_has_no_height() -> None:
    """HDF5 goes on to a child, whose address is whatever was in memory."""
    content = written(lambda group: None)
    tree, _ = of_links(content, VARS)
    changed = put(content, tree + 5, 1, 1)
    with groups(changed) as found, by_hdf5(changed) as other:
        assert told(found) == told(other)
        assert "the index of an object in the weights is damaged" in told(found)


def of_links(content: bytes, path: str) -> tuple[int, int]:
    """Where the tree of a group's links is, and the heap of their names."""
    with h5py.File(io.BytesIO(content)) as file:
        address = h5py.h5o.get_info(file[path].id).addr
    at = content.index(b"\x11\0\x10\0", address) + 8
    return int.from_bytes(content[at : at + 8], "little"), int.from_bytes(
        content[at + 8 : at + 16], "little"
    )


@pytest.mark.parametrize("what", ["nodes", "names"])
@pytest.mark.parametrize("path", ["/", "layers", VARS])
def test_what_of_a_group_leads_back_to_itself_is_refused_at_once(path: str, what: str) -> None:
    """HDF5 follows it until there is no memory any more."""
    content = bytearray(written(plain))
    tree, heap = of_links(bytes(content), path)
    assert (content[tree : tree + 4], content[heap : heap + 4]) == (b"TREE", b"HEAP")
    if what == "nodes":
        content[tree + 16 : tree + 24] = tree.to_bytes(8, "little")
    else:
        free = int.from_bytes(content[heap + 16 : heap + 24], "little")
        at = int.from_bytes(content[heap + 24 : heap + 32], "little") + free
        content[at : at + 8] = free.to_bytes(8, "little")
    with pytest.raises(BnfoldError, match="damaged"), by_hdf5(bytes(content)) as found:
        found.variables(VARS)


@pytest.mark.parametrize("version", ["v18", "latest"])
@pytest.mark.parametrize("widths", [(4, 8), (8, 4), (4, 4)])
def test_addresses_of_another_width_are_refused(
    widths: tuple[int, int], version: str, tmp_path: Path
) -> None:
    """Where an index of them leads cannot be told, and HDF5 would follow one without an end."""
    settings, access = (
        h5py.h5p.create(kind) for kind in (h5py.h5p.FILE_CREATE, h5py.h5p.FILE_ACCESS)
    )
    settings.set_sizes(*widths)
    if version == "latest":
        access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    path = tmp_path / "w.h5"
    with h5py.File(h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, settings, access)) as file:
        plain(file.require_group(VARS))
    refusal = pytest.raises(BnfoldError, match="not of 8 bytes")
    with refusal, groups(path.read_bytes()) as found:
        found.variables(VARS)


@pytest.mark.parametrize("path", ["/", VARS, f"{VARS}/0"])
def test_a_header_that_leads_back_to_itself_is_refused_at_once(path: str) -> None:
    """HDF5 follows it until there is no memory any more."""
    content = bytearray(written(plain))
    with h5py.File(io.BytesIO(bytes(content))) as file:
        address = h5py.h5o.get_info(file[path].id).addr
    size = int.from_bytes(content[address + 8 : address + 12], "little")
    at = address + 16
    kind, length = content[at], int.from_bytes(content[at + 2 : at + 4], "little")
    assert (kind, length >= 16) != (0x10, False)
    content[at : at + 2] = b"\x10\0"  # a continuation, which is this same block
    content[at + 8 : at + 24] = (address + 16).to_bytes(8, "little") + size.to_bytes(8, "little")
    with pytest.raises(BnfoldError, match="damaged"), groups(bytes(content)) as found:
        found.variables(VARS)


def chunked(*limits: int | None) -> Callable[[h5py.Group], object]:
    def fill(group: h5py.Group) -> None:
        array = np.arange(10_000, dtype="f4").reshape(100, 100)
        group.create_dataset("0", data=array, chunks=(2, 2), maxshape=limits)

    return fill


def crowded(group: h5py.Group) -> None:
    for number in range(400):
        group[str(number)] = np.float32(number)
        if number < 60:
            group.attrs[f"a{number}"] = number


def long_names(group: h5py.Group) -> None:
    group["0"] = np.float32(0)
    for number in range(1500):
        group.create_group(f"{number:04}{'x' * 400}")


INDEXES: dict[str, tuple[Callable[[h5py.Group], object], str | None]] = {
    "tree": (chunked(100, 100), None),
    "fixed array": (chunked(100, 100), "latest"),
    "extensible array": (chunked(None, 100), "latest"),
    "new tree": (chunked(None, None), "latest"),
    "links": (crowded, None),
    "new links": (crowded, "latest"),
    "heap": (long_names, "latest"),
}


def indexed(name: str) -> bytes:
    fill, version = INDEXES[name]
    return written(fill, libver=version)


@pytest.mark.parametrize("name", [name for name in INDEXES if name != "heap"])
def test_an_index_of_any_kind_is_read(name: str) -> None:
    content = indexed(name)
    with h5py.File(io.BytesIO(content)) as file, groups(content) as found:
        stored = file[VARS]
        weights = found.variables(VARS) or ()
        assert len(weights) == len(stored)
        assert all(np.array_equal(one.read(), stored[str(n)]) for n, one in enumerate(weights))


def put(content: bytes, at: int, number: int, size: int = 8) -> bytes:
    return content[:at] + number.to_bytes(size, "little") + content[at + size :]


def nodes(content: bytes, kind: int) -> list[int]:
    """The addresses of the inner nodes of trees of a kind."""
    starts = [found.start() for found in re.finditer(b"TREE" + bytes([kind]), content)]
    return [at for at in starts if content[at + 5]]


def to_itself(content: bytes, kind: int, key: int, child: int) -> bytes:
    """One child of a node is the node itself."""
    node = nodes(content, kind)[0]
    assert content[node + 6] > child
    return put(content, node + 24 + key + (key + 8) * child, node)


def row_of_itself(content: bytes, kind: int) -> bytes:
    """The node after each lowest node of a tree is that node itself."""
    for found in re.finditer(b"TREE" + bytes([kind, 0]), content):
        content = put(content, found.start() + 16, found.start())
    return content


def new_to_itself(content: bytes, kind: int) -> bytes:
    """The first child of the root of a tree of version 2 is the root itself."""
    head = content.index(b"BTHD\0" + bytes([kind]))
    size, root, count = (
        int.from_bytes(content[head + at : head + at + width], "little")
        for at, width in ((10, 2), (16, 8), (24, 2))
    )
    assert content[root : root + 4] == b"BTIN"
    content = put(content, head + 12, 2, 2)
    return put(content, root + 6 + size * count, root)


def heap_in_itself(content: bytes) -> bytes:
    """The first block of the tenth row of a heap is the heap's own table of rows."""
    head = content.index(b"FRHP")
    root, rows = (
        int.from_bytes(content[head + at : head + at + width], "little")
        for at, width in ((132, 8), (140, 2))
    )
    assert (content[root : root + 4], rows > 9) == (b"FHIB", True)
    return put(content, root + 13 + 4 + 8 * 4 * 9, root)


ENDLESS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "links below": ("links", lambda content: to_itself(content, 0, 8, 2)),
    "links beside": ("links", lambda content: row_of_itself(content, 0)),
    "new links": ("new links", lambda content: new_to_itself(content, 5)),
    "deep links": (
        "new links",
        lambda content: put(content, content.index(b"BTHD\0\5") + 12, 65535, 2),
    ),
    "heap": ("heap", heap_in_itself),
    "deep attributes": (
        "new links",
        lambda content: put(content, content.index(b"BTHD\0\x08") + 12, 65535, 2),
    ),
    "chunks below": ("tree", lambda content: to_itself(content, 1, 32, 1)),
    "chunks beside": ("tree", lambda content: row_of_itself(content, 1)),
    "new chunks": ("new tree", lambda content: new_to_itself(content, 10)),
    "fixed array": (
        "fixed array",
        lambda content: put(content, content.index(b"FAHD") + 8, 1 << 40),
    ),
    "extensible array": (
        "extensible array",
        lambda content: put(content, content.index(b"EAHD") + 44, 1 << 40),
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_index_without_an_end_is_refused_at_once(name: str) -> None:
    """HDF5 follows it until there is no memory, no stack or no time any more."""
    kind, spoil = ENDLESS[name]
    with (
        pytest.raises(BnfoldError, match="the index of an object in the weights is damaged"),
        by_hdf5(spoil(indexed(kind))) as found,
    ):
        found.variables(VARS)


def test_an_index_that_objects_share_is_looked_at_once() -> None:
    content = written(lambda group: [group.create_group(str(n)) for n in range(400)])
    with h5py.File(io.BytesIO(content)) as file:
        address = h5py.h5o.get_info(file[VARS].id).addr
    asked: list[int] = []

    def read(start: int, size: int) -> bytes:
        asked.append(start)
        return content[start : start + size]

    known: set[tuple[Any, ...]] = set()
    headers.check(read, address, known)
    first = len(asked)
    headers.check(read, address, known)
    assert len(asked) - first < 5 < first


def test_an_index_that_is_refused_is_refused_again() -> None:
    """What was looked at and found damaged is not known for sound."""
    content = written(lambda group: None)
    with by_hdf5(put(content, of_links(content, VARS)[0] + 5, 1, 1)) as found:
        for _ in range(2):
            with pytest.raises(BnfoldError, match="the index of an object in the weights is dam"):
                found.variables(VARS)


def test_headers_that_are_alike_but_for_a_byte_are_told_apart() -> None:
    """The second of two variables of one form is read by the first one's header."""
    content = written(lambda group: group.update({"0": np.ones(3, "f4"), "1": np.zeros(3, "f4")}))
    with h5py.File(io.BytesIO(content)) as file:
        address = h5py.h5o.get_info(file[f"{VARS}/1"].id).addr
    size = int.from_bytes(content[address + 8 : address + 12], "little")
    read = 0
    for position in range(address, address + 16 + size):
        changed = put(content, position, content[position] ^ 1, 1)
        with suppress(BnfoldError, *objects.ODD), groups(changed) as found:
            weights = values(found._variables(VARS))
            read += 1
            with by_hdf5(changed) as other:
                assert weights == values(other.variables(VARS)), position
    assert read > 100


def test_a_heap_of_many_rows_is_read() -> None:
    with by_hdf5(indexed("heap")) as found:
        assert len(found.at(VARS) or ()) == 1501
