"""The command line: parse, call, print, exit.

Exit codes: 0 good; 1 the answer is no (a verification failed, findings at or above --fail-on); 2
usage, or input that is unreadable or refused. Results go to standard output, everything else to
standard error.
"""

import difflib
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

# numpy starts the threads of its BLAS when it is imported, and bnfold multiplies no matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from bnfold import __version__
from bnfold.errors import BnfoldError
from bnfold.model.guard import printable

if TYPE_CHECKING:
    from bnfold.audit import Finding
    from bnfold.benchmark import BenchReport
    from bnfold.conversion import FoldReport, Proof, Standalone
    from bnfold.exporting import ExportReport
    from bnfold.inspection import Inspection
    from bnfold.verification import Verification

# Commands import what they need themselves: --help and inspect are fast because they need little.

_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_MODEL = click.Path(path_type=Path)


class _Commands(click.Group):
    """Turns every error into one line and an exit code, unless --debug asks for the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            help_with = f" ('{error.ctx.command_path} --help' helps)" if error.ctx else ""
            _fail(ctx, f"{error.format_message()}{help_with}")
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (click.Abort, KeyboardInterrupt):
            click.echo("bnfold: interrupted", err=True)
            ctx.exit(130)
        except BnfoldError as error:
            _fail(ctx, str(error))
        except BrokenPipeError:
            sys.stderr.close()  # keeps Python from complaining about the closed pipe at exit
            ctx.exit(0)
        except OSError as error:
            _fail(ctx, f"{error.filename or 'output'}: {error.strerror or error}")
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            _fail(ctx, f"internal error: {type(error).__name__}: {text} (--debug shows where)")


def _fail(ctx: click.Context, message: str) -> NoReturn:
    if ctx.meta.get("bnfold.debug"):
        raise  # noqa: PLE0704 - called while the error is being handled
    click.echo(f"bnfold: {printable(message)}", err=True)
    ctx.exit(2)


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["bnfold.debug"] = True


def _debug(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )(command)


def _format(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--format",
        "format_",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How to report.",
    )(command)


_DATA = click.option(
    "--data",
    type=_MODEL,
    help="Samples to run instead of random ones: an .npz with one array for each input, or "
    "an .npy; the first axis is the sample.",
)
_EXECUTION = (
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed of the random samples.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Allow the model to run code of its own, such as Lambda layers.",
    ),
    click.option(
        "--import",
        "imports",
        metavar="MODULE",
        multiple=True,
        help="Import this Python module first, because it registers custom layers. Repeatable.",
    ),
)
"""The options of everything that runs models."""

_JUDGING = (
    click.option(
        "--strict",
        is_flag=True,
        help="Accept nothing less than a proof by Keras and ONNX Runtime both.",
    ),
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        help="Allow this share of each channel's magnitude, instead of what is measured.",
    ),
    click.option(
        "--atol",
        type=click.FloatRange(min=0),
        help="Allow this much, besides --rtol, instead of what is measured.",
    ),
)


def _execution(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_EXECUTION):
        command = option(command)
    return command


def _comparison(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that compares what models compute."""
    return _DATA(_execution(command))


def _proof(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of everything that proves."""
    for option in reversed(_JUDGING):
        command = option(command)
    return _comparison(command)


def _keep(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--keep",
        metavar="PATTERN",
        multiple=True,
        help="Leave layers alone whose name or nested path matches this shell pattern. Repeatable.",
    )(command)


@click.group(cls=_Commands, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="bnfold")
@_debug
def main() -> None:
    """Audit Keras models, fold their BatchNormalization layers, prove the result.

    MODEL is what model.save() writes: a .keras file, a directory (zipped=False) or a legacy .h5
    file. Nothing in it is executed, except by the proof, which loads it with Keras in safe mode.

    \b
    Exit codes: 0 good, 1 the answer is no, 2 usage or unreadable input.
    """


@main.command(context_settings=_CONTEXT)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=_MODEL)
@click.option("--layer", metavar="NAME", help="Show this one layer in full, channel by channel.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 when there is a finding this bad, or worse.",
)
@_format
@_debug
@click.pass_context
def inspect(
    ctx: click.Context, models: Sequence[Path], layer: str | None, fail_on: str, format_: str
) -> None:
    """Show every BatchNormalization: where, how configured, its statistics, whether it folds.

    \b
    Examples:
      bnfold inspect model.keras
      bnfold inspect model.keras --layer backbone/bn1
      bnfold inspect models/*.keras --format json --fail-on warning
    """
    from bnfold.audit import Severity
    from bnfold.inspection import inspect_file

    inspected, unreadable = [], False
    for path in models:
        try:
            inspected.append(inspect_file(path))
        except BnfoldError as error:
            if len(models) == 1:
                raise
            unreadable = True
            click.echo(f"bnfold: {printable(str(error))}", err=True)
    findings = [finding for model in inspected for finding in model.findings]
    if layer is not None:
        findings = _show_layer(inspected, layer, format_)
    elif inspected:
        _show_models(inspected, format_)
    if unreadable:
        ctx.exit(2)
    if fail_on != "never" and any(f.severity.rank <= Severity(fail_on).rank for f in findings):
        ctx.exit(1)


def _show_models(inspected: "Sequence[Inspection]", format_: str) -> None:
    from bnfold.reports import inspect_text, json, terminal

    if format_ == "json":
        click.echo(json.inspections(inspected))
        return
    console = terminal.console()
    for number, model in enumerate(inspected):
        if number:
            console.print()
        console.print(inspect_text.inspection(model, console.width))


def _show_layer(inspected: Sequence["Inspection"], name: str, format_: str) -> "list[Finding]":
    """Show one layer; its findings."""
    from bnfold.reports import inspect_text, json, terminal

    if len(inspected) != 1:
        raise click.UsageError("--layer takes exactly one MODEL")
    model = inspected[0]
    found = model.layer(name)
    if found is None:
        raise click.UsageError(_no_such_layer(model, name))
    findings = model.findings_on(found)
    if format_ == "json":
        click.echo(json.layer(model, found))
    else:
        terminal.console().print(inspect_text.layer(found, findings))
    return list(findings)


def _no_such_layer(model: "Inspection", name: str) -> str:
    paths = [decision.batchnorm.path for decision in model.plan.decisions]
    alike = ["/".join(path) for path in paths if path[-1] == name]
    alike = alike or difflib.get_close_matches(name, ["/".join(path) for path in paths])
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    return f"no single BatchNormalization is named {name!r}{hint}"


@main.command(context_settings=_CONTEXT)
@click.argument("source", metavar="MODEL", type=_MODEL)
@click.argument("target", metavar="OUT", type=_MODEL)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--no-verify", is_flag=True, help="Do not prove the result; TensorFlow is not loaded."
)
@_keep
@click.option(
    "--standalone",
    type=click.Choice(["keep", "depthwise"]),
    default="keep",
    show_default=True,
    help="What becomes of layers that cannot be folded: nothing, or a 1x1 depthwise convolution.",
)
@_proof
@_format
@_debug
@click.pass_context
def fold(
    ctx: click.Context,
    /,
    source: Path,
    target: Path,
    force: bool,
    no_verify: bool,
    keep: Sequence[str],
    standalone: "Standalone",
    format_: str,
    **proof: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL into OUT, and prove that it computes the same.

    OUT is of the same kind as MODEL, or an ONNX file if it ends in .onnx: see 'bnfold export'. What
    cannot be folded exactly stays as it is. Optimizer state is left out. OUT appears whole or not
    at all, and not at all when the proof fails.

    \b
    Examples:
      bnfold fold model.keras folded.keras
      bnfold fold model.h5 folded.h5 --keep 'head/*' --data samples.npz
      bnfold fold model.keras folded.keras --no-verify --force --format json
      bnfold fold model.keras folded.onnx
    """
    from bnfold.conversion import Proof, fold_file

    wanted = [f"--{name}" for name in ("strict", "data", "rtol", "atol") if proof[name]]
    if no_verify and wanted:
        raise click.UsageError(f"--no-verify contradicts {' and '.join(wanted)}")
    asked = Proof(**proof)
    options: dict[str, Any] = {"keep": keep, "standalone": standalone, "force": force}
    if target.suffix.lower() == ".onnx":
        _export(ctx, source, target, asked, format_, prove=not no_verify, **options)
        return
    report = fold_file(
        source, target, proof=None if no_verify else asked, progress=_progress, **options
    )
    _show_fold(report, format_)
    if not report.written:
        ctx.exit(1)


def _show_fold(report: "FoldReport", format_: str) -> None:
    from bnfold.reports import fold_text, json, terminal

    if format_ == "json":
        click.echo(json.fold(report))
    else:
        terminal.console().print(fold_text.fold(report))


@main.command(context_settings=_CONTEXT)
@click.argument("original", metavar="MODEL", type=_MODEL)
@click.argument("folded", metavar="OTHER", type=_MODEL)
@_proof
@_format
@_debug
@click.pass_context
def verify(ctx: click.Context, /, original: Path, folded: Path, format_: str, **proof: Any) -> None:
    """Prove that OTHER computes the same as MODEL, whoever made it.

    Both are run with Keras and, exported with tf2onnx, with ONNX Runtime, on the same samples.
    Outputs are compared before a final softmax or sigmoid, which would hide errors.

    \b
    Examples:
      bnfold verify model.keras folded.keras
      bnfold verify model.keras folded.keras --data samples.npz --strict
      bnfold verify model.keras folded.keras --import my_package.layers
    """
    from bnfold.conversion import Proof

    wanted = Proof(**proof)
    result = wanted.run(original, folded, _progress)
    _show_verification(result, format_)
    if not result.accepted(strict=wanted.strict):
        ctx.exit(1)


def _show_verification(result: "Verification", format_: str) -> None:
    from bnfold.reports import fold_text, json, terminal

    if format_ == "json":
        click.echo(json.verification(result))
    else:
        terminal.console().print(fold_text.verification(result))


@main.command(context_settings=_CONTEXT)
@click.argument("source", metavar="MODEL", type=_MODEL)
@click.argument("target", metavar="OUT.onnx", type=_MODEL)
@click.option("--force", is_flag=True, help="Replace OUT.onnx if it exists.")
@click.option("--no-fold", is_flag=True, help="Write the model as it is.")
@click.option(
    "--opset",
    type=int,
    metavar="N",
    help="Version of the ONNX operator set; without it the one that tf2onnx prefers.",
)
@_keep
@_comparison
@_format
@_debug
@click.pass_context
def export(
    ctx: click.Context,
    /,
    source: Path,
    target: Path,
    force: bool,
    no_fold: bool,
    opset: int | None,
    keep: Sequence[str],
    format_: str,
    **running: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL and write it as an ONNX file.

    Inputs and outputs keep their names, order, shapes and dtypes, and free sizes stay free. The
    file is written only if ONNX Runtime computes from it what Keras computes from MODEL.

    \b
    Examples:
      bnfold export model.keras model.onnx
      bnfold export model.h5 model.onnx --opset 13 --keep 'head/*'
      bnfold export model.keras model.onnx --no-fold --force --format json
    """
    from bnfold.conversion import Proof

    if no_fold and keep:
        raise click.UsageError("--keep says what not to fold, and --no-fold folds nothing")
    options = {"fold": not no_fold, "opset": opset, "keep": keep, "force": force}
    _export(ctx, source, target, Proof(**running), format_, **options)


def _export(
    ctx: click.Context, source: Path, target: Path, running: "Proof", format_: str, **options: Any
) -> None:
    from bnfold.exporting import export_file

    report = export_file(source, target, running=running, progress=_progress, **options)
    _show_export(report, format_)
    if not report.written:
        ctx.exit(1)


def _show_export(report: "ExportReport", format_: str) -> None:
    from bnfold.reports import export_text, json, terminal

    if format_ == "json":
        click.echo(json.export(report))
    else:
        terminal.console().print(export_text.export(report))


@main.command(context_settings=_CONTEXT)
@click.argument("a", type=_MODEL)
@click.argument("b", metavar="[B]", type=_MODEL, required=False)
@click.option(
    "--runtime",
    "runtimes",
    type=click.Choice(["keras", "onnxruntime", "litert"]),
    multiple=True,
    help="Measure in this runtime only. Repeatable.  [default: all]",
)
@click.option(
    "--batch",
    "batches",
    metavar="N",
    type=click.IntRange(min=1),
    multiple=True,
    help="Samples in one inference. Repeatable.  [default: 1]",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads of every runtime.  [default: all]",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Measuring time for each runtime and batch size.",
)
@_execution
@_format
@_debug
def bench(a: Path, b: Path | None, format_: str, **options: Any) -> None:
    """Measure how long the models A and B take for the same inputs, side by side.

    A and B take turns, in Keras (graph mode), in ONNX Runtime and in LiteRT. Without B, A is
    compared with what fold makes of it, without proof.

    \b
    Examples:
      bnfold bench model.keras
      bnfold bench model.keras folded.keras --batch 1 --batch 32 --threads 1
      bnfold bench model.keras folded.keras --runtime onnxruntime --seconds 10 --format json
    """
    from bnfold.benchmark import bench_files

    _show_bench(bench_files(a, b, progress=_progress, **options), format_)


def _show_bench(report: "BenchReport", format_: str) -> None:
    from bnfold.reports import bench_text, json, terminal

    if format_ == "json":
        click.echo(json.bench(report))
    else:
        terminal.console().print(bench_text.bench(report))


def _progress(stage: str) -> None:
    click.echo(f"bnfold: {stage} ...", err=True)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    # As an exception, so that what was being written is cleaned up.
    sys.exit(128 + number)


def run() -> None:
    """The console script."""
    # Reading a model makes many small objects and no garbage worth looking for so often.
    gc.set_threshold(100_000, 20, 20)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    main()
