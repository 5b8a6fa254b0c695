"""`bnfold prepare`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bnfold.cli import many, options, places
from bnfold.cli.options import (
    CONTEXT,
    FAIL_ON,
    NAME,
    SAMPLES,
    SETTINGS_FILE,
    bounded,
    having,
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
from bnfold.jobs.products import PRODUCTS, RECALIBRATIONS

if TYPE_CHECKING:
    pass

_OWN = (
    click.option("--force", is_flag=True, help="Replace DIR, if 'bnfold prepare' made it."),
    click.option(
        "--to",
        type=click.Choice(PRODUCTS),
        multiple=True,
        help="What to export to, beside the folded Keras model. Repeatable.  [default: onnx]",
    ),
    click.option(
        "--recalibrate",
        type=click.Choice(RECALIBRATIONS),
        default="never",
        show_default=True,
        help="Estimate the moving statistics again from --data: always, or where BN103, BN110 or "
        "BN501 are found.",
    ),
    click.option(
        "--labels",
        type=SAMPLES,
        metavar="FILE",
        help="Target outputs for --data (or --test-data), on which MODEL and all files made of it "
        "are scored: an .npy, or an .npz with an array for each output, of class numbers, vectors "
        "with a single 1, or other numbers.  [default: an array y in the data]",
    ),
    click.option(
        "--test-data",
        type=SAMPLES,
        metavar="FILE",
        help="Other samples for the scores, with an array y or with --labels.  [default: --data]",
    ),
    click.option("--opset", type=int, metavar="N", help="Version of the ONNX operator set."),
    click.option(
        "--fail-on",
        type=click.Choice(FAIL_ON),
        help="Stop at a finding this bad or worse.  [default: error]",
    ),
)


def _own(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that no other command has, and where settings come from."""
    return having(command, *_OWN, *SETTINGS_FILE)


@click.command(cls=many.Command, context_settings=CONTEXT)
@click.argument("paths", metavar="MODEL... [DIR]", type=NAME, nargs=-1, required=True)
@_own
@keep_option
@keras_option
@inference_option
@bounded
@pinned
@proving
@many.many(writes=True)
@reported("text", "json", "jsonl")
@limitable
@click.pass_context
def prepare(
    ctx: click.Context,
    /,
    paths: Sequence[str],
    config: Path | None,
    no_config: bool,
    sha256: Sequence[str],
    format_: str | None,
    output: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Make everything that you deploy of MODEL, in a new folder DIR.

    MODEL is inspected, recalibrated if asked for, folded, exported and verified. With labels, MODEL
    and all files made of it are scored. DIR has the models, report.html, report.json and
    report.sarif. It appears whole or not at all: not if a finding is as bad as --fail-on, a
    verification fails, or a file fits the labels worse.

    Options that never change can stand in [tool.bnfold.prepare] of pyproject.toml, such as
    to = ["onnx", "tflite:int8"]; those on the command line replace them. Many MODELs, folders among
    them, get a folder each in --out-dir.

    \b
    Examples:
      bnfold prepare model.keras deploy
      bnfold prepare model.keras deploy --to onnx --to tflite:int8 --data samples.npz
      bnfold prepare model.keras deploy --data train.npz --recalibrate auto --max-changed 1%
      bnfold prepare models --out-dir deploy
    """
    from bnfold.jobs.prepare import Wanted
    from bnfold.reports.prepared import prepare_folder

    run, given = many.taken(given, format_, output, runs_models=True)
    if (folder := run.options["out_dir"]) is not None:
        run.each(
            ctx,
            options.sources(paths),
            lambda below: [str(folder / places.stem(below))],
            writes=True,
            needs=["prepare"],
        )
    source, directory = many.pair(paths, run)
    settings = options.settings_file(config, no_config=no_config)
    said = {
        name: value
        for name, value in given.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    chosen = {**given, **settings.prepare, **said}
    fail_on = chosen.pop("fail_on")
    if fail_on is not None:
        from bnfold.jobs.settings import severity

        settings = replace(settings, fail_on=severity(fail_on))
    own = {
        name: chosen.pop(name)
        for name in (
            "to",
            "labels",
            "test_data",
            "recalibrate",
            "keep",
            "keras",
            "inference",
            "opset",
        )
    }
    own["to"] = own["to"] or ("onnx",)
    wanted = Wanted(data=chosen["data"], proof=options.proof(**chosen), **own)
    report = prepare_folder(
        source,
        options.FILE.convert(directory, None, ctx),
        wanted=wanted,
        settings=settings,
        force=force,
        progress=progress,
        sha256=sha256,
    )
    show(report, run.format, good=report.written, output=output)
