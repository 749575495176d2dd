"""NPD (Neural Polarizer): one small layer before the last block, trained to undo adversarial changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.defenses.batches import masked_mean, training_rows
from bdjax.defenses.tuning import Batch, Gradient, Hyper, tuner
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import inner
from bdjax.train.optimisers import PLAIN
from bdjax.train.schedules import constant
from bdjax.train.trainer import cross_entropy
from bdjax.types import PROFILES, Array, Defended, DefenderView, Defense, Float, Int, Key, Model, Variables

LARGEST = 80.0  # a row's loss is cut to this in the search for a perturbation
TRUE_LOGIT = -10.0  # what the true class's logit becomes before the strongest wrong class is looked for
OUTSIDE, INSIDE = 1.0001, 1e-12  # ln(OUTSIDE - p + INSIDE)
# (bound, weights of the three losses on perturbed images) per data set; others take CIFAR-10's.
PUBLISHED = {"cifar10": (3.0, 0.4), "gtsrb": (5.0, 0.5), "tiny_imagenet": (3.0, 0.4)}


class Config(NamedTuple):
    """Static configuration; None = as the profile and the data set say."""

    warmup_epochs: int = 5
    epochs: int = 50
    batch: int = 128
    inner_steps: int = 2  # of the perturbation, at most
    signed: bool | None = None  # it steps along the sign of the gradient, not along the gradient itself
    plug_train: bool | None = None  # the plug's norm takes the statistics of the batch while it is trained


PRESETS = dict.fromkeys(PROFILES, Config(signed=True, plug_train=False))
OF_DATA = {  # data sets with presets of their own
    "tiny_imagenet": {
        "corrected": Config(signed=True, plug_train=True),
        "reference": Config(signed=False, plug_train=True),
    },
}


class NPDHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    bound: Any  # of the perturbation's L2 norm, in pixels of [0, 1]
    lambda_purify: Any  # weight of the cross-entropy on perturbed images with what was predicted before
    lambda_second: Any  # weight of keeping down the likeliest wrong class there
    lambda_target: Any  # weight of keeping down the class that the perturbation aimed at
    lambda_clean: Any = np.float32(1)  # weight of the cross-entropy on clean images
    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    warmup_lr: Any = np.float32(1e-4)
    step: Any = np.float32(0.1)  # of the perturbation
    enough: Any = np.float32(0.6)  # share of a batch that, once fooled, ends the search


class NPDTrace(NamedTuple):
    """What happened while the plug was trained."""

    warmup: Array  # f32[warm-up epochs]: mean cross-entropy
    loss: Array  # f32[epochs]: mean of the whole loss
    clean: Array  # f32[epochs]: of the cross-entropy on clean images
    purified: Array  # f32[epochs]: of that on perturbed images
    fooled: Array  # f32[epochs]: share of perturbed images called what was aimed at
    alive: Array  # bool[]: losses and gradients stayed finite
    stopped: Array  # i32[]: the first step, of the warm-up or after it, at which they did not; -1 = none


def npd(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Put a 1x1 convolution and a norm before a late layer of the frozen network, and train them to purify its features.

    The plug starts as the identity. Warm-up: cross-entropy on clean rows, plain SGD, the plug's norm in train mode. Then, per
    batch, t = the strongest wrong class of each image, and up to ``inner_steps`` steps δ -= step sign(∂ mean CE(f(clamp(x + δ)),
    t)), each δ projected to L2 norm ``bound``, until ``enough`` of the batch is called t. With x' = clamp(x + δ) and p' its
    probabilities SGD descends lambda_clean CE(f(x), y) + lambda_purify CE(f(x'), argmax f(x)) - lambda_second ln(1.0001 - p'_j)
    - lambda_target ln(1.0001 - p'_t), j the likeliest class but y.

    Args:
      model: network; where the plug goes is ``model.arch.plug_site``.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense whose defended variables carry "plug" and "plug_stats", with hyper-parameters :class:`NPDHyper` and trace
      :class:`NPDTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: M. Zhu, S. Wei, H. Zha, B. Wu, "Neural Polarizer: A Lightweight and Effective Backdoor Defense via Purifying Poisoned
      Features", NeurIPS 2023; settings and places of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: on Tiny-ImageNet "reference" steps along the gradient of a mean, which hardly moves δ, and "corrected" along its sign
      as on the other data sets; the plug's norm is in train mode there in both, as in the survey, its running statistics
      following the clean images alone. Images are cropped and flipped as in the survey, not in the paper. The published code
      saves the defended model without its plug. On ``cnn`` the plug acts on the features.
    """
    config = configure(OF_DATA.get(model.spec.name, PRESETS), config, "npd", profile)
    at_least("npd", config, warmup_epochs=1, epochs=1, batch=1, inner_steps=0)
    bound, weight = (np.float32(x) for x in PUBLISHED.get(model.spec.name, PUBLISHED["cifar10"]))
    batch, schedule = config.batch, constant()
    warm = tuner(model, epochs=config.warmup_epochs, batch=batch, schedule=schedule, gradient=_warming(model), optimiser=PLAIN)
    gradient = _polarising(model, config)
    polarise = tuner(model, epochs=config.epochs, batch=batch, schedule=schedule, gradient=gradient, measured=3)

    @jax.jit
    def start(variables: Variables, hyper: Any) -> tuple[Variables, Hyper]:
        zero = jnp.zeros_like(hyper.momentum)
        return first_plug(model, variables), Hyper(hyper.warmup_lr, zero, zero)

    def defend(key: Key, view: DefenderView, hyper: NPDHyper) -> Defended:
        assert view.clean is not None
        warming, polarising = jax.random.split(key)
        hyper = jax.tree.map(jnp.asarray, hyper)
        rows, (first, slow) = training_rows(view.clean), start(view.variables, hyper)
        fast = Hyper(hyper.lr, hyper.momentum, hyper.weight_decay)
        warmed = warm(warming, first, view.clean, rows, slow, (view.variables, hyper))
        done = polarise(polarising, warmed.variables, view.clean, rows, fast, (view.variables, hyper))
        clean, purified, fooled = done.measured
        stopped = jnp.where(warmed.alive, done.stopped, warmed.stopped)
        trace = NPDTrace(warmed.loss, done.loss, clean, purified, fooled, warmed.alive & done.alive, stopped)
        plug = jax.tree.map(lambda new, old: jnp.where(warmed.alive, new, old), done.variables, warmed.variables)
        return Defended(with_plug(view.variables, plug), None, trace)

    return Defense(defend, NPDHyper(bound, weight, weight, weight), frozenset({"clean"}), config)


def first_plug(model: Model, variables: Variables) -> Variables:
    """A plug that changes nothing but for its norm's ε, as {"params": the plug, "batch_stats": its statistics}."""
    images = jax.ShapeDtypeStruct((1, *model.spec.image_shape), jnp.float32)
    site = model.arch.plug_site
    width = jax.eval_shape(lambda v, x: model.apply(v, x, record=(site,)).taps[site], dict(variables), images).shape[-1]
    dtype = jax.tree.leaves(variables["params"])[0].dtype
    one, zero = jnp.ones(width, dtype), jnp.zeros(width, dtype)
    plug = {"kernel": jnp.eye(width, dtype=dtype)[None, None], "scale": one, "bias": zero}
    return {"params": plug, "batch_stats": {"mean": zero, "var": one}}


def with_plug(variables: Variables, plug: Variables) -> dict[str, Any]:
    """The variables of a network with a plug {"params": …, "batch_stats": …} as "plug" and "plug_stats"."""
    return {**variables, "plug": plug["params"], "plug_stats": plug["batch_stats"]}


def _warming(model: Model) -> Gradient:
    def gradient(plug: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, ""]]:
        network, _ = extra

        def loss(params: Any) -> tuple[Float[Array, ""], Any]:
            variables = with_plug(network, {**plug, "params": params})
            out = model.apply(variables, batch.images, plug_train=True, mask=batch.mask)
            return masked_mean(cross_entropy(out.logits, batch.labels), batch.mask), out.variables["plug_stats"]

        (value, statistics), slope = jax.value_and_grad(loss, has_aux=True)(plug["params"])
        return slope, statistics, value

    return gradient


def projected(delta: Float[Array, "b h w c"], bound: Float[Array, ""]) -> Float[Array, "b h w c"]:
    """Every image's perturbation at L2 norm ``bound`` at most."""
    size = jnp.sqrt(jnp.sum(jnp.square(delta), (1, 2, 3), keepdims=True))
    return delta * jnp.minimum(1, bound.astype(delta.dtype) / jnp.maximum(size, jnp.finfo(delta.dtype).tiny))


def within(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pixels cut to [0, 1]. At 0 and 1 themselves the whole slope goes through, of which ``jnp.clip`` lets half."""
    return jnp.where((images >= 0) & (images <= 1), images, jnp.clip(images, 0, 1))


def targeted(
    model: Model, variables: Variables, batch: Batch, target: Int[Array | np.ndarray, " b"], hyper: Any, config: Config
) -> Float[Array, "b h w c"]:
    """δ that leads each image towards its ``target``, in pixels."""

    def logits(delta: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        return model.apply(variables, within(batch.images + delta)).logits

    def loss(delta: Float[Array, "b h w c"]) -> Float[Array, ""]:
        return masked_mean(jnp.clip(cross_entropy(logits(delta), target), -LARGEST, LARGEST), batch.mask)

    def move(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, done = carry
        slope = jax.grad(loss)(delta)
        step = jnp.sign(slope) if config.signed else slope
        new = projected(delta - hyper.step.astype(delta.dtype) * step, hyper.bound)
        delta = jnp.where(done, delta, new)
        share = masked_mean((jnp.argmax(logits(delta), -1).astype(target.dtype) == target).astype(delta.dtype), batch.mask)
        return delta, done | (share > hyper.enough.astype(share.dtype))

    return inner(config.inner_steps, move, (jnp.zeros_like(batch.images), jnp.bool_(False)), model.loop)[0]


def _polarising(model: Model, config: Config) -> Gradient:
    def gradient(plug: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Array]:
        network, hyper = extra
        images, labels, mask = batch
        images = images.astype(jax.tree.leaves(network["params"])[0].dtype)
        batch = batch._replace(images=images)
        now = with_plug(network, plug)
        z = model.apply(now, images).logits
        true = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
        seen = jnp.argmax(z, -1).astype(labels.dtype)
        target = jnp.argmax(jnp.where(true, TRUE_LOGIT, z), -1).astype(labels.dtype)
        delta = targeted(model, now, batch, target, hyper, config)
        moved = within(images + delta)

        def loss(params: Any) -> tuple[Float[Array, ""], tuple[Any, Float[Array, " 3"]]]:
            variables = with_plug(network, {**plug, "params": params})
            mode = {"plug_train": bool(config.plug_train), "mask": mask}
            out = model.apply(variables, images, **mode)
            there = model.apply(variables, moved, **mode).logits  # its statistics are not kept
            chances = jax.nn.softmax(there.astype(at_least_float32(there.dtype)))
            second = jnp.argmax(jnp.where(true, -1, chances), -1)
            clean, purified = cross_entropy(out.logits, labels), cross_entropy(there, seen)
            each = (clean, purified, _kept_down(chances, second), _kept_down(chances, target))
            weights = (hyper.lambda_clean, hyper.lambda_purify, hyper.lambda_second, hyper.lambda_target)
            parts = [masked_mean(part, mask) for part in each]
            total = sum(w.astype(part.dtype) * part for w, part in zip(weights, parts, strict=True))
            hit = masked_mean((jnp.argmax(there, -1).astype(labels.dtype) == target).astype(clean.dtype), mask)
            statistics = out.variables["plug_stats"] if config.plug_train else plug["batch_stats"]
            return total, (statistics, jnp.stack([*parts[:2], hit]))

        (value, (statistics, parts)), slope = jax.value_and_grad(loss, has_aux=True)(plug["params"])
        return slope, statistics, jnp.concatenate([value[None], parts])

    return gradient


def _kept_down(chances: Float[Array, "b k"], classes: Int[Array, " b"]) -> Float[Array, " b"]:
    """-ln(1.0001 - p + 1e-12) of each row's probability of its class."""
    mine = jax.nn.one_hot(classes, chances.shape[-1], dtype=chances.dtype)
    return -jnp.log(OUTSIDE - jnp.sum(chances * mine, -1) + INSIDE)
