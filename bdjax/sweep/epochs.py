"""How fast a training goes, and what is left of it, from what its program reports of every epoch."""

import collections
import time
from typing import Any, NamedTuple

import numpy as np

WINDOW = 60.0  # seconds whose epochs the rate is measured by
FEWEST = 8  # epochs that it is measured by, also where they take longer


class Epoch(NamedTuple):
    """One epoch of the members that train at once."""

    number: int  # from 1
    of: int
    losses: tuple[float, float, float] | None  # least, median, largest of the members that are alive; None = none is
    alive: int
    members: int
    part: int  # which members these are, from 1, where not all train at once
    parts: int
    images: float | None  # per second; None = nothing is known yet
    left: float | None  # seconds to the end of the cell; None likewise

    def place(self) -> str:
        """Which epoch it is, in words, and of which part of the members where there are several."""
        part = f" of part {self.part}/{self.parts}" if self.parts > 1 else ""
        return f"epoch {self.number}/{self.of}{part}"

    def loss(self) -> str:
        """The losses in words."""
        if self.losses is None:
            return "no member is finite"
        least, median, largest = self.losses
        return f"loss {median:.3f} [{least:.3f}, {largest:.3f}]"

    def rate(self) -> str:
        """The images per second in words, after a comma; nothing where they are not known."""
        return "" if self.images is None else f", {self.images:,.0f} images/s"


class Epochs:
    """The epochs of a cell's training, which runs as many members at once as fit, one part of them after the other.

    The rate is that of the last epochs that this process has seen; what is left counts from where the training is.

    Args:
      epochs: of each member.
      images: that a member sees in an epoch.
      members: of the cell.
      at_once: how many train at once.
      devices: that share them; each reports its own.
      local: how many of these are this process's, which hears of no others; None = all.
    """

    def __init__(
        self, epochs: int, images: int = 0, members: int = 1, at_once: int = 1, devices: int = 1, local: int | None = None
    ) -> None:
        self.epochs, self.images, self.members = epochs, images, members
        self._devices, self._local = devices, devices if local is None else local
        self._finished, self._number = 0, 0
        self._run(at_once)
        self._part = 1
        self._times: collections.deque[float] = collections.deque()  # of the last epochs
        self._heard: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # reports of an epoch, until all devices have spoken
        self.share = 0.0  # of the work, which an earlier process has done

    def resume(self, at_once: int, finished: int, rounds: int) -> None:
        """The training goes on where an earlier process stopped.

        Args:
          at_once: members that train at once.
          finished: members that were trained to the end.
          rounds: epochs that those in training have behind them.
        """
        self._finished, self._number = finished, rounds
        self._run(at_once)
        self._part = 1 - (-finished // self._at_once)
        running = min(self._at_once, self.members - finished)
        self.share = (finished + running * rounds / max(self.epochs, 1)) / max(self.members, 1)

    def hear(self, epoch: np.ndarray, loss: np.ndarray, alive: np.ndarray) -> Epoch | None:
        """Take in the report of a device; return the epoch once all devices have reported it.

        Args:
          epoch: i32[m] or i32[], from 0.
          loss: of each member, f32[m] or f32[].
          alive: whether each is finite, bool[m] or bool[].
        """
        number = int(np.max(epoch)) + 1
        reports = self._heard.setdefault(number, [])
        reports.append((np.atleast_1d(np.asarray(loss, np.float64)), np.atleast_1d(np.asarray(alive, bool))))
        if len(reports) < self._local:
            return None
        del self._heard[number]
        losses, living = (np.concatenate(each) for each in zip(*reports, strict=True))
        self._place(number, living.size)
        each = self._pace()
        running = max(min(self._at_once, self.members - self._finished), 0)
        if self._devices == 1:  # what fills up the last part does not count
            losses, living = losses[:running], living[:running]
        rest = -(-(self.members - self._finished - running) // self._at_once)  # parts that have not begun
        found = losses[living]
        return Epoch(
            number=number,
            of=self.epochs,
            losses=(float(found.min()), float(np.median(found)), float(found.max())) if found.size else None,
            alive=int(living.sum()),
            members=living.size,
            part=self._part,
            parts=self._part + rest,
            images=None if each is None or not self.images else self.images * running / max(each, 1e-9),
            left=None if each is None else each * (self.epochs - number + self.epochs * rest),
        )

    def _place(self, number: int, size: int) -> None:
        """Note which epoch it is, and of which members."""
        if size < self._size:  # the memory was not enough: this part begins anew with fewer members
            self._run(self._at_once * size // self._size)
            self._times.clear()
        elif number <= self._number:
            self._finished, self._part = self._finished + self._at_once, self._part + 1
        self._number = number

    def _run(self, at_once: int) -> None:
        self._at_once = max(at_once, 1)
        self._size = self._at_once * self._local // self._devices  # members whose reports this process hears

    def _pace(self) -> float | None:
        """Seconds of an epoch. Compilation lies before the first one that is heard of, from which they are measured."""
        times = self._times
        times.append(time.monotonic())
        while len(times) > FEWEST and times[-1] - times[0] > WINDOW:
            times.popleft()
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def facts(epoch: Epoch) -> dict[str, Any]:
    """What a line of the log says of an epoch."""
    least, median, largest = (float(f"{loss:.6g}") for loss in epoch.losses) if epoch.losses else (None,) * 3
    return {
        "epoch": epoch.number,
        "epochs": epoch.of,
        "loss_min": least,
        "loss_median": median,
        "loss_max": largest,
        "alive": epoch.alive,
        "members": epoch.members,
        "part": epoch.part,
        "parts": epoch.parts,
        "images_per_second": None if epoch.images is None else round(epoch.images, 1),
    }
