"""Published results beside ours, method by method: does a defense do here what it is said to do?

What is compared is DER, which takes the attacked network as it is; ours is smaller and attacked for fewer steps, so the rates
themselves are not comparable. A pair of defense and attack *agrees* where our interval comes within TOLERANCE of what is
published, from the lowest to the highest source.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import polars as pl
from published import NOT_FOUND, PUBLISHED

from bdjax.metrics import der

TOLERANCE = 10.0  # points of DER


class Pair(NamedTuple):
    """A defense against an attack."""

    defense: str
    attack: str
    published: tuple[float, ...]  # DER of each source, percent
    spc: int | None  # our clean samples per class, as many as were run; None: the defense takes none
    ours: float  # mean over the seeds
    low: float  # lowest seed
    high: float
    verdict: str  # "agrees", "weaker here" or "stronger here"


def pairs(rows: pl.DataFrame) -> list[Pair]:
    """Every published pair that was run.

    Args:
      rows: of poisoned members, one setting of each defense at each number of clean samples per class; the largest counts.
    """
    told = defaultdict(list)
    for one in PUBLISHED:
        numbers = (one.acc_before, one.asr_before, one.acc, one.asr)
        if one.kind == "defense" and None not in numbers:
            told[one.method, one.attack].append(100 * float(der(*(number / 100 for number in numbers))))  # type: ignore[operator]
    found = []
    for (defense, attack), published in sorted(told.items()):
        runs = rows.filter(pl.col("defense") == defense, pl.col("attack") == attack)
        if runs.is_empty():
            continue
        spc = runs["spc"].max()
        mine = (runs if spc is None else runs.filter(pl.col("spc") == spc))["der"].drop_nulls().to_numpy()
        low, high = 100 * mine.min(), 100 * mine.max()
        verdict = "agrees"
        if high < min(published) - TOLERANCE:
            verdict = "weaker here"
        elif low > max(published) + TOLERANCE:
            verdict = "stronger here"
        found.append(Pair(defense, attack, tuple(published), spc, 100 * mine.mean(), low, high, verdict))
    return found


def table(found: list[Pair]) -> str:
    """Every pair."""
    heads = ("defense", "attack", "DER published", "per class", "ours, mean [lowest, highest seed]", "verdict")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---:|---:|---:|---|"]
    for one in found:
        published = " · ".join(f"{value:.0f}" for value in sorted(one.published))
        ours = f"{one.ours:.0f} [{one.low:.0f}, {one.high:.0f}]"
        lines.append(f"| `{one.defense}` | `{one.attack}` | {published} | {one.spc or '–'} | {ours} | {one.verdict} |")
    return "\n".join(lines)


def summary(found: list[Pair]) -> str:
    """How often each defense agrees, and the rank correlation of the published and our DER over the pairs."""
    from scipy.stats import spearmanr

    lines = ["| defense | pairs | agree | weaker here | stronger here |", "|---|---:|---:|---:|---:|"]
    for defense in dict.fromkeys(one.defense for one in found):
        mine = [one.verdict for one in found if one.defense == defense]
        counts = " | ".join(str(mine.count(verdict)) for verdict in ("agrees", "weaker here", "stronger here"))
        lines.append(f"| `{defense}` | {len(mine)} | {counts} |")
    correlation = spearmanr([np.mean(one.published) for one in found], [one.ours for one in found])
    missing = ", ".join(f"`{name}`" for name, _ in NOT_FOUND)
    return "\n".join(
        [
            *lines,
            "",
            f"Spearman correlation of the published and our DER over {len(found)} pairs: {correlation.statistic:.2f} "
            f"(p = {correlation.pvalue:.2g}). Without a published table that could be read: {missing}.",
        ]
    )
