"""Figures from records: what a defense changed, what pruning does. Each function returns the figure.

Colours can be distinguished with any colour vision (Okabe and Ito); text and lines are drawn in one ink, which the HTML page
recolours to its light or dark theme. Nothing here touches matplotlib's global state.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from bdjax.errors import UserError
from bdjax.results import traces
from bdjax.results.configs import differing
from bdjax.results.methods import Method
from bdjax.results.pool import table
from bdjax.results.wording import lost, name, ratio_title, setting

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#333639"  # text and axes; the HTML page replaces it, and PAPER, by the colours of its theme
PAPER = "#fefefe"
GREY = "#8f979e"
KEY, LETTER = 0.6, 0.075  # inches of a legend: the mark of an entry, and a letter of it; about, and rather too much
PANELS, LABELS = 6.8, 1.6  # inches of two panels side by side under their titles, and at least of the labels before them
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


P = ParamSpec("P")


def styled(draw: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Draw in our style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def before_after(records: "pl.DataFrame") -> "Figure":
    """ACC and ASR before (hollow) and after (filled, with its 95 % interval) each defense, one row of panels per poison ratio.

    Args:
      records: rows of ONE training configuration, all ratios and defenses of it.

    Raises:
      UserError: the records hold no defense.
    """
    rows = [row for row in table(records).to_dicts() if row["defense"] != "none"]
    if not rows:
        raise UserError("the records hold no defense, so there is no before and after to draw")
    ratios = sorted({row["ratio"] for row in rows})
    groups = [[row for row in rows if row["ratio"] == ratio] for ratio in ratios]
    heights = [0.32 * len(group) + 0.75 for group in groups]
    labels = [_labels(group) for group in groups]
    wide = PANELS + max(LABELS, LETTER * max(len(text) for texts in labels for text in texts))
    figure, axes = panels_of(len(ratios), 2, (wide, sum(heights) + 0.4), gridspec_kw={"height_ratios": heights}, sharex=True)
    for (left, right), ratio, group, texts in zip(axes, ratios, groups, labels, strict=True):
        _dumbbells(left, group, "acc", COLORS[0], f"{ratio_title(ratio)} · accuracy (ACC)")
        _dumbbells(right, group, "asr", COLORS[1], "attack success (ASR)")
        left.set_yticks(range(len(group)), texts)
        right.set_yticks(range(len(group)), [""] * len(group))
    for axis in axes[-1]:
        axis.set_xlabel("percent of test images")
    legend(figure, [("before the defense", {"marker": "o", "markerfacecolor": PAPER, "color": GREY})], [("after", COLORS[:2])])
    return figure


@styled
def pruning_curve(records: "pl.DataFrame") -> "Figure":
    """Validation accuracy against the share of pruned channels: a thin line per member, the median bold, a dot at each stop.

    Args:
      records: rows of one training configuration and one defense whose trace holds ``pruned``, ``correct`` (validation hits per
        level), ``validation`` (rows) and ``level`` (the one taken); other rows are left out.

    Raises:
      UserError: no record holds such a trace.
    """
    found = [(row, *curve) for row in records.to_dicts() if (curve := traces.pruning_curve(row)) is not None]
    if not found:
        raise UserError("no record holds a pruning curve (a trace of pruned, correct, validation and level)")
    ratios = sorted({row["ratio"] for row, *_ in found})
    budgets = sorted({row["spc"] or 0 for row, *_ in found})
    figure, panels = panels_of(1, len(ratios), (max(2.9 * len(ratios), 4.2) + 0.4, 2.9), sharey=True)
    for axis, ratio in zip(panels[0], ratios, strict=True):
        for spc in budgets:
            color = COLORS[budgets.index(spc) % len(COLORS)]
            group = [(share, hits, level) for row, share, hits, level in found if (row["ratio"], row["spc"] or 0) == (ratio, spc)]
            for share, hits, level in group:
                axis.plot(100 * share, 100 * hits, color=color, lw=0.8, alpha=0.45)
                axis.plot(100 * share[level], 100 * hits[level], "o", color=color, ms=4.5)
            if len(group) > 2 and all(np.array_equal(share, group[0][0]) for share, _, _ in group):
                axis.plot(100 * group[0][0], 100 * np.median([hits for _, hits, _ in group], axis=0), color=color, lw=2.2)
        axis.set(title=ratio_title(ratio), xlabel="channels pruned, percent", xlim=(-2, 102), ylim=(-2, 104))
        axis.grid(True)
    panels[0][0].set_ylabel("validation accuracy, percent")
    lines = [(f"{spc} per class", {"color": COLORS[i % len(COLORS)]}) for i, spc in enumerate(budgets)]
    legend(figure, [*lines, ("where it stopped", {"marker": "o", "color": INK, "ls": "none"})])
    return figure


@styled
def pruned_channels(records: "pl.DataFrame") -> "Figure":
    """The share of channels pruned in each layer: the median over members and their range, one colour per poison ratio.

    Args:
      records: rows of one training configuration and one defense with masks; rows without are left out.

    Raises:
      UserError: no record holds masks.
    """
    found = [(row["ratio"], json.loads(row["masks"])) for row in records.to_dicts() if row["masks"] and row["status"] == "ok"]
    if not found:
        raise UserError("no record holds pruning masks")
    layers = list(found[0][1])
    ratios = sorted({ratio for ratio, _ in found})
    figure, panels = panels_of(1, 1, (6.4, 0.26 * len(layers) + 1.3))
    axis = panels[0][0]
    for i, ratio in enumerate(ratios):
        shares = np.array([[100 * len(m[a]["pruned"]) / m[a]["d"] for a in layers] for r, m in found if r == ratio])
        place = np.arange(len(layers)) + (i - (len(ratios) - 1) / 2) * min(0.22, 0.7 / len(ratios))
        color = COLORS[i % len(COLORS)]
        axis.hlines(place, shares.min(0), shares.max(0), color=color, lw=1.4, alpha=0.6)
        axis.plot(np.median(shares, axis=0), place, "o", color=color, ms=4.5)
    axis.set_yticks(range(len(layers)), [f"{a} ({found[0][1][a]['d']})" for a in layers])
    axis.set(xlabel="channels pruned, percent of the layer", xlim=(-2, 102), ylim=(len(layers) - 0.4, -0.6))
    axis.grid(True, axis="x")
    legend(figure, [(ratio_title(r), {"color": COLORS[i % len(COLORS)], "marker": "o"}) for i, r in enumerate(ratios)])
    return figure


def _dumbbells(axis: "Axes", rows: list[dict[str, Any]], metric: str, color: str, title: str) -> None:
    for y, row in enumerate(rows):
        before, after, low, high = (row[key] for key in (f"{metric}_before", metric, f"{metric}_low", f"{metric}_high"))
        if after is None:
            axis.annotate(lost(row) or "undefined", (50, y), ha="center", va="center", fontsize=8, fontstyle="italic", color=GREY)
            continue
        if before is not None:
            axis.plot([100 * before, 100 * after], [y, y], color=GREY, lw=1.0, zorder=1)
            axis.plot(100 * before, y, "o", mfc=PAPER, mec=GREY, mew=1.3, ms=6, zorder=2)
        if low is not None:
            axis.plot([100 * low, 100 * high], [y, y], color=color, lw=3.6, alpha=0.45, solid_capstyle="round", zorder=3)
        axis.plot(100 * after, y, "o", color=color, ms=6, zorder=4)
        axis.text(1.015, y, f"{100 * after:.1f}", transform=axis.get_yaxis_transform(), ha="left", va="center", fontsize=8)
    axis.set(title=title, xlim=(-3, 103), ylim=(len(rows) - 0.4, -0.6))
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    """Defense and samples per class, and whatever else distinguishes two rows."""
    short = [name(row) + (f" · {row['spc']} per class" if row["spc"] is not None else "") for row in rows]
    full = []
    for text, row in zip(short, rows, strict=True):
        same = [json.loads(other["hyper"]) for name, other in zip(short, rows, strict=True) if name == text]
        mine = json.loads(row["hyper"])
        full.append(" · ".join([text, *(f"{leaf} {mine[leaf]:g}" for leaf in differing(same) if leaf in mine)]))
    unique = [
        text if full.count(text) == 1 else f"{text} · {row['settings'] or setting('cell', row['cell'])}"
        for text, row in zip(full, rows, strict=True)
    ]
    partly = [f" ({row['ok']} of {row['runs']})" if 0 < row["ok"] < row["runs"] else "" for row in rows]
    return [text + part for text, part in zip(unique, partly, strict=True)]


def panels_of(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple["Figure", Any]:
    """A figure with axes [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(
    figure: "Figure", lines: Sequence[tuple[str, dict[str, Any]]], pairs: Sequence[tuple[str, Sequence[str]]] = ()
) -> None:
    """One legend for the whole figure, under it, in as many columns as it has room for."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    handles: list[Any] = [Line2D([], [], **{"ls": "none" if "marker" in style else "-", **style}) for _, style in lines]
    handles += [tuple(Line2D([], [], marker="o", ls="none", color=color) for color in colors) for _, colors in pairs]
    texts = [text for text, _ in [*lines, *pairs]]
    columns = int(figure.get_figwidth() / (KEY + LETTER * max(map(len, texts))))
    columns = min(max(columns, 1), len(texts))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False, labelcolor=INK,
                  handler_map={tuple: HandlerTuple(None)}, fontsize=8.5)  # fmt: skip


def room(found: Sequence[Method]) -> float:
    """Inches for the longest label of some defenses."""
    return 0.066 * max(len(method.label) for method in found) + 0.3
