"""Verifying that a folded model computes what the original computes.

The judge shares no arithmetic with the folding code: it takes two model files, runs both with Keras
and with ONNX Runtime on the same inputs, and accepts the folded model when it differs by no more
than the rounding noise that was measured on the two models themselves. Importing this package
imports none of those libraries; `running` alone does so, when a verification starts.
"""

from bnfold.verification.result import (
    Basis,
    Comparison,
    SiteStatus,
    Verdict,
    Verification,
)
from bnfold.verification.verify import verify

__all__ = [
    "Basis",
    "Comparison",
    "SiteStatus",
    "Verdict",
    "Verification",
    "verify",
]
