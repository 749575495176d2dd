"""The share of runs in which a defense mitigated the attack: the backdoor gone and the accuracy kept, both at once.

Neither is worth anything alone: a network that is destroyed has lost its backdoor too.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

from bdjax.errors import UserError
from bdjax.results.configs import from_configs, trained
from bdjax.results.soundness import with_soundness

if TYPE_CHECKING:
    import polars as pl

SLACK = 1e-9  # rates are quotients of counts: a rate that is the limit may miss it by the last bit


@dataclasses.dataclass(frozen=True)
class Limits:
    """What counts as mitigated in tables: the backdoor is gone and the accuracy is kept."""

    max_asr: float = 0.10
    """Largest ASR after the defense, a fraction, at which the attack counts as mitigated."""
    asr_margin: float = 0.05
    """Likewise, so far above the ASR of never-attacked models of the same scenario, where their records (ratio 0) are there."""
    max_arr: float = 0.10
    """Largest relative loss of accuracy, ARR = 1 - ACC after / ACC before, at which the attack counts as mitigated."""

    def text(self) -> str:
        """The limits in words."""
        asr, margin, loss = (f"{100 * value:g}" for value in dataclasses.astuple(self))
        return (
            f"ASR after the defense at most {asr} %, or within {margin} points of the rate of never-attacked models of the same "
            f"scenario where there are any, and at most {loss} % of the accuracy lost (ARR)"
        )


LIMITS = Limits()


def checked(limits: Limits) -> Limits:
    """Return the limits if each is a fraction.

    Raises:
      UserError: one is not.
    """
    for field in dataclasses.fields(limits):
        value = getattr(limits, field.name)
        if not (math.isfinite(value) and 0 <= value <= 1):
            flag = f"--{field.name.replace('_', '-')}"
            raise UserError(f"{flag} {value:g} is not a fraction; allowed: 0 … 1 (10 % is 0.1)")
    return limits


def judged(records: "pl.DataFrame", limits: Limits = LIMITS) -> "pl.DataFrame":
    """Records with the verdict of each run.

    A run counts where a defense met an attacked network: its ratio is above 0 and poisoned something, its ASR before the defense
    is above the limit, and its network was neither at chance nor predicted one class. A run that failed or diverged has not
    mitigated; one that could not be run for want of clean rows says nothing of the defense and is not counted.

    Args:
      records: rows of ``sweep.store.read``; those that were judged already come back as they are.
      limits: see :class:`Limits`.

    Returns:
      The columns of :func:`bdjax.results.soundness.with_soundness` and ``asr_limit`` f64; ``mitigated`` f64 (1 or 0; null: the
      run does not count); ``kept`` f64 (likewise: the accuracy is within its limit); ``standing`` f64 (likewise: a number that is
      larger for the better of two runs: the one that is mitigated, of equals the one that kept its accuracy, of these the one
      with the larger DER); and ``left_out`` (a run at a ratio above 0 that does not count, the infeasible ones aside).
    """
    import polars as pl

    if "mitigated" in records.columns:
        return records
    rows = with_soundness(records).with_columns(from_configs(records, trained).alias("_trained"))
    rows = rows.join(_never_attacked(rows), on="_trained", how="left", maintain_order="left")
    limit = pl.max_horizontal(pl.lit(limits.max_asr), pl.col("_clean") + limits.asr_margin)
    defended = (pl.col("defense") != "none") & (pl.col("ratio") > 0)
    infeasible = pl.col("status") == "infeasible"
    above = (pl.col("asr_before").fill_nan(None) > limit + SLACK).fill_null(False)
    attacked = above & ~pl.col("broken_before") & ~pl.col("unpoisoned")
    sound = (pl.col("status") == "ok") & ~pl.col("one_class_found") & ~pl.col("chance_found")
    kept = sound & (pl.col("arr").fill_nan(None) <= limits.max_arr + SLACK).fill_null(False)
    gone = (pl.col("asr").fill_nan(None) <= limit + SLACK).fill_null(False)
    counts = defended & ~infeasible & attacked

    def where(value: pl.Expr) -> pl.Expr:
        return pl.when(counts).then(value.cast(pl.Float64))

    der = pl.when(sound).then(pl.col("der").fill_nan(None).fill_null(0.0)).otherwise(0.0)  # in [0, 1]

    return rows.with_columns(
        limit.alias("asr_limit"),
        where(kept & gone).alias("mitigated"),
        where(kept).alias("kept"),
        where((kept & gone).cast(pl.Float64) + 0.1 * kept.cast(pl.Float64) + 0.01 * der).alias("standing"),
        (defended & ~infeasible & ~attacked).alias("left_out"),
    ).drop("_trained", "_clean")


def _never_attacked(rows: "pl.DataFrame") -> "pl.DataFrame":
    """``_clean``: the mean ASR of the networks nobody attacked, by training configuration, without those that say nothing."""
    import polars as pl

    fine = (pl.col("ratio") == 0) & ~pl.col("untrained") & pl.col("asr_before").is_not_null() & pl.col("asr_before").is_not_nan()
    each = rows.filter(fine).group_by("_trained", "seed").agg(pl.col("asr_before").first())
    return each.group_by("_trained").agg(pl.col("asr_before").mean().alias("_clean"))
