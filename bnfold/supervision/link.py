"""What a supervised process tells its supervisor, in lines through a pipe.

A line is a word and its values, with tabs between them. It says what is done with which file, how
long that may take, how much memory it may take, and which folders are to be removed if the process
is killed. In a process without a supervisor, such as a user's, nothing is told and no limit holds.
"""

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import TypeAlias

from bnfold.supervision import leftovers, limits, platforms

_HEARTBEAT = 1.0  # seconds
_TEMPORARY = "bnfold-"

Line: TypeAlias = tuple[object, ...]
"""A word and its values."""


class _Link:
    """The pipe, and what was told last."""

    def __init__(self) -> None:
        self.pipe: int | None = None
        self.lock = Lock()
        self.seconds: float | None = None  # that the user gave
        self.memory: int | None = None
        self.at_most: int | None = None  # bytes that may be taken now
        self.file = self.stage = ""
        self.folders: set[Path] = set()  # what is in them has no name for the user
        self.is_narrow = False  # whether the next stage has the usual limits again
        self.runs_models = False  # or has done so: what that took stays taken
        self.read = 0.0  # seconds that all files so far were given
        self.kept = 0  # bytes that are known of the files before this one

    def say(self, *lines: Line) -> None:
        """Tell all of these at once: whoever reads them is woken by each time that something is."""
        if self.pipe is None or not lines:
            return
        text = "".join("\t".join(_escaped(str(one)) for one in line) + "\n" for line in lines)
        with self.lock, suppress(OSError):  # nobody listens, which Windows calls by other names
            if not self._is_open():
                os._exit(2)  # code that a model needs has closed it: the supervisor says the rest
            os.write(self.pipe, text.encode("ascii"))

    def _is_open(self) -> bool:
        """Whether the pipe is there, and not another file under its number."""
        try:
            return stat.S_ISFIFO(os.fstat(self.pipe or 0).st_mode)
        except OSError:
            return False


_link = _Link()


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def connect(pipe: int, seconds: float | None = None, memory: int | None = None) -> None:
    """Let this process be supervised through a pipe, and end with its supervisor.

    `seconds` and `memory` (bytes) are the limits of the whole job; None for those of its stages.
    What another process has told, of which this one is a copy, is forgotten.
    """
    global _link  # noqa: PLW0603 - there is one process, and this is what it has told
    _link = _Link()
    _link.pipe = pipe
    if not platforms.dies_with_parent():
        Thread(target=_end_with_the_supervisor, args=[pipe], daemon=True).start()
    try:
        os.write(pipe, b"\n")
    except OSError:
        os._exit(2)  # the supervisor ended before it could take this process with it
    platforms.leave_no_core()
    allow(seconds, memory)


def begin() -> None:
    """Something new begins, with limits of its own; until it sets them there are none."""
    _link.seconds = _link.memory = _link.at_most = None
    _link.file = _link.stage = ""
    _link.is_narrow = _link.runs_models = False
    _link.read, _link.kept = 0.0, platforms.resident(os.getpid()) or 0
    _link.say(("next",))
    if _link.pipe is not None:
        platforms.allow_allocations()


def has_run_models() -> bool:
    """Whether models were run since something new began."""
    return _link.runs_models


def is_supervised() -> bool:
    """Whether this process has a supervisor."""
    return _link.pipe is not None


def _end_with_the_supervisor(pipe: int) -> None:
    """Notice that nobody reads the pipe any more, as `say` may never do."""
    with suppress(OSError):
        while True:
            time.sleep(_HEARTBEAT)
            with _link.lock:
                os.write(pipe, b"\n")
    os._exit(2)


def allow(seconds: float | None = None, memory: int | None = None) -> None:
    """Limit the whole command, where it is supervised; None leaves a limit to its stages."""
    if seconds is not None:
        _link.seconds = seconds
        _link.say(("whole", seconds))
    if memory is not None:
        _link.memory = memory
        _link.say(*_limited(memory))


def reading(path: limits.Sized, shown: str) -> None:
    """A model file is read from now on; `shown` is its name for messages."""
    named = _named({path: shown}) if isinstance(path, Path) else ()  # in a store it has one already
    size = limits.size(path)
    seconds = limits.reading_seconds(size)
    if _link.read:
        _link.kept = platforms.resident(os.getpid()) or 0
    _link.read += seconds
    _link.is_narrow = True
    _link.say(*named, *_begun("reading it"), *_within(seconds), *_remember_reading(size))


def fetching(shown: str, size: int = 0) -> None:
    """A model of so many bytes goes from or to a store from now on; `shown` names it."""
    _link.file = shown
    seconds = limits.CONNECTING_SECONDS + limits.reading_seconds(size)
    _link.read += seconds
    _link.is_narrow = True
    begun = ("file", shown), *_begun("transferring it")
    _link.say(*begun, *_within(seconds), *_remember_reading(0))


def counted(path: limits.Sized, layers: int) -> None:
    """The model file that is being read has so many layers, each of which takes some more."""
    seconds = limits.SECONDS_PER_LAYER * layers
    _link.read += seconds
    longer = [("longer", seconds)] if _link.seconds is None else []
    _link.say(*longer, *_remember_reading(limits.size(path), layers))


def running(files: Mapping[Path, str]) -> None:
    """What is done from now on is for these files, each with its name for messages."""
    _link.say(*_named(files))


def starting() -> None:
    """TensorFlow is imported from now on, until the next stage."""
    _link.is_narrow = True
    _link.say(*_within(limits.STARTING_SECONDS), *_remember(limits.running_memory()))


def loading(files: Mapping[Path, str]) -> None:
    """Keras loads these files from now on, each with its name for messages."""
    seconds = limits.LOADING_FACTOR * sum(map(limits.reading_seconds, map(limits.size, files)))
    _link.is_narrow = True
    _link.say(*_named(files), *_within(seconds), *_remember(limits.running_memory()))


def stage(name: str) -> None:
    """Something else is done from now on that runs models, such as "loading TensorFlow"."""
    _link.runs_models = True
    lines = _begun(name, "models")
    if _link.is_narrow:
        _link.is_narrow = False
        lines += [*_within(limits.RUNNING_SECONDS), *_remember(limits.running_memory())]
    _link.say(*lines)


def told(progress: Callable[[str], None] | None) -> Callable[[str], None]:
    """Tell the supervisor of each stage before it is told to somebody else, if anybody."""

    def report(name: str) -> None:
        stage(name)
        if progress is not None:
            progress(name)

    return report


def _named(files: Mapping[Path, str]) -> list[Line]:
    """Name the files at hand; where all are ones that the user has not named, what was named."""
    shown = [name for path, name in files.items() if _link.folders.isdisjoint(path.parents)]
    if not shown:
        return []
    _link.file = " and ".join(shown)
    return [("file", _link.file)]


def _begun(name: str, *models: str) -> list[Line]:
    _link.stage = name
    return [("stage", name, *models)]


def _within(seconds: float) -> list[Line]:
    return [("within", seconds)] if _link.seconds is None else []


def _remember(memory: int | None) -> list[Line]:
    return _limited(memory) if _link.memory is None and memory is not None else []


def _remember_reading(size: int, layers: int = 0) -> list[Line]:
    if _link.runs_models:
        return []
    return _remember(limits.reading_memory(size, layers, _link.kept))


def _limited(memory: int) -> list[Line]:
    if _link.pipe is None:
        return []
    _link.at_most = memory
    platforms.refuse_allocations(memory)
    return [("memory", memory)]


def reporting() -> None:
    """All files are read and their report is made; that may take as long as reading them did."""
    lines = [*_begun("making the report"), *_within(_link.read)]
    if _link.kept and not _link.runs_models:
        kept = platforms.resident(os.getpid()) or 0
        lines += _remember(limits.reading_memory(0, kept=kept))
    _link.say(*lines)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder, which the supervisor removes where this process cannot."""
    import tempfile  # noqa: PLC0415 - most commands need none of it

    leftovers.remove(tempfile.gettempdir(), _TEMPORARY)
    with tempfile.TemporaryDirectory(prefix=f"{leftovers.name(_TEMPORARY)}_") as name:
        made(Path(name))
        yield Path(name)
    gone(Path(name))


def made(folder: Path) -> None:
    """A folder is there, or will be at once, that must not stay: see `leftovers.put_away`."""
    _link.folders.add(folder)
    _link.say(("made", folder.absolute()))


def gone(folder: Path) -> None:
    """Such a folder is not there any more."""
    _link.folders.discard(folder)
    _link.say(("gone", folder.absolute()))


def call(number: int, arguments: str) -> None:
    """Have whoever waits for this process call a function of theirs, with arguments as JSON."""
    _link.say(("call", number, arguments))


def finished(code: int) -> bool:
    """The command has come to an end, and all that it had to say is written.

    Whether the supervisor is told so.
    """
    if _link.pipe is None:
        return False
    for stream in filter(None, (sys.stdout, sys.stderr)):  # which was closed from the start
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            pass  # nobody reads it, or it is closed
        except OSError:
            return False
    _link.say(("finished", code))
    return True


def out_of_memory() -> str:
    """A sentence on what a MemoryError means here."""
    if _link.at_most is None:
        return said("needs more memory than there is")
    what = said(f"needs more than {_link.at_most // limits.MIB} MiB of memory")
    return f"{what}; --memory sets another limit"


def said(what: str) -> str:
    """A sentence on what went wrong, with the file at hand and what was done with it."""
    where = f"{_link.file}: " if _link.file else ""
    stage = f" while {_link.stage}" if _link.stage else ""
    return f"{where}{what}{stage}"
