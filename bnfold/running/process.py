"""The process that bnfold runs in: its own, or a user's, which must stay as it was.

The command line and the processes that bnfold starts are its own. They may choose Keras' backend,
hide devices and set up the garbage collector as they like. In a user's process a job puts
everything back (`bnfold.running.borrowing`), and where Keras runs on another backend
than TensorFlow it goes to a process of its own (`bnfold.jobs.child`).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from pathlib import Path

from bnfold.supervision import link

BACKEND = "tensorflow"
"""The only backend of Keras that models are run with, and Keras' default."""

_owned = _is_apart = False


class Stopped(SystemExit):
    """A signal has asked this process to end; no code of the user's has."""


class Interrupted(KeyboardInterrupt):
    """Likewise, by Ctrl-C."""


def is_own() -> bool:
    """Whether this process is bnfold's own."""
    return _owned


def take_over() -> None:
    """Make this process bnfold's own, whatever the environment says of Keras and its devices."""
    global _owned  # noqa: PLW0603 - there is one process, and this is what it is
    _owned = True
    os.environ["KERAS_BACKEND"] = BACKEND  # goes before the environment's and before keras.json
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.CRITICAL)  # what libraries log; what it means for a user, errors say
    # A GPU sums in another order from run to run; the verdict must not depend on it.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def keep_to_itself() -> None:
    """Have temporary files made in a folder that goes with this process, if it is bnfold's own.

    TensorFlow leaves compiled code behind. To be called before it is imported: what it removes by
    itself at the end is gone when the folder goes.
    """
    global _is_apart  # noqa: PLW0603
    if not _owned or _is_apart:
        return
    _is_apart = True
    import tempfile  # noqa: PLC0415 - most commands need none of it

    until_the_end = contextlib.ExitStack()
    atexit.register(until_the_end.close)
    folder = until_the_end.enter_context(link.temporary_folder())
    os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)))
    tempfile.tempdir = str(folder)


def keras_backend() -> str:
    """The backend of this process's Keras: of the imported one, or of one imported from now on."""
    keras = sys.modules.get("keras")
    if keras is not None:
        return str(keras.config.backend())
    return os.environ.get("KERAS_BACKEND") or _backend_of_the_settings()


def _backend_of_the_settings() -> str:
    """What `keras.json` says, which Keras looks for where this does."""
    home = os.environ.get("KERAS_HOME")
    folder = Path(home) if home is not None else Path("~/.keras")
    try:
        import json  # noqa: PLC0415 - hardly ever needed

        found = json.loads((folder.expanduser() / "keras.json").read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return BACKEND
    return str(found.get("backend", BACKEND)) if isinstance(found, dict) else BACKEND
