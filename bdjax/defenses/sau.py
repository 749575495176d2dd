"""SAU: unlearn the adversarial examples that fool the tuned and the backdoored network alike."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.defenses.batches import masked_mean, training_rows
from bdjax.defenses.tuning import Batch, Gradient, tuner
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.loops import inner
from bdjax.train.optimisers import amsgrad, fixed, unfolded
from bdjax.train.schedules import constant
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, Defended, DefenderView, Defense, Float, Key, Model, Variables

LEAST = 1e-8  # of a probability in the divergence
INSIDE, EDGE = 1e-6, 1e-3  # added inside the logarithms of the shared loss; where its probabilities are cut


class Config(NamedTuple):
    """Static configuration; None = as the data set says."""

    epochs: int | None = None  # passes over the clean rows
    batch: int = 256
    attack_steps: int = 5  # of the perturbation
    train_bn: bool = False  # batch-norm in train mode in the unlearning step


class SAUHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(1e-4)
    radius: Any = np.float32(0.2)  # bound, step and start of the perturbation, in pixels of [0, 1]
    beta_adversarial: Any = np.float32(0.01)  # in the perturbation's objective
    beta_shared: Any = np.float32(1)
    lambda_clean: Any = np.float32(1)  # in the unlearning loss
    lambda_adversarial: Any = np.float32(0)
    lambda_shared: Any = np.float32(1)


class SAUTrace(NamedTuple):
    """What happened, by epoch."""

    loss: Array  # f32[epochs]: mean unlearning loss
    clean: Array  # f32[epochs]: its cross-entropy on clean images
    shared: Array  # f32[epochs]: its shared adversarial loss
    fooled: Array  # f32[epochs]: share of images whose perturbation fools the backdoored network
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


EPOCHS = {"tiny_imagenet": 20}  # other data sets: 100


def sau(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Find per-image perturbations that fool the tuned network θ and the backdoored θ0 to one class, and unlearn that class.

    Both networks run in eval mode; θ's norms keep their statistics and are tuned otherwise. The perturbation starts at +radius
    and takes sign steps of that size, kept within it, down beta_a L_adv + beta_s L_js: L_adv = -CE of each network on images that
    do not fool it yet, halved, and L_js the Jensen-Shannon divergence of their predictions on images not shared yet (fooled, to
    one class). Then AMSGrad descends lambda_clean CE(x) + lambda_adversarial CE(x + δ) + lambda_shared L_sh,
    L_sh = -1/(2n) sum over images that fool θ0 of ln(1e-6 + min(1 - p, .999)) + ln(1 + 1e-6 - max(p, .001)), with p what θ gives
    at x + δ to the class that θ0 sees there. No augmentation.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference"; they are the same.

    Returns:
      A defense with hyper-parameters :class:`SAUHyper` and trace :class:`SAUTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: S. Wei, M. Zhang, H. Zha, B. Wu, "Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning Shared Adversarial
      Examples", NeurIPS 2023; settings of K. Dunnett et al., arXiv 2411.11200, 2024: 100 epochs, 20 on Tiny-ImageNet.
    Differs: the same in both profiles. As in the survey, norms stay in eval mode (``train_bn`` switches the unlearning step to
      train mode) and lambda_adversarial is 0. The published loop stops perturbing once all images are shared; a shared image has
      gradient 0 and no longer moves, so the fixed number of steps here is the same. VGG's folded first linear layer: see
      :func:`bdjax.train.optimisers.unfolded`.
    """
    preset = Config(epochs=EPOCHS.get(model.spec.name, 100))
    config = configure(dict.fromkeys(("corrected", "reference"), preset), config, "sau", profile)
    at_least("sau", config, epochs=1, batch=1, attack_steps=0)
    assert config.epochs is not None
    tune = tuner(
        model,
        epochs=config.epochs,
        batch=config.batch,
        schedule=constant(),
        gradient=_unlearning(model, config),
        augment=False,
        measured=3,
        optimiser=fixed(unfolded(amsgrad(), model)),
    )

    def defend(key: Key, view: DefenderView, hyper: SAUHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        tuned = tune(key, view.variables, view.clean, training_rows(view.clean), hyper, (view.variables, hyper))
        clean, shared, fooled = tuned.measured
        return Defended(tuned.variables, None, SAUTrace(tuned.loss, clean, shared, fooled, tuned.alive, tuned.stopped))

    return Defense(defend, SAUHyper(), frozenset({"clean"}), config)


def _probabilities(logits: Float[Array, "b k"]) -> Float[Array, "b k"]:
    return jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))


def _divergence(p: Float[Array, "b k"], q: Float[Array, "b k"]) -> Float[Array, " b"]:
    """Jensen-Shannon divergence per row, of probabilities of at least :data:`LEAST`."""
    p, q = (jnp.maximum(x, LEAST) for x in (p, q))
    middle = (p + q) / 2
    return jnp.sum((p * jnp.log(p) + q * jnp.log(q)) / 2 - middle * jnp.log(middle), -1)


def shared_perturbation(
    model: Model, variables: Variables, before: Variables, batch: Batch, hyper: Any, steps: int
) -> Float[Array, "b h w c"]:
    """δ in {-radius, 0, radius}: pixels that fool ``variables`` and ``before`` to the same class."""
    images = batch.images
    seen, seen_before = (jnp.argmax(model.apply(v, images).logits, -1) for v in (variables, before))
    radius = hyper.radius.astype(images.dtype)

    def objective(delta: Float[Array, "b h w c"]) -> Float[Array, ""]:
        z, z0 = (model.apply(v, images + delta).logits for v in (variables, before))
        now, now0 = jnp.argmax(z, -1), jnp.argmax(z0, -1)
        fooled, fooled0 = now != seen, now0 != seen_before
        both = fooled & fooled0 & (now == now0)
        adversarial = jnp.where(fooled, 0, cross_entropy(z, batch.labels)) + jnp.where(
            fooled0, 0, cross_entropy(z0, batch.labels)
        )
        apart = jnp.where(both, 0, _divergence(_probabilities(z), _probabilities(z0)))
        # Per image, so the batch's size does not matter to the signs.
        return jnp.sum(hyper.beta_shared.astype(z.dtype) * apart - hyper.beta_adversarial.astype(z.dtype) / 2 * adversarial)

    def move(_: Any, delta: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return jnp.clip(delta - radius * jnp.sign(jax.grad(objective)(delta)), -radius, radius)

    return inner(steps, move, jnp.full_like(images, 1) * radius, model.loop)


def _unlearning(model: Model, config: Config) -> Gradient:
    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, " 4"]]:
        before, hyper = extra
        images, labels, mask = batch
        delta = shared_perturbation(model, variables, before, batch, hyper, config.attack_steps)
        both = jnp.concatenate([images, images + delta])
        seen_before, there_before = jnp.split(jnp.argmax(model.apply(before, both).logits, -1).astype(labels.dtype), 2)
        fooled = (there_before != labels) & (there_before != seen_before)

        def loss(params: Any) -> tuple[Float[Array, ""], tuple[Any, Float[Array, " 2"]]]:
            counted = jnp.concatenate([mask, mask])
            out = model.apply({**variables, "params": params}, both, train=config.train_bn, mask=counted, key=key)
            clean, there = jnp.split(out.logits, 2)
            chances = _probabilities(there)
            mine = jax.nn.one_hot(there_before, chances.shape[-1], dtype=chances.dtype)
            p, others = jnp.sum(chances * mine, -1), jnp.sum(chances * (1 - mine), -1)
            term = jnp.log(INSIDE + jnp.minimum(others, 1 - EDGE)) + jnp.log(1 + INSIDE - jnp.maximum(p, EDGE))
            shared = masked_mean(jnp.where(fooled, -term / 2, 0), mask)
            plain, adversarial = (masked_mean(cross_entropy(z, labels), mask) for z in (clean, there))
            weights = (hyper.lambda_clean, hyper.lambda_adversarial, hyper.lambda_shared)
            parts = zip(weights, (plain, adversarial, shared), strict=True)
            total = sum(w.astype(part.dtype) * part for w, part in parts)
            return total, (out.variables["batch_stats"], jnp.stack([plain, shared]))

        (value, (statistics, parts)), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        share = masked_mean(fooled.astype(value.dtype), mask)
        return slope, statistics, jnp.concatenate([value[None], parts, share[None]])

    return gradient
