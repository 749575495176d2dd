"""Figures of what happened while a defense ran: losses by epoch, and the triggers that Neural Cleanse recovered."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, GREY, INK, legend, panels_of, styled
from bdjax.results.traces import courses
from bdjax.results.wording import ratio_title

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

SHOWN = 10  # classes whose recovered triggers are drawn at most


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


@styled
def recovered_triggers(members: list[tuple[str, dict[str, NDArray[Any]]]], names: tuple[str, ...] = ()) -> "Figure":
    """Recovered triggers, mask times pattern, of the classes with the smallest masks; flagged ones in colour.

    Args:
      members: (title, what :func:`bdjax.results.traces.recovered` returned), a row of pictures each.
      names: names of the classes; else their numbers.

    Raises:
      UserError: there is no member.
    """
    if not members:
        raise UserError("no record holds recovered triggers (a trace of mask, pattern, norm, anomaly and flagged)")
    columns = min(SHOWN, *(len(found["norm"]) for _, found in members))
    figure, axes = panels_of(len(members), columns, (0.95 * columns + 1.3, 1.3 * len(members) + 0.3))
    for row, (title, found) in zip(axes, members, strict=True):
        order = np.argsort(found["norm"], kind="stable")[:columns]
        for axis, k in zip(row, sorted(order), strict=True):
            picture = found["mask"][k][..., None] * found["pattern"][k]
            axis.imshow(np.clip(picture if picture.shape[-1] == 3 else picture[..., 0], 0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            color = COLORS[1] if found["flagged"][k] else GREY
            axis.spines[:].set(visible=True, linewidth=2.2 if found["flagged"][k] else 0.5, color=color)
            text = names[k] if k < len(names) else str(k)
            text = f"{text}\n{found['norm'][k]:.1f} · {found['anomaly'][k]:.1f}"
            ink = color if found["flagged"][k] else INK
            axis.set_title(text, fontsize=7, fontweight="normal", loc="center", color=ink)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8, fontsize=8)
    return figure
