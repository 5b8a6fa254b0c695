"""Whether reading a file ends as it must: with a result, or with one line that says why not."""

import contextlib
import json
import resource
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType

import bnfold
from bnfold.cli.inspect import FORMATS
from bnfold.errors import BnfoldError
from bnfold.jobs import gate
from bnfold.jobs.settings import Settings
from bnfold.reports import html, terminal
from bnfold.reports.formats import json as json_format
from bnfold.reports.text import inspect as inspect_text

SECONDS = 20
"""Of processor time, twice what bnfold gives itself for a small file."""
MEMORY = 512 << 20
"""What reading may take beside what the process has, which is what bnfold gives itself."""


class HangingError(AssertionError):
    """Reading took longer than it may."""


def read(path: Path) -> str:
    """Inspect a file, show it in every format, fold it: "folded", or by which error it ended."""
    with _bounded(), warnings.catch_warnings():
        warnings.simplefilter("error")
        ending = _inspected(path)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / f"out{path.suffix}"
            try:
                report = bnfold.fold(path, target, verify=False).to_dict()
            except BnfoldError as error:
                _check_line(error)
                left = [one.name for one in Path(folder).iterdir()]
                assert not left, f"left behind: {left}"
                return f"{ending}, fold: {type(error).__name__}"
            json.dumps(report, allow_nan=False)
            bnfold.inspect(target)
            # What is for training alone may be damaged: a fold leaves it out, and says so.
            assert ending == "inspected" or report["not_audited"], f"folded, but {ending}"
    return "folded"


def _inspected(path: Path) -> str:
    outcome = gate.check([path], Settings())
    for unread in outcome.unreadable:
        _check_line(unread.error)
    for model in outcome.models:
        terminal.plain(lambda width, model=model: inspect_text.inspection(model, width))
    html.inspections(outcome.models, outcome.unreadable)
    unreadable = [{"path": str(one.path), "message": str(one.error)} for one in outcome.unreadable]
    report = gate.report([model.to_dict() for model in outcome.models], unreadable)
    for name in FORMATS:
        if name not in ("text", "html", "jsonl"):
            "".join(import_module(f"bnfold.reports.formats.{name}").inspections(report))
    for model in outcome.models:
        for decision in model.plan.decisions:
            json_format.layer(model, decision)
            shown = inspect_text.layer(model, decision)
            terminal.plain(lambda _, shown=shown: shown)
    return type(outcome.unreadable[0].error).__name__ if outcome.unreadable else "inspected"


def _check_line(error: BnfoldError) -> None:
    text = str(error)
    assert text.isprintable(), f"not one printable line: {text!r}"
    assert "internal error" not in text
    assert len(text) < 2000, f"too long: {text[:200]!r}"


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Refuse what takes too long, or too much memory."""

    def stop(_: int, __: FrameType | None) -> None:
        raise HangingError(f"reading takes more than {SECONDS} s")

    before = _forget_peak()
    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    taken = _peak() - before
    assert taken < MEMORY, f"reading takes {taken >> 20} MiB"


def _forget_peak() -> int:
    """Let the peak of the memory be counted from now on, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def keep(path: Path, folder: Path, name: str) -> Path:
    """Copy a mutant to where it can be looked at; its new place."""
    target = folder / f"{name}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy(path, target)
    return target


def forget(path: Path) -> None:
    """Remove what `keep` has kept."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
