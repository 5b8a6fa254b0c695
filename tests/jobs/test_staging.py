"""A result appears whole or not at all: whatever goes wrong, and whenever."""

import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import chain, directory_model, keras_file, legacy_file
from click.testing import CliRunner
from tiers import IS_ROOT, some

import bnfold
from bnfold.cli import main
from bnfold.errors import OutputError
from bnfold.jobs import fold, staging
from bnfold.jobs.staging import Staging
from bnfold.jobs.verify import Proof

OLD = b"what stood here before"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return keras_file(tmp_path / "in" / "m.keras")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "out"
    found.mkdir()
    return found


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def fails(*arguments: object, says: str = "") -> None:
    command = ["fold", "--no-verify", *map(str, arguments)]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("bnfold: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert says in result.stderr


def is_model(path: Path) -> bool:
    return bnfold.inspect(path).plan.decisions == ()


def test_an_existing_file_needs_force(source: Path, folder: Path) -> None:
    target = folder / "m.keras"
    target.write_bytes(OLD)
    fails(source, target, says="--force")
    assert target.read_bytes() == OLD
    bnfold.fold(source, target, verify=False, force=True)
    assert is_model(target)
    assert names(folder) == ["m.keras"]


def test_the_source_itself_as_target(source: Path) -> None:
    before = source.read_bytes()
    fails(source, source, says="--force")
    assert source.read_bytes() == before
    bnfold.fold(source, source, verify=False, force=True)
    assert is_model(source)
    assert names(source.parent) == ["m.keras"]


def test_a_directory_that_does_not_exist(source: Path, folder: Path) -> None:
    fails(source, folder / "none" / "m.keras", says="does not exist")
    fails(source, source / "m.keras", says="does not exist")
    assert names(folder) == []


def test_a_directory_in_the_way(source: Path, folder: Path) -> None:
    (folder / "m.keras").mkdir()
    fails(source, folder / "m.keras", "--force", says="directory")
    assert names(folder) == ["m.keras"]


def test_another_suffix(source: Path, folder: Path) -> None:
    for name in ("m", "m.h5", "m.keras.txt", ".keras"):
        fails(source, folder / name, says="must end in .keras")
    assert names(folder) == []


def test_a_name_too_long(source: Path, folder: Path) -> None:
    fails(source, folder / ("n" * 300 + ".keras"))
    fails(source, folder / ("n" * 9000 + ".keras"))
    assert names(folder) == []


@pytest.mark.skipif(IS_ROOT, reason="root can write everywhere")
def test_a_directory_that_is_read_only(source: Path, folder: Path) -> None:
    folder.chmod(0o500)
    fails(source, folder / "m.keras", says="Permission denied")
    assert names(folder) == []


def test_a_link_as_target_is_followed(source: Path, folder: Path) -> None:
    """However many links lead there, and whatever the file at the end is called."""
    (folder / "stored").mkdir()
    blob = folder / "stored" / "0a1b"
    blob.write_bytes(OLD)
    (folder / "latest").symlink_to("stored/0a1b")
    (folder / "m.keras").symlink_to("latest")
    fails(source, folder / "m.keras", says="--force")
    bnfold.fold(source, folder / "m.keras", verify=False, force=True)
    assert os.readlink(folder / "m.keras") == "latest"
    assert os.readlink(folder / "latest") == "stored/0a1b"
    assert blob.read_bytes() == (folder / "m.keras").read_bytes() != OLD
    assert is_model(folder / "m.keras")
    assert (names(folder), names(folder / "stored")) == (["latest", "m.keras", "stored"], ["0a1b"])


def test_a_link_to_the_source_itself(source: Path, folder: Path) -> None:
    before = source.read_bytes()
    (folder / "m.keras").symlink_to(source)
    for one, other in ((source, folder / "m.keras"), (folder / "m.keras", folder / "m.keras")):
        fails(one, other, says="--force")
        bnfold.fold(one, other, verify=False, force=True)
        assert (folder / "m.keras").is_symlink()
        assert not source.is_symlink()
        assert source.read_bytes() != before
        assert is_model(source)


def test_a_dangling_link_as_target(source: Path, folder: Path) -> None:
    (folder / "m.keras").symlink_to("stored.keras")
    fails(source, folder / "m.keras", says="--force")
    assert names(folder) == ["m.keras"]
    bnfold.fold(source, folder / "m.keras", verify=False, force=True)
    assert os.readlink(folder / "m.keras") == "stored.keras"
    assert is_model(folder / "stored.keras")


def test_links_that_cannot_be_followed(source: Path, folder: Path) -> None:
    (folder / "loop.keras").symlink_to("loop.keras")
    fails(source, folder / "loop.keras", "--force", says="leads back to itself")
    (folder / "far.keras").symlink_to("none/far.keras")
    fails(source, folder / "far.keras", "--force", says="does not exist")
    os.mkfifo(folder / "pipe")
    (folder / "pipe.keras").symlink_to("pipe")
    fails(source, folder / "pipe.keras", "--force", says="neither a file nor a directory")
    (folder / "m.h5").write_bytes(OLD)
    (folder / "m.keras").symlink_to("m.h5")
    fails(source, folder / "m.keras", "--force", says="the name of another model")
    assert (folder / "m.h5").read_bytes() == OLD
    assert len(names(folder)) == 6


def test_a_link_to_a_directory_model(source: Path, folder: Path) -> None:
    model = directory_model(source.parent / "model")
    (folder / "stored").mkdir()
    target = shutil.copytree(model, folder / "stored" / "v1")
    (target / "more").write_bytes(OLD)
    target.chmod(0o700)
    (folder / "model").symlink_to("stored/v1")
    bnfold.fold(model, folder / "model", verify=False, force=True)
    assert os.readlink(folder / "model") == "stored/v1"
    assert not (target / "more").exists()
    assert is_model(folder / "model")
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert names(folder / "stored") == ["v1"]


def test_a_report_follows_a_link_and_keeps_the_mode(source: Path, folder: Path) -> None:
    (folder / "stored.txt").write_bytes(OLD)
    (folder / "stored.txt").chmod(0o600)
    (folder / "report.txt").symlink_to("stored.txt")
    done = CliRunner().invoke(
        main, ["inspect", str(source), "--output", str(folder / "report.txt")]
    )
    assert done.exit_code == 0, done.output
    assert (folder / "report.txt").is_symlink()
    assert (folder / "stored.txt").read_bytes() != OLD
    assert mode(folder / "stored.txt") == 0o600


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o444, 0o444), (0o6775, 0o775)])
def test_a_replaced_file_keeps_its_mode(
    before: int, after: int, source: Path, folder: Path
) -> None:
    """But for set-user-ID and set-group-ID, and whoever reads it through another hard link."""
    for file in (source, legacy_file(source.with_suffix(".h5"))):
        target = folder / file.name
        target.write_bytes(OLD)
        os.link(target, folder / "other name")
        target.chmod(before)
        bnfold.fold(file, target, verify=False, force=True)
        assert mode(target) == after
        assert (folder / "other name").read_bytes() == OLD
        (folder / "other name").unlink()


def test_a_replaced_directory_keeps_the_modes_of_what_is_in_it(source: Path, folder: Path) -> None:
    model = directory_model(source.parent / "model")
    target = shutil.copytree(model, folder / "model")
    target.chmod(0o750)
    (target / "config.json").chmod(0o600)
    bnfold.fold(model, target, verify=False, force=True)
    assert (mode(target), mode(target / "config.json")) == (0o750, 0o600)


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_root_leaves_a_file_to_its_owner(source: Path, folder: Path) -> None:
    target = folder / "m.keras"
    target.write_bytes(OLD)
    target.chmod(0o640)
    os.chown(target, 12345, 23456)
    bnfold.fold(source, target, verify=False, force=True)
    assert (target.stat().st_uid, target.stat().st_gid, mode(target)) == (12345, 23456, 0o640)


def test_a_group_that_cannot_be_kept_gets_what_everybody_gets(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "m.keras"
    target.write_bytes(OLD)
    target.chmod(0o664)

    def refused(*_: Any) -> bool:
        return False

    monkeypatch.setattr(staging, "_give_to", refused)
    bnfold.fold(source, target, verify=False, force=True)
    assert mode(target) == 0o644


def test_an_access_list_is_kept(source: Path, folder: Path) -> None:
    """The owner rw, user 12345 rw, the group nothing; so the mode alone would admit the group."""
    target = folder / "m.keras"
    target.write_bytes(OLD)
    entries = [(1, 6, -1), (2, 6, 12345), (4, 0, -1), (16, 6, -1), (32, 0, -1)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(target, "system.posix_acl_access", packed)
    except OSError:
        pytest.skip("no access lists here")
    bnfold.fold(source, target, verify=False, force=True)
    assert os.getxattr(target, "system.posix_acl_access") == packed


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_permissions_follow_the_umask(mask: int, source: Path, folder: Path) -> None:
    legacy = legacy_file(source.with_suffix(".h5"))
    directory = directory_model(source.parent / "model")
    old = os.umask(mask)
    try:
        for file, name in ((source, "m.keras"), (legacy, "m.h5"), (directory, "m")):
            bnfold.fold(file, folder / name, verify=False)
    finally:
        os.umask(old)
    for found in folder.rglob("*"):
        wanted = (0o777 if found.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(found.stat().st_mode) == wanted, found


WRITERS = {
    "fold": ["fold", "--no-verify"],
    "fold and prove": ["fold"],
    "export": ["export"],
    "recalibrate": ["recalibrate", "--data", "data.npz"],
}
KINDS = ["pipe", "socket", "device", "directory", "full directory"]


@pytest.mark.parametrize("is_link", [False, True], ids=["", "linked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_no_file_is_never_opened_or_replaced(
    writer: str, kind: str, is_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = keras_file(tmp_path / "in.keras")
    np.savez(tmp_path / "data.npz", np.zeros((8, 4)))
    name = "m.onnx" if writer == "export" else "m.keras"
    if kind == "full directory":  # which only a directory could replace
        model, name = directory_model(tmp_path / "in"), "m.onnx" if writer == "export" else "m"
    target = tmp_path / f"real-{name}" if is_link else tmp_path / name
    end = make_special(target, kind)
    if is_link:
        (tmp_path / name).symlink_to(target)
    before = looks(target), names(tmp_path)
    result = CliRunner().invoke(main, [*WRITERS[writer], "--force", str(model), name])
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith(f"bnfold: {name}: exists and is ")
    assert result.stderr.count("\n") == 1
    assert (looks(target), names(tmp_path)) == before
    if kind == "pipe":
        with pytest.raises(BlockingIOError):
            os.read(end, 1)
    if end >= 0:
        os.close(end)


def looks(path: Path) -> tuple[object, ...]:
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_mtime_ns, sorted(path.rglob("*"))


def make_special(path: Path, kind: str) -> int:
    """Make what is no file; returns a descriptor to be closed, through which a pipe is read."""
    if kind == "pipe":
        os.mkfifo(path)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)  # so that nobody waits for the other end
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except OSError:
            pytest.skip("only root makes devices")
    else:
        path.mkdir()
        if kind == "full directory":
            (path / "config.json").write_bytes(OLD)
            (path / "thesis.tex").write_bytes(OLD)
    return -1


REPORTS = [["--output"], ["--format", "json", "--output"], ["--write-baseline"]]


@pytest.mark.parametrize("options", REPORTS, ids=" ".join)
@pytest.mark.parametrize("how", ["new", "pipe", "device", "link", "directory"])
def test_where_reports_may_go(
    how: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, report = keras_file(tmp_path / "in.keras"), tmp_path / "r"
    end = make_special(report, how) if how in KINDS else -1
    if how == "link":
        (tmp_path / "real").write_bytes(b'{"version": 1, "findings": []}')
        (tmp_path / "real").chmod(0o640)
        report.symlink_to("real")
    before = names(tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(model), *options, "r"])
    assert "internal error" not in result.output
    if how == "directory":
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert names(tmp_path) == before
        return
    assert result.exit_code == 0, result.output
    assert names(tmp_path) == sorted({*before, "r"})
    if how == "pipe":
        assert len(os.read(end, 1 << 16)) > 20
        os.close(end)
    elif how != "device":
        assert len(report.read_bytes()) > 20
    if how == "link":
        assert report.is_symlink()
        assert mode(tmp_path / "real") == 0o640


@pytest.mark.parametrize("options", REPORTS, ids=" ".join)
def test_a_report_to_what_is_open_already_is_added_to_it(
    options: list[str], source: Path, folder: Path
) -> None:
    with (folder / "log").open("ab") as log:
        log.write(OLD)
        log.flush()
        words = [sys.executable, "-m", "bnfold", "inspect", source, *options, "/dev/stdout"]
        subprocess.run(words, stdout=log, check=True)
        log.write(b"and after")
    content = (folder / "log").read_bytes()
    assert content.startswith(OLD)
    assert content.endswith(b"and after")
    assert len(content) > len(OLD) + 30
    assert names(folder) == ["log"]


# --- directories ---------------------------------------------------------------------------------


def test_a_directory_is_replaced(source: Path, folder: Path) -> None:
    model = directory_model(source.parent / "model")
    target = shutil.copytree(model, folder / "model")
    (target / "more").write_bytes(OLD)
    fails(model, target, says="--force")
    assert (target / "more").exists()
    bnfold.fold(model, target, verify=False, force=True)
    assert not (target / "more").exists()
    assert is_model(target)
    assert names(folder) == ["model"]


def test_a_file_is_not_replaced_by_a_directory(source: Path, folder: Path) -> None:
    model = directory_model(source.parent / "model")
    (folder / "model").write_bytes(OLD)
    fails(model, folder / "model", "--force", says="no directory")
    assert (folder / "model").read_bytes() == OLD


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_the_old_directory_comes_back(
    error: BaseException, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = directory_model(source.parent / "model")
    target = shutil.copytree(model, folder / "model")
    (target / "more").write_bytes(OLD)

    def replace(_: Path, __: Path) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        bnfold.fold(model, target, verify=False, force=True)
    assert (target / "more").read_bytes() == OLD
    assert names(folder) == ["model"]


# --- failures on the way -------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_proof_leaves_what_was_there(
    existing: bool, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder / "m.keras"
    if existing:
        target.write_bytes(OLD)
    written, written_to = [], []

    class Refused:
        def accepted(self, *, strict: bool) -> bool:
            return strict and False

        def reworded(self, change: Callable[[str], str]) -> "Refused":
            assert change(str(written_to[0])) == str(target)
            return self

    def verify(_: Path, folded: Path, **__: Any) -> Refused:
        written_to.append(folded)
        written.append(folded.read_bytes()[:2])
        return Refused()

    monkeypatch.setattr("bnfold.jobs.verify.verify", verify)
    report = fold.fold_file(source, target, force=True, proof=Proof())
    assert not report.written
    assert written == [b"PK"]
    assert names(folder) == (["m.keras"] if existing else [])
    assert not existing or target.read_bytes() == OLD


def test_a_proof_that_breaks_off(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnfold.jobs.verify.verify", verify)
    with pytest.raises(KeyboardInterrupt):
        fold.fold_file(source, folder / "m.keras", proof=Proof())
    assert names(folder) == []


def test_an_error_names_the_target_and_not_what_was_to_become_it(folder: Path) -> None:
    target = folder / "m.keras"
    with (
        pytest.raises(OutputError, match=rf"^{target}: no$"),
        Staging(target, "keras", force=False) as place,
    ):
        raise OutputError(f"{place.path}: no")


def test_a_target_that_appears_meanwhile(source: Path, folder: Path) -> None:
    target = folder / "m.keras"
    with Staging(target, "keras", force=False) as place:
        place.path.write_bytes(b"new")
        target.write_bytes(OLD)
        with pytest.raises(OutputError, match="exists"):
            place.publish()
    assert target.read_bytes() == OLD
    assert names(folder) == ["m.keras"]


def test_ctrl_c_while_the_staging_directory_is_made(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def interrupted(self: Path, *arguments: Any, **options: Any) -> None:
        mkdir(self, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bnfold.fold(source, folder / "m.keras", verify=False)
    assert names(folder) == []


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
from bnfold.cli import run
sys.argv = ["bnfold", "fold", "--no-verify", "--force", *sys.argv[1:]]
run()
"""


# Each starts a process, so the default run takes each size and each kind, not each pair of them.
@pytest.mark.parametrize(
    ("size", "kind"), some(product([0, 1000, 3000, 6000], [".keras", ".h5", ""]), 2)
)
@pytest.mark.few(3)
def test_a_file_that_may_not_grow(size: int, kind: str, source: Path, folder: Path) -> None:
    model = {
        ".keras": lambda: source,
        ".h5": lambda: legacy_file(source.with_suffix(".h5")),
        "": lambda: directory_model(source.parent / "model"),
    }[kind]()
    target = folder / f"m{kind}"
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED.format(size=size), model, target],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    if done.returncode == 0:
        assert is_model(target)
        return
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("bnfold: ")
    assert done.stderr.count("\n") == 1
    assert "internal error" not in done.stderr
    assert names(folder) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "bnfold-test", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


# Each starts a process, so the default run takes each size and each kind, not each pair of them.
@pytest.mark.parametrize(("left", "kind"), some(product([0, 1, 2, 4], [".keras", ".h5", ""]), 2))
@pytest.mark.few(3)
def test_a_full_disk(kind: str, left: int, source: Path, small_disk: Path) -> None:
    model = {
        ".keras": lambda: source,
        ".h5": lambda: legacy_file(source.with_suffix(".h5")),
        "": lambda: directory_model(source.parent / "model"),
    }[kind]()
    (small_disk / "filling").write_bytes(bytes((8 - left) * 4096))
    target = small_disk / f"m{kind}"
    code = "import sys; from bnfold.cli import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "fold", "--no-verify", model, target],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        assert is_model(target)
        return
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "internal error" not in done.stderr
    assert names(small_disk) == ["filling"]


# --- signals -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, h5 = chain(300)
    return keras_file(tmp_path_factory.mktemp("large") / "m.keras", config=config, h5=h5)


@pytest.mark.parametrize(
    ("delay", "number"),
    # One moment for each signal by default: each waits for a whole process.
    some(
        [(0.0, signal.SIGINT), (0.1, signal.SIGINT), (0.4, signal.SIGTERM), (0.02, signal.SIGTERM)]
    ),
)
@pytest.mark.few(1)
def test_a_signal_at_any_moment(number: int, delay: float, large: Path, folder: Path) -> None:
    target = folder / "m.keras"
    target.write_bytes(OLD)
    code = "from bnfold.cli import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "fold", "--no-verify", "--force", large, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while len(names(folder)) == 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)  # until the staging directory is there
    time.sleep(delay)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert names(folder) == ["m.keras"]
    assert "Traceback" not in stderr
    if target.read_bytes() == OLD:
        assert process.returncode != 0
    else:
        assert is_model(target)


IN_A_FINALIZER = """
import signal, sys, time
from bnfold.cli import group

class Finalized:
    def __del__(self):
        signal.raise_signal({number})
        time.sleep(0.01)

@group.main.command()
def wait():
    Finalized()
    time.sleep(20)

sys.argv[1:] = ["wait"]
group.run()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_a_finalizer_is_not_lost(number: int, code: int) -> None:
    words = [sys.executable, "-c", IN_A_FINALIZER.format(number=int(number))]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=15)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
