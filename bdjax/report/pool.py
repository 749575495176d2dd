"""Records pooled over runs: per scenario and defense the interquartile mean, its interval and the number of runs behind it.

No run is dropped in silence: those that were infeasible, failed or diverged are counted beside the ones that are averaged.
"""

import collections
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax import metrics
from bdjax.errors import UserError

if TYPE_CHECKING:
    import polars as pl

METRICS = ("acc", "asr", "ra", "arr", "rdr", "der")
BEFORE = ("acc_before", "asr_before", "ra_before")
STATUSES = ("ok", "infeasible", "failed", "non_finite")
SCENARIO = ("dataset", "train_images", "model", "width", "depth", "precision", "profile", "attack", "target")
GROUP = (*SCENARIO, "ratio", "defense", "spc", "hyper", "cell")
BOARD = ("dataset", "train_images", "model", "width", "depth", "precision", "profile", "defense", "variant", "spc", "hyper")


def table(records: "pl.DataFrame") -> "pl.DataFrame":
    """One row per scenario and defense; the runs pooled in it differ in their seed alone.

    Args:
      records: rows of ``sweep.store.read``, one per member and defense.

    Returns:
      The columns of :data:`GROUP` (``spc`` null where a defense needs no clean data, so that the row serves every spc; ``cell``
      keeps apart what differs in any other setting); ``runs`` and the count of each status (the ``ok`` ones are averaged);
      ``reason``, why the others were not, joined by "; "; ``knows_trigger`` and ``knows_test``; the interquartile means of
      :data:`BEFORE`; for each metric ``m`` of :data:`METRICS`: ``m`` (interquartile mean), ``m_mean``, ``m_low`` and ``m_high``
      (its 95 % interval), ``m_n``. Fractions; null where undefined, intervals also where there are fewer than two runs. Sorted,
      "none" before the defenses.

    Raises:
      UserError: there are no records.
    """
    return _pool(records, GROUP)


def leaderboard(records: "pl.DataFrame") -> "pl.DataFrame":
    """Defenses over all attacks and all ratios above 0 of the same data, model and profile, best DER first.

    A task is one training configuration at one ratio; the bootstrap resamples seeds inside each task. Compare only defenses that
    met the same number of ``tasks``.

    Args:
      records: rows of ``sweep.store.read``.

    Returns:
      As :func:`table`, grouped by :data:`BOARD` (``variant``: the static configuration of the defense as JSON), with ``tasks``
      and with ``cost``: the interquartile mean of ARR over members at ratio 0, what the defense takes from a model nobody
      attacked (null where there is no such member). No rows where no defense met a poisoned member.

    Raises:
      UserError: there are no records.
    """
    import polars as pl

    _some(records)
    tasks = [f"{trained(config)} {ratio!r}" for config, ratio in zip(records["config"], records["ratio"], strict=True)]
    tagged = records.with_columns(
        pl.Series("variant", [_variant(config) for config in records["config"]], pl.String), pl.Series("task", tasks, pl.String)
    ).filter(pl.col("defense") != "none")
    poisoned, clean = tagged.filter(pl.col("ratio") > 0), tagged.filter(pl.col("ratio") == 0)
    if poisoned.is_empty():
        return pl.DataFrame()
    board = _pool(poisoned, BOARD)
    if clean.is_empty():
        board = board.with_columns(pl.lit(None, pl.Float64).alias("cost"))
    else:
        cost = _pool(clean, BOARD).select(*BOARD, pl.col("arr").alias("cost"))
        board = board.join(cost, on=list(BOARD), how="left", nulls_equal=True, maintain_order="left")
    places = list(BOARD[: BOARD.index("defense")])
    return board.sort([*places, "der"], descending=[False] * len(places) + [True], nulls_last=True, maintain_order=True)


def _pool(records: "pl.DataFrame", group: tuple[str, ...]) -> "pl.DataFrame":
    import polars as pl

    _some(records)
    configs = records["config"]
    records = records.with_columns(
        pl.Series("precision", [precision(config) for config in configs], pl.String),
        pl.Series("depth", [depth(config) for config in configs], pl.String),
        pl.Series("dataset", _told_apart(records), pl.String),
    )
    rows = [_pooled(part, group) for part in records.partition_by(list(group), maintain_order=True)]
    numbers = [f"{metric}{end}" for metric in METRICS for end in ("", "_mean", "_low", "_high")] + list(BEFORE)
    schema = {key: records.schema[key] for key in group} | {"reason": pl.String()} | dict.fromkeys(numbers, pl.Float64())
    frame = pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)
    order = [pl.col("defense") != "none" if key == "defense" else pl.col(key) for key in group]
    order.insert(group.index("defense") + 1, pl.col("defense"))
    return frame.sort(order, maintain_order=True)


def _pooled(part: "pl.DataFrame", group: tuple[str, ...]) -> dict[str, Any]:
    import polars as pl

    counts = {status: part.filter(pl.col("status") == status).height for status in STATUSES}
    good = part.filter(pl.col("status") == "ok")
    row: dict[str, Any] = {key: part[key][0] for key in group} | {"runs": part.height} | counts
    reasons = part.filter(pl.col("status") != "ok")["reason"].drop_nulls().unique(maintain_order=True)
    row["reason"] = "; ".join(reasons) or None
    row |= {key: bool(part[key].fill_null(False).any()) for key in ("knows_trigger", "knows_test")}
    tasks = None
    if "task" in part.columns:
        tasks, row["tasks"] = good["task"].to_numpy(), good["task"].n_unique()
    for key in BEFORE:
        kept = good.select(key).drop_nulls()
        row[key] = float(metrics.interquartile_mean(_numbers(kept))) if kept.height else None
    for metric in METRICS:
        told = metrics.summary(_numbers(good.select(metric)), tasks)
        row |= {metric: _null(told.iqm), f"{metric}_n": told.n}
        row |= {f"{metric}_{end}": _null(getattr(told, end)) for end in ("mean", "low", "high")}
    return row


def _numbers(column: "pl.DataFrame") -> metrics.Floats:
    """The only column of a frame as f64[n], null as NaN."""
    return column.to_series().fill_null(float("nan")).to_numpy()


def _null(value: float) -> float | None:
    return None if np.isnan(value) else value


def trained(config: str | None) -> str:
    """The part of a row's full static configuration that its training decides, as JSON: equal for all defenses of one model."""
    told = json.loads(config or "{}")
    return json.dumps({key: told[key] for key in sorted(told) if key not in ("defense", "spc")}, sort_keys=True)


def precision(config: str | None) -> str:
    """The dtype of activations and convolutions in a row's full static configuration; float32 where it says nothing."""
    return (json.loads(config or "{}").get("model") or {}).get("precision", "float32")


def depth(config: str | None) -> str:
    """Blocks per stage that a row's network was cut to, or "whole"."""
    told = (json.loads(config or "{}").get("model") or {}).get("depth")
    return "whole" if told is None else str(told)


def _told_apart(records: "pl.DataFrame") -> list[str]:
    """Names of data sets, with the beginning of their hash where several of one name and size are there: users' own may be."""
    rows = records.select("dataset", "train_images", "test_images", "data_digest").rows()
    several = collections.Counter((name, *sizes) for name, *sizes, _ in set(rows))
    return [f"{name} {digest[:8]}" if several[name, *sizes] > 1 and digest else name for name, *sizes, digest in rows]


def _variant(config: str | None) -> str:
    """The static configuration of a row's defense as JSON."""
    return json.dumps((json.loads(config or "{}").get("defense") or {}).get("config"), sort_keys=True)


def _some(records: "pl.DataFrame") -> None:
    if records.is_empty():
        raise UserError("there are no records to report; write some with: bdjax run or bdjax sweep")
