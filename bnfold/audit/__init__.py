"""The health of BatchNormalization layers, from the same graph and plan that a fold uses."""

from bnfold.audit.finding import Channels, Finding, Severity, joined
from bnfold.audit.rules import RULES, TARGET_DTYPES, Needs, Rule, audit
from bnfold.audit.subject import Subject, Verdict
from bnfold.audit.thresholds import Thresholds

__all__ = [
    "RULES",
    "TARGET_DTYPES",
    "Channels",
    "Finding",
    "Needs",
    "Rule",
    "Severity",
    "Subject",
    "Thresholds",
    "Verdict",
    "audit",
    "joined",
]
