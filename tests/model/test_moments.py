"""Moments of parts against numpy over the whole; distances against the integral they stand for."""

import math
from typing import Any

import numpy as np
import pytest

from bnfold.model.moments import Moments, Tally, divergence, median, quantiles

GENERATOR = np.random.default_rng(0)


def tally(parts: list[Any], axis: int = -1, masks: list[Any] | None = None) -> Tally:
    found = Tally()
    for number, part in enumerate(parts):
        found.add(part, axis, None if masks is None else masks[number])
    return found


def moments(found: Tally) -> Moments:
    assert found.moments is not None
    return found.moments


@pytest.mark.parametrize("axis", [-1, 3, 1, 2, -2, 0])
@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 7]])
def test_parts_have_the_moments_of_the_whole(axis: int, cuts: list[int]) -> None:
    values = GENERATOR.normal(3, 2, (9, 5, 4, 6)).astype("float32")
    split = 0 if axis != 0 else 1  # the axis of the channels stays whole
    parts = np.split(values, [cut for cut in cuts if cut < values.shape[split]], split)
    found = moments(tally(parts, axis))
    others = tuple(n for n in range(4) if n != axis % 4)
    whole = values.astype("float64")
    np.testing.assert_allclose(found.mean, whole.mean(others), rtol=1e-14)
    np.testing.assert_allclose(found.variance, whole.var(others), rtol=1e-13)
    assert (found.count == values.size // values.shape[axis]).all()


def test_more_numbers_than_a_piece_holds_at_once() -> None:
    values = GENERATOR.normal(0, 1, (70_000, 7)).astype("float32")
    found = moments(tally([values]))
    np.testing.assert_allclose(found.variance, values.astype("float64").var(0), rtol=1e-12)


def test_an_offset_of_a_hundred_million_deviations_costs_no_digits() -> None:
    """E[x^2] - E[x]^2 would be nothing but rounding here; fsum is exact."""
    values = 1e8 + GENERATOR.normal(0, 1, (1000, 1))
    found = moments(tally(np.split(values, 40)))
    mean = math.fsum(values[:, 0]) / 1000
    variance = math.fsum((x - mean) ** 2 for x in values[:, 0]) / 1000
    assert found.mean[0] == pytest.approx(mean, rel=1e-15)
    assert found.variance[0] == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize("axis", [-1, 1])
def test_masked_steps_do_not_count(axis: int) -> None:
    values = GENERATOR.normal(0, 1, (6, 5, 4))
    mask = GENERATOR.random((6, 5)) < 0.6
    values[~mask] = 1e6
    halves = [slice(0, 3), slice(3, 6)]
    found = tally([values[h] for h in halves], axis, [mask[h] for h in halves])
    if axis == -1:
        kept = values[mask]
        np.testing.assert_allclose(moments(found).mean, kept.mean(0), rtol=1e-13)
        np.testing.assert_allclose(moments(found).variance, kept.var(0), rtol=1e-13)
        return
    for channel in range(5):
        kept = values[mask[:, channel], channel]
        assert moments(found).mean[channel] == pytest.approx(kept.mean())
        assert moments(found).variance[channel] == pytest.approx(kept.var())


def test_nothing_but_masked_steps_is_nothing() -> None:
    found = tally([np.ones((2, 3, 4))], masks=[np.zeros((2, 3))])
    assert not moments(found).count.any()
    assert np.isnan(moments(found).variance).all()


def test_numbers_that_are_not_finite_are_counted_and_left_out() -> None:
    values = GENERATOR.normal(0, 1, (8, 5, 3))
    spoilt = values.copy()
    spoilt[1, 2, 0], spoilt[3, 0, 0], spoilt[7, 4, 2] = np.nan, np.inf, -np.inf
    found = tally(np.split(spoilt, 4))
    assert found.non_finite.tolist() == [2, 0, 1]
    kept = np.where(np.isfinite(spoilt), values, np.nan)
    np.testing.assert_allclose(moments(found).mean, np.nanmean(kept, (0, 1)), rtol=1e-13)
    np.testing.assert_allclose(moments(found).variance, np.nanvar(kept, (0, 1)), rtol=1e-13)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 3, 5)])
def test_no_numbers_at_all(shape: tuple[int, ...]) -> None:
    found = tally([np.zeros(shape)])
    assert moments(found).count.tolist() == [0] * shape[-1]


def test_float16_numbers_are_summed_in_float64() -> None:
    values = np.full((50_000, 2), 3.0, "float16")
    found = moments(tally([values]))
    assert found.mean.tolist() == [3, 3]
    assert found.variance.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("recorded", "observed"),
    [((0.0, 1.0), (0.7, 1.0)), ((2.0, 0.5), (1.0, 3.0)), ((0.0, 4.0), (0.1, 0.2))],
)
def test_the_divergence_is_the_integral(
    recorded: tuple[float, float], observed: tuple[float, float]
) -> None:
    """KL(observed || recorded) = the integral of o ln(o / r), with epsilon in both variances."""
    epsilon = 0.05
    x = np.linspace(-40, 40, 800_001)

    def logarithm(mean: float, variance: float) -> Any:
        variance += epsilon
        return -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2

    o, r = logarithm(*observed), logarithm(*recorded)
    integral = np.sum(np.exp(o) * (o - r)) * (x[1] - x[0])
    as_vectors = [tuple(np.array([n]) for n in pair) for pair in (recorded, observed)]
    found = divergence(*as_vectors, epsilon)  # type: ignore[arg-type]
    assert found.kl[0] == pytest.approx(integral, rel=1e-6)
    backwards = divergence(*as_vectors[::-1], epsilon)  # type: ignore[arg-type]
    if recorded[1] != observed[1]:
        assert backwards.kl[0] != pytest.approx(integral, rel=1e-3)


def test_what_is_recorded_wrongly_has_no_distance() -> None:
    recorded = (np.array([np.nan, 0.0, 0.0]), np.array([1.0, -1.0, 1.0]))
    found = divergence(recorded, (np.zeros(3), np.ones(3)), 1e-3)
    assert np.isnan(found.kl).tolist() == [True, True, False]


@pytest.mark.parametrize("special", [[], [np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]])
def test_the_median_and_other_quantiles_are_those_of_numpy(special: list[float]) -> None:
    rng = np.random.default_rng(0)
    for size in range(1, 40):
        values = rng.normal(size=(3, size)).round(rng.integers(0, 3)) + 0.0  # none is -0
        values[1, : len(special)] = special[:size]
        with np.errstate(invalid="ignore"):
            assert median(values).tobytes() == np.median(values, axis=-1).tobytes()
            assert median(values[1]).tobytes() == np.median(values[1]).tobytes()
            shares = [0.0, 0.01, 0.25, 0.3, 0.75, 0.99, 1.0]
            ours, numpys = (find(values[1], shares) for find in (quantiles, np.quantile))
            assert ours.tobytes() == numpys.tobytes()
