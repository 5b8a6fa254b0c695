"""Exporting to ONNX: read, fold, convert, run beside the original, and only then put it there.

The fold and the conversion are judged together, by `bnfold.verification.deployed`.
"""

import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bnfold.errors import ExportImpossibleError, VerificationImpossibleError
from bnfold.folding.plan import Plan, unused_patterns
from bnfold.jobs.fold import (
    SILENT,
    Promise,
    Standalone,
    describe_folds,
    describe_kept,
    plan_and_hash,
    refuse_inside,
    refuse_obstacle,
    to_compare,
    write_folded,
)
from bnfold.jobs.gate import InputFindings, of_input
from bnfold.jobs.inspect import keras_versions
from bnfold.jobs.settings import Settings
from bnfold.jobs.staging import Staging, check_target
from bnfold.jobs.verify import Proof
from bnfold.model.container.guard import printable
from bnfold.model.container.model_file import ModelFile, open_model
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
    samples,
    session,
)
from bnfold.running.deployed import binding, onnx
from bnfold.running.libraries import CannotRunError
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Port
from bnfold.running.samples import SampleSet
from bnfold.running.session import Opening
from bnfold.serialize import SCHEMA_VERSION, plain
from bnfold.supervision import link
from bnfold.verification import Verdict, Verification
from bnfold.verification.deployed import Check, Trial, expect
from bnfold.verification.tolerance import Rule
from bnfold.version import __version__

_NONE: tuple[LayerPath, ...] = ()
_ORT_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")

_Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        source: the model file that was read; of a live model, its name.
        target: where the ONNX file was to go.
        written: whether it is there; False when a proof or the check failed.
        opset: the version of the ONNX operator set; None when findings stopped the export.
        inputs: the inputs of the ONNX file in order; None is a free size.
        outputs: the outputs likewise.
        plan: what was folded and what was kept, with reasons; None without folding.
        replaced: the kept layers that are depthwise convolutions in the file.
        unused_keep: the patterns of `keep` that match no layer.
        verification: the proof of the fold alone, None where none was asked for.
        check: ONNX Runtime against Keras; None when the proof of the fold failed before it, or
            findings stopped the export.
        audit: the findings on the source.
        inference: as in the report of a fold.
    """

    source: Path
    target: Path
    written: bool
    opset: int | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    plan: Plan | None
    replaced: tuple[LayerPath, ...]
    unused_keep: tuple[str, ...]
    verification: Verification | None
    check: Check | None
    audit: InputFindings = field(default_factory=InputFindings)
    inference: Promise | None = None

    def __bool__(self) -> bool:
        """Whether the file was written."""
        return self.written

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": str(self.source),
            "target": str(self.target),
            "written": self.written,
            "opset": self.opset,
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "folded": [] if self.plan is None else describe_folds(self.plan),
            "kept": [] if self.plan is None else describe_kept(self.plan),
            "keras": None if self.plan is None else keras_versions(self.plan),
            "inference": plain(self.inference),
            "replaced": [show(path) for path in self.replaced],
            "unused_keep": list(self.unused_keep),
            **self.audit.to_dict(),
            "verification": plain(self.verification),
            "check": plain(self.check),
        }


def _port(port: Port) -> Json:
    return {"name": port.name, "shape": list(port.shape), "dtype": port.dtype}


@borrowing.guest()
def export_file(
    source: str | Path,
    target: str | Path,
    *,
    fold: bool = True,
    opset: int | None = None,
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    standalone: Standalone = "keep",
    force: bool = False,
    running: Proof,
    prove: bool = False,
    settings: Settings = SILENT,
    name: str | None = None,
    progress: _Progress | None = None,
    sha256: Sequence[str] = (),
) -> ExportReport:
    """Write the model in `source` to the ONNX file `target`, folded unless `fold` is False.

    `running` says how the models are run; with `prove` the fold is proved by it first, as
    `fold_file` does. `keras` and `inference` are as there. `name` stands for the file's name in the
    report and in the ONNX file. The target is written only when ONNX Runtime computes from it what
    Keras computes from the source, and no finding on the source is as bad as `settings.fail_on`.
    `sha256` are digests of which the source must have one, if there are any.

    Raises:
        SettingsError: the baseline of the settings is missing or damaged.
        UnreadableModelError, UnsafeModelError: the source cannot be read or loaded.
        OutputError: the target cannot be written, or exists and `force` is not given.
        ExportImpossibleError: tf2onnx cannot convert the model, or does not know the opset.
        VerificationImpossibleError: Keras cannot run the model, so there is nothing to compare, or
            what is needed for that is not installed.
    """
    keep = options.names("keep", keep)
    opset = options.optional(options.whole, "opset", opset)
    target = Path(target)
    running.require("export")
    with open_model(source, sha256) as model:
        check_target(target, "onnx", force=force)
        refuse_inside(target, model)
        refuse_obstacle(model)
        decided, sha256 = plan_and_hash(model, keep, keras=keras, inference=inference)
        audit = of_input(model, settings, None if keep else decided)
        changed = for_inference(model.graph) if inference else None
        with Staging(target, "onnx", force=force) as staging:
            original = to_compare(model, changed, staging)
            job = _Job(model, original, running, name, link.told(progress))
            opening = None
            if not audit.stops:
                opening, opset = job.start(opset)
            subject, replaced = original, _NONE
            if fold and (decided.folds or standalone == "depthwise"):
                subject = _beside(staging.path, model)
                replaced, decided = write_folded(
                    model, decided, sha256, standalone, subject, inference=inference
                )
            report = ExportReport(
                source=model.path if name is None else Path(name),
                target=target,
                written=False,
                opset=None if opening is None else opset,
                inputs=(),
                outputs=(),
                plan=decided if fold else None,
                replaced=replaced,
                unused_keep=unused_patterns(model.graph, keep),
                verification=None,
                check=None,
                audit=audit,
                inference=Promise.of(changed),
            )
            if prove and not audit.stops:
                as_called = changed is None or not changed.untold
                proof = running.run(original, subject, progress, as_called=as_called)
                report = replace(report, verification=proof)
            if opening is not None and _is_proved(report, running):
                report = job.convert(opening, subject, staging.path, report, sha256)
            if report.written:
                model.release()
                staging.publish()
        return report


def _beside(path: Path, model: ModelFile) -> Path:
    """A name in the staging directory for the folded model, in the container of the source."""
    suffix = {"keras": ".keras", "h5": ".h5"}.get(model.kind, "")
    return path.with_name(f"folded{suffix}")


def _is_proved(report: ExportReport, running: Proof) -> bool:
    found = report.verification
    return found is None or found.accepted(strict=running.strict)


@dataclass(frozen=True)
class _Job:
    """A model on its way into an ONNX file; `original` is the file that the result must match."""

    model: ModelFile
    original: Path
    running: Proof
    name: str | None
    report: _Progress

    @property
    def label(self) -> str:
        """The source for messages."""
        return printable(self.name or str(self.model.path))

    def start(self, opset: int | None) -> tuple[Opening, int]:
        """Refuse what cannot or must not be loaded, start TensorFlow; also the opset to write."""
        if self.model.graph.kind == "subclassed":
            raise ExportImpossibleError(
                f"{self.label}: a subclassed model: its file holds no graph, so there is nothing"
                " to convert"
            )
        opening = session.look([self.original], self.running.loading, self.running.samples)
        opset = onnx_file.choose_opset(opset)
        opening.start(self.report)
        return opening, opset

    def convert(
        self, opening: Opening, subject: Path, path: Path, report: ExportReport, sha256: str
    ) -> ExportReport:
        """Convert the model file `subject` to `path` and compare it with the source."""
        if subject != self.original:
            opening = opening.beside(subject)
        original, folded = self._load(opening)
        sets, warning = self._samples(original)
        warnings = [*original.notes, *([warning] if warning is not None else [])]
        self.report("running the model with Keras")
        trial = self._expect(original, folded, sets, warnings)
        libraries.release()  # the copy in float64 is large, and a conversion takes much memory
        label = self._label(original, report, sha256, trial.batched)
        self.report("converting to ONNX")
        check = self._first_check(folded, path, label, trial)
        inputs, outputs = onnx_file.named_ports(trial.interface)
        written = check.accepted(strict=self.running.strict)
        return replace(report, written=written, check=check, inputs=inputs, outputs=outputs)

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
        sizes = keras_runner.free_sizes(loaded, specs)
        return samples.generate(specs, self._seed, sizes), None

    def _expect(
        self,
        original: LoadedModel,
        folded: LoadedModel,
        sets: list[SampleSet],
        warnings: Sequence[str],
    ) -> Trial:
        rule = Rule(self.running.tolerance)
        try:
            return expect(original, folded, sets, seed=self._seed, rule=rule, warnings=warnings)
        except CannotRunError as error:
            raise VerificationImpossibleError(
                f"{self.label}: Keras cannot run it, so there is nothing to compare: {error}"
            ) from error

    def _label(
        self, loaded: LoadedModel, report: ExportReport, sha256: str, batched: Sequence[bool]
    ) -> onnx_file.Label:
        # A live model has a name and no file; the file it went through means nothing to others.
        live = self.name is not None
        origin = {"source": self.model.path.name, "source_sha256": sha256}
        folded = describe_folds(report.plan) if report.plan is not None else []
        metadata = {
            "version": __version__,
            **({"source": self.name} if live else origin),
            "source_keras_version": self.model.keras_version or "unknown",
            **onnx_file.versions(loaded),
            "opset": str(report.opset),
            "folded": folded,
            "depthwise": [show(path) for path in report.replaced],
        }
        named = {f"bnfold.{key}": value for key, value in metadata.items()}
        return onnx_file.Label(loaded.model.name, __version__, named, batched)

    def _first_check(
        self, loaded: LoadedModel, path: Path, label: onnx_file.Label, trial: Trial
    ) -> Check:
        """The check of the first conversion that does not differ from Keras, or of the last."""
        check, reasons, opset = None, [], int(label.metadata["bnfold.opset"])
        for convert in onnx_file.conversions(loaded, opset):
            try:
                proto = convert()
                gc.collect()  # a conversion leaves several copies of the weights behind
                onnx_file.write_onnx(proto, path, trial.interface, label)
                del proto
                self.report("running the ONNX file")
                inputs, outputs = onnx_file.named_ports(trial.interface)
                promised = replace(trial.interface, inputs=inputs, outputs=outputs)
                check = trial.check(binding.exactly(promised, onnx.read(path)))
            except CannotRunError as error:
                reasons.append(str(error))
                continue
            if check.verdict is not Verdict.DIFFERENT:
                return check
        if check is None:
            reason = _ORT_CODE.sub("", reasons[0])
            raise ExportImpossibleError(
                f"{self.label}: cannot be converted to ONNX (opset {opset}): {reason}"
            )
        return check
