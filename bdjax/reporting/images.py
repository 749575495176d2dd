"""Images in figures and pages: how triggers look, and the triggers that a defense recovered. No name of them is cut off."""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.reporting.drawing import Picture, Row
from bdjax.reporting.figures import COLORS, GREY, INK, panels_of, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 0.95  # inches, of an image and what is between two
GAIN = 10  # of what a trigger changes, as it is shown
SHOWN = 10  # classes whose recovered triggers are drawn at most


def of_triggers(
    images: NDArray[np.uint8], triggered: Mapping[str, NDArray[np.uint8]], names: Sequence[str] = ()
) -> tuple[Row, ...]:
    """Test images, the same images with the trigger of each attack, and what the trigger changed (:func:`changed`).

    Args:
      images: u8[n h w c], the originals, one column each.
      triggered: {attack: u8[n h w c]}, two rows each.
      names: of the n classes.
    """
    texts = [*names, *[""] * len(images)]
    rows = [Row("original", tuple(map(Picture, images, texts)))]
    for attack, pictures in triggered.items():
        rows.append(Row(attack, tuple(map(Picture, pictures))))
        rows.append(Row(f"change × {GAIN}", tuple(map(Picture, changed(images, pictures)))))
    return tuple(rows)


def changed(images: NDArray[np.uint8], triggered: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a trigger changes: 127 + 10 (x' - x), clipped to 0 … 255, so that grey is unchanged and bright is brighter."""
    return np.clip(127 + GAIN * (triggered.astype(np.int16) - images.astype(np.int16)), 0, 255).astype(np.uint8)


def of_recovered(members: list[tuple[str, dict[str, NDArray[Any]]]], names: Sequence[str] = ()) -> tuple[Row, ...]:
    """Recovered triggers, mask times pattern, of the classes with the smallest masks; flagged ones are marked.

    Args:
      members: (title, what :func:`bdjax.results.traces.recovered` returned), a row of pictures each.
      names: names of the classes; else their numbers.

    Raises:
      UserError: there is no member.
    """
    if not members:
        raise UserError("no record holds recovered triggers (a trace of mask, pattern, norm, anomaly and flagged)")
    columns = min(SHOWN, *(len(found["norm"]) for _, found in members))
    rows = []
    for title, found in members:
        pictures = []
        for k in sorted(np.argsort(found["norm"], kind="stable")[:columns]):
            picture = np.round(255 * np.clip(found["mask"][k][..., None] * found["pattern"][k], 0, 1)).astype(np.uint8)
            text = f"{names[k] if k < len(names) else k}\n{found['norm'][k]:.1f} · {found['anomaly'][k]:.1f}"
            pictures.append(Picture(picture, text, bool(found["flagged"][k])))
        rows.append(Row(title, tuple(pictures)))
    return tuple(rows)


@styled
def sheet(rows: Sequence[Row]) -> "Figure":
    """Rows of images of one length, each with its name on the left and the texts of its images above them."""
    texts = [["\n".join(wrapped(line, SIDE, 8) for line in one.text.split("\n")) for one in row.pictures] for row in rows]
    tall = [max(text.count("\n") + 1 if text else 0 for text in row) for row in texts]
    left = max(_inches(line, 9) for row in rows for line in row.name.split("\n")) + 0.3
    columns = len(rows[0].pictures)
    figure, axes = panels_of(len(rows), columns, (SIDE * columns + left, SIDE * len(rows) + 0.15 * sum(tall) + 0.2))
    figure.set_layout_engine("compressed")  # axes stay as square as the images in them
    for axis, (i, j) in zip(axes.flat, [(i, j) for i in range(len(rows)) for j in range(columns)], strict=True):
        one = rows[i].pictures[j]
        shown = one.image if one.image.shape[-1] == 3 else one.image[..., 0]
        axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axis.set(xticks=[], yticks=[])
        color = COLORS[1] if one.marked else GREY  # a white corner must show on a white page
        axis.spines[:].set(visible=True, linewidth=2.2 if one.marked else 0.5, color=color)
        axis.set_title(texts[i][j], fontsize=8, fontweight="normal", loc="center", color=color if one.marked else INK)
    for axis, row in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(row.name, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def embedded(image: NDArray[np.uint8]) -> str:
    """An image u8[h w c] as the address of one that stands in the page itself."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def wrapped(text: str, inches: float, points: float) -> str:
    """A text of that size in at most two lines of so many inches; what does not fit ends with an ellipsis."""
    fits = max(int(inches / _inches("x", points)), 4)
    return "\n".join(textwrap.wrap(text, fits, max_lines=2, placeholder="…"))


def _inches(text: str, points: float) -> float:
    """The width of a line, about, and rather too much."""
    return len(text) * points * 0.62 / 72
