"""What a process leaves that is killed with its supervisor, the next one removes, and only that."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bnfold.jobs.staging import Staging
from bnfold.supervision import leftovers, link

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is told by")

STAGE = """
import sys
from pathlib import Path
from bnfold.jobs.staging import Staging
from bnfold.supervision import link

with Staging(Path(sys.argv[1], "m.h5"), "h5", force=True) as staging, link.temporary_folder():
    staging.path.write_bytes(b"half of it")
    print("written", flush=True)
    sys.stdin.read()
"""


def at_work(folder: Path) -> subprocess.Popen[str]:
    """A process that has a staging directory in a folder, and a temporary folder there, too."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def end(process: subprocess.Popen[str], *, awaited: bool = True) -> None:
    process.send_signal(signal.SIGKILL)
    if awaited:
        process.communicate()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def write(folder: Path, name: str) -> None:
    with Staging(folder / name, "h5", force=True) as staging:
        staging.path.write_bytes(b"all of it")
        staging.publish()


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


@pytest.mark.parametrize("awaited", [True, False], ids=["reaped", "not reaped"])
def test_what_a_killed_process_has_left_is_removed(awaited: bool, tmp_path: Path) -> None:
    killed = at_work(tmp_path)
    end(killed, awaited=awaited)
    assert len(names(tmp_path)) == 2
    write(tmp_path, "n.h5")
    assert [name.startswith("bnfold-") for name in names(tmp_path)] == [True, False]
    assert names(tmp_path)[1] == "n.h5"
    killed.communicate()


def test_a_temporary_folder_of_a_killed_process_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(at_work(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with link.temporary_folder():
        assert len(names(tmp_path)) == 2
    assert [name.startswith(".bnfold-") for name in names(tmp_path)] == [True]


def test_what_a_living_process_has_is_left_alone(tmp_path: Path) -> None:
    living = at_work(tmp_path)
    before = names(tmp_path)
    write(tmp_path, "n.h5")
    assert names(tmp_path) == sorted([*before, "n.h5"])
    living.communicate("")
    assert names(tmp_path) == ["n.h5"]


def test_a_stopped_process_lives(tmp_path: Path) -> None:
    living = at_work(tmp_path)
    living.send_signal(signal.SIGSTOP)
    before = names(tmp_path)
    write(tmp_path, "n.h5")
    assert names(tmp_path) == sorted([*before, "n.h5"])
    end(living)


def test_another_process_of_the_same_number(tmp_path: Path) -> None:
    mine = leftovers.name(".bnfold-")
    boot, spaces, pid, start, random = mine.split("_")
    assert int(pid) == os.getpid()
    (tmp_path / mine).mkdir()
    (tmp_path / "_".join([boot, spaces, pid, str(int(start) - 1), random])).mkdir()
    leftovers.remove(tmp_path, ".bnfold-")
    assert names(tmp_path) == [mine]


@pytest.mark.parametrize("where", ["boot", "namespace"])
def test_another_machine_and_another_container(where: str, tmp_path: Path) -> None:
    process = at_work(tmp_path)
    end(process)
    (found,) = tmp_path.glob(".bnfold-*")
    pattern, instead = (r"-[0-9a-f]+", "-77") if where == "boot" else (r"_\d+", "_77")
    other = found.rename(found.with_name(re.sub(pattern, instead, found.name, count=1)))
    write(tmp_path, "n.h5")
    assert other.is_dir()


@pytest.mark.parametrize("kind", ["file", "link", "old"])
def test_what_only_looks_like_it_is_left_alone(kind: str, tmp_path: Path) -> None:
    end(at_work(tmp_path))
    (found,) = tmp_path.glob(".bnfold-*")
    kept = tmp_path / "kept"
    found.rename(kept)
    if kind == "file":
        found.write_bytes(b"")
    elif kind == "link":
        found.symlink_to(kept)
    else:
        found = found.with_name(".bnfold-0123456789abcdef")
        found.mkdir()
    write(tmp_path, "n.h5")
    assert os.path.lexists(found)
    assert names(kept) == ["m.h5"]


REPLACE = """
import os, shutil, signal, sys
from pathlib import Path
from bnfold.jobs.staging import Staging

with Staging(Path(sys.argv[1]), "keras-directory", force=True) as staging:
    staging.path.mkdir()
    {name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    staging.publish()
"""


def killed_at(name: str, folder: Path) -> Path:
    """Replace a model directory, and kill the process where it calls a function."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("old")
    (model / "metadata.json").write_text("old")
    (folder / "link").symlink_to(model)
    code = REPLACE.format(name=name)
    subprocess.run([sys.executable, "-c", code, folder / "link"], check=False)
    return model


def test_a_directory_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    model = killed_at("Path.replace", tmp_path)  # between the two steps
    assert not model.exists()
    write(tmp_path, "n.h5")
    assert names(tmp_path) == ["link", "model", "n.h5"]
    assert (model / "config.json").read_text() == "old"


def test_a_directory_that_was_replaced_does_not_come_back(tmp_path: Path) -> None:
    """Where the new one was taken elsewhere: what is left of the old one may be half of it."""
    model = killed_at("shutil.rmtree", tmp_path)
    assert list(tmp_path.glob(".bnfold-*/replaced"))
    assert not list(model.iterdir())
    model.rmdir()
    write(tmp_path, "n.h5")
    assert names(tmp_path) == ["link", "n.h5"]


def test_many_at_once(tmp_path: Path) -> None:
    for _ in range(3):
        end(at_work(tmp_path))
    working = [at_work(tmp_path) for _ in range(3)]
    assert len(list(tmp_path.glob(".bnfold-*"))) == 3
    for process in working:
        process.communicate("")
    assert names(tmp_path) == []
