"""The process that does tasks of `bnfold.fleet`: one command line after another, about one model.

Requests come as lines of JSON through standard input, and each is answered by a line through what
was standard output. A request has the words of the command, the current directory, the folder that
what is written needs, what is written, what else is read, what is known of an earlier run, the
names of the views of the report that are wanted, and whether the answer is kept, for which files
are hashed. An answer has what `Row` has but the path, and says whether the process is spent; report
and views are packed, so that whoever distributes the work need not do that for all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from bnfold.cli import recorder
from bnfold.cli.group import enter
from bnfold.cli.group import main as command
from bnfold.cli.recorder import Recorder
from bnfold.errors import BnfoldError
from bnfold.fleet.row import sendable
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import is_url
from bnfold.supervision import limits, link


def main(pipe: int) -> NoReturn:
    """Do tasks until there is none any more. This is what the pool starts."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # what libraries say there is nobody's concern
        os.dup2(nothing, stream)
    link.connect(pipe)
    enter()
    link.begin()
    for line in requests:
        answer = perform(json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        link.begin()  # until the next task comes nothing is limited
    link.finished(0)
    os._exit(0)  # which leaves out what the libraries do at their end


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Do one task, in this process, in which something new begins with it."""
    start = time.monotonic()
    found = Recorder(request["views"])
    try:
        os.chdir(request["folder"])
    except OSError as error:
        return _answer(found, 2, error=f"{request['folder']}: {error.strerror}")
    if not is_url(request["path"]):
        path = Path(request["path"])
        with contextlib.suppress(OSError, BnfoldError):  # the command says what is wrong with it
            found.bytes = _size(path)
            if request["keeps"]:
                link.reading(path, printable(str(path)))
                found.sha256 = _sha256(path)
    known, files = request["known"], _digests(request["others"] if request["keeps"] else ())
    if known is not None and known["sha256"] == found.sha256 is not None:
        now = files | _digests(request["products"])
        is_seen = all(one or not os.path.lexists(path) for path, one in now.items())
        if is_seen and known["files"] == now:
            return {"is_unchanged": True, "is_spent": False}
    if request["target"] is not None:
        with contextlib.suppress(OSError):  # whoever writes there says it
            Path(request["target"]).mkdir(parents=True, exist_ok=True)
    with recorder.recording(found), contextlib.redirect_stdout(io.StringIO()):
        code = command(request["words"], "bnfold", standalone_mode=False)
    is_kept = request["keeps"] and found.report is not None
    files |= _digests(request["products"] if is_kept else ())
    return _answer(found, code or 0, files=files, seconds=time.monotonic() - start)


def _answer(found: Recorder, code: int, **more: Any) -> dict[str, Any]:
    return {
        "exit_code": code,
        "error": found.error,
        "report": sendable(found.report),
        "sha256": found.sha256,
        "bytes": found.bytes,
        "views": sendable(found.views or None),
        "said": found.said,
        "notes": found.notes,
        "is_spent": link.has_run_models() or "tensorflow" in sys.modules,
        **more,
    }


def _size(path: Path) -> int | None:
    return limits.size(path) if os.path.isfile(path) or os.path.isdir(path) else None


def _digests(paths: Iterable[str]) -> dict[str, str | None]:
    """The SHA-256 of each file or folder; None where there is none, or it cannot be read."""
    from bnfold.model.container.unchanging import sha256

    found: dict[str, str | None] = dict.fromkeys(paths)
    for one in found:
        with contextlib.suppress(OSError, BnfoldError):
            if os.path.isfile(one) or os.path.isdir(one):
                found[one] = sha256(Path(one))
    return found


def _sha256(path: Path) -> str | None:
    """The SHA-256 of a model; None of what is none, and may have no end."""
    from bnfold.model.container.model_file import is_model_directory
    from bnfold.model.container.unchanging import sha256

    return sha256(path) if os.path.isfile(path) or is_model_directory(path) else None
