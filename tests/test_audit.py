"""Each health rule on a layer that has its defect, on one that is healthy, and at its edges."""

from typing import Any

import numpy as np
import pytest

from bnfold.audit import RULES, Severity, audit
from bnfold.folding.plan import Blocked, Fold, Plan
from bnfold.model.batchnorm import BatchNorm
from bnfold.model.graph import Layer, Weight

HEALTHY: dict[str, Any] = {
    "gamma": [1.0, -0.5, 0.8, 1.2],
    "beta": [0.1, 0.0, -0.3, 0.2],
    "moving_mean": [0.5, -0.2, 0.1, 0.0],
    "moving_variance": [0.9, 1.4, 0.3, 1.0],
}


def planned(*, batch_statistics: bool = False, config: Any = None, **vectors: Any) -> Plan:
    """The plan for one layer with some of its vectors replaced."""
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
    if batch_statistics:
        return Plan((Blocked(batchnorm, None, "it is called with training=True", True),))
    return Plan((Fold(batchnorm, "backward", ()),))


def found(plan: Plan) -> dict[str, Severity]:
    """The codes that the rules report, with their severity."""
    return {finding.code: finding.severity for finding in audit(plan)}


def message(plan: Plan, code: str) -> str:
    return next(finding.message for finding in audit(plan) if finding.code == code)


ONES, ZEROS = [1.0] * 4, [0.0] * 4

CASES: dict[str, tuple[Plan, dict[str, Severity]]] = {
    "healthy": (planned(), {}),
    "batch statistics": (planned(batch_statistics=True), {"BN007": Severity.ERROR}),
    "never updated": (
        planned(moving_mean=ZEROS, moving_variance=ONES),
        {"BN101": Severity.ERROR},
    ),
    "never updated but frozen": (
        planned(moving_mean=ZEROS, moving_variance=ONES, config={"trainable": False}),
        {"BN008": Severity.INFO},
    ),
    "one mean updated": (
        planned(moving_mean=[0.0, 0.0, 1e-7, 0.0], moving_variance=ONES),
        {"BN102": Severity.ERROR},
    ),
    "one variance updated": (planned(moving_mean=ZEROS, moving_variance=[1.0, 1.0, 1.0, 1.01]), {}),
    "NaN in beta": (planned(beta=[0.0, np.nan, 0.0, 0.0]), {"BN104": Severity.ERROR}),
    "infinite gamma": (planned(gamma=[1.0, np.inf, 1.0, 1.0]), {"BN104": Severity.ERROR}),
    "NaN variance": (
        planned(moving_variance=[1.0, np.nan, 0.5, 1.0]),
        {"BN104": Severity.ERROR},
    ),
    "slightly negative variance": (
        planned(moving_variance=[1.0, -0.0005, 0.5, 1.0]),
        {"BN105": Severity.WARNING},
    ),
    "variance below minus epsilon": (
        planned(moving_variance=[1.0, -0.002, 0.5, 1.0]),
        {"BN105": Severity.ERROR},
    ),
    "constant channel, ordinary scale": (
        planned(moving_variance=[1.0, 1e-9, 0.5, 1.0]),
        {"BN005": Severity.INFO, "BN107": Severity.INFO},
    ),
    "constant channel, outstanding scale": (
        planned(moving_variance=[1.0, 1e-9, 0.5, 1.0], config={"epsilon": 1e-6}),
        {
            "BN004": Severity.INFO,
            "BN005": Severity.INFO,
            "BN107": Severity.WARNING,
            "BN403": Severity.WARNING,
        },
    ),
    "constant channel with gamma 0": (
        planned(
            moving_variance=[1.0, 1e-9, 0.5, 1.0],
            gamma=[1.0, 0.0, 1.0, 1.0],
            config={"epsilon": 1e-6},
        ),
        {
            "BN004": Severity.INFO,
            "BN005": Severity.INFO,
            "BN107": Severity.INFO,
            "BN201": Severity.WARNING,
        },
    ),
    "variance just above the share of epsilon": (
        planned(moving_variance=[1.0, 1.01e-5, 0.5, 1.0]),
        {"BN005": Severity.INFO},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings(case: str) -> None:
    given, expected = CASES[case]
    assert found(given) == expected


def test_a_message_names_how_many_channels_and_which() -> None:
    given = planned(moving_variance=[1.0, -0.0005, 0.5, -0.0001])
    assert "2 of 4 channels (1, 3)" in message(given, "BN105")


def test_a_message_names_the_vector_that_is_not_finite() -> None:
    assert "beta in 1 of 4 channels (1)" in message(planned(beta=[0, np.nan, 0, 0]), "BN104")


def test_every_rule_says_what_it_finds_in_one_line() -> None:
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    assert [rule.code for rule in RULES] == sorted(rule.code for rule in RULES)
    assert all(rule.summary.endswith(".") for rule in RULES)
