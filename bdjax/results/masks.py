"""Do two defenses prune the same channels? The overlap of their masks, layer by layer, over the members that both defended."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax.errors import UserError, choose
from bdjax.results.configs import trained

if TYPE_CHECKING:
    import polars as pl


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
      One entry per ratio and layer that both mask, in the order of the network. Two records are a pair where they defend the same
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
        raise UserError(f"no trained network was defended by both {first} and {second}")
    for a, b in pairs:
        left, right = (json.loads(row["masks"]) for row in (a, b))
        for layer in left:
            if layer in right:
                groups[a["ratio"], layer].append((pruned(left[layer], below), pruned(right[layer], below)))
    if not groups:
        raise UserError(f"{first} and {second} mask no layer in common: {_some(mine)} and {_some(others)}")
    return [_overlap(ratio, layer, found) for (ratio, layer), found in sorted(groups.items(), key=lambda item: item[0][0])]


def pruned(layer: Mapping[str, Any], below: float = 0.0) -> NDArray[np.bool_]:
    """bool[d] of a layer's entry in a record's masks: its keep factor is at most ``below``."""
    keep = np.asarray(layer.get("factors", np.ones(layer["d"])), float)
    keep[np.asarray(layer["pruned"], int)] = 0
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
