"""Activations with the gradients that PyTorch has at their kinks.

``jax.nn.relu`` and ``jax.nn.silu`` agree with PyTorch; ``jax.nn.relu6`` and what is built on it have half a slope where they
bend, ``jax.nn.leaky_relu`` the larger one.
"""

import jax.numpy as jnp

from bdjax.types import Array, Float


def hard_sigmoid(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return relu6(x + 3) / 6, with gradient 0 at -3 and 3."""
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    return jnp.where(x <= -3, zero, jnp.where(x >= 3, one, (x + 3) / 6))


def hard_swish(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return x relu6(x + 3) / 6, with gradient 0 at -3 and 1 at 3.

    Source: A. Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """
    return x * hard_sigmoid(x)


def leaky_relu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Return x where it is positive, x / 100 elsewhere, with gradient 0.01 at 0."""
    return jnp.where(x > 0, x, 0.01 * x)
