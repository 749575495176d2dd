"""Figures over all tasks of a report: which defense is best where, how sure that is, and what it costs."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.metrics import Floats
from bdjax.report.figures import COLORS, GREY, INK, PAPER, legend, panels_of, styled
from bdjax.report.tables import differing, marks, setting
from bdjax.results.mitigation import LIMITS, Limits, judged
from bdjax.results.pool import described, with_tasks
from bdjax.results.statistics import cliques, probability_of_improvement, profile, ranks

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

METRICS = ("acc", "asr", "der", "arr", "rdr")
BEST = ("mitigated", "kept", "der")  # what defenses are ordered by: the later ones decide between equals
RANKED = "standing"  # orders single runs in the same way
JUDGED = ("mitigated", "kept", RANKED)
TITLES = {"mitigated": "share of runs mitigated", RANKED: "mitigated, then accuracy kept, then DER"}
MOST_NAMED = 16  # dots that still have room for their names
LEAST = 0.5  # share of the tasks that a method has to have met to be ranked with the others


class Method(NamedTuple):
    """A defense with its settings, and its runs by task."""

    label: str
    attacks: dict[str, str]  # of each task
    scores: dict[str, dict[str, Floats]]  # by metric: the runs of each task on which it is defined, f64[n], n >= 1
    seconds: dict[str, float]  # per member, mean over the runs of each task, without compilation


def methods(records: "pl.DataFrame", spc: int | None, best: Sequence[str] = BEST, limits: Limits = LIMITS) -> list[Method]:
    """The defenses of poisoned members with so many clean samples per class, and those that need none; the best first.

    Args:
      records: rows of a sweep.
      spc: clean samples per class; None = only defenses without.
      best: the metrics, by their mean over tasks, that say which is best; the later ones decide between equals.
      limits: what counts as mitigated, unless the records were judged already.
    """
    import polars as pl

    ok = pl.col("status") == "ok"  # what failed counts for none but the share that was mitigated
    kept = (ok | pl.col("mitigated").is_not_null()) & (pl.col("defense") != "none") & (pl.col("ratio") > 0)
    kept &= pl.col("spc").is_null() if spc is None else pl.col("spc").is_null() | (pl.col("spc") == spc)
    rule = pl.format(" ({})", pl.when(pl.col("labels") != "all_to_one").then(pl.col("labels")))
    tasks = (
        with_tasks(described(judged(records, limits)).filter(kept))
        .group_by("defense", "profile", "variant", "hyper", "task", maintain_order=True)
        .agg(
            pl.concat_str("attack", rule, ignore_nulls=True).first().alias("attack"),
            (pl.col("seconds") / pl.col("members")).filter(ok).mean(),
            pl.col("knows_trigger", "knows_test").any(),
            *(pl.col(metric).filter(ok).drop_nulls().drop_nans() for metric in METRICS),
            *(pl.col(name).drop_nulls() for name in JUDGED),
        )
    )
    parts = tasks.partition_by("defense", "profile", "variant", "hyper", maintain_order=True)
    keys = [part.select("defense", "profile", "variant", "hyper").row(0) for part in parts]
    names = _labels(keys, [part.row(0, named=True) for part in parts])
    listed = [_method(name, part) for name, part in zip(names, parts, strict=True)]
    return sorted(listed, key=lambda method: [-_mean(method, metric) for metric in best])


def _method(label: str, tasks: "pl.DataFrame") -> Method:
    names = tasks["task"].cast(str).to_list()
    scores = {
        metric: {name: values.to_numpy() for name, values in zip(names, tasks[metric], strict=True) if len(values)}
        for metric in (*METRICS, *JUDGED)
    }
    seconds = {name: value for name, value in zip(names, tasks["seconds"], strict=True) if value is not None}
    return Method(label, dict(zip(names, tasks["attack"], strict=True)), scores, seconds)


def _labels(keys: list[tuple[str, ...]], rows: list[dict[str, Any]]) -> list[str]:
    """Names of defenses, with the profile where there are several, and the settings in which two of one name differ."""
    told, several = [], len({rule for _, rule, _, _ in keys}) > 1
    for (defense, rule, variant, hyper), row in zip(keys, rows, strict=True):
        mine = {**(json.loads(variant) or {}), **json.loads(hyper)}
        others = [{**(json.loads(v) or {}), **json.loads(h)} for d, p, v, h in keys if (d, p) == (defense, rule)]
        moving = [leaf for leaf in differing(others) if leaf in mine]
        values = [f"{leaf} {mine[leaf]:g}" if isinstance(mine[leaf], float) else f"{leaf} {mine[leaf]}" for leaf in moving]
        kind = [rule] if several and rule != "corrected" else []
        told.append(", ".join([defense.rpartition(":")[2] + marks(row), *kind, *values]))
    return told


def _room(found: list[Method]) -> float:
    """Inches for the longest label."""
    return 0.066 * max(len(method.label) for method in found) + 0.3


def _mean(method: Method, metric: str) -> float:
    """Mean over the tasks of the mean over the runs; -inf where it is nowhere defined."""
    means = [values.mean() for values in method.scores[metric].values()]
    return float(np.mean(means)) if means else -np.inf


def block(found: list[Method], metric: str = RANKED) -> tuple[list[Method], list[str]]:
    """Methods that can be ranked by a metric, and the tasks on which it is defined for all of them.

    Methods that met less than half of the tasks are left out, so that one rarely run does not take the others' tasks away.
    """
    every = {task for method in found for task in method.scores[metric]}
    kept = [method for method in found if len(method.scores[metric]) >= LEAST * len(every)]
    common = sorted(every.intersection(*(method.scores[metric] for method in kept))) if kept else []
    return kept, common


@styled
def heat_map(found: list[Method], metric: str = "der") -> "Figure":
    """Mean of a metric per defense and attack, percent, as colours and numbers; blank where nothing was run.

    Raises:
      UserError: no method has a run.
    """
    _some(found)
    attacks = list(dict.fromkeys(attack for method in found for attack in method.attacks.values()))
    table = np.full((len(found), len(attacks)), np.nan)
    for i, method in enumerate(found):
        for j, attack in enumerate(attacks):
            means = [values.mean() for task, values in method.scores[metric].items() if method.attacks[task] == attack]
            table[i, j] = np.mean(means) if means else np.nan
    figure, panels = panels_of(1, 1, (0.7 * len(attacks) + 0.5 + _room(found), 0.27 * len(found) + 1.2))
    axis = panels[0][0]
    shown = axis.imshow(100 * table, cmap="cividis", vmin=0 if metric != "der" else 40, vmax=100, aspect="auto")
    for i, j in np.argwhere(~np.isnan(table)):
        light = shown.norm(100 * table[i, j]) > 0.55
        axis.text(j, i, f"{100 * table[i, j]:.0f}", ha="center", va="center", fontsize=8, color="#101010" if light else "#f5f5f5")
    axis.set_xticks(range(len(attacks)), [attack.rpartition(":")[2] for attack in attacks], rotation=35, ha="right")
    axis.set_yticks(range(len(found)), [method.label for method in found])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{_title(metric)}, percent")
    return figure


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.upper())


@styled
def boxes(found: list[Method]) -> "Figure":
    """The spread of DER, ACC and ASR over tasks, a box per defense: quartiles, median, whiskers to the 5th and 95th percentile.

    Raises:
      UserError: no method has a run.
    """
    _some(found)
    shown = ("der", "acc", "asr")
    figure, panels = panels_of(1, len(shown), (7.2 + _room(found), 0.27 * len(found) + 1.1), sharey=True)
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
def rank_diagram(found: list[Method], metric: str = RANKED) -> "Figure":
    """Mean rank by a metric over the tasks that all methods met; bars join methods that do not differ (Nemenyi, 5 %).

    Raises:
      UserError: fewer than two methods or two common tasks.
    """
    kept, tasks = block(found, metric)
    if len(kept) < 2 or len(tasks) < 2:
        raise UserError("ranks need two defenses that met the same two tasks")
    told = ranks([[method.scores[metric][task].mean() for method in kept] for task in tasks])
    order = np.argsort(told.ranks, kind="stable")
    groups = cliques(told)
    figure, panels = panels_of(1, 1, (5.2 + _room(kept), 0.26 * len(kept) + 1.2))
    axis = panels[0][0]
    place = {int(k): y for y, k in enumerate(order)}
    for k, y in place.items():
        axis.plot(told.ranks[k], y, "o", color=COLORS[0], ms=5.5)
    for i, group in enumerate(groups):
        x = len(kept) + 0.6 + 0.35 * i
        axis.plot([x, x], [min(place[k] for k in group) - 0.25, max(place[k] for k in group) + 0.25], color=COLORS[1], lw=2.2)
    axis.set_yticks(range(len(kept)), [kept[int(k)].label for k in order])
    axis.set(xlim=(0.5, len(kept) + 0.9 + 0.35 * len(groups)), ylim=(len(kept) - 0.4, -0.6))
    axis.set(
        xlabel=f"mean rank over {told.tasks} tasks, 1 = best (critical difference {told.difference:.2f})\nby {_title(metric)}"
    )
    axis.set_title(f"Friedman's test that all are equal: p = {told.p:.2g}")
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
    figure, panels = panels_of(1, 1, (size + 0.4 + _room(kept), size + 0.6 + _room(kept)))
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
    axis.set_title(f"chance of a better run, percent, over {len(tasks)} tasks\n(better: {TITLES[RANKED]})")
    return figure


@styled
def profiles(found: list[Method], most: int = 6) -> "Figure":
    """Share of runs with a DER above each threshold; the best ``most`` defenses in colour, the others grey.

    Raises:
      UserError: no method has a run.
    """
    _some(found)
    levels = np.linspace(0.3, 1, 141)
    figure, panels = panels_of(1, 1, (6.4, 3.2))
    axis, told = panels[0][0], []
    for i, method in enumerate(found):
        runs = list(method.scores["der"].values())
        if runs:
            style = {"color": COLORS[i], "lw": 1.9} if i < min(most, len(COLORS)) else {"color": GREY, "lw": 0.8, "alpha": 0.7}
            axis.plot(100 * levels, 100 * profile(np.concatenate(runs), levels), **style)
            told += [(method.label, style)] if i < min(most, len(COLORS)) else []
    axis.set(xlabel="DER, percent", ylabel="runs above it, percent", xlim=(30, 100), ylim=(-2, 102))
    axis.grid(True)
    figure.legend(*_handles(told), loc="outside right upper", frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def _handles(told: list[tuple[str, dict[str, Any]]]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], **style) for _, style in told], [text for text, _ in told]


@styled
def cost_benefit(found: list[Method]) -> "Figure":
    """Seconds per member, without compilation, against the share of runs mitigated: a dot per defense.

    Named are those that no other beats in both.

    Raises:
      UserError: no method has a run.
    """
    _some(found)
    places = {}
    for method in found:
        times = list(method.seconds.values())
        if times and np.isfinite(_mean(method, BEST[0])):
            places[method.label] = max(float(np.mean(times)), 1e-3), 100 * _mean(method, BEST[0])
    figure, panels = panels_of(1, 1, (6.8, 3.8))
    axis = panels[0][0]
    for name, (x, y) in places.items():
        front = not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in places.values())
        axis.plot(x, y, "o", color=COLORS[0] if front else GREY, ms=6, mec=PAPER, mew=0.8)
        if front or len(places) <= MOST_NAMED:
            axis.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7.5)
    axis.set(xscale="log", xlabel="device seconds per member", ylabel="runs mitigated, percent")
    axis.grid(True)
    axis.margins(0.12, 0.12)
    return figure


def _some(found: list[Method]) -> None:
    if not any(method.attacks for method in found):
        raise UserError("no defense met a poisoned member")


def figures_of(records: "pl.DataFrame", limits: Limits = LIMITS) -> Iterator[tuple[str, str, "Figure"]]:
    """(slug, caption, figure) of everything that can be drawn, with the most clean samples per class that there are."""
    import polars as pl

    records = judged(records, limits)
    given = records.filter(pl.col("defense") != "none")["spc"].drop_nulls()
    budgets = sorted(given.unique().to_list(), reverse=True)
    for spc in budgets or [None]:
        found = methods(records, spc)
        if len(found) < 2:
            continue
        with_ = "without clean samples" if spc is None else f"{setting('spc', spc)} clean samples per class"
        end = "" if spc is None else f"-{spc}-per-class"
        if any(method.scores[BEST[0]] for method in found):
            text = f"Share of runs mitigated per defense and attack, {with_}: {limits.told()}"
            yield f"mitigated{end}", text, heat_map(found, BEST[0])
        yield f"heat-map{end}", f"Mean DER per defense and attack, {with_}", heat_map(found)
        if spc == (budgets or [None])[0]:
            yield f"boxes{end}", f"Spread over tasks, {with_}", boxes(found)
            yield f"cost-benefit{end}", f"What a repair takes and what it brings, {with_}", cost_benefit(found)
            yield f"profiles{end}", f"Performance profiles, {with_}", profiles(found)
            kept, tasks = block(found)
            if len(kept) > 1 and len(tasks) > 1:
                yield f"ranks{end}", f"Mean ranks, {with_}", rank_diagram(found)
                yield f"improvement{end}", f"Which defense beats which, {with_}", improvement(found)
