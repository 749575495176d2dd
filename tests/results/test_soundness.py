"""A network that predicts one class, is at chance or was hardly trained is marked wherever its numbers stand."""

import csv as reader
import io

import polars as pl
import pytest

from bdjax.reporting import html, tables
from bdjax.results.soundness import with_soundness
from tests.reporting.conftest import SPEC, frame, row

NEW = {"classes": pl.Int64, "majority": pl.Float64, "one_class_before": pl.Float64, "one_class": pl.Float64}


def frame_of(*rows):
    return pl.DataFrame(rows, schema={**SPEC, **NEW}, orient="row")


def one(acc, *, defense="ft", seed=0, **changes):
    facts = {"classes": 10, "majority": 0.1, "one_class_before": 0.12, "one_class": 0.12, "n_clean": 360}
    return row(seed, 0.1, "badnets", defense, 10, acc, 0.0) | facts | changes


def flags(*rows):
    columns = ("one_class_found", "chance_found", "broken_before", "untrained")
    return with_soundness(frame_of(*rows)).select(columns).rows()


def remarks(*rows):
    return tables.table(frame_of(*rows))["remark"].to_list()


def test_a_network_that_predicts_one_class_is_found_by_its_predictions():
    assert flags(one(0.10, one_class=1.0), one(0.13, one_class=0.95), one(0.5, one_class=0.6)) == [
        (True, False, False, False), (True, False, False, False), (False, False, False, False),
    ]  # fmt: skip


def test_a_good_network_on_lopsided_data_is_not_marked():
    """95 % of the test images are of one class, and the network is right about all of them."""
    found = flags(one(1.0, majority=0.95, one_class=0.95, acc_before=0.995, one_class_before=0.95))
    assert found == [(False, False, False, False)]
    assert flags(one(0.95, majority=0.95, one_class=1.0, acc_before=0.995, one_class_before=0.95))[0][0]


@pytest.mark.parametrize(("acc", "images", "share", "found"), [
    (0.10, 360, 0.1, True), (0.13, 360, 0.1, True), (0.16, 360, 0.1, False),  # the bound is 0.139
    (0.13, 10_000, 0.1, False), (0.107, 10_000, 0.1, True),
    (0.30, 1000, 0.35, True), (0.40, 1000, 0.35, False),
])  # fmt: skip
def test_chance_is_a_binomial_bound_around_the_share_of_the_largest_class(acc, images, share, found):
    assert flags(one(acc, n_clean=images, majority=share, one_class=0.4))[0][1] is found


def test_a_network_that_was_hardly_trained_is_marked_by_its_accuracy_before():
    before = {"acc_before": 0.31}  # less than a quarter of the way from 10 % to 100 %
    assert flags(one(0.3, **before)) == [(False, False, False, True)]
    assert flags(one(0.3, acc_before=0.33))[0][3] is False
    assert remarks(one(0.3, **before)) == ["hardly trained (ACC before 31.0 %)"]
    assert remarks(one(0.3, **before), one(0.3, seed=1)) == ["hardly trained (ACC before 31.0 %) in 1 of 2 runs"]


def test_a_remark_says_what_and_in_how_many_runs():
    assert remarks(one(0.1, one_class=1.0)) == ["predicts one class"]
    assert remarks(one(0.1, one_class=1.0), one(0.9, seed=1)) == ["predicts one class in 1 of 2 runs"]
    assert remarks(one(0.11), one(0.1, one_class=0.99, seed=1)) == ["predicts one class in 1 of 2 runs; at chance in 1 of 2 runs"]
    assert remarks(one(0.9)) == [None]
    trained = one(0, defense="none") | dict(acc=0.1, acc_before=0.1, one_class=1.0, one_class_before=1.0)
    assert remarks(trained) == ["predicts one class"]
    after = one(0.1, acc_before=0.1, one_class=1.0, one_class_before=1.0)
    assert remarks(after) == ["predicts one class; hardly trained (ACC before 10.0 %)"]
    assert remarks(one(0.9, poisoned=0)) == ["no row poisoned"]
    in_batch = one(0.9, poisoned=0, ratio=0.0003) | {
        "config": one(0)["config"].replace('"target": 0', '"target": 0, "max_ratio": 0.1')
    }
    assert remarks(in_batch) == [None]  # 0.4 an epoch, 9 in 20 epochs


def test_records_without_predictions_fall_back_to_accuracy_and_show_null():
    old = frame([row(0, 0.1, "badnets", "ft", 10, 0.11, 0.0), row(1, 0.1, "badnets", "ft", 10, 0.9, 0.0)])
    found = tables.table(old)
    assert found["remark"].to_list() == ["at chance in 1 of 2 runs"] and found["one_class"].to_list() == [None]
    csv = list(reader.DictReader(io.StringIO(tables.csv(old))))
    assert csv[0]["one_class"] == csv[0]["one_class_before"] == "" and csv[0]["chance_runs"] == "1"
    own = old.with_columns(dataset=pl.lit("mine"), n_clean=pl.lit(400), n_triggered=pl.lit(300))
    assert with_soundness(own)["chance"].to_list() == [0.25, 0.25]  # the share of the target's rows is all there is
    stored = own.with_columns(config=pl.col("config").str.replace("badnets", "stored"))
    assert with_soundness(stored)["chance"].to_list() == [None, None]
    assert with_soundness(stored)["chance_found"].to_list() == [False, False]


def test_the_marks_stand_in_table_csv_latex_and_page(tmp_path, sketched):
    made = frame_of(
        one(0, defense="none"),
        one(0.1, one_class=1.0, defense="zero"),
        one(0.93, defense="clp"),
        one(0.3, acc_before=0.2, defense="ft"),
    )
    text = html.build(tmp_path, made).read_text()
    table, csv, tex, board = ((tmp_path / n).read_text() for n in ("table.md", "table.csv", "table.tex", "leaderboard.tex"))
    for told_in in (text, table, csv, tex, board):
        assert "predicts one class" in told_in and "hardly trained (ACC before 20.0" in told_in
    assert "its ASR of 100 % or 0 % says nothing" in table and "- Hardly trained: " in table
    assert 'data-c="remark"' in text
    assert "remark" not in tables.full(frame_of(one(0.93))).heads


def test_a_leaderboard_row_is_marked_too():
    rows = [one(0.1, one_class=1.0), one(0.9, seed=1)]
    assert tables.leaderboard(frame_of(*rows))["remark"].to_list() == ["predicts one class in 1 of 2 runs"]
