"""Structured mutants of the fixtures, read as long as is wanted.

    python tests/fuzz/structure.py --minutes 30 --seed 1

Prints how often reading ended how, and keeps what it should not have done in build/fuzz. With
`--examples` hypothesis chooses the mutants, and makes one that fails as simple as it can.
"""

import argparse
import faulthandler
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))

import corpus
import mutators
import reading
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import ROOT

MEMORY = 2 << 30
KEPT = ROOT / "build" / "fuzz"


def one(name: str, choose: random.Random) -> str:
    """Make one mutant of a fixture and read it; how that ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = mutators.mutant(corpus.parts(name), choose, Path(folder), mutators.HOSTILE)
        last = reading.keep(path, KEPT, "last")  # for an end that Python does not see
        faulthandler.dump_traceback_later(300, exit=True)
        try:
            return reading.read(path)
        except BaseException:
            print("failed:", reading.keep(path, KEPT, f"failed_{time.time_ns()}"), flush=True)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            reading.forget(last)


def loop(minutes: float, seed: int) -> Counter[str]:
    """Read mutants until the time is over; failures are counted, and do not end it."""
    endings: Counter[str] = Counter()
    end, number = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        number += 1
        choose = random.Random(f"{seed} {number}")
        try:
            endings[one(choose.choice(corpus.names()), choose)] += 1
        except Exception as error:
            traceback.print_exc()
            endings[f"FAILED {type(error).__name__}"] += 1
        if number % 500 == 0:
            print(number, endings, flush=True)
    return endings


def examples(count: int, *, vary: bool) -> Counter[str]:
    """Let hypothesis draw so many mutants, the same ones unless they are to vary."""
    endings: Counter[str] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=not vary,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.sampled_from(corpus.names()), st.randoms(use_true_random=False))
    def draw(name: str, choose: random.Random) -> None:
        endings[one(name, choose)] += 1

    draw()
    return endings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if given.minutes is None:
        endings = examples(given.examples, vary=given.seed is not None)
    else:
        endings = loop(given.minutes, given.seed or 0)
    print(sum(endings.values()), "mutants:", dict(endings.most_common()))
    sys.exit(any(ending.startswith("FAILED") for ending in endings))


if __name__ == "__main__":
    main()
