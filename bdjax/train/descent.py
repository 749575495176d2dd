"""The descent that training and defenses share: one step of a network, what is counted on the way, and what freezes a member."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.train.evaluate import finite
from bdjax.train.optimisers import Optimiser
from bdjax.train.vectors import Packed, pack, pack_all, unpack_all
from bdjax.types import Array, ArrayTree, Bool, Float, Variables


class State(NamedTuple):
    """A network while it is tuned."""

    packed: dict[str, Packed]  # its variables, by collection
    memory: Packed  # the optimiser's state
    step: Array  # i32[]: batches with at least one row so far
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the step at which they did not; -1 = none
    total: Array  # f32[1 + j]: sums of the loss and of what is measured beside it in this epoch
    batches: Array  # i32[]: non-empty batches of this epoch

    @property
    def variables(self) -> Variables:
        """The network's variables."""
        return unpack_all(self.packed)


def begin(optimiser: Optimiser, variables: Variables, hyper: Any, measured: int) -> State:
    """The state before the first step.

    Args:
      optimiser: what is built from ``hyper``.
      variables: with the parameters to be tuned, of any structure, in "params".
      hyper: traced hyper-parameters.
      measured: j, how many numbers are averaged beside the loss.
    """
    counters = jnp.int32(0), jnp.bool_(True), jnp.int32(-1), jnp.zeros(1 + measured, jnp.float32), jnp.int32(0)
    packed = pack_all(variables)
    return State(packed, pack(optimiser(hyper).init(variables["params"])), *counters)


def restarted(state: State, optimiser: Optimiser, hyper: Any) -> State:
    """The same network with an optimiser that remembers nothing."""
    return state._replace(memory=pack(optimiser(hyper).init(state.variables["params"])))


def descend(
    state: State,
    optimiser: Optimiser,
    hyper: Any,
    lr: Float[Any, ""],
    gradient: ArrayTree,
    values: Float[Array, " _"],
    mask: Float[Array, " b"],
    *,
    project: Callable[[Any], Any] | None = None,
    learned: Mapping[str, Any] | None = None,
) -> State:
    """One step: p - lr direction. A batch without a row touches nothing at all; a step that is not finite freezes the network.

    Args:
      state: before the step.
      optimiser: what is built from ``hyper``.
      hyper: traced hyper-parameters.
      lr: learning rate.
      gradient: of the parameters.
      values: the loss of the batch and the j numbers measured beside it.
      mask: 1 for the rows that count.
      project: applied to the new parameters.
      learned: further new variables by collection, such as ``batch_stats``.
    """
    params = state.packed["params"].tree
    direction, memory = optimiser(hyper).update(gradient, state.memory.tree, params)
    params = jax.tree.map(lambda p, d: p - lr.astype(p.dtype) * d, params, direction)
    if project is not None:
        params = project(params)
    changed = pack_all({"params": params, **(learned or {})})
    taken = {"packed": {**state.packed, **changed}, "memory": pack(memory)}
    new = advance(state, jnp.isfinite(values[0]) & finite(gradient), values, taken)._replace(batches=state.batches + 1)
    return jax.tree.map(lambda a, b: jnp.where(jnp.sum(mask) > 0, a, b), new, state)


def advance(state: Any, finite: Bool[Array, ""], loss: Float[Array, "..."], learned: Mapping[str, Any]) -> Any:
    """Close a step: count it, and take over what was learned while everything is finite.

    A member whose step is not finite is frozen at its last finite state for good; the others of its population go on.

    Args:
      state: NamedTuple with ``step`` i32[], ``alive`` bool[], ``stopped`` i32[] (the step that froze it; -1 = none) and ``total``
        f32[] or f32[1 + j] (sums of the loss and of what is measured beside it).
      finite: loss and gradients of this step are finite.
      loss: f[] or f[1 + j], of this step.
      learned: new values of further fields.
    """
    ok = state.alive & finite
    counted = state._replace(
        step=state.step + 1,
        alive=ok,
        stopped=jnp.where(state.alive & ~ok, state.step, state.stopped),
        total=state.total + loss.astype(jnp.float32),
    )
    old = {name: getattr(state, name) for name in learned}
    return counted._replace(**jax.tree.map(lambda a, b: jnp.where(ok, a, b), dict(learned), old))


def close(state: State) -> tuple[State, Float[Array, " _"]]:
    """The state at the end of an epoch, ready for the next, and the epoch's means f32[1 + j] over its non-empty batches."""
    means = state.total / jnp.maximum(state.batches, 1).astype(jnp.float32)
    return state._replace(total=jnp.zeros_like(means), batches=jnp.int32(0)), means


@jax.jit
def columns(means: Float[Array, "epochs _"]) -> tuple[Float[Array, " epochs"], ...]:
    """Means of epochs, one array per column. Compiled: an un-jitted index is sent from the host."""
    return tuple(means[:, i] for i in range(means.shape[1]))
