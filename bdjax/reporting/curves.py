"""ACC and ASR along a pruning curve: what a stopping rule chose, and what it could have chosen."""

from typing import TYPE_CHECKING

import numpy as np

from bdjax.reporting.figures import COLORS, INK, legend, panels_of, styled
from bdjax.results.curves import RATES, Group
from bdjax.results.wording import percent, ratio_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4  # panels side by side


def markdown(groups: list[Group]) -> str:
    """Every level with its means over the members."""
    lines = []
    for group in groups:
        about = group.about
        data = "no data" if about["spc"] is None else f"{about['spc']} per class"
        facts = (about["dataset"], about["model"], about["attack"], ratio_title(about["ratio"]), data, group.setting)
        lines += [
            f"**{', '.join(fact for fact in facts if fact)}**",
            "",
            f"| {group.label} | " + " | ".join(f"{name.upper()} %" for name in RATES) + " | n |",
            "|" + "---:|" * (len(RATES) + 2),
        ]
        for level, point in enumerate(group.points):
            means = [percent(float(np.mean(group.rates[name][:, level]))) for name in RATES]
            lines.append(f"| {point:g} | " + " | ".join(means) + f" | {len(group.chosen)} |")
        lines.append("")
    return "\n".join(lines)


@styled
def picture(groups: list[Group]) -> "Figure":
    """ACC and ASR by level, a thin line per member and the mean bold; a dot where each defense ended up.

    Args:
      groups: of one defense; a column of panels each.
    """
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    figure, panels = panels_of(rows, columns, (3.1 * columns + 0.6, 2.9 * rows + 0.3), sharey=True)
    for axis in panels.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, group in zip(panels.flat, groups, strict=False):
        _panel(axis, group)
    for axis in panels[:, 0]:
        axis.set_ylabel("percent of test images")
    lines = [(name.upper(), {"color": color}) for name, color in zip(RATES[:2], COLORS, strict=False)]
    legend(figure, [*lines, ("after the defense", {"marker": "o", "color": INK, "ls": "none"})])
    return figure


def _panel(axis: "Axes", group: Group) -> None:
    down = group.points[0] > group.points[-1]
    for name, color in zip(RATES[:2], COLORS, strict=False):
        for line in group.rates[name]:
            axis.plot(group.points, 100 * line, color=color, lw=0.8, alpha=0.45)
        axis.plot(group.points, 100 * group.rates[name].mean(0), color=color, lw=2.2)
    low, high = min(group.points), max(group.points)
    place = low if down else high  # the end of the axis: the records' networks were also tuned where the method tunes
    for i, color in enumerate(COLORS[:2]):
        axis.plot(np.full(len(group.chosen), place), 100 * group.chosen[:, i], "o", color=color, ms=5, clip_on=False)
    about = group.about
    data = "" if about["spc"] is None else f"{about['spc']} per class"
    second = " · ".join(part for part in (data, group.setting) if part)
    title = f"{about['attack']} · {ratio_title(about['ratio'])}" + (f"\n{second}" if second else "")
    axis.set(title=title, xlabel=group.label, ylim=(-2, 104))
    if down:
        axis.set_xlim(high, low)
    axis.grid(True)
