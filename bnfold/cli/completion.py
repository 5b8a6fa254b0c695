"""What a shell proposes for a word that is being typed: rules, and layers of a model.

A name from a file is proposed only if a shell reads it as one plain word, because a proposal
becomes a part of the user's command.
"""

import os
import re
from pathlib import Path

import click

WORDS = "bnfold.words"
"""Where the context of a command has its command line, as it was given."""

_PLAIN = r"[\w./][\w./-]*"


def rules(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Codes of rules, and names where one is begun, for the last word of a list with commas."""
    from bnfold.audit import RULES

    last = begun.rsplit(",", maxsplit=1)[-1]
    before = begun.removesuffix(last)
    words = [word for rule in RULES for word in ((rule.code, rule.name) if last else (rule.code,))]
    return [before + word for word in words if word.lower().startswith(last.lower())]


def layers(ctx: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """The BatchNormalization layers of the first model among the words before, if it is a file.

    Click has no arguments of a command whose last option has no value yet.
    """
    from bnfold.errors import BnfoldError
    from bnfold.jobs.inspect import inspect_file

    for word in ctx.meta.get(WORDS, ()):
        if not os.path.exists(word):
            continue
        try:
            found = inspect_file(Path(word), rules=())
        except (BnfoldError, OSError):
            continue
        names = ["/".join(decision.batchnorm.path) for decision in found.plan.decisions]
        return [one for one in names if one.startswith(begun) and re.fullmatch(_PLAIN, one)]
    return []
