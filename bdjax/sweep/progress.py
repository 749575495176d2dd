"""What a person sees while a sweep runs: one line per interval, and a bar on a terminal."""

import statistics
import sys
import time
from typing import Any, TextIO

import numpy as np

INTERVAL = 10.0  # seconds between lines where there is no terminal


class Progress:
    """Lines about the whole population on ``stream`` (stderr), with the time left.

    The time left is the mean time of finished cells of the same kind; kinds not seen yet count as the mean of all.

    Args:
      kinds: the kind ("train", "ft", …) of every cell that will run, in order.
      stream: where to write; a terminal gets a bar.
      interval: seconds between lines elsewhere.
    """

    def __init__(self, kinds: list[str], stream: TextIO | None = None, interval: float = INTERVAL):
        self.waiting, self.stream, self.interval = list(kinds), stream or sys.stderr, interval
        self.total = len(kinds)
        self.seconds: dict[str, list[float]] = {}
        self.begun = self.spoke = self.paced = time.monotonic()
        self.title, self.kind, self.chunks = "", "", 1
        self.epochs = self.images = self.passed = 0
        self.bar = self.task = None
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(file=self.stream), transient=True)
            self.task = self.bar.add_task("bdjax", total=len(kinds))

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    def expect(self, kinds: list[str]) -> None:
        """What is still to be done, where other processes take part."""
        self.waiting = list(kinds)
        if self.bar:
            self.bar.update(self.task, completed=max(self.total - len(kinds), 0))  # type: ignore[arg-type]

    def start(self, kind: str, title: str, *, epochs: int = 0, images: int = 0, chunks: int = 1) -> None:
        """A cell begins.

        Args:
          kind: its kind.
          title: what it is, in words.
          epochs: of training per chunk, 0 where nothing is reported.
          images: images per epoch and chunk, all its members together.
          chunks: how often the population is entered.
        """
        if kind in self.waiting:
            self.waiting.remove(kind)
        self.kind, self.title, self.epochs, self.images, self.chunks = kind, title, epochs, images, chunks
        self.begun, self.passed = time.monotonic(), 0
        self._show(title)

    def epoch(self, epoch: np.ndarray, loss: np.ndarray, alive: np.ndarray) -> None:
        """Hear of an epoch of the running training: loss f32[m], alive bool[m] (the trainer's ``report``)."""
        self.passed += 1
        now = time.monotonic()
        if self.passed == 1:  # compilation lies before it: the pace is measured from here
            self.paced = now
        if now - self.spoke < self.interval and not self.bar:
            return
        self.spoke = now
        losses = np.atleast_1d(np.asarray(loss, np.float64))[np.atleast_1d(alive)]
        value = f"loss {np.median(losses):.3f} [{losses.min():.3f}, {losses.max():.3f}]" if losses.size else "no member is finite"
        line = f"{self.title}: epoch {int(np.max(epoch)) + 1}/{self.epochs}, {value}"
        left = None
        if self.passed > 1:
            each = (now - self.paced) / (self.passed - 1)
            line += f", {self.images / max(each, 1e-9):,.0f} images/s"
            left = each * (self.epochs * self.chunks - self.passed)
        self._show(f"{line}, {self.left(left)}")

    def finish(self, line: str) -> None:
        """The running cell is done; ``line`` says what came out."""
        self.seconds.setdefault(self.kind, []).append(time.monotonic() - self.begun)
        self.say(f"{line}, {self.left(0.0)}")
        if self.bar:
            self.bar.advance(self.task)  # type: ignore[arg-type]

    def left(self, running: float | None) -> str:
        """The time left in words; ``running`` is that of the cell in progress, in seconds, None if unknown."""
        if not self.waiting and running == 0.0:
            return "done"
        seen = [second for kind in self.seconds.values() for second in kind]
        if running is None or (self.waiting and not seen):
            known = "" if running is None else f" for this cell {clock(running)}"
            return f"ETA{known or ' ?'}"
        known_kinds = {kind: statistics.mean(seconds) for kind, seconds in self.seconds.items()}
        rest = sum(known_kinds.get(kind, statistics.mean(seen)) for kind in self.waiting) if self.waiting else 0.0
        return f"ETA {clock(running + rest)}"

    def _show(self, line: str) -> None:
        if self.bar:
            from rich.markup import escape

            self.bar.update(self.task, description=escape(line))  # type: ignore[arg-type]
        elif self.epochs == 0 or self.passed:
            print(line, file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss below an hour."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
