"""I-BAU: unlearn a universal perturbation, with the implicit gradient of the minimax problem."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure, of_ten_thousand
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import bits_by_index, epoch_plan, masked_mean, training_rows
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import inner
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import ADAM, Optimiser, amsgrad, fixed, unfolded
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, DataSpec, Defended, DefenderView, Defense, Float, Int, Key, Loop, Model, Variables

PATCH_RULES, SPACES, OPTIMISERS = ("at_least_one", "floor"), ("pixel", "normalised"), ("amsgrad", "adam")
CONVERGED = 1e-10  # ‖v_{k+1} - v_k‖ at which the fixed-point iteration stops


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    rounds: int = 5
    iterations: int = 5  # of the fixed point, per step
    batch: int = 256
    share: float = 0.01  # of the images of a batch that the outer loss patches, in [0, 1], in steps of 1e-4
    patch_rule: str | None = None  # "floor" rounds that number down, to 0 below 100 images; "at_least_one" not below 1
    space: str | None = None  # where the perturbation lives: "pixel", images in [0, 1], or "normalised"
    optimiser: str = "amsgrad"  # or "adam"


class IBAUHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(1e-4)  # of the network
    perturbation_lr: Any = np.float32(10)
    inner_lr: Any = np.float32(0.1)  # in the map whose fixed point is sought
    penalty: Any = np.float32(1e-3)  # of ‖δ‖²


class IBAUTrace(NamedTuple):
    """What happened, by round."""

    loss: Array  # f32[rounds]: mean outer loss
    size: Array  # f32[rounds]: ‖δ‖ that the network was tuned against
    residual: Array  # f32[rounds]: mean of ‖v_{k+1} - v_k‖ where the fixed-point iteration ended
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {
    "corrected": Config(patch_rule="at_least_one", space="pixel"),
    "reference": Config(patch_rule="floor", space="normalised"),
}


def i_bau(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Alternate between one universal perturbation δ and the network, tuned with the gradient through δ's optimum.

    In each round δ starts at 0 and takes, batch by batch, δ <- δ - perturbation_lr ∇[-CE(f(x + δ), f's own classes) + penalty
    ‖δ‖²]. Then each cached batch gives L = CE of images, a ``share`` of which carry δ; with l = -CE(f(x_1 + δ), y_1) + penalty
    ‖δ‖² of the first batch and Φ = δ - inner_lr ∂l/∂δ, v <- (∂Φ/∂δ)ᵀ v + ∂L/∂δ from 0, and the network descends
    ∂L/∂θ + (∂Φ/∂θ)ᵀ v. Eval mode throughout; all parameters are tuned.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`IBAUHyper` and trace :class:`IBAUTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: Y. Zeng, S. Chen, W. Park, Z. M. Mao, M. Jin, R. Jia, "Adversarial Unlearning of Backdoors via Implicit
      Hypergradient", ICLR 2022; settings of K. Dunnett et al., arXiv 2411.11200, 2024: AMSGrad at 1e-4, batches of 256, the
      training rows.
    Differs: "reference" patches floor(n / 100) images of a batch of n, none where n < 100, and then fine-tunes on clean images
      alone; "corrected" patches at least one, as in the authors' batches of 100, and keeps δ in pixels as they do, where the
      survey's code keeps it in normalised space. In both the batches of the outer loss are augmented once and kept, those of δ
      anew in every round, and δ takes one pass, far from the optimum that the theory asks for. Second derivatives are those of
      reverse mode twice; ReLU's is 0 everywhere. VGG's folded first linear layer: see :func:`bdjax.train.optimisers.unfolded`.
    """
    config = configure(PRESETS, config, "i_bau", profile)
    at_least("i_bau", config, rounds=1, iterations=0, batch=1)
    assert config.patch_rule is not None and config.space is not None
    choose("i_bau.patch_rule", config.patch_rule, PATCH_RULES)
    choose("i_bau.space", config.space, SPACES)
    choose("i_bau.optimiser", config.optimiser, OPTIMISERS)
    of_ten_thousand("i_bau.share", config.share, ends=True)
    optimiser = ADAM if config.optimiser == "adam" else fixed(unfolded(amsgrad(), model))
    one_round = _round(model, config, optimiser)

    @jax.jit
    def start(variables: Variables, hyper: Any) -> State:
        return descent.begin(optimiser, variables, hyper, measured=1)

    def defend(key: Key, view: DefenderView, hyper: IBAUHyper) -> Defended:
        assert view.clean is not None
        clean, (kept_key, fresh_key, patch_key) = view.clean, jax.random.split(key, 3)
        hyper = jax.tree.map(jnp.asarray, hyper)
        kept, first = _cached(model.spec, config.batch, kept_key, clean)
        shared, state = (fresh_key, patch_key, clean, kept, first, hyper), start(view.variables, hyper)
        state, (means, size) = run_epochs(lambda s, number: one_round(shared, s, number), state, config.rounds, model.loop)
        loss, residual = descent.columns(means)
        return Defended(state.variables, None, IBAUTrace(loss, size, residual, state.alive, state.stopped))

    return Defense(defend, IBAUHyper(), frozenset({"clean"}), config)


@functools.partial(jax.jit, static_argnums=0)
def _plan(batch: int, key: Key, clean: CleanSet) -> tuple[Array, Array, Array, Array]:
    """Batches of one pass over the rows: rows i32[trips b], mask f32[trips b], numbers i32[trips], labels i32[trips b]."""
    rows, mask = epoch_plan(stream(key, Stream.ORDER), training_rows(clean), batch)
    return rows, mask, jnp.arange(len(rows), dtype=jnp.int32), clean.labels[rows]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cached(spec: DataSpec, batch: int, key: Key, clean: CleanSet) -> tuple[Any, Any]:
    """One augmented pass over the rows: images, labels, mask and number of each batch; and of the first all but the number."""
    rows, mask, trips, labels = _plan(batch, key, clean)
    draw = stream(key, Stream.AUGMENT)
    images = jax.lax.map(lambda x: crop_flip(step_key(draw, x[0]), clean.images[x[1]], spec.pad, spec.flip), (trips, rows))
    return (images, labels, mask, trips), (images[0], labels[0], mask[0])


def _round(model: Model, config: Config, optimiser: Optimiser) -> Callable[..., Any]:
    """``one_round(shared, state, number)``: a perturbation from 0, over fresh batches, then the network over the kept ones."""
    perturb, unlearn = _perturbing(model, config), _unlearning(model, config, optimiser)

    def one_round(shared: Any, state: State, number: Int[Array, ""]) -> tuple[State, tuple[Array, Array]]:
        fresh_key, patch_key, clean, kept, first, hyper = shared
        own = step_key(fresh_key, number)
        zero = jnp.zeros(model.spec.image_shape, jax.tree.leaves(state.variables["params"])[0].dtype)
        delta = run_steps(perturb, zero, _plan(config.batch, own, clean)[:3], (own, state.variables, clean, hyper), model.loop)
        state = run_steps(unlearn, state, kept, (step_key(patch_key, number), delta, first, hyper), model.loop)
        return _closed(state, delta)

    return one_round


@jax.jit
def _closed(state: State, delta: Float[Array, "h w c"]) -> tuple[State, tuple[Float[Array, " j"], Float[Array, ""]]]:
    """The state after a round, the means of its losses, and ‖δ‖."""
    state, means = descent.close(state)
    return state, (means, jnp.sqrt(jnp.sum(jnp.square(delta))).astype(jnp.float32))


def _perturbing(model: Model, config: Config) -> Callable[..., Array]:
    """A step of δ, away from the classes that the network sees without it."""
    spec, add = model.spec, functools.partial(_added, model, config)

    def perturb(shared: Any, delta: Float[Array, "h w c"], x: tuple[Array, Array, Array]) -> Float[Array, "h w c"]:
        key, variables, clean, hyper = shared
        rows, mask, trip = x
        images = to_float(crop_flip(step_key(stream(key, Stream.AUGMENT), trip), clean.images[rows], spec.pad, spec.flip))
        classes = jnp.argmax(model.apply(variables, images).logits, -1)

        def loss(d: Float[Array, "h w c"]) -> Float[Array, ""]:
            fooled = masked_mean(cross_entropy(model.apply(variables, add(images, d[None])).logits, classes), mask)
            return hyper.penalty.astype(d.dtype) * jnp.sum(jnp.square(d)) - fooled.astype(d.dtype)

        moved = delta - hyper.perturbation_lr.astype(delta.dtype) * jax.grad(loss)(delta)
        return jnp.where(jnp.sum(mask) > 0, moved, delta)

    return perturb


def _added(model: Model, config: Config, images: Float[Array, "b h w c"], delta: Array) -> Float[Array, "b h w c"]:
    """Pixels with a perturbation of the configured space, one for all images or one for each."""
    std = model.spec.std if config.space == "normalised" else (1.0,) * len(model.spec.std)
    return images.astype(delta.dtype) + delta * jnp.asarray(std, delta.dtype).reshape(1, 1, 1, -1)


def _unlearning(model: Model, config: Config, optimiser: Optimiser) -> Callable[..., State]:
    """A step of the network along the gradient of the outer loss, through δ's optimum."""
    add = functools.partial(_added, model, config)

    def mean_loss(params: Any, variables: Variables, images: Array, labels: Array, mask: Array) -> Float[Array, ""]:
        return masked_mean(cross_entropy(model.apply({**variables, "params": params}, images).logits, labels), mask)

    def unlearn(shared: Any, state: State, x: tuple[Array, Array, Array, Array]) -> State:
        key, delta, (first, first_labels, first_mask), hyper = shared
        images, labels, mask, trip = x
        first, images = to_float(first), to_float(images)
        variables, params = state.variables, state.variables["params"]
        chosen = patched(step_key(key, trip), mask, config)[:, None, None, None].astype(delta.dtype)

        def upper(d: Float[Array, "h w c"], p: Any) -> Float[Array, ""]:
            return mean_loss(p, variables, add(images, chosen * d[None]), labels, mask)

        def lower(d: Float[Array, "h w c"], p: Any) -> Float[Array, ""]:
            size = hyper.penalty.astype(d.dtype) * jnp.sum(jnp.square(d))
            return size - mean_loss(p, variables, add(first, d[None]), first_labels, first_mask).astype(d.dtype)

        def moved(d: Float[Array, "h w c"], p: Any) -> Float[Array, "h w c"]:
            return d - hyper.inner_lr.astype(d.dtype) * jax.grad(lower)(d, p)

        loss, (by_delta, by_params) = jax.value_and_grad(upper, (0, 1))(delta, params)
        _, back = jax.vjp(moved, delta, params)
        v, residual = fixed_point(lambda v: back(v)[0], by_delta, config.iterations, model.loop)
        slope = jax.tree.map(jnp.add, by_params, back(v)[1])
        values = jnp.stack([loss, residual.astype(loss.dtype)])
        return descent.descend(state, optimiser, hyper, hyper.lr, slope, values, mask)

    return unlearn


def patched(key: Key, mask: Float[Array | np.ndarray, " b"], config: Config) -> Float[Array, " b"]:
    """1 for the rows that get the perturbation: so many of those with mask 1, drawn at random."""
    n = jnp.sum(mask).astype(jnp.int32)
    count = n * of_ten_thousand("i_bau.share", config.share, ends=True) // 10_000
    if config.patch_rule == "at_least_one":
        count = jnp.maximum(count, 1)
    # Drawn by place, and present rows come first: padding changes no draw.
    draw = bits_by_index(key, jnp.arange(mask.shape[0], dtype=jnp.int32))
    rank = jnp.argsort(jnp.lexsort((draw, mask <= 0))).astype(jnp.int32)
    return (rank < count).astype(mask.dtype) * mask


def fixed_point(
    pull: Callable[[Array], Array], slope: Float[Array, "*s"], iterations: int, loop: Loop
) -> tuple[Float[Array, "*s"], Float[Array, ""]]:
    """v_k of v_0 = 0, v_{k+1} = ``pull(v_k)`` + ``slope``, and the length of the last change.

    ``pull`` is linear, ``loop`` how the step that calls this is executed. k is ``iterations``, or less where a change is shorter
    than :data:`CONVERGED`.
    """

    def step(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        v, change, done = carry
        new = pull(v) + slope
        length = jnp.sqrt(jnp.sum(jnp.square(new - v)))
        return jnp.where(done, v, new), jnp.where(done, change, length), done | (length < CONVERGED)

    first = (jnp.zeros_like(slope), jnp.zeros_like(slope, shape=()), jnp.bool_(False))
    v, change, _ = inner(iterations, step, first, loop)
    return v, change
