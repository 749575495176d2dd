"""Which models a defense called backdoored, and whether it was right: computed from records alone.

A record holds a verdict where its trace tells of every class how large the mask of its recovered trigger is (``norm``), its
anomaly index |norm - median| / (1.4826 MAD) (``anomaly``), and whether it is called a target (``flagged``): where the norm is at
most the median and the index above the defense's threshold. A model is called backdoored where any class is a target. A method
that only mitigates leaves no such fields, whatever its paper detects with.
"""

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.results.apart import with_settings
from bdjax.results.intervals import share_interval
from bdjax.results.pool import ALIKE, GROUP, described, without_replaced
from bdjax.results.soundness import counted, remark, with_soundness

if TYPE_CHECKING:
    import polars as pl

FIELDS = ("norm", "anomaly", "flagged")


class Verdict(NamedTuple):
    """What a defense said of one model."""

    called: bool  # backdoored
    classes: tuple[int, ...]  # called targets, the smallest mask first: that one is the class that is named
    anomaly: float  # index of the class with the smallest mask; inf where the deviations' median is 0, NaN where its own is too


def verdict(status: str, trace: str | None) -> Verdict | None:
    """The verdict in the trace of a record; None where the record has none, or its run did not end well."""
    if status != "ok" or not trace or '"flagged"' not in trace:  # a look at the text spares most traces from being parsed
        return None
    found = json.loads(trace)
    if not all(isinstance(found.get(name), list) for name in FIELDS):
        return None
    norm = np.array([np.nan if x is None else x for x in found["norm"]], float)
    if not len(norm) or np.isnan(norm).any():
        return None
    order = np.argsort(norm, kind="stable").tolist()
    classes = tuple(k for k in order if found["flagged"][k])
    index = found["anomaly"][order[0]]
    if index is None:  # JSON holds no division by 0; the median is the lower one, as the defense has it
        index = math.inf if norm[order[0]] < np.sort(norm)[(len(norm) - 1) // 2] else math.nan
    return Verdict(bool(classes), classes, float(index))


def table(records: "pl.DataFrame") -> "pl.DataFrame":
    """One row per training configuration, poison ratio and defense that calls models backdoored; its runs differ in their seed.

    Args:
      records: rows of ``store.records.read``; those of an earlier edition that were made again are left out.

    Returns:
      The columns of :data:`bdjax.results.pool.GROUP` and ``target_class``; ``runs``, and ``judged``, those with a verdict;
      ``called``, how many were called backdoored, ``called_share`` and its 95 % interval ``called_low`` and ``called_high``
      (:func:`bdjax.results.intervals.share_interval`); of the called ones ``right`` and ``wrong``, where the class that is named
      is the attack's target or another, and ``target_called``, where the target is any of the classes called targets (null at
      ratio 0 and where an attack has no single target); ``classes``, the mean number of classes called targets; ``anomaly``,
      ``anomaly_min`` and ``anomaly_max``, median and range of the index of the class with the smallest mask;
      ``never_attacked``, the models of the same configuration at ratio 0 with a verdict, and ``false_positives``, how many of
      them were called backdoored, with ``_share``, ``_low`` and ``_high``; the means ``acc_before`` and ``asr_before`` of the
      models judged; ``reason``, why the others were not; and ``remark``, ``warning``, ``outdated``, ``knows_trigger`` and
      ``knows_test`` as of :func:`bdjax.results.pool.table`. Fractions; null where undefined. No rows where there is no verdict.
    """
    import polars as pl

    kept = without_replaced(records)
    found = [verdict(*pair) for pair in kept.select("status", "trace").iter_rows()]
    if not any(found):
        return pl.DataFrame()
    rows = with_settings(described(_with_verdicts(kept, found)), ALIKE)
    judging = kept.filter([one is not None for one in found])["defense"].unique()
    rows = with_soundness(rows.filter(pl.col("defense").is_in(judging.to_list())))
    # What the defended network predicts says nothing of a verdict, which is about the network before.
    rows = rows.with_columns(one_class_found=pl.lit(False), chance_found=pl.lit(False))
    pooled = rows.group_by(GROUP, maintain_order=True).agg(*_counts())
    known = (pl.col("ratio") > 0) & pl.col("target").is_not_null()
    pooled = pooled.with_columns(pl.when(known).then(pl.col(name)).alias(name) for name in ("right", "wrong", "target_called"))
    pooled = _with_false_positives(_with_interval(pooled, "called", "judged"))
    remarks = [remark(row) or None for row in pooled.iter_rows(named=True)]
    pooled = pooled.with_columns(pl.Series("remark", remarks, pl.String))
    hidden = [name for name in pooled.columns if name.endswith("_runs")] + ["ok", "acc_untrained"]
    return pooled.drop(hidden).sort(GROUP, maintain_order=True)


def _with_verdicts(records: "pl.DataFrame", found: list[Verdict | None]) -> "pl.DataFrame":
    import polars as pl

    def column(name: str, values: list[Any], kind: Any) -> "pl.Series":
        return pl.Series(f"_{name}", values, kind)

    return records.with_columns(
        column("called", [None if one is None else one.called for one in found], pl.Boolean),
        column("classes", [None if one is None else list(one.classes) for one in found], pl.List(pl.Int64)),
        column("anomaly", [None if one is None else one.anomaly for one in found], pl.Float64),
    )


def _counts() -> list["pl.Expr"]:
    """The columns of a group of runs."""
    import polars as pl

    called, classes, judged = pl.col("_called").fill_null(False), pl.col("_classes"), pl.col("_called").is_not_null()
    right = called & (classes.list.first() == pl.col("target")).fill_null(False)
    index = pl.col("_anomaly").drop_nulls().drop_nans()

    def told(name: str, which: "pl.Expr") -> "pl.Expr":
        texts = pl.col(name).filter(which & (pl.col(name) != "")).unique(maintain_order=True)
        return pl.when(texts.len() > 0).then(texts.str.join("; ")).alias(name)

    return [
        pl.col("target_class").drop_nulls().first(),
        pl.len().cast(pl.Int64).alias("runs"),
        (pl.col("status") == "ok").sum().cast(pl.Int64).alias("ok"),
        judged.sum().cast(pl.Int64).alias("judged"),
        called.sum().cast(pl.Int64).alias("called"),
        right.sum().cast(pl.Int64).alias("right"),
        (called & ~right).sum().cast(pl.Int64).alias("wrong"),
        (called & classes.list.contains(pl.col("target")).fill_null(False)).sum().cast(pl.Int64).alias("target_called"),
        classes.list.len().mean().alias("classes"),
        *(getattr(index, name)().alias(f"anomaly{end}") for name, end in (("median", ""), ("min", "_min"), ("max", "_max"))),
        *(pl.col(name).filter(judged).mean().alias(name) for name in ("acc_before", "asr_before")),
        told("reason", ~judged),
        *(told(name, pl.lit(True)) for name in ("warning", "outdated")),
        *(pl.col(name).fill_null(False).any().alias(name) for name in ("knows_trigger", "knows_test")),
        *counted(),
    ]


def _with_interval(rows: "pl.DataFrame", hits: str, of: str) -> "pl.DataFrame":
    """Rows with the share of ``hits`` and its interval; null where ``of`` is 0 or null."""
    import polars as pl

    pairs = list(rows.select(hits, of).iter_rows())
    ends = [share_interval(hit, count) if count else (None, None) for hit, count in pairs]
    return rows.with_columns(
        pl.Series(f"{hits}_share", [hit / count if count else None for hit, count in pairs], pl.Float64),
        *(pl.Series(f"{hits}_{name}", [end[i] for end in ends], pl.Float64) for i, name in enumerate(("low", "high"))),
    )


def _with_false_positives(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Rows with what became of the never-attacked models of their own configuration."""
    import polars as pl

    on = [key for key in GROUP if key != "ratio"]
    never = rows.filter(pl.col("ratio") == 0).select(
        *on, pl.col("judged").alias("never_attacked"), pl.col("called").alias("false_positives")
    )
    joined = rows.join(never, on=on, how="left", nulls_equal=True, maintain_order="left")
    return _with_interval(joined, "false_positives", "never_attacked")
