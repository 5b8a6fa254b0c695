"""The checksum of a file that is put together from what was read of it is that of the file."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from bnfold.model.container import checksums
from bnfold.model.container.reading import Reading

MIB = 1 << 20

READS = {
    "nothing": [],
    "all": [(0, 3 * MIB)],
    "in any order": [(2 * MIB, MIB), (MIB, 100_000), (7, 100_000)],
    "twice": [(100, MIB), (100, MIB)],
    "overlapping": [(100, MIB), (MIB, MIB), (MIB // 2, 100_000), (2 * MIB + 1, 100_000)],
    "short ones": [(100, 1000), (5000, 1)],
}


@pytest.mark.parametrize("case", READS)
def test_whatever_is_read_for_another_reason(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "w", np.random.default_rng(0).bytes(3 * MIB + 50)
    path.write_bytes(content)
    reading, read = Reading(), []
    for start, size in READS[case]:
        reading.note(memoryview(content)[start : start + size], start)
    of_part = checksums.of_part
    monkeypatch.setattr(checksums, "of_part", lambda *given: read.append(given) or of_part(*given))
    with path.open("rb", buffering=0) as file:
        found = reading.of_whole(file, 0, len(content))
    assert found == zlib.crc32(content)
    is_again = case in ("nothing", "short ones")
    assert (sum(size for _, size, *_ in read) == len(content)) == is_again
