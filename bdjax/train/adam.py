"""Adam and AMSGrad, as plain functions on dictionaries of arrays; optax's Adam refuses to run under strict type promotion."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.types import Array


def start(params: Any) -> dict[str, Any]:
    """The state before the first step: {"count" i32[], "mean" and "square", like ``params``}."""
    return {"count": jnp.int32(0), **{name: jax.tree.map(jnp.zeros_like, params) for name in ("mean", "square")}}


def direction(
    gradient: Any, state: Any, decays: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> tuple[Any, dict[str, Any]]:
    """What a step subtracts, but for the learning rate: m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + ε).

    m and v are the running means of the gradient and of its square, m <- β1 m + (1 - β1) g, v <- β2 v + (1 - β2) g².

    Args:
      gradient: pytree of floating arrays.
      state: what :func:`start` or the last step returned.
      decays: (β1, β2), each in (0, 1).
      eps: ε.

    Returns:
      (pytree like ``gradient``, new state).

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """
    new = _moments(gradient, state, decays)

    def step(m: Array, v: Array) -> Array:
        done = _warmed(new["count"].astype(m.dtype), decays)
        return m / done[0] / (jnp.sqrt(v / done[1]) + eps)

    return jax.tree.map(step, new["mean"], new["square"]), new


def amsgrad_start(params: Any) -> dict[str, Any]:
    """The state before the first step of AMSGrad: that of Adam and "largest", like ``params``."""
    return {**start(params), "largest": jax.tree.map(jnp.zeros_like, params)}


def amsgrad_direction(
    gradient: Any, state: Any, decays: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> tuple[Any, dict[str, Any]]:
    """Adam's step with the largest v so far in place of v: m / (1 - β1^t) / (sqrt(max v) / sqrt(1 - β2^t) + ε).

    The largest is that of the running means as they are, before the correction by 1 - β2^t, as in PyTorch; ``optax.amsgrad``
    takes it after the correction, which makes the first steps several times smaller.

    Args and returns are those of :func:`direction`, with the state of :func:`amsgrad_start`.

    Source: S. J. Reddi, S. Kale, S. Kumar, "On the Convergence of Adam and Beyond", ICLR 2018, Algorithm 2, with PyTorch's
      correction of the bias.
    """
    new = _moments(gradient, state, decays)
    largest = jax.tree.map(jnp.maximum, state["largest"], new["square"])

    def step(m: Array, v: Array) -> Array:
        done = _warmed(new["count"].astype(m.dtype), decays)
        return m / done[0] / (jnp.sqrt(v) / jnp.sqrt(done[1]) + eps)

    return jax.tree.map(step, new["mean"], largest), {**new, "largest": largest}


def _moments(gradient: Any, state: Any, decays: tuple[float, float]) -> dict[str, Any]:
    """The count and the running means after this gradient."""
    first, second = decays
    mean = jax.tree.map(lambda m, g: first * m + (1 - first) * g, state["mean"], gradient)
    square = jax.tree.map(lambda v, g: second * v + (1 - second) * jnp.square(g), state["square"], gradient)
    return {"count": state["count"] + 1, "mean": mean, "square": square}


def _warmed(count: Array, decays: tuple[float, float]) -> tuple[Array, Array]:
    """1 - β^t for both decays, without cancellation."""
    first, second = (-jnp.expm1(count * math.log(decay)) for decay in decays)
    return first, second
