"""Figures as SVG elements that stand in a page and take the colours of its theme."""

import io
import re
from typing import TYPE_CHECKING

from bdjax.reporting.figures import COLORS, GREY, INK, PAPER

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

THEME = {INK: "currentColor", PAPER: "var(--card)", GREY: "var(--grey)"}  # what stands for a colour: theme.css has the values
THEME |= {color: f"var(--series-{i})" for i, color in enumerate(COLORS, 1)}
START = "<svg "  # the template writes it, with attributes of its own


def inline(figure: "Figure", salt: str) -> "Markup":
    """The ``<svg>`` element of a figure without its first characters :data:`START`; its text stays text.

    Args:
      figure: to be drawn.
      salt: makes the identifiers in the element differ from those of the other figures of a page.
    """
    import matplotlib as mpl
    from markupsafe import Markup

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index(START) + len(START) :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    used = set(re.findall(r"#([\w-]+)[)\"]", text))  # the other identifiers repeat from figure to figure
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for color, name in THEME.items():
        text = text.replace(color, name)
    return Markup(text)
