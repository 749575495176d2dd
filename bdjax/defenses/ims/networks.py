"""IMS's masked and inverse network: what their channels are multiplied by, how alike networks are, and perturbed images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax.defenses.batches import masked_mean
from bdjax.train.loops import inner
from bdjax.train.optimisers import Optimiser, adamw
from bdjax.types import Array, Loop

SMALLEST = 1e-8  # added inside the logarithms
Network = Callable[[Array], Array]  # images f[b h w c] -> probabilities f[b k]


def adamw_from(hyper: Any) -> optax.GradientTransformation:
    """:func:`bdjax.train.optimisers.adamw` with ``hyper.weight_decay``, f[]."""
    return adamw(hyper.weight_decay)


ADAMW: Optimiser = adamw_from


def factors(free: Mapping[str, Array], slope: Array) -> tuple[Array, Array]:
    """Factors f[d] of the channels in the masked network and in the inverse one, from f[d] "masks" and "selections".

    h(m) + s (1 - h(m)) in the form 1 - (1 - s) h(1 - m), which is 1 to the bit at s = 1, where everything starts.
    """
    m, apart = free["masks"], 1 - free["selections"]
    k = slope.astype(m.dtype)
    return 1 - apart * jax.nn.sigmoid(k * (0.5 - m)), 1 - apart * jax.nn.sigmoid(k * (m - 0.5))


def agree(p: Array, q: Array) -> Array:
    """-ln(p · q + 1e-8) per row of probabilities f[b k], f[b]."""
    return -jnp.log(jnp.sum(p * q, -1) + SMALLEST)


def disagree(p: Array, q: Array) -> Array:
    """-ln(1 - p · q + 1e-8) per row of probabilities f[b k], f[b]."""
    rest = 1 - jnp.sum(p * q, -1)
    return -jnp.log(jnp.where(rest < 0, 0, rest) + SMALLEST)  # below 0 by rounding; at 0 it keeps its slope


def perturbation(original: Network, inverse: Network, images: Array, mask: Array, seen: Array, hyper: Any, steps: int) -> Array:
    """δ f[b h w c] that lead the original away from what it has ``seen``, f[b k], to where the inverse network goes.

    Rows with mask 0 get 0. ``original`` and ``inverse`` give probabilities f[b k].
    """

    def loss(delta: Array) -> Array:
        there, other = original(images + delta), inverse(images + delta)
        return masked_mean(agree(other, there) + disagree(there, seen), mask)

    rule = ADAMW(hyper)

    def step(_: Any, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        delta, memory = carry
        direction, memory = rule.update(jax.grad(loss)(delta), memory, delta)
        bound = hyper.bound.astype(delta.dtype)
        return jnp.clip(delta - hyper.perturbation_lr.astype(delta.dtype) * direction, -bound, bound), memory

    start = jnp.zeros_like(images)
    return inner(steps, step, (start, rule.init(start)), Loop())[0]
