"""The command line under supervision: whatever a file does to it, one line, exit code 2, no litter.

What a damaged file could do is done by a patched function in the middle of the command.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import FIXTURES, ROOT

from bnfold.supervision.watch import ASKING

MODEL = FIXTURES / "digits_cnn_keras315.keras"
LEGACY = FIXTURES / "digits_cnn_keras315.h5"
SPIN = "sum(itertools.repeat(0))"
"""Never comes back from C, never looks for signals, and lets no other thread run."""

READING = "patch('bnfold.jobs.inspect', 'planned', does)"
INSTALLED = "patch('bnfold.running.requirements', 'require', lambda *_, **__: None)\n"
WRITING = "patch('bnfold.jobs.fold', 'write_folded', lambda *given, **_: does(given[-1]))"


def started(
    *words: object, does: str = "pass", before: str = "", route: str = "run"
) -> "subprocess.Popen[str]":
    code = CODE.format(does=does, before=before, route=route, words=list(map(str, words)))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


CODE = """
import ctypes, itertools, os, signal, sys, time
from pathlib import Path
import bnfold.__main__ as entry
from bnfold.supervision import limits, link, platforms

def does(_, **options):
    {does}

def patch(name, attribute, function):
    import importlib
    setattr(importlib.import_module(name), attribute, function)

{before}
sys.argv = ["bnfold", *{words!r}]
entry.{route}()
"""


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


@pytest.mark.parametrize(
    ("does", "words", "says"),
    [
        (SPIN, ["--timeout", "1"], "took more than 1 s while reading it; --timeout sets another"),
        (
            "ctypes.PyDLL(None).sleep(100)",
            ["--timeout", "1.5"],
            "took more than 1.5 s while reading it; --timeout sets another limit",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", [], "crashed with SIGSEGV while reading it"),
        ("os.abort()", [], "crashed with SIGABRT while reading it"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            [],
            "was killed, most likely because the machine ran out of memory, while reading it",
        ),
        ("os._exit(0)", [], "ended early, with exit code 0 while reading it"),
        (
            "[(bytearray(1 << 25), time.sleep(0.1)) for _ in range(100)]",
            ["--memory", "150M"],
            "took more than 150 MiB of memory while reading it; --memory sets another limit",
        ),
        (
            "bytearray(1 << 40)",
            ["--memory", "1G"],
            "needs more than 1024 MiB of memory while reading it; --memory sets another limit",
        ),
        ("does(_)", [], "is nested too deeply while reading it"),
    ],
)
@pytest.mark.few(3)
def test_whatever_happens_is_one_line(does: str, words: list[str], says: str) -> None:
    code, out, error = ended(started("inspect", MODEL, *words, does=does, before=READING))
    assert (code, out) == (2, "")
    assert error.startswith(f"bnfold: {MODEL}: {says}")
    assert error.count("\n") == 1


def test_reading_has_a_limit_of_its_own() -> None:
    before = f"limits.READING_SECONDS = 1\n{READING}"
    code, _, error = ended(started("inspect", MODEL, does=SPIN, before=before))
    assert code == 2
    assert "took more than 1 s while reading it; --timeout" in error


@pytest.mark.parametrize(
    ("for_each_layer", "says"),
    [
        ("0.01, 0", "took more than 512 MiB of memory while reading it"),
        ("0.01, 1 << 27", "took more than 1 s while reading it"),
        ("1.0, 1 << 27", "ended early, with exit code 0 while reading it"),
    ],
)
@pytest.mark.few(1)
def test_each_layer_is_given_more_time_and_memory(for_each_layer: str, says: str) -> None:
    before = (
        "limits.READING_SECONDS = 1\n"
        f"limits.SECONDS_PER_LAYER, limits.MEMORY_PER_LAYER = {for_each_layer}\n{READING}"
    )
    does = "full = b'1' * (600 << 20); time.sleep(2); os._exit(0)"
    code, _, error = ended(started("inspect", MODEL, does=does, before=before))
    assert code == 2
    assert says in error


def test_the_report_has_a_limit_of_its_own() -> None:
    before = (
        "limits.READING_SECONDS = 1\n"
        "patch('bnfold.cli.inspect', '_show_models', lambda *_, **__: does(_))"
    )
    _, _, error = ended(started("inspect", MODEL, does=SPIN, before=before))
    assert "took more than 1 s while making the report" in error


def test_tensorflow_may_not_start_for_ever() -> None:
    """Its BLAS does, with little memory: it asks again and again, in C code."""
    before = (
        f"{INSTALLED}limits.STARTING_SECONDS = 1\n"
        "patch('bnfold.running.libraries', 'start', lambda *_, **__: does(_))"
    )
    other = MODEL.with_suffix(".h5")
    _, _, error = ended(started("verify", MODEL, other, does=SPIN, before=before))
    told, problem = error.splitlines()
    assert told == "bnfold: loading TensorFlow ..."
    files = f"{MODEL} and {other}"
    assert problem.startswith(f"bnfold: {files}: took more than 1 s while loading TensorFlow; ")


def test_keras_may_not_load_for_ever_either() -> None:
    before = (
        f"{INSTALLED}limits.LOADING_FACTOR = 0.05\n"
        "patch('bnfold.running.libraries', 'start', lambda *_, **__: None)\n"
        "patch('bnfold.running.loading', 'load_all', lambda *_: does(_))"
    )
    _, _, error = ended(started("verify", MODEL, MODEL, does=SPIN, before=before))
    assert f"{MODEL}: took more than 1 s while loading the models; --timeout" in error


LOADING = (
    "patch('bnfold.running.libraries', 'start', lambda *_, **__: None)\n"
    "patch('bnfold.running.loading', 'load_all', lambda *_: does(_))"
)
"""What a custom layer does in the middle of a command that runs models."""


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("sys.exit()", "was ended by code that it needs, with SystemExit,"),
        ("raise KeyboardInterrupt", "was ended by code that it needs, with KeyboardInterrupt,"),
        ("os.closerange(3, 99); link.stage('')", "ended early, with exit code 2"),
        (
            "os.closerange(3, 99); [os.open(os.devnull, 2) for _ in range(50)]; link.stage('')",
            "ended early, with exit code 2",
        ),
    ],
)
@pytest.mark.few(2)
def test_code_that_a_model_needs_is_not_believed(does: str, says: str) -> None:
    code, out, error = ended(started("verify", MODEL, MODEL, does=does, before=LOADING))
    told = [line for line in error.splitlines() if not line.endswith(" ...")]
    assert (code, out, told) == (2, "", [f"bnfold: {MODEL}: {says} while loading the models"])


def test_what_others_write_to_the_pipe_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    garbage = f"memory\tx\nwithin\t\nstage\t\\x\nmade\t{tmp_path}\nfinished\n\xff\ncall\t1\t[]\n"
    does = f"os.write(link._link.pipe, {garbage!r}.encode('latin-1')); os.abort()"
    code, out, error = ended(started("inspect", MODEL, does=does, before=READING))
    assert (code, out) == (2, "")
    assert error == f"bnfold: {MODEL}: crashed with SIGABRT while reading it\n"
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_that_is_being_written_has_no_name_of_its_own() -> None:
    """The line says which file the user has named, at any depth of what is being written."""
    for inside in ("m.keras", "_m.keras/m.keras"):
        does = f"""
    folder = Path(".bnfold-0")
    link.made(folder)
    link.running({{folder / {inside!r}: "hidden"}})
    os.abort()
    """
        _, _, error = ended(started("inspect", MODEL, does=does, before=READING))
        assert error == f"bnfold: {MODEL}: crashed with SIGABRT while reading it\n"


@pytest.mark.parametrize("end", ["os.abort()", "time.sleep(60)"])
@pytest.mark.few(1)
def test_no_process_of_a_process_outlives_it(end: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    does = (
        f"subprocess = __import__('subprocess'); one = subprocess.Popen(['sleep', '600']); "
        f"Path({str(pid)!r}).write_text(str(one.pid)); {end}"
    )
    words = ["verify", MODEL, MODEL, "--timeout", "8"]
    code, *_ = ended(started(*words, does=does, before=LOADING))
    assert code == 2
    for _ in range(100):  # the kernel ends a process that was killed when it comes to it
        if not Path(f"/proc/{pid.read_text()}").exists():
            break
        time.sleep(0.05)
    else:
        pytest.fail("it is still there")


# --- what is left behind --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("does", "words"), [(SPIN, ["--timeout", "1"]), ("os.kill(os.getpid(), signal.SIGSEGV)", [])]
)
def test_nothing_is_left_behind(does: str, words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.keras"
    out.write_bytes(b"old")
    command = ["fold", MODEL, out, "--no-verify", "--force", *words]
    half = "_.write_bytes(b'half')"
    code, _, error = ended(started(*command, does=f"{half}; {does}", before=WRITING))
    assert (code, error.count("\n")) == (2, 1)
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.keras"]


def test_a_directory_that_was_about_to_be_replaced_is_put_back(tmp_path: Path) -> None:
    """Between the two renames the old one stands in the folder that is removed."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    does = (
        "from bnfold.jobs.staging import Staging\n"
        f"    with Staging(Path({str(out)!r}), 'keras-directory', force=True) as staging:\n"
        "        Path.replace = lambda *_: os.abort()\n"
        "        staging._replace_directory()"
    )
    code, *_ = ended(started("inspect", MODEL, does=does, before=READING))
    assert code == 2
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [
        Path("out"),
        Path("out/old"),
    ]


def test_temporary_folders_are_removed(tmp_path: Path) -> None:
    does = f"""
    import tempfile
    tempfile.tempdir = {str(tmp_path)!r}
    with link.temporary_folder() as folder: os.abort()
    """
    code, *_ = ended(started("inspect", MODEL, does=does, before=READING))
    assert (code, os.listdir(tmp_path)) == (2, [])


def test_a_crash_after_the_end_changes_nothing() -> None:
    before = (
        "import atexit\n"
        "atexit.register(lambda: __import__('bnfold').supervision.link._link.pipe"
        " and os.kill(os.getpid(), signal.SIGSEGV))"
    )
    code, out, error = ended(started("inspect", MODEL, "--format", "json", before=before))
    assert (code, error) == (0, "")
    assert len(json.loads(out)["models"]) == 1


# --- signals --------------------------------------------------------------------------------------


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGINT, "bnfold: interrupted\n"),
        *[(number, "") for number in ASKING if number != signal.SIGINT],
    ],
)
@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.few(2)
def test_a_signal_ends_what_runs_in_c(
    number: int, says: str, to_group: bool, tmp_path: Path
) -> None:
    words = ["fold", MODEL, tmp_path / "out.keras", "--no-verify"]
    process = started(*words, does=f"_.touch(); {SPIN}", before=WRITING)
    wait_for(lambda: list(tmp_path.glob("*/out.keras")))
    (os.killpg if to_group else os.kill)(process.pid, number)
    code, out, error = ended(process)
    assert (code, out, error) == (128 + number, "", says)  # 2 if the limit of ten seconds did it
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_end_cleans_up_itself(number: int, tmp_path: Path) -> None:
    does = "_.touch()\n    try: time.sleep(60)\n    finally: print('cleaned up', flush=True)"
    words = ["fold", MODEL, tmp_path / "out.keras", "--no-verify"]
    process = started(*words, does=does, before=WRITING)
    wait_for(lambda: list(tmp_path.glob("*/out.keras")))
    os.killpg(process.pid, number)
    code, out, error = ended(process)
    assert (code, out) == (128 + number, "cleaned up\n")
    assert error == ("bnfold: interrupted\n" if number == signal.SIGINT else "")


@pytest.mark.parametrize("module", ["click", "numpy", "bnfold.cli.many"])
def test_an_interrupt_while_modules_are_imported(module: str) -> None:
    """As Ctrl-C does it: the signal goes to both processes."""
    before = f"""
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.killpg(0, signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
"""
    code, out, error = ended(started("inspect", MODEL, before=before))
    assert (code, out, error) == (130, "", "bnfold: interrupted\n")


@pytest.mark.parametrize("prctl", [True, False])
def test_a_killed_supervisor_takes_its_child_with_it(prctl: bool, tmp_path: Path) -> None:
    """In C only where the system knows how; elsewhere the child notices it by itself."""
    does = f"Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); "
    does += SPIN if prctl else "time.sleep(60)"
    before = READING if prctl else f"platforms.dies_with_parent = lambda: False\n{READING}"
    process = started("inspect", MODEL, does=does, before=before)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.kill()
    process.communicate(timeout=60)  # the child holds the other ends of these pipes


def test_a_supervisor_that_ends_before_its_child_is_ready(tmp_path: Path) -> None:
    """The child sees at once that nobody is there to stop it."""
    done = tmp_path / "done"
    before = f"""
by_the_system = link.connect
def connect(pipe):
    supervisor = os.getppid()
    os.kill(supervisor, signal.SIGKILL)
    while os.getppid() == supervisor:
        time.sleep(0.01)
    by_the_system(pipe)
link.connect = connect
{READING}"""
    process = started("inspect", MODEL, does=f"Path({str(done)!r}).touch()", before=before)
    process.communicate(timeout=60)  # the child holds the other ends of these pipes
    assert not done.exists()


def test_hardly_anything_is_imported_before_somebody_is_in_charge_of_signals() -> None:
    """Ctrl-C at an import of Python's own is a traceback."""
    code = "import sys; before = set(sys.modules); import bnfold.__main__"
    code += "; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["__future__", "bnfold", "bnfold.__main__", "bnfold.version"]


def test_a_signal_may_come_while_the_process_is_looked_at() -> None:
    """As it does where Ctrl-C has ended the child before its supervisor has heard of it."""
    before = """
asked = os.waitpid
def waitpid(pid, how):
    time.sleep(0.3)  # until the child is gone
    if os.getpid() != pid and waitpid.is_first:
        waitpid.is_first = False
        os.kill(os.getpid(), signal.SIGINT)
    return asked(pid, how)
waitpid.is_first = True
os.waitpid = waitpid"""
    code, _, error = ended(started("rules", before=before))
    assert (code, error) in [(130, "bnfold: interrupted\n"), (0, "")]


# --- what cannot be had ---------------------------------------------------------------------------

REFUSED = "raise BlockingIOError(11, 'Resource temporarily unavailable')"


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (f"def none():\n    {REFUSED}\nos.fork = none", "Resource temporarily unavailable"),
        (f"def none():\n    {REFUSED}\nos.pipe = none", "Resource temporarily unavailable"),
        (
            "import _thread\n"
            'def none(*_): raise RuntimeError("can\'t start new thread")\n'
            "_thread.start_new_thread = none",
            "can't start new thread",
        ),
    ],
)
def test_without_a_process_a_pipe_or_a_thread(before: str, says: str) -> None:
    code, out, error = ended(started("inspect", MODEL, before=before))
    assert (code, out, error) == (2, "", f"bnfold: cannot start: {says}\n")


@pytest.mark.parametrize(
    ("library", "model"), [("numpy", MODEL), ("h5py", LEGACY)], ids=["numpy", "h5py"]
)
def test_a_library_that_cannot_be_imported_is_one_line(library: str, model: Path) -> None:
    """Whatever it says of that."""
    before = f"""
class Broken:
    def find_spec(self, name, *_):
        if name == "{library}":
            if name == "numpy":
                os.write(2, b"out of luck\\n")
            try:
                raise ImportError("cannot be mapped")
            except ImportError as error:
                raise ImportError("ADVICE\\nAT LENGTH") from error
sys.meta_path.insert(0, Broken())
"""
    code, out, error = ended(started("inspect", model, before=before))
    assert (code, out) == (2, "")
    assert error.endswith("cannot start: ImportError: cannot be mapped\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", ["OSError(29, 'Illegal seek')", "MemoryError('none')"])
def test_what_no_command_answers_for_is_one_line(error: str) -> None:
    """As where the streams are nothing that Python can use."""
    before = f"def none(): raise {error}\npatch('bnfold.cli', 'run', none)"
    code, out, said = ended(started("inspect", MODEL, before=before))
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert said.startswith(f"bnfold: ended early: {error.partition('(')[0]}: ")


def test_too_few_threads_and_libraries_are_one_line() -> None:
    for does, says in [
        ('raise RuntimeError("can\'t start new thread")', "can't start new thread"),
        ("raise ImportError('no room', name='h5')", "cannot import what it needs: no room"),
    ]:
        code, _, error = ended(started("inspect", MODEL, does=does, before=READING))
        assert (code, error.count("\n")) == (2, 1)
        assert says in error


def limited(*words: object, **limits: int) -> tuple[int, str]:
    """The exit code and the errors of a command under limits such as `AS=1 << 28` (bytes)."""
    numbers = {getattr(resource, f"RLIMIT_{name}"): value for name, value in limits.items()}
    found = subprocess.run(
        [sys.executable, "-m", "bnfold", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [resource.setrlimit(name, (n, n)) for name, n in numbers.items()],
        check=False,
        timeout=120,
    )
    return found.returncode, found.stderr


@pytest.mark.parametrize("mebibytes", [30, 50, 70, 80, 100, 110])
@pytest.mark.few(3)
def test_little_address_space_is_one_line(mebibytes: int) -> None:
    code, error = limited("inspect", MODEL, AS=mebibytes << 20)
    assert (code, error.count("\n")) == (2, 1), error
    assert error.startswith("bnfold: ")
    assert "internal error" not in error


def test_few_open_files_are_one_line(tmp_path: Path) -> None:
    code, error = limited("inspect", MODEL, NOFILE=5)
    assert (code, error.count("\n")) == (2, 1), error
    assert "Too many open files" in error
    assert limited("inspect", MODEL, NOFILE=16) == (0, "")


@pytest.mark.parametrize("place", ["zipfile.ZipFile.__init__", "zipfile.ZipFile.open", "os.stat"])
def test_too_many_open_files_are_no_damage_of_the_model(place: str) -> None:
    owner, _, name = place.rpartition(".")
    does = f"""
    import zipfile
    def none(*_, **__): raise OSError(24, "Too many open files")
    {owner}.{name} = none
    from bnfold.model.container.model_file import open_model
    with open_model({str(MODEL)!r}): pass
    """
    before = f"{READING}; import bnfold.model.container.archive"
    code, _, error = ended(started("inspect", MODEL, does=does, before=before))
    assert (code, error) == (2, f"bnfold: {MODEL}: Too many open files\n")


def test_a_current_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    found = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "bnfold", "inspect", str(MODEL)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = "bnfold: the current directory: No such file or directory\n"
    assert (found.returncode, found.stderr) == (2, said)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["rules"], ["inspect", MODEL]])
@pytest.mark.few(2)
def test_a_full_disk_for_the_output_is_one_line(words: list[object]) -> None:
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [sys.executable, "-m", "bnfold", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert found.returncode == 2
    assert found.stderr == "bnfold: output: No space left on device\n"


def test_an_unknown_option_before_the_command_is_one_line() -> None:
    code, out, error = ended(started("--bogus"))
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("bnfold: No such option")  # the rest is click's, and changes
    assert "--bogus" in error


# --- an honest command ----------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["run", "_spawn"])
@pytest.mark.few(1)
def test_an_honest_command_is_as_without_a_supervisor(route: str, tmp_path: Path) -> None:
    code, out, error = ended(started("inspect", MODEL, "--format", "json", route=route))
    assert (code, error) == (0, "")
    assert [model["container"] for model in json.loads(out)["models"]] == ["keras"]
    code, out, error = ended(started("inspect", MODEL, "--fail-on", "info", route=route))
    assert (code, error) == (1, "")
    code, out, error = ended(started("inspect", tmp_path / "no\tfile\n.h5", route=route))
    assert (code, out) == (2, "")
    assert error == f"bnfold: {tmp_path}/no\\tfile\\n.h5: no such file\n"


@pytest.mark.parametrize("closed", [(1,), (0, 1), (0, 1, 2)])
def test_streams_may_be_closed(closed: tuple[int, ...], tmp_path: Path) -> None:
    """As by a shell's `>&-`, or by what starts commands without a terminal."""
    given = [sys.executable, "-m", "bnfold", "fold", MODEL, tmp_path / "out.keras", "--no-verify"]
    closing = " ".join(f"{number}>&-" for number in closed)
    found = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *map(str, given)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert os.listdir(tmp_path) == ["out.keras"]


@pytest.mark.parametrize("shown", [[], ["--format", "json"]])
def test_what_is_known_of_earlier_files_is_not_counted(shown: list[str], tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.keras" for number in range(6)]
    for copy in copies:
        copy.symlink_to(MODEL)
    before = """
limits.READING_MEMORY = 300 << 20
kept = []
module = __import__("bnfold.jobs.inspect", fromlist=["planned"])
original = module.planned
def planned(*given, **more):
    kept.append(b"1" * (100 << 20))
    return original(*given, **more)
module.planned = planned
"""
    code, _, error = ended(started("inspect", *copies, *shown, before=before))
    assert (code, error) == (0, "")


def test_a_spawned_command_is_stopped_too() -> None:
    code, _, error = ended(started("inspect", MODEL, "--timeout", "0.001", route="_spawn"))
    assert (code, error.count("\n")) == (2, 1)
    assert "took more than 0.001 s" in error


def test_debugging_takes_one_process_and_has_no_limit() -> None:
    does = "raise ValueError(link._link.pipe)"
    code, _, error = ended(started("inspect", MODEL, "--debug", does=does, before=READING))
    assert code == 1
    assert error.endswith("ValueError: None\n")
    code, _, error = ended(started("inspect", MODEL, "--debug", "--memory", "8G"))
    assert code == 2
    assert "no limit holds with --debug" in error


@pytest.mark.parametrize("words", [["--memory", "much"], ["--memory", "0"], ["--timeout", "0"]])
def test_a_limit_is_an_amount(words: list[str]) -> None:
    code, _, error = ended(started("inspect", MODEL, *words))
    assert (code, error.count("\n")) == (2, 1)
    assert words[0] in error


def test_what_finalizers_print_by_themselves_is_not_told() -> None:
    """As h5py's do where a signal came while an object of it was made."""
    does = "sys.modules['h5py']._objects.ObjectID('none')"
    before = f"import contextlib, h5py; {READING}"
    ends = f"""
    with contextlib.suppress(TypeError):
        {does}
    os._exit(0)
    """
    *_, error = ended(started("inspect", MODEL, does=ends, before=before))
    assert error == f"bnfold: {MODEL}: ended early, with exit code 0 while reading it\n"
    *_, error = ended(started("inspect", MODEL, "--debug", does=ends, before=before))
    assert "KeyError: 0" in error


def test_nobody_reads_the_result() -> None:
    process = started("inspect", MODEL, "--format", "json")
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_what_goes_wrong_in_finalizers_is_not_told() -> None:
    """Libraries complain of their own there, when memory runs short; with --debug it is shown."""
    does = "type('Mapped', (), {'__del__': lambda _: 1 / 0})()"
    *_, error = ended(started("inspect", MODEL, does=f"{does}; os._exit(0)", before=READING))
    assert error == f"bnfold: {MODEL}: ended early, with exit code 0 while reading it\n"
    *_, error = ended(started("inspect", MODEL, "--debug", does=does, before=READING))
    assert "ZeroDivisionError" in error
