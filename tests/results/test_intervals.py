"""The interquartile mean and its bootstrap interval: by hand, against plain loops, and what they must not depend on."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.results import intervals

runs = st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=12)


def test_interquartile_mean_by_hand():
    assert intervals.interquartile_mean([0.0, 1.0, 2.0, 9.0]) == 1.5
    assert intervals.interquartile_mean([9.0, 0.0, 3.0]) == 4.0  # fewer than four: the mean
    assert intervals.interquartile_mean([7, 1, 2, 3, 4, 5, 6, 100]) == 4.5
    np.testing.assert_array_equal(intervals.interquartile_mean([[0.0, 4.0], [2.0, 2.0]]), [2.0, 2.0])


def test_the_interquartile_mean_of_drawn_runs_is_the_mean_of_their_middle_half():
    """Against a plain loop over sorted Python floats, whose sum is exact."""
    generator = np.random.default_rng(5)
    for n in range(1, 41):
        values = generator.normal(size=n).round(2)  # with ties
        middle = sorted(values.tolist())[n // 4 : n - n // 4]
        assert float(intervals.interquartile_mean(values)) == pytest.approx(math.fsum(middle) / len(middle), rel=1e-13, abs=1e-15)


@given(runs, st.integers(0, 2**31 - 1), st.sampled_from([0.05, 0.5, 0.95]))
@settings(deadline=None, max_examples=100)
def test_interval_contains_the_estimate_stays_in_range_and_repeats(values, seed, level):
    low, high = intervals.stratified_bootstrap(values, level=level, draws=50, seed=seed)
    assert min(values) - 1e-12 <= low <= intervals.interquartile_mean(values) <= high <= max(values) + 1e-12
    assert (low, high) == intervals.stratified_bootstrap(values, level=level, draws=50, seed=seed)


def test_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        low, high = intervals.stratified_bootstrap(generator.normal(size=20), draws=400, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.87 <= hits / 300 <= 0.98


def test_seed_matters_and_the_global_generator_is_untouched():
    values = np.random.default_rng(0).normal(size=9)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert intervals.stratified_bootstrap(values, seed=0, draws=100) != intervals.stratified_bootstrap(values, seed=1, draws=100)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_strata_are_resampled_inside_themselves():
    values, tasks = [0.0, 0.0, 1.0, 1.0], ["easy", "easy", "hard", "hard"]
    assert intervals.stratified_bootstrap(values, tasks) == (0.5, 0.5)  # every draw holds two of each
    low, high = intervals.stratified_bootstrap(values)
    assert low < 0.5 < high


def test_one_run_has_no_interval():
    one = intervals.summary([0.7])
    assert (one.n, one.mean, one.iqm) == (1, 0.7, 0.7) and np.isnan(one.low) and np.isnan(one.high)


def test_undefined_runs_are_left_out_and_not_counted():
    assert intervals.summary([0.2, np.nan, 0.4], ["a", "b", "a"]) == intervals.summary([0.2, 0.4], ["a", "a"])
    none = intervals.summary([np.nan])
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
        intervals.stratified_bootstrap(values, **options)


def test_many_groups_at_once_are_as_one_by_one():
    generator = np.random.default_rng(3)
    for runs in (1, 2, 3, 4, 9):
        values = generator.normal(size=(7, runs))
        many = intervals.summaries(values)
        assert many.n == runs
        for i, row in enumerate(values):
            one = intervals.summary(row)
            np.testing.assert_allclose([many.mean[i], many.iqm[i], many.low[i], many.high[i]], one[1:], rtol=1e-12)


def test_groups_with_the_same_strata_at_once_are_as_one_by_one():
    generator, sizes = np.random.default_rng(6), (3, 1, 4)
    strata, values = np.repeat(["a", "b", "c"], sizes), generator.normal(size=(5, 8))
    for trimmed in (True, False):
        many = intervals.summaries(values, sizes, trimmed=trimmed)
        for i, row in enumerate(values):
            one = intervals.summary(row, strata, trimmed=trimmed)
            np.testing.assert_allclose([many.mean[i], many.iqm[i], many.low[i], many.high[i]], one[1:], rtol=1e-12)
    with pytest.raises(ValueError, match="are 7 runs, got 8"):
        intervals.summaries(values, (3, 4))


def test_the_interval_is_that_of_resamples_drawn_one_by_one():
    """Against a plain loop: draw runs with replacement in each stratum, sort, cut a quarter off either end."""
    generator = np.random.default_rng(4)
    values, strata = generator.normal(size=11), np.array([0] * 4 + [1] * 7)
    drawn = []
    for _ in range(4000):
        sample = np.concatenate([generator.choice(values[strata == k], (strata == k).sum()) for k in (0, 1)])
        drawn.append(np.sort(sample)[2:-2].mean())
    low, high = intervals.stratified_bootstrap(values, strata, draws=4000)
    np.testing.assert_allclose((low, high), np.quantile(drawn, [0.025, 0.975]), atol=0.05 * values.std())


def test_the_order_of_runs_does_not_matter():
    values, strata = np.array([0.3, 0.9, 0.1, 0.5, 0.7]), np.array(["a", "b", "a", "b", "b"])
    turned = [4, 2, 0, 3, 1]
    assert intervals.stratified_bootstrap(values, strata) == intervals.stratified_bootstrap(values[turned], strata[turned])
