"""Neural Cleanse's search: for every class the smallest mask and pattern that send clean images there.

All classes are searched at once over the same batches; a class that has stopped costs nothing more where it runs alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.tuning import epoch_plan, masked_mean, training_rows
from bdjax.keys import Stream, step_key, stream
from bdjax.train.evaluate import finite
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import adam
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Key, Model, Variables

RULE = adam(decays=(0.5, 0.9))
SOFT = 1e-7  # tanh(u)/(2 + SOFT) + 1/2 stays inside (0, 1)
AT_ONCE = 512  # images of several classes that go through the network together


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


class Found(NamedTuple):
    """What the search leaves, per class."""

    mask: Array  # f[k h w] in [0, 1]
    pattern: Array  # f[k h w c] in [0, 1]
    norm: Array  # f[k]: L1 norm of the mask
    success: Array  # f32[epochs, k]: success rate of the epoch in [0, 1]; NaN once a class has stopped
    size: Array  # f32[epochs, k]: L1 norm of the mask, mean of the epoch; NaN likewise
    cost: Array  # f32[epochs, k]: weight of the norm in that epoch; NaN likewise
    alive: Array  # bool[k]: the gradients stayed finite; where they did not the class is frozen from then on


def first_control(cost: Array) -> Control:
    """The controller before the first epoch."""
    zero, no, far = jnp.int32(0), jnp.bool_(False), jnp.float32(jnp.inf)
    return Control(cost.astype(jnp.float32), zero, zero, no, no, zero, far, far, no, no)


def advance(control: Control, success: Array, size: Array, hyper: Any, rules: Rules) -> tuple[Control, Array]:
    """The controller after an epoch, and whether the current mask is to be kept.

    Args:
      control: of one class.
      success: f32[], mean success rate of the epoch's batches.
      size: f32[], mean L1 norm of the mask.
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


class _State(NamedTuple):
    trigger: Any  # {"mask": f[k h w 1], "pattern": f[k h w c]} before the squashing
    adam: Any
    control: Control  # each [k]
    success: Array  # f32[k]: sum of the success rates of this epoch's batches
    size: Array  # f32[k]: sum of the norms
    batches: Array  # i32[]: non-empty batches of this epoch
    best: Any  # {"mask", "pattern"} squashed, the ones kept
    alive: Array  # bool[k]


def squashed(trigger: Any) -> Any:
    """Mask and pattern in (0, 1) from their free parameters."""
    return jax.tree.map(lambda x: jnp.tanh(x) / (2 + SOFT) + 0.5, trigger)


def stamp(trigger: Any, images: Array) -> Array:
    """(1 - m) x + m q, f[b h w c]."""
    mask, pattern = trigger["mask"][None], trigger["pattern"][None]
    return (1 - mask) * images.astype(mask.dtype) + mask * pattern


def searcher(model: Model, rules: Rules) -> Callable[..., Found]:
    """Build ``search(key, variables, clean: CleanSet, hyper) -> Found``.

    Args:
      model: network, used in eval mode; its first act normalises the stamped images, and with them the pattern, per channel.
      rules: static.

    Differs: the published code stamps normalised images and normalises the pattern itself, an array of channels, rows and
      columns without a batch, at the axis behind the first. So in every channel its rows 0, 1 and 2 are normalised with the mean
      and std of the channels 0, 1 and 2, and all rows below not at all: their pattern q in [0, 1] counts as a normalised value,
      which is the colour mean + std q. A pattern per channel is a correction. On GTSRB, whose images nobody normalises, both
      are the same.
    """
    spec, classes = model.spec, model.spec.classes

    def step(shared: Any, state: _State, x: tuple[Array, Array, Array]) -> _State:
        key, variables, clean, hyper = shared
        rows, mask, trip = x
        draw = step_key(stream(key, Stream.AUGMENT), trip)
        images = to_float(crop_flip(draw, clean.images[rows], spec.pad, spec.flip))

        def one(inputs: Any) -> Any:
            free, memory, alive, cost, done, target = inputs

            def loss(free: Any) -> tuple[Array, tuple[Array, Array]]:
                trigger = squashed(free)
                logits = model.apply(variables, stamp(trigger, images)).logits
                labels = jnp.full(logits.shape[:1], target)
                size = jnp.sum(trigger["mask"])
                hit = masked_mean((jnp.argmax(logits, -1).astype(jnp.int32) == target).astype(jnp.float32), mask)
                return masked_mean(cross_entropy(logits, labels), mask) + cost.astype(size.dtype) * size, (hit, size)

            def move(_: None) -> Any:
                slope, (hit, size) = jax.grad(loss, has_aux=True)(free)
                direction, new = RULE.update(slope, memory)
                moved = jax.tree.map(lambda p, d: p - hyper.search_lr.astype(p.dtype) * d, free, direction)
                ok = alive & finite(slope)
                moved, new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), (moved, new), (free, memory))
                return moved, new, ok, hit, size.astype(jnp.float32)

            def rest(_: None) -> Any:
                return free, memory, alive, jnp.float32(0), jnp.float32(0)

            return jax.lax.cond(done, rest, move, None)

        control = state.control
        xs = (state.trigger, state.adam, state.alive, control.cost, control.done, jnp.arange(classes, dtype=jnp.int32))
        together = max(1, min(classes, AT_ONCE // len(rows)))
        free, memory, alive, hit, size = jax.lax.map(one, xs, batch_size=None if together == 1 else together)
        sums = {"success": state.success + hit, "size": state.size + size, "batches": state.batches + 1}
        new = state._replace(trigger=free, adam=memory, alive=alive, **sums)
        return jax.tree.map(lambda a, b: jnp.where(jnp.sum(mask) > 0, a, b), new, state)

    @jax.jit
    def start(variables: Variables, hyper: Any) -> _State:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        h, w, c = spec.image_shape
        free = {"mask": jnp.ones((classes, h, w, 1), dtype), "pattern": jnp.ones((classes, h, w, c), dtype)}
        control = jax.tree.map(lambda x: jnp.broadcast_to(x, (classes,)), first_control(hyper.cost))
        zero = jnp.zeros(classes, jnp.float32)
        alive = jnp.ones(classes, bool)
        return _State(free, jax.vmap(RULE.init)(free), control, zero, zero, jnp.int32(0), squashed(free), alive)

    @jax.jit
    def plan(key: Key, epoch: Array, clean: CleanSet) -> tuple[Array, Array, Array]:
        rows, mask = epoch_plan(step_key(stream(key, Stream.ORDER), epoch), training_rows(clean), rules.batch)
        return rows, mask, epoch * len(rows) + jnp.arange(len(rows), dtype=jnp.int32)

    @jax.jit
    def close(state: _State, hyper: Any) -> tuple[_State, tuple[Array, Array, Array]]:
        batches = jnp.maximum(state.batches, 1).astype(jnp.float32)
        success, size = state.success / batches, state.size / batches
        control, keep = jax.vmap(lambda c, a, r: advance(c, a, r, hyper, rules))(state.control, success, size)

        def kept(new: Array, old: Array) -> Array:
            return jnp.where(keep.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        best = jax.tree.map(kept, squashed(state.trigger), state.best)
        told = tuple(jnp.where(state.control.done, jnp.float32(jnp.nan), x) for x in (success, size, state.control.cost))
        zero = jnp.zeros_like(success)
        new = state._replace(control=control, success=zero, size=zero, batches=jnp.int32(0), best=best)
        return new, told  # type: ignore[return-value]

    def search(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Found:
        def epoch(state: _State, e: Array) -> tuple[_State, Any]:
            state = run_steps(step, state, plan(key, e, clean), (key, variables, clean, hyper), model.loop)
            return close(state, hyper)

        state, (success, size, cost) = run_epochs(epoch, start(variables, hyper), rules.epochs, model.loop)
        mask = state.best["mask"][..., 0]
        return Found(mask, state.best["pattern"], jnp.sum(mask, (1, 2)), success, size, cost, state.alive)

    return search
