"""Train one backdoored member: SGD over shuffled batches, poisoned before or inside the batch by the attack's hooks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.descent import advance
from bdjax.train.loops import epochs, host_callback, steps
from bdjax.train.optimisers import sgd
from bdjax.train.poison import Poison, Rows, poison_set, poisoner
from bdjax.train.schedules import cosine
from bdjax.train.vectors import Packed, pack, pack_all, unpack_all
from bdjax.types import Array, Attack, Float, Int, Key, Member, Model, Recipe, Split, UInt8, Variables

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
    packed: dict[str, Packed]  # the variables, by collection
    momentum: Any  # like the packed parameters
    trigger: Any
    step: Array
    alive: Array
    stopped: Array
    total: Array  # sum of the losses of this epoch


class _Shared(NamedTuple):
    rows: Rows
    lr: Array  # f32[]


def poison_count(ratio: float, rows: int) -> int:
    """Number of poisoned rows, round(ratio * rows) in float64, half to even. ``ratio`` refers to ALL training rows."""
    return int(np.round(np.float64(ratio) * rows))


def first_trigger(attack: Attack, member: Member, assets: Any) -> Any:
    """The trigger a member starts with; ``assets`` is what the attack prepared for the data set, if it prepares for that."""
    own = member.assets if attack.recipe.prepare_per == "seed" else assets
    return attack.init(stream(member.key, Stream.TRIGGER), own)


def cross_entropy(logits: Float[Array, "b k"], labels: Int[Any, " b"]) -> Float[Array, " b"]:
    """Softmax cross-entropy of each row, at least in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(at_least_float32(logits.dtype)), labels)


def trainer(model: Model, attack: Attack, rows: int, report: Report | None = None) -> Callable[..., Trained]:
    """Build the training of one member.

    Args:
      model: network; its ``loop`` decides how the steps run.
      attack: hooks and recipe.
      rows: number of training rows n; the batch is min(recipe.batch, n) and the last partial batch of an epoch is dropped.
      report: host function ``(epoch i32[m], loss f32[m], alive bool[m])`` called once per epoch, or None.

    Returns:
      ``train(member, train: Split, triggered: u8[n h w c] | None, assets) -> Trained``. ``assets`` is what the attack prepared
      for the data set; what it prepares per seed comes with the member. ``triggered`` holds the triggered copies of all rows, for
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
    def start(member: Member, labels: Int[Array, " n"], assets: Any) -> tuple[_State, Array, Array]:
        packed = pack_all(model.init(stream(member.key, Stream.INIT)))
        poisoned, feasible = poison_set(attack, member, labels)
        trigger = first_trigger(attack, member, assets)
        momentum = sgd(recipe.momentum, recipe.weight_decay).init(packed["params"])
        state = _State(packed, momentum, trigger, jnp.int32(0), jnp.bool_(True), jnp.int32(-1), jnp.float32(0))
        return state, poisoned, feasible

    @jax.jit
    def plan(key: Key, epoch: Int[Array, ""]) -> tuple[Any, Float[Array, ""]]:
        def order(role: Stream) -> Int[Array, "trips b"]:
            shuffled = jax.random.permutation(step_key(stream(key, role), epoch), rows)
            return shuffled[: per_epoch * batch].reshape(per_epoch, batch).astype(jnp.int32)

        other = order(Stream.OTHER_ORDER) if recipe.second_batch else None
        return (order(Stream.ORDER), other), _learning_rate(recipe, epoch)

    @jax.jit
    def close(state: _State) -> tuple[_State, Float[Array, ""]]:
        return state._replace(total=jnp.float32(0)), state.total / per_epoch

    def train(member: Member, data: Split, triggered: UInt8[Array, "n h w c"] | None, assets: Any) -> Trained:
        if data.labels.shape[0] != rows:
            raise UserError(f"this trainer was built for {rows} rows; given {data.labels.shape[0]}")
        state, poisoned, feasible = start(member, data.labels, assets)

        def epoch(state: _State, e: Int[Array, ""]) -> tuple[_State, Float[Array, ""]]:
            order, lr = plan(member.key, e)
            shared = _Shared(Rows(data.images, data.labels, triggered, poisoned, member), lr)
            state, loss = close(steps(step, state, order, shared, model.loop))
            if report is not None:
                host_callback(report, e, loss, state.alive)
            return state, loss

        state, losses = epochs(epoch, state, recipe.epochs, model.loop)
        return Trained(unpack_all(state.packed), state.trigger, feasible, state.alive, state.stopped, losses)

    return train


def _learning_rate(recipe: Recipe, epoch: Int[Array, ""]) -> Float[Array, ""]:
    if recipe.schedule == "cosine":
        return cosine(jnp.float32(recipe.lr), epoch, recipe.epochs)
    if recipe.schedule == "constant":
        return jnp.float32(recipe.lr)
    raise UserError(f"Recipe.schedule must be 'cosine' or 'constant', not {recipe.schedule!r}")


def _step(model: Model, attack: Attack) -> Callable[[_Shared, _State, Any], _State]:
    """One step of SGD on a batch with its poison; ``order`` = (rows i32[b], those of the second batch i32[b] or None)."""
    poison = poisoner(attack, model.spec)
    rule = sgd(attack.recipe.momentum, attack.recipe.weight_decay)
    gradients = _gradients(model, attack, poison)

    def step(shared: _Shared, state: _State, order: tuple[Array, Array | None]) -> _State:
        gradient, trigger_gradient, (ce, statistics, trigger) = gradients(shared.rows, state, order)
        finite = jnp.isfinite(ce)
        if attack.update:
            finite &= jnp.isfinite(optax.tree.norm(_floating(trigger_gradient)))
            trigger = attack.update(trigger, trigger_gradient)
        direction, momentum = rule.update(gradient, state.momentum, state.packed["params"])
        params = jax.tree.map(lambda p, d: p - shared.lr.astype(p.dtype) * d, state.packed["params"], direction)
        learned = {
            "packed": {**state.packed, "params": params, "batch_stats": statistics},
            "momentum": momentum,
            "trigger": trigger,
        }
        return advance(state, finite & jnp.isfinite(optax.tree.norm(gradient)), ce, learned)

    return step


def _gradients(model: Model, attack: Attack, poison: Poison) -> Callable[[Rows, _State, Any], Any]:
    """Of a batch: (gradient of the packed parameters, of the trigger or None where it is not learned, what else it gives).

    The last is (cross-entropy f[], packed statistics, trigger).
    """

    def gradients(rows: Rows, state: _State, order: tuple[Array, Array | None]) -> Any:
        roles = Stream.AUGMENT, Stream.BATCH, Stream.NETWORK
        augmenting, poisoning, network = (step_key(stream(rows.member.key, role), state.step) for role in roles)

        def loss(params: Packed, trigger: Any) -> tuple[Array, Any]:
            images, labels, extra, after = poison(rows, order, trigger, poisoning, augmenting)
            variables = unpack_all({**state.packed, "params": params})
            out = model.apply(variables, images, train=True, key=network)
            ce = jnp.mean(cross_entropy(out.logits, labels))
            return ce + extra, (ce, pack(out.variables["batch_stats"]), after)

        wanted = (0, 1) if attack.update else (0,)
        slope, beside = jax.grad(loss, argnums=wanted, has_aux=True, allow_int=True)(state.packed["params"], state.trigger)
        return slope[0], slope[1] if attack.update else None, beside

    return gradients


def _floating(gradient: Any) -> list[Array]:
    """The leaves of a gradient that are numbers: those of integers carry none."""
    return [leaf for leaf in jax.tree.leaves(gradient) if leaf.dtype != jax.dtypes.float0]
