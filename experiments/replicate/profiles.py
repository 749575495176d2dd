"""What the published code's behaviour changes: the profile "reference" beside "corrected", the same cells and seeds."""

from typing import Any

import numpy as np
import polars as pl
from runs import Runs, by_defense, estimate

from bdjax.report.figures import COLORS, GREY, panels_of, styled


def both(corrected: pl.DataFrame, reference: pl.DataFrame, spc: int) -> dict[str, tuple[Runs, Runs]]:
    """{defense: its runs as corrected, and as published}, of the attacks and defenses that both hold."""
    attacks = reference["attack"].unique()
    found = []
    for rows in (corrected.filter(pl.col("attack").is_in(attacks.implode())), reference):
        mine = by_defense(rows.filter(pl.col("defense") != "none"), spc=spc)
        found.append({**mine, **by_defense(rows.filter(pl.col("defense") != "none"), spc=None)})
    return {name: (found[0][name], found[1][name]) for name in found[0] if name in found[1]}


def table(found: dict[str, tuple[Runs, Runs]]) -> str:
    """DER and ASR of both, the paired difference, and the ranks."""
    from scipy.stats import kendalltau

    ranked = [sorted(found, key=lambda name: -found[name][which].mean("der")) for which in (0, 1)]
    lines = ["| defense | DER corrected | DER reference | difference, paired | rank | rank as published |", "|---|" + "---:|" * 5]
    for name in ranked[0]:
        ours, theirs = (runs.rates["der"] for runs in found[name])
        difference = theirs - ours
        told = estimate(lambda a, s: float(np.nanmean(difference[a, s])), *difference.shape)  # noqa: B023 - used at once
        places = [order.index(name) + 1 for order in ranked]
        text = told.text()
        if told.low > 0 or told.high < 0:
            text = f"**{text}**"
        lines.append(f"| `{name}` | {100 * ours.mean():.1f} | {100 * theirs.mean():.1f} | {text} | {places[0]} | {places[1]} |")
    tau = kendalltau(*([found[name][which].mean("der") for name in found] for which in (0, 1)))
    moved = sum(abs(ranked[0].index(name) - ranked[1].index(name)) for name in found) / len(found)
    return "\n".join(
        [*lines, "", f"Kendall's tau of the two rankings: {tau.statistic:.2f}; a defense moves by {moved:.1f} places on average."]
    )


@styled
def picture(found: dict[str, tuple[Runs, Runs]]) -> Any:
    """Mean DER as corrected and as published, a line per defense; coloured where they are at least two points apart."""
    figure, panels = panels_of(1, 1, (5.4, 4.6))
    axis = panels[0][0]
    for runs in found.values():
        ends = [100 * one.mean("der") for one in runs]
        color = GREY if abs(ends[0] - ends[1]) < 2 else COLORS[ends[1] > ends[0]]
        axis.plot([0, 1], ends, "o-", color=color, ms=4)
    for which, align in ((0, "right"), (1, "left")):
        heights = {name: 100 * runs[which].mean("der") for name, runs in found.items()}
        last = -np.inf
        for name in sorted(heights, key=heights.__getitem__):  # names keep a line apart
            last = max(heights[name], last + 1.6)
            axis.text(which + (0.04 if which else -0.04), last, name, ha=align, va="center", fontsize=7.5)
    axis.set_xticks([0, 1], ["corrected", "reference"])
    axis.set(xlim=(-0.6, 1.6), ylabel="mean DER, percent")
    axis.grid(True, axis="y")
    return figure
