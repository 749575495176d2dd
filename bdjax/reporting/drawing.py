"""A figure of a page, or the reason why there is none."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Picture(NamedTuple):
    """An image of a figure."""

    image: NDArray[np.uint8]  # u8[h w c]
    text: str = ""  # what stands beside it
    marked: bool = False  # framed in colour


class Row(NamedTuple):
    """Images side by side."""

    name: str
    pictures: tuple[Picture, ...]


class Drawing(NamedTuple):
    """A figure of a page, or the reason why there is none."""

    slug: str  # its file name without ".png"
    caption: str
    figure: "Figure | None"
    missing: str = ""
    rows: "tuple[Row, ...]" = ()  # what the page shows instead, of a figure of images: they shrink, and their names do not
