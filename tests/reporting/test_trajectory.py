"""The picture of pruning one filter per round."""

import json

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.reporting import html
from bdjax.reporting.trajectory import trajectories
from bdjax.results.traces import trajectory
from tests.reporting.conftest import frame, row

TRACE = {
    "address": [-1, 3, 0, 3, -1, -1],
    "filter": [-1, 5, 1, 2, -1, -1],
    "score": [None, 0.5, 0.25, 0.125, None, None],
    "errors": [2, 3, 4, 8, -1, -1],
    "unlearning": [4.0, 3.0, 2.0, 2.5, None, None],
    "validation": 10,
    "rounds": 3,
    "kept": 2,
}


def pruned(seed, ratio, **changes):
    return row(seed, ratio, "badnets", "grad_prune", 10, 0.9, 0.1, trace=json.dumps(TRACE | changes))


def test_only_the_rounds_that_were_made_are_read():
    found = trajectory(pruned(0, 0.1))
    assert found.kept == 2
    np.testing.assert_allclose(found.accuracy, [0.8, 0.7, 0.6, 0.2])
    np.testing.assert_array_equal(found.unlearning, [4, 3, 2, 2.5])
    np.testing.assert_array_equal(found.score, [np.nan, 0.5, 0.25, 0.125])
    assert found.address.tolist() == [-1, 3, 0, 3]
    assert trajectory(pruned(0, 0.1, rounds=0)) is None
    assert trajectory(dict(pruned(0, 0.1), status="failed")) is None
    assert trajectory(dict(pruned(0, 0.1), trace='{"loss": [1.0]}')) is None


def test_lines_dots_and_the_filters_of_the_kept_network():
    figure = trajectories(frame([pruned(0, 0.0, kept=0), pruned(1, 0.1), pruned(2, 0.1, kept=1)]))
    loss, accuracy, score, filters = figure.axes
    assert [len(axis.lines) for axis in (loss, accuracy, score)] == [6, 6, 5]  # no dot where no filter was scored
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [80, 70, 60, 20])
    assert [tuple(line.get_xdata()) for line in loss.lines[1::2]] == [(0,), (2,), (1,)]
    assert [text.get_text() for text in filters.get_yticklabels()] == ["conv 1", "conv 4"]
    assert [bar.get_width() for bar in filters.patches] == [0, 0, 0.5, 1]  # seed 2 keeps the first round alone
    with pytest.raises(UserError, match="no record tells rounds of pruning"):
        trajectories(frame([dict(pruned(0, 0.1), trace="{}")]))


def test_the_page_shows_it(tmp_path):
    before = row(0, 0.1, "badnets", "none", None, None, None)
    path = html.build(tmp_path, frame([before, pruned(0, 0.1)]))
    assert "round by round" in path.read_text()
    assert (tmp_path / "figures" / "trajectory-grad_prune-badnets.png").stat().st_size > 10_000
