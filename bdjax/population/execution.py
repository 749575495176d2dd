"""How a population runs: strategy, lowering, loop, chunk, devices; the measured defaults."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from bdjax.errors import UserError, choose
from bdjax.nn.convolution import LOWERINGS
from bdjax.population import compiler_options, hosts
from bdjax.types import Loop, Model

STRATEGIES = ("vmap", "map", "unrolled", "sequential")
LOOPS = ("scan", "dispatch")


class Execution(NamedTuple):
    """How a population runs (static, recorded with every result)."""

    strategy: str = "vmap"
    # "vmap": all at once | "map": in chunks | "unrolled": every step repeated per member | "sequential": one member after another
    lowering: str = "native"  # of convolutions
    loop: str = "scan"  # of steps
    unroll: int = 1  # steps per trip of a loop
    chunk: int = 0  # members at once; 0 = all that fit (see `fit`)
    devices: int = 1  # that share the members: of this machine, or all of several processes (see `hosts`)


# Measured on two CPU cores (benchmarks/results/population_scaling_cpu_*.md): one member's whole training in one compiled program,
# one member after another, is as fast as any population in one program, and compiles once for any number of members.
CPU = Execution("sequential", "mixed", "scan")

# A TPU's compiler estimates that members side by side take fewer cycles than one at a time where channels are few, and more where
# the first stage has 64 (benchmarks/results/accelerators_v5e.md). GPUs are not measured yet: there the rule is the same, with
# convolutions repeated per member, as the gradient of a grouped one is reported to be slow (jax-ml/jax#13800).
WIDE = 64  # channels of the first stage from which members run one after another
NARROW = {"tpu": Execution("vmap", "native", "scan"), "gpu": Execution("vmap", "unrolled", "scan")}
APART = Execution("sequential", "native", "scan")


def default_execution(platform: str | None = None, model: Model | str = "") -> Execution:
    """Return the default of a platform for a network.

    Args:
      platform: "cpu", "gpu", "tpu"; None = the one in use. Any other has the default of a GPU.
      model: the network, or its name, which stands for a narrow one.
    """
    platform = platform or jax.default_backend()
    if platform == "cpu":
        found = CPU
    else:
        width = 0 if isinstance(model, str) else model.width
        found = APART if width >= WIDE else NARROW.get(platform, NARROW["gpu"])
    if hosts.is_multiprocess():
        return found._replace(devices=jax.device_count())
    return found if platform == "cpu" else found._replace(devices=jax.local_device_count())


def recorded_execution(fields: Mapping[str, Any]) -> Execution:
    """Return the execution that a record or a cache holds; earlier versions called the strategy "sequential" "loop".

    Raises:
      TypeError: a field that no version had.
    """
    execution = Execution(**fields)
    return execution._replace(strategy="sequential") if execution.strategy == "loop" else execution


def resolve(execution: Execution | Mapping[str, Any] | None, model: Model | str) -> Execution:
    """Return the execution of a model: a whole one as it is, single fields on top of the default, None = the default.

    Raises:
      UserError: it cannot run here.
    """
    if isinstance(execution, Execution):
        return check(execution)
    return check(default_execution(model=model)._replace(**(execution or {})))


def check(execution: Execution) -> Execution:
    """Return ``execution`` if it can run here.

    Raises:
      UserError: an unknown name, a negative number, more devices than there are, or dispatched steps over several devices.
    """
    choose("strategy", execution.strategy, STRATEGIES)
    choose("lowering", execution.lowering, LOWERINGS)
    choose("loop", execution.loop, LOOPS)
    if execution.unroll < 1 or execution.chunk < 0:
        raise UserError(f"unroll must be at least 1 and chunk at least 0; given {execution.unroll} and {execution.chunk}")
    everywhere = jax.device_count()
    if hosts.is_multiprocess() and execution.devices not in (1, everywhere):
        raise UserError(f"several processes share members over all of their {everywhere} devices; given {execution.devices}")
    if not hosts.is_multiprocess() and not 1 <= execution.devices <= jax.local_device_count():
        raise UserError(
            f"devices must lie in 1 … {jax.local_device_count()}, the devices of this machine; given {execution.devices}"
        )
    if execution.devices > 1 and execution.loop != "scan":
        raise UserError("several devices need loop 'scan'; given " + repr(execution))
    return execution


def adapt(model: Model, execution: Execution) -> Model:
    """Return the same network with the lowering and the loop of ``execution``."""
    members = "unrolled" if execution.strategy == "unrolled" else "batched"
    loop = Loop(execution.loop, execution.unroll, members, tuple(compiler_options.options().items()))
    return model.rebuild(lowering=execution.lowering, loop=loop)
