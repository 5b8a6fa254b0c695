"""`bnfold rules` and `bnfold rule`."""

from typing import TYPE_CHECKING

import click

from bnfold.cli.options import CONTEXT, debug, report_format

if TYPE_CHECKING:
    from bnfold.audit import Rule


@click.command(context_settings=CONTEXT)
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
    from bnfold.reports import json, rules_text, terminal

    if format_ == "json":
        click.echo(json.rules(RULES))
    else:
        console = terminal.console()
        console.print(rules_text.rules(RULES, console.width))


@click.command(context_settings=CONTEXT)
@click.argument("name", metavar="RULE")
@debug
def rule(name: str) -> None:
    """Explain one rule, by its code or its name: what it finds, why it matters, what to do.

    In a pipe the page comes as Markdown.

    \b
    Examples:
      bnfold rule BN103
      bnfold rule statistics-not-converged
    """
    from bnfold.reports import rule_page, terminal

    page = rule_page.markdown(_find(name))
    console = terminal.console()
    if not console.is_terminal:
        click.echo(page, nl=False)
        return
    from rich.markdown import Markdown

    console.print(Markdown(page))


def _find(name: str) -> "Rule":
    import difflib

    from bnfold.audit import RULES

    known = {key: rule for rule in RULES for key in (rule.code, rule.name)}
    found = known.get(name.upper(), known.get(name.lower()))
    if found is not None:
        return found
    alike = [code for code in known if len(name) > 2 and code.startswith(name.upper())]
    alike = (
        alike
        or difflib.get_close_matches(name.upper(), known)
        or difflib.get_close_matches(name.lower(), known)
    )
    hint = f"; did you mean {' or '.join(alike)}?" if alike else "; 'bnfold rules' lists them"
    raise click.UsageError(f"no rule is named {name!r}{hint}")
