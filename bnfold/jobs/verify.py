"""Verifying two files: how that is asked for, and whether a model has to run for it at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnfold.errors import VerificationImpossibleError
from bnfold.jobs.staging import Staging, check_target
from bnfold.model.container.model_file import held, unchanged
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where
from bnfold.model.container.store import Copies
from bnfold.running import options, requirements, safety
from bnfold.running.deployed.opening import kind_of
from bnfold.running.options import (
    MEASURED,
    RANDOM,
    SAFELY,
    UNBOUNDED,
    Bounds,
    Loading,
    Samples,
    Tolerance,
)
from bnfold.verification import Verification
from bnfold.verification.deployed import verify_deployed
from bnfold.verification.replay import Keep, Replay
from bnfold.verification.unchanged import unchanged as same_files
from bnfold.verification.verify import verify


@dataclass(frozen=True)
class Proof:
    """How a result is to be verified.

    Attributes:
        loading: how the files are loaded.
        samples: what both models are run on.
        tolerance: what is allowed instead of the tolerance that is measured.
        strict: refuse a verdict that does not rest on both Keras and ONNX Runtime.
        bounds: what is asked of the figures.
    """

    loading: Loading = SAFELY
    samples: Samples = RANDOM
    tolerance: Tolerance = MEASURED
    strict: bool = False
    bounds: Bounds = UNBOUNDED

    def __post_init__(self) -> None:
        """See that every value means something. Raises TypeError."""
        options.checked(self, strict=options.flag("strict", self.strict))

    def require(self, command: str) -> None:
        """See that the libraries of a command are there. Raises VerificationImpossibleError."""
        requirements.require(command, everything=self.strict)

    def run(
        self,
        original: Where,
        folded: Where,
        progress: Callable[[str], None] | None,
        *,
        is_changed: bool = True,
        as_called: bool = True,
        sha256: Sequence[str] = (),
        save_samples: Path | None = None,
    ) -> Verification:
        """Judge whether two files compute the same; both must have one of these digests, if any.

        The second may be a deployed model: an ONNX or LiteRT file, or a SavedModel. The samples
        that showed most go to `save_samples`, an `.npz` file. Without `as_called` two Keras models
        are not compared as `model(x)`, only for inference.

        Where nothing was folded and so nothing should have been changed, the files are compared,
        and models are run only if that does not settle it.

        Raises what `verify` raises, VerificationImpossibleError before anything is read where
        the libraries for it are not installed, and OutputError where samples cannot be saved.
        """
        if save_samples is not None:
            check_target(save_samples, "samples", force=True)
        if isinstance(original, Remote) or isinstance(folded, Remote):
            self.require("verify")
            with Copies() as copies:
                found = self.run(
                    copies.of(original),
                    copies.of(folded),
                    progress,
                    is_changed=is_changed,
                    as_called=as_called,
                    sha256=sha256,
                    save_samples=save_samples,
                )
                return found.reworded(copies.said)
        kept: list[Replay] = []
        format_ = kind_of(folded)
        self.require("verify" if format_ is None else f"verify {format_}")
        if format_ is not None:
            with held([original], sha256), unchanged([folded], sha256):
                found = verify_deployed(
                    original,
                    folded,
                    loading=self.loading,
                    samples=self.samples,
                    tolerance=self.tolerance,
                    progress=progress,
                    bounds=self.bounds,
                    keep=kept.append,
                )
        else:
            with held([original, folded], sha256):
                found = self._judged(
                    original,
                    folded,
                    progress,
                    is_changed=is_changed,
                    as_called=as_called,
                    keep=kept.append,
                )
        if save_samples is not None:
            _save(save_samples, kept)
        return found

    def _judged(
        self,
        original: Path,
        folded: Path,
        progress: Callable[[str], None] | None,
        *,
        is_changed: bool,
        as_called: bool,
        keep: Keep,
    ) -> Verification:
        if not is_changed and self.samples.data is None:
            if not self.loading.trust:
                safety.refuse_code(safety.read_facts(original))
            if (found := same_files(original, folded, self.samples.seed)) is not None:
                return found
        return verify(
            original,
            folded,
            loading=self.loading,
            samples=self.samples,
            tolerance=self.tolerance,
            progress=progress,
            as_called=as_called,
            bounds=self.bounds,
            keep=keep,
        )


def _save(path: Path, kept: Sequence[Replay]) -> None:
    """Write what was kept. Raises OutputError, and VerificationImpossibleError for nothing."""
    if not kept:
        raise VerificationImpossibleError(
            f"{printable(str(path))}: no samples were run, so that there are none to save"
        )
    with Staging(path, "samples", force=True) as staging:
        arrays = kept[-1].arrays()
        texts = {
            name: one.astype("str") if one.dtype.hasobject else one for name, one in arrays.items()
        }
        np.savez_compressed(staging.path, allow_pickle=False, **texts)
        staging.publish()
