"""Figures of what a defense's hyper-parameters do: its rates along each one that took several values."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, legend, panels_of, styled
from bdjax.results.scenarios import slug
from bdjax.results.sensitivity import RATES, Swept, swept

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

WIDE = 20.0  # a largest value so many times the smallest is drawn on a logarithmic axis


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
    texts = [("no clean data" if spc is None else f"{spc} per class", i) for i, spc in enumerate(budgets)]
    legend(figure, [(text, {"color": COLORS[i % len(COLORS)], "lw": 2.2}) for text, i in texts])
    return figure


def figures_of(records: "pl.DataFrame") -> Iterator[tuple[str, str, "Figure"]]:
    """(slug, caption, figure) of every hyper-parameter that was swept."""
    for one in swept(records):
        tasks = len(one.lines)
        text = (
            f"{one.title}: {one.leaf}, on {tasks} task{'s' * (tasks > 1)} (a thin line for each training configuration and "
            "poison ratio, seeds averaged), the mean bold"
        )
        parts = [one.defense.rpartition(":")[2], *([one.profile] if one.profile != "corrected" else []), one.settings, one.leaf]
        yield slug(f"sensitivity-{'-'.join(filter(None, parts))}"), text, sensitivity(one)
