import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.sau import Config, SAUHyper, sau, shared_perturbation
from bdjax.defenses.sau import _unlearning as unlearning
from bdjax.defenses.tuning import Batch
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.models.cnn import cnn
from bdjax.types import DefenderView, Loop
from tests.defenses.plain_eval import Adam, knowing, log_softmax, network
from tests.defenses.plain_network import cross_entropies, filled, pixels
from tests.later import some_later

KEY = jax.random.key(13)
# Far from the defaults, so that a few steps show every term.
LIVELY = {
    "lr": 0.02,
    "radius": 0.15,
    "beta_adversarial": 0.3,
    "beta_shared": 0.8,
    "lambda_clean": 0.7,
    "lambda_adversarial": 0.2,
    "lambda_shared": 1.3,
}
CASES = {"eval": {"epochs": 2, "batch": 8}, "train": {"epochs": 2, "batch": 12, "attack_steps": 0, "train_bn": True}}


def hyper64(**changed):
    return SAUHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


@functools.cache
def built(model, *config):
    defense = sau(model, dict(config))
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


def case(model, name):
    return built(model, *CASES[name].items())


@functools.cache
def called(model):
    """``call(variables, images) -> classes i32[n]``."""
    return jax.jit(lambda variables, images: jnp.argmax(model.apply(variables, images).logits, -1).astype(jnp.int32))


@pytest.fixture(scope="module")
def backdoored(plain_spec, variables, clean):
    """A network that separates the classes, so that there is something to fool."""
    return knowing(plain_spec, variables, clean(5))


@functools.cache
def written(spec, train):
    """The attack's and the network's objectives and their derivatives, compiled once per shape."""

    def logits(variables, images):
        return network(spec, variables["params"], variables["batch_stats"], images)[0]

    def clamped(z):
        return jnp.maximum(jnp.exp(log_softmax(z)), 1e-8)

    def attack(there, now, before, labels, alone, alone0, unshared, beta_a, beta_s):
        z, z0 = logits(now, there), logits(before, there)
        p, p0 = clamped(z), clamped(z0)
        middle = (p + p0) / 2
        js = ((p * jnp.log(p) + p0 * jnp.log(p0)) / 2 - middle * jnp.log(middle)).sum(1)
        n = len(labels)
        adversarial = -((alone * cross_entropies(z, labels)).sum() + (alone0 * cross_entropies(z0, labels)).sum()) / (2 * n)
        return beta_a * adversarial + beta_s * (unshared * js).sum() / n

    def unlearning(params, statistics, images, there, labels, fooled, target, weights):
        z, after = network(spec, params, statistics, jnp.concatenate([images, there]), train)
        n = len(labels)
        p = jnp.exp(log_softmax(z[n:]))
        own = jnp.float64(jnp.arange(p.shape[1])[None] == target[:, None])
        pi, nu = (p * own).sum(1), (p * (1 - own)).sum(1)
        term = jnp.log(1e-6 + jnp.minimum(nu, 0.999)) + jnp.log(1 + 1e-6 - jnp.maximum(pi, 0.001))
        shared = -(fooled * term).sum() / (2 * n)
        clean, adversarial = cross_entropies(z[:n], labels).mean(), cross_entropies(z[n:], labels).mean()
        return weights[0] * clean + weights[1] * adversarial + weights[2] * shared, (after, clean, shared)

    return jax.jit(logits), jax.jit(jax.grad(attack)), jax.jit(jax.value_and_grad(unlearning, has_aux=True))


def added(images, delta):
    """Images and perturbations meet in 32 bits, as images are."""
    return (np.asarray(images, np.float32) + np.asarray(delta, np.float32)).astype(np.float64)


def perturbed(spec, now, before, images, labels, hyper, steps, train=False):
    """The perturbation after these steps, and which images are shared by then."""
    logits, attack, _ = written(spec, train)
    seen, seen0 = (np.asarray(logits(v, images)).argmax(1) for v in (now, before))
    radius = np.float32(hyper.radius)
    delta = np.full(images.shape, radius, np.float32)

    def state(delta):
        c, c0 = (np.asarray(logits(v, added(images, delta))).argmax(1) for v in (now, before))
        return c != seen, c0 != seen0, c == c0

    for _ in range(steps):
        fooled, fooled0, same = state(delta)
        weights = [np.float64(x) for x in (~fooled, ~fooled0, ~(fooled & fooled0 & same))]
        slope = attack(added(images, delta), now, before, labels, *weights, hyper.beta_adversarial, hyper.beta_shared)
        delta = np.clip(delta - radius * np.sign(np.asarray(slope)).astype(np.float32), -radius, radius)
    return delta, np.logical_and.reduce(state(delta))


planned = jax.jit(epoch_plan, static_argnums=2)


def by_hand(spec, before, images, labels, present, config, hyper):
    """SAU in plain loops; the batches are those of the fine-tuning loop."""
    logits, _, unlearning = written(spec, config.train_bn)
    now, adam = before, Adam(before["params"])
    losses, cleans, shareds, shares, to_label = [], [], [], [], 0
    for epoch in range(config.epochs):
        of_epoch = []
        for rows in filled(*planned(step_key(stream(KEY, Stream.ORDER), epoch), present, config.batch)):
            x, y = images[rows], labels[rows]
            delta, _ = perturbed(spec, now, before, x, y, hyper, config.attack_steps, config.train_bn)
            there = added(x, delta)
            seen, target = np.asarray(logits(before, x)).argmax(1), np.asarray(logits(before, there)).argmax(1)
            fooled = (target != np.asarray(y)) & (target != seen)
            to_label += ((target == np.asarray(y)) & (target != seen)).sum()
            weights = np.array([hyper.lambda_clean, hyper.lambda_adversarial, hyper.lambda_shared])
            (loss, (after, clean, shared)), slope = unlearning(
                now["params"], now["batch_stats"], x, there, y, np.float64(fooled), target, weights
            )
            now = {"params": adam.step(now["params"], slope, hyper.lr), "batch_stats": after}
            of_epoch.append([float(loss), float(clean), float(shared), fooled.mean()])
        for column, value in zip((losses, cleans, shareds, shares), np.mean(of_epoch, 0), strict=True):
            column.append(value)
    return now, np.array([losses, cleans, shareds, shares]), to_label


@pytest.mark.parametrize("name", some_later(CASES, ("train",)))
def test_the_method_is_the_one_written_out(name, model, backdoored, clean, padded, wide, distance, plain_spec):
    rows = padded(clean(5), 6)  # 20 rows that count: batches of 8, 8 and 4, and an empty one; or of 12 and 8
    # Half of the labels are what the network says of brighter images, so that "not the label" and "not what it said before"
    # are two conditions.
    hyper = hyper64() if name == "eval" else hyper64(radius=0.5)
    brighter = called(model)(backdoored, np.asarray(rows.images) / np.float32(255) + hyper.radius.astype(np.float32))
    labels = np.where(np.arange(26) % 2 == 0, brighter, np.asarray(rows.labels))
    rows = rows._replace(labels=labels)
    config = sau(model, CASES[name]).config
    found = case(model, name)(wide(backdoored), rows, hyper)
    images, present = np.asarray(pixels(rows)), np.asarray(rows.role) == 1
    expected, recorded, to_label = by_hand(plain_spec, wide(backdoored), images, labels, present, config, hyper)
    assert distance(found.variables, expected) < 1e-9
    assert distance(expected["params"], backdoored["params"]) > 0.05  # it moved
    assert (distance(expected["batch_stats"], backdoored["batch_stats"]) > 0) == config.train_bn
    trace = found.trace
    np.testing.assert_allclose(
        np.stack([np.asarray(x) for x in (trace.loss, trace.clean, trace.shared, trace.fooled)]), recorded, rtol=1e-5
    )
    assert np.all((recorded[3] > 0) & (recorded[3] < 1)), "some images must fool the network, and some must not"
    assert to_label > 0 or name == "eval", "and the start must move some to their label; the attack moves away from it"
    assert bool(trace.alive) and int(trace.stopped) == -1


@pytest.fixture(scope="module")
def lively(model, backdoored, clean, padded):
    """What the method makes of rows among absent ones."""
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), backdoored)
        return jax.tree.map(np.asarray, case(model, "eval")(start, padded(clean(5), 6), hyper64()))


@pytest.mark.parametrize("field", SAUHyper._fields)
def test_each_hyper_parameter_matters(field, lively, model, backdoored, clean, padded, wide, distance):
    changed = {"beta_adversarial": 20.0}.get(field, LIVELY[field] / 2)
    other = case(model, "eval")(wide(backdoored), padded(clean(5), 6), hyper64(**{field: changed}))
    assert distance(lively.variables, other.variables) > 1e-6


def test_absent_rows_change_nothing(lively, model, backdoored, clean, wide, distance):
    alone, run = clean(5), case(model, "eval")
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((6, *a.shape[1:]), 3, a.dtype)]), alone._replace(spc=alone.role))
    behind = behind._replace(role=np.where(np.arange(26) < 20, behind.role, np.int8(0)), spc=alone.spc)
    assert distance(lively, run(wide(backdoored), behind, hyper64())) < 1e-12
    empty = run(wide(backdoored), behind._replace(role=np.zeros_like(behind.role)), hyper64())
    assert distance(empty.variables, backdoored) == 0


def test_loss_and_gradient_are_finite_where_the_network_is_certain(model, backdoored, clean):
    """θ calls everything class 0: of the class that θ0 sees it is certain, one way or the other; +0.2 everywhere fools some."""
    rows, mask = clean(10), np.ones(40, np.float32)
    linear = {**backdoored["params"]["linear"], "bias": np.array([1e6, 0, 0, 0], np.float32)}
    now = {**backdoored, "params": {**backdoored["params"], "linear": linear}}
    hyper = jax.tree.map(jnp.asarray, SAUHyper(lambda_clean=np.float32(0)))
    images = np.asarray(rows.images) / np.float32(255)
    batch = Batch(images, rows.labels, mask)
    run = jax.jit(lambda now: unlearning(model, Config(attack_steps=0))(now, batch, (backdoored, hyper), KEY))
    slope, _, recorded = run(now)
    seen, target = (np.asarray(called(model)(backdoored, x)) for x in (images, images + np.float32(0.2)))
    fooled = (target != np.asarray(rows.labels)) & (target != seen)
    one, none = (fooled & (target == 0)).sum(), (fooled & (target != 0)).sum()
    assert one and none
    impossible, sure = np.log(1e-6), np.log(1 + 1e-6 - 1e-3)
    np.testing.assert_allclose(
        float(np.asarray(recorded)[0]), -(one * impossible + none * sure) / 40, rtol=1e-2
    )  # 1 + 1e-6 in 32 bits
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(slope))


@pytest.fixture(scope="module")
def two_networks(backdoored):
    """θ and θ0 that do not agree everywhere."""
    generator = np.random.default_rng(2)
    other = jax.tree.map(lambda x: np.asarray(x) + np.float32(generator.normal(0, 0.03, x.shape)), backdoored["params"])
    return {**backdoored, "params": other}, backdoored


@pytest.mark.slow  # more programs, of what the method written out has too
def test_the_perturbation_is_the_one_written_out_and_leaves_shared_images_alone(model, two_networks, clean, wide, plain_spec):
    rows = clean(8)
    now, before = wide(two_networks)
    images, hyper = np.asarray(rows.images) / np.float32(255), jax.tree.map(jnp.asarray, jax.tree.map(np.float64, SAUHyper()))
    batch = Batch(images, np.asarray(rows.labels), np.ones(32))

    @jax.jit
    def run(steps):
        return shared_perturbation(model, now, before, batch, hyper, steps)

    found, expected = [], []
    for steps in range(9):
        found.append(np.asarray(run(steps)))
        expected.append(perturbed(plain_spec, now, before, images.astype(np.float64), batch.labels, hyper, steps))
        np.testing.assert_array_equal(found[-1], expected[-1][0])
        assert set(np.unique(found[-1])) <= {np.float32(-0.2), np.float32(0), np.float32(0.2)}
        if steps:
            done = expected[-2][1]
            np.testing.assert_array_equal(found[-1][done], found[-2][done])
    shared = [e[1].sum() for e in expected]
    assert 0 < shared[1] < shared[5] and np.any(found[5] != found[1]), "the case must be one where images become shared"


@pytest.mark.slow  # two more programs
def test_the_steps_of_the_perturbation_may_be_written_out_in_the_program(model, two_networks, clean, wide):
    rows = clean(8)
    now, before = wide(two_networks)
    hyper = jax.tree.map(jnp.asarray, jax.tree.map(np.float64, SAUHyper()))
    batch = Batch(np.asarray(rows.images) / np.float32(255), np.asarray(rows.labels), np.ones(32))
    looped, unrolled = (
        jax.jit(lambda network=network: shared_perturbation(network, now, before, batch, hyper, 2))()
        for network in (model, model.rebuild(loop=Loop("dispatch")))
    )
    assert np.any(np.asarray(looped)) and np.array_equal(np.asarray(looped), np.asarray(unrolled))


def test_profiles_are_the_same_and_tiny_imagenet_takes_fewer_epochs(model, plain_spec):
    assert sau(model).config == (100, 256, 5, False) == sau(model, profile="reference").config
    assert sau(cnn(plain_spec._replace(name="tiny_imagenet"), 4)).config.epochs == 20
    assert sau(model).needs == {"clean"} and not sau(model).validation
    np.testing.assert_allclose(sau(model).hyper, [1e-4, 0.2, 0.01, 1, 1, 0, 1], rtol=1e-6)


@pytest.mark.parametrize(("field", "least"), [("epochs", 1), ("batch", 1), ("attack_steps", 0)])
def test_mistakes_are_named(model, field, least):
    with pytest.raises(UserError, match=rf"sau\.{field} must be at least {least}; given {least - 1}"):
        sau(model, {field: least - 1})
