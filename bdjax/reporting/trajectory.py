"""The course of a method that prunes one filter per round: loss, accuracy and score by round, and what was pruned where."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, INK, legend, panels_of, styled
from bdjax.results.traces import ROUNDS, Trajectory, trajectory
from bdjax.results.wording import ratio_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def trajectories(records: "pl.DataFrame") -> "Figure":
    """A line per member and colour per poison ratio: unlearning loss, clean validation accuracy and score by round, a dot at the
    round that was kept; and on the right how many filters of each convolution were pruned, on average.

    Args:
      records: rows of one training configuration and one defense; those without rounds are left out.

    Raises:
      UserError: no record has rounds.
    """
    found = [(row["ratio"], rounds) for row in records.to_dicts() if (rounds := trajectory(row)) is not None]
    if not found:
        raise UserError(f"no record tells rounds of pruning (a trace of {', '.join(ROUNDS)})")
    ratios = sorted({ratio for ratio, _ in found})
    pruned = sorted({int(address) for _, rounds in found for address in rounds.address if address >= 0})
    figure, panels = panels_of(1, 4, (11.4, 2.9))
    for i, ratio in enumerate(ratios):
        color = COLORS[i % len(COLORS)]
        mine = [rounds for r, rounds in found if r == ratio]
        for rounds in mine:
            _lines(panels[0][:3], rounds, color)
        counts = [np.mean([np.sum(rounds.address[: rounds.kept + 1] == address) for rounds in mine]) for address in pruned]
        place = np.arange(len(pruned)) + (i - (len(ratios) - 1) / 2) * 0.8 / len(ratios)
        panels[0][3].barh(place, counts, 0.7 / len(ratios), color=color)
    for axis, title in zip(
        panels[0], ("unlearning loss", "clean validation accuracy, %", "score of the filter", "filters kept pruned"), strict=True
    ):
        axis.set(title=title, xlabel="round")
        axis.grid(True)
    if (np.concatenate([rounds.score[1:] for _, rounds in found]) > 0).any():
        panels[0][2].set_yscale("log")
    panels[0][3].set_yticks(range(len(pruned)), [f"conv {address + 1}" for address in pruned])
    panels[0][3].set(xlabel="filters, mean over members", ylim=(max(len(pruned), 1) - 0.4, -0.6))
    by_ratio = [(ratio_title(ratio), {"color": COLORS[i % len(COLORS)]}) for i, ratio in enumerate(ratios)]
    legend(figure, [*by_ratio, ("kept", {"marker": "o", "color": INK, "ls": "none"})])
    return figure


def _lines(axes: Sequence["Axes"], rounds: Trajectory, color: str) -> None:
    """The unlearning loss, the accuracy and the score of one member by round."""
    for axis, values, scale in zip(axes, (rounds.unlearning, rounds.accuracy, rounds.score), (1, 100, 1), strict=True):
        axis.plot(scale * values, color=color, lw=1.1, alpha=0.7)
        if rounds.kept or values is not rounds.score:  # at round 0 nothing was scored
            axis.plot(rounds.kept, scale * values[rounds.kept], "o", color=color, ms=4.5)
