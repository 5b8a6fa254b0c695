"""What a process of its own costs, in CPU seconds and memory beside doing the same without one.

    python tests/evaluation/costs.py

Both ways are run in turn, and the least of each counts: that is the one least disturbed.
"""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MODEL = str(Path(__file__).parents[2] / "fixtures" / "digits_cnn_keras315.keras")
ROUNDS = 9

IN_PYTHON = """
import resource, sys
import bnfold

def spent():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)

found = {}
for here in (True, False) * int(sys.argv[2]):
    before = spent()
    bnfold.inspect(sys.argv[1], in_process=here)
    found.setdefault(here, []).append(spent() - before)
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(min(found[True][1:]), min(found[False][1:]), child)
"""


def environment() -> dict[str, str]:
    """Without the setting that has Python compile each module anew in every process."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def spent(*command: str) -> float:
    """The CPU seconds of a command and of the processes that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *command], env=environment(), stdout=subprocess.PIPE, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))


def least(one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """The least of each, measured in turn."""
    pairs = [(one(), other()) for _ in range(ROUNDS)]
    return min(first for first, _ in pairs), min(second for _, second in pairs)


def main() -> None:
    """Print a line for the command line and one for Python."""
    command = ("-m", "bnfold", "inspect", MODEL, "--fail-on", "never")
    alone, watched = least(lambda: spent(*command, "--debug"), lambda: spent(*command))
    print(f"command line: {alone:.3f} s, supervised {watched - alone:+.3f} s")
    done = subprocess.run(
        [sys.executable, "-c", IN_PYTHON, MODEL, str(ROUNDS)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    here, there, memory = map(float, done.stdout.split())
    print(f"Python: {here:.3f} s, in a child {there - here:+.3f} s, {memory:.0f} MiB")


if __name__ == "__main__":
    main()
