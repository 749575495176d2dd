"""A sweep killed at random moments and resumed ends with the records of an undisturbed one.

The suite kills three times; more: ``python tests/sweep/test_kill.py --kills 10``.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bdjax.sweep import store
from bdjax.sweep.rows import VOLATILE

GRID = """
from bdjax.sweep.plan import Grid

grid = Grid(
    defenses=("ft", "fp", "clp"), poison_ratios=(0.0, 0.1), seeds=(0, 1),
    spc=(2,), width=4, epochs=3, batch=50, train_images=200, test_images=100,
    defense_config={"ft": {"epochs": 2}, "fp": {"epochs": 2}},
)
"""


QUICK = ("--strategy", "loop", "--lowering", "native")  # compiles least


def start(folder: Path, out: Path) -> subprocess.Popen:
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = {**os.environ, **cache}
    command = [sys.executable, "-m", "bdjax.cli", "sweep", str(folder / "grid.py"), "--out", str(out), *QUICK]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def complete(folder: Path, out: Path) -> str:
    process = start(folder, out)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def written(out: Path) -> dict[str, int]:
    """Finished records and their time of writing."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.rglob("*.parquet"))}


def kill(folder: Path, out: Path, draw: random.Random, length: float) -> str | None:
    """Run the sweep and kill -9 it: at a random moment, or the moment something is being written."""
    process = start(folder, out)
    assert process.stdout is not None
    process.stdout.readline()  # the plan is printed: work begins
    catch_a_write, deadline = draw.random() < 0.5, time.monotonic() + draw.uniform(0.0, length)
    while process.poll() is None and time.monotonic() < deadline:
        if catch_a_write and time.monotonic() > deadline - 0.5 * length and any(out.rglob(".*.tmp")):
            break
        time.sleep(0.0005)
    writing = any(out.rglob(".*.tmp"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode == 0:  # it had ended before: no kill
        return None
    assert process.returncode == -signal.SIGKILL, process.returncode
    return "while writing" if writing else "between writes"


def rows(out: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in store.read_rows(out)]


def check(folder: Path, kills: int, seed: int = 0) -> list[str]:
    """Return the moments of the kills; raise AssertionError where the records differ."""
    (folder / "grid.py").write_text(GRID)
    complete(folder, folder / "first")  # compiles
    begun = time.monotonic()
    complete(folder, folder / "undisturbed")
    length = 0.7 * (time.monotonic() - begun)
    expected = rows(folder / "undisturbed")
    assert len(expected) == 16 and {row["status"] for row in expected} == {"ok"}
    draw, moments, number = random.Random(seed), [], 0
    while len(moments) < kills:
        out = folder / f"killed{number}"
        out.mkdir(exist_ok=True)
        before = written(out)
        moment = kill(folder, out, draw, length)
        moments += [moment] if moment else []
        after = written(out)
        assert {name: after.get(name) for name in before} == before, "a finished record was touched"
        if len(after) == 4 or len(moments) == kills:  # all four cells are there: check, then start over in a new folder
            complete(folder, out)
            assert {name: written(out)[name] for name in after} == after, "a finished cell ran twice"
            assert rows(out) == expected, "the records differ"
            times = written(out)
            complete(folder, out)
            assert written(out) == times, "a finished sweep wrote again"
            number += 1
    return moments


def test_killed_and_resumed_records_equal_those_of_an_undisturbed_run(tmp_path):
    moments = check(tmp_path, kills=3)
    assert len(moments) == 3


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for moment in check(Path(name), given.kills, given.seed):
            print(moment)
    print("equal")
