"""Figures of images: how triggers look, and the triggers that a defense recovered. No label of them is cut off."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.reporting.figures import COLORS, GREY, INK, panels_of, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 0.95  # inches, of an image and what is between two
SHOWN = 10  # classes whose recovered triggers are drawn at most


@styled
def picture_grid(images: NDArray[np.uint8], triggered: Mapping[str, NDArray[np.uint8]], names: Sequence[str] = ()) -> "Figure":
    """Test images, the same images with the trigger of each attack, and ten times what the trigger changed.

    Args:
      images: u8[n h w c], the originals, one column each.
      triggered: {attack: u8[n h w c]}, two rows each.
      names: n column titles (class names).
    """
    rows = [("original", images)]
    for attack, pictures in triggered.items():
        change = np.abs(pictures.astype(np.int16) - images.astype(np.int16))
        rows += [(attack, pictures), ("change × 10", np.minimum(10 * change, 255).astype(np.uint8))]
    titles = [wrapped(title, SIDE, 8) for title in names]
    left = max(_inches(line, 9) for title, _ in rows for line in title.split("\n")) + 0.3
    top = 0.15 * max([title.count("\n") + 1 for title in titles], default=0) + 0.2
    figure, axes = _grid(len(rows), len(images), (SIDE * len(images) + left, SIDE * len(rows) + top))
    for row, (title, pictures) in zip(axes, rows, strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            shown = picture if picture.shape[-1] == 3 else picture[..., 0]
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="none")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(visible=True, linewidth=0.5)  # a white corner must show on a white page
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8)
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=8, fontweight="normal", loc="center")
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
    figure, axes = _grid(len(members), columns, (SIDE * columns + 1.3, 1.5 * len(members) + 0.3))
    for row, (title, found) in zip(axes, members, strict=True):
        order = np.argsort(found["norm"], kind="stable")[:columns]
        for axis, k in zip(row, sorted(order), strict=True):
            picture = found["mask"][k][..., None] * found["pattern"][k]
            axis.imshow(np.clip(picture if picture.shape[-1] == 3 else picture[..., 0], 0, 1), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            color = COLORS[1] if found["flagged"][k] else GREY
            axis.spines[:].set(visible=True, linewidth=2.2 if found["flagged"][k] else 0.5, color=color)
            text = wrapped(names[k], SIDE, 7) if k < len(names) else str(k)
            text = f"{text}\n{found['norm'][k]:.1f} · {found['anomaly'][k]:.1f}"
            ink = color if found["flagged"][k] else INK
            axis.set_title(text, fontsize=7, fontweight="normal", loc="center", color=ink)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", labelpad=8, fontsize=8)
    return figure


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", Any]:
    """A figure with axes [rows, columns] that stay as square as the images in them."""
    figure, axes = panels_of(rows, columns, size)
    figure.set_layout_engine("compressed")
    return figure, axes


def wrapped(text: str, inches: float, points: float) -> str:
    """A text of that size in at most two lines of so many inches; what does not fit ends with an ellipsis."""
    fits = max(int(inches / _inches("x", points)), 4)
    return "\n".join(textwrap.wrap(text, fits, max_lines=2, placeholder="…"))


def _inches(text: str, points: float) -> float:
    """The width of a line, about, and rather too much."""
    return len(text) * points * 0.62 / 72
