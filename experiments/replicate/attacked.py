"""Published attacks beside ours: is the backdoor learned as it is said to be, before anything is defended?"""

from collections import defaultdict

import polars as pl
from published import PUBLISHED

TOLERANCE = 10.0  # points of ASR


def table(rows: pl.DataFrame) -> str:
    """ACC and ASR of every attack, published and here, and whether the ASR comes within TOLERANCE of the published ones.

    Args:
      rows: of attacked networks without a defense, 10 % poisoned.
    """
    told = defaultdict(list)
    for one in PUBLISHED:
        if one.kind == "attack" and one.acc is not None and one.asr is not None:
            told[one.method].append(one)
    lines = ["| attack | ASR published | ASR here | ACC published | ACC here | verdict |", "|---|" + "---:|" * 4 + "---|"]
    for attack, sources in told.items():
        mine = rows.filter(pl.col("attack") == attack)
        if mine.is_empty():
            continue
        asr, acc = (sorted({round(getattr(one, rate)) for one in sources}) for rate in ("asr", "acc"))
        ours = {rate: 100 * mine[rate].to_numpy() for rate in ("asr", "acc")}
        verdict = "agrees" if ours["asr"].max() >= asr[0] - TOLERANCE else "weaker here"
        cells = [" · ".join(map(str, asr)), _span(ours["asr"]), " · ".join(map(str, acc)), _span(ours["acc"]), verdict]
        lines.append(f"| `{attack}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(values) -> str:
    return f"{values.mean():.0f} [{values.min():.0f}, {values.max():.0f}]"
