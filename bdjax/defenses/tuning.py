"""Fine-tuning on the defender's few clean rows: the loop that many defenses share, with hooks for what differs.

A defense hands :func:`tuner` a gradient, a learning-rate schedule and a projection, and gets a pure function of one member back.
Batches have static shapes: rows that are absent come last, carry mask 0 and touch nothing, neither weights nor momentum nor
running statistics nor the step counter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import SGD, Optimiser
from bdjax.train.schedules import Schedule
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Model, UInt8, Variables


class Hyper(NamedTuple):
    """Traced hyper-parameters of SGD; each f32[]."""

    lr: Any = np.float32(0.01)  # of the first epoch
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)  # on all parameters, norms and biases included


class Batch(NamedTuple):
    """What a gradient sees: augmented images f32[b h w c] in [0, 1], labels i32[b], mask f32[b] (1 = the row counts)."""

    images: Array
    labels: Array
    mask: Array


class Tuned(NamedTuple):
    """A tuned network and what happened on the way."""

    variables: Variables
    loss: Array  # f32[epochs]: mean over the batches of the epoch, unweighted
    measured: tuple[Array, ...]  # j times f32[epochs]: the further numbers of the gradient, likewise
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the step at which they did not, whence the member is frozen; -1 = none
    steps: Array  # i32[]: batches with at least one row, over all epochs


Gradient = Callable[[Variables, Batch, Any, Key], tuple[Any, Any, Array]]
# (variables, batch, extra, key) -> (gradient of the parameters, new batch statistics, loss f[] or f[1 + j] with further numbers)


class _Shared(NamedTuple):
    clean: CleanSet
    key: Key
    hyper: Any
    schedule: Any
    epoch: Array
    extra: Any


def cross_entropy_gradient(model: Model) -> Gradient:
    """Gradient of the mean cross-entropy over the rows that count, in train mode; one update of the running statistics."""

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, ""]]:
        def loss(params: Any) -> tuple[Float[Array, ""], Any]:
            out = model.apply({**variables, "params": params}, batch.images, train=True, mask=batch.mask, key=key)
            return masked_mean(cross_entropy(out.logits, batch.labels), batch.mask), out.variables["batch_stats"]

        (value, statistics), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return slope, statistics, value

    return gradient


def gathered(clean: CleanSet, extra: Any, rows: Int[Array, " b"]) -> tuple[UInt8[Array, "b h w c"], Int[Array, " b"]]:
    """The clean set's own images and labels at ``rows``."""
    return clean.images[rows], clean.labels[rows]


def tuner(
    model: Model,
    *,
    epochs: int,
    batch: int,
    schedule: Schedule,
    gradient: Gradient | None = None,
    project: Callable[[Any, Any], Any] | None = None,
    augment: bool = True,
    measured: int = 0,
    optimiser: Optimiser = SGD,
    gather: Callable[[CleanSet, Any, Array], tuple[Array, Array]] = gathered,
) -> Callable[..., Tuned]:
    """Build the fine-tuning of one member: p - lr direction, that of SGD unless ``optimiser`` is another.

    Args:
      model: network; its ``loop`` decides how the steps run.
      epochs: passes over the rows that count, at least 1.
      batch: rows per batch; the last incomplete one is kept.
      schedule: learning rate, see :mod:`bdjax.train.schedules`.
      gradient: what is descended; None = :func:`cross_entropy_gradient`.
      project: ``(params, extra) -> params`` after every step, or None.
      augment: random crops and flips as in training, drawn anew for every step.
      measured: how many numbers the gradient gives beside the loss.
      optimiser: what is built from ``hyper``, see :mod:`bdjax.train.optimisers`.
      gather: ``(clean, extra, rows i32[b]) -> (images u8 or f32 [b h w c], labels i32[b])``, before the augmentation; by default
        the rows of the clean set. With another one rows may number anything: as many as ``present`` has.

    Returns:
      ``tune(key, variables, clean: CleanSet, present: bool[n], hyper, extra=()) -> Tuned``. ``hyper`` has the leaves that the
      optimiser and the schedule read, those of :class:`Hyper` by default, and may have more; ``extra`` is any pytree of arrays
      that the hooks read: masks, a teacher.
    """
    begin, go_on = interruptible(
        model,
        epochs=epochs,
        batch=batch,
        schedule=schedule,
        gradient=gradient or cross_entropy_gradient(model),
        project=project,
        augment=augment,
        measured=measured,
        optimiser=optimiser,
        gather=gather,
    )

    def tune(
        key: Key, variables: Variables, clean: CleanSet, present: Bool[Array | np.ndarray, " n"], hyper: Any, extra: Any = ()
    ) -> Tuned:
        hyper = jax.tree.map(jnp.asarray, hyper)
        (state, _), means = go_on(key, begin(variables, hyper), clean, present, hyper, extra)
        loss, *beside = descent.columns(means)
        return Tuned(state.variables, loss, tuple(beside), state.alive, state.stopped, state.step)

    return tune


def interruptible(
    model: Model,
    *,
    epochs: int,
    batch: int,
    schedule: Schedule,
    gradient: Gradient,
    project: Callable[[Any, Any], Any] | None = None,
    augment: bool = True,
    measured: int = 0,
    optimiser: Optimiser = SGD,
    gather: Callable[[CleanSet, Any, Array], tuple[Array, Array]] = gathered,
) -> tuple[Callable[..., tuple[State, Any]], Callable[..., tuple[tuple[State, Any], Array]]]:
    """The loop of :func:`tuner`, for methods that come back to it with the optimiser as they left it.

    Args:
      Those of :func:`tuner`.

    Returns:
      ``begin(variables, hyper) -> carry`` and ``go_on(key, carry, clean, present, hyper, extra) -> (carry, means f32[epochs, 1 +
      j])``, which runs ``epochs`` epochs numbered from 0. The carry holds a :class:`State` and the schedule's own; steps are
      counted on.
    """
    step = _step(model, gradient, schedule, project, augment, optimiser, gather)

    @jax.jit
    def begin(variables: Variables, hyper: Any) -> tuple[State, Any]:
        return descent.begin(optimiser, variables, hyper, measured), schedule.init(hyper)

    @jax.jit
    def plan(key: Key, epoch: Int[Array, ""], present: Bool[Array, " n"]) -> tuple[Array, Array]:
        return epoch_plan(step_key(stream(key, Stream.ORDER), epoch), present, batch)

    @jax.jit
    def close(state: State, rate: Any) -> tuple[State, Any, Float[Array, " j"]]:
        state, means = descent.close(state)
        return state, schedule.observe(rate, means[0]), means

    def go_on(
        key: Key, carry: tuple[State, Any], clean: CleanSet, present: Bool[Array | np.ndarray, " n"], hyper: Any, extra: Any
    ) -> tuple[tuple[State, Any], Float[Array, "epochs j"]]:
        def epoch(carry: tuple[State, Any], e: Int[Array, ""]) -> tuple[tuple[State, Any], Float[Array, " j"]]:
            state, rate = carry
            shared = _Shared(clean, key, hyper, rate, e, extra)
            state, rate, means = close(run_steps(step, state, plan(key, e, present), shared, model.loop), rate)
            return (state, rate), means

        return run_epochs(epoch, carry, epochs, model.loop)

    return begin, go_on


def _step(
    model: Model,
    gradient: Gradient,
    schedule: Schedule,
    project: Callable[[Any, Any], Any] | None,
    augment: bool,
    optimiser: Optimiser,
    gather: Callable[[CleanSet, Any, Array], tuple[Array, Array]],
) -> Callable[[_Shared, State, tuple[Array, Array]], State]:
    spec = model.spec

    def step(shared: _Shared, state: State, x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> State:
        rows, mask = x
        images, labels = gather(shared.clean, shared.extra, rows)
        if augment:
            images = crop_flip(step_key(stream(shared.key, Stream.AUGMENT), state.step), images, spec.pad, spec.flip)
        network = step_key(stream(shared.key, Stream.NETWORK), state.step)
        images = to_float(images) if images.dtype == jnp.uint8 else images
        slope, statistics, loss = gradient(state.variables, Batch(images, labels, mask), shared.extra, network)
        lr = schedule.rate(shared.hyper, shared.schedule, shared.epoch, state.step)
        return descent.descend(
            state,
            optimiser,
            shared.hyper,
            lr,
            slope,
            jnp.atleast_1d(loss),
            mask,
            project=None if project is None else lambda params: project(params, shared.extra),
            learned={"batch_stats": statistics},
        )

    return step
