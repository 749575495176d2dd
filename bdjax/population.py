"""The only place that knows members are many: strategies, chunks, devices.

A function of one member is handed to :func:`run` with a stack of members. How it is executed - the *strategy* (batched, in
chunks, unrolled, one by one), the *lowering* of convolutions and the *loop* of steps - is an :class:`Execution`, chosen per
platform by measurement (``benchmarks/population_scaling.py``) and invisible to attacks and defenses.
"""

import functools
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bdjax.convolution import LOWERINGS
from bdjax.errors import UserError, choose
from bdjax.keys import member_key, root
from bdjax.training import poison_count
from bdjax.types import Loop, Member, Model

STRATEGIES = ("vmap", "map", "unrolled", "loop")
LOOPS = ("scan", "dispatch")
MEMORY_SHARE = 0.8  # of a device's memory that a population may fill


class Execution(NamedTuple):
    """How a population runs (static, recorded with every result)."""

    strategy: str = "vmap"  # "vmap" all at once | "map" in chunks | "unrolled" every step repeated per member | "loop" one by one
    lowering: str = "native"  # of convolutions
    loop: str = "scan"  # of steps
    unroll: int = 1  # steps per trip of a loop
    chunk: int = 0  # members at once; 0 = all that fit (see `fit`)
    devices: int = 1  # local devices that share the members


# Measured on two CPU cores by benchmarks/population_scaling.py, tables in benchmarks/results/population_scaling_*.md: more than 8
# members at once gain little. Accelerators are not measured yet: a compiled scan, as many members as fit, on all local devices.
MEASURED = {
    ("cpu", "cnn"): Execution("vmap", "patches", "scan", chunk=8),
    ("cpu", ""): Execution("vmap", "unrolled", "dispatch", chunk=8),
    ("", ""): Execution("vmap", "unrolled", "scan"),
}


def default_execution(platform: str | None = None, model: str = "") -> Execution:
    """The default of a platform ("cpu", "gpu", "tpu"; None = the one in use) and a model's name ("" = any other model)."""
    platform = platform or jax.default_backend()
    for entry in ((platform, model), (platform, ""), ("", "")):
        if entry in MEASURED:
            return MEASURED[entry] if platform == "cpu" else MEASURED[entry]._replace(devices=jax.local_device_count())
    raise AssertionError("the last entry fits everything")


def resolve(execution: Execution | Mapping[str, Any] | None, model: str) -> Execution:
    """The execution of a model: a whole one as it is, single fields on top of the default, None = the default.

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
    if not 1 <= execution.devices <= jax.local_device_count():
        raise UserError(
            f"devices must lie in 1 … {jax.local_device_count()}, the devices of this machine; given {execution.devices}"
        )
    if execution.devices > 1 and (execution.loop != "scan" or execution.strategy == "loop"):
        raise UserError("several devices need loop 'scan' and a strategy other than 'loop'; given " + repr(execution))
    return execution


def adapt(model: Model, execution: Execution) -> Model:
    """The same network with the lowering and the loop of ``execution``."""
    members = "unrolled" if execution.strategy == "unrolled" else "batched"
    return model.rebuild(lowering=execution.lowering, loop=Loop(execution.loop, execution.unroll, members))


def members(
    seeds: Sequence[int], ratios: Sequence[float], rows: int, *, root_number: int = 0, spc: int = 0, hyper: Any = ()
) -> tuple[Member, list[tuple[int, float]]]:
    """All seeds x ratios, seeds outermost, stacked on axis 0.

    Args:
      seeds: non-negative integers; a member's key comes from its seed alone.
      ratios: poison ratios in [0, 1] of all training rows.
      rows: number of training rows.
      root_number: root of all keys.
      spc: clean samples per class.
      hyper: pytree of scalars, the same for all.

    Returns:
      The stacked members and their (seed, ratio).
    """
    points = list(itertools.product(seeds, ratios))
    keys = jax.vmap(member_key, in_axes=(None, 0))(root(root_number), jnp.asarray([seed for seed, _ in points], jnp.uint32))
    ratio = jnp.asarray([r for _, r in points], jnp.float32)
    count = jnp.asarray([poison_count(r, rows) for _, r in points], jnp.int32)
    repeated = jax.tree.map(lambda x: jnp.full((len(points),), x), hyper)
    return Member(keys, ratio, count, jnp.full((len(points),), spc, jnp.int32), repeated), points


def size(stacked: Any) -> int:
    """Number of members of a stack."""
    return jax.tree.leaves(stacked)[0].shape[0]


def take(stacked: Any, index: Sequence[int] | np.ndarray) -> Any:
    """The members at ``index`` (repetition allowed: that is how a hyper-parameter axis multiplies trained members)."""
    rows = jnp.asarray(np.asarray(index, np.int32))
    return jax.tree.map(lambda x: x[rows], stacked)


def concatenate(stacks: Sequence[Any]) -> Any:
    """Several stacks of members as one."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)


def run(function: Callable[..., Any], stacked: Any, shared: tuple[Any, ...] = (), execution: Execution | None = None) -> Any:
    """Run a function of one member for all members.

    If the device runs out of memory the chunk is halved, which is said on stderr, and what was finished is kept.

    Args:
      function: ``function(one, *shared) -> pytree of arrays``, built for a model adapted to ``execution``.
      stacked: pytree with the members on axis 0 of every leaf.
      shared: what all members read.
      execution: how; None = :func:`default_execution`.

    Returns:
      The results, stacked on axis 0 in the members' order.
    """
    execution = check(execution or default_execution())
    total, done = size(stacked), 0
    chunk = 1 if execution.strategy == "loop" else min(execution.chunk or total, total)
    if execution.devices > 1:
        chunk = -(-chunk // execution.devices) * execution.devices
    results: list[Any] = []
    while done < total:
        index = np.minimum(
            np.arange(done, done + chunk), total - 1
        )  # the last chunk is filled up, so that it compiles nothing new
        try:
            out = _call(function, take(stacked, index), shared, execution)
            jax.block_until_ready(out)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or chunk <= execution.devices:
                raise
            chunk = max(chunk // 2 // execution.devices, 1) * execution.devices
            print(f"bdjax: out of memory; going on with {chunk} members at once", file=sys.stderr)
            continue
        valid = min(chunk, total - done)
        results.append(out if valid == chunk else jax.tree.map(lambda x, valid=valid: x[:valid], out))
        done += valid
    return concatenate(results)


def _call(function: Callable[..., Any], stacked: Any, shared: tuple[Any, ...], execution: Execution) -> Any:
    if execution.strategy == "loop":
        one = jax.tree.map(lambda x: x[0], stacked)
        out = (_compiled(function, False, 1, len(shared)) if execution.loop == "scan" else function)(one, *shared)
        return jax.tree.map(lambda x: x[None], out)
    if execution.loop == "dispatch":
        return jax.vmap(function, in_axes=(0, *(None,) * len(shared)))(stacked, *shared)
    if execution.devices > 1:
        mesh = _mesh(execution.devices)
        stacked = jax.device_put(stacked, NamedSharding(mesh, PartitionSpec("members")))
        shared = jax.device_put(shared, NamedSharding(mesh, PartitionSpec()))
    return _compiled(function, True, execution.devices, len(shared))(stacked, *shared)


@functools.lru_cache(maxsize=8)
def _mesh(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("members",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:devices])


@functools.lru_cache(maxsize=32)
def _compiled(function: Callable[..., Any], batched: bool, devices: int, arguments: int) -> Callable[..., Any]:
    """The jitted program; cached on the function, so that chunks and repeated calls compile once."""
    if batched:
        function = jax.vmap(function, in_axes=(0, *(None,) * arguments))
    if devices > 1:
        # shard_map, not a sharded input of plain jit: the latter gathers all members inside every step.
        along, everywhere = PartitionSpec("members"), PartitionSpec()
        function = jax.shard_map(
            function, mesh=_mesh(devices), in_specs=(along, *(everywhere,) * arguments), out_specs=along, check_vma=False
        )
    return jax.jit(function)


class Footprint(NamedTuple):
    """Device bytes of a population program, from the compiler's memory analysis."""

    fixed: int
    per_member: int


def footprint(
    build: Callable[[Model], Callable[..., Any]], model: Model, stacked: Any, shared: tuple[Any, ...], execution: Execution
) -> Footprint:
    """Ask the compiler what one and two members need, as one compiled scan (dispatched steps need no more).

    Args:
      build: ``build(model) -> function`` of one member.
      model: network, not yet adapted.
      stacked: at least one member.
      shared: what all members read.
      execution: its lowering is the one analysed.
    """
    function = build(adapt(model, execution._replace(loop="scan", unroll=1)))

    def bytes_of(n: int) -> int:
        program = _compiled(function, True, 1, len(shared)).lower(take(stacked, np.zeros(n, np.int32)), *shared).compile()  # type: ignore[attr-defined]
        analysis = program.memory_analysis()
        if analysis is None:
            raise UserError(f"the compiler of platform {jax.default_backend()!r} gives no memory analysis; set --chunk")
        return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes

    one, two = bytes_of(1), bytes_of(2)
    return Footprint(max(2 * one - two, 0), max(two - one, 1))


def device_memory() -> int:
    """Bytes a population may fill: the device's limit, or a CPU's physical memory, times :data:`MEMORY_SHARE`."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    limit = stats["bytes_limit"] if stats else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(limit * MEMORY_SHARE)


def fit(
    build: Callable[[Model], Callable[..., Any]], model: Model, stacked: Any, shared: tuple[Any, ...], execution: Execution
) -> Execution:
    """``execution`` with a chunk that fits memory; an explicit chunk stays as it is.

    Raises:
      UserError: not even one member fits.
    """
    if execution.chunk or execution.strategy == "loop":
        return execution
    need, free = footprint(build, model, stacked, shared, execution), device_memory()
    each = (free - need.fixed) // need.per_member
    if each < 1:
        raise UserError(f"one member needs {(need.fixed + need.per_member) / 2**30:.1f} GiB; {free / 2**30:.1f} GiB may be used")
    return execution._replace(chunk=min(int(each) * execution.devices, size(stacked)))
