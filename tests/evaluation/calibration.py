"""Measure false alarms and misses of the audit on models that are trained for it.

    python tests/evaluation/calibration.py [--models FOLDER] [FILE ...]

prints the figures of docs/calibration.md as Markdown. The models are trained first, which takes 15
minutes or more; those in FOLDER are taken from there. Each FILE is a model of somebody else that is
inspected, too. With the same versions of TensorFlow, Keras and scikit-learn and on the same kind of
processor the figures come out the same.
"""

import argparse
import lzma
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))

import tensorflow as tf
from broken_models import BROKEN
from healthy_models import HEALTHY
from limit_models import LIMITS
from specimens import Result, Specimen, examine_all

from bnfold.audit import RULES, Finding, Severity, Thresholds
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container.model_file import open_model

FIXTURES = Path(__file__).parents[2] / "fixtures"

FILE_RULES = [rule for rule in RULES if not rule.needs_data]

SWEEPS: Mapping[str, Sequence[float]] = {
    "inverted_momentum": (0.01, 0.05, 0.1, 0.2, 0.5, 0.6, 0.9),
    "epsilon_share": (0.01, 0.05, 0.1, 0.2, 0.5, 0.9),
    "unconverged_warning": (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3),
    "initial_variance": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "unconverged_error": (0.2, 0.3, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9),
    "vanishing_variance": (1e-4, 1e-3, 0.01, 0.1, 1),
    "outstanding_scale": (10, 20, 50, 100, 200, 1000),
    "cancellation": (10, 100, 1e3, 1e4, 1e5),
    "silent_share": (0.01, 0.05, 0.1, 0.12, 0.2, 0.5),
    "quantization_info": (1 / 4, 1 / 16, 1 / 64),
    "quantization_warning": (1 / 16, 1 / 64, 1 / 256, 1 / 1024, 1 / 4096),
}


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [row(*head), row(*["---"] * len(head)), *(row(*cells) for cells in rows), ""]


def codes(findings: Iterable[Finding], *severities: Severity) -> str:
    """`BN301 2, BN402` for two findings of BN301 and one of BN402."""
    counts = Counter(one.code for one in findings if one.severity in severities)
    return ", ".join(code if n == 1 else f"{code} {n}" for code, n in sorted(counts.items())) or "-"


def healthy_table(results: Sequence[Result]) -> list[str]:
    return table(
        ("model", "what it is", "steps", "score", "errors", "warnings", "infos"),
        (
            (
                f"`{one.specimen.name}`",
                one.specimen.summary,
                f"{one.steps:,}",
                f"{one.score:.3f}",
                *(codes(one.findings, severity) for severity in Severity),
            )
            for one in results
        ),
    )


def broken_table(results: Sequence[Result]) -> list[str]:
    return table(
        ("model", "what it is", "steps", "score", "planted", "missed", "other alarms"),
        (
            (
                f"`{one.specimen.name}`",
                one.specimen.summary + (" (edited)" if one.specimen.edited else ""),
                f"{one.steps:,}",
                f"{one.score:.3f}",
                "; ".join(map(str, one.specimen.planted)),
                ", ".join(one.missed) or "-",
                codes(one.false_alarms, Severity.ERROR, Severity.WARNING),
            )
            for one in results
        ),
    )


def rule_table(healthy: Sequence[Result], broken: Sequence[Result]) -> list[str]:
    return table(
        ("rule", "planted", "missed", "false alarms", "healthy models with an info"),
        (
            (
                f"{rule.code} {rule.name}",
                sum(rule.code in {p.code for p in one.specimen.planted} for one in broken),
                sum(any(text.startswith(rule.code) for text in one.missed) for one in broken),
                sum(_alarms(rule.code, one) for one in (*healthy, *broken)),
                sum(any(found.code == rule.code for found in one.findings) for one in healthy),
            )
            for rule in FILE_RULES
        ),
    )


def _alarms(code: str, result: Result) -> bool:
    return any(found.code == code for found in result.false_alarms)


def threshold_table(
    examine: Callable[[Thresholds], tuple[Sequence[Result], Sequence[Result]]],
) -> list[str]:
    """What other thresholds would do: one row for each, the default in bold."""
    of_files = {field.name for field in fields(Thresholds) if not field.name.startswith("drift_")}
    assert set(SWEEPS) == of_files

    def cell(name: str, value: float) -> str:
        healthy, broken = examine(replace(Thresholds(), **{name: value}))
        counts = (
            sum(bool(one.missed) for one in broken),
            sum(bool(one.false_alarms) for one in healthy),
            sum(bool(one.false_alarms) for one in broken),
            sum(len(one.findings) for one in healthy),
        )
        shown = f"{value:.3g}: {'/'.join(map(str, counts))}"
        return f"**{shown}**" if value == getattr(Thresholds(), name) else shown

    head = ("threshold", "value: broken missed / healthy alarmed / broken alarmed else / facts")
    return table(
        head,
        (
            (f"`{name}`", ", ".join(cell(name, value) for value in values))
            for name, values in SWEEPS.items()
        ),
    )


def other_table(paths: Iterable[Path]) -> list[str]:
    """What the audit says of models that were not made for it."""

    def rows() -> Iterator[Sequence[object]]:
        for path in paths:
            with open_model(path) as model:
                steps = model.optimizers[()].steps if () in model.optimizers else None
            findings = inspect_file(path, join=False).findings
            told = "not told" if steps is None else f"{steps:,}"
            yield (f"`{path.name}`", told, *(codes(findings, level) for level in Severity))

    return table(("file", "steps", "errors", "warnings", "infos"), rows())


def fixtures(folder: Path) -> list[Path]:
    """The model files of the tests, unpacked into a folder."""
    found = []
    for path in sorted(FIXTURES.iterdir()):
        if path.suffix == ".xz":
            target = folder / path.stem
            target.write_bytes(lzma.decompress(path.read_bytes()))
            found.append(target)
        elif path.suffix in (".keras", ".h5") or path.is_dir():
            found.append(path)
    return found


def report(folder: Path, others: Sequence[Path]) -> Iterator[str]:
    """All tables, line by line."""

    def examine(thresholds: Thresholds | None = None) -> tuple[list[Result], list[Result]]:
        return _examined(HEALTHY, folder, thresholds), _examined(BROKEN, folder, thresholds)

    healthy, broken = examine()
    yield from ("### Rules", "", *rule_table(healthy, broken))
    yield from ("### Healthy models", "", *healthy_table(healthy))
    yield from ("### Broken models", "", *broken_table(broken))
    limits = _examined(LIMITS, folder, None)
    yield from ("### Models whose defect is not in the file", "", *healthy_table(limits))
    with tempfile.TemporaryDirectory() as unpacked:
        files = (*fixtures(Path(unpacked)), *others)
        yield from ("### Models that were not made for this", "", *other_table(files))
    yield from ("### Thresholds", "", *threshold_table(examine))


def _examined(
    specimens: Mapping[str, Specimen], folder: Path, thresholds: Thresholds | None
) -> list[Result]:
    return list(examine_all(list(specimens.values()), folder, thresholds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="where trained models are, and stay")
    parser.add_argument("files", nargs="*", type=Path, help="more models to inspect")
    arguments = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for line in report(folder, arguments.files):
            print(line, flush=True)


if __name__ == "__main__":
    main()
