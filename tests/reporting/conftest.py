"""Records as a small sweep would leave them, made up but of the real schema and with numbers one can check."""

import json

import numpy as np
import polars as pl
import pytest

from bdjax import metrics
from tests.reporting.sketch import sketch

SPEC = {
    "cell": pl.String, "member": pl.String, "dataset": pl.String, "train_images": pl.Int64, "test_images": pl.Int64,
    "model": pl.String, "width": pl.Int64, "attack": pl.String, "defense": pl.String, "profile": pl.String, "seed": pl.Int64,
    "ratio": pl.Float64, "spc": pl.Int64, "target": pl.Int64, "hyper": pl.String, "status": pl.String, "reason": pl.String,
    "poisoned": pl.Int64, "n_clean": pl.Int64, "n_triggered": pl.Int64, "acc_before": pl.Float64, "asr_before": pl.Float64,
    "ra_before": pl.Float64, "acc": pl.Float64, "asr": pl.Float64, "ra": pl.Float64, "arr": pl.Float64, "rdr": pl.Float64,
    "der": pl.Float64, "knows_trigger": pl.Boolean, "knows_test": pl.Boolean, "masks": pl.String, "trace": pl.String,
    "loss": pl.String, "seconds": pl.Float64, "compile_seconds": pl.Float64, "members": pl.Int64, "images": pl.Int64,
    "config": pl.String, "execution": pl.String, "versions": pl.String, "git_commit": pl.String, "device": pl.String,
    "data_digest": pl.String, "trigger_digest": pl.String, "created": pl.String,
}  # fmt: skip
LAYERS = {"conv1/norm": 8, "conv2/norm": 16, "conv3/norm": 16}


def row(seed, ratio, attack, defense, spc, acc, asr, **changes):
    """One row; before: ACC 0.95, ASR 0.99 (0.10 at ratio 0)."""
    config = {
        "schema": 1,
        "dataset": {"name": "digits", "digest": "d" * 64},
        "model": {"name": "cnn", "width": 16},
        "attack": {"name": attack, "config": {"target": 0}},
        "recipe": {"epochs": 20},
        "profile": "corrected",
        "root": 0,
    }
    if defense != "none":
        config |= {"defense": {"name": defense, "config": {"epochs": 5}}, "spc": spc}
    before = (0.95, 0.99 if ratio else 0.10, 0.01 if ratio else 0.85)
    after = before if defense == "none" else (acc, asr, 0.9 * (1 - asr))
    numbers = dict(zip(("acc_before", "asr_before", "ra_before", "acc", "asr", "ra"), (*before, *after), strict=True))
    numbers |= {
        "arr": float(metrics.arr(before[0], after[0])),
        "rdr": float(metrics.rdr(before[0], after[2])),
        "der": float(metrics.der(before[0], before[1], after[0], after[1])),
    }
    made = dict.fromkeys(SPEC) | numbers | {
        "cell": f"{attack}-{defense}-{spc}".ljust(24, "0"), "member": f"s{seed}r{ratio}", "dataset": "digits",
        "train_images": 1437, "test_images": 360, "model": "cnn", "width": 16, "attack": attack, "defense": defense,
        "profile": "corrected", "seed": seed,
        "ratio": ratio, "spc": spc, "target": 0, "hyper": "{}", "status": "ok", "poisoned": round(1437 * ratio), "n_clean": 360,
        "n_triggered": 324, "knows_trigger": False, "knows_test": False, "seconds": 1.5, "compile_seconds": 2.0, "members": 4,
        "config": json.dumps(config), "execution": '{"strategy":"vmap"}', "versions": '{"bdjax":"0.1.0","jax":"0.10.2"}',
        "git_commit": "0123abc", "device": "CPU", "data_digest": "d" * 64, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return made | changes


def frame(rows):
    return pl.DataFrame(rows, schema=SPEC, orient="row")


def fp_trace(seed):
    levels = np.arange(0, 9, dtype=int)
    correct = np.maximum(30 - levels**2 // 8 - seed % 2, 0)
    trace = {"pruned": levels.tolist(), "correct": correct.tolist(), "validation": 30, "level": 4, "loss": [0.5], "alive": True}
    return json.dumps(trace), json.dumps({"head": {"d": 16, "pruned": [0, 3, 7, 9]}})


def clp_masks(seed):
    return json.dumps({address: {"d": d, "pruned": list(range(seed % 3))} for address, d in LAYERS.items()})


@pytest.fixture
def sketched(monkeypatch):
    """Pictures are made and not drawn."""
    sketch(monkeypatch)


@pytest.fixture(scope="session")
def records():
    """2 attacks x 4 seeds x ratios 0 and 0.1 x (none, ft, fp, clp, a marked method); blended's ft: one failed, one non-finite."""
    rows = []
    for attack in ("badnets", "blended"):
        for ratio in (0.0, 0.1):
            for seed in range(4):
                bump = seed / 100
                rows.append(row(seed, ratio, attack, "none", None, None, None))
                rows.append(row(seed, ratio, attack, "ft", 10, 0.90 + bump, (0.40 if ratio else 0.10) + bump))
                trace, masks = fp_trace(seed)
                traced = {"trace": trace, "masks": masks}
                rows.append(row(seed, ratio, attack, "fp", 10, 0.92 + bump, (0.60 if ratio else 0.10) + bump, **traced))
                rows.append(row(seed, ratio, attack, "clp", None, 0.85 + bump, 0.05 + bump, masks=clp_masks(seed)))
                rows.append(row(seed, ratio, attack, "grad_prune", 10, 0.94, 0.02 + bump, knows_trigger=True))
    lost = {"acc": None, "asr": None, "ra": None, "arr": None, "rdr": None, "der": None}
    for one in rows:
        if one["attack"] == "blended" and one["defense"] == "ft" and one["ratio"]:
            if one["seed"] == 0:
                one.update(lost | {"status": "failed", "reason": "ValueError: out of luck"})
            if one["seed"] == 1:
                one.update(lost | {"status": "non_finite", "reason": "non-finite parameters after the repair"})
        if one["attack"] == "blended" and one["defense"] == "fp" and one["ratio"]:
            one.update(lost | {"status": "infeasible", "reason": "spc 10 exceeds class 3", "trace": None, "masks": None})
    return frame(rows)


@pytest.fixture(scope="session")
def one_seed(records):
    return records.filter(pl.col("seed") == 0)
