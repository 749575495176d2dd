"""Neural Cleanse's controller: how the weight of a mask's norm rises and falls, which mask is kept, and when a class stops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.types import Array, Bool, Float


class Rules(NamedTuple):
    """Static rules of the search."""

    epochs: int = 80
    batch: int = 256
    patience: int = 5  # epochs of success, or of failure, after which the cost changes
    early_patience: int = 25  # epochs without a smaller mask after which a class stops
    early_ratio: float = 0.99  # "smaller" means below this ratio of the smallest so far


class Control(NamedTuple):
    """The controller of one class."""

    cost: Array  # f32[]: weight of the mask's norm
    up: Array  # i32[]: epochs of success in a row
    down: Array  # i32[]: epochs of failure in a row
    up_seen: Array  # bool[]: the cost has been raised
    down_seen: Array  # bool[]: the cost has been lowered
    waited: Array  # i32[]: epochs without a clearly smaller mask
    early_best: Array  # f32[]: smallest norm that early stopping knows
    best: Array  # f32[]: norm of the smallest successful mask, inf before there is one
    have: Array  # bool[]: something has been kept
    done: Array  # bool[]: stopped


def first_control(cost: Float[Array, ""]) -> Control:
    """The controller of one class before the first epoch; ``cost`` is the first weight of the mask's norm."""
    zero, no, far = jnp.int32(0), jnp.bool_(False), jnp.float32(jnp.inf)
    return Control(cost.astype(jnp.float32), zero, zero, no, no, zero, far, far, no, no)


def advance(
    control: Control, success: Float[Array, ""], size: Float[Array, ""], hyper: Any, rules: Rules
) -> tuple[Control, Bool[Array, ""]]:
    """The controller after an epoch, and whether the current mask is to be kept.

    Args:
      control: of one class.
      success: mean success rate of the epoch's batches.
      size: mean L1 norm of the mask.
      hyper: with ``threshold`` and ``multiplier``.
      rules: static.
    """
    good = success >= hyper.threshold.astype(success.dtype)
    smaller = good & (size < control.best)
    best = jnp.where(smaller, size, control.best)
    stuck = best >= rules.early_ratio * control.early_best
    waited = jnp.where(jnp.isfinite(best), jnp.where(stuck, control.waited + 1, 0), control.waited)
    early_best = jnp.minimum(best, control.early_best)
    stop = control.up_seen & control.down_seen & (waited >= rules.early_patience)
    up, down = jnp.where(good, control.up + 1, 0), jnp.where(good, 0, control.down + 1)
    raised, lowered = up >= rules.patience, down >= rules.patience
    # Down takes the power 1.5 of what up takes.
    factor = jnp.where(raised, hyper.multiplier, jnp.where(lowered, hyper.multiplier**-1.5, 1))
    moved = Control(
        control.cost * factor.astype(control.cost.dtype),
        jnp.where(raised, 0, up),
        jnp.where(lowered, 0, down),
        control.up_seen | raised,
        control.down_seen | lowered,
        waited,
        early_best,
        best,
        jnp.bool_(True),
        jnp.bool_(False),
    )
    # Where the search stops, the cost and its counters are left as they are.
    stopped = control._replace(waited=waited, early_best=early_best, best=best, have=jnp.bool_(True), done=jnp.bool_(True))
    new = jax.tree.map(lambda a, b: jnp.where(stop, a, b), stopped, moved)
    new = jax.tree.map(lambda a, b: jnp.where(control.done, a, b), control, new)
    return new, ~control.done & (smaller | (~control.have & ~stop))
