"""`bnfold recalibrate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.options import (
    CONTEXT,
    SAMPLES,
    SOURCE,
    Command,
    limited,
    over_data,
    pinned,
    report_format,
    running_over,
)
from bnfold.cli.show import show

if TYPE_CHECKING:
    from bnfold.model.container.remote import Where


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("source", metavar="MODEL", type=SOURCE)
@click.argument("target", metavar="OUT", type=SOURCE)
@over_data(required=True)
@click.option(
    "--layers",
    metavar="PATTERN",
    multiple=True,
    help="Only layers whose name or nested path matches this shell pattern, frozen ones too. "
    "Repeatable.  [default: all that are not frozen]",
)
@click.option(
    "--cache",
    metavar="MIB",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="Memory in MiB for intermediate values, so that the model runs less often.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--labels",
    type=SAMPLES,
    metavar="FILE",
    help="Target outputs, to report the accuracy before and after: an .npy, or an .npz with one "
    "array for each output.  [default: the array y in --data, if there is one]",
)
@click.option(
    "--allow-worse",
    is_flag=True,
    help="Write OUT even if it fits the labels worse than MODEL.",
)
@click.option(
    "--allow-other-scale",
    is_flag=True,
    help="Continue even if the data are of another scale than those that MODEL was trained on.",
)
@pinned
@report_format
@limited
def recalibrate(
    source: "Where",
    target: "Where",
    layers: Sequence[str],
    cache: int,
    force: bool,
    labels: Path | None,
    allow_worse: bool,
    allow_other_scale: bool,
    sha256: Sequence[str],
    format_: str,
    **running: Any,
) -> None:
    """Estimate the moving statistics of MODEL again from data, and write it to OUT.

    Each BatchNormalization gets the mean and variance of its input over all the data. Layers are
    estimated from input to output, so that each gets an input that is corrected already
    (PreciseBN). OUT differs from MODEL only in moving_mean and moving_variance; the optimizer's
    state stays. Give a few thousand samples, prepared as for training and without augmentation. If
    the first layers show that the data are of another scale, such as 0 to 255 for 0 to 1, nothing
    is written.

    \b
    Examples:
      bnfold recalibrate model.keras better.keras --data train.npz
      bnfold recalibrate model.h5 model.h5 --data train.npz --force
      bnfold recalibrate model.keras better.keras --data images.npy --labels labels.npy
      bnfold recalibrate model.keras better.keras --data images.npy --layers 'backbone/*'
    """
    from bnfold.jobs.recalibrate import recalibrate_file

    report = recalibrate_file(
        source,
        target,
        run=running_over(**running),
        layers=layers,
        cache=cache << 20,
        force=force,
        allow_other_scale=allow_other_scale,
        labels=labels,
        allow_worse=allow_worse,
        sha256=sha256,
    )
    show(report, format_, good=report.written)
