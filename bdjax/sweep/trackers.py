"""TensorBoard and Weights & Biases as listeners of a run, through their own writers; off unless they are asked for.

Each works in a thread of its own, so that a slow disk or network never holds the run up.
"""

import importlib.util
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.errors import UserError, choose, first_line
from bdjax.store.location import Location

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # which package each needs
NUMBERS = ("loss_min", "loss_median", "loss_max", "images_per_second")  # of an epoch
PATIENCE = 60.0  # seconds at the end for what is still to be written or sent


class Scalars(NamedTuple):
    """What is drawn of one event: numbers by their names, over a step."""

    cell: str
    step: int  # epoch
    values: dict[str, float]


class Backend(NamedTuple):
    """A package's own writer."""

    write: Callable[[Scalars], None]
    close: Callable[[], None]


def checked(names: str | Sequence[str], out: Location) -> tuple[str, ...]:
    """Return the names of trackers, each once.

    Raises:
      UserError: one is not known, its package is not installed, or it cannot write into that folder of results.
    """
    asked = tuple(dict.fromkeys((names,) if isinstance(names, str) else names))
    for name in asked:
        package = PACKAGES[choose("tracker to log to", name, PACKAGES)]
        if importlib.util.find_spec(package) is None:
            raise UserError(f"logging to {name} needs {package}, which is not installed; install it with: pip install {package}")
        if name == "tensorboard" and not isinstance(out, Path):
            raise UserError(
                f"TensorBoard's files are written into a folder of this machine, and {out} is none; log to wandb instead"
            )
    return asked


class Tracker:
    """A listener that hands numbers to a backend in a thread of its own; it raises nothing.

    Args:
      name: of the backend.
      backend: of it nothing is asked any more after its first error, which is said.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self._name, self._backend = name, backend
        self._waiting: queue.SimpleQueue[Scalars | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"bdjax-{name}", daemon=True)
        self._thread.start()

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        """Take the numbers of an epoch or of a checkpoint."""
        found = scalars(event, facts)
        if found is not None:
            self._waiting.put(found)

    def close(self) -> None:
        """Wait until everything is written, for :data:`PATIENCE` seconds at most."""
        self._waiting.put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            print(f"bdjax: {self._name} is not done after {PATIENCE:.0f} s; what is left is given up", file=sys.stderr)

    def _work(self) -> None:
        try:
            while (found := self._waiting.get()) is not None:
                self._backend.write(found)
            self._backend.close()
        except Exception as error:
            line = f"bdjax: {self._name} cannot be written to: {first_line(error)}; the run goes on without it"
            print(line, file=sys.stderr, flush=True)


def scalars(event: str, facts: dict[str, Any]) -> Scalars | None:
    """Return the numbers of an event that are drawn; None where it has none."""
    if event == "checkpoint":
        return Scalars(_name(facts["title"]), facts["epoch"], {"checkpoint_seconds": facts["seconds"]})
    if event != "epoch":
        return None
    values = {name: facts[name] for name in NUMBERS if facts[name] is not None}
    part = f" part {facts['part']}" if facts["parts"] > 1 else ""
    return Scalars(_name(facts["title"] + part), facts["epoch"], values)


def _name(title: str) -> str:
    """A cell's name in the letters that are allowed; "/" would part it."""
    return re.sub(r"[^\w.-]+", "_", title)


def tensorboard(folder: Path) -> Backend:
    """Return the writer of TensorBoard's event files in a folder.

    Raises:
      UserError: it cannot be written.
    """
    from tensorboardX import SummaryWriter

    try:
        writer = SummaryWriter(str(folder), flush_secs=10)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error

    def write(found: Scalars) -> None:
        for name, value in found.values.items():
            writer.add_scalar(f"{found.cell}/{name}", value, found.step)

    return Backend(write, writer.close)


def wandb(name: str, folder: Path | None, about: dict[str, Any]) -> Backend:
    """Return a run of Weights & Biases; project, mode and the rest are those of its own environment variables.

    Args:
      name: of the run.
      folder: where its files lie; None, or where the environment's WANDB_DIR says otherwise: as it decides itself.
      about: the run's configuration.

    Raises:
      UserError: it does not begin: nobody is logged in, say.
    """
    import wandb as package

    where: dict[str, Any] = {} if folder is None or "WANDB_DIR" in os.environ else {"dir": str(folder)}
    if where:
        os.makedirs(where["dir"], exist_ok=True)
    try:
        run = package.init(
            project=os.environ.get("WANDB_PROJECT", "bdjax"),
            name=name,
            config=about,
            settings=package.Settings(console="off"),  # its lines would come between ours
            **where,
        )
    except Exception as error:
        raise UserError(f"Weights & Biases does not begin: {first_line(error)}") from error
    begun = set()

    def write(found: Scalars) -> None:
        epoch = f"{found.cell}/epoch"
        if found.cell not in begun:  # the axis of a cell's curves is its epoch, not the number of calls
            begun.add(found.cell)
            run.define_metric(epoch, hidden=True)
            run.define_metric(f"{found.cell}/*", step_metric=epoch)
        run.log({epoch: found.step, **{f"{found.cell}/{name}": value for name, value in found.values.items()}})

    return Backend(write, run.finish)


def begun(name: str, out: Location, log: str, about: dict[str, Any]) -> Tracker:
    """Return a tracker that listens.

    Args:
      name: of :data:`PACKAGES`.
      out: folder of results.
      log: name of the run's log.
      about: what is known of the run.

    Raises:
      UserError: it does not begin.
    """
    folder = out / "logs" if isinstance(out, Path) else None
    if name == "tensorboard":
        assert folder is not None  # else it was refused
        return Tracker(name, tensorboard(folder / "tensorboard" / log))
    return Tracker(name, wandb(log, folder, about))
