"""Sensitivity: a line joins runs that differ in one hyper-parameter alone."""

import json

import numpy as np
import polars as pl

from bdjax.reporting import html
from bdjax.results.sensitivity import swept
from tests.reporting.conftest import frame, row


def records():
    """ft at three rates, its weight at two for one of them; clp at one threshold: nothing was swept there."""
    rows = []
    for attack in ("badnets", "sig"):
        for seed in range(2):
            rows.append(row(seed, 0.1, attack, "none", None, None, None))
            for rate, weight, asr in ((0.001, 1, 0.9), (0.01, 1, 0.5), (0.1, 1, 0.1), (0.1, 2, 0.3)):
                hyper = json.dumps({"lr": rate, "weight": weight})
                rows.append(row(seed, 0.1, attack, "ft", 10, 0.9, asr + seed / 100, hyper=hyper))
            rows.append(row(seed, 0.1, attack, "clp", None, 0.9, 0.2, hyper='{"u": 3.0}'))
            rows.append(row(seed, 0.0, attack, "ft", 10, 0.9, 0.1, hyper='{"lr": 7.0, "weight": 1}'))
    return frame(rows)


def test_lines_hold_everything_else():
    found = {one.leaf: one for one in swept(records())}
    assert set(found) == {"lr", "weight"} and all(one.defense == "ft" for one in found.values())
    assert [line.values for line in found["lr"].lines] == [(0.001, 0.01, 0.1)] * 2  # a line per attack; ratio 0 is none
    np.testing.assert_allclose(found["lr"].lines[0].rates["asr"], [0.905, 0.505, 0.105])  # seeds averaged
    assert [line.values for line in found["weight"].lines] == [(1, 2)] * 2


def test_lost_runs_are_no_points():
    lost = pl.col("hyper").str.contains('"lr": 0.01,', literal=True)
    rows = records().with_columns(status=pl.when(lost).then(pl.lit("non_finite")).otherwise(pl.col("status")))
    assert {one.leaf: one.lines[0].values for one in swept(rows)}["lr"] == (0.001, 0.1)


def test_the_report_draws_what_was_swept_and_nothing_else(tmp_path, sketched):
    text = html.build(tmp_path, records()).read_text()
    assert "What hyper-parameters do" in text and "ft: lr, on 2 tasks" in text and "clp: u" not in text
    assert sorted(path.name for path in (tmp_path / "figures").glob("sensitivity*")) == [
        "sensitivity-ft-lr.png",
        "sensitivity-ft-weight.png",
    ]
    assert "What hyper-parameters do" not in html.build(tmp_path, records().filter(pl.col("defense") != "ft")).read_text()
