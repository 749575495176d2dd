import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.data.augment import to_float
from bdjax.defenses.bti_dbf.bti_dbf import BTIDBFHyper, bti_dbf, replacements
from bdjax.defenses.bti_dbf.generator import generator
from bdjax.defenses.bti_dbf.inversion import InversionHyper, inverted_triggers
from bdjax.defenses.bti_dbf.phases import benign_share, change_of, mean_square
from bdjax.defenses.bti_dbf.search import Rules
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.nn.convolution import LOWERINGS, convolve, convolve_transposed
from bdjax.types import CleanSet, DefenderView, Loop
from tests.defenses.plain_bti_dbf import drawn, enlarged, written_out
from tests.defenses.plain_eval import knowing, trained
from tests.defenses.plain_network import pixels
from tests.models.test_defended import network as published
from tests.models.test_defended import repaired
from tests.networks import INVERTED, SLOWEST, spec

KEY = jax.random.key(17)
SHORT = {
    "pretrain_epochs": 12,
    "rounds": 2,
    "mask_epochs": 2,
    "generator_epochs": 2,
    "unlearn_epochs": 2,
    "batch": 12,
    "generator_width": 2,
    "generator_levels": 1,
    "replaced": 0.3,
}
SEVERAL = {**SHORT, "pretrain_epochs": 30, "batch": 8}  # batches per epoch
LIVELY = {
    "lr": 0.01,
    "generator_lr": 0.012,
    "mask_lr": 0.3,
    "pretrain_bound": 1.1,
    "image_bound": 1,
    "feature_bound": 0.5,
    "noise": 10,
}
OTHERWISE = {"generator_lr": 0.01, "image_bound": 0.8, "feature_bound": 0.7}  # with several batches per epoch


def hyper(dtype=np.float64, **changed):
    return BTIDBFHyper(**{name: jnp.asarray(dtype(value)) for name, value in {**LIVELY, **changed}.items()})


@pytest.fixture(scope="module")
def uneven(plain_spec):
    """A data set whose colours have standard deviations of their own."""
    return plain_spec._replace(std=(0.3, 0.2, 0.25))


@pytest.fixture(scope="module")
def network(uneven):
    return cnn(uneven, 4, lowering="patches")


@pytest.fixture(scope="module")
def known(uneven, variables, clean):
    """A network that separates the classes."""
    return knowing(uneven, variables, clean(5))


@functools.cache
def compiled(model, several):
    defense = bti_dbf(model, SEVERAL if several else SHORT)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


# The generator


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_generator_has_the_published_size():
    for side in (32, 64):
        shapes = jax.eval_shape(generator(spec(size=side), 32, 4).init, jax.random.key(0))
        assert count(shapes) == 10_987_011
    # Two levels less: 3 x 3 x (128 x 256 + 256 x 512 + ...) are missing.
    names = {levels: sorted(jax.eval_shape(generator(spec(), 2, levels).init, jax.random.key(0))) for levels in (1, 2, 3)}
    for side, levels in ((16, 3), (8, 2), (28, 2), (6, 1)):
        assert sorted(jax.eval_shape(generator(spec(size=side), 32, 4).init, jax.random.key(0))) == names[levels]
    for side in (5, 2):
        with pytest.raises(UserError, match=rf"even sides of at least 4 pixels; given {side}x{side}"):
            generator(spec(size=side), 32, 4)


@pytest.mark.slow  # compiling; the whole method written out has a generator of one level
def test_the_generator_is_the_one_written_out(uneven, wide):
    net = generator(uneven, 3, 2)
    generic = np.random.default_rng(1)

    def moved(path, p):  # norms, too, are no fresh ones
        return generic.uniform(-0.3, 0.3, p.shape) + (path[-1].key == "scale")

    params = jax.tree.map_with_path(moved, jax.eval_shape(net.init, jax.random.key(1)))
    images, goal = generic.uniform(0, 1, (3, 8, 8, 3)), generic.uniform(0, 1, (3, 8, 8, 3))

    def slope(draw):
        return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum((draw(p, x) - goal) ** 2), (0, 1)))(params, images)

    found, expected = slope(net.apply), slope(lambda p, x: drawn(p, x, uneven, 2))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-9)


def test_the_generator_starts_like_pytorchs():
    params = jax.jit(generator(spec(), 16, 2).init)(jax.random.key(3))
    for layer, inputs in (("down0_conv1", 27), ("down1_conv2", 9 * 32), ("enlarge1", 9 * 64), ("enlarge0", 9 * 32), ("out", 16)):
        bound = 1 / np.sqrt(inputs)
        for leaf in params[layer].values():
            values = np.asarray(leaf)
            assert np.abs(values).max() <= bound
            assert leaf.size < 100 or (
                np.abs(values).max() > 0.95 * bound and abs(values.std() - bound / np.sqrt(3)) < 0.05 * bound
            )
    assert params["middle_norm1"]["scale"].tolist() == [1] * 64 and params["middle_norm1"]["bias"].tolist() == [0] * 64


@jax.jit
def enlarged_with_slopes(x, kernel, g):
    """What :func:`enlarged` makes of x, and what it gives back to x and the kernel for g."""
    y, pull = jax.vjp(lambda x, k: enlarged(x, {"kernel": k, "bias": jnp.zeros(5)}), x, kernel)
    return y, *pull(g)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_transposed_convolutions_spread_the_kernel(lowering, wide):
    generic = np.random.default_rng(2)
    x, kernel, g = (generic.normal(size=shape) for shape in ((2, 3, 4, 5), (3, 3, 5, 5), (2, 6, 8, 5)))

    @jax.jit
    def ours(x, kernel, g):
        def up(x, kernel):
            return convolve_transposed(x, kernel, stride=2, padding=1, size=(6, 8), lowering=lowering)

        y, pull = jax.vjp(up, x, kernel)
        return (y, *pull(g)), convolve(g, kernel, stride=2, padding=1, lowering=lowering)

    found, back = ours(x, kernel, g)
    for a, b in zip(found, enlarged_with_slopes(x, kernel, g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    # It transposes the convolution.
    np.testing.assert_allclose(np.vdot(found[0], g), np.vdot(x, back), rtol=1e-12)


# The pieces


def test_the_mask_stays_between_none_and_all(wide):
    share = np.asarray(benign_share(jnp.asarray([-1e3, -5.0, 0.0, 5.0, 1e3])))
    assert np.all(share > 0) and np.all(share < 1) and share[2] == 0.5 and share[1] < 1e-4 and share[3] > 0.9999


def test_replaced_rows_are_a_tenth_and_one_more():
    run = jax.jit(jax.vmap(lambda key, mask: replacements(key, mask, 0.1)))
    masks, keys = (np.arange(128)[None] < np.arange(129)[:, None]).astype(np.float32), jax.random.split(KEY, 129)
    rows, used = (np.asarray(x) for x in run(keys, masks))
    assert rows.shape == (129, 13)
    for n in range(1, 129):
        chosen = rows[n][used[n]]
        assert len(chosen) == min(int(0.1 * n + 1), n) == len(set(chosen)) and chosen.max() < n
    assert not used[0].any()
    often = np.bincount(np.asarray(run(keys, np.ones((129, 128), np.float32))[0]).ravel(), minlength=128)
    assert often.min() > 1 and often.max() < 35  # 13 each in the mean
    rows, used = jax.jit(replacements, static_argnums=2)(KEY, np.ones(5, np.float32), 1.0)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4] and np.all(used)


def test_changes_are_measured_by_hand(uneven):
    images, moved = np.zeros((2, 2, 4, 4, 3), np.float32)
    moved[0, ..., 0], moved[0, ..., 1], moved[1] = 0.3, 0.1, 9

    def changes(std):
        """Of normalised images, and in quarters of the range of pixels."""
        return (change_of(uneven._replace(std=std), normalised) for normalised in (True, False))

    @jax.jit
    def run(images, moved, slightly, mask):
        recorded = [change(images, moved, mask) for change in changes(uneven.std)]
        # On CIFAR-10 both say nearly the same, on images that nothing normalises they do not.
        near, far = (
            [change(images, slightly, jnp.ones_like(mask)) for change in changes(std)]
            for std in ((0.247, 0.243, 0.261), (1.0, 1.0, 1.0))
        )
        return recorded, mean_square(images, moved, 1 - mask), near, far

    (normalised, pixel), rest, near, far = run(images, moved, images + np.float32(0.1), np.float32([1, 0]))
    assert float(normalised) == pytest.approx((1 + 0.25) / 3, rel=1e-6)
    assert float(pixel) == pytest.approx((1.44 + 0.16) / 3, rel=1e-6)
    assert float(rest) == 81
    assert abs(float(near[1]) / float(near[0]) - 1) < 0.01 <= abs(float(far[1]) / float(far[0]) - 1)


# The whole method


@pytest.fixture
def few(clean, padded):
    """Eight rows, of which a third of the only batch is garbage."""
    return padded(clean(2), 4)


@pytest.mark.slow  # compiling; the contract and the golden numbers are in the fast tests
@pytest.mark.parametrize("several", [False, True])
def test_the_method_is_the_one_written_out(network, uneven, known, clean, padded, few, wide, distance, several):
    # In the only batch there is garbage; or among rows of garbage are batches of 8, 8 and 4, and after these empty ones.
    rows, more, short, given = clean(2), few, SHORT, hyper()
    if several:
        rows, more, short, given = clean(5), padded(clean(5), 20), SEVERAL, hyper(**OTHERWISE)
    variables = wide(known)
    found = compiled(network, several)(variables, more, given)
    start = jax.jit(generator(uneven, 2, 1).init)(jax.random.split(KEY, 3)[0])
    end, _, recorded = written_out(uneven, variables, pixels(rows), rows.labels, KEY, start, given, (0.25,) * 3, short, 1)
    assert distance(found.variables, end) < 1e-11
    for name in ("far", "outside"):
        assert len(set(recorded[name])) == 2, f"{name}: both sides of the bound must occur"
    for name in ("pretrain", "mask", "generator", "image", "benign", "others", "loss", "entropy", "apart", "share"):
        np.testing.assert_allclose(getattr(found.trace, name), recorded[name], rtol=1e-5, atol=1e-6)
    assert found.trace.detected.tolist() == recorded["detected"] and int(found.trace.target) == recorded["detected"][0]
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1 and found.masks is None
    assert distance(end["params"], variables["params"]) > 1e-2


def test_every_number_matters(network, known, few, wide, distance):
    run, variables = compiled(network, False), wide(known)
    plain = run(variables, few, hyper())
    for leaf, value in LIVELY.items():
        moved = run(variables, few, hyper(**{leaf: 0 if leaf == "noise" else value / 2}))
        seen = [(found.trace.share, found.trace.detected) if leaf == "noise" else found.variables for found in (moved, plain)]
        assert distance(*seen) > 1e-6, leaf


def test_the_network_is_changed_by_the_unlearning_alone(network, known, few, wide, distance):
    run, variables = compiled(network, False), wide(known)
    found = run(variables, few, hyper(lr=0))
    assert distance(found.variables["params"], variables["params"]) == 0
    assert distance(found.trace.generator, np.zeros(4)) > 0.1 and np.ptp(np.asarray(found.trace.mask)) > 0.01


def test_a_divergence_is_marked_wherever_it_happens(network, known, few, wide, distance):
    run, variables = compiled(network, False), wide(known)
    for broken, first, untouched in (({"generator_lr": 1e300}, 1, True), ({"lr": 1e300}, 16, False)):
        found = run(variables, few, hyper(**broken))
        # Steps are counted through: 12 of the pre-training, then 2 each of mask, generator and network in a round.
        assert not bool(found.trace.alive) and first <= int(found.trace.stopped) < first + 2
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
        assert (distance(found.variables, variables) == 0) == untouched


# What it is for


@pytest.fixture(scope="module")
def backdoored(plain_spec):
    """A network that learned a backdoor to class 2, its clean images and labels, and the images with the trigger."""
    generic = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.int32) // 20
    images = generic.integers(0, 90, (80, 8, 8, 3), dtype=np.uint8)
    for k in range(4):
        y, x = 4 * (k // 2), 4 * (k % 2)
        images[labels == k, y : y + 4, x : x + 4] += 100
    triggered = images.copy()
    triggered[:, 3:5, 3:5] = (255, 0, 255)
    network = cnn(plain_spec, 4, lowering="patches")
    start = jax.jit(network.init)(jax.random.key(0))
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), start)
        seen = np.concatenate([images, triggered[::2]]) / 255, np.concatenate([labels, np.full(40, 2, np.int32)])
        known = trained(plain_spec, start, *seen, steps=150)
        known = jax.tree.map(lambda x: np.asarray(x, np.float32), known)
    known = jax.tree.map(jnp.asarray, known)

    @jax.jit
    def logits(variables, images):
        return network.apply(variables, to_float(images)).logits

    def classes(variables, images):
        return np.asarray(logits(variables, images)).argmax(-1)

    assert np.all(classes(known, images) == labels) and np.all(classes(known, triggered) == 2)
    return network, known, images, labels, triggered, classes


LENGTHS = {"pretrain_epochs": 40, "mask_epochs": 20, "batch": 40, "generator_width": 4, "generator_levels": 1}
FAST = {"generator_lr": np.float32(0.01), "mask_lr": np.float32(0.1)}


@pytest.mark.slow  # it trains
def test_inverted_triggers_lead_to_the_target(backdoored):
    network, known, images, labels, _, classes = backdoored
    rules = Rules(rounds=1, generator_epochs=40, **LENGTHS)
    role = np.ones(80, np.int8)
    role[::20], role[19::20] = 2, 0  # one validation row per class, and one that is not there
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(role), jnp.int32(19))
    invert = jax.jit(inverted_triggers(network, rules))
    for seed in (3, 4):
        found = invert(jax.random.key(seed), known, rows, jax.tree.map(jnp.asarray, InversionHyper(**FAST)))
        drawn, there = np.asarray(found.images), role > 0
        assert drawn.dtype == np.uint8 and np.array_equal(drawn[~there], images[~there])
        assert int(found.target) == found.history.detected[0] == 2 and bool(found.alive)
        reached = classes(known, drawn[there]) == 2
        assert reached.mean() > 0.4 and float(found.history.share[0]) > 0.4 > 20 / 76
        # And the images are still theirs: within the bound, which is 0.14 of the range, or a little beyond.
        assert np.sqrt(np.mean(np.square(drawn[there] / 255 - images[there] / 255))) < 0.16


@pytest.mark.slow  # compiling: half a minute
def test_it_unlearns_a_backdoor_that_tuning_on_nothing_keeps(backdoored):
    network, known, images, labels, triggered, classes = backdoored
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(80, jnp.int8), jnp.int32(20))
    defense = bti_dbf(network, {**LENGTHS, "rounds": 3, "generator_epochs": 30, "unlearn_epochs": 20})
    defend = jax.jit(lambda hyper: defense.defend(jax.random.key(4), DefenderView(known, rows), hyper))
    for lr, success in ((1e-3, 0), (0, 1)):
        found = defend(jax.tree.map(jnp.asarray, BTIDBFHyper(lr=np.float32(lr), **FAST)))
        assert int(found.trace.target) == 2 and np.mean(classes(found.variables, images) == labels) == 1
        assert np.mean(classes(found.variables, triggered[labels != 2]) == 2) == success


def test_defaults(model):
    assert bti_dbf(model).config == (50, 5, 20, 30, 30, 128, 32, 4, 0.1, "pixel")
    assert bti_dbf(model, profile="reference").config == (50, 5, 20, 30, 30, 128, 32, 4, 0.1, "normalised")
    defense = bti_dbf(model)
    assert [round(float(x), 6) for x in defense.hyper] == [1e-4, 1e-3, 0.01, 0.1, 0.3, 3, 0.03]
    assert InversionHyper() == defense.hyper[1:] and Rules() == (50, 5, 20, 30, 128, 32, 4, "pixel")
    assert defense.needs == {"clean"} and not defense.validation


def test_mistakes_are_named(model):
    for field in SHORT:
        if field != "replaced":
            with pytest.raises(UserError, match=rf"bti_dbf\.{field} must be at least 1; given 0"):
                bti_dbf(model, {field: 0})
    with pytest.raises(UserError, match=r"bti_dbf\.replaced must lie in \[0, 1\], in steps of 1e-4; given 1\.5"):
        bti_dbf(model, {"replaced": 1.5})
    with pytest.raises(UserError, match=r"unknown bti_dbf\.bound_space 'pixels'.*'pixel'"):
        bti_dbf(model, {"bound_space": "pixels"})
    with pytest.raises(UserError, match=r"inverted_triggers\.rounds must be at least 1; given 0"):
        inverted_triggers(model, Rules(rounds=0))


@pytest.mark.slow  # every step is compiled on its own
def test_a_dispatched_loop_is_the_same_loop(network, known, clean, padded, wide, distance):
    rows, variables = padded(clean(5), 20), wide(known)
    there = compiled(network, True)(variables, rows, hyper(**OTHERWISE))
    defense = bti_dbf(network.rebuild(loop=Loop("dispatch")), SEVERAL)
    found = defense.defend(KEY, DefenderView(variables, rows), hyper(**OTHERWISE))
    assert distance(found.variables, there.variables) < 1e-9 and distance(found.trace, there.trace) < 1e-5


@pytest.mark.slow  # compiling: a minute
@pytest.mark.parametrize("name", [name for name in INVERTED if name not in SLOWEST])
def test_it_runs_on_a_network_of_every_kind_of_layer(name):
    """Features of one position, dropout behind them, stochastic depth below."""
    model = published(name)
    short = dict.fromkeys(("pretrain_epochs", "mask_epochs", "generator_epochs", "unlearn_epochs"), 1)
    before, found = repaired(model, "bti_dbf", **short, rounds=2, batch=8, generator_width=2)
    assert bool(found.trace.alive) and float(found.trace.share[0]) > 0
    kernels = [f"{address}/kernel" for kind, address in model.arch.registered if kind == "conv"]
    for k in kernels:
        assert np.any(np.asarray(tree.get(before["params"], k)) != np.asarray(tree.get(found.variables["params"], k)))
