import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.pbe import PBEHyper, pbe, perturbed
from bdjax.defenses.tuning import Batch
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.types import DefenderView
from tests.defenses.plain_eval import knowing, network
from tests.defenses.plain_inserts import widened
from tests.defenses.plain_network import batches, cross_entropies, descend, pixels, plain
from tests.later import some_later

KEY = jax.random.key(3)
SHORT = {"epochs": 3, "batch": 8, "attack_steps": 2}
HYPER = PBEHyper(lr=0.03, momentum=0.8, weight_decay=1e-2, radius=0.05, step=0.3)


@functools.cache
def compiled(model, profile="corrected", **config):
    defense = pbe(model, {**SHORT, **config}, profile=profile)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    return knowing(plain_spec, variables, clean(5))


@functools.cache
def slopes(plain_spec):
    """Slopes for the pixels, by whether in train mode, and for the parameters; each with what the statistics become."""

    def loss(params, running, x, y, train):
        z, after = network(plain_spec, params, running, x, train)
        return cross_entropies(z, y).mean(), after

    to_pixels = jax.jit(jax.grad(loss, 2, has_aux=True), static_argnums=4)
    return to_pixels, jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=4)


@functools.partial(jax.jit, static_argnums=1)
def drawn(step, shape):
    """The start of an attack."""
    draw, _ = jax.random.split(step_key(stream(KEY, Stream.TRIGGER), step))
    return jax.random.uniform(draw, shape, jnp.float64, -1, 1)


def erased(plain_spec, variables, rows, hyper, *, normalised, mixed):
    """Adversarial and clean passes in turn: the network, and the mean loss of both per epoch."""
    to_pixels, to_params = slopes(plain_spec)
    images, labels = plain(pixels(rows), rows.labels)
    mean, std = (np.reshape(v, (1, 1, 1, 3)) if normalised else u for v, u in ((plain_spec.mean, 0.0), (plain_spec.std, 1.0)))
    params, running = plain(variables["params"], variables["batch_stats"])
    radius, recorded, step = float(hyper.radius), [], 0
    halves = [batches(own, len(labels), SHORT["batch"], SHORT["epochs"]) for own in jax.random.split(KEY)]
    for epoch in range(SHORT["epochs"]):
        for half, plans in enumerate(halves):
            buffer, losses = jax.tree.map(np.zeros_like, params), []  # momentum starts anew
            for trip, chosen in enumerate(plans[epoch]):
                x, y = images[chosen], labels[chosen]
                if half == 0:
                    train = mixed and (epoch == 0 or trip > 0)
                    u = (x - mean) / std
                    delta = radius * np.asarray(drawn(step, (SHORT["batch"], *x.shape[1:])))[: len(chosen)]
                    for _ in range(SHORT["attack_steps"]):
                        slope, after = to_pixels(params, running, (u + delta) * std + mean, y, train)
                        running = plain(after) if train else running
                        delta = np.clip(delta + float(hyper.step) * radius * np.sign(slope), -radius, radius)
                        delta = np.clip(u + delta, 0, 1) - u
                    x = (u + delta) * std + mean
                (value, running), slope = plain(to_params(params, running, x, y, True))
                params, buffer = descend(params, buffer, slope, float(hyper.lr), float(hyper.momentum), float(hyper.weight_decay))
                losses.append(float(value))
                step += 1
            recorded.append(np.mean(losses))
    return {"params": params, "batch_stats": running}, recorded[::2], recorded[1::2]


PROFILES = [("corrected", (False, False)), pytest.param("reference", (True, True), marks=pytest.mark.slow)]


@pytest.mark.parametrize(("profile", "switches"), PROFILES)
def test_both_passes_are_those_written_out_by_hand(model, known, clean, padded, wide, distance, plain_spec, profile, switches):
    """Batches of 8, 8 and 4 rows, absent ones of garbage between, behind which empty batches follow."""
    rows, before, hyper = clean(5), wide(known), widened(HYPER)
    found = compiled(model, profile)(before, padded(rows, 13), hyper)
    expected, adversarial, tuned = erased(plain_spec, before, rows, hyper, normalised=switches[0], mixed=switches[1])
    assert distance(found.variables, expected) < 1e-9
    np.testing.assert_allclose(np.asarray(found.trace.adversarial), adversarial, rtol=2e-6)
    np.testing.assert_allclose(np.asarray(found.trace.clean), tuned, rtol=2e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1
    assert distance(expected["params"], before["params"]) > 1e-2


@pytest.mark.slow  # more programs of what is written out
@pytest.mark.parametrize(("profile", "switches"), PROFILES)
def test_the_mode_of_the_attack_matters(model, known, clean, padded, wide, distance, plain_spec, profile, switches):
    rows, before, hyper = clean(5), wide(known), widened(HYPER)
    found = compiled(model, profile)(before, padded(rows, 13), hyper)
    other, _, _ = erased(plain_spec, before, rows, hyper, normalised=switches[0], mixed=not switches[1])
    assert distance(found.variables, other) > 1e-5


def test_every_hyper_parameter_changes_the_network(model, known, clean, padded, wide, distance):
    run, before, rows, hyper = compiled(model, "corrected"), wide(known), padded(clean(5), 13), widened(HYPER)
    found = run(before, rows, hyper).variables
    for name in PBEHyper._fields:
        changed = run(before, rows, hyper._replace(**{name: getattr(hyper, name) * 0.9})).variables
        assert distance(found["params"], changed["params"]) > 1e-6, name


@pytest.mark.parametrize("profile", some_later(("corrected", "reference"), ("reference",)))
def test_without_rows_nothing_is_touched(model, known, clean, padded, wide, distance, profile):
    before, rows = wide(known), padded(clean(5), 13)
    found = compiled(model, profile)(before, rows._replace(role=np.zeros_like(rows.role)), widened(HYPER))
    assert distance(found.variables, before) == 0 and bool(found.trace.alive)


@pytest.fixture(scope="module")
def attacked(model, known, clean):
    """``attacked(profile) -> (clean pixels, perturbed pixels)`` after seven steps in eval mode."""
    rows = clean(5)
    batch = Batch(np.asarray(rows.images) / np.float32(255), np.asarray(rows.labels), np.ones(20, np.float32))

    def run(profile, **changed):
        config, hyper = pbe(model, profile=profile).config, jax.tree.map(jnp.asarray, PBEHyper()._replace(**changed))
        return batch, jax.jit(lambda key: perturbed(model, config, known, batch, hyper, key, False)[0])(KEY)

    return run


def test_images_stay_in_reach_and_in_range_and_are_further_from_their_class(model, known, attacked):
    batch, moved = attacked("corrected")
    moved = np.asarray(moved)
    away = np.abs(moved - batch.images)
    assert away.max() <= 0.02 + 1e-7 and away.max() > 0.0199 and np.mean(away > 0.015) > 0.5
    assert np.min(moved) >= 0 and np.max(moved) <= 1 and np.min(moved) == 0  # some pixels are black
    loss = jax.jit(lambda x: jnp.mean(cross_entropies(model.apply(known, x).logits, batch.labels)))
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, moved.shape).astype(np.float32)
    before, after, noisy = map(float, map(loss, (batch.images, moved, batch.images + noise)))
    assert after > before and after > noisy


def test_the_reference_cuts_normalised_images(attacked, plain_spec):
    """They end between the mean and one standard deviation above it, far outside of the radius."""
    batch, moved = attacked("reference")
    low, high = plain_spec.mean[0], plain_spec.mean[0] + plain_spec.std[0]
    assert np.min(moved) >= low - 1e-6 and np.max(moved) <= high + 1e-6
    assert np.max(np.abs(np.asarray(moved) - batch.images)) > 0.4


def test_a_member_that_is_not_finite_is_frozen_and_marked(model, known, clean, padded, wide):
    ill = plain(compiled(model)(wide(known), padded(clean(5), 13), widened(HYPER._replace(lr=1e200))))
    assert not bool(ill.trace.alive) and 0 < int(ill.trace.stopped) < 18
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ill.variables))


@pytest.mark.slow  # another program
def test_a_member_that_is_not_finite_is_frozen_and_marked_while_others_go_on(model, known, clean, distance):
    rows, defense = clean(5), pbe(model, SHORT)
    run = jax.jit(jax.vmap(lambda lr: defense.defend(KEY, DefenderView(known, rows), PBEHyper(lr))))
    found, well = (plain(run(np.array([0.01, lr], np.float32))) for lr in (1e30, 0.01))
    assert found.trace.alive.tolist() == [True, False] and found.trace.stopped[0] == -1 and 0 < found.trace.stopped[1] < 18
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    assert distance(*(jax.tree.map(lambda x: x[0], f.variables) for f in (found, well))) == 0


def test_profiles_and_defaults(model):
    assert pbe(model).config == (20, 256, 7, "pixel", "eval")
    assert pbe(model, profile="reference").config == (20, 256, 7, "normalised", "mixed")
    np.testing.assert_allclose(pbe(model).hyper, [0.01, 0.9, 5e-4, 0.02, 0.2])
    assert pbe(model).needs == {"clean"} and not pbe(model).validation


def test_mistakes_are_named(model):
    for field, least in (("epochs", 1), ("batch", 1), ("attack_steps", 0)):
        with pytest.raises(UserError, match=rf"pbe\.{field} must be at least {least}; given {least - 1}"):
            pbe(model, {field: least - 1})
    with pytest.raises(UserError, match=r"unknown pbe\.clamp_space 'pixels'.*'pixel'"):
        pbe(model, {"clamp_space": "pixels"})
    with pytest.raises(UserError, match=r"unknown pbe\.attack_mode 'mix'.*'mixed'"):
        pbe(model, {"attack_mode": "mix"})
