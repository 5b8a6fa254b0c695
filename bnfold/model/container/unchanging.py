"""Whether a model file is the one that was meant, and stays it while it is read.

Its SHA-256 says whether it is the one that was meant. Size, time of change and inode, before and
after, say whether it stayed the same; for a directory those of all files in it, and for an archive
its listing too, which has a checksum of every member. Of an object in a store, what the store says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, SettingsError, UnreadableModelError
from bnfold.model.container import guard
from bnfold.model.container.store import RemoteFile, archive_file

_DIGEST = r"[0-9a-f]{64}"


def digests(given: str | Sequence[str]) -> tuple[str, ...]:
    """SHA-256 digests as they are compared: one, or several.

    Raises:
        SettingsError: one does not have 64 hexadecimal digits.
    """
    every = [given] if isinstance(given, str) else list(given)
    found = tuple(str(one).strip().lower() for one in every)
    for one in found:
        if not re.fullmatch(_DIGEST, one):
            shown = guard.shortened(one)
            raise SettingsError(f"{shown!r} is not a SHA-256, which has 64 hexadecimal digits")
    return found


def sha256(path: Path | RemoteFile) -> str:
    """The SHA-256 of a file; of a directory, that of what `sha256sum` says of its sorted files."""
    import hashlib  # noqa: PLC0415 - starts OpenSSL, and inspecting needs none

    if isinstance(path, RemoteFile) or not path.is_dir():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    lines = [f"{sha256(path / name)}  {name}\n" for name in sorted(guard.files_in(path))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_digest(path: Path | RemoteFile, wanted: Sequence[str]) -> None:
    """See that a file has one of these SHA-256 digests, if there are any.

    Raises:
        UnreadableModelError: it has another one.
    """
    if wanted and (found := sha256(path)) not in wanted:
        asked = "the one" if len(wanted) == 1 else f"one of the {len(wanted)}"
        raise UnreadableModelError(f"its SHA-256 is {found}, not {asked} that was asked for")


class Watch:
    """Sees whether a model file is one that was meant, and stays it from now on."""

    def __init__(
        self, path: Path | RemoteFile, wanted: Sequence[str] = (), shown: str = ""
    ) -> None:
        """`wanted` are the SHA-256 digests of which it must have one, if there are any.

        `shown` is what it is called, where that is not its path.

        Raises:
            UnreadableModelError: it has another one, or is a damaged archive.
        """
        self._path, self._shown, self._is_over = path, shown or str(path), False
        self._stamps = _stamps(path)
        check_digest(path, wanted)
        self._listing = _listing(path)

    def check(self) -> None:
        """See that it is what it was; before something made of it is put anywhere.

        Raises:
            UnreadableModelError: it is not.
        """
        self._is_over = True
        try:
            self.look()
        except UnreadableModelError as error:
            name = guard.printable(self._shown)
            raise UnreadableModelError(f"{name}: {error}") from None

    def look(self) -> None:
        """`check`, with an error that does not name the file.

        Raises:
            UnreadableModelError: it changed, or its store does not answer.
        """
        path = self._path.again() if isinstance(self._path, RemoteFile) else self._path
        try:
            is_same = (_stamps(path), _listing(path)) == (self._stamps, self._listing)
        except (OSError, BnfoldError) as error:
            guard.raise_scarcity(error)
            if isinstance(self._path, RemoteFile) and isinstance(error, UnreadableModelError):
                raise  # a store that does not answer any more is no change
            is_same = False
        if not is_same:
            raise UnreadableModelError("changed while it was read")

    def finish(self) -> None:
        """`check`, unless that was done: what was made of the file may stand in its place now."""
        if not self._is_over:
            self.check()


def _stamps(path: Path | RemoteFile) -> list[tuple[Any, ...]]:
    """What tells a file, or all of a directory, from what it is after a change."""
    if isinstance(path, RemoteFile):
        return [path.stamp]
    if not path.is_dir():
        return [_stamp(path)]
    return [_stamp(path), *(_stamp(path / name) for name in sorted(guard.files_in(path)))]


def _stamp(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _listing(path: Path | RemoteFile) -> list[tuple[Any, ...]]:
    """What an archive says of its members; nothing for what is none."""
    if path.is_dir():
        return []
    with archive_file(path) as file:
        if file.read(2) != b"PK":
            return []
        with guard.open_archive(file) as archive:
            every = archive.infolist()
            return [(one.filename, one.header_offset, one.CRC, one.file_size) for one in every]
