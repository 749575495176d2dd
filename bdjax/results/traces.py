"""What the traces of records say: pruning curves, losses by epoch, the rounds of a pruning, recovered triggers."""

import json
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CURVE = ("pruned", "correct", "validation", "level")
ROUNDS = ("address", "filter", "score", "errors", "unlearning", "validation", "rounds", "kept")
RECOVERED = ("mask", "pattern", "norm", "anomaly", "flagged")


class PruningCurve(NamedTuple):
    """The levels of a method that prunes more and more."""

    share: NDArray[np.float64]  # f64[L], channels pruned, in [0, 1]
    accuracy: NDArray[np.float64]  # f64[L], on clean validation rows, in [0, 1]
    level: int  # the one that was taken


class Trajectory(NamedTuple):
    """The rounds of one member, f64[rounds + 1]; entry 0 is the network as it came."""

    unlearning: NDArray[np.float64]  # cross-entropy on triggered validation rows
    accuracy: NDArray[np.float64]  # on clean validation rows, in [0, 1]
    score: NDArray[np.float64]  # of the filter that was pruned; NaN at 0
    address: NDArray[np.int64]  # number of its convolution; -1 = none
    kept: int  # the round whose network was kept


def pruning_curve(row: dict[str, Any]) -> PruningCurve | None:
    """The pruning curve of a record; None where its trace has none."""
    if row["status"] != "ok" or not row["masks"] or not row["trace"]:
        return None
    trace = json.loads(row["trace"])
    if not set(CURVE) <= set(trace):
        return None
    channels = sum(layer["d"] for layer in json.loads(row["masks"]).values())
    return PruningCurve(
        np.array(trace["pruned"]) / channels, np.array(trace["correct"]) / trace["validation"], int(trace["level"])
    )


def courses(row: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """{field: f64[epochs]}: the quantities that a record's trace holds by epoch (or round), in its order."""
    if row["status"] not in ("ok", "non_finite") or not row["trace"]:
        return {}
    trace = json.loads(row["trace"])
    length = len(trace.get("loss") or [])
    if length < 2:
        return {}
    lists = {name: value for name, value in trace.items() if isinstance(value, list) and len(value) == length}
    return {name: _floats(value) for name, value in lists.items() if not any(isinstance(x, (list, dict, bool)) for x in value)}


def trajectory(row: dict[str, Any]) -> Trajectory | None:
    """The rounds of a method that prunes one filter per round; None where a record has none."""
    if row["status"] != "ok" or not row["trace"]:
        return None
    trace = json.loads(row["trace"])
    if not set(ROUNDS) <= set(trace) or trace["rounds"] < 1:
        return None
    rounds = slice(0, trace["rounds"] + 1)
    unlearning, score = (_floats(trace[name][rounds]) for name in ("unlearning", "score"))
    accuracy = 1 - np.array(trace["errors"][rounds], float) / max(trace["validation"], 1)
    return Trajectory(unlearning, accuracy, score, np.array(trace["address"][rounds], int), trace["kept"])


def recovered(row: dict[str, Any], arrays: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The triggers that a defense recovered; empty where a record's trace has no such fields.

    Args:
      row: a record.
      arrays: those kept beside it.

    Returns:
      ``mask`` [k h w], ``pattern`` [k h w c], ``norm``, ``anomaly`` and ``flagged`` [k].
    """
    trace = json.loads(row["trace"]) if row["status"] == "ok" and row["trace"] else {}
    if not set(RECOVERED) <= set(trace):
        return {}
    found = {}
    for name in RECOVERED:
        beside = isinstance(trace[name], dict)  # beside the record
        if beside and name not in arrays:
            return {}
        found[name] = np.asarray(arrays[name] if beside else [np.nan if x is None else x for x in trace[name]])
    return found


def _floats(values: list[float | None]) -> NDArray[np.float64]:
    """f64[n] of numbers of a trace; what JSON cannot hold, an infinity, is NaN."""
    return np.array([np.nan if x is None else x for x in values], float)
