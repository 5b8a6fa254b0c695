"""How long the texts of an attribute are, read from the bytes of an HDF5 object's header.

A text of any length stands in an attribute as its length and a reference. HDF5 reads all of them at
once, and cannot be asked beforehand how long they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bnfold.errors import UnreadableModelError

Read = Callable[[int, int], bytes]
"""The bytes of a file from an address on, so many."""

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_REFERENCE_BYTES = 16  # 4 of the length, 8 of the heap's address, 4 of the place in it
_MAX_BLOCKS = 1000  # a header grows by one whenever it is full


@dataclass(frozen=True)
class _Block:
    """A part of a header: where its messages begin, and how many bytes they are."""

    start: int
    size: int


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
    for number, part in enumerate(blocks):
        if number == _MAX_BLOCKS:
            raise UnreadableModelError("the header of an object in the weights is damaged")
        content, at = read(part.start, part.size), 0
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
