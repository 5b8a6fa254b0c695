"""Preparing a model for deployment: from a trained model to what is shipped, in one step.

    MODEL -> recalibrated, where asked -> gate -> folded and verified -> exported and verified
          -> scored on labels, where there are some -> DIR

What is shipped is verified against the model whose statistics it has: MODEL, or MODEL recalibrated.
What is scored is held against MODEL as it was given. DIR appears whole or not at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from bnfold.audit import Finding
from bnfold.errors import SettingsError, VerificationImpossibleError
from bnfold.jobs.export import TargetReport, export_file
from bnfold.jobs.fold import fold_file
from bnfold.jobs.gate import check, fails
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.jobs.products import PRODUCTS, RECALIBRATIONS
from bnfold.jobs.recalibrate import RecalibrationReport, recalibrate_file
from bnfold.jobs.settings import Settings
from bnfold.jobs.staging import Staging, check_target
from bnfold.jobs.verify import Proof
from bnfold.model.container.guard import files_in
from bnfold.model.container.model_file import held
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Where, located
from bnfold.model.container.store import Copies
from bnfold.model.graph import show
from bnfold.observation import labels as labelled
from bnfold.observation import observe
from bnfold.observation.observe import DataRun
from bnfold.running import borrowing, options, ports, requirements
from bnfold.running.arrays import Array
from bnfold.running.data import Source
from bnfold.running.deployed.binding import bind
from bnfold.running.deployed.opening import kind_of, open_deployed
from bnfold.serialize import Report, Serializable, Shown
from bnfold.supervision import link
from bnfold.verification import Verification
from bnfold.verification.bounds import held_to

STALE = ("BN103", "BN110", "BN501")
"""The findings that new statistics mend: `auto` recalibrates where there is one."""

FILES = {name: (f"model{ending}", precision) for name, (ending, precision) in PRODUCTS.items()}
"""What each of the targets is called in DIR, and its precision."""


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a model.

    Attributes:
        to: some of `PRODUCTS`; the folded Keras model is always made.
        data: the user's samples; None to run random ones.
        labels: what the outputs should be; None for the array y beside the data, if there is one.
        test_data: other samples for the scores, with an array y or with `labels`; None for `data`.
        recalibrate: whether the moving statistics are estimated again from the data.
        proof: how all is verified; its samples are those of `data`.
        keep: patterns of layers to leave alone.
        keras: the version of Keras that will run the folded model.
        inference: the result is called for inference only.
        opset: the version of the ONNX operator set.
    """

    to: Sequence[str] = ("onnx",)
    data: Source | None = None
    labels: Source | None = None
    test_data: Source | None = None
    recalibrate: str = "never"
    proof: Proof = field(default_factory=Proof)
    keep: Sequence[str] = ()
    keras: str | None = None
    inference: bool = False
    opset: int | None = None

    def __post_init__(self) -> None:
        """See that every value means something. Raises SettingsError and TypeError."""
        to = tuple(dict.fromkeys(options.some_of("to", self.to, tuple(PRODUCTS))))
        options.some_of("recalibrate", self.recalibrate, RECALIBRATIONS)
        options.checked(self, to=to, keep=options.names("keep", self.keep))
        for name, needs in (
            (f"recalibrate {self.recalibrate}", self.recalibrate != "never"),
            ("tflite:int8", "tflite:int8" in to),
        ):
            if needs and self.data is None:
                raise SettingsError(
                    f"{name} needs --data (in Python data): samples like those that the model will"
                    " see"
                )
        if self.labels is not None and self.data is None and self.test_data is None:
            raise SettingsError("labels need --data or --test-data: the samples that they are for")


@dataclass(frozen=True)
class Product(Serializable):
    """One model in DIR.

    Attributes:
        name: of the file or folder in DIR.
        format: "keras", "onnx", "tflite" or "saved_model".
        precision: "float32", "float16" or "int8".
        size: in bytes.
        sha256: of the file, or of what `sha256sum` says of the files of a folder.
        verdict: of its verification.
        max_excess: the largest share of its tolerance that an error took.
        scores: how well its outputs fit the labels, beside those of MODEL.
        refused: why it must not be shipped, in sentences.
    """

    name: str
    format: str
    precision: str
    size: int
    sha256: str
    verdict: str
    max_excess: float | None
    scores: tuple[labelled.Score, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class PrepareReport(Shown, Report):
    """What came of a preparation.

    Attributes:
        source: the model that was given; of a live model, its name.
        directory: where everything was to go.
        written: whether it is there.
        refused: why it is not, in sentences; empty where it is.
        findings: on the model that is shipped, before it was folded.
        asked_for: the findings on MODEL for which it was recalibrated; empty where it was not.
        recalibration: what that did; None where nothing was.
        folded: how many BatchNormalization layers were folded, and of how many; None where it did
            not come to that.
        verification: that of the fold.
        exports: what became of each export, with its verification.
        products: the models in DIR.
        source_sha256: the SHA-256 of MODEL.
        scored_on: the samples that the scores are of; None where there are no scores.
        is_held_out: whether these are others than those that gave the statistics and ranges.
    """

    source: Where
    directory: Path
    written: bool
    refused: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    asked_for: tuple[Finding, ...] = ()
    recalibration: RecalibrationReport | None = None
    folded: tuple[int, int] | None = None
    verification: Verification | None = None
    exports: tuple[TargetReport, ...] = ()
    products: tuple[Product, ...] = ()
    source_sha256: str = ""
    scored_on: str | None = None
    is_held_out: bool = False

    json_keys: ClassVar[tuple[str, ...]] = (
        *("source", "source_sha256", "directory", "written", "refused", "findings", "asked_for"),
        *("recalibration", "folded", "verification", "exports", "products", "scored_on"),
        "is_held_out",
    )

    @property
    def brief(self) -> str:
        """What was done, in a line."""
        names = ", ".join(one.name for one in self.products)
        if self.written:
            return f"{self.directory} was written: {names}"
        return f"{self.directory} was not written: {'; '.join(self.refused)}"

    def __bool__(self) -> bool:
        """Whether DIR was written."""
        return self.written

    @property
    def stopped_by(self) -> tuple[Finding, ...]:
        """The findings that are as bad as the gate allows none to be."""
        return tuple(one for one in self.findings if _sentence(one) in self.refused)

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        folded = self.folded and dict(zip(("layers", "of"), self.folded, strict=True))
        return {**super().to_dict(), "folded": folded}


Write: TypeAlias = Callable[[PrepareReport, Inspection, Path], None]
"""Puts the reports on a preparation into a folder."""


@borrowing.guest()
def prepare_model(
    source: str | Where,
    directory: str | Path,
    write: Write,
    *,
    wanted: Wanted,
    settings: Settings,
    force: bool = False,
    name: str | None = None,
    progress: Callable[[str], None] | None = None,
    sha256: Sequence[str] = (),
) -> PrepareReport:
    """Make of the model in `source` what is deployed, in a new folder `directory`.

    `settings` are those of the gate, `write` puts the reports there. `name` stands for the file's
    name in the report. `sha256` are digests of which the source must have one, if there are any.

    Raises:
        SettingsError: the baseline of the settings is missing or damaged.
        UnreadableModelError, UnsafeModelError: the source cannot be read or loaded.
        OutputError: the directory cannot be written, or exists and `force` is not given.
        ExportImpossibleError: the model cannot be converted, or the opset is unknown.
        VerificationImpossibleError: what is needed is not installed, or Keras cannot run the model.
        BnfoldError: the data or the labels do not fit.
    """
    target = Path(directory)
    check_target(target, "prepared", force=force)
    requirements.require("prepare", everything=wanted.proof.strict)
    given = located(source)
    with (
        Staging(target, "prepared", force=force) as staging,
        Copies() as copies,
        link.temporary_folder() as work,
    ):
        staging.path.mkdir()
        shown = given if name is None else Path(name)
        file = copies.of(given)
        job = _Job(given, file, staging.path, work, wanted, settings, link.told(progress))
        with held([file], sha256):  # all steps are about one and the same file
            report = replace(job.run(), source=shown, directory=target)
        if report.verification is not None:
            found = report.verification.reworded(copies.said)
            report = replace(report, verification=found)
        if report.refused:
            return report
        report = replace(report, written=True)
        write(report, job.inspection, staging.path)
        staging.publish()
        return report


@dataclass
class _Job:
    """One preparation on its way: in `folder`, which may become DIR, and in `work`, which goes."""

    given: Where
    source: Path
    folder: Path
    work: Path
    wanted: Wanted
    settings: Settings
    report: Callable[[str], None]
    inspection: Inspection = field(init=False)

    def __post_init__(self) -> None:
        """Have the gate look at the data too."""
        keras = self.wanted.keras or self.settings.keras
        self.settings = replace(self.settings, run=self.run_of_data, keras=keras)

    @functools.cached_property
    def run_of_data(self) -> DataRun | None:
        """How models are run over the user's data; None without any."""
        if self.wanted.data is None:
            return None
        return DataRun(self.wanted.data, None, self.wanted.proof.loading, self.report)

    def run(self) -> PrepareReport:
        """All steps, until one of them finds a reason not to go on."""
        digest = _digest(self.source)
        report = PrepareReport(self.source, self.folder, written=False, source_sha256=digest)
        if problem := self._miscounted():
            return replace(report, refused=(problem,))
        self.report("inspecting the model")
        self.inspection = self._inspected(self.source)
        subject = self.source
        asked = self._asked_for()
        if self.run_of_data is not None and (asked or self.wanted.recalibrate == "always"):
            self.report("recalibrating")
            subject = self.work / self.source.name
            done = recalibrate_file(self.source, subject, run=self.run_of_data, labels=self._labels)
            told = replace(done, source=Path(self.source.name), target=Path(self._folded.name))
            report = replace(report, recalibration=told, asked_for=asked)
            if not done.written:
                return replace(report, refused=(f"not recalibrated: {done.refusal}",))
            self.report("inspecting the recalibrated model")
            self.inspection = self._inspected(subject)
        report = replace(report, findings=self.inspection.findings)
        if stopping := self._stopping():
            return replace(report, refused=tuple(map(_sentence, stopping)))
        return self._made(subject, report)

    def _miscounted(self) -> str | None:
        """Why the labels cannot be those of the samples, before anything is run."""
        wanted = self.wanted
        given = wanted.data if wanted.test_data is None else wanted.test_data
        if given is None:
            return None
        problem = labelled.miscounted(wanted.labels, given)
        return None if problem is None else f"the labels cannot be used: {problem}"

    @property
    def _labels(self) -> Source | None:
        """The labels of the data; those that were given may be for other samples."""
        return None if self.wanted.test_data is not None else self.wanted.labels

    @property
    def _folded(self) -> Path:
        """Where the folded Keras model goes."""
        return self.folder / f"model{self.source.suffix}"

    def _inspected(self, path: Path) -> Inspection:
        """The findings on a model that count, as those on the source."""

        def inspect_it(_: Where, **asked: Any) -> Inspection:
            return replace(inspect_file(path, **asked), path=self.given)

        outcome = check([self.given], self.settings, inspect_it)
        if outcome.unreadable:
            raise outcome.unreadable[0].error
        return outcome.models[0]

    def _asked_for(self) -> tuple[Finding, ...]:
        if self.wanted.recalibrate != "auto":
            return ()
        return tuple(one for one in self.inspection.findings if one.code in STALE)

    def _stopping(self) -> list[Finding]:
        every = self.inspection.findings
        return [one for one in every if fails(one.severity, self.settings.fail_on)]

    def _made(self, subject: Path, report: PrepareReport) -> PrepareReport:
        """Fold, export, score."""
        wanted = self.wanted
        folded = self._folded
        common: dict[str, Any] = {
            "keep": wanted.keep,
            "keras": self.settings.keras,
            "inference": wanted.inference,
            "progress": self.report,
            "origin": report.source_sha256,  # that of a recalibrated model is in nobody's hands
        }
        self.report("folding")
        fold = fold_file(subject, folded, proof=wanted.proof, **common)
        counts = len(fold.plan.folds), len(fold.plan.decisions)
        report = replace(report, folded=counts, verification=fold.verification)
        if not fold.written:
            proof = fold.verification
            found = () if proof is None else (*proof.differences, *proof.refused)
            return replace(report, refused=found or ("the fold was not verified",))
        if wanted.to:
            names, precisions = zip(*(FILES[one] for one in wanted.to), strict=True)
            lite = [
                one for one, name in zip(precisions, names, strict=True) if name.endswith("tflite")
            ]
            exported = export_file(
                subject,
                [self.folder / one for one in names],
                precision=lite,
                opset=wanted.opset,
                running=wanted.proof,
                **common,
            )
            named = (replace(one, target=Path(one.target.name)) for one in exported.targets)
            report = replace(report, exports=tuple(named))
        products = [self._of_fold(folded, fold.verification), *map(self._exported, report.exports)]
        scores, scored_on, problem = self._scores([one.name for one in products])
        products = [
            replace(one, scores=found, refused=(*one.refused, *_worse(found)))
            for one, found in zip(products, scores, strict=True)
        ]
        refused = [f"{one.name}: {why}" for one in products for why in one.refused]
        refused += [] if problem is None else [f"the labels cannot be used: {problem}"]
        return replace(
            report,
            products=tuple(products),
            refused=tuple(refused),
            scored_on=scored_on,
            is_held_out=self.wanted.test_data is not None,
        )

    def _of_fold(self, path: Path, found: Verification | None) -> Product:
        if found is None:
            return _product(path, "keras", "float32")
        product = _product(path, "keras", "float32", found.verdict.value, found.max_excess)
        if found.accepted(strict=self.wanted.proof.strict):
            return product
        return replace(product, refused=found.refused or (f"the fold is {product.verdict}",))

    def _exported(self, one: TargetReport) -> Product:
        path = self.folder / one.target.name
        if one.check is None:
            return _product(path, one.format, one.precision)
        found = held_to(one.check, self.wanted.proof.bounds)
        refused = list(found.refused)
        if not one.check.accepted(strict=self.wanted.proof.strict):
            refused += one.check.differences or [f"its verification is {one.check.verdict.value}"]
        verdict, excess = one.check.verdict.value, one.check.max_excess
        product = _product(path, one.format, one.precision, verdict, excess)
        return replace(product, refused=tuple(refused))

    # --- labels ----------------------------------------------------------------------------------

    def _scores(
        self, names: Sequence[str]
    ) -> tuple[list[tuple[labelled.Score, ...]], str | None, str | None]:
        """How well each product fits the labels, beside the source, and on which samples.

        Or why an array that stands beside the data cannot be taken for labels.
        """
        nothing: list[tuple[labelled.Score, ...]] = [() for _ in names]
        wanted = self.wanted
        given = wanted.data if wanted.test_data is None else wanted.test_data
        if given is None or not all((self.folder / one).exists() for one in names):
            return nothing, None, None
        if wanted.labels is None and labelled.beside(given) is None:
            return nothing, None, self._without_labels
        run = DataRun(given, None, wanted.proof.loading, self.report)
        self.report("scoring the model")
        running = observe.start(self.source, run)
        labels = None if wanted.labels is None else labelled.read(wanted.labels)
        model = running.loaded.model
        targets, problem = labelled.targets_for(labels, model, running.data, given)
        if not targets:
            return nothing, None, problem or self._without_labels
        before = labelled.Scorer(targets)
        observe.observe_running(running, {}, run.report, before.note)
        found = []
        for one in names:
            self.report(f"scoring {one}")
            after = labelled.Scorer(before.wanted)
            for outputs in self._outputs(self.folder / one, running, run):
                after.note(outputs)
            found.append(labelled.compare(before, after))
        return found, running.data.name, None

    @property
    def _without_labels(self) -> str | None:
        """What is wrong where there are no labels: with samples that are for the scores alone."""
        return None if self.wanted.test_data is None else "the test data have no array 'y'"

    def _outputs(self, path: Path, running: observe.Running, run: DataRun) -> Iterator[list[Array]]:
        """What a product computes from the data, batch by batch."""
        if kind_of(path) is None:
            seen: list[list[Array]] = []
            observe.observe_running(observe.start(path, run), {}, run.report, seen.append)
            yield from seen
            return
        file = open_deployed(path)
        bindings, differences = bind(ports.interface(running.loaded.model), file)
        if differences:
            raise VerificationImpossibleError(f"{printable(path.name)}: {differences[0]}")
        call = file.start()
        for number in range(len(running.sizes)):
            yield bindings[0].run(call, [np.asarray(one) for one in running.batch(number)])


def _product(
    path: Path,
    format_: str,
    precision: str,
    verdict: str = "not verified",
    max_excess: float | None = None,
) -> Product:
    """What stands at a path; without its size where nothing does."""
    there = path.exists()
    size, digest = (_size(path), _digest(path)) if there else (0, "")
    return Product(path.name, format_, precision, size, digest, verdict, max_excess)


def _worse(scores: Sequence[labelled.Score]) -> list[str]:
    return [f"it fits the labels worse: {one.sentence}" for one in scores if one.worse]


def _sentence(finding: Finding) -> str:
    return f"{finding.code} {show(finding.layer)}: {finding.message}"


def _size(path: Path) -> int:
    if path.is_dir():
        return sum((path / one).stat().st_size for one in files_in(path))
    return path.stat().st_size


def _digest(path: Path) -> str:
    from bnfold.model.container.unchanging import sha256  # noqa: PLC0415 - starts OpenSSL

    return sha256(path)
