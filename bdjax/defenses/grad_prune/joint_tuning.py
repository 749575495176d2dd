"""Grad-Prune's second part: fine-tune on clean and triggered images alike until the clean validation loss stops falling."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.grad_prune.filters import Filters, pruned
from bdjax.defenses.grad_prune.passes import measurer, pixels, validation_plans
from bdjax.defenses.grad_prune.rounds import Ended, first_reason
from bdjax.defenses.grad_prune.settings import Config
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import leading
from bdjax.train.optimisers import SGD
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Float, Int, Key, Model, Num, Variables


class Tuned(NamedTuple):
    """The network of the best epoch, and what happened."""

    variables: Variables
    loss: Array  # f32[epochs]: mean over the batches of the epoch; NaN after the last
    validated: Array  # f32[epochs]: clean validation loss; NaN likewise
    epochs: Array  # i32[]: epochs made
    kept: Array  # i32[]: the epoch that is kept; 0 = the network before all
    ended: Array  # i32[]: :class:`Ended`
    stopped: Array  # i32[]: the step that was not finite; -1 = none


class _Carry(NamedTuple):
    state: State
    best: Variables
    least: Array  # f[]: its validation loss
    waited: Array  # i32[]: epochs since it
    course: Tuned  # its variables are empty


def untuned(variables: Variables, epochs: int) -> Tuned:
    """The network as it is, after no epoch."""
    nothing, none = jnp.full(epochs, jnp.nan, jnp.float32), jnp.int32(-1)
    return Tuned(variables, nothing, nothing, jnp.int32(0), jnp.int32(0), none, none)


def gradient(model: Model) -> Callable[..., tuple[Any, Any, Array]]:
    """Build ``slope(variables, images, triggered, labels, mask, keys) -> (gradient, running statistics, loss)``.

    The loss is CE(x) + CE(x~), each the mean over the rows that count in a forward pass of its own in train mode: first the clean
    images, then the triggered ones, which continue from the running statistics that the clean ones leave.
    """

    def slope(
        variables: Variables,
        images: Float[Array, "b h w c"],
        triggered: Float[Array, "b h w c"],
        labels: Int[Array, " b"],
        mask: Float[Array, " b"],
        keys: Any,
    ) -> tuple[Any, Any, Float[Array, ""]]:
        def loss(params: Any) -> tuple[Float[Array, ""], Any]:
            statistics, total = variables["batch_stats"], jnp.float32(0)
            for shown, key in zip((images, triggered), keys, strict=True):
                now = {**variables, "params": params, "batch_stats": statistics}
                out = model.apply(now, shown, train=True, mask=mask, key=key)
                entropy = masked_mean(cross_entropy(out.logits, labels), mask)
                statistics, total = out.variables["batch_stats"], total.astype(entropy.dtype) + entropy
            return total, statistics

        (value, statistics), found = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return found, statistics, value

    return slope


def tuner(model: Model, config: Config) -> Callable[..., Tuned]:
    """Build ``tune(key, variables, table, keep, least, clean, triggered, hyper) -> Tuned``.

    ``least`` is the clean validation loss before; the filters that ``keep`` of ``table`` leaves out stay 0 if they are frozen.
    ``triggered`` are images in [0, 1], or bytes, one for every clean row.
    """
    measure = measurer(model)

    def tune(
        key: Key,
        variables: Variables,
        table: Filters,
        keep: Float[Array, " F"],
        least: Float[Array, ""],
        clean: CleanSet,
        triggered: Num[Array, "n h w c"],
        hyper: Any,
    ) -> Tuned:
        ordering, judging, network = jax.random.split(key, 3)
        validate_at = validation_plans(config, clean, model.spec.classes)
        step = _step(model, config, table, jax.tree.leaves(variables["params"])[0].dtype)

        def epoch(carry: _Carry) -> _Carry:
            order = step_key(stream(ordering, Stream.ORDER), carry.course.epochs)
            rows, mask = epoch_plan(order, training_rows(clean), config.batch)
            trips = jnp.sum(jnp.sum(mask, 1) > 0, dtype=jnp.int32)
            shared = (clean, triggered, keep, hyper, network)
            state, means = descent.close(leading(step, carry.state, (rows, mask), trips, shared, model.loop))
            batches = validate_at(judging, carry.course.epochs + 1)
            loss = measure(state.variables, (clean.images,), clean.labels, batches)[1][0]
            return _after_epoch(config, carry, state, means[0], loss)

        variables = dict(variables)
        begun = descent.begin(SGD, variables, hyper, measured=0)
        start = _Carry(begun, variables, least, jnp.int32(0), untuned({}, config.epochs))
        last = jax.lax.while_loop(lambda carry: carry.course.ended == Ended.NOT_RUN, epoch, start)
        return last.course._replace(variables=last.best)

    return tune


def _step(model: Model, config: Config, table: Filters, dtype: Any) -> Callable[..., State]:
    """A step of SGD on a batch of clean images and their triggered copies."""
    slope = gradient(model)

    def step(shared: Any, state: State, x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> State:
        clean, triggered, keep, hyper, network = shared
        rows, mask = x
        keys = jax.random.split(step_key(stream(network, Stream.NETWORK), state.step))
        images, with_trigger = (pixels(each[rows], dtype) for each in (clean.images, triggered))
        found, statistics, loss = slope(state.variables, images, with_trigger, clean.labels[rows], mask, keys)
        project = (lambda params: pruned(table, params, keep)) if config.freeze_pruned else None
        learned = {"batch_stats": statistics}
        return descent.descend(state, SGD, hyper, hyper.lr, found, loss[None], mask, project=project, learned=learned)

    return step


def _after_epoch(config: Config, carry: _Carry, state: State, trained: Float[Array, ""], loss: Float[Array, ""]) -> _Carry:
    """What goes on after an epoch with the mean loss ``trained``, whose network has the validation loss ``loss``."""
    course, number = carry.course, carry.course.epochs + 1
    better = state.alive & (loss < carry.least)
    waited = jnp.where(better, 0, carry.waited + 1)
    reasons = {
        Ended.NON_FINITE: ~state.alive,
        Ended.PATIENCE: waited >= config.tuning_patience,
        Ended.CAP: number >= config.epochs,
    }
    ended = first_reason(reasons)
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), state.variables, carry.best)
    course = course._replace(
        loss=course.loss.at[course.epochs].set(trained),
        validated=course.validated.at[course.epochs].set(loss.astype(jnp.float32)),
        epochs=number,
        kept=jnp.where(better, number, course.kept),
        ended=ended,
        stopped=state.stopped,
    )
    return _Carry(state, best, jnp.where(better, loss, carry.least), waited, course)
