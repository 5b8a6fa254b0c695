"""The order of a verification: refuse, load, compare the interface, run, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bnfold.running import borrowing, ports, session
from bnfold.running.libraries import CannotRunError
from bnfold.running.onnx_runner import Exports
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
from bnfold.supervision import link
from bnfold.verification.bounds import held_to
from bnfold.verification.case import Case, closer, prepare
from bnfold.verification.exercise import Gap, further
from bnfold.verification.replay import Keep, replay
from bnfold.verification.result import Basis, Verdict, Verification
from bnfold.verification.runs import Evidence, Gathering
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
    bounds: Bounds = UNBOUNDED,
    keep: Keep | None = None,
) -> Verification:
    """Judge whether `folded` computes what `original` computes.

    `loading` says how the files are loaded, `samples` what both are run on, `tolerance` what is
    allowed instead of the measured tolerance. `progress` is called with the name of each stage.
    Without `as_called` nothing is asked of `model(x)`, in which layers may be in training mode.
    `bounds` are for the figures; `keep` is given the samples that showed most.

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
    case = replace(case, counts_all=bounds.max_changed is not None)
    exports = Exports(case.original), Exports(case.folded)
    case, evidence, found, gaps = _judged(case, rule, report, exports)
    if gaps and data is None:
        report("looking for samples that reach further")
        longer = further(case, [gap.crossing for gap in gaps])
        if len(longer.sets) > len(case.sets):
            case, evidence, found, _ = _judged(longer, rule, report, exports)
    if keep is not None:
        names = [port.name for port in ports.interface(pair[0].model).inputs]
        keep(replay(found, names, case.sets, evidence.computed))
    return held_to(replace(found, is_user_data=data is not None), bounds)


_INFERENCE_ALONE = "the models were compared for inference only, as was promised"


def _judged(
    case: Case, rule: Rule, report: Callable[[str], None], exports: tuple[Exports, Exports]
) -> tuple[Case, Evidence, Verification, list[Gap]]:
    """The verdict on a case, with what it comes of, and what was not exercised.

    Most models pass with the first roundings that are drawn. Only where one does not is the case
    looked at more closely; it is returned as it was judged in the end.
    """
    evidence = Gathering(case, rule, report, exports).run()
    found, gaps = conclude(case, rule, evidence)
    if found.verdict is Verdict.DIFFERENT and case.is_quick:
        report("looking closer")
        return _judged(closer(case), rule, report, exports)
    return case, evidence, found, gaps


def _without_runs(differences: Sequence[str], seed: int, rule: Rule, library: str) -> Verification:
    return Verification(
        Verdict.DIFFERENT, Basis.INTERFACE, tuple(differences), (), seed, library, rule.text()
    )
