"""Which versions of Keras and of the other libraries bnfold works with, measured.

    python tests/compat.py [--only NAME]... [--keras-source DIR] [--write]

For each row a virtual environment is made. The Keras in it writes models in each format
(`builders/compat_models.py`), the bnfold that runs this reads, audits and folds them, and that
Keras loads the results and compares. Where bnfold can run models with it, the bnfold of this folder
then folds and verifies them there (`builders/compat_proofs.py`); files of Keras 2 are verified
here, with tf_keras. One line is printed for each row; the exit code is 1 if anything failed.
`--write` puts the rows into the tables of docs/versions.md.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bnfold

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests/builders/compat_models.py"
PROOFS = ROOT / "tests/builders/compat_proofs.py"
PAGE = ROOT / "docs/versions.md"

FRAMEWORKS = ("tensorflow", "keras", "tf-keras")
TENSORFLOW = "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"


@dataclass(frozen=True)
class Row:
    """Libraries that are tried together.

    Attributes:
        name: what the table calls it.
        requirements: what pip installs.
        python: the version of Python.
        backend: what Keras runs on.
        proves: the Python that verifies: "there", "here", or "" for none.
        from_source: whether Keras is a folder of its source.
    """

    name: str
    requirements: tuple[str, ...]
    python: str = "3.11"
    backend: str = "tensorflow"
    proves: str = "there"
    from_source: bool = False


def bounds() -> dict[str, str]:
    """The lowest versions that pyproject.toml allows, by distribution."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *extras["verify"], *extras["keras2"]]
    return dict(one.split(">=") for one in every if ">=" in one)


def rows() -> list[Row]:
    """All rows of the table."""
    core = tuple(name for name in bounds() if name not in FRAMEWORKS)
    newest = (*core, TENSORFLOW)
    lowest = tuple(f"{name}=={version}" for name, version in bounds().items())
    keras_2 = [
        Row(version, (f"{TENSORFLOW}=={version}.*",), proves="here")
        for version in ("2.13", "2.14", "2.15")
    ]
    return [
        *keras_2,
        Row("3.0", ("keras==3.0.*", f"{TENSORFLOW}==2.16.*"), proves=""),
        Row("3.6, all lowest", lowest),
        Row("3.10", ("keras==3.10.*", f"{TENSORFLOW}==2.20.*", *core)),
        Row("3.13", ("keras==3.13.*", *newest)),
        Row("3.15", ("keras==3.15.*", *newest)),
        Row("3.15, Python 3.12", ("keras==3.15.*", *newest), python="3.12"),
        Row("3.15, Python 3.13", ("keras==3.15.*", *newest), python="3.13"),
        Row("3.15 on JAX", ("keras==3.15.*", *newest, "jax"), backend="jax"),
        Row("3.15 on PyTorch", ("keras==3.15.*", *newest, "torch"), backend="torch"),
        Row("main", newest, from_source=True),
    ]


@dataclass
class Outcome:
    """What came of a row.

    Attributes:
        keras: the version that wrote the files.
        files: how many it wrote.
        read: how many of these bnfold has audited and folded.
        folded: how many layers are gone.
        loaded: how many of the results Keras loads.
        worst: the largest difference of one from its original, relative to its tolerance.
        proofs: how many models were verified, of how many.
        libraries: the versions of what was installed, by distribution.
        remarks: what Keras itself cannot do, which is no fault of bnfold's.
        failures: what went wrong.
        absent: why there are no figures.
    """

    keras: str = ""
    models: int = 0
    files: int = 0
    read: int = 0
    folded: int = 0
    loaded: int = 0
    worst: float = 0.0
    proofs: tuple[int, int] | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    absent: str = ""

    def cells(self, name: str) -> list[str]:
        """The cells of its row in the table."""
        if self.absent:
            return [name, self.absent]
        proofs = "no" if self.proofs is None else "{} of {}".format(*self.proofs)
        counts = (self.models, self.files, self.folded, f"{self.loaded} of {self.files}")
        return [name, self.keras, *map(str, counts), f"{self.worst:.2g}", proofs]


HEAD = (
    "Keras",
    "version",
    "models",
    "files",
    "layers folded",
    "loaded there",
    "largest difference / tolerance",
    "verified",
)


def interpreter(version: str) -> str | None:
    """A Python of a version; None where there is none that runs."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [shutil.which(f"python{version}")]
    found += [str(one / "bin/python") for one in sorted(versions.glob(f"{version}.*"))]
    for one in filter(None, found):
        done = subprocess.run([one, "-c", ""], capture_output=True, check=False)
        if done.returncode == 0:
            return one
    return None


def environment(row: Row, folder: Path) -> Path:
    """The Python of a new environment with the libraries of a row. Raises RuntimeError."""
    base = interpreter(row.python)
    if base is None:
        raise RuntimeError(f"there is no Python {row.python}")
    run([base, "-m", "venv", str(folder)])
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([str(python), "-m", "pip", "install", "--quiet", *row.requirements])
    return python


def installed(python: str) -> dict[str, str]:
    """The versions of what is installed, by distribution; TensorFlow by one name."""
    listed = json.loads(run([python, "-m", "pip", "list", "--format", "json"]))
    found = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in listed}
    return {"tensorflow": found.get("tensorflow-cpu", ""), **found}


def run(command: Sequence[str], variables: dict[str, str] | None = None) -> str:
    """What a command prints. Raises RuntimeError with its last lines of errors."""
    done = subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(" / ".join(lines[-3:]) or f"ended with code {done.returncode}")
    return done.stdout


def tried(row: Row, work: Path, source: Path | None) -> Outcome:
    """Make the environment of a row and try everything in it."""
    outcome = Outcome()
    if row.from_source and source is None:
        outcome.absent = "not tried: no source was given"
        return outcome
    if interpreter(row.python) is None:
        outcome.absent = f"not tried: there is no Python {row.python}"
        return outcome
    python, files = str(environment(row, work / "environment")), work / "files"
    outcome.libraries = installed(python)
    paths = [str(source)] if source is not None and row.from_source else []
    there = {"KERAS_BACKEND": row.backend, "PYTHONPATH": os.pathsep.join(paths)}
    run([python, str(MODELS), "write", str(files)], there)
    _fold_all(files, outcome)
    run([python, str(MODELS), "compare", str(files)], there)
    _judge(files, outcome)
    if row.proves:
        if row.proves == "here":
            python, there, paths = sys.executable, {"KERAS_BACKEND": "tensorflow"}, []
        there["PYTHONPATH"] = os.pathsep.join([*paths, str(ROOT)])
        run([python, str(PROOFS), str(files)], there)
        _count_proofs(files, outcome)
    return outcome


def _fold_all(files: Path, outcome: Outcome) -> None:
    """Audit and fold every file here."""
    written = json.loads((files / "written.json").read_text("utf-8"))
    outcome.keras, outcome.models = written["keras"], len(written["models"])
    for model, names in written["models"].items():
        outcome.remarks += [f"cannot write {model}: {why}" for why in written["unwritten"][model]]
        (files / model / "folded").mkdir()
        for name in names:
            outcome.files += 1
            path = files / model / name
            try:
                inspection = bnfold.inspect(path)
                report = bnfold.fold(path, files / model / "folded" / name, verify=False)
            except bnfold.BnfoldError as error:
                outcome.failures.append(f"{model}/{name}: {error}")
                continue
            outcome.read += 1
            outcome.folded += len(report.plan.folds)
            if report.plan.blocked or len(inspection.plan.folds) != len(report.plan.folds):
                reasons = "; ".join(one.reason for one in report.plan.blocked)
                outcome.failures.append(f"{model}/{name}: not everything folds: {reasons}")


def _judge(files: Path, outcome: Outcome) -> None:
    """What Keras found out about the results."""
    for model, found in json.loads((files / "compared.json").read_text("utf-8")).items():
        for name, row in found.items():
            if row["original"] is not None:
                outcome.remarks.append(f"original {model}/{name}: {row['original']}")
            if row["folded"] is None:
                outcome.loaded += 1
                outcome.worst = max(outcome.worst, row["difference"])
                if not row["difference"] <= 1 and row["original"] is None:
                    outcome.failures.append(f"{model}/{name}: off by {row['difference']:.3g}")
            elif row["original"] is None:
                outcome.failures.append(f"{model}/{name}: {row['folded']}")


def _count_proofs(files: Path, outcome: Outcome) -> None:
    """What bnfold found out about the results."""
    found = json.loads((files / "proofs.json").read_text("utf-8"))
    good = [one for one in found["models"].values() if one["verdict"] == "equivalent"]
    outcome.proofs = (len(good), len(found["models"]))
    for model, one in found["models"].items():
        if one not in good:
            outcome.failures.append(f"{model}: {one['verdict']}")
        elif one["basis"] != "keras and onnxruntime":
            outcome.remarks.append(f"{model} is verified by {one['basis']}")
    for model, off in found["live"].items():
        if not off <= 1:
            outcome.failures.append(f"{model}, live: off by {off:.3g}")


def table(name: str, head: Sequence[str], made: dict[str, list[str]]) -> None:
    """Put rows into a table of the page, in the place of those that begin alike.

    Rows of which nothing was measured yet were not tried. Those that stay have nothing in columns
    that are new.
    """
    text = PAGE.read_text("utf-8")
    begin, end = f"<!-- {name}, written by tests/compat.py -->\n", "<!-- end -->"
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    columns, _, *kept = [_cells(line) for line in old.strip().splitlines()]
    cells = {one[0]: dict(zip(columns, one, strict=True)) for one in kept}
    cells |= {row: dict(zip(head, one, strict=False)) for row, one in made.items()}
    untried = ({head[0]: row.name, head[1]: "not tried"} for row in rows())
    every = [cells.get(one[head[0]], one) for one in untried]
    whole = [[found.get(name, "") for name in head] for found in every]
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, whole)]
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{end}{after}", "utf-8")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [row.name for row in rows()]
    options.add_argument("--only", action="append", choices=names, help="a row; may be repeated")
    options.add_argument("--keras-source", type=Path, help="the folder of Keras' source, for main")
    options.add_argument("--write", action="store_true", help="write the tables into the docs")
    given = options.parse_args()
    outcomes = {}
    for row in rows():
        if given.only and row.name not in given.only:
            continue
        with tempfile.TemporaryDirectory(prefix="compat-", ignore_cleanup_errors=True) as work:
            try:
                outcome = tried(row, Path(work), given.keras_source)
            except RuntimeError as error:
                outcome = Outcome(absent="failed", failures=[str(error)])
        outcomes[row.name] = outcome
        print(_line(outcome.cells(row.name)), flush=True)
        for said in outcome.remarks:
            print(f"  note: {said}", flush=True)
        for said in outcome.failures:
            print(f"  FAILED: {said}", flush=True)
    if given.write:
        table("versions", HEAD, {name: one.cells(name) for name, one in outcomes.items()})
        tried_with = {
            name: [name, *(one.libraries.get(library, "") for library in bounds())]
            for name, one in outcomes.items()
        }
        table("libraries", ("Keras", *bounds()), tried_with)
    sys.exit(any(one.failures for one in outcomes.values()))


if __name__ == "__main__":
    main()
