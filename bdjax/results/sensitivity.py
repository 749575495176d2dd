"""Runs of a defense that differ in one hyper-parameter alone: its rates along each one that took several values."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.results.apart import settings_of
from bdjax.results.pool import with_tasks
from bdjax.results.wording import marks

if TYPE_CHECKING:
    import polars as pl

RATES = ("acc", "asr", "der")
_Key = tuple[str, str, str, str]  # defense, profile, its static configuration as JSON, hyper-parameter


class Line(NamedTuple):
    """One task, on which everything but the hyper-parameter is the same."""

    spc: int | None  # clean samples per class
    values: tuple[float, ...]  # of the hyper-parameter, ascending, at least two
    rates: dict[str, np.ndarray]  # f64[values], the means over the runs; NaN where undefined


class Swept(NamedTuple):
    """A defense and one of its hyper-parameters that took several values."""

    defense: str
    profile: str
    settings: str  # the fields in which its static configurations differ, with its values; "" where there is one configuration
    title: str  # the defense with its marks, the profile where it is not "corrected", and the settings
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
    differ = settings_of(means)
    found: dict[_Key, dict[tuple[Any, ...], dict[float, dict[str, Any]]]] = {}
    titles: dict[_Key, str] = {}
    for row in means.iter_rows(named=True):
        hyper = json.loads(row["hyper"])
        for leaf, value in hyper.items():
            rest = json.dumps({other: hyper[other] for other in hyper if other != leaf})
            key = (row["defense"], row["profile"], row["variant"], leaf)
            line = found.setdefault(key, {}).setdefault((row["spc"], row["task"], rest), {})
            line[float(value)] = row
            rule = "" if row["profile"] == "corrected" else f", {row['profile']}"
            settings = differ[row["defense"], row["variant"]]
            titles[key] = row["defense"].rpartition(":")[2] + marks(row) + rule + f", {settings}" * bool(settings)
    listed = [(key, [_line(spc, rows) for (spc, _, _), rows in found[key].items() if len(rows) > 1]) for key in sorted(found)]
    return [Swept(key[0], key[1], differ[key[0], key[2]], titles[key], key[3], tuple(lines)) for key, lines in listed if lines]


def _line(spc: int | None, rows: dict[float, dict[str, Any]]) -> Line:
    """The line through the means of some values of a hyper-parameter."""
    values = sorted(rows)
    return Line(spc, tuple(values), {rate: np.array([rows[value][rate] for value in values], float) for rate in RATES})
