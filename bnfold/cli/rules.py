"""`bnfold rules` and `bnfold rule`."""

import click

from bnfold.cli.completion import rules as rule_words
from bnfold.cli.options import CONTEXT, Command, debug, report_format


@click.command(cls=Command, context_settings=CONTEXT)
@report_format
@debug
def rules(format_: str) -> None:
    """List the rules by which inspect judges: code, name, levels, and what each finds.

    \b
    Examples:
      bnfold rules
      bnfold rules --format json
    """
    from bnfold.audit import RULES
    from bnfold.reports import terminal
    from bnfold.reports.formats import json
    from bnfold.reports.text import rules as rules_text

    if format_ == "json":
        click.echo(json.rules(RULES))
    else:
        terminal.printed(lambda width: rules_text.rules(RULES, width))


@click.command(cls=Command, context_settings=CONTEXT)
@click.argument("name", metavar="RULE", shell_complete=rule_words)
@debug
def rule(name: str) -> None:
    """Explain one rule, by its code or its name: what it finds, why it matters, what to do.

    In a pipe the page comes as Markdown.

    \b
    Examples:
      bnfold rule BN103
      bnfold rule statistics-not-converged
    """
    from bnfold.audit.registry import alike, named
    from bnfold.reports import rule_page, terminal

    found = named(name)
    if found is None:
        meant = alike(name)
        hint = f"did you mean {' or '.join(meant)}?" if meant else "'bnfold rules' lists them"
        raise click.UsageError(f"no rule is named {name!r}; {hint}")
    page = rule_page.markdown(found)
    console = terminal.console()
    if not console.is_terminal:
        click.echo(page, nl=False)
        return
    from rich.markdown import Markdown

    console.print(Markdown(page))
