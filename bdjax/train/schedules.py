"""Learning-rate schedules, of training and of the fine-tuning loop."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from bdjax.types import Array, Float, Int


def cosine(lr: Float[Any, ""], t: Int[Array, ""], period: int) -> Float[Array, ""]:
    """lr (1 + cos(pi t / period)) / 2, not clamped after ``period``: it climbs back to ``lr`` at 2 ``period``.

    Args:
      lr: the first rate.
      t: completed epochs (or steps).
      period: epochs (or steps) from ``lr`` down to 0.
    """
    # As a squared cosine of half the angle: no cancellation near the end of the period.
    angle = (t % (2 * period)).astype(lr.dtype) * (math.pi / (2 * period))
    return lr * jnp.square(jnp.cos(angle))


class Schedule(NamedTuple):
    """A learning rate that starts from ``hyper.lr``; ``state`` is any pytree, for schedules that watch the loss."""

    init: Callable[[Any], Any]  # (hyper) -> state
    rate: Callable[[Any, Any, Array, Array], Array]  # (hyper, state, epoch i32[], step i32[]) -> f[]
    observe: Callable[[Any, Array], Any]  # (state, mean loss of the epoch f32[]) -> state


def _blind(rate: Callable[[Any, Array, Array], Array]) -> Schedule:
    """A schedule that does not watch the loss."""
    return Schedule(lambda hyper: (), lambda hyper, state, epoch, step: rate(hyper, epoch, step), lambda state, loss: state)


def constant() -> Schedule:
    """``hyper.lr`` throughout."""
    return _blind(lambda hyper, epoch, step: hyper.lr)


def cosine_by_epoch(period: int) -> Schedule:
    """:func:`cosine` of the epoch."""
    return _blind(lambda hyper, epoch, step: cosine(hyper.lr, epoch, period))


def cosine_between(period: int) -> Schedule:
    """From ``hyper.lr`` in epoch 0 to ``hyper.last_lr`` in epoch ``period`` along a :func:`cosine`."""
    return _blind(lambda hyper, epoch, step: hyper.last_lr + cosine(hyper.lr - hyper.last_lr, epoch, period))


def cosine_by_step(period: int) -> Schedule:
    """:func:`cosine` of the step; batches without a row are no steps."""
    return _blind(lambda hyper, epoch, step: cosine(hyper.lr, step, period))


class _Plateau(NamedTuple):
    lr: Array
    best: Array
    bad: Array  # i32[]: epochs since the best one


def plateau(patience: int = 10, factor: float = 0.1, threshold: float = 1e-4) -> Schedule:
    """Multiply the rate by ``factor`` once more than ``patience`` epochs in a row brought no loss below best (1 - threshold).

    Source: PyTorch's ``ReduceLROnPlateau`` in mode "min" with a relative threshold, no cooldown and no minimum.
    """

    def init(hyper: Any) -> _Plateau:
        return _Plateau(hyper.lr, jnp.float32(jnp.inf), jnp.int32(0))

    def observe(state: _Plateau, loss: Float[Array, ""]) -> _Plateau:
        better = loss < state.best * (1 - threshold)
        bad = jnp.where(better, 0, state.bad + 1)
        stuck = bad > patience
        lr = jnp.where(stuck, state.lr * factor, state.lr)
        return _Plateau(lr, jnp.where(better, loss, state.best), jnp.where(stuck, 0, bad))

    return Schedule(init, lambda hyper, state, epoch, step: state.lr, observe)
