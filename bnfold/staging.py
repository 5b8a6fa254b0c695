"""Writing so that a result appears whole or not at all.

The new file grows beside its target under another name, is flushed to disk, and takes the target's
place in one step. Whatever stops it before (an error, Ctrl-C, a full disk) leaves the target as it
was and nothing beside it. Only a directory takes two steps, because it cannot be replaced in one:
between them the old one stands inside the staging directory.
"""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from bnfold.errors import OutputError
from bnfold.model.container import SUFFIXES, Kind, is_model_directory
from bnfold.model.guard import printable

TargetKind: TypeAlias = Kind | Literal["onnx", "text"]

_SUFFIXES: dict[TargetKind, tuple[str, ...]] = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "onnx": (".onnx",),
}


def check_target(target: Path, kind: TargetKind, *, force: bool) -> None:
    """See that a result of this kind may be written to `target`.

    Raises:
        OutputError: the target exists and `force` is not given, its directory does not exist, or
            its name has a suffix by which it would be taken for something else.
    """
    name = printable(str(target))
    wanted = _SUFFIXES.get(kind)
    if wanted is not None and target.suffix.lower() not in wanted:
        like = "" if kind == "onnx" else ", like the model it is made of"
        raise OutputError(f"{name}: must end in {' or '.join(wanted)}{like}")
    if wanted is None and target.suffix.lower() in SUFFIXES:
        raise OutputError(
            f"{name}: is the name of a model, and this is none"
            if kind == "text"
            else f"{name}: must have no suffix, because the model it is made of is a directory"
        )
    if kind == "text" and any(map(is_model_directory, target.resolve().parents)):
        raise OutputError(f"{name}: is inside of a model, and would damage it")
    if not target.parent.is_dir():
        raise OutputError(f"{name}: the directory {printable(str(target.parent))} does not exist")
    if os.path.lexists(target):
        _check_existing(target, name, kind, force=force)


def _check_existing(target: Path, name: str, kind: TargetKind, *, force: bool) -> None:
    if not force:
        raise OutputError(f"{name}: exists already; use --force to replace it")
    if target.is_dir() != (kind == "keras-directory"):
        raise OutputError(f"{name}: exists and is {'a' if target.is_dir() else 'no'} directory")


class Staging:
    """A place beside `target` to write to; `publish` puts what is there in the target's place.

    Used as a context manager: what was not published is removed at the end.
    """

    def __init__(self, target: Path, kind: TargetKind, *, force: bool) -> None:
        check_target(target, kind, force=force)
        self._target, self._kind, self._force = target, kind, force
        # Named before it is made, so that it is removed whenever Ctrl-C comes.
        self._directory = target.parent / f".bnfold-{os.urandom(8).hex()}"
        self.path = self._directory / target.name

    def __enter__(self) -> "Staging":
        try:
            self._directory.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"{printable(str(self._target))}: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{printable(str(self._target))}: {error.strerror or error}"
            ) from error

    def publish(self) -> None:
        """Flush what was written and move it to the target."""
        _flush(self.path)
        check_target(self._target, self._kind, force=self._force)
        if self._target.is_dir() and not self._target.is_symlink():
            self._replace_directory()
        else:
            self.path.replace(self._target)
        _flush_directory(self._target.parent)

    def _replace_directory(self) -> None:
        replaced = self._directory / "replaced"
        try:
            self._target.rename(replaced)
            self.path.replace(self._target)
        finally:
            if not self._target.exists():
                replaced.rename(self._target)


def write_text(target: Path, text: str) -> None:
    """Write a text to a file, whole or not at all, in the place of what is there.

    Devices and pipes are written to, and links are followed.

    Raises:
        OutputError: it cannot be written there, or has the name of a model.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        _write_to_device(target, text)
        return
    with Staging(target.resolve(), "text", force=True) as staging:
        staging.path.write_text(text, encoding="utf-8", newline="")
        staging.publish()


def _write_to_device(target: Path, text: str) -> None:
    try:
        with target.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"{printable(str(target))}: {error.strerror or error}") from None


def _flush(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _flush_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # not every system can open a directory
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
