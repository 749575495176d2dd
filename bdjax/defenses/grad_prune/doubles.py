"""Differences of two accuracies as double precision computes and compares them, in whole numbers of 32 bits.

The published Grad-Prune compares accuracies in double precision, where a drop of exactly the tolerance is sometimes smaller than
it. A compiled program has no doubles unless 64-bit types are on for all of it, and some accelerators have none at all. So the
same numbers are computed here from counts, binary place by binary place. A number in [0, 1] is i32[:data:`PLACES`], its digits 0
or 1 at the places 1, 1/2, 1/4, …
"""

import jax
import jax.numpy as jnp

from bdjax.types import Array, Bool, Int

SIGNIFICANT = 53  # binary digits of a double
PLACES = 72  # enough for all digits of 1/200,000 as a double, and one more to round by


def drop_is_below(
    before: Int[Array, ""], after: Int[Array, ""], rows: Int[Array, ""], limit: Int[Array, ""], unit: int
) -> Bool[Array, ""]:
    """Whether before / rows - after / rows < limit / unit, each operation rounded as doubles are.

    Args:
      before: correct rows, at most ``rows``.
      after: likewise.
      rows: at most 200,000. Without a row the quotients are no numbers, and nothing is below the limit.
      limit: of the drop, in 1 / ``unit``; may be negative.
      unit: at most 200,000.
    """
    more, fewer = jnp.maximum(before, after), jnp.minimum(before, after)
    change = rounded(carried(quotient(more, rows) - quotient(fewer, rows)), jnp.bool_(False))
    beyond = jnp.abs(limit) > unit  # more than any change
    bound = quotient(jnp.minimum(jnp.abs(limit), unit), jnp.int32(unit))
    drop_below = (limit > 0) & (beyond | is_below(change, bound))
    rise_below = (limit >= 0) | (~beyond & is_below(bound, change))
    return (rows > 0) & jnp.where(after > before, rise_below, drop_below)


def quotient(numerator: Int[Array, ""], denominator: Int[Array, ""]) -> Int[Array, " places"]:
    """numerator / denominator in [0, 1] as the nearest double, by long division."""

    def place(rest: Int[Array, ""], _: None) -> tuple[Int[Array, ""], Int[Array, ""]]:
        digit = (rest >= denominator).astype(jnp.int32)
        return 2 * (rest - digit * denominator), digit

    rest, digits = jax.lax.scan(place, numerator, None, length=PLACES)
    return rounded(digits, rest > 0)


def rounded(digits: Int[Array, " places"], more: Bool[Array, ""]) -> Int[Array, " places"]:
    """A number with :data:`SIGNIFICANT` digits from its first 1 on: the nearest one, of two equally near ones the even one.

    Args:
      digits: of any number in [0, 1].
      more: whether anything follows after these digits.
    """
    place = jnp.arange(PLACES, dtype=jnp.int32)
    last = jnp.argmax(digits).astype(jnp.int32) + SIGNIFICANT - 1
    odd, half = (jnp.sum(jnp.where(place == at, digits, 0)) > 0 for at in (last, last + 1))
    beyond = (jnp.sum(jnp.where(place > last + 1, digits, 0)) > 0) | more
    up = half & (beyond | odd)
    return carried(jnp.where(place <= last, digits, 0) + ((place == last) & up).astype(jnp.int32))


def carried(digits: Int[Array, " places"]) -> Int[Array, " places"]:
    """Digits 0 and 1 of the same number, from digits that may also be 2 or -1."""

    def place(carry: Int[Array, ""], digit: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        total = digit + carry
        return total >> 1, total & 1

    return jax.lax.scan(place, jnp.int32(0), digits, reverse=True)[1]


def is_below(a: Int[Array, " places"], b: Int[Array, " places"]) -> Bool[Array, ""]:
    """Whether a < b, by the first place at which they differ."""
    first = jnp.argmax(a != b)
    return a[first] < b[first]
