"""2x2 max-pooling whose gradient goes to the first maximum of a window, in derivatives of any order.

The gradient of JAX's own window maximum scatters: on a CPU it takes two to four times as long as this form, inside loops too, and
``jnp.max`` shares a gradient among equal values, which PyTorch gives to the first.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

from bdjax.errors import UserError
from bdjax.types import Array, Bool, Float, Int


def max_pool(x: Float[Any, "b h w c"]) -> Float[Array, "b h//2 w//2 c"]:
    """Return the largest of each 2x2 window, stride 2, an odd last row or column left out; NaN where a window holds one.

    A window's places are compared row by row, and a later one wins only if it is larger (or NaN).

    Raises:
      UserError: maps of fewer than 2x2 positions.
    """
    b, h, w, c = x.shape
    if min(h, w) < 2:
        raise UserError(f"max-pooling halves a map: it needs at least 2x2 positions; given {h}x{w}")
    h, w = h // 2, w // 2
    windows = x[:, : 2 * h, : 2 * w].reshape(b, h, 2, w, 2, c)
    place = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    won = _winner(lax.stop_gradient(windows))[:, :, None, :, None] == place
    # One number and three zeros: the sum is exact, and its gradient an element-wise choice instead of a scatter.
    return jnp.sum(jnp.where(won, windows, jnp.zeros_like(windows)), (2, 4))


def _winner(windows: Float[Array, "b h 2 w 2 c"]) -> Int[Array, "b h w c"]:
    """Place of the maximum in each window, row by row."""
    (a, b), (c, d) = ((windows[:, :, i, :, 0], windows[:, :, i, :, 1]) for i in (0, 1))
    right_above, right_below = _beats(b, a), _beats(d, c)
    below = _beats(jnp.where(right_below, d, c), jnp.where(right_above, b, a))
    place = jnp.where(below, 2 + right_below.astype(jnp.int8), right_above.astype(jnp.int8))
    return place.astype(jnp.int8)


def _beats(later: Float[Array, "*s"], earlier: Float[Array, "*s"]) -> Bool[Array, "*s"]:
    return (later > earlier) | jnp.isnan(later)
