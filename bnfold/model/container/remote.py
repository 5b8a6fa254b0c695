"""Models that are named by a URL: how one is told from a path, and shown without its secrets.

A URL is only what a user types, or passes to a function: nothing that stands in a file is ever
taken for one. What is not in `STORES` is refused, chains such as `zip::https` among it.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bnfold.errors import UnreadableModelError
from bnfold.model.container.printing import printable

_SCHEME = r"([a-z][a-z0-9+.:-]+)://"
_IN_TEXT = r"[a-z][a-z0-9+.-]+://[^\s'\"<>]+"
_SHORT = 4
"""A value of so many characters, such as `true`, is hidden with its URL alone."""
_HERE = r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?"
_LEFT_OUT = "?..."


class PlainHttpWarning(UserWarning):
    """A model comes over a connection on which others can change it."""


class Store(NamedTuple):
    """What is known of a kind of store.

    Attributes:
        package: what must be installed beside fsspec; empty where nothing is.
        lists: whether it can say what is in a folder.
        writes: whether an object can be written there as a whole or not at all.
    """

    package: str = ""
    lists: bool = True
    writes: bool = True


STORES = {
    "s3": Store("s3fs"),
    "gs": Store("gcsfs"),
    "az": Store("adlfs"),
    "abfs": Store("adlfs"),
    "hf": Store("huggingface_hub", writes=False),
    "https": Store("aiohttp", lists=False, writes=False),
    "http": Store("aiohttp", lists=False, writes=False),
    "memory": Store(),
}
"""The stores that are read from, by the protocol of their URLs."""


@dataclass(frozen=True, repr=False)
class Remote:
    """A model, or a folder of models, in a store.

    As a text it is its URL without what may be secret: a user's name and password, and all values
    after a question mark.
    """

    url: str = field(repr=False)

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def to_dict(self) -> str:
        """Its form in JSON, which is what is shown."""
        return str(self)

    def hidden_in(self, text: str) -> str:
        """A text of a library's without what may be secret in this or any other URL."""
        rest = self.url.partition("://")[2]
        before, _, query = rest.partition("?")
        user, _, _ = before.partition("/")[0].rpartition("@")
        parts = {query, user, *re.split("[&=]", query), *user.split(":")}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) > _SHORT:
                text = text.replace(part, "...")
        return re.sub(_IN_TEXT, lambda url: shown(url[0]), text, flags=re.IGNORECASE)

    @property
    def protocol(self) -> str:
        """The part of the URL before `://`."""
        return self.url.partition("://")[0].lower()

    @property
    def is_web(self) -> bool:
        """Whether a web server has it, of which no more is known than that it speaks HTTP."""
        return self.protocol in ("http", "https")

    @property
    def store(self) -> Store:
        """The kind of store that it is in."""
        return STORES[self.protocol]

    @property
    def is_open(self) -> bool:
        """Whether others on the way can change what comes from there, as over http."""
        host = self.path.partition("://")[2].partition("/")[0]
        return self.protocol == "http" and not re.fullmatch(_HERE, host)

    @property
    def path(self) -> str:
        """The URL as it is shown, without question mark and slashes at its end."""
        return str(self).removesuffix(_LEFT_OUT).rstrip("/")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """How its name ends, from the last full stop on."""
        return Path(self.name).suffix

    @property
    def parent(self) -> str:
        """The URL, as it is shown, of the folder that it is in."""
        return self.path.rpartition("/")[0]


Where: TypeAlias = Path | Remote
"""Where a model is: a path on this machine, or a URL."""


def located(given: str | os.PathLike[str] | Remote) -> Where:
    """Where a model is, as a user says it.

    Raises:
        UnreadableModelError: it is a URL of a protocol that is not read.
    """
    if isinstance(given, Remote):
        return given
    text = os.fspath(given)
    found = _scheme(text) if isinstance(given, str) else None
    if found is None:
        return Path(text)
    protocol = found[1].lower()
    if protocol in STORES:
        return Remote(protocol + text[len(protocol) :])

    name = printable(shown(text))
    if protocol == "file":
        raise UnreadableModelError(f"{name}: name a file on this machine by its path")
    chained = "; protocols cannot be chained" if "::" in protocol else ""
    raise UnreadableModelError(
        f"{name}: {printable(protocol)}:// is not read; what is: {', '.join(STORES)}{chained}"
    )


def is_url(text: str) -> bool:
    """Whether a text begins as a URL does."""
    return _scheme(text) is not None


def _scheme(text: str) -> re.Match[str] | None:
    """How a URL begins. A pattern is compiled for what looks like one, and hardly any path does."""
    return re.match(_SCHEME, text, re.IGNORECASE) if "://" in text else None


def shown(url: str) -> str:
    """A URL without what may be secret in it."""
    protocol, _, rest = url.partition("://")
    rest, question, _ = rest.partition("?")
    is_web = protocol.lower() in ("http", "https")
    rest = rest.partition("#")[0] if is_web else rest
    host, slash, path = rest.partition("/")
    user, at, bare = host.rpartition("@")
    if at and (is_web or ":" in user):  # of Azure's, what stands there is a container
        host = bare
    return f"{protocol}://{host}{slash}{path}{_LEFT_OUT if question else ''}"
