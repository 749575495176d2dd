"""The table of verdicts as the command prints it, and as a section of the page."""

import csv
import dataclasses
import io
import json

import numpy as np
import polars as pl
import pytest

from bdjax.cli.main import main
from bdjax.reporting import page, tables
from bdjax.reporting.details import Details
from bdjax.reporting.page import Drawn, Pooled
from bdjax.reporting.tables import markdown_of
from bdjax.reporting.verdicts import printed
from bdjax.results.pool import leaderboard
from bdjax.results.scenarios import scenarios
from bdjax.results.verdicts import table
from bdjax.results.views import views
from bdjax.store import records as store
from tests.results.test_verdicts import PLAIN, SEEN, records, with_small
from tests.sweep.small import GRID, go


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds the made-up records, and one of a method without a verdict."""
    found = pl.concat([records(*SEEN), records((0, 0.1, None), defense="mm_bd")])
    monkeypatch.setattr(store, "read", lambda out: found)
    return tmp_path


def test_markdown_says_who_was_called_and_how_sure_that_is(folder, capsys):
    assert main(["verdicts", str(folder)]) == 0
    text = capsys.readouterr().out
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert head == (
        "| attack | poison ratio % | defense | models | called backdoored | called % | right class | wrong class "
        "| target among them | anomaly index | false positives % | ASR before % |"
    )
    assert lines[0].startswith("| badnets | 0 | nc | 3 | 1 | 33.3 [6.1, 79.2] | – | – | – | ")
    assert lines[1].startswith("| badnets | 10 | nc | 4 | 3 | 75.0 [30.1, 95.4] | 1 | 2 | 2 | ")
    assert lines[1].endswith(" | 33.3 [6.1, 79.2] | 99.0 |") and len(lines) == 2
    assert "- No verdict is recorded by mm_bd: their traces do not say whether a model is backdoored." in text
    assert text.startswith("dataset: digits, ") and "clean samples" not in text


def test_csv_and_json_hold_the_numbers_behind_it(folder, capsys):
    assert main(["verdicts", str(folder), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main(["verdicts", str(folder), "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    want = table(store.read(folder)).to_dicts()
    assert len(rows) == len(same) == len(want) == 2
    for one, other, wanted in zip(rows, same, want, strict=True):
        assert float(one["anomaly"]) == other["anomaly"] == wanted["anomaly"] and int(one["called"]) == other["called"]
        assert float(one["false_positives_high"]) == other["false_positives_high"] == wanted["false_positives_high"]


def test_an_infinite_index_is_printed_and_null_in_json(folder, capsys, monkeypatch):
    found = records((0, 0.1, [9.0] * 9 + [3.0]), (1, 0.1, with_small(0)))
    monkeypatch.setattr(store, "read", lambda out: found)
    assert "[" in (text := markdown_of(printed(table(found)))) and "∞" in text
    assert main(["verdicts", str(folder), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["anomaly_max"] is None and row["anomaly_min"] > 2


@pytest.mark.parametrize(
    ("found", "flags", "message"),
    [
        (records(*SEEN), ["--csv", "--json"], "--csv and --json are two forms: give one"),
        (records((0, 0.1, None), defense="mm_bd"), [], "holds no verdict: no record says which classes are called targets"),
        (records(*SEEN).clear(), [], "holds no records"),
    ],
)
def test_what_cannot_be_shown_is_one_line(folder, capsys, monkeypatch, found, flags, message):
    monkeypatch.setattr(store, "read", lambda out: found)
    assert main(["verdicts", str(folder), *flags]) == 2
    assert message in capsys.readouterr().err.strip() and capsys.readouterr().out == ""


def test_pages_have_a_section_where_there_is_a_verdict():
    one = records(*SEEN, (4, 0.1, PLAIN))
    (shown,) = scenarios(one)
    nothing = Details([], [], [], [], [], [])
    pooled = Pooled(tables.table(one), leaderboard(one), views(one))
    index = page.index(one, pooled, tables.full(one), [shown], Drawn([], [], nothing))
    for text in (page.scenario(shown, nothing, ""), index):
        part = text.partition('<section id="verdicts"')[2].partition("</section>")[0]
        assert "Which models are called backdoored" in part and part.count("<tr") == 3 and "60.0 <small>[" in part
        assert 'data-f="' in part  # it is filtered with the other tables
    (without,) = scenarios(records((0, 0.1, None), defense="mm_bd"))
    assert 'id="verdicts"' not in page.scenario(without, nothing, "")


@pytest.mark.slow  # the search of Neural Cleanse is a long program
def test_records_of_a_run_hold_verdicts(tmp_path, capsys):
    settings = {"search_epochs": 4, "epochs": 1, "batch": 20}
    grid = dataclasses.replace(GRID, defense=("nc",), defense_config={"nc": settings}, hyper={}, seeds=(0,), epochs=1)
    frame = go(grid, tmp_path)
    rows = table(frame).to_dicts()
    assert [(row["ratio"], row["judged"], row["never_attacked"]) for row in rows] == [(0.0, 1, 1), (0.1, 1, 1)]
    for row in rows:
        trace = json.loads(frame.filter(pl.col("defense") == "nc", pl.col("ratio") == row["ratio"])["trace"][0])
        assert row["called"] == any(trace["flagged"]) and row["classes"] == sum(trace["flagged"])
        smallest = int(np.argmin(trace["norm"]))
        assert row["anomaly"] == pytest.approx(trace["anomaly"][smallest])
        assert row["called"] == (row["anomaly"] > 2) and (not row["called"] or trace["flagged"][smallest])
    capsys.readouterr()
    assert main(["verdicts", str(tmp_path)]) == 0 and capsys.readouterr().out.count("| nc | 1 |") == 2
