"""Doing a job in a process of its own, where this one's Keras runs on another backend.

A job is a function of bnfold's that takes and returns values which `bnfold.jobs.wire` can send. The
process that starts it (here "parent") and the new one (the "child") share a temporary folder: the
job is in `request.json`, what came of it in `result.json`, arrays beside them. What the child has
to say meanwhile comes as lines of JSON through its standard output. It ends when the parent does:
its standard input is then at its end. Its temporary files are in the same folder, which the parent
removes.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from bnfold import errors
from bnfold.errors import BnfoldError, VerificationImpossibleError
from bnfold.running import process

if TYPE_CHECKING:
    import subprocess

    from bnfold.jobs.wire import Sender

P = ParamSpec("P")
R = TypeVar("R")

_REQUEST, _RESULT, _NOISE = "request.json", "result.json", "stderr"
_PATIENCE = 10.0  # seconds, for a child to clean up after itself
_START = (
    "import json, pathlib, sys; folder = pathlib.Path(sys.argv[1]); "
    f"sys.path[:] = json.loads((folder / {_REQUEST!r}).read_text())['path']; "
    "from bnfold.jobs import child; child.main(folder)"
)
"""What the child runs. It finds modules where the parent does, and never imports its script."""


def run(job: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Do a job in this process or, where Keras has another backend here, in one of its own.

    Raises what the job raises, VerificationImpossibleError when its process ends before it does,
    and BnfoldError for a class that the other process cannot import.
    """
    if process.is_own() or process.keras_backend() == process.BACKEND:
        return job(*args, **kwargs)
    return run_apart(job, *args, **kwargs)


def run_apart(job: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Do a job in a process of its own; see `run`."""
    import tempfile  # noqa: PLC0415 - most commands need none of it

    from bnfold.jobs.wire import Receiver, Sender  # noqa: PLC0415

    bound = inspect.signature(job).bind(*args, **kwargs).arguments
    with tempfile.TemporaryDirectory(prefix="bnfold-") as name:
        folder = Path(name)
        sender = Sender(folder, "request")
        request = {
            "path": [str(one) for one in sys.path],
            "job": f"{job.__module__}:{job.__qualname__}",
            "arguments": [[key, sender.encode(value)] for key, value in bound.items()],
        }
        (folder / _REQUEST).write_text(json.dumps(request))
        found = _outcome(folder, sender)
        if "error" in found:
            raise _error(**found["error"])
        result: R = Receiver(folder, refer=_File(bound)).decode(found["result"])
        return result


def _outcome(folder: Path, sender: Sender) -> dict[str, Any]:
    """What the child makes of a request. Raises VerificationImpossibleError when it ends early."""
    with _started(folder) as child:
        for line in child.stdout or ():
            said = json.loads(line)
            sender.functions[said["function"]](*said["arguments"])
        code = child.wait()
    result = folder / _RESULT
    if code == 0 and result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    noise = (folder / _NOISE).read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(noise) if line.strip()), "")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise VerificationImpossibleError(
        f"the process that ran the model ended early, with {how}{f': {last[:240]}' if last else ''}"
    )


@contextlib.contextmanager
def _started(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child at work, which ends at the latest when this is left."""
    import subprocess  # noqa: PLC0415

    if not sys.executable:
        raise VerificationImpossibleError("there is no Python to start another process with")
    environment = {**os.environ, "KERAS_BACKEND": process.BACKEND}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (folder / _NOISE).open("wb") as noise:
        child = subprocess.Popen(  # noqa: S603 - this Python, and the code above
            [sys.executable, "-c", _START, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=environment,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE)
            child.kill()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()
        child.wait()


def _error(name: str, arguments: list[Any], trace: str) -> BaseException:
    """The exception that a job raised in its process, where it is bnfold's or Python's."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    found: Exception = RuntimeError(f"{name}: {' '.join(map(str, arguments))}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some want what is not plain text
            found = kind(*arguments)
    found.add_note(f"In the process that ran the model:\n{trace}")
    return found


class _File:
    """Looks up in the model file of a job what was sent as a reference; opens it when asked."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._source, self._keep = arguments.get("source"), arguments.get("keep", ())
        self._plan: Any = None
        self._found: dict[tuple[str, ...], Any] = {}

    def __call__(self, path: tuple[str, ...] | None) -> Any:
        if self._plan is None:
            self._read()
        return self._plan if path is None else self._found[path]

    def _read(self) -> None:
        from bnfold.jobs.planning import planned  # noqa: PLC0415
        from bnfold.model.container.model_file import open_model  # noqa: PLC0415

        with open_model(Path(str(self._source))) as model:
            self._plan = planned(model, self._keep)
            for decision in self._plan.decisions:
                _ = decision.batchnorm.vectors  # read while the file is open
                self._found[decision.batchnorm.path] = decision.batchnorm


# --- in the child --------------------------------------------------------------------------------


def main(folder: Path) -> None:
    """Do the job in a folder. This is what the child runs."""
    process.take_over()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends this
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w") as parent, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # what libraries print is not for the parent
        try:
            result = {"result": _done(folder, parent)}
        except Exception as error:
            result = {"error": _described(error)}
        unfinished = folder / f"{_RESULT}.part"
        unfinished.write_text(json.dumps(result))
        unfinished.replace(folder / _RESULT)


def _stop(number: int, _: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once: what was being written is cleaned up meanwhile
    sys.exit(128 + number)


def _end_with_the_parent() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would outlive this thread
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(1)


def _done(folder: Path, parent: IO[str]) -> Any:
    from bnfold.jobs.wire import Receiver, Sender  # noqa: PLC0415

    def call(number: int, *arguments: Any) -> None:
        print(json.dumps({"function": number, "arguments": arguments}), file=parent, flush=True)

    request = json.loads((folder / _REQUEST).read_text())
    receiver = Receiver(folder, call=call, imports=True)
    module, _, name = request["job"].partition(":")
    if not module.startswith("bnfold."):
        raise BnfoldError(f"{request['job']!r} is no job")
    job = getattr(importlib.import_module(module), name)
    arguments = {key: receiver.decode(value) for key, value in request["arguments"]}
    return Sender(folder, "result").encode(job(**arguments))


def _described(error: Exception) -> dict[str, Any]:
    given = error.args
    if isinstance(error, OSError) and error.filename is not None:
        given = (*given[:2], error.filename)
    arguments = [one if isinstance(one, (int, float)) else str(one) for one in given]
    return {
        "name": type(error).__name__,
        "arguments": arguments,
        "trace": "".join(traceback.format_exception(error)),
    }
