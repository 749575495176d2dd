"""What an attack wants images called is distinguished and named in every table: label rule, target, class."""

import csv as reader
import io
import json

import polars as pl
import pytest

from bdjax.reporting import html, tables
from bdjax.results import curves
from bdjax.results.scenarios import scenarios
from tests.reporting.conftest import SPEC, row

RULES = ("all_to_one", "all_to_all")


def of(rule, defense, seed=0, target=0, **changes):
    made = row(seed, 0.1, "badnets", defense, 10 if defense != "none" else None, 0.9, 0.02)
    config = json.loads(made["config"])
    config["attack"]["config"] = {"target": target, "labels": rule}
    cell = f"{rule}{target}{defense}".ljust(24, "0")
    return made | {"config": json.dumps(config), "cell": cell, "target": target, "target_class": None} | changes


def frame_of(*rows):
    return pl.DataFrame(rows, schema={**SPEC, "target_class": pl.String}, orient="row")


@pytest.fixture(scope="module")
def both():
    return frame_of(*(of(rule, defense, seed) for rule in RULES for defense in ("none", "ft") for seed in (0, 1)))


def test_the_label_rule_is_a_column_of_table_and_csv(both):
    text = tables.markdown(both)
    lines = [line for line in text.splitlines() if line.startswith("| badnets")]
    assert sum("all_to_all" in line for line in lines) == 2 and sum("all_to_one" in line for line in lines) == 2
    assert "| labels |" in text and "| cell |" not in text
    rows = list(reader.DictReader(io.StringIO(tables.csv(both))))
    assert {(line["labels"], line["target"]) for line in rows} == {("all_to_all", ""), ("all_to_one", "0")}


def test_before_and_after_can_be_paired(both):
    """Rows of the same networks have their training in common, whatever the defense; nothing else has."""
    rows = tables.table(both)
    pairs = rows.group_by("training").agg(pl.col("defense").sort(), pl.col("labels").n_unique())
    assert sorted(pairs.rows()[i][1:] for i in range(2)) == [(["ft", "none"], 1)] * 2
    longer = [of("all_to_one", d) for d in ("none", "ft")]
    other = [
        x | {"config": x["config"].replace('"epochs": 20', '"epochs": 40'), "cell": f"other{x['cell']}"[:24]} for x in longer
    ]
    printed = tables.full(frame_of(*longer, *other))
    assert not {"training", "cell"}.intersection(printed.heads)
    names = [printed.heads.index(head) for head in ("settings", "defense")]
    lines = [tuple(line[at].text for at in names) for line in printed.rows]
    assert lines == [(f"recipe.epochs {epochs}", defense) for defense in ("none", "ft") for epochs in (20, 40)]


def test_the_leaderboard_keeps_the_rules_apart(both):
    board = tables.board(both)
    assert "labels" in board.heads and len(board.rows) == 2
    assert tables.leaderboard(both)["labels"].to_list() == ["all_to_all", "all_to_one"]


def test_records_without_the_rule_are_all_to_one_where_they_name_a_target(records):
    assert set(tables.table(records)["labels"]) == {"all_to_one"}
    assert tables.markdown(records).startswith("dataset: digits") and "labels: all_to_one, target: 0" in tables.markdown(records)


def test_the_class_of_the_target_is_named():
    named = frame_of(*(of("all_to_one", d, target=14, target_class="stop sign") for d in ("none", "ft")))
    assert "target: 14 (class 'stop sign')" in tables.markdown(named)
    two = frame_of(
        of("all_to_one", "ft", target=14, target_class="stop sign"), of("all_to_one", "ft", target=2, target_class="2")
    )
    text = tables.markdown(two)
    assert "| 14 (class 'stop sign') |" in text and "| 2 |" in text
    assert {line["target_class"] for line in reader.DictReader(io.StringIO(tables.csv(two)))} == {"stop sign", "2"}
    assert "target: –" in tables.markdown(frame_of(of("all_to_all", "ft")))


def test_page_and_titles_tell_them_apart(both, tmp_path, sketched):
    text = html.build(tmp_path, both).read_text()
    assert text.count("all_to_all") > 2 and 'data-c="labels"' in text
    assert [one.title for one in scenarios(both)] == ["badnets · all_to_one", "badnets · all_to_all"]
    named = html.build(tmp_path, frame_of(of("all_to_one", "ft", target=14, target_class="stop sign"))).read_text()
    assert "target 14 (class &#39;stop sign&#39;)" in named


def test_pruning_curves_say_the_rule():
    from types import SimpleNamespace

    import numpy as np

    counts = SimpleNamespace(
        **{name: np.ones((1, 2), int) for name in ("clean", "correct", "triggered", "attacked", "recovered")}
    )
    for rule, setting in zip(RULES, ("", "all_to_all"), strict=True):
        found = curves.grouped([curves.Measured((of(rule, "clp"),), "u", (1.0, 2.0), counts)])
        assert found[0].setting == setting
