"""Exporting: read, fold, convert, run beside the original, and only then put it all there.

One call writes one or several files, in formats that `bnfold.jobs.targets` knows. All are converted
from the same folded model, and judged together with the fold, by `bnfold.verification.trial`:
MODEL is run once for all of them. None of them appears unless all of them may.
"""

import gc
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bnfold.errors import ExportImpossibleError, SettingsError, VerificationImpossibleError
from bnfold.folding.plan import Plan, unused_patterns
from bnfold.jobs import targets as kinds
from bnfold.jobs.fold import (
    SILENT,
    Promise,
    Standalone,
    describe_folds,
    describe_kept,
    hashing,
    refuse_inside,
    refuse_obstacle,
    to_compare,
    write_folded,
)
from bnfold.jobs.gate import InputFindings, of_input
from bnfold.jobs.inspect import keras_versions
from bnfold.jobs.planning import planned
from bnfold.jobs.settings import Settings
from bnfold.jobs.staging import Format, Staging, check_target, publish_all
from bnfold.jobs.targets import Making, Target, targets_of
from bnfold.jobs.verify import Proof
from bnfold.model.container.model_file import ModelFile, open_model
from bnfold.model.container.printing import printable
from bnfold.model.container.record import recalibration
from bnfold.model.container.remote import Where
from bnfold.model.edit import for_inference
from bnfold.model.graph import Json, LayerPath, show
from bnfold.running import (
    borrowing,
    data,
    inputs,
    keras_runner,
    libraries,
    onnx_file,
    options,
    ports,
    requirements,
    samples,
    session,
)
from bnfold.running.deployed.leftovers import Leftover
from bnfold.running.deployed.model import FULL
from bnfold.running.libraries import CannotRunError
from bnfold.running.litert_file import LitePrecision, chosen_samples
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Port
from bnfold.running.samples import SampleSet
from bnfold.running.session import Opening
from bnfold.serialize import SCHEMA_VERSION, Serializable, Shown, plain
from bnfold.supervision import link
from bnfold.verification import Verdict, Verification
from bnfold.verification.tolerance import Rule
from bnfold.verification.trial import Check, Trial, expect
from bnfold.version import __version__

_NONE: tuple[LayerPath, ...] = ()
_ORT_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")

_Progress = Callable[[str], None]


@dataclass(frozen=True)
class LeftBehind(Serializable):
    """What exporter and runtime leave of each BatchNormalization, converted as it is and folded.

    Attributes:
        original: of MODEL, in a file that was made of it for comparison; None where there is none.
        exported: of the file that was written.
    """

    original: tuple[Leftover, ...] | None
    exported: tuple[Leftover, ...]


@dataclass(frozen=True, repr=False)
class TargetReport(Shown):
    """What became of one target.

    Attributes:
        target: where it was to go.
        format: "onnx", "tflite" or "saved_model".
        precision: what was asked for: "float32", "float16" or "int8".
        written: whether it is there; False when a proof or a check failed, its own or another's.
        opset: the version of the ONNX operator set; None in other formats, and when findings
            stopped the export.
        inputs: its inputs, in the order of the model's; None is a free size.
        outputs: the outputs likewise.
        check: its runtime against Keras; None when the proof of the fold failed before it, findings
            stopped the export, or none was asked for.
        calibration_samples: on how many samples ranges were measured for int8; None for others.
        left_behind: what is left of each BatchNormalization; None where that was not looked at.
    """

    target: Where
    format: Format
    precision: LitePrecision
    written: bool = False
    opset: int | None = None
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    check: Check | None = None
    calibration_samples: int | None = None
    left_behind: LeftBehind | None = None

    def accepted(self, *, strict: bool) -> bool:
        """Whether nothing speaks against it; true of one that nobody checked."""
        return self.check is None or self.check.accepted(strict=strict)

    @property
    def brief(self) -> str:
        """What became of it, in a line."""
        proof = "not checked" if self.check is None else self.check.brief
        return f"{self.target} was{'' if self.written else ' not'} written, {proof}"

    def to_dict(self) -> dict[str, Any]:
        """One of `targets` in the JSON report."""
        return {
            "target": str(self.target),
            "format": self.format,
            "precision": self.precision,
            "written": self.written,
            "opset": self.opset,
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "calibration_samples": self.calibration_samples,
            "check": plain(self.check),
            "left_behind": plain(self.left_behind),
        }


@dataclass(frozen=True, repr=False)
class ExportReport(Shown):
    """What an export did.

    Of the first target it also has `target`, `opset`, `inputs`, `outputs` and `check`.

    Attributes:
        source: the model file that was read; of a live model, its name.
        targets: what became of each target, in the order in which they were given.
        plan: what was folded and what was kept, with reasons; None without folding.
        replaced: the kept layers that are depthwise convolutions in the file.
        unused_keep: the patterns of `keep` that match no layer.
        verification: the proof of the fold alone, None where none was asked for.
        audit: the findings on the source.
        inference: as in the report of a fold.
        is_checked: whether the targets were to be checked.
    """

    source: Where
    targets: tuple[TargetReport, ...]
    plan: Plan | None
    replaced: tuple[LayerPath, ...]
    unused_keep: tuple[str, ...]
    verification: Verification | None
    audit: InputFindings = field(default_factory=InputFindings)
    inference: Promise | None = None
    is_checked: bool = True

    @property
    def brief(self) -> str:
        """What was done, in a line."""
        return "; ".join(one.brief for one in self.targets)

    def __bool__(self) -> bool:
        """Whether all was written."""
        return self.written

    @property
    def written(self) -> bool:
        """Whether all targets are there; if not, none is."""
        return all(one.written for one in self.targets)

    @property
    def target(self) -> Where:
        """Where the first target was to go."""
        return self.targets[0].target

    @property
    def opset(self) -> int | None:
        """The opset of the first target."""
        return self.targets[0].opset

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs of the first target."""
        return self.targets[0].inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs of the first target."""
        return self.targets[0].outputs

    @property
    def check(self) -> Check | None:
        """The check of the first target."""
        return self.targets[0].check

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        first = self.targets[0].to_dict()
        return {
            "schema_version": SCHEMA_VERSION,
            "source": str(self.source),
            "target": first["target"],
            "written": self.written,
            "opset": first["opset"],
            "inputs": first["inputs"],
            "outputs": first["outputs"],
            "folded": [] if self.plan is None else describe_folds(self.plan),
            "kept": [] if self.plan is None else describe_kept(self.plan),
            "keras": None if self.plan is None else keras_versions(self.plan),
            "inference": plain(self.inference),
            "replaced": [show(path) for path in self.replaced],
            "unused_keep": list(self.unused_keep),
            **self.audit.to_dict(),
            "verification": plain(self.verification),
            "check": first["check"],
            "targets": [one.to_dict() for one in self.targets],
        }


def _port(port: Port) -> Json:
    return {"name": port.name, "shape": list(port.shape), "dtype": port.dtype}


@borrowing.guest()
def export_file(
    source: str | Where,
    targets: Sequence[str | Where],
    *,
    fold: bool = True,
    opset: int | None = None,
    precision: str | Sequence[str] = (),
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    standalone: Standalone = "keep",
    force: bool = False,
    running: Proof,
    prove: bool = False,
    check: bool = True,
    settings: Settings = SILENT,
    name: str | None = None,
    progress: _Progress | None = None,
    sha256: Sequence[str] = (),
    origin: str | None = None,
) -> ExportReport:
    """Write the model in `source` to the `targets`, folded unless `fold` is False.

    Their names say in which format. `precision` is that of the LiteRT files, one for all or one for
    each. `running` says how the models are run; with `prove` the fold is proved by it first, as
    `fold_file` does. Without `check` nothing is run. `keras` and `inference` are as there. `name`
    stands for the file's name in the report and in the files. The targets are written only when
    their runtimes compute what Keras computes from the source, all of them, and no finding on the
    source is as bad as `settings.fail_on`. `sha256` are digests of which the source must have one,
    if there are any. `origin` is the one that the targets name as their source's, of a source that
    is gone afterwards.

    Raises:
        SettingsError: the baseline of the settings is missing or damaged, or options contradict
            the targets.
        UnreadableModelError, UnsafeModelError: the source cannot be read or loaded.
        OutputError: a target cannot be written, or exists and `force` is not given.
        ExportImpossibleError: the model cannot be converted, or the opset is unknown.
        VerificationImpossibleError: Keras cannot run the model, so there is nothing to compare, or
            what is needed for that is not installed.
    """
    keep = options.names("keep", keep)
    opset = options.optional(options.whole, "opset", opset)
    wanted = targets_of(targets, precision)
    _refuse_contradictions(wanted, opset, running)
    for one in dict.fromkeys(target.format for target in wanted):
        requirements.require(kinds.KINDS[one].command, everything=running.strict)
    with open_model(source, sha256) as model:
        for target in wanted:
            check_target(target.path, target.format, force=force)
            refuse_inside(target.path, model)
        refuse_obstacle(model)
        with hashing(model, origin) as hashed:
            decided = planned(model, keep, keras=keras, inference=inference)
        digest = hashed()
        audit = of_input(model, settings, None if keep else decided)
        changed = for_inference(model.graph) if inference else None
        with ExitStack() as stack:
            stagings = [
                stack.enter_context(Staging(one.path, one.format, force=force)) for one in wanted
            ]
            original = to_compare(model, changed, stagings[0])
            job = _Job(model, original, running, name, link.told(progress), opset, check, digest)
            opening = None if audit.stops else job.start(wanted)
            subject, replaced = original, _NONE
            if fold and (decided.folds or standalone == "depthwise"):
                subject = _beside(stagings[0].path, model)
                replaced, decided = write_folded(
                    model, decided, lambda: digest, standalone, subject, inference=inference
                )
            report = ExportReport(
                source=model.given if name is None else Path(name),
                targets=tuple(TargetReport(one.path, one.format, one.precision) for one in wanted),
                plan=decided if fold else None,
                replaced=replaced,
                unused_keep=unused_patterns(model.graph, keep),
                verification=None,
                audit=audit,
                inference=Promise.of(changed),
                is_checked=check,
            )
            if prove and check and not audit.stops:
                as_called = changed is None or not changed.untold
                proof = running.run(original, subject, progress, as_called=as_called)
                report = replace(report, verification=proof.reworded(model.said))
            if opening is not None and _is_proved(report, running):
                places = list(zip(wanted, (one.path for one in stagings), strict=True))
                report = job.convert(opening, subject, places, report)
            if report.written:
                model.release()
                publish_all(stagings)
        return report


def _refuse_contradictions(wanted: Sequence[Target], opset: int | None, running: Proof) -> None:
    if opset is not None and all(one.format != "onnx" for one in wanted):
        raise SettingsError("an opset is one of ONNX, and no target ends in .onnx")
    if any(one.precision == "int8" for one in wanted) and running.samples.data is None:
        raise SettingsError(
            "int8 needs --data: samples like those that the model will see, on which the ranges of"
            " its values are measured"
        )


def _beside(path: Path, model: ModelFile) -> Path:
    """A name in the staging directory for the folded model, in the container of the source."""
    suffix = {"keras": ".keras", "h5": ".h5"}.get(model.kind, "")
    return path.with_name(f"folded{suffix}")


def _is_proved(report: ExportReport, running: Proof) -> bool:
    found = report.verification
    return found is None or found.accepted(strict=running.strict)


@dataclass(frozen=True)
class _Job:
    """A model on its way into other files; `original` is the file that the results must match."""

    model: ModelFile
    original: Path
    running: Proof
    name: str | None
    report: _Progress
    opset: int | None
    check: bool
    sha256: str

    @property
    def label(self) -> str:
        """The source for messages."""
        return printable(self.name or str(self.model.given))

    def start(self, wanted: Sequence[Target]) -> Opening:
        """Refuse what cannot or must not be loaded, and start TensorFlow."""
        if self.model.graph.kind == "subclassed":
            raise ExportImpossibleError(
                f"{self.label}: a subclassed model: its file holds no graph, so there is nothing"
                " to convert"
            )
        opening = session.look([self.original], self.running.loading, self.running.samples)
        if any(one.format == "onnx" for one in wanted):
            self._opset()
        opening.start(self.report)
        return opening

    def _opset(self) -> int:
        return onnx_file.choose_opset(self.opset)

    def convert(
        self,
        opening: Opening,
        subject: Path,
        places: Sequence[tuple[Target, Path]],
        report: ExportReport,
    ) -> ExportReport:
        """Convert the model file `subject` to all targets and compare each with the source.

        `places` say for each target where it is to be made.
        """
        if subject != self.original:
            opening = opening.beside(subject)
        original, folded = self._load(opening)
        sets, warning = self._samples(original)
        trial = None
        if self.check:
            warnings = [*original.notes, *([warning] if warning is not None else [])]
            self.report("running the model with Keras")
            trial = self._expect(original, folded, sets, warnings)
            libraries.release()  # a copy in float64 is large, and a conversion takes much memory
        done = []
        for (target, place), told in zip(places, report.targets, strict=True):
            making = self._making(original, target, report, trial)
            if target.precision == "int8":
                making = replace(making, calibration=sets[0])
            one = _One(self, target, place, making, trial)
            done.append(one.convert(told, original, folded))
        written = all(one.accepted(strict=self.running.strict) for one in done)
        return replace(report, targets=tuple(replace(one, written=written) for one in done))

    @property
    def _seed(self) -> int:
        return self.running.samples.seed

    def _load(self, opening: Opening) -> tuple[LoadedModel, LoadedModel]:
        try:
            loaded = opening.load(self.report)
        except CannotRunError as error:
            raise ExportImpossibleError(f"{self.label}: {error}") from error
        for one in loaded:
            keras_runner.prepare_alone(one)
        return loaded[0], loaded[-1]

    def _samples(self, loaded: LoadedModel) -> tuple[list[SampleSet], str | None]:
        """What to run, and a warning on what is odd about the user's data."""
        specs = inputs.input_specs(loaded.model)
        if self.running.samples.data is not None:
            found, warning = data.load(self.running.samples.data, specs)
            return [found], warning
        if not self.check:
            return [], None
        sizes = keras_runner.free_sizes(loaded, specs)
        return samples.generate(specs, self._seed, sizes), None

    def _expect(
        self,
        original: LoadedModel,
        folded: LoadedModel,
        sets: list[SampleSet],
        warnings: Sequence[str],
    ) -> Trial:
        rule, is_user_data = Rule(self.running.tolerance), self.running.samples.data is not None
        try:
            return expect(
                original,
                folded,
                sets,
                seed=self._seed,
                rule=rule,
                warnings=warnings,
                is_user_data=is_user_data,
            )
        except CannotRunError as error:
            raise VerificationImpossibleError(
                f"{self.label}: Keras cannot run it, so there is nothing to compare: {error}"
            ) from error

    def _making(
        self,
        original: LoadedModel,
        target: Target,
        report: ExportReport,
        trial: Trial | None,
    ) -> Making:
        """What the file says of how it was made, and else what is needed to make it."""
        interface = ports.interface(original.model)
        opset = self._opset() if target.format == "onnx" else None
        # A live model has a name and no file; the file it went through means nothing to others.
        live = self.name is not None
        origin = {"source": self.model.given.name, "source_sha256": self.sha256}
        folded = describe_folds(report.plan) if report.plan is not None else []
        again = recalibration(self.model.metadata)
        metadata = {
            "version": __version__,
            **({"source": self.name} if live else origin),
            "source_keras_version": self.model.keras_version or "unknown",
            **onnx_file.versions(original, with_tf2onnx=opset is not None),
            **({} if opset is None else {"opset": str(opset)}),
            "folded": folded,
            "depthwise": [show(path) for path in report.replaced],
            **({} if again is None else {"recalibrated": dict(again.samples)}),
        }
        free = [port.shape[:1] == (None,) for port in interface.outputs]
        return Making(
            interface=interface,
            batched=free if trial is None else trial.batched,
            metadata=metadata,
            opset=opset or 0,
        )


@dataclass(frozen=True)
class _One:
    """One target on its way to `place`."""

    job: _Job
    target: Target
    place: Path
    making: Making
    trial: Trial | None

    def convert(
        self, told: TargetReport, original: LoadedModel, folded: LoadedModel
    ) -> TargetReport:
        """The conversion that does not differ from Keras, the first one, or else the last."""
        kind = kinds.KINDS[self.target.format]
        found, reasons = None, []
        for number, write in enumerate(kinds.conversions(folded, self.target, self.making)):
            self.job.report(f"converting to {kind.name}")
            try:
                write(self.place)
                gc.collect()  # a conversion leaves several copies of the weights behind
                found = self._judged(told)
            except CannotRunError as error:
                reasons.append(str(error))
                continue
            if found.check is None or found.check.verdict is not Verdict.DIFFERENT:
                return replace(found, left_behind=self._left_behind(original, folded, number))
        if found is None:
            named = f"{kind.name} (opset {self.making.opset})" if self.making.opset else kind.name
            reason = _ORT_CODE.sub("", reasons[0])
            raise ExportImpossibleError(
                f"{self.job.label}: cannot be converted to {named}: {reason}"
            )
        return found

    def _judged(self, told: TargetReport) -> TargetReport:
        kind = kinds.KINDS[self.target.format]
        bound = kinds.bind(self.target, self.place, self.making.interface)
        check = None
        if self.trial is not None:
            self.job.report(f"running the {kind.name} file")
            # Of a file that should compute as MODEL does, nothing less is expected.
            is_reduced = self.target.precision != "float32"
            precision = bound.file.precision if is_reduced else FULL
            check = self.trial.at(precision).check(bound)
        inputs, outputs = kinds.ports_of(bound, self.making.interface)
        samples = self.making.calibration
        return replace(
            told,
            opset=self.making.opset or None,
            inputs=inputs,
            outputs=outputs,
            check=check,
            calibration_samples=None if samples is None else len(chosen_samples(samples.count)),
        )

    def _left_behind(
        self, original: LoadedModel, folded: LoadedModel, number: int
    ) -> LeftBehind | None:
        """What is left of each BatchNormalization, in this file and in one made of MODEL alike."""
        if self.trial is None:
            return None
        exported = kinds.left_behind(self.target, self.place, folded)
        if exported is None:
            return None
        before = exported if original is folded else self._of_original(original, number)
        return LeftBehind(before, exported)

    def _of_original(self, original: LoadedModel, number: int) -> tuple[Leftover, ...] | None:
        self.job.report("looking at what the runtime leaves of MODEL as it is")
        place = self.place.with_name(f"original{self.place.suffix}")
        plainly = replace(self.target, precision="float32")  # which changes nothing in what is left
        making = replace(self.making, calibration=None)
        write = list(kinds.conversions(original, plainly, making))[number]
        try:
            write(place)
            return kinds.left_behind(plainly, place, original)
        except CannotRunError:
            return None
        finally:
            place.unlink(missing_ok=True)
