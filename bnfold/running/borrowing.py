"""Running in a user's process, and leaving it as it was.

TensorFlow, Keras and the modules that register custom layers share much with the rest of a process:
environment variables, the search path, random generators, the names and dtypes that Keras gives to
layers. A job borrows all of that and gives it back. Jobs run one after another, because TensorFlow
and Keras keep some of it for all threads at once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from bnfold.running import process

_TURN = threading.RLock()
_INSTALLED = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}


class _Job:
    """What is put back when a job ends, and which libraries it has borrowed."""

    def __init__(self) -> None:
        self.leaving = contextlib.ExitStack()
        self.borrowed: set[str] = set()

    def borrow(self, name: str) -> bool:
        """Whether this library is not borrowed yet; from now on it is."""
        is_new = name not in self.borrowed
        self.borrowed.add(name)
        return is_new


_job: _Job | None = None


@contextlib.contextmanager
def guest() -> Iterator[None]:
    """Run a job, as a block or as the decorator of a function; a job within a job is part of it."""
    global _job  # noqa: PLW0603 - one job at a time
    with _TURN:
        if _job is not None:
            yield
            return
        job = _Job()
        with job.leaving as leaving:
            leaving.callback(random.setstate, random.getstate())
            leaving.callback(np.random.set_state, np.random.get_state())
            leaving.callback(gc.set_threshold, *gc.get_threshold())
            leaving.enter_context(np.errstate())
            _job = job
            try:
                yield
            finally:
                _job = None


@contextlib.contextmanager
def environment_kept(**meanwhile: str) -> Iterator[None]:
    """Put the environment variables back; meanwhile set those that are not set."""
    before = dict(os.environ)
    try:
        for name, value in meanwhile.items():
            os.environ.setdefault(name, value)
        yield
    finally:
        for name in {*before, *os.environ}:
            if name not in before:
                os.environ.pop(name, None)
            elif os.environ.get(name) != before[name]:
                os.environ[name] = before[name]


def borrow_search_path(folder: str) -> None:
    """Look for modules in this folder too, until the end of the job.

    Last, so that nothing there hides an installed package.
    """
    if folder not in sys.path:
        sys.path.append(folder)
        if _job is not None and not process.is_own():
            _job.leaving.callback(_forget, folder)


def _forget(folder: str) -> None:
    with contextlib.suppress(ValueError):
        sys.path.remove(folder)


def borrow_tensorflow(tensorflow: Any) -> None:
    """Compute on the CPU until the end of the job, and put the random operations' generator back.

    A GPU sums in another order from run to run; the verdict must not depend on it. In a process of
    bnfold's own the GPU is hidden for good, which unlike a scope does not start TensorFlow, so that
    its number of threads can still be set.
    """
    if process.is_own():
        with contextlib.suppress(RuntimeError):
            tensorflow.config.set_visible_devices([], "GPU")
        return
    if _job is None or not _job.borrow("tensorflow"):
        return
    _job.leaving.enter_context(tensorflow.device("CPU:0"))
    context = importlib.import_module("tensorflow.python.eager.context").context()
    generator = getattr(context, "_rng", None)
    if isinstance(generator, random.Random):
        _job.leaving.callback(generator.setstate, generator.getstate())


def borrow_keras(keras: Any) -> None:
    """Give Keras, or tf_keras, its settings as installed, and its own back at the end of the job.

    A layer whose file names no dtype gets the one that is set here, and layers without a name get
    one by counting.
    """
    if _job is None or not _job.borrow(keras.__name__):
        return
    for name, installed in _INSTALLED.items():
        put = getattr(keras.backend, f"set_{name}")
        _job.leaving.callback(put, getattr(keras.backend, name)())
        put(installed)
    keep_keras(keras)
    for state, policy in _states(keras.__name__):
        if policy in state:
            state[policy] = None


def keep_keras(keras: Any) -> None:
    """Put what Keras, or tf_keras, counts and remembers back at the end of the job."""
    if _job is None:
        return
    for state, _ in _states(keras.__name__):
        _job.leaving.callback(_restore, state, {key: _copied(item) for key, item in state.items()})


def _states(library: str) -> list[tuple[dict[str, Any], str]]:
    """Where a library keeps what holds for all models, and under which name its dtype policy.

    Keras 3 has it for each thread: the name counters, the scopes and a generator too.
    """
    if library != "keras":
        policies = importlib.import_module(f"{library}.src.mixed_precision.policy")
        return [(vars(policies), "_global_policy")]
    tracked = importlib.import_module("keras.src.backend.common.global_state")
    names = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
    found = [vars(getattr(tracked, name)) for name in names if hasattr(tracked, name)]
    return [(state, "dtype_policy") for state in found]


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list, set)) else value


def _restore(state: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in state if name not in before]:
        del state[name]
    state.update(before)
