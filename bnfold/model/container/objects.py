"""The objects of an HDF5 file as nearly all are that Keras writes, read from their bytes.

The HDF5 library takes a tenth of a millisecond to open an object, and a model has thousands. Here
an object is read that has the one form that h5py gives it by default: a group of the old format,
with plain links, and a variable of common numbers in one block. Whatever is in any other form is
odd, and left to the library, whose answer counts. So this may refuse what the library reads, and
must not read what the library would read otherwise, or refuse.

Source: "HDF5 File Format Specification Version 3.0", sections III.A, III.D, III.E and IV.A.
"""

import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Read = Callable[[int, int], bytes]
"""The bytes of a file from an address on: so many, or as many as there are."""

_SUPERBLOCK = struct.Struct("<24sQQQQ8xQI20x")
_VERSION = b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0\x04\0\x10\0\0\0\0\0"
"""Version 0, addresses and lengths of 8 bytes, and nodes of up to 8 links and 32 children."""
_MOST_IN_LEAF, _MOST_IN_NODE = 8, 32
_NOWHERE = 2**64 - 1
_LAST_FREE = 1

_SPACE, _TYPE, _FILL, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _LINKS = 1, 3, 5, 8, 0x0C, 0x10, 0x11
_NOTHING, _TIME = 0x00, 0x12
_IGNORED = {_NOTHING, _TIME}
_FIXED = {_FILL: b"\2\2\2\1\0\0\0\0", _TIME: b"\1\0\0\0"}
"""How messages begin that say nothing of interest: no value to fill with, a time of change."""
_ONCE = {_SPACE, _TYPE, _FILL, _LAYOUT, _LINKS}

_HEADER = struct.Struct("<BBHII4x")
_LINKS_ALONE = bytes.fromhex("0100010001000000 1800000000000000 1100100000000000")
"""How the header of a group begins that has nothing but links; where they are is behind it."""
_MESSAGE = struct.Struct("<HHB3x")
_PAIR = struct.Struct("<QQ")
_NODE = struct.Struct("<4sBBHQQ")
_LEAF = struct.Struct("<4sBBH")
_ENTRY = struct.Struct("<QQI4x16x")
_NODE_BYTES = _NODE.size + 16 * _MOST_IN_NODE + 8
_LEAF_BYTES = _LEAF.size + _ENTRY.size * _MOST_IN_LEAF
"""How long they are, however full: HDF5 refuses what the end of the file cuts off."""
_HEAP = struct.Struct("<4sB3xQQQ")
_COLLECTION = struct.Struct("<8sQ")
_OBJECT = struct.Struct("<H6xQ")
_REFERENCE = struct.Struct("<IQI")

_NUMBERS: Mapping[bytes, np.dtype[Any]] = {
    bytes.fromhex(text): np.dtype(name)
    for text, name in (
        ("11200f0002000000 0000 1000 0a05 00 0a 0f000000", "<f2"),
        ("11201f0004000000 0000 2000 1708 00 17 7f000000", "<f4"),
        ("11203f0008000000 0000 4000 340b 00 34 ff030000", "<f8"),
        ("1008000004000000 0000 2000", "<i4"),
        ("1008000008000000 0000 4000", "<i8"),
        ("1000000004000000 0000 2000", "<u4"),
    )
}
"""The messages of the types of most weights, of what counts steps, and of random generators."""
_TYPE_BYTES = {0x10: 12, 0x11: 20}
"""How long they are by their first byte, which has their version and class."""

_TEXT = bytes.fromhex("19010100 10000000 10000000 01000000 0000 0800 00000000")
"""The message of the type of a text of any length in UTF-8."""

_MAX_BLOCKS = 20
_MAX_MESSAGES = 100
_MAX_LEVELS = 8
_MAX_ALIKE = 1024  # bytes of a header that is kept, and headers
_MAX_PLACES = 4  # in headers that begin alike: one for each rank, nearly
PAGE = 4096
"""How many bytes are read at once."""
_MAX_BYTES = 16 << 20  # of the names in a group, and of a part of a header


class OddError(Exception):
    """Something is not in the one form that is read here."""


ODD = (OddError, struct.error, ValueError, IndexError)
"""What says so; the last ones where something is shorter than its form."""


class Group(NamedTuple):
    """A group: where each of its links leads, by name, and its attributes, undecoded."""

    links: Mapping[bytes, int]
    attributes: tuple[bytes, ...]


class Block(NamedTuple):
    """A variable without attributes; `address` is where its numbers are, `size` in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int
    size: int


class Objects:
    """The objects of one file, found by their addresses. Every method raises one of `ODD`.

    Attributes:
        root: where the group is in which all others are.
    """

    def __init__(
        self,
        read: Read,
        size: int,
        note: Callable[[bytes], None],
        expect: Callable[[int, Sequence[int]], None] = lambda *_: None,
    ) -> None:
        """`size` is that of the file; `note` is told the name of each link that is read.

        `expect` is told what is below a node of a tree before it is read: the height of the node
        and the addresses.
        """
        self._read, self._note, self._expect = _Pages(read), note, expect
        version, *ends, root, cached = _unpacked(_SUPERBLOCK, self._read(0, _SUPERBLOCK.size))
        if version != _VERSION or ends != [0, _NOWHERE, size, _NOWHERE] or cached > 1:
            raise OddError
        self.root: int = root
        self._is_in_one_block = True  # the header that was read last
        self._places: dict[bytes, tuple[int, ...]] = {}
        self._alike: dict[tuple[bytes, bytes, bytes], Block] = {}
        self._heap: tuple[int, dict[int, bytes]] = -1, {}

    def group(self, address: int) -> Group:
        """The group at an address."""
        start = self._read(address, len(_LINKS_ALONE) + _PAIR.size)
        if start.startswith(_LINKS_ALONE):
            return Group(self._links(*_unpacked(_PAIR, start[len(_LINKS_ALONE) :])), ())
        links: Mapping[bytes, int] | None = None
        attributes: list[bytes] = []
        for kind, content, _ in self._messages(address):
            if kind == _LINKS:
                links = self._links(*_PAIR.unpack(content[:16]))
            elif kind == _ATTRIBUTE:
                attributes.append(content)
            elif kind not in _IGNORED:
                raise OddError
        if links is None:
            raise OddError
        return Group(links, tuple(attributes))

    def block(self, address: int) -> Block:
        """The variable at an address.

        Most headers differ from an earlier one in nothing but where the numbers are, and then mean
        the same.
        """
        head = self._read(address, _HEADER.size)
        size = _unpacked(_HEADER, head)[-1]
        places = self._places.get(head, ())
        header = self._read(address + _HEADER.size, size) if places else b""
        for place in places:
            alike = self._alike.get((head, header[:place], header[place + 8 :]))
            if alike is not None:
                start = int.from_bytes(header[place : place + 8], "little")
                return Block(alike.shape, alike.dtype, start, alike.size)
        found, place = self._block(address)
        if self._is_in_one_block and max(size, len(self._alike)) < _MAX_ALIKE:
            header = header or self._read(address + _HEADER.size, size)
            self._places[head] = (place, *(one for one in places if one != place))[:_MAX_PLACES]
            self._alike[head, header[:place], header[place + 8 :]] = found
        return found

    def _block(self, address: int) -> tuple[Block, int]:
        """The variable, and where its header says where the numbers are."""
        found: dict[int, bytes] = {}
        place = 0
        for kind, content, at in self._messages(address):
            if kind in (_SPACE, _TYPE, _FILL, _LAYOUT):
                found[kind] = content
                place = at + 2 - address - _HEADER.size if kind == _LAYOUT else place
            elif kind not in _IGNORED:
                raise OddError
        if len(found) < 4:
            raise OddError
        shape, numbers = _shape(found[_SPACE]), found[_TYPE]
        dtype = _NUMBERS.get(numbers[: _TYPE_BYTES.get(numbers[0], 0)])
        version, storage = found[_LAYOUT][:2]
        address, size = _PAIR.unpack(found[_LAYOUT][2:18])
        is_whole = dtype is not None and math.prod(shape) * dtype.itemsize == size > 0
        if dtype is None or (version, storage) != (3, 1) or not is_whole:
            raise OddError
        return Block(shape, dtype, address, size), place

    def texts(self, group: Group) -> dict[str, str]:
        """The attributes of a group by their names, which must all be texts."""
        every = [_attribute(content) for content in group.attributes]
        found = {name.decode(): self._text(reference) for name, reference in every}
        if len(found) < len(every):
            raise OddError
        return found

    def _text(self, reference: bytes) -> str:
        length, address, number = _REFERENCE.unpack(reference)
        return self._heap_text(address, number, length)

    def _messages(self, address: int) -> Iterator[tuple[int, bytes, int]]:
        """The messages of a header of version 1, through all of its blocks, and where they are."""
        head = self._read(address, 16)
        version, _, count, references, size = _unpacked(_HEADER, head)
        if version != 1 or references != 1 or count > _MAX_MESSAGES:
            raise OddError
        blocks, seen = [(address + 16, size)], set()
        for number, (start, length) in enumerate(blocks):
            if number == _MAX_BLOCKS or not 0 < length <= _MAX_BYTES or length % 8:
                raise OddError
            content = self._whole(start, length)
            at = 0
            while at + 8 <= length and count:
                kind, size, flags = _MESSAGE.unpack_from(content, at)
                message = content[at + 8 : at + 8 + size]
                at += 8 + size
                if flags & ~1 or len(message) < size or size % 8 or kind in seen:
                    raise OddError  # it is shared, or must be understood
                count -= 1
                if kind in _ONCE:
                    seen.add(kind)
                if kind == _CONTINUATION:
                    blocks.append(_unpacked(_PAIR, message[:16]))
                elif message.startswith(_FIXED.get(kind, b"")):
                    yield kind, message, start + at - size
                else:
                    raise OddError
            if at != length:
                raise OddError
        if count:
            raise OddError
        self._is_in_one_block = len(blocks) == 1

    def _links(self, tree: int, heap: int) -> Mapping[bytes, int]:
        """The links of a group, which must be sorted: HDF5 looks for them by halves."""
        mark, version, size, free, data = _unpacked(_HEAP, self._read(heap, _HEAP.size))
        if mark != b"HEAP" or version != 0 or size > _MAX_BYTES:
            raise OddError
        names = self._whole(data, size)
        _check_free(names, free)
        found: dict[bytes, int] = {}
        last, rows = b"", dict[int, tuple[int, int]]()
        for leaf in self._leaves(tree, names, None, rows):
            for name, target in leaf:
                if name <= last:
                    raise OddError
                self._note(name)
                found[name], last = target, name
        if any(behind != _NOWHERE for _, behind in rows.values()):
            raise OddError
        return found

    def node(self, address: int) -> tuple[int, tuple[int, int], tuple[int, ...]]:
        """A node of a tree.

        What is returned is its height, the nodes before and behind it, and keys and the addresses
        of what is below by turns.
        """
        node = self._whole(address, _NODE_BYTES)
        mark, kind, height, count, before, behind = _NODE.unpack_from(node)
        if mark != b"TREE" or kind != 0 or height > _MAX_LEVELS or count > _MOST_IN_NODE:
            raise OddError
        if height and not count:  # HDF5 goes down all the same
            raise OddError
        words = struct.unpack_from(f"<{2 * count + 1}Q", node, _NODE.size)
        return height, (before, behind), words

    def _leaves(
        self, address: int, names: bytes, level: int | None, rows: dict[int, tuple[int, int]]
    ) -> Iterator[list[tuple[bytes, int]]]:
        """The links below a node of a tree, each with its name, leaf by leaf.

        Those of a leaf are between the keys that bound it if they are sorted. `rows` has the last
        node of each level, and the one that it says is behind it. As each also says which one is
        before it, none can be there twice.
        """
        height, (before, behind), words = self.node(address)
        if level not in (None, height) or rows.get(height, (_NOWHERE, address)) != (
            before,
            address,
        ):
            raise OddError
        rows[height] = address, behind
        self._expect(height, words[1::2])
        for low, child, high in zip(words[::2], words[1::2], words[2::2], strict=False):
            least, most = _name(names, low), _name(names, high)
            below: Iterable[list[tuple[bytes, int]]]
            below = (
                self._leaves(child, names, height - 1, rows)
                if height
                else (self._leaf(child, names),)
            )
            for leaf in below:
                if leaf and not least < leaf[0][0] <= leaf[-1][0] <= most:
                    raise OddError
                yield leaf

    def _leaf(self, address: int, names: bytes) -> list[tuple[bytes, int]]:
        leaf = self._whole(address, _LEAF_BYTES)
        mark, version, _, count = _LEAF.unpack_from(leaf)
        if mark != b"SNOD" or version != 1 or count > _MOST_IN_LEAF:
            raise OddError
        found = []
        entries = leaf[_LEAF.size : _LEAF.size + _ENTRY.size * count]
        for name, target, kind in _ENTRY.iter_unpack(entries):
            if kind > 1:  # it is a soft link
                raise OddError
            found.append((_name(names, name), target))
        return found

    def _whole(self, address: int, size: int) -> bytes:
        """So many bytes from an address on, all of which are in the file."""
        content = self._read(address, size)
        if len(content) < size:
            raise OddError
        return content

    def _heap_text(self, address: int, number: int, length: int) -> str:
        """A text in a heap of such texts, which must be UTF-8, and as long as it is said to be."""
        if self._heap[0] != address:
            self._heap = address, self._heap_at(address)
        content = self._heap[1].get(number)
        if content is None or len(content) != length or b"\0" in content:
            raise OddError
        return content.decode()  # what cannot be is a ValueError

    def _heap_at(self, address: int) -> dict[int, bytes]:
        """What is in a heap, by its numbers."""
        mark, size = _unpacked(_COLLECTION, self._read(address, _COLLECTION.size))
        content = self._read(address, min(size, PAGE))  # its least, and what h5py makes
        if mark != b"GCOL\1\0\0\0" or size > len(content):
            raise OddError
        found: dict[int, bytes] = {}
        at = _COLLECTION.size
        while at + 16 <= size:
            one, used = _OBJECT.unpack_from(content, at)
            if not one and at + used == size:  # the rest is free
                break
            if not one or one in found or at + 16 + used > size:
                raise OddError
            found[one] = content[at + 16 : at + 16 + used]
            at += 16 + (used + 7) // 8 * 8
        return found


class _Pages:
    """The bytes of a file, a page at a time: the objects of one layer are side by side."""

    _KEPT = 64

    def __init__(self, read: Read) -> None:
        self._read = read
        self._pages: OrderedDict[int, bytes] = OrderedDict()

    def __call__(self, address: int, size: int) -> bytes:
        """So many bytes from an address on, or as many as there are."""
        number, start = divmod(address, PAGE)
        if start + size <= PAGE:
            return self._page(number)[start : start + size]
        if size > self._KEPT * PAGE:
            return self._read(address, size)
        last = (address + size - 1) // PAGE
        content = b"".join(self._page(one) for one in range(number, last + 1))
        return content[start : start + size]

    def _page(self, number: int) -> bytes:
        found = self._pages.get(number)
        if found is None:
            found = self._pages[number] = self._read(number * PAGE, PAGE)
            if len(self._pages) > self._KEPT:
                self._pages.popitem(last=False)
        return found


def _unpacked(form: struct.Struct, content: bytes) -> Any:
    if len(content) < form.size:
        raise OddError
    return form.unpack(content)


def _check_free(names: bytes, free: int) -> None:
    """See that the list of what is free among the names of a group is inside, and ends."""
    for _ in range(len(names) // 16):
        if free == _LAST_FREE:
            return
        at = free
        free, size = _unpacked(_PAIR, names[at : at + 16])
        if size < 16 or at + size > len(names):
            raise OddError
    if free != _LAST_FREE:
        raise OddError


def _name(names: bytes, start: int) -> bytes:
    end = names.find(b"\0", start)
    if start >= len(names) or end < 0:
        raise OddError
    return names[start:end]


def _shape(content: bytes) -> tuple[int, ...]:
    """The sizes of a simple dataspace of version 1 that cannot grow."""
    version, rank, flags = content[:3]
    sizes = content[8 : 8 + 8 * rank * (1 + flags)]
    if version != 1 or flags > 1 or len(sizes) < 8 * rank * (1 + flags):
        raise OddError
    shape: tuple[int, ...] = struct.unpack(f"<{rank}Q", sizes[: 8 * rank])
    if flags and sizes[8 * rank :] != sizes[: 8 * rank]:
        raise OddError
    return shape


def _attribute(content: bytes) -> tuple[bytes, bytes]:
    """The name of an attribute that is one text of any length, and what refers to that text."""
    version, name_size, type_size, space_size = struct.unpack("<BxHHH", content[:8])
    if (version, type_size, space_size) != (1, 20, 8):
        raise OddError
    type_at = 8 + (name_size + 7) // 8 * 8
    space_at = type_at + (type_size + 7) // 8 * 8
    value_at = space_at + (space_size + 7) // 8 * 8
    kind, space = content[type_at:space_at], content[space_at:value_at]
    if kind != _TEXT or _shape(space) != () or space[1]:
        raise OddError
    name, end, more = content[8 : 8 + name_size].partition(b"\0")
    if not end or more:  # HDF5 takes the last byte for the end, whatever it is
        raise OddError
    return name, content[value_at : value_at + 16]
