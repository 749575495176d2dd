"""Do two defenses prune the same channels? The overlap of their masks, layer by layer, over the members that both repaired."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError, choose
from bdjax.report.figures import COLORS, GREY, legend, panels_of, ratio_title, styled
from bdjax.results.configs import trained

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure


class Overlap(NamedTuple):
    """One layer at one poison ratio, over ``members`` pairs of masks."""

    ratio: float
    layer: str
    channels: int
    members: int
    first: float  # channels that the first defense prunes, mean over the pairs
    second: float
    both: float  # channels that both prune
    chance: float  # what two masks of these sizes would share by chance: first second / channels
    jaccard: float | None  # both / either, mean over the pairs in which either prunes; None where none does


def overlaps(records: "pl.DataFrame", first: str, second: str, below: float = 0.0) -> list[Overlap]:
    """Compare the masks of two defenses on the same members.

    Args:
      records: rows of ``sweep.store.read``.
      first: name of a defense with masks.
      second: another.
      below: a channel counts as pruned where its keep factor is at most this; above 0 for soft masks.

    Returns:
      One entry per ratio and layer that both mask, in the order of the network. Two records are a pair where they repair the same
      trained network with the same number of clean samples, if both take any.

    Raises:
      UserError: a defense without masks here, or no pair, or no layer that both mask.
    """
    kept = [row for row in records.to_dicts() if row["masks"] and row["status"] == "ok"]
    names = list(dict.fromkeys(row["defense"] for row in kept))
    if not names:
        raise UserError("no record holds pruning masks")
    mine, others = ([row for row in kept if row["defense"] == choose("defense with masks", n, names)] for n in (first, second))
    groups: dict[tuple[float, str], list[tuple[NDArray[Any], NDArray[Any]]]] = defaultdict(list)
    pairs = list(_pairs(mine, others))
    if not pairs:
        raise UserError(f"no trained network was repaired by both {first} and {second}")
    for a, b in pairs:
        left, right = (json.loads(row["masks"]) for row in (a, b))
        for layer in left:
            if layer in right:
                groups[a["ratio"], layer].append((pruned(left[layer], below), pruned(right[layer], below)))
    if not groups:
        raise UserError(f"{first} and {second} mask no layer in common: {_some(mine)} and {_some(others)}")
    return [_overlap(ratio, layer, found) for (ratio, layer), found in sorted(groups.items(), key=lambda item: item[0][0])]


def pruned(told: Mapping[str, Any], below: float = 0.0) -> NDArray[np.bool_]:
    """bool[d] of a layer's entry in a record's masks: its keep factor is at most ``below``."""
    keep = np.asarray(told.get("factors", np.ones(told["d"])), float)
    keep[np.asarray(told["pruned"], int)] = 0
    return keep <= below


def _pairs(mine: list[dict[str, Any]], others: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    by_member = defaultdict(list)
    for row in others:
        by_member[_member(row)].append(row)
    for a in mine:
        for b in by_member[_member(a)]:
            same_rows = a["spc"] == b["spc"] or a["spc"] is None or b["spc"] is None
            if same_rows and a is not b:
                yield a, b


def _member(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return trained(row["config"]), row["seed"], row["ratio"]


def _some(rows: list[dict[str, Any]]) -> str:
    layers = list(json.loads(rows[0]["masks"]))
    return ", ".join(layers[:3]) + (" …" if len(layers) > 3 else "")


def _overlap(ratio: float, layer: str, found: list[tuple[NDArray[Any], NDArray[Any]]]) -> Overlap:
    a, b = (np.stack(side).astype(float) for side in zip(*found, strict=True))
    first, second, both, either = a.sum(1), b.sum(1), (a * b).sum(1), np.maximum(a, b).sum(1)
    shares = both[either > 0] / either[either > 0]
    chance, jaccard = float((first * second / a.shape[1]).mean()), float(shares.mean()) if len(shares) else None
    mean = [float(x.mean()) for x in (first, second, both)]
    return Overlap(ratio, layer, a.shape[1], len(a), mean[0], mean[1], mean[2], chance, jaccard)


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
    told = [(name, {**square, "color": color}) for name, color in zip((first, second, "both"), colors, strict=True)]
    legend(figure, [*told, ("both, by chance", {"color": "black", "marker": "|", "ls": "none"})])
    return figure


def compare_masks(out: str, first: str, second: str, /, *, below: float = 0.0) -> int:
    """Compare what two defenses prune: the overlap of their masks per layer, as a table and as a picture.

    Args:
      out: folder of the results.
      first: a defense with masks.
      second: another.
      below: a channel counts as pruned where its keep factor is at most this; above 0 for soft masks such as awn's.
    """
    from bdjax.store import location
    from bdjax.store import records as store

    if not 0 <= below < 1:
        raise UserError(f"--below must lie in [0, 1); given {below}")
    records = store.read(out)
    if records.is_empty():
        raise UserError(f"{out} holds no records")
    found = overlaps(records, first, second, below)
    print(markdown(found, first, second))
    figures = location.locate(out) / "figures"
    name = f"masks-{first}-{second}.png"
    with location.written(figures) as folder:
        picture(found, first, second).savefig(folder / name, dpi=150)
    print(f"picture in {figures / name}", file=sys.stderr)
    return 0
