"""ANP: train masks that keep accuracy while channels are perturbed adversarially; prune where the mask gave way."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import training_rows
from bdjax.defenses.channels import GRID, clipped, curve, kept, pruned_by_limit, published_norms, rounded, threshold_curve
from bdjax.defenses.reads import reads
from bdjax.keys import step_key
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import inner
from bdjax.train.loops import rounds as run_rounds
from bdjax.train.optimisers import SGD
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables

STEP = 500  # between two thresholds, in 1 / GRID
LIMITS = (-1, *range(0, 19 * STEP, STEP))  # the network as it is, then thresholds 0, 0.05 … 0.90


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    iterations: int = 2000
    batch: int = 256  # rows per iteration, drawn with replacement
    inner_steps: int = 1  # of the perturbation
    judged_by_test: bool | None = None  # the accuracy to keep is that on the test set, and being better is as bad as being worse
    augment_validation: bool | None = None  # crop and flip the validation rows, drawn anew at each threshold
    published_eps: bool | None = None  # masks of MobileNet are trained with ε = 1e-5 in its norms


class ANPHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)  # of the masks
    momentum: Any = np.float32(0.9)
    eps: Any = np.float32(0.4)  # half-width of the first draw of the perturbation, and what its steps add up to
    alpha: Any = np.float32(0.2)  # weight of the loss without perturbation
    tolerance: Any = np.float32(0.1)  # relative change of the accuracy that is accepted, in steps of 1e-4
    weight_decay: Any = np.float32(0)


class ANPTrace(NamedTuple):
    """What happened in the iterations, and at the levels: the network as it is, then thresholds 0, 0.05 … 0.90."""

    natural: Array  # f32[iterations]: cross-entropy without perturbation
    perturbed: Array  # f32[iterations]: under it
    pruned: Array  # i32[20]: channels pruned at each level
    correct: Array  # i32[20]: validation rows classified correctly
    validation: Array  # i32[]: validation rows
    level: Array  # i32[]: the level that was kept
    masks: Array  # f32[channels]: the trained masks, norm after norm in execution order
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first iteration in which they did not; -1 = none


PRESETS = {
    "corrected": Config(judged_by_test=False, augment_validation=False, published_eps=False),
    "reference": Config(judged_by_test=True, augment_validation=True, published_eps=True),
}


@reads("norms")
def anp(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Train one mask per norm channel against adversarial perturbations of the channels, and prune the channels with small masks.

    Per iteration d, e ~ U(-eps, eps) per channel, then ascend: d += (eps / steps) sign(∂CE/∂d), e alike, of the network with
    scales scale (m + d) and biases bias (1 + e); |d|, |e| may reach 2 eps. m descends alpha CE(scale m) + (1 - alpha)
    CE(perturbed) by SGD and is clipped to [0, 1]. Train mode throughout; running statistics are thrown away. Then channels with
    m, rounded to 1e-4, at most 0, 0.05 … 0.90 lose their scale (not their bias), and the largest threshold that keeps the
    accuracy on the validation rows within ``tolerance`` wins, whatever smaller ones do; where there is none nothing is pruned.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with validation rows, hyper-parameters :class:`ANPHyper`, masks {norm: keep f[d]} and trace :class:`ANPTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: D. Wu, Y. Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021; settings of K. Dunnett et
      al., arXiv 2411.11200, 2024 (the original's rate is 0.2).
    Differs: "corrected" keeps the accuracy of the validation rows themselves, 10000 (c_0 - c_t) <= round(10000 tolerance) c_0,
      and prunes nothing where c_0 = 0.
      "reference" needs the accuracy on the *test* set, as the survey's published code does, and refuses a network that is better
      on its validation rows than that by the tolerance, so that where training rows are known much better than test rows it
      prunes until they are not; it crops and flips validation rows, and trains masks of MobileNet with ε = 1e-5.
    """
    config = configure(PRESETS, config, "anp", profile)
    at_least("anp", config, iterations=1, batch=1, inner_steps=1)
    norms, masked = model.arch.norms, published_norms(model) if config.published_eps else model
    start, iteration, recorded = _starter(norms, config.iterations), _iteration(masked, config), _recorder(norms)
    in_grid, correct_by_level = jax.jit(rounded), curve(model, config.batch, bool(config.augment_validation))

    def defend(key: Key, view: DefenderView, hyper: ANPHyper) -> Defended:
        assert view.clean is not None and (view.test_accuracy is not None or not config.judged_by_test)
        hyper = jax.tree.map(jnp.asarray, hyper)
        carry, rows, (drawing, network, judging), limits, trips, validation = start(key, view, hyper)
        shared = (drawing, network, view.variables, view.clean, rows, hyper)
        state, history = run_rounds(iteration, carry, trips, shared, model.loop)
        grid = in_grid(state.variables["params"])
        correct = correct_by_level(judging, view.variables, view.clean, validation, grid, limits)
        test = view.test_accuracy if config.judged_by_test else None
        params, keep, seen = _decide(view.variables, grid, limits, correct, validation, test, hyper)
        natural, perturbed, masks = recorded(history, grid)
        trace = ANPTrace(*(natural, perturbed, *seen, masks, state.alive, state.stopped))
        return Defended({**view.variables, "params": params}, keep, trace)

    needs = {"clean", "test_accuracy"} if config.judged_by_test else {"clean"}
    along = threshold_curve(norms, LIMITS, STEP, model, model.norm_eps)
    return Defense(defend, ANPHyper(), frozenset(needs), config, validation=True, curve=along)


def _starter(norms: tuple[str, ...], iterations: int) -> Callable[..., Any]:
    """``start(key, view, hyper)``: (masks of 1, losses), (rows, how many train), keys, limits, trips, validation rows bool[n]."""

    @jax.jit
    def start(key: Key, view: DefenderView, hyper: Any) -> Any:
        assert view.clean is not None
        rows = training_rows(view.clean)
        order = jnp.argsort(~rows, stable=True).astype(jnp.int32)  # those that train come first
        masks = tree.full_masks(view.variables["params"], norms)
        state = descent.begin(SGD, {"params": masks}, hyper, measured=0)
        history = jnp.zeros((2, iterations), jnp.float32)
        keys = tuple(jax.random.split(key, 3))
        limits = jnp.asarray(LIMITS, jnp.int32)
        trips = jnp.arange(iterations, dtype=jnp.int32)
        return (state, history), (order, jnp.sum(rows, dtype=jnp.int32)), keys, limits, trips, view.clean.role == 2

    return start


def _iteration(model: Model, config: Config) -> Callable[..., Any]:
    """A step of the masks on rows drawn with replacement: noise, its ascent, then the descent of both losses together."""
    spec, loss = model.spec, _loss(model)

    def step(shared: Any, carry: tuple[State, Array], trip: Int[Array, ""]) -> tuple[State, Array]:
        drawing, network, variables, clean, (order, count), hyper = shared
        state, history = carry
        choosing, cropping, shaking = jax.random.split(step_key(drawing, trip), 3)
        rows = order[jax.random.randint(choosing, (config.batch,), 0, jnp.maximum(count, 1), jnp.int32)]
        images = to_float(crop_flip(cropping, clean.images[rows], spec.pad, spec.flip))
        labels, masks = clean.labels[rows], state.variables["params"]
        up, plain, shaken = (jax.random.fold_in(step_key(network, trip), i) for i in range(3))

        def perturbed(noise: tuple[Masks, Masks], masks: Masks, key: Key) -> Float[Array, ""]:
            scales = jax.tree.map(jnp.add, masks, noise[0])
            return loss(variables, scales, jax.tree.map(lambda e: 1 + e, noise[1]), images, labels, key)

        def ascend(i: Any, noise: tuple[Masks, Masks]) -> tuple[Masks, Masks]:
            slope = jax.grad(perturbed)(noise, masks, jax.random.fold_in(up, i))
            size = hyper.eps / config.inner_steps
            return jax.tree.map(lambda n, g: n + size.astype(n.dtype) * jnp.sign(g), noise, slope)

        noise = inner(config.inner_steps, ascend, shake(shaking, masks, hyper.eps), model.loop)

        def both(masks: Masks) -> tuple[Float[Array, ""], Float[Array, " 2"]]:
            natural, worst = loss(variables, masks, {}, images, labels, plain), perturbed(noise, masks, shaken)
            alpha = hyper.alpha.astype(natural.dtype)
            return alpha * natural + (1 - alpha) * worst, jnp.stack([natural, worst])

        (total, losses), slope = jax.value_and_grad(both, has_aux=True)(masks)
        history = history.at[:, trip].set(losses.astype(history.dtype))
        present = jnp.full(1, count > 0, jnp.float32)
        return descent.descend(state, SGD, hyper, hyper.lr, slope, total[None], present, project=clipped), history

    return step


def _loss(model: Model) -> Callable[..., Array]:
    """The mean cross-entropy in train mode, with the norms' scales and biases multiplied by those given."""

    def loss(variables: Variables, scales: Masks, biases: Masks, images: Array, labels: Array, key: Key) -> Float[Array, ""]:
        params = tree.scale_norms(variables["params"], scales, biases)
        return jnp.mean(cross_entropy(model.apply({**variables, "params": params}, images, train=True, key=key).logits, labels))

    return loss


def shake(key: Key, masks: Masks, eps: np.floating | Float[Array, ""]) -> tuple[Masks, Masks]:
    """(d, e), each {norm: f[d]} like ``masks``, from U(-eps, eps) per channel."""
    drawn = []
    for part in jax.random.split(key):
        keys = jax.random.split(part, len(masks))
        each = zip(keys, masks.items(), strict=True)
        drawn.append({norm: eps.astype(m.dtype) * jax.random.uniform(k, m.shape, m.dtype, -1, 1) for k, (norm, m) in each})
    return drawn[0], drawn[1]


@jax.jit
def _decide(variables: Variables, grid: Masks, limits: Array, correct: Array, validation: Array, test: Any, hyper: Any) -> Any:
    """(pruned parameters, keep factors, (pruned and correct by level, validation rows, the level that was chosen))."""
    count = jnp.sum(validation, dtype=jnp.int32)
    level = chosen(correct, count, test, hyper.tolerance)
    params = variables["params"]
    keep = kept(grid, limits[level], jax.tree.leaves(params)[0].dtype)
    pruned = pruned_by_limit(grid, limits)
    return tree.mask_norms(params, keep, bias=False), keep, (pruned, correct, count, level)


def chosen(
    correct: Int[Array, " L"], rows: Int[Array, ""], test_accuracy: Float[Array, ""] | None, tolerance: Float[Array, ""]
) -> Int[Array, ""]:
    """The last level that keeps the accuracy; 0, the network as it is, where none does or no row is right to begin with.

    Args:
      correct: validation rows that are correct by level; level 0 first. At most 200,000 rows (the products are 32-bit).
      rows: how many validation rows there are.
      test_accuracy: to be kept from both sides, strictly; None = that of level 0, from below.
      tolerance: in [0, 1], rounded to 1e-4.
    """
    if test_accuracy is None:
        accepted = jnp.round(tolerance.astype(jnp.float32) * GRID).astype(jnp.int32)
        passes = (correct[0] > 0) & (GRID * (correct[0] - correct) <= accepted * correct[0])
    else:
        accuracy = correct.astype(jnp.float32) / jnp.maximum(rows, 1).astype(jnp.float32)
        goal = test_accuracy.astype(jnp.float32)
        passes = jnp.abs(accuracy - goal) < tolerance.astype(jnp.float32) * goal
    levels = jnp.arange(correct.shape[0], dtype=jnp.int32)
    return jnp.max(jnp.where(passes, levels, 0))


def _recorder(norms: tuple[str, ...]) -> Callable[..., tuple[Array, Array, Array]]:
    """``recorded(history, grid)``: both losses by iteration, and all masks, norm after norm."""

    @jax.jit
    def recorded(history: Float[Array, "2 iterations"], grid: Masks) -> tuple[Array, Array, Array]:
        masks = jnp.concatenate([grid[norm] for norm in norms]).astype(jnp.float32) / GRID
        return history[0], history[1], masks

    return recorded
