"""`bnfold fold` and `bnfold export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold.cli import options
from bnfold.cli.options import (
    CONTEXT,
    MODEL,
    comparison,
    gate_settings,
    gating,
    inference_option,
    keep_option,
    keras_option,
    limited,
    pinned,
    progress,
    proving,
    report_format,
)
from bnfold.cli.show import show

if TYPE_CHECKING:
    from bnfold.jobs.fold import Standalone
    from bnfold.jobs.verify import Proof


@click.command(context_settings=CONTEXT)
@click.argument("source", metavar="MODEL", type=MODEL)
@click.argument("target", metavar="OUT", type=MODEL)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--no-verify", is_flag=True, help="Do not verify the result; TensorFlow is not loaded."
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
@report_format
@limited
@click.pass_context
def fold(
    ctx: click.Context,
    /,
    source: Path,
    target: Path,
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
    format_: str,
    **proof: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL into OUT, and verify that it computes the same.

    OUT is of the same kind as MODEL, or an ONNX file if it ends in .onnx: see 'bnfold export'. What
    cannot be folded exactly stays as it is. Optimizer state is left out. OUT appears whole or not
    at all, and not at all if verification fails. Errors that 'bnfold inspect' finds are reported.

    \b
    Examples:
      bnfold fold model.keras folded.keras
      bnfold fold model.h5 folded.h5 --keep 'head/*' --data samples.npz
      bnfold fold model.keras folded.keras --no-verify --force --format json
      bnfold fold model.keras folded.keras --fail-on error --config ci/bnfold.toml
      bnfold fold model.keras folded.keras --keras 3.16
      bnfold fold augmented.keras folded.keras --inference
      bnfold fold model.keras folded.onnx
    """
    from bnfold.jobs.fold import fold_file

    wanted = [
        f"--{name}"
        for name in ("strict", "data", "rtol", "atol")
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if no_verify and wanted:
        raise click.UsageError(f"--no-verify contradicts {' and '.join(wanted)}")
    asked = options.proof(**proof)
    settings: dict[str, Any] = {
        "keep": keep,
        "inference": inference,
        "standalone": standalone,
        "force": force,
        "sha256": sha256,
    }
    settings |= _gate(fail_on, config, no_config, keras)
    if target.suffix.lower() == ".onnx":
        _export(source, target, asked, format_, prove=not no_verify, **settings)
        return
    report = fold_file(
        source, target, proof=None if no_verify else asked, progress=progress, **settings
    )
    show(report, format_, good=report.written)


@click.command(context_settings=CONTEXT)
@click.argument("source", metavar="MODEL", type=MODEL)
@click.argument("target", metavar="OUT.onnx", type=MODEL)
@click.option("--force", is_flag=True, help="Replace OUT.onnx if it exists.")
@click.option("--no-fold", is_flag=True, help="Write the model as it is.")
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
@report_format
@limited
def export(
    source: Path,
    target: Path,
    force: bool,
    no_fold: bool,
    opset: int | None,
    keep: Sequence[str],
    keras: str | None,
    inference: bool,
    fail_on: str,
    config: Path | None,
    no_config: bool,
    sha256: Sequence[str],
    format_: str,
    **running: Any,
) -> None:
    """Fold the BatchNormalization layers of MODEL and write it as an ONNX file.

    Inputs and outputs keep their names, order, shapes and dtypes, and free sizes stay free. The
    file is written only if ONNX Runtime computes from it what Keras computes from MODEL. Errors
    that 'bnfold inspect' finds are reported.

    \b
    Examples:
      bnfold export model.keras model.onnx
      bnfold export model.h5 model.onnx --opset 13 --keep 'head/*'
      bnfold export model.keras model.onnx --no-fold --force --format json
      bnfold export model.keras model.onnx --fail-on error --rtol 1e-3 --atol 1e-6
    """
    if no_fold and keep:
        raise click.UsageError("--keep says what not to fold, and --no-fold folds nothing")
    if no_fold and inference:
        raise click.UsageError("--inference is about what to fold, and --no-fold folds nothing")
    settings: dict[str, Any] = {
        "fold": not no_fold,
        "opset": opset,
        "keep": keep,
        "inference": inference,
        "force": force,
        "sha256": sha256,
    }
    settings |= _gate(fail_on, config, no_config, keras)
    _export(source, target, options.proof(**running), format_, **settings)


def _gate(fail_on: str, config: Path | None, no_config: bool, keras: str | None) -> dict[str, Any]:
    """The settings for the findings on MODEL, and the version of Keras that it is for."""
    found = gate_settings(fail_on, config, no_config=no_config)
    return {"settings": found, "keras": found.keras if keras is None else keras}


def _export(source: Path, target: Path, running: "Proof", format_: str, **settings: Any) -> None:
    from bnfold.jobs.export import export_file

    report = export_file(source, target, running=running, progress=progress, **settings)
    show(report, format_, good=report.written)
