"""What is to be done with one model, and what came of it."""

from __future__ import annotations

import json
import re
import zlib
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from bnfold.errors import SettingsError
from bnfold.serialize import SCHEMA_VERSION

Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A command about one model.

    Attributes:
        path: the model, as it was named or found.
        words: the command line for it.
        target: the folder that must be there for what the command writes; None where it writes
            nothing.
        products: what it writes.
        others: what it reads beside the model.
        error: why nothing can be done with the model; None where something can.
        number: where it stands among all models, from 1; None where they are not done in shards.
    """

    path: str
    words: tuple[str, ...] = ()
    target: str | None = None
    products: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    error: str | None = None
    number: int | None = None

    def with_options(self, more: Sequence[str]) -> Task:
        """The same with more options."""
        end = self.words.index("--") if "--" in self.words else len(self.words)
        return replace(self, words=(*self.words[:end], *more, *self.words[end:]))


def packed(value: Any) -> bytes:
    """A value of JSON in little memory."""
    return zlib.compress(json.dumps(value).encode("ascii"), level=1)


def unpacked(value: bytes) -> Any:
    """What was packed."""
    return json.loads(zlib.decompress(value))


def sendable(value: Any) -> str | None:
    """A value of JSON, packed where it was made, as a text for a field that keeps it so."""
    return None if value is None else b2a_base64(packed(value), newline=False).decode("ascii")


class _Packed:
    """A field of JSON that is kept packed: reports on thousands of models take much memory.

    It is set to an object of JSON, or to the text of a `sendable` one.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    @overload
    def __get__(self, row: None, owner: type) -> None: ...

    @overload
    def __get__(self, row: object, owner: type) -> Any: ...

    def __get__(self, row: object | None, owner: type) -> Any:
        value = None if row is None else vars(row)[self._name]
        return None if value is None else unpacked(value)

    def __set__(self, row: object, value: Any) -> None:
        if value is not None:
            value = a2b_base64(value) if isinstance(value, str) else packed(value)
        vars(row)[self._name] = value


@dataclass(frozen=True)
class Row:
    """What came of one model.

    Attributes:
        path: the model.
        exit_code: that of the command: 0, 1 for a negative answer, or 2.
        error: why there is no report, in a line; None where there is one.
        report: the JSON report of the command; None where there is none.
        sha256: that of the model when it was looked at; None where it could not be read, or
            nobody keeps the row.
        bytes: the size of the model likewise.
        shard: which part of the models it is of, "3/20"; None of all.
        number: where it stands among all models; None where they were not done in shards.
        options: the digest of the command line and all that it depends on.
        files: the SHA-256 of what was written, and of what was read beside the model, by path.
        views: other forms of the report, by name, that were asked for; None where none was.
        said: what else the command had to say, line by line.
        notes: what the command tells for the run as a whole.
        seconds: how long it took; None where it was not done in this run.
    """

    path: str
    exit_code: int
    error: str | None = None
    report: _Packed = _Packed()
    sha256: str | None = None
    bytes: int | None = None
    shard: str | None = None
    number: int | None = None
    options: str = ""
    files: Mapping[str, str | None] = field(default_factory=dict)
    views: _Packed = _Packed()
    said: Sequence[str] = ()
    notes: Json = field(default_factory=dict)
    seconds: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is a report."""
        return self.error is None

    def without_views(self) -> Row:
        """The same, once they were shown."""
        found = copy(self)  # which packs nothing anew
        vars(found).update(_views=None)
        return found

    def to_dict(self) -> Json:
        """The row in JSON Lines; how long it took is another thing in each run, and not in it."""
        return {"schema_version": SCHEMA_VERSION, **{key: getattr(self, key) for key in KEYS}}


KEYS = (
    *("path", "exit_code", "error", "sha256", "bytes", "shard", "number", "options", "files"),
    *("notes", "report"),
)
"""What is in JSON Lines of a row."""


def digest(*parts: str) -> str:
    """A short digest of some texts."""
    import hashlib  # noqa: PLC0415 - starts OpenSSL, and inspecting needs none

    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


_SHARD = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,8})")


def shard_of(text: str) -> tuple[int, int]:
    """Which shard of how many "3/20" is. Each has one name, by which reports are merged.

    Raises:
        SettingsError: it is none.
    """
    match = _SHARD.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        raise SettingsError(f"{text!r} is no shard: write 3/20 for the third of twenty")
    return int(match[1]), int(match[2])


def is_in_shard(path: str, shard: int, of: int) -> bool:
    """Whether a model belongs to this shard of so many, numbered from 1.

    The hash of its path decides, with slashes on every system, so a model stays in its shard
    whatever others come and go.
    """
    name = Path(path).as_posix()
    import hashlib  # noqa: PLC0415

    found = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(found[:8]) % of == shard - 1
