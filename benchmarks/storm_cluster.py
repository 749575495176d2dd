"""The four processes of the storm on two "machines": started, started again whenever they end too early, and sent signals."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

MACHINES = ("storm-a", "storm-b")
WORKERS = 4
OTHERS = 0.1  # share of the signals that may hit a worker that holds no cell
PAUSE = 1.5  # seconds before a worker that ended is started again
TERMINATION = 15.0  # seconds in which a process has to answer SIGTERM
ASLEEP = 3.0  # seconds between two looks at the workers after which this process, and so the machine, was paused
TERMINATED = (143, -signal.SIGTERM)  # the second while Python itself is still starting and no handler is there


class Setup(NamedTuple):
    """What all workers of a folder share."""

    base: Path  # folder of the storm, for diaries and outputs
    arguments: tuple[str, ...]  # of the command
    heartbeat: float
    timeout: float
    store: dict[str, Any] | None = None


def may_rename() -> bool:
    """Return whether a process may be given a host name of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--uts", "hostname", MACHINES[0]], capture_output=True, check=False).returncode == 0


class Worker:
    """One place for a process, which is filled again until the work is done."""

    def __init__(self, setup: Setup, machine: str | None, name: str, renames: bool) -> None:
        self._setup, self._machine, self._name, self._renames = setup, machine, name, renames
        self._numbers = itertools.count()
        self.starts = 0
        self.stopped = False  # by SIGSTOP
        self.ended = False  # the process ended, and that was noticed
        self.finished = False  # it ended by itself and well
        self.termination: float | None = None  # when SIGTERM was sent
        self.codes: list[int] = []
        self.deaths: dict[str, float] = {}  # diary: when its process ended
        self.again = 0.0  # when it is to be started again
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start a process."""
        name = f"{self._name}.{next(self._numbers)}"
        self.diary = self._setup.base / f"{name}.diary"
        fake = self._machine if self._machine is not None and not self._renames else None
        settings = {"diary": str(self.diary), "host": fake, "heartbeat": self._setup.heartbeat, "timeout": self._setup.timeout}
        settings["store"] = self._setup.store
        command = [sys.executable, "-m", "benchmarks.storm_worker", json.dumps(settings), *self._setup.arguments]
        if self._machine is not None and self._renames:
            command = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self._machine, *command]
        with open(self._setup.base / f"{name}.out", "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        self.starts, self.ended, self.stopped, self.termination = self.starts + 1, False, False, None

    @property
    def alive(self) -> bool:
        """Whether there is a process that may be sent a signal."""
        return not self.ended and self.process.poll() is None

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)
        if number == signal.SIGTERM and self.termination is None:
            self.termination = time.time()
        self.stopped = number == signal.SIGSTOP or (self.stopped and number not in (signal.SIGCONT, signal.SIGKILL))

    def look(self) -> str | None:
        """Notice an end, and start again what ended too early; return what is wrong, if anything is."""
        if self.finished:
            return None
        if self.ended:
            if time.monotonic() >= self.again:
                self.start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.ended = True
        self.codes.append(code)
        self.deaths[str(self.diary)], self.again, self.finished = time.time(), time.monotonic() + PAUSE, code == 0
        if self.termination is not None and code not in (*TERMINATED, 0, 2, -signal.SIGKILL):
            return f"{self.diary.stem} ended with {code} after SIGTERM"
        return None if code in (0, 2, -signal.SIGKILL, *TERMINATED) else f"{self.diary.stem} ended with {code}"

    def close(self) -> None:
        """End the process, if there is one."""
        if self.alive:
            self.process.kill()
            self.process.wait()


class Cluster:
    """Workers that share a folder; a context manager, which ends them.

    Args:
      setup: of the workers.
      name: of their diaries.
      many: how many; the even ones are on this machine's own name of the first, the odd ones on the second.
    """

    def __init__(self, setup: Setup, name: str, many: int = WORKERS) -> None:
        renames = may_rename()
        self.workers = [Worker(setup, MACHINES[n % len(MACHINES)], f"{name}-{n}", renames) for n in range(many)]
        self.wrong: list[str] = []
        self._looked = time.time()
        self.answers: list[float] = []  # seconds between SIGTERM and the end

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers:
            worker.close()

    def look(self) -> bool:
        """Look after the workers; return whether all of them have ended well."""
        now = time.time()
        asleep, self._looked = now - self._looked, now
        for worker in self.workers:
            if asleep > ASLEEP and worker.termination is not None:
                worker.termination += asleep
            since, before = worker.termination, len(worker.codes)
            wrong = worker.look()
            if wrong:
                self.wrong.append(wrong)
            if since is not None and len(worker.codes) > before and worker.codes[-1] in TERMINATED:
                self.answers.append(time.time() - since)
        return all(worker.finished for worker in self.workers)

    def victim(self, draw: random.Random, holders: set[int]) -> Worker | None:
        """Return a worker to be hit, mostly one of those that hold a cell; None where none does, they start and are let start."""
        there = [worker for worker in self.workers if worker.alive and not worker.stopped and worker.termination is None]
        busy = [worker for worker in there if worker.process.pid in holders]
        among = there if draw.random() < OTHERS else busy
        return draw.choice(among) if among else None

    @property
    def deaths(self) -> dict[str, float]:
        """When the process of each diary ended."""
        return {diary: moment for worker in self.workers for diary, moment in worker.deaths.items()}

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return sum(worker.starts - 1 for worker in self.workers)


def alone(setup: Setup, name: str) -> dict[str, float]:
    """Run one worker that nobody disturbs to its end; return when the process of its diary ended.

    Raises:
      SystemExit: it did not end well.
    """
    worker = Worker(setup, None, name, renames=False)
    worker.process.wait()
    worker.look()
    if not worker.finished:
        output = (setup.base / f"{name}.0.out").read_text(errors="replace").splitlines()[-5:]
        raise SystemExit("\n".join(["an undisturbed worker ended badly:", *output]))
    return worker.deaths


def holders(folder: Path, pattern: str = "claims/*.json") -> set[int]:
    """Return the numbers of the processes that hold a cell; ``pattern`` says which files of a folder are leases."""
    found = set()
    for path in folder.glob(pattern):
        try:
            found.add(int(json.loads(path.read_bytes())["pid"]))
        except (OSError, ValueError, KeyError):
            continue
    return found
