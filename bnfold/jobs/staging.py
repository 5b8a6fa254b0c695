"""Writing so that a result appears whole or not at all.

The new file grows beside its target under another name, is flushed to disk, and takes the target's
place in one step. Whatever stops it before (an error, Ctrl-C, a full disk) leaves the target as it
was and nothing beside it; what a process that is killed leaves there, the next one removes. Only a
directory takes two steps, because it cannot be replaced in one: between them the old one stands
inside the staging directory.

A target in a store is written to a temporary folder, and put there with one request at the end.

A link as target stays, and what it points to is replaced. The new file has the permissions, owner
and group of the one that it replaces; without one, those that the umask gives.
"""

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from bnfold.errors import BnfoldError, OutputError, UnreadableModelError
from bnfold.model.container import store
from bnfold.model.container.model_file import (
    SUFFIXES,
    Kind,
    is_model_directory,
    is_saved_model,
)
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where, located
from bnfold.supervision import leftovers, link

Format: TypeAlias = Literal["onnx", "tflite", "saved_model"]
TargetKind: TypeAlias = Kind | Format | Literal["text", "samples", "prepared", "pages"]

_SUFFIXES: dict[TargetKind, tuple[str, ...]] = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "onnx": (".onnx",),
    "samples": (".npz",),
    "tflite": (".tflite",),
}
FOLDER_SUFFIX = ".savedmodel"
_EXPORTED: dict[str, Format] = {
    ".onnx": "onnx",
    ".tflite": "tflite",
    FOLDER_SUFFIX: "saved_model",
}
REPORTS = ("report.html", "report.json", "report.sarif")
"""The reports in a folder that was prepared for deployment."""
PREPARED = r"model(?:_float16|_int8)?(?:\.(?:keras|h5|hdf5|onnx|tflite|savedmodel))?"
"""What models in such a folder are called; with anything else in it, it is somebody's."""


_PAGE = r"\d{5,}\.html"


def _are_pages(folder: Path) -> bool:
    return all(re.fullmatch(_PAGE, one.name) for one in folder.iterdir())


def _is_prepared(folder: Path) -> bool:
    names = {one.name for one in folder.iterdir()}
    return names >= set(REPORTS) and all(
        re.fullmatch(PREPARED, one) for one in names - set(REPORTS)
    )


_FOLDERS: dict[TargetKind, Callable[[Path], bool]] = {
    "keras-directory": is_model_directory,
    "saved_model": is_saved_model,
    "prepared": _is_prepared,
    "pages": _are_pages,
}
"""What is a folder, and what tells that one is of this kind."""
_PREFIX = ".bnfold-"
_ACCESS_LIST = "system.posix_acl_access"
_IS_WINDOWS = os.name == "nt"


def format_of(name: str | Where) -> Format | None:
    """The format that a name means: by its suffix, or of a folder; None where it means none.

    A folder is meant by a name that ends in a slash, and by one of an existing SavedModel.
    """
    if isinstance(name, Remote):
        return _EXPORTED.get(name.suffix.lower(), "saved_model" if name.url[-1] == "/" else None)
    text = os.fspath(name)
    path = Path(text)
    if found := _EXPORTED.get(path.suffix.lower()):
        return found
    ends = tuple(filter(None, (os.sep, os.altsep)))
    return "saved_model" if text.endswith(ends) or is_saved_model(path) else None


def target_at(given: str | Where) -> Where:
    """Where a result is to go, as a user says it; asked before a model is fetched.

    Raises:
        OutputError: it is in a store to which nothing is written.
    """
    target = located(given)
    if isinstance(target, Remote) and not target.store.writes:
        name = printable(str(target))
        raise OutputError(f"{name}: nothing is written to {target.protocol}://")
    return target


def check_target(target: Where, kind: TargetKind, *, force: bool) -> None:
    """See that a result of this kind may be written to `target`.

    Raises:
        OutputError: the target exists and `force` is not given, its directory does not exist, or
            its name has a suffix by which it would be taken for something else; the same for the
            file that a link points to.
    """
    name = printable(str(target))
    wanted = _SUFFIXES.get(kind)
    if wanted is not None and target.suffix.lower() not in wanted:
        is_other = kind == "samples" or kind in _EXPORTED.values()
        like = "" if is_other else ", like the model it is made of"
        raise OutputError(f"{name}: must end in {' or '.join(wanted)}{like}")
    if wanted is None and target.suffix.lower() in SUFFIXES:
        raise OutputError(f"{name}: {_NO_SUFFIX[kind]}")
    if isinstance(target, Remote):
        _check_remote(target, kind, force=force)
        return
    if kind == "text" and is_stream(target):
        return
    if os.path.lexists(target):
        _check_existing(target, name, kind, force=force)
    real = followed(target)
    if kind == "text" and any(map(is_model_directory, target.resolve().parents)):
        raise OutputError(f"{name}: is inside of a model, and would damage it")
    if not real.parent.is_dir():
        raise OutputError(f"{name}: the directory {printable(str(real.parent))} does not exist")


_NO_SUFFIX: dict[TargetKind, str] = {
    "text": "a report or baseline cannot have a model file's suffix",
    "keras-directory": "must have no suffix, because the model it is made of is a directory",
    "saved_model": "a SavedModel is a folder, and cannot have a model file's suffix",
    "prepared": "what is made is a folder, whose name cannot have a model file's suffix",
    "pages": "pages go to a folder, whose name cannot have a model file's suffix",
}


def _check_remote(target: Remote, kind: TargetKind, *, force: bool) -> None:
    name = printable(str(target))
    target_at(target)
    if kind in _FOLDERS:
        raise OutputError(f"{name}: a folder cannot be put there as a whole or not at all")
    with _remote_named(target):
        if not force and store.is_there(target):
            raise OutputError(f"{name}: exists already; use --force to replace it")


@contextmanager
def _remote_named(target: Remote) -> Iterator[None]:
    """Let what a store complains of be about a result that cannot be written."""
    try:
        yield
    except UnreadableModelError as error:
        raise OutputError(f"{printable(str(target))}: {error}") from None


def _check_existing(target: Path, name: str, kind: TargetKind, *, force: bool) -> None:
    if not force:
        raise OutputError(f"{name}: exists already; use --force to replace it")
    if target.is_symlink():
        real = followed(target)
        if real.is_symlink():
            raise OutputError(f"{name}: is a link that leads back to itself")
        if real.suffix.lower() in set(SUFFIXES) - set(_SUFFIXES.get(kind, ())):
            shown = printable(str(real))
            raise OutputError(f"{name}: is a link to {shown}, which has the name of another model")
    is_own = _FOLDERS.get(kind)
    if target.is_dir() != (is_own is not None) and target.exists():
        raise OutputError(f"{name}: exists and is {'a' if target.is_dir() else 'no'} directory")
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OutputError(f"{name}: exists and is neither a file nor a directory")
    if is_own is not None and target.is_dir() and not is_own(target) and any(target.iterdir()):
        what = {"prepared": "what 'bnfold prepare' makes", "pages": "pages"}.get(kind, "a model")
        raise OutputError(f"{name}: exists and is a directory with something else than {what}")


def followed(target: Path) -> Path:
    """What is to be replaced: the target or, where it is a link, what that points to at last."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _beside(target: Where) -> Path:
    """The path at which a result would stand that is written beside it first."""
    if isinstance(target, Path):
        return followed(target)
    import tempfile  # noqa: PLC0415 - most commands need none of it

    return Path(tempfile.gettempdir()) / store.file_name(target)


class Staging:
    """A place beside `target` to write to; `publish` puts what is there in the target's place.

    Beside what a link points to, where the target is one, and in the folder for temporary files
    where it is in a store. Used as a context manager: what was not
    published is removed at the end.
    """

    def __init__(self, target: Where, kind: TargetKind, *, force: bool) -> None:
        check_target(target, kind, force=force)
        self._given, self._kind, self._force = target, kind, force
        self._target = _beside(target)
        # Named before it is made, so that it is removed whenever Ctrl-C comes.
        self._directory = self._target.parent / leftovers.name(_PREFIX)
        name = target.name if isinstance(target, Path) else self._target.name
        self.path = self._directory / name
        self._stands_for: dict[Path, Where] = {self.path: target}

    def __enter__(self) -> "Staging":
        leftovers.remove(self._directory.parent, _PREFIX)
        link.made(self._directory)
        try:
            self._directory.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(f"{printable(str(self._given))}: {error.strerror}") from None
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
        if not self._directory.exists():
            link.gone(self._directory)
        if isinstance(error, BnfoldError):
            error.args = tuple(self.said(str(text)) for text in error.args)
        if isinstance(error, OSError):
            raise OutputError(
                f"{printable(str(self._given))}: {error.strerror or error}"
            ) from error

    def copy_of(self, source: Path) -> Path:
        """Where a changed copy of a file may go meanwhile; texts name the file instead of it."""
        folder = self._directory / f"_{self.path.name}"
        folder.mkdir()
        self._stands_for[folder / source.name] = source
        return folder / source.name

    def said(self, text: str) -> str:
        """A text that names the target where it names what was to become it, and so with copies."""
        names = {str(path): str(given) for path, given in self._stands_for.items()}
        names |= {printable(old): printable(new) for old, new in names.items()}
        for old, new in names.items():
            text = text.replace(old, new)
        return text

    def ready(self) -> None:
        """Flush what was written, and see that it may still take its place."""
        _flush(self.path)
        check_target(self._given, self._kind, force=self._force)

    def publish(self) -> None:
        """Flush what was written and move it to the target."""
        self.ready()
        if isinstance(self._given, Remote):
            with _remote_named(self._given):
                store.put(self.path, self._given)
            return
        _admit_as_before(self._target, self.path)
        if self._target.is_dir():
            self._replace_directory()
        else:
            if _IS_WINDOWS and self._target.exists():
                self._target.chmod(stat.S_IWRITE)  # it replaces nothing that is read-only
            self.path.replace(self._target)
        _flush_directory(self._target.parent)

    def _replace_directory(self) -> None:
        replaced, name = self._directory / leftovers.REPLACED, self._directory / leftovers.TARGET
        name.write_bytes(os.fsencode(self._target.name))
        try:
            self._target.rename(replaced)
            self.path.replace(self._target)
        finally:
            if not self._target.exists():
                replaced.rename(self._target)
        name.unlink()  # the old one, or what is still there of it, must not come back any more


def publish_all(stagings: Sequence[Staging]) -> None:
    """Publish several results, none of them where one is seen not to have a place."""
    for staging in stagings:
        staging.ready()
    for staging in stagings:
        staging.publish()


def write_text(target: Path, text: str | Iterable[str]) -> None:
    """Write a text, or its parts, to a file, whole or not at all, in the place of what is there.

    Devices and pipes are written to, /dev/stdout whatever it is, and links are followed.

    Raises:
        OutputError: it cannot be written there, or has the name of a model.
    """
    parts = [text] if isinstance(text, str) else text
    if is_stream(target):
        _append(target, parts)
        return
    with Staging(target, "text", force=True) as staging:
        with staging.path.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(parts)
        staging.publish()


def is_stream(target: Path) -> bool:
    """Whether it is a device or a pipe, or what this process has open, such as /dev/stdout.

    The latter may be a file, to which others write as well: it must not be replaced.
    """
    is_open = not _IS_WINDOWS and target.absolute().parts[1:2] in (("dev",), ("proc",))
    return target.exists() and (is_open or not (target.is_file() or target.is_dir()))


def _append(target: Path, parts: Iterable[str]) -> None:
    try:
        with target.open("a", encoding="utf-8", newline="") as stream:
            stream.writelines(parts)
    except OSError as error:
        raise OutputError(f"{printable(str(target))}: {error.strerror or error}") from None


def _admit_as_before(old: Path, new: Path) -> None:
    """Let the same people read and write what is new; of a directory also the files of a name."""
    pairs = [(old, new)]
    if old.is_dir():
        pairs += [(old / found.relative_to(new), found) for found in new.rglob("*")]
    for before, after in reversed(pairs):  # a directory last, which may be closed afterwards
        if before.exists() and not before.is_symlink():
            _copy_permissions(before, after)


def _copy_permissions(old: Path, new: Path) -> None:
    """Give a file the owner, group, mode and POSIX access list of another, as far as we may.

    The owner only root can give away. Where the group cannot be given, its members get no more than
    everybody. Set-user-ID and set-group-ID are not for a file of other content.
    """
    wanted, entries = old.stat(), _access_list(old)
    mode = stat.S_IMODE(wanted.st_mode) & 0o777
    _give_to(new, wanted.st_uid, -1)
    if not _give_to(new, -1, wanted.st_gid):
        entries, mode = None, mode & ~0o070 | (mode & 0o007) << 3
    if _access_list(new) is not None:
        os.removexattr(new, _ACCESS_LIST)  # inherited from the directory
    new.chmod(mode)
    if entries is not None:
        os.setxattr(new, _ACCESS_LIST, entries)


def _give_to(path: Path, user: int, group: int) -> bool:
    """Whether a file now belongs to a user or a group; -1 leaves the one or the other alone."""
    found = path.stat()
    if user in (-1, found.st_uid) and group in (-1, found.st_gid):
        return True
    try:
        os.chown(path, user, group)
    except OSError:
        return False
    return True


def _access_list(path: Path) -> bytes | None:
    """The POSIX access list of a file beyond its mode; None without one."""
    if not hasattr(os, "getxattr"):
        return None  # only Linux has it so
    try:
        return os.getxattr(path, _ACCESS_LIST)
    except OSError:
        return None


def _flush(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("r+b") as stream:  # Windows flushes only what may be written
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
