"""`bnfold inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bnfold.cli.options import CONTEXT, MODEL, debug, report_format
from bnfold.errors import BnfoldError
from bnfold.model.guard import printable

if TYPE_CHECKING:
    from bnfold.audit import Finding
    from bnfold.inspection import Inspection


@click.command(context_settings=CONTEXT)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=MODEL)
@click.option("--layer", metavar="NAME", help="Show this one layer in full, channel by channel.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 when there is a finding this bad, or worse.",
)
@report_format
@debug
@click.pass_context
def inspect(
    ctx: click.Context, models: Sequence[Path], layer: str | None, fail_on: str, format_: str
) -> None:
    """Show every BatchNormalization: where, how configured, its statistics, whether it folds.

    \b
    Examples:
      bnfold inspect model.keras
      bnfold inspect model.keras --layer backbone/bn1
      bnfold inspect models/*.keras --format json --fail-on warning
    """
    from bnfold.audit import Severity
    from bnfold.inspection import inspect_file

    inspected, unreadable = [], False
    for path in models:
        try:
            inspected.append(inspect_file(path))
        except BnfoldError as error:
            if len(models) == 1:
                raise
            unreadable = True
            click.echo(f"bnfold: {printable(str(error))}", err=True)
    findings = [finding for model in inspected for finding in model.findings]
    if layer is not None:
        findings = _show_layer(inspected, layer, format_)
    elif inspected:
        _show_models(inspected, format_)
    if unreadable:
        ctx.exit(2)
    if fail_on != "never" and any(f.severity.rank <= Severity(fail_on).rank for f in findings):
        ctx.exit(1)


def _show_models(inspected: "Sequence[Inspection]", format_: str) -> None:
    from bnfold.reports import inspect_text, json, terminal

    if format_ == "json":
        click.echo(json.inspections(inspected))
        return
    console = terminal.console()
    for number, model in enumerate(inspected):
        if number:
            console.print()
        console.print(inspect_text.inspection(model, console.width))


def _show_layer(inspected: Sequence["Inspection"], name: str, format_: str) -> "list[Finding]":
    """Show one layer; its findings."""
    from bnfold.reports import inspect_text, json, terminal

    if len(inspected) != 1:
        raise click.UsageError("--layer takes exactly one MODEL")
    model = inspected[0]
    found = model.layer(name)
    if found is None:
        raise click.UsageError(_no_such_layer(model, name))
    findings = model.findings_on(found)
    if format_ == "json":
        click.echo(json.layer(model, found))
    else:
        terminal.console().print(inspect_text.layer(found, findings))
    return list(findings)


def _no_such_layer(model: "Inspection", name: str) -> str:
    import difflib

    paths = [decision.batchnorm.path for decision in model.plan.decisions]
    alike = ["/".join(path) for path in paths if path[-1] == name]
    alike = alike or difflib.get_close_matches(name, ["/".join(path) for path in paths])
    hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
    return f"no single BatchNormalization is named {name!r}{hint}"
