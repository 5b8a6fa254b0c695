"""A real Dask cluster of several processes: the same report, whoever dies meanwhile."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from projects import model, run

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.usefixtures("folder")


class Deadly(distributed.WorkerPlugin):  # type: ignore[misc,name-defined]
    """Has some models kill the worker that does them: always, or once."""

    name = "deadly"

    def setup(self, worker: Any) -> None:
        from bnfold.fleet import pool

        perform = pool.perform

        def deadly(request: dict[str, Any]) -> dict[str, Any]:
            path = request["path"]
            if "deadly" in path or ("once" in path and not _marked(request)):
                os.kill(os.getpid(), signal.SIGKILL)
            return perform(request)

        pool.perform = deadly


def _marked(request: dict[str, Any]) -> bool:
    mark = Path(request["folder"], "marked")
    if mark.exists():
        return True
    mark.touch()
    return False


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two worker processes on this machine."""
    sys.path.insert(0, str(Path(__file__).parent))  # where the workers find the plugin
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as found:
        yield found
    sys.path.remove(str(Path(__file__).parent))


@pytest.mark.slow
@pytest.mark.processes
def test_a_cluster_reports_the_same_whoever_dies(cluster: Any) -> None:
    Path("models").mkdir()
    for number in range(40):
        model(Path(f"models/{number:02}.keras"), "good", "other")
    Path("models/cut.keras").write_bytes(b"PK\x03\x04")
    shutil.copy("models/00.keras", "models/once.keras")
    options = ["--format", "json", "--quiet"]
    here = run("models", *options)
    dask = ["--engine", "dask", "--scheduler", cluster.scheduler_address]
    with distributed.Client(cluster) as client:
        client.register_plugin(Deadly())

    def kill() -> None:
        time.sleep(2)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    there = run("models", *options, *dask)
    killer.join()
    assert there.exit_code == here.exit_code == 2
    assert there.stdout == here.stdout
    shutil.copy("models/00.keras", "models/deadly.keras")
    found = json.loads(run("models", *options, *dask).stdout)
    assert found["summary"] == {"found": 43, "read": 41}
    (cut, deadly) = found["unreadable"]
    assert cut["path"] == "models/cut.keras"
    assert "two workers of the cluster died of it" in deadly["message"]


def test_no_scheduler_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.fleet import cluster

    monkeypatch.setattr(cluster, "_TIMEOUT", 0.2)
    model(Path("m.keras"), "good")
    for address in ("tcp://127.0.0.1:9", "nonsense://x", "no address"):
        result = run("m.keras", "--engine", "dask", "--scheduler", address)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"bnfold: no Dask scheduler at {address}: ")


def test_without_dask_it_is_said_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    model(Path("m.keras"), "good")
    result = run("m.keras", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9")
    assert result.exit_code == 2
    assert "pip install 'bnfold[dask]'" in result.stderr


def test_another_version_on_a_worker_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.fleet import cluster

    monkeypatch.setattr(distributed, "get_client", None)  # it does not come to that
    answer = cluster.attempt({"path": "m"}, ["run", "0"], "0.0.1")
    assert answer["exit_code"] == 2
    assert "and here is 0.0.1" in answer["error"]


class Ending:
    """Stands for a process that has nothing to do."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def end(self) -> None:
        self.ended.set()


def test_on_a_cluster_a_process_ends_that_got_nothing_more_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bnfold.fleet import pool

    idle: Any = Ending()
    monkeypatch.setattr(pool, "_idle", [idle])
    monkeypatch.setattr(pool, "_IDLE", 0.2)
    pool.release_soon()
    pool.release_soon()
    assert not idle.ended.is_set()
    assert idle.ended.wait(30)
    assert not pool._idle
