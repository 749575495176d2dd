"""How many places of a batch carry the trigger, for any ratio in one program."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks import slots
from bdjax.errors import UserError


def test_counts_of_the_published_table():
    chex.clear_trace_counter()
    count = jax.jit(chex.assert_max_traces(slots.count, n=4), static_argnums=2)  # one trace per batch size
    for batch, at_ten, at_five in [(128, 12, 6), (80, 8, 4), (41, 4, 2), (32, 3, 1)]:
        for ratio, expected in [(0.1, at_ten), (0.05, at_five), (0.0, 0)]:
            assert [int(count(jax.random.key(s), jnp.float32(ratio), batch)) for s in range(3)] == [expected] * 3
    assert int(count(jax.random.key(0), jnp.float32(0.01), 128)) == 1


@pytest.mark.parametrize("batch", [1, 2, 10, 100, 128, 256])
def test_a_count_is_never_lost_to_rounding(batch):
    whole = np.arange(1, batch + 1)
    ratios = jnp.asarray(whole / batch, jnp.float32)
    counts = jax.jit(jax.vmap(lambda r: slots.count(jax.random.key(0), r, batch)))(ratios)
    np.testing.assert_array_equal(np.asarray(counts), whole)


@pytest.mark.parametrize(("batch", "due"), [(80, 0.8), (41, 0.41), (32, 0.32)])
def test_less_than_one_image_is_drawn(batch, due):
    drawn = jax.jit(jax.vmap(lambda key: slots.count(key, jnp.float32(0.01), batch)))(jax.random.split(jax.random.key(1), 4000))
    assert set(np.asarray(drawn).tolist()) == {0, 1}
    assert abs(float(np.mean(drawn)) - due) < 0.03


def test_most_and_active():
    assert [slots.most(b, 0.1) for b in (128, 80, 30, 8)] == [12, 8, 3, 1]
    assert np.asarray(slots.active(jnp.int32(2), 4)).tolist() == [True, True, False, False]
    assert not np.asarray(slots.active(jnp.int32(0), 4)).any()


def test_no_fixed_rows_and_room_up_to_the_largest_ratio():
    labels = jnp.zeros(200, jnp.int32)
    select = jax.jit(slots.select(0.1, "wanet"))
    for count, feasible in [(0, True), (20, True), (21, False)]:
        rows, ok = select(jax.random.key(0), labels, jnp.int32(count))
        assert not np.asarray(rows).any() and bool(ok) is feasible
    for ratio in (0, -0.1, 1.5):
        with pytest.raises(UserError, match=r"wanet.max_ratio must lie in \(0, 1\]"):
            slots.select(ratio, "wanet")
