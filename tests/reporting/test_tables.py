"""Tables: every run is accounted for, numbers are those of the records, nothing is typed."""

import csv as reader
import io

import numpy as np
import polars as pl
import pytest

from bdjax.errors import UserError
from bdjax.reporting import tables
from bdjax.results import intervals


def pick(frame, **values):
    rows = frame.filter(*(pl.col(key) == value for key, value in values.items())).to_dicts()
    assert len(rows) == 1
    return rows[0]


def test_table_pools_seeds_and_nothing_else(records):
    pooled = tables.table(records)
    assert pooled.height == 2 * 2 * 5
    row = pick(pooled, attack="badnets", defense="ft", ratio=0.1)
    values = [0.90, 0.91, 0.92, 0.93]
    assert (row["runs"], row["ok"], row["acc_n"]) == (4, 4, 4)
    np.testing.assert_allclose([row["acc"], row["acc_mean"]], [0.915, 0.915], atol=1e-12)
    np.testing.assert_allclose((row["acc_low"], row["acc_high"]), intervals.stratified_bootstrap(values), atol=1e-12)
    np.testing.assert_allclose((row["acc_before"], row["asr_before"]), (0.95, 0.99), atol=1e-12)


def test_lost_runs_are_counted_and_never_averaged(records):
    pooled = tables.table(records)
    row = pick(pooled, attack="blended", defense="ft", ratio=0.1)
    assert (row["runs"], row["ok"], row["failed"], row["non_finite"], row["infeasible"]) == (4, 2, 1, 1, 0)
    np.testing.assert_allclose(row["acc"], 0.925, atol=1e-12)  # seeds 2 and 3
    assert row["reason"] == "ValueError: out of luck; non-finite parameters after the repair"
    row = pick(pooled, attack="blended", defense="fp", ratio=0.1)
    assert (row["ok"], row["infeasible"], row["acc"], row["der_low"]) == (0, 4, None, None)
    assert pooled["runs"].sum() == records.height


def test_undefined_metrics_are_null_and_not_counted(records):
    undefined = pl.when(pl.col("seed") == 0).then(None).otherwise(pl.col("arr")).alias("arr")
    row = pick(tables.table(records.with_columns(undefined)), attack="badnets", defense="ft", ratio=0.1)
    assert (row["ok"], row["acc_n"], row["arr_n"]) == (4, 4, 3)
    text = tables.markdown(records.with_columns(undefined))
    assert "(n=3)" in text and "(n=3)" not in tables.markdown(records)


def test_one_seed_has_a_value_and_no_interval(one_seed):
    row = pick(tables.table(one_seed), attack="badnets", defense="ft", ratio=0.1)
    assert row["acc"] == 0.90 and row["acc_low"] is None and row["acc_high"] is None and row["mitigated_high"] is None
    assert "| 90.0 | 40.0 |" in tables.markdown(one_seed)


def test_different_static_settings_are_never_pooled(records):
    """Two cells that look alike in every column stay two rows, distinguished by their hash."""
    longer = records.filter((pl.col("defense") == "ft") & (pl.col("attack") == "badnets")).with_columns(cell=pl.lit("other" * 5))
    pooled = tables.table(pl.concat([records, longer]))
    assert pooled.height == 22 and pooled.filter(pl.col("defense") == "ft")["runs"].max() == 4
    assert "| otheroth |" in tables.markdown(pl.concat([records, longer]))
    assert "cell" not in tables.full(records).heads


def test_markdown_accounts_for_every_row_and_marks_what_a_method_knows(records):
    text = tables.markdown(records)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 20 and len({line.count("|") for line in lines}) == 1
    assert "| badnets | 10 | ft | 10 | 0.0 [0.0, 0.0] | 91.5 [90.0, 93.0] | 41.5 [40.0, 43.0] |" in text
    assert "| blended | 10 | fp | 10 | – | – | – | – | – | – | 0 of 4 | 4 infeasible |" in text
    assert "| badnets | 10 | clp | any |" in text and "| badnets | 10 | none | – |" in text
    assert "grad_prune†" in text and "- † is shown" in text and "‡" not in text
    assert "- Not averaged: spc 10 exceeds class 3." in text
    assert text.startswith("dataset: digits, training images: 1437, model: cnn")


def test_a_reader_of_test_accuracy_is_marked(records):
    text = tables.markdown(records.with_columns(knows_test=pl.col("defense") == "clp"))
    assert "clp‡" in text and "- ‡ reads" in text


def test_hyper_parameters_are_shown_where_a_defense_has_several(records):
    assert "hyper-parameters" not in tables.full(records).heads
    slower = records.filter(pl.col("defense") == "ft").with_columns(hyper=pl.lit('{"lr":0.001}'))
    pooled = tables.full(pl.concat([records, slower]))
    assert "hyper-parameters" in pooled.heads and len(pooled.rows) == 24


def test_csv_holds_fractions_in_full_precision(records):
    rows = list(reader.DictReader(io.StringIO(tables.csv(records))))
    assert len(rows) == 20
    row = next(r for r in rows if (r["attack"], r["defense"], r["ratio"]) == ("badnets", "ft", "0.1"))
    pooled = tables.table(records).filter(pl.col("attack") == "badnets", pl.col("defense") == "ft", pl.col("ratio") == 0.1)
    assert float(row["acc"]) == pooled["acc"][0] and float(row["der_low"]) == pooled["der_low"][0]


def test_leaderboard_ranks_by_mitigated_and_states_cost_and_coverage(records):
    pooled = tables.leaderboard(records)
    assert pooled["defense"].to_list() == ["grad_prune", "clp", "fp", "ft"]  # two of ft's runs are lost, and kept no accuracy
    assert pooled["mitigated"].to_list() == [1.0, 0.75, 0.0, 0.0] and pooled["kept"].to_list() == [1.0, 0.75, 1.0, 0.75]
    assert pooled["mitigated_n"].to_list() == [8, 8, 4, 8]  # fp: four infeasible ones say nothing
    assert pooled["tasks"].to_list() == [2, 2, 1, 2] and pooled["runs"].to_list() == [8, 8, 8, 8]
    clp = pick(pooled, defense="clp")
    np.testing.assert_allclose(clp["cost"], 1 - 0.865 / 0.95, atol=1e-12)  # ratio 0 only, both attacks
    asr = [0.05, 0.06, 0.07, 0.08]
    np.testing.assert_allclose(
        (clp["asr_low"], clp["asr_high"]), intervals.stratified_bootstrap(asr * 2, [0] * 4 + [1] * 4), atol=1e-12
    )


def test_leaderboard_keeps_settings_of_one_defense_apart(records):
    changed = pl.col("config").str.replace('"epochs": 5', '"epochs": 50', literal=True)
    longer = records.filter(pl.col("defense") == "ft").with_columns(config=changed)
    assert not longer["config"].equals(records.filter(pl.col("defense") == "ft")["config"])
    pooled = tables.leaderboard(pl.concat([records, longer]))
    assert pooled["defense"].to_list().count("ft") == 2 and pooled["runs"].to_list() == [8] * 5


def test_leaderboard_without_poisoned_or_clean_members(records):
    assert tables.leaderboard(records.filter(pl.col("ratio") == 0)).is_empty()
    assert tables.board(records.filter(pl.col("ratio") == 0)) is None
    assert tables.leaderboard(records.filter(pl.col("ratio") > 0))["cost"].null_count() == 4


@pytest.mark.parametrize("make", [tables.table, tables.leaderboard, tables.markdown, tables.csv])
def test_no_records_is_one_clear_line(make, records):
    with pytest.raises(UserError, match="no records"):
        make(records.clear())
