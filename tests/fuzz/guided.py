"""Coverage-guided fuzzing of one reader, with atheris (pip install 'bnfold[fuzz]').

    python tests/fuzz/guided.py READER -max_total_time=600

READER is one of those in readers.py; what follows goes to libFuzzer. The corpus stays in
build/fuzz/READER, so that a later run goes on from there; an input that fails is written to
build/fuzz, and `python tests/fuzz/guided.py READER FILE` reads it again.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))

with atheris.instrument_imports(include=["bnfold"]):
    from readers import READERS

from places import ROOT


def main() -> None:
    name, *options = sys.argv[1:]
    reader, kept = READERS[name], ROOT / "build" / "fuzz"
    seeds = kept / name
    seeds.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(reader.seeds()):
        (seeds / f"seed{number}").write_bytes(content)
    given = [option for option in options if not option.startswith("-")]
    where = given or [str(seeds)]
    flags = [option for option in options if option.startswith("-")]
    defaults = ["-timeout=30", "-rss_limit_mb=2048", "-max_len=65536", f"-artifact_prefix={kept}/"]
    atheris.Setup(
        [sys.argv[0], *defaults, *flags, *where], lambda data: reader.ending(data) and None
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
