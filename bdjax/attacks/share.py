"""A share of a whole number, rounded, without the product that would not fit into 32 bits."""

import jax
import jax.numpy as jnp

from bdjax.types import Array, Int

BITS = 31  # of a number i32 that is not negative


def share(count: Int[Array, ""], part: Int[Array, ""], whole: int | Int[Array, ""]) -> Int[Array, ""]:
    """round(count part / whole), half to even.

    Args:
      count: at least 0.
      part: 0 … whole.
      whole: below 2²⁹.
    """
    quotient, rest = _divided(count, part, whole)
    tie = (2 * rest == whole) & (quotient % 2 == 1)
    return quotient + ((2 * rest > whole) | tie).astype(jnp.int32)


def _divided(count: Int[Array, ""], part: Int[Array, ""], whole: int | Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Quotient and remainder of count part / whole.

    By long division: ``count`` is read bit by bit, the highest first. With c what was read so far and c part = q whole + r, the
    next bit b makes it 2 c + b, and (2 c + b) part = 2 q whole + (2 r + b part). The bracket is below 3 whole, so it fits.
    """

    def read_bit(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        quotient, rest = state
        bit = (count >> (BITS - 1 - i)) & 1
        rest = 2 * rest + bit * part
        return 2 * quotient + rest // whole, rest % whole

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(BITS), read_bit, (jnp.int32(0), jnp.int32(0)))
