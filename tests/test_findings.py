"""What experiments/replicate computes from records, on records with known answers."""

import importlib
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

FOLDER = str(Path(__file__).parents[1] / "experiments" / "replicate")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The folder's scripts import one another by their bare names."""
    sys.path.insert(0, FOLDER)
    yield
    sys.path.remove(FOLDER)


def rows(asr, defense="ft", attack="badnets", spc=10, acc=0.5, seeds=3, **more):
    """A row per seed: before ACC 0.5 and ASR 0.9."""
    return [
        {"defense": defense, "attack": attack, "spc": spc, "seed": seed, "acc": acc, "asr": asr + 0.01 * seed, "ra": 0.1,
         "der": 0.5 + (0.9 - asr - 0.01 * seed) / 2, "arr": 1 - acc / 0.5, "acc_before": 0.5, "asr_before": 0.9, **more}
        for seed in range(seeds)
    ]  # fmt: skip


def test_a_pair_is_judged_by_the_share_removed_with_the_most_clean_samples():
    agreement = importlib.import_module("agreement")
    few, more = rows(0.85), rows(0.1, spc=100)
    (pair,) = agreement.pairs(pl.DataFrame([*few, *more]))  # FT removes 82 to 98 % of BadNets, published
    assert (pair.spc, pair.verdict) == (100, "agrees") and min(pair.removed) > 80
    np.testing.assert_allclose((pair.ours, pair.low, pair.high), 100 * (1 - np.array([0.11, 0.12, 0.1]) / 0.9))
    assert agreement.pairs(pl.DataFrame(few))[0].verdict == "weaker here"
    assert agreement.pairs(pl.DataFrame(rows(0.1, attack="blended")))[0].verdict == "stronger here"  # 4 to 16 %, published
    assert "all | 1 | 1 | 0 | 0" in agreement.summary([pair])


def test_a_missing_run_is_no_zero():
    runs = importlib.import_module("runs")
    whole = pl.DataFrame([*rows(0.5), *rows(0.5, attack="sig")])
    assert runs.by_defense(whole, spc=10)["ft"].rates["asr"].shape == (2, 3)
    with pytest.raises(ValueError, match="5 runs for 2 attacks and 3 seeds"):
        runs.by_defense(whole[:-1], spc=10)


def test_intervals_hold_the_value_and_vanish_where_nothing_varies():
    runs = importlib.import_module("runs")
    values = np.array([[1.0, 2.0], [3.0, 5.0]])
    told = runs.estimate(lambda a, s: float(values[a, s].mean()), 2, 2)
    assert told.value == 2.75 and 1 <= told.low < 2.75 < told.high <= 5
    told = runs.estimate(lambda a, s: float(np.ones((2, 2))[a, s].mean()), 2, 2)
    assert told == (1, 1, 1)


def test_shares_of_the_variance_add_up():
    claims = importlib.import_module("claims")
    made = [
        row
        for i, attack in enumerate(("badnets", "sig"))
        for model in ("cnn", "vgg")
        for ratio in (0.05, 0.1)
        for row in rows(0.2 + 0.4 * i, attack=attack, model=model, ratio=ratio)
    ]
    line = claims.variation(pl.DataFrame(made)).splitlines()[-1]
    shares = [int(cell) for cell in line.split("|")[2:7]]
    assert shares[0] > 99 - 1 and shares[1:4] == [0, 0, 0] and sum(shares) == 100
    flat = [{**row, "der": row["der"] + (0.3 if row["ratio"] == 0.1 else 0)} for row in made]
    assert int(claims.variation(pl.DataFrame(flat)).splitlines()[-1].split("|")[4]) > 50  # now the ratio matters most
