"""Labels beside the points of a plot, of which none covers another or a point."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bdjax.reporting.figures import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = 8.0  # points, of the text
DOT = 4.0  # points from the middle of a dot that no label enters
GAP = (5.0, 1.0)  # points between two labels, side by side and one over the other
NEAR = 12.0  # points from a dot within which a label needs no line to it
AROUND = 16  # directions in which a place is looked for
FARTHEST = 320.0  # points


class _Box(NamedTuple):
    """A rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)


def label_points(figure: "Figure", axis: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Write a name beside each point, with a thin line to it where the nearest free place is not next to it.

    The nearest place is taken that lies in the axes and is free; where none is, the one that covers least. The limits of the axes
    and the size of the figure have to be settled.

    Args:
      figure: that is labelled.
      axis: of it, with everything else drawn.
      points: (name, x, y) in the units of the data.
    """
    from matplotlib.text import Text

    if not points:
        return
    figure.draw_without_rendering()
    scale = 72 / figure.get_dpi()
    frame = _Box(*(scale * np.array(axis.get_window_extent().extents)))
    middles = scale * axis.transData.transform([(x, y) for _, x, y in points])
    taken = [_Box(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in middles]
    for i in np.lexsort((middles[:, 0], -middles[:, 1])):  # from above, so that lines cross little
        name, x, y = points[i]
        text = axis.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=SIZE, ha="center", va="center", in_layout=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        own = scale * np.array(Text.get_window_extent(text).size)  # without the line to the dot
        place, box, far = _free(middles[i], own + np.array(GAP), frame, taken)
        taken.append(box)
        text.set_position((place[0], place[1]))
        if text.arrow_patch is not None:
            text.arrow_patch.set_visible(far)


def _free(middle: np.ndarray, size: np.ndarray, frame: _Box, taken: list[_Box]) -> tuple[np.ndarray, _Box, bool]:
    """The offset of a label of so many points from its dot, its box, and whether it is far from the dot."""
    best, least = None, np.inf
    for offset, far in _offsets(size):
        x, y = middle + offset
        box = _Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
        covered = sum(box.overlap(other) for other in taken) + size[0] * size[1] - box.overlap(frame)
        if covered < least - 1e-6:
            best, least = (offset, box, far), covered
        if least < 1e-6:
            break
    assert best is not None
    return best


def _offsets(size: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Places around a dot, the nearest first: right, left, above, below, then between them, and farther and farther."""
    quarter = [0, AROUND // 2, AROUND // 4, 3 * AROUND // 4]
    order = [*quarter, *(k for k in range(AROUND) if k not in quarter)]
    directions = [np.array([np.cos(angle), np.sin(angle)]) for angle in 2 * np.pi * np.array(order) / AROUND]
    for distance in np.arange(0.5, FARTHEST, 5.0):
        for direction in directions:
            yield direction * (DOT + distance + size / 2), bool(distance > NEAR)
