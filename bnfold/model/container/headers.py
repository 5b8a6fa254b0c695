"""What HDF5 cannot be asked before it reads an object, read from the bytes of the object's header.

A text of any length stands in an attribute as its length and a reference, and HDF5 reads all of
them at once. A header is a chain of blocks, and the links of a group stand in rows of nodes, and
what is free among its names in a list: HDF5 follows one that leads back to itself until there is no
memory any more.
"""

from collections.abc import Callable, Iterator
from functools import partial

from bnfold.errors import UnreadableModelError
from bnfold.values import dataclass

Read = Callable[[int, int], bytes]
"""The bytes of a file from an address on, so many."""

_ATTRIBUTE, _CONTINUATION, _LINKS = 0x0C, 0x10, 0x11
_NOWHERE = 2**64 - 1
_LAST_FREE = 1
_MAX_NODES = 1 << 20
_REFERENCE_BYTES = 16  # 4 of the length, 8 of the heap's address, 4 of the place in it
_MAX_BLOCKS = 1000  # a header grows by one whenever it is full
_MAX_BYTES = 64 << 20  # of a block: 500 attributes of 64 KiB are less


@dataclass(frozen=True)
class _Block:
    """A part of a header: where its messages begin, and how many bytes they are."""

    start: int
    size: int


def check(read: Read, address: int) -> None:
    """See that a header comes to an end, and the tree of links that it leads to, if any.

    Raises:
        UnreadableModelError: one does not.
    """
    for kind, content in _messages(read, address):
        if kind == _LINKS:
            _check_tree(read, _number(content, 0, 8))
            _check_heap(read, _number(content, 8, 8))


def _check_tree(read: Read, address: int) -> None:
    """See that each row of nodes comes to an end: HDF5 counts them, from one to the next."""
    seen: set[int] = set()
    while True:
        node = read(address, 40)
        level, first, following = node[5:6], _number(node, 32, 8), address
        while node[:4] == b"TREE" and following != _NOWHERE:
            if following in seen or len(seen) == _MAX_NODES:
                raise UnreadableModelError("the links of a group in the weights are damaged")
            seen.add(following)
            following = _number(node, 16, 8)
            node = read(following, 24)
        if level in (b"", b"\0"):
            return
        address = first


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


def check_root(read: Read, size: int) -> None:
    """See that the header of the root of a file of so many bytes comes to an end.

    HDF5 looks for the beginning of a file at 0, 512, 1024 and so on, and counts addresses from
    there.

    Raises:
        UnreadableModelError: it does not.
    """
    start = 0
    while start < size:
        head = read(start, 96)
        if head[:8] == _SIGNATURE and len(head) > 9:
            if head[8] in _ROOTS:
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
