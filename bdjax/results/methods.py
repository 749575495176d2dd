"""The defenses of a report with their runs by task, so that they can be compared: ordered, ranked, drawn."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.metrics import Floats
from bdjax.results.apart import shown
from bdjax.results.configs import differing
from bdjax.results.mitigation import LIMITS, Limits, judged
from bdjax.results.pool import described, with_tasks
from bdjax.results.wording import marks

if TYPE_CHECKING:
    import polars as pl

METRICS = ("acc", "asr", "der", "arr", "rdr")
BEST = ("mitigated", "kept", "der")  # what defenses are ordered by: the later ones decide between equals
RANKED = "standing"  # orders single runs in the same way
JUDGED = ("mitigated", "kept", RANKED)
TITLES = {"mitigated": "share of runs mitigated", RANKED: "mitigated, then accuracy kept, then DER"}
LEAST = 0.5  # share of the tasks that a method has to have met to be ranked with the others


class Method(NamedTuple):
    """A defense with its settings, and its runs by task."""

    label: str
    attacks: dict[str, str]  # of each task
    scores: dict[str, dict[str, Floats]]  # by metric: the runs of each task on which it is defined, f64[n], n >= 1
    seconds: dict[str, float]  # per member, mean over the runs of each task, without compilation


def methods(records: "pl.DataFrame", spc: int | None, best: Sequence[str] = BEST, limits: Limits = LIMITS) -> list[Method]:
    """The defenses of poisoned members with so many clean samples per class, and those that need none; the best first.

    Args:
      records: rows of a sweep.
      spc: clean samples per class; None = only defenses without.
      best: the metrics, by their mean over tasks, that say which is best; the later ones decide between equals.
      limits: what counts as mitigated, unless the records were judged already.
    """
    import polars as pl

    ok = pl.col("status") == "ok"  # what failed counts for none but the share that was mitigated
    kept = (ok | pl.col("mitigated").is_not_null()) & (pl.col("defense") != "none") & (pl.col("ratio") > 0)
    kept &= pl.col("spc").is_null() if spc is None else pl.col("spc").is_null() | (pl.col("spc") == spc)
    rule = pl.format(" ({})", pl.when(pl.col("labels") != "all_to_one").then(pl.col("labels")))
    tasks = (
        with_tasks(described(judged(records, limits)).filter(kept))
        .group_by("defense", "profile", "variant", "hyper", "task", maintain_order=True)
        .agg(
            pl.concat_str("attack_variant", rule, ignore_nulls=True).first().alias("attack"),
            (pl.col("seconds") / pl.col("members")).filter(ok).mean(),
            pl.col("knows_trigger", "knows_test").any(),
            *(pl.col(metric).filter(ok).drop_nulls().drop_nans() for metric in METRICS),
            *(pl.col(name).drop_nulls() for name in JUDGED),
        )
    )
    parts = tasks.partition_by("defense", "profile", "variant", "hyper", maintain_order=True)
    keys = [part.select("defense", "profile", "variant", "hyper").row(0) for part in parts]
    names = _labels(keys, [part.row(0, named=True) for part in parts])
    listed = [_method(name, part) for name, part in zip(names, parts, strict=True)]
    return sorted(listed, key=lambda method: [-mean(method, metric) for metric in best])


def _method(label: str, tasks: "pl.DataFrame") -> Method:
    names = tasks["task"].cast(str).to_list()
    scores = {
        metric: {name: values.to_numpy() for name, values in zip(names, tasks[metric], strict=True) if len(values)}
        for metric in (*METRICS, *JUDGED)
    }
    seconds = {name: value for name, value in zip(names, tasks["seconds"], strict=True) if value is not None}
    return Method(label, dict(zip(names, tasks["attack"], strict=True)), scores, seconds)


def _labels(keys: list[tuple[str, ...]], rows: list[dict[str, Any]]) -> list[str]:
    """Names of defenses, with the profile where there are several, and the settings in which two of one name differ."""
    labels, several = [], len({rule for _, rule, _, _ in keys}) > 1
    for (defense, rule, variant, hyper), row in zip(keys, rows, strict=True):
        mine = {**(json.loads(variant) or {}), **json.loads(hyper)}
        others = [{**(json.loads(v) or {}), **json.loads(h)} for d, p, v, h in keys if (d, p) == (defense, rule)]
        moving = [leaf for leaf in differing(others) if leaf in mine]
        values = [f"{leaf} {shown(mine[leaf])}" for leaf in moving]
        kind = [rule] if several and rule != "corrected" else []
        labels.append(", ".join([defense.rpartition(":")[2] + marks(row), *kind, *values]))
    return labels


def mean(method: Method, metric: str) -> float:
    """Mean over the tasks of the mean over the runs; -inf where it is nowhere defined."""
    means = [values.mean() for values in method.scores[metric].values()]
    return float(np.mean(means)) if means else -np.inf


def block(found: list[Method], metric: str = RANKED) -> tuple[list[Method], list[str]]:
    """Methods that can be ranked by a metric, and the tasks on which it is defined for all of them.

    Methods that met less than half of the tasks are left out, so that one rarely run does not take the others' tasks away.
    """
    every = {task for method in found for task in method.scores[metric]}
    kept = [method for method in found if len(method.scores[metric]) >= LEAST * len(every)]
    common = sorted(every.intersection(*(method.scores[metric] for method in kept))) if kept else []
    return kept, common


def title(metric: str) -> str:
    """A metric as figures name it."""
    return TITLES.get(metric, metric.upper())


def require_runs(found: list[Method]) -> None:
    """Raise UserError where no defense met a poisoned member."""
    if not any(method.attacks for method in found):
        raise UserError("no defense met a poisoned member")
