"""Published vulnerabilities of the libraries that load models, by their versions.

bnfold refuses the files that these are about before a library sees them. Whoever has such a version
loads models elsewhere, too, and should know. It is a warning and no lower bound, because Keras and
TensorFlow are the user's own, and other packages may hold them back.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

Version = tuple[int, int, int]


class VulnerableVersionWarning(UserWarning):
    """An installed library has published vulnerabilities."""


@dataclass(frozen=True)
class Advisory:
    """A vulnerability, and the versions that have it: from one to before the other of each pair."""

    name: str
    affected: tuple[tuple[Version, Version], ...]

    def fixed_in(self, version: Version) -> Version | None:
        """The first later version without it; None if this one has none of it."""
        ends = [end for begin, end in self.affected if begin <= version < end]
        return min(ends, default=None)


_ANY: Version = (0, 0, 0)
_KERAS_3: Version = (3, 0, 0)


def _before(name: str, *fixed: Version, since: Version = _KERAS_3) -> Advisory:
    """One of all versions before that in which it was fixed."""
    return Advisory(name, tuple((since, end) for end in fixed))


def _backported(name: str) -> Advisory:
    """One that was fixed in 3.12 and in 3.13."""
    return Advisory(name, ((_KERAS_3, (3, 12, 1)), ((3, 13, 0), (3, 13, 2))))


ADVISORIES = {
    "keras": (
        _before("CVE-2025-1550", (3, 9, 0)),  # names any function of any module
        _before("CVE-2025-8747", (3, 11, 0)),  # names functions of Keras that write files
        _before("CVE-2025-9906", (3, 11, 0)),  # switches safe mode off
        _before("CVE-2025-9905", (3, 11, 3)),  # .h5 knows no safe mode
        _before("CVE-2025-49655", (3, 11, 3), since=(3, 11, 0)),  # TorchModuleWrapper
        _before("CVE-2025-12058", (3, 12, 0)),  # vocabularies that are the names of files
        _before("CVE-2025-12060", (3, 12, 0)),  # archives unpacked elsewhere
        _backported("CVE-2026-0897"),  # shapes larger than their bytes
        _backported("CVE-2026-1462"),  # TFSMLayer
        _backported("CVE-2026-1669"),  # external storage of HDF5
        _before("GHSA-hqp4-2352-xf5r", (3, 14, 0)),  # archives unpacked elsewhere, again
        _before("CVE-2026-12570", (3, 15, 0)),  # shapes, again
    ),
    "tensorflow": (
        _before("CVE-2026-2492", (2, 21, 0), since=_ANY),  # plugins of HDF5 from anywhere
    ),
}
"""What is known of each library, the oldest first."""


def numbers(version: str) -> Version | None:
    """The first three numbers of a version: 2.21.0 of "2.21.0-rc1"; None for what begins otherwise.

    A version of two numbers has a third, which is 0.
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3] or 0))


def known(library: str, version: str) -> tuple[tuple[str, ...], str]:
    """The names of the vulnerabilities of a version, and a version without them; empty if none."""
    own = numbers(version)
    if own is None:
        return (), ""
    every = ((one.name, one.fixed_in(own)) for one in ADVISORIES.get(library, ()))
    found = {name: end for name, end in every if end is not None}
    return tuple(found), ".".join(map(str, max(found.values(), default=())))


def warn(library: str, version: str) -> None:
    """Warn of the known vulnerabilities of a library that is loaded now, in one line."""
    found, better = known(library, version)
    if found:
        warnings.warn(
            f"{library} {version} has published vulnerabilities ({', '.join(found)}), which"
            f" {library} {better} does not have",
            VulnerableVersionWarning,
            stacklevel=2,
        )
