"""Limits and refusals: a model file from a stranger is read, never obeyed.

Every JSON text, ZIP member and HDF5 object that bnfold reads passes through this module. What
cannot be read safely (links that leave the file, shapes larger than their bytes, names that climb
out of the archive, nesting without end) raises `UnsafeModelError` with one line, and what the
libraries beneath cannot read `UnreadableModelError`; nothing is followed or allocated before it was
looked at.
"""

from __future__ import annotations

import errno
import io
import json
import math
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model.container import budget, headers, printing
from bnfold.model.container.budget import Costs
from bnfold.model.container.library import h5py

# Depths, which have no reason to grow with a file: each nested model adds some four levels of JSON
# and two of groups, and 32 nested models are the most that are read.
MAX_JSON_DEPTH = 200
MAX_HDF5_DEPTH = 128

# A model has three members, and those of its assets: a few for each vocabulary.
MAX_MEMBERS = 20_000
MAX_LISTING_BYTES = 4 << 20

# Attributes, and links of a small group, that stand in the header of one object, where looking for
# one means looking at all. Keras writes five, and parts of 63 KiB of a list of names: 500 parts
# are the names of a million variables.
MAX_MESSAGES = 512

# DEFLATE makes at most 1,032 bytes of one. It makes 2 of trained weights, 10 of those of which 19
# in 20 are zero, and 15 of a config. What claims more than this holds no model.
MAX_EXPANSION = 20
EXPANSION_FLOOR_BYTES = 16 << 20

_LOCAL_HEADER_BYTES = 30  # and the name

_CHUNK = 1 << 20
_CHUNK_SLACK = 4096  # what checksums and incompressible bytes may add to a chunk

_HEAP_MAGIC = b"GCOL\x01\0\0\0"


# The filters whose output is checked here, or has the size of their input.
@cache
def _safe_filters() -> frozenset[int]:
    kinds = h5py.h5z
    return frozenset((kinds.FILTER_SHUFFLE, kinds.FILTER_DEFLATE, kinds.FILTER_FLETCHER32))


_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_SCARCITY = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
HDF5_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError, OverflowError)


# In a module of its own, which costs the command line no h5py where it shows a mistake.
printable, shortened = printing.printable, printing.shortened


def read_whole(path: Path, most: int) -> bytes:
    """A file of a user's, of at most so many bytes. Raises OSError, with a sentence."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is a directory" if path.is_dir() else "is not a file")
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"is larger than {most >> 20} MiB")
    return content


def parse_json(text: bytes | str, what: str, costs: Costs | None = None) -> Any:
    """The value of a JSON text that stays within its budget, is not deep, and repeats no key.

    Raises:
        UnreadableModelError: the text is not JSON.
        UnsafeModelError: it is too large, nested too deeply, repeats a key or holds a NaN literal.
    """
    (costs or Costs()).spend(budget.JSON, _memory_for(text))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise _repeated_key(pairs, what)
        return found

    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=lambda literal: _json_constant(literal, what),
        )
    except RecursionError:
        raise UnsafeModelError(f"{what} is nested too deeply; refused") from None
    except ValueError as error:
        raise UnreadableModelError(f"{what} is not valid JSON: {error}") from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise UnsafeModelError(f"{what} is nested deeper than {MAX_JSON_DEPTH} levels; refused")
    return value


def _memory_for(text: bytes | str) -> int:
    """The bytes that the values of a JSON text take at most, about, while it is parsed.

    A dictionary takes up to 200, a list 72, any other value or key 64. Of a dictionary with more
    than a few keys a list of pairs is made first.
    """
    marks = (b"{", b"[", b",", b":") if isinstance(text, bytes) else ("{", "[", ",", ":")
    objects, lists, commas, colons = (text.count(mark) for mark in marks)  # type: ignore[arg-type]
    pairs = max(0, colons - 8 * objects)
    return len(text) + 200 * objects + 72 * lists + 64 * commas + 130 * pairs


def _repeated_key(pairs: list[tuple[str, Any]], what: str) -> UnsafeModelError:
    counts = Counter(key for key, _ in pairs)
    key = next(key for key, count in counts.items() if count > 1)
    return UnsafeModelError(f"{what} repeats the key {shortened(key)!r}; refused")


def _json_constant(literal: str, what: str) -> float:
    # Keras itself writes Infinity for an unbounded constraint; NaN has no meaning in a config.
    if literal == "NaN":
        raise UnsafeModelError(f"{what} holds a NaN literal; refused")
    return float(literal)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit - 1):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return any(level)


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose listing alone shows that it is no honest model.

    Raises:
        UnsafeModelError: duplicate, absolute, climbing, linked, encrypted or oddly compressed
            members, or an expansion that weights cannot have.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise UnsafeModelError(f"the archive has more than {MAX_MEMBERS} members; refused")
    seen: set[str] = set()
    for member in members:
        _check_member(member, seen)
        seen.add(member.filename)
    _check_overlaps(members)
    claimed = sum(member.file_size for member in members)
    stored = sum(member.compress_size for member in members)
    if _expands_too_much(claimed, stored):
        raise UnsafeModelError(
            f"the archive's members claim {claimed} bytes but store {stored}; refused as a"
            " decompression bomb"
        )


def _check_overlaps(members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that have bytes of the archive in common."""
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            name = shortened(member.filename)
            raise UnsafeModelError(f"the archive member {name!r} overlaps another one; refused")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size


def _check_member(member: zipfile.ZipInfo, seen: set[str]) -> None:
    name = shortened(member.filename)
    if not member.filename:
        raise UnsafeModelError("the archive has a member without a name; refused")
    if member.filename in seen:
        raise UnsafeModelError(f"the archive has two members named {name!r}; refused")
    parts = member.filename.replace("\\", "/").split("/")
    if member.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise UnsafeModelError(
            f"the archive member {name!r} points outside of the archive; refused"
        )
    if not {"", "."}.isdisjoint(member.filename.removesuffix("/").split("/")):
        raise UnsafeModelError(
            f"the archive member {name!r} has several names, depending on who unpacks it; refused"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UnsafeModelError(f"the archive member {name!r} is a symbolic link; refused")
    if member.flag_bits & 0x1:
        raise UnsafeModelError(f"the archive member {name!r} is encrypted; refused")
    if member.compress_type not in _ZIP_METHODS:
        raise UnsafeModelError(
            f"the archive member {name!r} is compressed in a way that Keras does not use; refused"
        )
    if _expands_too_much(member.file_size, member.compress_size):
        raise UnsafeModelError(
            f"the archive member {name!r} claims {member.file_size} bytes but stores "
            f"{member.compress_size}; refused as a decompression bomb"
        )


def _expands_too_much(claimed: int, stored: int) -> bool:
    return claimed > EXPANSION_FLOOR_BYTES and claimed > MAX_EXPANSION * stored


class ArchiveFile(io.FileIO):
    """The file of an archive, of which `zipfile` cannot read a listing too long to be honest."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes."""
        check_listing(size)
        return super().read(-1 if size is None else size) or b""


def check_listing(size: int | None) -> None:
    """Refuse to read so many bytes of an archive at once, as only a listing asks for.

    Raises:
        UnsafeModelError: they are more than an honest listing has.
    """
    if size is not None and size > MAX_LISTING_BYTES:
        raise UnsafeModelError("the archive's listing is too long; refused")


def files_in(directory: Path) -> Iterator[str]:
    """The paths of all files in a directory, relative to it.

    Raises:
        UnsafeModelError: there are too many, or a link is among them.
    """
    for number, found in enumerate(directory.rglob("*")):
        name = found.relative_to(directory).as_posix()
        if number >= MAX_MEMBERS:
            raise UnsafeModelError(f"the directory holds more than {MAX_MEMBERS} files; refused")
        if found.is_symlink():
            raise UnsafeModelError(
                f"{shortened(name)!r} in the model directory is a symbolic link; refused"
            )
        if found.is_file():
            yield name


def raise_scarcity(error: BaseException) -> None:
    """Raise an error again that is none of the file: too many are open, or there is no memory."""
    if isinstance(error, OSError) and error.errno in _SCARCITY:
        raise error


def open_archive(file: ArchiveFile) -> zipfile.ZipFile:
    """A ZIP archive, opened and checked by its listing, of which a sane length is read.

    Raises:
        UnreadableModelError: it is damaged.
        UnsafeModelError: its listing is that of no honest model.
    """
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_DAMAGE as error:
        raise_scarcity(error)
        raise UnreadableModelError(f"the archive is damaged: {reason(error)}") from None
    check_archive(archive)
    return archive


def member_chunks(
    archive: zipfile.ZipFile, name: str, size: int = _CHUNK
) -> Generator[bytes, None, None]:
    """The bytes of one member, never more than it claims, in pieces of so many.

    Raises:
        UnreadableModelError: there is no such member, or it is damaged.
    """
    try:
        with archive.open(name) as stream:
            while piece := stream.read(size):
                yield piece
    except KeyError:
        raise UnreadableModelError(f"the archive holds no {name}; is it a Keras model?") from None
    except _ZIP_DAMAGE as error:
        raise_scarcity(error)
        what = shortened(name)
        raise UnreadableModelError(f"{what} in the archive is damaged: {reason(error)}") from None


def check_member(archive: zipfile.ZipFile, name: str, size: int = _CHUNK) -> None:
    """See that the header in front of a member's bytes is that of the archive's listing.

    The first `size` bytes are read, too.

    Raises:
        UnreadableModelError: it is not, or there is no such member.
    """
    with closing(member_chunks(archive, name, size)) as chunks:
        next(chunks, None)


def read_text(pieces: Iterable[bytes], costs: Costs) -> bytes:
    """The bytes of a text, of which not many more are read than its budget.

    Raises:
        UnreadableModelError: it is damaged.
        UnsafeModelError: it is longer.
    """
    content = bytearray()
    for piece in pieces:
        content += piece
        costs.spend(budget.TEXT, len(piece))
    return bytes(content)


def reason(error: BaseException) -> str:
    """What a library says of a damaged file, in one line."""
    text = str(error).strip() or type(error).__name__
    return shortened(text.splitlines()[0])


@contextmanager
def hdf5_damage(what: str) -> Iterator[None]:
    """Say of an HDF5 file that the library cannot read that it is damaged, and of what in it."""
    try:
        yield
    except HDF5_DAMAGE as error:
        raise damaged(what, error) from None


def damaged(what: str, error: BaseException) -> UnreadableModelError:
    """What to say of something that the HDF5 library cannot read, or that is not there."""
    return UnreadableModelError(f"{what} is damaged: {reason(error)}")


def heap_size(start: memoryview) -> int:
    """How long a global heap is, where HDF5 keeps texts of any length; 0 where none begins."""
    return int.from_bytes(start[8:16], "little") if bytes(start[:8]) == _HEAP_MAGIC else 0


def check_heap(content: memoryview) -> None:
    """Refuse a global heap that is damaged.

    The library goes round in circles at an empty entry in one (seen in HDF5 1.14.6).

    Raises:
        UnreadableModelError: an entry is empty or longer than the heap.
    """
    total, at = len(content), 16
    while at + 16 <= total:
        number = int.from_bytes(content[at : at + 2], "little")
        size = int.from_bytes(content[at + 8 : at + 16], "little")
        length = 16 + (size + 7) // 8 * 8 if number else size  # free space counts its own header
        if length < 16 or at + length > total:
            raise UnreadableModelError("its texts are damaged")
        at += length


def link_name(name: str) -> bytes:
    """A name as HDF5 stores it.

    Raises:
        UnsafeModelError: HDF5 would cut it off, or cannot hold it.
    """
    try:
        key = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        key = b""
    if not key or b"\0" in key:
        raise UnsafeModelError(f"no HDF5 object can be named {shortened(name)!r}; refused")
    return key


def check_path(path: str) -> None:
    """See that a path from a file, taken from a group on, stays inside that group.

    Raises:
        UnsafeModelError: it starts over at the root, or no object can have it.
    """
    if path.startswith("/") or not path.strip("/"):
        raise UnsafeModelError(f"{shortened(path)!r} is no place for weights; refused")
    if not path.isascii() or "\0" in path:
        for name in filter(None, path.split("/")):
            link_name(name)


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The object of this name directly inside `group`, if the one link to it is a plain hard link.

    Returns None when there is none. `name` is one name, not a path.

    Raises:
        UnsafeModelError: the link is soft, external, of a user's kind or one of several, or the
            dataset is not plain, or there is more to open than an honest file has.
        UnreadableModelError: it is damaged.
    """
    found = _child(group, name)
    return found.opened() if isinstance(found, Variable) else found


def variable(group: h5py.Group, path: str) -> Variable | None:
    """The dataset at a path inside `group`, looked at as `child` does; None if there is none."""
    parent, _, name = path.strip("/").rpartition("/")
    inside = descend(group, parent) if parent else group
    if not name or not isinstance(inside, h5py.Group):
        return None
    found = _child(inside, name)
    return found if isinstance(found, Variable) else None


class Variable(NamedTuple):
    """A dataset that may be read, with what was seen of it when it was looked at.

    Attributes:
        id: h5py's object for it.
        info: what HDF5 says of the object.
        shape: None where it holds nothing, not even one number.
        dtype: as numpy has it.
        offset: where its numbers are in the HDF5 file, one after the other as numpy has them, where
            they are of a dtype that most weights are of; None where HDF5 has to read them.
        is_chunked: whether it is stored in chunks.
    """

    id: h5py.h5d.DatasetID
    info: h5py.h5o.ObjInfo
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any]
    offset: int | None
    is_chunked: bool

    def opened(self) -> h5py.Dataset:
        """The same for h5py's own functions."""
        return h5py.Dataset(self.id)


def _child(group: h5py.Group, name: str) -> h5py.Group | Variable | None:
    try:
        return _open_child(group, link_name(name))
    except _NotPlainError as error:
        raise UnsafeModelError(f"{_hdf5_name(group, name)} {error}; refused") from None
    except HDF5_DAMAGE as error:
        where = _hdf5_name(group, name)
        raise UnreadableModelError(f"{where} is damaged: {reason(error)}") from None


def _open_child(group: h5py.Group, key: bytes) -> h5py.Group | Variable | None:
    links = group.id.links
    if not links.exists(key):
        return None
    link = links.get_info(key)
    if link.type != h5py.h5l.TYPE_HARD:
        raise _NotPlainError("is a link, which weights never need")
    costs = budget.by_number(h5py.h5o.get_info(group.id).fileno)
    if costs.read_at is not None:
        headers.check(costs.read_at, link.u, costs.indexes)
    found = h5py.h5o.open(group.id, key)
    info = h5py.h5o.get_info(found)
    costs.spend(budget.OBJECTS)
    if info.rc != 1:
        raise _NotPlainError("stands in several places of the file")
    if _is_crowded(info):
        raise _NotPlainError(f"has more than {MAX_MESSAGES} attributes")
    if isinstance(found, h5py.h5g.GroupID):
        return h5py.Group(found)
    if isinstance(found, h5py.h5d.DatasetID):
        return _simple(found, info, costs) or _looked_at(found, info, costs)
    raise _NotPlainError("is neither a group nor a dataset")


@cache
def _numbers() -> list[tuple[h5py.h5t.TypeID, np.dtype[Any]]]:
    """The types that most weights are of, which numpy reads as they are stored."""
    kinds = h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F16LE, h5py.h5t.IEEE_F64LE
    return [(kind, np.dtype(name)) for kind, name in zip(kinds, ["f4", "f2", "f8"], strict=True)]


_NOT_SIMPLE = 1 << 0x07 | 1 << 0x0B
"""Messages in the header of a dataset: that its data are in other files, and through filters."""


def _simple(found: h5py.h5d.DatasetID, info: h5py.h5o.ObjInfo, costs: Costs) -> Variable | None:
    """A dataset as nearly all are, of common numbers in one block; None for any other.

    It is the short form of `_looked_at`: h5py takes four times as long to find out all of that.
    """
    offset = found.get_offset()
    if offset is None or info.hdr.mesg.present & _NOT_SIMPLE:
        return None
    kind = found.get_type()
    dtype = next((known for one, known in _numbers() if kind.equal(one)), None)
    stored = found.get_storage_size()
    if dtype is None or not stored:
        return None
    shape: tuple[int, ...] = found.shape
    if math.prod(shape) * dtype.itemsize != stored:
        return None
    costs.stored(info.addr, [(offset, stored)])
    return Variable(found, info, shape, dtype, offset, is_chunked=False)


def _looked_at(found: h5py.h5d.DatasetID, info: h5py.h5o.ObjInfo, costs: Costs) -> Variable:
    dataset = h5py.Dataset(found)
    problem = _dataset_problem(dataset, info.addr, costs)
    if problem is not None:
        raise _NotPlainError(problem)
    is_chunked = found.get_create_plist().get_layout() == h5py.h5d.CHUNKED
    return Variable(found, info, dataset.shape, dataset.dtype, None, is_chunked)


def check_root(file: h5py.File) -> int:
    """See that the root of a file is no odder than what `child` opens; the number of the file.

    Raises:
        UnsafeModelError: it has very many attributes.
    """
    info = h5py.h5o.get_info(file.id)
    if _is_crowded(info):
        raise UnsafeModelError(f"the weights have more than {MAX_MESSAGES} attributes; refused")
    number: int = info.fileno
    return number


def _is_crowded(info: h5py.h5o.ObjInfo) -> bool:
    return bool(max(info.num_attrs, info.hdr.nmesgs) > MAX_MESSAGES)


class _NotPlainError(Exception):
    """What is wrong with an HDF5 object; never leaves this module."""


def listed(iterate: Callable[..., object], costs: Costs) -> list[bytes]:
    """The names that h5py's `iterate` goes through, sorted, as far as their budget goes.

    In the order of the file, because for another one HDF5 makes a table of them first, in any
    length, and crashes when it cannot read an entry (seen in HDF5 1.14.6).
    """
    found: list[bytes] = []
    left = costs.left(budget.NAMES)

    def note(name: bytes) -> bool | None:
        nonlocal left
        left -= len(name) + NAME_BYTES
        found.append(name)
        return True if left < 0 else None  # an exception would not get through

    iterate(note, order=h5py.h5.ITER_NATIVE)
    costs.spend(budget.NAMES, costs.left(budget.NAMES) - left)
    return sorted(found)


NAME_BYTES = 64
"""What Python takes beside the bytes of a name."""


def address(group: h5py.Group) -> int:
    """Where in its file a group is: what a walk through groups meets twice is a cycle."""
    found: int = h5py.h5o.get_info(group.id).addr
    return found


def descend(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """The object at a path inside `group`, with a look at every link before it is followed."""
    names = [name for name in path.split("/") if name]
    if len(names) > MAX_HDF5_DEPTH:
        raise UnsafeModelError(
            f"the weights are nested deeper than {MAX_HDF5_DEPTH} groups; refused"
        )
    found: h5py.Group | h5py.Dataset | None = group if names else None
    for name in names:
        if not isinstance(found, h5py.Group):
            return None
        found = child(found, name)
    return found


def attribute(group: h5py.Group | h5py.Dataset, name: str) -> Any:
    """The value of an attribute, None when there is none.

    Raises:
        UnsafeModelError: it is neither numbers nor text, or too long.
        UnreadableModelError: it is damaged.
    """
    key = link_name(name)
    try:
        if not h5py.h5a.exists(group.id, key):
            return None
        found = h5py.h5a.open(group.id, key)
        problem = _attribute_problem(found)
        if problem is None:
            problem = _count(found, group, key)
        if problem is None:
            return group.attrs[name]
    except HDF5_DAMAGE as error:
        where = _attribute_name(group, name)
        raise UnreadableModelError(f"{where} is damaged: {reason(error)}") from None
    raise UnsafeModelError(f"{_attribute_name(group, name)} {problem}; refused")


def _attribute_problem(found: h5py.h5a.AttrID) -> str | None:
    """What is wrong with an attribute, without a look at its value."""
    kind = found.get_type()
    if not (_is_plain_type(kind) or isinstance(kind, h5py.h5t.TypeStringID)):
        return "is neither numbers nor text"
    return None


def _count(found: h5py.h5a.AttrID, group: h5py.Group | h5py.Dataset, name: bytes) -> str | None:
    """Count what an attribute is about to take; what is wrong where that cannot be told."""
    info = h5py.h5o.get_info(group.id)
    costs = budget.by_number(info.fileno)
    kind, count = found.get_type(), found.get_space().get_simple_extent_npoints()
    if not (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        costs.spend(budget.ATTRIBUTES, count * kind.get_size())
        return None
    if costs.read_at is None:
        return None
    lengths = headers.text_lengths(costs.read_at, info.addr, name)
    if lengths is not None:
        costs.spend(budget.ATTRIBUTES, sum(lengths[:count]))
    elif count > 1:
        return "is a list of texts that is kept apart, which Keras' never are"
    return None


def _attribute_name(group: h5py.Group | h5py.Dataset, name: str) -> str:
    return f"the attribute {shortened(name)} of {shortened(group.name or '')} in the weights"


def _hdf5_name(group: h5py.Group, name: str) -> str:
    return f"{shortened(group.name or '').rstrip('/')}/{shortened(name)} in the weights"


def _dataset_problem(dataset: h5py.Dataset, address: int, costs: Costs) -> str | None:
    """What is wrong with a dataset, without a look at its data; where these are is noted."""
    plist = dataset.id.get_create_plist()
    layout = plist.get_layout()
    if layout == h5py.h5d.VIRTUAL or plist.get_external_count() > 0:
        return "keeps its data in other files"
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not _safe_filters().issuperset(filters) or len(set(filters)) < len(filters):
        return "needs HDF5 filters that Keras does not use"
    if not _is_plain(dataset):
        return "does not hold plain numbers"
    claimed, stored = _claimed_bytes(dataset), dataset.id.get_storage_size()
    if claimed > EXPANSION_FLOOR_BYTES:  # asking for the file costs more than looking at a vector
        stored = min(stored, dataset.file.id.get_filesize())
    if _expands_too_much(claimed, stored) if filters else claimed > stored:
        return f"claims {claimed} bytes but stores {stored}"
    if layout == h5py.h5d.CHUNKED and _chunk_bytes(dataset) > max(claimed, EXPANSION_FLOOR_BYTES):
        return "is cut into chunks larger than itself"
    if layout == h5py.h5d.CONTIGUOUS and stored:
        costs.stored(address, [(dataset.id.get_offset(), dataset.id.get_storage_size())])
    if layout == h5py.h5d.CHUNKED and costs.stored(address, _chunks(dataset, costs)) and filters:
        costs.spend(budget.UNPACKED, claimed)
    return None


def _chunks(dataset: h5py.Dataset, costs: Costs) -> list[tuple[int, int]]:
    """Where the chunks of a dataset are, and how long."""
    costs.spend(budget.OBJECTS, dataset.id.get_num_chunks())
    found: list[tuple[int, int]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.byte_offset, chunk.size)))
    return found


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the elements are numbers, booleans, fixed strings or opaque bytes (bfloat16)."""
    kind = dataset.id.get_type()
    if isinstance(kind, h5py.h5t.TypeCompoundID):
        return bool(dataset.dtype.kind == "c")
    return isinstance(kind, h5py.h5t.TypeOpaqueID) or _is_plain_type(kind)


def _is_plain_type(kind: h5py.h5t.TypeID) -> bool:
    plain = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID)
    fixed_text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    return isinstance(kind, plain) or fixed_text


def _claimed_bytes(dataset: h5py.Dataset) -> int:
    shape = dataset.shape
    return 0 if shape is None else math.prod(int(n) for n in shape) * _element_bytes(dataset)


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    chunk = dataset.chunks
    return 0 if chunk is None else math.prod(int(n) for n in chunk) * _element_bytes(dataset)


def _element_bytes(dataset: h5py.Dataset) -> int:
    return int(dataset.id.get_type().get_size())


def check_chunks(dataset: h5py.Dataset, name: str) -> None:
    """Refuse a compressed dataset whose chunks unpack to more than they are.

    The HDF5 library unpacks whatever is stored, and looks at the size only then.

    Raises:
        UnsafeModelError: a chunk is a decompression bomb.
    """
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not filters:
        return
    limit = _chunk_bytes(dataset) + _CHUNK_SLACK
    places: list[tuple[int, ...]] = []
    dataset.id.chunk_iter(lambda chunk: places.append(chunk.chunk_offset))
    for place in places:
        if dataset.id.get_chunk_info_by_coord(place).size > limit:
            raise UnsafeModelError(f"{name} has a chunk that is too long; refused")
        _, stored = dataset.id.read_direct_chunk(place)
        if h5py.h5z.FILTER_DEFLATE in filters and _unpacks_beyond(stored, limit):
            raise UnsafeModelError(f"{name} unpacks to more than it claims; refused")


def _unpacks_beyond(stored: bytes, limit: int) -> bool:
    try:
        return len(zlib.decompressobj().decompress(stored, limit + 1)) > limit
    except zlib.error:
        return False  # the chunk was stored as it is, or the library finds the damage
