"""Models that are named by a URL: how they are read, and what is said of them."""

import asyncio
import gzip
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from archives import (
    directory_model,
    keras_file,
    legacy_file,
)
from damage import invoke
from places import ROOT
from servers import Web, reply, serving
from wide import WIDE, WIDTH, many_layers, refused, report, wide_keras

import bnfold
from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container import store
from bnfold.model.container.remote import PlainHttpWarning, Remote, located
from bnfold.serialize import plain


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    pytest.importorskip("aiohttp")
    pytest.importorskip("fsspec")
    folder = tmp_path / "web"
    folder.mkdir()
    with serving(folder) as server:
        yield server


@pytest.fixture
def memory() -> Iterator[Any]:
    """The store `memory://`, as fsspec has it."""
    fsspec = pytest.importorskip("fsspec")
    found = fsspec.filesystem("memory")
    yield found
    found.store.clear()
    found.pseudo_dirs[:] = [""]


# --- names ---


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/m.keras", "s3://bucket/a/m.keras"),
        ("https://host/m.keras?X-Amz-Signature=secret&x=1", "https://host/m.keras?..."),
        ("https://user:secret@host:8/m.keras", "https://host:8/m.keras"),
        ("https://secret@host/m.keras#secret", "https://host/m.keras"),
        ("HTTPS://host/a%20b.keras", "https://host/a%20b.keras"),
        ("abfs://box@account.host/m.h5", "abfs://box@account.host/m.h5"),
        ("s3://key:secret@bucket/m.h5?versionId=secret", "s3://bucket/m.h5?..."),
        ("hf://owner/name@revision/m.keras", "hf://owner/name@revision/m.keras"),
        ("memory://a//b.keras", "memory://a//b.keras"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    found = located(url)
    assert isinstance(found, Remote)
    assert str(found) == shown
    assert repr(found) == f"Remote({shown!r})"
    assert plain(found) == shown
    assert found.name == shown.removesuffix("?...").rpartition("/")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no 'https://user:secret@host/m.keras?sig=secret,1'!", "'https://host/m.keras?...'!"),
        ("no /m.keras?sig=secret,1 there", "no /m.keras?... there"),
        ("who is user:secret", "who is ..."),
        ("the value secret,1 is wrong", "the value ... is wrong"),
        ("went to http://other/a?sig=secret;2)", "went to http://other/a?..."),
    ],
)
def test_what_a_library_says_has_no_secrets(text: str, said: str) -> None:
    found = located("https://user:secret@host/m.keras?sig=secret,1")
    assert isinstance(found, Remote)
    assert said in found.hidden_in(text)
    assert "secret" not in found.hidden_in(text)


@pytest.mark.parametrize("path", ["m.keras", "s3:/bucket/m.keras", "C:/m.keras", "/a/b//c", "x:y"])
def test_what_is_no_url_is_a_path(path: str) -> None:
    assert located(path) == Path(path)
    assert located(Path("s3://bucket/m.keras")) == Path("s3:/bucket/m.keras")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://host/m.keras", "ftp:// is not read; what is: s3, gs, az,"),
        ("zip://m.keras::https://host/a.zip", "zip:// is not read"),
        ("simplecache::s3://bucket/m.keras", "protocols cannot be chained"),
        ("reference://m.keras", "reference:// is not read"),
        ("file:///m.keras", "name a file on this machine by its path"),
        ("ssh://user:secret@host/m.keras?secret", "ssh://host/m.keras?...: ssh:// is not read"),
    ],
)
def test_other_protocols_are_refused_before_anything_is_loaded(url: str, says: str) -> None:
    refused(invoke("inspect", url), says)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    refused(invoke("inspect", "s3://bucket/m.keras"), 'pip install "bnfold[remote]"\n')
    refused(invoke("inspect", "gs://bucket/m.keras"), 'pip install "bnfold[remote]" gcsfs\n')


# --- reading ---


@pytest.mark.parametrize("suffix", WIDE)
def test_only_parts_are_fetched(suffix: str, web: Web) -> None:
    model = WIDE[suffix](web.folder / f"m{suffix}")
    found = inspect_file(f"{web.url}/m{suffix}")
    assert web.sent < 300_000 < model.stat().st_size
    assert found.to_dict()["path"] == f"{web.url}/m{suffix}"
    assert "variables of more than 16 KiB were not fetched" in (found.note or "")
    assert ("checksum of its weights was not checked" in (found.note or "")) == (suffix == ".keras")
    assert report(f"{web.url}/m{suffix}") == report(model)


def test_what_was_not_fetched_is_not_measured(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    wide_keras(web.folder / "m.keras")
    local = inspect_file(web.folder / "m.keras").plan.folds[0].absorbers[0].magnitudes
    far = inspect_file(f"{web.url}/m.keras").plan.folds[0].absorbers[0].magnitudes
    assert {one.slot: one.exact.size for one in local} == {"kernel": WIDTH, "bias": WIDTH}
    assert {one.slot: one.exact.size for one in far} == {"kernel": 0, "bias": WIDTH}


def test_a_small_model_is_fetched_at_once_and_looked_at_as_a_whole(web: Web) -> None:
    keras_file(web.folder / "m.keras")
    found = inspect_file(f"{web.url}/m.keras?token=secret")
    assert found.note is None
    assert str(found.path) == f"{web.url}/m.keras?..."
    assert [wanted for method, _, wanted in web.requests if method == "GET"] == [""]


def test_a_digest_is_that_of_the_whole(web: Web) -> None:
    model = wide_keras(web.folder / "m.keras")
    digest = bnfold_sha256(model)
    assert inspect_file(f"{web.url}/m.keras", sha256=(digest,)).note is None
    refused(invoke("inspect", f"{web.url}/m.keras", "--sha256", "0" * 64), f"SHA-256 is {digest}")


def bnfold_sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_change_that_could_not_be_seen_is_told(web: Web) -> None:
    wide_keras(web.folder / "m.keras")
    web.tagged = False
    assert "a change while it was read would not be seen" in (
        inspect_file(f"{web.url}/m.keras").note or ""
    )


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("http://host/m.keras", True),
        ("http://127.evil.org/m.keras", True),
        ("http://localhost.evil.org/m.keras", True),
        ("http://localhost@host/m.keras", True),
        ("http://localhost:80/m.keras", False),
        ("http://127.0.0.1/m.keras", False),
        ("http://[::1]:80/m.keras", False),
        ("https://host/m.keras", False),
    ],
)
def test_others_on_the_way_are_warned_of(url: str, is_open: bool) -> None:
    found = located(url)
    assert isinstance(found, Remote)
    assert found.is_open == is_open
    if is_open and "host" in url:
        with pytest.warns(PlainHttpWarning, match="use https"), pytest.raises(UnreadableModelError):
            inspect_file(url.replace("host/", "0.0.0.0:1/"))


@pytest.mark.parametrize("sized", [True, False])
def test_a_server_without_ranges_gives_the_whole(sized: bool, web: Web) -> None:
    wide_keras(web.folder / "m.keras")
    web.ranges, web.sized = False, sized
    found = inspect_file(f"{web.url}/m.keras")
    assert found.note == "the server gives no parts of it, so that all of it was fetched"


def test_memory_has_the_same_report(memory: Any, tmp_path: Path) -> None:
    model = wide_keras(tmp_path / "m.keras")
    memory.put_file(str(model), "/models/m.keras")
    assert report("memory://models/m.keras") == report(model)


def test_a_model_directory_is_copied(memory: Any, tmp_path: Path) -> None:
    model = directory_model(tmp_path / "m")
    memory.put(str(model), "/models/m", recursive=True)
    assert report("memory://models/m") == report(model)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("memory://models/*/best.keras", ["a/best.keras", "b/best.keras"]),
        ("memory://models/**/*.keras", ["a/best.keras", "a/last.keras", "b/best.keras"]),
        ("memory://models/a*", ["a/best.keras", "a/last.keras"]),
        ("memory://models/**", ["a/best.keras", "a/last.keras", "b/best.keras"]),
        ("memory://models/.*/*.keras", [".old/best.keras"]),
        ("memory://models/a/**/last.keras", ["a/last.keras"]),
    ],
)
@pytest.mark.few(2)
def test_a_pattern_means_what_matches_it(
    pattern: str, found: list[str], memory: Any, tmp_path: Path
) -> None:
    content = wide_keras(tmp_path / "m.keras").read_bytes()
    for name in ("a/best", "a/last", "b/best", ".old/best"):
        memory.pipe_file(f"/models/{name}.keras", content)
    every = json.loads(invoke("inspect", pattern, "--format", "json").stdout)["models"]
    assert [one["path"] for one in every] == [f"memory://models/{name}" for name in found]


def test_what_becomes_of_a_pattern_stands_below_its_folder(memory: Any, tmp_path: Path) -> None:
    content = wide_keras(tmp_path / "m.keras").read_bytes()
    for name in ("a/best", "b/best"):
        memory.pipe_file(f"/models/{name}.keras", content)
    fold = ("fold", "memory://models/*/best.keras", "--no-verify", "--out-dir", str(tmp_path / "o"))
    assert invoke(*fold).exit_code == 0
    assert sorted(path.parent.name for path in (tmp_path / "o").glob("*/best.keras")) == ["a", "b"]


def test_a_pattern_that_nothing_matches_is_one_line(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/models/a/text", b"")
    refused(invoke("inspect", "memory://models/*.keras"), "there is no such object")
    memory.pipe_file("/models/odd*name.keras", wide_keras(tmp_path / "m.keras").read_bytes())
    assert invoke("inspect", "memory://models/odd*name.keras", "--fail-on", "never").exit_code == 0


def test_an_object_with_a_name_that_climbs_is_refused(memory: Any, tmp_path: Path) -> None:
    memory.put(str(directory_model(tmp_path / "m")), "/models/m", recursive=True)
    memory.pipe_file("/models/m/a\\b", b"x")
    refused(invoke("inspect", "memory://models/m"), "has no place here; refused")


# --- what makes something of a model ---


@pytest.mark.parametrize("suffix", WIDE)
def test_a_fold_of_a_copy_is_that_of_the_file(suffix: str, memory: Any, tmp_path: Path) -> None:
    model = WIDE[suffix](tmp_path / f"m{suffix}")
    memory.put_file(str(model), f"/models/m{suffix}?secret")
    url, out = f"memory://models/m{suffix}?secret", tmp_path / f"out{suffix}"
    result = invoke("fold", "--no-verify", url, out, "--format", "json", "--no-config")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["source"] == f"memory://models/m{suffix}?..."
    again = tmp_path / f"again{suffix}"
    assert invoke("fold", "--no-verify", model, again, "--no-config").exit_code == 0
    assert out.read_bytes() == again.read_bytes()
    refused(invoke("fold", "--no-verify", url, out, "--sha256", "0" * 64, "--force"), "SHA-256")


def test_a_result_in_a_store_is_there_as_a_whole_or_not_at_all(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    model, local = wide_keras(tmp_path / "m.keras"), tmp_path / "out.keras"
    fold = ["fold", "--no-verify", "--no-config", model]
    assert invoke(*fold, local).exit_code == 0
    result = invoke(*fold, "memory://made/out.keras", "--format", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["target"] == "memory://made/out.keras"
    assert memory.cat_file("/made/out.keras") == local.read_bytes()
    refused(invoke(*fold, "memory://made/out.keras"), "exists already; use --force to replace it")
    memory.pipe_file("/made/out.keras", b"old")
    monkeypatch.setattr(memory, "put_file", lambda *_: 1 / 0)
    refused(invoke(*fold, "memory://made/out.keras", "--force"), "the store fails: division")
    assert memory.cat_file("/made/out.keras") == b"old"
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "https://host/out.keras?secret",
            "host/out.keras?...: nothing is written to https",
        ),
        ("hf://owner/name/out.keras", "nothing is written to hf://"),
        ("memory://made/out.h5", "must end in .keras, like the model it is made of"),
        ("ftp://host/out.keras", "ftp:// is not read"),
    ],
)
def test_what_cannot_be_written_to_a_store(url: str, says: str, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    refused(invoke("fold", "--no-verify", keras_file(tmp_path / "m.keras"), url), says)


@pytest.mark.parametrize(
    "command",
    [
        ["fold", "U", "hf://owner/name/out.keras", "--no-verify"],
        ["export", "U", "https://host/out.onnx"],
        ["recalibrate", "U", "https://host/out.keras", "--data", "x.npy"],
    ],
)
@pytest.mark.usefixtures("memory")
def test_a_store_that_takes_nothing_is_told_before_a_model_is_fetched(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 4)))
    given = [{"U": "memory://models/none.keras"}.get(word, word) for word in command]
    refused(invoke(*given), "nothing is written to")


@pytest.mark.parametrize(
    "command", [["verify", "U", "U"], ["recalibrate", "U", "out.keras", "--data", "x.npy"]]
)
def test_other_commands_say_what_is_wrong_with_a_url(
    command: list[str], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((2, 4)))
    given = [{"U": "memory://models/m.keras?secret"}.get(word, word) for word in command]
    refused(invoke(*given), "memory://models/m.keras?...: there is no such object")


KEYS = ["//etc/a.keras", "/../../a.keras", "/deep/../../../a.keras", "/a\\b.keras"]


@pytest.mark.parametrize("key", KEYS)
def test_no_name_of_an_object_leads_out_of_the_folder_of_results(
    key: str, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe_file("/models/good.keras", b"x")
    names = ["good.keras", key.removeprefix("/")]
    monkeypatch.setattr(store, "listed", lambda _: names)
    options = ["--no-verify", "--format", "json", "--out-dir", str(tmp_path / "out")]
    result = invoke("fold", "memory://models", *options)
    assert result.exit_code == 2
    said = {one["path"]: one["message"] for one in json.loads(result.stdout)["failed"]}
    good = said.pop("memory://models/good.keras")
    assert "neither a .keras archive nor an HDF5 file" in good
    if ".." in key:  # hidden, as every name that begins with a full stop
        assert said == {}
    else:
        assert ["has no place here; refused" in one for one in said.values()] == [True]


# --- what goes wrong ---


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "access is denied (401)"),
        (403, "access is denied (403)"),
        (404, "there is no such object"),
        (500, "the server answers with 500"),
    ],
)
def test_what_a_server_answers_is_said_in_one_line(status: int, says: str, web: Web) -> None:
    wide_keras(web.folder / "m.keras")
    web.status = status
    url = web.url.replace("//", "//user:secret@")
    refused(invoke("inspect", f"{url}/m.keras?token=secret"), f"{web.url}/m.keras?...: {says}")


def test_a_server_that_does_not_answer(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_READ_SECONDS", 0.2)
    wait = __import__("threading").Event()
    web.before = lambda _: wait.wait(5) and None
    wide_keras(web.folder / "m.keras")
    refused(invoke("inspect", f"{web.url}/m.keras"), "the server does not answer in time")
    wait.set()


def test_a_server_that_is_not_there(web: Web) -> None:
    refused(invoke("inspect", "http://127.0.0.1:1/m.keras"), "the server cannot be reached")


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_cut_off(ranges: bool, web: Web) -> None:
    wide_keras(web.folder / "m.keras")
    web.cut, web.ranges = 100, ranges
    refused(invoke("inspect", f"{web.url}/m.keras"), "is truncated: the server ended early")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("suffix", WIDE)
def test_what_changes_while_it_is_read(suffix: str, ranges: bool, web: Web) -> None:
    model = WIDE[suffix](web.folder / f"m{suffix}")
    web.ranges = ranges
    now = model.stat().st_mtime_ns

    def change(number: int) -> None:
        os.utime(model, ns=(now, now + number // 3))

    web.before = change
    refused(invoke("inspect", f"{web.url}/m{suffix}"), f"m{suffix}: changed while it was read")


def test_what_is_damaged_because_it_changed_is_told_as_changed(web: Web) -> None:
    model = wide_keras(web.folder / "m.keras")
    content, now = model.read_bytes(), model.stat().st_mtime_ns

    def change(number: int) -> None:
        if number == 3:
            model.write_bytes(bytes(len(content)))
            os.utime(model, ns=(now, now + 1))

    web.before = change
    refused(invoke("inspect", f"{web.url}/m.keras"), "m.keras: changed while it was read")


Misbehaviour = Callable[[Any, int, int, bytes], None]


def encoded(web: Any, first: int, last: int, content: bytes) -> None:
    part = gzip.compress(content[first : last + 1])
    reply(web, 206, part, Content_Range=told(first, last, content), Content_Encoding="gzip")


def chunked(web: Any, first: int, last: int, content: bytes) -> None:
    part = content[first : last + 1]
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part)
    place = told(first, last, content)
    reply(web, 206, body, Content_Range=place, Content_Length=None, Transfer_Encoding="chunked")


def told(first: int, last: int, content: bytes) -> str:
    return f"bytes {first}-{last}/{len(content)}"


def moved(by: int, more: int = 0, *, honest: bool = False) -> Misbehaviour:
    """Other bytes than were asked for, which is said or not."""

    def answer(web: Any, first: int, last: int, content: bytes) -> None:
        start, end = max(0, first + by), last + by + more
        place = told(start, end, content) if honest else told(first, last, content)
        reply(web, 206, content[start : end + 1], Content_Range=place)

    return answer


def hang(web: Any, first: int, last: int, content: bytes) -> None:
    reply(web, 206, b"x", Content_Range=told(first, last, content), Content_Length=last + 1 - first)
    web.wfile.flush()
    time.sleep(1)


def close(web: Any, *_: object) -> None:
    web.connection.shutdown(socket.SHUT_RDWR)
    web.close_connection = True


def answering(status: int, **headers: object) -> Misbehaviour:
    return lambda web, *_: reply(web, status, **headers)


OTHER = "the server answers with other bytes than were asked for"
WHOLE = "the server gives no parts of it any more"
MISBEHAVIOURS: dict[str, tuple[Misbehaviour, str]] = {
    "too few": (moved(0, -5), OTHER),
    "too few, as it says": (moved(0, -5, honest=True), OTHER),
    "too many": (moved(0, 5), OTHER),
    "others, as it says": (moved(-1, honest=True), OTHER),
    "no place": (lambda web, first, last, it: reply(web, 206, it[first : last + 1]), OTHER),
    "the whole": (lambda web, _first, _last, it: reply(web, 200, it), WHOLE),
    "gzip": (encoded, WHOLE),
    "chunks": (chunked, WHOLE),
    "hangs": (hang, "the server does not answer in time"),
    "closes": (close, "the server closed the connection"),
    "416": (answering(416), "0 bytes came where "),
    "429": (answering(429), "the server is busy (429); try again later"),
    "503": (answering(503), "the server is busy (503); try again later"),
    "file": (answering(302, Location="file:///etc/passwd"), "the server leads to file://; refused"),
    "ftp": (answering(302, Location="ftp://host/m.keras"), "the server leads to ftp://; refused"),
    "elsewhere": (answering(302, Location="http://127.0.0.1:1/x"), "the server cannot be reached"),
    "circle": (answering(302, Location="/m.keras"), "the server redirects too often"),
}


@pytest.mark.parametrize("begins", [1, 3])
@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_server_that_gives_other_answers_than_it_should(
    name: str, begins: int, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "hangs":
        monkeypatch.setattr(store, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(store, "_PAUSES", (0.01, 0.01))
    wide_keras(web.folder / "m.keras")
    misbehave, says = MISBEHAVIOURS[name]
    parts = itertools.count(1)

    def answer(handler: Any, first: int, last: int, content: bytes) -> None:
        (misbehave if next(parts) >= begins else moved(0))(handler, first, last, content)

    web.instead = answer
    if begins == 1 and says == WHOLE:
        note = inspect_file(f"{web.url}/m.keras").note
        assert note == "the server gives no parts of it, so that all of it was fetched"
    else:
        refused(invoke("inspect", f"{web.url}/m.keras"), f"m.keras: {says}")


def test_a_server_that_is_busy_is_asked_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PAUSES", (0.01, 0.01))
    model = wide_keras(web.folder / "m.keras")
    numbers = itertools.count()

    def answer(handler: Any, first: int, last: int, content: bytes) -> None:
        right = moved(0) if next(numbers) % 2 else answering(503)
        right(handler, first, last, content)

    web.instead = answer
    assert report(f"{web.url}/m.keras") == report(model)


@pytest.mark.parametrize(
    ("before", "location", "is_refused"),
    [
        ("https", "http://host/x", True),
        ("https", "https://other/x", False),
        ("https", "/x", False),
        ("https", "//other/x", False),
        ("http", "https://host/x", False),
        ("http", "HTTP://other/x", False),
    ],
)
def test_nobody_is_led_to_where_others_can_change_it(
    before: str, location: str, is_refused: bool
) -> None:
    response = SimpleNamespace(
        headers={"Location": location}, url=SimpleNamespace(scheme=before), close=lambda: None
    )
    found = store._check_redirection(None, None, SimpleNamespace(response=response))
    if is_refused:
        with pytest.raises(UnreadableModelError, match="leads to http://, where others can change"):
            asyncio.run(found)
    else:
        asyncio.run(found)


def test_what_is_wrong_with_an_optimizer_names_the_model(memory: Any, tmp_path: Path) -> None:
    def damage(file: Any) -> None:
        inside = file.create_group("optimizer_weights")
        inside.attrs["weight_names"] = [b"adam/iter"]
        inside["adam/iter"] = h5py.ExternalLink("other.h5", "/other")

    model = legacy_file(tmp_path / "m.h5", edit=damage)
    memory.put_file(str(model), "/models/m.h5")
    for given in (model, "memory://models/m.h5"):
        with pytest.raises(UnsafeModelError, match=f"^{given}: "):
            inspect_file(given)


# --- several ranges at once ---


def test_what_is_needed_is_fetched_side_by_side(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    model = many_layers(web.folder / "m.keras")
    lock, now, most = threading.Lock(), 0, 0

    def answer(handler: Any, first: int, last: int, content: bytes) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.004)
        with lock:
            now -= 1
        moved(0)(handler, first, last, content)

    web.instead = answer
    assert report(f"{web.url}/m.keras") == report(model)
    assert 1 < most <= store.CONNECTIONS
    together = len(web.requests)
    web.requests.clear()
    web.instead = None
    monkeypatch.setattr("bnfold.model.container.ahead.fetch", lambda *_: None)
    assert report(f"{web.url}/m.keras") == report(model)
    assert together < len(web.requests)


def test_little_is_fetched_one_after_another(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    many_layers(web.folder / "m.keras")
    fetch, alone = store.RemoteFile.fetch, []
    inside = False

    def together(self: store.RemoteFile, ranges: Any) -> int:
        nonlocal inside
        inside = True
        found = fetch(self, ranges)
        inside = False
        return found

    read = store.RemoteFile._read

    def count(self: store.RemoteFile, start: int, end: int) -> bytes:
        if not inside:
            alone.append(start)
        return read(self, start, end)

    monkeypatch.setattr(store.RemoteFile, "fetch", together)
    monkeypatch.setattr(store.RemoteFile, "_read", count)
    inspect_file(f"{web.url}/m.keras")
    assert len(alone) < 12, alone


def test_ranges_that_are_near_each_other_are_one_request() -> None:
    assert store._runs([]) == []
    assert store._runs([0, 1, 3, 6, 7]) == [(0, 4), (6, 8)]
    assert store._runs(range(100)) == [(0, 64), (64, 100)]


# --- several, and reports ---


@pytest.fixture
def models(memory: Any, tmp_path: Path) -> Any:
    """A folder of models in a store, some of them in folders."""
    memory.put_file(str(wide_keras(tmp_path / "m.keras")), "/models/b.keras")
    memory.put_file(str(legacy_file(tmp_path / "m.h5")), "/models/deep/er/a.h5")
    memory.put(str(directory_model(tmp_path / "d")), "/models/deep/d", recursive=True)
    memory.pipe_file("/models/.hidden/c.keras", b"x")
    memory.pipe_file("/models/notes.txt", b"x")
    memory.pipe_file("/models/w.weights.h5", b"x")
    memory.pipe_file("/models/saved/saved_model.pb", b"x")
    return memory


def test_a_folder_in_a_store_is_searched(models: Any) -> None:
    result = invoke("inspect", "memory://models/", "--format", "json", "--exclude", "saved")
    assert result.exit_code == 0, result.output
    assert [one["path"] for one in json.loads(result.stdout)["models"]] == [
        "memory://models/b.keras",
        "memory://models/deep/d",
        "memory://models/deep/er/a.h5",
    ]
    result = invoke("inspect", "memory://models", "--exclude", "deep", "--format", "json")
    assert [one["path"] for one in json.loads(result.stdout)["models"]] == [
        "memory://models/b.keras"
    ]
    assert "memory://models/saved: " in result.stderr  # a SavedModel is told, as in any folder
    refused(invoke("inspect", "memory://models/.hidden"), "memory://models/.hidden/c.keras: ")
    refused(invoke("inspect", "memory://models", "--exclude", "*"), "every model in it is excluded")


@pytest.mark.parametrize("url", ["memory://models/deep", "memory://models/deep/"])
@pytest.mark.parametrize("form", ["text", "markdown"])
def test_a_folder_in_a_store_is_one_without_a_slash_too(url: str, form: str, models: Any) -> None:
    result = invoke("inspect", url, "--format", form)
    assert result.exit_code == 0, result.output
    assert "deep/d" in result.stdout
    assert "deep/er/a.h5" in result.stdout


def test_a_folder_of_models_in_a_store_is_compared_with_one_here(
    models: Any, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    result = invoke("verify", "memory://models/deep", str(tmp_path / "out"))
    assert "memory://models/deep/d: " in result.stdout  # each is looked for
    assert "0 of 2 done" in result.stdout


def test_sarif_baseline_and_suppressions_have_the_url(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "memory://models/b.keras?secret"
    models.store["/models/b.keras?secret"] = models.store["/models/b.keras"]
    result = invoke("inspect", url, "--format", "sarif")
    run = json.loads(result.stdout)["runs"][0]
    places = [one["locations"][0]["physicalLocation"] for one in run["results"]]
    assert places
    shown = "memory://models/b.keras?..."
    assert {json.dumps(one["artifactLocation"]) for one in places} == {json.dumps({"uri": shown})}
    assert invoke("inspect", url, "--write-baseline", "known.json").exit_code == 0
    known = json.loads(Path("known.json").read_text())["findings"]
    assert {one["model"] for one in known} == {shown}
    again = invoke("inspect", url, "--baseline", "known.json", "--format", "json")
    assert json.loads(again.stdout)["models"][0]["findings"] == []
    other = invoke("inspect", "memory://models/deep", "--baseline", "known.json")
    assert "found no more" not in other.stderr  # nobody has looked
    text = '[[tool.bnfold.suppress]]\nmodel = "b.keras*"\nlayer = "*"\nrules = ["BN"]\nreason = "x"'
    Path("pyproject.toml").write_text(text)
    found = json.loads(invoke("inspect", url, "--format", "json").stdout)["models"][0]
    assert found["findings"] == []
    for form in ("text", "github", "junit", "markdown", "html"):
        said = invoke("inspect", url, "--no-config", "--format", form).stdout
        assert "secret" not in said
        assert "//models" in said


def test_python_takes_urls(models: Any) -> None:
    found = bnfold.inspect("memory://models/b.keras")
    assert str(found.path) == "memory://models/b.keras"
    with pytest.raises(UnreadableModelError, match="ftp:// is not read"):
        bnfold.inspect("ftp://host/m.keras")


# --- who may ask for anything ---


def test_one_file_imports_what_asks_stores() -> None:
    names = ("fsspec", "aiohttp", "s3fs", "gcsfs", "adlfs", "huggingface_hub", "urllib.request")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bnfold").rglob("*.py")
        if re.search(rf"^\s*(import|from) ({'|'.join(names)})\b", path.read_text("utf-8"), re.M)
    }
    assert found == {"bnfold/model/container/store.py"}


@pytest.mark.processes
def test_a_model_on_this_machine_loads_nothing_that_asks_stores(tmp_path: Path) -> None:
    code = (
        "import sys; from bnfold.jobs.inspect import inspect_file; inspect_file(sys.argv[1])\n"
        "print({'fsspec', 'aiohttp', 'socket', 'ssl', 'asyncio'} & set(sys.modules))"
    )
    model = str(keras_file(tmp_path / "m.keras"))
    done = subprocess.run(
        [sys.executable, "-c", code, model], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
