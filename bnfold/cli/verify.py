"""`bnfold verify`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from bnfold.cli import many, options, places
from bnfold.cli.options import CONTEXT, FILE, NAME, bounded, limitable, pinned, progress, proving
from bnfold.cli.output import ending_says, refuse_unwritable, reported, say
from bnfold.cli.show import show

if TYPE_CHECKING:
    from bnfold.model.container.remote import Where

_BY_ENDING = {".html": "html", **many.BY_ENDING}


@click.command(cls=many.Command, context_settings=CONTEXT)
@click.argument("paths", metavar="MODEL... OTHER", type=NAME, nargs=-1, required=True)
@bounded
@click.option(
    "--save-samples",
    metavar="FILE.npz",
    type=FILE,
    help="Write the samples that showed most, with what was computed of them, for --data.",
)
@proving
@pinned
@many.many(writes=False)
@reported("text", "json", "jsonl", "html")
@limitable
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    paths: Sequence[str],
    save_samples: Path | None,
    sha256: Sequence[str],
    format_: str | None,
    output: Path | None,
    **proof: Any,
) -> None:
    """Verify that OTHER computes the same as MODEL, whatever made it.

    MODEL is a Keras model. OTHER is another one, an ONNX file, a LiteRT file (.tflite) or a folder
    with a SavedModel.

    Two Keras models are run on the same samples, with Keras and, exported with tf2onnx, with ONNX
    Runtime. Outputs are compared before a final softmax or sigmoid, which would hide errors.
    Another kind of file is run in its own runtime, as it is. If it has float16 or quantized
    numbers, the error must be no larger than these explain.

    Many MODELs, or a folder of them, are compared with the files of the same place and name in the
    folder OTHER, of whatever kind.

    \b
    Examples:
      bnfold verify model.keras folded.keras
      bnfold verify model.keras model.onnx
      bnfold verify model.keras model_int8.tflite --data samples.npz --min-sqnr 30
      bnfold verify model.keras saved_model --max-changed 0.5%
      bnfold verify model.keras folded.keras --data samples.npz --strict
      bnfold verify model.keras folded.keras --import my_package.layers
      bnfold verify model.keras folded.keras --output verification.html
      bnfold verify models folded --jobs 4
    """
    format_ = format_ or ending_says(output, _BY_ENDING)
    run, proof = many.taken(proof, format_, output, runs_models=True)
    if len(paths) < 2:
        raise click.UsageError("Missing argument 'OTHER'.")
    *models, other = options.sources(paths)
    if places.is_many(models) or format_ == "jsonl":
        if save_samples is not None:
            raise click.UsageError("--save-samples writes those of one model")
        if not isinstance(other, Path) or not os.path.isdir(other):
            raise click.UsageError(f"{other} is no folder with something for each of many models")
        _verify_many(ctx, models, other, run)
    many.pair(paths, run, "a folder of them")
    original, folded = models[0], other
    if output is not None:
        refuse_unwritable(output, (original, folded, proof["data"], save_samples))
        here = [one for one in (original, folded) if isinstance(one, Path)]
        if any(output.resolve().is_relative_to(one.resolve()) for one in here):
            raise click.UsageError(f"--output {output} is inside of a model, and would damage it")
    wanted = options.proof(**proof)
    result = wanted.run(original, folded, progress, sha256=sha256, save_samples=save_samples)
    strict = wanted.strict
    show(result, format_, output=output, files=(original, folded), strict=strict)
    if output is not None:
        from bnfold.reports.text.fold import statement

        said = statement(result, strict=strict)
        say("; ".join([f"{output}: written", said.verdict, *said.refused]))
    ctx.exit(0 if result.accepted(strict=strict) else 1)


def _verify_many(
    ctx: click.Context, models: "Sequence[Where]", folder: Path, run: many.Run
) -> NoReturn:
    """Compare each model with what stands for it in a folder, and say what else is there."""
    compared: set[Path] = set()

    def other(below: Path) -> list[str]:
        found = places.counterpart(folder, below)
        compared.add(found)
        return [str(found)]

    run.each(
        ctx,
        models,
        other,
        writes=False,
        needs=["verify"],
        uncompared=lambda: places.uncompared(folder, compared),
    )
