"""What a worker takes of a machine of a cluster, and how many workers a machine has room for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdjax.data.room import size_text
from bdjax.population.chips import GPUS, TPUS, Chip
from bdjax.population.memory import MEMORY_SHARE
from bdjax.sweep.need import Need

CPUS = 2  # of a worker on machines without accelerators
_TYPE = "accelerator_type:"  # how Ray names the kind of a machine's accelerators among its resources

_VARIED = ("a100", "v4")  # of which there are several, or which JAX may count in halves

Machine = Mapping[str, float]  # amounts by resource


class Share(NamedTuple):
    """What a worker takes."""

    kind: str  # "GPU", "TPU" or "CPU"
    amount: float  # of them
    memory: int = 0  # bytes of the machine's; 0 = not counted, as the accelerators decide
    cells: tuple[int, ...] | None = None  # numbers of the training cells that fit; None = all

    def options(self) -> dict[str, Any]:
        """The same as Ray's options of a task."""
        if self.kind == "CPU":
            return {"num_cpus": self.amount, **({"memory": self.memory} if self.memory else {})}
        return {"num_gpus": self.amount} if self.kind == "GPU" else {"resources": {self.kind: self.amount}}

    def __str__(self) -> str:
        return f"{self.amount:g} {self.kind}" + (f" and {size_text(self.memory)} of memory" if self.memory else "")


def kind_of(machines: Sequence[Machine]) -> str | None:
    """What workers compute on: accelerators where any machine has one; None where there is nothing."""
    there = (kind for kind in ("GPU", "TPU", "CPU") if any(machine.get(kind, 0) >= 1 for machine in machines))
    return next(there, None)


def largest(machines: Sequence[Machine]) -> int:
    """Bytes of memory of the machine that has most, of those that have CPUs to work on."""
    return max((int(machine.get("memory", 0)) for machine in machines if machine.get("CPU", 0) >= 1), default=0)


def shares(machines: Sequence[Machine], kind: str, needs: Sequence[Need], most: int) -> Counter[Share]:
    """How many workers with which shares machines have room for.

    On CPUs the memory decides as well as the cores: a worker gets the cells that fit its machine, and takes what the largest of
    them needs with all members at once, or the whole memory where these do not fit.

    Args:
      machines: of the cluster.
      kind: what is computed on.
      needs: of the training cells.
      most: bytes of the largest machine; a cell that needs more is tried there.
    """
    found: Counter[Share] = Counter()
    for machine in machines:
        share, count = _share(machine, kind, needs, most)
        if count:
            found[share] += count
    return found


def _share(machine: Machine, kind: str, needs: Sequence[Need], most: int) -> tuple[Share, int]:
    if kind != "CPU":
        return Share(kind, 1), int(machine.get(kind, 0))
    cpus, memory = machine.get("CPU", 0), int(machine.get("memory", 0))
    fitting = tuple(i for i, need in enumerate(needs) if min(need.least, most) <= memory)
    each = min(CPUS, cpus)
    if each < 1 or not fitting:
        return Share(kind, each), 0
    taken = max(min(needs[i].most, memory) for i in fitting)
    count = min(cpus // each, memory // taken) if taken else cpus // each  # Ray was told of no memory: nothing is counted
    return Share(kind, each, taken, None if len(fitting) == len(needs) else fitting), int(count)


def warnings(machines: Sequence[Machine], kind: str, needs: Sequence[Need]) -> list[str]:
    """A line where by the estimate no machine has the memory for a cell, to be said before anything starts."""
    if kind == "CPU":
        bound, what = largest(machines), "the largest machine"
        large = {need.title: need.least for need in needs if need.least > bound}
    else:
        chips = [_chip(machine, kind) for machine in machines if machine.get(kind, 0) >= 1]
        if any(chip is None for chip in chips):  # nothing is known of its memory
            return []
        bound, what = max(int(chip.memory * MEMORY_SHARE) for chip in chips if chip), f"the largest {kind}"
        large = {need.title: need.device for need in needs if need.device > bound}
    if not large:
        return []
    name, size = max(large.items(), key=lambda item: item[1])
    others = f" and {len(large) - 1} more" if len(large) > 1 else ""
    return [
        f"by the estimate {name}{others} need{'' if others else 's'} up to {size_text(size)} with one member at a time, of which "
        f"{what} of the cluster has {size_text(bound)}: tried there all the same; a smaller --batch or --width needs less"
    ]


def _chip(machine: Machine, kind: str) -> Chip | None:
    """The accelerator of a machine; None where Ray does not say which, or its memory is not known here."""
    for name in machine:
        if name.startswith(_TYPE):
            called = name.removeprefix(_TYPE).lower().removeprefix("tpu-").replace("v5litepod", "v5e")
            return None if called in _VARIED else (GPUS if kind == "GPU" else TPUS).get(called)
    return None
