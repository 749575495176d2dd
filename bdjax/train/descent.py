"""The descent that defenses share: how a gradient becomes a step, and what is counted on the way."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax.train import adam
from bdjax.train.evaluate import finite
from bdjax.train.trainer import advance, sgd
from bdjax.types import Array, Variables


class Optimiser(NamedTuple):
    """How a gradient becomes a step."""

    init: Callable[[Any, Any], Any]  # (hyper, params) -> state
    direction: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    # (hyper, gradient, state, params) -> (what is subtracted, but for the learning rate; new state)


def _sgd(hyper: Any, params: Any) -> optax.GradientTransformation:
    dtype = jax.tree.leaves(params)[0].dtype
    return sgd(hyper.momentum.astype(dtype), hyper.weight_decay.astype(dtype))


SGD = Optimiser(
    lambda hyper, params: _sgd(hyper, params).init(params),
    lambda hyper, gradient, state, params: _sgd(hyper, params).update(gradient, state, params),
)


ADAM = Optimiser(lambda hyper, params: adam.start(params), lambda hyper, g, state, params: adam.direction(g, state))
PLAIN = Optimiser(lambda hyper, params: (), lambda hyper, gradient, state, params: (gradient, state))  # the gradient itself


class State(NamedTuple):
    """A network while it is tuned."""

    variables: Variables
    optimiser: Any
    step: Array  # i32[]: batches with at least one row so far
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the step at which they did not; -1 = none
    total: Array  # f32[1 + j]: sums of the loss and of what is measured beside it in this epoch
    batches: Array  # i32[]: non-empty batches of this epoch


def begin(optimiser: Optimiser, variables: Variables, hyper: Any, measured: int) -> State:
    """The state before the first step; ``measured`` numbers are kept beside the loss."""
    counters = jnp.int32(0), jnp.bool_(True), jnp.int32(-1), jnp.zeros(1 + measured, jnp.float32), jnp.int32(0)
    return State(dict(variables), optimiser.init(hyper, variables["params"]), *counters)


def descend(
    state: State,
    optimiser: Optimiser,
    hyper: Any,
    lr: Array,
    slope: Any,
    told: Array,
    mask: Array,
    *,
    project: Callable[[Any], Any] | None = None,
    learned: Mapping[str, Any] | None = None,
) -> State:
    """One step: p - lr direction. A batch without a row touches nothing at all; a step that is not finite freezes the network.

    Args:
      state: before the step.
      optimiser: see :class:`Optimiser`.
      hyper: what it reads.
      lr: f[], learning rate.
      slope: gradient of the parameters.
      told: f[1 + j], the loss of the batch and what is measured beside it.
      mask: f[b], 1 for the rows that count.
      project: applied to the new parameters.
      learned: further new variables by collection, such as ``batch_stats``.
    """
    params = state.variables["params"]
    direction, memory = optimiser.direction(hyper, slope, state.optimiser, params)
    params = jax.tree.map(lambda p, d: p - lr.astype(p.dtype) * d, params, direction)
    if project is not None:
        params = project(params)
    taken = {"variables": {**state.variables, "params": params, **(learned or {})}, "optimiser": memory}
    new = advance(state, jnp.isfinite(told[0]) & finite(slope), told, taken)._replace(batches=state.batches + 1)
    return jax.tree.map(lambda a, b: jnp.where(jnp.sum(mask) > 0, a, b), new, state)


def close(state: State) -> tuple[State, Array]:
    """The state at the end of an epoch, ready for the next, and the epoch's means f32[1 + j] over its non-empty batches."""
    means = state.total / jnp.maximum(state.batches, 1).astype(jnp.float32)
    return state._replace(total=jnp.zeros_like(means), batches=jnp.int32(0)), means


@jax.jit
def by_number(means: Array) -> tuple[Array, ...]:
    """f32[epochs, 1 + j] as 1 + j arrays f32[epochs]. Compiled: an un-jitted index is sent from the host."""
    return tuple(means[:, i] for i in range(means.shape[1]))
