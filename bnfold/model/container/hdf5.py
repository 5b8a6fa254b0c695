"""HDF5 weights: read on demand, copied undecoded, written the way Keras writes them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model.container import ahead, budget, guard, headers, objects
from bnfold.model.container.budget import Costs
from bnfold.model.container.checksums import Reading, Writer
from bnfold.model.container.library import gc_paused, h5py
from bnfold.model.container.store import FAR, RemoteFile, RemoteStream
from bnfold.model.graph import Weight

HEADER_LIMIT = 64512
"""The most bytes that Keras puts into one attribute; longer lists are cut into parts."""


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, which has a look at what HDF5 is about to parse.

    Attributes:
        size: how many bytes the part has.
    """

    def __init__(
        self, file: BinaryIO, start: int, size: int, costs: Costs, reading: Reading | None
    ) -> None:
        self._file, self._start, self.size, self._position = file, start, size, 0
        self._costs, self._transferred, self._reading = costs, 0, reading

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self.size - self._position)]
        self._count(len(view))
        self._fill(view, self._position)
        heap = guard.heap_size(view)
        if heap:  # HDF5 asks for a part first, and for the rest before it looks into it
            guard.check_heap(memoryview(self.read_at(self._position, heap)))
        self._position += len(view)
        return len(view)

    def read_into(self, position: int, view: memoryview) -> None:
        """Fill a buffer with the bytes from a position on; HDF5's own position stays.

        Raises:
            OSError: there are not so many.
        """
        if position + len(view) > self.size:
            raise OSError("it is longer than the file")
        self._count(len(view))
        self._fill(view, position)
        if self._reading is not None:
            self._reading.note(view, self._start + position)

    def _count(self, size: int) -> None:
        self._transferred += size
        if self._transferred > budget.TRANSFER.limit(self.size):
            raise budget.TRANSFER.refusal(self.size)

    def read_at(self, position: int, size: int) -> bytes:
        """Bytes from a position on, as many as there are; HDF5's own position stays."""
        found = bytearray(max(0, min(size, self.size - position)))
        if found:
            self._fill(memoryview(found), position)
        return bytes(found)

    def _fill(self, view: memoryview, position: int) -> None:
        if _read_at(self._file, view, self._start + position) < len(view):
            # HDF5 would take zeros for the rest.
            raise OSError("the file became shorter while it was read")


def _read_at(file: BinaryIO, view: memoryview, offset: int) -> int:
    """Fill a buffer with the bytes from an offset on; how many of them there are.

    The system gives fewer at once than it is asked for where they are more than 2 GiB.
    """
    done = 0
    while done < len(view):
        count = _read_some(file, view[done:] if done else view, offset + done)
        if not count:
            break
        done += count
    return done


def _read_some(file: BinaryIO, view: memoryview, offset: int) -> int:
    """In one call of the system if there is one."""
    if isinstance(file, io.FileIO) and hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], offset)
    file.seek(offset)
    found: int = file.readinto(view)  # type: ignore[attr-defined]
    return found


@contextmanager
def open_hdf5(
    file: BinaryIO,
    what: str,
    costs: Costs,
    start: int = 0,
    size: int | None = None,
    *,
    reading: Reading | None = None,
) -> Iterator[Groups]:
    """An HDF5 file for reading: `file`, or `size` bytes of it from `start` on.

    `what` names it in errors. What is read from it counts in `costs`, and `reading` notes it.
    """
    if size is None:
        size = file.seek(0, io.SEEK_END) - start
    with ExitStack() as resources:
        if isinstance(file, RemoteStream):
            resources.enter_context(gc_paused())  # in threads of what fetches
            ahead.fetch(file.file, start, size)
        yield Groups(_Window(file, start, size, costs, reading), what, costs, resources)


@contextmanager
def _by_the_library(window: _Window, what: str, costs: Costs) -> Iterator[h5py.File]:
    with guard.hdf5_damage(what):
        headers.check_root(window.read_at, window.size)
        opened = h5py.File(window, "r")
    with opened:
        with guard.hdf5_damage(what):
            number = guard.check_root(opened)
            before = opened.userblock_size  # addresses count from behind it
        costs.read_at = lambda address, size: window.read_at(before + address, size)
        costs.read_into = window.read_into
        with budget.counting(number, costs):
            yield opened


class _Recorder(io.FileIO):
    """A file that notes what went wrong while it was written, and goes on as if nothing had.

    The HDF5 library cannot close a file that it cannot write, and complains of that itself. What
    stands before `start` is not part of the file. `writer` is what writes.
    """

    def __init__(self, target: Path, start: int, writer: Writer) -> None:
        super().__init__(target, "r+")
        self.failure: BaseException | None = None
        self._start, self._writer = start, writer
        self._position = start

    def check(self) -> None:
        """Raise what went wrong, as far as it is known."""
        failure = self.failure or self._writer.failure
        if failure is not None:
            raise failure

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:  # as HDF5 does before each of its many writes
            self._position = offset + self._start
            return offset
        if whence == io.SEEK_END:
            self._writer.settle()
            self._position = super().seek(offset, whence)
        else:
            self._position += offset
        return self.tell()

    def tell(self) -> int:
        return self._position - self._start

    def readinto(self, buffer: Any, /) -> int:
        self._writer.settle()
        super().seek(self._position)
        count = super().readinto(buffer)
        self._position += count
        return count

    def write(self, content: Any, /) -> int:
        try:
            if self.failure is None:
                self._writer.write(memoryview(content).cast("B"), self._position)
        except BaseException as error:
            self.failure = error
        self._position += len(content)
        return len(content)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            self._writer.settle()
            super().truncate(size if size is None else size + self._start)
        except BaseException as error:
            self.failure = self.failure or error
        return size or 0


@contextmanager
def new_file(target: Path, start: int = 0, writer: Writer | None = None) -> Iterator[h5py.File]:
    """A new HDF5 file to write to; raises what went wrong while it was written at the end.

    With `start` it is written into the file `target`, behind its first `start` bytes. `writer` is
    that file's, if there is one already.
    """
    with ExitStack() as opened:
        if writer is None:
            target.write_bytes(bytes(start))
            writer = opened.enter_context(Writer(target))
        stream = opened.enter_context(_Recorder(target, start, writer))
        try:
            with h5py.File(stream, "w") as file:
                yield file
        except Exception:  # HDF5 finds nothing where nothing could be written
            stream.check()
            raise
        stream.check()


def overwrite(
    target: Path, changes: Mapping[str, NDArray[Any]], attributes: Mapping[str, bytes] | None = None
) -> None:
    """Give variables of a file, by their paths, other numbers; nothing else in it changes.

    Shapes and dtypes stay what they are. `attributes` are put on the root.
    """
    with guard.hdf5_damage(target.name), h5py.File(target, "r+") as file:
        for path, values in changes.items():
            dataset = guard.descend(file, path)
            if not isinstance(dataset, h5py.Dataset) or dataset.shape != values.shape:
                raise UnreadableModelError(f"there is no such variable as {guard.shortened(path)}")
            dataset[...] = values.view(dataset.dtype) if dataset.dtype.kind == "V" else values
        file.attrs.update(attributes or {})


def replace_text(target: Path, attribute: str, text: str) -> None:
    """Give an attribute of a file's root another text; nothing else in it changes."""
    with guard.hdf5_damage(target.name), h5py.File(target, "r+") as file:
        del file.attrs[attribute]
        file.attrs[attribute] = text  # of a length that is not fixed, so it may be as long as it is


class Groups:
    """The groups of a file by path; each link is looked at, and followed, once.

    What is in the form that nearly all files have is read from its bytes. The rest is read by the
    HDF5 library, which opens the file only then.
    """

    def __init__(self, window: _Window, what: str, costs: Costs, resources: ExitStack) -> None:
        self._window, self._what, self._costs = window, what, costs
        self._resources = resources
        self._found: dict[str, h5py.Group | None] = {}
        self._seen: dict[str, objects.Group | None] = {}
        self._last: tuple[str | None, objects.Group | None] = None, None
        self._bare: set[str] = set()  # the groups whose variables are in one without attributes
        self._objects: objects.Objects | None = None
        with suppress(*objects.ODD):
            self._objects = objects.Objects(window.read_at, window.size, self._note)
            self._seen[""] = self._objects.group(self._objects.root)

    @cached_property
    def root(self) -> h5py.File:
        """The file as the HDF5 library has it.

        Raises:
            UnreadableModelError: it is no HDF5 file, or a damaged one.
        """
        opened = _by_the_library(self._window, self._what, self._costs)
        return self._resources.enter_context(opened)

    def _note(self, name: bytes) -> None:
        self._costs.spend(budget.NAMES, len(name) + guard.NAME_BYTES)

    def at(self, path: str) -> h5py.Group | None:
        """The group at a path, None when there is none."""
        if not path:
            return self.root
        if path not in self._found:
            parent_path, _, name = path.rpartition("/")
            parent = self.at(parent_path)
            found = guard.child(parent, name) if parent is not None else None
            self._found[path] = found if isinstance(found, h5py.Group) else None
        return self._found[path]

    def names(self) -> list[str]:
        """The names of what stands in the root, sorted."""
        with suppress(*objects.ODD):
            root = self._look("")
            return [] if root is None else [name.decode() for name in root.links]
        return names(self.root)

    def has(self, name: str) -> bool:
        """Whether something of this name stands in the root."""
        try:
            return self._look(name) is not None
        except objects.ODD:
            return guard.child(self.root, name) is not None

    def holds(self, path: str) -> bool:
        """Whether there is a group at a path."""
        try:
            return self._look(path) is not None
        except objects.ODD:
            return self.at(path) is not None

    def variables(self, path: str) -> tuple[Weight, ...] | None:
        """The variables "0", "1", ... of the group at a path; None if it holds others too."""
        try:
            return self._variables(path)
        except objects.ODD:
            group = self.at(path)
            return () if group is None else numbered(group, path)

    def variable(self, path: str, number: int) -> Weight | None:
        """The variable of this number in the group at a path, None if there is none."""
        try:
            return self._variable_in(self._look(path), path, number)
        except objects.ODD:
            group = self.at(path)
            return None if group is None else weight_in(group, str(number), f"{path}/{number}")

    def text(self, path: str, attribute: str) -> str | None:
        """A text that Keras stores in an attribute of the group at a path, None if none."""
        try:
            return self._texts(path).get(attribute)
        except objects.ODD:
            group = self.at(path)
            return None if group is None else read_text(group, attribute)

    def copy(self, path: str, target: h5py.Group, skip: Collection[str] = ()) -> None:
        """Copy what is in the group at a path, but the names in `skip`, and its attributes."""
        with suppress(*objects.ODD):
            seen = self._look(path)
            if seen is None or (not seen.attributes and {*map(str.encode, skip)} >= {*seen.links}):
                return  # there is nothing to copy
        group = self.at(path)
        if group is not None:
            copy_children(group, target, skip=skip)

    def copy_attributes(self, path: str, target: h5py.Group) -> None:
        """Copy the attributes of the group at a path, if there is one."""
        parent_path, _, name = path.rpartition("/")
        if name == _VARIABLES and parent_path in self._bare:
            return
        try:
            found = self._texts(path)
        except objects.ODD:
            group = self.at(path)
            if group is not None:
                copy_attributes(group, target)
        else:
            for attribute in sorted(found):
                target.attrs[attribute] = found[attribute]

    def _reader(self) -> objects.Objects:
        if self._objects is None:
            raise objects.OddError
        return self._objects

    def _texts(self, path: str) -> dict[str, str]:
        """The attributes of the group at a path, if there is one. Raises one of `objects.ODD`."""
        group = self._look(path)
        if group is None or not group.attributes:
            return {}
        found = self._reader().texts(group)
        self._costs.spend(budget.ATTRIBUTES, sum(map(len, found.values())))
        return found

    def _look(self, path: str) -> objects.Group | None:
        """The same as `at`, by its bytes. Raises one of `objects.ODD`."""
        if path in self._seen:
            return self._seen[path]
        if path == self._last[0]:
            return self._last[1]
        if not path:
            raise objects.OddError
        parent_path, _, name = path.rpartition("/")
        parent = self._look(parent_path)
        address = None if parent is None else parent.links.get(guard.link_name(name))
        found = None
        if address is not None:
            found = self._reader().group(address)
            self._costs.spend(budget.OBJECTS)
        if name == _VARIABLES:  # which nobody asks for again but to write
            self._last = path, found
            if found is None or not found.attributes:
                self._bare.add(parent_path)
        else:
            self._seen[path] = found
        return found

    def _variables(self, path: str) -> tuple[Weight, ...] | None:
        group = self._look(path)
        found: list[Weight] = []
        for number in range(0 if group is None else len(group.links)):
            weight = self._variable_in(group, path, number)
            if weight is None:
                return None
            found.append(weight)
        return tuple(found)

    def _variable_in(self, group: objects.Group | None, path: str, number: int) -> Weight | None:
        """The variable of this number in the group at a path. Raises one of `objects.ODD`."""
        costs, address = self._costs, None if group is None else group.links.get(b"%d" % number)
        if address is None:
            return None
        block = self._reader().block(address)
        if block.address + block.size > self._window.size:
            raise objects.OddError  # it was never written, or is cut off
        source = f"{path}/{number}"
        what = guard.shortened(source)
        costs.spend(budget.OBJECTS)
        costs.named(address, what)
        costs.stored(address, [(block.address, block.size)])
        read = Plain(self._window.read_into, block.address, block.shape, block.dtype, what)
        is_far = costs.is_far(block.size)
        return Weight(block.shape, block.dtype, read, "", source, is_far)


_VARIABLES = "vars"


def group_at(parent: h5py.Group, path: str) -> h5py.Group | None:
    """The group at a path, None when there is none."""
    found = guard.descend(parent, path)
    return found if isinstance(found, h5py.Group) else None


def weight_in(group: h5py.Group, path: str, source: str, name: str = "") -> Weight | None:
    """The variable at `path` in a group, None if none; `source` is its path in the file."""
    found = guard.variable(group, path)
    if found is None:
        return None
    what = guard.shortened(source or path)
    with guard.hdf5_damage(what):
        costs = budget.by_number(found.info.fileno)
        if source:
            costs.named(found.info.addr, what)
        # HDF5 has no bfloat16: Keras stores the two bytes as they are.
        dtype = bfloat16() if found.dtype == _TWO_BYTES else found.dtype
        if dtype.kind != "V" and found.info.num_attrs and h5py.h5a.exists(found.id, b"dtype"):
            _check_dtype(found.opened(), dtype, what)
        if found.shape is None:
            return None
        read: Callable[[], NDArray[Any]]
        if found.offset is not None and costs.read_into is not None:
            read = Plain(costs.read_into, found.offset, found.shape, dtype, what)
        else:
            read = Stored(found, found.shape, dtype, what)
        is_far = costs.is_far(math.prod(found.shape) * dtype.itemsize)
        return Weight(found.shape, dtype, read, name, source, is_far)


_TWO_BYTES = np.dtype("V2")
_WIDEST = 8
"""The most bytes that a number of a layer has. In wider ones some bytes mean nothing: they would
be written with whatever was in memory."""


def far_above(file: Path | RemoteFile) -> int | None:
    """From how many bytes on the variables of a file are far, as `Costs` has it."""
    return FAR if isinstance(file, RemoteFile) else None


def _check_dtype(dataset: h5py.Dataset, dtype: np.dtype[Any], what: str) -> None:
    """Refuse numbers that Keras would round to bfloat16 because the file calls them so."""
    if read_text(dataset, "dtype") == "bfloat16" and dtype.name != "bfloat16":
        raise UnreadableModelError(f"{what} is called bfloat16 and holds {dtype.name}")


def bfloat16() -> np.dtype[Any]:
    """Numpy's dtype for bfloat16."""
    import ml_dtypes  # noqa: PLC0415 - few models need it

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


class _Closed:
    """A dataset that was looked at and closed: an open one takes the HDF5 library 13 KiB.

    What is opened again has no name that HDF5 would not search the whole file for.
    """

    __slots__ = ("_address", "_file")

    def __init__(self, node: h5py.h5d.DatasetID) -> None:
        self._file = h5py.h5i.get_file_id(node)
        self._address = h5py.h5r.create(node, b".", h5py.h5r.OBJECT)

    def open(self) -> Any:
        """The id of the same object, wherever links point by now."""
        return h5py.h5r.dereference(self._address, self._file)


class Stored:
    """The numbers of a dataset, read when they are asked for: all of them, or piece by piece."""

    __slots__ = ("_closed", "_dtype", "_is_chunked", "_shape", "_stored_as", "_what")

    def __init__(
        self, found: guard.Variable, shape: tuple[int, ...], dtype: np.dtype[Any], what: str
    ) -> None:
        """`dtype` is that of the numbers, `what` names them where they cannot be read."""
        self._closed, self._shape, self._dtype, self._what = _Closed(found.id), shape, dtype, what
        self._stored_as: np.dtype[Any] = found.dtype if dtype.name == "bfloat16" else dtype
        self._is_chunked = found.is_chunked

    def __call__(self) -> NDArray[Any]:
        """All numbers."""
        self._check_kind()
        with guard.hdf5_damage(self._what):
            stored = self._closed.open()
            if self._is_chunked:
                guard.check_chunks(h5py.Dataset(stored), self._what)
            values = np.empty(self._shape, self._stored_as)
            if values.size:  # past h5py's selections, which take longer than a vector
                stored.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return self._typed(values)

    def pieces(self, lead: int) -> Iterator[tuple[Shape, NDArray[Any]]]:
        """The numbers in order, in pieces as `cuts` makes them, each with where it begins.

        A piece is good until the next. A large dataset that is stored in one block is read a piece
        at a time, which costs no memory. One in chunks is read as a whole first.
        """
        shape, size = self._shape, self._stored_as.itemsize
        if math.prod(shape) * size <= PIECE_BYTES:
            yield (0,) * len(shape), self()
            return
        if self._is_chunked:
            values = self()
            yield from (
                (start, values[within(start, part)]) for start, part in cuts(shape, size, lead)
            )
            return
        self._check_kind()
        buffer = None
        with guard.hdf5_damage(self._what):
            stored = self._closed.open()
        space = stored.get_space()
        for start, sizes in cuts(shape, size, lead):
            buffer = np.empty(sizes, self._stored_as) if buffer is None else buffer
            part = buffer.reshape(-1)[: math.prod(sizes)].reshape(sizes)
            space.select_hyperslab(start, sizes)
            with guard.hdf5_damage(self._what):
                stored.read(h5py.h5s.create_simple(sizes), space, part)
            yield start, self._typed(part)

    def _check_kind(self) -> None:
        is_number = self._dtype.kind in "biuf" and self._dtype.itemsize <= _WIDEST
        if not is_number and self._dtype.name != "bfloat16":
            raise UnreadableModelError(f"{self._what} does not hold the numbers of a layer")

    def _typed(self, values: NDArray[Any]) -> NDArray[Any]:
        return values.view(self._dtype) if values.dtype.kind == "V" else values


PIECE_BYTES = 1 << 20
"""How much of a large variable is in memory at once."""

Shape = tuple[int, ...]


def cuts(shape: Shape, itemsize: int, lead: int) -> Iterator[tuple[Shape, Shape]]:
    """Where the pieces of an array begin, and their shapes: each is one run of its numbers.

    They have at most PIECE_BYTES, or what is behind the first `lead` axes, at least one: these
    alone are cut. The first piece is the largest.
    """
    most = PIECE_BYTES // itemsize
    behind = [math.prod(shape[axis + 1 :]) for axis in range(lead)]
    axis = next((n for n, size in enumerate(behind) if size <= most), lead - 1)
    rows = max(1, most // max(1, behind[axis]))
    rest = shape[axis + 1 :]
    for before in np.ndindex(*shape[:axis]):
        for first in range(0, shape[axis], rows):
            start = (*before, first, *(0 for _ in rest))
            yield start, (*(1 for _ in before), min(rows, shape[axis] - first), *rest)


def within(start: Shape, shape: Shape) -> tuple[slice, ...]:
    """Where a piece is in its array."""
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


class Plain:
    """The numbers of a dataset that is one block of the file, read past the HDF5 library.

    It takes a tenth of the time, and no object of HDF5's is kept open, or opened again.
    """

    __slots__ = ("_dtype", "_offset", "_read_into", "_shape", "_what")

    def __init__(
        self,
        read_into: budget.ReadInto,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        what: str,
    ) -> None:
        """`offset` is where they are in the HDF5 file; `what` names them in errors."""
        self._read_into, self._offset, self._what = read_into, offset, what
        self._shape, self._dtype = shape, dtype

    def __call__(self) -> NDArray[Any]:
        """All numbers."""
        values = np.empty(self._shape, self._dtype)
        self._fill(values, 0)
        return values

    def pieces(self, lead: int) -> Iterator[tuple[Shape, NDArray[Any]]]:
        """As those of `Stored`."""
        if math.prod(self._shape) * self._dtype.itemsize <= PIECE_BYTES:
            yield (0,) * len(self._shape), self()
            return
        buffer, at = None, 0
        for start, sizes in cuts(self._shape, self._dtype.itemsize, lead):
            buffer = np.empty(math.prod(sizes), self._dtype) if buffer is None else buffer
            part = buffer[: math.prod(sizes)]
            self._fill(part, at)
            at += part.size
            yield start, part.reshape(sizes)

    def _fill(self, part: NDArray[Any], first: int) -> None:
        """Fill an array with the numbers from number `first` on."""
        at = self._offset + first * self._dtype.itemsize
        try:
            self._read_into(at, part.data.cast("B"))
        except guard.HDF5_DAMAGE as error:
            raise guard.damaged(self._what, error) from None


Stores = Stored | Plain
"""What reads the numbers of a variable of a file."""


def pieces_of(weight: Weight) -> Iterator[tuple[Shape, NDArray[Any]]]:
    """The numbers of any variable in pieces as those of `Stored`, with all axes cut."""
    if isinstance(weight.read, Stores):
        yield from weight.read.pieces(len(weight.shape))
        return
    values = weight.read()
    for start, shape in cuts(values.shape, values.itemsize, values.ndim):
        yield start, values[within(start, shape)]


def names(group: h5py.Group) -> list[str]:
    """The names of what stands directly in a group, sorted.

    Raises:
        UnreadableModelError: the group is damaged, or a name is no UTF-8, for which h5py gives
            bytes and writes nothing.
        UnsafeModelError: they are longer than their budget.
    """
    whose = guard.shortened(group.name or "")
    with guard.hdf5_damage(whose):
        found = guard.listed(group.id.links.iterate, budget.of(group))
    odd = next((name for name in found if not _is_utf8(name)), None)
    if odd is not None:
        raise UnreadableModelError(f"the name {guard.shortened(repr(odd))} in {whose} is no UTF-8")
    return [name.decode() for name in found]


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """What stands directly in a group, each looked at before it is followed."""
    for name in names(group):
        found = guard.child(group, name)
        if found is not None:
            yield name, found


def numbered(group: h5py.Group, path: str) -> tuple[Weight, ...] | None:
    """The variables "0", "1", ... of a group at `path` in the file; None if it holds others too."""
    with guard.hdf5_damage(guard.shortened(path)):
        count = len(group)
    found: list[Weight] = []
    while len(found) < count:  # the count may lie: the first number that is missing ends it
        weight = weight_in(group, str(len(found)), f"{path}/{len(found)}")
        if weight is None:
            return None
        found.append(weight)
    return tuple(found)


def all_weights(group: h5py.Group | None, path: str) -> Iterator[Weight]:
    """Every variable in a group at `path` in the file, at any depth, in the order of their names.

    That of "2" and "10" is the one in which Keras numbers them.
    """
    if group is not None:
        yield from _all_weights(group, path, Walk(), 0)


def _all_weights(group: h5py.Group, path: str, walk: Walk, depth: int) -> Iterator[Weight]:
    walk.enter(group, depth)
    for name in sorted(names(group), key=lambda one: (len(one), one)):
        node = guard.child(group, name)
        if isinstance(node, h5py.Group):
            yield from _all_weights(node, f"{path}/{name}", walk, depth + 1)
        elif node is not None:
            weight = weight_in(group, name, f"{path}/{name}")
            if weight is not None:
                yield weight


def counter(weight: Weight | None) -> int | None:
    """The number that a variable counts; None where it is none that counts."""
    if weight is None or weight.shape != () or weight.dtype.kind not in "iuf":
        return None
    value = float(weight.read())
    return int(value) if 0 <= value < _LARGEST_COUNT and value.is_integer() else None


_LARGEST_COUNT = 2.0**63


class Walk:
    """One way down through the groups of a file, which refuses to go in circles."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def enter(self, group: h5py.Group, depth: int) -> None:
        """Note a group that lies `depth` groups deep.

        Raises:
            UnsafeModelError: it lies too deep, or the walk was in it before.
        """
        where = guard.address(group)
        if depth > guard.MAX_HDF5_DEPTH:
            raise UnsafeModelError(
                f"the weights are nested deeper than {guard.MAX_HDF5_DEPTH} groups; refused"
            )
        if where in self._seen:
            name = guard.shortened(group.name or "")
            raise UnsafeModelError(
                f"the group {name} stands in several places of the file; refused"
            )
        self._seen.add(where)


def weighted_groups(root: h5py.Group) -> set[str]:
    """The paths of all groups that hold a variable somewhere inside."""
    found: set[str] = set()
    _collect_weighted(root, "", found, Walk(), 0)
    return found


def _collect_weighted(
    group: h5py.Group, path: str, found: set[str], walk: Walk, depth: int
) -> bool:
    walk.enter(group, depth)
    holds = False
    for name, node in children(group):
        inside = isinstance(node, h5py.Dataset) or _collect_weighted(
            node, f"{path}/{name}".lstrip("/"), found, walk, depth + 1
        )
        holds = holds or inside
    if holds:
        found.add(path)
    return holds


def copy_children(source: h5py.Group, target: h5py.Group, skip: Iterable[str] = ()) -> None:
    """Copy a group's attributes and all that is in it but the names in `skip`."""
    _copy_children(source, target, set(skip), Walk(), 0)


def _copy_children(
    source: h5py.Group, target: h5py.Group, skip: set[str], walk: Walk, depth: int
) -> None:
    walk.enter(source, depth)
    copy_attributes(source, target)
    for name, node in children(source):
        if name in skip:
            continue
        if isinstance(node, h5py.Dataset):
            copy_dataset(source, name, target, name)
        else:
            _copy_children(node, target.require_group(name), set(), walk, depth + 1)


def joined_by_backslashes(names: Iterable[str]) -> bool:
    """Whether names in the root are paths as Windows writes them, as Keras 2 did there."""
    return any("\\" in name for name in names)


def copy_with_slashes(source: h5py.Group, target: h5py.Group) -> None:
    r"""Copy a group, what stands in it under `a\b` into `a/b`."""
    walk = Walk()
    copy_attributes(source, target)
    for name, node in children(source):
        path = name.replace("\\", "/").strip("/")
        if isinstance(node, h5py.Dataset):
            copy_dataset(source, name, target, path)
        else:
            _copy_children(node, group_for(target, path), set(), walk, path.count("/") + 1)


def copy_around(source: h5py.Group, target: h5py.Group, left_out: Collection[str]) -> None:
    """Copy a group, but only the attributes of what stands at the paths `left_out` in it."""
    first = sorted({path.partition("/")[0] for path in left_out})
    copy_children(source, target, skip=first)
    for name in first:
        found = guard.child(source, name)
        if isinstance(found, h5py.Group):
            rest = {p.partition("/")[2] for p in left_out if p.startswith(f"{name}/")}
            inside = group_for(target, name)
            copy_around(found, inside, rest) if rest else copy_attributes(found, inside)


def copy_attributes(
    source: h5py.Group | h5py.Dataset,
    target: h5py.Group | h5py.Dataset,
    skip: Iterable[str] = (),
) -> None:
    """Copy a group's or dataset's attributes but those in `skip`."""
    skipped = set(skip)
    for name in attribute_names(source):
        if name not in skipped:
            with guard.hdf5_damage(f"the attribute {guard.shortened(name)} of the weights"):
                target.attrs[name] = guard.attribute(source, name)


def attribute_names(source: h5py.Group | h5py.Dataset) -> list[str]:
    """The names of all attributes, sorted."""
    with guard.hdf5_damage(guard.shortened(source.name or "")):
        every = partial(h5py.h5a.iterate, source.id)
        return [_text(name) for name in guard.listed(every, budget.of(source))]


def copy_dataset(source: h5py.Group, path: str, target: h5py.Group, new_path: str) -> None:
    """Copy one variable byte for byte, without decoding it."""
    _check_free(target, new_path)
    parent, _, name = new_path.rpartition("/")
    group = group_for(target, parent) if parent else target
    key = path.encode("utf-8", "surrogateescape")
    with guard.hdf5_damage(guard.shortened(path)):
        found = h5py.h5o.open(source.id, key)
        info = h5py.h5o.get_info(found)
        budget.by_number(info.fileno).spend(budget.WRITTEN, found.get_storage_size())
        h5py.h5o.copy(source.id, key, group.id, guard.link_name(name), _without_attributes())
    if info.num_attrs:
        copy_attributes(h5py.Dataset(found), group[name])


@cache
def _without_attributes() -> h5py.h5p.PropCopyID:
    found = h5py.h5p.create(h5py.h5p.OBJECT_COPY)
    found.set_copy_object(h5py.h5o.COPY_WITHOUT_ATTR_FLAG)  # they are looked at first
    return found


def group_for(target: h5py.Group, path: str) -> h5py.Group:
    """The group at a path in a file that is being written, made if need be."""
    guard.check_path(path)
    with suppress(ValueError, RuntimeError, OSError):  # it is there already, as few are
        if path.isascii():
            return h5py.Group(h5py.h5g.create(target.id, path.encode(), lcpl=_with_parents()))
    try:
        return target.require_group(path)
    except (TypeError, ValueError):
        raise _taken(target, path) from None


@cache
def _with_parents() -> h5py.h5p.PropLCID:
    found = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    found.set_create_intermediate_group(True)
    return found


def _check_free(group: h5py.Group, path: str) -> None:
    guard.check_path(path)
    if group.id.links.exists(path.encode()) if path.isdigit() else path in group:
        raise _taken(group, path)


def _taken(group: h5py.Group, path: str) -> UnreadableModelError:
    name = guard.shortened(f"{group.name}/{path}")
    return UnreadableModelError(f"two variables would both be stored as {name}")


def write_weight(target: h5py.Group, path: str, weight: Weight) -> None:
    """Write a variable whose numbers are new; a large one as it is made, a piece at a time."""
    _check_free(target, path)
    if weight.dtype.kind != "f" and weight.dtype.name == "bfloat16":  # HDF5 has none
        target.create_dataset(path, data=weight.read()).attrs["dtype"] = "bfloat16"
        return
    if path.isdigit() and weight.dtype.kind == "f":
        found = _new_numbers(target, path.encode(), weight)
    else:
        found = target.create_dataset(path, weight.shape, weight.dtype).id
    is_large = math.prod(weight.shape) * weight.dtype.itemsize > PIECE_BYTES
    if is_large and isinstance(weight.read, InPieces):
        space = found.get_space()
        for start, piece in weight.read.pieces():
            space.select_hyperslab(start, piece.shape)
            found.write(h5py.h5s.create_simple(piece.shape), space, piece)
    else:
        found.write(h5py.h5s.ALL, h5py.h5s.ALL, np.asarray(weight.read(), order="C"))


@runtime_checkable
class InPieces(Protocol):
    """Numbers that are made when they are asked for, all of them or a piece at a time."""

    def __call__(self) -> NDArray[Any]:
        """All numbers."""

    def pieces(self) -> Iterator[tuple[Shape, NDArray[Any]]]:
        """As those of `Stored`, with all axes cut."""


@cache
def _untimed() -> h5py.h5p.PropDCID:
    found = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    found.set_obj_track_times(False)
    return found


def _new_numbers(target: h5py.Group, name: bytes, weight: Weight) -> h5py.h5d.DatasetID:
    """What `create_dataset` makes for plain numbers, without all that it asks first."""
    kind, space = _type_of(weight.dtype), _space_of(weight.shape)
    return h5py.h5d.create(target.id, name, kind, space, dcpl=_untimed())


@lru_cache(maxsize=16)
def _type_of(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype, logical=1)


@lru_cache(maxsize=64)
def _space_of(shape: Shape) -> h5py.h5s.SpaceID:
    return h5py.h5s.create_simple(shape)


def read_names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names that Keras stores in one attribute, or in numbered parts of it."""
    whole = _attribute_list(group, attribute)
    if whole is not None:
        return whole
    names: list[str] = []
    part = 0
    while (some := _attribute_list(group, f"{attribute}{part}")) is not None:
        names += some
        part += 1
    return names


def _attribute_list(group: h5py.Group, attribute: str) -> list[str] | None:
    value = guard.attribute(group, attribute)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or (value.size and value.dtype.kind not in "SO"):
        raise UnreadableModelError(f"the attribute {attribute} of the weights is no list of names")
    return [_text(name) for name in value.flat]


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def read_text(group: h5py.Group, attribute: str) -> str | None:
    """A text that Keras stores in an attribute, None when there is none."""
    value = guard.attribute(group, attribute)
    return _text(value) if isinstance(value, (bytes, str, np.bytes_)) else None


def write_names(group: h5py.Group, attribute: str, names: list[str]) -> None:
    """Write a list of names as Keras does, in as few parts as fit an HDF5 object header."""
    encoded = [guard.link_name(name) for name in names]
    longest = max(map(len, encoded), default=0)
    if longest > HEADER_LIMIT:
        name = guard.shortened(names[0])
        raise UnreadableModelError(f"the name {name!r} or one beside it is too long for HDF5")
    if longest * len(encoded) <= HEADER_LIMIT:
        group.attrs[attribute] = np.asarray(encoded) if encoded else np.zeros(0, dtype="float64")
        return
    parts = math.ceil(len(encoded) / (HEADER_LIMIT // longest))
    for number in range(parts):
        first, end = (len(encoded) * n // parts for n in (number, number + 1))
        group.attrs[f"{attribute}{number}"] = np.asarray(encoded[first:end])
