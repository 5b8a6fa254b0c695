"""Tasks in processes of this machine, each of them supervised as the command itself is.

A process is started once and does one task after another, because starting one takes longer than
reading a small model. Where only files are read, the first processes are copies of this one, which
has imported by then what they need: that takes milliseconds. A process is not used again after it
ran models: the libraries that do so keep memory, numbers and whatever a model's own code changed,
and the next result must be the same whichever came before it. A task that takes too much time or
memory, or crashes its process, has that as its answer; the next task gets a new process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import IO, TYPE_CHECKING, Any

from bnfold.fleet.row import Json
from bnfold.supervision import limits, spawning
from bnfold.supervision.watch import Watch

if TYPE_CHECKING:
    from bnfold.supervision.watch import Process

WORKER = "bnfold.cli.worker"
"""The module whose `main` does tasks; see there for what is sent."""

_PROOF_MEMORY = 4 << 30  # bytes that a verification of a large model takes
_SMALL_FILES = 16  # are read in the CPU time in which a process starts
_LARGE = 32 << 20  # bytes after which reading takes twice as long
_PATIENCE = 5.0  # seconds for a process to end that has nothing more to do
_IDLE = 20.0  # seconds after which a process ends that got nothing more to do, on a cluster
_GROUP: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}


def default_jobs(sizes: Sequence[int | None], *, runs_models: bool) -> int:
    """How many processes work at a time where the user does not say it.

    One for each processor; of those that run models, no more than their memory allows, and of those
    that read files, no more than have enough to do.

    Args:
        sizes: those of the model files, in bytes; None where one is not on this machine.
        runs_models: whether the processes run models.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = limits.running_memory() if runs_models else None
    if most is not None:
        return max(1, min(count or 1, most // _PROOF_MEMORY))
    return max(
        1, min(count or 1, len(sizes) if runs_models else math.ceil(sum(map(_share, sizes))))
    )


def _share(size: int | None) -> float:
    """How long it takes to read a file, as a share of what it takes to start a process."""
    if size is None:  # others can work while one waits for it
        return 1.0
    return (1 + size / _LARGE) / _SMALL_FILES


class _LostError(Exception):
    """A process ended before its task was done; the text says why."""


class _Worker:
    """A process that does tasks: what it is asked and answers goes through two pipes."""

    def __init__(
        self, process: Process, pipe: int, requests: IO[bytes], answers: IO[bytes]
    ) -> None:
        self._process, self._requests, self._answers = process, requests, answers
        self._watch = Watch(process, pipe)
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def _supervise(self) -> None:
        try:
            self._watch.run()
        finally:
            if os.name == "posix":
                with contextlib.suppress(OSError):  # it has started none that outlived it
                    os.killpg(self._process.pid, signal.SIGKILL)

    def do(self, request: Json) -> Json:
        """Have it do a task. Raises _LostError where it ends before."""
        line = b""
        with contextlib.suppress(OSError):
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            line = self._answers.readline()
        if line.endswith(b"\n"):
            answer: Json = json.loads(line)
            return answer
        self._thread.join()
        raise _LostError(self._watch.problem or "the process that did the work was ended")

    def end(self) -> None:
        """Have it end by itself, now that there is nothing more to do."""
        with contextlib.suppress(OSError):
            self._requests.close()
        self._thread.join(_PATIENCE)
        self.stop()

    def stop(self) -> None:
        """End it, whatever it does; what it was writing is put away."""
        if self._thread.is_alive():
            self._watch.stop(signal.SIGTERM)
            self._thread.join()


def _started() -> _Worker:
    """A new process. Raises OSError where there can be none."""
    process, pipe = spawning.start(
        *(WORKER, "main", ["bnfold"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **_GROUP,
    )
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    return _Worker(process, pipe, process.stdin, process.stdout)


def _copies(count: int) -> list[_Worker]:
    """So many copies of this process, or none where they could not do what new ones can."""
    if not spawning.may_copy():
        return []
    main = importlib.import_module(WORKER).main
    made: list[tuple[Process, int, int, int]] = []
    with contextlib.suppress(OSError):  # others are started where there are tasks for them
        while len(made) < count:
            made.append(spawning.copy(main))
    return [
        _Worker(process, pipe, os.fdopen(requests, "wb"), os.fdopen(answers, "rb"))
        for process, pipe, requests, answers in made  # each has a thread from now on
    ]


_lock = threading.Lock()
_idle: list[_Worker] = []
_busy: set[_Worker] = set()
_idle_since = 0.0
_is_looking = False


def perform(request: Json) -> Json:
    """Do a task in a process of its own, or in one that has done others.

    The answer is that of `bnfold.cli.worker`, or says which limit the task broke, or how its
    process ended.
    """
    with _lock:
        worker = _idle.pop() if _idle else None
    try:
        worker = worker or _started()
    except OSError as error:
        return lost(f"cannot start: {error.strerror or error}")
    with _lock:
        _busy.add(worker)
    try:
        answer = worker.do(request)
        is_spent = bool(answer.pop("is_spent"))
    except _LostError as error:
        answer, is_spent = lost(str(error)), True
    finally:
        with _lock:
            _busy.discard(worker)
    if is_spent:
        worker.end()
    else:
        with _lock:
            _idle.append(worker)
    return answer


def lost(problem: str) -> Json:
    """The answer of a task whose process said nothing."""
    return {"exit_code": 2, "error": problem}


def release_soon() -> None:
    """End the processes that have nothing to do, once nothing was asked of them for a while."""
    global _idle_since, _is_looking  # noqa: PLW0603 - they are about the processes above
    with _lock:
        _idle_since = time.monotonic()
        if _is_looking:
            return
        _is_looking = True
    threading.Thread(target=_release_when_idle, daemon=True).start()


def _release_when_idle() -> None:
    global _is_looking  # noqa: PLW0603
    while True:
        with _lock:
            left = _idle_since + _IDLE - time.monotonic()
            if left <= 0:
                _is_looking = False
                idle = _idle[:]
                _idle.clear()
                break
        time.sleep(left)
    for worker in idle:
        worker.end()


def release() -> None:
    """End the processes that are there, also those that are at work."""
    with _lock:
        idle, busy = _idle[:], list(_busy)
        _idle.clear()
    for worker in busy:
        worker.stop()
    for worker in idle:
        worker.end()


def in_processes(
    requests: Sequence[Json], jobs: int, *, runs_models: bool
) -> Generator[tuple[int, Json]]:
    """The number and the answer of each request, as they are done.

    Whoever takes no more of them ends what is being done. Processes that do not run models may be
    there before the first answer is asked for, so that threads of others can begin until then.
    """
    count = min(jobs, len(requests))
    if not runs_models:
        _idle.extend(_copies(count))
    return _answers(requests, max(1, count))


def _answers(requests: Sequence[Json], jobs: int) -> Generator[tuple[int, Json]]:
    pool = ThreadPoolExecutor(jobs)
    futures: dict[Future[Json], int] = {}
    try:
        for number, request in enumerate(requests):
            futures[pool.submit(perform, request)] = number
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        release()
        pool.shutdown()
