"""What a defense's hyper-parameters do: its rates along each one that was swept, everything else held."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.report.figures import COLORS, legend, panels_of, styled
from bdjax.report.tables import marks
from bdjax.results.pool import with_tasks

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

RATES = ("acc", "asr", "der")
WIDE = 20.0  # a largest value so many times the smallest is drawn on a logarithmic axis


class Line(NamedTuple):
    """One task, with everything but the hyper-parameter held."""

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
    told = []
    for (defense, rule, leaf), by_line in sorted(found.items(), key=lambda item: item[0]):
        lines = [
            Line(spc, tuple(sorted(line)), {rate: np.array([line[v][rate] for v in sorted(line)], float) for rate in RATES})
            for (_, spc, _, _), line in by_line.items()
            if len(line) > 1
        ]
        if lines:
            told.append(Swept(defense, rule, titles[defense, rule, leaf], leaf, tuple(lines)))
    return told


@styled
def sensitivity(one: Swept) -> "Figure":
    """ACC, ASR and DER along a hyper-parameter: a thin line per task, the mean of those with the same values bold.

    Raises:
      UserError: there is no line.
    """
    if not one.lines:
        raise UserError("no hyper-parameter took two values on the same task")
    budgets = sorted({line.spc for line in one.lines}, key=lambda spc: spc or 0)
    figure, panels = panels_of(1, len(RATES), (8.6, 2.7))
    every = [value for line in one.lines for value in line.values]
    for axis, rate in zip(panels[0], RATES, strict=True):
        for i, spc in enumerate(budgets):
            color = COLORS[i % len(COLORS)]
            mine = [line for line in one.lines if line.spc == spc]
            for line in mine:
                axis.plot(line.values, 100 * line.rates[rate], color=color, lw=0.8, alpha=0.4)
            for values in dict.fromkeys(line.values for line in mine):
                same = [line.rates[rate] for line in mine if line.values == values]
                axis.plot(values, 100 * np.mean(same, axis=0), "o-", color=color, lw=2.2, ms=4.5)
        axis.set(title=f"{rate.upper()}, percent", xlabel=one.leaf, ylim=(-2, 102))
        if min(every) > 0 and max(every) > WIDE * min(every):
            axis.set_xscale("log")
        axis.grid(True)
    told = [("no clean data" if spc is None else f"{spc} per class", i) for i, spc in enumerate(budgets)]
    legend(figure, [(text, {"color": COLORS[i % len(COLORS)], "lw": 2.2}) for text, i in told])
    return figure


def figures_of(records: "pl.DataFrame") -> Iterator[tuple[str, str, "Figure"]]:
    """(slug, caption, figure) of every hyper-parameter that was swept."""
    for one in swept(records):
        tasks = len(one.lines)
        text = f"{one.title}: {one.leaf}, on {tasks} task{'s' * (tasks > 1)} (a thin line each, seeds averaged), the mean bold"
        rule = "" if one.profile == "corrected" else f"-{one.profile}"
        yield f"sensitivity-{one.defense.rpartition(':')[2]}{rule}-{one.leaf}", text, sensitivity(one)
