"""Verdicts of made-up records: who is called backdoored, which class is named, and what never-attacked models say of it."""

import json

import numpy as np
import polars as pl
import pytest

from bdjax.results.intervals import share_interval
from bdjax.results.verdicts import table, verdict
from tests.reporting.conftest import frame, row

PLAIN = (50.0, 52.0, 48.0, 51.0, 49.0, 53.0, 47.5, 50.5, 49.5, 50.0)


def trace(norm, threshold=2.0):
    """What Neural Cleanse's trace says of these norms, worked in plain NumPy."""
    norm = np.array(norm)
    middle = (len(norm) - 1) // 2
    median = np.sort(norm)[middle]
    away = np.abs(norm - median)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = away / (1.4826 * np.sort(away)[middle])
    flagged = (norm <= median) & (index > threshold)
    plain = [float(x) if np.isfinite(x) else None for x in index]
    return json.dumps({"mask": {"array": [10, 32, 32]}, "norm": norm.tolist(), "anomaly": plain, "flagged": flagged.tolist()})


def with_small(*classes, size=5.0):
    """Norms of which those of some classes are small, each smaller than the one before."""
    norm = list(PLAIN)
    for i, k in enumerate(classes):
        norm[k] = size - i
    return norm


def records(*runs, attack="badnets", defense="nc", spc=10, **changes):
    """Records of (seed, ratio, norms), with the networks before the defense."""
    rows = []
    for seed, ratio, norm in runs:
        rows.append(row(seed, ratio, attack, "none", None, None, None, **changes))
        told = None if norm is None else trace(norm)
        rows.append(row(seed, ratio, attack, defense, spc, 0.9, 0.1, trace=told, **changes))
    return frame(rows)


SEEN = (
    (0, 0.1, with_small(0)),  # the target
    (1, 0.1, with_small(3)),  # another class
    (2, 0.1, with_small(0, 7)),  # the target, but 7 is smaller
    (3, 0.1, PLAIN),  # nobody
    (0, 0.0, PLAIN),
    (1, 0.0, PLAIN),
    (2, 0.0, with_small(0)),  # a false positive, whatever class it names
)


def test_a_verdict_names_the_class_with_the_smallest_mask():
    found = verdict("ok", trace(with_small(0, 7)))
    assert found.called and found.classes == (7, 0)
    told = json.loads(trace(with_small(0, 7)))["anomaly"]
    assert found.anomaly == told[7] == max(told) > 2
    clean = verdict("ok", trace(PLAIN))
    assert (clean.called, clean.classes) == (False, ()) and clean.anomaly == json.loads(trace(PLAIN))["anomaly"][6]


def test_what_json_cannot_hold_is_told_from_the_norms():
    assert verdict("ok", trace([9.0] * 9 + [3.0])).anomaly == np.inf  # the deviations' median is 0, and this is none of it
    assert verdict("ok", trace([9.0] * 9 + [3.0])).classes == (9,)
    same = verdict("ok", trace([9.0] * 10))
    assert not same.called and np.isnan(same.anomaly)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("ok", None),
        ("ok", json.dumps({"loss": [1.0], "accuracy": [0.5], "start": [3.0]})),  # of a method that only mitigates
        ("ok", json.dumps({"norm": [1.0], "anomaly": {"array": [5000]}, "flagged": [True]})),
        ("ok", json.dumps({"norm": [None, 1.0], "anomaly": [None, 1.0], "flagged": [False, False]})),
        ("non_finite", trace(with_small(0))),
    ],
)
def test_records_without_a_verdict_have_none(status, text):
    assert verdict(status, text) is None


def test_members_are_counted_by_ratio_and_the_named_class_is_right_or_wrong():
    rows = table(records(*SEEN))
    assert rows["ratio"].to_list() == [0.0, 0.1] and rows["defense"].to_list() == ["nc", "nc"]
    never, attacked = rows.to_dicts()
    assert (attacked["runs"], attacked["judged"], attacked["called"], attacked["called_share"]) == (4, 4, 3, 0.75)
    assert (attacked["right"], attacked["wrong"], attacked["target_called"]) == (1, 2, 2)
    assert (attacked["called_low"], attacked["called_high"]) == share_interval(3, 4)
    assert attacked["classes"] == (1 + 1 + 2 + 0) / 4 and attacked["asr_before"] == 0.99
    index = [verdict("ok", trace(norm)).anomaly for _, ratio, norm in SEEN if ratio]
    assert (attacked["anomaly"], attacked["anomaly_min"], attacked["anomaly_max"]) == (np.median(index), min(index), max(index))
    assert (never["called"], never["right"], never["wrong"], never["target_called"]) == (1, None, None, None)
    for one in (never, attacked):
        assert (one["never_attacked"], one["false_positives"], one["false_positives_share"]) == (3, 1, 1 / 3)
        assert (one["false_positives_low"], one["false_positives_high"]) == share_interval(1, 3)


def test_configurations_and_defenses_are_never_mixed():
    other = records((0, 0.1, with_small(0)), attack="blended")
    wider = records((0, 0.0, with_small(2)), spc=100)
    rows = table(pl.concat([records(*SEEN), other, wider]))
    assert rows.select("attack", "ratio", "spc").rows() == [
        ("badnets", 0.0, 10), ("badnets", 0.0, 100), ("badnets", 0.1, 10), ("blended", 0.1, 10),
    ]  # fmt: skip
    alone = rows.filter(pl.col("attack") == "blended").row(0, named=True)
    assert (alone["called"], alone["never_attacked"], alone["false_positives_share"], alone["false_positives_low"]) == (
        1, None, None, None,
    )  # fmt: skip


def test_runs_without_a_verdict_are_counted_and_say_why():
    found = records(*SEEN)
    lost = (pl.col("defense") == "nc") & (pl.col("ratio") > 0) & (pl.col("seed") == 3)
    changed = {"status": "non_finite", "reason": "a loss or gradient of the defense is not finite"}
    found = found.with_columns(pl.when(lost).then(pl.lit(v)).otherwise(pl.col(k)).alias(k) for k, v in changed.items())
    attacked = table(found).row(1, named=True)
    assert (attacked["runs"], attacked["judged"], attacked["called"]) == (4, 3, 3) and attacked["reason"] == changed["reason"]


def test_an_attack_without_a_single_target_has_no_right_class():
    labels = pl.col("config").str.replace('"target": 0', '"target": 0, "labels": "all_to_all"', literal=True)
    attacked = table(records(*SEEN).with_columns(labels)).row(1, named=True)
    assert (attacked["target"], attacked["called"], attacked["right"], attacked["target_called"]) == (None, 3, None, None)


def test_networks_that_say_little_are_marked_by_what_they_were_before_the_defense():
    found = records(*SEEN)
    assert table(found)["remark"].to_list() == [None, None]
    assert table(found.with_columns(acc=pl.lit(0.1)))["remark"].to_list() == [None, None]  # of the defended network
    assert "hardly trained" in table(found.with_columns(acc_before=pl.lit(0.2)))["remark"][1]


def test_no_verdict_is_no_row():
    assert table(records((0, 0.1, None), defense="mm_bd")).is_empty()
    rows = table(pl.concat([records(*SEEN), records((0, 0.1, None), defense="mm_bd")]))
    assert set(rows["defense"]) == {"nc"}


def test_the_interval_of_a_share_is_wilsons():
    low, high = share_interval(0, 3)
    z = 1.959963984540054
    np.testing.assert_allclose((low, high), (0, z**2 / (3 + z**2)), atol=1e-12)
    centre, width = (2 + z**2 / 2) / (4 + z**2), z / (4 + z**2) * np.sqrt(2 * 2 / 4 + z**2 / 4)
    np.testing.assert_allclose(share_interval(2, 4), (centre - width, centre + width), atol=1e-12)
    assert share_interval(4, 4)[1] == 1 and all(np.isnan(share_interval(0, 0)))
    for wrong in ((2, 1), (-1, 1)):
        with pytest.raises(ValueError, match="hits must lie"):
            share_interval(*wrong)
    with pytest.raises(ValueError, match="level"):
        share_interval(1, 2, level=1.0)
