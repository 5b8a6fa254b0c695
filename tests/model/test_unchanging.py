"""Files that are not the ones that were meant: damaged on the way, exchanged, or still changing."""

import hashlib
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import directory_model, keras_file, legacy_file, weights
from damage import harmless, invoke, refused
from large import chain

import bnfold
from bnfold.errors import BnfoldError, UnreadableModelError
from bnfold.jobs import fold as fold_job
from bnfold.jobs import inspect as inspect_job
from bnfold.jobs.planning import planned
from bnfold.model.container import checksums
from bnfold.model.container.model_file import open_model

# --- checksums -----------------------------------------------------------------------------------


def flipped(path: Path, near: bytes) -> None:
    """Flip one bit of the first byte after some others."""
    data = bytearray(path.read_bytes())
    data[data.index(near) + len(near)] ^= 1
    path.write_bytes(data)


def archive_with(path: Path, compression: int) -> Path:
    extra = {"assets/dense/words.txt": b"some words"}
    with zipfile.ZipFile(keras_file(path, **extra)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


KERNEL = np.eye(4, dtype="f4").tobytes()[:-4]
"""The numbers of the kernel but for the last one, of which a bit may flip without a trace."""

MEMBERS = {
    "config.json": b'"epsilon": 0.00',
    "metadata.json": b'"keras_version": "3.1',
    "model.weights.h5": KERNEL,
}


@pytest.mark.parametrize("member", MEMBERS)
def test_one_bit_that_flipped_in_a_member(member: str, tmp_path: Path) -> None:
    path = archive_with(tmp_path / "m.keras", zipfile.ZIP_STORED)
    assert harmless(path) == []
    flipped(path, MEMBERS[member])
    refused(path, says=f"{member} in the archive is damaged")


def test_one_bit_that_flipped_in_an_asset(tmp_path: Path) -> None:
    path = archive_with(tmp_path / "m.keras", zipfile.ZIP_STORED)
    flipped(path, b"some word")
    refused(path, says="words.txt in the archive is damaged", only_fold=True)


def test_one_bit_that_flipped_in_compressed_weights(tmp_path: Path) -> None:
    path = archive_with(tmp_path / "m.keras", zipfile.ZIP_DEFLATED)
    assert harmless(path) == []
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.weights.h5")
    data = bytearray(path.read_bytes())
    data[info.header_offset + info.compress_size // 2] ^= 1
    path.write_bytes(data)
    refused(path, says="damaged")


def large(path: Path) -> Path:
    """An archive with one bit flipped in weights of which nobody reads all at once."""
    h5 = weights(lambda file: file.create_dataset("more", data=np.arange(1 << 19, dtype="f4")))
    flipped(keras_file(path, h5=h5), KERNEL)
    return path


def test_one_bit_that_flipped_in_large_weights(tmp_path: Path) -> None:
    refused(large(tmp_path / "m.keras"), says="model.weights.h5 in the archive is damaged: bad")


def test_an_inspection_reads_large_kernels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, again = chain(6, tmp_path / "m.keras", width=512), []
    of_part = checksums.of_part
    monkeypatch.setattr(checksums, "of_part", lambda *given: again.append(given) or of_part(*given))
    assert bnfold.inspect(path).plan.folds
    assert 0 < sum(size for _, size, *_ in again) < path.stat().st_size / 4
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in one of them
    path.write_bytes(data)
    refused(path, says="bad checksum")


def test_an_inspection_says_that_it_did_not_check_large_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path / "m.keras")
    monkeypatch.setattr(inspect_job, "CHECKED_AT_ONCE", 100)
    assert "was not checked" in str(bnfold.inspect(path).note)
    refused(path, says="bad checksum", only_fold=True)
    old = legacy_file(tmp_path / "m.h5")
    assert bnfold.inspect(old).note is None


def test_nothing_is_written_from_weights_without_their_checksum(tmp_path: Path) -> None:
    path = large(tmp_path / "m.keras")
    with open_model(path) as model, pytest.raises(UnreadableModelError, match="bad checksum"):
        model.write(model.graph, tmp_path / "out.keras", {})
    with open_model(path) as model, pytest.raises(UnreadableModelError, match="bad checksum"):
        model.sha256()


@pytest.mark.parametrize("origin", [None, "0" * 64], ids=["its digest", "that of its source"])
def test_a_fold_of_weights_without_their_checksum_leaves_nothing(
    origin: str | None, tmp_path: Path
) -> None:
    path = large(tmp_path / "m.keras")
    wanted = f"^{re.escape(str(path))}: model.weights.h5 in the archive is damaged: bad checksum$"
    with pytest.raises(UnreadableModelError, match=wanted):
        fold_job.fold_file(path, tmp_path / "out.keras", proof=None, origin=origin)
    assert os.listdir(tmp_path) == ["m.keras"]


# --- files that change ---------------------------------------------------------------------------

Change = Callable[[Path], object]


def part(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def touched(path: Path) -> None:
    os.utime(part(path), ns=(1, 1))


def longer(path: Path) -> None:
    with part(path).open("ab") as file:
        file.write(b" ")


def replaced(path: Path) -> None:
    """Exchange a file for a copy with the same content, size and times."""
    old = part(path)
    times = old.stat()
    copy = old.with_name("copy")
    copy.write_bytes(old.read_bytes())
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    copy.replace(old)


def gone(path: Path) -> None:
    part(path).rename(path.parent / "elsewhere")


CHANGES: list[Change] = [touched, longer, replaced, gone]
MAKERS: dict[str, Callable[[Path], Path]] = {
    ".keras": keras_file,
    ".h5": legacy_file,
    "": directory_model,
}


def changing(monkeypatch: pytest.MonkeyPatch, change: Change, path: Path) -> None:
    """Have a file change while its plan is made."""

    def meanwhile(*arguments: Any, **options: Any) -> object:
        found = planned(*arguments, **options)
        if path.exists():
            change(path)
        return found

    monkeypatch.setattr(inspect_job, "planned", meanwhile)
    monkeypatch.setattr(fold_job, "planned", meanwhile)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", MAKERS)
def test_a_file_that_changes_while_it_is_inspected(
    suffix: str, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = MAKERS[suffix](tmp_path / f"m{suffix}")
    changing(monkeypatch, change, path)
    result = invoke("inspect", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"bnfold: {path}: changed while it was read\n"


@pytest.mark.parametrize("change", [touched, longer, replaced])
@pytest.mark.parametrize("suffix", MAKERS)
def test_a_file_that_changes_while_it_is_folded(
    suffix: str, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = MAKERS[suffix](tmp_path / f"m{suffix}")
    target = tmp_path / f"out{suffix}"
    monkeypatch.setattr(fold_job, "of_input", lambda *_: fold_job.InputFindings())
    changing(monkeypatch, change, path)
    result = invoke("fold", "--no-verify", path, target)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "changed while it was read" in result.stderr
    assert {one.name for one in tmp_path.iterdir()} <= {path.name, "m.keras"}


def test_weights_that_change_are_not_called_damaged(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    with open_model(path) as model:
        flipped(path, KERNEL)
        with pytest.raises(UnreadableModelError, match="changed while it was read"):
            model.sha256()


def test_a_listing_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Written in place, with the time of change set back: only the listing tells.
    path = keras_file(tmp_path / "m.keras", **{"assets/a": b"x"})
    times = path.stat()

    def change(path: Path) -> None:
        data = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(data.rindex(b"assets/a"))
            file.write(b"assets/b")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    changing(monkeypatch, change, path)
    assert "changed while it was read" in invoke("inspect", path).stderr


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_model_takes_its_own_place(suffix: str, tmp_path: Path) -> None:
    path = MAKERS[suffix](tmp_path / f"m{suffix}")
    if suffix:
        bnfold.fold(path, path, verify=False, force=True)
        assert not bnfold.inspect(path).plan.decisions


# --- the file that is meant ----------------------------------------------------------------------


def digest(path: Path) -> str:
    """The digest as a shell computes it."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    script = "find . -type f | sed 's|^\\./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["sh", "-c", script], cwd=path, capture_output=True, check=True)
    return done.stdout.decode()[:64]


@pytest.mark.parametrize("suffix", MAKERS)
def test_a_file_with_the_digest_that_was_asked_for(suffix: str, tmp_path: Path) -> None:
    path = MAKERS[suffix](tmp_path / f"m{suffix}")
    good, bad = digest(path), "0" * 64
    assert invoke("inspect", path, "--sha256", good).exit_code == 0
    assert invoke("inspect", path, "--sha256", bad, "--sha256", good.upper()).exit_code == 0
    out = tmp_path / f"out{suffix}"
    assert invoke("fold", "--no-verify", path, out, "--sha256", good).exit_code == 0
    with open_model(out) as model:
        assert model.metadata["bnfold"]["source_sha256"] == good
    for result in (
        invoke("inspect", path, "--sha256", bad),
        invoke("fold", "--no-verify", "--force", path, out, "--sha256", bad),
    ):
        assert (result.exit_code, result.stdout) == (2, "")
        said = f"bnfold: {path}: its SHA-256 is {good}, not the one that was asked for\n"
        assert result.stderr == said


def test_every_model_must_have_one_of_the_digests(tmp_path: Path) -> None:
    one, other = keras_file(tmp_path / "a.keras"), legacy_file(tmp_path / "b.h5")
    both = ["--sha256", digest(one), "--sha256", digest(other)]
    assert invoke("inspect", tmp_path, *both).exit_code == 0
    result = invoke("inspect", tmp_path, *both[:2])
    assert result.exit_code == 2
    assert f"{other}: its SHA-256 is {digest(other)}" in result.stderr
    for command in ("verify", "bench"):
        result = invoke(command, one, other, *both[:2])
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"{other}: its SHA-256 is {digest(other)}" in result.stderr


COMMANDS: dict[str, tuple[object, ...]] = {
    "inspect": (),
    "fold": ("out.keras",),
    "export": ("out.onnx",),
    "recalibrate": ("out.keras", "--data", "data.npy"),
    "verify": ("other.keras",),
    "bench": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_digest_comes_before_anything_is_parsed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.ones((4, 4), "f4"))
    Path("m.keras").write_bytes(b"PK\x03\x04 and nothing that could be parsed")
    Path("other.keras").write_bytes(b"PK\x03\x04")
    result = invoke(command, "m.keras", *COMMANDS[command], "--sha256", "0" * 64)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(r"^bnfold: m\.keras: its SHA-256 is [0-9a-f]{64}, not the", result.stderr)


@pytest.mark.parametrize("text", ["", "abc", "0" * 63, "0" * 65, "g" * 64, "sha256:" + "0" * 57])
def test_what_is_no_digest(text: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    result = invoke("inspect", path, "--sha256", text)
    assert result.exit_code == 2
    assert "64 hexadecimal digits" in result.stderr
    with pytest.raises(BnfoldError, match="64 hexadecimal digits"):
        bnfold.inspect(path, sha256=text)


def test_the_functions_take_one_digest_or_several(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "m.keras")
    good = digest(path)
    assert bnfold.inspect(path, sha256=good).plan.decisions
    assert bnfold.fold(path, tmp_path / "out.keras", verify=False, sha256=["0" * 64, good])
    for call in (
        lambda: bnfold.inspect(path, sha256="0" * 64),
        lambda: bnfold.verify(path, path, sha256="0" * 64),
        lambda: bnfold.bench(path, sha256="0" * 64),
        lambda: bnfold.export(path, tmp_path / "out.onnx", sha256="0" * 64),
    ):
        with pytest.raises(UnreadableModelError, match="not the one that was asked for"):
            call()
