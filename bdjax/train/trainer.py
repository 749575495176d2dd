"""Train one backdoored member: SGD over shuffled batches, poisoned before or inside the batch by the attack's hooks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.data.augment import crop_flip, to_float
from bdjax.errors import UserError, choose
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import epochs, steps, tell
from bdjax.types import Array, Attack, Key, Member, Model, Recipe, Split, Variables

AUGMENT = ("after", "before", "own", "none")
SCHEDULES = ("cosine", "constant")
PREPARE_PER = ("dataset", "seed")
Report = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


class Trained(NamedTuple):
    """A trained member."""

    variables: Variables
    trigger: Any
    feasible: Array  # bool[]: the poison set could be drawn
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step with a non-finite loss or gradient, after which the member is frozen; -1 = none
    loss: Array  # f32[epochs]: mean training loss (cross-entropy) of the epoch


class _State(NamedTuple):
    variables: Variables
    momentum: Any
    trigger: Any
    step: Array
    alive: Array
    stopped: Array
    total: Array  # sum of the losses of this epoch


class _Shared(NamedTuple):
    images: Array
    labels: Array
    stamped: Array | None
    poisoned: Array  # bool[n]
    member: Member
    lr: Array


def poison_count(ratio: float, rows: int) -> int:
    """Number of poisoned rows, round(ratio * rows) in float64, half to even. ``ratio`` refers to ALL training rows."""
    return int(np.round(np.float64(ratio) * rows))


def first_trigger(attack: Attack, member: Member, assets: Any) -> Any:
    """The trigger a member starts with; ``assets`` is what the attack prepared for the data set, if it prepares for that."""
    own = member.assets if attack.recipe.prepare_per == "seed" else assets
    return attack.init(stream(member.key, Stream.TRIGGER), own)


def sgd(momentum: float | Array, weight_decay: float | Array) -> optax.GradientTransformation:
    """PyTorch's SGD without the learning rate: g + wd p, then buf = mu buf + g. Decay acts on all parameters, norms included."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum))  # type: ignore[arg-type]


def cosine(lr: Array, t: Array, period: int) -> Array:
    """lr (1 + cos(pi t / period)) / 2, not clamped after ``period``: it climbs back to ``lr`` at 2 ``period``.

    Args:
      lr: f[].
      t: i32[], completed epochs (or steps).
      period: epochs (or steps) from ``lr`` down to 0.
    """
    # As a squared cosine of half the angle: no cancellation near the end of the period.
    angle = (t % (2 * period)).astype(lr.dtype) * (math.pi / (2 * period))
    return lr * jnp.square(jnp.cos(angle))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Softmax cross-entropy per row, f[b], at least in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(at_least_float32(logits.dtype)), labels)


def advance(state: Any, finite: Array, loss: Array, learned: Mapping[str, Any]) -> Any:
    """Close a step: count it, and take over what was learned while everything is finite.

    A member whose step is not finite is frozen at its last finite state for good; the others of its population go on.

    Args:
      state: NamedTuple with ``step`` i32[], ``alive`` bool[], ``stopped`` i32[] (the step that froze it; -1 = none) and ``total``
        f32[] (sum of the losses).
      finite: bool[], loss and gradients of this step are finite.
      loss: f[], of this step.
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


def trainer(model: Model, attack: Attack, rows: int, report: Report | None = None) -> Callable[..., Trained]:
    """Build the training of one member.

    Args:
      model: network; its ``loop`` decides how the steps run.
      attack: hooks and recipe.
      rows: number of training rows n; the batch is min(recipe.batch, n) and the last partial batch of an epoch is dropped.
      report: host function ``(epoch i32[m], loss f32[m], alive bool[m])`` called once per epoch, or None.

    Returns:
      ``train(member, train: Split, stamped: u8[n h w c] | None, assets) -> Trained``. ``assets`` is what the attack prepared for
      the data set; what it prepares per seed comes with the member. ``stamped`` holds the triggered copies of all rows, for
      attacks whose trigger is the same for all members and acts before the augmentation.

    Raises:
      UserError: a recipe that cannot run on that many rows.
    """
    recipe = attack.recipe
    batch = min(recipe.batch, rows)
    if batch < 1 or recipe.epochs < 1:
        raise UserError(f"training needs at least 1 row and 1 epoch; given {rows} rows and {recipe.epochs} epochs")
    per_epoch = rows // batch
    step = _step(model, attack)

    @jax.jit
    def start(member: Member, labels: Array, assets: Any) -> tuple[_State, Array, Array]:
        variables = model.init(stream(member.key, Stream.INIT))
        poisoned, feasible = attack.select(stream(member.key, Stream.SELECT), labels, member.count)
        trigger = first_trigger(attack, member, assets)
        momentum = sgd(recipe.momentum, recipe.weight_decay).init(variables["params"])
        state = _State(variables, momentum, trigger, jnp.int32(0), jnp.bool_(True), jnp.int32(-1), jnp.float32(0))
        return state, poisoned, feasible

    @jax.jit
    def plan(key: Key, epoch: Array) -> tuple[Any, Array]:
        def order(role: Stream) -> Array:
            shuffled = jax.random.permutation(step_key(stream(key, role), epoch), rows)
            return shuffled[: per_epoch * batch].reshape(per_epoch, batch).astype(jnp.int32)

        other = order(Stream.OTHER_ORDER) if recipe.second_batch else None
        return (order(Stream.ORDER), other), _learning_rate(recipe, epoch)

    @jax.jit
    def close(state: _State) -> tuple[_State, Array]:
        return state._replace(total=jnp.float32(0)), state.total / per_epoch

    def train(member: Member, data: Split, stamped: Array | None, assets: Any) -> Trained:
        if data.labels.shape[0] != rows:
            raise UserError(f"this trainer was built for {rows} rows; given {data.labels.shape[0]}")
        state, poisoned, feasible = start(member, data.labels, assets)

        def epoch(state: _State, e: Array) -> tuple[_State, Array]:
            order, lr = plan(member.key, e)
            shared = _Shared(data.images, data.labels, stamped, poisoned, member, lr)
            state, loss = close(steps(step, state, order, shared, model.loop))
            if report is not None:
                tell(report, e, loss, state.alive)
            return state, loss

        state, losses = epochs(epoch, state, recipe.epochs, model.loop)
        return Trained(state.variables, state.trigger, feasible, state.alive, state.stopped, losses)

    return train


def _learning_rate(recipe: Recipe, epoch: Array) -> Array:
    if recipe.schedule == "cosine":
        return cosine(jnp.float32(recipe.lr), epoch, recipe.epochs)
    if recipe.schedule == "constant":
        return jnp.float32(recipe.lr)
    raise UserError(f"Recipe.schedule must be 'cosine' or 'constant', not {recipe.schedule!r}")


def _step(model: Model, attack: Attack) -> Callable[[_Shared, _State, Any], _State]:
    recipe, spec = attack.recipe, model.spec
    choose("augment", recipe.augment, AUGMENT)
    stamp = attack.train_stamp or attack.stamp

    def augment(key: Key, images: Array, when: str) -> Array:
        return crop_flip(key, images, spec.pad, spec.flip) if recipe.augment == when else images

    def fixed(shared: _Shared, rows: Array, trigger: Any, key: Key, crop: Key) -> tuple[Array, Array]:
        """A batch of an attack whose poison set is fixed: rows of the set carry trigger and attack label."""
        hit, images, labels = shared.poisoned[rows], shared.images[rows], shared.labels[rows]
        labels = jnp.where(hit, attack.relabel(labels), labels)
        hit = hit[:, None, None, None]
        if shared.stamped is not None and recipe.augment != "before":
            return to_float(augment(crop, jnp.where(hit, shared.stamped[rows], images), "after")), labels
        images = to_float(augment(crop, images, "before"))
        return augment(crop, jnp.where(hit, stamp(trigger, key, images), images), "after"), labels

    def step(shared: _Shared, state: _State, order: tuple[Array, Array | None]) -> _State:
        rows, second = order
        key = {
            role: step_key(stream(shared.member.key, role), state.step) for role in (Stream.AUGMENT, Stream.BATCH, Stream.NETWORK)
        }

        def loss(params: Any, trigger: Any) -> tuple[Array, Any]:
            extra, after = jnp.float32(0), trigger
            if attack.batch is None:
                images, labels = fixed(shared, rows, trigger, key[Stream.BATCH], key[Stream.AUGMENT])
            else:
                first_crop, second_crop = jax.random.split(key[Stream.AUGMENT])
                images = to_float(augment(first_crop, shared.images[rows], "before"))
                other = None
                if second is not None:
                    other = (to_float(augment(second_crop, shared.images[second], "before")), shared.labels[second])
                images, labels, extra, after = attack.batch(
                    trigger, key[Stream.BATCH], images, shared.labels[rows], shared.member.ratio, other
                )
                images = augment(first_crop, images, "after")
            out = model.apply({**state.variables, "params": params}, images, train=True, key=key[Stream.NETWORK])
            ce = jnp.mean(cross_entropy(out.logits, labels))
            return ce + extra, (ce, out.variables["batch_stats"], after)

        wanted = (0, 1) if attack.update else 0
        gradient, (ce, statistics, trigger) = jax.grad(loss, argnums=wanted, has_aux=True, allow_int=True)(
            state.variables["params"], state.trigger
        )
        finite = jnp.isfinite(ce)
        if attack.update:
            gradient, trigger_gradient = gradient
            finite &= jnp.isfinite(optax.tree.norm(_floating(trigger_gradient)))
            trigger = attack.update(trigger, trigger_gradient)
        direction, momentum = sgd(recipe.momentum, recipe.weight_decay).update(
            gradient, state.momentum, state.variables["params"]
        )
        params = jax.tree.map(lambda p, d: p - shared.lr.astype(p.dtype) * d, state.variables["params"], direction)
        learned = {
            "variables": {**state.variables, "params": params, "batch_stats": statistics},
            "momentum": momentum,
            "trigger": trigger,
        }
        return advance(state, finite & jnp.isfinite(optax.tree.norm(gradient)), ce, learned)

    return step


def _floating(gradient: Any) -> list[Array]:
    """The leaves of a gradient that are numbers: those of integers carry none."""
    return [leaf for leaf in jax.tree.leaves(gradient) if leaf.dtype != jax.dtypes.float0]
