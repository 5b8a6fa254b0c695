"""Where the model files are: what a user names, and what is in the folders among it."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from bnfold.errors import UnreadableModelError
from bnfold.model.container import foreign, store
from bnfold.model.container.archive import CONFIG, METADATA, WEIGHTS
from bnfold.model.container.model_file import SAVED_MODEL, SUFFIXES, is_model_directory
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where

_WEIGHTS_ALONE = ".weights.h5"  # the suffix that Keras demands of model.save_weights()


def models_at(
    path: Where, exclude: Sequence[str] = (), on_error: Callable[[OSError], None] | None = None
) -> list[Path] | list[Remote]:
    """The model at `path`, whatever its name; of a folder, those in it at any depth, sorted.

    In a folder they are files that end in .keras, .h5 or .hdf5, Keras directories, and SavedModels,
    which nobody here can read, but which Keras 2 wrote and which may be sick. Hidden ones are
    skipped, and what matches a shell pattern of `exclude` by its name or by its path from the
    folder; links to folders are not followed. `on_error` is told of folders that cannot be read.
    What is below a URL in a store is searched in the same way.

    Raises:
        UnreadableModelError: it is a folder without a model, or a URL where nothing is.
    """
    if isinstance(path, Remote):
        return _models_below(path, exclude)
    if not os.path.isdir(path) or is_model_directory(path):
        return [path]
    found = sorted(_search(path, exclude, on_error), key=lambda model: model.parts)
    if found:
        return found
    if os.path.exists(path / CONFIG) or foreign.foldered(os.listdir(path)) is not None:
        return [path]  # whoever reads it as a model says what it is instead
    if exclude and any(_search(path, (), None)):
        raise UnreadableModelError(f"{printable(str(path))}: every model in it is excluded")
    raise UnreadableModelError(f"{printable(str(path))}: {_WITHOUT}")


_WITHOUT = (
    "not a Keras model, and a folder without one: nothing in it ends in "
    f"{', '.join(SUFFIXES)}, or is a Keras directory"
)


def _models_below(remote: Remote, exclude: Sequence[str]) -> list[Remote]:
    """The same for what is in a store, where there are names only."""
    name = printable(str(remote))
    try:
        listed = store.listed(remote)
    except UnreadableModelError as error:
        raise UnreadableModelError(f"{name}: {error}") from None
    if listed is None:
        return [remote]
    folders: dict[PurePosixPath, set[str]] = {}
    for one in map(PurePosixPath, listed):
        folders.setdefault(one.parent, set()).add(one.name)
    here = PurePosixPath()
    if _is_model_directory(folders.get(here, set())):
        return [remote]
    inside = {
        folder
        for folder, names in folders.items()
        if _is_model_directory(names) or not names.isdisjoint(SAVED_MODEL)
    }
    inside |= {
        path
        for path in map(PurePosixPath, listed)
        if _has_model_name(path.name) and not any(_is_in_model(path, folders))
    }
    found = [
        path
        for path in sorted(inside, key=lambda one: one.parts)
        if all(_is_wanted_in(one, exclude) for one in (path, *path.parents) if one != here)
    ]
    if found:
        base = remote.url.rstrip("/")
        return [remote if one == here else Remote(f"{base}/{one}") for one in found]
    if exclude and inside:
        raise UnreadableModelError(f"{name}: every model in it is excluded")
    raise UnreadableModelError(f"{name}: {_WITHOUT}")


def is_searched(remote: Remote) -> bool:
    """Whether there is a folder of models at a URL; not if nothing is, or its store is silent."""
    try:
        listed = store.listed(remote)
    except UnreadableModelError:  # whoever reads it as a model says why
        return False
    return listed is not None and not _is_model_directory({*listed})


def matching(pattern: Remote) -> tuple[Remote, list[Remote]]:
    """What a URL with wildcards (`*`, and `**` for folders at any depth) means, sorted.

    Also the folder that it begins with. What matches nothing, or is there by this very name, is
    returned as it is.
    """
    parts = pattern.url.split("/")
    first = next(number for number, part in enumerate(parts) if "*" in part)
    folder, wanted = Remote("/".join(parts[:first])), parts[first:]
    wanted += ["*"] * (wanted[-1] == "**")
    try:
        listed = store.listed(folder) or []
    except UnreadableModelError:  # whoever reads the pattern as a model says why
        listed = []
    every = {one for name in map(PurePosixPath, listed) for one in (name, *name.parents)}
    found = sorted(one.parts for one in every if _is_match(one.parts, wanted))
    if not found or "/".join(wanted) in listed:
        return folder, [pattern]
    return folder, [Remote("/".join((folder.url, *one))) for one in found]


def _is_match(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern; what is hidden matches by its name."""
    if not wanted or not parts:
        return not wanted and not parts
    is_hidden = parts[0].startswith(".")
    if wanted[0] == "**":
        return _is_match(parts, wanted[1:]) or (not is_hidden and _is_match(parts[1:], wanted))
    is_told = not is_hidden or wanted[0].startswith(".")
    return is_told and fnmatchcase(parts[0], wanted[0]) and _is_match(parts[1:], wanted[1:])


def _is_model_directory(names: Collection[str]) -> bool:
    """`is_model_directory`, by the names in it."""
    return CONFIG in names and (METADATA in names or WEIGHTS in names)


def _is_in_model(path: PurePosixPath, folders: Mapping[PurePosixPath, set[str]]) -> Iterator[bool]:
    return (_is_model_directory(folders.get(folder, ())) for folder in path.parents)


def _search(
    folder: Path, exclude: Sequence[str], on_error: Callable[[OSError], None] | None
) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, onerror=on_error):
        here = Path(where)
        inside = [here / name for name in folders if _is_wanted(here / name, folder, exclude)]
        models = {path for path in inside if is_model_directory(path)}
        folders[:] = [path.name for path in inside if path not in models]
        yield from (path for path in models if not path.is_symlink())
        if any(name in files for name in SAVED_MODEL):
            yield here
        for path in (here / name for name in files):
            if _has_model_name(path.name) and _is_wanted(path, folder, exclude):
                yield path


def _has_model_name(name: str) -> bool:
    name = name.lower()
    return name.endswith(SUFFIXES) and not name.endswith(_WEIGHTS_ALONE)


def _is_wanted(path: Path, folder: Path, exclude: Sequence[str]) -> bool:
    return _is_wanted_in(path.relative_to(folder), exclude)


def _is_wanted_in(path: PurePath, exclude: Sequence[str]) -> bool:
    """Whether a path, from the folder that is searched, is neither hidden nor excluded."""
    names = (path.name, path.as_posix())
    excluded = any(fnmatchcase(name, pattern) for name in names for pattern in exclude)
    return not path.name.startswith(".") and not excluded
