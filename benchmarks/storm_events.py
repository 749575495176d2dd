"""What the storm does: signals, a disk that is full or read-only, files that are damaged; drawn from a seeded generator."""

import heapq
import itertools
import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.sweep import manifest
from benchmarks.storm_cluster import Cluster, Worker, holders

SIGNALS = {
    "SIGKILL": 6,
    "SIGTERM": 6,
    "SIGSTOP, short": 3,
    "SIGSTOP, longer than a lease": 2,
    "two signals in a row": 3,
}  # weights
PAIRS = (
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGTERM, signal.SIGKILL),
    (signal.SIGSTOP, signal.SIGKILL),
    (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT),
)
FILES = {
    "record": "records/*/*.parquet",
    "checkpoint of a running cell": "running/*/*/*/**/*",
    "trained network": "models/*/*/**/*",
    "lease": "claims/*.json",
    "log": "logs/*.jsonl",
}
DAMAGE = ("truncated", "bit-flipped", "vanished")
DISK = ("full disk", "read-only folder")
FULL = 5.0  # seconds for which a disk is full or read-only
TRIES = 40  # to find a file of a kind before the event is given up


class Event(NamedTuple):
    """One thing that happens."""

    kind: str
    target: str = ""  # of a damage: which kind of file
    delay: float = 0.0  # seconds after the one before


def drawn(draw: random.Random, signals: int, others: int, gap: float) -> list[Event]:
    """Return the events of a storm in their order.

    Args:
      draw: the generator.
      signals: how many of the kinds of signals.
      others: how many of each other kind; damages so many of each of the three, and of every kind of file at least one.
      gap: mean seconds between two.
    """
    kinds, weights = list(SIGNALS), list(SIGNALS.values())
    events = [Event(kind) for kind in (kinds + draw.choices(kinds, weights, k=signals))[:signals]]
    targets = list(itertools.islice(itertools.cycle(FILES), max(others, len(FILES)))) if others else []
    events += [Event(damage, target) for damage in DAMAGE for target in targets]
    events += [Event(kind) for kind in DISK for _ in range(others)]
    draw.shuffle(events)
    return [event._replace(delay=draw.uniform(0.1, 1.9) * gap) for event in events]


class Disk:
    """The disk of the results: filled and made read-only by mounts where those are allowed, else as far as a user can."""

    def __init__(self, out: Path, mounted: bool) -> None:
        self.out, self.mounted = out, mounted
        out.mkdir(parents=True, exist_ok=True)
        if mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "storm", str(out)], check=True)

    def fill(self, cluster: Cluster) -> Callable[[], None]:
        """Leave no room; return what undoes it."""
        if not self.mounted:
            hit = [worker.process.pid for worker in cluster.workers if worker.alive]
            before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in hit}
            for pid, (_, most) in before.items():
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, most))
            return lambda: _unlimited(before)
        path = self.out / "full-of-something-else"
        with open(path, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
        return path.unlink

    def read_only(self) -> Callable[[], None] | None:
        """Let nothing be written; return what undoes it, or None where that is not possible: root may write wherever it likes."""
        if self.mounted:
            subprocess.run(["mount", "--bind", str(self.out), str(self.out)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(self.out)], check=True)
            return lambda: _run("umount", "-l", str(self.out))
        if os.geteuid() == 0:
            return None
        folders = [self.out, *(path for path in self.out.rglob("*") if path.is_dir())]
        modes = {path: path.stat().st_mode for path in folders}
        for path in folders:
            path.chmod(0o555)
        return lambda: [path.chmod(mode) for path, mode in modes.items()] and None


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _unlimited(before: dict[int, tuple[int, int]]) -> None:
    for pid, limits in before.items():
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        except ProcessLookupError:
            continue


class Storm:
    """Lets events happen to the workers of a folder.

    Args:
      cluster: the workers.
      disk: theirs.
      draw: the generator.
      timeout: seconds of a lease.
    """

    def __init__(self, cluster: Cluster, disk: Disk, draw: random.Random, timeout: float) -> None:
        self.cluster, self.disk, self._draw, self._timeout = cluster, disk, draw, timeout
        self._later: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._disturbed = 0.0  # until when the disk is full or read-only
        self.happened: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()  # cell: damages to what it had finished
        self.lines: list[str] = []

    def undo(self, everything: bool = False) -> None:
        """Do what is due: go on with stopped processes, give room back."""
        while self._later and (everything or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    def happen(self, event: Event) -> bool:
        """Let an event happen; False where it cannot now: there is no such file or no worker to be hit."""
        if event.kind in SIGNALS:
            done = self._signal(event.kind)
        elif event.kind in DISK:
            done = self._disk(event.kind)
        else:
            done = time.monotonic() > self._disturbed and self._damage(event)
        if done:
            self.happened[f"{event.kind}: {event.target}" if event.target else event.kind] += 1
        return bool(done)

    def _after(self, seconds: float, action: Callable[[], Any]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def _signal(self, kind: str) -> bool:
        worker = self.cluster.victim(self._draw, holders(self.disk.out))
        if worker is None:
            return False
        if kind.startswith("SIGSTOP"):
            worker.send(signal.SIGSTOP)
            share = self._draw.uniform(0.1, 0.6) if kind.endswith("short") else self._draw.uniform(1.3, 2.0)
            self._after(share * self._timeout, lambda process=worker.process: self._go_on(worker, process))
            return True
        if kind == "two signals in a row":
            for number in self._draw.choice(PAIRS):
                if worker.process.poll() is None:
                    worker.send(number)
                    time.sleep(self._draw.uniform(0.0, 0.5))
            return True
        worker.send(signal.SIGKILL if kind == "SIGKILL" else signal.SIGTERM)
        return True

    def _go_on(self, worker: Worker, process: Any) -> None:
        if worker.process is process and worker.alive:
            worker.send(signal.SIGCONT)

    def _disk(self, kind: str) -> bool:
        if time.monotonic() < self._disturbed:
            return False
        undo = self.disk.fill(self.cluster) if kind == DISK[0] else self.disk.read_only()
        if undo is None:
            return True
        seconds = self._draw.uniform(0.5, 1.5) * FULL
        self._disturbed = time.monotonic() + seconds + 1
        self._after(seconds, undo)
        return True

    def _damage(self, event: Event) -> bool:
        out = self.disk.out
        found = sorted(path for path in out.glob(FILES[event.target]) if _is_complete(path, out))
        if event.target == "trained network":
            needed = _needed(out)
            found = [path for path in found if path.relative_to(out).parts[1] in needed]
        if not found:
            return False
        path = self._draw.choice(found)
        try:
            damage(path, event.kind, self._draw)
        except (OSError, ValueError):  # it has just gone, or is empty
            return False
        if event.target in ("record", "trained network"):
            self.damaged[path.relative_to(out).parts[1]] += 1
        self.lines.append(f"{event.kind}: {path.relative_to(out)}")
        return True


def _is_complete(path: Path, out: Path) -> bool:
    hidden = any(part.startswith(".") or ".corrupt" in part for part in path.relative_to(out).parts)
    return not hidden and path.is_file()


def _needed(out: Path) -> set[str]:
    """Return the training cells whose networks a defense still needs: a damaged one that nobody reads any more stays so."""
    asked = manifest.read(out)
    left = {one.attack for one in asked if one.defense != "none" and not any((out / "records" / one.cell).glob("*.parquet"))}
    return {one.cell for one in asked if one.defense == "none" and one.attack in left}


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Damage a file.

    Raises:
      OSError: it is not there any more.
      ValueError: it is empty.
    """
    if kind == "vanished":
        path.unlink()
        return
    size = path.stat().st_size
    if size == 0:
        raise ValueError("an empty file cannot be damaged")
    with open(path, "r+b") as file:
        if kind == "truncated":
            file.truncate(draw.randrange(size))
            return
        at = draw.randrange(size)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ (1 << draw.randrange(8))]))
