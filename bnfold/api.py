"""The Python API: what the command line does, for paths and for live models.

A live model goes through a temporary `.keras` file, so that there is one way to read a model.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from numpy.typing import NDArray

from bnfold.audit import Thresholds
from bnfold.audit.selection import ALL, chosen, codes
from bnfold.benchmark import BenchReport, bench_files
from bnfold.conversion import FoldReport, Proof, Standalone, fold_file
from bnfold.errors import VerificationFailedError
from bnfold.exporting import ExportReport, export_file
from bnfold.inspection import Inspection, inspect_file
from bnfold.recalibration import MEMORY, RecalibrationReport, recalibrate_file
from bnfold.verification import Verification, runtime
from bnfold.verification import verify as verify_files
from bnfold.verification.observe import DataRun

if TYPE_CHECKING:
    import keras

FilePath: TypeAlias = str | os.PathLike[str]
Data: TypeAlias = FilePath | NDArray[Any] | Sequence[NDArray[Any]] | Mapping[str, NDArray[Any]]
"""Samples: an .npz or .npy file, an array, or an array for each input, by name or in order."""
Progress: TypeAlias = Callable[[str], None]


def inspect(
    model: "FilePath | keras.Model",
    *,
    select: Sequence[str] = ALL,
    ignore: Sequence[str] = (),
    thresholds: Thresholds | None = None,
    target_dtype: str | None = None,
    data: Data | None = None,
    batch: int | None = None,
    trust: bool = False,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> Inspection:
    """Inspect every BatchNormalization of a model.

    Args:
        model: the path of a `.keras` file, a model directory or a legacy `.h5` file; or a live
            model, whose name then stands for the path in the result.
        select: codes of the rules to ask, what their codes begin with, or names; all by default.
        ignore: likewise, those not to ask; where both name a rule, the longer one counts.
        thresholds: where the rules begin to speak, instead of the defaults.
        target_dtype: "float16", "bfloat16" or "float32", in which the model will run; without it
            what each layer computes in.
        data: samples to run the model over, to compare what goes into its layers with what they
            record: an .npz or .npy file, an array, or an array for each input, by name or in order.
        batch: how many samples go in at a time; None for as many as have room.
        trust: let the model's file run code of its own then; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        progress: called with the name of each stage of that.

    Raises:
        UnreadableModelError: the file is no Keras model, or a damaged one.
        UnsafeModelError: it asks for what a model file must not ask for.
        SettingsError: no rule has such a code.
        ValueError: there is no such target.
        VerificationImpossibleError: the model cannot be loaded to run it.
        BnfoldError: the data do not fit, or Keras cannot save the live model.
    """
    rules = chosen(codes(_listed(select)), codes(_listed(ignore)))
    run = None
    if data is not None:
        run = _data_run(model, data, progress, batch=batch, trust=trust, imports=imports)
    with _as_file(model) as path:
        inspection = inspect_file(
            path,
            rules=rules,
            thresholds=thresholds,
            target_dtype=target_dtype,
            run=run,
        )
    if isinstance(model, (str, os.PathLike)):
        return inspection
    return replace(inspection, path=Path(model.name))


@overload
def fold(
    model: FilePath,
    out: FilePath,
    *,
    keep: Sequence[str] = (),
    standalone: Standalone = "keep",
    verify: bool = True,
    force: bool = False,
    data: FilePath | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    strict: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> FoldReport: ...


@overload
def fold(
    model: "keras.Model",
    out: None = None,
    *,
    keep: Sequence[str] = (),
    standalone: Standalone = "keep",
    verify: bool = True,
    data: FilePath | None = None,
    seed: int = 0,
    imports: Sequence[str] = (),
    strict: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> "keras.Model": ...


def fold(
    model: Any,
    out: FilePath | None = None,
    *,
    keep: Sequence[str] = (),
    standalone: Standalone = "keep",
    verify: bool = True,
    force: bool = False,
    data: FilePath | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    strict: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> Any:
    """Fold the BatchNormalization layers of a model into the weights around them.

    Args:
        model: a path, or a live model, which stays as it is.
        out: where the folded model goes, in the same kind of file; none for a live model.
        keep: shell patterns of names or nested paths of layers to leave alone.
        standalone: "depthwise" makes depthwise convolutions of what cannot be folded.
        verify: prove the result; without it nothing is run.
        force: replace `out` if it exists.
        data: an .npz or .npy file with samples to prove with, instead of random ones.
        seed: the seed of the random samples.
        trust: let the model's file run code of its own for the proof; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        strict: take nothing less than a proof by Keras and ONNX Runtime both.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        progress: called with the name of each stage of the proof.

    Returns:
        For a path, what was done; its `written` is False when the proof failed. For a live model,
        the folded model, uncompiled.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read.
        OutputError: `out` cannot be written, or exists and `force` is not given.
        VerificationImpossibleError: neither Keras nor ONNX Runtime can run the model.
        VerificationFailedError: the folded live model does not compute the same.
        BnfoldError: Keras cannot save the live model.
    """
    live = _is_live(model)
    if live == (out is not None):
        raise TypeError("fold takes a path and an out path, or a live model and no out")
    keep, imports = _listed(keep), _listed(imports)
    chosen = Path(data) if data is not None else None
    classes = runtime.own_classes(model) if live else {}
    asked = Proof(chosen, seed, trust or live, imports, classes, strict, rtol, atol)
    proof = asked if verify else None
    if not live:
        return fold_file(
            Path(model),
            Path(str(out)),
            keep=keep,
            standalone=standalone,
            force=force,
            proof=proof,
            progress=progress,
        )
    with _as_file(model) as source:
        target = source.with_name("folded.keras")
        report = fold_file(
            source, target, keep=keep, standalone=standalone, proof=proof, progress=progress
        )
        if report.verification is not None and not report.written:
            reasons = "; ".join(report.verification.differences or report.verification.warnings)
            raise VerificationFailedError(f"the folded model was refused: {reasons}")
        return runtime.load_live(target, model)


def verify(
    original: "FilePath | keras.Model",
    folded: "FilePath | keras.Model",
    *,
    data: FilePath | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    rtol: float | None = None,
    atol: float | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Judge whether two models compute the same, with Keras and with ONNX Runtime.

    Args:
        original: a path or a live model.
        folded: the other one.
        data: an .npz or .npy file with samples to run, instead of random ones.
        seed: the seed of the random samples.
        trust: let the files run code of their own; live models are trusted.
        imports: modules to import first, because they register custom layers.
        rtol: allowed error relative to each channel's magnitude, instead of the measured tolerance.
        atol: allowed absolute error likewise.
        progress: called with the name of each stage.

    Raises:
        UnreadableModelError, UnsafeModelError: a model cannot be read or loaded.
        VerificationImpossibleError: neither Keras nor ONNX Runtime can run the original.
        BnfoldError: the data do not fit the model's inputs, or Keras cannot save a live model.
    """
    with _as_file(original) as first, _as_file(folded) as second:
        return verify_files(
            first,
            second,
            data=Path(data) if data is not None else None,
            seed=seed,
            trust=trust or (_is_live(original) and _is_live(folded)),
            imports=_listed(imports),
            classes=_own_classes(original, folded),
            rtol=rtol,
            atol=atol,
            progress=progress,
        )


def export(
    model: "FilePath | keras.Model",
    target: FilePath,
    *,
    fold: bool = True,
    opset: int | None = None,
    keep: Sequence[str] = (),
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    data: FilePath | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model to an ONNX file, with its BatchNormalization layers folded.

    The inputs and outputs keep their names, order, shapes and dtypes; None stays a free size. The
    file computes what `model.predict` computes.

    Args:
        model: a path or a live model, which stays as it is.
        target: where the ONNX file goes; must end in `.onnx`.
        fold: fold first; without it the file is the model as it is.
        opset: the version of the ONNX operator set; none for the one that tf2onnx prefers.
        keep: shell patterns of names or nested paths of layers to leave alone.
        force: replace `target` if it exists.
        trust: let the model's file run code of its own; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        data: an .npz or .npy file with samples to run, instead of random ones.
        seed: the seed of the random samples.
        progress: called with the name of each stage.

    Returns:
        What was done; its `written` is False when ONNX Runtime computes something else than Keras,
        and `check.differences` says what.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read or loaded.
        OutputError: `target` cannot be written, or exists and `force` is not given.
        ExportImpossibleError: tf2onnx cannot convert the model, or does not know the opset.
        VerificationImpossibleError: Keras cannot run the model, so there is nothing to compare.
        BnfoldError: the data do not fit the model's inputs, or Keras cannot save the live model.
    """
    live = _is_live(model)
    classes = runtime.own_classes(model) if live else {}
    chosen = Path(data) if data is not None else None
    with _as_file(model) as source:
        return export_file(
            source,
            Path(target),
            fold=fold,
            opset=opset,
            keep=_listed(keep),
            force=force,
            running=Proof(chosen, seed, trust or live, _listed(imports), classes),
            name=str(getattr(model, "name", "")) if live else None,
            progress=progress,
        )


@overload
def recalibrate(
    model: FilePath,
    out: FilePath,
    *,
    data: Data,
    layers: Sequence[str] = (),
    batch: int | None = None,
    memory: int = MEMORY,
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> RecalibrationReport: ...


@overload
def recalibrate(
    model: "keras.Model",
    out: None = None,
    *,
    data: Data,
    layers: Sequence[str] = (),
    batch: int | None = None,
    memory: int = MEMORY,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> "keras.Model": ...


def recalibrate(
    model: Any,
    out: FilePath | None = None,
    *,
    data: Data,
    layers: Sequence[str] = (),
    batch: int | None = None,
    memory: int = MEMORY,
    force: bool = False,
    trust: bool = False,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> Any:
    """Estimate the moving statistics of a model again, from data.

    Args:
        model: a path, or a live model, which stays as it is.
        out: where the recalibrated model goes, in the same kind of file; none for a live model.
        data: samples as for `inspect`, prepared as for training.
        layers: shell patterns of names or nested paths of the layers to estimate, frozen ones too;
            without them all that are not frozen.
        batch: how many samples go in at a time; None for as many as have room.
        memory: bytes for what saves running the model again for every layer.
        force: replace `out` if it exists.
        trust: let the model's file run code of its own; a live model is trusted.
        imports: modules to import first, because they register custom layers.
        progress: called with the name of each stage.

    Returns:
        For a path, what was done; its `written` is False when the new file does not reproduce its
        statistics. For a live model, the recalibrated one, uncompiled.

    Raises:
        UnreadableModelError, UnsafeModelError: the model cannot be read or loaded.
        OutputError: `out` cannot be written, or exists and `force` is not given.
        VerificationImpossibleError: the model cannot be loaded to run it.
        VerificationFailedError: the recalibrated live model does not reproduce its statistics.
        BnfoldError: the data do not fit, no layer can be recalibrated, what goes into one is not
            finite, or its statistics do not fit into their dtype.
    """
    live = _is_live(model)
    if live == (out is not None):
        raise TypeError("recalibrate takes a path and an out path, or a live model and no out")
    run = _data_run(model, data, progress, batch=batch, trust=trust, imports=imports)
    options: dict[str, Any] = {"run": run, "layers": _listed(layers), "memory": memory}
    if not live:
        return recalibrate_file(Path(model), Path(str(out)), force=force, **options)
    with _as_file(model) as source:
        target = source.with_name("recalibrated.keras")
        report = recalibrate_file(source, target, **options)
        if not report.written:
            raise VerificationFailedError(
                "the recalibrated model does not reproduce its statistics"
            )
        return runtime.load_live(target, model)


def _data_run(
    model: Any,
    data: Data,
    progress: Progress | None,
    *,
    batch: int | None,
    trust: bool,
    imports: Sequence[str],
) -> DataRun:
    """How a model, a path or a live one, is to be run over data."""
    live = _is_live(model)
    return DataRun(
        data=Path(data) if isinstance(data, (str, os.PathLike)) else data,
        batch=batch,
        trust=trust or live,
        imports=_listed(imports),
        classes=_own_classes(model),
        progress=progress or (lambda _: None),
    )


def bench(
    a: "FilePath | keras.Model",
    b: "FilePath | keras.Model | None" = None,
    *,
    threads: int | None = None,
    batch: int | Sequence[int] = (),
    seconds: float = 2.0,
    runtimes: Sequence[str] = (),
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    progress: Progress | None = None,
) -> BenchReport:
    """Time two models in turn, in Keras, ONNX Runtime and LiteRT.

    Args:
        a: a path or a live model.
        b: the other one; without it A, folded without proof.
        threads: for every runtime, without it the runtime's default. A TensorFlow that has started
            already, as it has where there is a live model, cannot change its threads: unless it
            has that many, Keras is left out.
        batch: a batch size or several; without it 1, or what the models fix.
        seconds: the measuring time for each runtime and batch size.
        runtimes: some of "keras", "onnxruntime" and "litert", without it all.
        seed: the seed of the random inputs.
        trust: let the files run code of their own; live models are trusted.
        imports: modules to import first, because they register custom layers.
        progress: called with the name of each stage.

    Raises:
        UnreadableModelError, UnsafeModelError: a model cannot be read or loaded.
        VerificationImpossibleError: Keras cannot be imported, or a model has no graph.
        BnfoldError: the models take different inputs, no runtime can run both, or Keras cannot
            save a live model.
    """
    models = [a] if b is None else [a, b]
    with _as_file(a) as first, nullcontext() if b is None else _as_file(b) as second:
        report = bench_files(
            first,
            second,
            threads=threads,
            batches=[batch] if isinstance(batch, int) else batch,
            seconds=seconds,
            runtimes=_listed(runtimes),
            seed=seed,
            trust=trust or all(_is_live(model) for model in models),
            imports=_listed(imports),
            classes=_own_classes(*models),
            progress=progress,
        )
    return replace(report, a=_shown(a), b=None if b is None else _shown(b))


def _own_classes(*models: Any) -> dict[str, Any]:
    """The classes of the layers of those that are live, by name."""
    live = [model for model in models if _is_live(model)]
    return {name: found for model in live for name, found in runtime.own_classes(model).items()}


def _shown(model: Any) -> Path:
    """The path of a model; of a live one its name, which stands for it."""
    return Path(model.name if _is_live(model) else model)


def _listed(names: Sequence[str]) -> Sequence[str]:
    """A list of names, also where one name was given in place of a list."""
    return [names] if isinstance(names, str) else names


def _is_live(model: Any) -> bool:
    """Whether this is a model in memory; whoever holds one has imported its library already."""
    libraries = (sys.modules.get(name) for name in ("keras", "tf_keras"))
    classes = tuple(library.Model for library in libraries if library is not None)
    if isinstance(model, classes):
        return True
    if isinstance(model, (str, os.PathLike)):
        return False
    raise TypeError(f"expected a path or a keras.Model, not {type(model).__name__}")


@contextmanager
def _as_file(model: Any) -> Iterator[Path]:
    """The path of a model; of a live one, that of a temporary `.keras` file."""
    if not _is_live(model):
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="bnfold-") as directory:
        path = Path(directory) / "model.keras"
        runtime.save_live(model, path)
        yield path
