"""Which models a command line means, and where each of them stands."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from bnfold.cli.recorder import current
from bnfold.errors import BnfoldError
from bnfold.fleet.row import Row
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where


class Place(NamedTuple):
    """A model, and where it stands below what was named."""

    path: Where
    below: Path


def places(models: Sequence[Where], exclude: Sequence[str]) -> tuple[list[Place], list[Row]]:
    """The models that are named or found in folders, and what could not be read of those."""
    from bnfold.jobs import gate

    named, roots = _globbed(models)
    found, unreadable = gate.files(named, exclude)
    failed = [Row(str(one.path), 2, str(one.error)) for one in unreadable]
    return [Place(path, _below(path, roots)) for path in found], failed


def _below(path: Where, roots: Sequence[Where]) -> Path:
    """The path of a model from the folder that was named; its name where none was."""
    for root in roots:
        if isinstance(path, Remote) and isinstance(root, Remote):
            below = path.path.removeprefix(f"{root.path}/")
            if below != path.path:
                return Path(below)
        elif isinstance(path, Path) and isinstance(root, Path) and root in path.parents:
            return path.relative_to(root)
    return Path(path.name)


def check_place(place: Place) -> None:
    """Refuse an object whose name leads out of the folder that results are written to."""
    from bnfold.errors import UnsafeModelError
    from bnfold.model.container.store import check_key

    try:
        check_key(place.below.as_posix())
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{printable(str(place.path))}: {error}") from None


def stem(model: Path) -> Path:
    """A model's path without what its name ends in, if that says what it is."""
    return model.with_suffix("") if model.suffix.lower() in _SUFFIXES else model


_SUFFIXES = (".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".savedmodel")


def counterpart(folder: Path, below: Path) -> Path:
    """What stands in a folder where a model does in its own: of the same name, whatever its kind.

    Raises:
        BnfoldError: there is nothing, or more than one thing.
    """
    if (folder / below).exists():
        return folder / below
    found = [stem(folder / below).with_name(stem(below).name + one) for one in ("", *_SUFFIXES)]
    there = [one for one in found if one.exists()]
    if len(there) == 1:
        return there[0]
    shown = printable(str(folder / below))
    if not there:
        raise BnfoldError(f"{shown}: nothing there is named like the model")
    names = ", ".join(printable(one.name) for one in there)
    raise BnfoldError(f"{shown}: several things there are named like the model: {names}")


def uncompared(folder: Path, compared: Collection[Path]) -> list[str]:
    """The models of any kind in a folder that are not among those which are compared, in order."""
    from bnfold.model.container.model_file import is_model_directory

    found: list[Path] = []
    for here, folders, files in os.walk(folder):
        path = Path(here)
        if path in compared:
            folders.clear()
        elif path != folder and ("saved_model.pb" in files or is_model_directory(path)):
            found.append(path)
            folders.clear()
        else:
            inside = (path / name for name in files)
            found += [one for one in inside if one.suffix.lower() in _SUFFIXES]
    return [str(one) for one in sorted(set(found) - {*compared})]


def _globbed(models: Sequence[Where]) -> tuple[list[Where], list[Where]]:
    """The models with patterns replaced by what they match, where a shell has not done so.

    Likewise the folders that were named: that of a pattern is what is before its first wildcard.
    """
    from bnfold.model.container.search import matching

    found: list[Where] = []
    roots: list[Where] = []
    for one in models:
        if isinstance(one, Remote):
            folder, remote = matching(one) if _is_pattern(one) else (one, [one])
            found += remote
            roots.append(folder)
            continue
        matches = _matches(one) if _is_pattern(one) else []
        found += matches or [one]
        if matches:
            roots.append(_fixed(one)[0])
        elif os.path.isdir(one):
            roots.append(one)
    return found, roots


def _is_pattern(path: Where) -> bool:
    import glob

    if isinstance(path, Remote):  # what else could be a wildcard stands before a version there
        return path.store.lists and "*" in path.url and "?" not in path.url
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def _fixed(pattern: Path) -> tuple[Path, list[str]]:
    """The folder that a pattern begins with, and what follows."""
    import glob

    magic = next(n for n, part in enumerate(pattern.parts) if glob.has_magic(part))
    return Path(*pattern.parts[:magic]), list(pattern.parts[magic:])


def _matches(pattern: Path) -> list[Path]:
    """What matches a pattern, sorted: nothing hidden, and nothing that only links lead to."""
    folder, parts = _fixed(pattern)
    parts = [one if one == "**" else re.sub(r"\*\*+", "*", one) for one in parts]
    if parts[-1] == "**":  # which is folders alone in some versions of Python
        parts.append("*")
    found = {one.relative_to(folder): one for one in folder.glob("/".join(parts))}
    is_open = any(part.startswith(".") for part in parts)
    return [
        found[below]
        for below in sorted(found, key=lambda one: one.parts)
        if is_open or not any(part.startswith(".") for part in below.parts)
    ]


def is_many(models: Sequence[Where]) -> bool:
    """Whether these are several models, or folders or patterns that may be."""
    from bnfold.model.container.model_file import is_model_directory
    from bnfold.model.container.search import is_searched

    if current() is not None:  # a worker is asked about one
        return False
    if len(models) != 1:
        return True
    only = models[0]
    if isinstance(only, Remote):
        return only.url.endswith("/") or _is_pattern(only) or is_searched(only)
    if os.path.isdir(only):
        return not is_model_directory(only)
    return _is_pattern(only)


def is_product(place: Place, out: Path) -> bool:
    """Whether something that was found is in the folder for results, which itself was searched."""
    if isinstance(place.path, Remote):
        return False
    root = os.path.abspath(place.path)[: -len(str(place.below)) - 1]
    folder = os.path.abspath(out)
    return Path(root) in Path(folder).parents and Path(folder) in Path(root, place.below).parents
