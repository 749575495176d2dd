"""A share of the rows, rounded half to even."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.share import share


def test_shares_are_exact_beyond_32_bits():
    generator, shares = np.random.default_rng(0), jax.jit(jax.vmap(share, (0, 0, None)))
    for rows in (2, 3, 40, 50_000, 1_281_167, 2**29 - 1):
        part, count = generator.integers(0, rows + 1, (2, 50))
        expected = [round(Fraction(int(a) * int(b), rows)) for a, b in zip(part, count, strict=True)]
        assert shares(jnp.asarray(count, jnp.int32), jnp.asarray(part, jnp.int32), jnp.int32(rows)).tolist() == expected
