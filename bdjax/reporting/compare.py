"""The overlap of what two defenses prune, as a table and as a picture."""

from typing import TYPE_CHECKING

from bdjax.reporting.figures import COLORS, GREY, legend, panels_of, styled
from bdjax.results.masks import Overlap
from bdjax.results.wording import ratio_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(found: list[Overlap], first: str, second: str) -> str:
    """The overlaps as a table."""
    heads = (
        "poison ratio",
        "layer",
        "channels",
        f"{first} prunes",
        f"{second} prunes",
        "both",
        "by chance",
        "both / either",
        "n",
    )
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * 7]
    for o in found:
        jaccard = "–" if o.jaccard is None else f"{o.jaccard:.2f}"
        numbers = (o.channels, f"{o.first:.1f}", f"{o.second:.1f}", f"{o.both:.1f}", f"{o.chance:.1f}", jaccard, o.members)
        lines.append(f"| {ratio_title(o.ratio)} | {o.layer} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


@styled
def picture(found: list[Overlap], first: str, second: str) -> "Figure":
    """Per layer, in percent of its channels, what either defense prunes and what both do; one panel per poison ratio."""
    ratios = sorted({o.ratio for o in found})
    layers = list(dict.fromkeys(o.layer for o in found))
    size = (1.6 + 4.6 * len(ratios), 0.3 * len(layers) + 1.4)
    figure, panels = panels_of(1, len(ratios), size)
    colors = (COLORS[0], COLORS[1], GREY)
    for axis, ratio in zip(panels[0], ratios, strict=True):
        for o in (o for o in found if o.ratio == ratio):
            y, share = layers.index(o.layer), 100 / o.channels
            axis.barh(y - 0.2, share * o.first, 0.36, color=colors[0], alpha=0.75)
            axis.barh(y + 0.2, share * o.second, 0.36, color=colors[1], alpha=0.75)
            axis.barh(y, share * o.both, 0.76, color=colors[2], zorder=3)
            axis.plot([share * o.chance] * 2, [y - 0.42, y + 0.42], color="black", lw=1.2, zorder=4)
        axis.set(title=ratio_title(ratio), xlabel="percent of the layer's channels", ylim=(len(layers) - 0.4, -0.6))
        axis.set_yticks(range(len(layers)), layers if axis is panels[0][0] else [""] * len(layers))
        axis.grid(True, axis="x")
    square = {"marker": "s", "ls": "none"}
    lines = [(name, {**square, "color": color}) for name, color in zip((first, second, "both"), colors, strict=True)]
    legend(figure, [*lines, ("both, by chance", {"color": "black", "marker": "|", "ls": "none"})])
    return figure
