"""What a rule says about a layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from bnfold.model.channels import Channels
from bnfold.model.graph import LayerPath, finite_number, show
from bnfold.serialize import plain

RECALIBRATE = "estimate the statistics again from the training data ('bnfold recalibrate')"
"""What helps where statistics are bad and weights are good; see `Subject.estimate_again`."""


class Severity(StrEnum):
    """How bad a finding is; the order is from bad to harmless."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Diagnosis:
    """What a rule answers when something is wrong: a finding without its rule and its layer.

    Attributes:
        severity: how bad it is.
        message: what was found, with its figures.
        remedy: what to do about it.
        channels: which channels it concerns; None where it concerns the layer as a whole.
        figures: the numbers of the message by name, such as {"momentum": 0.01}.
        cause: the code of the rule that names the cause, where this is but a consequence of it.
    """

    severity: Severity
    message: str
    remedy: str
    channels: Channels | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finding(Diagnosis):
    """One thing that is wrong, or worth knowing, about one layer.

    Attributes:
        code: the rule's, such as "BN103".
        name: the rule's, such as "statistics-not-converged".
        layer: the nested path of the BatchNormalization.
        consequences: the findings that this one is the cause of, see `joined`.
    """

    code: str
    name: str
    layer: LayerPath
    consequences: "tuple[Finding, ...]" = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON; a figure that is not finite is None."""
        brief = ("code", "name", "severity", "message")
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity.value,
            "layer": show(self.layer),
            "path": list(self.layer),
            **{name: plain(getattr(self, name)) for name in ("message", "remedy", "channels")},
            "figures": {name: finite_number(value) for name, value in self.figures.items()},
            "consequences": [
                {name: plain(getattr(one, name)) for name in brief} for one in self.consequences
            ],
        }


def joined(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Each cause as one finding with its consequences, which it is as bad as.

    A consequence of what is not among the findings speaks for itself.
    """
    listed = tuple(findings)
    causes = {(one.layer, one.code) for one in listed if one.cause is None}
    following: dict[tuple[LayerPath, str | None], list[Finding]] = {}
    for one in listed:
        if (one.layer, one.cause) in causes:
            following.setdefault((one.layer, one.cause), []).append(one)
    return tuple(
        _with_consequences(one, following.get((one.layer, one.code), []))
        for one in listed
        if (one.layer, one.cause) not in causes
    )


def _with_consequences(cause: Finding, following: list[Finding]) -> Finding:
    if not following:
        return cause
    said = "; ".join(f"{one.code} {one.name}: {one.message}" for one in following)
    return replace(
        cause,
        severity=min((cause, *following), key=lambda one: one.severity.rank).severity,
        message=f"{cause.message}; consequences: {said}",
        consequences=tuple(following),
    )
