"""The runs of a folder of results as arrays: an axis for the attacks, one for the seeds.

Intervals are percentile bootstraps over both: attacks are drawn with replacement, and in each of them its seeds, so that an
interval tells what another choice of attacks and of networks would have given.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from bdjax.store import records

RATES = ("acc", "asr", "ra", "der", "arr", "acc_before", "asr_before")
DRAWS = 2000


class Runs(NamedTuple):
    """One defense in one setting against every attack."""

    rates: dict[str, np.ndarray]  # f64[attacks, seeds] in [0, 1]; NaN where a run has no value

    def mean(self, rate: str) -> float:
        """Mean over all runs."""
        return float(np.nanmean(self.rates[rate]))


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 1) -> str:
        """In percent or points."""
        return f"{100 * self.value:.{digits}f} [{100 * self.low:.{digits}f}, {100 * self.high:.{digits}f}]"


def read(folder: Path, **kept: Any) -> pl.DataFrame:
    """The finished rows of a folder that have these values."""
    rows = records.read(folder)
    return rows.filter(pl.col("status") == "ok", *(pl.col(name) == value for name, value in kept.items()))


def by_defense(rows: pl.DataFrame, **kept: Any) -> dict[str, Runs]:
    """{defense: its runs}; every defense has to have met every attack with every seed, in one setting.

    Raises:
      ValueError: a run is missing, or there are two in its place.
    """
    rows = rows.filter(*(pl.col(name) == value if value is not None else pl.col(name).is_null() for name, value in kept.items()))
    attacks, seeds = (sorted(rows[name].unique()) for name in ("attack", "seed"))
    found = {}
    for (name,), part in rows.group_by("defense", maintain_order=True):
        places = {(row["attack"], row["seed"]): row for row in part.iter_rows(named=True)}
        if len(places) != part.height or part.height != len(attacks) * len(seeds):
            raise ValueError(f"{name}: {part.height} runs for {len(attacks)} attacks and {len(seeds)} seeds")
        values = {rate: [[places[attack, seed][rate] for seed in seeds] for attack in attacks] for rate in RATES}
        found[str(name)] = Runs({rate: np.array(value, float) for rate, value in values.items()})
    return found


def estimate(statistic: Callable[[np.ndarray, np.ndarray], float], attacks: int, seeds: int, seed: int = 0) -> Estimate:
    """A statistic of the runs with its interval.

    Args:
      statistic: of the indices of the attacks, i[a 1], and of the seeds in each, i[a s], that are drawn.
      attacks: how many there are.
      seeds: in each.
      seed: of the generator made here.
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        chosen = generator.integers(0, attacks, attacks)[:, None]
        drawn.append(statistic(chosen, generator.integers(0, seeds, (attacks, seeds))))
    value = statistic(np.arange(attacks)[:, None], np.tile(np.arange(seeds), (attacks, 1)))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
