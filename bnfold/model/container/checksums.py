"""The writing of large files, and their CRC-32, on another core than the one that computes them.

The large blocks of an HDF5 file are written once, so that their checksums can be found before all
of it is there. That of the whole is put together from those of its parts: a CRC is the remainder of
a polynomial, and

    crc(a + b) = crc(a) * x ** (8 * len(b)) + crc(b)

Source of the sums: `crc32_combine` of zlib 1.2.12, crc32.c.
"""

import os
import threading
import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from types import TracebackType
from typing import IO

_POLYNOMIAL = 0xEDB88320
_CHUNK = 1 << 20
_LARGE = 1 << 20
"""How long a block is, at least, whose writing nobody waits for."""
_PIECE = 4 << 20
_WAITING = 3
"""How many pieces of how many bytes wait to be written, at most."""
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


class Writer:
    """Writes to a file, large blocks while their caller goes on, and finds their checksums.

    To be used as a context: at its end all is written. What cannot be written is raised there, as
    whoever writes through the HDF5 library cannot be told before.
    """

    def __init__(self, path: Path) -> None:
        """`path` exists already, and stays the same file."""
        self._path = path
        self._waiting: Queue[tuple[int, bytes] | None] = Queue(_WAITING)
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._found: dict[int, int] = {}
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Writer":
        self._file = self._path.open("r+b", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        self._file.close()
        if error is None and self._failure is not None:
            raise self._failure

    def write(self, content: memoryview, start: int) -> None:
        """Write bytes from a place on; those of a large block are copied, and written soon."""
        if self._starts and self._forget(start, start + len(content)):
            self.settle()
        if len(content) < _LARGE:
            self._put(content, start)
            return
        if self._thread is None:
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()  # which may be refused
            self._thread = thread
        for at in range(0, len(content), _PIECE):
            piece = bytes(content[at : at + _PIECE])
            insort(self._starts, start + at)
            self._sizes[start + at] = len(piece)
            self._waiting.put((start + at, piece))

    def settle(self) -> None:
        """Wait until the file has all that it was given."""
        self._waiting.join()

    def _forget(self, start: int, end: int) -> bool:
        """Leave out what is written again; whether there was any."""
        number = before = bisect_left(self._starts, end)
        while number and self._starts[number - 1] + self._sizes[self._starts[number - 1]] > start:
            number -= 1
            del self._sizes[self._starts.pop(number)]
        return number < before

    def _run(self) -> None:
        unflushed = 0
        while (block := self._waiting.get()) is not None:
            start, piece = block
            try:
                if self._failure is None:  # else all that waits is taken, and none of it written
                    self._put(memoryview(piece), start)
                    self._found[start] = zlib.crc32(piece)
                    unflushed += len(piece)
                if unflushed > _FLUSHED and hasattr(os, "fdatasync"):
                    unflushed = 0
                    os.fdatasync(self._file.fileno())
            except Exception as error:
                self._failure = error
            finally:
                self._waiting.task_done()

    def _put(self, content: memoryview, start: int) -> None:
        while len(content):
            if hasattr(os, "pwrite"):
                count = os.pwrite(self._file.fileno(), content, start)
            else:
                with self._lock:
                    self._file.seek(start)
                    count = self._file.write(content)
            content, start = content[count:], start + count

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
