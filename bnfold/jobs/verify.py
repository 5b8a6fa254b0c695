"""Verifying two files: how that is asked for, and whether a model has to run for it at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bnfold.model.container.model_file import held
from bnfold.running import options, requirements, safety
from bnfold.running.options import MEASURED, RANDOM, SAFELY, Loading, Samples, Tolerance
from bnfold.verification import Verification, verify
from bnfold.verification.unchanged import unchanged


@dataclass(frozen=True)
class Proof:
    """How a result is to be verified.

    Attributes:
        loading: how the files are loaded.
        samples: what both models are run on.
        tolerance: what is allowed instead of the tolerance that is measured.
        strict: refuse a verdict that does not rest on both Keras and ONNX Runtime.
    """

    loading: Loading = SAFELY
    samples: Samples = RANDOM
    tolerance: Tolerance = MEASURED
    strict: bool = False

    def __post_init__(self) -> None:
        """See that every value means something. Raises TypeError."""
        options.checked(self, strict=options.flag("strict", self.strict))

    def require(self, command: str) -> None:
        """See that the libraries of a command are there. Raises VerificationImpossibleError."""
        requirements.require(command, everything=self.strict)

    def run(
        self,
        original: Path,
        folded: Path,
        progress: Callable[[str], None] | None,
        *,
        is_changed: bool = True,
        as_called: bool = True,
        sha256: Sequence[str] = (),
    ) -> Verification:
        """Judge whether two files compute the same; both must have one of these digests, if any.

        Without `as_called` they are not compared as `model(x)`, only for inference.

        Where nothing was folded and so nothing should have been changed, the files are compared,
        and models are run only if that does not settle it.

        Raises what `verify` raises, and VerificationImpossibleError before anything is read where
        the libraries for it are not installed.
        """
        self.require("verify")
        with held([original, folded], sha256):
            return self._judged(
                original, folded, progress, is_changed=is_changed, as_called=as_called
            )

    def _judged(
        self,
        original: Path,
        folded: Path,
        progress: Callable[[str], None] | None,
        *,
        is_changed: bool,
        as_called: bool,
    ) -> Verification:
        if not is_changed and self.samples.data is None:
            if not self.loading.trust:
                safety.refuse_code(safety.read_facts(original))
            if (found := unchanged(original, folded, self.samples.seed)) is not None:
                return found
        return verify(
            original,
            folded,
            loading=self.loading,
            samples=self.samples,
            tolerance=self.tolerance,
            progress=progress,
            as_called=as_called,
        )
