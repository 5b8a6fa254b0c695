"""What a job may change in the process of a user: nothing that stays.

The process is looked at from outside of bnfold, before and after each function of the API.
"""

import errno
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import chain, keras, randomize

import bnfold
from bnfold.running import keras_runner, libraries

layers = keras.layers


def state_of_the_process() -> dict[str, Any]:
    """What the rest of a process shares with bnfold."""
    import tensorflow
    from keras.src.backend.common import global_state
    from tensorflow.python.eager import context

    tf_keras = sys.modules.get("tf_keras")
    policies = sys.modules.get("tf_keras.src.mixed_precision.policy")
    generator = getattr(context.context(), "_rng", None)  # which is made with the first seed
    numpy_state: Any = np.random.get_state()
    stderr = os.fstat(2)
    return {
        "environment": dict(os.environ),
        "devices": tensorflow.config.get_visible_devices(),
        "device": context.context().device_name,
        "eager functions": tensorflow.config.functions_run_eagerly(),
        "tensorflow seed": (context.context()._seed, generator and generator.getstate()),
        "threads": (
            tensorflow.config.threading.get_intra_op_parallelism_threads(),
            tensorflow.config.threading.get_inter_op_parallelism_threads(),
        ),
        "collector": (gc.isenabled(), gc.get_threshold()),
        "warnings": (warnings.showwarning, list(warnings.filters)),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "stderr": (stderr.st_dev, stderr.st_ino, stderr.st_rdev, sys.stderr, sys.stdout),
        "path": list(sys.path),
        "folder": os.getcwd(),
        "floatx": keras.config.floatx(),
        "epsilon": keras.config.epsilon(),
        "images": keras.config.image_data_format(),
        "objects": dict(keras.saving.get_custom_objects()),
        **{
            f"keras {name}": dict(value) if isinstance(value, dict) else value
            for name, value in vars(global_state.GLOBAL_STATE_TRACKER).items()
        },
        "keras 2": tf_keras and (tf_keras.backend.floatx(), policies and policies._global_policy),
        "random": random.getstate(),
        "numpy random": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "numpy errors": np.geterr(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    names = {*before, *after}
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


@pytest.fixture
def odd_settings() -> Any:
    """Settings that differ from those of a new process, so that both losing and keeping shows."""
    import tensorflow

    random.seed(5)
    tensorflow.random.set_seed(5)
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(1e-5)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_dtype_policy("mixed_float16")
    thresholds = gc.get_threshold()
    gc.set_threshold(1234, 11, 12)
    with np.errstate(all="ignore", under="warn"), warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.disable(logging.DEBUG)
        yield
    logging.disable(logging.NOTSET)
    gc.set_threshold(*thresholds)
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A grouped convolution, which only exports in a mode of TensorFlow's that holds for all."""
    made = chain((6, 6, 4), layers.Conv2D(4, 3, groups=2), layers.BatchNormalization())
    randomize(made).save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


def jobs(path: Path) -> dict[str, Callable[[], Any]]:
    """One call of each function of the API, of a file or of a live model."""
    out, data = path.with_name, np.random.default_rng(0).normal(size=(16, 6, 6, 4))
    live = keras.models.load_model(path)
    return {
        "inspect": lambda: bnfold.inspect(path, data=data),
        "fold live": lambda: bnfold.fold(live),
        "export": lambda: bnfold.export(path, out("model.onnx")),
        "recalibrate live": lambda: bnfold.recalibrate(live, data=data),
        "bench": lambda: bnfold.bench(path, path, seconds=0.05, runtimes=["keras", "onnxruntime"]),
        "imports": lambda: bnfold.verify(path, path, imports=["own_layers"]),
        "an error": lambda: refused(lambda: bnfold.recalibrate(live, data=data[:1])),
    }


def refused(job: Callable[[], Any]) -> None:
    with pytest.raises(bnfold.BnfoldError):
        job()


@pytest.mark.slow
def test_every_job_leaves_the_process_as_it_was(
    saved: Path, odd_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved.parent / "here"
    folder.mkdir()
    (folder / "own_layers.py").write_text("import warnings\n")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    for name, job in jobs(saved).items():
        before, frozen = state_of_the_process(), gc.get_freeze_count()
        job()
        after = state_of_the_process()
        assert changed(before, after) == {}, name
        assert gc.get_freeze_count() <= frozen  # less where something died that was frozen


@pytest.mark.slow
def test_libraries_that_a_job_imports_leave_the_environment_as_it_was(saved: Path) -> None:
    script = (
        "import os, sys, gc, bnfold\n"
        "before = dict(os.environ), gc.get_threshold(), list(sys.path)\n"
        "assert 'keras' not in sys.modules\n"
        f"assert bnfold.verify({str(saved)!r}, {str(saved)!r}, in_process=True)\n"
        "assert 'keras' in sys.modules\n"
        "assert before == (dict(os.environ), gc.get_threshold(), list(sys.path))\n"
        "import tensorflow\n"
        "assert tensorflow.executing_eagerly() and tensorflow.__internal__.tf2.enabled()\n"
        "print('whole', file=sys.stderr)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in {"KERAS_BACKEND"}}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "whole\n"


@pytest.mark.slow
def test_two_threads_judge_at_once(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, found = state_of_the_process(), {}

    def judge(name: str) -> None:
        found[name] = bnfold.verify(saved, saved).verdict

    threads = [threading.Thread(target=judge, args=[name]) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(("one", "other"), bnfold.Verdict.EQUIVALENT)
    after = state_of_the_process()
    assert changed(before, after) == {}
    os.write(2, b"whole\n")
    assert capfd.readouterr().err == "whole\n"


def test_silence_that_overlaps_ends_with_the_last(capfd: pytest.CaptureFixture[str]) -> None:
    """The first thread ends before the second, so what the second found must not come back."""
    began, ended = threading.Event(), threading.Event()
    before = sys.stderr, logging.root.manager.disable, list(warnings.filters)

    def second() -> None:
        with libraries.quiet():
            began.set()
            ended.wait(10)
            os.write(2, b"unheard\n")

    thread = threading.Thread(target=second)
    with libraries.quiet():
        thread.start()
        began.wait(10)
    ended.set()
    thread.join()
    assert before == (sys.stderr, logging.root.manager.disable, list(warnings.filters))
    os.write(2, b"whole\n")
    assert capfd.readouterr().err == "whole\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_silence_ends_with_an_exception(
    error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error), libraries.quiet(), libraries.quiet():
        raise error
    os.write(2, b"whole\n")
    assert capfd.readouterr().err == "whole\n"


def test_a_closed_stderr_is_no_error() -> None:
    script = (
        "import os; from bnfold.running.libraries import quiet\n"
        "os.close(2)\n"
        "with quiet(): pass\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.split() == [b"done"]


def test_no_library_speaks_where_it_cannot_be_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds no file free would die loudly."""

    def none(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = sys.stderr, logging.root.manager.disable
    with monkeypatch.context() as few:
        few.setattr(os, "dup", none)
        with pytest.raises(OSError, match="Too many open files"), libraries.quiet():
            pytest.fail("ran all the same")
    assert before == (sys.stderr, logging.root.manager.disable)


def test_models_run_on_the_cpu(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU all that can be seen is that every variable and value asks for the CPU."""
    from tensorflow.python.eager import context

    asked, honest = [], keras_runner.run

    def run(*arguments: Any, **options: Any) -> Any:
        asked.append(context.context().device_name)
        return honest(*arguments, **options)

    monkeypatch.setattr("bnfold.running.keras_runner.run", run)
    assert bnfold.verify(saved, saved).verdict is bnfold.Verdict.EQUIVALENT
    assert asked
    assert all(one.endswith("CPU:0") for one in asked)
