"""Run a function of one member for all members: batched, in chunks or one by one, on one device or several."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from bdjax.population import compiler_options, hosts
from bdjax.population.execution import Execution, check, default_execution
from bdjax.population.stacks import concatenate, size, stack, take


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
    return in_chunks(lambda members, done, results: call(function, members, shared, execution), stacked, execution)


def in_chunks(
    run_chunk: Callable[[Any, int, Any], Any],
    stacked: Any,
    execution: Execution,
    chunk: int = 0,
    done: int = 0,
) -> Any:
    """Run a stack of members part by part; a chunk for which the memory is not enough is halved, which is said on stderr.

    Args:
      run_chunk: ``(members, members done, their results or ()) -> results`` of as many members as run at once.
      stacked: pytree with the members on axis 0 of every leaf.
      execution: decides how many run at once.
      chunk: how many run at once where that is known; 0 = as ``execution`` says.
      done: how many of the first members are left out.

    Returns:
      The results of the others, stacked on axis 0 in the members' order.
    """
    total = size(stacked)
    results: list[Any] = []
    chunk = chunk or at_once(execution, total)
    while done < total:
        index = np.minimum(
            np.arange(done, done + chunk), total - 1
        )  # the last chunk is filled up, so that it compiles nothing new
        try:
            out = run_chunk(take(stacked, index), done, concatenate(results) if results else ())
            jax.block_until_ready(out)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or chunk <= execution.devices or hosts.is_multiprocess():
                raise  # of several processes each would have to halve it together
            chunk = max(chunk // 2 // execution.devices, 1) * execution.devices
            print(f"bdjax: out of memory; going on with {chunk} members at once", file=sys.stderr)
            continue
        valid = min(chunk, total - done)
        results.append(out if valid == chunk else take(out, slice(valid)))
        done += valid
    return concatenate(results)


def at_once(execution: Execution, total: int) -> int:
    """Return how many of so many members run at once, over all devices; those of several devices are filled up."""
    if execution.strategy == "sequential":
        return execution.devices
    return -(-min(execution.chunk or total, total) // execution.devices) * execution.devices


def call(
    function: Callable[..., Any],
    stacked: Any,
    shared: tuple[Any, ...],
    execution: Execution,
    *,
    donate: bool = False,
    stay: bool = False,
) -> Any:
    """Run members that fit at once, with nothing to fall back on; the "sequential" strategy takes one for each device.

    With ``donate`` the result may take the buffers of ``stacked``, which is not to be used any more. With ``stay`` a result over
    the devices of several processes stays there (:func:`bdjax.population.hosts.gather`), and may be ``stacked`` of the next call.
    """
    batched = execution.strategy != "sequential"
    if execution.devices > 1:
        mesh = _mesh(execution.devices)
        stacked = hosts.spread(stacked, mesh, PartitionSpec("members"))
        shared = hosts.spread(shared, mesh, PartitionSpec())
        out = compiled(function, batched, execution.devices, len(shared), donate)(stacked, *shared)
        return out if stay else hosts.gather(out)
    if not batched:
        one = take(stacked, 0)
        out = (compiled(function, False, 1, len(shared), donate) if execution.loop == "scan" else function)(one, *shared)
        return stack([out])
    if execution.loop == "dispatch":
        return jax.vmap(function, in_axes=(0, *(None,) * len(shared)))(stacked, *shared)
    return compiled(function, True, 1, len(shared), donate)(stacked, *shared)


def local_devices(execution: Execution) -> int:
    """Return how many of the devices that share the members are this process's; callbacks come from each of them."""
    return 1 if execution.devices == 1 else len(_mesh(execution.devices).local_devices)


@functools.lru_cache(maxsize=8)
def _mesh(devices: int) -> Mesh:
    there = jax.devices() if hosts.is_multiprocess() else jax.local_devices()
    return jax.make_mesh((devices,), ("members",), axis_types=(AxisType.Auto,), devices=there[:devices])


def _of_stacks_of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    def alone(stacked: Any, *shared: Any) -> Any:
        return stack([function(take(stacked, 0), *shared)])

    return alone


@functools.lru_cache(maxsize=32)
def compiled(
    function: Callable[..., Any], batched: bool, devices: int, arguments: int, donate: bool = False
) -> Callable[..., Any]:
    """Return the jitted program; cached on the function, so that chunks and repeated calls compile once.

    With several devices it takes a stack; each device runs its members batched, or else the one that it has.
    """
    if batched:
        function = jax.vmap(function, in_axes=(0, *(None,) * arguments))
    elif devices > 1:
        function = _of_stacks_of_one(function)
    if devices > 1:
        # shard_map, not a sharded input of plain jit: the latter gathers all members inside every step.
        along, everywhere = PartitionSpec("members"), PartitionSpec()
        function = jax.shard_map(
            function, mesh=_mesh(devices), in_specs=(along, *(everywhere,) * arguments), out_specs=along, check_vma=False
        )
    return jax.jit(function, donate_argnums=0 if donate else (), compiler_options=compiler_options.options())
