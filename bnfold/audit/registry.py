"""The health rules that are known, and the audit that asks them.

A rule looks at one BatchNormalization and says nothing, or what it found and how bad that is. It is
a function in `bnfold/audit/rules` that registers itself, and its page of documentation is a
Markdown file in `bnfold/audit/pages`. Codes are never reused.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

import numpy as np

from bnfold.audit.finding import Diagnosis, Finding, Severity
from bnfold.audit.subject import Subject, subjects
from bnfold.audit.thresholds import Thresholds
from bnfold.errors import SettingsError
from bnfold.folding.plan import Plan
from bnfold.model.container.record import Recalibration
from bnfold.model.graph import LayerPath
from bnfold.model.moments import Observed
from bnfold.model.optimizer import Optimizer
from bnfold.serialize import Serializable

TARGET_DTYPES = ("float16", "bfloat16", "float32")
"""The dtypes that a user may say the model will be run in."""

PAGES = Path(__file__).parent / "pages"


class Needs(Enum):
    """What a rule must know of a layer to say anything of it."""

    SETTINGS = "settings"
    NUMBERS = "numbers"
    FINITE_NUMBERS = "finite numbers"


Check = Callable[[Subject], Diagnosis | None]


@dataclass(frozen=True)
class Rule(Serializable):
    """A health rule.

    Attributes:
        code: the rule's code, such as "BN103".
        name: its name, such as "statistics-not-converged".
        severities: those that its findings can have, the worst first.
        check: what it finds; None for a healthy layer.
        needs: what must be known of a layer; of any other the rule says nothing.
        needs_data: whether the model must have run over data.
    """

    code: str
    name: str
    severities: tuple[Severity, ...]
    check: Check
    needs: Needs = Needs.FINITE_NUMBERS
    needs_data: bool = False

    json_keys: ClassVar[tuple[str, ...]] = ("code", "name", "severities", "summary")

    @property
    def summary(self) -> str:
        """What it finds, in one line."""
        return (self.check.__doc__ or "").partition("\n")[0]

    @property
    def page(self) -> str:
        """Its documentation below the summary, in Markdown; read when it is asked for."""
        return (PAGES / f"{self.code}.md").read_text("utf-8")


RULES: list[Rule] = []
"""Every rule, in the order of the codes."""


def rule(
    code: str,
    name: str,
    *severities: Severity,
    needs: Needs = Needs.FINITE_NUMBERS,
    needs_data: bool = False,
) -> Callable[[Check], Check]:
    """Register a function as a rule; the arguments are the attributes of `Rule`."""

    def register(check: Check) -> Check:
        row = Rule(code, name, severities, check, needs, needs_data)
        insort(RULES, row, key=lambda one: one.code)
        return check

    return register


def named(word: str) -> Rule | None:
    """The rule of this code or name, however capitalized; None for none."""
    return next((one for one in RULES if word.lower() in (one.code.lower(), one.name)), None)


def alike(word: str) -> list[str]:
    """The codes and names that a word that is neither may be a typing error for."""
    import difflib  # noqa: PLC0415 - for a mistake only

    known = [key for one in RULES for key in (one.code, one.name)]
    begun = [key for key in known if len(word) > 2 and key.startswith(word.upper())]
    return (
        begun
        or difflib.get_close_matches(word.upper(), known)
        or difflib.get_close_matches(word.lower(), known)
    )


def audit(
    plan: Plan,
    rules: Iterable[Rule] = RULES,
    *,
    thresholds: Thresholds | None = None,
    target_dtype: str | None = None,
    optimizers: Mapping[LayerPath, Optimizer] | None = None,
    observed: Mapping[LayerPath, Observed] | None = None,
    recalibration: Recalibration | None = None,
) -> tuple[Finding, ...]:
    """The findings on every layer of a plan, in the order of the layers, then of the rules.

    Args:
        plan: what a fold would do, with the model that it was made for.
        rules: those to ask.
        thresholds: the settings of the rules; without it their defaults.
        target_dtype: one of TARGET_DTYPES, the dtype that the model will be run in; None for the
            one that each layer computes in.
        optimizers: the optimizer of each compiled model, that of the outermost at (), as
            `ModelFile.optimizers` has them.
        observed: what went into each layer while the model ran over data; None where it did not.
        recalibration: what `recalibrate` did to the file, by its record; None where it did nothing.

    Raises:
        SettingsError: `target_dtype` is not one of TARGET_DTYPES.
    """
    if target_dtype is not None and target_dtype not in TARGET_DTYPES:
        raise SettingsError(
            f"no target dtype: {target_dtype!r}; there are {', '.join(TARGET_DTYPES)}"
        )
    asked = tuple(rules)
    layers = subjects(
        plan,
        thresholds=thresholds or Thresholds(),
        target_dtype=target_dtype,
        optimizers=optimizers or {},
        observed=observed,
        recalibration=recalibration,
    )
    with np.errstate(all="ignore"):  # a number that is not finite is a finding, or none
        return tuple(found for layer in layers for found in _findings(layer, asked))


def _findings(subject: Subject, rules: tuple[Rule, ...]) -> Iterator[Finding]:
    known = _known(subject)
    for one in rules:
        found = one.check(subject) if one.needs in known else None
        if found is not None:
            layer = subject.batchnorm.path
            yield Finding(**vars(found), code=one.code, name=one.name, layer=layer)


def _known(subject: Subject) -> tuple[Needs, ...]:
    """What is known of a layer."""
    vectors = subject.vectors.values()
    if not any(vector.size for vector in vectors):
        return (Needs.SETTINGS,)
    if subject.batchnorm.broken:
        return (Needs.SETTINGS, Needs.NUMBERS)
    return (Needs.SETTINGS, Needs.NUMBERS, Needs.FINITE_NUMBERS)
