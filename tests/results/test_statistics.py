"""Comparisons of methods: by hand, against other implementations, and what they must not depend on."""

import numpy as np
import pytest
from scipy import stats

from bdjax.results import statistics
from bdjax.results.statistics import cliques, probability_of_improvement, profile, ranks


def test_the_probability_of_improvement_counts_pairs():
    found = probability_of_improvement([[3.0, 1.0]], [[2.0, 2.0, 0.0]])
    assert found.value == pytest.approx(4 / 6)  # 3 beats all three, 1 beats 0 alone
    assert probability_of_improvement([[1.0]], [[1.0]]).value == 0.5
    assert probability_of_improvement([[1.0], [0.0]], [[0.0], [1.0]]).value == 0.5  # tasks count alike
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    u = stats.mannwhitneyu(x, y).statistic
    assert probability_of_improvement([x], [y]).value == pytest.approx(u / 81)


def test_its_interval_covers_and_repeats():
    generator, hits = np.random.default_rng(1), 0
    true = stats.norm.cdf(1 / np.sqrt(2))
    for trial in range(100):
        x, y = generator.normal(1, 1, 30), generator.normal(0, 1, 30)
        found = probability_of_improvement([x], [y], draws=300, seed=trial)
        hits += found.low <= true <= found.high
        assert found.low <= found.value <= found.high
    assert 85 <= hits <= 100
    assert probability_of_improvement([x], [y]) == probability_of_improvement([x], [y])
    swapped = probability_of_improvement([y], [x])
    assert swapped.value == pytest.approx(1 - probability_of_improvement([x], [y]).value)


def test_ranks_are_friedmans():
    scores = np.random.default_rng(2).normal(size=(12, 5)).round(1)  # with ties
    found = ranks(scores)
    expected = stats.friedmanchisquare(*scores.T)
    assert found.statistic == pytest.approx(expected.statistic) and found.p == pytest.approx(expected.pvalue)
    assert found.ranks.sum() == pytest.approx(5 * 6 / 2) and found.tasks == 12
    assert ranks(np.ones((3, 4))).p == 1.0


def test_friedmans_test_of_four_tasks_by_hand():
    """Rank sums 5, 8 and 11: 12 / (4 3 4) (25 + 64 + 121) - 3 4 4 = 4.5, and chi squared of two degrees is exp(-x / 2)."""
    found = ranks([[3, 2, 1], [3, 1, 2], [3, 2, 1], [2, 3, 1]])
    assert found.statistic == pytest.approx(4.5, rel=1e-14) and found.p == pytest.approx(np.exp(-2.25), rel=1e-13)
    assert found.ranks.tolist() == [1.25, 2.0, 2.75]


def test_friedmans_statistic_of_drawn_scores_is_the_spread_of_the_mean_ranks():
    """Against the definition in plain Python: tasks times the spread of the mean ranks, by the spread of the ranks of a task."""
    generator = np.random.default_rng(7)
    for methods in (2, 3, 6):
        for tasks in (2, 5, 12):
            scores = generator.normal(size=(tasks, methods)).round(1).tolist()  # with ties
            placed = [[sum(b > a for b in row) + (sum(b == a for b in row) + 1) / 2 for a in row] for row in scores]
            middle = (methods + 1) / 2
            within = sum((rank - middle) ** 2 for row in placed for rank in row) / (tasks * (methods - 1))
            means = [sum(column) / tasks for column in zip(*placed, strict=True)]
            expected = tasks * sum((mean - middle) ** 2 for mean in means) / within
            found = ranks(scores)
            assert found.statistic == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert found.p == pytest.approx(stats.chi2.sf(expected, methods - 1), rel=1e-10)
            np.testing.assert_allclose(found.ranks, means, rtol=1e-14)


def test_two_methods_that_tie_on_every_task_do_not_differ():
    assert ranks(np.ones((3, 2)))[2:4] == (0.0, 1.0)


def test_the_critical_difference_is_that_of_the_published_table():
    """Demšar 2006, table 5(a): q_0.05 = 1.960, 2.343, 2.569, 2.728, 2.850 … 3.164 for 2, 3, 4, 5, 6 and 10 methods."""
    for methods, q in ((2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)):
        scores = np.random.default_rng(0).normal(size=(14, methods))
        expected = q * np.sqrt(methods * (methods + 1) / (6 * 14))
        assert ranks(scores).difference == pytest.approx(expected, abs=1.5e-3)


def test_methods_that_do_not_differ_form_groups():
    found = statistics.Ranks(np.array([1.0, 3.4, 1.9, 2.7, 6.0]), 10, 0.0, 1.0, 1.0)
    assert cliques(found) == [(0, 2), (2, 3), (3, 1)]
    assert cliques(found._replace(difference=0.1)) == []
    assert cliques(found._replace(difference=9.0)) == [(0, 2, 3, 1, 4)]


def test_a_profile_falls_from_one_to_zero():
    np.testing.assert_array_equal(profile([0.2, 0.4, 0.4, 0.9], [0.0, 0.2, 0.4, 0.9]), [1.0, 0.75, 0.25, 0.0])
    assert profile([0.5], [[0.1], [0.6]]).shape == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranks(np.zeros((1, 3))), "at least two each"),
        (lambda: ranks(np.full((3, 3), np.nan)), "NaN"),
        (lambda: probability_of_improvement([], []), "at least one task"),
        (lambda: probability_of_improvement([[]], [[1.0]]), "at least one run"),
        (lambda: probability_of_improvement([[np.nan]], [[1.0]]), "NaN"),
        (lambda: probability_of_improvement([[1.0]], [[1.0], [2.0]]), "shorter|longer"),
        (lambda: profile([], [0.5]), "at least one run"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
