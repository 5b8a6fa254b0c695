"""Three hundred models, five of which cannot be read: the same report, whoever does the work.

By one process or several, by shards and `merge`, on a cluster of which a worker dies, and after
the run was killed: the bytes are the same. Only text says how long each model took.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from archives import keras_file, legacy_file, model_config
from places import ROOT
from projects import model

pytestmark = [pytest.mark.slow, pytest.mark.processes]

FORMATS = ("json", "jsonl", "sarif", "html", "txt", "xml", "md")
MERGED = ("json", "jsonl", "sarif")
TIME = re.compile(r" +\d+\.\d\d s$", re.MULTILINE)

Report = Mapping[str, bytes]
"""The files of a report, by name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`models` in a folder: 296 that can be read, of several kinds and names, and five others."""
    root = tmp_path_factory.mktemp("fleet")
    inside = root / "models"
    kinds = [
        model(root / "good.keras", "good", "other"),
        model(root / "bad.keras", "good", "bad", "more", spoil=["bad"]),
        model(root / "small.keras", "bn"),
        legacy_file(root / "old.h5"),
    ]
    names = ["a b", "ü#1", "50%", "x"]
    for number in range(296):
        kind = kinds[number % 11 % 4]
        below = inside / names[number % 4] / f"{number // 50}"
        below.mkdir(parents=True, exist_ok=True)
        shutil.copy(kind, below / f"{'once' if number == 150 else number}{kind.suffix}")
    whole = kinds[0].read_bytes()
    (inside / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (inside / "x" / "no zip.keras").write_bytes(b"<html>404</html>")
    with zipfile.ZipFile(inside / "50%" / "hostile.keras", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("metadata.json", "{}")
        bomb.writestr("config.json", b" " * (1 << 28))
    keras_file(inside / "wrong.keras", config={"class_name": 1})
    config = model_config()
    config["config"]["layers"][1]["inbound_nodes"] = [{"args": 3}]
    keras_file(inside / "ü#1" / "unsupported.keras", config=config)
    return root


def bnfold(folder: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bnfold", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files(place: Path) -> Report:
    """What is in a folder; what text says of time is left out."""
    found = {str(one.relative_to(place)): one.read_bytes() for one in sorted(place.rglob("*.*"))}
    return {
        name: TIME.sub("", text.decode()).encode() if name.endswith(".txt") else text
        for name, text in found.items()
        if Path(place, name).is_file()
    }


def report(folder: Path, place: str, form: str, *options: object) -> Report:
    """The report of all models in a format, written to a folder of its own."""
    (folder / place).mkdir()
    done = bnfold(folder, "inspect", "models", "--output", f"{place}/report.{form}", "-q", *options)
    assert done.returncode == 2, done.stderr
    return files(folder / place)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> Mapping[str, Report]:
    """Each report, as one process makes it."""
    found = {form: report(folder, f"one-{form}", form, "--jobs", "1") for form in FORMATS}
    summary = json.loads(found["json"]["report.json"])["summary"]
    assert summary == {"found": 301, "read": 296}
    assert len(found["html"]) == 1 + 296
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("jobs", [2, 5])
def test_by_several_processes(
    folder: Path, wanted: Mapping[str, Report], form: str, jobs: int
) -> None:
    assert report(folder, f"jobs-{jobs}-{form}", form, "--jobs", jobs) == wanted[form]


@pytest.mark.parametrize("form", MERGED)
@pytest.mark.parametrize("of", [7, 20])
def test_by_shards(folder: Path, wanted: Mapping[str, Report], form: str, of: int) -> None:
    place = Path(f"shards-{of}-{form}")
    (folder / place).mkdir()
    parts = [place / f"{number}.{form}" for number in range(1, of + 1)]
    for number, part in enumerate(parts, start=1):
        done = bnfold(folder, "inspect", "models", "--shard", f"{number}/{of}", "--output", part)
        assert (folder / part).exists(), done.stderr
    for order in (parts, parts[::-1], [*parts, parts[3]]):
        merged = bnfold(folder, "merge", *order)
        assert merged.returncode == 0, merged.stderr
        assert merged.stdout.encode() == wanted[form][f"report.{form}"]
    missing = bnfold(folder, "merge", *parts[:2], *parts[3:])
    assert missing.returncode == 2
    assert missing.stderr == f"bnfold: of {of} shards these are missing: 3\n"


@pytest.mark.parametrize("end", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("moment", [0, 3, 150, 295])
def test_after_it_was_ended(
    folder: Path, wanted: Mapping[str, Report], end: str, moment: int
) -> None:
    """Once so many models are done; what is done again is as it was, also in the journal."""
    place = f"ended-{end}-{moment}"
    rows = folder / f"{place}.jsonl"
    words = ["inspect", "models", "-q", "--jobs", "2", "--resume", rows]
    started = subprocess.Popen(
        [sys.executable, "-m", "bnfold", *map(str, words), "--output", f"{place}.sarif"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not rows.exists() or rows.read_bytes().count(b"\n") < moment:
        time.sleep(0.002)
        assert started.poll() is None
    started.send_signal(getattr(signal, end))
    started.wait(timeout=60)
    if moment < 295:  # after which it may have come to its end
        assert not (folder / f"{place}.sarif").exists()
        assert rows.read_bytes().count(b"\n") < 301
    sarif = report(folder, place, "sarif", "--resume", rows)
    assert sarif == wanted["sarif"]
    assert rows.read_bytes() == wanted["jsonl"]["report.jsonl"]


DEADLY = """
import os, signal
from pathlib import Path
from distributed import WorkerPlugin

class Deadly(WorkerPlugin):
    name = "deadly"

    def setup(self, worker):
        from bnfold.fleet import pool
        perform = pool.perform

        def deadly(request):
            if "once" in request["path"] and not Path(request["folder"], "dead").exists():
                Path(request["folder"], "dead").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return perform(request)

        pool.perform = deadly
"""


@pytest.fixture
def scheduler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of two processes, one of which dies in the middle of the models."""
    distributed = pytest.importorskip("distributed")
    (folder / "deadly_plugin.py").write_text(DEADLY)
    (folder / "dead").unlink(missing_ok=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.syspath_prepend(str(folder))
    from deadly_plugin import Deadly

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(Deadly())
        yield cluster.scheduler_address
    assert (folder / "dead").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_on_a_cluster_whose_worker_dies(
    folder: Path, wanted: Mapping[str, Report], form: str, scheduler: str
) -> None:
    dask = ["--engine", "dask", "--scheduler", scheduler]
    assert report(folder, f"dask-{form}", form, *dask) == wanted[form]
