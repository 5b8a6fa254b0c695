"""The checksum of a file that is found while it is written is that of what stands there."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from bnfold.model.container import checksums
from bnfold.model.container.checksums import Running, combined

MIB = 1 << 20


@pytest.mark.parametrize("sizes", [(0, 0), (5, 0), (0, 5), (1, 3), (1000, 70_001)])
def test_two_parts_make_the_whole(sizes: tuple[int, int]) -> None:
    one, two = (np.random.default_rng(size).bytes(size) for size in sizes)
    assert combined(zlib.crc32(one), zlib.crc32(two), len(two)) == zlib.crc32(one + two)


WRITES = {
    "in order": [(100, 10), (110, MIB), (110 + MIB, 2 * MIB), (110 + 3 * MIB, 40)],
    "in any order": [(110 + MIB, 2 * MIB), (110 + 3 * MIB, 40), (100, 10), (110, MIB)],
    "a block twice": [(100, MIB), (100 + MIB, MIB), (100, MIB)],
    "a byte in a block again": [(100, MIB), (100 + MIB, MIB), (100 + MIB - 1, 1)],
    "a block over two others": [(100, MIB), (100 + MIB, MIB), (100 + MIB // 2, MIB)],
    "before what counts": [(0, MIB), (MIB, MIB)],
    "small ones alone": [(100, 7), (107, 7)],
}


@pytest.mark.parametrize("case", WRITES)
def test_whatever_is_written_in_which_order(case: str, tmp_path: Path) -> None:
    path, random = tmp_path / "w", np.random.default_rng(0)
    path.write_bytes(bytes(100))
    with Running(path) as sums, path.open("r+b", buffering=0) as file:
        for start, size in WRITES[case]:
            file.seek(start)
            file.write(random.bytes(size))
            sums.wrote(start, size)
    content = path.read_bytes()
    with path.open("rb", buffering=0) as file:
        assert sums.of_rest(file, 100, len(content) - 100) == zlib.crc32(content[100:])


def test_large_blocks_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(3 * MIB))
    with Running(path) as sums:
        sums.wrote(10, 2 * MIB)
    read = []
    of_part = checksums.of_part
    monkeypatch.setattr(checksums, "of_part", lambda *given: read.append(given) or of_part(*given))
    with path.open("rb", buffering=0) as file:
        assert sums.of_rest(file, 0, 3 * MIB) == zlib.crc32(bytes(3 * MIB))
    assert sum(size for _, size, *_ in read) == MIB


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Running(tmp_path / "none"):
        pass
