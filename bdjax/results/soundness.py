"""Whether the networks behind a row can say anything: one that predicts one class, is at chance, or was hardly trained cannot.

A record holds the largest share of the clean test images that is predicted as one class (``one_class``), before and after the
defense. Records of earlier versions do not; there accuracy alone decides whether a network is at chance.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.attacks.table import IMAGES_ONLY
from bdjax.results.configs import parsed

if TYPE_CHECKING:
    import polars as pl

ONE_CLASS = 0.9  # a share of the predictions from which on a network counts as predicting one class
SURE = 0.99  # a network at chance reaches at most the bound on its accuracy with this probability
HARDLY = 0.25  # of the way from chance to an accuracy of 1: below it a network counts as hardly trained

NOTES = {
    "predicts one class": (
        f"Predicts one class: at least {100 * ONE_CLASS:.0f} % of the clean test images are called the same class, so its ASR of "
        "100 % or 0 % says nothing."
    ),
    "at chance": (
        "At chance: the accuracy is not above what a network reaches that always calls the most frequent class (99 % binomial "
        "bound), so its ASR says nothing."
    ),
    "hardly trained": (
        f"Hardly trained: the accuracy before the defense is less than {100 * HARDLY:.0f} % of the way from chance to 100 %, so "
        "what a defense does to it says little."
    ),
    "no row poisoned": "No row poisoned: the ratio rounds to 0 rows, so these models were not attacked.",
}


def with_soundness(records: "pl.DataFrame") -> "pl.DataFrame":
    """Records with what their accuracy and predictions say of the networks.

    Args:
      records: rows of ``sweep.store.read``, also of earlier versions.

    Returns:
      The same with ``chance`` f64 (the accuracy of a network that always calls the most frequent class of the test images; null
      where it is not known) and the booleans ``one_class_found``, ``chance_found`` (after the defense: predicts one class; at
      chance and not that), ``broken_before`` (either of them, before it), ``untrained`` (before it: broken or hardly trained) and
      ``unpoisoned`` (a ratio above 0 that poisoned no row). Nothing is null but ``chance``: what is not known is False.
    """
    import polars as pl

    missing = {"majority": pl.Float64, "one_class": pl.Float64, "one_class_before": pl.Float64, "classes": pl.Int64}
    rows = records.with_columns(pl.lit(None, kind).alias(name) for name, kind in missing.items() if name not in records.columns)
    rows = rows.with_columns(pl.Series("chance", _chances(rows), pl.Float64))
    rows = rows.with_columns(pl.Series("_bound", _bounds(rows), pl.Float64))
    known = pl.col("chance").fill_null(0.0)
    limit = pl.max_horizontal(pl.lit(ONE_CLASS), (1 + known) / 2)

    def one_class(share: str) -> pl.Expr:
        return (pl.col(share).fill_nan(None) >= limit).fill_null(False)

    def at_chance(acc: str) -> pl.Expr:
        return (pl.col(acc).fill_nan(None) <= pl.col("_bound")).fill_null(False)

    broken = one_class("one_class_before") | at_chance("acc_before")
    return rows.with_columns(
        one_class("one_class").alias("one_class_found"),
        (at_chance("acc") & ~one_class("one_class")).alias("chance_found"),
        broken.alias("broken_before"),
        (broken | (pl.col("acc_before").fill_nan(None) < known + HARDLY * (1 - known)).fill_null(False)).alias("untrained"),
        pl.Series("unpoisoned", _unpoisoned(rows), pl.Boolean),
    ).drop("_bound")


COUNTED = ("one_class_runs", "chance_runs", "unpoisoned_runs", "untrained_runs", "trained_runs")


def counted() -> list["pl.Expr"]:
    """What :func:`remark` reads of a group of :func:`with_soundness`: the counts :data:`COUNTED`, and ``acc_untrained``."""
    import polars as pl

    ok, known = pl.col("status") == "ok", pl.col("acc_before").is_not_null()
    lost = pl.col("untrained") & known
    counts = (ok & pl.col("one_class_found"), ok & pl.col("chance_found"), pl.col("unpoisoned"), lost, known)
    sums = [condition.sum().cast(pl.Int64).alias(name) for name, condition in zip(COUNTED, counts, strict=True)]
    return [*sums, pl.col("acc_before").filter(lost).mean().alias("acc_untrained")]


def remark(row: Mapping[str, Any]) -> str:
    """What there is to say of the networks behind a pooled row, or "".

    Args:
      row: with ``defense``, the number ``ok`` of runs measured, the counts of :data:`COUNTED` (``trained_runs``: those of which
        the accuracy before is known) and ``acc_untrained``, the mean of that accuracy over the hardly trained.
    """
    found = [
        _in(row["one_class_runs"], row["ok"], "predicts one class"),
        _in(row["chance_runs"], row["ok"], "at chance"),
        _in(row["unpoisoned_runs"], row["ok"], "no row poisoned"),
    ]
    same = row["defense"] == "none" and row["one_class_runs"] + row["chance_runs"] >= row["untrained_runs"]  # the same networks
    if row["untrained_runs"] and not same:
        text = f"hardly trained (ACC before {100 * row['acc_untrained']:.1f} %)"
        found.append(_in(row["untrained_runs"], row["trained_runs"], text))
    return "; ".join(text for text in found if text)


def _in(count: int, of: int, text: str) -> str:
    if not count:
        return ""
    return text if count >= of else f"{text} in {count} of {of} runs"


def _bounds(rows: "pl.DataFrame") -> list[float | None]:
    """The accuracy up to which a network is at chance."""
    pairs = zip(rows["n_clean"], rows["chance"], strict=True)
    return [None if not n or p is None else _bound(n, p) for n, p in pairs]


@functools.lru_cache(maxsize=1 << 12)
def _bound(images: int, chance: float) -> float:
    from scipy.stats import binom

    return float(binom.ppf(SURE, images, chance)) / images


def _chances(rows: "pl.DataFrame") -> list[float | None]:
    facts = rows.select("majority", "classes", "dataset", "test_images", "n_clean", "n_triggered", "config").iter_rows()
    return [_chance(*fact) for fact in facts]


def _chance(
    majority: float | None,
    classes: int | None,
    dataset: str | None,
    images: int | None,
    clean: int | None,
    triggered: int | None,
    config: str | None,
) -> float | None:
    """The share of the most frequent class among the test images; for records without it, what comes closest."""
    if majority is not None:
        return majority
    if classes:
        return 1 / classes
    share = _of_table(dataset, images)
    if share is None and clean and triggered is not None and 0 < triggered < clean and _whole_test_set(config):
        share = (clean - triggered) / clean  # the share of the attack's target
    return share


def _unpoisoned(rows: "pl.DataFrame") -> list[bool]:
    facts = rows.select("ratio", "poisoned", "status", "train_images", "config").iter_rows()
    return [ratio > 0 and poisoned == 0 and status == "ok" and _nothing(ratio, n, c) for ratio, poisoned, status, n, c in facts]


def _nothing(ratio: float, images: int | None, config: str | None) -> bool:
    """Whether a record of 0 poisoned rows per epoch poisoned nothing: an attack in the batch draws in every epoch."""
    settings = parsed(config)
    if "max_ratio" not in ((settings.get("attack") or {}).get("config") or {}):
        return True
    return ratio * (images or 0) * (settings.get("recipe") or {}).get("epochs", 1) < 1


@functools.lru_cache(maxsize=1 << 8)
def _of_table(dataset: str | None, images: int | None) -> float | None:
    """The share of the largest class in the test images of a data set of the table; reduced ones are balanced."""
    from bdjax.data import DATASETS

    if dataset not in DATASETS:
        return None
    counts = np.asarray(DATASETS[dataset].counts["test"])
    return float(counts.max() / counts.sum()) if images == counts.sum() else 1 / len(counts)


def _whole_test_set(config: str | None) -> bool:
    """Whether the triggered images are the test images, but for those of the target class."""
    name = (parsed(config).get("attack") or {}).get("name")
    return name is not None and name not in IMAGES_ONLY
