"""Which of several defenses is better: chance of improvement, ranks over tasks, profiles.

Every number is a fraction, every function NumPy in float64. A *task* is what a defense is applied to: one training
configuration at one poison ratio, with its clean samples per class. Runs of one task differ in their seed.

Source: R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021 (probability of
improvement, performance profiles, stratified bootstrap); J. Demšar, "Statistical Comparisons of Classifiers over Multiple Data
Sets", JMLR 2006 (average ranks, Friedman's test, Nemenyi's critical difference).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from bdjax.metrics import Floats


class Estimate(NamedTuple):
    """A number and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


class Ranks(NamedTuple):
    """Several methods over the same tasks."""

    ranks: Floats  # f64[k]: mean rank over the tasks, 1 = best
    tasks: int
    statistic: float  # Friedman's chi squared
    p: float  # of all methods being equal
    difference: float  # two mean ranks further apart than this differ at the level that was asked for


def probability_of_improvement(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Estimate:
    """P(X > Y) of a run X of the first and a run Y of the second method on the same task, mean over the tasks; ties count half.

    Args:
      first: per task the runs of one method, [n_t]; larger is better.
      second: the runs of the other method on the same tasks, [m_t].
      level: coverage of the interval, in (0, 1).
      draws: bootstrap resamples; runs are drawn inside each task.
      seed: of the generator made here for this call.

    Returns:
      The estimate in [0, 1] (1/2: neither is better) with its percentile interval.

    Raises:
      ValueError: no task, another number of tasks, a task without runs, or a run that is NaN.
    """
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(first, second, strict=True)]
    if not pairs or any(x.ndim != 1 or y.ndim != 1 or not x.size or not y.size for x, y in pairs):
        raise ValueError("each method needs at least one run of each of at least one task")
    if any(np.isnan(x).any() or np.isnan(y).any() for x, y in pairs):
        raise ValueError("runs must not hold NaN: leave undefined runs out first")
    value, drawn = 0.0, np.zeros(draws)
    by_size: dict[tuple[int, int], list[Floats]] = {}
    for x, y in pairs:
        by_size.setdefault((x.size, y.size), []).append((np.sign(x[:, None] - y[None, :]) + 1) / 2)
    for sizes, tables in by_size.items():
        wins = np.stack(tables)
        value += wins.mean((1, 2)).sum()
        left, right = (_shares(len(tables), size, draws, seed + side) for side, size in enumerate(sizes))
        drawn += ((left @ wins) * right).sum((0, 2))
    value, drawn = value / len(pairs), drawn / len(pairs)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


@functools.lru_cache(maxsize=8)
def _shares(tasks: int, runs: int, draws: int, seed: int) -> Floats:
    """The share of each run in each resample of each task, f64[tasks, draws, runs]; comparisons of as many runs share them."""
    found = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), (tasks, draws)) / runs
    found.setflags(write=False)
    return found


def ranks(scores: ArrayLike, *, level: float = 0.05) -> Ranks:
    """Mean ranks over tasks, Friedman's test that all methods are equal, and Nemenyi's critical difference.

    Args:
      scores: f64[t, k] of k methods on t tasks; larger is better, equal ones share their rank.
      level: of the critical difference, in (0, 1).

    Raises:
      ValueError: fewer than two methods or tasks, or a score that is NaN.
    """
    from scipy.stats import rankdata, studentized_range

    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"scores must be [tasks, methods] of at least two each, got {list(table.shape)}")
    if np.isnan(table).any():
        raise ValueError("scores must not hold NaN: leave tasks out on which a method has none")
    tasks, methods = table.shape
    statistic, p = _friedman(table)
    critical = float(studentized_range.ppf(1 - level, methods, np.inf)) / np.sqrt(2)
    difference = critical * np.sqrt(methods * (methods + 1) / (6 * tasks))
    return Ranks(rankdata(-table, axis=1).mean(axis=0), tasks, statistic, p, float(difference))


def _friedman(table: Floats) -> tuple[float, float]:
    """Friedman's chi squared of f64[t, k], corrected for ties, and its p; 0 and 1 where every task is one tie."""
    from scipy.stats import chi2, friedmanchisquare

    if (table == table[:, :1]).all():  # SciPy divides by zero
        return 0.0, 1.0
    if table.shape[1] == 2:  # SciPy asks for three methods; of two it is the squared surplus of wins by the tasks without a tie
        wins = np.sign(table[:, 0] - table[:, 1])
        statistic = float(wins.sum() ** 2 / np.abs(wins).sum())
        return statistic, float(chi2.sf(statistic, 1))
    found = friedmanchisquare(*table.T)
    return float(found.statistic), float(found.pvalue)


def cliques(found: Ranks) -> list[tuple[int, ...]]:
    """The largest groups of methods, by ascending rank, whose ranks do not differ by more than the critical difference."""
    order = np.argsort(found.ranks, kind="stable")
    groups: list[tuple[int, ...]] = []
    for i in range(len(order)):
        inside = tuple(int(k) for k in order[i:] if found.ranks[k] - found.ranks[order[i]] <= found.difference)
        if len(inside) > 1 and not any(set(inside) <= set(group) for group in groups):
            groups.append(inside)
    return groups


def profile(runs: ArrayLike, thresholds: ArrayLike) -> Floats:
    """The share of runs above each threshold, f64[thresholds]: a curve that lies higher is better.

    Args:
      runs: f64[n], pooled over tasks; no NaN.
      thresholds: f64[...].

    Raises:
      ValueError: no run, or a run that is NaN.
    """
    values, levels = np.asarray(runs, np.float64).ravel(), np.asarray(thresholds, np.float64)
    if not values.size or np.isnan(values).any():
        raise ValueError("a profile needs at least one run, and none that is NaN")
    return np.asarray((values[:, None] > levels.ravel()).mean(axis=0).reshape(levels.shape))
