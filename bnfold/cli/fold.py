"""`bnfold fold` and `bnfold export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold.cli import many, options, places
from bnfold.cli.options import (
    CONTEXT,
    NAME,
    comparison,
    gate_settings,
    gating,
    inference_option,
    keep_option,
    keras_option,
    limitable,
    pinned,
    progress,
    proving,
)
from bnfold.cli.output import reported
from bnfold.cli.show import show
from bnfold.jobs.products import PRODUCTS

if TYPE_CHECKING:
    from bnfold.jobs.fold import Standalone
    from bnfold.jobs.verify import Proof
    from bnfold.model.container.remote import Where


@click.command(cls=many.Command, context_settings=CONTEXT)
@click.argument("paths", metavar="MODEL... [OUT]", type=NAME, nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--no-verify",
    is_flag=True,
    help="Do not verify the result; TensorFlow is loaded only to export.",
)
@keep_option
@keras_option
@inference_option
@click.option(
    "--standalone",
    type=click.Choice(["keep", "depthwise"]),
    default="keep",
    show_default=True,
    help="What becomes of layers that cannot be folded: nothing, or a 1x1 depthwise convolution.",
)
@gating
@pinned
@proving
@many.many(writes=True)
@reported("text", "json", "jsonl")
@limitable
@click.pass_context
def fold(
    ctx: click.Context,
    /,
    paths: Sequence[str],
    force: bool,
    no_verify: bool,
    keep: Sequence[str],
    keras: str | None,
    inference: bool,
    standalone: "Standalone",
    fail_on: str,
    config: Path | None,
    no_config: bool,
    sha256: Sequence[str],
    format_: str | None,
    output: Path | None,
    **proof: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL into OUT, and verify that it computes the same.

    OUT is of the same kind as MODEL, or what 'bnfold export' writes: an ONNX file if it ends in
    .onnx, a LiteRT file if it ends in .tflite, a SavedModel if it ends in .savedmodel, or in / and
    MODEL is a file. What cannot be folded exactly stays as it is. Optimizer state is left out. OUT
    appears whole or not at all, and not at all if verification fails. Errors that 'bnfold inspect'
    finds are reported. Many MODELs, folders among them, go to --out-dir.

    \b
    Examples:
      bnfold fold model.keras folded.keras
      bnfold fold model.h5 folded.h5 --keep 'head/*' --data samples.npz
      bnfold fold model.keras folded.keras --no-verify --force --format json
      bnfold fold model.keras folded.keras --fail-on error --config ci/bnfold.toml
      bnfold fold model.keras folded.keras --keras 3.16
      bnfold fold augmented.keras folded.keras --inference
      bnfold fold model.keras folded.onnx
      bnfold fold model.keras folded.tflite
      bnfold fold model.keras serving/
      bnfold fold models --out-dir folded --jobs 4
    """
    from bnfold.jobs.fold import fold_file

    if no_verify:
        _refuse_with_no_verify(ctx, "strict", "data", "rtol", "atol")
    run, proof = many.taken(proof, format_, output, runs_models=not no_verify)
    if (folder := run.options["out_dir"]) is not None:
        run.each(
            ctx,
            options.sources(paths),
            lambda below: [str(folder / below)],
            writes=True,
            needs=[] if no_verify else ["fold"],
        )
    source, target = many.pair(paths, run)
    settings: dict[str, Any] = {
        "keep": keep,
        "inference": inference,
        "standalone": standalone,
        "force": force,
        "sha256": sha256,
    }
    settings |= _gate(fail_on, config, no_config, keras)
    if _is_deployed(source, target):
        how = {"prove": not no_verify, "check": not no_verify}
        _export(source, [target], options.proof(**proof), run, **how, **settings)
        return
    asked = None if no_verify else options.proof(**proof)  # which imports all that runs models
    report = fold_file(source, target, proof=asked, progress=progress, **settings)
    show(report, run.format, good=report.written, output=output)


def _is_deployed(source: "Where", target: str) -> bool:
    """Whether OUT is to be exported, and is not a model of Keras like MODEL.

    A slash at the end is what a shell adds to any folder, so where MODEL is one it says nothing.
    """
    from bnfold.jobs.staging import format_of
    from bnfold.model.container.remote import Remote, located

    is_folder = isinstance(source, Path) and source.is_dir()
    where = located(target)
    return format_of(where if is_folder or isinstance(where, Remote) else target) is not None


def _refuse_with_no_verify(ctx: click.Context, *names: str) -> None:
    wanted = [
        f"--{name}"
        for name in names
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if wanted:
        raise click.UsageError(f"--no-verify contradicts {' and '.join(wanted)}")


@click.command(cls=many.Command, context_settings=CONTEXT)
@click.argument("paths", metavar="MODEL [OUT...]", type=NAME, nargs=-1, required=True)
@click.option(
    "--to",
    type=click.Choice(PRODUCTS),
    multiple=True,
    help="With --out-dir: what to write of each model. Repeatable.  [default: onnx]",
)
@click.option("--force", is_flag=True, help="Replace each OUT that exists.")
@click.option("--no-fold", is_flag=True, help="Write the model as it is.")
@click.option("--no-verify", is_flag=True, help="Do not run what was written.")
@click.option(
    "--precision",
    "precision",
    type=click.Choice(["float32", "float16", "int8"]),
    multiple=True,
    help="How a .tflite file computes; int8 needs --data, samples to measure ranges on. Once for "
    "all of them, or once for each in their order.  [default: float32]",
)
@click.option(
    "--opset",
    type=int,
    metavar="N",
    help="Version of the ONNX operator set; without it the one that tf2onnx prefers.",
)
@keep_option
@keras_option
@inference_option
@gating
@pinned
@comparison
@many.many(writes=True)
@reported("text", "json", "jsonl")
@limitable
@click.pass_context
def export(
    ctx: click.Context,
    /,
    paths: Sequence[str],
    to: Sequence[str],
    force: bool,
    no_fold: bool,
    no_verify: bool,
    precision: Sequence[str],
    opset: int | None,
    keep: Sequence[str],
    keras: str | None,
    inference: bool,
    fail_on: str,
    config: Path | None,
    no_config: bool,
    sha256: Sequence[str],
    format_: str | None,
    output: Path | None,
    **running: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL and write it for the runtimes that deploy it.

    An OUT that ends in .onnx is an ONNX file, one that ends in .tflite a LiteRT (TensorFlow Lite)
    file, and one that ends in / or .savedmodel the folder of a SavedModel, as is one that exists.
    Inputs and outputs keep their names, order, shapes and dtypes, and free sizes stay free.

    Each file is run in ONNX Runtime, in LiteRT, or in TensorFlow without Keras. All are written
    only if each computes what MODEL computes in Keras, as exactly as its precision allows. The
    report says what the runtime would have left of each BatchNormalization without bnfold. Errors
    that 'bnfold inspect' finds are reported. Many MODELs, folders among them, go to --out-dir.

    \b
    Examples:
      bnfold export model.keras model.onnx
      bnfold export model.keras model.onnx model.tflite serving/
      bnfold export model.keras model.tflite --precision int8 --data samples.npz
      bnfold export model.keras model.tflite --precision float16
      bnfold export model.h5 model.onnx --opset 13 --keep 'head/*'
      bnfold export model.keras model.onnx --no-fold --force --format json
      bnfold export model.keras model.onnx --fail-on error --rtol 1e-3 --atol 1e-6
      bnfold export models --out-dir deployed --to onnx --to tflite:float16
    """
    if no_fold and keep:
        raise click.UsageError("--keep says what not to fold, and --no-fold folds nothing")
    if no_fold and inference:
        raise click.UsageError("--inference is about what to fold, and --no-fold folds nothing")
    if no_verify:
        calibrates = () if "int8" in precision or "tflite:int8" in to else ("data",)
        _refuse_with_no_verify(ctx, *calibrates, "rtol", "atol")
    run, running = many.taken(running, format_, output, runs_models=True)
    if run.options["out_dir"] is not None:
        _export_many(ctx, options.sources(paths), run, to or ("onnx",), precision)
    if to:
        raise click.UsageError("--to goes with --out-dir")
    source, _ = many.pair(paths[:2], run)
    settings: dict[str, Any] = {
        "fold": not no_fold,
        "opset": opset,
        "precision": precision,
        "check": not no_verify,
        "keep": keep,
        "inference": inference,
        "force": force,
        "sha256": sha256,
    }
    settings |= _gate(fail_on, config, no_config, keras)
    _export(source, paths[1:], options.proof(**running), run, **settings)


def _export_many(
    ctx: click.Context, models: "list[Where]", run: many.Run, to: Sequence[str], precision: object
) -> None:
    """Export each of many models to `to`, side by side in the folder that it belongs to."""
    from bnfold.jobs.targets import KINDS

    if precision:
        raise click.UsageError("--to tflite:float16 says the precision, and --precision does too")
    every = list(dict.fromkeys(to))
    precisions = [PRODUCTS[one][1] for one in every if one.startswith("tflite")]
    folder: Path = run.options["out_dir"]

    def targets(below: Path) -> list[str]:
        return [f"{folder / places.stem(below)}{PRODUCTS[one][0]}" for one in every]

    more = [word for one in precisions for word in ("--precision", one)]
    formats = {one.partition(":")[0] for one in every}
    needs = [kind.command for name, kind in KINDS.items() if name in formats]
    run.each(ctx, models, targets, writes=True, needs=needs, more=more, without=["to"])


def _gate(fail_on: str, config: Path | None, no_config: bool, keras: str | None) -> dict[str, Any]:
    """The settings for the findings on MODEL, and the version of Keras that it is for."""
    found = gate_settings(fail_on, config, no_config=no_config)
    return {"settings": found, "keras": found.keras if keras is None else keras}


def _export(
    source: "Where", targets: Sequence[str], running: "Proof", run: many.Run, **settings: Any
) -> None:
    from bnfold.jobs.export import export_file

    report = export_file(source, targets, running=running, progress=progress, **settings)
    show(report, run.format, good=report.written, output=run.options["output"])
