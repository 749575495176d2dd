"""Input-aware: its networks, its loss and its steps against float64 loops written apart in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.attacks.input_aware.input_aware import Config, input_aware
from bdjax.attacks.input_aware.mask import distance, learning_rate, mask_training, soft_threshold
from bdjax.attacks.input_aware.networks import generator, upsample
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.types import Dataset, DataSpec, Split

SPEC = DataSpec("toy", (16, 16, 3), 4, (0.5, 0.4, 0.45), (0.25, 0.3, 0.2), False, 0)
SMALL = {"width": 2, "max_ratio": 0.15, "double_tanh": True}
BATCH, PLACES = 20, 3
LABELS = np.arange(BATCH, dtype=np.int32) % 4


def same(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def noise(seed, *shape):
    return np.random.default_rng(seed).random(shape)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def attack():
    return input_aware(SPEC, {**SMALL, "accumulate_g_grad": False})


@pytest.fixture(scope="module")
def mask(attack):
    """A mask network that was not trained, in float64."""
    with jax.enable_x64(True):
        return jax.jit(generator(SPEC, 1, 2, True).init)(jax.random.key(7))


@pytest.fixture(scope="module")
def step(attack):
    """``f(trigger, key, images, ratio, other, head) -> (images, labels, loss, trigger, gradient)``; ``head`` is linear."""

    @jax.jit
    def run(trigger, key, images, ratio, other, head):
        def loss(trigger):
            own = jnp.asarray(LABELS)
            mixed, labels, extra, after = attack.batch(trigger, key, images, own, ratio, (other, own))
            seen = jnp.where(jnp.isfinite(mixed), mixed, 0)  # NaN waits in places without a turn
            logits = seen.reshape(BATCH, -1) @ head
            ce = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))
            return ce + extra, (mixed, labels, extra, after)

        gradient, out = jax.grad(loss, has_aux=True, allow_int=True)(trigger)
        return *out, gradient

    return run


def updater(attack):
    return jax.jit(lambda trigger, gradient: attack.update(trigger, {"generator": gradient}))


def batches():
    return jax.random.key(0), noise(3, BATCH, 16, 16, 3), noise(4, BATCH, 16, 16, 3), np.zeros((16 * 16 * 3, 4))


@pytest.mark.parametrize(("outputs", "count"), [(3, 723_273), (1, 722_691)])
def test_parameter_counts_of_the_paper(outputs, count):
    shapes = jax.eval_shape(generator(SPEC, outputs, 32, False).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_biases_and_kernels_start_like_pytorchs():
    params = jax.jit(generator(SPEC, 3, 16, False).init)(jax.random.key(3))["params"]
    for layer, inputs in (("conv1", 3), ("conv7", 64)):
        for leaf in params[layer].values():
            bound, values = 1 / np.sqrt(9 * inputs), np.asarray(leaf)
            assert np.abs(values).max() <= bound and np.abs(values).max() > 0.85 * bound
            np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.3)


def test_output_range():
    @jax.jit
    def run(key, images):
        variables = generator(SPEC, 3, 2, False).init(key)
        steep = {**variables, "params": tree.replace(variables["params"], {"bn13/scale": jnp.full(3, 1e4)})}
        return [generator(SPEC, 3, 2, double).apply(steep, images, train=True)[0] for double in (True, False)]

    double, single = run(jax.random.key(0), jnp.asarray(noise(0, 4, 16, 16, 3), jnp.float32))
    np.testing.assert_allclose([double.min(), double.max()], [0.119203, 0.880797], atol=1e-6)
    np.testing.assert_allclose([single.min(), single.max()], [0, 1], atol=1e-6)


def test_upsampling_by_hand():
    x = jnp.asarray([[1.0, 5.0], [9.0, 13.0]], jnp.float32)[None, :, :, None]
    row = np.array([1, 2, 4, 5], np.float32)
    np.testing.assert_array_equal(np.asarray(upsample(x))[0, :, :, 0], row[None] + np.array([0, 2, 6, 8], np.float32)[:, None])


def test_threshold_and_distance():
    m = np.linspace(0, 1, 11)
    np.testing.assert_allclose(soft_threshold(jnp.asarray(m, jnp.float32)), np.tanh(20 * m - 10) / (2 + 1e-7) + 0.5, atol=1e-6)
    a, b = noise(1, 3, 4, 4, 2), noise(2, 3, 4, 4, 2)
    b[0] = a[0]
    wanted = np.sqrt(((a - b) ** 2).reshape(3, -1).mean(1))
    one, two = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    np.testing.assert_allclose(distance(one, two), wanted, rtol=1e-5, atol=1e-9)
    assert np.all(np.isfinite(jax.grad(lambda x: distance(x, two).sum())(one)))


def test_learning_rate_of_the_mask_falls_after_10_and_20_of_25_epochs():
    rates = jax.vmap(lambda e: learning_rate(0.01, e, 25))(jnp.arange(25, dtype=jnp.int32))
    np.testing.assert_allclose(rates, np.repeat([1e-2, 1e-3, 1e-4], [10, 10, 5]), rtol=1e-6)
    short = [float(learning_rate(1.0, jnp.int32(e), 5)) for e in range(5)]
    np.testing.assert_allclose(short, [1, 1, 0.1, 0.1, 0.01], rtol=1e-6)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.slow
def test_without_poison_the_pattern_network_stays_as_it_was_drawn(attack, mask, step, float64, accumulate):
    key, x, z, head = batches()
    trigger = jax.jit(attack.init)(jax.random.key(1), mask)
    mixed, labels, loss, after, gradient = step(trigger, key, x, jnp.float32(0), z, head)
    assert same((mixed, labels), (x, LABELS)) and float(loss) == 0
    if accumulate:
        attack = input_aware(SPEC, {**SMALL, "accumulate_g_grad": True})
        trigger = jax.jit(attack.init)(jax.random.key(1), mask)
        after = {**trigger, **after}
    end = updater(attack)(after, gradient["generator"])
    assert same({**end, "adam": 0}, {**trigger, "adam": 0}) and int(end["adam"].count) == 1


def test_a_ratio_below_one_image_triggers_one_now_and_then(attack, mask, step, float64):
    _, x, z, head = batches()
    trigger, hits = jax.jit(attack.init)(jax.random.key(1), mask), []
    for seed in range(12):
        mixed, labels, loss, after, gradient = step(trigger, jax.random.key(seed), x, jnp.float32(0.02), z, head)
        changed = np.flatnonzero(np.any(np.asarray(mixed) != x, (1, 2, 3))).tolist()
        hits.append(bool(changed))
        assert changed == ([0, PLACES] if hits[-1] else []) and (float(loss) > 0) == hits[-1]
        assert labels.tolist() == LABELS.tolist()  # the target class is that of the first image
        assert same(after["statistics"], trigger["statistics"]) == (not hits[-1])
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient["generator"]))
    assert 0 < sum(hits) < 12  # 0.4 each


def test_the_pattern_network_goes_on_with_what_it_gathered_where_a_batch_has_no_triggered_image(mask, float64):
    attack = input_aware(SPEC, {**SMALL, "accumulate_g_grad": True})
    trigger = jax.jit(attack.init)(jax.random.key(1), mask)
    none = jax.tree.map(jnp.zeros_like, trigger)
    gathered = {**trigger, "total": jax.tree.map(jnp.ones_like, trigger["total"])}
    moved = updater(attack)(gathered, none["generator"])
    np.testing.assert_allclose(moved["generator"]["bn1"]["scale"], 1 - 0.01, rtol=1e-6)
    assert same(moved["total"], gathered["total"])


def test_stamp_truncates_to_the_grid_and_keeps_every_level_it_does_not_cover(attack):
    trigger = jax.jit(lambda a, b: attack.init(a, generator(SPEC, 1, 2, True).init(b)))(jax.random.key(1), jax.random.key(7))
    x = np.resize(np.arange(256, dtype=np.uint8), (4, 16, 16, 3)).astype(np.float32) / np.float32(255)

    @jax.jit
    def run(trigger):
        images, drawn = jnp.asarray(x), {"params": trigger["generator"], "batch_stats": trigger["statistics"]}
        pattern, _ = generator(SPEC, 3, 2, True).apply(drawn, images)
        covered, _ = generator(SPEC, 1, 2, True).apply(trigger["mask"], images)
        return attack.stamp(trigger, jax.random.key(0), images), pattern, covered

    out, *drawn = (np.asarray(a, np.float64) for a in run(trigger))
    pattern, m = drawn
    exact = 255 * (x + (pattern - x) * (np.tanh(20 * m - 10) / 2 + 0.5))
    assert np.abs(255 * out - np.round(255 * out)).max() < 1e-4
    clear = np.abs((exact + 1e-3) % 1 - 0.5) < 0.49  # float32 decides the others
    assert clear.mean() > 0.9 and np.abs(out - x).max() > 0.05
    np.testing.assert_array_equal(np.round(255 * out)[clear], np.floor(exact + 1e-3)[clear])
    # tanh(-1) leaves a mask of 0.119, whose soft threshold is 2e-7: nothing is covered
    silent = {"bn13/scale": np.zeros(1, np.float32), "bn13/bias": np.full(1, -20, np.float32)}
    closed = tree.replace(trigger["mask"]["params"], silent)
    np.testing.assert_array_equal(run({**trigger, "mask": {**trigger["mask"], "params": closed}})[0], x)


def test_profiles_labels_and_recipe():
    switches = {p: input_aware(SPEC, profile=p).config for p in ("corrected", "reference")}
    assert [(c.double_tanh, c.accumulate_g_grad) for c in switches.values()] == [(False, False), (True, True)]
    mixed = input_aware(SPEC, Config(accumulate_g_grad=True)).config
    assert (mixed.double_tanh, mixed.accumulate_g_grad) == (False, True)
    recipe = input_aware(SPEC).recipe
    assert (recipe.epochs, recipe.schedule, recipe.augment, recipe.second_batch) == (75, "constant", "before", True)
    assert (recipe.prepare_per, recipe.shared_trigger) == ("seed", False)
    labels = jnp.arange(4, dtype=jnp.int32)
    assert input_aware(SPEC, {"target": 2}).relabel(labels).tolist() == [2, 2, 2, 2]
    assert input_aware(SPEC, {"labels": "all_to_all"}).relabel(labels).tolist() == [1, 2, 3, 0]


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"multiples of 8; odd has 28x28"):
        input_aware(SPEC._replace(name="odd", image_shape=(28, 28, 3)))
    for field, value, allowed in (
        ("max_ratio", 0.6, r"\(0, 0.5\]"),
        ("density", 1.5, r"\[0, 1\]"),
        ("lr", 0.0, "above 0"),
        ("div_weight", -1.0, "at least 0"),
        ("norm_weight", -1.0, "at least 0"),
        ("width", 0, "at least 1"),
        ("mask_epochs", 0, "at least 1"),
        ("target", 4, "0 … 3"),
    ):
        with pytest.raises(UserError, match=f"input_aware.{field} must.*{allowed}.*given {value}"):
            input_aware(SPEC, {field: value})
    attack = input_aware(SPEC)
    image, label = jnp.zeros((1, 16, 16, 3)), jnp.zeros(1, jnp.int32)
    with pytest.raises(UserError, match=r"needs 2 per batch; given 1"):
        attack.batch(None, jax.random.key(0), image, label, jnp.float32(0.1), (image, label))


ROWS, SEED = 24, 91  # a seed whose two shuffles never meet
MASK = Config(width=2, mask_epochs=5, mask_batch=20, double_tanh=False, lr=2**-7)  # exact in float32


@pytest.fixture(scope="module")
def prepared():
    """(keys, data set, assets of two seeds); the second seed's loss is NaN from the start."""
    images = np.random.default_rng(5).integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8)
    split = Split(images, np.arange(ROWS, dtype=np.int32) % 4)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(SEED), 2)
        networks = generator(SPEC, 1, 2, False)

        @jax.jit
        @jax.vmap
        def run(key, weight):
            return mask_training(SPEC, networks, MASK._replace(div_weight=weight))(key, Dataset(SPEC, split, split, "toy"))

        return keys, images, run(keys, jnp.asarray([MASK.div_weight, np.nan]))


@pytest.mark.slow
def test_a_seed_whose_mask_training_is_not_finite_stays_where_it_was(prepared, float64):
    keys, _, assets = prepared
    drawn = jax.jit(lambda key: generator(SPEC, 1, 2, False).init(jax.random.split(key, 4)[0]))(keys[1])
    assert assets["stopped"].tolist() == [-1, 0]
    for name in ("params", "batch_stats"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-12), assets[name], drawn[name])
    assert np.isfinite(assets["loss"]).all(1).tolist() == [True, False]


@pytest.mark.torch
def test_phase_one_agrees_with_pytorch(prepared, float64):
    pytest.importorskip("torch")
    from tests.attacks import input_aware_torch

    keys, images, assets = prepared
    init, _, *orders = jax.random.split(keys[0], 4)
    start = generator(SPEC, 1, 2, False).init(init)
    order = np.array([[jax.random.permutation(step_key(o, e), ROWS)[None, :20] for o in orders] for e in range(5)])
    assert not np.any(order[:, 0] == order[:, 1])  # two equal images have no gradient in PyTorch
    wanted = input_aware_torch.phase_one(start, SPEC, images, order.transpose(0, 2, 1, 3), MASK)
    for name in ("params", "batch_stats"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-6, atol=1e-7), assets[name], wanted[name])
    for name in ("loss", "density"):
        np.testing.assert_allclose(assets[name][0], wanted[name], rtol=1e-7)


@pytest.mark.torch
def test_phase_two_agrees_with_pytorch_with_and_without_accumulated_gradients(attack, mask, step, float64):
    pytest.importorskip("torch")
    from tests.attacks import input_aware_torch

    images, others = noise(11, 4, BATCH, 16, 16, 3), noise(12, 4, BATCH, 16, 16, 3)
    numbers = [2, 1, 3, 2]  # of 20, by the ratio
    for i, n in enumerate(numbers):  # what waits for a larger ratio is never looked at
        images[i, n:PLACES], images[i, PLACES + n : 2 * PLACES] = np.nan, np.nan
        others[i, :PLACES], others[i, PLACES + n :] = np.nan, np.nan
    head = noise(13, 16 * 16 * 3, 4) / 20
    ends = []
    for accumulate in (False, True):
        made = input_aware(SPEC, {**SMALL, "accumulate_g_grad": accumulate})
        trigger = begin = jax.jit(made.init)(jax.random.key(1), mask)
        update, losses, mixtures = updater(made), [], []
        for x, z, n in zip(images, others, numbers, strict=True):
            total = {k: trigger.pop(k) for k in ("total",) if k in trigger}
            mixed, labels, loss, after, gradient = step(trigger, jax.random.key(0), x, jnp.float32(n / BATCH), z, head)
            assert labels.tolist() == [0] * n + LABELS[n:].tolist()
            trigger = update({**after, **total}, gradient["generator"])
            losses.append(float(loss))
            mixtures.append(np.asarray(mixed))
        wanted = input_aware_torch.phase_two(begin, SPEC, images, others, LABELS, numbers, PLACES, head, accumulate)
        np.testing.assert_allclose(losses, wanted["losses"], rtol=1e-9)
        for name in ("generator", "statistics"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7), trigger[name], wanted[name])
        for mine, theirs in zip(mixtures, wanted["mixed"], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-8)  # NaN where NaN
        ends.append(jax.tree.leaves(trigger["generator"]))
    assert max(np.abs(a - b).max() for a, b in zip(*ends, strict=True)) > 1e-3  # the two ways differ
