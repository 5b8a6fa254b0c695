"""Structured mutants of the fixtures: read and folded, or refused in one line; see structure.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


# In a process of its own, whose memory is limited, and which a loop inside HDF5 ends.
def fuzz(*arguments: object) -> str:
    script = Path(__file__).with_name("structure.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_structured_mutants() -> None:
    counted = fuzz("--examples", 40)
    assert "folded" in counted
    assert "UnreadableModelError" in counted


@pytest.mark.slow
def test_many_structured_mutants() -> None:
    fuzz("--minutes", 10, "--seed", time.time_ns())
