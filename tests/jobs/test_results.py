"""What the results of the API are where a yes or no is asked of them: `assert bnfold.verify(a, b)`.

No model is run here: the values are made, or come from a file alone.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from archives import keras_file

import bnfold
from bnfold.jobs.export import ExportReport, TargetReport
from bnfold.jobs.recalibrate import Check, RecalibrationReport
from bnfold.verification import Verdict, Verification
from bnfold.verification.result import Accuracy, Basis, Comparison, Site, SiteStatus
from bnfold.verification.trial import Check as ExportCheck

PROVED = Verification(Verdict.EQUIVALENT, Basis.BOTH, (), (), 0, "keras", "rule")


@pytest.mark.parametrize(
    ("verdict", "holds", "accepted"),
    [("equivalent", True, True), ("different", False, False), ("undecided", False, True)],
)
def test_a_verification_is_true_where_the_models_are_equivalent(
    verdict: str, holds: bool, accepted: bool
) -> None:
    """What is undecided is not proved, although nothing contradicts it."""
    result = replace(PROVED, verdict=Verdict(verdict))
    assert bool(result) is holds
    assert result.accepted() is result.accepted(strict=False) is accepted
    assert result.accepted(strict=True) is holds


def test_a_strict_acceptance_asks_for_more_than_the_verdict() -> None:
    one_runtime = replace(PROVED, basis=Basis.KERAS)
    not_heard = replace(PROVED, sites=(Site("norm", 0, SiteStatus.NOT_EXERCISED),))
    for result in (one_runtime, not_heard):
        assert bool(result) is result.accepted() is True
        assert not result.accepted(strict=True)


def test_what_was_not_exercised_is_the_worst_of_nothing() -> None:
    """Its tolerance is next to nothing, and so is the share of it that an error takes."""
    near = Accuracy(1e-7, 1e-7, 140.0)
    output = Comparison(
        name="output", is_output=True, tapped_before=None, runtime="keras", samples="normal",
        original=None, folded=near, error=1e-7, tolerance=1e-6, excess=0.1, passed=True,
        channels=2, exercised=2,
    )  # fmt: skip
    still = replace(output, name="still", is_output=False, excess=0.9, exercised=0)
    result = replace(PROVED, comparisons=(output, still))
    assert result.worst is output
    assert result.max_excess == 0.1
    assert replace(PROVED, comparisons=(still,)).worst is None
    off = replace(still, excess=3.0, passed=False)  # and that is told, whatever was exercised
    assert replace(PROVED, comparisons=(output, off)).worst is off


def test_a_report_on_a_file_is_true_where_the_file_was_written(tmp_path: Path) -> None:
    model = keras_file(tmp_path / "m.keras")
    folded = bnfold.fold(model, tmp_path / "out.keras", verify=False)
    target = TargetReport(tmp_path / "m.onnx", "onnx", "float32", written=True, opset=15)
    exported = ExportReport(model, (target,), None, (), (), None)
    estimated = RecalibrationReport(
        source=model,
        target=tmp_path / "out.keras",
        written=True,
        container="keras",
        samples=2,
        passes=1,
        work=1.0,
        recalibrated=(),
        kept=(),
        check=Check(("norm",), 0.0),
    )
    for report in (folded, estimated):
        assert bool(report) is True
        assert bool(replace(report, written=False)) is False
    assert bool(exported) is True
    refused = replace(target, written=False)
    assert bool(replace(exported, targets=(target, refused))) is False


def test_a_check_is_true_where_it_passed() -> None:
    assert Check(("norm",), 1e-4)
    assert not Check(("norm",), 1e-2)
    passed = ExportCheck(Verdict.EQUIVALENT, Basis.BOTH, (), (), 0, "keras", "")
    assert passed
    assert not replace(passed, verdict=Verdict.DIFFERENT)
    assert not replace(passed, verdict=Verdict.UNDECIDED)


def test_what_has_no_yes_or_no_refuses(tmp_path: Path) -> None:
    inspection = bnfold.inspect(keras_file(tmp_path / "m.keras"))
    with pytest.raises(TypeError, match="neither true nor false: look at its findings"):
        bool(inspection)
    times = bnfold.BenchReport(Path("a"), None, None, None, 1.0, 0, (), ())
    with pytest.raises(TypeError, match="neither true nor false: look at its results"):
        bool(times)
