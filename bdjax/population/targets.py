"""Devices that are not here: their own compilers run on any x86-64 Linux machine.

A TPU's compiler is the wheel ``libtpu``, a GPU's comes with JAX's plug-in for CUDA. They compile exactly what the device would
run and say how much memory that needs; a TPU's carries its own estimate of the cycles of every instruction
(:mod:`bdjax.population.estimated`).
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from bdjax.errors import UserError, choose
from bdjax.population.chips import CHIPS, TPUS, Chip

WHEELS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}  # any of them
INSTALL = {
    "tpu": "pip install libtpu",
    "cuda": "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 nvidia-nvshmem-cu12",
}


class Target(NamedTuple):
    """Some devices of one kind."""

    name: str  # as it was given
    platform: str
    kind: str
    devices: int

    @property
    def chip(self) -> Chip:
        """What is known of one device."""
        return CHIPS[self.platform][self.kind]

    @property
    def sharding(self) -> Any:
        """Where the arguments of a program are that is compiled for one device."""
        if self.platform == "tpu":
            return SingleDeviceSharding(topology(self.kind)[0])
        return NamedSharding(Mesh(np.array([_gpu(self.kind)]), ("one",)), PartitionSpec())


def parse(text: str) -> Target:
    """A target from its text, ``platform:kind-number`` or ``platform:kind``, which is one device.

    The number is that in the name of a TPU slice, of chips or (v4, v5p) of cores, or the number of GPUs.

    Raises:
      UserError: a platform, a kind or a number that is not known.
    """
    found = re.fullmatch(r"([a-z]+):([a-z0-9]+)(?:-([0-9]+))?", text)
    if not found:
        raise UserError(f"hardware is written platform:kind-number, as in tpu:v5e-8 or cuda:h200-8; given {text!r}")
    platform, kind = found[1], found[2]
    choose("platform of hardware", platform, CHIPS)
    choose(f"kind of {platform} devices", kind, CHIPS[platform])
    cores = CHIPS[platform][kind].cores
    size = int(found[3]) if found[3] else cores
    if size < cores or size % cores:
        counts = "devices" if cores == 1 else f"cores, {cores} of each device"
        raise UserError(f"the number behind {kind} counts {counts}, and is at least {cores}; given {size}")
    return Target(text, platform, kind, size // cores)


def required(platform: str) -> None:
    """Raise UserError where the compiler of a platform is not installed."""
    if not any(importlib.util.find_spec(name) for name in WHEELS[platform]):
        names = {"tpu": "TPUs", "cuda": "CUDA devices"}
        raise UserError(f"the compiler of {names[platform]} is not installed; install it with: {INSTALL[platform]}")


def version(platform: str) -> str:
    """The version of a platform's compiler; raises UserError where it is not installed."""
    required(platform)
    for name in WHEELS[platform]:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{WHEELS[platform][0]}, version not known"


@functools.lru_cache(maxsize=8)
def topology(kind: str, shape: str | None = None) -> tuple[Any, ...]:
    """The devices of a TPU topology, by the compiler; ``shape`` is one that it knows ("v5e:4x4"), None = the kind's smallest.

    Raises:
      UserError: the compiler is not installed.
    """
    from jax.experimental import topologies

    required("tpu")
    chip = TPUS[kind]
    given = {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": chip.machine,
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else processes at the same time fail on a lock file
    }
    os.environ.update({name: os.environ.get(name, value) for name, value in given.items()})
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=shape or chip.compiler).devices)


def slice_of(kind: str, devices: int) -> tuple[Any, ...]:
    """The devices of the slice of a kind that has so many.

    Raises:
      UserError: there is none, or the compiler is not installed.
    """
    flat, cubic = ("2x2", "2x4", "4x4"), ("2x2x1", "2x2x2", "2x2x4")
    for shape in cubic if TPUS[kind].compiler.count("x") == 2 else flat:
        found = topology(kind, f"{kind}:{shape}")
        if len(found) == devices:
            return found
    raise UserError(f"no slice of {kind} of at most 16 chips has {devices} devices")


@functools.lru_cache(maxsize=8)
def _gpu(kind: str) -> Any:
    from jax.experimental import topologies

    required("cuda")
    found = topologies.get_topology_desc(platform="cuda", target_config=CHIPS["cuda"][kind].compiler, topology="1x1x1")
    return found.devices[0]


def mesh(devices: tuple[Any, ...]) -> Mesh:
    """A mesh over devices of a topology along which members are spread."""
    return Mesh(np.array(devices), ("members",), axis_types=(jax.sharding.AxisType.Auto,))
