"""The checksums of large files: found in one reading, or while they are written.

What is written goes to disk on another core than the one that computes it. The large blocks of an
HDF5 file are written once, so that their CRC-32 can be found before all of it is there. That of the
whole is put together from those of its parts.
"""

import os
import threading
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue, SimpleQueue
from types import TracebackType
from typing import IO

from zlib_ng.zlib_ng import crc32, crc32_combine

from bnfold.model.container.library import gc_paused

_CHUNK = 1 << 18
"""How many bytes are read at once: a core's cache has them until both checksums are found."""
_LARGE = 1 << 18
"""How long a block is, at least, for a thread to be started that writes what comes from then on."""
_PIECE = 1 << 20
_WAITING = 16
"""How many pieces of how many bytes wait to be written, at most."""
_NOTED = 1 << 14
"""How long a piece that is written or read is, at least, to be worth a note of its checksum."""
_TOGETHER = 64
"""How many shorter ones are handed to the thread at once: it takes a processor to wake it."""
_CACHED = 256 << 20
"""How much of a file the system keeps in memory. Of a larger one it is to bring to the disk what is
written, and to use the memory again: else it takes the place of all that other programs read."""
_STARTED = 16 << 20
"""After how many bytes it is told so, and to begin with the writing."""


_Part = tuple[int, int, int]
"""Where a part of a file begins, how long it is, and its CRC-32."""


def of_part(file: IO[bytes], size: int, before: int = 0) -> int:
    """The CRC-32 of the next `size` bytes of a file, where that of all before them is `before`."""
    checksum, buffer = before, bytearray(_CHUNK)
    while size > 0 and (count := file.readinto(memoryview(buffer)[:size])):  # type: ignore[attr-defined]
        checksum = crc32(memoryview(buffer)[:count], checksum)
        size -= count
    return checksum


def of_whole(file: IO[bytes], start: int, size: int, known: Iterable[_Part]) -> int:
    """The CRC-32 of `size` bytes of a file from a place on, of which only the rest is read.

    The parts that are `known` are in order and apart.
    """
    checksum, at = 0, start
    for first, length, found in known:
        file.seek(at)
        checksum = of_part(file, first - at, checksum)
        checksum = crc32_combine(checksum, found, length)
        at = first + length
    file.seek(at)
    return of_part(file, start + size - at, checksum)


class Reading:
    """Notes the checksums of long parts of a file that is read for another reason.

    A core's cache has them then; to read them again takes ten times as long as the checksum.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int]] = {}
        self._is_over = False

    def note(self, content: memoryview, start: int) -> None:
        """What was read from a place on."""
        if not self._is_over and len(content) >= _NOTED and start not in self._found:
            self._found[start] = len(content), crc32(content)

    def end(self) -> None:
        """Note no more: somebody has begun to read the file for its checksum."""
        self._is_over = True

    def of_whole(self, file: IO[bytes], start: int, size: int) -> int:
        """The CRC-32 of `size` bytes of the file from a place on."""
        self.end()
        return of_whole(file, start, size, self._parts())

    def _parts(self) -> Iterator[_Part]:
        """What is known, without what begins in the part before."""
        at = 0
        for first, (length, checksum) in sorted(self._found.items()):
            if first >= at:
                yield first, length, checksum
                at = first + length


def of_file(file: IO[bytes], start: int, size: int) -> tuple[str, int]:
    """The SHA-256 of a file from here on, and the CRC-32 of the `size` bytes at `start` in that."""
    import hashlib  # noqa: PLC0415 - starts OpenSSL, and inspecting needs none

    digest, checksum, buffer = hashlib.sha256(), 0, bytearray(_CHUNK)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        piece = memoryview(buffer)[:count]
        digest.update(piece)
        checksum = crc32(piece[max(0, start) : max(0, start + size)], checksum)
        start -= count
    return digest.hexdigest(), checksum


_Batch = tuple[list[tuple[int, bytes]], int, bytearray | None, int]
"""Short blocks, and a piece: where it begins, the buffer that it is in, and how long it is."""


class Writer:
    """Writes to a file, large blocks while their caller goes on, and finds their checksums.

    To be used as a context: at its end all is written. What cannot be written is raised there, as
    whoever writes through the HDF5 library cannot be told before.

    Attributes:
        failure: why something could not be written, where that is known.
    """

    def __init__(self, path: Path) -> None:
        """`path` exists already, and stays the same file."""
        self._path, self._resources = path, ExitStack()
        self._waiting: Queue[_Batch | None] = Queue(_WAITING)
        self._small: list[tuple[int, bytes]] = []
        self._buffers: SimpleQueue[bytearray] = SimpleQueue()
        self._made = 0
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}
        self._found: dict[int, int] = {}
        self.failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Writer":
        self._file = self._resources.enter_context(self._path.open("r+b", buffering=0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._resources:
            if self._thread is not None:
                self._hand_on()
                self._waiting.put(None)
                self._thread.join()
        if error is None and self.failure is not None:
            raise self.failure

    def write(self, content: memoryview, start: int) -> None:
        """Write bytes from a place on; from the first large block on they are copied, and wait."""
        if self._starts:
            self._forget(start, start + len(content))
        if self._thread is None:
            if len(content) < _LARGE:
                self._put(content, start)
                return
            self._resources.enter_context(gc_paused())  # in the thread that HDF5 waits for
            thread = threading.Thread(target=self._run, daemon=True)
            thread.start()  # which may be refused
            self._thread = thread
        if len(content) < _NOTED:
            self._small.append((start, bytes(content)))
            if len(self._small) == _TOGETHER:
                self._hand_on()
            return
        for at in range(0, len(content), _PIECE):
            piece = content[at : at + _PIECE]
            insort(self._starts, start + at)
            self._sizes[start + at] = len(piece)
            buffer = self._buffer()
            memoryview(buffer)[: len(piece)] = piece
            self._hand_on(start + at, buffer, len(piece))

    def settle(self) -> None:
        """Wait until the file has all that it was given."""
        if self._thread is not None:
            self._hand_on()
            self._waiting.join()

    def _buffer(self) -> bytearray:
        """One that is free; more of them than may wait are not made."""
        if self._made < _WAITING and self._buffers.empty():
            self._made += 1
            return bytearray(_PIECE)
        return self._buffers.get()

    def _hand_on(self, start: int = 0, buffer: bytearray | None = None, size: int = 0) -> None:
        """Let the thread write the short blocks that are there, and then a piece."""
        self._waiting.put((self._small, start, buffer, size))
        self._small = []

    def _forget(self, start: int, end: int) -> None:
        """Leave out what is written again."""
        number = bisect_left(self._starts, end)
        while number and self._starts[number - 1] + self._sizes[self._starts[number - 1]] > start:
            number -= 1
            del self._sizes[self._starts.pop(number)]

    def _run(self) -> None:
        written, new = 0, range(0)
        while (block := self._waiting.get()) is not None:
            small, start, buffer, size = block
            try:
                if self.failure is None:  # else all that waits is taken, and none of it written
                    for at, content in small:
                        self._put(memoryview(content), at)
                    if buffer is not None:
                        piece = memoryview(buffer)[:size]
                        self._put(piece, start)
                        self._found[start] = crc32(piece)
                        written += size
                        first = min(new.start, start) if new else start
                        new = range(first, max(new.stop, start + size))
                if len(new) >= _STARTED:
                    self._start(new if written <= _CACHED else range(0))
                    new = range(0)
            except Exception as error:
                self.failure = error
            finally:
                if buffer is not None:
                    self._buffers.put(buffer)
                self._waiting.task_done()

    def _start(self, part: range) -> None:
        """Have the system bring a part of the file to the disk, or all; nobody waits for it.

        Linux begins to write, and lets go of what is on the disk already: of a part that is new
        nothing is.
        """
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a file system that takes no advice writes all the same
                advice = os.POSIX_FADV_DONTNEED
                os.posix_fadvise(self._file.fileno(), part.start, len(part), advice)

    def _put(self, content: memoryview, start: int) -> None:
        while len(content):
            if hasattr(os, "pwrite"):
                count = os.pwrite(self._file.fileno(), content, start)
            else:
                self._file.seek(start)
                count = self._file.write(content)
            content, start = content[count:], start + count

    def of_rest(self, file: IO[bytes], start: int, size: int) -> int:
        """The CRC-32 of `size` bytes of the file from a place on, when all is written."""
        return of_whole(file, start, size, self._blocks(start, start + size))

    def _blocks(self, start: int, end: int) -> Iterator[_Part]:
        """The blocks whose checksum is known, in order."""
        for first in self._starts:
            if first >= start and first + self._sizes[first] <= end:
                yield first, self._sizes[first], self._found[first]
