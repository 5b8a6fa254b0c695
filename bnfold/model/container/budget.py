"""What reading a model file may cost, and where its bytes are.

A file may cost time, memory and output in proportion to its bytes. One that would make a reader
work as for a larger file refers to the same bytes again and again, or is compressed as weights
never are. So a budget is a floor, which a small file may need, and a share of the file's size, and
saving a model uncompressed is the only way to raise it: then it has the bytes that it needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

from bnfold.errors import UnsafeModelError
from bnfold.model.container.library import h5py

_MIB = 1 << 20


class Budget(NamedTuple):
    """How much of something reading one file may take: `floor`, or its size times `share`.

    `what` begins the sentence of a refusal, which goes on with the limit, in MiB if `is_bytes`.
    """

    what: str
    floor: int
    share: float
    is_bytes: bool = True

    def limit(self, size: int) -> int:
        """How much a file of this size may take."""
        return max(self.floor, int(size * self.share))

    def refusal(self, size: int) -> UnsafeModelError:
        """The error for a file of this size that takes more."""
        limit = self.limit(size)
        most = f"{limit / _MIB:.0f} MiB" if self.is_bytes else str(limit)
        return UnsafeModelError(
            f"{self.what} more than {most}, the limit for a file of {size} bytes; refused"
            " (a model that Keras saves, uncompressed, stays below)"
        )


# The JSON texts themselves.
TEXT = Budget("its JSON has", 64 * _MIB, 1)

# Python's objects for the JSON texts, estimated. Keras writes some 1,100 bytes for a layer, which
# are estimated at 6,600, and 2,500 more for its weights: 60,000 layers without weights need no
# share, and of those with weights each brings its own.
JSON = Budget("its JSON would take", 384 * _MIB, 3)

# Bytes that HDF5 asks for. It reads some parts several times, as its cache is small; in a damaged
# file it reads the same bytes for ever.
TRANSFER = Budget("HDF5 would read", 64 * _MIB, 16)

# Groups, datasets and chunks, each time that one is opened, which takes about 100 microseconds. A
# fold opens each five times. Keras' take 600 bytes; the shortest that there can be take about 100.
OBJECTS = Budget("its weights have groups and variables to open, ", 100_000, 1 / 32, False)

# In a group of the old format a name is a reference, so that a million names can be one of 64 KiB.
# Keras' have some 30 bytes; each is listed about three times.
NAMES = Budget("the names in its weights would take", 32 * _MIB, 4)

# Values of attributes. The longest that Keras writes is the config of a legacy file. A text of a
# length of its own is a reference too: thousands of attributes can be one of a megabyte.
ATTRIBUTES = Budget("the attributes of its weights would take", 128 * _MIB, 2)

# Variables in compressed chunks, unpacked. Trained weights do not compress to a half, and where
# most are zero, somebody has compressed them afterwards.
UNPACKED = Budget("its compressed variables would take", 128 * _MIB, 3)

# Variables as they are written. A fold takes more numbers out than it puts in; what is in several
# places of a file at once would be written several times.
WRITTEN = Budget("the new file would take", 128 * _MIB, 3)


ReadInto = Callable[[int, memoryview], None]
"""Fills a buffer with bytes from an offset on."""


class Costs:
    """What reading one file has cost so far, and which of its bytes are whose.

    Attributes:
        size: that of the file, in bytes.
        far_above: how many bytes a variable must have not to be read where that is not needed,
            because it would have to be fetched; None where it is at hand.
        read_at: the bytes of its HDF5 part from an address on, so many or as many as there are;
            None for a file that is not a stranger's.
        read_into: fills a buffer with the bytes of its HDF5 part from an offset on; None likewise.
        indexes: what of it has been looked at by `bnfold.model.container.headers`.
    """

    def __init__(self, size: int = 0, far_above: int | None = None) -> None:
        self.size, self.far_above = size, far_above
        self._spent: Counter[Budget] = Counter()
        self._names: dict[int, str] = {}
        self._blocks: dict[int, tuple[tuple[int, int], ...]] = {}
        self.read_at: Callable[[int, int], bytes] | None = None
        self.read_into: ReadInto | None = None
        self.indexes: set[tuple[Any, ...]] = set()

    def is_far(self, size: int) -> bool:
        """Whether a variable of so many bytes is not read where that is not needed."""
        return self.far_above is not None and size > self.far_above

    def spend(self, budget: Budget, amount: int = 1) -> None:
        """Note that something takes `amount` more. Raises UnsafeModelError if that is too much."""
        spent = self._spent[budget] = self._spent[budget] + amount
        if spent > budget.floor and spent > budget.limit(self.size):
            raise budget.refusal(self.size)

    def left(self, budget: Budget) -> int:
        """How much of something may still be taken."""
        return budget.limit(self.size) - self._spent[budget]

    def named(self, address: int, name: str) -> None:
        """Note by which name the variable at an address goes.

        Raises:
            UnsafeModelError: it goes by another one too.
        """
        if self._names.setdefault(address, name) != name:
            raise UnsafeModelError(f"{name} in the weights stands in several places of the file")

    def stored(self, address: int, blocks: Iterable[tuple[int, int]]) -> bool:
        """Note in which blocks, of so many bytes from so many on, a variable is; True once."""
        if address in self._blocks:
            return False
        self._blocks[address] = tuple(blocks)
        return True

    def check_storage(self) -> None:
        """See that no two variables, of those that are known, have bytes in common.

        Raises:
            UnsafeModelError: two have, so that a small file could become a large one.
        """
        every = sorted(block for blocks in self._blocks.values() for block in blocks)
        if any(start + size > behind for (start, size), (behind, _) in pairwise(every)):
            raise UnsafeModelError("two variables in the weights share bytes of the file; refused")


_OPEN: dict[int, Costs] = {}


@contextmanager
def counting(number: int, costs: Costs) -> Iterator[None]:
    """Have all that is read from the HDF5 file of this number count in `costs`."""
    _OPEN[number] = costs
    try:
        yield
    finally:
        del _OPEN[number]


def of(group: h5py.Group | h5py.Dataset) -> Costs:
    """What reading the file of an HDF5 object has cost; nothing where that does not count."""
    return by_number(h5py.h5o.get_info(group.id).fileno)


def by_number(number: int) -> Costs:
    """The same by the number that HDF5 has given to the file."""
    return _OPEN.get(number) or Costs()
