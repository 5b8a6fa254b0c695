"""The order of a verification: refuse, load, compare the interface, run, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bnfold.running import borrowing, ports, session
from bnfold.running.libraries import CannotRunError
from bnfold.running.onnx_runner import Exports
from bnfold.running.options import MEASURED, RANDOM, SAFELY, Loading, Samples, Tolerance
from bnfold.supervision import link
from bnfold.verification.case import Case, closer, prepare
from bnfold.verification.exercise import Gap, further
from bnfold.verification.result import Basis, Verdict, Verification
from bnfold.verification.runs import Gathering
from bnfold.verification.tolerance import Rule
from bnfold.verification.verdict import conclude


@borrowing.guest()
def verify(
    original: Path,
    folded: Path,
    *,
    loading: Loading = SAFELY,
    samples: Samples = RANDOM,
    tolerance: Tolerance = MEASURED,
    progress: Callable[[str], None] | None = None,
    as_called: bool = True,
) -> Verification:
    """Judge whether `folded` computes what `original` computes.

    `loading` says how the files are loaded, `samples` what both are run on, `tolerance` what is
    allowed instead of the measured tolerance. `progress` is called with the name of each stage.
    Without `as_called` nothing is asked of `model(x)`, in which layers may be in training mode.

    Raises UnreadableModelError, UnsafeModelError, VerificationImpossibleError when neither Keras
    nor ONNX Runtime can run the models, and BnfoldError for data that does not fit.
    """
    report = link.told(progress)
    opening = session.look([Path(original), Path(folded)], loading, samples)
    rule, data, seed = Rule(tolerance), opening.data, samples.seed
    try:
        pair = session.open_models(opening, report)
    except CannotRunError as error:
        difference = f"Keras loads the original but not the other model: {error}"
        return _without_runs([difference], seed, rule, "keras")
    differences = ports.differences(*(ports.interface(loaded.model) for loaded in pair))
    if differences:
        return _without_runs(differences, seed, rule, pair[0].library)
    case = prepare(pair[0], pair[1], data, seed)
    if not as_called:
        case = replace(case, as_called=(), warnings=(*case.warnings, _INFERENCE_ALONE))
    exports = Exports(case.original), Exports(case.folded)
    case, found, gaps = _judged(case, rule, report, exports)
    if gaps and data is None:
        report("looking for samples that reach further")
        longer = further(case, [gap.crossing for gap in gaps])
        if len(longer.sets) > len(case.sets):
            _, found, _ = _judged(longer, rule, report, exports)
    return found


_INFERENCE_ALONE = "the models were compared for inference only, as was promised"


def _judged(
    case: Case, rule: Rule, report: Callable[[str], None], exports: tuple[Exports, Exports]
) -> tuple[Case, Verification, list[Gap]]:
    """The verdict on a case, and what was not exercised.

    Most models pass with the first roundings that are drawn. Only where one does not is the case
    looked at more closely; it is returned as it was judged in the end.
    """
    found, gaps = conclude(case, rule, Gathering(case, rule, report, exports).run())
    if found.verdict is Verdict.DIFFERENT and case.is_quick:
        report("looking closer")
        return _judged(closer(case), rule, report, exports)
    return case, found, gaps


def _without_runs(differences: Sequence[str], seed: int, rule: Rule, library: str) -> Verification:
    return Verification(
        Verdict.DIFFERENT, Basis.INTERFACE, tuple(differences), (), seed, library, rule.text()
    )
