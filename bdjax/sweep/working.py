"""Work on what is pending, together with other processes, until nothing is left."""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

from bdjax.population import Execution, hosts
from bdjax.population.segments import Abandoned
from bdjax.store import atomic, checkpoints, running
from bdjax.store import records as store
from bdjax.store.leases import Leases
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep.cells import Attacked, place
from bdjax.sweep.defend_cell import defend
from bdjax.sweep.imported_cells import begin
from bdjax.sweep.pending import DefenseRun, Pending, Tries, Work, by_member, missing, pending, trained_hash
from bdjax.sweep.progress import Progress

POLL = (0.5, 5.0)  # seconds between two looks at what other processes have left; at first, at most


def agreed(work: Work, out: Location, tries: Tries) -> Pending:
    """Return what is pending of a branch, as the first of several processes finds it."""
    found = pending(work, out, tries)
    training, defenses = hosts.broadcast((found.training, found.defenses))
    return found._replace(training=training, defenses=defenses)


def work_off(
    unfinished: Sequence[tuple[Work, Execution]],
    out: Location,
    tries: Tries,
    leases: Leases,
    progress: Progress,
    checkpoint_every: float | None = None,
) -> None:
    """Work on every cell that nobody else works on until none is left; wait where others are at work.

    Args:
      unfinished: the branches with pending members, each with the execution of its populations.
      out: folder of the sweep.
      tries: which failed members are tried again.
      leases: of this process.
      progress: hears of everything.
      checkpoint_every: seconds between two checkpoints of a cell that runs; None = by what they cost.
    """
    wait = POLL[0]
    while True:
        moved = [_advance(work, out, execution, tries, leases, progress, checkpoint_every) for work, execution in unfinished]
        left = [(pair, kinds) for pair in unfinished if (kinds := agreed(pair[0], out, tries).kinds())]
        unfinished, kinds = [pair for pair, _ in left], [kind for _, some in left for kind in some]
        if not unfinished:
            return
        progress.expect(kinds)
        if any(moved):
            wait = POLL[0]
            continue
        if wait == POLL[0]:
            progress.say(f"waiting for {len(kinds)} cells that other processes work on")
        time.sleep(wait)
        wait = min(2 * wait, POLL[1])


def tidy(cells: Sequence[str], out: Location, leases: Leases) -> None:
    """Remove what is kept of cells that are finished: a process that is killed between its records and its end leaves that.

    Args:
      cells: hashes of cells of which nothing is pending.
      out: folder of the sweep.
      leases: of this process.
    """
    kept = running.cells(out)
    for cell in (cell for cell in cells if cell in kept):
        with leases.lease(cell) as ours:
            if ours:
                running.Keeper(out, cell, "").clear()


def _advance(
    work: Work,
    out: Location,
    execution: Execution,
    tries: Tries,
    leases: Leases,
    progress: Progress,
    checkpoint_every: float | None,
) -> bool:
    """Make what is pending of a branch and nobody else is making; return whether there was anything."""
    found, branch = agreed(work, out, tries), work.branch

    @functools.cache
    def attacked() -> Attacked:
        cell = branch.train, branch.model, branch.attack, work.cell, work.dataset, execution
        return place(*cell, checkpoint_every, leases.lost)

    moved, trained_here = False, False
    if found.training:
        with _holding(leases, work.cell) as ours:
            if not ours:  # what is to be defended is only just being trained
                return False
            for points in agreed(work, out, tries).training:
                begin(attacked(), points, out, progress)
                moved = True
            tries.made(work.cell)
            trained_here = True
        if not trained_here:  # the cell was lost: another process trains it
            return False
    trained = functools.cache(lambda: _trained(work, out, found.defenses, tries))
    for run in found.defenses:
        with _holding(leases, run.name) as ours:
            # Another process may have made it before its lease was granted.
            points = hosts.broadcast(missing(run.name, run.points, out, tries)) if ours else ()
            if points:
                members = trained()
                if members is None:  # damaged, and quarantined: the next round trains these members again
                    return True
                defend(attacked(), run.cell, run.name, points, members, out, progress)
                tries.made(run.name)
                moved = True
    return moved


@contextlib.contextmanager
def _holding(leases: Leases, cell: str) -> Iterator[bool]:
    """Hold the lease of a cell; of several processes that work on it together the first one does, until all are done with it."""
    with leases.lease(cell) if hosts.is_leader() else contextlib.nullcontext(False) as ours:
        with contextlib.suppress(Abandoned):  # it was lost: its new holder goes on, and this process does something else
            yield hosts.broadcast(ours)
        hosts.broadcast(None)


def _trained(
    work: Work, out: Location, runs: Sequence[DefenseRun], tries: Tries
) -> tuple[dict[str, Row], checkpoints.Stored] | None:
    """Return the rows of a training cell by member, and those of its trained members that these runs need.

    None where these are damaged, or another process has just found that they are and has quarantined them.

    Raises:
      UserError: they were damaged before in this call and are damaged again.
    """
    rows = by_member([row for _, row in store.read_cell(out, work.cell)])
    places = checkpoints.find(out, work.cell)
    needed = dict.fromkeys(trained_hash(point) for run in runs for point in run.points)
    there = [name for name in needed if rows[name]["status"] == "ok"]
    if hosts.broadcast(any(name not in places for name in there)):
        return None
    stored: checkpoints.Stored | atomic.Corrupt
    try:
        stored = checkpoints.load(out, work.cell, [places[name] for name in there])
    except atomic.Corrupt as damage:
        stored = damage
    if hosts.broadcast(isinstance(stored, atomic.Corrupt)) and tries.train_again(work.cell):
        return None
    if isinstance(stored, atomic.Corrupt):
        raise stored
    return rows, stored
