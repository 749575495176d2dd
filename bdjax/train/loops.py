"""Loops of steps, executed as one compiled scan or as a Python loop over a compiled step.

Training and defenses are written once, for one member, with :func:`steps` and :func:`epochs`; how a loop runs is the static
``Loop`` that :mod:`bdjax.population` chose. On a CPU JAX's own convolution gradients are far slower inside a compiled loop than
dispatched (:mod:`bdjax.nn.lowerings` says why, and what is as fast in both); elsewhere the scan saves the dispatches.

In "dispatch" mode the code around the loops runs un-jitted (possibly under ``vmap``), so it must work both ways: no host value
of a traced array, no Python branch on one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import jaxpr_as_fun

from bdjax.train import cuts
from bdjax.train.cuts import Part
from bdjax.types import Array, Int, Loop

BLOCK = 50  # steps between which a population cannot be kept


def _map(f: Callable[..., Any], *trees: Any) -> Any:
    return jax.tree.map(f, *trees)


def _pick(tree: Any, batched: Any, member: int) -> Any:
    """One member of a pytree in which the leaves marked in ``batched`` have an axis of members."""
    return _map(lambda leaf, has: leaf[member] if has else leaf, tree, batched)


def _together(outputs: list[Any]) -> tuple[Any, Any]:
    stacked = _map(lambda *leaves: jnp.stack(leaves), *outputs)
    return stacked, _map(lambda _: True, stacked)


def _per_member(body: Callable[..., Any]) -> Callable[..., Any]:
    """``body`` such that ``vmap`` repeats it for every member instead of batching its operations."""
    repeated = jax.custom_batching.custom_vmap(body)

    @repeated.def_vmap
    def rule(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        return _together([body(*_pick(list(args), batched, i)) for i in range(size)])

    return repeated


@functools.lru_cache(maxsize=256)
def _member_body(body: Callable[..., Any], members: str) -> Callable[..., Any]:
    if members == "batched":
        return body
    if members == "unrolled":
        return _per_member(body)
    raise ValueError(f"Loop.members must be 'batched' or 'unrolled', not {members!r}")


@functools.lru_cache(maxsize=256)
def _apart(body: Callable[..., Any], unroll: int) -> Callable[..., Any]:
    """The scan of :func:`steps`, in which ``vmap`` repeats every step for every member and keeps their carries apart.

    The members are taken out of their stack once before the loop and put together once after it, not in every step, in which an
    accelerator would move all their parameters twice.
    """

    def scan(shared: Any, carry: Any, xs: Any) -> Any:
        return lax.scan(lambda c, x: (body(shared, c, x), None), carry, xs, unroll=unroll)[0]

    scanned = jax.custom_batching.custom_vmap(scan)

    @scanned.def_vmap
    def rule(size: int, batched: Any, shared: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
        def split(index: int) -> list[Any]:
            return [_pick((shared, carry, xs)[index], batched[index], i) for i in range(size)]

        inputs, each = split(0), split(2)

        def step(carries: list[Any], x: list[Any]) -> tuple[list[Any], None]:
            return [body(*one) for one in zip(inputs, carries, x, strict=True)], None

        return _together(lax.scan(step, split(1), each, unroll=unroll)[0])

    return scanned


@functools.lru_cache(maxsize=256)
def _dispatched(body: Callable[..., Any], trips: int, options: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    """``trips`` consecutive steps as one compiled call; the carry's buffers are reused."""

    def run(shared: Any, carry: Any, xs: Any, first: Int[Array, ""]) -> Any:
        for j in range(trips):
            carry = body(shared, carry, _map(lambda a, j=j: a[first + j], xs))
        return carry, first + trips  # the count stays on the device: the host sends nothing between two steps

    return jax.jit(run, donate_argnums=1, compiler_options=dict(options))


@jax.custom_batching.custom_vmap
def _copied(carry: Any, shared: Any) -> Any:
    return _map(jnp.copy, carry)


@_copied.def_vmap
def _copied_by_members(size: int, batched: Any, carry: Any, shared: Any) -> tuple[Any, Any]:
    # Every leaf gets the member axis at once: else the step would compile twice, first with what all members start from alike.
    full = _map(lambda a, b: jnp.copy(a) if b else jnp.broadcast_to(a, (size, *a.shape)), carry, batched[0])
    return full, _map(lambda _: True, full)


@jax.jit
def _owned(carry: Any, shared: Any) -> Any:
    """A copy of ``carry`` whose buffers may be donated, while the caller keeps its own, and a 0.

    ``shared`` is not read; if it has a member axis, the copy gets one too.
    """
    return _copied(carry, shared), jnp.int32(0)


@jax.jit
def _next(number: Int[Array, ""] | None = None) -> Int[Array, ""]:
    return jnp.int32(0) if number is None else number + 1


def steps(body: Callable[[Any, Any, Any], Any], carry: Any, xs: Any, shared: Any, loop: Loop) -> Any:
    """Apply ``body`` once for every leading index of ``xs``.

    Args:
      body: ``(shared, carry, x) -> carry``. One function object made once by a factory: its compiled form is cached on it, so
        everything traced comes in through the arguments.
      carry: pytree of arrays; ``body`` keeps its structure, shapes and dtypes.
      xs: pytree of arrays with the number of steps as leading axis.
      shared: pytree of arrays that every step reads.
      loop: how to execute.

    Returns:
      The last carry.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    carry, unroll = _map(jnp.asarray, carry), min(loop.unroll, max(count, 1))
    if loop.kind == "scan" and loop.members == "unrolled":
        return _apart(body, unroll)(shared, carry, xs)
    body = _member_body(body, loop.members)
    if loop.kind == "scan":
        return lax.scan(lambda c, x: (body(shared, c, x), None), carry, xs, unroll=unroll)[0]
    if loop.kind != "dispatch":
        raise ValueError(f"Loop.kind must be 'scan' or 'dispatch', not {loop.kind!r}")
    carry, first = _owned(carry, shared)
    unrolled = count - count % loop.unroll
    for _ in range(0, unrolled, loop.unroll):
        carry, first = _dispatched(body, loop.unroll, loop.options)(shared, carry, xs, first)
    for _ in range(unrolled, count):
        carry, first = _dispatched(body, 1, loop.options)(shared, carry, xs, first)
    return carry


def leading(body: Callable[[Any, Any, Any], Any], carry: Any, xs: Any, count: Int[Array, ""], shared: Any, loop: Loop) -> Any:
    """:func:`steps` for the first ``count`` leading indices of ``xs`` alone; those after them cost nothing.

    It is one compiled loop whatever ``loop.kind`` is, as the host does not know where it ends; it cannot be differentiated.
    """
    body = _member_body(body, loop.members)
    return lax.fori_loop(0, count, lambda i, c: body(shared, c, _map(lambda a: a[i], xs)), _map(jnp.asarray, carry))


def rounds(body: Callable[[Any, Any, Any], Any], carry: Any, xs: Any, shared: Any, loop: Loop) -> Any:
    """:func:`steps` for a loop that may take minutes: a population can be kept between blocks of up to :data:`BLOCK` steps."""
    cut = cuts.current()
    if cut is None:
        return steps(body, carry, xs, shared, loop)
    count = jax.tree.leaves(xs)[0].shape[0]
    size = max(n for n in range(1, min(count, BLOCK) + 1) if count % n == 0)
    blocks = _map(lambda x: x.reshape(count // size, size, *x.shape[1:]), xs)

    def block(carry: Any, number: Int[Array, ""]) -> tuple[Any, None]:
        return steps(body, carry, _map(lambda x: x[number], blocks), shared, loop), None

    return epochs(block, carry, count // size, loop)[0]


def epochs(body: Callable[[Any, Array], tuple[Any, Any]], carry: Any, count: int, loop: Loop) -> tuple[Any, Any]:
    """Apply ``body``, which itself calls :func:`steps`, for epochs 0 … ``count`` - 1; a population can be kept between two.

    Args:
      body: ``(carry, epoch i32[]) -> (carry, y)``.
      carry: pytree of arrays.
      count: number of epochs, at least 1.
      loop: how to execute; "dispatch" runs ``body`` un-jitted.

    Returns:
      The last carry, and the ``y`` of all epochs stacked on axis 0.
    """
    cut = cuts.current()
    if cut is not None:
        return cut.stage(_map(_strong, carry), count, lambda part: _part(body, part, count, loop))
    if loop.kind == "scan":
        return lax.scan(body, carry, jnp.arange(count, dtype=jnp.int32))
    ys, epoch = [], None
    for _ in range(count):
        epoch = _next(epoch)
        carry, y = body(carry, epoch)
        ys.append(y)
    return carry, _map(lambda *leaves: jnp.stack(leaves), *ys)


def until(going: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any, most: int) -> Any:
    """``lax.while_loop(going, body, carry)`` that ends by itself within ``most`` rounds; a population may be kept between two.

    Args:
      going: ``(carry) -> bool[]``; false once and for all when it is false.
      body: ``(carry) -> carry``.
      carry: pytree of arrays.
      most: rounds, at most.
    """
    cut = cuts.current()
    if cut is None:
        return lax.while_loop(going, body, carry)

    def advance(part: Part) -> tuple[Any, None]:
        def more(now: tuple[Any, Any]) -> Array:
            return (now[0] < part.count) & going(now[1])

        return lax.while_loop(more, lambda now: (now[0] + 1, body(now[1])), (jnp.int32(0), part.carry))[1], None

    return cut.stage(_map(_strong, carry), most, advance)[0]


def _strong(leaf: Any) -> Array:
    """An array that does not give way in its dtype, as a Python number would: else the first part would compile alone."""
    leaf = jnp.asarray(leaf)
    return lax.convert_element_type(leaf, leaf.dtype) if leaf.aval.weak_type else leaf


def _part(body: Callable[[Any, Array], tuple[Any, Any]], part: Part, count: int, loop: Loop) -> tuple[Any, Any]:
    """Some epochs: their carry, and the ``y`` of all epochs on axis 0, which is 0 for those of other parts.

    One compiled program serves every part, as first and count are traced.
    """

    def kept(record: Any, e: Any, y: Any) -> Any:
        return _map(lambda all_of, one: all_of.at[e].set(one), record, y)

    def empty(y: Any) -> Any:
        return _map(lambda one: jnp.zeros((count, *one.shape), one.dtype), y)

    if loop.kind == "scan":
        epoch, like = _traced(body, part.carry, jnp.int32(0))

        def step(e: Any, both: tuple[Any, Any]) -> tuple[Any, Any]:
            carry, y = epoch(both[0], e)
            return carry, kept(both[1], e, y)

        return lax.fori_loop(part.first, part.first + part.count, step, (part.carry, empty(like[1])))
    carry, record = part.carry, None
    for e in range(int(part.first), int(part.first) + int(part.count)):
        carry, y = body(carry, jnp.int32(e))
        record = kept(empty(y) if record is None else record, e, y)
    return carry, record


def _traced(function: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], Any]:
    """A function that is traced once, here, and what it returns, as shapes: the second call costs no second tracing."""
    program, like = jax.make_jaxpr(function, return_shape=True)(*args)
    flat, structure = jaxpr_as_fun(program), jax.tree.structure(like)

    def again(*args: Any) -> Any:
        return jax.tree.unflatten(structure, flat(*jax.tree.leaves(args)))

    return again, like


def inner(count: int, step: Callable[[Any, Any], Any], carry: Any, loop: Loop) -> Any:
    """``lax.fori_loop(0, count, step, carry)`` inside a body of :func:`steps`.

    It is written out where bodies are dispatched, as loops are slow there (:mod:`bdjax.nn.lowerings`).

    Args:
      count: number of steps, static.
      step: ``(index i32[], carry) -> carry``.
      carry: pytree of arrays.
      loop: how the body that calls this is executed.
    """
    return lax.fori_loop(0, count, step, carry, unroll=loop.kind == "dispatch" or None)


def host_callback(f: Callable[..., None], *values: Array) -> None:
    """Call the host function ``f`` with the values of the whole population, f(m …), or of the one member that runs alone.

    ``f`` is called once per call site and trip, not once per member, with NumPy arrays; it returns nothing and changes nothing.

    Args:
      f: takes as many arrays as there are ``values``.
      values: arrays of one member, of any shapes.
    """

    def on_host(*arrays: Any) -> None:
        f(*(np.array(a) for a in arrays))  # copies: the runtime may reuse the buffers afterwards

    def call(*arrays: Array) -> Array:
        jax.debug.callback(on_host, *arrays)
        return jnp.int32(0)

    once = jax.custom_batching.custom_vmap(call)

    @once.def_vmap
    def rule(size: int, batched: Any, *arrays: Array) -> tuple[Array, bool]:
        full = [a if b else jnp.broadcast_to(a, (size, *a.shape)) for a, b in zip(arrays, batched, strict=True)]
        return call(*full), False

    once(*values)
