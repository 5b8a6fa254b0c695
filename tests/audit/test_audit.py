"""Each health rule on a layer that has its defect, on one that is healthy, and at its edges.

The models are written as Keras writes them, without Keras: a Dense, the layer, and what is behind.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnfold.audit import RULES, Finding, Rule, Severity, Thresholds, audit, joined
from bnfold.folding.plan import plan
from bnfold.model.graph import Graph, LayerPath, Weight
from bnfold.model.keras_json import parse_model
from bnfold.model.optimizer import Optimizer
from bnfold.model.training import KERAS_3, Use

HEALTHY: dict[str, Any] = {
    "gamma": [1.0, -0.5, 0.8, 1.2],
    "beta": [0.1, 0.0, -0.3, 0.2],
    "moving_mean": [0.5, -0.2, 0.1, 0.0],
    "moving_variance": [0.9, 1.4, 0.3, 1.0],
}
KERNEL = np.array([[1.0, -0.5, 0.7, 0.9], [0.3, 0.8, -1.0, 0.2], [-0.6, 1.0, 0.1, 1.0]])
ONES, ZEROS = [1.0] * 4, [0.0] * 4

Layers = tuple[tuple[str, dict[str, Any]], ...]


def entry(class_name: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    module = "keras.layers"
    config = {"name": name, **config}
    return {"module": module, "class_name": class_name, "config": config, "registered_name": None}


def weight(name: str, values: Any, dtype: str) -> Weight:
    array = np.asarray(values, dtype)
    return Weight(array.shape, array.dtype, lambda: array, name)


def model(
    *,
    config: dict[str, Any] | None = None,
    behind: Layers = (),
    kernel: Any = KERNEL,
    bias: Any = None,
    dense: bool = True,
    dtype: str = "float32",
    policy: str = "float32",
    **vectors: Any,
) -> Graph:
    """Input, Dense, the layer, and what is behind; some vectors of the layer replaced."""
    values = {**HEALTHY, **vectors}
    channels = len(values["gamma"])
    settings = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, **(config or {})}
    listed = [
        entry("InputLayer", "input", {"batch_shape": [None, 3 if dense else channels]}),
        entry("Dense", "dense", {"units": channels, "use_bias": bias is not None, "dtype": policy}),
        entry("BatchNormalization", "bn", {**settings, "dtype": policy}),
        *(entry(kind, f"layer_{n}", {**c, "dtype": policy}) for n, (kind, c) in enumerate(behind)),
    ]
    layers = [one for one in listed if dense or one["class_name"] != "Dense"]
    root = {"class_name": "Sequential", "module": "keras", "config": {"layers": layers}}
    graph = parse_model({**root, "registered_name": "Sequential"})
    weights = {"bn": tuple(weight(name, value, dtype) for name, value in values.items())}
    if dense:
        weights["dense"] = (weight("kernel", np.asarray(kernel)[:, :channels], dtype),)
        weights["dense"] += () if bias is None else (weight("bias", bias, dtype),)
    for name, variables in weights.items():
        graph = graph.with_layer(replace(graph.layers[name], weights=variables))
    return graph


def findings(
    graph: Graph, *, steps: Mapping[LayerPath, int] | None = None, **options: Any
) -> dict[str, Finding]:
    """The findings by their codes, on a model whose optimizers made so many steps."""
    optimizers = None if steps is None else {p: optimizer(made) for p, made in steps.items()}
    found = audit(plan(graph), optimizers=optimizers, **options)
    return {finding.code: finding for finding in found}


def optimizer(steps: int) -> Optimizer:
    """One of which nothing is known but how many steps it made."""
    return Optimizer(None, steps, lambda: iter(()))


def codes(graph: Graph, **options: Any) -> dict[str, str]:
    """The codes that the rules report, with their severity."""
    return {code: found.severity.value for code, found in findings(graph, **options).items()}


def powers(count: int, momentum: float = 0.99) -> list[float]:
    """What so many updates with a variance of 0 leave of 1, in float32, as Keras computes it."""
    value = np.float32(1)
    for _ in range(count):
        value = np.float32(value * np.float32(momentum))
    return [float(value)] * 4


RELU: Layers = (("ReLU", {}),)
RELU6: Layers = (("ReLU", {"max_value": 6.0}),)

# The layer, as arguments of `model`, and the findings on it.
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "healthy": ({}, {}),
    "healthy, with a ReLU": ({"behind": RELU}, {}),
    "momentum above 1": ({"config": {"momentum": 1.01}}, {"BN001": "error"}),
    "momentum below 0": ({"config": {"momentum": -0.1}}, {"BN001": "error"}),
    "momentum infinite": ({"config": {"momentum": float("inf")}}, {"BN001": "error"}),
    "epsilon 0": ({"config": {"epsilon": 0.0}}, {"BN001": "error"}),
    "epsilon negative": ({"config": {"epsilon": -1e-3}}, {"BN001": "error"}),
    "epsilon infinite": (
        {"config": {"epsilon": float("inf")}},
        {"BN001": "error"},
    ),
    "epsilon unknown": (
        {"config": {"epsilon": None}},
        {"BN011": "warning", "BN303": "info"},
    ),
    "momentum unknown": ({"config": {"momentum": None}}, {"BN011": "warning"}),
    "axis unknown": (
        {"config": {"axis": "1"}},
        {"BN011": "warning", "BN303": "info"},
    ),
    "momentum 1": ({"config": {"momentum": 1}}, {"BN002": "warning"}),
    "momentum 0": ({"config": {"momentum": 0.0}}, {"BN002": "warning"}),
    "momentum 0.1": ({"config": {"momentum": 0.1}}, {"BN003": "warning"}),
    "momentum 0.5": ({"config": {"momentum": 0.5}}, {}),
    "momentum 0 of a frozen layer": (
        {"config": {"momentum": 0.0, "trainable": False}},
        {"BN008": "info"},
    ),
    "momentum 0.1 of a frozen layer": (
        {"config": {"momentum": 0.1, "trainable": False}},
        {"BN008": "info"},
    ),
    "epsilon 1e-5": ({"config": {"epsilon": 1e-5}}, {"BN004": "info"}),
    "epsilon 1.001e-5": ({"config": {"epsilon": 1.001e-5}}, {}),
    "epsilon large": ({"config": {"epsilon": 0.2}}, {"BN005": "info"}),
    "variance small beside epsilon": (
        {"moving_variance": [1.0, 0.0089, 0.5, 1.0]},
        {"BN005": "info"},
    ),
    "variance not so small": ({"moving_variance": [1.0, 0.0091, 0.5, 1.0]}, {}),
    "synchronized": ({"config": {"synchronized": True}}, {"BN010": "info"}),
    "never updated": (
        {"moving_mean": ZEROS, "moving_variance": ONES},
        {"BN101": "error"},
    ),
    "never updated but frozen": (
        {"moving_mean": ZEROS, "moving_variance": ONES, "config": {"trainable": False}},
        {"BN008": "info", "BN101": "warning"},
    ),
    "one mean updated": (
        {"moving_mean": [0.0, 0.0, 1e-7, 0.0], "moving_variance": ONES},
        {"BN102": "error"},
    ),
    "one variance updated": ({"moving_mean": ZEROS, "moving_variance": [1.0, 1.0, 1.0, 1.01]}, {}),
    "NaN in beta": ({"beta": [0.0, np.nan, 0.0, 0.0]}, {"BN104": "error"}),
    "infinite gamma": ({"gamma": [1.0, np.inf, 1.0, 1.0]}, {"BN104": "error"}),
    "NaN variance": ({"moving_variance": [1.0, np.nan, 0.5, 1.0]}, {"BN104": "error"}),
    "NaN beside all other defects": (
        {
            "gamma": [np.nan, 0.0, 1e9, 0.0],
            "beta": [0.0, -9.0, 99.0, 0.0],
            "moving_mean": [np.inf, 1e9, 0.0, 0.0],
            "moving_variance": [-1.0, 0.0, 1e30, 1e-30],
            "behind": RELU,
        },
        {"BN104": "error"},
    ),
    "slightly negative variance": (
        {"moving_variance": [1.0, -0.0005, 0.5, 1.0]},
        {"BN105": "warning", "BN402": "info"},
    ),
    "variance of minus epsilon": (
        {"moving_variance": [1.0, -0.001, 0.5, 1.0], "config": {"epsilon": 0.001}, "dtype": "f8"},
        {"BN105": "error"},
    ),
    "variance of minus epsilon, rounded up": (
        {"moving_variance": [1.0, -1e-5, 0.5, 1.0], "config": {"epsilon": 1e-5}},
        {"BN004": "info", "BN105": "error", "BN402": "warning"},
    ),
    "variance below minus epsilon": (
        {"moving_variance": [1.0, -0.002, 0.5, 1.0]},
        {"BN105": "error"},
    ),
    "every variance m^1": ({"moving_variance": powers(1)}, {"BN106": "warning"}),
    "every variance m^900": (
        {"moving_variance": powers(900)},
        {"BN005": "info", "BN106": "warning"},
    ),
    "every variance m^40, m = 0.9": (
        {"moving_variance": powers(40, 0.9), "config": {"momentum": 0.9}},
        {"BN106": "warning"},
    ),
    "every variance the same, but no power": ({"moving_variance": [0.985] * 4}, {}),
    "float16 cannot tell powers apart": (
        {"moving_variance": [0.602] * 4, "dtype": "float16"},
        {},
    ),
    "one variance is no power": ({"moving_variance": [0.99, 0.99, 0.99, 0.9]}, {}),
    "every variance 0": (
        {"moving_variance": ZEROS},
        {"BN005": "info", "BN106": "warning"},
    ),
    "every variance above 1 and the same": ({"moving_variance": [1 / 0.99] * 4}, {}),
    "constant channel, ordinary scale": (
        {"moving_variance": [1.0, 1e-9, 0.5, 1.0]},
        {"BN005": "info", "BN107": "info"},
    ),
    "constant channel, outstanding scale": (
        {"moving_variance": [1.0, 1e-9, 0.5, 1.0], "config": {"epsilon": 1e-6}},
        {
            "BN004": "info",
            "BN005": "info",
            "BN107": "warning",
            "BN402": "warning",
            "BN403": "warning",
        },
    ),
    "constant channel with gamma 0": (
        {
            "moving_variance": [1.0, 1e-9, 0.5, 1.0],
            "gamma": [1.0, 0.0, 1.0, 1.0],
            "config": {"epsilon": 1e-6},
        },
        {"BN004": "info", "BN005": "info", "BN107": "info", "BN201": "warning"},
    ),
    "constant channel of the model's input, outstanding scale": (
        {
            "moving_variance": [1.0, 0.0, 0.5, 1.0],
            "config": {"epsilon": 1e-6},
            "dense": False,
            "behind": (("Dense", {"units": 2}),),
        },
        {"BN004": "info", "BN005": "info", "BN107": "info", "BN303": "info", "BN403": "info"},
    ),
    "variance just above the share of epsilon": (
        {"moving_variance": [1.0, 1.01e-5, 0.5, 1.0]},
        {"BN005": "info"},
    ),
    "mean of 1001 deviations": (
        {"moving_mean": [0.0, 1001.0, 0.0, 0.0], "moving_variance": [0.5, 0.999, 0.5, 0.5]},
        {"BN108": "warning"},
    ),
    "mean of 999 deviations": (
        {"moving_mean": [0.0, -999.0, 0.0, 0.0], "moving_variance": [0.5, 0.999, 0.5, 0.5]},
        {},
    ),
    "mean of a constant channel": (
        {"moving_mean": [0.0, 255.0, 0.0, 0.0], "moving_variance": [1.0, 0.0, 0.5, 0.7]},
        {"BN005": "info", "BN107": "info"},
    ),
    "variance beyond float16, in float32": (
        {"moving_variance": [1e5, 2e5, 1.2e5, 9e4], "gamma": ONES},
        {},
    ),
    "silent, one of four": ({"gamma": [1.0, 0.00099, 1.0, 1.0]}, {"BN201": "warning"}),
    "small but not silent": ({"gamma": [0.02, 0.01, 0.02, 0.02]}, {}),
    "silent, two of twenty": (
        {
            name: np.resize(values, 20)
            if name != "gamma"
            else [1e-4, -1e-4, *np.linspace(0.5, 1.5, 18)]
            for name, values in HEALTHY.items()
        }
        | {"kernel": np.resize(KERNEL, (3, 20))},
        {"BN201": "info"},
    ),
    "dead before a ReLU": ({"beta": [0.0, -1.51, 0.0, 0.0], "behind": RELU}, {"BN202": "warning"}),
    "not quite dead": ({"beta": [0.0, -1.49, 0.0, 0.0], "behind": RELU}, {}),
    "negative without a ReLU": ({"beta": [0.0, -9.0, 0.0, 0.0]}, {}),
    "gamma and beta 0 before a ReLU": (
        {"gamma": [1.0, 0.0, 1.0, 1.0], "beta": ZEROS, "behind": RELU},
        {"BN201": "warning", "BN202": "error"},
    ),
    "gamma 0, beta positive before a ReLU": (
        {"gamma": [1.0, 0.0, 1.0, 1.0], "beta": ONES, "behind": RELU},
        {"BN201": "warning"},
    ),
    "linear through a ReLU": ({"beta": [0.0, 1.51, 0.0, 0.0], "behind": RELU}, {"BN203": "info"}),
    "linear through a ReLU6": ({"beta": [0.0, 3.0, 0.0, 0.0], "behind": RELU6}, {"BN203": "info"}),
    "reaches both ends of a ReLU6": ({"beta": [0.0, 5.0, 0.0, 0.0], "behind": RELU6}, {}),
    "above a ReLU6": ({"beta": [0.0, 7.51, 0.0, 0.0], "behind": RELU6}, {"BN203": "info"}),
    "above 6 before a plain ReLU": (
        {"beta": [0.0, 7.51, 0.0, 0.0], "behind": RELU},
        {"BN203": "info"},
    ),
    "constant above a ReLU": (
        {"gamma": [1.0, 0.0, 1.0, 1.0], "beta": [0.0, 9.0, 0.0, 0.0], "behind": RELU},
        {"BN201": "warning"},
    ),
    "scale outlier": (
        {"gamma": [1.0, 1.0, 1.0, 101.0], "moving_variance": [1.0] * 3 + [0.99999]},
        {"BN402": "info", "BN403": "warning"},
    ),
    "no scale outlier": (
        {"gamma": [1.0, 1.0, 1.0, 99.0], "moving_variance": [1.0] * 3 + [1.0001]},
        {"BN402": "info"},
    ),
    "one that speaks among silent ones": (
        {"gamma": [0.0, 0.0, 0.0, 1.0]},
        {"BN201": "warning"},
    ),
    "uneven": ({"gamma": [1.0, 1.0, 1.0, 0.05]}, {"BN402": "info"}),
    "very uneven": ({"gamma": [1.0, 1.0, 1.0, 0.003]}, {"BN402": "warning"}),
    "uneven because dead": (
        {"moving_variance": [1.0, 1e-30, 0.5, 1.0], "kernel": KERNEL * [1, 1e-20, 1, 1]},
        {"BN005": "info", "BN107": "info"},
    ),
    "uneven because of a dead one": (
        {"moving_variance": [1.0, 0.0, 1.0, 1.0], "gamma": [1.0, 1.0, 1.0, 1.0]},
        {"BN005": "info", "BN107": "info", "BN402": "info"},
    ),
    "one channel": ({name: values[:1] for name, values in HEALTHY.items()}, {}),
    "one channel, variance near a power": (
        {name: values[:1] for name, values in HEALTHY.items()} | {"moving_variance": powers(7)[:1]},
        {},
    ),
    "one channel never updated": (
        {"gamma": [1.0], "beta": [0.0], "moving_mean": [0.0], "moving_variance": [1.0]},
        {"BN101": "error"},
    ),
    "no channel": ({name: [] for name in HEALTHY}, {}),
    "huge numbers": (
        {
            "gamma": [3e38] * 4,
            "beta": [-3e38] * 4,
            "moving_mean": [3e38] * 4,
            "moving_variance": [3e38] * 4,
            "behind": RELU,
        },
        {"BN108": "warning", "BN401": "error"},
    ),
    "tiny numbers, which fold as constants": (
        {
            "gamma": [1e-45] * 4,
            "beta": [1e-45] * 4,
            "moving_mean": [1e-45] * 4,
            "moving_variance": [1e-45, 2e-45, 1e-45, 1e-45],
        },
        {"BN005": "info", "BN107": "info", "BN201": "warning"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings(case: str) -> None:
    given, expected = CASES[case]
    assert codes(model(**given)) == expected


def test_every_rule_has_a_case_or_needs_more_than_one_layer() -> None:
    seen = {code for _, expected in CASES.values() for code in expected}
    elsewhere = {"BN006", "BN007", "BN009", "BN012", "BN103", "BN109", "BN110", "BN301", "BN302"}
    elsewhere |= {rule.code for rule in RULES if rule.needs_data}
    without = sorted({rule.code for rule in RULES} - seen - elsewhere)
    assert without == [], "no case here; name it in `elsewhere` if test_audit_models.py has some"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_findings_have_only_the_levels_that_the_table_says(rule: Rule) -> None:
    levels = {expected.get(rule.code) for _, expected in CASES.values()} - {None}
    assert levels <= {severity.value for severity in rule.severities}


def test_the_remedy_for_an_unreadable_setting_replaces_no_layer() -> None:
    """It is Keras' own BatchNormalization already, and in no wrapper."""
    (found,) = [f for f in audit(plan(model(config={"epsilon": None}))) if f.code == "BN011"]
    assert found.remedy == "save the model again; or check its statistics yourself"


def test_the_order_is_that_of_the_codes() -> None:
    found = [finding.code for finding in audit(plan(model(**CASES["huge numbers"][0])))]
    assert found == sorted(found)


def test_only_the_rules_that_are_asked_speak() -> None:
    given = plan(model(moving_mean=ZEROS, moving_variance=ONES, config={"momentum": 1}))
    assert {f.code for f in audit(given)} == {"BN002", "BN101"}
    assert {f.code for f in audit(given, [r for r in RULES if r.code == "BN002"])} == {"BN002"}


# --- what is said --------------------------------------------------------------------------------


def test_a_message_names_how_many_channels_and_which() -> None:
    found = findings(model(moving_variance=[1.0, -0.0005, 0.5, -0.0001]))["BN105"]
    assert "2 of 4 channels (1, 3)" in found.message
    assert found.channels is not None
    assert (found.channels.count, found.channels.total, found.channels.first) == (2, 4, (1, 3))
    assert found.figures["lowest"] == pytest.approx(-0.0005)


def test_a_message_names_the_vector_that_is_not_finite() -> None:
    found = findings(model(beta=[0, np.nan, 0, 0]))["BN104"]
    assert "beta in 1 of 4 channels (1)" in found.message


def test_the_bound_on_a_dead_channel_needs_no_gaussian() -> None:
    # Cantelli: g^2 / (g^2 + b^2) = 0.25 / (0.25 + 4)
    found = findings(model(beta=[0.0, -2.0, 0.0, 0.0], behind=RELU))["BN202"]
    assert found.figures["bound"] == pytest.approx(0.25 / 4.25)
    assert "at least 94%" in found.message


def test_dead_channels_are_told_apart_from_those_that_are_likely_to_be() -> None:
    given = {"gamma": [0.0, 0.1, 1.0, 1.0], "beta": [0.0, -50.0, 0.0, 0.0]}
    found = findings(model(**given, behind=RELU))["BN202"]
    assert "beta not positive in 1 of 4 channels (0); beta + 3 abs(gamma) is" in found.message
    assert "negative in 1 of 4 channels (1)" in found.message
    assert "at least 99%" in found.message


def test_the_share_of_the_range_is_that_of_the_folded_kernel() -> None:
    kernel = np.array([[1.0, 2.0, -4.0, 0.5], [0.0, -8.0, 1.0, 0.25], [0.1, 1.0, 1.0, 0.1]])
    ones = {"moving_variance": [0.75] * 4, "config": {"epsilon": 0.25}}
    gamma = np.array([1.0, 1.0, 2.0, -0.25])
    found = findings(model(gamma=gamma, kernel=kernel, **ones))["BN402"]
    folded = np.abs(kernel * gamma)
    assert found.figures["share"] == pytest.approx(folded[:, 3].max() / folded.max())
    assert found.figures["bits"] == pytest.approx(8 + np.log2(0.125 / 8))
    assert found.channels is not None
    assert found.channels.first == (3,)
    assert "'dense'" in found.message


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "value", "given", "code"),
    [
        ("inverted_momentum", 0.8, {"config": {"momentum": 0.7}}, "BN003"),
        ("epsilon_share", 0.001, {}, "BN005"),
        ("vanishing_variance", 400.0, {}, "BN107"),
        ("outstanding_scale", 2.0, {"gamma": [3.0, 0.5, 0.5, 0.5]}, "BN403"),
        ("cancellation", 0.1, {}, "BN108"),
        ("quantization_info", 0.9, {}, "BN402"),
    ],
)
def test_a_threshold_decides(
    threshold: str, value: float, given: dict[str, Any], code: str
) -> None:
    assert code not in codes(model(**given))
    assert code in codes(model(**given), thresholds=Thresholds(**{threshold: value}))


@pytest.mark.parametrize(
    ("threshold", "value", "given", "code"),
    [
        ("silent_share", 0.3, {"gamma": [1.0, 0.0, 1.0, 1.0]}, "BN201"),
        ("quantization_warning", 0.001, {"gamma": [1.0, 1.0, 1.0, 0.003]}, "BN402"),
    ],
)
def test_a_threshold_decides_between_warning_and_info(
    threshold: str, value: float, given: dict[str, Any], code: str
) -> None:
    assert codes(model(**given))[code] == "warning"
    milder = Thresholds(**{threshold: value})
    assert codes(model(**given), thresholds=milder)[code] == "info"


@pytest.mark.parametrize(
    ("thresholds", "given", "expected"),
    [
        ({"unconverged_warning": 0.9}, {}, {"BN103": "error"}),  # after 30 steps
        ({"quantization_info": 1e-4}, {"gamma": [1.0, 1.0, 1.0, 0.003]}, {"BN402": "warning"}),
    ],
)
def test_a_milder_threshold_does_not_hide_what_is_worse(
    thresholds: dict[str, float], given: dict[str, Any], expected: dict[str, str]
) -> None:
    steps = None if given else {(): 30}
    graph = model(**(given or shrunk(30)))
    assert codes(graph, steps=steps, thresholds=Thresholds(**thresholds)) == expected


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1", None])
def test_a_threshold_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="the threshold cancellation must be a positive number"):
        Thresholds(cancellation=value)


# --- the dtype to run in -------------------------------------------------------------------------

WIDE: dict[str, Any] = {"moving_variance": [1e5, 9e4, 8e4, 7e4], "gamma": [300.0] * 4}


@pytest.mark.parametrize(
    ("policy", "target", "expected"),
    [
        ("float32", None, {}),
        ("float32", "float32", {}),
        ("float32", "bfloat16", {}),
        ("float32", "float16", {"BN109": "error"}),
        ("mixed_float16", None, {"BN109": "error"}),
        ("mixed_float16", "float32", {}),
        ("mixed_bfloat16", None, {}),
    ],
)
def test_a_variance_beyond_the_dtype(
    policy: str, target: str | None, expected: dict[str, str]
) -> None:
    assert codes(model(policy=policy, **WIDE), target_dtype=target) == expected


def test_the_largest_float16_counts_as_beyond_it() -> None:
    for variance, count in ((65504.0, 1), (65472.0, 0)):
        given = model(moving_variance=[variance] * 4, gamma=[200.0] * 4)
        assert len(codes(given, target_dtype="float16")) == count


LARGE: dict[str, Any] = {"gamma": [1e5, 9e4, 9e4, 9e4], "moving_variance": [1.0, 0.9, 0.9, 0.9]}


@pytest.mark.parametrize(
    ("policy", "target", "expected"),
    [
        ("float32", None, {}),
        ("float32", "bfloat16", {}),
        ("float32", "float16", {"BN401": "error"}),
        ("mixed_float16", None, {"BN401": "error"}),  # the plan refuses that by itself
        ("mixed_float16", "float32", {"BN303": "info"}),
    ],
)
def test_folded_weights_beyond_the_dtype(
    policy: str, target: str | None, expected: dict[str, str]
) -> None:
    assert codes(model(policy=policy, **LARGE), target_dtype=target) == expected


def test_a_folded_bias_beyond_the_dtype() -> None:
    given = model(beta=[0.0, 0.0, 7e4, 0.0])
    found = findings(given, target_dtype="float16")["BN401"]
    assert "bias would be up to 7e+04" in found.message
    assert found.channels is not None
    assert found.channels.first == (2,)
    assert findings(given) == {}


def test_folded_weights_below_the_smallest_number() -> None:
    given = model(gamma=[1.0, 2e-3, 1.0, 1.0], kernel=KERNEL * [1, 0.01, 1, 1])
    found = findings(given, target_dtype="float16")["BN401"]
    assert found.severity is Severity.WARNING
    assert found.channels is not None
    assert found.channels.first == (1,)
    assert "BN401" not in findings(given)


def test_a_kernel_that_was_as_small_before_loses_nothing() -> None:
    given = model(gamma=[1.0, 2e-3, 1.0, 1.0], kernel=KERNEL * [1, 1e-5, 1, 1])
    assert "BN401" not in findings(given, target_dtype="float16")


def test_a_kernel_that_is_not_finite_before_is_no_overflow() -> None:
    given = model(kernel=KERNEL * [1, np.nan, 1, 1])
    assert codes(given) == {"BN303": "info"}


def test_a_bias_that_is_not_finite_before_is_no_overflow() -> None:
    found = findings(model(bias=[0.0, np.nan, 0.0, 0.0]))
    assert set(found) == {"BN301", "BN303"}


def test_a_fold_into_another_norm_makes_no_kernel() -> None:
    given = model(dense=False, behind=(("BatchNormalization", {}), ("Dense", {"units": 2})))
    values = {**HEALTHY, "gamma": [1.0, 1.0, 1.0, 0.05]}
    variables = tuple(weight(name, value, "float32") for name, value in values.items())
    given = given.with_layer(replace(given.layers["layer_0"], weights=variables))
    (fold,) = plan(given).folds
    assert [absorber.layer for absorber in fold.absorbers] == [("bn",)]
    assert "BN402" not in codes(given)


def test_an_unknown_target_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="no target dtype: 'int8'; there are float16, bfloat16"):
        audit(plan(model()), target_dtype="int8")


# --- how often the statistics were updated -------------------------------------------------------


def shrunk(steps: int, momentum: float = 0.99) -> dict[str, Any]:
    """Statistics after so many steps with the healthy ones of every batch."""
    rest = momentum**steps
    return {
        "moving_mean": [(1 - rest) * mean for mean in HEALTHY["moving_mean"]],
        "moving_variance": [rest + (1 - rest) * v for v in HEALTHY["moving_variance"]],
        "config": {"momentum": momentum},
    }


@pytest.mark.parametrize(
    ("steps", "momentum", "expected"),
    [
        (1, 0.99, {"BN103": "error"}),
        (41, 0.99, {"BN103": "error"}),
        (45, 0.99, {"BN103": "warning"}),
        (298, 0.99, {"BN103": "warning"}),
        (299, 0.99, {}),
        (2994, 0.999, {"BN103": "warning"}),
        (2995, 0.999, {}),
        (3, 0.9, {"BN103": "error"}),
        (5, 0.9, {"BN103": "warning"}),
        (29, 0.9, {}),
    ],
)
def test_too_few_steps(steps: int, momentum: float, expected: dict[str, str]) -> None:
    # Variances about 1, as the initial one: what is initial is its weight.
    assert codes(model(**shrunk(steps, momentum)), steps={(): steps}) == expected


def test_the_weight_and_the_steps_that_are_needed() -> None:
    found = findings(model(**shrunk(50)), steps={(): 50})["BN103"]
    assert found.figures["weight"] == pytest.approx(0.99**50)
    assert found.figures["needed"] == 299
    assert "train for 299 steps or more" in found.remedy


def test_a_small_weight_is_much_beside_a_small_variance() -> None:
    rest = 0.99**345  # 0.031
    given = {**shrunk(345), "moving_variance": [rest + own for own in (0.01, 0.02, 0.03, 0.02)]}
    found = findings(model(**given), steps={(): 345})["BN103"]
    assert found.severity.value == "warning"
    assert found.figures["share"] == pytest.approx(rest / (rest + 0.02 + 1e-3))
    assert "still have a weight of 3% and make up 60% of the variance" in found.message
    assert found.figures["needed"] == 384  # 0.99^384 is as much as the data's 0.0206 and epsilon
    given["moving_variance"] = [rest + own for own in (0.01, 0.012, 0.03, 0.015)]
    assert codes(model(**given), steps={(): 345})["BN103"] == "error"
    # Channels whose input never changes have nothing but the initial 1.
    given["moving_variance"] = [rest, rest, rest, rest + 0.9]
    assert "BN103" not in codes(model(**given), steps={(): 345})


@pytest.mark.parametrize("steps", [None, {}, {(): 0}, {("other",): 10}])
def test_without_a_count_nothing_is_known(steps: Any) -> None:
    assert codes(model(**shrunk(10)), steps=steps) == {}


def test_a_frozen_layer_needs_no_steps() -> None:
    given = shrunk(10)
    given["config"] = {**given["config"], "trainable": False}
    assert codes(model(**given), steps={(): 10}) == {"BN008": "info"}


def test_statistics_older_than_the_counter() -> None:
    # 0.3 is less than 0.99^100: the model was compiled again.
    assert codes(model(), steps={(): 100}) == {}
    assert codes(model(**shrunk(30)), steps={(): 30}) == {"BN103": "error"}


def test_a_variance_of_exactly_what_is_left_is_not_older() -> None:
    variance = [0.9, 1.0, 1.1, powers(40)[0]]  # a constant channel, in float32
    assert codes(model(moving_variance=variance), steps={(): 40}) == {"BN103": "error"}


def test_the_rounding_of_many_updates_is_not_older() -> None:
    momentum, steps = 0.9999, 20000
    variance = [0.2, 0.19, 0.2, powers(steps, momentum)[0]]
    assert variance[-1] < momentum**steps
    given = model(moving_variance=variance, config={"momentum": momentum})
    assert codes(given, steps={(): steps}) == {"BN103": "error"}


def test_momentum_1_and_untouched_statistics_are_said_once() -> None:
    untouched = {"moving_mean": ZEROS, "moving_variance": ONES}
    assert codes(model(**untouched), steps={(): 9}) == {"BN101": "error"}
    assert codes(model(config={"momentum": 1.0}), steps={(): 9}) == {"BN002": "warning"}
    assert codes(model(moving_variance=powers(9)), steps={(): 9}) == {"BN106": "warning"}


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(
    ("steps", "momentum", "dtype"), [(6000, 0.999, "float32"), (60, 0.99, "float16")]
)
def test_a_power_that_rounding_hides_is_one_if_the_counter_says_so(
    steps: int, momentum: float, dtype: str, alike: bool
) -> None:
    value = np.ones(4, dtype)
    for _ in range(steps):
        value *= np.asarray(momentum, dtype)
    value[0] *= np.asarray(1 if alike else 1.002, dtype)
    given = {"moving_variance": value, "config": {"momentum": momentum}, "dtype": dtype}
    assert ("BN106" in codes(model(**given), steps={(): steps})) == alike
    assert "BN106" not in codes(model(**given))


def test_one_channel_is_a_power_if_the_counter_says_the_same() -> None:
    given = model(
        **{name: values[:1] for name, values in HEALTHY.items() if "variance" not in name},
        moving_variance=powers(7)[:1],
    )
    assert codes(given, steps={(): 7}) == {"BN106": "warning"}
    assert "BN106" not in codes(given, steps={(): 8})


# --- what can be a ReLU --------------------------------------------------------------------------

DEAD: dict[str, Any] = {"beta": [0.0, -9.0, 0.0, 0.0]}
RELU_LAYER = {"module": "keras.layers", "class_name": "ReLU", "config": {"max_value": 6.0}}


@pytest.mark.parametrize(
    "behind",
    [
        (("ReLU", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}),),
        (("ReLU", {"max_value": 6.0}),),
        (("ReLU", {"max_value": {"class_name": "__numpy__", "config": {"value": 6.0}}}),),
        (("Activation", {"activation": "relu"}),),
        (("Activation", {"activation": "relu6"}),),
        (("Activation", {"activation": RELU_LAYER}),),
        (("Relu", {}),),
        (("Relu6", {}),),
        (("TFOpLambda", {"function": "nn.relu"}),),
        (("TFOpLambda", {"function": "nn.relu6"}),),
        (("Dropout", {"rate": 0.5}), ("ReLU", {})),
        (("SpatialDropout1D", {"rate": 0.5}), ("GaussianNoise", {}), ("ReLU", {})),
        (("Activation", {"activation": "linear"}), ("Identity", {}), ("ReLU", {})),
        (("Reshape", {"target_shape": [2, 2]}), ("Flatten", {}), ("ReLU", {})),
    ],
    ids=str,
)
def test_forms_of_a_relu(behind: Layers) -> None:
    assert codes(model(behind=behind, **DEAD)) == {"BN202": "warning"}


@pytest.mark.parametrize(
    "behind",
    [
        (),
        (("ReLU", {"negative_slope": 0.1}),),
        (("ReLU", {"threshold": 1.0}),),
        (("ReLU", {"max_value": 0.0}),),
        (("LeakyReLU", {}),),
        (("ELU", {}),),
        (("Activation", {"activation": "tanh"}),),
        (("Activation", {"activation": {"class_name": "function", "config": "relu"}}),),
        (("Activation", {"activation": {**RELU_LAYER, "module": "mine"}}),),
        (("Dense", {"units": 2, "activation": "relu"}),),
        (("Dropout", {"rate": 0.5}),),
        (("GlobalMaxPooling1D", {}), ("ReLU", {})),
        (("TFOpLambda", {"function": "math.tanh"}),),
    ],
    ids=str,
)
def test_what_is_no_relu(behind: Layers) -> None:
    assert "BN202" not in codes(model(behind=behind, **DEAD))


# --- the dialect of Keras 2 ----------------------------------------------------------------------


def keras2(variance: Any = None, **calls: dict[str, Any]) -> Graph:
    """A model of Keras 2 in which each call may be given arguments: drop, outer and bn in it."""

    def node(source: str, name: str) -> list[Any]:
        return [[[source, 0, 0, calls.get(name, {})]]]

    def functional(name: str, inside: list[dict[str, Any]], last: str) -> dict[str, Any]:
        ends = {"input_layers": [["input", 0, 0]], "output_layers": [[last, 0, 0]]}
        return {
            "class_name": "Functional",
            "name": name,
            "config": {"name": name, "layers": inside, **ends},
        }

    def layer(class_name: str, name: str, source: str = "", **config: Any) -> dict[str, Any]:
        inbound = node(source, name) if source else []
        return {
            "class_name": class_name,
            "name": name,
            "config": {"name": name, **config},
            "inbound_nodes": inbound,
        }

    shape = {"batch_input_shape": [None, 3, 4]}
    inner = functional(
        "outer",
        [
            layer("InputLayer", "input", **shape),
            layer("BatchNormalization", "bn", "input", axis=[2], momentum=0.99, epsilon=1e-3),
        ],
        "bn",
    )
    wrapped = {
        "class_name": "BatchNormalization",
        "config": {"name": "inside", "axis": [1], "momentum": 0.99, "epsilon": 1e-3},
    }
    root = functional(
        "model",
        [
            layer("InputLayer", "input", **shape),
            layer("Dropout", "drop", "input", rate=0.5),
            {**inner, "inbound_nodes": node("drop", "outer")},
            layer("TimeDistributed", "wrapper", "outer", layer=wrapped),
        ],
        "wrapper",
    )
    graph = parse_model(root)
    values = {**HEALTHY, **{n: v for n, v in shrunk(20).items() if n in HEALTHY}}
    values["moving_variance"] = variance or values["moving_variance"]
    variables = tuple(weight(name, value, "float32") for name, value in values.items())
    outer, wrapper = graph.layers["outer"], graph.layers["wrapper"]
    assert outer.graph is not None
    assert wrapper.inner is not None
    inside = outer.graph.with_layer(replace(outer.graph.layers["bn"], weights=variables))
    graph = graph.with_layer(replace(outer, graph=inside))
    return graph.with_layer(replace(wrapper, inner=replace(wrapper.inner, weights=variables)))


def by_layer(graph: Graph, code: str) -> dict[str, Finding]:
    found = audit(plan(graph), optimizers={(): optimizer(20)})
    return {finding.layer[-1]: finding for finding in found if finding.code == code}


def test_keras_2_updates_what_is_in_time_distributed_once() -> None:
    found = by_layer(keras2(), "BN103")
    assert {name: one.figures["updates"] for name, one in found.items()} == {
        "bn": 20,
        "wrapper": 20,
    }


@pytest.mark.parametrize("variance", [None, [2.0, 3.0, 2.0, 2.5]])
@pytest.mark.parametrize("call", ["outer", "bn"])
def test_keras_2_heeds_training_false(call: str, variance: Any) -> None:
    given = keras2(variance, **{call: {"training": False}})
    assert list(by_layer(given, "BN103")) == ["wrapper"]


def test_keras_2_heeds_training_false_of_a_dropout() -> None:
    assert list(by_layer(keras2(), "BN302")) == ["bn"]
    assert list(by_layer(keras2(drop={"training": False}), "BN302")) == []


# --- what a stranger may write -------------------------------------------------------------------


def test_models_that_call_each_other_again_and_again_are_walked_once() -> None:
    """Each of thirty models calls the one in it twice: a billion calls of one layer."""
    entry: dict[str, Any] = {
        "class_name": "BatchNormalization",
        "name": "bn",
        "config": {"name": "bn"},
    }
    for depth in range(30):
        name = entry["name"]
        both = [[[["input", 0, 0, {}]]], [[[name, 0, 0, {}]]]]
        inside = [
            {
                "class_name": "InputLayer",
                "name": "input",
                "config": {"name": "input", "batch_input_shape": [None, 4]},
                "inbound_nodes": [],
            },
            {**entry, "inbound_nodes": [both[0][0], both[1][0]]},
        ]
        ends = {"input_layers": [["input", 0, 0]], "output_layers": [[name, 1, 0]]}
        entry = {
            "class_name": "Functional",
            "name": f"m{depth}",
            "config": {"name": f"m{depth}", "layers": inside, **ends},
        }
    found = findings(parse_model(entry), steps={(): 3})
    assert found["BN009"].figures["calls"] == 2**30


def functional(name: str, *calls: tuple[dict[str, Any], int]) -> dict[str, Any]:
    """A row of layers in the dialect of Keras 3, each called so many times on end."""
    first = entry("InputLayer", "input", {"batch_shape": [None, 4]})
    listed, before = [{**first, "inbound_nodes": []}], ["input", 0, 0]
    for layer, count in calls:
        nodes = []
        for number in range(count):
            tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": before}}
            nodes.append({"args": [tensor], "kwargs": {}})
            before = [layer["config"]["name"], number, 0]
        listed.append({**layer, "name": layer["config"]["name"], "inbound_nodes": nodes})
    is_model = calls[-1][0]["class_name"] == "Functional"
    last = [before[0], before[1] + is_model, 0]
    ends = {"input_layers": [["input", 0, 0]], "output_layers": [last]}
    found = entry("Functional", name, {"layers": listed, **ends})
    return {**found, "module": "keras.src.models.functional", "registered_name": "Functional"}


def test_training_mode_in_models_that_call_each_other_again_and_again() -> None:
    """As above, with a layer inside that sets training mode, and a fold before it all."""
    norm = entry("BatchNormalization", "bn", {})
    inside = functional("m0", (entry("Resizing", "sets", {}), 1), (norm, 1))
    for depth in range(1, 30):
        inside = functional(f"m{depth}", (inside, 3))
    dense, folds = entry("Dense", "dense", {"units": 4}), entry("BatchNormalization", "folds", {})
    graph = parse_model(functional("root", (dense, 1), (folds, 1), (inside, 1)))
    values = {
        "dense": (np.ones((4, 4)), np.ones(4)),
        "folds": tuple(HEALTHY[name] for name in HEALTHY),
    }
    for name, arrays in values.items():
        weights = tuple(weight(str(n), array, "float32") for n, array in enumerate(arrays))
        graph = graph.with_layer(replace(graph.layers[name], weights=weights))
    found = plan(graph)
    assert [fold.batchnorm.path for fold in found.folds] == [("folds",)]
    codes = {finding.code for finding in audit(found)}
    # The norm inside has no variables, and Keras 3.16 does not run it in training mode.
    assert codes == {"BN009", "BN011", "BN012", "BN301", "BN303"}
    asked = plan(graph, use=Use((KERAS_3,)))
    assert "BN007" in {finding.code for finding in audit(asked)}


def test_a_time_axis_without_end_is_no_overflow() -> None:
    inside = entry("BatchNormalization", "inside", {"momentum": 0.99, "epsilon": 1e-3})
    listed = [
        entry("InputLayer", "input", {"batch_shape": [None, 1 << 28, 4]}),
        entry("TimeDistributed", "bn", {"layer": inside}),
    ]
    root = {"class_name": "Sequential", "module": "keras", "config": {"layers": listed}}
    graph = parse_model({**root, "registered_name": "Sequential"})
    values = {**HEALTHY, **{k: v for k, v in shrunk(3).items() if k in HEALTHY}}
    wrapper = graph.layers["bn"]
    assert wrapper.inner is not None
    weights = tuple(weight(name, value, "float32") for name, value in values.items())
    graph = graph.with_layer(replace(wrapper, inner=replace(wrapper.inner, weights=weights)))
    assert "BN103" not in codes(graph, steps={(): 3})


def test_a_row_of_thousands_of_layers_is_audited_in_seconds() -> None:
    norms: Layers = tuple(("BatchNormalization", {}) for _ in range(3000))
    started = time.process_time()
    audit(plan(model(behind=norms)))
    assert time.process_time() - started < 20


# --- causes and consequences ---------------------------------------------------------------------

VANISHED: dict[str, Any] = {
    "moving_variance": [1.0, 1e-9, 0.5, 1.0],
    "config": {"epsilon": 1e-6},
}
TWO_CAUSES: dict[str, Any] = {
    "gamma": [1.0] * 7 + [1000.0],
    "beta": [0.0] * 8,
    "moving_mean": [0.1] * 8,
    "moving_variance": [1.0, 1e-9, 0.5, 1.0, 0.7, 0.8, 0.9, 1.0],
    "config": {"epsilon": 1e-6},
    "kernel": np.resize(KERNEL, (3, 8)),
}


def together(graph: Graph, **options: Any) -> dict[str, Finding]:
    return {one.code: one for one in joined(audit(plan(graph), **options))}


def test_what_follows_from_a_vanished_variance_is_one_finding() -> None:
    found = together(model(**VANISHED))
    assert {"BN402", "BN403"}.isdisjoint(found)
    cause = found["BN107"]
    assert [one.code for one in cause.consequences] == ["BN402", "BN403"]
    for one in cause.consequences:
        assert f"{one.code} {one.name}: {one.message}" in cause.message
    said = cause.to_dict()["consequences"]
    assert [(one["code"], one["severity"]) for one in said] == [
        ("BN402", "warning"),
        ("BN403", "warning"),
    ]


def test_a_cause_is_as_bad_as_what_follows() -> None:
    """A kernel that is twice as large there: 8 bits are lost, though the scale is no outlier."""
    kernel = np.asarray(KERNEL) * [1.0, 6.0, 1.0, 1.0]
    given = {"moving_variance": [1.0, 1e-9, 1.0, 1.0], "gamma": [1.0, 0.9, 1.0, 1.0]}
    graph = model(**given, config={"epsilon": 1e-4}, kernel=kernel)
    raw = {code: one for code, one in codes(graph).items() if code in ("BN107", "BN402", "BN403")}
    assert raw == {"BN107": "info", "BN402": "warning"}
    assert together(graph)["BN107"].severity == "warning"


@pytest.mark.parametrize("code", ["BN402", "BN403"])
def test_another_cause_speaks_for_itself(code: str) -> None:
    found = together(model(**TWO_CAUSES))
    assert found["BN107"].consequences == ()
    assert code in found


def test_a_consequence_without_its_cause_speaks_for_itself() -> None:
    rules = tuple(rule for rule in RULES if rule.code != "BN107")
    assert {"BN402", "BN403"} <= set(together(model(**VANISHED), rules=rules))
    rules = tuple(rule for rule in RULES if rule.code != "BN403")
    (one,) = together(model(**VANISHED), rules=rules)["BN107"].consequences
    assert one.code == "BN402"
