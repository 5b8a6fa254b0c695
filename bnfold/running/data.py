"""The user's data: arrays in memory or in a file, taken sample by sample.

A file is mapped rather than read, so that data may be larger than memory; only the arrays of a
compressed `.npz` are read whole. Pickled objects are never unpacked.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.model.container.printing import printable, shortened
from bnfold.running.arrays import Array
from bnfold.running.samples import InputSpec, SampleSet, storage

LABELS = "y"
"""The array of labels that may stand beside the data."""

_ELEMENT_BUDGET = 4_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_HEADER = 10_000  # bytes; what numpy takes
_HEADERS = {
    (1, 0): (struct.Struct("<H"), np.lib.format.read_array_header_1_0),
    (2, 0): (struct.Struct("<I"), np.lib.format.read_array_header_2_0),
}
# What compressed arrays may have in memory: many times what photographs and numbers shrink by.
_UNPACKED = 512 << 20
_EXPANSION = 20
_DAMAGE = (
    *(OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError),
    *(OverflowError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error, LZMAError),
)


@dataclass(frozen=True)
class Given:
    """The arrays of the user's data by name, read but not compared with the inputs of a model.

    `name` is that of the file, for messages. Where there is one, `file` is its path, and `state`
    what it was like when it was read.
    """

    name: str
    arrays: Mapping[str, Array]
    file: Path | None = None
    state: tuple[int, ...] = ()

    def refuse_changes(self) -> None:
        """Raise BnfoldError if the file has changed since it was read."""
        try:
            is_same = self.file is None or _state(self.file) == self.state
        except OSError:
            is_same = False
        if not is_same:
            raise BnfoldError(f"{self.name}: changed while it was read")


Source: TypeAlias = Path | Array | Sequence[Array] | Mapping[str, Array] | Given
"""A `.npz` or `.npy` file; or an array for a model of one input, or one array for each input."""


@dataclass(frozen=True)
class UserData:
    """Samples for every input of a model; the first axis of each array counts them.

    Attributes:
        name: of the file, for messages.
        specs: the inputs.
        arrays: one for each of them, as they are stored.
        given: where they come from.
    """

    name: str
    specs: tuple[InputSpec, ...]
    arrays: tuple[Array, ...]
    given: Given

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.arrays[0])

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model takes only; None where any will do."""
        return self.specs[0].shape[0]

    def take(self, start: int, stop: int) -> tuple[Array, ...]:
        """Some samples, one array for each input in the dtype in which it goes in.

        Raises BnfoldError for a number that an input of whole numbers cannot hold, and for a file
        that has changed since it was opened.
        """
        pairs = zip(self.arrays, self.specs, strict=True)
        taken = tuple(_converted(array[start:stop], spec, self.name) for array, spec in pairs)
        self.given.refuse_changes()
        return taken

    def finite(self, start: int, stop: int) -> tuple[Array, ...]:
        """`take`; raises BnfoldError where a number is NaN, infinite or too large for its input."""
        taken = self.take(start, stop)
        for array, spec in zip(taken, self.specs, strict=True):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                raise BnfoldError(
                    f"{self.name}: input {printable(spec.name)!r} has numbers that are not finite"
                    f" in {array.dtype}, first in sample {start + int(np.argmax(bad))}"
                )
        return taken


def given(data: Any) -> Source | None:
    """What somebody gave as data, as a source; None for None.

    An array of another library counts as one of numpy's.

    Raises:
        TypeError: it is neither a path nor arrays.
    """
    if data is None or isinstance(data, Mapping):
        return data
    if isinstance(data, (str, os.PathLike)):
        return Path(data)
    if hasattr(data, "__array__"):
        return np.asarray(data)
    if isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray)):
        return data
    raise TypeError(
        "data must be the path of an .npz or .npy file, an array, or an array for each input, "
        f"not {type(data).__name__}"
    )


def load(source: Source, specs: Sequence[InputSpec]) -> tuple[SampleSet, str | None]:
    """Return the user's samples in the order of `specs`, and a warning on what is odd about them.

    Raises BnfoldError.
    """
    data = open_data(source, specs)
    refuse_few(data)
    kept = _kept(data)
    inputs = data.take(0, kept)
    warnings = [f"the first {kept} of {data.count} samples were used"] if kept < data.count else []
    warnings += [
        f"input {printable(spec.name)!r} has numbers that are not finite"
        for array, spec in zip(inputs, specs, strict=True)
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    warning = f"{data.name}: {'; '.join(warnings)}" if warnings else None
    return SampleSet(f"data from {data.name}", inputs), warning


def refuse_few(data: UserData, least: int = 1) -> None:
    """Raise BnfoldError for fewer samples than a batch of the model, or than are wanted, has."""
    if data.count < (data.fixed_batch or 0):
        raise BnfoldError(f"{data.name}: the model needs batches of {data.fixed_batch} samples")
    if data.count < least:
        raise BnfoldError(f"{data.name}: one sample has no statistics; give at least {least}")


def _kept(data: UserData) -> int:
    if data.fixed_batch is not None:
        return data.fixed_batch
    elements = max(1, sum(int(np.prod(array.shape[1:])) for array in data.arrays))
    return min(data.count, max(1, _ELEMENT_BUDGET // elements))


def open_data(source: Source, specs: Sequence[InputSpec]) -> UserData:
    """The user's samples, checked against the inputs that they are for.

    A `.npz` or a mapping holds one array per input, found by input name, as input_0, input_1, ...
    (other arrays may stand beside them), or by position; a `.npy` or a single array serves a model
    with one input. Raises BnfoldError.
    """
    given = read(source)
    name, arrays = given.name, given.arrays
    ordered = _in_order(arrays, specs, name)
    for array, spec in zip(ordered, specs, strict=True):
        _check(array, spec, name)
    counts = {array.shape[0] for array in ordered}
    if len(counts) != 1 or 0 in counts:
        raise BnfoldError(f"{name}: the arrays must hold the same number of samples, at least 1")
    return UserData(name, tuple(specs), tuple(ordered), given)


def read(source: Source) -> Given:
    """The arrays of some data; those of a file that is not compressed are mapped.

    Raises BnfoldError for a file that is not there, or holds anything else than plain arrays.
    """
    if isinstance(source, Given):
        return source
    if isinstance(source, Path):
        return _read(source)
    if isinstance(source, Mapping):
        return Given("data", {str(name): np.asarray(array) for name, array in source.items()})
    if isinstance(source, np.ndarray):
        return Given("data", {"": source})
    listed = {f"arr_{number}": np.asarray(array) for number, array in enumerate(source)}
    return Given("data", listed)


def _read(path: Path) -> Given:
    """All arrays of the file by name."""
    shown = printable(str(path))
    try:
        state = _state(path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise BnfoldError(f"{shown}: is not a file")
        with path.open("rb") as file:
            arrays = _arrays(file, shown)
    except FileNotFoundError:
        raise BnfoldError(f"{shown}: no such file") from None
    except _DAMAGE as error:
        raise BnfoldError(f"{shown}: not a .npy or .npz file of plain arrays") from error
    return Given(printable(path.name), arrays, path, state)


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _arrays(file: IO[bytes], shown: str) -> dict[str, Array]:
    size = os.fstat(file.fileno()).st_size
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return {"": _array(file, size, file, 0)}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = [one for one in members if one.compress_type != zipfile.ZIP_STORED]
        most = max(_UNPACKED, _EXPANSION * size)
        if sum(one.file_size for one in packed) > most:
            raise BnfoldError(
                f"{shown}: its compressed arrays have more than {most >> 20} MiB;"
                " numpy.savez writes them as they are, which has no limit"
            )
        return {one.filename.removesuffix(".npy"): _member(file, archive, one) for one in members}


def _member(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array of a `.npz` file. Raises ValueError."""
    start = None
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(info.header_offset)
        _, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    with archive.open(info) as stream:
        return _array(stream, info.file_size, file, start)


def _array(stream: IO[bytes], size: int, file: IO[bytes], start: int | None) -> Array:
    """The array in a stream of so many bytes, whose shape must agree with what is there.

    Mapped where it stands in the file as it is, from `start` on. Raises ValueError.
    """
    shape, is_fortran, dtype, header = _header(stream)
    count = math.prod(shape)
    if dtype.hasobject or min(shape, default=0) < 0 or count * dtype.itemsize > size - header:
        raise ValueError("objects are not unpacked, and all numbers must be there")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    if count * dtype.itemsize == 0:
        return np.empty(shape, dtype, order)
    if start is not None and shape:
        return np.memmap(file, dtype, "r", start + header, shape, order)
    content = stream.read(count * dtype.itemsize)
    return np.frombuffer(content, dtype, count).reshape(shape, order=order)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order and dtype of an array, and how many bytes tell them. Raises ValueError."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of .npy is for structured arrays")
    length, read = _HEADERS[version]
    told = stream.read(length.size)
    (size,) = length.unpack(told)
    if size > _HEADER:  # numpy reads it first, and looks at its length then
        raise ValueError("too long a header")
    shape, is_fortran, dtype = read(io.BytesIO(told + stream.read(size)))
    return shape, is_fortran, dtype, np.lib.format.MAGIC_LEN + length.size + size


def _in_order(arrays: Mapping[str, Array], specs: Sequence[InputSpec], name: str) -> list[Array]:
    names = ", ".join(repr(spec.name) for spec in specs)
    for keys in ([spec.name for spec in specs], [f"input_{index}" for index in range(len(specs))]):
        if set(keys) <= set(arrays):  # what else there is may be labels
            return [arrays[key] for key in keys]
    if len(arrays) > len(specs):  # labels, if it is one more
        arrays = {key: array for key, array in arrays.items() if key != LABELS}
    if len(arrays) != len(specs):
        raise BnfoldError(
            f"{name} holds {_counted(arrays)}, the model takes {len(specs)}: {printable(names)}"
        )
    if len(specs) == 1 or set(arrays) == {f"arr_{index}" for index in range(len(specs))}:
        return list(arrays.values())
    raise BnfoldError(f"{name}: name the arrays after the inputs of the model: {printable(names)}")


def _counted(arrays: Mapping[str, Array]) -> str:
    count = "1 array" if len(arrays) == 1 else f"{len(arrays)} arrays"
    names = ", ".join(repr(name) for name in arrays if name)
    return f"{count} ({shortened(names)})" if names else count


def _check(array: Array, spec: InputSpec, name: str) -> None:
    """Raise BnfoldError, which says what does not fit, for an array that is none for this input."""
    shown = printable(spec.name)
    if spec.dtype != "string" and array.dtype.kind not in "fiub":
        raise BnfoldError(f"{name}: input {shown!r} takes numbers, not {_named(array)}")
    matches = array.ndim == len(spec.shape) and all(
        wanted is None or wanted == size
        for wanted, size in zip(spec.shape[1:], array.shape[1:], strict=True)
    )
    if not matches:
        wanted_shape = tuple("any" if size is None else size for size in spec.shape)
        text = "(" + ", ".join(str(size) for size in wanted_shape) + ")"
        raise BnfoldError(
            f"{name}: input {shown!r} takes shape {text}, the array has {array.shape}"
        )


def _named(array: Array) -> str:
    """The dtype of an array; one of a file may have names of its own."""
    return shortened(str(array.dtype))


def _converted(array: Array, spec: InputSpec, name: str) -> Array:
    if spec.dtype == "string":
        return array.astype("str").astype("object")
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.asarray(array.astype(storage(spec.dtype)))
    if found.dtype.kind in "iub" and not np.array_equal(found, array):
        odd = array[found != array].flat[0]
        raise BnfoldError(
            f"{name}: input {printable(spec.name)!r} takes {found.dtype}, which cannot hold {odd}"
        )
    return found
