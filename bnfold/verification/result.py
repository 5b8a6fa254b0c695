"""The outcome of a verification, as plain values that need no numerical library.

A verdict has three values, because "this runtime cannot run the model" is neither a proof nor a
refutation:

    equivalent   every comparison that could see anything passed, and at least one could
    different    at least one comparison failed, or the interface of the two models differs
    undecided    nothing failed, but what ran could not have seen a difference
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What was found out about the two models."""

    EQUIVALENT = "equivalent"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


class Basis(StrEnum):
    """Which runtimes the verdict rests on."""

    BOTH = "keras and onnxruntime"
    KERAS = "keras alone"
    ONNXRUNTIME = "onnxruntime alone"
    INTERFACE = "interface alone"


@dataclass(frozen=True)
class Comparison:
    """One output in one runtime, at the kind of samples where the folded model came out worst.

    `tapped_before` names the final activation ("softmax", "sigmoid") that was left out, or is None.
    `relative_error` is the largest error over the largest magnitude of the original's output.
    `excess` is the largest ratio of error to tolerance, so `passed` means `excess <= 1`; `error`
    and `tolerance` are those of the element with that ratio. A comparison that is not `conclusive`
    could not have failed in a meaningful way: the output never changed, or rounding noise drowned
    it.
    """

    output: str
    tapped_before: str | None
    runtime: str
    samples: str
    max_abs_error: float
    relative_error: float
    error: float
    tolerance: float
    excess: float
    passed: bool
    conclusive: bool

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON; a number that is not finite becomes None."""
        return {name: _finite(getattr(self, name)) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Verification:
    """The verdict, what it rests on, and every comparison behind it.

    `differences` says in sentences why the verdict is "different"; `warnings` says what limits it.
    """

    verdict: Verdict
    basis: Basis
    comparisons: tuple[Comparison, ...]
    differences: tuple[str, ...]
    warnings: tuple[str, ...]
    sample_count: int
    sample_kinds: tuple[str, ...]
    seed: int
    library: str
    rule: str

    @property
    def max_abs_error(self) -> float | None:
        """The largest error of all comparisons; None when there was none."""
        return max((one.max_abs_error for one in self.comparisons), default=None)

    @property
    def max_excess(self) -> float | None:
        """The largest share of its tolerance that an error took; None without a comparison."""
        return max((one.excess for one in self.comparisons), default=None)

    def accepted(self, *, strict: bool) -> bool:
        """Whether a user who asked for a proof got one.

        Without `strict` it is enough that nothing contradicts; with it, both runtimes must have
        judged and every output must have been exercised.
        """
        if strict:
            return self.verdict is Verdict.EQUIVALENT and self.basis is Basis.BOTH
        return self.verdict is not Verdict.DIFFERENT

    def to_dict(self) -> dict[str, Any]:
        """Return the whole outcome for JSON, with None where a number is not finite."""
        return {
            "verdict": self.verdict.value,
            "basis": self.basis.value,
            "library": self.library,
            "rule": self.rule,
            "seed": self.seed,
            "sample_count": self.sample_count,
            "sample_kinds": list(self.sample_kinds),
            "max_abs_error": _finite(self.max_abs_error),
            "differences": list(self.differences),
            "warnings": list(self.warnings),
            "comparisons": [one.to_dict() for one in self.comparisons],
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
