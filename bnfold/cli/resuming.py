"""The file of `--resume`: what an earlier run has found out, and what this one does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bnfold.cli.output import say
from bnfold.errors import OutputError, SettingsError
from bnfold.fleet import journal
from bnfold.fleet.row import Json, Row
from bnfold.model.container.printing import printable

_KEPT = ("exit_code", "report", "sha256", "bytes", "files", "notes")


class Resuming:
    """Keeps rows in a file as they come, and knows those that were in it; without a file nothing.

    One run has the file at a time.
    """

    def __init__(self, target: Path | None) -> None:
        self._target, self._name = target, printable(str(target))
        self._known: dict[str, Row] = {}
        self._taken = 0
        self._open = contextlib.ExitStack()
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Resuming:
        """Read what is in the file, and leave out of it what is no result.

        Raises:
            SettingsError: it is no journal, or another run has it.
            OutputError: it cannot be written.
        """
        if self._target is None:
            return self
        from bnfold.jobs.staging import check_target, is_stream, write_text

        if is_stream(self._target):
            raise SettingsError(f"{self._name}: --resume needs a file, and this is none")
        check_target(self._target, "text", force=True)
        with contextlib.ExitStack() as first:
            self._taken_by(first)
            rows = journal.read(self._target, self._name).rows
            self._known = {row.path: row for row in rows if row.is_done}
            write_text(self._target, journal.lines([*self._known.values()], None))
            with contextlib.ExitStack() as stack:
                self._stream = self._taken_by(stack)
                self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the file to others."""
        self._open.close()

    def _taken_by(self, stack: contextlib.ExitStack) -> IO[bytes]:
        """The file, which nobody else has until the stack is closed."""
        assert self._target is not None  # noqa: S101
        try:
            stream = stack.enter_context(self._target.open("ab", buffering=0))
            is_free = _is_taken_now(stream) and os.path.samestat(
                os.fstat(stream.fileno()), self._target.stat()
            )
        except OSError as error:
            raise OutputError(f"{self._name}: {error.strerror or error}") from None
        if not is_free:
            raise SettingsError(f"{self._name}: another run is writing to it")
        return stream

    def known(self, path: str, options: str) -> Row | None:
        """What was found out about a model with the same options."""
        row = self._known.get(path)
        return row if row is not None and row.options == options else None

    def taken(self, path: str) -> Json:
        """The answer on a model that is the same as before."""
        row = self._known[path]
        self._taken += 1
        return {name: getattr(row, name) for name in _KEPT}

    def tell(self, total: int) -> None:
        """Say how many of all models were not done again, if any."""
        if self._taken:
            say(f"{self._name}: has {self._taken} of {total} models, which did not change")

    def add(self, row: Row) -> None:
        """Keep a row. Raises OutputError where there is no room for it."""
        if self._stream is None:
            return
        rest = memoryview(f"{journal.line(row)}\n".encode("ascii"))
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise OutputError(f"{self._name}: {error.strerror or error}") from None

    def put_in_order(self, rows: Sequence[Row], shard: str | None) -> None:
        """Let the file have these rows, which are all of the shard, one after another."""
        if self._target is not None:
            from bnfold.jobs.staging import write_text

            write_text(self._target, journal.lines(rows, shard))


def _is_taken_now(stream: IO[Any]) -> bool:
    """Take a file that nobody else has; whether that went well, where the system can tell."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not every file system has locks
        return True
    return True
