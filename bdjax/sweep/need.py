"""What memory the cells of a grid need, estimated from the shapes of their arrays: nothing is compiled and no data are read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdjax.population import Execution, activation_bytes, at_once
from bdjax.sweep import expand
from bdjax.sweep.execution import training_batch
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.sweep.run import choices_of, sizes_of
from bdjax.sweep.summary import member_bytes, title

PROCESS = 2**30  # bytes of Python, JAX and its compiler, measured on a CPU


class Need(NamedTuple):
    """What a training cell and the defense cells that read it are taken to need."""

    title: str
    images: int  # bytes of the images on the device, with their triggered copies
    member: int  # bytes of a member that trains: parameters, momentum, and what the forward pass keeps for the gradient
    fewest: int  # members at once, where memory is scarce
    all: int  # members at once, where there is room

    @property
    def device(self) -> int:
        """Bytes on an accelerator with one member on it."""
        return self.images + self.member

    @property
    def least(self) -> int:
        """Bytes of a machine that computes on its CPU, with as few members at once as can be."""
        return PROCESS + self.images * 3 // 2 + self.fewest * self.member  # the host keeps the images as they were read, too

    @property
    def most(self) -> int:
        """The same with as many members at once as there are."""
        return self.least + (self.all - self.fewest) * self.member


def needs(grid: Grid, branches: Sequence[Branch], executions: Sequence[Execution], data_dir: str | None) -> list[Need]:
    """Estimate what each branch needs; an execution for each says how many members run at once."""
    members, known, found = len(grid.seeds) * len(grid.poison_ratio), {}, []
    for branch, execution in zip(branches, executions, strict=True):
        rows = sizes_of(grid, branch.train.dataset, data_dir)
        batch = training_batch(branch.attack, rows[0])
        if (work := (branch.train.dataset, branch.train.model, batch)) not in known:  # attacks share it
            known[work] = member_bytes(branch.model) + activation_bytes(branch.model, batch)
        images = 2 * sum(rows) * (math.prod(branch.model.spec.image_shape) + 4)  # 4 of the label
        together = at_once(execution, members)
        fewest = together if execution.chunk or execution.strategy == "sequential" else execution.devices
        found.append(Need(title(branch.train), images, known[work], fewest, together))
    return found


def needs_on(accelerator: bool, grid: Grid, options: Mapping[str, Any]) -> list[Need]:
    """Estimate what each branch of a sweep needs on a machine of a kind.

    Args:
      accelerator: whether it computes on an accelerator, of which this machine need have none.
      grid: what is run.
      options: arguments of :func:`bdjax.sweep.run.run`.

    Raises:
      UserError: a mistake in the grid, or an execution that cannot run here.
    """
    branches = expand.select(expand.cells(grid), options.get("only") or {}, options.get("limit"))
    executions = [Execution("sequential")] * len(branches)  # of which only the memory of one member is asked
    if not accelerator:
        given = options.get("execution")
        choices = choices_of(branches, grid, given, tuned=options.get("tuned", True), data_dir=options.get("data_dir"))
        executions = [choice.execution for choice in choices]
    return needs(grid, branches, executions, options.get("data_dir"))
