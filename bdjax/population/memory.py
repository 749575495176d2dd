"""What a population needs of a device's memory, and the chunk that fits."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError
from bdjax.population.execute import compiled
from bdjax.population.execution import Execution, adapt
from bdjax.population.stacks import size, take
from bdjax.types import Array, Model

MEMORY_SHARE = 0.8  # of a device's memory that a population may fill


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
        program = compiled(function, True, 1, len(shared)).lower(take(stacked, np.zeros(n, np.int32)), *shared).compile()  # type: ignore[attr-defined]
        return program_bytes(program)

    one, two = bytes_of(1), bytes_of(2)
    return Footprint(max(2 * one - two, 0), max(two - one, 1))


def program_bytes(program: Any) -> int:
    """Return the device bytes that a compiled program needs at once: arguments, results and temporaries.

    Raises:
      UserError: the compiler gives no analysis.
    """
    analysis = program.memory_analysis()
    if analysis is None:
        raise UserError(f"the compiler of platform {jax.default_backend()!r} gives no memory analysis; set --chunk")
    return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes


def device_memory() -> int:
    """Return the bytes a population may fill: the device's limit, or a CPU's physical memory, times :data:`MEMORY_SHARE`."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    limit = stats["bytes_limit"] if stats else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(limit * MEMORY_SHARE)


def fit(
    build: Callable[[Model], Callable[..., Any]], model: Model, stacked: Any, shared: tuple[Any, ...], execution: Execution
) -> Execution:
    """Return ``execution`` with a chunk that fits memory; an explicit chunk stays as it is.

    Raises:
      UserError: not even one member fits.
    """
    if execution.chunk or execution.strategy == "sequential":
        return execution
    need, free = footprint(build, model, stacked, shared, execution), device_memory()
    each = (free - need.fixed) // need.per_member
    if each < 1:
        raise UserError(f"one member needs {(need.fixed + need.per_member) / 2**30:.1f} GiB; {free / 2**30:.1f} GiB may be used")
    return execution._replace(chunk=min(int(each) * execution.devices, size(stacked)))


def activation_bytes(model: Model, batch: int) -> int:
    """Return the bytes that one member's forward pass keeps for its gradient, before the compiler saves any."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *model.spec.image_shape), jnp.float32)

    def kept(variables: Any, images: Array) -> Any:
        def loss(params: Any) -> Array:
            out = model.apply({**variables, "params": params}, images, train=True, key=jax.random.key(0))
            return jnp.mean(out.logits)

        return jax.vjp(loss, variables["params"])[1]

    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(kept, variables, images)))
