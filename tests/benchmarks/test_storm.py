"""The storm in small, and how it counts work that was done twice."""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks import storm_work
from benchmarks.storm_events import SIGNALS


def diary(path, *events):
    """A diary of (time, event, facts)."""
    lines = [json.dumps({"t": t, "event": event, "cell": "c/m", "stage": 0, **facts}) for t, event, facts in events]
    path.write_text("\n".join(lines) + "\n")
    return path


def segment(t, count, seconds):
    return (t, "begin", {"count": count}), (t + seconds, "end", {"count": count, "seconds": seconds})


def done(t):
    return [(t, "done", {})]


@pytest.fixture
def undisturbed(tmp_path):
    return storm_work.read([diary(tmp_path / "sound", *segment(0, 4, 2.0), *segment(2, 6, 3.0), *done(5))], {})


def test_what_a_kill_cut_off_is_counted_by_the_time_there_was(undisturbed, tmp_path):
    killed = diary(tmp_path / "killed", *segment(0, 4, 4.0), (4, "begin", {"count": 4}))  # at half the speed
    other = diary(tmp_path / "other", *segment(9, 6, 6.0), *done(15))
    storm = storm_work.read([killed, other], {str(killed): 6.0})
    found = storm_work.twice(storm, undisturbed, {})
    assert (found.needed, found.twice, found.cut) == pytest.approx((5.0, 1.0, 1.0))  # two rounds at two a second
    assert found.share == pytest.approx(0.2)


def test_a_cell_that_was_made_again_counts_as_done_twice_unless_its_files_were_damaged(undisturbed, tmp_path):
    twice = [diary(tmp_path / name, *segment(0, 10, 7.0), *done(7)) for name in ("one", "two")]
    storm = storm_work.read(twice, {})
    assert storm.completed == Counter({"c/m": 2})
    assert storm_work.twice(storm, undisturbed, {})[1:] == pytest.approx((5.0, 0.0, 5.0, 0.0))
    assert storm_work.twice(storm, undisturbed, {"c": 1})[1:] == pytest.approx((0.0, 0.0, 0.0, 5.0))


@pytest.mark.slow  # several processes, each of which compiles
def test_a_small_storm_leaves_what_an_undisturbed_run_leaves(tmp_path):
    command = [sys.executable, "-m", "benchmarks.storm", "--out", str(tmp_path / "found"), "--folder", str(tmp_path / "storm")]
    command += shlex.split("--events 8 --others 1 --gap 1 --size 0.1 --attacks badnets --defenses clp --store-kills 0 --rounds 1")
    found = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ.copy(), check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "equal: yes" in found.stdout
    times = {row["event"]: row["times"] for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert sum(times.get(kind, 0) for kind in SIGNALS) >= 2 and times["restarts"] >= 1, times
