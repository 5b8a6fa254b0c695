"""`bnfold verify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bnfold.cli import options
from bnfold.cli.options import CONTEXT, MODEL, limited, pinned, progress, proving, report_format
from bnfold.cli.show import show


@click.command(context_settings=CONTEXT)
@click.argument("original", metavar="MODEL", type=MODEL)
@click.argument("folded", metavar="OTHER", type=MODEL)
@proving
@pinned
@report_format
@limited
def verify(original: Path, folded: Path, sha256: Sequence[str], format_: str, **proof: Any) -> None:
    """Verify that OTHER computes the same as MODEL, whatever made it.

    Both are run with Keras and, exported with tf2onnx, with ONNX Runtime, on the same samples.
    Outputs are compared before a final softmax or sigmoid, which would hide errors.

    \b
    Examples:
      bnfold verify model.keras folded.keras
      bnfold verify model.keras folded.keras --data samples.npz --strict
      bnfold verify model.keras folded.keras --import my_package.layers
    """
    wanted = options.proof(**proof)
    result = wanted.run(original, folded, progress, sha256=sha256)
    strict = wanted.strict
    show(result, format_, good=result.accepted(strict=strict), strict=strict)
