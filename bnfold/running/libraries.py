"""Importing TensorFlow and Keras, quietly, and saying in one line what went wrong in them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, VerificationImpossibleError
from bnfold.running import advisories, borrowing, keras_graph, process, requirements

_NOISE = re.compile(r"\x1b\[[0-9;]*m|\{\{.*?\}\}")
_FRAME = re.compile(
    r"^\s*File \".*\n.*\n", re.MULTILINE
)  # of a traceback: the place, the code there
_CAUSE = "Exception encountered:"
_PREAMBLE = re.compile(
    r"(?:\w+: )?Exception encountered when calling|in user code:|File \"|Traceback|"
    r"A total of \d+ objects could not|object <"
)


class CannotRunError(Exception):
    """A runtime cannot run a model; the text is one line on why."""


class _Silence:
    """Keeps what libraries print away from the terminal, while anybody in any thread wants that.

    The first who wants it redirects, and the last who no longer wants it puts everything back:
    whoever redirects what is redirected already would put back what leads nowhere.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wanted: set[object] = set()
        self._redirected = contextlib.ExitStack()

    def begin(self, who: object) -> None:
        with self._lock:
            self._wanted.add(who)
            if len(self._wanted) == 1:
                self._redirect()

    def end(self, who: object) -> None:
        with self._lock:
            self._wanted.discard(who)
            if not self._wanted:
                self._redirected.close()

    def _redirect(self) -> None:
        back = self._redirected
        back.callback(logging.disable, logging.root.manager.disable)
        try:
            with open(os.devnull, "w") as nowhere:
                stderr = os.dup(2)
                back.callback(os.close, stderr)
                back.callback(os.dup2, stderr, 2)
                os.dup2(nowhere.fileno(), 2)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # of which libraries would die loudly
                raise
            # Otherwise 2 is closed, and says nothing anyway.
        back.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        back.enter_context(contextlib.redirect_stderr(io.StringIO()))


_SILENCE = _Silence()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries print, down to the C++ code, away from the terminal."""
    who = object()
    try:
        _SILENCE.begin(who)
        yield
    finally:
        _SILENCE.end(who)


RELEASES = True
"""Whether `release` does anything: in a process of very many small models it takes longest."""


def release() -> None:
    """Give memory back that models and exports have left behind, in cycles and in the allocator."""
    if not RELEASES:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps what was freed otherwise


def is_loaded() -> bool:
    """Whether this process has imported TensorFlow and Keras, so that starting takes no time."""
    return {"tensorflow", "keras"} <= sys.modules.keys()


_UNUSED_BY_MODELS = ("sklearn",)
"""What Keras imports where it is installed, with SciPy, for estimators that wrap models."""


def start(threads: int | None = None, *, for_models_alone: bool = False) -> None:
    """Import TensorFlow and Keras with the TensorFlow backend, without chatter, for the CPU.

    `threads` are for TensorFlow, None for its default; one that has started already keeps its own.
    With `for_models_alone`, in a process of bnfold's own, Keras finds no scikit-learn, which takes
    a sixth of the time and is of use to the user's own modules at most.
    Raises VerificationImpossibleError.
    """
    process.keep_to_itself()
    unused = _UNUSED_BY_MODELS if for_models_alone and process.is_own() else ()
    try:
        with _hidden(unused):
            tensorflow, keras = imported("tensorflow"), imported("keras")
    except MemoryError:
        raise  # which is said as such, and is nothing that another version would mend
    except Exception as error:  # what does not fit together may raise anything
        raise VerificationImpossibleError(
            f"TensorFlow with Keras 3 cannot be imported: {one_line(error)}; 'bnfold doctor' says"
            " what is installed"
        ) from error
    requirements.require_version("tensorflow", tensorflow.__version__)
    requirements.require_version("keras", keras.__version__)
    if keras.config.backend() != process.BACKEND:
        raise VerificationImpossibleError(
            f"Keras runs on {keras.config.backend()} in this process, and models are run on"
            f" {process.BACKEND}"
        )
    advisories.warn("keras", keras.__version__)
    advisories.warn("tensorflow", tensorflow.__version__)
    if process.is_own():
        gc.set_threshold(700, 10, 10)  # reading and importing make no garbage, but graphs soon are
        gc.enable()
    borrowing.borrow_tensorflow(tensorflow)
    borrowing.borrow_keras(keras)
    if threads is not None:
        _set_threads(tensorflow.config.threading, threads)


def _set_threads(threading: Any, count: int) -> None:
    with contextlib.suppress(RuntimeError):
        threading.set_intra_op_parallelism_threads(count)
        # Otherwise independent operations of one model would still run side by side.
        threading.set_inter_op_parallelism_threads(count)


@contextlib.contextmanager
def _hidden(modules: Sequence[str]) -> Iterator[None]:
    """Have these modules not found, but for those that are imported already."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def imported(name: str) -> Any:
    """A library. What it does to the environment while it is imported is undone.

    ONNX Runtime keeps no number of this machine and no record of its use, and Keras writes no
    settings into the home of somebody who has none.
    """
    meanwhile = {"KERAS_BACKEND": process.BACKEND, "TF_CPP_MIN_LOG_LEVEL": "3"}
    meanwhile |= {"ORT_DISABLE_TELEMETRY": "1"}
    with quiet(), borrowing.environment_kept(**meanwhile):
        if not process.is_own():
            return importlib.import_module(name)
        os.environ["KERAS_HOME"] = os.devnull  # is there, and nothing can be in it
        found = importlib.import_module(name)
    keras_graph.use_home(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    return found


def one_line(error: BaseException) -> str:
    """Return the first telling line of an exception, printable and cut to length."""
    lines = [_NOISE.sub("", line).strip() for line in _FRAME.sub("", str(error)).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    # Keras says first where it happened and only then what; the innermost cause comes last.
    causes = [line.partition(_CAUSE)[2].strip() for line in lines if line.startswith(_CAUSE)]
    telling = [line for line in lines if not _PREAMBLE.match(line)]
    telling = [cause for cause in causes[::-1] if cause] or telling or lines
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in telling[0])
    return text if len(text) <= 240 else text[:237] + "..."


@contextlib.contextmanager
def one_line_on_failure(what: str = "", kind: type[Exception] = CannotRunError) -> Iterator[None]:
    """Quietly; whatever goes wrong is raised as one line of this kind, which begins with `what`."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise kind(f"{what}{one_line(error)}") from error


def find_module(name: str) -> None:
    """See that a module of the user's is there, without running anything. Raises BnfoldError."""
    borrowing.borrow_search_path(str(Path.cwd()))
    if name.endswith(".py") or "/" in name:
        raise BnfoldError(
            f"--import {name}: say {Path(name).stem}: a module goes by its name, as in Python,"
            " not its file"
        )
    package = name.partition(".")[0]  # to look into it would import it
    try:
        is_there = package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        is_there = False
    if not is_there:
        raise BnfoldError(f"--import {name}: No module named {package!r}")


def import_module(name: str) -> Any:
    """Import a module of the user's, which registers custom layers. Raises BnfoldError."""
    find_module(name)
    with one_line_on_failure(f"--import {name}: ", BnfoldError), without_bytecode():
        return importlib.import_module(name)


@contextlib.contextmanager
def without_bytecode() -> Iterator[None]:
    """Leave nothing beside the modules that are imported."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def library(name: str) -> Any:
    """Keras or tf_keras. Raises VerificationImpossibleError."""
    try:
        found = imported(name)
    except Exception as error:
        problem = requirements.lacking([requirements.look(name)]) or one_line(error)
        raise VerificationImpossibleError(
            "Keras 3 cannot load this file of Keras 2; tf_keras can (except .keras files of 2.13 "
            f"and 2.14), but {problem}"
        ) from None
    borrowing.borrow_keras(found)
    return found
