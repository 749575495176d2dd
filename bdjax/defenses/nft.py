"""NFT: train masks of the norms' channels, and nothing else, on mixtures of clean images."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree
from bdjax.configure import at_least, configure
from bdjax.defenses.batches import bits_by_index, masked_mean, training_rows
from bdjax.defenses.channels import published_norms, seen_through
from bdjax.defenses.tuning import Batch, Gradient, tuner
from bdjax.train.schedules import cosine_between
from bdjax.train.trainer import cross_entropy
from bdjax.types import Array, CleanSet, Defended, DefenderView, Defense, Float, Int, Key, Masks, Model, Variables


class Config(NamedTuple):
    """Static configuration; None = as the profile says."""

    epochs: int = 100  # in which the rate falls from the first to the last
    batch: int = 256
    published_eps: bool | None = None  # MobileNet is masked with ε = 1e-5 and momentum 0.1 in its norms, and evaluated so


class NFTHyper(NamedTuple):
    """Traced hyper-parameters; each f32[]."""

    lr: Any = np.float32(0.1)  # of the masks, in the first epoch
    last_lr: Any = np.float32(0.02)  # towards which it falls along a cosine
    momentum: Any = np.float32(0.95)
    l1: Any = np.float32(1e-3)  # weight of sum |1 - m|, divided by the clean rows per class
    alpha: Any = np.float32(0.8)  # masks of norm i = 1, 2 … stay above alpha exp(-beta i)
    beta: Any = np.float32(0.5)
    weight_decay: Any = np.float32(0)


class NFTTrace(NamedTuple):
    """What happened while the masks were trained."""

    loss: Array  # f32[epochs]: mean of the whole loss
    mixed: Array  # f32[epochs]: of the cross-entropy on the mixtures
    kept: Array  # f32[epochs]: mean of all masks, before each of the epoch's steps
    alive: Array  # bool[]: loss and gradients stayed finite
    stopped: Array  # i32[]: the step at which they did not; -1 = none


PRESETS = {"corrected": Config(published_eps=False), "reference": Config(published_eps=True)}


def nft(model: Model, config: Config | Mapping[str, Any] | None = None, *, profile: str = "corrected") -> Defense:
    """Train one mask per norm channel on mixtures of clean images, held near 1 and above a bound that falls with depth.

    The masks m, factors of the norms' scales (not of their biases), start at 1. Per batch λ ~ U(0, 1), π a permutation of its
    rows, and SGD on m alone descends λ CE(f(x'), y) + (1 - λ) CE(f(x'), y_π) + (l1 / spc) sum |1 - m| with x' = λ x + (1 - λ)
    x_π, in train mode: running statistics follow the mixtures. After each step m of norm i is clipped to [alpha exp(-beta i), 1],
    i = 1, 2 … in the order of registration. The rate falls by epoch from ``lr`` to ``last_lr`` along a cosine. Nothing is pruned:
    the network with its soft masks and its new statistics is the result.

    Args:
      model: network.
      config: :class:`Config` or its fields by name.
      profile: "corrected" or "reference".

    Returns:
      A defense with hyper-parameters :class:`NFTHyper`, masks {norm: m f[d]} and trace :class:`NFTTrace`.

    Raises:
      UserError: an unknown field or profile, or a value out of range.

    Source: N. Karim, A. Al Arafat, U. Khalid, Z. Guo, N. Rahnavard, "Augmented Neural Fine-Tuning for Efficient Backdoor
      Purification", ECCV 2024; settings of the code published with K. Dunnett et al., arXiv 2411.11200, 2024: passes over the
      clean rows in batches of 256, where the original draws 1000 batches of 128 with replacement at a rate of 0.05.
    Differs: |1 - m| has the slope 0 at m = 1, as in PyTorch, where the masks start. "reference" masks MobileNet with ε = 1e-5 and
      momentum 0.1 in its norms, as the published code does, and returns what computes that. With one row per class the sum is
      divided by 1; the published code then takes two rows and divides by 2.
    """
    config = configure(PRESETS, config, "nft", profile)
    at_least("nft", config, epochs=1, batch=1)
    masked = published_norms(model) if config.published_eps else model
    train = tuner(
        masked,
        epochs=config.epochs,
        batch=config.batch,
        schedule=cosine_between(config.epochs),
        gradient=_mixing(masked),
        project=_bounded,
        measured=2,
    )
    order = [address for kind, address in model.arch.registered if kind == "norm"]

    @jax.jit
    def start(variables: Variables, clean: CleanSet, hyper: Any) -> tuple[Variables, Any]:
        masks = tree.full_masks(variables["params"], model.arch.norms)
        floors = {norm: hyper.alpha * jnp.exp(-hyper.beta * i) for i, norm in enumerate(order, 1)}
        pull = hyper.l1 / jnp.maximum(clean.spc, 1).astype(hyper.l1.dtype)
        return {"params": masks, "batch_stats": variables["batch_stats"]}, (variables, pull, floors)

    @jax.jit
    def finish(variables: Variables, masks: Masks, statistics: Any) -> Variables:
        params = tree.mask_norms(variables["params"], masks, bias=False)
        return seen_through(model, masked.norm_eps, {**variables, "params": params, "batch_stats": statistics})

    def defend(key: Key, view: DefenderView, hyper: NFTHyper) -> Defended:
        assert view.clean is not None
        hyper = jax.tree.map(jnp.asarray, hyper)
        first, extra = start(view.variables, view.clean, hyper)
        done = train(key, first, view.clean, training_rows(view.clean), hyper, extra)
        mixed, kept = done.measured
        masks = done.variables["params"]
        trace = NFTTrace(done.loss, mixed, kept, done.alive, done.stopped)
        return Defended(finish(view.variables, masks, done.variables["batch_stats"]), masks, trace)

    return Defense(defend, NFTHyper(), frozenset({"clean"}), config)


def partners(key: Key, mask: Float[Array, " b"]) -> Int[Array, " b"]:
    """A random permutation of the rows that count among themselves, which come first in a batch; of the others too."""
    rows = jnp.arange(mask.shape[0], dtype=jnp.int32)
    return jnp.lexsort((bits_by_index(key, rows), mask == 0)).astype(jnp.int32)


def _bounded(masks: Masks, extra: Any) -> Masks:
    _, _, floors = extra
    return {norm: jnp.clip(m, floors[norm].astype(m.dtype), 1) for norm, m in masks.items()}


def _mixing(model: Model) -> Gradient:
    def gradient(variables: Variables, batch: Batch, extra: Any, key: Key) -> tuple[Any, Any, Float[Array, " 3"]]:
        network, pull, _ = extra
        images, labels, mask = batch
        draws, pairing, sharing = jax.random.split(key, 3)
        other = partners(pairing, mask)
        images = images.astype(jax.tree.leaves(network["params"])[0].dtype)
        share = jax.random.uniform(sharing, (), jnp.float32).astype(images.dtype)
        images = share * images + (1 - share) * images[other]

        def loss(masks: Masks) -> tuple[Float[Array, ""], tuple[Any, Float[Array, " 2"]]]:
            params = tree.mask_norms(network["params"], masks, bias=False)
            now = {**network, "params": params, "batch_stats": variables["batch_stats"]}
            out = model.apply(now, images, train=True, mask=mask, key=draws)
            one, two = (masked_mean(cross_entropy(out.logits, y), mask) for y in (labels, labels[other]))
            mixed = share.astype(one.dtype) * one + (1 - share).astype(one.dtype) * two
            every = jnp.concatenate(list(masks.values())).astype(one.dtype)
            # Without a slope at 1 itself, where |1 - m| has one in JAX.
            away = jnp.sum(jnp.where(every < 1, 1 - every, 0))
            parts = jnp.stack([mixed, jnp.mean(every)])
            return mixed + pull.astype(one.dtype) * away, (out.variables["batch_stats"], parts)

        (value, (statistics, parts)), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return slope, statistics, jnp.concatenate([value[None], parts])

    return gradient
