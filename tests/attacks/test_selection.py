from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.attacks.selection import (
    all_to_all,
    all_to_one,
    any_class,
    legacy_class_order,
    legacy_order,
    one_class,
    ranked_by,
)
from bdjax.errors import UserError
from bdjax.train.trainer import poison_count

ROWS = 60
LABELS = jnp.arange(ROWS, dtype=jnp.int32) % 4
choose = jax.jit(any_class)
of_class = {within: jax.jit(one_class(1, within)) for within in ("all", "class")}


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        (50_000, [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363]),
        (39_209, [19138, 21703, 32087, 19762, 13970, 32376, 4487, 9075]),
        (100_000, [3582, 60498, 53227, 21333, 3885, 51521, 84261, 10685]),
    ],
)
def test_legacy_order_is_the_surveys(rows, first):
    order = legacy_order(0, rows)
    assert order[:8].tolist() == first
    poisoned, feasible = ranked_by(order)(jax.random.key(1), jnp.zeros(rows, jnp.int32), jnp.int32(8))
    assert sorted(np.flatnonzero(poisoned)) == sorted(first)
    assert feasible


@pytest.mark.parametrize(
    ("rows", "counts"), [(50_000, [500, 2_500, 5_000]), (39_209, [392, 1_960, 3_921]), (100_000, [1_000, 5_000, 10_000])]
)
def test_counts_refer_to_all_rows(rows, counts):
    assert [poison_count(r, rows) for r in (0.01, 0.05, 0.1)] == counts


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31 - 1), small=st.integers(0, ROWS), large=st.integers(0, ROWS))
def test_sets_have_their_count_and_nest(seed, small, large):
    small, large = sorted((small, large))
    key = jax.random.key(seed)
    few, feasible = choose(key, LABELS, jnp.int32(small))
    many, _ = choose(key, LABELS, jnp.int32(large))
    assert int(few.sum()) == small and int(many.sum()) == large and bool(feasible)
    assert not np.any(np.asarray(few) & ~np.asarray(many))


def test_more_rows_than_there_are_is_infeasible_and_stays_data():
    poisoned, feasible = choose(jax.random.key(0), LABELS, jnp.int32(ROWS + 1))
    assert not feasible and poisoned.dtype == bool
    poisoned, feasible = ranked_by(legacy_order(0, ROWS))(jax.random.key(0), LABELS, jnp.int32(ROWS + 1))
    assert not feasible


def test_every_row_is_as_likely():
    keys = jax.random.split(jax.random.key(3), 2000)
    often = jax.vmap(lambda k: any_class(k, LABELS, jnp.int32(15))[0])(keys).mean(0, dtype=jnp.float32)
    assert np.all(np.abs(np.asarray(often) - 0.25) < 0.05)  # five standard deviations


def test_ranked_by_rejects_what_is_no_order():
    with pytest.raises(UserError, match="every row number once"):
        ranked_by(np.array([0, 0, 2]))
    with pytest.raises(UserError, match="names 3 rows; the training set has 60"):
        ranked_by(np.array([2, 1, 0]))(jax.random.key(0), LABELS, jnp.int32(1))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31 - 1), small=st.integers(0, 15), large=st.integers(0, 15))
def test_rows_of_one_class_have_their_count_and_nest(seed, small, large):
    small, large = sorted((small, large))
    key = jax.random.key(seed)
    few, feasible = of_class["all"](key, LABELS, jnp.int32(small))
    many, _ = of_class["all"](key, LABELS, jnp.int32(large))
    assert int(few.sum()) == small and int(many.sum()) == large and bool(feasible)
    assert not np.any(np.asarray(few) & ~np.asarray(many)) and not np.any(np.asarray(many) & (np.asarray(LABELS) != 1))


def test_every_row_of_the_class_is_as_likely():
    keys = jax.random.split(jax.random.key(3), 2000)
    often = np.asarray(jax.vmap(lambda k: of_class["all"](k, LABELS, jnp.int32(3))[0])(keys).mean(0, dtype=jnp.float32))
    assert np.all(np.abs(often[1::4] - 0.2) < 0.045) and np.all(np.delete(often.reshape(-1, 4), 1, 1) == 0)


def test_more_rows_than_the_class_has_are_infeasible_and_stay_data():
    poisoned, feasible = of_class["all"](jax.random.key(0), LABELS, jnp.int32(16))
    assert not feasible and np.array_equal(np.asarray(poisoned), np.asarray(LABELS) == 1)
    for within in of_class:
        nobody = jnp.zeros(ROWS, jnp.int32)
        assert not of_class[within](jax.random.key(0), nobody, jnp.int32(1))[1]
        assert of_class[within](jax.random.key(0), nobody, jnp.int32(0))[1]
        assert not of_class[within](jax.random.key(0), LABELS, jnp.int32(ROWS + 1))[1]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 30, 60])
def test_share_of_the_class(count):
    poisoned, feasible = of_class["class"](jax.random.key(0), LABELS, jnp.int32(count))
    assert int(poisoned.sum()) == round(Fraction(count * 15, ROWS)) and feasible
    assert not np.any(np.asarray(poisoned) & (np.asarray(LABELS) != 1))


def test_a_fixed_order_may_leave_rows_out():
    select = jax.jit(ranked_by(np.array([5, 2, 9]), ROWS))
    assert np.flatnonzero(select(jax.random.key(0), LABELS, jnp.int32(2))[0]).tolist() == [2, 5]
    assert [bool(select(jax.random.key(0), LABELS, jnp.int32(count))[1]) for count in (0, 3, 4)] == [True, True, False]
    with pytest.raises(UserError, match="row numbers below 60, none twice"):
        ranked_by(np.array([5, 60]), ROWS)
    order = legacy_class_order(0, np.array([0, 1, 0, 1, 1]), 1)
    assert order.tolist() == np.array([1, 3, 4])[np.random.RandomState(0).permutation(3)].tolist()


def test_labels():
    labels = jnp.array([0, 1, 3], jnp.int32)
    assert all_to_one(2)(labels).tolist() == [2, 2, 2] and all_to_one(2)(labels).dtype == jnp.int32
    assert all_to_all(4)(labels).tolist() == [1, 2, 0] and all_to_all(4)(labels).dtype == jnp.int32
