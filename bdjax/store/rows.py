"""The row of a record: one member under one defense (or under "none": as it was trained)."""

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdjax import metrics
from bdjax.store.hashing import canonical
from bdjax.train.evaluate import Counts

STATUSES = ("ok", "infeasible", "failed", "non_finite")

# The columns in their order; what is "int" or "float" may be null.
_LAYOUT = """
  str    cell member dataset
  int    train_images test_images
  str    model
  int    width
  str    attack defense profile
  int    seed
  float  ratio
  int    spc target
  str    hyper status reason
  int    poisoned n_clean n_triggered
  float  acc_before asr_before ra_before acc asr ra arr rdr der
  bool   knows_trigger knows_test
  str    masks trace loss
  float  seconds compile_seconds
  int    members images
  str    config execution versions git_commit device data_digest trigger_digest created
  int    classes
  float  majority one_class_before one_class
  str    target_class
  float  target_rate
  str    warning by_class
"""
KIND = {name: line.split()[0] for line in _LAYOUT.strip().splitlines() for name in line.split()[1:]}
COLUMNS = tuple(KIND)

# Columns that records of earlier versions do not have; they are null there.
ADDED = frozenset({"classes", "majority", "one_class_before", "one_class", "target_class", "target_rate", "warning", "by_class"})

VOLATILE = ("created", "seconds", "compile_seconds")  # what may differ between two runs of the same record

# What rows are sorted by: their scenario, so that the order of a table does not depend on the order of files.
ORDER = ("dataset", "model", "attack", "defense", "spc", "seed", "ratio", "hyper", "cell")

Row = dict[str, Any]


def arrow_schema() -> Any:
    """Return the columns of a record as a pyarrow schema.

    ``seconds`` is wall time without compilation, ``compile_seconds`` the time of compilation, ``images`` the number that the call
    processed which trained the ``members`` of this row. ``one_class`` is the share of the clean test images that is predicted as
    the most predicted class, ``majority`` the share of the largest class among them. Of imported networks ``target_rate`` is the
    rate at which they call clean test images of other classes their attack label, before any defense, and ``warning`` says where
    ASR is no higher than that (:mod:`bdjax.sweep.foreign_trigger`); of networks trained on exported data it says that these were
    poisoned already (:mod:`bdjax.data.poisoned_export`). ``by_class`` holds the counts of clean, correct, triggered,
    attacked and recovered images of every true class as JSON, a list of each.
    """
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, types[KIND[name]]) for name in COLUMNS])


def blank(**fields: Any) -> Row:
    """Return a row with these fields and null everywhere else.

    Raises:
      KeyError: a field that is no column.
    """
    row: Row = dict.fromkeys(COLUMNS)
    for name, value in fields.items():
        if name not in row:
            raise KeyError(name)
        row[name] = value
    return row


def now() -> str:
    """Return the present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def measured(counts: Counts, before: Mapping[str, Any] | None = None) -> Row:
    """Return the columns of one member that are measured on test images.

    Args:
      counts: of this member, integers.
      before: the row of the same member without a defense; None where this is that row.
    """
    acc, asr, ra = (float(rate) for rate in metrics.rates(counts))
    first = (acc, asr, ra) if before is None else tuple(_nan(before[name]) for name in ("acc", "asr", "ra"))
    numbers = {
        "acc_before": first[0],
        "asr_before": first[1],
        "ra_before": first[2],
        "acc": acc,
        "asr": asr,
        "ra": ra,
        "arr": metrics.arr(first[0], acc),
        "rdr": metrics.rdr(first[0], ra),
        "der": metrics.der(first[0], first[1], acc, asr),
    }
    share = float(metrics.one_class(counts))
    numbers |= {"one_class_before": share if before is None else _nan(before["one_class"]), "one_class": share}
    sizes = {"n_clean": int(counts.clean), "n_triggered": int(counts.triggered)}
    by_class = {name: np.asarray(of_each).tolist() for name, of_each in counts.by_class._asdict().items()}
    return {**sizes, **{name: _null(value) for name, value in numbers.items()}, "by_class": canonical(by_class)}


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _null(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def encoded_masks(masks: Mapping[str, Any] | None) -> str | None:
    """Return keep factors f[d] per address as JSON: the width d, the pruned channels, and all factors unless each is 0 or 1."""
    if masks is None:
        return None
    layers = {}
    for address, keep in masks.items():
        factors = np.asarray(keep)
        layers[address] = {"d": len(factors), "pruned": np.flatnonzero(factors == 0).tolist()}
        if not np.isin(factors, (0, 1)).all():
            layers[address]["factors"] = factors
    return canonical(layers)
