"""Clean subsets: nested, of their class, the same alone and in a population."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.data.clean_subset import draw, infeasible, rows_per_class
from bdjax.keys import Stream, member_key, root, stream

COUNTS = (25, 14, 31, 12)
LABELS = jnp.asarray(np.random.default_rng(0).permutation(np.repeat(np.arange(4, dtype=np.int32), COUNTS)))

GOLDEN = [[14, 3, 44], [67, 63, 50], [71, 60, 48], [68, 52, 54]]  # seed 0, 3 rows per class


def _key(seed):
    return stream(member_key(root(0), seed), Stream.CLEAN)


drawn = jax.jit(draw, static_argnums=(2, 3, 4))


def _table(seed, spc, validation=False):
    index, role = drawn(_key(seed), LABELS, 4, spc, validation)
    return np.asarray(index).reshape(4, -1), np.asarray(role).reshape(4, -1)


@pytest.mark.parametrize(
    "spc, validation, expected",
    [
        (1, False, (1, 0, 1)),
        (100, False, (100, 0, 100)),
        (1, True, (1, 1, 2)),
        (2, True, (2, 1, 3)),
        (9, True, (9, 1, 10)),
        (10, True, (9, 1, 10)),
        (70, True, (63, 7, 70)),
        (100, True, (90, 10, 100)),
    ],
)
def test_rows_per_class(spc, validation, expected):
    assert rows_per_class(spc, validation) == expected


def test_rows_are_of_their_class_distinct_and_class_major():
    index, role = _table(0, 12)
    np.testing.assert_array_equal(np.asarray(LABELS)[index], np.repeat(np.arange(4)[:, None], 12, 1))
    assert all(len(set(row.tolist())) == 12 for row in index)
    assert (role == 1).all() and role.dtype == np.int8 and index.dtype == np.int32


def test_validation_rows_have_the_first_ranks():
    _, role = _table(0, 10, validation=True)
    assert role.tolist() == [[2] + [1] * 9] * 4
    _, role = _table(0, 2, validation=True)
    assert role.tolist() == [[2, 1, 1]] * 4


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_smaller_subsets_are_prefixes(seed):
    largest, _ = _table(seed, 12)
    for spc, validation in ((2, False), (2, True), (10, False), (10, True)):
        index, _ = _table(seed, spc, validation)
        np.testing.assert_array_equal(index, largest[:, : index.shape[1]])


def test_every_row_of_a_class_is_equally_likely_and_every_order_too():
    index, _ = jax.jit(jax.vmap(lambda seed: draw(_key(seed), LABELS, 4, 2)))(jnp.arange(4000))
    chosen = np.asarray(index).reshape(4000, 4, 2)[:, 3]
    rows = np.flatnonzero(np.asarray(LABELS) == 3)
    for rank in (0, 1):
        counts = np.array([(chosen[:, rank] == row).sum() for row in rows])
        assert counts.sum() == 4000
        assert ((counts - 4000 / 12) ** 2 / (4000 / 12)).sum() < 33  # chi-square, 11 degrees of freedom: p = 5e-4


def test_a_member_draws_the_same_alone_and_in_a_population():
    together = np.asarray(jax.jit(jax.vmap(lambda seed: draw(_key(seed), LABELS, 4, 5, True)))(jnp.arange(3))[0])
    for seed in range(3):
        np.testing.assert_array_equal(together[seed], _table(seed, 5, True)[0].ravel())
    assert not np.array_equal(together[0], together[1])


def test_a_class_of_exactly_the_drawn_size_is_enough_and_one_more_is_not():
    labels = np.asarray(LABELS)
    assert infeasible(labels, 4, 12) is None
    assert infeasible(labels, 4, 12, validation=True) is None
    assert infeasible(labels, 4, 13) == "spc 13 is larger than class 3, which has 12 rows"
    assert (
        infeasible(labels[labels != 3], 4, 2, True)
        == "spc 2 (3 with the validation row) is larger than class 3, which has 0 rows"
    )
    index, role = _table(0, 14)
    assert (role[3] == [1] * 12 + [0] * 2).all() and (role[:3] == 1).all()
    assert sorted(index[3, :12]) == np.flatnonzero(labels == 3).tolist()
    assert (index[3, 12:] == 0).all()


def test_the_draw_of_published_results_has_not_moved():
    index, _ = _table(0, 3)
    assert index.tolist() == GOLDEN


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_same_key_same_rows(self):
        found, _ = self.variant(lambda key: draw(key, LABELS, 4, 3))(_key(0))
        np.testing.assert_array_equal(np.asarray(found).reshape(4, 3), GOLDEN)
