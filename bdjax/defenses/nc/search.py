"""Neural Cleanse's search: for every class the smallest mask and pattern that send clean images there.

All classes are searched at once over the same batches; a class that has stopped costs nothing more where it runs alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.nc.control import Control, Rules, advance, first_control
from bdjax.keys import Stream, step_key, stream
from bdjax.train.evaluate import finite
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import adam
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, DataSpec, Float, Int, Key, Model, Variables

RULE = adam(decays=(0.5, 0.9))
SOFT = 1e-7  # tanh(u)/(2 + SOFT) + 1/2 stays inside (0, 1)
AT_ONCE = 512  # images of several classes that go through the network together


class Found(NamedTuple):
    """What the search leaves, per class."""

    mask: Array  # f[k h w] in [0, 1]
    pattern: Array  # f[k h w c] in [0, 1]
    norm: Array  # f[k]: L1 norm of the mask
    success: Array  # f32[epochs, k]: success rate of the epoch in [0, 1]; NaN once a class has stopped
    size: Array  # f32[epochs, k]: L1 norm of the mask, mean of the epoch; NaN likewise
    cost: Array  # f32[epochs, k]: weight of the norm in that epoch; NaN likewise
    alive: Array  # bool[k]: the gradients stayed finite; where they did not the class is frozen from then on


class _State(NamedTuple):
    trigger: Any  # {"mask": f[k h w 1], "pattern": f[k h w c]} before the squashing
    adam: Any
    control: Control  # each [k]
    success: Array  # f32[k]: sum of the success rates of this epoch's batches
    size: Array  # f32[k]: sum of the norms
    batches: Array  # i32[]: non-empty batches of this epoch
    best: Any  # {"mask", "pattern"} squashed, the ones kept
    alive: Array  # bool[k]


class _Class(NamedTuple):
    """What a step of one class reads and changes."""

    trigger: Any  # {"mask": f[h w 1], "pattern": f[h w c]} before the squashing
    adam: Any
    alive: Array  # bool[]


def squashed(trigger: dict[str, Array]) -> Any:
    """Mask f[… h w 1] and pattern f[… h w c] in (0, 1) from their free parameters of the same shapes."""
    return jax.tree.map(lambda x: jnp.tanh(x) / (2 + SOFT) + 0.5, trigger)


def with_trigger(trigger: dict[str, Array], images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Images that carry a trigger {"mask": m f[h w 1], "pattern": q f[h w c]}: (1 - m) x + m q."""
    mask, pattern = trigger["mask"][None], trigger["pattern"][None]
    return (1 - mask) * images.astype(mask.dtype) + mask * pattern


def searcher(model: Model, rules: Rules) -> Callable[..., Found]:
    """Build ``search(key, variables, clean: CleanSet, hyper) -> Found``.

    Args:
      model: network, used in eval mode; its first act normalises the triggered images, and with them the pattern, per channel.
      rules: static.

    Differs: the published code applies the trigger to normalised images and normalises the pattern itself, an array of channels,
      rows and columns without a batch, at the axis behind the first. So in every channel its rows 0, 1 and 2 are normalised with
      the mean and std of the channels 0, 1 and 2, and all rows below not at all: their pattern q in [0, 1] counts as a normalised
      value, which is the colour mean + std q. A pattern per channel is a correction. On GTSRB, whose images nobody normalises,
      both are the same.
    """
    step = _step(model)

    @jax.jit
    def plan(key: Key, epoch: Int[Array, ""], clean: CleanSet) -> tuple[Int[Array, "t b"], Float[Array, "t b"], Int[Array, " t"]]:
        rows, mask = epoch_plan(step_key(stream(key, Stream.ORDER), epoch), training_rows(clean), rules.batch)
        return rows, mask, epoch * len(rows) + jnp.arange(len(rows), dtype=jnp.int32)

    @jax.jit
    def start(variables: Variables, hyper: Any) -> _State:
        return _start(model.spec, jax.tree.leaves(variables["params"])[0].dtype, hyper)

    @jax.jit
    def close(state: _State, hyper: Any) -> tuple[_State, tuple[Float[Array, " k"], ...]]:
        return _after_epoch(state, hyper, rules)

    def search(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Found:
        def epoch(state: _State, e: Int[Array, ""]) -> tuple[_State, Any]:
            state = run_steps(step, state, plan(key, e, clean), (key, variables, clean, hyper), model.loop)
            return close(state, hyper)

        state, (success, size, cost) = run_epochs(epoch, start(variables, hyper), rules.epochs, model.loop)
        mask = state.best["mask"][..., 0]
        return Found(mask, state.best["pattern"], jnp.sum(mask, (1, 2)), success, size, cost, state.alive)

    return search


def _step(model: Model) -> Callable[..., _State]:
    """One batch, for all classes; those that have stopped are left as they are."""
    spec, classes = model.spec, model.spec.classes
    descend = _class_step(model)

    def step(shared: Any, state: _State, x: tuple[Int[Array, " b"], Float[Array, " b"], Int[Array, ""]]) -> _State:
        key, variables, clean, hyper = shared
        rows, mask, trip = x
        draw = step_key(stream(key, Stream.AUGMENT), trip)
        images = to_float(crop_flip(draw, clean.images[rows], spec.pad, spec.flip))

        def one(inputs: tuple[_Class, Array, Array, Array]) -> tuple[_Class, Array, Array]:
            now, cost, done, target = inputs

            def move(_: None) -> tuple[_Class, Array, Array]:
                return descend((variables, images, mask, hyper), now, cost, target)

            def rest(_: None) -> tuple[_Class, Array, Array]:
                return now, jnp.float32(0), jnp.float32(0)

            return jax.lax.cond(done, rest, move, None)

        control, each = state.control, _Class(state.trigger, state.adam, state.alive)
        xs = (each, control.cost, control.done, jnp.arange(classes, dtype=jnp.int32))
        together = max(1, min(classes, AT_ONCE // len(rows)))
        each, hit, size = jax.lax.map(one, xs, batch_size=None if together == 1 else together)
        sums = {"success": state.success + hit, "size": state.size + size, "batches": state.batches + 1}
        new = state._replace(**each._asdict(), **sums)
        return jax.tree.map(lambda a, b: jnp.where(jnp.sum(mask) > 0, a, b), new, state)

    return step


def _class_step(model: Model) -> Callable[..., tuple[_Class, Array, Array]]:
    """``descend(shared, now: _Class, cost, target) -> (the class after a step of Adam, success rate, norm)``."""

    def descend(
        shared: Any, now: _Class, cost: Float[Array, ""], target: Int[Array, ""]
    ) -> tuple[_Class, Float[Array, ""], Float[Array, ""]]:
        variables, images, mask, hyper = shared

        def loss(free: Any) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            trigger = squashed(free)
            logits = model.apply(variables, with_trigger(trigger, images)).logits
            labels = jnp.full(logits.shape[:1], target)
            size = jnp.sum(trigger["mask"])
            hit = masked_mean((jnp.argmax(logits, -1).astype(jnp.int32) == target).astype(jnp.float32), mask)
            return masked_mean(cross_entropy(logits, labels), mask) + cost.astype(size.dtype) * size, (hit, size)

        slope, (hit, size) = jax.grad(loss, has_aux=True)(now.trigger)
        direction, memory = RULE.update(slope, now.adam)
        moved = jax.tree.map(lambda p, d: p - hyper.search_lr.astype(p.dtype) * d, now.trigger, direction)
        alive = now.alive & finite(slope)
        old = now.trigger, now.adam
        moved, memory = jax.tree.map(lambda a, b: jnp.where(alive, a, b), (moved, memory), old)
        return _Class(moved, memory, alive), hit, size.astype(jnp.float32)

    return descend


def _start(spec: DataSpec, dtype: Any, hyper: Any) -> _State:
    """Before the first epoch: masks and patterns of ones, before the squashing."""
    classes, (h, w, c) = spec.classes, spec.image_shape
    free = {"mask": jnp.ones((classes, h, w, 1), dtype), "pattern": jnp.ones((classes, h, w, c), dtype)}
    control = jax.tree.map(lambda x: jnp.broadcast_to(x, (classes,)), first_control(hyper.cost))
    zero = jnp.zeros(classes, jnp.float32)
    alive = jnp.ones(classes, bool)
    return _State(free, jax.vmap(RULE.init)(free), control, zero, zero, jnp.int32(0), squashed(free), alive)


def _after_epoch(state: _State, hyper: Any, rules: Rules) -> tuple[_State, tuple[Float[Array, " k"], ...]]:
    """The state ready for the next epoch, and success rate, norm and cost of this one, NaN for stopped classes."""
    batches = jnp.maximum(state.batches, 1).astype(jnp.float32)
    success, size = state.success / batches, state.size / batches
    control, keep = jax.vmap(lambda c, a, r: advance(c, a, r, hyper, rules))(state.control, success, size)

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(keep.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    best = jax.tree.map(kept, squashed(state.trigger), state.best)
    measured = tuple(jnp.where(state.control.done, jnp.float32(jnp.nan), x) for x in (success, size, state.control.cost))
    zero = jnp.zeros_like(success)
    new = state._replace(control=control, success=zero, size=zero, batches=jnp.int32(0), best=best)
    return new, measured
