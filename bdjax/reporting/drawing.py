"""A figure of a page, or the reason why there is none."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """A figure of a page, or the reason why there is none."""

    slug: str  # its file name without ".png"
    caption: str
    figure: "Figure | None"
    missing: str = ""
    images: bool = False  # whether it shows images, which are to be seen whole, and is no chart, which is to be read
