"""What HDF5 cannot be asked before it reads an object, read from the bytes of the object's header.

A text of any length stands in an attribute as its length and a reference, and HDF5 reads all of
them at once. A header is a chain of blocks, and what is free among the names of a group is a list.
The links of a group, its attributes and the chunks of a variable stand in trees, whose nodes are in
rows, too. HDF5 follows what leads back to itself until there is no memory, no stack or no time any
more.

Source: "HDF5 File Format Specification Version 3.0", sections III and IV.A.2.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from bnfold.errors import UnreadableModelError

Read = Callable[[int, int], bytes]
"""The bytes of a file from an address on, so many."""

_LINK_INFO, _LAYOUT, _ATTRIBUTE, _CONTINUATION = 0x02, 0x08, 0x0C, 0x10
_LINKS, _ATTRIBUTE_INFO = 0x11, 0x15
_NOWHERE = 2**64 - 1
_LAST_FREE = 1
_MAX_NODES = 1 << 20
_MAX_ROWS, _MAX_WIDTH = 64, 1 << 12
_MAX_DEPTH = 16  # with nodes of half a kilobyte more than a million links are 5 levels
_REFERENCE_BYTES = 16  # 4 of the length, 8 of the heap's address, 4 of the place in it
_MAX_BLOCKS = 1000  # a header grows by one whenever it is full
_MAX_BYTES = 64 << 20  # of a block: 500 attributes of 64 KiB are less


class _Block(NamedTuple):
    """A part of a header: where its messages begin, and how many bytes they are."""

    start: int
    size: int


def check(read: Read, address: int, known: set[tuple[Any, ...]] | None = None) -> None:
    """See that a header comes to an end, and whatever it leads to that HDF5 follows by itself.

    What is in `known` has been looked at, and what is looked at now is put there: thousands of
    objects can share one large index.

    Raises:
        UnreadableModelError: something does not.
    """
    known = set() if known is None else known
    for kind, content in _messages(read, address):
        for look, *where in _followed(kind, content):
            if (look, *where) not in known:
                look(read, *where)
                known.add((look, *where))


def _followed(kind: int, content: bytes) -> Iterator[tuple[Any, ...]]:
    """What a message leads to: how to look at it, and where it is."""
    if kind == _LINKS:
        yield _check_tree, _number(content, 0, 8), 8
        yield _check_heap, _number(content, 8, 8)
    elif kind in (_LINK_INFO, _ATTRIBUTE_INFO):
        flags = _number(content, 1, 1)
        at = 2 + (flags & 1) * (8 if kind == _LINK_INFO else 2)
        yield _check_blocks, _number(content, at, 8)
        yield _check_new_tree, _number(content, at + 8, 8)
        if flags & 2:
            yield _check_new_tree, _number(content, at + 16, 8)
    elif kind == _LAYOUT:
        yield from _chunks(content)


def _check_tree(read: Read, address: int, key: int) -> None:
    """See that a tree, and each row of its nodes, comes to an end; a key has so many bytes."""
    seen: set[int] = set()
    level, row = None, [address]
    while row:
        _check_row(read, row[0])
        children = []
        for node in row:
            head = read(node, 24)
            if head[:4] != b"TREE":
                continue  # HDF5 says so when it comes there
            level = head[5] if level is None else level
            if node in seen or len(seen) == _MAX_NODES or head[5] != level:
                raise _damaged_tree()
            seen.add(node)
            count = _number(head, 6, 2) if level else 0
            if level and not count:
                raise _damaged_tree()  # HDF5 would go to whatever is in memory for a child
            content = read(node + 24, count * (key + 8))
            children += [_number(content, n * (key + 8) + key, 8) for n in range(count)]
        level, row = (level or 0) - 1, children  # below the lowest level there are none


def _check_row(read: Read, node: int) -> None:
    """See that the nodes from one to the next come to an end: HDF5 counts them."""
    seen: set[int] = set()
    head = read(node, 24)
    while head[:4] == b"TREE" and node != _NOWHERE:
        if node in seen or len(seen) == _MAX_NODES:
            raise _damaged_tree()
        seen.add(node)
        node = _number(head, 16, 8)
        head = read(node, 24)


def _damaged_tree() -> UnreadableModelError:
    return UnreadableModelError("the index of an object in the weights is damaged")


def _check_new_tree(read: Read, address: int) -> None:
    """See that a tree of version 2 comes to an end."""
    head = read(address, 26)
    if head[:4] != b"BTHD":
        return  # there is none, or HDF5 says so
    size, record, depth = (_number(head, at, width) for at, width in ((6, 4), (10, 2), (12, 2)))
    if depth > _MAX_DEPTH or size > _MAX_BYTES or not record:
        raise _damaged_tree()
    pointers = _pointers(size, record, depth)
    counts = _width((size - 10) // record)
    row, seen = [(_number(head, 16, 8), _number(head, 24, 2))], set[int]()
    for pointer in reversed(pointers):
        children = []
        for node, count in row:
            if node in seen or len(seen) == _MAX_NODES:
                raise _damaged_tree()
            seen.add(node)
            content = read(node, size)
            if content[:4] == b"BTIN":
                places = range(6 + count * record, size - pointer, pointer)[: count + 1]
                children += [
                    (_number(content, at, 8), _number(content, at + 8, counts)) for at in places
                ]
        row = children


def _check_blocks(read: Read, address: int) -> None:
    """See that no block of a heap of links or attributes is in itself: HDF5 looks for one in it.

    Such a heap is a table of rows of `width` blocks each. Those of the first two rows have the same
    size, those of every other row twice that of the row before; the large ones are tables again.
    """
    head = read(address, 142)
    if head[:4] != b"FRHP":
        return  # there is none, or HDF5 says so
    width, bits, rows = (_number(head, at, 2) for at in (110, 128, 140))
    least, most = (_number(head, at, 8).bit_length() for at in (112, 120))
    direct = most - least + 2
    if rows > _MAX_ROWS or width > _MAX_WIDTH:
        raise _damaged_tree()
    entry = 20 if _number(head, 7, 2) else 8  # with filters a block's size and mask follow
    waiting, seen = [(_number(head, 132, 8), rows)] if rows else [], set[int]()
    while waiting:
        block, rows = waiting.pop()
        if block in seen or len(seen) == _MAX_NODES:
            raise _damaged_tree()
        seen.add(block)
        small = width * min(direct, rows) * entry
        start = 13 + (bits + 7) // 8 + small
        content = read(block + start, 8 * width * max(0, rows - direct))
        for number in range(len(content) // 8):
            child = _number(content, 8 * number, 8)
            if child != _NOWHERE:
                below = direct + number // width - width.bit_length() + 1
                waiting.append((child, max(0, below)))


def _pointers(size: int, record: int, depth: int) -> list[int]:
    """How long a pointer to a child is on each level of such a tree, from the lowest on.

    It has an address, a count of the records in the child, and above the lowest level one of those
    below it; a count takes as many bytes as the largest that there can be.
    """
    most = total = (size - 10) // record
    one, all_below, found = _width(most), 0, []
    for _ in range(depth):
        found.append(8 + one + all_below)
        most = max(0, (size - 10 - found[-1]) // (record + found[-1]))
        total = (most + 1) * total + most & _NOWHERE
        all_below = _width(total)
    return found


def _width(number: int) -> int:
    """How many bytes a number up to this one takes."""
    return max(1, (number.bit_length() + 7) // 8)


_CHUNKED = 2
_FIXED_ARRAY, _EXTENSIBLE_ARRAY, _TREE = 3, 4, 5
_SETTINGS_BYTES = {_FIXED_ARRAY: 1, _EXTENSIBLE_ARRAY: 5, _TREE: 6}
_COUNTS = {_FIXED_ARRAY: (b"FAHD", 8), _EXTENSIBLE_ARRAY: (b"EAHD", 44)}
"""The signature of an array of chunks, and where it says how many there are."""


def _chunks(content: bytes) -> Iterator[tuple[Any, ...]]:
    """What says where the chunks of a variable are."""
    version, first = content[:1], content[1:2]
    if version in (b"\1", b"\2") and content[2:3] == bytes([_CHUNKED]):
        yield _check_tree, _number(content, 8, 8), 8 + 8 * first[0]
    elif version == b"\3" and first == bytes([_CHUNKED]):
        yield _check_tree, _number(content, 3, 8), 8 + 8 * content[2]
    elif version > b"\3" and first == bytes([_CHUNKED]) and len(content) > 5:
        at = 5 + content[3] * content[4]
        index = _number(content, at, 1)
        address = _number(content, at + 1 + _SETTINGS_BYTES.get(index, 0), 8)
        if index == _TREE:
            yield _check_new_tree, address
        elif index in _COUNTS:
            yield _check_array, address, *_COUNTS[index]


def _check_array(read: Read, address: int, signature: bytes, place: int) -> None:
    """See that an array claims no more chunks than there can be: HDF5 asks for one by one."""
    head = read(address, place + 8)
    if head[:4] == signature and _number(head, place, 8) > _MAX_NODES:
        raise _damaged_tree()


def _check_heap(read: Read, address: int) -> None:
    """See that the list of what is free among the names of a group comes to an end."""
    head = read(address, 32)
    size, free, names = (_number(head, at, 8) for at in (8, 16, 24))
    seen: set[int] = set()
    while head[:4] == b"HEAP" and free != _LAST_FREE and free < size:
        if free in seen:
            raise UnreadableModelError("the names of a group in the weights are damaged")
        seen.add(free)
        free = _number(read(names + free, 8), 0, 8)


_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ROOTS = {0: 64, 1: 68, 2: 36, 3: 36}
"""Where a superblock of each version has the address of the root's header."""
_WIDTHS = {0: 13, 1: 13, 2: 9, 3: 9}
"""Where it has how many bytes addresses and lengths take."""


def check_root(read: Read, size: int) -> None:
    """See that the header of the root of a file of so many bytes comes to an end.

    HDF5 looks for the beginning of a file at 0, 512, 1024 and so on, and counts addresses from
    there.

    Raises:
        UnreadableModelError: it does not, or addresses and lengths are not of 8 bytes each, as
            whoever does not ask for others has them: then no object could be checked.
    """
    start = 0
    while start < size:
        head = read(start, 96)
        if head[:8] == _SIGNATURE and len(head) > 9:
            if head[8] in _ROOTS:
                at = _WIDTHS[head[8]]
                if head[at : at + 2] != b"\x08\x08":
                    raise UnreadableModelError("its addresses and lengths are not of 8 bytes each")
                behind = partial(_read_behind, read, start)
                check(behind, _number(head, _ROOTS[head[8]], 8))
            return
        start = max(512, 2 * start)


def _read_behind(read: Read, start: int, address: int, size: int) -> bytes:
    return read(start + address, size)


def text_lengths(read: Read, address: int, name: bytes) -> list[int] | None:
    """How long the texts of an attribute are; None if the header does not hold the attribute."""
    for kind, content in _messages(read, address):
        if kind == _ATTRIBUTE and len(content) > _ATTRIBUTE_HEAD:
            found, values = _attribute(content)
            if found == name:
                places = range(0, len(values) - _REFERENCE_BYTES + 1, _REFERENCE_BYTES)
                return [_number(values, at, 4) for at in places]
    return None


_ATTRIBUTE_HEAD = 9


def _attribute(content: bytes) -> tuple[bytes, bytes]:
    """The name of an attribute and its values, behind their type and shape."""
    version = content[0]
    sizes = [_number(content, at, 2) for at in (2, 4, 6)]
    used = [(size + 7) // 8 * 8 for size in sizes] if version == 1 else sizes
    start = _ATTRIBUTE_HEAD if version > 2 else _ATTRIBUTE_HEAD - 1
    name = content[start : start + sizes[0]].partition(b"\0")[0]
    return name, content[start + sum(used) :]


def _messages(read: Read, address: int) -> Iterator[tuple[int, bytes]]:
    """The messages of a header, each with its kind, through all of its blocks."""
    first = read(address, 16)
    is_old = first[:1] == b"\1"
    head, frame, block = (8, 0, _old_block(first, address)) if is_old else _new_head(read, address)
    blocks = [block]
    seen: set[int] = set()
    for part in blocks:
        if len(seen) == _MAX_BLOCKS or part.start in seen:
            raise UnreadableModelError("the header of an object in the weights is damaged")
        seen.add(part.start)
        content, at = read(part.start, min(part.size, _MAX_BYTES)), 0
        while at + head <= len(content):
            kind = _number(content, at, 2 if is_old else 1)
            size = _number(content, at + (2 if is_old else 1), 2)
            message = content[at + head : at + head + size]
            at += head + size
            if kind == _CONTINUATION:
                start, length = _number(message, 0, 8), _number(message, 8, 8)
                blocks.append(_Block(start + frame, max(0, length - 2 * frame)))
            yield kind, message


def _old_block(first: bytes, address: int) -> _Block:
    return _Block(address + 16, _number(first, 8, 4))


def _new_head(read: Read, address: int) -> tuple[int, int, _Block]:
    """How long the head of a message is, and the frame of a block at each end; the first block."""
    flags = _number(read(address + 5, 1), 0, 1)
    width = 1 << (flags & 3)
    start = address + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    size = _number(read(start, width), 0, width)
    return 4 + 2 * bool(flags & 0x04), 4, _Block(start + width, size)


def _number(content: bytes, start: int, width: int) -> int:
    return int.from_bytes(content[start : start + width], "little")
