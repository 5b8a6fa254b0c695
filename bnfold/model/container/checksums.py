"""The CRC-32 of a file that is being written, found beside the writing.

The large blocks of an HDF5 file are written once, so that their checksums can be found as soon as
they are there, on another core and while the bytes are in memory. That of the whole is put together
from those of its parts: a CRC is the remainder of a polynomial, and

    crc(a + b) = crc(a) * x ** (8 * len(b)) + crc(b)

Source of the sums: `crc32_combine` of zlib 1.2.12, crc32.c.
"""

import os
import threading
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO

_POLYNOMIAL = 0xEDB88320
_CHUNK = 1 << 20
_LARGE = 1 << 20
"""How long a block is, at least, that is looked at before all is written."""
_FLUSHED = 256 << 20
"""After how many bytes the system is asked to bring what is written to the disk meanwhile."""


def of_part(file: IO[bytes], size: int, before: int = 0) -> int:
    """The CRC-32 of the next `size` bytes of a file, where that of all before them is `before`."""
    checksum, buffer = before, bytearray(_CHUNK)
    while size > 0 and (count := file.readinto(memoryview(buffer)[:size])):  # type: ignore[attr-defined]
        checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
        size -= count
    return checksum


def combined(first: int, second: int, size: int) -> int:
    """The CRC-32 of two parts together, of which the second has `size` bytes."""
    return _product(_power(8 * size), first) ^ second


def _product(one: int, other: int) -> int:
    """The product of two polynomials by the remainder, their highest power in the lowest bit."""
    found, bit = 0, 1 << 31
    while bit:
        if one & bit:
            found ^= other
        bit >>= 1
        other = (other >> 1) ^ _POLYNOMIAL if other & 1 else other >> 1
    return found


def _power(exponent: int) -> int:
    """The remainder of x to a power."""
    found, square = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            found = _product(square, found)
        square = _product(square, square)
        exponent >>= 1
    return found


class Running:
    """The checksum of a file while it is written, to be used as a context for that time."""

    def __init__(self, path: Path) -> None:
        """`path` exists already, and stays the same file."""
        self._path = path
        self._waiting: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._found: dict[int, int] = {}
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting.put(None)
        self._thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    def wrote(self, start: int, size: int) -> None:
        """Take notice of so many bytes that were written from a place on."""
        self._forget(start, start + size)
        if size >= _LARGE:
            insort(self._starts, start)
            self._sizes[start] = size
            self._waiting.put((start, size))

    def _forget(self, start: int, end: int) -> None:
        """Leave out what was written again."""
        number = bisect_left(self._starts, end)
        while number and self._starts[number - 1] + self._sizes[self._starts[number - 1]] > start:
            number -= 1
            del self._sizes[self._starts.pop(number)]

    def _run(self) -> None:
        unflushed = 0
        try:
            with self._path.open("rb", buffering=0) as file:
                while (block := self._waiting.get()) is not None:
                    start, size = block
                    file.seek(start)
                    self._found[start] = of_part(file, size)
                    unflushed += size
                    if unflushed > _FLUSHED and hasattr(os, "fdatasync"):
                        os.fdatasync(file.fileno())
                        unflushed = 0
        except OSError as error:
            self._failure = error

    def of_rest(self, file: IO[bytes], start: int, size: int) -> int:
        """The CRC-32 of `size` bytes of the file from a place on, when all is written."""
        checksum, at = 0, start
        for first, length in self._blocks(start, start + size):
            file.seek(at)
            checksum = of_part(file, first - at, checksum)
            checksum = combined(checksum, self._found[first], length)
            at = first + length
        file.seek(at)
        return of_part(file, start + size - at, checksum)

    def _blocks(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The blocks whose checksum is known, in order."""
        for first in self._starts:
            if first >= start and first + self._sizes[first] <= end:
                yield first, self._sizes[first]
