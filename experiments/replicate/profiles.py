"""What the published code's behaviour changes: the profile "reference" beside "corrected", the same cells and seeds."""

from typing import Any

import numpy as np
import polars as pl
from runs import Runs, by_defense, estimate

from bdjax.reporting.figures import COLORS, GREY, PAPER, legend, panels_of, styled


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
    """Mean DER as corrected (filled) and as published (hollow), a row per defense; a line where they are two points apart."""
    order = sorted(found, key=lambda name: -found[name][0].mean("der"))
    figure, panels = panels_of(1, 1, (5.6, 0.24 * len(order) + 1.0))
    axis = panels[0][0]
    for y, name in enumerate(order):
        ours, theirs = (100 * runs.mean("der") for runs in found[name])
        if abs(ours - theirs) >= 2:
            axis.plot([ours, theirs], [y, y], color=COLORS[1], lw=1.6, zorder=1)
        axis.plot(theirs, y, "o", mfc=PAPER, mec=GREY, mew=1.4, ms=7, zorder=2)
        axis.plot(ours, y, "o", color=COLORS[0], ms=4.5, zorder=3)
    axis.set_yticks(range(len(order)), order)
    axis.set(ylim=(len(order) - 0.4, -0.6), xlabel="mean DER, percent")
    axis.grid(True, axis="x")
    told = [
        ("corrected", {"marker": "o", "color": COLORS[0]}),
        ("reference", {"marker": "o", "mfc": PAPER, "color": GREY, "mew": 1.4}),
    ]
    legend(figure, told)
    return figure
