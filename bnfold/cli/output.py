"""Where a report goes: to standard output, or whole or not at all into the file of `--output`."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnfold.cli.options import FILE
from bnfold.cli.recorder import current
from bnfold.model.container.printing import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bnfold.model.container.remote import Where
    from bnfold.reports.parts import Part


def reported(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options for how to report, in one of these formats, and where."""
    format_ = click.option(
        "--format",
        "format_",
        type=click.Choice(formats),
        help="How to report.  [default: what the ending of --output says, else text]",
    )
    output = click.option(
        "--output",
        metavar="FILE",
        type=FILE,
        help="Write the report to this file, and replace an earlier one.",
    )
    return lambda command: format_(output(command))


def ending_says(output: Path | None, formats: Mapping[str, str]) -> str:
    """The format for a file of this name, where `formats` has those by ending; the first counts."""
    name = "" if output is None else output.name.lower()
    return next((form for ending, form in formats.items() if name.endswith(ending)), "text")


def refuse_unwritable(
    output: Path, read: "Iterable[Where | None]", option: str = "--output"
) -> None:
    """Refuse what cannot be written, or would replace what is `read`, before anything is done."""
    from bnfold.jobs.staging import check_target

    check_target(output, "text", force=True)
    for other in read:
        if isinstance(other, Path) and (
            output.resolve() == other.resolve() or _is_same_file(output, other)
        ):
            raise click.UsageError(f"{option} {output} would replace what it is made from")


def _is_same_file(one: Path, other: Path) -> bool:
    """Whether two names are those of one file, by links."""
    return one.is_file() and other.is_file() and one.samefile(other)


def put(report: str | Iterable[str], output: Path | None) -> None:
    """Print a report, or write it to a file; it may come in parts."""
    if output is not None:
        from bnfold.jobs.staging import write_text

        write_text(output, chain([report] if isinstance(report, str) else report, "\n"))
    elif isinstance(report, str):
        click.echo(report, nl=bool(report))
    else:
        for part in chain(report, "\n"):
            click.echo(part, nl=False)


def print_text(report: "Callable[[int], Part | RenderableType]", output: Path | None) -> None:
    """Print what is made for the width of the console; to a file without colours."""
    from bnfold.reports import terminal

    if output is None:
        terminal.printed(report)
    else:
        from bnfold.jobs.staging import write_text

        write_text(output, terminal.plain(report))


def say(line: str) -> None:
    """Say something on standard error."""
    if (recorder := current()) is not None:
        recorder.said.append(line)
        return
    click.echo(f"bnfold: {printable(line)}", err=True)
