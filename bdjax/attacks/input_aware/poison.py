"""Input-aware in the batch: some images get their own pattern, others a foreign one, and a loss keeps patterns different."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.attacks import slots
from bdjax.attacks.input_aware.mask import TINY, distance, soft_threshold
from bdjax.attacks.input_aware.networks import Generator, standardise
from bdjax.errors import UserError
from bdjax.types import Array, Bool, DataSpec, Float, Int, Key

Relabel = Callable[[Array], Array]


def coverage(mask: Generator, trigger: Any, images: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """Θ(M(x)), how much of the pattern each pixel takes; a constant for every gradient."""
    return soft_threshold(mask.apply(jax.lax.stop_gradient(trigger["mask"]), images)[0])


def poisoner(spec: DataSpec, pattern: Generator, mask: Generator, config: Any, relabel: Relabel) -> Callable[..., Any]:
    """``Attack.batch`` of Input-aware; see :func:`bdjax.attacks.input_aware.input_aware.input_aware`.

    The first places of the batch may get their own pattern and the attack label, as many behind them a foreign pattern.

    Args:
      spec: data set facts.
      pattern: G, the network that learns with the classifier.
      mask: M, which is fixed.
      config: the attack's.
      relabel: its label rule.

    Raises:
      UserError: when it is called, a batch without two places.
    """

    def batch(
        trigger: Any,
        key: Key,
        images: Float[Array, "b h w c"],
        labels: Int[Array, " b"],
        ratio: Float[Array, ""],
        other: tuple[Float[Array, "b h w c"], Int[Array, " b"]],
    ) -> tuple[Float[Array, "b h w c"], Int[Array, " b"], Float[Array, ""], Any]:
        places = _places(images.shape[0], config.max_ratio)
        number = slots.count(key, ratio, images.shape[0])
        active = slots.active(number, places)
        own, foreign, rest = jnp.split(images, (places, 2 * places))
        source = other[0][places : 2 * places]
        # The first place stands in for those without a turn: whatever their images hold, the networks see none of it.
        seen = jnp.where(active, jnp.arange(places, dtype=jnp.int32), 0)
        pair = jnp.stack([own[seen], source[seen]])
        counted = slots.active(jnp.maximum(number, 1), places).astype(images.dtype)
        patterns, after = pattern.pair({"params": trigger["generator"], "batch_stats": trigger["statistics"]}, pair, mask=counted)
        covered = coverage(mask, trigger, pair.reshape(-1, *images.shape[1:])).reshape(*pair.shape[:-1], 1)
        turn = active[:, None, None, None]
        own, foreign = (jnp.where(turn, x + (p - x) * c, x) for x, p, c in zip((own, foreign), patterns, covered, strict=True))
        loss = _diversity_loss(config.div_weight, spec, pair, patterns, active, number)
        statistics = jax.tree.map(lambda new, old: jnp.where(number > 0, new, old), after, trigger["statistics"])
        return (
            jnp.concatenate([own, foreign, rest]),
            slots.relabelled(active, labels, relabel),
            loss,
            {**trigger, "statistics": statistics},
        )

    return batch


def _places(size: int, max_ratio: float) -> int:
    """Return how many images of a batch of this size may carry the trigger; as many others get a foreign pattern."""
    places = slots.most(size, max_ratio)
    if size < 2 * places:
        raise UserError(f"input_aware triggers one image and gives another a foreign pattern: it needs 2 per batch; given {size}")
    return places


def _diversity_loss(
    weight: float,
    spec: DataSpec,
    pair: Float[Array, "2 n h w c"],
    patterns: Float[Array, "2 n h w c"],
    active: Bool[Array, " n"],
    number: Int[Array, ""],
) -> Float[Array, ""]:
    """Return the loss of patterns that differ less than their images: λ_div mean_i d(x_i, z_i) / (d(G(x_i), G(z_i)) + 1e-7).

    Args:
      weight: λ_div.
      spec: its std is the unit of d.
      pair: images x and z.
      patterns: G of them.
      active: which of the n pairs count.
      number: how many do; the mean is over them.
    """
    apart, drawn_apart = (distance(*(standardise(x, spec) for x in two)) for two in (pair, patterns))
    spread = jnp.where(active, apart / (drawn_apart + TINY), 0)
    return weight * jnp.sum(spread) / jnp.maximum(number, 1).astype(spread.dtype)
