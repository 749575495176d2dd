"""Figures of which defense beats which: mean ranks over tasks, and the chance of a better run for every pair."""

from typing import TYPE_CHECKING

import numpy as np

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, legend, panels_of, room, styled
from bdjax.results.methods import RANKED, Method, block, title
from bdjax.results.statistics import cliques, probability_of_improvement, ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def rank_diagram(found: list[Method], metric: str = RANKED) -> "Figure":
    """Mean rank by a metric over the tasks that all methods met; bars join methods that do not differ (Nemenyi, 5 %).

    Raises:
      UserError: fewer than two methods or two common tasks.
    """
    kept, tasks = block(found, metric)
    if len(kept) < 2 or len(tasks) < 2:
        raise UserError("ranks need two defenses that met the same two tasks")
    compared = ranks([[method.scores[metric][task].mean() for method in kept] for task in tasks])
    order = np.argsort(compared.ranks, kind="stable")
    groups = cliques(compared)
    figure, panels = panels_of(1, 1, (5.2 + room(kept), 0.26 * len(kept) + 1.2))
    axis = panels[0][0]
    place = {int(k): y for y, k in enumerate(order)}
    for k, y in place.items():
        axis.plot(compared.ranks[k], y, "o", color=COLORS[0], ms=5.5)
    for i, group in enumerate(groups):
        x = len(kept) + 0.6 + 0.35 * i
        axis.plot([x, x], [min(place[k] for k in group) - 0.25, max(place[k] for k in group) + 0.25], color=COLORS[1], lw=2.2)
    axis.set_yticks(range(len(kept)), [kept[int(k)].label for k in order])
    axis.set(xlim=(0.5, len(kept) + 0.9 + 0.35 * len(groups)), ylim=(len(kept) - 0.4, -0.6))
    axis.set(
        xlabel=f"mean rank over {compared.tasks} tasks, 1 = best "
        f"(critical difference {compared.difference:.2f})\nby {title(metric)}"
    )
    axis.set_title(f"Friedman's test that all are equal: p = {compared.p:.2g}")
    axis.grid(True, axis="x")
    legend(figure, [("not told apart at 5 %", {"color": COLORS[1], "lw": 2.2})] if groups else [])
    return figure


@styled
def improvement(found: list[Method]) -> "Figure":
    """Chance that a run of the row's defense is better than one of the column's on the same task, percent.

    The better one is mitigated and the other is not; of equals it kept its accuracy, then it has the larger DER. Bold where
    the 95 % interval of the chance excludes one half.

    Raises:
      UserError: fewer than two methods or no common task.
    """
    kept, tasks = block(found)
    if len(kept) < 2 or not tasks:
        raise UserError("a comparison needs two defenses that met the same task")
    runs = [[method.scores[RANKED][task] for task in tasks] for method in kept]
    size = 0.36 * len(kept)
    figure, panels = panels_of(1, 1, (size + 0.4 + room(kept), size + 0.6 + room(kept)))
    axis = panels[0][0]
    table = np.full((len(kept), len(kept)), np.nan)
    for i in range(len(kept)):
        for j in range(i):
            chance = probability_of_improvement(runs[i], runs[j], draws=500)
            sure = chance.low > 0.5 or chance.high < 0.5
            for a, b, value in ((i, j, chance.value), (j, i, 1 - chance.value)):
                table[a, b] = value
                weight, color = ("bold" if sure else "normal"), ("#101010" if 0.2 < value < 0.8 else "#f5f5f5")
                axis.text(b, a, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, fontweight=weight, color=color)
    axis.imshow(table, cmap="RdBu", vmin=0, vmax=1)
    names = [method.label for method in kept]
    axis.set_xticks(range(len(kept)), names, rotation=60, ha="right")
    axis.set_yticks(range(len(kept)), names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"chance of a better run, percent, over {len(tasks)} tasks\n(better: {title(RANKED)})")
    return figure
