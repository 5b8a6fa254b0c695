"""Each health rule on a layer that has its defect, on one that is healthy, and at its edges."""

from typing import Any

import numpy as np
import pytest

from bnfold.audit import Severity, Subject
from bnfold.audit.rules import RULES
from bnfold.folding.plan import Blocked
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.graph import Layer, Weight

HEALTHY: dict[str, Any] = {
    "gamma": [1.0, -0.5, 0.8, 1.2],
    "beta": [0.1, 0.0, -0.3, 0.2],
    "moving_mean": [0.5, -0.2, 0.1, 0.0],
    "moving_variance": [0.9, 1.4, 0.3, 1.0],
}


def subject(*, batch_statistics: bool = False, config: Any = None, **vectors: Any) -> Subject:
    """A layer with some of its vectors replaced, as the rules see it."""
    values = {
        name: np.asarray(value, dtype=np.float32) for name, value in {**HEALTHY, **vectors}.items()
    }
    weights = tuple(
        Weight(array.shape, array.dtype, lambda array=array: array, name)
        for name, array in values.items()
    )
    layer = Layer(
        "bn", "BatchNormalization", {"epsilon": 1e-3, **(config or {})}, {}, weights=weights
    )
    batchnorm = BatchNorm(("bn",), layer)
    decision = Blocked(batchnorm, None, "it is called with training=True", batch_statistics)
    assert batchnorm.vectors is not None
    return Subject(batchnorm, batchnorm.vectors, decision)


def found(given: Subject) -> dict[str, Severity]:
    """The codes that the rules report, with their severity."""
    verdicts = {rule.code: rule.check(given) for rule in RULES}
    return {code: verdict.severity for code, verdict in verdicts.items() if verdict is not None}


def message(given: Subject, code: str) -> str:
    verdict = next(rule for rule in RULES if rule.code == code).check(given)
    assert verdict is not None
    return verdict.message


ONES, ZEROS = [1.0] * 4, [0.0] * 4

CASES: dict[str, tuple[Subject, dict[str, Severity]]] = {
    "healthy": (subject(), {}),
    "batch statistics": (subject(batch_statistics=True), {"BN007": Severity.ERROR}),
    "never updated": (
        subject(moving_mean=ZEROS, moving_variance=ONES),
        {"BN101": Severity.ERROR},
    ),
    "never updated but frozen": (
        subject(moving_mean=ZEROS, moving_variance=ONES, config={"trainable": False}),
        {},
    ),
    "one mean updated": (
        subject(moving_mean=[0.0, 0.0, 1e-7, 0.0], moving_variance=ONES),
        {"BN102": Severity.ERROR},
    ),
    "one variance updated": (subject(moving_mean=ZEROS, moving_variance=[1.0, 1.0, 1.0, 1.01]), {}),
    "NaN in beta": (subject(beta=[0.0, np.nan, 0.0, 0.0]), {"BN104": Severity.ERROR}),
    "infinite gamma": (subject(gamma=[1.0, np.inf, 1.0, 1.0]), {"BN104": Severity.ERROR}),
    "NaN variance": (
        subject(moving_variance=[1.0, np.nan, 0.5, 1.0]),
        {"BN104": Severity.ERROR},
    ),
    "slightly negative variance": (
        subject(moving_variance=[1.0, -0.0005, 0.5, 1.0]),
        {"BN105": Severity.WARNING},
    ),
    "variance below minus epsilon": (
        subject(moving_variance=[1.0, -0.002, 0.5, 1.0]),
        {"BN105": Severity.ERROR},
    ),
    "constant channel, ordinary scale": (
        subject(moving_variance=[1.0, 1e-9, 0.5, 1.0]),
        {"BN107": Severity.INFO},
    ),
    "constant channel, outstanding scale": (
        subject(moving_variance=[1.0, 1e-9, 0.5, 1.0], config={"epsilon": 1e-6}),
        {"BN107": Severity.WARNING},
    ),
    "constant channel with gamma 0": (
        subject(
            moving_variance=[1.0, 1e-9, 0.5, 1.0],
            gamma=[1.0, 0.0, 1.0, 1.0],
            config={"epsilon": 1e-6},
        ),
        {"BN107": Severity.INFO},
    ),
    "variance just above the share of epsilon": (
        subject(moving_variance=[1.0, 1.01e-5, 0.5, 1.0]),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings(case: str) -> None:
    given, expected = CASES[case]
    assert found(given) == expected


def test_a_message_names_how_many_channels_and_which() -> None:
    given = subject(moving_variance=[1.0, -0.0005, 0.5, -0.0001])
    assert "2 of 4 channels (1, 3)" in message(given, "BN105")


def test_a_message_names_the_vector_that_is_not_finite() -> None:
    assert "beta in 1 of 4 channels (1)" in message(subject(beta=[0, np.nan, 0, 0]), "BN104")


def test_every_rule_has_a_documented_section() -> None:
    from pathlib import Path

    text = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()
    for rule in RULES:
        assert f"## {rule.code} {rule.name}" in text
        assert rule.check.__doc__
