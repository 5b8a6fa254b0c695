"""Which version of a library is installed, found out without importing it."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path

_VERSION = re.compile(r"^__version__ = [\"']([^\"']+)[\"']", re.MULTILINE)
_PLACES = ("src/version.py", "version.py", "__init__.py")


def installed_version(module: str) -> str | None:
    """The version of the module that an import would find; None where there is none.

    Asked is the module itself, then the distribution of its name: Keras can also be the source of a
    release to come, or a nightly build.
    """
    loaded = getattr(sys.modules.get(module), "__version__", None)
    return loaded if isinstance(loaded, str) else _found(module)


@cache
def _found(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # what is there is broken, or no module
        return None
    if spec is None or spec.origin is None:
        return None
    for place in _PLACES:
        try:
            text = (Path(spec.origin).parent / place).read_text("utf-8")
        except (OSError, ValueError):
            continue
        if found := _VERSION.search(text):
            return found[1]
    from importlib import metadata  # noqa: PLC0415 - slow to import, and hardly ever needed

    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return None
