"""Commands in a process of their own, in which the libraries are not what is installed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from places import ROOT

RUN = """
import contextlib, io, json, sys

{change}
from bnfold.cli import main

for words in json.loads(sys.stdin.read()):
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout):
        try:
            main(words)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, stdout.getvalue(), stderr.getvalue()]))
"""


def outcomes(
    change: str, commands: Sequence[Sequence[str]], folder: Path
) -> list[tuple[int, str, str]]:
    """The exit code, output and errors of each command, after the Python of `change`."""
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(change=change)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
