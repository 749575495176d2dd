"""IMS's masked and inverse network: what their channels are multiplied by, how alike networks are, and perturbed images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax.defenses.batches import masked_mean
from bdjax.train.loops import inner
from bdjax.train.optimisers import Optimiser, adamw
from bdjax.types import Array, Float, Loop

SMALLEST = 1e-8  # added inside the logarithms
Network = Callable[[Array], Array]  # images f[b h w c] -> probabilities f[b k]


def adamw_from(hyper: Any) -> optax.GradientTransformation:
    """:func:`bdjax.train.optimisers.adamw` with ``hyper.weight_decay``, f[]."""
    return adamw(hyper.weight_decay)


ADAMW: Optimiser = adamw_from


def factors(free: Mapping[str, Float[Array, " d"]], slope: Float[Array, ""]) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Factors of the channels in the masked network and in the inverse one, from "masks" and "selections".

    h(m) + s (1 - h(m)) in the form 1 - (1 - s) h(1 - m), which is 1 to the bit at s = 1, where everything starts.
    """
    m, apart = free["masks"], 1 - free["selections"]
    k = slope.astype(m.dtype)
    return 1 - apart * jax.nn.sigmoid(k * (0.5 - m)), 1 - apart * jax.nn.sigmoid(k * (m - 0.5))


def agree(p: Float[Array, "b k"], q: Float[Array, "b k"]) -> Float[Array, " b"]:
    """-ln(p · q + 1e-8) per row of probabilities."""
    return -jnp.log(jnp.sum(p * q, -1) + SMALLEST)


def disagree(p: Float[Array, "b k"], q: Float[Array, "b k"]) -> Float[Array, " b"]:
    """-ln(1 - p · q + 1e-8) per row of probabilities."""
    rest = 1 - jnp.sum(p * q, -1)
    return -jnp.log(jnp.where(rest < 0, 0, rest) + SMALLEST)  # below 0 by rounding; at 0 it keeps its slope


def perturbation(
    original: Network,
    inverse: Network,
    images: Float[Array, "b h w c"],
    mask: Float[Array, " b"],
    seen: Float[Array, "b k"],
    hyper: Any,
    steps: int,
) -> Float[Array, "b h w c"]:
    """δ that lead the original away from what it has ``seen`` to where the inverse network goes; rows with mask 0 get 0."""

    def loss(delta: Float[Array, "b h w c"]) -> Float[Array, ""]:
        there, other = original(images + delta), inverse(images + delta)
        return masked_mean(agree(other, there) + disagree(there, seen), mask)

    rule = ADAMW(hyper)

    def step(_: Any, carry: tuple[Float[Array, "b h w c"], Any]) -> tuple[Float[Array, "b h w c"], Any]:
        delta, memory = carry
        direction, memory = rule.update(jax.grad(loss)(delta), memory, delta)
        bound = hyper.bound.astype(delta.dtype)
        return jnp.clip(delta - hyper.perturbation_lr.astype(delta.dtype) * direction, -bound, bound), memory

    start = jnp.zeros_like(images)
    return inner(steps, step, (start, rule.init(start)), Loop())[0]
