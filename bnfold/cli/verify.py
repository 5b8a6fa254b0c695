"""`bnfold verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli import options
from bnfold.cli.options import CONTEXT, MODEL, debug, progress, proving, report_format

if TYPE_CHECKING:
    from bnfold.verification import Verification


@click.command(context_settings=CONTEXT)
@click.argument("original", metavar="MODEL", type=MODEL)
@click.argument("folded", metavar="OTHER", type=MODEL)
@proving
@report_format
@debug
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
    wanted = options.proof(**proof)
    result = wanted.run(original, folded, progress)
    _show_verification(result, format_, strict=wanted.strict)
    if not result.accepted(strict=wanted.strict):
        ctx.exit(1)


def _show_verification(result: "Verification", format_: str, *, strict: bool) -> None:
    from bnfold.reports import fold_text, json, terminal

    if format_ == "json":
        click.echo(json.verification(result))
    else:
        terminal.console().print(fold_text.verification(result, strict=strict))
