"""The health of BatchNormalization layers, from the same graph and plan that a fold uses."""

import bnfold.audit.rules  # noqa: F401 - the rules register themselves
from bnfold.audit.finding import Diagnosis, Finding, Severity, joined
from bnfold.audit.registry import RULES, TARGET_DTYPES, Needs, Rule, audit, named, rule
from bnfold.audit.subject import Subject
from bnfold.audit.thresholds import Thresholds
from bnfold.model.channels import Channels

__all__ = [
    "RULES",
    "TARGET_DTYPES",
    "Channels",
    "Diagnosis",
    "Finding",
    "Needs",
    "Rule",
    "Severity",
    "Subject",
    "Thresholds",
    "audit",
    "joined",
    "named",
    "rule",
]
