"""The leaderboard of a chosen attack or ratio is that of its records alone, to the last digit of its intervals."""

from pathlib import Path

import polars as pl
import pytest

import bdjax.reporting
from bdjax.reporting import filters, tables
from bdjax.results.pool import BOARD, leaderboard
from bdjax.results.views import CHOICE, views
from tests.reporting.conftest import frame, row


@pytest.fixture(scope="module")
def made():
    """2 attacks x 2 ratios and 0 x 5 seeds; ft with two sizes of the clean set and clp; one run failed, one has no ARR."""
    rows = []
    for i, attack in enumerate(("badnets", "blended")):
        for j, ratio in enumerate((0.0, 0.05, 0.1)):
            for seed in range(5):
                rows.append(row(seed, ratio, attack, "none", None, None, None))
                for defense, spc, asr in (("ft", 2, 0.05), ("ft", 10, 0.3), ("clp", None, 0.01)):
                    rows.append(
                        row(seed, ratio, attack, defense, spc, 0.93 - 0.01 * seed - 0.02 * i, asr + 0.03 * seed + 0.1 * j)
                    )
    lost = {"status": "failed", "reason": "out of luck", **dict.fromkeys(("acc", "asr", "ra", "arr", "rdr", "der"))}
    rows[-1].update(lost)
    rows[-2].update(arr=None)
    return frame(rows)


CHOICES = [("badnets", None), ("blended", None), (None, 0.05), (None, 0.1), ("badnets", 0.1), ("blended", 0.1), ("blended", 0.05)]


@pytest.mark.parametrize(("attack", "ratio"), CHOICES)
def test_a_choice_is_the_leaderboard_of_its_records(made, attack, ratio):
    kept = pl.lit(True) if attack is None else pl.col("attack") == attack
    kept &= pl.lit(True) if ratio is None else pl.col("ratio").is_in((0.0, ratio))
    expected = leaderboard(made.filter(kept)).sort(BOARD)
    found = views(made).rows.filter(pl.col(CHOICE[0]).eq_missing(attack), pl.col(CHOICE[1]).eq_missing(ratio)).sort(BOARD)
    assert expected.height == 3
    for name, kind in expected.schema.items():
        ours, theirs = found[name].to_list(), expected[name].to_list()
        if kind == pl.Float64:
            ours, theirs = ([-1.0 if value is None else value for value in values] for values in (ours, theirs))
            theirs = pytest.approx(theirs, rel=1e-12, abs=0)
        assert ours == theirs, name


def test_pairs_are_left_out_where_they_would_be_too_many(made):
    found = views(made, most_pairs=11)  # there are 2 x 2 x 3
    assert not found.pairs and found.rows.filter(pl.all_horizontal(pl.col(CHOICE).is_not_null())).is_empty()
    assert found.rows.height == 2 * 3 + 2 * 3
    assert views(made, most_pairs=12).pairs


def test_without_poisoned_members_there_is_nothing_to_choose(made):
    assert views(made.filter(pl.col("ratio") == 0)).rows.is_empty()


def test_the_page_gets_the_cells_as_the_tables_print_them(made):
    board = tables.board(made)
    found = filters.chosen(views(made), board, filters.facets(made))
    assert found["pairs"] and set(found["cells"]) == {"0.", "1.", ".1", ".2", "0.1", "0.2", "1.1", "1.2"}  # ratio 0 is the first
    of_blended = tables.board(made.filter(pl.col("attack") == "blended"))
    printed = {(about["defense"], about["spc"]): line for about, line in zip(of_blended.about, of_blended.rows, strict=True)}
    for i, about in enumerate(board.about):
        line = printed[about["defense"], about["spc"]]
        for column, text in zip(found["columns"], found["cells"]["1."][i], strict=True):
            if column in of_blended.columns:
                cell = line[of_blended.columns.index(column)]
                assert text == ([cell.text, cell.order] if column in filters.ORDERED else cell.text)


def test_the_script_computes_no_number_of_its_own():
    text = (Path(bdjax.reporting.__file__).parent / "page.js").read_text()
    assert "random" not in text.lower() and "Math." not in text
