"""Verifying that a folded model computes what the original computes.

The judge shares no arithmetic with the folding code: it takes two model files, runs both with Keras
and with ONNX Runtime on the same inputs, and accepts the folded model when it differs by no more
than the rounding noise that was measured on the two models themselves. `verify.verify` is where it
starts. Importing this package imports what a result is made of, and nothing that makes one.
"""

from bnfold.verification.result import (
    Basis,
    Comparison,
    SiteStatus,
    Verdict,
    Verification,
)

__all__ = [
    "Basis",
    "Comparison",
    "SiteStatus",
    "Verdict",
    "Verification",
]
