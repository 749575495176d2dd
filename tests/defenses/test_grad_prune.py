import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.data import clean_subset
from bdjax.defenses.grad_prune.doubles import drop_is_below
from bdjax.defenses.grad_prune.filters import filters, masks_of, pruned
from bdjax.defenses.grad_prune.grad_prune import GradPruneHyper, grad_prune
from bdjax.defenses.grad_prune.joint_tuning import tuner
from bdjax.defenses.grad_prune.passes import pixels as as_floats
from bdjax.defenses.grad_prune.passes import plan, sizes
from bdjax.defenses.grad_prune.rounds import Ended, within
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.models.preact_resnet import preactresnet18
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import backdoored, correct, murky
from tests.defenses.plain_network import pixels
from tests.defenses.plain_unlearning import Unlearning, narrow
from tests.networks import INVERTED, PUBLISHED, SLOWEST, drawn, reduced, shapes, spec

KEY = jax.random.key(23)
PRUNING, TUNING = jax.random.split(jax.random.split(KEY)[1])
SHORT = {"rounds": 8, "epochs": 5, "batch": 8, "pruning_patience": 4, "tuning_patience": 3}
LIVELY = {"lr": 0.15, "momentum": 0.8, "weight_decay": 0.02, "tolerance": 0.3}
DRIFT = {"prune": False, "tune": False, "score_bn": "first_batch_train"}


def hyper64(**changed):
    return GradPruneHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def marked(images):
    """The images with a bright second quadrant, which is what makes class 1."""
    images = np.array(images)
    images[:, :4, 4:] = 200
    return images


@pytest.fixture(scope="module")
def known(model, plain_spec, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, drawn(model, 2), clean(5, 3))


@pytest.fixture(scope="module")
def rows(clean, padded):
    """Noisy rows, 20 to train on and 12 to validate on, among absent ones: batches of 8, 8 and 4, and of 8 and 4."""
    return padded(murky(clean(5, 3)), 7)


@functools.cache
def defending(model, profile="corrected", **changed):
    """(configuration, defense of one member, the same not compiled); one program for all that has the same shapes."""
    defense = grad_prune(model, {**SHORT, **changed}, profile=profile)

    def defend(variables, rows, triggered, hyper):
        return defense.defend(KEY, DefenderView(variables, rows, triggered), hyper)

    return defense.config, jax.jit(defend), defend


# The whole method

CASES = [
    ("corrected", {}, {}, ("ACCURACY", "CAP")),
    ("corrected", {}, {"tolerance": 1.0, "lr": 0.1}, ("PATIENCE", "CAP")),
    ("corrected", {}, {"tolerance": 0.2}, ("ACCURACY", "CAP")),  # the round that goes too far has the smallest loss
    pytest.param("reference", {}, {}, ("ACCURACY", "PATIENCE"), marks=pytest.mark.slow),
    pytest.param(
        *("reference", {}, {"tolerance": 1.0, "momentum": 0.6, "weight_decay": 0.1}, ("PATIENCE", "PATIENCE")),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("profile", "changed", "values", "ends"), CASES)
def test_the_result_is_what_is_written_out(profile, changed, values, ends, model, known, rows, wide, distance, plain_spec):
    start, hyper, triggered = wide(known), hyper64(**values), marked(rows.images)
    config, defend, _ = defending(model, profile, **changed)
    found = defend(start, rows, triggered, hyper)
    images, there = (pixels(rows._replace(images=each)) for each in (rows.images, triggered))
    hand = Unlearning(plain_spec, start, rows, images, there, hyper, config)
    (params, statistics, clean, kept, gone), course, why = hand.rounds(PRUNING)
    (*best, epoch), losses, validated, end = hand.tune(TUNING, params, statistics, clean, gone)

    assert distance(found.variables, dict(zip(("params", "batch_stats"), best, strict=True))) < 1e-12
    trace = jax.tree.map(np.asarray, found.trace)
    made = len(course)
    address, channel, score, errors, loss = zip(*course, strict=True)
    assert trace.address.tolist() == [-1, *address[1:]] + [-1] * (9 - made)
    assert trace.filter.tolist() == [-1, *channel[1:]] + [-1] * (9 - made)
    assert trace.errors.tolist() == list(errors) + [-1] * (9 - made)
    np.testing.assert_allclose(trace.score, [*score, *[np.nan] * (9 - made)], rtol=1e-6)
    np.testing.assert_allclose(trace.unlearning, [*loss, *[np.nan] * (9 - made)], rtol=1e-6)
    assert (int(trace.validation), int(trace.rounds), int(trace.kept), Ended(int(trace.ended)).name) == (12, made - 1, kept, why)
    epochs = len(losses)
    np.testing.assert_allclose(trace.loss, losses + [np.nan] * (5 - epochs), rtol=1e-6)
    np.testing.assert_allclose(trace.validated, validated + [np.nan] * (5 - epochs), rtol=1e-6)
    np.testing.assert_allclose(trace.untuned, clean, rtol=1e-6)
    recorded = int(trace.epochs), int(trace.kept_epoch), Ended(int(trace.tuning_ended)).name
    assert recorded == (epochs, epoch, end) and bool(trace.alive) and int(trace.stopped) == -1
    zero = {(f"conv{int(c[-1])}", j) for c, keep in found.masks.items() for j in np.flatnonzero(np.asarray(keep) == 0)}
    assert zero == set(gone) and set(found.masks) == {"conv1", "conv2", "conv3"}
    assert 0 < kept < made - 1 and (why, end) == ends and (epoch > 0), "the case must be one in which neither end is the best"


# What ends the two parts, in a smaller network


@pytest.fixture(scope="module")
def small(plain_spec, rows):
    """(network, its variables, rows of many colours that it knows, their copies in red)."""
    network, colours = narrow(plain_spec), np.random.default_rng(4).uniform(0.2, 1, (len(rows.labels), 1, 1, 3))
    start, images = drawn(network, 5), (np.asarray(rows.images) * colours).astype(np.uint8)
    logits = jax.jit(lambda images: network.apply(start, as_floats(images, jnp.float32)).logits)(images)
    red = images.copy()
    red[..., 0] = 200
    return network, start, rows._replace(images=images, labels=np.asarray(logits).argmax(-1).astype(np.int32)), red


@pytest.mark.slow
def test_absent_rows_change_nothing(small, wide):
    """Other garbage in their images, triggered images and labels."""
    network, start, rows, red = small
    _, defend, _ = defending(network)
    absent = (np.asarray(rows.role) == 0)[:, None, None, None]
    garbage = np.random.default_rng(1).integers(0, 256, rows.images.shape, dtype=np.uint8)
    images, there = (np.where(absent, other, known) for other, known in ((garbage, rows.images), (255 - garbage, red)))
    other = rows._replace(images=images, labels=np.where(absent[:, 0, 0, 0], np.int32(3), rows.labels))
    found = defend(wide(start), rows, red, hyper64(tolerance=1.5))
    again = defend(wide(start), other, there, hyper64(tolerance=1.0))
    assert int(found.trace.rounds) > 1 and int(found.trace.epochs) > 1
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_without_rows_the_network_stays(small, wide, distance):
    network, start, rows, red = small
    _, defend, _ = defending(network)
    for role in (0, 1, 2):  # none at all, none to validate on, none to train on
        found = defend(wide(start), rows._replace(role=np.full_like(rows.role, role)), red, hyper64())
        assert distance(found.variables, wide(start)) == 0 and int(found.trace.rounds) == 0 and bool(found.trace.alive)
        assert Ended(int(found.trace.ended)) == (Ended.NO_FILTER if role == 2 else Ended.ACCURACY)


@pytest.fixture(scope="module")
def members(small):
    """Networks, triggered images and hyper-parameters of seven members that end for reasons of their own."""
    _, start, rows, red = small
    start = jax.tree.map(lambda x: np.asarray(x, np.float64), start)
    bare = jax.tree.map(lambda x: x, start)
    bare["params"]["bn1"]["bias"] = np.array([0.5, 0.5, -99, -99, -99])  # only two of its filters do anything
    broken = jax.tree.map(lambda x: x * 1e200, start)
    # What its first kernel makes, the norm after it makes large again: logits are finite, the kernel's gradient is not.
    params, statistics = start["params"], start["batch_stats"]
    factors = {"conv1/kernel": 1e-306, "conv1/bias": 1e-306, "bn1/scale": 1e306, "linear/kernel": 1e4}
    steep = {
        "params": tree.replace(params, {path: tree.get(params, path) * factor for path, factor in factors.items()}),
        "batch_stats": tree.replace(statistics, {"bn1/mean": statistics["bn1"]["mean"] * 1e-306}),
    }
    return [
        (start, red, hyper64(tolerance=0.1)),
        (start, red, hyper64(tolerance=1.5)),
        (start, red, hyper64(tolerance=0.0)),
        (bare, np.asarray(rows.images), hyper64(tolerance=1.5, lr=0.01)),
        (start, red, hyper64(lr=1e200)),
        (broken, red, hyper64()),
        (steep, red, hyper64()),
    ]


@pytest.fixture(scope="module")
def alone(small, members):
    """What becomes of each member by itself."""
    network, _, rows, _ = small
    with jax.enable_x64(True):
        run = defending(network)[1]
        return [jax.tree.map(np.asarray, run(variables, rows, triggered, hyper)) for variables, triggered, hyper in members]


def test_each_member_ends_for_a_reason_of_its_own(small, members, alone, distance):
    """The non-finite ones are marked and keep what was finite."""
    ended, tuning = ([Ended(int(getattr(found.trace, name))).name for found in alone] for name in ("ended", "tuning_ended"))
    assert ended == ["ACCURACY", "PATIENCE", "ACCURACY", "NO_FILTER", "ACCURACY", "NON_FINITE", "NON_FINITE"]
    assert tuning[4] == "NON_FINITE"
    assert [bool(found.trace.alive) for found in alone] == [True] * 4 + [False] * 3
    assert [int(found.trace.rounds) for found in alone] == [2, 6, 0, 2, 2, 0, 0]
    assert [int(found.trace.stopped) for found in alone[:6]] == [-1] * 4 + [1, 0]
    assert np.isfinite(alone[6].trace.unlearning[0]) and alone[6].trace.address.tolist() == [-1] * 9
    assert all(np.all(keep == 1) for keep in alone[6].masks.values())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(alone[4].variables))
    assert distance(alone[5].variables, members[5][0]) == 0


@pytest.mark.slow  # another program
def test_members_go_their_own_way(small, members, alone, wide, distance):
    """Together each does what it does alone, and does not notice the others."""
    network, _, rows, _ = small
    plainly = defending(network)[2]
    together = jax.jit(jax.vmap(plainly, in_axes=(0, None, 0, 0)))

    def run(every):
        stacked = jax.tree.map(lambda *x: np.stack(x), *every)
        return jax.tree.map(np.asarray, together(stacked[0], rows, *stacked[1:]))

    found = run(members)
    for name in ("ended", "alive", "rounds"):
        assert getattr(found.trace, name).tolist() == [getattr(one.trace, name).item() for one in alone]
    assert Ended(int(found.trace.tuning_ended[4])) == Ended.NON_FINITE
    assert found.trace.stopped.tolist()[:6] == [-1] * 4 + [1, 0]
    assert np.isfinite(found.trace.unlearning[6, 0]) and found.trace.address[6].tolist() == [-1] * 9
    assert all(np.all(keep[6] == 1) for keep in found.masks.values())
    for i, one in enumerate(alone[:5]):
        member = jax.tree.map(lambda x, i=i: x[i], found)
        assert distance(member.variables, one.variables) < 1e-11 and distance(member.masks, one.masks) == 0
        for name in ("address", "filter", "errors", "rounds", "kept", "ended", "epochs", "kept_epoch", "stopped"):
            np.testing.assert_array_equal(getattr(member.trace, name), getattr(one.trace, name))
    assert all(np.isfinite(x[4]).all() for x in jax.tree.leaves(found.variables))
    assert distance(jax.tree.map(lambda x: x[5], found.variables), members[5][0]) == 0
    # The others do not notice the three.
    well = run([*members[:4], *[members[0]] * 3])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(a[:4], b[:4])


@pytest.mark.slow  # a program each
@pytest.mark.parametrize("exclude", [False, True])
def test_a_filter_that_still_has_a_gradient_wins_again_unless_it_is_left_out(exclude, small):
    """As in VGG: the bias goes with the kernel, the norm's scale does not."""
    network, start, rows, red = small
    _, defend, _ = defending(network, "reference", rounds=4, batch=40, tune=False, exclude_pruned=exclude)
    hyper = jax.tree.map(jnp.asarray, GradPruneHyper(tolerance=np.float32(2)))

    def chosen(beta):
        biases = {f"{norm}/bias": np.full_like(start["params"][norm]["bias"], beta) for norm in ("bn1", "bn2")}
        changed = {**start, "params": tree.replace(start["params"], biases)}
        address, channel, score = (np.asarray(x)[1:] for x in defend(changed, rows, red, hyper).trace[:3])
        return list(zip(address.tolist(), channel.tolist(), strict=True)), score

    found, scores = chosen(0.3)
    assert len(set(found)) == (4 if exclude else 1)
    assert (scores[1] > 50 * scores[0]) != exclude  # a channel without variance: its slope is multiplied by 1 / sqrt(eps)
    assert len(set(chosen(0.0)[0])) == 4  # behind the norm it is exactly 0, where ReLU lets nothing through


@pytest.mark.slow  # a program each
@pytest.mark.parametrize("freeze", [False, True])
def test_a_filter_with_a_gradient_grows_back_while_tuning_unless_it_is_frozen(freeze, small):
    """Where only kernel and bias of the convolution are 0 and the norm lets the gradient through."""
    network, start, rows, red = small
    params = tree.map_at(lambda bias: np.full_like(bias, 0.3), start["params"], ("bn1/bias", "bn2/bias"))
    table = filters(network.arch, params, "next_param", True)
    keep = (np.arange(len(table.address)) != 2).astype(np.float32)  # the third of the first convolution
    config = grad_prune(network, {**SHORT, "epochs": 2, "freeze_pruned": freeze}, profile="reference").config
    hyper, least = jax.tree.map(jnp.asarray, GradPruneHyper()), jnp.float32(jnp.inf)
    tune = tuner(network, config)

    @jax.jit
    def run(params, keep, rows, red):
        return tune(KEY, {**start, "params": pruned(table, params, keep)}, table, keep, least, rows, red, hyper)

    found = run(params, keep, rows, red)
    assert int(found.kept) > 0
    kernel, bias = (np.asarray(found.variables["params"]["conv1"][leaf]) for leaf in ("kernel", "bias"))
    assert np.any(kernel[..., 2]) != freeze and kernel[..., (0, 1, 3, 4)].all() and (bias[2] == 0 or not freeze)


@pytest.mark.slow
def test_no_change_is_no_improvement(small, wide):
    """A head that looks at nothing, which nothing moves."""
    network, start, rows, red = small
    blind = wide({**start, "params": tree.map_at(np.zeros_like, start["params"], ("linear/kernel",))})
    tuned = defending(network)[1](blind, rows, red, hyper64(lr=0.0)).trace
    assert Ended(int(tuned.ended)) == Ended.NO_FILTER and (int(tuned.rounds), int(tuned.kept)) == (0, 0)
    assert Ended(int(tuned.tuning_ended)) == Ended.PATIENCE and (int(tuned.epochs), int(tuned.kept_epoch)) == (3, 0)
    drift = defending(network, **DRIFT, rounds=3)[1](blind, rows, red, hyper64(tolerance=1.5)).trace
    assert np.ptp(np.asarray(drift.unlearning)) == 0 and (int(drift.rounds), int(drift.kept)) == (3, 0)


# The three parts of the effect


@pytest.mark.slow  # two more programs
def test_published_rounds_zero_what_wins_and_leave_everything_else(model, known, rows, wide, distance, plain_spec):
    """Also with images that weigh alike, filters that take their norms along and are never chosen again."""
    changed = {"batch_weighting": "per_image", "companion": "own_bn", "exclude_pruned": True, "tune": False}
    start, triggered, hyper = wide(known), marked(rows.images), hyper64(tolerance=1.0)
    config, defend, _ = defending(model, "reference", **changed)
    found = defend(start, rows, triggered, hyper)
    images, there = (pixels(rows._replace(images=each)) for each in (rows.images, triggered))
    (_, statistics, _, kept, gone), course, _ = Unlearning(plain_spec, start, rows, images, there, hyper, config).rounds(PRUNING)
    assert int(found.trace.kept) == kept > 1 and int(found.trace.rounds) == len(course) - 1
    expected = jax.tree.map(np.array, start["params"])
    for conv, j in gone:
        norm = expected[f"bn{conv[-1]}"]
        expected[conv]["kernel"][..., j] = norm["scale"][j] = norm["bias"][j] = 0
    assert distance(found.variables["params"], expected) == 0  # every other parameter, bit by bit
    assert distance(found.variables["batch_stats"], statistics) < 1e-12
    np.testing.assert_allclose(found.trace.score[1 : len(course)], [c[2] for c in course[1:]], rtol=1e-6)


def test_the_statistics_drift_once_in_every_round(small, wide, distance):
    """By the first of its batches, in the order of the round; nothing else happens."""
    network, start, rows, red = small
    start = wide(start)
    config, defend, _ = defending(network, **DRIFT, rounds=3)
    found = defend(start, rows, red, hyper64(tolerance=1.5))
    assert distance(found.variables["params"], start["params"]) == 0 and set(np.asarray(found.trace.address).tolist()) == {-1}
    assert np.isnan(np.asarray(found.trace.loss)).all() and int(found.trace.tuning_ended) == Ended.NOT_RUN
    assert int(found.trace.rounds) == 3 and Ended(int(found.trace.ended)) == Ended.CAP
    batches = Unlearning(None, start, rows, red, red, hyper64(), config).batches
    followed, ordering = start, jax.random.split(PRUNING, 3)[0]
    seen = jax.jit(lambda variables, images: network.apply(variables, as_floats(images, jnp.float64), train=True).variables)
    for number in range(1, int(found.trace.kept) + 1):
        followed = seen(followed, red[batches(ordering, number, 1)[0]])
    assert int(found.trace.kept) > 1 and distance(found.variables, followed) < 1e-12
    assert distance(found.variables, start) > 0.01


@pytest.mark.slow  # two more programs
def test_pruning_alone_leaves_the_statistics_and_tuning_alone_makes_no_round(small, wide, distance):
    network, start, rows, red = small
    start = wide(start)
    both = defending(network)[1](start, rows, red, hyper64(tolerance=1.5))
    pruning = defending(network, tune=False)[1](start, rows, red, hyper64(tolerance=1.5))
    assert distance(pruning.variables["batch_stats"], start["batch_stats"]) == 0 and int(pruning.trace.kept) > 0
    assert distance(pruning.masks, both.masks) == 0 and pruning.trace.address.tolist() == both.trace.address.tolist()
    for conv, keep in pruning.masks.items():
        gone = np.flatnonzero(np.asarray(keep) == 0).tolist()
        params = pruning.variables["params"]
        for layer in (params[conv], params[f"bn{conv[-1]}"]):
            assert all(
                np.flatnonzero(np.abs(np.asarray(leaf)).reshape(-1, len(keep)).max(0) == 0).tolist() == gone
                for leaf in layer.values()
            )
    # Tuning starts from what the rounds leave: alone, that is the network as it came.
    tuning = defending(network, prune=False)[1](start, rows, red, hyper64())
    untouched = defending(network)[1](start, rows, red, hyper64(tolerance=0.0))
    assert int(tuning.trace.rounds) == 0 and Ended(int(tuning.trace.ended)) == Ended.NOT_RUN
    assert distance(tuning.variables, untouched.variables) < 1e-12 and int(tuning.trace.kept_epoch) > 0
    assert all(np.all(np.asarray(keep) == 1) for keep in tuning.masks.values())


def test_an_image_is_the_same_as_bytes_and_as_floats(rows):
    floats = np.asarray(rows.images).astype(np.float32) / np.float32(255)
    assert np.array_equal(*jax.jit(lambda *both: [as_floats(each, jnp.float32) for each in both])(rows.images, floats))


# What goes with a filter


def along(model, companion, squeeze=True):
    """{convolution: leaves that lose entry j with its filter j}."""
    table, found = filters(model.arch, shapes(model)["params"], companion, squeeze), {}
    for leaf, convs in table.zeroed.items():
        for conv in convs:
            found.setdefault(conv, set()).add(leaf)
    assert all(f"{conv}/kernel" in leaves for conv, leaves in found.items())
    return {conv: leaves - {f"{conv}/kernel"} for conv, leaves in found.items()}


def convolutions(model):
    return [address for kind, address in model.arch.registered if kind == "conv"]


def test_published_companions_of_a_residual_network():
    model = preactresnet18(spec(5), 4)
    expected = {"conv1": "layer1_0/bn1/scale", "layer1_0/conv2": "layer1_1/bn1/scale"}
    for block in (f"layer{s}_{b}" for s in (1, 2, 3, 4) for b in (0, 1)):
        expected[f"{block}/conv1"] = f"{block}/bn2/scale"
    for s in (1, 2, 3):
        expected[f"layer{s}_1/conv2"] = f"layer{s + 1}_0/bn1/scale"
        expected[f"layer{s + 1}_0/conv2"] = f"layer{s + 1}_0/shortcut_0/kernel"
        expected[f"layer{s + 1}_0/shortcut_0"] = f"layer{s + 1}_1/bn1/scale"
    expected["layer4_1/conv2"] = "linear/kernel"
    assert along(model, "next_param") == {conv: {leaf} for conv, leaf in expected.items()}
    assert set(expected) == set(convolutions(model))


def test_companions_that_belong_to_a_filter_alone():
    residual = preactresnet18(spec(5), 4)
    norms = {conv: conv.replace("/conv1", "/bn2") for conv in convolutions(residual) if conv.endswith("/conv1")}
    expected = {conv: {f"{norms[conv]}/{leaf}" for leaf in ("scale", "bias") if conv in norms} for conv in convolutions(residual)}
    assert along(residual, "own_bn") == expected
    found = along(reduced("vgg19_bn", classes=5), "own_bn")
    assert found["features_0"] == {"features_0/bias", "features_1/scale", "features_1/bias"}


def test_companions_of_biases_and_of_squeeze_and_excitation():
    vgg, mobile = reduced("vgg19_bn", classes=5), reduced("mobilenet_v3_large", classes=5)
    assert along(vgg, "next_param") == {conv: {f"{conv}/bias"} for conv in convolutions(vgg)}
    narrow_ones = [conv for conv in convolutions(mobile) if conv.endswith(("/fc1", "/fc2"))]
    published, own = along(mobile, "next_param"), along(mobile, "own_bn")
    assert all(published[conv] == own[conv] == {f"{conv}/bias"} for conv in narrow_ones) and len(narrow_ones) > 2
    assert published["features_0_0"] == {"features_0_1/scale"} and own["features_0_0"] == {
        f"features_0_1/{leaf}" for leaf in ("scale", "bias")
    }
    assert list(along(mobile, "own_bn", squeeze=False)) == [conv for conv in convolutions(mobile) if conv not in narrow_ones]


@pytest.mark.parametrize("classes", [5, 20])
def test_pruned_filters_and_their_companions_are_zero_and_the_rest_is_not(classes):
    """A projection that goes with the convolution before it takes nothing along; a filter behind the classes has no row."""
    model = preactresnet18(spec(classes), 2, depth=1)  # 16 channels at the end
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes(model)["params"])
    table, names = filters(model.arch, params, "next_param", True), convolutions(model)
    gone = {("layer2_0/conv2", 1), ("layer4_0/conv1", 3), ("layer4_0/conv2", 7)}
    gone |= {("layer4_0/shortcut_0", 2), ("layer4_0/shortcut_0", 9)}
    chosen = [(names[i], j) in gone for i, j in zip(table.address.tolist(), table.channel.tolist(), strict=True)]
    keep = jnp.asarray(1.0 - np.array(chosen, np.float32))
    left, masks = jax.jit(lambda p, k: (pruned(table, p, k), masks_of(table, k)))(params, keep)
    zero = {}
    for path, leaf in tree.flatten(left).items():
        values = np.asarray(leaf).reshape(-1, leaf.shape[-1])
        assert np.all((values == 1).all(0) | (values == 0).all(0))
        if lost := np.flatnonzero(values[0] == 0).tolist():
            zero[path] = lost
    assert zero == {
        "layer2_0/conv2/kernel": [1],
        "layer2_0/shortcut_0/kernel": [1],
        "layer4_0/conv1/kernel": [3],
        "layer4_0/bn2/scale": [3],
        "layer4_0/conv2/kernel": [7],
        "layer4_0/shortcut_0/kernel": [2, 7, 9],
        "linear/kernel": [2] if classes == 5 else [2, 9],
    }
    assert {conv: np.flatnonzero(np.asarray(m) == 0).tolist() for conv, m in masks.items() if not m.all()} == {
        "layer2_0/conv2": [1],
        "layer2_0/shortcut_0": [1],
        "layer4_0/conv1": [3],
        "layer4_0/conv2": [7],
        "layer4_0/shortcut_0": [2, 7, 9],
    }


# What ends the rounds


def test_a_drop_of_exactly_the_tolerance_ends_the_rounds_or_does_as_doubles_compare():
    count, before, errors = (x.ravel() for x in np.mgrid[1:61, 0:31, 0:61])
    possible = (before <= count) & (errors <= count)
    count, before, errors = (x[possible] for x in (count, before, errors))
    recorded = [x.astype(np.int32) for x in (errors, before, count)]
    compare = jax.jit(jax.vmap(within, in_axes=(0, 0, 0, None, None)), static_argnums=4)
    exact = np.asarray(compare(*recorded, jnp.float32(0.1), True))
    np.testing.assert_array_equal(exact, 10 * (errors - before) < count)
    double = np.asarray(compare(*recorded, jnp.float32(0.1), False))
    np.testing.assert_array_equal(double, (count - before) / count - (count - errors) / count < 0.1)
    at = (10 * (errors - before) == count) & (count == 10)
    assert double[at].any() and not double[at].all() and not exact[at].any()
    assert double[(count == 10) & (before == 0) & (errors == 1)].all()  # 1.0 - 0.9 < 0.1
    assert not double[(count == 10) & (before == 2) & (errors == 3)].any()  # 0.8 - 0.7 >= 0.1
    none = [np.zeros_like(x) for x in recorded]
    assert not np.asarray(compare(*none, jnp.float32(0.1), False)).any()  # no validation row at all


def test_double_precision_is_that_of_ieee_754_for_counts_up_to_two_hundred_thousand():
    """Drawn at random, and such that the drop is exactly the tolerance, where the last digit decides."""
    generator = np.random.default_rng(0)
    rows = generator.integers(1, 200_001, 40_000)
    limit = generator.choice([-500, 0, 1, 100, 250, 500, 1000, 1250, 3000, 5000, 10_000, 12_500], rows.size)
    ties = (rows * limit % 10_000 == 0) & (limit >= 0) & (limit <= 10_000)
    drop = np.where(ties, rows * limit // 10_000, generator.integers(0, rows + 1))
    before = generator.integers(drop, rows + 1)
    after = np.where(ties | (generator.random(rows.size) < 0.8), before - drop, rows - before)
    compare = jax.jit(jax.vmap(functools.partial(drop_is_below, unit=10_000)))
    found = np.asarray(compare(*(np.int32(x) for x in (before, after, rows, limit))))
    np.testing.assert_array_equal(found, before / rows - after / rows < limit / 10_000)
    assert ties.sum() > 5000 and found[ties].any() and not found[ties].all() and (after > before).any()


def test_batches_are_filled_by_the_usual_split():
    for spc, classes in ((2, 10), (10, 10), (100, 10), (10, 43), (2, 200), (1, 4)):
        train, held, drawn_rows = clean_subset.rows_per_class(spc, True)
        found = sizes(drawn_rows * classes, classes, 128)
        for size, count in zip(found, (train * classes, held * classes), strict=True):
            assert size <= 128 and -(-count // size) == -(-count // 128) and -count % size < -(-count // 128)
    assert sizes(3, 4, 128) == (1, 3) and sizes(5, 4, 2) == (1, 2)


@pytest.mark.parametrize("per_image", [False, True])
def test_a_small_last_batch_weighs_as_much_as_a_full_one_or_as_its_rows(per_image):
    found = jax.tree.map(np.asarray, jax.jit(plan, static_argnums=(2, 3))(KEY, np.arange(12) < 7, 5, per_image))
    assert found.rows.shape == (3, 5) and int(found.trips) == 2 and found.mask.sum(1).tolist() == [5, 2, 0]
    assert found.divisor.tolist() == ([7, 7, 7] if per_image else [5, 2, 1])


def test_nine_samples_per_class_are_split_as_ten():
    validation = grad_prune(cnn(spec(4, 8), 2)).validation
    assert clean_subset.rows_per_class(9, validation) == clean_subset.rows_per_class(10, validation) == (9, 1, 10)
    labels = jnp.asarray(np.random.default_rng(0).permutation(48) % 4, jnp.int32)
    draw = jax.jit(clean_subset.draw, static_argnums=(2, 3, 4))
    for a, b in zip(*(draw(KEY, labels, 4, spc, validation) for spc in (9, 10)), strict=True):
        assert np.array_equal(a, b)


# What it is for


@pytest.mark.slow  # another network, and its rounds run long
def test_the_planted_detector_is_pruned_first(plain_spec, variables):
    """With the paper's hyper-parameters."""
    plainly = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    start, images, labels, triggered = backdoored(plainly, variables)
    role = np.where(np.arange(40) % 10 == 0, 2, 1).astype(np.int8)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(role), jnp.int32(10))
    defense = grad_prune(cnn(plainly, 4, lowering="patches"), {"tune": False})
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows, jnp.asarray(triggered)), GradPruneHyper())

    def share(variables, images, labels):
        return correct(plainly, variables, jnp.asarray(images / np.float32(255), jnp.float32), labels) / len(images)

    assert share(start, images, labels) == share(start, triggered[10:], np.zeros(30, np.int32)) == 1
    assert int(found.trace.filter[1]) == 0 and int(found.trace.kept) == 1, "channel 0 of each convolution is the detector's"
    assert share(found.variables, images, labels) == share(found.variables, triggered[10:], labels[10:]) == 1


# The description


def test_defaults(model):
    both = (300, 300, 128, 10, 10, True, True)
    rest = ("true", 80, 256, 7, 50, 20, 30, 32, 4)
    assert grad_prune(model).config == (*both, "eval", "per_image", "own_bn", True, True, True, False, *rest)
    published = ("first_batch_train", "sum_of_batch_means", "next_param", False, False, False, True)
    assert grad_prune(model, profile="reference").config == (*both, *published, *rest)
    assert [round(float(x), 6) for x in grad_prune(model).hyper] == [0.001, 0.9, 0.0005, 0.1]
    assert grad_prune(model).needs == {"clean", "triggered"} and grad_prune(model).validation


def test_mistakes_are_named(model):
    for field in ("rounds", "epochs", "batch", "pruning_patience", "tuning_patience", "search_epochs", "search_batch"):
        with pytest.raises(UserError, match=rf"grad_prune\.{field} must be at least 1; given 0"):
            grad_prune(model, {field: 0})
    for field in ("score_bn", "batch_weighting", "companion", "triggers"):
        with pytest.raises(UserError, match=rf"unknown grad_prune\.{field} 'none'"):
            grad_prune(model, {field: "none"})
    with pytest.raises(UserError, match="does nothing"):
        grad_prune(model, {"prune": False, "tune": False})
    with pytest.raises(UserError, match="Did you mean 'tuning_patience'"):
        grad_prune(model, {"tune_patience": 3})


@pytest.mark.slow  # compiling: 10 to 30 seconds each; on the one that compiles longest, tests/models/test_defended.py traces it
@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, "corrected") for name in PUBLISHED if name not in SLOWEST),
        *((name, "reference") for name in PUBLISHED if name not in INVERTED),
    ],
)
def test_it_runs_on_every_network(name, profile):
    """With dropout, depthwise convolutions and squeeze-and-excitation; pruned filters are 0 or, published, at first."""
    model = reduced(name, classes=5, lowering="mixed", **({} if name == "preactresnet18" else {"drop": True}))
    start, generator = drawn(model), np.random.default_rng(0)
    images = np.asarray(generator.integers(0, 256, (15, 32, 32, 3), dtype=np.uint8))
    role = np.where(np.arange(15) % 3 == 0, 2, 1).astype(np.int8)
    rows = CleanSet(images, np.arange(15, dtype=np.int32) // 3, role, jnp.int32(3))
    defense = grad_prune(model, {"rounds": 3, "epochs": 2, "batch": 8}, profile=profile)
    hyper = jax.tree.map(jnp.asarray, defense.hyper._replace(tolerance=np.float32(2)))
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows, marked(images)), hyper)
    assert jax.tree.structure(found.variables) == jax.tree.structure(start) and bool(found.trace.alive)
    for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(start), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and np.isfinite(np.asarray(a)).all()
    assert int(found.trace.rounds) == 3 and int(found.trace.epochs) == 2 and (np.asarray(found.trace.address)[1:] >= 0).all()
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    squeeze = [a for a in convs if a.endswith(("/fc1", "/fc2"))]
    assert set(found.masks) == (set(convs) if profile == "reference" else set(convs) - set(squeeze))
    if profile == "corrected":
        for conv, keep in found.masks.items():
            gone = np.flatnonzero(np.asarray(keep) == 0)
            assert not np.any(np.asarray(tree.get(found.variables["params"], conv)["kernel"])[..., gone])
