"""One sheet for many attacks: originals on top, under them what each attack makes of them, and on the right what it changed."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError
from bdjax.reporting.figures import PAPER, styled
from bdjax.reporting.images import GAIN, changed
from bdjax.results.quality import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150  # every length below is in pixels of this resolution, so that a pixel of an image is a whole number of them
CELL = 96  # the longer side of a picture, about
FRAME, GAP = 1, 5  # a line around every picture, since a white corner must show on white paper, and the space to the next
BETWEEN, MARGIN, LINE = 26, 14, 20  # between the halves, around the sheet, and a line of small text
GLYPH = 1.27  # width of a character by its size in points: about, and rather too much
GREY = (143, 151, 158)


class Shown(NamedTuple):
    """A row of the sheet."""

    name: str
    triggered: NDArray[np.uint8]  # u8[n h w c], the originals of the sheet with this trigger
    quality: Summary | None = None  # printed under the name
    note: str = ""  # printed under that


@styled
def attack_sheet(originals: NDArray[np.uint8], rows: Sequence[Shown], names: Sequence[str] = ()) -> "Figure":
    """Draw the sheet: left the images, right 127 + 10 (x' - x), clipped, so that grey is unchanged and bright is brighter.

    Every pixel of an image becomes a square of whole pixels; save with ``dpi=figure.dpi`` to keep it so.

    Args:
      originals: u8[n h w c], one column each.
      rows: one attack each.
      names: n column titles (class names).

    Raises:
      UserError: no rows, or triggered images of another shape than the originals.
    """
    _require_pictures(originals, rows)
    scale = max(1, round(CELL / max(originals.shape[1:3])))
    pictures = mosaic([originals, *(row.triggered for row in rows)], scale)
    changes = mosaic([changed(originals, row.triggered) for row in rows], scale)
    down, across = (side * scale + 2 * FRAME + GAP for side in originals.shape[1:3])  # from one picture to the next
    titles = ["\n".join(textwrap.wrap(name, int(across / (8 * GLYPH)), max_lines=2, placeholder="…")) for name in names]
    labels = [(row.name, "\n".join(line for line in (*_quality_lines(row.quality), row.note) if line)) for row in rows]
    note = f"below: what the trigger changes, × {GAIN}\ngrey = unchanged, bright = brighter"
    top = 8 + LINE * max([title.count("\n") + 1 for title in titles], default=0)
    left = 2 * MARGIN + max(
        _wide(text, size) for pair in [("original", ""), *labels] for text, size in zip(pair, (9.5, 7), strict=True)
    )
    right = left + pictures.shape[1] + BETWEEN
    sheet = _Sheet(right + max(pictures.shape[1], _wide(note, 8.5)) + MARGIN, top + pictures.shape[0] + MARGIN)
    sheet.put(pictures, left, top)
    sheet.put(changes, right, top + down)
    middle = (down - GAP) / 2
    for i, title in enumerate(titles):
        sheet.write(title, left + i * across + (across - GAP) / 2, top / 2, 8, ha="center")
    sheet.write("original", left - MARGIN, top + middle, 9.5, ha="right", fontweight="bold")
    sheet.write(note, right, top + middle, 8.5, ha="left")
    for i, (name, text) in enumerate(labels, 1):
        y = top + i * down + middle
        lines = text.count("\n") + 1 if text else 0
        sheet.write(name, left - MARGIN, y - LINE / 2 * lines, 9.5, ha="right", fontweight="bold")
        sheet.write(text, left - MARGIN, y + LINE / 2, 7, ha="right")
    return sheet.figure


def _require_pictures(originals: NDArray[np.uint8], rows: Sequence[Shown]) -> None:
    """Raise UserError unless there are rows, with pictures of the shape and dtype of the originals."""
    for row in rows:
        if row.triggered.shape != originals.shape or row.triggered.dtype != np.uint8:
            given = f"{row.triggered.dtype}{list(row.triggered.shape)}"
            raise UserError(f"the pictures of {row.name} are {given}; the originals are uint8{list(originals.shape)}")
    if not rows:
        raise UserError("a sheet of attacks needs at least one attack")


class _Sheet:
    """A figure of so many pixels, on which things are placed by pixels from its upper left corner."""

    def __init__(self, wide: int, tall: int) -> None:
        from matplotlib.figure import Figure

        self.wide, self.tall = wide, tall
        self.figure = Figure(figsize=(wide / DPI, tall / DPI), dpi=DPI)

    def put(self, picture: NDArray[np.uint8], x: int, y: int) -> None:
        height, width = picture.shape[:2]
        axis = self.figure.add_axes((x / self.wide, 1 - (y + height) / self.tall, width / self.wide, height / self.tall))
        axis.imshow(picture, interpolation="none", aspect="auto")
        axis.set_axis_off()

    def write(self, text: str, x: float, y: float, size: float, **style: Any) -> None:
        self.figure.text(x / self.wide, 1 - y / self.tall, text, fontsize=size, **{"va": "center", **style})


def mosaic(rows: Sequence[NDArray[np.uint8]], scale: int) -> NDArray[np.uint8]:
    """Framed pictures on paper, u8[H W 3]: rows of u8[n h w c], every pixel ``scale`` times as wide and high."""
    count, high, wide, _ = rows[0].shape
    high, wide = (side * scale + 2 * FRAME for side in (high, wide))
    paper = np.array([int(PAPER[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    sheet = np.tile(paper, (len(rows) * (high + GAP) - GAP, count * (wide + GAP) - GAP, 1))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            y, x = i * (high + GAP), j * (wide + GAP)
            sheet[y : y + high, x : x + wide] = GREY
            sheet[y + FRAME : y + high - FRAME, x + FRAME : x + wide - FRAME] = picture.repeat(scale, 0).repeat(scale, 1)
    return sheet


def _wide(text: str, size: float) -> int:
    """Pixels that a text of ``size`` points takes, about."""
    return round(size * GLYPH * max(map(len, text.split("\n"))))


def _quality_lines(found: Summary | None) -> tuple[str, ...]:
    if found is None:
        return ()
    psnr = "unchanged" if found.psnr is None else f"PSNR {found.psnr:.1f} dB"
    return psnr, f"SSIM {found.ssim:.3f} · L∞ {found.linf:.0f}"
