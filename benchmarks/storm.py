"""The storm: processes that share a folder are killed, stopped and starved of disk, files are damaged; what is left is compared.

    python -m benchmarks.storm --events 100 --seed 0 --out benchmarks/results/storm

First one process runs a grid undisturbed. Then four, two of them under another host name (a machine whose processes nobody here
can look up), share it in another folder with leases of 8 seconds, and a process that ends too early is started again, as a
cluster does. Meanwhile, drawn from the seed: ``--events`` signals (SIGKILL; SIGTERM, to be answered within 15 seconds; SIGSTOP
for less or more than a lease; two in a row), a full disk and a read-only folder (a small tmpfs in a mount namespace of the
storm's own; without root limits on file sizes and permissions), and records, checkpoints of running cells, trained networks,
leases and logs that are truncated, bit-flipped or removed. When the grid is done before the events are, the next round begins
in a new folder. At last a shorter grid runs in an emulated object store that is slow, fails now and then, and goes away for
seconds.

Every folder must equal the undisturbed one: all columns of all records but times and the commit
(``benchmarks/storm_compare.py``), every trained network and every stored array bit for bit, and nothing is left under
``running/`` and ``claims/`` or half-written. The exit code is 1 where one does not. Work done twice is counted in rounds
(``benchmarks/storm_work.py``).
"""

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bdjax.store import location, records
from bdjax.store.location import Location
from benchmarks import storm_work
from benchmarks.measure import write
from benchmarks.storm_cluster import TERMINATION, Cluster, Setup, alone, holders
from benchmarks.storm_compare import differences
from benchmarks.storm_events import SIGNALS, Disk, Event, Storm, drawn
from benchmarks.storm_report import STORE, Round, summary, table

GRID = Path(__file__).with_name("storm_grid.py")
HOW = ("--strategy", "sequential", "--lowering", "native", "--no-tune")
HEARTBEAT, TIMEOUT = 1.0, 8.0  # seconds of the leases
ALONE = "BDJAX_STORM_MOUNTS"  # set where this process has a mount namespace of its own
STORE_WORKERS, OUTAGE = 3, (2.0, 5.0)
RETRY = 1.0  # seconds until an event is tried again that could not happen
LIMIT = 5400.0  # seconds of a round, after which something hangs
SAID = {"takeovers": "taking over cell", "leases lost": "lost cell", "files found damaged": " is corrupt ("}


def main() -> None:
    """Run the storm, print and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100, help="signals")
    parser.add_argument("--others", type=int, default=3, help="events of every other kind")
    parser.add_argument("--gap", type=float, default=8.0, help="mean seconds between two events")
    parser.add_argument("--size", type=float, default=0.4, help="of the trainings and defenses, in shares of the full ones")
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blended", "wanet"])
    parser.add_argument("--defenses", nargs="+", default=["ft", "anp", "nad"])
    parser.add_argument("--rounds", type=int, default=8, help="at most; events that are left then do not happen")
    parser.add_argument("--checkpoint-every", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store-kills", type=int, default=6, help="of the part with an object store; 0 leaves that part out")
    parser.add_argument("--folder", type=Path, help="where the folders are made and kept; else they are temporary")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mounts = _in_own_namespace()
    os.environ["BDJAX_STORM_SIZE"] = str(args.size)
    command = f"python -m benchmarks.storm {shlex.join(sys.argv[1:])}"
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        base = args.folder or Path(name)
        base.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        rounds = list(_rounds(args, base, mounts))
    rows, notes = table(rounds), summary(rounds, args, TIMEOUT, mounts)
    write(args.out, command, rows, notes)
    for row in rows:
        print(f"{row['event']:>50}  {row['times']}")
    print(notes)
    sys.exit(1 if any(one.wrong for one in rounds) else 0)


def _in_own_namespace() -> bool:
    """Go on in a mount namespace of this process's own, where that is allowed; return whether file systems may be mounted."""
    if os.environ.pop(ALONE, None):
        return True
    unshare = shutil.which("unshare")
    how = ["--mount", "--propagation", "private"]
    if os.geteuid() or unshare is None or subprocess.run([unshare, *how, "true"], capture_output=True, check=False).returncode:
        return False
    os.environ[ALONE] = "yes"
    os.execv(unshare, [unshare, *how, sys.executable, "-m", "benchmarks.storm", *sys.argv[1:]])


def _rounds(args: argparse.Namespace, base: Path, mounts: bool) -> Any:
    """Yield what came of every folder: one round after the other until all events have happened, then the object store."""
    draw = random.Random(args.seed)
    sound, needed = _undisturbed(args, base / "sound")
    events = drawn(draw, args.events, args.others, args.gap)
    number = 0
    while events and number < args.rounds:
        number += 1
        yield _stormy(args, base / f"round{number}", draw, events, sound, needed, mounts)
    if args.store_kills:
        short = argparse.Namespace(**{**vars(args), "attacks": args.attacks[:1]})
        yield _in_store(short, base / STORE, draw, sound, needed)


def _arguments(args: argparse.Namespace, out: str) -> tuple[str, ...]:
    which = ("--attack", *args.attacks, "--defense", *args.defenses)
    return ("sweep", str(GRID), *which, "--out", out, *HOW, "--checkpoint-every", str(args.checkpoint_every))


def _undisturbed(args: argparse.Namespace, base: Path) -> tuple[Path, storm_work.Done]:
    """Run the grid undisturbed; return its folder and the work it took."""
    base.mkdir(parents=True)
    began, out = time.monotonic(), base / "out"
    deaths = alone(Setup(base, _arguments(args, str(out)), HEARTBEAT, TIMEOUT), "alone")
    print(f"undisturbed: {time.monotonic() - began:.0f} s", flush=True)
    return out, storm_work.read(base.glob("*.diary"), deaths)


def _stormy(
    args: argparse.Namespace,
    base: Path,
    draw: random.Random,
    events: list[Any],
    sound: Path,
    needed: storm_work.Done,
    mounts: bool,
) -> Round:
    """Let events happen to a folder until its work is done; those that did not happen stay in the list."""
    base.mkdir(parents=True)
    out, began = base / "out", time.monotonic()
    setup = Setup(base, _arguments(args, str(out)), HEARTBEAT, TIMEOUT)
    disk = Disk(out, mounts)
    with Cluster(setup, "worker") as cluster:
        storm = Storm(cluster, disk, draw, TIMEOUT)
        due = time.monotonic() + (events[0].delay if events else 0)
        while not cluster.look():
            storm.undo()
            if events and time.monotonic() >= due:
                at = next((at for at in _first(events) if storm.happen(events[at])), None)
                due = time.monotonic() + RETRY
                if at is not None:
                    print(f"{time.monotonic() - began:6.0f} s  {events[at].kind} {events[at].target}", flush=True)
                    due = time.monotonic() + events.pop(at).delay
            if time.monotonic() - began > LIMIT:
                raise SystemExit(f"{base.name} is not done after {LIMIT:.0f} s; its outputs: {base}")
            time.sleep(0.02)
        storm.undo(everything=True)
        return _judged(args, base, out, setup, cluster, storm.happened, storm.damaged, sound, needed, began)


def _first(events: list[Event]) -> list[int]:
    """Return the places of the next event, and of the next of another kind in case that it cannot happen now."""
    kinds: dict[str, int] = {}
    for at, event in enumerate(events):
        kinds.setdefault("signal" if event.kind in SIGNALS else f"{event.kind} {event.target}", at)
    return sorted(kinds.values())


def _in_store(args: argparse.Namespace, base: Path, draw: random.Random, sound: Path, needed: storm_work.Done) -> Round:
    """Run the short grid in the emulated store, with kills and outages."""
    (base / "objects" / "results").mkdir(parents=True)
    outage, began = base / "outage", time.monotonic()
    trouble = {"folder": str(base / "objects"), "latency": 0.05, "failures": 0.001, "outage": str(outage)}
    setup = Setup(base, _arguments(args, "bucket://results/run"), HEARTBEAT, TIMEOUT, trouble)
    left, happened, gone = args.store_kills, Counter[str](), 0.0
    _know(base / "objects")
    with Cluster(setup, "worker", STORE_WORKERS) as cluster:
        due, number = time.monotonic() + args.gap, 0
        while not cluster.look():
            if outage.exists() and time.monotonic() >= gone:
                outage.unlink()
            if left and time.monotonic() >= due:
                worker = cluster.victim(draw, holders(base / "objects" / "results", "run%2Fclaims%2F*.json"))
                number += 1 if worker else 0
                due = time.monotonic() + draw.uniform(0.5, 1.5) * args.gap
                if worker is None:
                    due = time.monotonic() + RETRY
                elif number % 2 == 0:
                    outage.touch()
                    gone = time.monotonic() + draw.uniform(*OUTAGE)
                    happened["object store: outage of seconds"] += 1
                else:
                    kind = draw.choice(("SIGKILL", "SIGTERM"))
                    worker.send(getattr(signal, kind))
                    happened[f"object store: {kind}"] += 1
                    left -= 1
            time.sleep(0.02)
        outage.unlink(missing_ok=True)
        quiet = setup._replace(store={**trouble, "failures": 0.0})
        return _judged(
            args, base, location.locate("bucket://results/run"), quiet, cluster, happened, Counter(), sound, needed, began
        )


def _know(objects: Path) -> None:
    """Let this process read the emulated store."""
    from tests.sweep import bucket

    os.environ[bucket.ROOT] = str(objects)
    bucket.register()


def _judged(
    args: argparse.Namespace,
    base: Path,
    out: Location,
    setup: Setup,
    cluster: Cluster,
    happened: Counter[str],
    damaged: Counter[str],
    sound: Path,
    needed: storm_work.Done,
    began: float,
) -> Round:
    """Repair what was damaged last, compare, and count."""
    deaths = cluster.deaths | alone(setup, "last")
    wrong, unread = differences(out, sound, args.attacks, damaged)
    wrong += cluster.wrong + _reported(out)
    wrong += [f"an answer to SIGTERM took {seconds:.0f} s" for seconds in cluster.answers if seconds > TERMINATION]
    done = storm_work.read(base.glob("*.diary"), deaths)
    said = "".join(path.read_text(errors="replace") for path in base.glob("*.out"))
    facts = Counter({name: said.count(text) for name, text in SAID.items()})
    facts |= {"restarts": cluster.restarts, "went on from a checkpoint": done.resumed}
    facts |= {f"processes that ended with {code}": count for code, count in _codes(cluster).items()}
    if wrong:
        print("\n".join(f"{base.name}: {line}" for line in wrong), flush=True)
    asked = {row["cell"] for row in records.read_rows(out)}
    work = storm_work.twice(done, storm_work.of_cells(needed, asked), damaged)
    return Round(base.name, time.monotonic() - began, happened, facts, cluster.answers, wrong, unread, work)


def _codes(cluster: Cluster) -> Counter[int]:
    return Counter(code for worker in cluster.workers for code in worker.codes if code)


def _reported(out: Location) -> list[str]:
    """What is wrong with the command that reads a folder, in the first round."""
    if not isinstance(out, Path) or out.parent.name != "round1":
        return []
    command = [sys.executable, "-m", "bdjax", "report", str(out), "--no-pages"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if found.returncode == 0 else [f"bdjax report ended with {found.returncode}: {found.stderr.strip()[-300:]}"]


if __name__ == "__main__":
    main()
