"""`bnfold bench`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.options import (
    CONTEXT,
    SOURCE,
    Command,
    Finite,
    execution,
    limited,
    pinned,
    progress,
    report_format,
)
from bnfold.cli.show import show

if TYPE_CHECKING:
    from bnfold.model.container.remote import Where


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("a", type=SOURCE)
@click.argument("b", metavar="[B]", type=SOURCE, required=False)
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
    type=Finite(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Measuring time for each runtime and batch size; preparing takes longer than that.",
)
@execution
@pinned
@report_format
@limited
def bench(
    a: "Where",
    b: "Where | None",
    trust: bool,
    imports: Sequence[str],
    format_: str,
    **options: Any,
) -> None:
    """Measure how long the models A and B take for the same inputs, side by side.

    A and B take turns, in Keras (graph mode), in ONNX Runtime and in LiteRT. Without B, A is
    compared with its own fold, which is not verified.

    \b
    Examples:
      bnfold bench model.keras
      bnfold bench model.keras folded.keras --batch 1 --batch 32 --threads 1
      bnfold bench model.keras folded.keras --runtime onnxruntime --seconds 10
    """
    from bnfold.jobs.bench import bench_files
    from bnfold.running.options import Loading

    loading = Loading(trust, imports)
    show(bench_files(a, b, loading=loading, progress=progress, **options), format_)
