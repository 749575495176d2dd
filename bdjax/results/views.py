"""The leaderboard of one attack alone, of one poison ratio alone, and of one attack at one ratio.

An attack that ran with several settings, such as strengths, is a choice for each.

The page of a report lets its readers choose an attack and a ratio; what it then shows is computed here, with the bootstrap of
:mod:`bdjax.results.pool`.
"""

from typing import TYPE_CHECKING, NamedTuple

from bdjax.results.mitigation import LIMITS, Limits, judged
from bdjax.results.pool import BOARD, clean_cost, described, pool, with_tasks, without_replaced

if TYPE_CHECKING:
    import polars as pl

CHOICE = ("chosen_attack", "chosen_ratio")
MOST_PAIRS = 50_000  # rows of one attack at one ratio that are pooled at most: about 7 MB of a page
LONG_TEXTS = ("config", "masks", "trace", "loss", "execution", "versions", "by_class")  # columns that pooling does not read


class Views(NamedTuple):
    """The rows of the leaderboard for every choice of an attack, of a ratio, or of both."""

    rows: "pl.DataFrame"  # as of leaderboard, with the columns CHOICE; null = all attacks, all ratios above 0
    pairs: bool  # whether the choices of both an attack and a ratio are among them


def views(records: "pl.DataFrame", limits: Limits = LIMITS, most_pairs: int = MOST_PAIRS) -> Views:
    """Pool the leaderboard anew for each attack, each ratio above 0 and each pair of them.

    Args:
      records: rows of ``sweep.store.read``, at least one.
      limits: what counts as mitigated, unless the records were judged already.
      most_pairs: the pairs are left out where they would be more rows than this.

    Returns:
      The rows in no particular order. Each equals the row of :func:`bdjax.results.pool.leaderboard` for the records of that
      attack or ratio and of the ratio 0, from which ``cost`` comes; combinations without records have no row.
    """
    import polars as pl

    rows = with_tasks(described(judged(without_replaced(records), limits))).filter(pl.col("defense") != "none")
    rows = rows.drop(LONG_TEXTS, strict=False)
    poisoned, clean = rows.filter(pl.col("ratio") > 0), rows.filter(pl.col("ratio") == 0)
    if poisoned.is_empty():
        return Views(pl.DataFrame(), True)
    pairs = poisoned.select(*BOARD, "attack_variant", "ratio").n_unique() <= most_pairs
    attack, ratio = pl.col("attack_variant"), pl.col("ratio")
    no_attack, no_ratio = pl.lit(None, pl.String), pl.lit(None, pl.Float64)
    choices = [(attack, no_ratio), (no_attack, ratio), *([(attack, ratio)] if pairs else [])]
    parts = [poisoned.with_columns(one.alias(CHOICE[0]), other.alias(CHOICE[1])) for one, other in choices]
    pooled = pool(pl.concat(parts), (*CHOICE, *BOARD))
    every, each = (clean_cost(clean.with_columns(one.alias(CHOICE[0])), (CHOICE[0], *BOARD)) for one in (no_attack, attack))
    on = [CHOICE[0], *BOARD]
    return Views(pooled.join(pl.concat([every, each]), on=on, how="left", nulls_equal=True, maintain_order="left"), pairs)
