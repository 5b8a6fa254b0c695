"""What all tests share: the fixtures on disk, unpacked."""

import gc
import lzma
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tiers
from places import FIXTURES

from bnfold.cli import many
from bnfold.jobs import child
from bnfold.running import libraries

# TensorFlow has kernels for channels first on some processors only, unless it is told to.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Let helpers that see no fixture know which tier runs."""
    for number, honest in HANDLERS.items():
        if signal.getsignal(number) is signal.SIG_IGN:  # as a shell has it in the background
            signal.signal(number, honest)
    tiers.EVERYTHING = tiers.thorough(config)
    child.FILES_GO_THERE = False  # a child would import TensorFlow for every test anew
    many.IN_PROCESS = True  # starting a worker takes longer than what most tests have it do
    libraries.RELEASES = False  # to look through all that tests leave takes seconds
    if tiers.without_keras(config):
        sys.meta_path.insert(0, NoFrameworks())  # type: ignore[arg-type]
    if "processes" in tiers.left_out(config):
        import_module("numpy.testing")  # that of NumPy 1.26 asks another process for the processor
        sys.addaudithook(no_processes)


HANDLERS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler}
if os.name == "posix":
    HANDLERS[signal.SIGQUIT] = signal.SIG_DFL


class NoFrameworks:
    """Refuses to import the frameworks, so that a test that lacks the mark `keras` says so.

    All of them can be found, wherever the tests run: what a command does before it loads any is the
    same then, whether they are installed or not.
    """

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Know the frameworks, before any other finder looks."""
        loader: Any = self
        return ModuleSpec(name, loader, origin="tests") if name in tiers.FRAMEWORKS else None

    def create_module(self, spec: ModuleSpec) -> NoReturn:
        """Say what is wrong."""
        pytest.fail(f"this test imports {spec.name}: mark it with pytest.mark.keras")

    def exec_module(self, _: object) -> None:
        """What a loader must have, or `create_module` is not asked; it never comes to this."""


def no_processes(event: str, _: object) -> None:
    """Refuse to start a process in a test that lacks the mark `processes`."""
    if event in PROCESSES and "PYTEST_CURRENT_TEST" in os.environ:
        pytest.fail("this test starts a process: mark it with pytest.mark.processes")


PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec"}


POSIX_ONLY = ("fuzz", "test_command.py")
"""What is measured or limited there by `resource`, which Windows does not have."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the files that import Keras where their tests are not wanted."""
    if sys.platform == "win32" and collection_path.name in POSIX_ONLY:
        return True
    if tiers.without_keras(config) and collection_path.suffix == ".py":
        return tiers.imports_keras(collection_path) or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what imports Keras or starts a process; leave out what was not asked for."""
    tiers.thin(items)
    for item in items:
        if tiers.imports_keras(item.path):
            item.add_marker("keras")
        if isinstance(item, pytest.Function):
            if tiers.starts_processes(item.function):
                item.add_marker("processes")
            if missing := tiers.missing(item.function):
                item.add_marker(pytest.mark.skip(f"no {missing} on {sys.platform}"))
    marks = tiers.left_out(config)
    out = {item for item in items if any(map(item.get_closest_marker, marks))}
    config.hook.pytest_deselected(items=list(out))
    items[:] = [item for item in items if item not in out]


def pytest_collection_finish() -> None:
    """Keep the collector from looking through all that was imported, in every test anew."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave a file to one worker as far as can be: what its tests share is made only once then."""
    if config.getoption("dist") != "load":
        return None
    return import_module("xdist.scheduler").WorkStealingScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws the same weights, whichever tests ran before it."""
    random.seed(0)  # of which Keras makes its seeds, also where a test imports it only now
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture
def fixture_model(tmp_path: Path) -> Callable[[str], Path]:
    """A function that gives the path of a fixture by its name without `.xz`."""

    def unpack(name: str) -> Path:
        plain = FIXTURES / name
        if plain.exists():
            return plain
        unpacked = tmp_path / name
        unpacked.write_bytes(lzma.decompress((FIXTURES / f"{name}.xz").read_bytes()))
        return unpacked

    return unpack


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def double() -> None:
    """Every layer computes in float64 unless it says otherwise; names count from 0."""
    from support import keras

    keras.backend.clear_session(free_memory=False)
    keras.config.set_floatx("float64")


@pytest.fixture
def keras_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the judge has Keras alone, as for a model that ONNX cannot express.

    An export takes half of the time of a judgement. This is for tests whose question Keras answers;
    in a run of all tests (`-m "slow or not slow"`) ONNX Runtime answers it too.
    """
    if not tiers.EVERYTHING:
        monkeypatch.setattr("bnfold.running.onnx_runner.exports", lambda _: [])


@pytest.fixture(autouse=True)
def no_dtype_left_behind() -> Iterator[None]:
    """Keras remembers the dtype policy of the first layer, whatever floatx is later."""
    yield
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
