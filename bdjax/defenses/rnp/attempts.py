"""RNP's masks: unlearn the clean data with all parameters, then recover them with the masks alone, again where that fails.

How many epochs and attempts there are depends on the data: while-loops, whose steps are scans whatever the model's loop is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import tree
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.channels import clipped
from bdjax.defenses.rnp.settings import Config
from bdjax.defenses.tuning import Hyper
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import SGD
from bdjax.train.schedules import cosine
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Masks, Model, Variables


class _Attempt(NamedTuple):
    number: Array  # i32[]: attempts made
    masks: Masks
    unlearned: Array
    recovered: Array
    alive: Array
    stopped: Array


def attempter(model: Model, config: Config) -> Callable[..., Any]:
    """Build ``attempt(key, variables, clean, hyper) -> (masks, (unlearned, recovered, attempts), alive, stopped)``.

    Args:
      model: network.
      config: without None.

    Returns:
      The function; of the last attempt its ``masks`` {norm: f[d]}, the accuracy of each epoch of the unlearning f32[unlearn
      epochs] (NaN once it was low enough), the mean loss of each of the recovery f32[recover epochs], how many attempts there
      were i32[], whether it stayed finite bool[], and the step at which it did not i32[] (-1: none).
    """
    unlearn, recover = _unlearning(model, config), _recovery(model, config)
    norms, fresh = model.arch.norms, config.unlearn_from == "random"

    def one(
        key: Key, variables: Variables, clean: CleanSet, hyper: Any, lr: Float[Array, ""]
    ) -> tuple[Masks, Float[Array, " unlearn"], Float[Array, " recover"], State]:
        starting, forgetting, learning = jax.random.split(key, 3)
        network = model.init(starting) if fresh else variables
        ones = tree.full_masks(variables["params"], norms)
        start = {"params": {"network": network["params"], "masks": ones}, "batch_stats": network["batch_stats"]}
        unlearned, accuracy = unlearn(forgetting, start, clean, hyper, lr)
        recovered, loss = recover(learning, unlearned, clean, hyper)
        return recovered.variables["params"]["masks"], accuracy, loss, recovered

    def attempt(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        def again(carry: _Attempt) -> Bool[Array, ""]:
            return (carry.number < config.attempts) & ~carry.alive

        def once(carry: _Attempt) -> _Attempt:
            lr = hyper.lr * jnp.asarray(0.1, hyper.lr.dtype) ** carry.number.astype(hyper.lr.dtype)
            masks, accuracy, loss, state = one(step_key(key, carry.number), variables, clean, hyper, lr)
            return _Attempt(carry.number + 1, masks, accuracy, loss, state.alive, state.stopped)

        ones = tree.full_masks(variables["params"], norms)
        accuracy, loss = (jnp.full(n, jnp.nan, jnp.float32) for n in (config.unlearn_epochs, config.recover_epochs))
        first = _Attempt(jnp.int32(0), ones, accuracy, loss, jnp.bool_(False), jnp.int32(-1))
        last = jax.lax.while_loop(again, once, first)
        return last.masks, (last.unlearned, last.recovered, last.number), last.alive, last.stopped

    return attempt


def _unlearning(model: Model, config: Config) -> Callable[..., tuple[State, Array]]:
    """``unlearn(key, start, clean, hyper, lr) -> (state, accuracy of each epoch)``, till the accuracy is low."""
    loop, step = model.loop._replace(kind="scan"), _step(model, config, -1)

    def unlearn(key: Key, start: Any, clean: CleanSet, hyper: Any, lr: Float[Array, ""]) -> tuple[State, Float[Array, " epochs"]]:
        rates = Hyper(lr, hyper.momentum, hyper.weight_decay)
        rows = jnp.maximum(jnp.sum(training_rows(clean)), 1).astype(jnp.float32)

        def goes_on(carry: tuple[State, Float[Array, " epochs"], Int[Array, ""]]) -> Bool[Array, ""]:
            state, accuracy, epoch = carry
            low = jnp.where(epoch > 0, accuracy[epoch - 1] <= hyper.stop.astype(accuracy.dtype), False)
            return (epoch < config.unlearn_epochs) & ~low & state.alive

        def forget(
            carry: tuple[State, Float[Array, " epochs"], Int[Array, ""]],
        ) -> tuple[State, Float[Array, " epochs"], Int[Array, ""]]:
            state, accuracy, epoch = carry
            rate = cosine(lr, epoch, config.unlearn_epochs)
            shared: Any = (key, clean, rates, rate, {})
            state = run_steps(step, state, _plan(key, epoch, clean, config), shared, loop)
            share = state.total[1] / rows
            state, _ = descent.close(state)
            return state, accuracy.at[epoch].set(share), epoch + 1

        begun = descent.begin(SGD, start, rates, measured=1)
        none = jnp.full(config.unlearn_epochs, jnp.nan, jnp.float32)
        state, accuracy, _ = jax.lax.while_loop(goes_on, forget, (begun, none, jnp.int32(0)))
        return state, accuracy

    return unlearn


def _recovery(model: Model, config: Config) -> Callable[..., tuple[State, Array]]:
    """``recover(key, unlearned, clean, hyper) -> (state, loss of each epoch)``: the masks alone, the network frozen."""
    loop, step = model.loop._replace(kind="scan"), _step(model, config, 1)

    def recover(key: Key, unlearned: State, clean: CleanSet, hyper: Any) -> tuple[State, Float[Array, " epochs"]]:
        # The masks go on from where the unlearning left them, which is not exactly 1.
        frozen, masks = (unlearned.variables["params"][part] for part in ("network", "masks"))
        rates = Hyper(hyper.recover_lr, hyper.momentum, jnp.zeros_like(hyper.weight_decay))
        start = {"params": {"masks": masks}, "batch_stats": unlearned.variables["batch_stats"]}
        begun = descent.begin(SGD, start, rates, measured=1)
        begun = begun._replace(alive=unlearned.alive, stopped=unlearned.stopped, step=unlearned.step)

        def learn(state: State, epoch: Int[Array, ""]) -> tuple[State, Float[Array, ""]]:
            shared = (key, clean, rates, hyper.recover_lr, {"network": frozen})
            state, means = descent.close(run_steps(step, state, _plan(key, epoch, clean, config), shared, loop))
            return state, means[0]

        return jax.lax.scan(learn, begun, jnp.arange(config.recover_epochs, dtype=jnp.int32))

    return recover


def _plan(key: Key, epoch: Int[Array, ""], clean: CleanSet, config: Config) -> tuple[Int[Array, "t b"], Float[Array, "t b"]]:
    """The batches of an epoch: rows, and which of them count."""
    return epoch_plan(step_key(stream(key, Stream.ORDER), epoch), training_rows(clean), config.batch)


def _step(model: Model, config: Config, sign: int) -> Callable[..., State]:
    """One step down ``sign`` times the cross-entropy, in the parameters that the state holds."""
    spec, frozen_masks = model.spec, sign < 0 and config.unlearn_from == "random"

    def project(free: Any) -> Any:
        if sign > 0:
            return {"masks": clipped(free["masks"])}
        return {**free, "masks": jax.tree.map(jnp.ones_like, free["masks"])} if frozen_masks else free

    def step(shared: Any, state: State, x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> State:
        key, clean, rates, lr, rest = shared
        rows, mask = x
        images = crop_flip(step_key(stream(key, Stream.AUGMENT), state.step), clean.images[rows], spec.pad, spec.flip)
        images, labels = to_float(images), clean.labels[rows]
        draws = step_key(stream(key, Stream.NETWORK), state.step)

        def loss(free: Any) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any]]:
            both = {**rest, **free}
            params = tree.mask_norms(both["network"], both["masks"], bias=False)
            variables = {"params": params, "batch_stats": state.variables["batch_stats"]}
            out = model.apply(variables, images, train=True, mask=mask, key=draws)
            right = jnp.sum((jnp.argmax(out.logits, -1).astype(labels.dtype) == labels).astype(mask.dtype) * mask)
            return sign * masked_mean(cross_entropy(out.logits, labels), mask), (right, out.variables["batch_stats"])

        (value, (right, statistics)), slope = jax.value_and_grad(loss, has_aux=True)(state.variables["params"])
        values = jnp.stack([value, right.astype(value.dtype)])
        return descent.descend(state, SGD, rates, lr, slope, values, mask, project=project, learned={"batch_stats": statistics})

    return step
