import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.selection import legacy_class_order, ranked_by
from bdjax.attacks.sig import shift, sig, wave
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.train.trainer import poison_count


def wide(spec, side):
    return spec._replace(image_shape=(side, side, 3))


def test_the_wave_at_32_pixels():
    expected = [0, 36.9552, 28.2843, -15.3073, -40, -15.3073, 28.2843, 36.9552, 0]
    found = wave(32, 6, 40.0)
    np.testing.assert_allclose(found[:9], expected, atol=5e-5)
    np.testing.assert_allclose(found[8:16], -found[:8], atol=1e-9)
    np.testing.assert_allclose(found[16:], found[:16], atol=1e-9)


def test_the_wave_at_64_pixels():
    np.testing.assert_allclose(wave(64, 6, 40.0)[:5], [0, 22.2228, 36.9552, 39.2314, 28.2843], atol=5e-5)


def test_whole_levels_of_the_wave_are_kept():
    # 40 sin is exactly 0, 40 or -40 in every fourth column; rounding must not take a level away.
    assert shift(32, 6, 40.0)[[0, 4, 8, 12, 16, 20, 24, 28]].tolist() == [0, -40, 0, 40, 0, -40, 0, 40]
    assert shift(32, 6, 40.0)[:4].tolist() == [0, 36, 28, -16]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_stamp_is_exact_for_every_value_and_column(tiny_spec, side, compiled):
    stamp = sig(wide(tiny_spec, side)).stamp
    stamp = jax.jit(stamp) if compiled else stamp
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 2, side, 3))
    out = stamp({}, jax.random.key(0), to_float(jnp.asarray(values)))
    added = 40 * np.sin(2 * np.pi * 6 * np.arange(side) / side)
    added = np.where(np.abs(added - np.round(added)) < 1e-9, np.round(added), added)[None, None, :, None]
    expected = np.floor(np.clip(values + added, 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(to_uint8(out)), expected)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(to_float(jnp.asarray(expected))))


def test_training_has_its_own_strength_where_it_is_given(tiny_spec):
    spec = wide(tiny_spec, 32)
    assert sig(spec).train_stamp is None
    attack = sig(spec, {"strength": 10, "test_strength": 60.0})
    grey = jnp.full((1, 32, 32, 3), 100 / 255, jnp.float32)
    for stamp, strength in ((attack.train_stamp, 10.0), (attack.stamp, 60.0)):
        found = np.asarray(to_uint8(stamp({}, jax.random.key(0), grey)))[0, 7, :, 1].astype(int)
        np.testing.assert_array_equal(found, 100 + np.floor(wave(32, 6, strength) + 1e-9))


def test_selection_is_of_the_target_class_and_labels_do_not_change(tiny_spec):
    attack = sig(tiny_spec, {"target": 2})
    labels = jnp.arange(80, dtype=jnp.int32) % 4
    poisoned, feasible = attack.select(jax.random.key(0), labels, jnp.int32(20))
    assert np.array_equal(np.asarray(poisoned), np.asarray(labels) == 2) and feasible
    assert not attack.select(jax.random.key(0), labels, jnp.int32(21))[1]
    assert np.array_equal(np.asarray(attack.relabel(labels))[np.asarray(poisoned)], np.full(20, 2))


def test_share_of_the_class(tiny_spec):
    labels = jnp.arange(80, dtype=jnp.int32) % 4
    poisoned, feasible = sig(tiny_spec, {"clean_label_ratio": "class"}).select(jax.random.key(0), labels, jnp.int32(40))
    assert poisoned.sum() == 10 and feasible and np.all(np.asarray(labels)[np.asarray(poisoned)] == 0)


@pytest.mark.parametrize(
    ("rows", "inside", "counts", "feasible"),
    [
        (50_000, 5_000, [500, 2_500, 5_000], [True] * 3),
        (39_209, 210, [392, 1_960, 3_921], [False] * 3),
        (100_000, 500, [1_000, 5_000, 10_000], [False] * 3),
    ],
)
def test_feasibility_on_the_surveys_data_sets(tiny_spec, rows, inside, counts, feasible):
    assert [poison_count(r, rows) for r in (0.01, 0.05, 0.1)] == counts
    labels = jnp.asarray(np.arange(rows) >= inside, jnp.int32)
    select = jax.jit(sig(tiny_spec).select)
    found = [select(jax.random.key(0), labels, jnp.int32(count)) for count in counts]
    assert [bool(ok) for _, ok in found] == feasible
    assert [int(poisoned.sum()) for poisoned, ok in found if ok] == [c for c, ok in zip(counts, feasible, strict=True) if ok]


def test_the_surveys_own_rows(tiny_spec):
    labels = np.repeat(np.arange(10, dtype=np.int32), 5_000)
    first = [398, 3833, 4836, 4572, 636, 2545, 1161, 2230]
    shuffled = np.random.default_rng(0).permutation(50_000)
    positions = np.flatnonzero(labels[shuffled] == 0)  # rows of class 0, in the order of the data set
    order = legacy_class_order(0, labels[shuffled], 0)
    assert order[:8].tolist() == positions[first].tolist()
    attack = sig(tiny_spec)._replace(select=ranked_by(order, 50_000))
    poisoned, feasible = attack.select(jax.random.key(3), jnp.asarray(labels[shuffled]), jnp.int32(8))
    assert np.flatnonzero(np.asarray(poisoned)).tolist() == sorted(positions[first]) and feasible
    assert not attack.select(jax.random.key(3), jnp.asarray(labels[shuffled]), jnp.int32(5_001))[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"strength": 0}, r"sig.strength must lie in \(0, 255\]"),
        ({"test_strength": 256.0}, "sig.test_strength must lie in"),
        ({"frequency": 0}, "sig.frequency must be at least 1; given 0"),
        ({"frequency": 4}, "is 0 in all 8 columns"),
        ({"clean_label_ratio": "clas"}, "unknown sig.clean_label_ratio 'clas'.*Did you mean 'class'"),
        ({"labels": "all_to_all"}, "unknown field of sig 'labels'"),
        ({"target": 4}, "sig.target must be a class of tiny"),
    ],
)
def test_mistakes_are_named(tiny_spec, config, message):
    with pytest.raises(UserError, match=message):
        sig(tiny_spec, config)
