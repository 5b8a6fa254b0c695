"""`bnfold doctor`."""

import click

from bnfold.cli.options import CONTEXT, Command, Finite, debug, progress, report_format

_SECONDS = 120.0  # TensorFlow takes some ten seconds, from a slow disk a minute


@click.command(cls=Command, context_settings=CONTEXT)
@click.option(
    "--no-import",
    is_flag=True,
    help="Only look at what is installed; do not import it to see whether it works.",
)
@click.option(
    "--timeout",
    type=Finite(min=0, min_open=True),
    metavar="SECONDS",
    default=_SECONDS,
    show_default=True,
    help="Stop importing after that.",
)
@report_format
@click.option("--json", "format_", flag_value="json", help="The same as --format json.")
@debug
@click.pass_context
def doctor(ctx: click.Context, /, no_import: bool, timeout: float, format_: str) -> None:
    """Say which libraries are installed, and what each command can do with them.

    Every library is imported, in another process, to see whether it works. The report names no
    files and no user: put it into a bug report.

    \b
    Examples:
      bnfold doctor
      bnfold doctor --no-import
      bnfold doctor --json

    \b
    Exit codes: 0 inspect, rules and fold --no-verify work, 1 they do not.
    """
    from bnfold.jobs.doctor import diagnose
    from bnfold.reports.formats import json
    from bnfold.reports.text import doctor as text

    found = diagnose(imports=not no_import, seconds=timeout, progress=progress)
    click.echo(json.report(found) if format_ == "json" else text.diagnosis(found))
    ctx.exit(0 if found else 1)
