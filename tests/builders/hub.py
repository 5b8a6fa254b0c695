"""A server that answers what `huggingface_hub` asks of the Hugging Face Hub to list and read files.

Large files are at another server, as on the Hub, to which `resolve` redirects.

Source: huggingface_hub 2.4 (`hf_api.py`, `hf_file_system.py`, `utils/_http.py`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from servers import Web, answering


@dataclass
class Hub:
    """What is on the hub.

    Attributes:
        web: the server with the large files, each under its SHA-256.
        repositories: the commits of each model repository by name, the newest last; a commit has
            the content of each file by its path.
        token: what a request must have as its bearer, if that is not empty.
        error: what is answered in place of all else, a status and the code of an error.
        before: called before each answer, with the path that was asked for.
        requests: the methods and paths of all requests.
    """

    web: Web
    url: str = ""
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    token: str = ""
    error: tuple[int, str] | None = None
    before: Callable[[str], None] = lambda _: None
    requests: list[tuple[str, str]] = field(default_factory=list)

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files and all earlier ones; its name is returned."""
        commits = self.repositories.setdefault(repository, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        for content in files.values():
            (self.web.folder / hashlib.sha256(content).hexdigest()).write_bytes(content)
        return name_of(len(commits))

    def files(self, repository: str, revision: str) -> dict[str, bytes]:
        """The files of a revision. Raises KeyError if there is none of this name."""
        commits = self.repositories[repository]
        named = {name_of(number): files for number, files in enumerate(commits, 1)}
        return {**named, "main": commits[-1], "refs/pr/1": commits[0]}[revision]


def name_of(number: int) -> str:
    """The name of a commit."""
    return f"{number:040x}"


LARGE = 1000
"""Files of more bytes are redirected to the other server."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    sha1 = hashlib.sha1(content).hexdigest()
    found = {"type": "file", "oid": sha1, "size": len(content), "path": path}
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return found


def _tree(files: dict[str, bytes], folder: str, *, is_deep: bool) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if path.startswith(start):
            parts = path.removeprefix(start).split("/")
            for end in range(1, len(parts)) if is_deep else range(1, min(2, len(parts))):
                above = start + "/".join(parts[:end])
                found[above] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": above}
            if is_deep or len(parts) == 1:
                found[path] = _entry(path, content)
    return list(found.values())


@contextmanager
def hub_at(web: Web) -> Iterator[Hub]:
    """A hub on this machine."""
    hub = Hub(web)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append((self.command, path))
            hub.before(path)
            if hub.error is not None:
                self.fail(*hub.error)
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.fail(401, "RepoNotFound")
            elif path.startswith("/api/models/"):
                self.api(path.removeprefix("/api/models/"), url.query, asked)
            else:
                repository, _, rest = path[1:].partition("/resolve/")
                self.resolve(repository, *_split(rest))

        def api(self, path: str, query: str, asked: bytes) -> None:
            owner, name, *rest = path.split("/", 2)
            what, _, rest_of_path = (rest or ["revision/main"])[0].partition("/")
            quoted = urlsplit(self.path).path.split("/")
            revision = unquote(quoted[6]) if len(quoted) > 6 else "main"
            folder = rest_of_path.removeprefix(revision).strip("/")
            try:
                files = hub.files(f"{owner}/{name}", revision)
            except KeyError as error:
                is_known = f"{owner}/{name}" in hub.repositories
                self.fail(404, "RevisionNotFound" if is_known else "RepoNotFound", error)
                return
            if what == "revision":
                self.give({"id": f"{owner}/{name}", "sha": revision, "tags": [], "siblings": []})
            elif what == "tree":
                found = _tree(files, folder, is_deep="recursive=true" in query.lower())
                if found or not folder:
                    self.give(found)
                else:
                    self.fail(404, "EntryNotFound")
            elif what == "paths-info":
                paths = json.loads(asked)["paths"]
                every = _tree(files, "", is_deep=True)
                self.give([one for one in every if one["path"] in paths])

        def resolve(self, repository: str, revision: str, path: str) -> None:
            try:
                content = hub.files(repository, revision)[path]
            except KeyError:
                self.fail(404, "EntryNotFound")
                return
            digest = hashlib.sha256(content).hexdigest()
            if len(content) > LARGE:
                self.send_response(302)
                self.send_header("Location", f"{hub.web.url}/{digest}?Signature=secret")
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Linked-ETag", f'"{digest}"')
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send(200, content, {"ETag": f'"{digest}"'})

        def give(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def fail(self, status: int, code: str, message: object = "") -> None:
            self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": quote(str(message))})

        def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    with answering(Handler) as url:
        hub.url = url
        yield hub


def _split(rest: str) -> tuple[str, str]:
    """The revision and the path of what is behind `resolve/`."""
    for known in ("refs/pr/1",):
        if rest.startswith(f"{known}/"):
            return known, rest.removeprefix(f"{known}/")
    revision, _, path = rest.partition("/")
    return revision, path
