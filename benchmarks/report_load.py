"""How long a store of the survey's size takes to load, pool and render, with how much memory; and how long `plan` takes.

    python benchmarks/report_load.py [--records 122236] [--folder DIR] [--pages 4]

The records are made up: the survey's cells with their real configurations, random rates, a course of losses each. The folder
is kept if it is named, and used again. Rendered is the index with its tables and figures; the pages of training configurations,
of which only those are drawn again whose records changed, are timed apart, some of them.
"""

import argparse
import datetime
import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bdjax.metrics import arr, der, rdr
from bdjax.store import hashing
from bdjax.store import records as store
from bdjax.store.rows import blank
from bdjax.sweep import build, expand
from bdjax.sweep.cell import Point, member_hash, set_hash

SURVEY = Path(__file__).parents[1] / "experiments" / "survey.py"
EPOCHS = 100  # of the course of losses that a record carries


def main() -> None:
    """Make the store and measure it in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=122_236)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--pages", type=int, default=4, help="pages of training configurations that are timed")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.folder, args.pages)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if not (folder / "records").exists():
            begun = time.perf_counter()
            make(folder, args.records)
            print(f"made in {time.perf_counter() - begun:.0f} s")
        # Processes of their own, so that the memory is that of the report alone; the second finds what the first left on disk.
        for title in ("first", "again"):
            print(f"report, {title}:", flush=True)
            mine = [sys.executable, __file__, "--measure", "--folder", str(folder), "--pages", str(args.pages)]
            subprocess.run(mine, check=True)
    for title in ("first", "again"):
        begun = time.perf_counter()
        asked = ["plan", "--file", str(SURVEY), "--no-tune", "--no-memory"]
        subprocess.run([sys.executable, "-m", "bdjax.cli.main", *asked], check=True, stdout=subprocess.DEVNULL)
        print(f"plan of the whole survey, {title}: {time.perf_counter() - begun:.1f} s")


def measure(folder: Path, pages: int) -> None:
    """Load, render and draw some pages; print the seconds of each, and the most memory held."""
    from bdjax.reporting import html
    from bdjax.results.scenarios import scenarios

    marks = [time.perf_counter()]
    records = store.read(folder)
    marks.append(time.perf_counter())
    page = html.build(folder, records, pages=False)
    marks.append(time.perf_counter())
    load, rendering = np.diff(marks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  {records.height:,} records: load {load:.1f} s, pool and render {rendering:.1f} s, peak {peak:.2f} GiB")
    print(f"  page {page.stat().st_size / 2**20:.1f} MiB")
    every = scenarios(records)
    begun = time.perf_counter()
    (folder / "cells").mkdir(exist_ok=True)
    for one in every[:pages]:
        html.draw(one, folder / "cells", folder, None)
    each = (time.perf_counter() - begun) / max(min(pages, len(every)), 1)
    print(f"  {len(every)} pages of training configurations, {each:.1f} s each in one process")


def make(folder: Path, count: int) -> None:
    """A store of about so many records: the survey's grid with as many seeds as that takes."""
    grid = runpy.run_path(str(SURVEY))["grid"]
    branches = expand.cells(grid)
    cells = sum(1 + len(branch.defenses) for branch in branches)
    each = -(-count // cells)
    points = [Point(seed, float(ratio), {}) for seed in grid.seeds for ratio in grid.poison_ratio][:each]
    names = [member_hash(point) for point in points]
    draw, left = np.random.default_rng(0), count
    for branch in branches:
        base = {}
        for cell in (branch.train, *branch.defenses):
            told = build.describe(cell, "0" * 64)
            defense, spc = getattr(cell, "defense", "none"), getattr(cell, "spc", None)
            common = dict(
                cell=hashing.short_hash(told), dataset=branch.train.dataset, train_images=50_000, test_images=10_000,
                model=branch.train.model, width=64, attack=branch.train.attack, defense=defense, profile="corrected", spc=spc,
                target=0, hyper="{}", status="ok", poisoned=5000, n_clean=10_000, n_triggered=9000, knows_trigger=False,
                knows_test=False, seconds=10.0, compile_seconds=5.0, members=each, config=hashing.canonical(told),
                execution='{"strategy":"vmap"}', versions='{"jax":"0.10"}', git_commit="0" * 40, device="made up",
                data_digest="0" * 64, created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )  # fmt: skip
            rows = []
            for point, name in zip(points[: max(left, 0)], names, strict=False):
                acc, asr = (draw.uniform(0.8, 0.95), draw.uniform(0.8, 1)) if defense == "none" else draw.uniform(0, 0.95, 2)
                before = base.setdefault(name, (acc, asr))
                numbers = dict(
                    acc_before=before[0], asr_before=before[1], ra_before=0.05, acc=acc, asr=asr, ra=0.5 * acc,
                    arr=float(arr(before[0], acc)), rdr=float(rdr(before[0], 0.5 * acc)), der=float(der(*before, acc, asr)),
                )  # fmt: skip
                course = json.dumps(draw.uniform(0, 2, EPOCHS).round(6).tolist())
                kept = {"loss": course} if defense == "none" else {"trace": f'{{"loss":{course}}}'}
                rows.append(blank(**common, **numbers, **kept, member=name, seed=point.seed, ratio=point.ratio))
            left -= len(rows)
            if rows:
                store.write_rows(folder, common["cell"], set_hash([row["member"] for row in rows]), rows)
    assert left <= 0


if __name__ == "__main__":
    main()
