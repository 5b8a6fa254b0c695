"""Each kind of store, asked by its own library, on a server that speaks as the real one does."""

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stores
from archives import directory_model, keras_file, legacy_file
from damage import invoke
from places import ROOT
from stores import Place
from wide import refused, report, wide_keras

from bnfold.jobs.inspect import inspect_file
from bnfold.model.container import store
from bnfold.model.container.model_file import open_model
from bnfold.model.container.remote import Remote, located

FOLD = ["fold", "--no-verify", "--no-config"]
ODD = "odd näme #1+%20 [a] &=;.keras"


@pytest.fixture(params=["s3", "gs", "az", "hf"])
def place(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Place]:
    """A folder in a store of each kind."""
    folder = tmp_path / "served"
    folder.mkdir()
    kinds: dict[str, Callable[[], Any]] = {
        "s3": lambda: stores.amazon(monkeypatch, folder),
        "gs": lambda: stores.google(monkeypatch, folder),
        "az": lambda: stores.azure(monkeypatch, folder),
        "hf": lambda: stores.hugging_face(monkeypatch, folder),
    }
    with kinds[request.param]() as found:
        yield found


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each request has brought of objects that are read where they are."""
    found: list[int] = []
    read = store.RemoteFile._read

    def count(self: store.RemoteFile, start: int, end: int) -> bytes:
        found.append(end - start)
        return read(self, start, end)

    monkeypatch.setattr(store.RemoteFile, "_read", count)
    return found


def test_what_fetches_for_hdf5_frees_nothing_of_hdf5s(tmp_path: Path) -> None:
    """It may be a thread that HDF5 waits for, which has the lock that freeing takes."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("/m.keras", wide_keras(tmp_path / "m.keras").read_bytes())
    assert gc.isenabled()
    with open_model("memory://m.keras", ranged=True) as model:
        assert isinstance(model.file, store.RemoteFile)
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_store(place: Place, fetched: list[int], tmp_path: Path) -> None:
    model = wide_keras(tmp_path / "m.keras")
    place.put("m.keras", model.read_bytes())
    for name in ("deep/er/a.h5", f"deep/{ODD}"):
        kind = legacy_file if name.endswith(".h5") else keras_file
        place.put(name, kind(tmp_path / "other").read_bytes())
    for file in sorted(directory_model(tmp_path / "d").rglob("*")):
        if file.is_file():
            below = file.relative_to(tmp_path / "d").as_posix()
            place.put(f"deep/d/{below}", file.read_bytes())
    place.put("deep/notes.txt", b"x")

    assert report(f"{place.url}/m.keras") == report(model)
    assert 0 < sum(fetched) < 400_000 < model.stat().st_size
    result = invoke("inspect", f"{place.url}/", "--format", "json")
    assert [one["path"] for one in json.loads(result.stdout)["models"]] == [
        f"{place.url}/{name}" for name in ("deep/d", "deep/er/a.h5", f"deep/{ODD}", "m.keras")
    ]
    assert report(f"{place.url}/deep/{ODD}") == report(keras_file(tmp_path / "odd.keras"))

    copied, local = tmp_path / "copied.keras", tmp_path / "local.keras"
    for given, out in ((f"{place.url}/m.keras", copied), (model, local)):
        assert invoke(*FOLD, given, out).exit_code == 0
    assert copied.read_bytes() == local.read_bytes()
    out_url = f"{place.url}/made/{ODD}"
    if place.get is None:
        refused(invoke(*FOLD, model, out_url), "nothing is written to ")
    else:
        assert invoke(*FOLD, f"{place.url}/m.keras", out_url).exit_code == 0
        assert place.get(f"made/{ODD}") == local.read_bytes()
        refused(invoke(*FOLD, model, out_url), "exists already; use --force to replace it")
        for url in place.missing:
            refused(invoke(*FOLD, model, f"{url}/m.keras"), "there is no such object")


def test_what_is_wrong_in_a_store(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wide_keras(tmp_path / "m.keras").read_bytes()
    place.put("m.keras", content)
    place.put("cut.keras", content[: len(content) * 3 // 4])
    for url in (f"{place.url}/none.keras", f"{place.url}/none/", *place.missing):
        refused(invoke("inspect", url), "there is no such object")
    refused(invoke("inspect", f"{place.url}/cut.keras"), "the archive is damaged: ")

    times, read = [], store.RemoteFile._read

    def change(self: store.RemoteFile, start: int, end: int) -> bytes:
        times.append(start)
        if len(times) == 3:
            place.put("m.keras", content[:-1000] + bytes(100) + content[-900:])
        return read(self, start, end)

    with monkeypatch.context() as here:
        here.setattr(store.RemoteFile, "_read", change)
        refused(invoke("inspect", f"{place.url}/m.keras"), "m.keras: changed while it was read")
    place.deny()
    refused(invoke("inspect", f"{place.url}/m.keras"), "access is denied (403)")


# --- what only some have ---


def test_a_server_of_the_hub_that_gives_no_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    with stores.hugging_face(monkeypatch, folder) as place:
        place.put("m.keras", wide_keras(tmp_path / "m.keras").read_bytes())
        assert place.web is not None
        place.web.ranges = False
        found = inspect_file(f"{place.url}/m.keras")
        assert found.note == "the server gives no parts of it, so that all of it was fetched"


def test_revisions_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    with stores.hugging_face(monkeypatch, folder) as place:
        first = place.put("m.keras", wide_keras(tmp_path / "m.keras").read_bytes())
        place.put("m.keras", b"damaged")
        for revision in (first, "refs/pr/1"):
            url = f"hf://owner/name@{revision}/models/m.keras"
            assert str(inspect_file(url).path) == url
        refused(invoke("inspect", "hf://owner/name@main/models/m.keras"), "neither a .keras")


def test_versions_of_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with stores.amazon(monkeypatch, tmp_path) as place:
        files = pytest.importorskip("s3fs").S3FileSystem(version_aware=True)
        files.make_bucket_versioned("bucket")
        model = wide_keras(tmp_path / "m.keras")
        place.put("m.keras", model.read_bytes())
        first = files.info("bucket/models/m.keras")["VersionId"]
        place.put("m.keras", b"damaged")
        url = f"{place.url}/m.keras"
        assert report(f"{url}?versionId={first}") == report(model)
        out, local = tmp_path / "out.keras", tmp_path / "local.keras"
        assert invoke(*FOLD, f"{url}?versionId={first}", out).exit_code == 0
        assert invoke(*FOLD, model, local).exit_code == 0
        assert out.read_bytes() == local.read_bytes()
        refused(invoke("inspect", f"{url}?versionId=other"), "there is no such object")
        refused(invoke("inspect", url), "neither a .keras archive nor an HDF5 file")


@pytest.mark.parametrize(
    ("package", "url", "said"),
    [
        ("adlfs", "abfs://box@account.dfs.core.windows.net/m.keras", {"account_name": "account"}),
        ("adlfs", "az://box/m.keras?versionid=1", {"version_aware": True}),
        ("gcsfs", "gs://bucket/m.keras#123", {"version_aware": True}),
        ("gcsfs", "gs://bucket/m.keras", {}),
    ],
)
def test_what_a_url_says_of_account_and_version_counts(
    package: str, url: str, said: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(fsspec, "filesystem", lambda _, **options: options)
    found = located(url)
    assert isinstance(found, Remote)
    assert store._stores(found) == said


@pytest.mark.processes
def test_what_libraries_log_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with stores.google(monkeypatch, tmp_path) as place:
        command = [sys.executable, "-m", "bnfold", "inspect", f"{place.url}/none.keras"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == "bnfold: gs://bucket/models/none.keras: there is no such object\n"
