"""The health of BatchNormalization layers, from the same graph and plan that a fold uses."""

from bnfold.audit.finding import Channels, Finding, Severity
from bnfold.audit.rules import RULES, Rule, Subject, audit

__all__ = ["RULES", "Channels", "Finding", "Rule", "Severity", "Subject", "audit"]
