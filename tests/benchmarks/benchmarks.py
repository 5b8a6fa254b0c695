"""Measure what commands take, each beside something that everybody knows.

    python tests/benchmarks/benchmarks.py              # all, and the table of docs/performance.md
    python tests/benchmarks/benchmarks.py --light      # those without TensorFlow, on smaller models
    python tests/benchmarks/benchmarks.py --only fold  # the rows whose names begin so

A row is a command and its yardstick, which are run in turn in one session. What counts is the ratio
of their CPU times, the best of several rounds: it says the same on another machine, and on one with
other work. `--light` compares the ratios with `ratios.json` and ends with 1 if one is worse by a
third; `--note` writes them there. Models are made without Keras, but for two that Keras has.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RATIOS = Path(__file__).parent / "ratios.json"
START, END = "<!-- written by tests/benchmarks/benchmarks.py -->", "<!-- end -->"
WORSE = 4 / 3

BNFOLD = [sys.executable, "-m", "bnfold"]
IMPORTS = [sys.executable, "-c", "import click, numpy, h5py"]
CLICK = [sys.executable, "-c", "import click"]
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def of_keras(code: str) -> list[str]:
    return [sys.executable, "-c", f"import keras\n{code}"]


LOAD_AND_PRINT = """
from sys import argv
for layer in keras.saving.load_model("{model}", compile=False).layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        print(layer.name, mean.min(), mean.max(), variance.min(), variance.max())
"""
LOAD_AND_SAVE = """
keras.saving.load_model("{model}", compile=False).save("{out}")
"""
CONVERSIONS = """
import tf2onnx
for _ in range(2):
    model = keras.saving.load_model("{model}", compile=False)
    wrapped = keras.Model(model.inputs, model.outputs)
    tf2onnx.convert.from_keras(wrapped, optimizers={{}})
"""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what the command is for.
        command: its words behind `bnfold`; `{model}` and `{out}` stand for files.
        beside: the words that are run in turn with it; `{model}` and `{out}` too.
        yardstick: what these are, in words.
        model: the name of the model's maker in `MAKERS`; None for none.
        light: whether it is measured every night, with a smaller model.
        named: whether it is measured only where `--only` has all of its name.
        rounds: how often.
        codes: with which of them the command may end.
    """

    name: str
    command: str
    beside: Sequence[str]
    yardstick: str
    model: str | None = None
    light: bool = True
    named: bool = False
    rounds: int = 5
    codes: Sequence[int] = (0,)


ROWS = (
    Row("help", "--help", CLICK, "`import click`"),
    Row("usage error", "inspect --nope", CLICK, "`import click`", codes=(2,)),
    Row("inspect, small", "inspect {model}", IMPORTS, "importing click, numpy, h5py", "cnn"),
    Row("inspect, 200 files", "inspect {model}", IMPORTS, "the same", "folder", rounds=3),
    Row("inspect, 21,000 layers", "inspect {model}", IMPORTS, "the same", "deep", rounds=2),
    Row(
        "fold, 21,000 layers", "fold {model} {out} --force --no-verify", IMPORTS, "the same",
        "deep", rounds=2,
    ),
    Row(
        "fold, 4 GiB", "fold {model} {out} --force --no-verify", ["cp", "{model}", "{out}"],
        "`cp`", "wide", rounds=2,
    ),
    Row(
        "fold, 12 GiB", "fold {model} {out} --force --no-verify", ["cp", "{model}", "{out}"],
        "`cp`", "wider", light=False, named=True, rounds=2,
    ),
    Row("inspect, ResNet50", "inspect {model}", IMPORTS, "importing click, numpy, h5py",
        "ResNet50", light=False, codes=(0, 1)),
    Row("inspect, ResNet50 by Keras", "inspect {model}", of_keras(LOAD_AND_PRINT),
        "Keras' load_model, and a line for each layer", "ResNet50", light=False,
        codes=(0, 1)),
    Row("fold, ResNet152", "fold {model} {out} --force --no-verify", of_keras(LOAD_AND_SAVE),
        "Keras' load_model and save", "ResNet152", light=False, rounds=3),
    Row("verify, small", "verify {model} {folded}", [sys.executable, "-c", "import tensorflow"],
        "`import tensorflow`", "convolutions", light=False, rounds=3),
    Row("verify, ResNet50", "verify {model} {folded}", of_keras(CONVERSIONS),
        "one start of TensorFlow and two conversions", "ResNet50", light=False, rounds=2),
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one process took, with all that it started: seconds, and bytes at most."""

    cpu: float
    wall: float
    memory: int

    def best(self, other: "Measured | None") -> "Measured":
        """The smaller figure of two runs, each by itself."""
        if other is None:
            return self
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Measured(*(min(pair) for pair in pairs))


def run(words: Sequence[str], folder: Path, codes: Sequence[int] = (0,)) -> Measured:
    """Run a command; where it ends otherwise than it should, what it takes says nothing."""
    start = time.monotonic()
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise SystemExit(f"{shlex.join(words)} ended with {process.returncode}")
    wall = time.monotonic() - start
    return Measured(used.ru_utime + used.ru_stime, wall, used.ru_maxrss << 10)


def measured(row: Row, model: Path | None, folder: Path) -> tuple[Measured, Measured]:
    """A row's command and its yardstick, in turn; the best of each."""
    out = folder / "out.keras"
    names = {"model": model, "out": out, "folded": folder / "folded.keras"}
    if "{folded}" in row.command:
        run([*BNFOLD, "fold", str(model), str(names["folded"]), "--force", "--no-verify"], folder)
    command = [*BNFOLD, *(word.format(**names) for word in row.command.split())]
    beside = [word.format(**names) if "{" in word else word for word in row.beside]
    own = yardstick = None
    for number in range(row.rounds + 1):
        out.unlink(missing_ok=True)  # `cp` would write over a file that is there
        other = run(beside, folder)
        out.unlink(missing_ok=True)
        this = run(command, folder, row.codes)
        if number or row.rounds == 1:  # the first round fills caches and compiles modules
            own, yardstick = this.best(own), other.best(yardstick)
    assert own is not None
    assert yardstick is not None
    return own, yardstick


# --- models ---------------------------------------------------------------------------------------


def _write(sketch: Any, outputs: list[str], path: Path) -> Path:
    """Write a model as Keras does, in h5py's default format."""
    import h5py

    weights = path.with_suffix(".h5")
    with h5py.File(weights, "w") as file:
        sketch.fill(file, "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.0"}')
        archive.writestr("config.json", json.dumps(sketch.config(outputs)))
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def cnn(folder: Path, light: bool) -> Path:
    """A small model."""
    return _chain(folder / "cnn.keras", 4, 16)


def deep(folder: Path, light: bool) -> Path:
    """Thousands of layers."""
    return _chain(folder / "deep.keras", 700 if light else 7000, 4)


def _chain(path: Path, size: int, width: int) -> Path:
    import large

    sketch = large.Sketch(width)
    last = sketch.input()
    for _ in range(size):
        last = sketch.relu(sketch.norm(sketch.dense(last)))
    return _write(sketch, [last], path)


def wide(folder: Path, light: bool) -> Path:
    """Large kernels: 4 GiB of them, or 256 MiB."""
    return _wide(folder / "wide.keras", 16 if light else 256)


def wider(folder: Path, light: bool) -> Path:
    """12 GiB of them."""
    return _wide(folder / "wider.keras", 768)


def _wide(path: Path, count: int) -> Path:
    import large
    import numpy as np

    sketch = large.Sketch(2048)
    kernel = np.random.default_rng(0).normal(0, 1 / 45, (2048, 2048)).astype("f4")
    last = sketch.input()
    for _ in range(count):
        last = sketch.add("Dense", [last], units=2048, use_bias=True)
        sketch.weights[last] = [kernel, np.zeros(2048, "f4")]
        last = sketch.norm(last)
    return _write(sketch, [last], path)


def folder_of_models(folder: Path, light: bool) -> Path:
    """Many small models."""
    inside = folder / "many"
    inside.mkdir(exist_ok=True)
    for number in range(40 if light else 200):
        _chain(inside / f"m{number}.keras", 4, 16)
    return inside


CONVOLUTIONS = """
def normalized():
    random = {name: "random_normal" for name in ("beta_initializer", "moving_mean_initializer")}
    return keras.layers.BatchNormalization(**random)

inputs = x = keras.Input((32, 32, 3))
for width in (16, 32, 64):
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.MaxPooling2D()(keras.layers.ReLU()(normalized()(x)))
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))
"""


def convolutions(folder: Path, light: bool) -> Path:
    """A small CNN, made by Keras."""
    return _made_by_keras(CONVOLUTIONS, folder / "convolutions.keras")


def resnet50(folder: Path, light: bool) -> Path:
    """One of keras.applications, with random weights."""
    return _application("ResNet50", folder)


def resnet152(folder: Path, light: bool) -> Path:
    """A larger one."""
    return _application("ResNet152", folder)


def _application(name: str, folder: Path) -> Path:
    code = f"model = keras.applications.{name}(weights=None)"
    return _made_by_keras(code, folder / f"{name}.keras")


def _made_by_keras(code: str, path: Path) -> Path:
    words = of_keras(f"{code}\nmodel.save({str(path)!r})")
    subprocess.run(words, check=True, env={**os.environ, **QUIET})
    return path


MAKERS: Mapping[str, Callable[[Path, bool], Path]] = {
    "cnn": cnn,
    "deep": deep,
    "wide": wide,
    "wider": wider,
    "folder": folder_of_models,
    "convolutions": convolutions,
    "ResNet50": resnet50,
    "ResNet152": resnet152,
}


def made_elsewhere(name: str, folder: Path, light: bool) -> Path:
    """Make a model in a process of its own: what this one has in memory counts for its children."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(MAKERS[name], folder, light).result()


# --- what becomes of the figures ------------------------------------------------------------------


def all_rows(
    rows: Sequence[Row], folder: Path, *, light: bool
) -> Iterator[tuple[Row, Measured, Measured]]:
    """Measure rows, and say what was found; a model is there only while rows need it."""
    made: tuple[str | None, Path | None] = None, None
    for row in rows:
        if row.model != made[0]:
            path = None if row.model is None else made_elsewhere(row.model, folder, light)
            made = row.model, path
        own, yardstick = measured(row, made[1], folder)
        ratio = own.cpu / yardstick.cpu
        print(
            f"{row.name}: {own.cpu:.2f} s of CPU, {own.wall:.2f} s, {own.memory >> 20} MiB; "
            f"{yardstick.cpu:.2f} s for {row.yardstick}; ratio {ratio:.2f}",
            flush=True,
        )
        yield row, own, yardstick


def table(found: Sequence[tuple[Row, Measured, Measured]], before: str) -> str:
    """The table of the page, with lines of an earlier one for rows that were not measured."""
    known = {line.split("|")[1].strip(): line for line in before.splitlines() if "|" in line}
    for row, own, other in found:
        known[row.name] = (
            f"| {row.name} | {own.cpu:.2f} s | {own.wall:.2f} s | {own.memory >> 20} MiB | "
            f"{row.yardstick} | {other.cpu:.2f} s | {other.wall:.2f} s | "
            f"{own.cpu / other.cpu:.2f} | {own.wall / other.wall:.2f} |"
        )
    head = [
        "| what | CPU | wall | memory | beside | its CPU | its wall | ratio of CPU | of wall |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(known[row.name] for row in ROWS if row.name in known)])


def worse(ratios: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """The rows whose ratio is worse by a third than it was, a sentence each."""
    return [
        f"{name}: ratio {ratio:.2f}, and {before[name]:.2f} before"
        for name, ratio in ratios.items()
        if name in before and ratio > WORSE * before[name]
    ]


def main() -> None:
    """Measure, and write or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--light", action="store_true", help="compare with the ratios noted")
    parser.add_argument("--note", action="store_true", help="note the ratios of --light")
    parser.add_argument("--only", default="", help="the rows whose names begin so")
    parser.add_argument("--folder", type=Path, help="where there is place for 10 GiB of models")
    asked = parser.parse_args()
    rows = [
        row
        for row in ROWS
        if row.name.startswith(asked.only)
        and row.light >= asked.light
        and row.named <= (row.name == asked.only)
    ]
    rows.sort(key=lambda row: list(MAKERS).index(row.model) if row.model else -1)
    with TemporaryDirectory(dir=asked.folder) as folder:
        found = list(all_rows(rows, Path(folder), light=asked.light))
    ratios = {row.name: round(own.cpu / other.cpu, 2) for row, own, other in found}
    if asked.note:
        RATIOS.write_text(json.dumps(ratios, indent=1) + "\n")
    elif asked.light:
        lines = worse(ratios, json.loads(RATIOS.read_text()))
        print(*lines, sep="\n")
        sys.exit(bool(lines))
    else:
        before, _, rest = PAGE.read_text().partition(START)
        earlier, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{START}\n\n{table(found, earlier)}\n\n{END}{after}")


sys.path.insert(0, str(ROOT / "tests" / "builders"))  # for the makers

if __name__ == "__main__":
    main()
