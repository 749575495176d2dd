"""The course of a method that prunes one filter per round: loss, accuracy and score by round, and what was pruned where."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.report.figures import COLORS, INK, legend, panels_of, ratio_title, styled

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

FIELDS = ("address", "filter", "score", "errors", "unlearning", "validation", "rounds", "kept")


class Trajectory(NamedTuple):
    """The rounds of one member, f64[rounds + 1]; entry 0 is the network as it came."""

    unlearning: NDArray[np.float64]  # cross-entropy on triggered validation rows
    accuracy: NDArray[np.float64]  # on clean validation rows, in [0, 1]
    score: NDArray[np.float64]  # of the filter that was pruned; NaN at 0
    address: NDArray[np.int64]  # number of its convolution; -1 = none
    kept: int  # the round whose network was kept


def trajectory(row: dict[str, Any]) -> Trajectory | None:
    """The rounds that a record tells; None where it tells none."""
    if row["status"] != "ok" or not row["trace"]:
        return None
    trace = json.loads(row["trace"])
    if not set(FIELDS) <= set(trace) or trace["rounds"] < 1:
        return None
    rounds = slice(0, trace["rounds"] + 1)
    unlearning, score = (np.array([np.nan if x is None else x for x in trace[f][rounds]], float) for f in ("unlearning", "score"))
    accuracy = 1 - np.array(trace["errors"][rounds], float) / max(trace["validation"], 1)
    return Trajectory(unlearning, accuracy, score, np.array(trace["address"][rounds], int), trace["kept"])


@styled
def trajectories(records: "pl.DataFrame") -> "Figure":
    """A line per member and colour per poison ratio: unlearning loss, clean validation accuracy and score by round, a dot at the
    round that was kept; and on the right how many filters of each convolution were pruned, on average.

    Args:
      records: rows of one training configuration and one defense; those that tell no rounds are left out.

    Raises:
      UserError: no record tells rounds.
    """
    found = [(row["ratio"], told) for row in records.to_dicts() if (told := trajectory(row)) is not None]
    if not found:
        raise UserError(f"no record tells rounds of pruning (a trace of {', '.join(FIELDS)})")
    ratios = sorted({ratio for ratio, _ in found})
    pruned = sorted({int(address) for _, told in found for address in told.address if address >= 0})
    figure, panels = panels_of(1, 4, (11.4, 2.9))
    for i, ratio in enumerate(ratios):
        color = COLORS[i % len(COLORS)]
        mine = [told for r, told in found if r == ratio]
        for told in mine:
            for axis, values, scale in zip(panels[0], (told.unlearning, told.accuracy, told.score), (1, 100, 1), strict=False):
                axis.plot(scale * values, color=color, lw=1.1, alpha=0.7)
                if told.kept or axis is not panels[0][2]:  # at round 0 nothing was scored
                    axis.plot(told.kept, scale * values[told.kept], "o", color=color, ms=4.5)
        counts = [np.mean([np.sum(told.address[: told.kept + 1] == address) for told in mine]) for address in pruned]
        place = np.arange(len(pruned)) + (i - (len(ratios) - 1) / 2) * 0.8 / len(ratios)
        panels[0][3].barh(place, counts, 0.7 / len(ratios), color=color)
    for axis, title in zip(
        panels[0], ("unlearning loss", "clean validation accuracy, %", "score of the filter", "filters kept pruned"), strict=True
    ):
        axis.set(title=title, xlabel="round")
        axis.grid(True)
    if (np.concatenate([told.score[1:] for _, told in found]) > 0).any():
        panels[0][2].set_yscale("log")
    panels[0][3].set_yticks(range(len(pruned)), [f"conv {address + 1}" for address in pruned])
    panels[0][3].set(xlabel="filters, mean over members", ylim=(max(len(pruned), 1) - 0.4, -0.6))
    told_ratios = [(ratio_title(ratio), {"color": COLORS[i % len(COLORS)]}) for i, ratio in enumerate(ratios)]
    legend(figure, [*told_ratios, ("kept", {"marker": "o", "color": INK, "ls": "none"})])
    return figure
