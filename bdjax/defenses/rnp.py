"""RNP: unlearn the clean data, let masks alone recover them, prune what the recovery gave up."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.channels import (
    GRID,
    clipped,
    curve,
    kept,
    pruned_by_limit,
    published_norms,
    rounded,
    seen_through,
    threshold_curve,
)
from bdjax.defenses.tuning import Hyper, epoch_plan, masked_mean, training_rows
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import SGD
from bdjax.train.schedules import cosine
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Key, Masks, Model, Variables

STEP = 200  # between two thresholds, in 1 / GRID
LIMITS = (-1, *range(-1, 50 * STEP - 1, STEP))  # the network as it is, then masks below 0, 0.02 … 0.98
STARTS = ("backdoored", "random")


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    unlearn_epochs: int = 20  # at most
    recover_epochs: int = 20
    batch: int = 256
    attempts: int = 10  # at most; each after the first at a tenth of the rate of the one before
    unlearn_from: str = "backdoored"  # or "random": a fresh network without masks, as the published code did until April 2025
    augment_validation: bool | None = None  # crop and flip the rows on which accuracy is measured, drawn anew at each threshold
    published_eps: bool | None = None  # MobileNet has ε = 1e-5 in its norms throughout, and is evaluated so


class RNPHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(1e-3)  # of the unlearning, down to 0 along a cosine
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-2)  # of the unlearning, on the masks too
    stop: Any = np.float32(0.2)  # training accuracy at which the unlearning ends
    recover_lr: Any = np.float32(0.2)
    tolerance: Any = np.float32(0.02)  # drop of the accuracy that is accepted, absolute, in steps of 1e-4


class RNPTrace(NamedTuple):
    """What happened in the last attempt, and at the levels: the network as it is, then thresholds 0, 0.02 … 0.98."""

    unlearned: Array  # f32[unlearn epochs]: accuracy on the training passes of the epoch; NaN once it was low enough
    recovered: Array  # f32[recover epochs]: mean cross-entropy of the epoch
    attempts: Array  # i32[]: attempts made
    pruned: Array  # i32[51]: channels pruned at each level
    correct: Array  # i32[51]: clean rows classified correctly
    validation: Array  # i32[]: clean rows
    level: Array  # i32[]: the level that was kept
    masks: Array  # f32[channels]: the recovered masks, norm after norm in execution order
    alive: Array  # bool[]: an attempt stayed finite
    stopped: Array  # i32[]: the step of the last attempt at which it did not; -1 = none


PRESETS = {
    "corrected": Config(augment_validation=False, published_eps=False),
    "reference": Config(augment_validation=True, published_eps=True),
}


def rnp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Make the network forget the clean data, let masks of the norms' scales learn them again, prune channels that do not help.

    Unlearn: ascend the cross-entropy in train mode with all parameters and one mask per norm channel, SGD with weight decay on
    both, until the accuracy of an epoch's own passes is at most ``stop``. Recover: freeze everything but the masks, which descend
    the cross-entropy in train mode at a constant rate, clipped to [0, 1] after each step. Then, in the network as it came,
    channels with a mask, rounded to 1e-4, below 0, 0.02 … 0.98 lose their scale (not their bias); the last threshold before the
    accuracy on the clean rows drops by more than ``tolerance`` wins. An attempt that is not finite is made again at a tenth of
    the rate; where all fail nothing is pruned and the member is marked.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`RNPHyper`, masks {norm: keep f[d]} and trace :class:`RNPTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: Y. Li, X. Lyu, X. Ma, N. Koren, L. Lyu, B. Li, Y.-G. Jiang, "Reconstructive Neuron Pruning for Backdoor Defense", ICML
      2023; settings of K. Dunnett et al., arXiv 2411.11200, 2024 (the original unlearns at 0.01).
    Differs: no gradient clipping in either profile: the published code clips before there is a gradient. "reference" crops and
      flips the rows of every accuracy, so that chance can end the pruning before it begins, and has ε = 1e-5 in MobileNet's
      norms, in the returned network too. The published code crashes where all attempts fail.
    """
    config = configure(PRESETS, config, "rnp", profile)
    at_least("rnp", config, unlearn_epochs=1, recover_epochs=1, batch=1, attempts=1)
    choose("rnp.unlearn_from", config.unlearn_from, STARTS)
    masked = published_norms(model) if config.published_eps else model
    attempt = _attempts(masked, config)
    correct_by_level = curve(masked, config.batch, bool(config.augment_validation))
    norms = model.arch.norms

    @jax.jit
    def found(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        masks, told, alive, stopped = attempt(key, variables, clean, hyper)
        whole = rounded({norm: jnp.where(alive, m, 1) for norm, m in masks.items()})
        return whole, jnp.asarray(LIMITS, jnp.int32), training_rows(clean), told, alive, stopped

    @jax.jit
    def decide(variables: Variables, whole: Masks, limits: Array, correct: Array, counted: Array, hyper: Any) -> Any:
        rows = jnp.sum(counted, dtype=jnp.int32)
        level = chosen(correct, rows, hyper.tolerance)
        params = variables["params"]
        keep = kept(whole, limits[level], jax.tree.leaves(params)[0].dtype)
        pruned = pruned_by_limit(whole, limits)
        masks = jnp.concatenate([whole[norm] for norm in norms]).astype(jnp.float32) / GRID
        repaired = {**variables, "params": tree.mask_norms(params, keep, bias=False)}
        return seen_through(model, masked.norm_eps, repaired), keep, (pruned, correct, rows, level, masks)

    def defend(key: Key, view: DefenderView, hyper: RNPHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        trying, judging = jax.random.split(key)
        whole, limits, counted, told, alive, stopped = found(trying, view.variables, view.clean, hyper)
        correct = correct_by_level(judging, view.variables, view.clean, counted, whole, limits)
        variables, keep, seen = decide(view.variables, whole, limits, correct, counted, hyper)
        return Defended(variables, keep, RNPTrace(*(*told, *seen, alive, stopped)))

    along = threshold_curve(norms, LIMITS, STEP, model, masked.norm_eps)
    return Defense(defend, RNPHyper(), frozenset({"clean"}), config, curve=along)


def chosen(correct: Array, rows: Array, tolerance: Array) -> Array:
    """The last level before the accuracy drops too far below that of level 0, i32[]; levels after the first failure do not count.

    Args:
      correct: i32[L], correct rows; level 0 first.
      rows: i32[], at most 200,000 (the products are 32-bit).
      tolerance: f[] in [0, 1], rounded to 1e-4.
    """
    accepted = jnp.round(tolerance.astype(jnp.float32) * GRID).astype(jnp.int32)
    passes = GRID * (correct[0] - correct) <= accepted * rows
    return jnp.sum(jnp.cumprod(passes.astype(jnp.int32)), dtype=jnp.int32) - 1


class _Attempt(NamedTuple):
    number: Array  # i32[]: attempts made
    masks: Masks
    unlearned: Array
    recovered: Array
    alive: Array
    stopped: Array


def _attempts(model: Model, config: Config) -> Callable[..., Any]:
    """``attempt(key, variables, clean, hyper) -> (masks, (unlearned, recovered, attempts), alive, stopped)``.

    How many epochs and attempts there are depends on the data: while-loops, whose steps are scans whatever the model's loop is.
    """
    loop = model.loop._replace(kind="scan")
    unlearn, recover = _step(model, config, -1), _step(model, config, 1)
    norms, fresh = model.arch.norms, config.unlearn_from == "random"

    def plan(key: Key, epoch: Array, clean: CleanSet) -> Any:
        return epoch_plan(step_key(stream(key, Stream.ORDER), epoch), training_rows(clean), config.batch)

    def one(key: Key, variables: Variables, clean: CleanSet, hyper: Any, lr: Array) -> tuple[Masks, Array, Array, State]:
        starting, forgetting, learning = jax.random.split(key, 3)
        network = model.init(starting) if fresh else variables
        ones = tree.full_masks(variables["params"], norms)
        rates = Hyper(lr, hyper.momentum, hyper.weight_decay)
        start = {"params": {"network": network["params"], "masks": ones}, "batch_stats": network["batch_stats"]}
        rows = jnp.maximum(jnp.sum(training_rows(clean)), 1).astype(jnp.float32)

        def forgetting_on(carry: tuple[State, Array, Array]) -> Array:
            state, accuracy, epoch = carry
            low = jnp.where(epoch > 0, accuracy[epoch - 1] <= hyper.stop.astype(accuracy.dtype), False)
            return (epoch < config.unlearn_epochs) & ~low & state.alive

        def forget(carry: tuple[State, Array, Array]) -> tuple[State, Array, Array]:
            state, accuracy, epoch = carry
            rate = cosine(lr, epoch, config.unlearn_epochs)
            shared: Any = (forgetting, clean, rates, rate, {})
            state = run_steps(unlearn, state, plan(forgetting, epoch, clean), shared, loop)
            share = state.total[1] / rows
            state, _ = descent.close(state)
            return state, accuracy.at[epoch].set(share), epoch + 1

        begun = descent.begin(SGD, start, rates, measured=1)
        none = jnp.full(config.unlearn_epochs, jnp.nan, jnp.float32)
        gone, accuracy, _ = jax.lax.while_loop(forgetting_on, forget, (begun, none, jnp.int32(0)))

        # The masks go on from where the unlearning left them, which is not exactly 1.
        frozen = gone.variables["params"]["network"]
        rates = Hyper(hyper.recover_lr, hyper.momentum, jnp.zeros_like(hyper.weight_decay))
        start = {"params": {"masks": gone.variables["params"]["masks"]}, "batch_stats": gone.variables["batch_stats"]}
        begun = descent.begin(SGD, start, rates, measured=1)._replace(alive=gone.alive, stopped=gone.stopped, step=gone.step)

        def learn(state: State, epoch: Array) -> tuple[State, Array]:
            shared = (learning, clean, rates, hyper.recover_lr, {"network": frozen})
            state, means = descent.close(run_steps(recover, state, plan(learning, epoch, clean), shared, loop))
            return state, means[0]

        state, loss = jax.lax.scan(learn, begun, jnp.arange(config.recover_epochs, dtype=jnp.int32))
        return state.variables["params"]["masks"], accuracy, loss, state

    def attempt(key: Key, variables: Variables, clean: CleanSet, hyper: Any) -> Any:
        def again(carry: _Attempt) -> Array:
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


def _step(model: Model, config: Config, sign: int) -> Callable[..., State]:
    """One step down ``sign`` times the cross-entropy, in the parameters that the state holds."""
    spec, frozen_masks = model.spec, sign < 0 and config.unlearn_from == "random"

    def project(free: Any) -> Any:
        if sign > 0:
            return {"masks": clipped(free["masks"])}
        return {**free, "masks": jax.tree.map(jnp.ones_like, free["masks"])} if frozen_masks else free

    def step(shared: Any, state: State, x: tuple[Array, Array]) -> State:
        key, clean, rates, lr, rest = shared
        rows, mask = x
        images = crop_flip(step_key(stream(key, Stream.AUGMENT), state.step), clean.images[rows], spec.pad, spec.flip)
        images, labels = to_float(images), clean.labels[rows]
        draws = step_key(stream(key, Stream.NETWORK), state.step)

        def loss(free: Any) -> tuple[Array, tuple[Array, Any]]:
            both = {**rest, **free}
            params = tree.mask_norms(both["network"], both["masks"], bias=False)
            variables = {"params": params, "batch_stats": state.variables["batch_stats"]}
            out = model.apply(variables, images, train=True, mask=mask, key=draws)
            right = jnp.sum((jnp.argmax(out.logits, -1).astype(labels.dtype) == labels).astype(mask.dtype) * mask)
            return sign * masked_mean(cross_entropy(out.logits, labels), mask), (right, out.variables["batch_stats"])

        (value, (right, statistics)), slope = jax.value_and_grad(loss, has_aux=True)(state.variables["params"])
        told = jnp.stack([value, right.astype(value.dtype)])
        return descent.descend(state, SGD, rates, lr, slope, told, mask, project=project, learned={"batch_stats": statistics})

    return step
