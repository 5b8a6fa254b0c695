"""The order of a verification: refuse, load, compare the interface, run, judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bnfold.running import borrowing, foresight, keras_graph, libraries, loading, safety
from bnfold.running.data import Source
from bnfold.running.libraries import CannotRunError
from bnfold.verification.case import closer, prepare
from bnfold.verification.exercise import further
from bnfold.verification.result import Basis, Verdict, Verification
from bnfold.verification.runs import Exports, gather
from bnfold.verification.tolerance import Rule
from bnfold.verification.verdict import conclude


@borrowing.guest()
def verify(
    original: Path,
    folded: Path,
    *,
    data: Source | None = None,
    seed: int = 0,
    trust: bool = False,
    imports: Sequence[str] = (),
    classes: Mapping[str, Any] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Judge whether `folded` computes what `original` computes.

    `data` are samples instead of generated ones, in a .npz or .npy file or as arrays; `trust`
    allows code from the files (Lambda layers and the like); `imports` are modules to import first
    because they register custom layers, `classes` such layers themselves by name; `rtol` and `atol`
    (relative to each channel's magnitude, absolute) replace the measured tolerance. `progress` is
    called with the name of each stage.

    Raises UnreadableModelError, UnsafeModelError, VerificationImpossibleError when neither Keras
    nor ONNX Runtime can run the models, and BnfoldError for data that does not fit.
    """
    report = progress or _silent
    files = [safety.read_facts(Path(path)) for path in (original, folded)]
    if not trust:
        for facts in files:
            safety.refuse_code(facts)
    data = foresight.look(files[0], imports, data)
    report("loading TensorFlow")
    libraries.start()
    report("loading the models")
    rule = Rule(rtol, atol)
    try:
        pair = loading.load_pair(files[0], files[1], imports, classes or {}, trust=trust)
    except CannotRunError as error:
        difference = f"Keras loads the original but not the other model: {error}"
        return _without_runs([difference], seed, rule, "keras")
    differences = keras_graph.differences(*(keras_graph.interface(loaded.model) for loaded in pair))
    if differences:
        return _without_runs(differences, seed, rule, pair[0].library)
    case = prepare(*pair, data, seed)
    exports = (Exports(case.original), Exports(case.folded))
    evidence = gather(case, rule, report, exports)
    found = conclude(case, rule, evidence)
    if evidence.gaps and data is None:
        report("looking for samples that reach further")
        longer = further(case, [gap.crossing for gap in evidence.gaps])
        if len(longer.sets) > len(case.sets):
            case = longer
            found = conclude(case, rule, gather(case, rule, report, exports))
    if case.is_quick and found.verdict is Verdict.DIFFERENT:
        report("looking closer")
        case = closer(case, data)
        found = conclude(case, rule, gather(case, rule, report, exports))
    return found


def _silent(_: str) -> None:
    """Report progress to nobody."""


def _without_runs(differences: Sequence[str], seed: int, rule: Rule, library: str) -> Verification:
    return Verification(
        Verdict.DIFFERENT, Basis.INTERFACE, tuple(differences), (), seed, library, rule.text()
    )
