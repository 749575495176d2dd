"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.configure import at_least, configure
from bdjax.defenses.batches import masked_mean, training_rows
from bdjax.defenses.tuning import Batch, Gradient, tuner
from bdjax.errors import choose
from bdjax.nn.normalisation import at_least_float32
from bdjax.train.schedules import cosine_by_epoch, cosine_by_step
from bdjax.types import Array, ArrayTree, Defended, DefenderView, Defense, Float, Int, Key, Model, Variables

SMALLEST = 1e-12  # added to the norm that divides the perturbation


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 100
    batch: int = 256
    period: int | None = None  # epochs (or steps) from the first learning rate down to 0
    cosine_per: str | None = None  # what the learning rate follows: "epoch" or "step"
    adaptive: bool = True  # perturb each parameter in proportion to its square (ASAM), not to its gradient alone


class FTSAMHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.01)
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(5e-4)
    rho: Any = np.float32(2.0)  # radius of the perturbation, >= 0
    smoothing: Any = np.float32(0.1)  # probability mass that the target gives to the other classes, in [0, 1)


class FTSAMTrace(NamedTuple):
    """What happened while tuning."""

    loss: Array  # f32[epochs]: mean smoothed loss of the epoch
    perturbed: Array  # f32[epochs]: the same loss at the perturbed parameters
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


PRESETS = {"corrected": Config(cosine_per="epoch"), "reference": Config(period=100, cosine_per="step")}


def ft_sam(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Fine-tune towards flat minima: descend the gradient taken at the worst parameters nearby.

    With g the gradient of the loss at θ, e = rho θ² g / (‖|θ| g‖ + 1e-12), the norm over all parameters together, and the step
    taken with the gradient at θ + e; ``adaptive=False``: e = rho g / (‖g‖ + 1e-12). The loss is KL(target ‖ softmax), the target
    1 - smoothing on the true class and smoothing/(k - 1) on each other one. Both gradients are taken in train mode, with draws of
    their own; the running statistics follow the first alone. Weight decay acts on θ.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`FTSAMHyper` and trace :class:`FTSAMTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: M. Zhu, S. Wei, L. Shen, Y. Fan, B. Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
      Minimization", ICCV 2023; settings of K. Dunnett et al., arXiv 2411.11200, 2024: rho 2 and smoothing 0.1 on every data set.
    Differs: "reference" advances the cosine once per step with a half-period of 100 steps, as the survey's published code does
      (the rate rises again after 100 steps and ends near its first value where an epoch has an even number of batches);
      "corrected" advances it once per epoch and ends at 0. For VGG's folded first linear layer θ² and |θ| g are those of the
      folded weights: equal in expectation to the whole layer's where its entries are as drawn, not entry by entry;
      ``vgg19_bn(…, fold=False)`` is exact.
    """
    config = configure(PRESETS, config, "ft_sam", profile)
    period = config.epochs if config.period is None else config.period
    config = config._replace(period=period)
    at_least("ft_sam", config, epochs=1, batch=1, period=1)
    schedules = {"epoch": cosine_by_epoch, "step": cosine_by_step}
    schedule = schedules[choose("ft_sam.cosine_per", str(config.cosine_per), schedules)](period)
    gradient = _sharp(model, bool(config.adaptive))
    tune = tuner(model, epochs=config.epochs, batch=config.batch, schedule=schedule, gradient=gradient, measured=1)

    def defend(key: Key, view: DefenderView, hyper: FTSAMHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        tuned = tune(key, view.variables, view.clean, training_rows(view.clean), hyper, (hyper.rho, hyper.smoothing))
        (perturbed,) = tuned.measured
        return Defended(tuned.variables, None, FTSAMTrace(tuned.loss, perturbed, tuned.alive, tuned.stopped))

    return Defense(defend, FTSAMHyper(), frozenset({"clean"}), config)


def smoothed_divergence(logits: Float[Array, "b k"], labels: Int[Array, " b"], smoothing: Float[Array, ""]) -> Float[Array, " b"]:
    """KL(target ‖ softmax) per row; the target gives 1 - ``smoothing`` to the true class and the rest to the others."""
    classes = logits.shape[-1]
    logits = logits.astype(at_least_float32(logits.dtype))
    smoothing = smoothing.astype(logits.dtype)
    true = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    target = true * (1 - smoothing) + (1 - true) * (smoothing / (classes - 1))
    entropy = jnp.where(target > 0, target * jnp.log(jnp.where(target > 0, target, 1)), 0)
    return jnp.sum(entropy - target * jax.nn.log_softmax(logits), -1)


def perturbation(params: ArrayTree, slope: ArrayTree, rho: Float[Array, ""], adaptive: bool) -> Any:
    """The step of length ``rho`` towards a larger loss, as a tree like ``params``; ``slope`` is their gradient."""
    size = jnp.abs if adaptive else jnp.ones_like
    scaled = jax.tree.map(lambda p, g: size(p) * g, params, slope)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(scaled)))
    return jax.tree.map(lambda p, s: rho.astype(p.dtype) * size(p) * s / (norm + SMALLEST), params, scaled)


def _sharp(model: Model, adaptive: bool) -> Gradient:
    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, " 2"]]:
        rho, smoothing = extra

        def loss(params: Any, draws: Key) -> tuple[Float[Array, ""], Any]:
            out = model.apply({**variables, "params": params}, batch.images, train=True, mask=batch.mask, key=draws)
            return masked_mean(smoothed_divergence(out.logits, batch.labels, smoothing), batch.mask), out.variables["batch_stats"]

        first, second = jax.random.split(key)
        params = variables["params"]
        (value, statistics), slope = jax.value_and_grad(loss, has_aux=True)(params, first)
        moved = jax.tree.map(jnp.add, params, perturbation(params, slope, rho, adaptive))
        (worst, _), slope = jax.value_and_grad(loss, has_aux=True)(moved, second)
        return slope, statistics, jnp.stack([value, worst])

    return gradient
