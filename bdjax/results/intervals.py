"""Few runs in a few numbers: the interquartile mean and its bootstrap interval, and the interval of a share.

Every number is NumPy in float64.

Source: R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bdjax.metrics import Floats


class Summary(NamedTuple):
    """A group of runs in five numbers; ``low`` and ``high`` bound the interquartile mean, or the mean where it was asked for.

    They are NaN for fewer than two runs.
    """

    n: Any  # one number each, or arrays of them: of several groups
    mean: Any
    iqm: Any
    low: Any
    high: Any


def interquartile_mean(values: ArrayLike) -> Floats:
    """The mean of what is left after a quarter of the values, rounded down, is cut off either end.

    Args:
      values: numbers, [..., n] with n >= 1, no NaN.

    Returns:
      float64[...]; the plain mean where n < 4.
    """
    from scipy.stats import trim_mean

    ordered = np.sort(_floats(values), axis=-1)  # a sum depends on the order of its terms, and this must not
    return np.asarray(trim_mean(ordered, 0.25, axis=-1), np.float64)


def stratified_bootstrap(
    values: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    trimmed: bool = True,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean, or of the mean; the same arguments give the same interval.

    Runs are drawn with replacement inside each stratum, so that every draw holds as many runs of each task as the data do.

    Args:
      values: one number per run, [n], no NaN.
      strata: the task of each run, [n], any labels; None means one task.
      level: coverage aimed at, in (0, 1).
      draws: number of resamples, at least 1.
      seed: of the generator made here for this call.
      trimmed: of the interquartile mean; False: of the plain mean, as for a share, whose runs are 0 or 1.

    Returns:
      (low, high), widened to the estimate where a skewed resample misses it; (NaN, NaN) for fewer than two runs: one run says
      nothing about the next. The order of the runs does not matter.

    Raises:
      ValueError: if ``level`` or ``draws`` is out of range, the shapes differ, or a value is NaN.

    Differs: rliable's index draw calls NumPy's global generator and ignores the state it is given; this one repeats.
    """
    numbers = _floats(values)
    groups = np.zeros(numbers.shape, np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if numbers.ndim != 1 or groups.shape != numbers.shape:
        raise ValueError(f"values and strata must be [n], got {numbers.shape} and {groups.shape}")
    if np.isnan(numbers).any():
        raise ValueError("values must not hold NaN: leave undefined runs out first")
    if numbers.size < 2:
        return float("nan"), float("nan")
    ordered, sizes = _by_stratum(numbers, groups)
    low, high = _intervals(ordered[None], sizes, _statistic(ordered[None], trimmed), level, draws, seed, trimmed)
    return float(low[0]), float(high[0])


def summary(
    values: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    trimmed: bool = True,
) -> Summary:
    """Count, mean, interquartile mean and its bootstrap interval of the runs where the number is defined.

    Args:
      values: one number per run, [n]; NaN marks a run where it is not defined: left out and not counted.
      strata, level, draws, seed, trimmed: as in :func:`stratified_bootstrap`.

    Returns:
      A :class:`Summary`; all NaN where no run is left.
    """
    numbers = _floats(values)
    kept = ~np.isnan(numbers)
    numbers = numbers[kept]
    if not numbers.size:
        return Summary(0, float("nan"), float("nan"), float("nan"), float("nan"))
    tasks = None if strata is None else np.asarray(strata)[kept]
    low, high = stratified_bootstrap(numbers, tasks, level=level, draws=draws, seed=seed, trimmed=trimmed)
    return Summary(int(numbers.size), float(numbers.mean()), float(interquartile_mean(numbers)), low, high)


def summaries(
    values: ArrayLike,
    sizes: tuple[int, ...] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    trimmed: bool = True,
) -> Summary:
    """:func:`summary` of many groups of runs at once, whose strata have the same sizes.

    Args:
      values: [g, n] with n >= 1, no NaN: the runs of a group stratum by stratum.
      sizes: runs in each stratum, adding up to n; None means one stratum.
      level, draws, seed, trimmed: as in :func:`stratified_bootstrap`.

    Returns:
      A :class:`Summary` of arrays f64[g]; ``n`` is one number.

    Raises:
      ValueError: the sizes do not add up to n.
    """
    numbers = _floats(values)
    groups, runs = numbers.shape
    sizes = (runs,) if sizes is None else sizes
    if sum(sizes) != runs:
        raise ValueError(f"strata of {sizes} runs are {sum(sizes)} runs, got {runs}")
    ends = np.cumsum(sizes)[:-1]
    ordered = np.concatenate([np.sort(part, axis=1) for part in np.split(numbers, ends, axis=1)], axis=1)
    middle = interquartile_mean(ordered)
    low, high = np.full(groups, np.nan), np.full(groups, np.nan)
    if runs > 1:
        estimate = middle if trimmed else _statistic(ordered, trimmed)
        low, high = _intervals(ordered, sizes, estimate, level, draws, seed, trimmed)
    return Summary(runs, ordered.mean(axis=1), middle, low, high)


def share_interval(hits: int, runs: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the share of runs in which something happened, where no resample could show what did not.

    A bootstrap of runs that are all 0 gives [0, 0], however few they are; this one is [0, 0.56] for 0 of 3.

    Args:
      hits: runs in which it happened.
      runs: all of them, independent of each other.
      level: coverage aimed at, in (0, 1).

    Returns:
      (low, high) in [0, 1]; (NaN, NaN) for no run.

    Raises:
      ValueError: more hits than runs, or a level out of range.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927; computed by SciPy.
    """
    from scipy.stats import binomtest

    if not 0 <= hits <= runs or not 0.0 < level < 1.0:
        raise ValueError(f"hits must lie in 0 … runs and level in (0, 1), got {hits} of {runs} and {level}")
    if not runs:
        return float("nan"), float("nan")
    found = binomtest(hits, runs).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def _by_stratum(numbers: Floats, groups: NDArray[Any]) -> tuple[Floats, tuple[int, ...]]:
    """Runs stratum by stratum, each in ascending order, so that what is drawn depends on the sizes of the strata alone."""
    return numbers[np.lexsort((numbers, groups))], tuple(np.bincount(groups).tolist())


def _statistic(values: Floats, trimmed: bool) -> Floats:
    return interquartile_mean(values) if trimmed else np.asarray(values.mean(axis=-1))


def _intervals(
    values: Floats, sizes: tuple[int, ...], estimate: Floats, level: float, draws: int, seed: int, trimmed: bool
) -> tuple[Floats, Floats]:
    """The bounds f64[g] of the bootstrap intervals of groups f64[g, n], whose runs are ordered as in :func:`_by_stratum`."""
    counts = _drawn(sizes, draws, seed)
    if not trimmed:
        drawn = values @ (counts / values.shape[1])
    elif len(sizes) == 1:
        drawn = values @ _middle(counts)
    else:  # each group has its own order of all its runs
        drawn = np.empty((len(values), draws))
        for row, group in zip(drawn, values, strict=True):
            order = np.argsort(group, kind="stable")
            row[:] = group[order] @ _middle(counts[order])
    low, high = np.quantile(drawn, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=1)
    return np.minimum(low, estimate), np.maximum(high, estimate)


@functools.lru_cache(maxsize=8)
def _drawn(sizes: tuple[int, ...], draws: int, seed: int) -> NDArray[np.int32]:
    """How often each run of each stratum is drawn, i32[n, draws]."""
    generator = np.random.default_rng(seed)
    parts = []
    for size in sizes:
        chosen = generator.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        parts.append(np.bincount(chosen.ravel(), minlength=draws * size).reshape(draws, size))
    return np.ascontiguousarray(np.concatenate(parts, axis=1).T.astype(np.int32))


def _middle(counts: NDArray[np.int32]) -> Floats:
    """The weight of each value, in ascending order, in the interquartile mean of a sample that holds it ``counts`` times."""
    total = int(counts[:, 0].sum())
    cut = total // 4
    upto = np.cumsum(counts, axis=0, dtype=np.int32)
    before = upto - counts
    np.minimum(upto, total - cut, out=upto)
    np.maximum(before, cut, out=before)
    upto -= before
    return np.maximum(upto, 0, out=upto) / (total - 2 * cut)


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)
