"""`bnfold verify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bnfold.cli import options
from bnfold.cli.options import (
    CONTEXT,
    MODEL,
    bounded,
    limited,
    pinned,
    progress,
    proving,
    report_format,
)
from bnfold.cli.show import show


@click.command(context_settings=CONTEXT)
@click.argument("original", metavar="MODEL", type=MODEL)
@click.argument("folded", metavar="OTHER", type=MODEL)
@bounded
@click.option(
    "--save-samples",
    metavar="FILE.npz",
    type=MODEL,
    help="Write the samples that showed most, with what was computed of them, for --data.",
)
@proving
@pinned
@report_format
@limited
def verify(
    original: Path,
    folded: Path,
    save_samples: Path | None,
    sha256: Sequence[str],
    format_: str,
    **proof: Any,
) -> None:
    """Verify that OTHER computes the same as MODEL, whatever made it.

    MODEL is a Keras model. OTHER is another one, an ONNX file, a LiteRT file (.tflite) or a folder
    with a SavedModel.

    Of two Keras models, both are run with Keras and, exported with tf2onnx, with ONNX Runtime, on
    the same samples. Outputs are compared before a final softmax or sigmoid, which would hide
    errors. Another kind of file is run in its own runtime, as it is. If it has float16 or
    quantized numbers, it is verified that this explains all of the error.

    \b
    Examples:
      bnfold verify model.keras folded.keras
      bnfold verify model.keras model.onnx
      bnfold verify model.keras model_int8.tflite --data samples.npz --min-sqnr 30
      bnfold verify model.keras saved_model --max-changed 0.5%
      bnfold verify model.keras folded.keras --data samples.npz --strict
      bnfold verify model.keras folded.keras --import my_package.layers
    """
    wanted = options.proof(**proof)
    result = wanted.run(original, folded, progress, sha256=sha256, save_samples=save_samples)
    strict = wanted.strict
    show(result, format_, good=result.accepted(strict=strict), strict=strict)
