"""The Python API: what the command line does, for paths and for live models.

A live model is saved to a temporary `.keras` file, so that models are only ever read from files.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import (
    Any,
    Literal,
    ParamSpec,
    Protocol,
    Required,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from numpy.typing import NDArray

from bnfold import serialize
from bnfold.audit import Severity, Thresholds
from bnfold.audit.selection import ALL, Suppression, chosen, codes
from bnfold.errors import BnfoldError, FindingsError, SettingsError, VerificationFailedError
from bnfold.jobs import child
from bnfold.jobs import gate as gates
from bnfold.jobs import settings as given_settings
from bnfold.jobs.bench import BenchReport, bench_files
from bnfold.jobs.export import ExportReport, export_file
from bnfold.jobs.fold import SILENT, FoldReport, Standalone, fold_file
from bnfold.jobs.gate import InputFindings, Outcome
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.jobs.prepare import PrepareReport, Wanted
from bnfold.jobs.recalibrate import CACHE, RecalibrationReport, recalibrate_file
from bnfold.jobs.settings import Settings
from bnfold.jobs.verify import Proof
from bnfold.model.container import unchanging
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Where, located
from bnfold.model.graph import show
from bnfold.model.training import training_rules
from bnfold.observation.observe import DataRun
from bnfold.running import data as user_data
from bnfold.running import live, options, registered
from bnfold.running.litert_file import LitePrecision
from bnfold.supervision import link
from bnfold.verification import Verification

FilePath: TypeAlias = str | os.PathLike[str]
Data: TypeAlias = FilePath | NDArray[Any] | Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]]
"""Samples: an .npz or .npy file, an array, or an array for each input, by name or in order."""
Progress: TypeAlias = Callable[[str], None]
FailOn: TypeAlias = Literal["error", "warning", "info"]
Precision: TypeAlias = LitePrecision


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_IN_PYTHON = {
    "force": "force=True",
    "no-verify": "verify=False",
    "trust": "trust=True",
    "import MODULE": 'imports=["MODULE"]',
    "import": "imports",
    "layers": "layers",
    "data": "data",
    "timeout": "timeout",
    "memory": "memory",
    "inference": "inference=True",
    "keras": "keras",
}
"""What the options that errors name are in Python."""
_OPTION = re.compile(rf"(?<![^ (])--({'|'.join(_IN_PYTHON)})(?=[ ,;:)]|$)")


def _in_python(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have the errors of a function name its parameters, where they name the command's options."""

    @wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except BnfoldError as error:
            error.args = tuple(
                _OPTION.sub(lambda option: _IN_PYTHON[option[1]], str(text)) for text in error.args
            )
            raise

    return wrapped


def _text(result: Any) -> str:
    from bnfold.reports import notebook  # noqa: PLC0415 - most who call the API print nothing

    return notebook.text(result)


def _html(result: Any) -> str:
    from bnfold.reports import notebook  # noqa: PLC0415

    return notebook.page(result)


serialize.VIEWS |= {"text": _text, "html": _html}


class LiveModel(Protocol):
    """A model in memory, of Keras or tf_keras; for type checkers, to tell it from a path."""

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """Write it to a file."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""


_Live = TypeVar("_Live", bound=LiveModel)
"""Of what comes back: known where Keras is not installed, and right for tf_keras."""


@_in_python
def inspect(
    model: FilePath | LiveModel,
    *,
    select: Sequence[str] = ALL,
    ignore: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    target_dtype: str | None = None,
    keras: str | None = None,
    data: Data | None = None,
    batch: int | None = None,
    trust: bool = False,
    imports: Sequence[str] = (),
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> Inspection:
    """Inspect every BatchNormalization of a model.

    Args:
        model: the path of a `.keras` file, a model directory or a legacy `.h5` file; or a live
            model, whose name then stands for the path in the result.
        select: codes of the rules to ask, what their codes begin with, or names; all by default.
        ignore: likewise, those not to ask; where both name a rule, the longer one counts.
        thresholds: limits of the rules, instead of the defaults.
        target_dtype: "float16", "bfloat16" or "float32", in which the model will run; without it
            what each layer computes in.
        keras: the version of Keras that will run the model, such as "3.16", or "any"; without it
            the installed one. Versions differ in which layers run in training mode.
        data: samples to run the model over, to compare the inputs of its layers with their moving
            statistics: an .npz or .npy file, an array, or an array for each input, by name or in
            order.
        batch: how many samples go in at a time; None for as many as have room.
        trust: let the model's file run code of its own then; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        sha256: the SHA-256 of the file, or several: it must have one of them, before anything in it
            is parsed; for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage of that.
        timeout: seconds that the whole call may take, in a child process; without it the limits of
            its stages hold there.
        memory: bytes likewise.
        in_process: False for a child process, True for this one; None for a child where models
            from files are run.

    Raises:
        UnreadableModelError: the file is no Keras model, or a damaged one.
        UnsafeModelError: it contains something that a model file must not contain.
        SettingsError: no rule has such a code, or there is no such target.
        VerificationImpossibleError: the model cannot be loaded to run it, or what does that is
            not installed.
        ProcessStoppedError: the child process crashed, or took more than it may.
        BnfoldError: the data do not fit, or Keras cannot save the live model.
    """
    place = child.Place(in_process, timeout, memory)
    rules = chosen(codes(options.names("select", select)), codes(options.names("ignore", ignore)))
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(f"thresholds must be bnfold.Thresholds, not {type(thresholds).__name__}")
    given = {"batch": batch, "trust": trust, "imports": imports}
    wanted = [name for name, value in given.items() if value]
    if data is None and wanted:
        raise TypeError(f"{wanted[0]} goes with data")
    run = None
    if data is not None:
        run = _data_run(data, batch, _loading([model], trust, imports), progress)
    with _as_file(model) as file:
        inspection = place.run(
            inspect_file,
            run is not None,
            file.is_live,
            file.path,
            rules=rules,
            thresholds=thresholds,
            target_dtype=target_dtype,
            run=run,
            sha256=_digests([model], sha256),
            keras=_version(keras),
        )
    return replace(inspection, path=file.shown)


@_in_python
def gate(
    *models: FilePath,
    config: FilePath | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    fail_on: FailOn | Literal["never"] | None = None,
    exclude: Sequence[str] | None = None,
    baseline: FilePath | None = None,
    suppressions: Sequence[Suppression] | None = None,
    target_dtype: str | None = None,
    keras: str | None = None,
) -> Outcome:
    """Inspect models as `bnfold inspect` does in a pipeline, and say whether they pass.

    Args:
        models: files, model directories, folders to search, and URLs.
        config: a TOML file with a table `[tool.bnfold]`; what is given beside it goes before it.
        select: codes of the rules to ask, what they begin with, or names.
        ignore: likewise, those not to ask.
        fail_on: "error", "warning", "info" or "never": from which severity on a finding fails.
        exclude: shell patterns of what is passed over in folders.
        baseline: a file of known findings, which do not count.
        suppressions: findings to live with, each with a reason.
        target_dtype: the dtype that the models will run in.
        keras: the version of Keras that will run the models.

    Returns:
        The outcome, which is true if every model was read and no finding that counts is as bad as
        `fail_on`. It has the inspections of the models, what could not be read, and which
        suppressions and entries of the baseline were not needed.

    Raises:
        SettingsError: a setting means nothing, or the baseline is missing or damaged.
    """
    found = Settings() if config is None else given_settings.read(_path("config", config))
    values = {
        "select": None if select is None else codes(select),
        "ignore": None if ignore is None else codes(ignore),
        "exclude": None if exclude is None else tuple(exclude),
        "baseline": None if baseline is None else _path("baseline", baseline),
        "suppressions": None if suppressions is None else tuple(suppressions),
        "target_dtype": target_dtype,
        "keras": keras,
    }
    given: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    if fail_on is not None:
        (level,) = options.some_of("fail_on", fail_on, given_settings.FAIL_ON)
        given["fail_on"] = given_settings.severity(level)
    wanted = replace(found, **given)
    if not chosen(wanted.select, wanted.ignore):
        raise SettingsError("no rule is left of those that are selected: all are ignored")
    return gates.check([located(one) for one in models], wanted)


class _FoldOptions(TypedDict, total=False):
    """The options of `fold` for a live model, as type checkers see them."""

    keep: Sequence[str]
    keras: str | None
    inference: bool
    standalone: Standalone
    verify: bool
    data: Data | None
    seed: int
    imports: Sequence[str]
    strict: bool
    rtol: float | None
    atol: float | None
    fail_on: FailOn | None
    progress: Progress | None
    timeout: float | None
    memory: int | None
    in_process: bool | None


class _FoldFileOptions(_FoldOptions, total=False):
    """Those for a file, which may replace another one, and need not be trusted or the right one."""

    force: bool
    trust: bool
    sha256: str | Sequence[str]


@overload
def fold(model: FilePath, out: FilePath, **options: Unpack[_FoldFileOptions]) -> FoldReport: ...


@overload
def fold(model: _Live, out: None = None, **options: Unpack[_FoldOptions]) -> _Live: ...


@_in_python
def fold(
    model: Any,
    out: FilePath | None = None,
    *,
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    standalone: Standalone = "keep",
    verify: bool = True,
    force: bool = False,
    data: Data | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    strict: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    fail_on: FailOn | None = None,
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> Any:
    """Fold the BatchNormalization layers of a model into the weights around them.

    Args:
        model: a path, or a live model, which stays as it is.
        out: where the folded model goes, in the same kind of file; none for a live model.
        keep: shell patterns of names or nested paths of layers to leave alone.
        keras: the version of Keras that will run the model, such as "3.16", or "any"; without it
            the installed one. Versions differ in which layers run in training mode.
        inference: the result is called for inference only: layers that take training=True by
            default, such as those of augmentation, get False in it and keep nothing from folding.
        standalone: "depthwise" makes depthwise convolutions of what cannot be folded.
        verify: verify the result; without it nothing is run.
        force: replace `out` if it exists.
        data: samples to run, instead of random ones, as for `inspect`.
        seed: the seed of the random samples.
        trust: let the model's file run its own code in the verification; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        strict: accept only a verdict that rests on both Keras and ONNX Runtime.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        fail_on: write nothing for a model with a finding this bad or worse: "error", "warning" or
            "info"; without it findings stop nothing. The report's `audit` has the errors anyway.
        sha256: the SHA-256 of the file, or several: it must have one of them, before anything in it
            is parsed; for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage of the verification.
        timeout: seconds that the whole call may take, in a child process; without it the limits of
            its stages hold there.
        memory: bytes likewise.
        in_process: False for a child process, True for this one; None for a child where models
            from files are run.

    Returns:
        For a path, what was done; its `written` is False when the verification failed, or when
        findings stopped it, as `audit` says. For a live model, the folded model, uncompiled.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read.
        OutputError: `out` cannot be written, or exists and `force` is not given.
        VerificationImpossibleError: neither Keras nor ONNX Runtime can run the model, or they are
            not installed.
        VerificationFailedError: the folded live model does not compute the same.
        FindingsError: the live model has a finding as bad as `fail_on`.
        ProcessStoppedError: the child process crashed, or took more than it may.
        BnfoldError: Keras cannot save the live model.
    """
    target, place = _target("fold", model, out), child.Place(in_process, timeout, memory)
    if not options.flag("verify", verify):
        given = {"strict": strict, "data": data, "rtol": rtol, "atol": atol}
        wanted = [name for name, value in given.items() if not (value is None or value is False)]
        if wanted:
            raise TypeError(f"verify=False contradicts {' and '.join(wanted)}")
    loading = _loading([model], trust, imports)
    running = Proof(loading, _samples(data, seed), options.Tolerance(rtol, atol), strict)
    settings: dict[str, Any] = {"keep": keep, "standalone": standalone}
    settings |= {"keras": _version(keras), "inference": options.flag("inference", inference)}
    settings |= {"proof": running if verify else None, "settings": _stopping_at(fail_on)}
    settings |= {"progress": _callable(progress), "sha256": _digests([model], sha256)}
    force = options.flag("force", force)
    with _as_file(model) as file:
        if target is not None:
            return place.run(fold_file, verify, False, file.path, target, force=force, **settings)
        folded = file.beside("folded")
        report = place.run(fold_file, verify, True, file.path, folded, **settings)
        if report.audit.stops:
            raise FindingsError(f"the model was not folded: {_told(report.audit)}")
        if report.verification is not None and not report.written:
            reasons = "; ".join(report.verification.differences or report.verification.warnings)
            raise VerificationFailedError(f"the folded model was refused: {reasons}")
        return live.load_live(folded, model)


def _version(keras: Any) -> str | None:
    """A version of Keras. Raises SettingsError and TypeError."""
    if keras is None:
        return None
    if not isinstance(keras, str):
        raise TypeError(f"keras must be a version as text, not {type(keras).__name__}")
    training_rules(keras)
    return keras


def _stopping_at(fail_on: Any) -> Settings:
    """The settings under which findings this bad stop what is made of a model."""
    if fail_on is None:
        return SILENT
    (level,) = options.some_of("fail_on", fail_on, [one.value for one in Severity])
    return replace(SILENT, fail_on=Severity(level))


def _told(audit: InputFindings) -> str:
    """The findings in a sentence."""
    said = [f"{one.code} {show(one.layer)}: {one.message}" for one in audit.findings]
    return printable("; ".join([*said, *([audit.problem] if audit.problem else [])]))


@_in_python
def verify(
    original: FilePath | LiveModel,
    folded: FilePath | LiveModel,
    *,
    data: Data | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    min_sqnr: float | None = None,
    max_changed: int | str | None = None,
    save_samples: FilePath | None = None,
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> Verification:
    """Verify whether two models compute the same, each in the runtimes that can run it.

    Args:
        original: a path or a live model.
        folded: the other one, or the path of an ONNX file, a LiteRT file or a SavedModel.
        data: samples to run, instead of random ones, as for `inspect`.
        seed: the seed of the random samples.
        trust: let the files run code of their own; live models are trusted.
        imports: modules to import first, because they register custom layers.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        min_sqnr: the least signal-to-quantization-noise ratio of every output, in dB; what is
            lower is in `refused`, and `accepted()` is False.
        max_changed: how many decisions of a classifier may change: a number, or a share as "0.5%".
        save_samples: an `.npz` file for the samples that showed most, with what was computed.
        sha256: SHA-256 digests: each file must have one of them, before anything in it is parsed;
            for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage.
        timeout: seconds, as for `fold`.
        memory: bytes, as for `fold`.
        in_process: as for `fold`.

    Raises:
        UnreadableModelError, UnsafeModelError: a model cannot be read or loaded.
        VerificationImpossibleError: neither Keras nor ONNX Runtime can run the original, or they
            are not installed.
        BnfoldError: the data do not fit the model's inputs, or Keras cannot save a live model.
    """
    loading = _loading([original, folded], trust, imports)
    running = Proof(
        loading,
        _samples(data, seed),
        options.Tolerance(rtol, atol),
        bounds=options.Bounds(min_sqnr, max_changed),
    )
    target = None if save_samples is None else _path("save_samples", save_samples)
    with _as_file(original) as first, _as_file(folded) as second:
        found = child.Place(in_process, timeout, memory).run(
            Proof.run,
            True,
            first.is_live or second.is_live,
            running,
            first.path,
            second.path,
            _callable(progress),
            sha256=_digests([original, folded], sha256),
            save_samples=target,
        )
    return found.reworded(lambda text: second.said(first.said(text)))


@_in_python
def export(
    model: FilePath | LiveModel,
    target: FilePath | Sequence[FilePath],
    *,
    fold: bool = True,
    opset: int | None = None,
    precision: Precision | Sequence[Precision] = (),
    verify: bool = True,
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    data: Data | None = None,
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    fail_on: FailOn | None = None,
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> ExportReport:
    """Write a model for the runtimes that deploy it, with its BatchNormalization layers folded.

    The inputs and outputs keep their names, order, shapes and dtypes; None stays a free size. Every
    file computes what `model.predict` computes, or what is left of that at its precision.

    Args:
        model: a path or a live model, which stays as it is.
        target: where it goes, one place or several. The name says the format: an ONNX file ends in
            `.onnx`, a LiteRT file in `.tflite`, the folder of a SavedModel in `/` (as a text) or in
            `.savedmodel`; also an existing SavedModel is meant as one.
        fold: fold first; without it the file is the model as it is.
        opset: the version of the ONNX operator set; none for the one that tf2onnx prefers.
        precision: of the LiteRT files, "float32", "float16" or "int8": one for all, or one for each
            in their order. "int8" needs `data`, samples on which the ranges of values are measured.
        verify: run what was written beside the model; without it nothing is run.
        keep: shell patterns of names or nested paths of layers to leave alone.
        keras: as for `fold`.
        inference: as for `fold`.
        force: replace what exists.
        trust: let the model's file run code of its own; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        data: samples to run, instead of random ones, as for `inspect`.
        seed: the seed of the random samples.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        fail_on: as for `fold`.
        sha256: the SHA-256 of the file, or several: it must have one of them, before anything in it
            is parsed; for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage.
        timeout: seconds, as for `fold`.
        memory: bytes, as for `fold`.
        in_process: as for `fold`.

    Returns:
        What was done; its `written` is False, and nothing is written, when the runtime of one of
        the targets computes something else than Keras, and the `check.differences` of that one of
        its `targets` say what, or when `audit` says that findings stopped it.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read or loaded.
        OutputError: a target cannot be written, or exists and `force` is not given.
        SettingsError: an opset without an ONNX file, a precision without a LiteRT file, or int8
            without data.
        ExportImpossibleError: the model cannot be converted, or the opset is not known.
        VerificationImpossibleError: Keras cannot run the model, so there is nothing to compare, or
            what is needed for that is not installed.
        BnfoldError: the data do not fit the model's inputs, or Keras cannot save the live model.
    """
    if keep and not options.flag("fold", fold):
        raise TypeError("keep says what not to fold, and fold=False folds nothing")
    if options.flag("inference", inference) and not fold:
        raise TypeError("inference is about what to fold, and fold=False folds nothing")
    several = [target] if isinstance(target, (str, os.PathLike)) else list(target)
    if not several:
        raise TypeError("target is empty: there is nothing to write")
    loading = _loading([model], trust, imports)
    running = Proof(loading, _samples(data, seed), options.Tolerance(rtol, atol))
    place = child.Place(in_process, timeout, memory)
    with _as_file(model) as file:
        return place.run(
            export_file,
            True,
            file.is_live,
            file.path,
            [_name("target", one) for one in several],
            fold=options.flag("fold", fold),
            opset=opset,
            precision=options.names("precision", precision),
            check=options.flag("verify", verify),
            keep=keep,
            keras=_version(keras),
            inference=inference,
            force=options.flag("force", force),
            running=running,
            settings=_stopping_at(fail_on),
            name=str(file.shown) if file.is_live else None,
            progress=_callable(progress),
            sha256=_digests([model], sha256),
        )


@_in_python
def prepare(
    model: FilePath | LiveModel,
    directory: FilePath,
    *,
    to: Sequence[str] = ("onnx",),
    data: Data | None = None,
    labels: Data | None = None,
    test_data: Data | None = None,
    recalibrate: Literal["never", "auto", "always"] = "never",
    fail_on: FailOn | None = "error",
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    opset: int | None = None,
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    seed: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    strict: bool = False,
    min_sqnr: float | None = None,
    max_changed: int | str | None = None,
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> PrepareReport:
    """Make of a model everything that is deployed, in a new folder, or nothing.

    Args:
        model: a path or a live model, which stays as it is.
        directory: the folder to make. It gets the models, report.html, report.json, report.sarif.
        to: what to export to, beside the folded Keras model: some of "onnx", "tflite",
            "tflite:float16", "tflite:int8", "saved_model".
        data: samples, as for `inspect`: for rules on data, calibration and verification.
        labels: what the outputs should be, as for `recalibrate`; without them an array y beside the
            data is taken.
        test_data: other samples for the scores, with an array y or with `labels`.
        recalibrate: whether the moving statistics are estimated again from `data`: "auto" where
            BN103, BN110 or BN501 are found.
        fail_on: the severity from which on a finding stops it; None for never.
        keep: shell patterns of names or nested paths of layers to leave alone.
        keras: as for `fold`.
        inference: as for `fold`.
        opset: the version of the ONNX operator set.
        force: replace a folder that was prepared before.
        trust: let the model's file run code of its own; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        seed: the seed of random samples.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        strict: refuse verdicts that leave something open.
        min_sqnr: as for `verify`, of every model.
        max_changed: likewise.
        sha256: the SHA-256 of the file, or several, as for `fold`.
        progress: called with the name of each stage.
        timeout: seconds, as for `fold`.
        memory: bytes, as for `fold`.
        in_process: as for `fold`.

    Returns:
        What was done; its `written` is False where a finding, a verification, a figure or the
        labels speak against it, and `refused` says what.

    Raises:
        SettingsError: an option that needs data has none.
        UnreadableModelError, UnsafeModelError: the model cannot be read or loaded.
        OutputError: `directory` cannot be written, or exists and `force` is not given.
        ExportImpossibleError: the model cannot be converted, or the opset is not known.
        VerificationImpossibleError: Keras cannot run the model, or what is needed is not installed.
        BnfoldError: the data or labels do not fit, or Keras cannot save the live model.
    """
    from bnfold.reports.prepared import prepare_folder  # noqa: PLC0415 - brings the reports along

    loading = _loading([model], trust, imports)
    wanted = Wanted(
        to=to,
        data=user_data.given(data),
        labels=user_data.given(labels),
        test_data=user_data.given(test_data),
        recalibrate=recalibrate,
        proof=Proof(
            loading,
            _samples(data, seed),
            options.Tolerance(rtol, atol),
            strict,
            options.Bounds(min_sqnr, max_changed),
        ),
        keep=keep,
        keras=_version(keras),
        inference=options.flag("inference", inference),
        opset=opset,
    )
    place = child.Place(in_process, timeout, memory)
    with _as_file(model) as file:
        return place.run(
            prepare_folder,
            True,
            file.is_live,
            file.path,
            _path("directory", directory),
            wanted=wanted,
            settings=_stopping_at(fail_on),
            force=options.flag("force", force),
            name=str(file.shown) if file.is_live else None,
            progress=_callable(progress),
            sha256=_digests([model], sha256),
        )


class _RecalibrateOptions(TypedDict, total=False):
    """The options of `recalibrate` for a live model, as type checkers see them."""

    data: Required[Data]
    layers: Sequence[str]
    batch: int | None
    cache: int
    allow_other_scale: bool
    labels: Data | None
    allow_worse: bool
    imports: Sequence[str]
    progress: Progress | None
    timeout: float | None
    memory: int | None
    in_process: bool | None


class _RecalibrateFileOptions(_RecalibrateOptions, total=False):
    """Those for a file, which may replace another one, and need not be trusted or the right one."""

    force: bool
    trust: bool
    sha256: str | Sequence[str]


@overload
def recalibrate(
    model: FilePath, out: FilePath, **options: Unpack[_RecalibrateFileOptions]
) -> RecalibrationReport: ...


@overload
def recalibrate(
    model: _Live, out: None = None, **options: Unpack[_RecalibrateOptions]
) -> _Live: ...


@_in_python
def recalibrate(
    model: Any,
    out: FilePath | None = None,
    *,
    data: Data,
    layers: Sequence[str] = (),
    batch: int | None = None,
    cache: int = CACHE,
    force: bool = False,
    allow_other_scale: bool = False,
    labels: Data | None = None,
    allow_worse: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> Any:
    """Estimate the moving statistics of a model again, from data.

    Args:
        model: a path, or a live model, which stays as it is.
        out: where the recalibrated model goes, in the same kind of file; none for a live model.
        data: samples as for `inspect`, prepared as for training.
        layers: shell patterns of names or nested paths of the layers to estimate, frozen ones too;
            without them all that are not frozen.
        batch: how many samples go in at a time; None for as many as have room.
        cache: bytes for what saves running the model again for every layer.
        force: replace `out` if it exists.
        allow_other_scale: continue even if the data are of another scale than those that the model
            was trained on.
        labels: what the outputs should be, to measure the accuracy before and after: class numbers,
            vectors with a single 1, or numbers; by the names of several outputs. Without it an
            array y beside the data.
        allow_worse: write the result even if it fits the labels worse than the model.
        trust: let the model's file run code of its own; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        sha256: the SHA-256 of the file, or several: it must have one of them, before anything in it
            is parsed; for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage.
        timeout: seconds, as for `fold`.
        memory: bytes, as for `fold`.
        in_process: as for `fold`.

    Returns:
        For a path, what was done; its `written` is False, and its `refusal` says why, when the data
        are of another scale, the model would become worse, or the new file does not reproduce its
        statistics. For a live model, the recalibrated one, uncompiled.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read or loaded.
        OutputError: `out` cannot be written, or exists and `force` is not given.
        VerificationImpossibleError: the model cannot be loaded to run it, or what does that is
            not installed.
        VerificationFailedError: for a live model, instead of such a `refusal`.
        BnfoldError: the data do not fit, no layer can be recalibrated, what goes into one is not
            finite, or its statistics do not fit into their dtype.
    """
    target, place = _target("recalibrate", model, out), child.Place(in_process, timeout, memory)
    settings: dict[str, Any] = {
        "run": _data_run(data, batch, _loading([model], trust, imports), progress),
        "layers": layers,
        "cache": cache,
        "allow_other_scale": options.flag("allow_other_scale", allow_other_scale),
        "labels": user_data.given(labels),
        "allow_worse": options.flag("allow_worse", allow_worse),
        "sha256": _digests([model], sha256),
    }
    force = options.flag("force", force)
    with _as_file(model) as file:
        if target is not None:
            settings["force"] = force
            return place.run(recalibrate_file, True, False, file.path, target, **settings)
        made = file.beside("recalibrated")
        report = place.run(recalibrate_file, True, True, file.path, made, **settings)
        if not report.written:
            raise VerificationFailedError(f"nothing was recalibrated: {report.refusal}")
        return live.load_live(made, model)


def _data_run(
    data: Data, batch: int | None, loading: options.Loading, progress: Progress | None
) -> DataRun:
    """How a model is to be run over data."""
    source = user_data.given(data)
    if source is None:
        raise TypeError("data is missing: samples to run the model over")
    return DataRun(source, batch, loading, _callable(progress) or (lambda _: None))


def _samples(data: Data | None, seed: int) -> options.Samples:
    """The user's samples, or a seed for random ones."""
    return options.Samples(user_data.given(data), seed)


def _digests(models: Sequence[Any], sha256: str | Sequence[str]) -> tuple[str, ...]:
    """The digests of files. Raises TypeError for a live model, which has none."""
    found = unchanging.digests(sha256)
    if found and any(map(_is_live, models)):
        raise TypeError("sha256 is that of a file, and a live model has none")
    return found


def _loading(models: Sequence[Any], trust: bool, imports: Sequence[str]) -> options.Loading:
    """How models are loaded; live ones are trusted, and bring their own classes."""
    alive = [model for model in models if _is_live(model)]
    classes = {name: one for model in alive for name, one in live.own_classes(model).items()}
    trusted = options.flag("trust", trust) or len(alive) == len(models)
    return options.Loading(trusted, imports, classes, registered.places())


@_in_python
def bench(
    a: FilePath | LiveModel,
    b: FilePath | LiveModel | None = None,
    *,
    threads: int | None = None,
    batch: int | Sequence[int] = (),
    seconds: float = 2.0,
    runtimes: Sequence[str] = (),
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    sha256: str | Sequence[str] = (),
    progress: Progress | None = None,
    timeout: float | None = None,
    memory: int | None = None,
    in_process: bool | None = None,
) -> BenchReport:
    """Time two models in turn, in Keras, ONNX Runtime and LiteRT.

    Args:
        a: a path or a live model.
        b: the other one; without it A, folded and not verified.
        threads: for every runtime, without it the runtime's default. A TensorFlow that has started
            already, as it has where there is a live model, cannot change its threads: unless it
            has that many, Keras is left out.
        batch: a batch size or several; without it 1, or what the models fix.
        seconds: the measuring time for each runtime and batch size.
        runtimes: some of "keras", "onnxruntime" and "litert", without it all.
        seed: the seed of the random inputs.
        trust: let the files run code of their own; live models are trusted.
        imports: modules to import first, because they register custom layers.
        sha256: SHA-256 digests: each file must have one of them, before anything in it is parsed;
            for a directory that of what `sha256sum` says of its files.
        progress: called with the name of each stage.
        timeout: seconds, as for `fold`.
        memory: bytes, as for `fold`.
        in_process: as for `fold`.

    Raises:
        UnreadableModelError, UnsafeModelError: a model cannot be read or loaded.
        VerificationImpossibleError: Keras is not installed or cannot be imported, or a model has
            no graph.
        BnfoldError: the models take different inputs, no runtime can run both, or Keras cannot
            save a live model.
    """
    models = [a] if b is None else [a, b]
    # The threads of a TensorFlow that has not started are set for good.
    is_live = any(_is_live(model) for model in models)
    if threads is not None and not is_live and in_process is None:
        in_process = False
    place = child.Place(in_process, timeout, memory)
    loading = _loading(models, trust, imports)
    with ExitStack() as files:
        first = files.enter_context(_as_file(a))
        second = first if b is None else files.enter_context(_as_file(b))
        report = place.run(
            bench_files,
            True,
            is_live,
            first.path,
            None if b is None else second.path,
            threads=threads,
            batches=batch,
            seconds=seconds,
            runtimes=runtimes,
            seed=seed,
            loading=loading,
            progress=_callable(progress),
            sha256=_digests(models, sha256),
        )
    skipped = (replace(one, reason=second.said(first.said(one.reason))) for one in report.skipped)
    shown = None if b is None else second.shown
    return replace(report, a=first.shown, b=shown, skipped=tuple(skipped))


def _target(function: str, model: Any, out: Any) -> Where | None:
    """Where the result goes: of a file a path or URL, of a live model nowhere: it is handed out.

    Raises TypeError where the one is given for the other.
    """
    if _is_live(model):
        if out is not None:
            raise TypeError(f"{function} of a live model takes no out path: it returns the result")
        return None
    if out is None:
        raise TypeError(f"{function} of a file takes an out path: {function}(model, out)")
    return located(out) if isinstance(out, str) else _path("out", out)


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return Path(value)


def _name(name: str, value: Any) -> str:
    """A path as it was written: a slash at its end says that it is a folder."""
    return str(_path(name, value)) if not isinstance(value, str) else value


def _callable(progress: Progress | None) -> Progress | None:
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function, not {type(progress).__name__}")
    return progress


def _is_live(model: Any) -> bool:
    """Whether this is a model in memory; whoever holds one has imported its library already."""
    libraries = (sys.modules.get(name) for name in ("keras", "tf_keras"))
    classes = tuple(library.Model for library in libraries if library is not None)
    if isinstance(model, classes):
        return True
    if isinstance(model, (str, os.PathLike)):
        return False
    raise TypeError(f"expected a path or a keras.Model, not {type(model).__name__}")


@dataclass(frozen=True)
class _File:
    """The file of a model.

    Attributes:
        path: where it is; of a live model, in a temporary directory that nobody is told of.
        shown: what stands for it in reports: where it is, or the name of the live model.
    """

    path: Where
    shown: Where

    @property
    def is_live(self) -> bool:
        """Whether it is the temporary file of a live model."""
        return self.path != self.shown

    def beside(self, made: str) -> Path:
        """Where what is made of the live model goes, such as "folded"."""
        folder, stem = self._place
        return folder / f"{stem}-{made}.keras"

    @property
    def _place(self) -> tuple[Path, str]:
        """The folder of the temporary file, and its name without suffix."""
        path = Path(str(self.path))
        return path.parent, path.stem

    def said(self, text: str) -> str:
        """A text with the name of the live model in place of each temporary file."""
        if not self.is_live:
            return text
        directory, stem = (re.escape(str(one)) for one in self._place)
        temporary = rf"(?:{directory}[/\\])?(?:\.bnfold-\w+[/\\])?{stem}(?:-(\w+))?\.keras"
        name = printable(str(self.shown))
        return re.sub(temporary, lambda m: f"{name} ({m[1]})" if m[1] else name, text)


@contextmanager
def _as_file(model: Any) -> Iterator[_File]:
    """The file of a model; of a live one, a temporary `.keras` file, named in no error."""
    if not _is_live(model):
        yield _File(located(model), located(model))
        return
    with link.temporary_folder() as folder:
        # Named like its folder, so that it cannot be taken for another file in a message.
        saved = folder / f"{folder.name}.keras"
        file = _File(saved, Path(str(model.name)))
        try:
            live.save_live(model, saved)
            yield file
        except BnfoldError as error:
            error.args = tuple(file.said(str(text)) for text in error.args)
            raise
