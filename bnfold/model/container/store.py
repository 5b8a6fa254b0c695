"""Objects in stores, through fsspec: read range by range where they are, or copied to a file.

What a reader asks for is fetched in blocks, which are kept. Blocks that are known to be needed are
fetched side by side. Whoever needs a model as a file, as Keras does, gets a copy in a temporary
folder. In both cases the object must be the same before and after: what the store says of it (size,
ETag, time of change) is compared. Credentials are those of the user's environment, as fsspec and
the library of each store find them.
"""

import io
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from bnfold.errors import BnfoldError, UnreadableModelError, UnsafeModelError
from bnfold.model.container import foreign, guard
from bnfold.model.container.remote import PlainHttpWarning, Remote, Where
from bnfold.supervision import link

BLOCK = 16 << 10
"""How many bytes are fetched at least."""
CONNECTIONS = 8
"""How many ranges are fetched at the same time, at most."""
_NEAR = 1
"""So many blocks between two that are needed are fetched too, to have one request for all."""
_LONGEST = 64
"""How many blocks are fetched with one request, at most."""
AT_ONCE = 2 << 20
"""An object of at most so many bytes is fetched as a whole, which is one request."""
FAR = BLOCK
"""Of a model that is read where it is, variables of more bytes are not measured; see `Weight`."""

_KEPT_BLOCKS = 4096
_PIECE = 8 << 20
_MOST_UNTOLD = 4 << 30
"""The bytes of an object whose store does not tell its size."""
_CONNECT_SECONDS, _READ_SECONDS = 20, 60
_PAUSES = (1, 3)
"""The seconds after which a store that is busy is asked again."""
_VOLATILE = {"url", "name", "Key", "last_accessed_on"}
"""What may differ without a change: a redirection may lead to another address each time."""
_MOST_COUNTED = 256 << 20
"""Whoever serves an object says how large it is: for what reading may cost, no more than this."""
_DIRECTORY = {"config.json", "model.weights.h5"}
_IN_EXTRA = {"", "s3fs", "aiohttp"}
_PLAIN_NAME = r"[\w.-]{1,100}"
"""As all patterns here, compiled where it is used: models on this machine need none of them."""
Result = TypeVar("Result")


class Size(NamedTuple):
    """How large something is, as `os.stat` says it of files."""

    st_size: int


class RemoteFile:
    """An object that is read where it is; it has of `Path` what readers of models ask for."""

    parents = ()

    def __init__(self, remote: Remote, stores: Any, info: Mapping[str, Any]) -> None:
        """`stores` is the file system of fsspec's that it is in, `info` what that says of it."""
        self._remote, self._stores, self.stamp = remote, stores, _stamp(info)
        self._size: int = info["size"]
        self._idle: list[Any] = []  # streams of fsspec's that nobody reads from now
        self._is_whole = False  # because parts of it cannot be fetched
        self._blocks: dict[int, bytes] = {}
        self._lock = Lock()

    def __str__(self) -> str:
        return str(self._remote)

    @property
    def name(self) -> str:
        """The last part of its URL's path."""
        return self._remote.name

    @property
    def suffix(self) -> str:
        """How its name ends."""
        return self._remote.suffix

    def is_dir(self) -> bool:
        """Whether it is a folder, which it is not."""
        return False

    def exists(self) -> bool:
        """Whether it is there; it was when it was opened."""
        return True

    def is_file(self) -> bool:
        """Whether it is a file."""
        return True

    def stat(self) -> Size:
        """How large it counts for what reading it may cost; that is for its store to say."""
        return Size(min(self._size, _MOST_COUNTED))

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._size

    def open(self, mode: str = "rb", buffering: int = 0) -> "RemoteStream":
        """Open it for reading, in binary."""
        return RemoteStream(self)

    def again(self) -> "RemoteFile":
        """The same object as it is now, of which nothing has been fetched."""
        return RemoteFile(self._remote, self._stores, _info(self._remote, self._stores))

    @property
    def can_be_watched(self) -> bool:
        """Whether its store tells more than its size, so that a change can be seen."""
        told = {key for key, _ in self.stamp}
        return self._remote.store.lists or bool(told & {"ETag", "Last-Modified", "Content-MD5"})

    def look(self) -> None:
        """See that it is what it was when it was opened. Raises UnreadableModelError."""
        if self.again().stamp != self.stamp:
            raise UnreadableModelError(_ANSWERS[412])

    def gives_ranges(self) -> bool:
        """Whether parts of it can be fetched; tried with the last one, where archives begin."""
        try:
            last = self._size - 1
            return len(self._block(last // BLOCK)) == last % BLOCK + 1
        except UnreadableModelError:
            if self._is_whole:
                return False
            raise

    def read_into(self, view: memoryview, position: int) -> None:
        """Fill a view with the bytes from a position on; it must end inside the object."""
        end = position + len(view)
        if len(view) > BLOCK * _LONGEST:  # a kernel: nobody will ask for it again soon
            view[:] = self._fetch(position, end)
            return
        for number in range(position // BLOCK, -(-end // BLOCK)):
            start = number * BLOCK
            block = self._block(number, until=end)
            first, last = max(position, start), min(end, start + len(block))
            view[first - position : last - position] = block[first - start : last - start]

    def kept(self, start: int, end: int) -> bytes | None:
        """The bytes of a range that have been fetched and are kept; None if any is missing."""
        first = start // BLOCK
        blocks = [self._blocks.get(one) for one in range(first, -(-end // BLOCK))]
        if None in blocks:
            return None
        whole = b"".join(filter(None, blocks))
        return whole[start - first * BLOCK : end - first * BLOCK]

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Fetch the blocks in which ranges are, from a byte to another, and that are not there.

        Several are fetched at a time, and those that are near each other with one request. The
        number of blocks is returned.

        Raises:
            UnreadableModelError: one cannot be fetched.
        """
        needed = {
            number
            for start, end in ranges
            for number in range(start // BLOCK, -(-min(end, self._size) // BLOCK))
        }
        runs = _runs(sorted(needed - self._blocks.keys())[:_KEPT_BLOCKS])
        if len(runs) == 1:
            self._keep(*runs[0])
        elif runs:
            from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - see `_stores`

            pool = ThreadPoolExecutor(min(CONNECTIONS, len(runs)))
            try:
                for _ in pool.map(lambda run: self._keep(*run), runs):
                    pass
            finally:  # whoever is interrupted does not wait for a server that hangs
                pool.shutdown(wait=False, cancel_futures=True)
        return sum(behind - first for first, behind in runs)

    def _block(self, number: int, until: int = 0) -> bytes:
        """A block; with it those after it are fetched that go up to `until` and are not there."""
        found = self._blocks.get(number)
        if found is not None:
            return found
        behind = number + 1
        while behind * BLOCK < until and behind not in self._blocks:
            behind += 1
        return self._keep(number, behind)[:BLOCK]

    def _keep(self, first: int, behind: int) -> bytes:
        """Fetch the blocks from one number to another, and keep them."""
        content = self._fetch(first * BLOCK, min(behind * BLOCK, self._size))
        with self._lock:
            for number in range(first, behind):
                at = (number - first) * BLOCK
                self._blocks[number] = content[at : at + BLOCK]
            while len(self._blocks) > _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return content

    def _fetch(self, start: int, end: int) -> bytes:
        content = _asked(self._remote, lambda: self._read(start, end))
        if len(content) == self._size > end - start:
            self._is_whole = True
            raise UnreadableModelError(_WHOLE)
        if len(content) != end - start:
            raise UnreadableModelError(
                f"{len(content)} bytes came where {end - start} were asked for: it changed, or the"
                " store cut them off"
            )
        return content

    def _read(self, start: int, end: int) -> bytes:
        with self._lock:
            stream = self._idle.pop() if self._idle else None
        if stream is None:
            # What a web server says of its size is known; the other stores are asked for more.
            size = {"size": self._size} if self._remote.is_web else {}
            stream = self._stores.open(
                self._remote.url, "rb", block_size=BLOCK, cache_type="none", **size
            )
        try:
            stream.seek(start)
            content: bytes = stream.read(end - start)
        except ValueError:  # fsspec's, where a server answers with the whole
            self._is_whole = True
            raise UnreadableModelError(_WHOLE) from None
        finally:
            with self._lock:
                self._idle.append(stream)
        return content

    def close(self) -> None:
        """End what reads from it."""
        while self._idle:
            self._idle.pop().close()


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Blocks as runs from one number to another, each with what is between those that are near."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        first, behind = found[-1] if found else (number, number)
        if found and number - behind <= _NEAR and number - first < _LONGEST:
            found[-1] = first, number + 1
        else:
            found.append((number, number + 1))
    return found


_WHOLE = "the server gives no parts of it any more"


class RemoteStream(io.RawIOBase):
    """A place in an object, to read on from; `file` is the object."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self._position, self._size = file, 0, file.size

    def readable(self) -> bool:
        """Whether it can be read, which it can."""
        return True

    def seekable(self) -> bool:
        """Whether one can go on elsewhere, which one can."""
        return True

    def tell(self) -> int:
        """The place."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place, which is returned."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the first byte")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the place on, as far as there is something; the bytes of that."""
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        if view:
            self.file.read_into(view, self._position)
        self._position += len(view)
        return len(view)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, and no more than an honest archive's listing has."""
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        guard.check_listing(wanted)
        content = bytearray(wanted)
        return bytes(content[: self.readinto(content)])


def archive_file(file: Path | RemoteFile) -> Any:
    """A file to read the listing of an archive from, which is never longer than an honest one."""
    return guard.ArchiveFile(file) if isinstance(file, Path) else file.open()


class AtHand(NamedTuple):
    """A model of which something can be read.

    `note` says what that means for what was looked at, in a sentence; None for nothing.
    """

    file: Path | RemoteFile
    note: str | None = None


def at_hand(remote: Remote, resources: ExitStack, *, ranged: bool) -> AtHand:
    """A model in a store: read where it is if it is `ranged` and large, else copied.

    Errors that leave `resources` name the URL where they name the copy.

    Raises:
        UnreadableModelError: it is not there, or cannot be fetched.
    """
    stores, info = _found(remote)
    size, note = info.get("size"), None
    if ranged and info["type"] == "file" and (size is None or size > AT_ONCE):
        if size is not None and info.get("partial", True):
            file = RemoteFile(remote, stores, info)
            resources.callback(file.close)
            if file.gives_ranges():
                _say(remote, size)
                return AtHand(file, _LEFT_OUT if file.can_be_watched else f"{_LEFT_OUT}; {_UNSEEN}")
        note = "the server gives no parts of it, so that all of it was fetched"
    return AtHand(resources.enter_context(_copied(remote, stores, info)), note)


_UNSEEN = (
    "the server tells neither an ETag nor a time of change, so that a change while it was read "
    "would not be seen"
)
_LEFT_OUT = (
    f"variables of more than {FAR >> 10} KiB were not fetched, so it was not checked whether "
    "folded weights fit their dtype: inspect a copy, or give its --sha256, for that"
)


@contextmanager
def copied(remote: Remote) -> Iterator[Path]:
    """A copy of a model in a store, in a temporary folder; errors name the URL and not the copy.

    Raises:
        UnreadableModelError: it is not there, cannot be fetched, or changed meanwhile.
    """
    with ExitStack() as resources:
        try:
            copy = resources.enter_context(_copied(remote, *_found(remote)))
        except UnreadableModelError as error:
            raise UnreadableModelError(f"{guard.printable(str(remote))}: {error}") from None
        yield copy


class Copies(ExitStack):
    """Copies of models in stores, for what must have files, until the end of a `with`."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Path, Remote] = {}

    def of(self, where: Where) -> Path:
        """The file at a path itself, or a copy of what is at a URL."""
        if isinstance(where, Path):
            return where
        copy = self.enter_context(copied(where))
        self._made[copy] = where
        return copy

    def said(self, text: str) -> str:
        """A text that names URLs where it names copies."""
        for copy, remote in self._made.items():
            text = renamed(text, copy, remote)
        return text


@contextmanager
def _copied(remote: Remote, stores: Any, info: Mapping[str, Any]) -> Iterator[Path]:
    with link.temporary_folder() as folder:
        copy = folder / file_name(remote)
        if info["type"] == "directory":
            _copy_folder(remote, stores, copy)
        else:
            _say(remote, info.get("size") or 0)
            _copy(remote, stores, info, copy)
            if _stamp(_info(remote, stores)) != _stamp(info):
                raise UnreadableModelError("changed while it was read")
        try:
            yield copy
        except BnfoldError as error:
            error.args = tuple(renamed(str(text), copy, remote) for text in error.args)
            raise


def file_name(remote: Remote) -> str:
    """A name for a file on this machine that is, or will be, what is at a URL."""
    if re.fullmatch(_PLAIN_NAME, remote.name) and remote.name.strip("."):
        return remote.name
    return f"model{remote.suffix}" if re.fullmatch(_PLAIN_NAME, remote.suffix) else "model"


def is_there(remote: Remote) -> bool:
    """Whether something is at a URL.

    Raises:
        UnreadableModelError: its store does not say.
    """
    stores = _stores(remote)
    with _answered(remote):
        stores.invalidate_cache()
        return bool(stores.exists(remote.url))


def put(file: Path, remote: Remote) -> None:
    """Write a file to a store: as a whole or not at all, as stores do with each object.

    Raises:
        UnreadableModelError: it cannot be written there.
    """
    size = file.stat().st_size
    _say(remote, size)
    stores = _stores(remote)
    with _answered(remote):
        stores.put_file(str(file), remote.url)
    if _info(remote, stores)["size"] != size:
        raise UnreadableModelError("was not written as a whole")


def renamed(text: str, copy: Path, remote: Remote) -> str:
    """A text that names the URL of a model where it names a copy of it."""
    for old in dict.fromkeys((str(copy), guard.printable(str(copy)))):
        text = text.replace(old, guard.printable(str(remote)))
    return text


def _say(remote: Remote, size: int = 0) -> None:
    """Tell the supervisor what is transferred."""
    link.fetching(guard.printable(str(remote)), size)


def _found(remote: Remote) -> tuple[Any, Mapping[str, Any]]:
    _say(remote)
    if remote.is_open:
        text = (
            f"{guard.printable(str(remote))}: over http others can change what is read; use https"
        )
        warnings.warn(text, PlainHttpWarning, stacklevel=2)
    stores = _stores(remote)
    return stores, _info(remote, stores)


def _stores(remote: Remote) -> Any:
    """The file system of fsspec's for a URL. Raises UnreadableModelError if one is missing."""
    try:
        import fsspec  # noqa: PLC0415 - models on this machine need none of it

        options = _web_options(remote) if remote.is_web else _said(remote)
        with _answered(remote):
            return fsspec.filesystem(remote.protocol, **options)
    except ImportError:
        other = remote.store.package
        line = 'pip install "bnfold[remote]"' + (f" {other}" if other not in _IN_EXTRA else "")
        raise UnreadableModelError(
            f"{remote.protocol}:// needs packages that are not installed: {line}"
        ) from None


def _said(remote: Remote) -> dict[str, Any]:
    """What a URL says of an account, or that it names a version: both would be ignored."""
    found: dict[str, Any] = {}
    if re.match(_VERSIONED, remote.url):
        found["version_aware"] = True
    if account := re.match(_ACCOUNT, remote.url):
        found["account_name"] = account[1]
    return found


_VERSIONED = r"s3://.*[?&]versionId=|gs://.*#\d+$|(az|abfs)://.*[?&]versionid="
_ACCOUNT = r"(?:az|abfs)://[^/@]+@([^/@]+)\.(?:dfs|blob)\.core\.windows\.net(?:/|$)"


def _web_options(remote: Remote) -> dict[str, Any]:
    import aiohttp  # noqa: PLC0415

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
    )
    client = {"trust_env": True, "timeout": timeout, "trace_configs": _traces()}
    return {"client_kwargs": client, "encoded": "%" in remote.url}


@cache  # fsspec keeps one connection pool for the same options
def _traces() -> list[Any]:
    """What has a look at each answer over HTTP before fsspec does, which believes all of them."""
    import aiohttp  # noqa: PLC0415

    found = aiohttp.TraceConfig()
    found.on_request_redirect.append(_check_redirection)
    found.on_request_end.append(_check_part)
    return [found]


async def _check_redirection(_session: Any, _context: Any, found: Any) -> None:
    """Refuse to be led to what others can change, or to what is no server's."""
    response = found.response
    location = response.headers.get("Location") or response.headers.get("URI") or ""
    named = re.match(_SCHEME, location, re.IGNORECASE)
    scheme = named[1].lower() if named else response.url.scheme
    if scheme not in (response.url.scheme, "https"):
        response.close()
        shown = guard.shortened(scheme)
        why = ", where others can change it" if scheme == "http" else ""
        raise UnreadableModelError(f"the server leads to {shown}://{why}; refused")


async def _check_part(_session: Any, _context: Any, found: Any) -> None:
    """See that an answer to who asked for a part is that part."""
    wanted = re.fullmatch(_RANGE, found.headers.get("Range", ""))
    response = found.response
    if wanted is None or response.status not in (200, 206):
        return
    first, last = int(wanted[1]), int(wanted[2])
    told = re.match(_CONTENT_RANGE, response.headers.get("Content-Range", ""))
    is_plain = response.headers.get("Content-Encoding", "identity") == "identity"
    is_part = told is not None and (int(told[1]), int(told[2])) == (first, last)
    size = response.content_length
    if response.status == 206 and is_part and is_plain and size == last - first + 1:
        return
    response.close()
    if response.status == 200 or (is_part and (size is None or not is_plain)):
        raise ValueError("the server gives no parts")
    raise UnreadableModelError("the server answers with other bytes than were asked for")


_SCHEME = r"([a-z][a-z0-9+.-]*):"
_RANGE = r"bytes=(\d+)-(\d+)"
_CONTENT_RANGE = r"bytes (\d+)-(\d+)/(\d+|\*)"


def _info(remote: Remote, stores: Any) -> Mapping[str, Any]:
    """What a store says of an object now."""

    def ask() -> Mapping[str, Any]:
        stores.invalidate_cache()
        found: Mapping[str, Any] = stores.info(remote.url)
        return found

    return _asked(remote, ask)


def _stamp(info: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What tells an object from what it is after a change."""
    return tuple(sorted((key, str(info[key])) for key in info.keys() - _VOLATILE))


def _copy(remote: Remote, stores: Any, info: Mapping[str, Any], target: Path) -> None:
    """Copy one object to a file, in pieces."""
    size = info.get("size")
    free = shutil.disk_usage(target.parent).free
    most = min(free, _MOST_UNTOLD if size is None else size)
    if size is not None and size > free:
        raise UnreadableModelError(f"has {size} bytes, and {free} are free in the temporary folder")
    done = 0
    with target.open("xb") as file:
        for piece in _pieces(remote, stores, is_sized=size is not None):
            done += len(piece)
            if done > most:
                raise UnreadableModelError(f"has more than the {most} bytes that it may have")
            file.write(piece)
    if size is not None and done < size:
        raise UnreadableModelError(f"is truncated: {done} of its {size} bytes came")


def _pieces(remote: Remote, stores: Any, *, is_sized: bool) -> Iterator[bytes]:
    is_stream = remote.is_web or not is_sized
    options = {"block_size": 0} if is_stream else {"block_size": _PIECE, "cache_type": "none"}
    with _answered(remote), closing(stores.open(remote.url, "rb", **options)) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _copy_folder(remote: Remote, stores: Any, target: Path) -> None:
    """Copy what is below a prefix, as far as a model directory may go."""
    before = _below(remote, stores)
    if not before.keys() >= _DIRECTORY:
        raise UnreadableModelError(foreign.foldered(before) or "a folder, not a Keras model")
    for name, info in before.items():
        check_key(name)
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _say(remote, info.get("size") or 0)
        one = Remote(f"{remote.url.rstrip('/')}/{name}")
        _copy(one, stores, info, file)
    now = _below(remote, stores)
    if {name: _stamp(info) for name, info in now.items()} != {
        name: _stamp(info) for name, info in before.items()
    }:
        raise UnreadableModelError("changed while it was read")


def check_key(name: str) -> None:
    """See that the name of an object, from its folder on, is one of a file below a folder.

    Raises:
        UnsafeModelError: it leads elsewhere.
    """
    parts = PurePosixPath(name).parts
    odd = "\\\0:" if os.name == "nt" else "\\\0"
    if name.startswith("/") or ".." in parts or set(name) & set(odd) or not parts:
        raise UnsafeModelError(f"the object {guard.shortened(name)!r} has no place here; refused")


def _below(remote: Remote, stores: Any) -> dict[str, Mapping[str, Any]]:
    found = dict(walk(remote, stores))
    if len(found) > guard.MAX_MEMBERS:
        raise UnsafeModelError(f"it holds more than {guard.MAX_MEMBERS} objects; refused")
    return found


_MOST_LISTED = 200_000


def walk(remote: Remote, stores: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All objects below a prefix, by their names from there on, and what the store says of each.

    Raises:
        UnreadableModelError: there are more than anybody wants to have searched.
    """
    number = 0
    with _answered(remote):
        stores.invalidate_cache()
        top = stores.info(remote.url)["name"].strip("/")
        for folder, _, files in stores.walk(remote.url, detail=True):
            inside = folder.strip("/").removeprefix(top).strip("/")
            for name, info in files.items():
                if not name:  # an empty object that stands for the folder itself
                    continue
                number += 1
                if number > _MOST_LISTED:
                    raise UnreadableModelError(
                        f"holds more than {_MOST_LISTED} objects; name a part of it"
                    )
                yield f"{inside}/{name}" if inside else name, info


def listed(remote: Remote) -> list[str] | None:
    """The names of all objects below a prefix, from there on; None for what is an object.

    Raises:
        UnreadableModelError: it is not there, or its store cannot list anything.
    """
    if not remote.store.lists:
        return None
    stores, info = _found(remote)
    if info["type"] != "directory":
        return None
    return sorted(name for name, _ in walk(remote, stores))


def _asked(remote: Remote, question: Callable[[], Result]) -> Result:
    """What a store answers. A web server that is busy is asked again after a while.

    The libraries of other stores do so themselves.
    """
    for seconds in _PAUSES if remote.is_web else ():
        try:
            with _answered(remote):
                return question()
        except _BusyError:
            time.sleep(seconds)
    with _answered(remote):
        return question()


class _BusyError(UnreadableModelError):
    """A store has too much to do now."""


@contextmanager
def _answered(remote: Remote) -> Iterator[None]:
    """Say in one line what a store, or the library for it, complains of."""
    try:
        yield
    except (BnfoldError, ImportError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        kind = _BusyError if _status_of(error) in _BUSY else UnreadableModelError
        raise kind(_reason(error, remote)) from None


_ANSWERS = {
    401: "access is denied (401); credentials are those of your environment",
    403: "access is denied (403); credentials are those of your environment",
    404: "there is no such object",
    410: "there is no such object any more",
    412: "changed while it was read",
    429: "the server is busy (429); try again later",
    503: "the server is busy (503); try again later",
}
_BUSY = {429, 503}


def _reason(error: BaseException, remote: Remote) -> str:
    chain, status = _chain(error), _status_of(error)
    if status is not None:
        return _ANSWERS.get(status, f"the server answers with {status}")
    names = [kind.__name__ for one in reversed(chain) for kind in type(one).__mro__]
    known = next((_KINDS[name] for name in names if name in _KINDS), None)
    return known or f"the store fails: {remote.hidden_in(guard.reason(chain[-1]))}"


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what it comes from."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _status_of(error: BaseException) -> int | None:
    """The status of the answer that an error comes from, None if it comes from none."""
    return next(filter(None, map(_status, reversed(_chain(error)))), None)


_KINDS = {
    "FileExpired": _ANSWERS[412],
    "TimeoutError": "the server does not answer in time",
    "HTTPClientError": "the server cannot be reached",
    "EndpointConnectionError": "the server cannot be reached",
    "ClientConnectorError": "the server cannot be reached",
    "ClientPayloadError": "is truncated: the server ended early",
    "ServerDisconnectedError": "the server closed the connection",
    "ConnectionResetError": "the server closed the connection",
    "TooManyRedirects": "the server redirects too often",
    "NoCredentialsError": "there are no credentials for it in your environment",
    "FileNotFoundError": _ANSWERS[404],
    "PermissionError": _ANSWERS[403],
}
"""What errors mean, by the names of their classes, which belong to libraries not imported here."""


def _status(error: BaseException) -> int | None:
    """The status of an answer over HTTP, as libraries keep it."""
    found: Any
    response = getattr(error, "response", None)
    if type(error).__module__.startswith("gcsfs"):
        found = getattr(error, "code", None)
    elif isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # gcsfs' too
        found = 403
    elif isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(response, "status_code", None)
    return int(found) if str(found).isdecimal() and int(found) >= 400 else None
