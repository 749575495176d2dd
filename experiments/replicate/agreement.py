"""Published results beside ours, method by method: does a defense do here what it is said to do?

Our networks are smaller, attacked for fewer steps and less accurate, so the rates themselves cannot be compared. Compared are
shares of what the attacked network had: how much of the attack's success a defense removes, 1 - ASR after / ASR before, and how
much of the accuracy it takes, ARR. A pair of defense and attack *agrees* where the span of our seeds comes within TOLERANCE of
the span of the published shares removed.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import polars as pl
from published import NOT_FOUND, PUBLISHED

TOLERANCE = 10.0  # points of the share removed
VERDICTS = ("agrees", "weaker here", "stronger here")


class Pair(NamedTuple):
    """A defense against an attack; percent."""

    defense: str
    attack: str
    removed: tuple[float, ...]  # published, of each source
    lost: tuple[float, ...]  # of the accuracy, published
    spc: int | None  # our clean samples per class, as many as were run; None: the defense takes none
    ours: float  # removed here, mean over the seeds
    low: float  # lowest seed
    high: float
    arr: float  # of the accuracy lost here, mean over the seeds
    verdict: str  # of VERDICTS


def pairs(rows: pl.DataFrame) -> list[Pair]:
    """Every published pair that was run.

    Args:
      rows: of poisoned members, one setting of each defense at each number of clean samples per class; the largest counts.
    """
    told = defaultdict(list)
    for one in PUBLISHED:
        if one.kind == "defense" and None not in (one.acc_before, one.asr_before, one.acc, one.asr):
            told[one.method, one.attack].append(one)
    found = []
    for (defense, attack), sources in sorted(told.items()):
        runs = rows.filter(pl.col("defense") == defense, pl.col("attack") == attack)
        if runs.is_empty():
            continue
        spc = runs["spc"].max()
        runs = runs if spc is None else runs.filter(pl.col("spc") == spc)
        mine = 100 * (1 - runs["asr"] / runs["asr_before"]).to_numpy()
        removed = tuple(sorted(100 * (1 - one.asr / one.asr_before) for one in sources))
        lost = tuple(sorted(100 * (1 - one.acc / one.acc_before) for one in sources))
        verdict = VERDICTS[0]
        if mine.max() < removed[0] - TOLERANCE:
            verdict = VERDICTS[1]
        elif mine.min() > removed[-1] + TOLERANCE:
            verdict = VERDICTS[2]
        arr = 100 * float(runs["arr"].mean())
        found.append(Pair(defense, attack, removed, lost, spc, mine.mean(), mine.min(), mine.max(), arr, verdict))
    return found


def table(found: list[Pair]) -> str:
    """Every pair."""
    heads = ("defense", "attack", "removed, published", "here, mean [lowest, highest seed]", "per class")
    heads = (*heads, "accuracy lost, published", "here", "verdict")
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * 5 + "---|"]
    for one in found:
        removed, lost = (" · ".join(f"{value:.0f}" for value in values) for values in (one.removed, one.lost))
        ours = f"{one.ours:.0f} [{one.low:.0f}, {one.high:.0f}]"
        held = "–" if one.spc is None else one.spc
        cells = (f"`{one.defense}`", f"`{one.attack}`", removed, ours, held, lost, f"{one.arr:.0f}", one.verdict)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(found: list[Pair]) -> str:
    """How often each defense agrees, and the rank correlation of the published and our shares over the pairs."""
    from scipy.stats import spearmanr

    lines = ["| defense | pairs | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * 4]
    for defense in (*dict.fromkeys(one.defense for one in found), None):
        mine = [one.verdict for one in found if defense in (one.defense, None)]
        counts = " | ".join(str(mine.count(verdict)) for verdict in VERDICTS)
        lines.append(f"| {'all' if defense is None else f'`{defense}`'} | {len(mine)} | {counts} |")
    correlation = spearmanr([np.mean(one.removed) for one in found], [one.ours for one in found])
    missing = ", ".join(f"`{name}`" for name, _ in NOT_FOUND)
    return "\n".join(
        [
            *lines,
            "",
            f"Spearman correlation of the published and our shares over {len(found)} pairs: {correlation.statistic:.2f} "
            f"(p = {correlation.pvalue:.2g}). Without a published table that could be read: {missing}.",
        ]
    )
