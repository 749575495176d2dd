"""Devices that are not here: what is known of them, and their own compilers, which run on any x86-64 Linux machine.

A TPU's compiler is the wheel ``libtpu``. It compiles exactly what the device would run, says how much memory that needs, and
carries its own estimate of the cycles of every instruction (:mod:`bdjax.population.estimated`).
"""

import functools
import importlib.util
import os
import re
from typing import Any, NamedTuple

from bdjax.errors import UserError, choose

INSTALL = "pip install libtpu"


class Chip(NamedTuple):
    """A kind of device, as JAX counts devices, from the makers' data sheets."""

    topology: str  # the smallest the compiler knows
    accelerator: str  # what a machine of that topology is called
    memory: int  # bytes of a device
    peak: float  # bf16 FLOP/s of a device
    per_cycle: int  # bf16 FLOP that its matrix units do in a cycle; the clock is peak / per_cycle
    cores: int  # that the number in the name of a slice counts, of a device


# What the matrix units do in a cycle was checked with the compiler: a product of two 8192 x 8192 bf16 matrices takes 86 to 93 % of
# it (v4 and v5e: 131,072; v5p: 262,144; v6e: 70 % of 524,288).
TPUS = {
    "v4": Chip("v4:2x2x1", "v4-8", 17_200_000_000, 1.375e14, 131_072, 1),
    "v5e": Chip("v5e:2x2", "v5litepod-4", 17_200_000_000, 1.97e14, 131_072, 1),
    "v5p": Chip("v5p:2x2x1", "v5p-8", 103_000_000_000, 4.59e14, 262_144, 2),
    "v6e": Chip("v6e:2x2", "v6e-4", 34_400_000_000, 9.2e14, 524_288, 1),
}
PLATFORMS = ("tpu",)


class Target(NamedTuple):
    """Some devices of one kind."""

    name: str  # as it was given
    platform: str
    kind: str
    devices: int

    @property
    def chip(self) -> Chip:
        """What is known of one device."""
        return TPUS[self.kind]

    @property
    def clock(self) -> float:
        """Cycles of a second."""
        return self.chip.peak / self.chip.per_cycle


def parse(text: str) -> Target:
    """A target from its text, ``platform:kind-size``; the size is that in the name of a slice: of chips, or (v4, v5p) of cores.

    Raises:
      UserError: a platform, a kind or a size that is not known.
    """
    found = re.fullmatch(r"([a-z]+):([a-z0-9]+)-([0-9]+)", text)
    if not found:
        raise UserError(f"a target is platform:kind-size, as in tpu:v5e-8; given {text!r}")
    platform, kind, size = found[1], found[2], int(found[3])
    choose("target platform", platform, PLATFORMS)
    choose("TPU kind", kind, tuple(TPUS))
    cores = TPUS[kind].cores
    if size < cores or size % cores:
        raise UserError(f"the size of a {kind} counts {cores} cores of each device; given {size}")
    return Target(text, platform, kind, size // cores)


@functools.lru_cache(maxsize=8)
def device(kind: str) -> Any:
    """The first device of the smallest topology of a kind, for the shardings of what is compiled for it."""
    return topology(kind)[0]


@functools.lru_cache(maxsize=8)
def topology(kind: str, shape: str | None = None) -> tuple[Any, ...]:
    """The devices of a topology, by the compiler; ``shape`` is one that it knows ("v5e:4x4"), None = the smallest of the kind.

    Raises:
      UserError: the compiler is not installed.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"the compiler of TPUs is not installed; {INSTALL}")
    chip = TPUS[kind]
    given = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": chip.accelerator,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else processes at the same time fail on a lock file
    }
    for name, value in given.items():
        os.environ.setdefault(name, value)
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=shape or chip.topology).devices)
