"""Importing TensorFlow and Keras, quietly, and saying in one line what went wrong in them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, VerificationImpossibleError

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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries print, down to the C++ code, away from the terminal."""
    stderr, disabled = os.dup(2), logging.root.manager.disable
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            os.dup2(nowhere.fileno(), 2)
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)
        os.dup2(stderr, 2)
        os.close(stderr)


def release() -> None:
    """Give memory back that models and exports have left behind, in cycles and in the allocator."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # glibc keeps what was freed otherwise


def start() -> None:
    """Import TensorFlow and Keras on the CPU, with the TensorFlow backend and without chatter."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    gc.set_threshold(700, 10, 10)  # the command line collects more rarely; graphs are garbage soon
    try:
        with quiet():
            tensorflow = importlib.import_module("tensorflow")
            importlib.import_module("keras")
            # A GPU sums in another order from run to run; the verdict must not depend on it.
            with contextlib.suppress(RuntimeError):
                tensorflow.config.set_visible_devices([], "GPU")
    except ImportError as error:
        raise VerificationImpossibleError(
            f"TensorFlow with Keras 3 cannot be imported: {one_line(error)}"
        ) from error


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


def import_module(name: str) -> Any:
    """Import a module of the user's, which registers custom layers. Raises BnfoldError."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that nothing there hides an installed package
    try:
        with quiet():
            return importlib.import_module(name)
    except Exception as error:
        reason = one_line(error)
        if name.endswith(".py") or "/" in name:
            reason = f"say {Path(name).stem}: a module goes by its name, as in Python, not its file"
        raise BnfoldError(f"--import {name}: {reason}") from error


def library(name: str) -> Any:
    """Keras or tf_keras. Raises VerificationImpossibleError."""
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError:
        raise VerificationImpossibleError(
            "Keras 3 cannot load this file of Keras 2; tf_keras can, but for .keras files of 2.13: "
            'pip install "bnfold[keras2]"'
        ) from None
