"""Input-aware's mask network: where in an image its pattern shows. Trained once per data set and seed, before the classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax.attacks.input_aware.networks import NARROW, Generator, standardise
from bdjax.data.augment import crop_flip, to_float
from bdjax.keys import step_key
from bdjax.train.loops import epochs, steps
from bdjax.train.optimisers import adam
from bdjax.types import Array, Bool, Dataset, DataSpec, Float, Int, Key, Loop, Variables

TINY = 1e-7  # added to the distances that divide
DECAYS = (0.5, 0.9)  # of Adam, for both networks
LOOP = Loop("scan")


class _State(NamedTuple):
    params: Any
    statistics: Any
    adam: Any
    step: Array
    stopped: Array  # i32[]: the first step that was not finite, after which nothing is learned; -1 = none
    totals: Array  # f[2]: sums of loss and density over this epoch


class _Shared(NamedTuple):
    images: Array
    crops: Key
    lr: Array


def soft_threshold(m: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Θ(m) = tanh(20 m - 10) / (2 + 1e-7) + 1/2: nearly 0 below m = 1/2 and nearly 1 above."""
    return jnp.tanh(20 * m - 10) / NARROW + 0.5


def distance(a: Float[Array, "b h w d"], b: Float[Array, "b h w d"]) -> Float[Array, " b"]:
    """sqrt(mean (a - b)² + 1e-20) over pixels and channels; the small term keeps its gradient finite at 0."""
    return jnp.sqrt(jnp.mean(jnp.square(a - b), (1, 2, 3)) + 1e-20)


def mask_training(spec: DataSpec, mask: Generator, config: Any) -> Callable[[Key, Dataset], dict[str, Any]]:
    """Train the mask network M to show little of the pattern, at places that differ between images.

    L = λ_norm mean relu(Θ(M(x1)) - δ) + λ_div mean_i d(x1_i, x2_i) / (d(Θ(M(x1_i)), Θ(M(x2_i))) + 1e-7)

    over pairs of batches x1, x2 of two independent shuffles of the training images, cropped and flipped; d is the root mean
    square difference, of the images in units of ``spec.std``. Adam with β = (0.5, 0.9); the learning rate is divided by 10 after
    2/5 of the epochs and again after 4/5: after 10 and 20 of 25.

    Args:
      spec: data set facts.
      mask: the network.
      config: the attack's configuration: mask_epochs, mask_batch, density δ, norm_weight λ_norm, div_weight λ_div, lr.

    Returns:
      ``prepare(key, dataset) -> {"params", "batch_stats", "loss": f[epochs], "density": f[epochs], "stopped": i32[]}``: the
      network, epoch means of L and of Θ(M(x1)), and the step at which a loss or gradient that was not finite froze it (-1: none).

    Source: T. A. Nguyen, A. T. Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, and the published code of "Countering
      Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation Strategies", arXiv 2411.11200, 2024.
    Differs: the last partial batch of an epoch is dropped; the published code multiplies the second term by λ_div twice, which is
      the same at 1. Its third pass of M in a step is kept in its only effect: x1 moves the running statistics twice.
    """
    optimiser = adam(DECAYS)
    step = _step(spec, mask, config, optimiser)

    def prepare(key: Key, dataset: Dataset) -> dict[str, Any]:
        images = jnp.asarray(dataset.train.images)
        rows = images.shape[0]
        batch = min(config.mask_batch, rows)
        init, crops, *orders = jax.random.split(key, 4)

        def epoch(state: _State, e: Int[Array, ""]) -> tuple[_State, Float[Array, "2"]]:
            pairs = jnp.stack([_shuffled(step_key(order, e), rows, batch) for order in orders], 1)
            shared = _Shared(images, crops, learning_rate(config.lr, e, config.mask_epochs))
            return _close(steps(step, state, pairs, shared, LOOP), rows // batch)

        state, means = epochs(epoch, _begin(mask.init(init), optimiser), config.mask_epochs, LOOP)
        return {
            "params": state.params,
            "batch_stats": state.statistics,
            "loss": means[:, 0],
            "density": means[:, 1],
            "stopped": state.stopped,
        }

    return prepare


def learning_rate(lr: float, epoch: Int[Array, ""], count: int) -> Float[Array, ""]:
    """``lr``, a tenth of it from epoch 2/5 ``count`` on and a hundredth from 4/5 ``count`` on."""
    drops = (5 * epoch >= 2 * count).astype(jnp.int32) + (5 * epoch >= 4 * count).astype(jnp.int32)
    return jnp.asarray([lr, lr / 10, lr / 100], jnp.float32)[drops]


def _shuffled(key: Key, rows: int, batch: int) -> Int[Array, "steps b"]:
    """Return the rows of every batch of an epoch, in a new order; those of the last partial batch are left out."""
    per_epoch = rows // batch
    return jax.random.permutation(key, rows)[: per_epoch * batch].reshape(per_epoch, batch)


def _begin(variables: Variables, optimiser: optax.GradientTransformation) -> _State:
    """Return the state before the first step."""
    params = variables["params"]
    dtype = jax.tree.leaves(params)[0].dtype
    return _State(params, variables["batch_stats"], optimiser.init(params), jnp.int32(0), jnp.int32(-1), jnp.zeros(2, dtype))


def _close(state: _State, per_epoch: int) -> tuple[_State, Float[Array, "2"]]:
    """Return the state at the end of an epoch, ready for the next, and the epoch's means of loss and density."""
    return state._replace(totals=jnp.zeros(2, state.totals.dtype)), state.totals / per_epoch


def _loss(spec: DataSpec, mask: Generator, config: Any) -> Callable[..., tuple[Array, Any]]:
    """Return ``loss(params, statistics, images) -> (L, (new running statistics, mean Θ(M(x1))))`` of two batches of images."""

    def loss(params: Any, statistics: Any, images: Float[Array, "2 b h w c"]) -> tuple[Float[Array, ""], Any]:
        # The first batch moves the running statistics twice: the published code passes it once more, without using the result.
        m, after = mask.pair({"params": params, "batch_stats": statistics}, images, moves=(2, 1))
        m1, m2 = soft_threshold(m)
        x1, x2 = (standardise(x.astype(m.dtype), spec) for x in images)
        spread = jnp.mean(distance(x1, x2) / (distance(m1, m2) + TINY))
        total = config.norm_weight * jnp.mean(jax.nn.relu(m1 - config.density)) + config.div_weight * spread
        return total, (after, jnp.mean(m1))

    return loss


def _step(
    spec: DataSpec, mask: Generator, config: Any, optimiser: optax.GradientTransformation
) -> Callable[[_Shared, _State, Array], _State]:
    """Return one step of Adam on a pair of batches; ``order`` names their rows."""
    loss = _loss(spec, mask, config)

    def step(shared: _Shared, state: _State, order: Int[Array, "2 b"]) -> _State:
        keys = jax.random.split(step_key(shared.crops, state.step))
        images = to_float(jnp.stack([crop_flip(keys[i], shared.images[order[i]], spec.pad, spec.flip) for i in range(2)]))
        (value, (statistics, density)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, state.statistics, images)
        direction, moments = optimiser.update(gradient, state.adam)
        params = jax.tree.map(lambda p, d: p - shared.lr.astype(p.dtype) * d, state.params, direction)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        return _taken(state, finite, (params, statistics, moments), (value, density))

    return step


def _taken(state: _State, finite: Bool[Array, ""], new: tuple[Any, Any, Any], values: tuple[Array, Array]) -> _State:
    """Return the state after a step: ``new`` (params, statistics, adam) while every step was finite, after that what it was.

    Args:
      state: before the step.
      finite: whether loss and gradient of this step are.
      new: what the step makes of the network.
      values: loss and density.
    """
    stopped = jnp.where((state.stopped < 0) & ~finite, state.step, state.stopped)
    old = (state.params, state.statistics, state.adam)
    params, statistics, moments = jax.tree.map(lambda a, b: jnp.where(stopped < 0, a, b), new, old)
    return _State(params, statistics, moments, state.step + 1, stopped, state.totals + jnp.stack(values))
