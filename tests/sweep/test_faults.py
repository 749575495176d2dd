"""Sweeps shared by several processes, of which something goes wrong, end with the records of an undisturbed one.

The suite kills a few times; more: ``python tests/sweep/test_faults.py --kills 30``.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bdjax.store import records as store
from bdjax.store.rows import VOLATILE

pytestmark = pytest.mark.slow  # several processes, each of which compiles

PROCESSES = 3
GRID = """
from bdjax.sweep.grid import Grid

grid = Grid(
    attack=("badnets", "blended"), defense=("ft", "fp", "clp"), poison_ratio=(0.0, 0.1), seeds=(0, 1),
    spc=(2, 3), width=4, epochs=3, batch=50, train_images=200, test_images=100,
    defense_config={"ft": {"epochs": 2}, "fp": {"epochs": 2}},
)
"""
CELLS, ROWS = 12, 48
WORKER = """
import sys
from bdjax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
SKEWED = """
import datetime, time
from bdjax.store import rows
shift = {shift}
ours, sound = rows.now, time.time
rows.now = lambda: (datetime.datetime.fromisoformat(ours()) + datetime.timedelta(seconds=shift)).isoformat(timespec="seconds")
time.time = lambda: sound() + shift
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""
QUICK = ("--strategy", "sequential", "--lowering", "native")  # compiles least


def start(folder: Path, out: Path, before: str = "") -> subprocess.Popen:
    """A worker; ``before`` is run first in its process."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", before + WORKER, "sweep", str(folder / "grid.py"), "--out", str(out), *QUICK]
    return subprocess.Popen(command, env={**os.environ, **cache}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> str:
    """The output of a worker that ends by itself and well."""
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text
    return text


def written(out: Path) -> dict[str, int]:
    """Finished records and their time of writing."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in sorted(out.rglob("*.parquet"))}


def rows(out: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in store.read_rows(out)]


def whole(out: Path, expected: list[dict], members: int = ROWS) -> None:
    """Every cell is there exactly once and as it should be, and nothing is left over."""
    assert rows(out) == expected, "the records differ"
    found = [(row["cell"], row["member"]) for path in out.rglob("*.parquet") for row in store.read_file(path)]
    assert len(found) == len(set(found)) == members, "a member has several records"
    assert not list((out / "claims").iterdir()), "a claim was left"
    assert not list(out.rglob(".*.tmp")), "something half-written was left"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the grid and its compiled programs, and the records of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("faults")
    return folder, prepare(folder)


def prepare(folder: Path) -> list[dict]:
    (folder / "grid.py").write_text(GRID)
    ended(start(folder, folder / "undisturbed"))
    expected = rows(folder / "undisturbed")
    assert len(expected) == ROWS and {row["status"] for row in expected} == {"ok"}
    whole(folder / "undisturbed", expected)
    return expected


def kill(folder: Path, expected: list[dict], kills: int, seed: int = 0) -> list[str]:
    """Let processes share sweeps and kill -9 one of them again and again; return what each was doing.

    A kill falls at a random moment, or the moment something is being written. A killed process is replaced by a new one.
    """
    draw, moments, number = random.Random(seed), [], 0
    while len(moments) < kills:
        out = folder / f"killed{number}"
        number += 1
        workers = [start(folder, out) for _ in range(PROCESSES)]
        last = time.monotonic()
        while any(worker.poll() is None for worker in workers) and len(moments) < kills:
            due = last + draw.uniform(0.5, 6.0)
            catch_a_write = draw.random() < 0.5
            while time.monotonic() < due and not (catch_a_write and any(out.rglob(".*.tmp"))):
                time.sleep(0.0005)
            last = time.monotonic()
            before, half = written(out), any(out.rglob(".*.tmp"))
            holders = [json.loads(path.read_bytes() or b"{}").get("pid") for path in (out / "claims").glob("*.json")]
            at = draw.randrange(PROCESSES)
            workers[at].send_signal(signal.SIGKILL)
            workers[at].communicate()
            if workers[at].returncode == -signal.SIGKILL:
                moments.append("while writing" if half else "at work" if workers[at].pid in holders else "otherwise")
                workers[at] = start(folder, out)
            after = written(out)
            assert {name: after.get(name) for name in before} == before, "a finished record was touched"
        for worker in workers:
            ended(worker)
        whole(out, expected)
        times = written(out)
        ended(start(folder, out))
        assert written(out) == times, "a finished sweep wrote again"
    return moments


def test_processes_share_a_sweep_and_each_may_be_killed(undisturbed):
    moments = kill(*undisturbed, kills=5)
    assert len(moments) == 5 and set(moments) & {"while writing", "at work"}


def test_files_that_are_truncated_or_flipped_are_made_again(undisturbed, tmp_path):
    folder, expected = undisturbed
    out, draw = tmp_path / "harmed", random.Random(0)
    ended(start(folder, out))
    records = draw.sample(sorted(out.rglob("*.parquet")), 3)
    weights = draw.sample(sorted(path for path in (out / "models").rglob("*") if path.is_file()), 2)
    for path in (records[0], weights[0]):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for path in (*records[1:], weights[1]):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 255
        path.write_bytes(bytes(data))
    for worker in [start(folder, out) for _ in range(PROCESSES)]:
        ended(worker)
    for path in out.rglob("*.corrupt*"):
        assert path.parent.parent.name in ("records", "models")
    whole(out, expected)


def test_a_process_whose_disk_is_full_says_so_and_the_others_finish(undisturbed, tmp_path):
    folder, expected = undisturbed
    out = tmp_path / "full"
    limited, *others = start(folder, out, LIMITED), start(folder, out), start(folder, out)
    text, _ = limited.communicate(timeout=600)
    assert limited.returncode == 2 and "cannot write" in text.splitlines()[-1] and "Traceback" not in text, text
    for worker in others:
        ended(worker)
    whole(out, expected)


def test_clocks_that_disagree_by_days_change_nothing(undisturbed, tmp_path):
    folder, expected = undisturbed
    out = tmp_path / "skewed"
    workers = [start(folder, out, SKEWED.format(shift=shift)) for shift in (-86_400, 0, 3 * 86_400)]
    for worker in workers:
        ended(worker)
    whole(out, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        told = kill(Path(name), prepare(Path(name)), given.kills, given.seed)
    print(", ".join(f"{told.count(moment)} {moment}" for moment in dict.fromkeys(told)), "- equal")
