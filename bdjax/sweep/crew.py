"""The workers of a sweep on a Ray cluster whose machines come and go."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from bdjax.errors import UserError, first_line
from bdjax.sweep import shares
from bdjax.sweep.need import Need
from bdjax.sweep.shares import Share

LOOK = 5.0  # seconds between two looks at the machines of the cluster
LEAVING = 2.0  # seconds in which workers end by themselves once everything is done
STOPPING = 5.0  # seconds in which they end then when they are asked to


class Crew:
    """The workers of a sweep: tasks of Ray, as many as the cluster has room for.

    A task whose machine is lost is placed by Ray again where there is room, and waits where there is none. A worker returns when
    nothing is left of the cells that fit its machine, so that nobody waits for tasks that were never placed.

    Args:
      ray: the module, connected to a cluster.
      start: gives a worker with a share to Ray, and returns Ray's reference to its result.
      kind: what is computed on, see :func:`bdjax.sweep.shares.kind_of`.
      needs: of the training cells.
      workers: at once, at most; so many are asked for at once, which lets a cluster that grows by itself grow. None = as many as
        there is room for.
      say: hears a line when workers start, fail or are lost.
    """

    def __init__(
        self,
        ray: Any,
        start: Callable[[Share], Any],
        kind: str,
        needs: Sequence[Need],
        workers: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._ray, self._start, self._kind, self._needs, self._workers, self._say = ray, start, kind, needs, workers, say
        self.tasks: dict[Any, Share] = {}  # by Ray's reference: workers that run, or wait for a machine
        self._seen: set[str] = set()  # machines
        self._lost: Counter[Share] = Counter()  # workers that Ray has given up since a machine came last
        self._finished: set[int] = set()  # numbers of training cells
        self._largest, self._looked, self._idle = 0, 0.0, False

    @property
    def finished(self) -> bool:
        """Whether nothing is left of any cell."""
        return len(self._finished) == len(self._needs)

    def look(self) -> None:
        """Look at the cluster, every few seconds, and start workers where there is room for more."""
        now = time.monotonic()
        if self._seen and now - self._looked < LOOK:
            return
        self._looked = now
        alive = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        machines, first = list(alive.values()), not self._seen
        if alive.keys() - self._seen:
            self._lost.clear()
        self._seen |= alive.keys()
        if self._kind == "CPU":  # accelerators that went away are waited for
            self._kind = shares.kind_of(machines) or "CPU"
        self._largest = max(self._largest, shares.largest(machines))
        room = shares.shares(machines, self._kind, self._needs, self._largest)
        room = Counter({share: count for share, count in room.items() if not self._finished.issuperset(self._cells(share))})
        started = self._fill(room, asked_for=first)
        if started:
            what = ", ".join(f"{count} with {share} each" for share, count in started.items())
            workers = f"{started.total()} {'' if first else 'more '}worker{'s' if started.total() > 1 else ''}"
            self._say(f"{workers} on {len(machines)} machine{'s' if len(machines) > 1 else ''}: {what}")
        if not room and not self._idle:
            self._say("bdjax: no machine of the cluster has room for a worker any more: going on when one comes")
        self._idle = not room

    def _fill(self, room: Counter[Share], *, asked_for: bool) -> Counter[Share]:
        """Start workers up to this room and the number that may run; return those started.

        With ``asked_for`` workers that were asked for beyond the room are started too, and wait for machines.
        """
        there, started = Counter(self.tasks.values()), Counter[Share]()
        left = math.inf if self._workers is None else self._workers - sum(min(there[share], room[share]) for share in room)
        largest_first = sorted(room, key=lambda share: (-share.memory, share.cells is not None))
        for share in largest_first:
            started[share] = int(max(min(room[share] - there[share] - self._lost[share], left), 0))
            left -= started[share]
        if asked_for and largest_first and left < math.inf:
            started[largest_first[0]] += int(left)
        for share, count in started.items():
            self.tasks.update({self._start(share): share for _ in range(count)})
        return +started

    def wait(self, seconds: float) -> None:
        """Wait until a worker ends, at most so long.

        Raises:
          UserError: a mistake of the user that a worker has found.
        """
        ended, _ = self._ray.wait(list(self.tasks), timeout=seconds)
        for one in ended:
            share, errors = self.tasks.pop(one), self._ray.exceptions
            try:
                self._ray.get(one)
                self._finished.update(self._cells(share))
                continue
            except errors.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                self._say(f"bdjax: a worker failed: {first_line(error.cause)}")
            except errors.RayError as error:  # its machine went away more often than it is tried again
                self._say(f"bdjax: a worker was lost: {type(error).__name__}")
            self._lost[share] += 1

    def dismiss(self) -> None:
        """End all workers: those that were never placed at once, the others when they have given back what they hold."""
        left = list(self.tasks)
        if left and self.finished:
            _, left = self._ray.wait(left, num_returns=len(left), timeout=LEAVING)
        for one in left:
            self._ray.cancel(one)
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=STOPPING)
        self.tasks.clear()

    def _cells(self, share: Share) -> Sequence[int]:
        return range(len(self._needs)) if share.cells is None else share.cells
