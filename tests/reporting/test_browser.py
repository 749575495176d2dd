"""The page in a real browser: what it sorts, filters and pools is what the package computes."""

import re

import polars as pl
import pytest

from bdjax.reporting import html, tables
from bdjax.results.pool import leaderboard
from bdjax.results.views import views
from tests.reporting.browser import MARKS, browse, shown
from tests.reporting.conftest import frame, row

pytestmark = MARKS
DEFENSES = [("ft", 2, 0.45), ("ft", 10, 0.3), ("nad", 10, 0.6), ("clp", None, 0.1)]


@pytest.fixture(scope="module")
def made():
    """2 attacks x 2 ratios and 0 x 6 seeds on two networks; one run failed, one defended model has no ARR.

    Blended failed on seed 5; what ft with 2 per class defends ends at chance on seeds 0 and 1; networks of seed 4 are bad.
    """
    rows = []
    for k, model in enumerate(("cnn", "vgg19_bn")):
        for i, attack in enumerate(("badnets", "blended")):
            for j, ratio in enumerate((0.0, 0.05, 0.1)):
                for seed in range(6):
                    where = {"model": model, "cell": f"{attack}{model}".ljust(24, "0")}
                    rows.append(row(seed, ratio, attack, "none", None, None, None, **where))
                    for defense, spc, asr in DEFENSES:
                        where["cell"] = f"{attack}{model}{defense}{spc}".ljust(24, "0")
                        acc, rate = 0.93 - 0.01 * seed - 0.02 * i - 0.1 * k, asr + 0.03 * seed + 0.05 * i + 0.1 * j
                        made = row(seed, ratio, attack, defense, spc, acc, rate, **where)
                        made |= {"asr_before": 0.08} if (attack, seed) == ("blended", 5) else {}
                        made |= {"acc": 0.1, "arr": 1 - 0.1 / 0.95} if spc == 2 and seed < 2 else {}
                        made |= {"acc_before": 0.2503} if seed == 4 and ratio else {}
                        rows.append(made)
    every = frame(rows)
    one = (pl.col("attack") == "badnets") & (pl.col("ratio") == 0.1) & (pl.col("seed") == 3) & (pl.col("defense") == "nad")
    numbers = ("acc", "asr", "ra", "arr", "rdr", "der")
    failed = [pl.when(one).then(None).otherwise(pl.col(name)).alias(name) for name in numbers]
    status = pl.when(one).then(pl.lit("failed")).otherwise(pl.col("status")).alias("status")
    without = pl.when((pl.col("defense") == "clp") & (pl.col("seed") == 2)).then(None).otherwise(pl.col("arr")).alias("arr")
    return every.with_columns(*failed, status).with_columns(without)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    return html.build(tmp_path_factory.mktemp("page"), made, pages=False)


def test_without_a_choice_everything_is_as_it_was_written(page, made):
    found = shown(page)
    board, full = tables.board(made), tables.full(made)
    assert {"mitigated %", "not attacked", "remark"} <= set(board.heads)
    assert found.tables["board"][1:] == [[cell.text for cell in line] for line in board.rows]
    assert found.tables["scenarios"][1:] == [[cell.text for cell in line] for line in full.rows]
    assert found.notes == []


@pytest.mark.parametrize("choice, kept", [
    ("attack=badnets", pl.col("attack") == "badnets"),
    ("ratio=10", pl.col("ratio").is_in((0.0, 0.1))),
    ("attack=blended&ratio=5", (pl.col("attack") == "blended") & pl.col("ratio").is_in((0.0, 0.05))),
])  # fmt: skip
def test_a_choice_is_pooled_as_the_package_pools_it(page, made, choice, kept):
    found = shown(page, f"#{choice}").tables["board"]
    expected = tables.board_of(leaderboard(made.filter(kept)))
    heads = [re.sub(r"\W+$", "", head) for head in found[0]]
    heads_of_all = tables.board(made).heads
    assert [head.rstrip(" %") for head in heads_of_all] == [head.rstrip(" %") for head in heads]
    lines = {tuple(line[k].text for k, name in enumerate(expected.heads) if name in ("model", "defense", "spc")): line
             for line in expected.rows}  # fmt: skip
    places = [heads.index(name) for name in ("model", "defense", "spc")]
    assert len(found) - 1 == len(lines) == 8
    for line in found[1:]:
        known = lines[tuple(line[place] for place in places)]
        for name, cell in zip(expected.heads, known, strict=True):
            assert line[heads_of_all.index(name)] == cell.text, name  # the interval too: it is the package's own


def test_a_choice_that_was_not_pooled_says_so(made, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "views", lambda records: views(records, most_pairs=0))
    page = html.build(tmp_path, made, pages=False)
    found = shown(page, "#attack=blended&ratio=5")
    assert found.tables["board"][1:] == []
    assert (
        found.notes[0]
        == "One attack at one ratio was not pooled for so large a report: choose either, or see every scenario below"
    )
    assert len(shown(page, "#ratio=5").tables["board"]) == 1 + 8


def test_the_leaderboard_of_a_choice_is_sorted_by_its_own_numbers(page, made):
    found = shown(page, "#ratio=10&sort=board.-asr")
    place = found.tables["board"][0].index("ASR %")
    rates = [float(line[place].split(" ")[0]) for line in found.tables["board"][1:]]
    assert len(rates) == 8 and rates == sorted(rates, reverse=True) and rates[0] != rates[-1]


def test_rows_are_chosen_in_both_tables_and_sorted(page, made):
    found = shown(page, "#model=vgg19_bn&spc=10&defense=nad&sort=scenarios.-asr")
    assert [line[:3] for line in found.tables["board"][1:]] == [["vgg19_bn", "nad", "10"]]
    lines = found.tables["scenarios"][1:]
    assert len(lines) == 12 and {line[3] for line in lines} == {"nad", "none"}  # with what each was before
    rates = [float(line[found.tables["scenarios"][0].index("ASR %")].split(" ")[0]) for line in lines]
    assert rates == sorted(rates, reverse=True) and rates[0] != rates[-1]
    assert found.notes == ["1 of 8 rows", "12 of 60 rows"]


def test_a_choice_that_nothing_fits_says_so(page):
    found = shown(page, "#ratio=0")
    assert found.tables["board"][1:] == [] and found.notes[0] == "No row fits what is chosen"
    assert len(found.tables["scenarios"]) == 1 + 20


def test_a_long_table_shows_its_first_rows(made, tmp_path):
    parts = [made.with_columns(target=pl.lit(k, pl.Int64), cell=pl.concat_str(pl.lit(f"{k}"), pl.col("cell"))) for k in range(6)]
    found = shown(html.build(tmp_path, pl.concat(parts), pages=False))
    assert len(found.tables["scenarios"]) == 1 + 300
    assert found.notes[-1] == "360 rows, the first 300 are shown: show all"


def test_a_picture_of_the_page_is_not_blank(page, tmp_path):
    import numpy as np
    from matplotlib.image import imread

    browse(page, "--window-size=1200,900", f"--screenshot={tmp_path / 'page.png'}")
    picture = imread(tmp_path / "page.png")
    assert picture.shape[:2] == (900, 1200) and len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50
