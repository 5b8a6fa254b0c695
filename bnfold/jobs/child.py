"""Doing a job in a process of its own, which is supervised and can be killed.

A job is a function of bnfold's that takes and returns values which `bnfold.jobs.wire` can send. The
process that starts it (here "parent") and the new one (the "child") share a temporary folder: the
job is in `request.json`, what came of it in `result.json`, arrays beside them. What the child has
to say meanwhile comes as lines through its pipe, as from every supervised process; the calls of
functions that the parent has are among them. Its temporary files are in the same folder, which the
parent removes.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import inspect
import json
import operator
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from bnfold import errors
from bnfold.errors import BnfoldError, ProcessStoppedError, UnreadableModelError
from bnfold.model.container.remote import located
from bnfold.running import options, process
from bnfold.supervision import link

if TYPE_CHECKING:
    from bnfold.jobs.wire import Sender

P = ParamSpec("P")
R = TypeVar("R")

FILES_GO_THERE = True
"""Whether models in files are run in a child where nobody says anything about it."""

_GROUP: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
"""So that what a child has started can be ended with it."""

_REQUEST, _RESULT, _NOISE = "request.json", "result.json", "stderr"


@dataclass(frozen=True)
class Place:
    """Where a job is to be done.

    Attributes:
        in_process: here, or in a child; None for a child where that keeps this process safe.
        timeout: seconds that the job may take; None for the limits of its stages, in a child.
        memory: bytes likewise.
    """

    in_process: bool | None = None
    timeout: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        """See that every value means something. Raises TypeError and SettingsError."""
        here = options.optional(options.flag, "in_process", self.in_process)
        timeout = options.optional(options.finite, "timeout", self.timeout, positive=True)
        memory = options.optional(options.whole, "memory", self.memory, least=1)
        options.checked(self, in_process=here, timeout=timeout, memory=memory)
        if here and not (timeout is memory is None):
            raise TypeError("a limit needs a process of its own: it contradicts in_process=True")

    def is_apart(self, *, runs: bool, is_live: bool) -> bool:
        """Whether a job goes to a child: one that runs models, and one of a live model.

        A live model is run where it is, unless Keras runs on another backend there.
        """
        if process.is_own() or self.in_process:
            return False
        if self.in_process is False or not (self.timeout is self.memory is None):
            return True
        is_foreign = process.keras_backend() != process.BACKEND
        return runs and (is_foreign or (FILES_GO_THERE and not is_live))

    def run(
        self,
        job: Callable[P, R],
        runs: bool,
        is_live: bool,
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Do a job here or in a child; see `is_apart`.

        Raises what the job raises, ProcessStoppedError when its process ends before it does, and
        BnfoldError for a class that the other process cannot import.
        """
        if not self.is_apart(runs=runs, is_live=is_live):
            return job(*args, **kwargs)
        found: R = _run(job, inspect.signature(job).bind(*args, **kwargs).arguments, self)
        return found


def run_apart(job: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Do a job in a child, under the limits of its stages; see `Place.run`."""
    found: R = _run(job, inspect.signature(job).bind(*args, **kwargs).arguments, Place())
    return found


def _run(job: Callable[..., Any], given: Mapping[str, Any], place: Place) -> Any:
    from bnfold.jobs.wire import Receiver, Sender  # noqa: PLC0415 - most commands need none of it

    with link.temporary_folder() as folder:
        file = _File(given, folder)
        sender = Sender(folder, "request")
        request = {
            "job": f"{job.__module__}:{job.__qualname__}",
            "arguments": [[key, sender.encode(value)] for key, value in given.items()],
            "limits": [place.timeout, place.memory],
        }
        (folder / _REQUEST).write_text(json.dumps(request))
        found = _outcome(folder, sender)
        if "error" in found:
            raise _error(**found["error"])
        return Receiver(folder, refer=file).decode(found["result"])


def _outcome(folder: Path, sender: Sender) -> dict[str, Any]:
    """What the child makes of a request. Raises ProcessStoppedError when it ends early."""
    from bnfold.supervision import spawning  # noqa: PLC0415
    from bnfold.supervision.watch import Watch  # noqa: PLC0415

    if not sys.executable:
        raise ProcessStoppedError("there is no Python to start another process with")

    def told(words: list[str]) -> None:
        try:
            word, number, given = words
            function, arguments = sender.functions[int(number)], json.loads(given)
        except (ValueError, IndexError):
            return  # code that a model needs may write anything to the pipe
        if word == "call":
            function(*arguments)

    environment = {**os.environ, "KERAS_BACKEND": process.BACKEND}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with (folder / _NOISE).open("wb") as noise, open(os.devnull, "r+b") as nothing:
        try:
            child, pipe = spawning.start(
                *(__name__, "main", ["bnfold", str(folder)], environment),
                stdin=nothing,
                stdout=nothing,
                stderr=noise,
                **_GROUP,
            )
        except OSError as error:
            raise ProcessStoppedError(f"cannot start: {error.strerror or error}") from error
        watch = Watch(child, pipe, told)
        try:
            watch.run()
        finally:
            if os.name == "posix":
                with contextlib.suppress(OSError):  # it has started none that outlived it
                    os.killpg(child.pid, signal.SIGKILL)
    result = folder / _RESULT
    if watch.problem is None and result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    lines = (folder / _NOISE).read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = watch.problem or f"the process that did the work ended with code {watch.code}"
    raise ProcessStoppedError(said + (f": {last[:240]}" if last and watch.has_crashed else ""))


def _error(name: str, arguments: list[Any], trace: str) -> BaseException:
    """The exception that a job raised in its process, where it is bnfold's or Python's."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    found: Exception = RuntimeError(f"{name}: {' '.join(map(str, arguments))}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some want what is not plain text
            found = kind(*arguments)
    found.add_note(f"In the process that ran the model:\n{trace}")
    return found


_PLANNING = ("keep", "keras", "inference")
"""The arguments of jobs that a plan depends on."""


class _File:
    """Looks up in the model file of a job what was sent as a reference; opens it when asked.

    A file that the job may replace is kept until then.
    """

    def __init__(self, arguments: Mapping[str, Any], folder: Path) -> None:
        self._arguments = arguments
        source, target = arguments.get("source") or arguments.get("path"), arguments.get("target")
        self._source = located(source or "")  # some jobs have none, and refer to none
        self._found: dict[tuple[str, ...], Any] = {}
        self.plan: Any = None
        self.graph: Any = None
        both = [one for one in (source, target) if one and isinstance(located(one), Path)]
        if len(both) == 2 and all(map(os.path.exists, both)) and os.path.samefile(*both):
            self._source = _copied(Path(both[0]), folder)

    def batchnorm(self, path: tuple[str, ...]) -> Any:
        """The BatchNormalization of a path."""
        self.read()
        if path not in self._found:
            raise UnreadableModelError(f"{self._source}: changed while it was read")
        return self._found[path]

    def read(self) -> _File:
        """Read the file, once."""
        if self.plan is not None:
            return self
        from bnfold.folding.plan import apply  # noqa: PLC0415
        from bnfold.folding.standalone import replaceable  # noqa: PLC0415
        from bnfold.jobs.planning import planned  # noqa: PLC0415
        from bnfold.model.container.model_file import open_model  # noqa: PLC0415

        is_inspected = "path" in self._arguments and not self._arguments.get("run")
        digests = self._arguments.get("sha256", ())
        with open_model(self._source, digests, ranged=is_inspected) as model:
            given = {key: self._arguments[key] for key in _PLANNING if key in self._arguments}
            self.plan, self.graph = planned(model, **given), model.graph
            for decision in self.plan.decisions:
                _ = decision.batchnorm.vectors  # read while the file is open
                self._found[decision.batchnorm.path] = decision.batchnorm
            if self._arguments.get("standalone") == "depthwise":
                _, self.plan = replaceable(apply(model.graph, self.plan), self.plan)
        return self


def _copied(model: Path, folder: Path) -> Path:
    """The model under another name, which stays when the old name is given to another one."""
    copy = folder / f"source{model.suffix}"
    if model.is_dir():
        shutil.copytree(model, copy)
        return copy
    try:
        os.link(model, copy)
    except OSError:  # another file system, or one without links
        shutil.copyfile(model, copy)
    return copy


# --- in the child --------------------------------------------------------------------------------


def main(pipe: int) -> None:
    """Do the job in the folder that the command line names. This is what the child runs."""
    folder = Path(sys.argv[1])
    process.take_over()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends this
    signal.signal(signal.SIGTERM, _stop)
    request = json.loads((folder / _REQUEST).read_text())
    link.connect(pipe, *request["limits"])
    try:
        result = {"result": _done(request, folder)}
    except MemoryError:
        result = {"error": _described(ProcessStoppedError(link.out_of_memory()))}
    except RecursionError:
        error: Exception = UnreadableModelError(link.said("is nested too deeply"))
        result = {"error": _described(error)}
    except Exception as found:
        result = {"error": _described(found)}
    unfinished = folder / f"{_RESULT}.part"
    unfinished.write_text(json.dumps(result))
    unfinished.replace(folder / _RESULT)
    link.finished(0)
    os._exit(0)  # which leaves out what the libraries do at their end


def _stop(number: int, _: Any) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once: what was being written is cleaned up meanwhile
    raise process.Stopped(128 + number)


def _done(request: dict[str, Any], folder: Path) -> Any:
    from bnfold.jobs.wire import Receiver, Sender  # noqa: PLC0415

    def call(number: int, *arguments: Any) -> None:
        link.call(number, json.dumps(arguments))

    receiver = Receiver(folder, call=call, imports=True)
    module, _, name = request["job"].partition(":")
    if not module.startswith("bnfold."):
        raise BnfoldError(f"{request['job']!r} is no job")
    job = operator.attrgetter(name)(importlib.import_module(module))
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
