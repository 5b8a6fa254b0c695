"""Where the model files are: what a user names, and what is in the folders among it."""

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bnfold.errors import UnreadableModelError
from bnfold.model.container import foreign
from bnfold.model.container.archive import CONFIG
from bnfold.model.container.guard import printable
from bnfold.model.container.model_file import SAVED_MODEL, SUFFIXES, is_model_directory

_WEIGHTS_ALONE = ".weights.h5"  # the suffix that Keras demands of model.save_weights()


def models_at(
    path: Path, exclude: Sequence[str] = (), on_error: Callable[[OSError], None] | None = None
) -> list[Path]:
    """The model at `path`, whatever its name; of a folder, those in it at any depth, sorted.

    In a folder they are files that end in .keras, .h5 or .hdf5, Keras directories, and SavedModels,
    which nobody here can read, but which Keras 2 wrote and which may be sick. Hidden ones are
    skipped, and what matches a shell pattern of `exclude` by its name or by its path from the
    folder; links to folders are not followed. `on_error` is told of folders that cannot be read.

    Raises:
        UnreadableModelError: it is a folder without a model.
    """
    if not os.path.isdir(path) or is_model_directory(path):
        return [path]
    found = sorted(_search(path, exclude, on_error), key=lambda model: model.parts)
    if found:
        return found
    if os.path.exists(path / CONFIG) or foreign.foldered(os.listdir(path)) is not None:
        return [path]  # whoever reads it as a model says what it is instead
    if exclude and any(_search(path, (), None)):
        raise UnreadableModelError(f"{printable(str(path))}: every model in it is excluded")
    raise UnreadableModelError(
        f"{printable(str(path))}: not a Keras model, and a folder without one: nothing in it ends "
        f"in {', '.join(SUFFIXES)}, or is a Keras directory"
    )


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
    names = (path.name, path.relative_to(folder).as_posix())
    excluded = any(fnmatchcase(name, pattern) for name in names for pattern in exclude)
    return not path.name.startswith(".") and not excluded
