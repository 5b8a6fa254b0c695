"""The checksum of weights that are read for another reason, of which only the rest is read for it.

That of the whole is put together from those of its parts, as `checksums` does with what it writes.
"""

from collections.abc import Iterator
from typing import IO

from zlib_ng.zlib_ng import crc32, crc32_combine

from bnfold.model.container import checksums

_LONG = 1 << 16
"""How long a part is, at least, whose checksum is noted."""


class Reading:
    """Notes the checksums of long parts of a file when they have been read.

    A core's cache has them then; to read them again takes ten times as long as the checksum.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int]] = {}

    def note(self, content: memoryview, start: int) -> None:
        """What was read from a place on."""
        if len(content) >= _LONG and start not in self._found:
            self._found[start] = len(content), crc32(content)

    def of_whole(self, file: IO[bytes], start: int, size: int) -> int:
        """The CRC-32 of `size` bytes of the file from a place on."""
        checksum, at = 0, start
        for first, length, found in self._parts():
            file.seek(at)
            checksum = checksums.of_part(file, first - at, checksum)
            checksum = crc32_combine(checksum, found, length)
            at = first + length
        file.seek(at)
        return checksums.of_part(file, start + size - at, checksum)

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Place, length and checksum of what is known, in order and apart."""
        at = 0
        for first, (length, checksum) in sorted(self._found.items()):
            if first >= at:
                yield first, length, checksum
                at = first + length
