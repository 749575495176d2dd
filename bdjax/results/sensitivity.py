"""Runs of a defense that differ in one hyper-parameter alone: its rates along each one that took several values."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.results.pool import with_tasks
from bdjax.results.wording import marks

if TYPE_CHECKING:
    import polars as pl

RATES = ("acc", "asr", "der")


class Line(NamedTuple):
    """One task, on which everything but the hyper-parameter is the same."""

    spc: int | None  # clean samples per class
    values: tuple[float, ...]  # of the hyper-parameter, ascending, at least two
    rates: dict[str, np.ndarray]  # f64[values], the means over the runs; NaN where undefined


class Swept(NamedTuple):
    """A defense and one of its hyper-parameters that took several values."""

    defense: str
    profile: str
    title: str  # with the marks and, where it is not "corrected", the profile
    leaf: str
    lines: tuple[Line, ...]


def swept(records: "pl.DataFrame") -> list[Swept]:
    """Every hyper-parameter that took two values or more on the same poisoned task, all else equal, by defense and name."""
    import polars as pl

    kept = (pl.col("status") == "ok") & (pl.col("defense") != "none") & (pl.col("ratio") > 0)
    several = pl.col("hyper").n_unique().over("defense", "profile") > 1
    rows = with_tasks(records.filter(kept)).filter(several)
    means = rows.group_by("defense", "profile", "variant", "spc", "task", "hyper", maintain_order=True).agg(
        *(pl.col(name).mean() for name in RATES), pl.col("knows_trigger", "knows_test").any()
    )
    found: dict[tuple[str, str, str], dict[tuple[Any, ...], dict[float, dict[str, Any]]]] = {}
    titles: dict[tuple[str, str, str], str] = {}
    for row in means.iter_rows(named=True):
        hyper = json.loads(row["hyper"])
        for leaf, value in hyper.items():
            rest = json.dumps({other: hyper[other] for other in hyper if other != leaf})
            key = (row["defense"], row["profile"], leaf)
            line = found.setdefault(key, {}).setdefault((row["variant"], row["spc"], row["task"], rest), {})
            line[float(value)] = row
            rule = "" if row["profile"] == "corrected" else f", {row['profile']}"
            titles[key] = row["defense"].rpartition(":")[2] + marks(row) + rule
    listed = []
    for (defense, rule, leaf), by_line in sorted(found.items(), key=lambda item: item[0]):
        lines = [
            Line(spc, tuple(sorted(line)), {rate: np.array([line[v][rate] for v in sorted(line)], float) for rate in RATES})
            for (_, spc, _, _), line in by_line.items()
            if len(line) > 1
        ]
        if lines:
            listed.append(Swept(defense, rule, titles[defense, rule, leaf], leaf, tuple(lines)))
    return listed
