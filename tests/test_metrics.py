"""Metrics: values worked by hand, and properties that must hold for any run."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax import metrics

fraction = st.floats(0.0, 1.0)


class Counts(NamedTuple):
    clean: object
    correct: object
    triggered: object
    attacked: object
    recovered: object


def test_rates_are_float64_fractions_of_their_own_totals():
    acc, asr, ra = metrics.rates(Counts(np.int32(200), np.int32(150), np.int32(180), np.int32(171), np.int32(9)))
    assert (acc.dtype, asr.dtype, ra.dtype) == (np.float64,) * 3
    assert (acc, asr, ra) == (0.75, 0.95, 0.05)


def test_rates_of_a_population_and_without_triggered_images():
    counts = Counts(np.array([10, 10]), np.array([5, 10]), np.array([9, 0]), np.array([9, 0]), np.array([0, 0]))
    acc, asr, ra = metrics.rates(counts)
    np.testing.assert_array_equal(acc, [0.5, 1.0])
    np.testing.assert_array_equal(asr, [1.0, np.nan])
    np.testing.assert_array_equal(ra, [0.0, np.nan])


def test_the_largest_share_of_one_predicted_class():
    class Predicted(NamedTuple):
        clean: object
        predicted: object

    assert metrics.one_class(Predicted(np.int32(20), np.array([4, 10, 6]))) == 0.5
    share = metrics.one_class(Predicted(np.array([10, 0]), np.array([[10, 0], [0, 0]])))
    np.testing.assert_array_equal(share, [1.0, np.nan])


def test_reduction_rates_by_hand():
    np.testing.assert_allclose(metrics.arr(0.8, [0.6, 0.8, 1.0]), [0.25, 0.0, -0.25], atol=1e-15)
    np.testing.assert_allclose(metrics.rdr(0.8, [0.0, 0.2, 1.0]), [1.0, 0.75, -0.25], atol=1e-15)
    assert np.isnan(metrics.arr(0.0, 0.5)) and np.isnan(metrics.rdr(0.0, 0.5))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0.9, 1.0), (0.9, 0.0), 1.0),  # backdoor gone at no cost
        ((0.9, 1.0), (0.9, 1.0), 0.5),  # nothing changed
        ((0.9, 0.5), (0.95, 0.7), 0.5),  # a rise of ASR or ACC counts as no change
        ((1.0, 0.0), (0.0, 0.0), 0.0),  # all accuracy lost, nothing to remove
        ((0.9, 1.0), (0.8, 0.1), 0.9),
    ],
)
def test_der_by_hand(before, after, expected):
    np.testing.assert_allclose(metrics.der(*before, *after), expected, atol=1e-15)


@given(fraction, fraction, fraction, fraction, fraction)
@settings(deadline=None, max_examples=300)
def test_der_stays_in_the_unit_interval_and_never_rises_when_accuracy_falls(acc_before, asr_before, acc, asr, drop):
    value = metrics.der(acc_before, asr_before, acc, asr)
    assert 0.0 <= value <= 1.0
    assert metrics.der(acc_before, asr_before, acc * drop, asr) <= value
