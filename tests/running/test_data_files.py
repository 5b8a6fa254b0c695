"""Data that are damaged, or made to do harm: one line, and never more memory than there is data."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import keras_file
from click.testing import CliRunner

from bnfold.cli import main
from bnfold.errors import BnfoldError
from bnfold.running import data
from bnfold.running.samples import InputSpec

GOOD = np.arange(12.0).reshape(3, 4)


def npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A `.npy` file with any header."""
    text = header.encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + content


def described(shape: Any, descr: str = "'<f8'", order: Any = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def saved(array: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


FIELDS = np.zeros(3, [("\x1b[31m", "f4"), ("b", "f4")])
DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "a text": b"1, 2, 3\n",
    "a pickle": pickle.dumps(GOOD),
    "objects": saved(np.array([{}, 1], object), allow_pickle=True),
    "no header": b"\x93NUMPY\x01\x00",
    "a version to come": npy(described((3, 4)), bytes(96), (9, 9)),
    "no dict": npy("[1]\n", bytes(96)),
    "no Python": npy("{'descr': \n", bytes(96)),
    "a call": npy("__import__('os').abort()\n", bytes(96)),
    "deep brackets": npy("(" * 9000 + "\n", bytes(96)),
    "no dtype": npy(described((3, 4), "'<q99'"), bytes(96)),
    "an open bracket": npy(described((3, 4))[:-4], bytes(96)),
    "a huge shape": npy(described((1 << 40, 1 << 40)), bytes(96)),
    "a shape that overflows": npy(described((1 << 62, 4)), bytes(96)),
    "a negative shape": npy(described((-1, -96)), bytes(96)),
    "a shape of text": npy(described(("3", 4)), bytes(96)),
    "no numbers and a huge shape": npy(described((0, 1 << 70)), b""),
    "huge elements": npy(described((1,), "'S2000000000'"), bytes(96)),
    "a huge field": npy(described((3,), "('<f8', (1000000000,))"), bytes(96)),
    "cut off": saved(GOOD)[:-1],
    "a header without end": npy("x", b"", (2, 0))[:8] + b"\xff\xff\xff\xff" + bytes(96),
}


def refused(path: Path) -> str:
    with pytest.raises(BnfoldError) as caught:
        data.read(path)
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize("how", ["npy", "stored", "deflated", "bzip2", "lzma"])
@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_array(case: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    kinds = {"stored": 0, "deflated": 8, "bzip2": 12, "lzma": 14}
    if how == "npy":
        path.write_bytes(DAMAGED[case])
    else:
        with zipfile.ZipFile(path, "w", kinds[how]) as archive:
            archive.writestr("x.npy", DAMAGED[case])
    assert "not a .npy or .npz file of plain arrays" in refused(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [GOOD, np.float32(3), np.zeros((0, 4)), np.array(["a", "bc"])])
def test_arrays_are_read_as_numpy_reads_them(
    array: Any, save: Callable[..., None], order: Any, tmp_path: Path
) -> None:
    array = np.asarray(array, order=order)
    path = tmp_path / ("d.npy" if save is np.save else "d.npz")
    save(path, array)
    (found,) = data.read(path).arrays.values()
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("offset", range(0, 260, 7))
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_bit_that_has_flipped(save: Callable[..., None], offset: int, tmp_path: Path) -> None:
    """It is refused, or an array of the same size comes of it."""
    path = tmp_path / "d.npz"
    save(path, GOOD)
    content = bytearray(path.read_bytes())
    content[offset % len(content)] ^= 0x10
    path.write_bytes(content)
    try:
        found = data.read(path).arrays
    except BnfoldError:
        return
    assert all(array.nbytes <= len(content) * 20 for array in found.values())


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_UNPACKED", 16 << 20)
    header = npy(described((1 << 23,)))
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x.npy", "y.npy"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(header)
                member.write(bytes(10 << 20))
    assert (tmp_path / "d.npz").stat().st_size < 1 << 15
    text = refused(tmp_path / "d.npz")
    assert "compressed arrays have more than 16 MiB" in text


def test_an_encrypted_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", GOOD)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + place] |= 1
    (tmp_path / "d.npz").write_bytes(content)
    assert "not a .npy or .npz file" in refused(tmp_path / "d.npz")


def test_fields_with_names_for_the_terminal(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", FIELDS)
    with pytest.raises(BnfoldError, match="takes numbers, not") as caught:
        data.open_data(tmp_path / "d.npy", [InputSpec("x", (None,), "float32")])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "option", [pytest.param("--data", marks=pytest.mark.keras), "--config", "--baseline"]
)
def test_a_pipe_is_not_waited_for(option: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model = keras_file(tmp_path / "m.keras")
    words = [sys.executable, "-m", "bnfold", "inspect", model, option, tmp_path / "pipe"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "is not a file" in done.stderr


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("--config", "[tool.bnfold]\nselect = " + "[" * 5000),
        ("--config", "#" * (5 << 20)),
        ("--baseline", "[" * 5000),
        ("--baseline", '{"version": 1, "findings": 3}'),
    ],
)
def test_settings_and_baselines_without_end(option: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(content)
    model = keras_file(tmp_path / "m.keras")
    result = CliRunner().invoke(main, ["inspect", str(model), option, str(tmp_path / "file")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr


@pytest.mark.parametrize("change", ["grows", "is replaced", "goes"])
def test_data_that_change_while_they_are_read(change: str, tmp_path: Path) -> None:
    path = tmp_path / "d.npy"
    np.save(path, GOOD)
    found = data.open_data(path, [InputSpec("x", (None, 4), "float32")])
    assert len(found.take(0, 2)[0]) == 2
    if change == "grows":
        with path.open("ab") as stream:
            stream.write(b"more")
    elif change == "is replaced":
        np.save(tmp_path / "other.npy", GOOD)
        (tmp_path / "other.npy").replace(path)
    else:
        path.unlink()
    with pytest.raises(BnfoldError, match=r"d\.npy: changed while it was read"):
        found.take(2, 3)
