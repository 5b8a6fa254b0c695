"""Where numbers stand on an axis, at all their extremes, and which of them stand far out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bnfold.reports.distribution import Axis, far_out, histogram

numbers = arrays.arrays(
    np.float64, st.integers(0, 40), elements=st.floats(allow_nan=True, allow_infinity=True)
)


@settings(deadline=None)
@given(numbers, numbers, st.booleans())
def test_every_number_has_a_place_and_they_keep_their_order(
    of: np.ndarray, values: np.ndarray, logarithmic: bool
) -> None:
    axis = Axis.of([of], logarithmic=logarithmic)
    assert axis.low < axis.high
    places = axis.place(values)
    known = ~np.isnan(values)
    assert np.array_equal(np.isnan(places), ~known)
    assert np.all((places[known] >= 0) & (places[known] <= 1))
    assert np.all(np.diff(axis.place(np.sort(values[known]))) >= 0)
    assert histogram(values, axis, 12).sum() == known.sum()
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert all(0 <= place <= 1 and np.isfinite(number) for number, place in ticks)


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    axis = Axis.of([np.array([1e-4, 1e-2, 1.0, 100.0])], logarithmic=True)
    assert [number for number, _ in axis.ticks()] == pytest.approx([1e-4, 1e-2, 1.0, 100.0])
    assert axis.place(np.array([1e-4, 0.1, 100.0, 0.0, -1.0])) == pytest.approx([0, 0.5, 1, 0, 0])


def test_an_axis_of_both_signs_has_zero_in_its_place() -> None:
    axis = Axis.of([np.linspace(-3, 3, 101)], logarithmic=False)
    assert (0.0, pytest.approx(0.5)) in axis.ticks()
    assert axis.place(np.array([-1e300, 0.0, 1e300])) == pytest.approx([0, 0.5, 1])


def test_one_channel_far_away_does_not_squeeze_the_others() -> None:
    values = np.concatenate([np.random.default_rng(0).lognormal(0, 1, 500), [1e30]])
    axis = Axis.of([values], logarithmic=True)
    assert np.ptp(axis.place(values[:500])) > 0.5
    assert axis.place(values[500:]) == 1.0


def test_far_out_is_beyond_three_times_the_middle_half() -> None:
    values = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8])  # quartiles 2 and 6
    for added, is_far in [(17.0, False), (21.0, True), (-13.0, True), (np.nan, False)]:
        assert far_out(np.append(values, added))[-1] == is_far
    assert not far_out(np.array([1.0] * 9 + [5.0])).any()  # no scale to judge by
    assert not far_out(np.full(3, np.nan)).any()
    assert far_out(np.zeros(0)).size == 0


def test_the_largest_numbers_have_places() -> None:
    """The mean of two of them is infinite."""
    largest = np.full(2, 2.0**1023)
    assert Axis.of([largest], logarithmic=False).place(np.array([np.inf])) == 1
