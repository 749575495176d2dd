"""Figures over all tasks of a report: which defense is best where, how far its results spread, and what it costs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.reporting.drawing import Drawing
from bdjax.reporting.figures import COLORS, GREY, INK, LETTER, PAPER, panels_of, room, styled
from bdjax.reporting.labels import label_points
from bdjax.reporting.rankings import improvement, rank_diagram
from bdjax.results.methods import BEST, Method, block, mean, methods, require_runs, title
from bdjax.results.mitigation import LIMITS, Limits, judged
from bdjax.results.statistics import profile
from bdjax.results.wording import setting

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FEWEST = 5  # methods from which on figures that compare methods with each other are drawn
UNCHANGED = 50  # percent: the DER of a defense that does nothing
ROW = 0.27  # inches, the height of a method in a heat map
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
COMPARISONS = "ranks, chances of improvement, performance profiles and cost against benefit"


@styled
def heat_map(found: list[Method], metric: str = "der") -> "Figure":
    """Mean of a metric per defense and attack, percent, as colours and numbers; blank where nothing was run.

    Raises:
      UserError: no method has a run.
    """
    require_runs(found)
    attacks = list(dict.fromkeys(attack for method in found for attack in method.attacks.values()))
    table = np.full((len(found), len(attacks)), np.nan)
    for i, method in enumerate(found):
        for j, attack in enumerate(attacks):
            means = [values.mean() for task, values in method.scores[metric].items() if method.attacks[task] == attack]
            table[i, j] = np.mean(means) if means else np.nan
    figure, panels = panels_of(
        1, 1, (0.7 * len(attacks) + (2.1 if metric == "der" else 1.5) + room(found), ROW * len(found) + 1.4)
    )
    axis = panels[0][0]
    colors = "RdBu" if metric == "der" else "Blues"  # the first is neutral in the middle, where DER says that nothing changed
    shown = axis.imshow(100 * table, cmap=colors, vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(~np.isnan(table)):
        light = np.dot(shown.to_rgba(100 * table[i, j])[:3], LUMINANCE) > 0.46
        axis.text(j, i, f"{100 * table[i, j]:.0f}", ha="center", va="center", fontsize=8, color="#101010" if light else "#f5f5f5")
    axis.set_xticks(range(len(attacks)), [attack.rpartition(":")[2] for attack in attacks], rotation=35, ha="right")
    axis.set_yticks(range(len(found)), [method.label for method in found])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    _bar(figure, axis, shown, metric, ROW * len(found))
    return figure


def _bar(figure: "Figure", axis: "Axes", shown: "AxesImage", metric: str, high: float) -> None:
    """The bar that says what the colours stand for, beside a map so many inches high."""
    bar = figure.colorbar(shown, ax=axis, ticks=[0, 25, UNCHANGED, 75, 100], aspect=14, shrink=0.9, pad=0.02)
    if metric == "der":
        bar.ax.set_yticks([0, 25, UNCHANGED, 75, 100], ["0", "25", "50 no change", "75", "100 perfect"])
    text = "DER, percent" if metric == "der" else f"{title(metric)}, percent"
    bar.set_label(text if LETTER * len(text) < high else "percent")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2)


@styled
def boxes(found: list[Method]) -> "Figure":
    """The spread of DER, ACC and ASR over tasks, a box per defense: quartiles, median, whiskers to the 5th and 95th percentile.

    Raises:
      UserError: no method has a run.
    """
    require_runs(found)
    shown = ("der", "acc", "asr")
    figure, panels = panels_of(1, len(shown), (7.2 + room(found), 0.27 * len(found) + 1.1), sharey=True)
    for axis, metric, color in zip(panels[0], shown, COLORS, strict=False):
        for y, method in enumerate(found):
            means = [100 * values.mean() for values in method.scores[metric].values()]
            if means:
                style = {"color": color, "linewidth": 1.1}
                axis.boxplot(
                    [means], positions=[y], orientation="horizontal", widths=0.55, whis=(5, 95), showfliers=False,
                    boxprops=style, whiskerprops=style, capprops=style, medianprops={"color": INK, "linewidth": 1.6},
                )  # fmt: skip
        axis.set(title=f"{metric.upper()}, percent", xlim=(-2, 102), ylim=(len(found) - 0.4, -0.6))
        axis.grid(True, axis="x")
    panels[0][0].set_yticks(range(len(found)), [method.label for method in found])
    return figure


@styled
def profiles(found: list[Method], most: int = 6) -> "Figure":
    """Share of runs with a DER above each threshold; the best ``most`` defenses in colour, the others grey.

    Raises:
      UserError: no method has a run.
    """
    require_runs(found)
    levels = np.linspace(0.3, 1, 141)
    figure, panels = panels_of(1, 1, (6.4, 3.2))
    axis, lines = panels[0][0], []
    for i, method in enumerate(found):
        runs = list(method.scores["der"].values())
        if runs:
            style = {"color": COLORS[i], "lw": 1.9} if i < min(most, len(COLORS)) else {"color": GREY, "lw": 0.8, "alpha": 0.7}
            axis.plot(100 * levels, 100 * profile(np.concatenate(runs), levels), **style)
            lines += [(method.label, style)] if i < min(most, len(COLORS)) else []
    axis.set(xlabel="DER, percent", ylabel="runs above it, percent", xlim=(30, 100), ylim=(-2, 102))
    axis.grid(True)
    figure.legend(*_handles(lines), loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def _handles(lines: list[tuple[str, dict[str, Any]]]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **style) for _, style in lines], [text for text, _ in lines]


@styled
def cost_benefit(found: list[Method]) -> "Figure":
    """Seconds per member, without compilation, against the share of runs mitigated: a dot per defense, each with its name.

    In colour are those that no other beats in both.

    Raises:
      UserError: no method has a run.
    """
    require_runs(found)
    places = []
    for method in found:
        times = list(method.seconds.values())
        if times and np.isfinite(mean(method, BEST[0])):
            places.append((method.label, max(float(np.mean(times)), 1e-3), 100 * mean(method, BEST[0])))
    figure, panels = panels_of(1, 1, (7.4, max(3.8, 0.2 * len(places))))
    axis = panels[0][0]
    for _, x, y in places:
        front = not any(a <= x and b >= y and (a, b) != (x, y) for _, a, b in places)
        axis.plot(x, y, "o", color=COLORS[0] if front else GREY, ms=6, mec=PAPER, mew=0.8)
    axis.set(xscale="log", xlabel="device seconds per member", ylabel="runs mitigated, percent")
    axis.grid(True)
    axis.margins(0.15, 0.15)
    label_points(figure, axis, places)
    return figure


def figures_of(records: "pl.DataFrame", limits: Limits = LIMITS) -> Iterator[Drawing]:
    """Everything that can be drawn, with the most clean samples per class that there are.

    Figures that compare methods with each other (:data:`COMPARISONS`) need :data:`FEWEST` of them; with fewer the last drawing
    has no figure and says so.
    """
    import polars as pl

    records = judged(records, limits)
    given = records.filter(pl.col("defense") != "none")["spc"].drop_nulls()
    budgets = sorted(given.unique().to_list(), reverse=True) or [None]
    later: list[Drawing] = []
    for spc in budgets:
        found = methods(records, spc)
        with_ = "without clean samples" if spc is None else f"{setting('spc', spc)} clean samples per class"
        end = "" if spc is None else f"-{spc}-per-class"
        if len(found) > 1:
            yield from _of_attacks(found, limits, with_, end, spread=spc == budgets[0])
        if found and spc == budgets[0]:
            later += _comparisons(found, with_, end)
    yield from later


def _of_attacks(found: list[Method], limits: Limits, with_: str, end: str, spread: bool) -> Iterator[Drawing]:
    """What became of each attack; ``spread``: and how far the results of each defense spread."""
    if any(method.scores[BEST[0]] for method in found):
        text = f"Share of runs mitigated per defense and attack, {with_}: {limits.text()}"
        yield Drawing(f"mitigated{end}", text, heat_map(found, BEST[0]))
    text = f"Mean DER per defense and attack, {with_}: red is worse than no defense, blue is better"
    yield Drawing(f"heat-map{end}", text, heat_map(found))
    if spread:
        yield Drawing(f"boxes{end}", f"Spread over tasks, {with_}", boxes(found))


def _comparisons(found: list[Method], with_: str, end: str) -> Iterator[Drawing]:
    """Methods compared with each other, or why not."""
    if len(found) < FEWEST:
        there = "here is one" if len(found) == 1 else f"here are {len(found)}"
        text = f"they compare methods, and are drawn from {FEWEST} on; {there}."
        yield Drawing("comparisons", COMPARISONS, None, text)
        return
    yield Drawing(f"cost-benefit{end}", f"What a defense run takes and what it brings, {with_}", cost_benefit(found))
    yield Drawing(f"profiles{end}", f"Performance profiles, {with_}", profiles(found))
    kept, tasks = block(found)
    if len(kept) > 1 and len(tasks) > 1:
        yield Drawing(f"ranks{end}", f"Mean ranks, {with_}", rank_diagram(found))
        yield Drawing(f"improvement{end}", f"Which defense beats which, {with_}", improvement(found))
