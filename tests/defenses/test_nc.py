import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.nc.control import Rules
from bdjax.defenses.nc.nc import Config, NCHyper, _gather, _virtual, nc, outliers, split
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import knowing, network, planted, searched
from tests.defenses.plain_network import cross_entropies, filled, pixels, plain

KEY = jax.random.key(19)
SHORT = {
    "search_epochs": 5,
    "batch": 12,
    "patience": 1,
    "early_patience": 1,
    "early_ratio": 0.8,
    "epochs": 3,
    "period": 4,
    "stamped_share": 0.3,
    "max_flagged": 2,
}
LIVELY = {
    "lr": 0.05,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "search_lr": 0.4,
    "cost": 2**-6,
    "multiplier": 4.0,
    "threshold": 0.45,
    "outlier": 0.5,
}


def hyper64(**changed):
    return NCHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


@functools.cache
def built(model, *config):
    defense = nc(model, dict(config))
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


# Outliers


def by_sorting(norms, threshold):
    """The rule in plain Python."""
    k = len(norms)
    median = sorted(norms)[(k + 1) // 2 - 1]
    away = [abs(n - median) for n in norms]
    mad = 1.4826 * sorted(away)[(k + 1) // 2 - 1]
    index = [a / mad if mad else (np.nan if a == 0 else np.inf) for a in away]
    return index, [n <= median and i > threshold for n, i in zip(norms, index, strict=True)]


judged = jax.jit(outliers)


@pytest.mark.parametrize("classes", [4, 10, 43])
def test_outliers_are_those_of_the_plain_rule(classes):
    generator = np.random.default_rng(classes)
    flags = 0
    for trial in range(20):
        norms = (10 + generator.normal(0, 1, classes)).round(1)
        norms[: trial % 3] -= 5
        found = judged(norms.astype(np.float32), np.float32(2.1))
        index, flagged = by_sorting(norms.astype(np.float32).tolist(), 2.1)
        np.testing.assert_allclose(np.asarray(found[0]), index, rtol=1e-4)
        assert found[1].tolist() == flagged
        flags += sum(flagged)
    assert flags


def test_the_median_of_ten_is_the_fifth():
    index, flagged = map(np.asarray, judged(np.float32([10, 1, 2, 3, 4, 5, 6, 7, 8, 9]), np.float32(2)))
    # The median is 5; the deviations are 5 4 3 2 1 0 1 2 3 4, of which the fifth is 2.
    np.testing.assert_allclose(np.asarray(index), np.abs(np.arange(10) - 5 + np.r_[10, np.zeros(9)]) / (1.4826 * 2), rtol=1e-6)
    assert not flagged.any()


def test_without_deviation_the_division_gives_infinity_and_nan():
    index, flagged = map(np.asarray, judged(np.float32([5, 5, 5, 1, 9]), np.float32(2)))
    assert np.isnan(index[:3]).all() and np.isinf(index[3:]).all()
    assert flagged.tolist() == [False, False, False, True, False]  # a large norm is never flagged


# Which rows carry the triggers


drawn = jax.jit(split, static_argnums=(3, 4))


@pytest.mark.parametrize(("spc", "classes"), [(2, 10), (10, 10), (2, 43), (9, 4), (1, 3)])
def test_the_triggered_share_is_taken_within_each_class(spc, classes):
    labels = np.repeat(np.arange(classes, dtype=np.int32), spc)
    rows = np.ones(len(labels), bool)
    triggered = np.stack([np.asarray(drawn(jax.random.key(i), labels, rows, classes, 0.2)) for i in range(12)])
    assert set(triggered.sum(1)) == {len(labels) - int(0.8 * len(labels))}
    own = np.stack([np.bincount(labels[s], minlength=classes) for s in triggered])
    assert np.all(own >= spc // 5) and np.all(own <= -(-spc // 5))
    if spc > 1:
        assert len({s.tobytes() for s in triggered}) > 6  # drawn
    if spc == 2:  # classes at random too
        assert len({o.tobytes() for o in own}) > 6


def test_the_triggered_rows_do_not_depend_on_padding():
    generator = np.random.default_rng(4)
    labels = np.sort(generator.integers(0, 6, 50)).astype(np.int32)  # classes of several sizes
    place = np.sort(generator.permutation(80)[:50])
    more, rows = np.zeros(80, np.int32), np.zeros(80, bool)
    more[place], rows[place] = labels, True
    alone, among = (np.asarray(drawn(KEY, *each, 6, 0.2)) for each in ((labels, np.ones(50, bool)), (more, rows)))
    assert alone.sum() == 10 and not among[~rows].any()
    np.testing.assert_array_equal(among[place], alone)
    own, all_ = np.bincount(labels[alone], minlength=6), np.bincount(labels, minlength=6)
    assert np.all(np.abs(own - 0.2 * all_) <= 1)


# The rows of the fine-tuning


virtual_rows, gathered = jax.jit(_virtual, static_argnums=3), jax.jit(_gather)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_virtual_rows_are_the_clean_part_and_the_triggered_part_once_per_trigger(count):
    generator = np.random.default_rng(6)
    n, share = 30, 0.2
    rows = np.ones(n, bool)
    rows[generator.permutation(n)[:7]] = False
    labels = np.arange(n, dtype=np.int32) % 4
    images = generator.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    triggered = np.asarray(drawn(KEY, labels, rows, 4, share))
    assert triggered.sum() == 23 - 18
    virtual, present = virtual_rows(rows, triggered, np.int32(count), Config(stamped_share=share, max_flagged=3))
    present = np.asarray(present)
    assert present.sum() == (18 + 5 * count if count else 0)
    triggers = {
        "mask": generator.random((3, 4, 4, 1), np.float32),
        "pattern": generator.random((3, 4, 4, 3), np.float32),
    }
    clean = CleanSet(images, labels, rows.astype(np.int8), np.int32(6))
    every = np.arange(len(present), dtype=np.int32)
    found, of = (np.asarray(x)[present] for x in gathered(clean, (virtual, triggers), every))
    x = images.astype(np.float64) / 255
    pairs = [(i, None) for i in np.flatnonzero(rows & ~triggered)]
    pairs += [(i, j) for j in range(count) for i in np.flatnonzero(triggered)]
    expected = []
    for i, j in pairs if count else []:
        m, q = (triggers[name][j or 0].astype(np.float64) for name in ("mask", "pattern"))
        expected.append(x[i] if j is None else x[i] * (1 - m) + m * q)
    assert len(found) == len(expected)
    # Each of these images is there once, with the true label of the row it comes from, and nothing else is.
    taken = []
    for image, label in zip(found, of, strict=True):
        far = [np.abs(image - e).max() for e in expected]
        taken.append(int(np.argmin(far)))
        assert far[taken[-1]] < 1e-6 and label == labels[pairs[taken[-1]][0]]
    assert sorted(taken) == list(range(len(expected)))


# The whole method


planned = jax.jit(epoch_plan, static_argnums=2)


@functools.cache
def slope_of(spec):
    def loss(params, statistics, x, y):
        z, after = network(spec, params, statistics, x, True)
        return cross_entropies(z, y).mean(), after

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def by_hand(spec, variables, images, labels, present, config, hyper):
    """Search, flags and mitigation in plain loops, with the keys that the method splits its own into."""
    searching, splitting, tuning = jax.random.split(KEY, 3)
    plans = [planned(step_key(stream(searching, Stream.ORDER), e), present, config.batch) for e in range(config.search_epochs)]
    rules = Rules(config.search_epochs, config.batch, config.patience, config.early_patience, config.early_ratio)
    found = searched(spec, variables, images, plans, rules, hyper)
    index, flagged = by_sorting(found["norm"].tolist(), float(hyper.outlier))
    unlearned = sorted(np.flatnonzero(flagged), key=lambda t: found["norm"][t])[: config.max_flagged]
    chosen = np.asarray(drawn(splitting, labels, present, spec.classes, config.stamped_share))
    rows = np.flatnonzero(present & ~chosen)
    x, y = [images[rows]], [labels[rows]]
    for t in unlearned:
        m, q = found["mask"][t][None, ..., None], found["pattern"][t][None]
        x.append(images[chosen] * (1 - m) + m * q)
        y.append(labels[chosen])
    x, y = np.concatenate(x), np.concatenate(y)

    params, statistics = plain(variables["params"], variables["batch_stats"])
    buffer = jax.tree.map(np.zeros_like, params)
    losses = []
    for e in range(config.epochs):
        lr, of_epoch = hyper.lr * (1 + np.cos(np.pi * e / config.period)) / 2, []
        for rows in filled(*planned(step_key(stream(tuning, Stream.ORDER), e), np.ones(len(y), bool), config.batch)):
            (loss, statistics), slope = plain(slope_of(spec)(params, statistics, x[rows], y[rows]))
            buffer = jax.tree.map(lambda b, g, p: hyper.momentum * b + g + hyper.weight_decay * p, buffer, slope, params)
            params = jax.tree.map(lambda p, b, lr=lr: p - lr * b, params, buffer)
            of_epoch.append(float(loss))
        losses.append(np.mean(of_epoch))
    return {"params": params, "batch_stats": statistics}, found, index, flagged, losses, len(unlearned), len(y)


@pytest.mark.parametrize("max_flagged", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_method_is_the_one_written_out(max_flagged, model, known, clean, padded, wide, distance, plain_spec):
    rows = padded(clean(5), 6)
    config = nc(model, {**SHORT, "max_flagged": max_flagged}).config
    # With four classes one norm at most lies below the lower median; below a threshold of 0 the median itself is flagged too.
    hyper = hyper64(outlier=-1) if max_flagged == 2 else hyper64()
    found = built(model, *config._asdict().items())(wide(known), rows, hyper)
    expected, search, index, flagged, losses, unlearned, size = by_hand(
        plain_spec, wide(known), *plain(pixels(rows), rows.labels), np.asarray(rows.role) == 1, config, hyper
    )
    assert unlearned == max_flagged and size == 14 + 6 * max_flagged
    assert found.trace.flagged.tolist() == flagged and int(found.trace.unlearned) == unlearned
    np.testing.assert_allclose(np.asarray(found.trace.anomaly), index, rtol=1e-8)
    for name in ("mask", "pattern", "norm"):
        np.testing.assert_allclose(np.asarray(getattr(found.trace, name)), search[name], rtol=1e-9, atol=1e-10)
    assert np.isnan(search["size"]).any() and not np.isnan(search["size"][-1]).all(), "some class must stop early, and some not"
    assert distance(found.variables, expected) < 1e-9
    assert distance(expected["params"], known["params"]) > 1e-2
    np.testing.assert_allclose(np.asarray(found.trace.loss), losses, rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1


@pytest.fixture(scope="module")
def defending(model):
    config = nc(model, {**SHORT, "max_flagged": 1}).config
    return built(model, *config._asdict().items())


@pytest.fixture(scope="module")
def lively(defending, known, clean, padded):
    """What the method makes of rows among absent ones."""
    with jax.enable_x64(True):
        return plain(defending(jax.tree.map(np.float64, plain(known)), padded(clean(5), 6), hyper64()))


@pytest.mark.parametrize("field", NCHyper._fields)
def test_each_hyper_parameter_matters(field, lively, defending, known, clean, padded, wide, distance):
    changed = {"outlier": 1e9, "threshold": 1.1}.get(field, LIVELY[field] / 2)
    other = defending(wide(known), padded(clean(5), 6), hyper64(**{field: changed}))
    assert distance(lively.variables, other.variables) > 1e-6


def test_the_network_comes_back_bit_for_bit_where_nothing_is_flagged(defending, known, clean, padded, wide):
    found = plain(defending(wide(known), padded(clean(5), 6), hyper64(outlier=1e9)))
    assert not found.trace.flagged.any() and int(found.trace.unlearned) == 0 and not found.trace.loss.any()
    for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(wide(known)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


def test_absent_rows_change_nothing(lively, defending, known, clean, wide, distance):
    alone = clean(5)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((6, *a.shape[1:]), 3, a.dtype)]), alone._replace(spc=alone.role))
    behind = behind._replace(role=np.where(np.arange(26) < 20, behind.role, np.int8(0)), spc=alone.spc)
    other = defending(wide(known), behind, hyper64())
    assert distance(lively.variables, other.variables) < 1e-12 and distance(lively.trace.mask, other.trace.mask) < 1e-12
    empty = defending(wide(known), behind._replace(role=np.zeros_like(behind.role)), hyper64())
    assert distance(empty.variables, known) == 0


# A planted backdoor


@pytest.mark.slow  # another network, and its search runs long
def test_a_planted_backdoor_is_found_and_unlearned(plain_spec):
    model = cnn(plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3), 4, lowering="patches")
    variables, images, labels = planted(model.init(jax.random.key(0)))
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(40, jnp.int8), jnp.int32(10))
    logits = jax.jit(lambda variables, x: model.apply(variables, x).logits)
    images = np.asarray(images) / np.float32(255)
    assert np.array_equal(np.asarray(logits(variables, images)).argmax(-1), labels), "the network must know the clean rows"
    patched = images.copy()
    patched[:, 5:, 5:] = 1
    assert not np.asarray(logits(variables, patched)).argmax(-1).any(), "and the patch must work"
    defense = nc(model, {"search_epochs": 60, "epochs": 30})
    found = jax.jit(lambda v, r: defense.defend(KEY, DefenderView(v, r), NCHyper(lr=np.float32(0.005))))(variables, rows)
    assert found.trace.flagged.tolist() == [True, False, False, False] and int(found.trace.unlearned) == 1
    for x in (images, patched):  # the patch works no more, though the tuning never saw it
        assert np.mean(np.asarray(logits(found.variables, x)).argmax(-1) == labels) > 0.9


def test_profile_and_defaults(model, plain_spec):
    config = nc(model).config
    assert config == (80, 256, 5, 25, 0.99, 100, 100, 0.2, 3)
    tiny = nc(cnn(plain_spec._replace(name="tiny_imagenet"), 4)).config
    assert (tiny.epochs, tiny.period) == (200, 0)  # its rate waits for a plateau
    assert nc(model, {"epochs": 7}).config.period == 7
    assert nc(model, {"max_flagged": 9}).config.max_flagged == 4  # there are no more classes
    assert nc(model).needs == {"clean"} and not nc(model).validation
    np.testing.assert_allclose(nc(model).hyper, [0.01, 0.9, 5e-4, 0.1, 1e-3, 2, 0.98, 2], rtol=1e-6)


@pytest.mark.parametrize("field", ["search_epochs", "batch", "patience", "early_patience", "epochs", "max_flagged"])
def test_mistakes_are_named(model, field):
    with pytest.raises(UserError, match=rf"nc\.{field} must be at least 1; given 0"):
        nc(model, {field: 0})


@pytest.mark.parametrize("share", [0, 1, -0.2, 0.00001])
def test_a_share_that_stamps_nothing_or_everything_is_refused(model, share):
    with pytest.raises(UserError, match=rf"nc\.stamped_share must lie in \(0, 1\), in steps of 1e-4; given {share}"):
        nc(model, {"stamped_share": share})


def test_the_reference_profile_is_refused(model):
    with pytest.raises(UserError, match=r"nc has no profile 'reference'.*use profile 'corrected'"):
        nc(model, profile="reference")
