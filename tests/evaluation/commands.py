"""Run every command on every hostile file, and judge from outside what became of it.

    python tests/evaluation/commands.py               # the files of attacks.py
    python tests/evaluation/commands.py FOLDER...     # and those in these folders

A command ends by itself, with exit code 0, 1 or 2. With 2 there is one line of why, beside those on
its progress. There is no traceback and no "internal error", nothing of the file has run, and what
is left are the results that were asked for. Reading takes no more memory than it may. What is
wrong is printed, and the exit code is 1 then. Needs Linux.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import attacks
import numpy as np
from archives import CHANNELS, keras_file, model_config

OUT, GOOD, DATA = "OUT", "good.keras", "data.npy"
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "FILE"),
    "inspect --data": ("inspect", "FILE", "--data", DATA),
    "inspect --output": ("inspect", "FILE", "--output", f"{OUT}.html"),
    "fold": ("fold", "FILE", OUT),
    "fold --no-verify": ("fold", "FILE", OUT, "--no-verify"),
    "fold --standalone": ("fold", "FILE", OUT, "--standalone", "depthwise"),
    "verify, the first": ("verify", "FILE", GOOD),
    "verify, the second": ("verify", GOOD, "FILE"),
    "export": ("export", "FILE", f"{OUT}.onnx"),
    "bench": ("bench", "FILE", "--seconds", "0.05"),
    "bench, the second": ("bench", GOOD, "FILE", "--seconds", "0.05"),
    "recalibrate": ("recalibrate", "FILE", OUT, "--data", DATA),
}
READING = {"inspect", "inspect --output", "fold --no-verify"}
LIMITED = ("--timeout", "240", "--memory", "4G")
"""For commands that run models, which may take an hour otherwise."""
LATE = 300.0  # seconds on the clock, on which other processes have their time as well
_PROGRESS = re.compile(r"bnfold: .* \.\.\.")


@dataclass
class Ended:
    """A command that came to its end, or was brought to it."""

    code: int
    seconds: float
    memory: int
    error: str
    output: str
    made: list[str]


def run(name: str, file: Path) -> Ended:
    """Run a command on a copy of a file, alone in a folder with what the command needs."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        for part in ("here", "home", "tmp"):
            (folder / part).mkdir()
        here = folder / "here"
        given = shutil.copyfile(file, here / file.name)
        config = {**model_config(), "module": "keras.src.models.functional"}  # as Keras loads it
        keras_file(here / GOOD, config=config)
        np.save(here / DATA, np.random.default_rng(0).normal(size=(64, CHANNELS)))
        before = {*folder.rglob("*")}
        out = f"{OUT}{file.suffix}"
        stand_for = {"FILE": given.name, OUT: out}
        words = [stand_for.get(one, one) for one in COMMANDS[name]]
        limits = () if name in READING else LIMITED
        with (folder / "output").open("wb") as output, (folder / "err").open("wb") as error:
            process = subprocess.Popen(
                [sys.executable, "-m", "bnfold", *words, *limits],
                stdout=output,
                stderr=error,
                cwd=here,
                process_group=0,
                env={
                    **os.environ,
                    "PYTHONPATH": str(attacks.ROOT),
                    "TMPDIR": str(folder / "tmp"),
                    "HOME": str(folder / "home"),
                },
            )
        seen = attacks.watched(process.pid, folder, LATE)
        return Ended(
            9 if seen.is_late else seen.code,
            seen.seconds,
            seen.memory,
            (folder / "err").read_text(errors="replace"),
            seen.output.decode(errors="replace"),
            sorted(str(one.relative_to(folder)) for one in {*folder.rglob("*")} - before),
        )


def faults(name: str, ended: Ended, file: Path) -> Iterator[str]:
    """What is wrong with the end of a command on a file."""
    size = file.stat().st_size
    told = [line for line in ended.error.splitlines() if not _PROGRESS.fullmatch(line)]
    if ended.code not in (0, 1, 2):
        yield f"exit code {ended.code}"
    if ended.code == 2 and len(told) != 1:
        yield f"{len(told)} lines: {told[:3]}"
    if ended.code == 2 and not any(file.name in line for line in told):
        yield f"names no file: {told[-1:]}"
    for word in ("Traceback", "internal error", "\x1b"):
        if word in ended.error + ended.output:
            yield f"{word!r} in {told[-1:]}"
    allowed = ["err", "output"]
    if ended.code in (0, 1):
        allowed += [f"here/{OUT}{suffix}" for suffix in (".html", ".keras", ".h5", ".onnx")]
    if left := [one for one in ended.made if one not in allowed]:
        yield f"left {left}"
    most = max(512 << 20, 3 * size) if name in READING else 5 << 30
    if ended.memory > most:
        yield f"took {ended.memory >> 20} MiB"
    if name in READING and ended.seconds > 15 + 2 * size / (1 << 20):
        yield f"took {ended.seconds:.0f} s"


def judged(file: Path, shown: str) -> list[str]:
    """Run all commands on a file; returns what is wrong."""
    found = []
    for name in COMMANDS:
        ended = run(name, file)
        last = " ".join(ended.error.splitlines()[-1:])
        print(
            f"{shown[:50]}: {name}: {ended.code}, {ended.seconds:.1f} s, {last}"[:240], flush=True
        )
        found += [f"{shown}: {name}: {fault}" for fault in faults(name, ended, file)]
    return found


def files(folder: Path, others: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The hostile files, with what to call them; those of attacks.py are built in a folder."""
    for number, attack in enumerate(attacks.ATTACKS):
        if "--trust" in attack.options:
            continue
        place = folder / str(number)
        place.mkdir()
        (place / "secret").write_bytes(attacks.SECRET)
        yield attack.build(place), attack.name
    for other in others:
        yield from ((path, path.name) for path in sorted(other.glob("*.*")) if path.is_file())


def main() -> None:
    """Judge all commands on all files, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(judged, *one) for one in files(Path(place), asked.folders)]
        wrong = [fault for one in pending for fault in one.result()]
        canaries = [str(path) for path in Path(place).rglob("canary*") if path.suffix != ".py"]
    print(f"\n{len(pending)} files, {len(COMMANDS)} commands, {len(wrong)} faults")
    print(*wrong, *(f"ran: {path}" for path in canaries), sep="\n")
    sys.exit(bool(wrong or canaries))


if __name__ == "__main__":
    main()
