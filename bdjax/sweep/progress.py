"""What a person sees while a sweep runs: two bars on a terminal, one line per interval elsewhere; and what a log hears of it."""

import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

import numpy as np

from bdjax.population.snapshots import Snapshot
from bdjax.sweep.bars import Bars, Seen, clock
from bdjax.sweep.epochs import Epoch, Epochs, facts

INTERVAL = 10.0  # seconds between lines where there is no terminal
LOGGED = 1.0  # seconds between two epochs that a log hears of: a small training has thousands


class Listener(Protocol):
    """Who hears of everything that happens: a log file, say. Whatever goes wrong with it, it raises nothing."""

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        """Something happened: "run", "cell", "resumed", "epoch", "checkpoint", "cell done", "line" or "end"."""

    def close(self) -> None:
        """Nothing else will happen."""


class Progress:
    """Lines about the whole population on ``stream`` (stderr), with the time left.

    The time left is the mean time of finished cells of the same kind; kinds not seen yet count as the mean of all. The main
    thread, the callbacks of programs and the thread that writes checkpoints may all call it.

    Args:
      kinds: the kind ("train", "ft", …) of every cell that will run, in order.
      stream: where to write; a terminal gets bars.
      interval: seconds between lines elsewhere.
      listeners: hear of everything, and are closed at the end.
      about: what they hear of the run.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        stream: TextIO | None = None,
        interval: float = INTERVAL,
        listeners: Sequence[Listener] = (),
        about: dict[str, Any] | None = None,
    ):
        self.waiting, self.stream, self.interval = list(kinds), stream or sys.stderr, interval
        self.listeners, self.about = tuple(listeners), about or {}
        self.seconds: dict[str, list[float]] = {}
        self.seen = Seen(total=len(kinds), now=time.monotonic())
        self.kind, self.epochs = "", Epochs(0)
        self._cell: dict[str, Any] = {}  # what every event of the running cell says of it
        self._unheard: Epoch | None = None  # the last epoch, where the listeners have not heard of it
        self._spoke = self._logged = time.monotonic()
        self._lock = threading.RLock()
        self._bars = Bars(self.stream, lambda: self.seen) if self.stream.isatty() else None

    def __enter__(self) -> "Progress":
        self._tell("run", **self.about, cells=self.seen.total)
        if self._bars:
            self._bars.__enter__()
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if self._bars:
            self._bars.__exit__()
        self._tell("end", done=self.seen.done, error=None if error is None else f"{type(error).__name__}: {error}".strip(": "))
        for listener in self.listeners:
            listener.close()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._print(line)
        self._tell("line", text=line)

    def expect(self, kinds: Sequence[str]) -> None:
        """What is still to be done, where other processes take part."""
        self.waiting = list(kinds)
        self._see(done=max(self.seen.total - len(kinds), 0), left=self._rest(0.0))

    def start(
        self,
        kind: str,
        title: str,
        *,
        cell: str = "",
        epochs: int = 0,
        images: int = 0,
        members: int = 1,
        at_once: int = 1,
        devices: int = 1,
        local: int | None = None,
    ) -> None:
        """A cell begins.

        Args:
          kind: its kind.
          title: what it is, in words.
          cell: its hash.
          epochs: of training, 0 where nothing is reported.
          images: that a member sees in an epoch.
          members: that it has.
          at_once: how many of them run at once.
          devices: that share them.
          local: how many of these are this process's; None = all.
        """
        if kind in self.waiting:
            self.waiting.remove(kind)
        with self._lock:
            self.kind, self.epochs = kind, Epochs(epochs, images, members, at_once, devices, local)
            self._cell, self._unheard = {"cell": cell, "title": title}, None
            self._see(title=title, begun=time.monotonic(), epoch=None, epochs=epochs, kept=None, left=self._rest(None))
        self._tell("cell", kind=kind, members=members, at_once=at_once, epochs=epochs)
        if not self._bars and epochs == 0:
            self._print(title)

    def resume(self, found: Snapshot) -> None:
        """The running cell goes on from a checkpoint."""
        before = f"{found.finished} members are done, " if found.finished else ""
        if self.epochs.epochs:
            with self._lock:
                self.epochs.resume(found.at_once, found.finished, found.rounds)
            where = f"goes on after epoch {found.rounds}/{self.epochs.epochs}"
        else:
            where = f"goes on from its checkpoint, after {clock(found.seconds)} of work"
        self._print(f"{self.seen.title}: {before}{where}")
        self._tell("resumed", finished=found.finished, epoch=found.rounds, seconds=round(found.seconds, 3))

    def epoch(self, epoch: np.ndarray, loss: np.ndarray, alive: np.ndarray) -> None:
        """Hear of an epoch of the running training: loss f32[m], alive bool[m] (the trainer's ``report``)."""
        with self._lock:
            found = self.epochs.hear(epoch, loss, alive)
            if found is None:
                return
            now = time.monotonic()
            self._see(epoch=found, left=self._rest(found.left))
            line, self._unheard = now - self._spoke >= self.interval and not self._bars, found
            if line:
                self._spoke = now
            if line or now - self._logged >= LOGGED:
                self._log_epoch()
        if line:
            self._print(self._line(found))

    def kept(self, rounds: int, seconds: float) -> None:
        """A checkpoint of the running cell was written.

        Args:
          rounds: epochs that the members in training have behind them.
          seconds: how long writing it took.
        """
        self._see(kept=time.monotonic())
        self._tell("checkpoint", epoch=rounds, seconds=round(seconds, 3))

    def finish(self, line: str) -> None:
        """The running cell is done; ``line`` says what came out."""
        with self._lock:
            seconds = time.monotonic() - self.seen.begun
            whole = seconds / max(1.0 - self.epochs.share, 1e-3)  # an earlier process did a share of the work
            self.seconds.setdefault(self.kind, []).append(whole)
            self._log_epoch()
            self._see(title="", epoch=None, epochs=0, kept=None, done=self.seen.done + 1, left=self._rest(0.0))
        self._print(f"{line}, {self.left(0.0)}")
        self._tell("cell done", line=line, seconds=round(seconds, 3))

    def note(self) -> str:
        """How far the running cell is, in a few words for those who look from elsewhere; nothing where that is not known."""
        seen = self.seen
        if seen.epoch is None:
            return ""
        return ", ".join(filter(None, (seen.epoch.place(), seen.epoch.loss(), seen.checkpoint())))

    def left(self, running: float | None) -> str:
        """The time left in words; ``running`` is that of the cell in progress, in seconds, None if unknown."""
        if not self.waiting and running == 0.0:
            return "done"
        rest = self._rest(running)
        if rest is not None:
            return f"ETA {clock(rest)}"
        return "ETA ?" if running is None else f"ETA for this cell {clock(running)}"

    def _rest(self, running: float | None) -> float | None:
        """Seconds to the end of the grid; None = nothing to go by."""
        if not self.seconds:
            return None if self.waiting else running
        known = {kind: statistics.mean(seconds) for kind, seconds in self.seconds.items()}
        any_kind = statistics.mean(second for seconds in self.seconds.values() for second in seconds)
        now = known.get(self.kind, any_kind) if running is None else running
        return now + sum(known.get(kind, any_kind) for kind in self.waiting)

    def _line(self, epoch: Epoch) -> str:
        """An epoch in words, where there is no terminal."""
        kept = self.seen.checkpoint()
        said = f"{self.seen.title}: {epoch.place()}, {epoch.loss()}{epoch.rate()}{f', {kept}' if kept else ''}"
        return f"{said}, {self.left(epoch.left)}"

    def _log_epoch(self) -> None:
        """Let the listeners hear of the last epoch, if they have not."""
        epoch, self._unheard = self._unheard, None
        if epoch is not None:
            self._logged = time.monotonic()
            self._tell("epoch", **facts(epoch))

    def _see(self, **changes: Any) -> None:
        with self._lock:
            at: dict[str, Any] = {"now": time.monotonic()} if "left" in changes else {}
            self.seen = self.seen._replace(**changes, **at)

    def _tell(self, event: str, **said: Any) -> None:
        """Let everybody hear of an event."""
        with self._lock:
            of_cell = {} if event in ("run", "line", "end") else self._cell
            for listener in self.listeners:
                listener.hear(event, {**of_cell, **said})

    def _print(self, line: str) -> None:
        if self._bars:
            self._bars.say(line)
        else:
            print(line, file=self.stream, flush=True)
