"""Figures of what happened while a defense ran, by epoch."""

from typing import TYPE_CHECKING

import numpy as np

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, legend, panels_of, styled
from bdjax.results.traces import courses
from bdjax.results.wording import ratio_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure


@styled
def course(records: "pl.DataFrame") -> "Figure":
    """The course of a defense by epoch: a panel per quantity, a thin line per member, the median of each ratio bold.

    Args:
      records: rows of one training configuration and one defense; those without a course are left out.

    Raises:
      UserError: no record has a course.
    """
    found = [(row["ratio"], by_epoch) for row in records.to_dicts() if (by_epoch := courses(row))]
    if not found:
        raise UserError("no record tells what happened by epoch (a trace with lists as long as its loss)")
    fields, ratios = list(found[0][1]), sorted({ratio for ratio, _ in found})
    figure, panels = panels_of(1, len(fields), (2.7 * len(fields) + 0.6, 2.7))
    for axis, field in zip(panels[0], fields, strict=True):
        for i, ratio in enumerate(ratios):
            color = COLORS[i % len(COLORS)]
            lines = [course[field] for r, course in found if r == ratio and field in course]
            for line in lines:
                axis.plot(np.arange(1, len(line) + 1), line, color=color, lw=0.8, alpha=0.45)
            if len(lines) > 2 and len({len(line) for line in lines}) == 1:
                axis.plot(np.arange(1, len(lines[0]) + 1), np.median(lines, axis=0), color=color, lw=2.2)
        axis.set(title=field, xlabel="epoch")
        axis.grid(True)
    legend(figure, [(ratio_title(ratio), {"color": COLORS[i % len(COLORS)]}) for i, ratio in enumerate(ratios)])
    return figure
