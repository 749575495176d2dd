"""PBE (its part with clean data): fine-tune on adversarial images and on clean ones in turn."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.tuning import Batch, cross_entropy_gradient
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import inner
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import SGD
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Model, Variables

SPACES, MODES = ("pixel", "normalised"), ("eval", "mixed")


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 20  # each a pass over adversarial images and one over clean ones
    batch: int = 256
    attack_steps: int = 7
    clamp_space: str | None = None  # where the perturbation lives and images are cut to [0, 1]: "pixel" or "normalised"
    attack_mode: str | None = None  # of the norms: "eval", or "mixed": in train mode but for the first batch of later epochs


class PBEHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)  # forgotten before every pass
    weight_decay: Any = np.float32(5e-4)
    radius: Any = np.float32(0.02)  # of the perturbation, in units of its space
    step: Any = np.float32(0.2)  # of it, as a share of the radius


class PBETrace(NamedTuple):
    """What happened while tuning."""

    adversarial: Array  # f32[epochs]: mean cross-entropy on adversarial images
    clean: Array  # f32[epochs]: on clean ones
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {
    "corrected": Config(clamp_space="pixel", attack_mode="eval"),
    "reference": Config(clamp_space="normalised", attack_mode="mixed"),
}


def pbe(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Fine-tune on untargeted adversarial examples with their true labels, which resemble triggered images, and on clean images.

    Per epoch a pass over adversarial images, then one over clean ones, each in its own order, SGD in train mode with fresh
    momentum. Adversarial: δ ~ U(-radius, radius), then ``attack_steps`` times δ += step radius sign(∂CE(f(x + δ), y)), δ clipped
    to the radius and x + δ to [0, 1].

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`PBEHyper` and trace :class:`PBETrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: B. Mu, Z. Niu, L. Wang, X. Wang, Q. Miao, R. Jin, G. Hua, "Progressive Backdoor Erasing via Connecting Backdoor and
      Adversarial Attacks", CVPR 2023, as K. Dunnett et al., arXiv 2411.11200, 2024, evaluate it: adversarial fine-tuning with a
      clean data set, without the purification of data, the two passes in turn in every epoch.
    Differs: "reference" repeats the survey's published code: δ lives on normalised images and they are cut to [0, 1], which on
      CIFAR-10 and Tiny-ImageNet changes them far beyond the radius; and while perturbing, the norms are in whatever mode was used
      last: in train mode, running statistics following, but for the first batch of every epoch after the first. "corrected"
      perturbs pixels in eval mode.
    """
    config = configure(PRESETS, config, "pbe", profile)
    at_least("pbe", config, epochs=1, batch=1, attack_steps=0)
    choose("pbe.clamp_space", str(config.clamp_space), SPACES)
    choose("pbe.attack_mode", str(config.attack_mode), MODES)
    epoch = _epoch(model, config)

    def defend(key: Key, view: DefenderView, hyper: PBEHyper) -> Defended:
        assert view.clean is not None
        clean, hyper = view.clean, jax.tree.map(jnp.asarray, hyper)
        shared, state = (key, clean, hyper), _begun(view.variables, hyper)
        if config.attack_mode == "mixed":  # the first epoch is another program than the others
            state, opening = epoch(shared, state, _first(), opening=True)
            losses = _stacked(opening)
            if config.epochs > 1:
                state, later = run_epochs(lambda s, e: epoch(shared, s, _after(e)), state, config.epochs - 1, model.loop)
                losses = _joined(losses, later)
        else:
            state, losses = run_epochs(lambda s, e: epoch(shared, s, e), state, config.epochs, model.loop)
        return Defended(state.variables, None, PBETrace(losses[0], losses[1], state.alive, state.stopped))

    return Defense(defend, PBEHyper(), frozenset({"clean"}), config)


# Compiled: un-jitted, their constants are sent from the host.
_first = jax.jit(lambda: jnp.int32(0))
_after = jax.jit(lambda epoch: epoch + 1)
_stacked = jax.jit(lambda values: jax.tree.map(lambda x: x[None], values))
_joined = jax.jit(lambda a, b: jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b))


@jax.jit
def _begun(variables: Variables, hyper: Any) -> State:
    return descent.begin(SGD, variables, hyper, measured=0)


def _epoch(model: Model, config: Config) -> Callable[..., Any]:
    """``epoch(shared, state, number, opening=False) -> (state, both losses)``: a pass over adversarial images, one over clean."""
    mixed = config.attack_mode == "mixed"
    still, moving, plain = (_step(model, config, mode) for mode in ("eval", "train", None))

    def epoch(shared: Any, state: State, number: Int[Array, ""], opening: bool = False) -> tuple[State, Any]:
        key, clean, hyper = shared
        first, others, every, again = _plans(config.batch, key, number, clean)
        if mixed and not opening:
            state = run_steps(still, state, first, shared, model.loop)
            if len(others[0]):
                state = run_steps(moving, state, others, shared, model.loop)
        else:
            state = run_steps(moving if mixed else still, state, every, shared, model.loop)
        state, adversarial = _closed(state, hyper)
        state, loss = _closed(run_steps(plain, state, again, shared, model.loop), hyper)
        return state, (adversarial, loss)

    return epoch


@functools.partial(jax.jit, static_argnums=0)
def _plans(batch: int, key: Key, epoch: Int[Array, ""], clean: CleanSet) -> Any:
    """Batches of the pass over adversarial images, the first, the others and all of them, and of the one over clean images."""
    rows = training_rows(clean)
    orders = (step_key(stream(own, Stream.ORDER), epoch) for own in jax.random.split(key))
    (first, second) = (epoch_plan(order, rows, batch) for order in orders)
    return jax.tree.map(lambda x: x[:1], first), jax.tree.map(lambda x: x[1:], first), first, second


@jax.jit
def _closed(state: State, hyper: Any) -> tuple[State, Float[Array, ""]]:
    """The state after a pass, with fresh momentum, and the mean loss."""
    state, means = descent.close(state)
    return descent.restarted(state, SGD, hyper), means[0]


def _step(model: Model, config: Config, attack: str | None) -> Callable[..., State]:
    """One step on a batch; ``attack``: None = clean images, else the mode in which they are perturbed."""
    spec, gradient = model.spec, cross_entropy_gradient(model)

    def step(shared: Any, state: State, x: tuple[Int[Array, " b"], Float[Array, " b"]]) -> State:
        key, clean, hyper = shared
        rows, mask = x
        images = crop_flip(step_key(stream(key, Stream.AUGMENT), state.step), clean.images[rows], spec.pad, spec.flip)
        batch, variables = Batch(to_float(images), clean.labels[rows], mask), state.variables
        if attack is not None:
            draws = step_key(stream(key, Stream.TRIGGER), state.step)
            moved, statistics = perturbed(model, config, variables, batch, hyper, draws, attack == "train")
            batch, variables = batch._replace(images=moved), {**variables, "batch_stats": statistics}
        network = step_key(stream(key, Stream.NETWORK), state.step)
        slope, statistics, loss = gradient(variables, batch, (), network)
        return descent.descend(state, SGD, hyper, hyper.lr, slope, loss[None], mask, learned={"batch_stats": statistics})

    return step


def perturbed(
    model: Model, config: Config, variables: Variables, batch: Batch, hyper: Any, key: Key, train: bool
) -> tuple[Float[Array, "b h w c"], Any]:
    """Adversarial images in pixels, and what the running statistics become."""
    dtype = jax.tree.leaves(variables["params"])[0].dtype
    pixels = batch.images.astype(dtype)
    units = ((0.0,), (1.0,)) if config.clamp_space == "pixel" else (model.spec.mean, model.spec.std)
    mean, std = (jnp.asarray(values, dtype).reshape(1, 1, 1, -1) for values in units)
    images, radius = (pixels - mean) / std, hyper.radius.astype(dtype)
    drawing, network = jax.random.split(key)

    def loss(delta: Float[Array, "b h w c"], statistics: Any, draws: Key) -> tuple[Float[Array, ""], Any]:
        seen = {**variables, "batch_stats": statistics}
        mode: dict[str, Any] = {"train": True, "mask": batch.mask, "key": draws} if train else {}
        out = model.apply(seen, (images + delta) * std + mean, **mode)
        return masked_mean(cross_entropy(out.logits, batch.labels), batch.mask), out.variables["batch_stats"]

    def move(i: Any, carry: tuple[Float[Array, "b h w c"], Any]) -> tuple[Float[Array, "b h w c"], Any]:
        delta, statistics = carry
        slope, statistics = jax.grad(loss, has_aux=True)(delta, statistics, jax.random.fold_in(network, i))
        delta = jnp.clip(delta + hyper.step.astype(dtype) * radius * jnp.sign(slope), -radius, radius)
        return jnp.clip(images + delta, 0, 1) - images, statistics

    first = radius * jax.random.uniform(drawing, images.shape, dtype, -1, 1)
    delta, statistics = inner(config.attack_steps, move, (first, variables["batch_stats"]), model.loop)
    return (images + delta) * std + mean, statistics
