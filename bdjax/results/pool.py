"""Records pooled over runs: per scenario and defense the interquartile mean, its interval and the number of runs behind it.

No run is dropped in silence: those that were infeasible, failed or diverged are counted beside the ones that are averaged.
"""

from typing import TYPE_CHECKING

from bdjax.errors import UserError
from bdjax.results import distinct
from bdjax.results.apart import with_settings
from bdjax.results.configs import depth, from_configs, labels, parsed, precision, trained, training, variant
from bdjax.results.intervals import interquartile_mean
from bdjax.results.mitigation import LIMITS, Limits, judged
from bdjax.results.soundness import counted, remark
from bdjax.results.summarised import summarised
from bdjax.sweep import editions
from bdjax.sweep.goal import ALL_TO_ALL

if TYPE_CHECKING:
    import polars as pl

METRICS = ("acc", "asr", "ra", "arr", "rdr", "der")
BEFORE = ("acc_before", "asr_before", "ra_before")
SHARE = "mitigated"  # of runs, each 1 or 0: pooled as a plain mean
PREDICTED = ("one_class_before", "one_class")  # largest share of the clean test images predicted as one class
STATUSES = ("ok", "infeasible", "failed", "non_finite")
SCENARIO = ("dataset", "train_images", "model", "width", "depth", "precision", "profile", "attack", "labels", "target")
GROUP = (*SCENARIO, "ratio", "defense", "spc", "hyper", "settings", "training", "attack_variant", "cell")
ALIKE = (*SCENARIO, "defense")  # records that agree in these are told apart by their settings
SETTING = ("dataset", "train_images", "model", "width", "depth", "precision", "profile", "labels")
BOARD = (*SETTING, "defense", "variant", "spc", "hyper")


def table(records: "pl.DataFrame", limits: Limits = LIMITS) -> "pl.DataFrame":
    """One row per scenario and defense; the runs pooled in it differ in their seed alone.

    Args:
      records: rows of ``sweep.store.read``, one per member and defense.
      limits: what counts as mitigated, unless the records were judged already (:func:`bdjax.results.mitigation.judged`).

    Returns:
      The columns of :data:`GROUP` (``spc`` null where a defense needs no clean data, so that the row serves every spc;
      ``settings`` names the fields in which the static configurations of rows differ that agree in the columns before;
      ``training`` is the same for a model and its defenses; ``attack_variant`` is the attack with the settings in which those of
      its name differ; ``cell`` keeps apart what differs in any other setting) and
      ``target_class``, the name of the target; ``runs`` and the count of each status (the ``ok`` ones are averaged); ``reason``,
      why the others were not, joined by "; ", and ``warning`` of the records (a trigger that an imported network does not
      answer); ``outdated``, the editions it was made with where these are no longer today's; ``knows_trigger`` and
      ``knows_test``; ``mitigated``, the share of the ``mitigated_n`` attacked runs that were mitigated, with ``mitigated_low``
      and ``mitigated_high``; ``left_out``, the runs at a ratio above 0 that are not among them (infeasible ones aside); ``kept``,
      the share that kept its accuracy; ``remark``, why the numbers of the row's networks say little, with the counts behind it
      (:func:`bdjax.results.soundness.remark`); the means of :data:`PREDICTED`, null where no record has them; the interquartile
      means of :data:`BEFORE`; for each metric ``m`` of :data:`METRICS`: ``m`` (interquartile mean), ``m_mean``, ``m_low`` and
      ``m_high`` (its 95 % interval), ``m_n``. Fractions; null where undefined, intervals also where there are fewer than two
      runs. Sorted, "none" before the defenses.

    Raises:
      UserError: there are no records.
    """
    _require_records(records)
    return pool(with_settings(described(judged(records, limits)), ALIKE), GROUP)


def leaderboard(records: "pl.DataFrame", limits: Limits = LIMITS) -> "pl.DataFrame":
    """Defenses over all attacks and all ratios above 0 of the same data, model, profile and label rule, best first.

    The best is the one that mitigated the largest share of its attacked runs; of equals the one that kept the accuracy in more
    runs, then the one with the larger DER, which alone would reward a network that is destroyed. A task is one training
    configuration at one ratio; the bootstrap resamples seeds inside each task. Compare only defenses that met the same number of
    ``tasks``.
    Records of an earlier edition of a method are left out where the same was made again.

    Args:
      records: rows of ``sweep.store.read``.
      limits: as of :func:`table`.

    Returns:
      As :func:`table`, grouped by :data:`BOARD` (``variant``: the static configuration of the defense as JSON), with ``tasks``
      and with ``cost``: the interquartile mean of ARR over members at ratio 0, what the defense takes from a model nobody
      attacked (null where there is no such member). No rows where no defense met a poisoned member.

    Raises:
      UserError: there are no records.
    """
    import polars as pl

    _require_records(records)
    rows = with_tasks(described(judged(without_replaced(records), limits))).filter(pl.col("defense") != "none")
    poisoned, clean = rows.filter(pl.col("ratio") > 0), rows.filter(pl.col("ratio") == 0)
    if poisoned.is_empty():
        return pl.DataFrame()
    board = pool(poisoned, BOARD).join(
        clean_cost(clean, BOARD), on=list(BOARD), how="left", nulls_equal=True, maintain_order="left"
    )
    places = list(SETTING)
    best = ["mitigated", "kept", "der"]
    down = [False] * len(places) + [True] * len(best)
    return board.sort([*places, *best], descending=down, nulls_last=True, maintain_order=True)


def clean_cost(clean: "pl.DataFrame", group: tuple[str, ...]) -> "pl.DataFrame":
    """The interquartile mean of ARR over models nobody attacked, as ``cost``, by ``group``."""
    import polars as pl

    arr = pl.col("arr").filter(pl.col("status") == "ok").drop_nulls().drop_nans()
    lists = clean.group_by(group, maintain_order=True).agg(arr.alias("arr"))
    means = [interquartile_mean(values) if len(values) else None for values in lists["arr"]]
    return lists.select(group).with_columns(pl.Series("cost", means, pl.Float64))


def pool(records: "pl.DataFrame", group: tuple[str, ...]) -> "pl.DataFrame":
    """One row per group: counts, marks, and the summary of each metric over its runs.

    Args:
      records: rows that were judged and described (:func:`described`); where they have a ``task`` (:func:`with_tasks`), the
        bootstrap resamples inside each task and the tasks are counted.
      group: columns, "defense" among them.

    Returns:
      The columns of :func:`table`, with those of ``group`` first.
    """
    import polars as pl

    ok = pl.col("status") == "ok"
    tasked = "task" in records.columns
    counts = {name: ok & pl.col(name).is_not_null() & pl.col(name).is_not_nan() for name in (*BEFORE, *METRICS)}
    counts[SHARE] = pl.col(SHARE).is_not_null()  # runs that failed count too
    lists = [pl.col(name).filter(condition) for name, condition in counts.items()]
    if tasked:
        lists += [pl.col("task").filter(counts[name]).alias(f"{name}_tasks") for name in (*METRICS, SHARE)]
        lists.append(pl.col("task").filter(ok).n_unique().alias("tasks"))
    pooled = records.group_by(group, maintain_order=True).agg(*_counts(group), *lists)
    columns = [pl.Series(name, summarised(pooled[name], None).iqm, nan_to_null=True) for name in BEFORE]
    for metric in (SHARE, *METRICS):
        trimmed = metric != SHARE
        summary = summarised(pooled[metric], pooled[f"{metric}_tasks"] if tasked else None, trimmed)
        columns.append(pl.Series(f"{metric}_n", summary.n, pl.Int64))
        ends = {metric: summary.iqm, f"{metric}_mean": summary.mean} if trimmed else {metric: summary.mean}
        ends |= {f"{metric}_low": summary.low, f"{metric}_high": summary.high}
        columns += [pl.Series(name, values, pl.Float64, nan_to_null=True) for name, values in ends.items()]
    kept = [name for name in pooled.columns if name not in (*BEFORE, *METRICS, SHARE) and not name.endswith("_tasks")]
    frame = pooled.select(kept).with_columns(columns)
    frame = frame.with_columns(pl.Series("remark", [remark(row) or None for row in frame.iter_rows(named=True)], pl.String))
    order = [pl.col("defense") != "none" if key == "defense" else pl.col(key) for key in group]
    order.insert(group.index("defense") + 1, pl.col("defense"))
    return frame.sort(order, maintain_order=True)


def _counts(group: tuple[str, ...]) -> list["pl.Expr"]:
    """The columns of a group besides its metrics: counts of its runs, marks, reasons and warnings."""
    import polars as pl

    ok = pl.col("status") == "ok"
    reason = pl.col("reason").filter(~ok).drop_nulls().unique(maintain_order=True)
    warning = pl.col("warning").drop_nulls().unique(maintain_order=True)
    return [
        pl.len().cast(pl.Int64).alias("runs"),
        *((pl.col("status") == status).sum().cast(pl.Int64).alias(status) for status in STATUSES),
        pl.when(reason.len() > 0).then(reason.str.join("; ")).alias("reason"),
        pl.when(warning.len() > 0).then(warning.str.join("; ")).alias("warning"),
        pl.col("outdated").filter(pl.col("outdated") != "").unique(maintain_order=True).str.join("; ").alias("outdated"),
        *(pl.col(key).fill_null(False).any().alias(key) for key in ("knows_trigger", "knows_test")),
        pl.col("kept").mean(),
        pl.col("left_out").sum().cast(pl.Int64),
        *counted(),
        *(pl.col(name).filter(ok).mean().alias(name) for name in PREDICTED),
        *([pl.col("target_class").drop_nulls().first()] if "target" in group else []),
    ]


def described(records: "pl.DataFrame") -> "pl.DataFrame":
    """Records with every column of :data:`GROUP` but ``settings``: facts from the configurations, names that distinguish data
    sets, networks and attacks (:mod:`bdjax.results.distinct`), and ``outdated``: the editions of the methods behind a record
    where these are no longer today's, empty elsewhere."""
    import polars as pl

    rules = from_configs(records, labels)
    return records.with_columns(
        from_configs(records, precision).alias("precision"),
        from_configs(records, depth).alias("depth"),
        from_configs(records, training).alias("training"),
        rules.alias("labels"),
        pl.when(rules.eq_missing(ALL_TO_ALL)).then(None).otherwise(pl.col("target")).alias("target"),
        pl.col("target_class") if "target_class" in records.columns else pl.lit(None, pl.String).alias("target_class"),
        pl.col("warning") if "warning" in records.columns else pl.lit(None, pl.String).alias("warning"),
        pl.Series("dataset", distinct.datasets(records), pl.String),
        pl.Series("model", distinct.networks(records), pl.String),
        pl.Series("attack_variant", distinct.attacks(records), pl.String),
        from_configs(records, lambda config: editions.said(editions.changed(config))).alias("outdated"),
    )


def without_replaced(records: "pl.DataFrame") -> "pl.DataFrame":
    """Records without those of earlier editions of a method that were made again with today's and are among them."""

    def now(config: str | None) -> str:
        return editions.current(parsed(config)) if editions.changed(config) else ""

    cells, members = from_configs(records, now), records["member"]
    if not (cells != "").any():
        return records
    there = set(zip(records["cell"], members, strict=True))
    return records.filter([pair not in there for pair in zip(cells, members, strict=True)])


def with_tasks(records: "pl.DataFrame") -> "pl.DataFrame":
    """Records with their ``task`` (one training configuration at one ratio) and the ``variant`` of their defense."""
    import polars as pl

    task = pl.select(pl.concat_str(from_configs(records, trained), pl.lit(" "), records["ratio"].cast(pl.String))).to_series()
    # Numbered in the order of their first rows, so that the bootstrap draws the same whatever else the process has read.
    task = task.cast(pl.Enum(task.unique(maintain_order=True)))
    return records.with_columns(from_configs(records, variant).alias("variant"), task.alias("task"))


def _require_records(records: "pl.DataFrame") -> None:
    if records.is_empty():
        raise UserError("there are no records to report; write some with: bdjax run or bdjax sweep")
