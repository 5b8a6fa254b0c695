"""Where a module would be imported from, and of which version it is, found without importing it."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

_VERSION = re.compile(r"^__version__ = [\"']([^\"']+)[\"']", re.MULTILINE)
_PLACES = ("src/version.py", "version.py", "__init__.py")


def origin(module: str) -> Path | None:
    """The file that an import of a module would begin with; None where there is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # what is there is broken, or no module
        return None
    # A folder without __init__.py is what an uninstalled package may leave.
    return None if found is None or found.origin is None else Path(found.origin)


def loaded_version(module: str) -> str | None:
    """The version that a module says it is, where it is imported already."""
    found = getattr(sys.modules.get(module), "__version__", None)
    return found if isinstance(found, str) else None


def installed_version(module: str) -> str | None:
    """The version of the module that an import would find; None where there is none.

    Asked is the module itself, then the distribution of its name: Keras can also be the source of a
    release to come, or a nightly build.
    """
    return loaded_version(module) or _written_version(module)


@cache
def _written_version(module: str) -> str | None:
    place = origin(module)
    if place is None:
        return None
    for name in _PLACES:
        try:
            text = (place.parent / name).read_text("utf-8")
        except (OSError, ValueError):
            continue
        if found := _VERSION.search(text):
            return found[1]
    from importlib import metadata  # noqa: PLC0415 - slow to import, and hardly ever needed

    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return None
