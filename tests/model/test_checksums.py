"""The checksum of a file that is found while it is written is that of what stands there."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from places import ROOT

from bnfold.model.container import checksums, hdf5
from bnfold.model.container.checksums import Writer

MIB = 1 << 20


@pytest.mark.parametrize(
    ("start", "size"), [(0, 0), (0, 3 * MIB), (5, 7), (100, 2 * MIB), (MIB - 1, 2), (3 * MIB, 0)]
)
def test_both_checksums_in_one_reading(start: int, size: int, tmp_path: Path) -> None:
    path, content = tmp_path / "w", np.random.default_rng(0).bytes(3 * MIB)
    path.write_bytes(content)
    with path.open("rb", buffering=0) as file:
        digest, checksum = checksums.of_file(file, start, size)
    assert digest == hashlib.sha256(content).hexdigest()
    assert checksum == zlib.crc32(content[start : start + size])


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
    wanted = bytearray(path.read_bytes())
    with Writer(path) as writer:
        for start, size in WRITES[case]:
            content = random.bytes(size)
            wanted.extend(bytes(max(0, start + size - len(wanted))))
            wanted[start : start + size] = content
            writer.write(memoryview(content), start)
    assert path.read_bytes() == wanted
    with path.open("rb", buffering=0) as file:
        assert writer.of_rest(file, 100, len(wanted) - 100) == zlib.crc32(wanted[100:])


def test_large_blocks_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(3 * MIB))
    with Writer(path) as writer:
        writer.write(memoryview(bytes(2 * MIB)), 10)
    read = []
    of_part = checksums.of_part
    monkeypatch.setattr(checksums, "of_part", lambda *given: read.append(given) or of_part(*given))
    with path.open("rb", buffering=0) as file:
        assert writer.of_rest(file, 0, 3 * MIB) == zlib.crc32(bytes(3 * MIB))
    assert sum(size for _, size, *_ in read) == MIB


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
    reading, read = checksums.Reading(), []
    for start, size in READS[case]:
        reading.note(memoryview(content)[start : start + size], start)
    of_part = checksums.of_part
    monkeypatch.setattr(checksums, "of_part", lambda *given: read.append(given) or of_part(*given))
    with path.open("rb", buffering=0) as file:
        found = reading.of_whole(file, 0, len(content))
    assert found == zlib.crc32(content)
    is_again = case in ("nothing", "short ones")
    assert (sum(size for _, size, *_ in read) == len(content)) == is_again


def test_nothing_is_noted_once_the_whole_is_read(tmp_path: Path) -> None:
    path, content = tmp_path / "w", np.random.default_rng(0).bytes(3 * MIB)
    path.write_bytes(content)
    reading = checksums.Reading()
    reading.note(memoryview(content)[:MIB], 0)
    reading.end()
    reading.note(memoryview(content)[MIB:], MIB)
    assert list(reading._parts()) == [(0, MIB, zlib.crc32(content[:MIB]))]
    with path.open("rb", buffering=0) as file:
        assert reading.of_whole(file, 0, len(content)) == zlib.crc32(content)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Writer(tmp_path / "none"):
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "w").touch()
    return tmp_path / "w"


def test_what_cannot_be_written_is_raised_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = checksums.os.pwrite, []

    def full(number: int, content: memoryview, start: int) -> int:
        written.append(start)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, content, start)

    monkeypatch.setattr(checksums.os, "pwrite", full)
    content = memoryview(
        bytes(20 * checksums._WAITING * checksums._PIECE)
    )  # many more pieces than may wait
    with pytest.raises(OSError, match="No space left"), Writer(path) as writer:
        writer.write(content, 0)
    assert len(written) == 3


def test_what_cannot_be_written_is_told_also_where_hdf5_complains_of_what_follows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads again what it has written, and finds nothing."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        with hdf5.new_file(path) as file:
            file.create_dataset("large", data=np.zeros(MIB, "u1"))
            file.flush()
            monkeypatch.setattr(checksums.os, "pwrite", full)
            for number in range(6000):  # more than the library has in memory
                hdf5.group_for(file, f"{number}/vars").attrs["name"] = "name"

    with pytest.raises(OSError, match="No space left") as raised:
        fill()
    assert isinstance(raised.value.__context__, RuntimeError)


FREED = """
import gc, sys
from pathlib import Path
import h5py, numpy as np
from bnfold.model.container import checksums, hdf5

write, folder = checksums.os.pwrite, Path(sys.argv[1])

def search(number, content, start):
    many = [[] for _ in range(5000)]  # after so many Python searches, where it does
    return write(number, content, start)

checksums.os.pwrite = search
with h5py.File(folder / "other", "w") as other, hdf5.new_file(folder / "new") as new:
    cycle = [other.create_group("a")]
    cycle.append(cycle)
    del cycle
    new.create_dataset("large", data=np.zeros(64 << 20, "u1"))
assert gc.isenabled()
gc.disable()
with hdf5.new_file(folder / "new") as new:
    new.create_dataset("large", data=np.zeros(1 << 20, "u1"))
assert not gc.isenabled()
"""


def test_the_thread_that_hdf5_waits_for_frees_nothing_of_hdf5s(tmp_path: Path) -> None:
    """That takes a lock, which whoever waits for the thread has: both would wait for ever."""
    words = [sys.executable, "-c", FREED, str(tmp_path)]
    subprocess.run(words, timeout=60, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_no_thread_to_be_had_is_what_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"), Writer(path) as writer:
        writer.write(memoryview(bytes(MIB)), 0)


def test_an_error_of_whoever_writes_is_not_hidden(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fail() -> None:
        with Writer(path) as writer:
            writer.write(memoryview(bytes(MIB)), 0)
            raise ValueError("mine")

    monkeypatch.setattr(checksums.os, "pwrite", full)
    with pytest.raises(ValueError, match="mine"):
        fail()


def test_a_few_bytes_at_a_time_are_all_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, content = checksums.os.pwrite, np.random.default_rng(0).bytes(3 * MIB)
    monkeypatch.setattr(
        checksums.os, "pwrite", lambda number, part, start: write(number, part[:70_001], start)
    )
    with Writer(path) as writer:
        writer.write(memoryview(content[:-9]), 0)
        writer.write(memoryview(content[-9:]), len(content) - 9)
    assert path.read_bytes() == content


def test_no_more_waits_to_be_written_than_may(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a disk that is slower than the fold would have the model in memory."""
    write = checksums.os.pwrite

    def slow(number: int, content: memoryview, start: int) -> int:
        time.sleep(0.01)
        return write(number, content, start)

    monkeypatch.setattr(checksums.os, "pwrite", slow)
    content = memoryview(bytes(64 * MIB))
    tracemalloc.start()
    with Writer(path) as writer:
        writer.write(content, 0)
        writer.write(content, len(content))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * MIB


def test_small_blocks_behind_a_large_one_are_written_in_their_order(path: Path) -> None:
    content = np.random.default_rng(0).bytes(2 * MIB)
    with Writer(path) as writer:
        writer.write(memoryview(content), 0)
        writer.write(memoryview(b"first"), 5)
        writer.write(memoryview(b"last"), 5)
    wanted = content[:5] + b"lastt" + content[10:]
    assert path.read_bytes() == wanted
    with path.open("rb", buffering=0) as file:
        assert writer.of_rest(file, 0, len(wanted)) == zlib.crc32(wanted)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="nothing can be given back here")
def test_of_a_large_file_alone_the_memory_is_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice: list[tuple[int, ...]] = []

    def refuse(_: int, *rest: int) -> None:
        advice.append(rest)
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(checksums.os, "posix_fadvise", refuse)
    monkeypatch.setattr(checksums, "_STARTED", 4 * MIB)
    monkeypatch.setattr(checksums, "_CACHED", 10 * MIB)
    content = np.random.default_rng(0).bytes(20 * MIB)
    with Writer(path) as writer:
        writer.write(memoryview(content), 100)
    parts = [(100, 4 * MIB), (100 + 4 * MIB, 4 * MIB), (0, 0), (0, 0), (0, 0)]
    assert advice == [(*part, os.POSIX_FADV_DONTNEED) for part in parts]
    assert path.read_bytes()[100:] == content
