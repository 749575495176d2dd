"""AWN: soften channels until the network withstands a universal perturbation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.data.augment import crop_flip, to_float
from bdjax.defenses.batches import epoch_plan, masked_mean, training_rows
from bdjax.defenses.channels import clipped, published_norms, seen_through
from bdjax.errors import choose
from bdjax.keys import Stream, step_key, stream
from bdjax.train import descent
from bdjax.train.descent import State
from bdjax.train.loops import epochs as run_epochs
from bdjax.train.loops import steps as run_steps
from bdjax.train.optimisers import PLAIN
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables

SPACES = ("pixel", "normalised")


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 20
    batch: int = 256
    clamp_space: str | None = None  # where perturbed images are cut to [0, 1]: "pixel" or "normalised"
    published_eps: bool | None = None  # MobileNet is masked with ε = 1e-5 in its norms, and evaluated so


class AWNHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)  # of the masks, in the first epoch
    decay: Any = np.float32(0.9)  # of that rate, per epoch
    perturbation_lr: Any = np.float32(10)
    bound: Any = np.float32(1000)  # of the perturbation's L1 norm, in units of the normalised image
    alpha: Any = np.float32(0.9)  # weight of the loss on images without perturbation
    l1: Any = np.float32(1e-7)  # weight of the sum of the masks


class AWNTrace(NamedTuple):
    """What happened while the masks were trained."""

    loss: Array  # f32[epochs]: mean of the whole loss
    natural: Array  # f32[epochs]: of the cross-entropy on clean images
    robust: Array  # f32[epochs]: of that on perturbed ones
    size: Array  # f32[epochs]: L1 norm of the perturbation
    kept: Array  # f32[epochs]: mean of all masks at the end of the epoch
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step of the masks at which they did not; -1 = none


PRESETS = {
    "corrected": Config(clamp_space="pixel", published_eps=False),
    "reference": Config(clamp_space="normalised", published_eps=True),
}


def awn(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Alternate between one perturbation of all images and soft masks of the channels that withstand it.

    Per epoch, in eval mode: p = 0, p += perturbation_lr ∂ mean CE(f(x + p), argmax f(x)) over the batches, then p min(1, bound /
    ‖p‖_1). Over fresh batches the masks m, factors of the norms' scales that start at 1, descend alpha CE(f(x)) + (1 - alpha)
    CE(f(clamp(x + p))) + l1 sum m, by plain SGD at lr decay^epoch, and are clipped to [0, 1]. Nothing is pruned: the network with
    its soft masks is the result.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`AWNHyper`, masks {norm: m f[d]} and trace :class:`AWNTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: S. Chai, J. Chen, "One-shot Neural Backdoor Erasing via Adversarial Weight Masking", NeurIPS 2022, in the form of K.
      Dunnett et al., arXiv 2411.11200, 2024: a mask per channel and plain SGD, where the paper has one per weight and Adam.
    Differs: "reference" cuts *normalised* images to [0, 1] as the survey's published code does, which on CIFAR-10 and
      Tiny-ImageNet leaves of an image only what lies between its channel's mean and one standard deviation above; "corrected"
      cuts pixels. "reference" masks MobileNet with ε = 1e-5 in its norms and returns what computes that.
    """
    config = configure(PRESETS, config, "awn", profile)
    at_least("awn", config, epochs=1, batch=1)
    choose("awn.clamp_space", str(config.clamp_space), SPACES)
    masked = published_norms(model) if config.published_eps else model
    start, epoch, finish = _starter(model), _epoch(masked, config), _finisher(model, masked.norm_eps)

    def defend(key: Key, view: DefenderView, hyper: AWNHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        shared, state = (key, view.variables, view.clean, hyper), start(view.variables, hyper)
        state, (means, size, kept) = run_epochs(lambda s, number: epoch(shared, s, number), state, config.epochs, masked.loop)
        loss, natural, robust = descent.columns(means)
        masks = state.variables["params"]
        trace = AWNTrace(loss, natural, robust, size, kept, state.alive, state.stopped)
        return Defended(finish(view.variables, masks), masks, trace)

    return Defense(defend, AWNHyper(), frozenset({"clean"}), config)


def _starter(model: Model) -> Callable[..., State]:
    @jax.jit
    def start(variables: Variables, hyper: Any) -> State:
        masks = tree.full_masks(variables["params"], model.arch.norms)
        return descent.begin(PLAIN, {"params": masks}, hyper, measured=2)

    return start


def _epoch(model: Model, config: Config) -> Callable[..., Any]:
    """``epoch(shared, state, number)``: a pass that makes a perturbation, then one of masks that withstand it."""
    plans, perturb, soften = _planner(model, config.batch), _perturbing(model), _softening(model, config)

    def epoch(shared: Any, state: State, number: Int[Array, ""]) -> tuple[State, Any]:
        key, variables, clean, hyper = shared
        (first, second), (once, again), p = plans(key, number, variables, clean)
        p = run_steps(perturb, p, once, (first, variables, state.variables["params"], clean, hyper), model.loop)
        p, size, rate = _bounded(p, number, hyper)
        state = run_steps(soften, state, again, (second, variables, p, rate, clean, hyper), model.loop)
        return _closed(state, size)

    return epoch


def _planner(model: Model, batch: int) -> Callable[..., Any]:
    """``plans(key, epoch, variables, clean)``: keys and batches of both passes, and a perturbation of 0."""

    @jax.jit
    def plans(key: Key, epoch: Int[Array, ""], variables: Variables, clean: CleanSet) -> Any:
        keys = jax.random.split(step_key(key, epoch))
        found = []
        for own in keys:
            rows, mask = epoch_plan(stream(own, Stream.ORDER), training_rows(clean), batch)
            found.append((rows, mask, jnp.arange(len(rows), dtype=jnp.int32)))
        none = jnp.zeros(model.spec.image_shape, jax.tree.leaves(variables["params"])[0].dtype)
        return tuple(stream(own, Stream.AUGMENT) for own in keys), found, none

    return plans


def _perturbing(model: Model) -> Callable[..., Array]:
    """A step of the perturbation, away from the classes that the masked network sees without it."""
    spec = model.spec

    def perturb(shared: Any, p: Float[Array, "h w c"], x: tuple[Array, Array, Array]) -> Float[Array, "h w c"]:
        draw, variables, masks, clean, hyper = shared
        rows, mask, trip = x
        images = to_float(crop_flip(step_key(draw, trip), clean.images[rows], spec.pad, spec.flip))
        seen = jnp.argmax(_logits(model, variables, masks, images), -1)

        def loss(p: Float[Array, "h w c"]) -> Float[Array, ""]:
            return masked_mean(cross_entropy(_logits(model, variables, masks, shifted(model, images, p)), seen), mask)

        moved = p + hyper.perturbation_lr.astype(p.dtype) * jax.grad(loss)(p)
        return jnp.where(jnp.sum(mask) > 0, moved, p)

    return perturb


@jax.jit
def _bounded(
    p: Float[Array, "h w c"], epoch: Int[Array, ""], hyper: Any
) -> tuple[Float[Array, "h w c"], Float[Array, ""], Float[Array, ""]]:
    """(the perturbation within its bound, its L1 norm, the learning rate of the masks)."""
    size = jnp.sum(jnp.abs(p))
    factor = jnp.minimum(1, hyper.bound.astype(p.dtype) / jnp.maximum(size, jnp.finfo(p.dtype).tiny))
    rate = hyper.lr * hyper.decay ** epoch.astype(hyper.decay.dtype)
    return p * factor, (size * factor).astype(jnp.float32), rate


def _softening(model: Model, config: Config) -> Callable[..., State]:
    """A step of the masks, on images as they are and on perturbed ones."""
    spec, space = model.spec, str(config.clamp_space)

    def soften(shared: Any, state: State, x: tuple[Array, Array, Array]) -> State:
        draw, variables, p, rate, clean, hyper = shared
        rows, mask, trip = x
        images = to_float(crop_flip(step_key(draw, trip), clean.images[rows], spec.pad, spec.flip))
        moved, labels = cut(model, shifted(model, images, p), space), clean.labels[rows]

        def loss(masks: Masks) -> tuple[Float[Array, ""], Float[Array, " 2"]]:
            each = [masked_mean(cross_entropy(_logits(model, variables, masks, i), labels), mask) for i in (images, moved)]
            alpha = hyper.alpha.astype(each[0].dtype)
            return alpha * each[0] + (1 - alpha) * each[1], jnp.stack(each)

        masks = state.variables["params"]
        (value, parts), slope = jax.value_and_grad(loss, has_aux=True)(masks)
        # By its sign: the slope of |m| at 0 is 0, as in PyTorch.
        slope = jax.tree.map(lambda g, m: g + hyper.l1.astype(m.dtype) * jnp.sign(m), slope, masks)
        size = jnp.sum(jnp.stack([jnp.sum(m) for m in masks.values()]))
        values = jnp.concatenate([(value + hyper.l1.astype(value.dtype) * size.astype(value.dtype))[None], parts])
        return descent.descend(state, PLAIN, hyper, rate, slope, values, mask, project=clipped)

    return soften


def _logits(model: Model, variables: Variables, masks: Masks, images: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
    return model.apply({**variables, "params": tree.mask_norms(variables["params"], masks, bias=False)}, images).logits


def shifted(model: Model, images: Float[Array, "b h w c"], p: Float[Array, "h w c"]) -> Float[Array, "b h w c"]:
    """Pixels of images to which ``p``, in units of the normalised image, is added; not cut."""
    return images.astype(p.dtype) + p[None] * _channels(model.spec.std, p.dtype)


def cut(model: Model, images: Float[Array, "b h w c"], space: str) -> Float[Array, "b h w c"]:
    """Pixels cut to [0, 1] (``space`` "pixel"), or to those whose normalised values lie in [0, 1] ("normalised")."""
    if space == "pixel":
        return jnp.clip(images, 0, 1)
    mean, std = (_channels(values, images.dtype) for values in (model.spec.mean, model.spec.std))
    return jnp.clip((images - mean) / std, 0, 1) * std + mean


def _channels(values: tuple[float, ...], dtype: Any) -> Float[Array, "1 1 1 c"]:
    return jnp.asarray(values, dtype).reshape(1, 1, 1, -1)


@jax.jit
def _closed(state: State, size: Float[Array, ""]) -> tuple[State, tuple[Array, Array, Array]]:
    """The state after an epoch, and what the trace tells of it: means of the losses, the perturbation's size, the mean mask."""
    state, means = descent.close(state)
    every = jnp.concatenate(list(state.variables["params"].values()))
    return state, (means, size, jnp.mean(every).astype(jnp.float32))


def _finisher(model: Model, eps: float) -> Callable[..., Variables]:
    """``finish(variables, masks)``: what computes in ``model`` what the masked network computes with ``eps`` in its norms."""

    @jax.jit
    def finish(variables: Variables, masks: Masks) -> Variables:
        soft = {**variables, "params": tree.mask_norms(variables["params"], masks, bias=False)}
        return seen_through(model, eps, soft)

    return finish
