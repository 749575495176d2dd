"""FST: a fresh classifier, pushed away from the old one, so that the features must shift."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.defenses.batches import training_rows
from bdjax.defenses.reads import reads
from bdjax.defenses.tuning import Batch, Gradient, cross_entropy_gradient, tuner
from bdjax.errors import choose
from bdjax.train.optimisers import SGD, Optimiser
from bdjax.train.schedules import cosine_by_epoch
from bdjax.types import Array, ArrayTree, Defended, DefenderView, Defense, Float, Key, Model, Variables

VARIANTS = ("full", "head_only")


class Config(NamedTuple):
    """Static configuration; None = as the profile and the data set say."""

    epochs: int | None = None
    batch: int = 256
    variant: str = "full"  # "head_only": the last layer alone is tuned, without penalty and rescaling


class FSTHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any
    alpha: Any  # weight of the penalty, sum over the head's layers of <old weight, new weight>
    momentum: Any = np.float32(0.9)
    weight_decay: Any = np.float32(0)


class FSTTrace(NamedTuple):
    """What happened while tuning."""

    loss: Array  # f32[epochs]: mean cross-entropy of the epoch
    overlap: Array  # f32[epochs]: sum over the head's layers of <old weight, new weight>, mean of the epoch
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the first step at which they did not; -1 = none


# (epochs, learning rate, alpha) per data set; others take CIFAR-10's.
PUBLISHED = {"cifar10": (10, 0.01, 0.2), "gtsrb": (15, 0.01, 0.1), "tiny_imagenet": (15, 0.001, 0.001)}
OPTION_DEFAULTS = (15, 0.01, 0.2)


@reads("heads")
def fst(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Draw the head anew and tune the whole network, the head's weights driven away from the old ones at their old norm.

    loss = CE + alpha sum_i <W0_i, W_i> over the head's linear layers, W0 the old weights; plain SGD, cosine to 0 over the epochs;
    after every step W_i <- W_i ‖W0_i‖ / ‖W_i‖ (Frobenius). New weights and biases start from U(-b, b), b = 1/sqrt(fan-in).

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" (the paper's values per data set) or "reference" (the option defaults of the published code, which
        override them there).

    Returns:
      A defense with hyper-parameters :class:`FSTHyper` and trace :class:`FSTTrace`.

    Raises:
      UserError: an unknown field, value or profile, or a value out of range.

    Source: R. Min, Z. Qin, L. Shen, M. Cheng, "Towards Stable Backdoor Purification through Feature Shift Tuning", NeurIPS 2023;
      settings of K. Dunnett et al., arXiv 2411.11200, 2024.
    Differs: as in the survey, in both profiles, all linear layers of the head are drawn anew and not the last one alone, and a
      batch has 256 rows (paper: 128). The cosine spans the epochs of any length. ``variant="head_only"`` is the first public
      revision of the survey's code, whose numbers may be the published ones: backbone frozen but for its running statistics, no
      penalty, no rescaling, the last layer alone drawn anew. VGG's folded first linear layer is drawn from the normal
      distribution with the published layer's variance, to which sums of its 49 copies are close; inner products and norms are
      those of the whole layer as far as the data can see it. Data sets that the paper does not name take CIFAR-10's values.
    """
    published = PUBLISHED.get(model.spec.name, PUBLISHED["cifar10"])
    epochs, lr, alpha = OPTION_DEFAULTS if profile == "reference" else published
    config = configure(dict.fromkeys(("corrected", "reference"), Config(epochs=epochs)), config, "fst", profile)
    at_least("fst", config, epochs=1, batch=1)
    choose("fst.variant", config.variant, VARIANTS)
    full, length = config.variant == "full", config.epochs
    assert length is not None  # the presets have one
    heads = model.arch.heads if full else model.arch.heads[-1:]
    tune = tuner(
        model,
        epochs=length,
        batch=config.batch,
        schedule=cosine_by_epoch(length),
        gradient=_shifting(model, full),
        project=(lambda params, extra: rescaled(params, extra[0])) if full else None,
        measured=1,
        optimiser=SGD if full else _only(heads),
    )

    @jax.jit
    def begin(key: Key, variables: Variables) -> tuple[dict[str, Any], dict[str, Array]]:
        params = variables["params"]
        old = {f"{head}/kernel": tree.get(params, head)["kernel"] for head in heads}
        return {**variables, "params": redrawn(key, params, heads, model.arch.copies, model.arch.heads[0])}, old

    def defend(key: Key, view: DefenderView, hyper: FSTHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        drawing, tuning = jax.random.split(key)
        variables, old = begin(drawing, view.variables)
        tuned = tune(tuning, variables, view.clean, training_rows(view.clean), hyper, (old, hyper.alpha))
        (overlap,) = tuned.measured
        return Defended(tuned.variables, None, FSTTrace(tuned.loss, overlap, tuned.alive, tuned.stopped))

    return Defense(defend, FSTHyper(np.float32(lr), np.float32(alpha)), frozenset({"clean"}), config)


def redrawn(key: Key, params: ArrayTree, heads: tuple[str, ...], copies: float, first: str) -> dict[str, Any]:
    """``params`` with new linear layers at ``heads``, weights and biases from U(-b, b), b = 1/sqrt(fan-in).

    Kernels are f[fan-in, d], biases f[d]. Where the layer at ``first`` stands for ``copies`` times as many inputs, they count in
    the fan-in, and its weights, sums of that many, come from the normal distribution of the same variance.
    """
    new = {}
    for i, head in enumerate(heads):
        layer, (weights, biases) = tree.get(params, head), jax.random.split(jax.random.fold_in(key, i))
        kernel, bias = layer["kernel"], layer["bias"]
        folded = head == first and copies > 1
        bound = 1 / math.sqrt(kernel.shape[0] * (copies if folded else 1))
        if folded:
            drawn = jax.random.normal(weights, kernel.shape, kernel.dtype) * (bound / math.sqrt(3))
        else:
            drawn = jax.random.uniform(weights, kernel.shape, kernel.dtype, -bound, bound)
        new[head] = {"kernel": drawn, "bias": jax.random.uniform(biases, bias.shape, bias.dtype, -bound, bound)}
    return tree.replace(params, new)


def rescaled(params: ArrayTree, old: Mapping[str, Array]) -> dict[str, Any]:
    """``params`` with every matrix at the paths of ``old`` {path: f[n d]} brought to the Frobenius norm it has there."""
    values = {}
    for path, before in old.items():
        now = tree.get(params, path)
        values[path] = now * (jnp.sqrt(jnp.sum(jnp.square(before))) / jnp.sqrt(jnp.sum(jnp.square(now))))
    return tree.replace(params, values)


def _only(heads: tuple[str, ...]) -> Optimiser:
    """SGD that moves the layers at ``heads`` alone: the others get no weight decay either."""

    def optimiser(hyper: Any) -> optax.GradientTransformation:
        rule = SGD(hyper)

        def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            step, state = rule.update(gradient, state, params)
            return tree.replace(jax.tree.map(jnp.zeros_like, step), {head: tree.get(step, head) for head in heads}), state

        return optax.GradientTransformation(rule.init, update)

    return optimiser


def _shifting(model: Model, full: bool) -> Gradient:
    plain = cross_entropy_gradient(model)

    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, " 2"]]:
        old, alpha = extra
        slope, statistics, loss = plain(variables, batch, (), key)
        overlap = jnp.stack([jnp.sum(before * tree.get(variables["params"], path)) for path, before in old.items()]).sum()
        if full:  # the penalty is linear: its gradient is alpha W0
            slope = tree.replace(slope, {path: tree.get(slope, path) + alpha.astype(w.dtype) * w for path, w in old.items()})
        return slope, statistics, jnp.stack([loss, overlap.astype(loss.dtype)])

    return gradient
