"""What a result depends on beside the model and the command line, for `--resume` to know."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from bnfold.cli.options import settings_file
from bnfold.fleet.row import digest

_VERSIONED = ("keras", "tf_keras")
"""The libraries whose version decides already what can be folded; models that run need others."""
_ELSEWHERE = ("remote", "dask")
"""Extras of libraries by which no result differs."""


def conditions(
    ctx: click.Context, skip: Iterable[str], more: Sequence[Path], *, runs_models: bool
) -> str:
    """A digest of settings, of what files hold that the options name, and of versions.

    Options in `skip` are about the run as a whole. `more` are other files that are read.
    """
    given = {name: value for name, value in ctx.params.items() if name not in skip}
    files = [value for value in given.values() if isinstance(value, Path)]
    found: list[str] = []
    if "no_config" in given:
        settings = settings_file(given["config"], no_config=given["no_config"])
        wanted = settings.prepare if ctx.info_name == "prepare" else {}
        files += [value for value in wanted.values() if isinstance(value, Path)]
        files += [] if settings.baseline is None else [settings.baseline]
        found += [repr(replace(settings, prepare=wanted)), _seen_from(settings.root)]
    files += more
    for path in files:
        found += [str(path), content(path)]
    baselines = [given.get("baseline"), *more]  # in which models stand as seen from there
    found += [_seen_from(one.parent) for one in baselines if one is not None]
    for name in given.get("imports", ()):
        found += [name, *map(content, _sources(name))]
    found += _versions(runs_models=runs_models)
    return digest(*found)


def _seen_from(folder: Path) -> str:
    """Where the models are, as a file in this folder names them."""
    try:
        return Path(os.path.relpath(os.curdir, folder)).as_posix()
    except ValueError:  # another drive
        return os.getcwd()


def content(path: Path) -> str:
    """A digest of what a file holds; a text of its own where it cannot be read."""
    from bnfold.model.container.unchanging import sha256

    try:
        return sha256(path) if path.is_file() else "no file"
    except OSError as error:
        return f"unreadable: {error.errno}"


def _sources(module: str) -> Iterator[Path]:
    """The files of Python code that a module consists of, found without importing it."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    folders = list(spec.submodule_search_locations or ())
    if not folders and spec.origin is not None:
        yield Path(spec.origin)
    for folder in folders:
        yield from sorted(Path(folder).rglob("*.py"))


def _versions(*, runs_models: bool) -> list[str]:
    from bnfold.running.installed import installed_version
    from bnfold.running.requirements import LIBRARIES

    running = [name for name, one in LIBRARIES.items() if one.extra not in _ELSEWHERE]
    names = running if runs_models else _VERSIONED
    return [f"{name} {installed_version(name)}" for name in names]
