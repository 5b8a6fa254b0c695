"""What a rule says about a layer."""

from dataclasses import dataclass
from enum import StrEnum

from bnfold.model.graph import Path, show


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
class Finding:
    """One thing that is wrong, or worth knowing, about one layer.

    `message` says what was found, with its figures; `remedy` what to do about it.
    """

    code: str
    severity: Severity
    layer: Path
    message: str
    remedy: str

    def to_dict(self) -> dict[str, str]:
        """All fields for JSON."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "layer": show(self.layer),
            "message": self.message,
            "remedy": self.remedy,
        }
