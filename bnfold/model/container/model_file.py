"""Opening a model file of any kind, by what it holds and never by its name alone."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from numpy.typing import NDArray

from bnfold.errors import BnfoldError, OutputError, UnreadableModelError, UnsafeModelError
from bnfold.model.container import foreign, guard, store, unchanging
from bnfold.model.container.archive import CONFIG, METADATA, WEIGHTS, KerasArchive
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where, located
from bnfold.model.container.store import RemoteFile
from bnfold.model.graph import Graph, Json, LayerPath
from bnfold.model.optimizer import Optimizer
from bnfold.supervision import link

Kind = Literal["keras", "keras-directory", "h5"]
Result = TypeVar("Result")
Place = TypeVar("Place", Path, Where)

SUFFIXES = (".keras", ".h5", ".hdf5")
"""How the names of model files end, where they are not directories."""

SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_GIT_LFS = b"version https://git-lfs.github.com/spec/v1"


class _Format(Protocol):
    graph: Graph
    keras_version: str | None
    metadata: Json
    dropped: tuple[str, ...]

    @property
    def optimizers(self) -> Mapping[LayerPath, Optimizer]: ...

    def write(self, graph: Graph, target: Path, record: Callable[[], Json]) -> None: ...

    def rewrite(self, changes: Mapping[str, NDArray[Any]], target: Path, record: Json) -> None: ...

    def check_weights(self, most: int | None) -> str | None: ...

    def sha256(self) -> str: ...


@dataclass(frozen=True, eq=False)
class ModelFile:
    """An open model file.

    Attributes:
        given: where it is, as it was named.
        file: what is read; of a model in a store, a copy or what reads it there.
        kind: "keras" (a ZIP), "keras-directory" (`zipped=False`) or "h5" (legacy HDF5).
        format: the container, which reads and writes.
        watch: sees whether the file changes.
        close: closes it; nothing can be read from it any more.
        note: what of it is not looked at, because it is in a store, in a sentence.
    """

    given: Where
    file: Path | RemoteFile
    kind: Kind
    format: _Format = field(repr=False)
    watch: unchanging.Watch = field(repr=False)
    close: Callable[[], None] = field(repr=False)
    note: str | None = None

    @property
    def path(self) -> Path:
        """The file that is read. Raises TypeError for a model that is read where it is."""
        if isinstance(self.file, Path):
            return self.file
        raise TypeError(f"{self.given} is no file on this machine")

    def said(self, text: str) -> str:
        """A text that names the URL where it names a copy of what is there."""
        if isinstance(self.given, Remote) and isinstance(self.file, Path):
            return store.renamed(text, self.file, self.given)
        return text

    @property
    def graph(self) -> Graph:
        """The model in the file."""
        return self.format.graph

    @property
    def keras_version(self) -> str | None:
        """The version of Keras that wrote the file, where it tells."""
        return self.format.keras_version

    @property
    def metadata(self) -> Json:
        """What the file says of itself, the record of an earlier fold among it."""
        return self.format.metadata

    @property
    def dropped(self) -> tuple[str, ...]:
        """What belongs to training and is not written again: compile_config, optimizer state."""
        return self.format.dropped

    @cached_property
    def optimizers(self) -> Mapping[LayerPath, Optimizer]:
        """The optimizer of each compiled model, as far as the file tells: the outermost's at ().

        A model that was compiled on its own before it was nested has its own, at its path.

        Raises:
            UnreadableModelError, UnsafeModelError: the optimizer's part of the file is damaged, or
                asks for what a model file must not ask for.
        """
        with self.named():
            return self.format.optimizers

    def write(self, graph: Graph, target: Path, record: Json | Callable[[], Json]) -> None:
        """Write `graph` to `target`, in the same kind of file, with `record` in its metadata.

        A function is asked for it as late as can be.

        Raises:
            OutputError: the target is inside the model, which is a directory.
        """
        self._refuse_inside(target)
        with self.named():
            self.format.write(graph, target, record if callable(record) else lambda: record)

    def rewrite(self, changes: Mapping[str, NDArray[Any]], target: Path, record: Json) -> None:
        """Write a copy in which some variables, by their `source`, have other numbers.

        Their shapes and dtypes stay; so does all else in every part of the model, what belongs to
        training included, but for `record`, which goes into its metadata.

        Raises:
            OutputError: the target is inside the model, which is a directory.
        """
        self._refuse_inside(target)
        with self.named():
            self.format.rewrite(changes, target, record)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let what is wrong with the file, and is seen when its weights are read, name it once."""
        try:
            yield
        except (UnreadableModelError, UnsafeModelError) as error:
            self.watch.check()  # if it changed, its parts do not fit together
            prefix = f"{printable(str(self.given))}: "
            raise type(error)(prefix + str(error).removeprefix(prefix)) from None

    def _refuse_inside(self, target: Path) -> None:
        if target.resolve().is_relative_to(self.path.resolve()):
            raise OutputError(f"{printable(target.name)}: is inside the model it is made of")

    def sha256(self) -> str:
        """The SHA-256 of the file; of a directory, that of what `sha256sum` says of its files.

        Raises:
            UnreadableModelError: its weights do not have the checksum that an archive has of them.
        """
        with self._checked():
            return self.format.sha256()

    def check_weights(self, most: int | None = None) -> str | None:
        """See that the weights have the checksum that an archive has of them.

        Of other members it is seen when they are read. The other kinds of file have none. With
        `most`, weights of more bytes are left out; the sentence that is returned says so.

        Raises:
            UnreadableModelError: they do not.
        """
        with self._checked():
            return self.format.check_weights(most)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Let what is wrong with the file name it, also where it is gone or cannot be read."""
        try:
            with self.named():
                yield
        except OSError as error:
            guard.raise_scarcity(error)
            self.watch.check()
            name = printable(str(self.given))
            raise UnreadableModelError(f"{name}: {error.strerror or error}") from error

    def release(self) -> None:
        """See that the file is what it was when it was opened, and close it.

        Both come before a result is published, which may take the file's place: on Windows no file
        can be replaced that is open.

        Raises:
            UnreadableModelError: it changed while it was read.
        """
        self.watch.check()
        self.close()


@contextmanager
def held(paths: Iterable[str | Path], sha256: Sequence[str] = ()) -> Iterator[None]:
    """See that model files, which somebody else reads, have these digests, and do not change.

    Raises:
        UnreadableModelError: one is missing, has another SHA-256, or changed meanwhile.
    """
    with unchanged(paths, sha256, lambda one: _held(one, sha256)[1]):
        yield


@contextmanager
def unchanged(
    paths: Iterable[str | Path],
    sha256: Sequence[str] = (),
    open_: Callable[[Path], unchanging.Watch] | None = None,
) -> Iterator[None]:
    """The same for files of any kind.

    Raises:
        UnreadableModelError: as `held`.
    """
    begin = open_ or (lambda one: unchanging.Watch(one, sha256))
    watches = [_named(Path(path), begin) for path in paths]
    yield
    for watch in watches:
        watch.check()


def _held(
    path: Path | RemoteFile, sha256: Sequence[str], shown: str = ""
) -> tuple[Kind, unchanging.Watch]:
    """The kind of a file that has one of these digests, and what sees whether it changes."""
    return sniff(path), unchanging.Watch(path, sha256, shown)


def _named(path: Place, action: Callable[[Place], Result]) -> Result:
    """Do something with a file, whose errors name it."""
    try:
        return action(path)
    except BnfoldError as error:
        raise type(error)(f"{printable(str(path))}: {error}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableModelError(f"{printable(str(path))}: {reason}") from None


@contextmanager
def open_model(
    path: str | Where, sha256: Sequence[str] = (), *, ranged: bool = False
) -> Iterator[ModelFile]:
    """Open a Keras model file of any kind for reading; it must have one of these digests, if any.

    One in a store is copied to a file first. With `ranged` a large one, which needs no digest, is
    read where it is: then it has no `path`, and what is large in it `is_far`.

    Raises:
        UnreadableModelError: it is missing, truncated, no Keras model, or has another SHA-256; at
            the end, it changed while it was read.
        UnsafeModelError: it asks for what a model file must not ask for.
    """
    given = located(path)
    shown = printable(str(given))
    with ExitStack() as outside, ExitStack() as resources:

        def opened(given: Where) -> ModelFile:
            if isinstance(given, Remote):
                found = store.at_hand(given, outside, ranged=ranged and not sha256)
            else:
                found = store.AtHand(given)
            file = found.file
            link.reading(file, shown)
            try:
                kind, watch = _held(file, sha256, str(given))
                format_ = _reader(kind)(file, resources)
            except UnreadableModelError:
                if isinstance(file, RemoteFile):
                    file.look()  # if it changed, its parts do not fit together
                raise
            return ModelFile(given, file, kind, format_, watch, resources.close, found.note)

        model = _named(given, opened)
        yield model
        model.watch.finish()


def _reader(kind: Kind) -> Callable[[Path | RemoteFile, ExitStack], _Format]:
    """What reads a kind of file."""
    if kind != "h5":
        return KerasArchive
    from bnfold.model.container.legacy import LegacyHdf5  # noqa: PLC0415 - most files are archives

    return LegacyHdf5


def sniff(path: Path | RemoteFile) -> Kind:
    """The kind of a model file by its first bytes.

    Raises:
        UnreadableModelError: it is missing or of no kind that Keras writes.
    """
    if isinstance(path, Path) and path.is_dir():
        return _sniff_directory(path)
    if not path.exists():
        raise UnreadableModelError("no such file")
    if not path.is_file():
        raise UnreadableModelError("not a regular file")
    with path.open("rb") as stream:
        start = stream.read(foreign.HEAD)
    if start.startswith(_ZIP_MAGIC):
        _refuse_both(path.suffix.lower() != ".keras" and _has_hdf5(path))
        return "keras"
    if start.startswith(_HDF5_MAGIC):
        _refuse_both(_is_archive(path))
        return "h5"
    if not start:
        raise UnreadableModelError("the file is empty")
    if start.startswith(_GIT_LFS):
        raise UnreadableModelError("a pointer of Git LFS, not the model: run 'git lfs pull'")
    what = foreign.named(path.name, start)
    raise UnreadableModelError(what or "neither a .keras archive nor an HDF5 file")


def _refuse_both(is_both: bool) -> None:
    if is_both:
        raise UnreadableModelError(
            "a ZIP archive and an HDF5 file at once: which model it is depends on its name"
        )


def _has_hdf5(path: Path | RemoteFile) -> bool:
    """Whether an HDF5 file begins somewhere in it where the library looks for one."""
    with path.open("rb") as stream:
        at = 512
        while at < path.stat().st_size:
            stream.seek(at)
            if stream.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
                return True
            at *= 2
    return False


def _is_archive(path: Path | RemoteFile) -> bool:
    """Whether a file ends as a `.keras` archive does."""
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                return False
            with zipfile.ZipFile(stream) as archive:
                return CONFIG in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _sniff_directory(path: Path) -> Kind:
    if is_model_directory(path):
        return "keras-directory"
    what = foreign.foldered(os.listdir(path))
    if what is not None:
        raise UnreadableModelError(what)
    if (path / CONFIG).is_file():
        return "keras-directory"
    raise UnreadableModelError(f"a directory without {CONFIG}; not a Keras model")


def is_model_directory(path: Path) -> bool:
    """Whether a directory is what `model.save(path, zipped=False)` writes, perhaps a damaged one.

    Many a folder has a config.json, so that alone does not make a model of it.
    """
    parts = (os.path.isfile(path / name) for name in (METADATA, WEIGHTS))
    return os.path.isfile(path / CONFIG) and any(parts)


def is_saved_model(path: Path) -> bool:
    """Whether a directory is a SavedModel of TensorFlow's, perhaps a damaged one."""
    return any(os.path.isfile(path / name) for name in SAVED_MODEL)
