"""Metrics: values worked by hand, and properties that must hold for any run."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax import metrics

fraction = st.floats(0.0, 1.0)
runs = st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=12)


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


def test_interquartile_mean_by_hand():
    assert metrics.interquartile_mean([0.0, 1.0, 2.0, 9.0]) == 1.5
    assert metrics.interquartile_mean([9.0, 0.0, 3.0]) == 4.0  # fewer than four: the mean
    assert metrics.interquartile_mean([7, 1, 2, 3, 4, 5, 6, 100]) == 4.5
    np.testing.assert_array_equal(metrics.interquartile_mean([[0.0, 4.0], [2.0, 2.0]]), [2.0, 2.0])


def test_the_interquartile_mean_of_drawn_runs_is_the_mean_of_their_middle_half():
    """Against a plain loop over sorted Python floats, whose sum is exact."""
    generator = np.random.default_rng(5)
    for n in range(1, 41):
        values = generator.normal(size=n).round(2)  # with ties
        middle = sorted(values.tolist())[n // 4 : n - n // 4]
        assert float(metrics.interquartile_mean(values)) == pytest.approx(math.fsum(middle) / len(middle), rel=1e-13, abs=1e-15)


@given(runs, st.integers(0, 2**31 - 1), st.sampled_from([0.05, 0.5, 0.95]))
@settings(deadline=None, max_examples=100)
def test_interval_contains_the_estimate_stays_in_range_and_repeats(values, seed, level):
    low, high = metrics.stratified_bootstrap(values, level=level, draws=50, seed=seed)
    assert min(values) - 1e-12 <= low <= metrics.interquartile_mean(values) <= high <= max(values) + 1e-12
    assert (low, high) == metrics.stratified_bootstrap(values, level=level, draws=50, seed=seed)


def test_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        low, high = metrics.stratified_bootstrap(generator.normal(size=20), draws=400, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.87 <= hits / 300 <= 0.98


def test_seed_matters_and_the_global_generator_is_untouched():
    values = np.random.default_rng(0).normal(size=9)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert metrics.stratified_bootstrap(values, seed=0, draws=100) != metrics.stratified_bootstrap(values, seed=1, draws=100)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_strata_are_resampled_inside_themselves():
    values, tasks = [0.0, 0.0, 1.0, 1.0], ["easy", "easy", "hard", "hard"]
    assert metrics.stratified_bootstrap(values, tasks) == (0.5, 0.5)  # every draw holds two of each
    low, high = metrics.stratified_bootstrap(values)
    assert low < 0.5 < high


def test_one_run_has_no_interval():
    one = metrics.summary([0.7])
    assert (one.n, one.mean, one.iqm) == (1, 0.7, 0.7) and np.isnan(one.low) and np.isnan(one.high)


def test_undefined_runs_are_left_out_and_not_counted():
    assert metrics.summary([0.2, np.nan, 0.4], ["a", "b", "a"]) == metrics.summary([0.2, 0.4], ["a", "a"])
    none = metrics.summary([np.nan])
    assert none.n == 0 and np.isnan(none.iqm)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.0, 1.0], {"level": 1.0}, "level"),
        ([0.0, 1.0], {"draws": 0}, "draws"),
        ([0.0, np.nan], {}, "NaN"),
        ([0.0, 1.0], {"strata": ["a"]}, "strata"),
    ],
)
def test_wrong_arguments_are_named(values, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.stratified_bootstrap(values, **options)


def test_many_groups_at_once_are_as_one_by_one():
    generator = np.random.default_rng(3)
    for runs in (1, 2, 3, 4, 9):
        values = generator.normal(size=(7, runs))
        many = metrics.summaries(values)
        assert many.n == runs
        for i, row in enumerate(values):
            one = metrics.summary(row)
            np.testing.assert_allclose([many.mean[i], many.iqm[i], many.low[i], many.high[i]], one[1:], rtol=1e-12)


def test_groups_with_the_same_strata_at_once_are_as_one_by_one():
    generator, sizes = np.random.default_rng(6), (3, 1, 4)
    strata, values = np.repeat(["a", "b", "c"], sizes), generator.normal(size=(5, 8))
    for trimmed in (True, False):
        many = metrics.summaries(values, sizes, trimmed=trimmed)
        for i, row in enumerate(values):
            one = metrics.summary(row, strata, trimmed=trimmed)
            np.testing.assert_allclose([many.mean[i], many.iqm[i], many.low[i], many.high[i]], one[1:], rtol=1e-12)
    with pytest.raises(ValueError, match="are 7 runs, got 8"):
        metrics.summaries(values, (3, 4))


def test_the_interval_is_that_of_resamples_drawn_one_by_one():
    """Against a plain loop: draw runs with replacement in each stratum, sort, cut a quarter off either end."""
    generator = np.random.default_rng(4)
    values, strata = generator.normal(size=11), np.array([0] * 4 + [1] * 7)
    drawn = []
    for _ in range(4000):
        sample = np.concatenate([generator.choice(values[strata == k], (strata == k).sum()) for k in (0, 1)])
        drawn.append(np.sort(sample)[2:-2].mean())
    low, high = metrics.stratified_bootstrap(values, strata, draws=4000)
    np.testing.assert_allclose((low, high), np.quantile(drawn, [0.025, 0.975]), atol=0.05 * values.std())


def test_the_order_of_runs_does_not_matter():
    values, strata = np.array([0.3, 0.9, 0.1, 0.5, 0.7]), np.array(["a", "b", "a", "b", "b"])
    turned = [4, 2, 0, 3, 1]
    assert metrics.stratified_bootstrap(values, strata) == metrics.stratified_bootstrap(values[turned], strata[turned])
