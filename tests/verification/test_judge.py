"""The judge is judged: every planted mistake is found, at its layer; no right fold is refused.

By default one model of every third kind of mistake and a few right folds, judged by Keras alone.
All of them, thirty models of each kind with their wrong and their right folds, by ONNX Runtime too:

    pytest tests/verification/test_judge.py -m "slow or not slow"

The models and the mistakes are those of `wrong_folds`, which uses nothing of bnfold.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from wrong_folds import (
    FAR,
    HARMLESS,
    KINDS,
    Net,
    Pair,
    change,
    harmless,
    other_weights,
    planted,
    renamed,
    samples,
    save,
    shows_at_the_output,
    values,
)

import bnfold

pytestmark = pytest.mark.usefixtures("keras_alone")  # and by ONNX Runtime in a run of all tests

MODELS = 30
MODELS_FOR_TOOLS = 6
# A third of the kinds: all are planted in thirty models each in a run of all tests.
BY_DEFAULT = dict.fromkeys(list(KINDS)[::3], 1)
RIGHT_BY_DEFAULT = {"padding border ignored": 1}
HARMLESS_BY_DEFAULT = dict.fromkeys(
    ("means of a thousand deviations", "mixed_float16", "beside a skip"), 1
)
TOOLS_BY_DEFAULT = {"two layers' weights swapped": 1}

NOISY = (
    "float16 overflow",
    "means of a thousand deviations",
    "tiny variances",
    "mixed_float16",
    "mixed_bfloat16",
)
"""Kinds of models whose own rounding noise may leave a judge undecided."""


def models(kinds: Iterable[str], by_default: dict[str, int], count: int = MODELS) -> Any:
    """The parameters of a test: every kind with its models, most of them only on request."""
    return pytest.mark.parametrize(("kind", "number"), list(_models(kinds, by_default, count)))


def _models(kinds: Iterable[str], by_default: dict[str, int], count: int) -> Iterator[Any]:
    for kind in kinds:
        for number in range(count):
            marks = [] if number < by_default.get(kind, 0) else [pytest.mark.slow]
            yield pytest.param(kind, number, id=f"{kind} {number}", marks=marks)


def judge(folder: Path, original: Net, other: Net) -> Any:
    one, two = save(original, folder / "original.keras"), save(other, folder / "folded.keras")
    return bnfold.verify(one, two)


def statuses(found: Any) -> dict[str, str]:
    return {site.name: site.status for site in found.sites}


# --- mistakes -------------------------------------------------------------------------------------


@models(KINDS, BY_DEFAULT)
@pytest.mark.few(2)
def test_a_mistake_is_found_at_its_layer(tmp_path, kind, number):
    pair = planted(kind, number)
    found = judge(tmp_path, pair.original, pair.wrong)
    assert found.verdict == "different"
    assert set(found.culprits) == set(pair.culprits)
    assert all(statuses(found)[name] == "different" for name in pair.culprits)


@models(KINDS, TOOLS_BY_DEFAULT, MODELS_FOR_TOOLS)
@pytest.mark.slow
def test_a_mistake_of_a_tool_that_renames_shows_at_the_outputs(tmp_path, kind, number):
    pair = planted(kind, number)
    if not shows_at_the_output(pair):
        pytest.skip("the layers downstream hide the mistake")
    assert judge(tmp_path, pair.original, renamed(pair.wrong)).verdict == "different"


@models(KINDS, {"epsilon forgotten": 1}, MODELS_FOR_TOOLS)
def test_unrelated_weights_are_refused(tmp_path, kind, number):
    pair = planted(kind, number)
    found = judge(tmp_path, pair.original, other_weights(pair, number))
    assert found.verdict == "different"


# --- right folds ----------------------------------------------------------------------------------


def allowed(kind: str) -> set[str]:
    return {"equivalent", "undecided"} if kind in NOISY else {"equivalent"}


def assert_nothing_is_blamed(found: Any, norms: tuple[str, ...]) -> None:
    assert found.culprits == ()
    assert "different" not in statuses(found).values()
    assert set(norms) <= set(statuses(found))


@models(KINDS, RIGHT_BY_DEFAULT)
def test_a_right_fold_is_equivalent(tmp_path, kind, number):
    pair = planted(kind, number)
    found = judge(tmp_path, pair.original, pair.right)
    assert found.verdict in allowed(kind)
    assert_nothing_is_blamed(found, pair.norms)


@models(HARMLESS, HARMLESS_BY_DEFAULT)
@pytest.mark.few(1)
def test_a_right_fold_that_is_hard_to_judge_is_not_refused(tmp_path, kind, number):
    pair = harmless(kind, number)
    found = judge(tmp_path, pair.original, pair.right)
    assert found.verdict in allowed(kind)
    assert_nothing_is_blamed(found, pair.norms)


@models(KINDS, {"epsilon forgotten": 1}, MODELS_FOR_TOOLS)
@pytest.mark.slow
def test_a_right_fold_of_a_tool_that_renames_is_equivalent(tmp_path, kind, number):
    pair = planted(kind, number)
    found = judge(tmp_path, pair.original, renamed(pair.right))
    assert found.verdict in allowed(kind)
    assert_nothing_is_blamed(found, ())


# --- the pairs themselves -------------------------------------------------------------------------


def in_keras(folder: Path, net: Net) -> np.ndarray:
    """What the saved file computes in float64, without a final softmax."""
    steps = list(net.steps)
    if steps[-1].options.get("activation") == "softmax":
        steps[-1] = replace(steps[-1], options={**steps[-1].options, "activation": "linear"})
    path = save(replace(net, steps=tuple(steps), policy="float64"), folder / "model.keras")
    loaded = keras.models.load_model(path)
    assert [layer.name for layer in loaded.layers[:1]] == ["input"]
    return np.asarray(loaded(samples(net).astype("float64")), "float64")


def assert_right(folder: Path, pair: Pair) -> np.ndarray:
    """The right fold computes the same, as a file, and lacks the layers that it should lack."""
    expected = in_keras(folder, pair.original)
    assert change(expected, in_keras(folder, pair.right)) < 1e-6
    assert change(expected, values(pair.original, samples(pair.original))[last(pair)]) < 1e-9
    left = {step.path for step in pair.right.steps if step.kind == "BatchNormalization"}
    every = {step.path for step in pair.original.steps if step.kind == "BatchNormalization"}
    assert every - left == set(pair.norms)
    return expected


def last(pair: Pair) -> str:
    return pair.original.steps[-1].path


@models(KINDS, {"gate order": 1})
@pytest.mark.slow
def test_the_planted_pairs_are_what_they_claim(tmp_path, kind, number):
    pair = planted(kind, number)
    expected = assert_right(tmp_path, pair)
    assert change(expected, in_keras(tmp_path, renamed(pair.right))) < 1e-6
    if kind != "float16 overflow" and kind not in FAR:  # which float64 or small inputs do not see
        assert change(expected, in_keras(tmp_path, pair.wrong)) > 1e-9


@models(HARMLESS, {"beside a skip": 1})
def test_the_harmless_pairs_are_what_they_claim(tmp_path, kind, number):
    assert_right(tmp_path, harmless(kind, number))
