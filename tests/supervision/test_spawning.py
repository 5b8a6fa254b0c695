"""Copies of bnfold's own process: as good as new ones, and only where they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where there are copies")

BEGINNING = f"""
import json, os, signal, sys, threading
sys.path.insert(0, {str(ROOT)!r})
from bnfold.supervision import link, platforms, spawning
heard, told = os.pipe()
link.connect(told)
"""


def does(folder: Path, code: str) -> str:
    """What a process prints that a supervisor has, or is taken to have."""
    return subprocess.run(
        [sys.executable, "-c", BEGINNING + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


LOOK = """
def look(pipe):
    os.read(0, 1)
    found = {
        "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],  # the last is of the listing
        "own group": os.getpgid(0) == os.getpid(),
        "words": sys.argv,
        "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "SIGINT": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "SIGTERM": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "SIGHUP": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
    }
    os.write(1, json.dumps(found).encode())
    os.write(pipe, b"told")

signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
more = open(os.devnull), os.open(os.devnull, os.O_RDONLY), os.pipe()
os.set_inheritable(more[1], True)
print("not written yet", end=" ")
process, pipe, asking, answers = spawning.copy(look)
os.write(asking, b"x")
print(os.read(answers, 4096).decode())
print(os.read(pipe, 4), os.read(pipe, 4), process.wait())
"""


def test_a_copy_is_as_a_new_process_is(tmp_path: Path) -> None:
    text, _, more = does(tmp_path, LOOK).partition("\n")
    assert json.loads(text.removeprefix("not written yet ")) == {
        "files": [0, 1, 2, 3],
        "own group": True,
        "words": ["bnfold"],
        "mask": 0,
        "SIGINT": True,
        "SIGTERM": True,
        "SIGHUP": True,
    }
    assert more == "b'told' b'' 0\n"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise KeyboardInterrupt", 1),
        ("1 / 0", 1),
        ("os.kill(os.getpid(), 9)", -9),
    ],
)
def test_no_copy_goes_where_its_original_went(tmp_path: Path, end: str, code: int) -> None:
    """What follows the call, and is put away after it, is for the original alone."""
    text = does(
        tmp_path,
        f"""
def end(_):
    {end}

try:
    process, *_ = spawning.copy(end)
    code = process.wait()
finally:
    with open("ends", "a") as file:
        print("an end", file=file)
print(code)
""",
    )
    assert text == f"{code}\n"
    assert (tmp_path / "ends").read_text() == "an end\n"


def test_signals_wait_until_the_copy_is_told_from_the_original(tmp_path: Path) -> None:
    """Or the handler of the original would raise in the copy, which goes on in its place."""
    text = does(
        tmp_path,
        """
def stop(number, _):
    raise SystemExit("stopped")

def fork():
    pid = actually()
    os.kill(os.getpid(), signal.SIGTERM)
    return pid

signal.signal(signal.SIGTERM, stop)
actually, os.fork = os.fork, fork
main = os.getpid()
try:
    spawning.copy(lambda _: None)
except SystemExit:
    print(os.getpid() == main, flush=True)
""",
    )
    assert text == "True\n"


@pytest.mark.parametrize(
    ("before", "may"),
    [
        ("", True),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", False),
        ("kept = b'x' * spawning._MOST_COPIED", False),
        ("os.environ['OPENBLAS_NUM_THREADS'] = '4'; import numpy", False),
        ("link._link.pipe = None", False),
        ("sys.platform = 'darwin'", False),
    ],
)
def test_a_process_is_copied_only_where_that_is_safe(
    tmp_path: Path, before: str, may: bool
) -> None:
    assert does(tmp_path, f"{before}\nprint(spawning.may_copy())") == f"{may}\n"


def test_what_the_original_has_told_its_supervisor_is_none_of_the_copys(tmp_path: Path) -> None:
    text = does(
        tmp_path,
        """
from pathlib import Path
link.made(Path("bnfold-folder"))
link.running({Path("one.keras"): "one.keras"})

def tell(pipe):
    link.connect(pipe)
    link.begin()
    os.write(1, f"{link.said('ended')} {link._link.folders} {link._link.pipe}".encode())

process, pipe, asking, answers = spawning.copy(tell)
print(os.read(answers, 4096).decode(), os.read(pipe, 4096))
""",
    )
    assert text == "ended set() 3 b'\\nnext\\n'\n"
