"""What a trained model of the calibration is, what the audit should say of it, and whether it does.

A model is trained once: its file stays in a folder, and beside it how and on what it was trained.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from support import keras, np
from training import Trained

import bnfold
from bnfold.audit import Finding, Severity, Thresholds
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.model.graph import show

Make = Callable[[], Trained]


@dataclass(frozen=True)
class Planted:
    """The defect of a model: the rule that must find it, how bad, and on which layers.

    `layers` is a shell pattern of nested paths; the defect is on all that it matches.
    """

    code: str
    severity: str
    layers: str

    @classmethod
    def parse(cls, text: str) -> "Planted":
        """From `BN103 error norm_*`."""
        return cls(*text.split())

    def __str__(self) -> str:
        return f"{self.code} {self.severity}, `{self.layers}`"

    def is_on(self, layer: str) -> bool:
        """Whether a layer has the defect."""
        return fnmatchcase(layer, self.layers)


@dataclass(frozen=True)
class Specimen:
    """One model.

    Attributes:
        name: its own.
        make: builds and trains it; the docstring says what it is.
        planted: what must be found; nothing for a healthy model.
        also: codes that may be reported on the same layers, because the same defect shows so.
        edited: whether the defect was written into the weights instead of coming from training.
        form: the ending of its file; empty for a directory.
        target_dtype: what it is going to run in, if not its own dtype.
    """

    name: str
    make: Make
    planted: tuple[Planted, ...] = ()
    also: frozenset[str] = frozenset()
    edited: bool = False
    form: str = ".keras"
    target_dtype: str | None = None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return (self.make.__doc__ or "").splitlines()[0].rstrip(".")


def specimen(
    table: dict[str, Specimen],
    *planted: str,
    also: Sequence[str] = (),
    edited: bool = False,
    form: str = ".keras",
    target_dtype: str | None = None,
) -> Callable[[Make], Make]:
    """Register a function that trains a model, under its own name, in a table."""

    def register(make: Make) -> Make:
        found = tuple(Planted.parse(text) for text in planted)
        table[make.__name__] = Specimen(
            make.__name__, make, found, frozenset(also), edited, form, target_dtype
        )
        return make

    return register


@dataclass(frozen=True)
class Result:
    """What the audit says of a model. The score is that of `Trained`."""

    specimen: Specimen
    steps: int
    score: float
    inspection: Inspection

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them."""
        return self.inspection.findings

    @property
    def missed(self) -> list[str]:
        """What was planted and not found, or not at its severity, with the layer."""
        layers = [show(decision.batchnorm.path) for decision in self.inspection.plan.decisions]
        found = {(one.code, one.severity.value, show(one.layer)) for one in self.findings}
        return [
            f"{planted.code} {planted.severity} {layer}"
            for planted in self.specimen.planted
            for layer in [name for name in layers if planted.is_on(name)] or [planted.layers]
            if (planted.code, planted.severity, layer) not in found
        ]

    @property
    def false_alarms(self) -> list[Finding]:
        """Warnings and errors that are about something else than what was planted."""
        return [
            one
            for one in self.findings
            if one.severity is not Severity.INFO and not self._is_expected(one)
        ]

    def _is_expected(self, finding: Finding) -> bool:
        return any(
            planted.is_on(show(finding.layer))
            and finding.code in {planted.code, *self.specimen.also}
            for planted in self.specimen.planted
        )


def trained(specimen: Specimen, folder: Path) -> Path:
    """The file of a model, which is trained now if it is not in the folder."""
    path = folder / f"{specimen.name}{specimen.form}"
    record = folder / f"{specimen.name}.json"
    if not record.exists():
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        made = specimen.make()
        made.model.save(path, **({} if specimen.form else {"zipped": False}))
        samples, _ = made.data.train
        np.savez(_samples(path), *keras.tree.flatten(samples))
        record.write_text(json.dumps({"steps": made.steps, "score": made.score}))
    return path


def _samples(model: Path) -> Path:
    """Where the samples are that a model was trained on."""
    return model.with_name(f"{model.stem}.npz")


def examined(specimen: Specimen, folder: Path, thresholds: Thresholds | None = None) -> Result:
    """What the audit says of a model, which is trained first if need be."""
    path = trained(specimen, folder)
    record = json.loads((folder / f"{specimen.name}.json").read_text())
    inspection = inspect_file(path, thresholds=thresholds, target_dtype=specimen.target_dtype)
    return Result(specimen, record["steps"], record["score"], inspection)


def examined_on_data(specimen: Specimen, folder: Path) -> tuple[Finding, ...]:
    """What the rules say of a model that ask for data, on all that it was trained on."""
    path = trained(specimen, folder)
    samples = list(np.load(_samples(path)).values())
    return bnfold.inspect(path, select=["BN5"], data=samples, trust=True).findings


def examine_all(
    specimens: Sequence[Specimen], folder: Path, thresholds: Thresholds | None = None
) -> Iterator[Result]:
    """One after the other."""
    for one in specimens:
        yield examined(one, folder, thresholds)
