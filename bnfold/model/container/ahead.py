"""What will be read of the weights in a store, fetched before it is, side by side.

Whoever reads an HDF5 file goes from object to object, as each says where the next ones are. From a
store that is one request after another. So all objects are visited once before: what is missing to
visit some of them is fetched together, and these are visited again. What is learnt by that is only
which bytes will be asked for. Everything is read anew by those who check it, from the blocks that
`RemoteFile` keeps. What is odd, or too much, is left to them.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from bnfold.model.container import objects
from bnfold.model.container.store import FAR, RemoteFile

_TRAINING = {b"optimizer", b"optimizer_weights"}
"""Groups of which hardly anything is read."""
_MOST_OBJECTS = 50_000
_MOST_BLOCKS = 4096  # as many as are kept
_MOST_PARSED = 256 << 20  # bytes


def fetch(file: RemoteFile, start: int, size: int) -> None:
    """Fetch what is read of the objects of an HDF5 file, and the variables that are not far.

    Args:
        file: what the HDF5 file is a part of.
        start: its first byte.
        size: how many it has.

    Raises:
        UnreadableModelError: something cannot be fetched.
    """
    visit = _Visit(file, start, size)
    waiting: list[int | None] = [None]  # the root, whose place is not known yet
    seen, blocks = set[int](), 0
    while waiting and blocks < _MOST_BLOCKS and visit.parsed < _MOST_PARSED:
        missed = []
        visit.begin()
        for address in waiting:  # which grows
            try:
                found = dict.fromkeys(one for one in visit.below(address) if one not in seen)
            except _MissingError:
                missed.append(address)
            except objects.ODD:
                continue
            else:
                new = list(islice(found, _MOST_OBJECTS - len(seen)))
                seen.update(new)
                waiting += new
        blocks += file.fetch(visit.missing)
        waiting = missed


class _MissingError(Exception):
    """Bytes that have not been fetched."""


class _Visit:
    """Reads from what has been fetched, and notes what is missing.

    Attributes:
        missing: where it is, from a byte of the file to another.
        parsed: how many bytes were read.
    """

    def __init__(self, file: RemoteFile, start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._reader: objects.Objects | None = None
        self.missing: list[tuple[int, int]] = []
        self.parsed = 0

    def begin(self) -> None:
        """Begin anew, when what was missing has been fetched."""
        self.missing.clear()
        self._expected: set[int] = set()

    def below(self, address: int | None) -> list[int]:
        """Where the links of a group lead. Raises _MissingError, and what `Objects` raises.

        A variable has none; its numbers are noted as missing.
        """
        if self._reader is None:
            self._reader = objects.Objects(self._read, self._size, lambda _: None, self._expect)
        place = self._reader.root if address is None else address
        try:
            group = self._reader.group(place)
        except objects.ODD:
            block = self._reader.block(place)
            if block.size <= FAR:
                self._note(block.address, block.size)
            return []
        return [target for name, target in group.links.items() if name not in _TRAINING]

    def _read(self, address: int, size: int) -> bytes:
        end = min(address + size, self._size)
        found = self._file.kept(self._start + address, self._start + end) if address < end else b""
        if found is None:
            self._note(address, size)
            raise _MissingError
        self.parsed += len(found)
        return found

    def _note(self, address: int, size: int) -> None:
        end = min(address + size, self._size)
        self.missing.append((self._start + address, self._start + end))

    def _expect(self, height: int, below: Sequence[int]) -> None:
        """Note as missing what is below a node of a tree, as far down as is known."""
        new = [address for address in below if address not in self._expected]
        self._expected.update(new)
        for address in new:
            self._note(address // objects.PAGE * objects.PAGE, objects.PAGE)
            if height and self._reader is not None:
                with suppress(_MissingError, *objects.ODD):
                    inner, _, words = self._reader.node(address)
                    if inner < height:
                        self._expect(inner, words[1::2])
