"""ACC and ASR along a pruning curve: what a stopping rule chose, and what it could have chosen."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax import metrics
from bdjax.report.figures import COLORS, INK, legend, panels_of, ratio_title, styled
from bdjax.report.tables import differing, percent
from bdjax.results.configs import labels
from bdjax.results.curves import Measured, measure
from bdjax.store import location
from bdjax.store.rows import Row

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

RATES = ("acc", "asr", "ra")
COLUMNS = 4  # panels side by side


class Group(NamedTuple):
    """Members of one cell that differ in their seeds alone."""

    about: Row  # of the first member
    setting: str  # profile and label rule, if they are not the usual ones, and the hyper-parameters that differ in the cell
    label: str
    points: tuple[float, ...]
    rates: dict[str, np.ndarray]  # f64[m L] in [0, 1]
    chosen: np.ndarray  # f64[m, 2]: ACC and ASR of the records, after everything that the defense did


def grouped(found: list[Measured]) -> list[Group]:
    """One group per cell, poison ratio and choice of hyper-parameters."""
    return list(_groups(found))


def _groups(found: list[Measured]) -> Iterator[Group]:
    for cell in found:
        every = metrics.rates(cell.counts)
        hypers = {row["hyper"]: json.loads(row["hyper"]) for row in cell.rows}
        moving = differing(list(hypers.values()))
        for ratio, hyper in sorted({(row["ratio"], row["hyper"]) for row in cell.rows}):
            index = [i for i, row in enumerate(cell.rows) if (row["ratio"], row["hyper"]) == (ratio, hyper)]
            profile = [] if cell.rows[0]["profile"] == "corrected" else [cell.rows[0]["profile"]]
            rule = [] if (kind := labels(cell.rows[0]["config"])) in (None, "all_to_one") else [str(kind)]
            setting = ", ".join([*profile, *rule, *(f"{leaf} {hypers[hyper][leaf]:g}" for leaf in moving)])
            rates = {name: np.asarray(rate, float)[index] for name, rate in zip(RATES, every, strict=True)}
            mine = [cell.rows[i] for i in index]
            chosen = np.array([[row[name] if row[name] is not None else np.nan for name in RATES[:2]] for row in mine])
            yield Group(mine[0], setting, cell.label, cell.points, rates, chosen)


def frame(found: list[Measured]) -> "pl.DataFrame":
    """Every level of every member: a row each, fractions in full precision."""
    import polars as pl

    facts = ("dataset", "model", "attack", "defense", "profile", "spc", "ratio", "seed", "hyper", "cell")
    rows: list[dict[str, Any]] = []
    for cell in found:
        every = [np.asarray(rate, float) for rate in metrics.rates(cell.counts)]
        for i, row in enumerate(cell.rows):
            about = {name: row[name] for name in facts}
            for level, point in enumerate(cell.points):
                told = {name: rate[i, level] for name, rate in zip(RATES, every, strict=True)}
                rows.append({**about, "level": level, cell.label: point, **told})
    return pl.DataFrame(rows, infer_schema_length=None)


def markdown(groups: list[Group]) -> str:
    """Every level with its means over the members."""
    lines = []
    for group in groups:
        about = group.about
        held = "no data" if about["spc"] is None else f"{about['spc']} per class"
        facts = (about["dataset"], about["model"], about["attack"], ratio_title(about["ratio"]), held, group.setting)
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
    """ACC and ASR by level, a thin line per member and the mean bold; a dot where each repair ended up.

    Args:
      groups: of one defense; a column of panels each.
    """
    columns = min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    figure, panels = panels_of(rows, columns, (3.1 * columns + 0.6, 2.9 * rows + 0.3), sharey=True)
    for axis in panels.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, group in zip(panels.flat, groups, strict=False):
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
        held = "" if about["spc"] is None else f"{about['spc']} per class"
        second = " · ".join(part for part in (held, group.setting) if part)
        title = f"{about['attack']} · {ratio_title(about['ratio'])}" + (f"\n{second}" if second else "")
        axis.set(title=title, xlabel=group.label, ylim=(-2, 104))
        if down:
            axis.set_xlim(high, low)
        axis.grid(True)
    for axis in panels[:, 0]:
        axis.set_ylabel("percent of test images")
    told = [(name.upper(), {"color": color}) for name, color in zip(RATES[:2], COLORS, strict=False)]
    legend(figure, [*told, ("after the defense", {"marker": "o", "color": INK, "ls": "none"})])
    return figure


def pruning_curve(
    out: str, defense: str, /, *, data_dir: str | None = None, dataset: str | None = None, imported: str | None = None
) -> int:
    """Measure ACC and ASR at every level of a defense's pruning curve, for analysis: a table, a CSV file and a picture.

    Args:
      out: folder of the results.
      defense: one that prunes more and more: fp, anp, clp, rnp, bnp, or your own.
      data_dir: folder of the data archives; default: the environment's BDJAX_DATA_DIR.
      dataset: path of the data set, where it is your own.
      imported: import folder the networks came from, if they did.
    """
    found = measure(out, defense, data_dir=data_dir, dataset=dataset, folder=imported)
    groups = grouped(found)
    print(markdown(groups))
    figures = location.locate(out) / "figures"
    name = f"pruning-curve-{defense.rpartition(':')[2]}"
    with location.written(figures) as folder:
        frame(found).write_csv(folder / f"{name}.csv")
        picture(groups).savefig(folder / f"{name}.png", dpi=150)
    print(f"picture in {figures / name}.png, numbers in {figures / name}.csv", file=sys.stderr)
    return 0
