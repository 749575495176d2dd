"""What a defended network still gets wrong, class by class: the counts of records, pooled over the runs of a defense."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bdjax import metrics
from bdjax.metrics import Floats
from bdjax.results.apart import shown
from bdjax.results.configs import differing
from bdjax.results.wording import name

if TYPE_CHECKING:
    import polars as pl

COLUMN = "by_class"
COUNTS = ("clean", "correct", "triggered", "attacked", "recovered")


class Rates(NamedTuple):
    """Of every class, f64[k] in [0, 1]; NaN where no image counts."""

    acc: Floats
    asr: Floats
    ra: Floats


class Counted(NamedTuple):
    """Images of every class, i64[k], added up over runs (:class:`bdjax.train.evaluate.ByClass`)."""

    clean: NDArray[np.int64]
    correct: NDArray[np.int64]
    triggered: NDArray[np.int64]
    attacked: NDArray[np.int64]
    recovered: NDArray[np.int64]

    def rates(self) -> Rates:
        """ACC, ASR and RA of every class."""
        return Rates(*metrics.rates(self))

    def mistakes(self) -> NDArray[np.int64]:
        """Clean and triggered images of every class that are not called what they are, i64[k]."""
        return self.clean - self.correct + self.triggered - self.recovered


class Pooled(NamedTuple):
    """One defense at one poison ratio."""

    title: str  # its name, and the settings in which it differs from others of that name
    ratio: float
    spc: int | None
    runs: int
    before: Counted | None  # the same networks before the defense; None where their records do not tell
    after: Counted


def pooled(rows: "pl.DataFrame") -> list[Pooled]:
    """Every defense of a training configuration at its largest poison ratio, with the most clean samples per class.

    Args:
      rows: the records of one training configuration, those without a defense among them. Runs that were not measured, and
        records of earlier versions, which do not count by class, are left out.
    """
    import polars as pl

    if COLUMN not in rows.columns:
        return []
    told = rows.filter((pl.col("status") == "ok") & pl.col(COLUMN).is_not_null())
    trained = told.filter(pl.col("defense") == "none").rows_by_key(("seed", "ratio"), named=True, unique=True)
    defended = told.filter(pl.col("defense") != "none")
    return [one for part in defended.partition_by("defense", maintain_order=True) for one in _of_defense(part, trained)]


def _of_defense(rows: "pl.DataFrame", trained: dict[Any, dict[str, Any]]) -> Iterator[Pooled]:
    most = rows.filter(rows["ratio"] == rows["ratio"].max())
    if not most["spc"].is_null().all():
        most = most.filter(most["spc"] == most["spc"].max())
    parts = most.partition_by("cell", "hyper", maintain_order=True)
    settings = [json.loads(part["hyper"][0]) for part in parts]
    for part, mine in zip(parts, settings, strict=True):
        first = part.row(0, named=True)
        values = [f"{leaf} {shown(mine[leaf])}" for leaf in differing(settings) if leaf in mine]
        bases = [trained.get((row["seed"], row["ratio"])) for row in part.iter_rows(named=True)]
        before = _sum([row[COLUMN] for row in bases if row]) if all(bases) else None
        title = ", ".join([name(first).rpartition(":")[2], *values])
        yield Pooled(title, first["ratio"], first["spc"], part.height, before, _sum(part[COLUMN].to_list()))


def _sum(texts: Sequence[str]) -> Counted:
    each = [json.loads(text) for text in texts]
    return Counted(*(np.array([one[count] for one in each], np.int64).sum(0) for count in COUNTS))
