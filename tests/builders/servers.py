"""A web server that gives the files of a folder: in parts, whole, cut off, or not at all."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Web:
    """What a server does, and what it was asked for.

    Attributes:
        folder: the files that it gives.
        ranges: whether it gives parts of them.
        status: what it answers in place of 200.
        cut: how many bytes it leaves out at the end, though it has announced them.
        tagged: whether it tells an ETag.
        sized: whether it tells how long a file is.
        before: called before each answer, with the number of the request.
        instead: called with what handles a request of a part, its first byte and its last, and the
            content of the file; where it is not None, it answers in place of the server.
        requests: the methods and paths of all requests, with their ranges.
        sent: the bytes that it has sent of files.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    status: int = 200
    cut: int = 0
    tagged: bool = True
    sized: bool = True
    before: Callable[[int], None] = lambda _: None
    instead: Callable[[BaseHTTPRequestHandler, int, int, bytes], None] | None = None
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0


def reply(
    handler: BaseHTTPRequestHandler, status: int, content: bytes = b"", **headers: object
) -> None:
    """Answer a request; `_` in the names of headers is `-`."""
    handler.send_response(status)
    for name, value in {"Content_Length": len(content), **headers}.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Whoever reads may have had enough."""


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server whose requests a class handles, at a free port of this machine; its URL."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server on this machine."""
    web = Web(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # or a head and its body are two packets, the second of which waits

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer(is_head=True)

        def do_GET(self) -> None:
            self.answer(is_head=False)

        def answer(self, *, is_head: bool) -> None:
            name, wanted = self.path.partition("?")[0], self.headers.get("Range", "")
            web.requests.append((self.command, self.path, wanted))
            web.before(len(web.requests))
            file = web.folder / name.lstrip("/")
            status = web.status if file.is_file() else 404
            if status != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size, found = file.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            first, last = 0, size - 1
            if found and web.ranges:
                first, last = int(found[1]), min(int(found[2] or size), size - 1)
                if web.instead is not None and not is_head:
                    web.instead(self, first, last, file.read_bytes())
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            else:
                self.send_response(200)
            with file.open("rb") as stream:
                stream.seek(first)
                content = stream.read(last + 1 - first)
            if web.tagged:
                self.send_header("ETag", f'"{file.stat().st_mtime_ns}-{size}"')
            if web.sized:
                self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "keep-alive" if web.sized and not web.cut else "close")
            self.end_headers()
            if not is_head:
                content = content[: len(content) - web.cut]
                web.sent += len(content)
                self.wfile.write(content)
                self.close_connection = bool(web.cut) or not web.sized

    with answering(Handler) as url:
        web.url = url
        yield web
