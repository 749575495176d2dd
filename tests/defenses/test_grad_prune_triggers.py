import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.grad_prune import triggers
from bdjax.defenses.grad_prune.grad_prune import grad_prune
from bdjax.defenses.grad_prune.settings import Config
from bdjax.defenses.grad_prune.triggers import SOURCES, Source
from bdjax.defenses.nc.control import Rules
from bdjax.defenses.nc.nc import NCHyper
from bdjax.defenses.nc.search import searcher
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import log_softmax
from tests.defenses.plain_masks import backdoored, correct, murky
from tests.defenses.plain_network import forward
from tests.defenses.plain_unlearning import narrow
from tests.networks import drawn

KEY = jax.random.key(29)
SHORT = {"rounds": 3, "batch": 8, "tune": False, "search_epochs": 3, "attack_steps": 3}
SHORT |= {"pretrain_epochs": 2, "mask_epochs": 1, "generator_epochs": 2, "generator_width": 2, "generator_levels": 1}


@pytest.fixture(scope="module")
def small(plain_spec):
    network = narrow(plain_spec)
    return network, drawn(network, 5)


@functools.cache
def making(network, kind):
    source = SOURCES[kind](network, Config(**SHORT))
    return source, jax.jit(lambda key, variables, rows, hyper: source.make(key, variables, rows, hyper))


@functools.cache
def defending(network, kind):
    defend = grad_prune(network, {**SHORT, "triggers": kind}).defend
    return jax.jit(lambda key, variables, rows, hyper: defend(key, DefenderView(variables, rows), hyper))


def arrays(hyper):
    return jax.tree.map(jnp.asarray, hyper)


def test_a_universal_pattern_is_that_of_the_smallest_mask(small, clean, padded, distance):
    network, start = small
    rows = padded(clean(5, 3), 7)
    source, make = making(network, "universal")
    found = jax.tree.map(np.asarray, jax.jit(searcher(network, Rules(epochs=3)))(KEY, start, rows, arrays(NCHyper())))
    target = int(found.norm.argmin())
    assert len(set(found.norm.tolist())) == 4 and target != 0
    mask, pattern = found.mask[target][None, ..., None], found.pattern[target][None]
    expected = (1 - mask) * np.asarray(rows.images) / 255 + mask * pattern
    images = make(KEY, start, rows, arrays(source.hyper))
    assert images.shape == rows.images.shape and images.dtype == jnp.float32
    assert distance(images, expected) < 1e-6
    slower = make(KEY, start, rows, arrays(source.hyper._replace(search_lr=np.float32(0.01))))
    assert distance(images, slower) > 0.01


def test_a_class_whose_search_was_not_finite_is_not_the_target(small, clean, monkeypatch):
    network, start = small
    rows = clean(2, 1)
    found = jax.eval_shape(searcher(network, Rules(epochs=1)), KEY, start, rows, arrays(NCHyper()))
    found = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), found)
    pattern = found.pattern * np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) / 4
    norm = np.array([3.0, 1.0, 2.0, 4.0], np.float32)
    found = found._replace(norm=norm, alive=np.array([True, False, True, True]), pattern=pattern)
    monkeypatch.setattr(triggers, "searcher", lambda *built: lambda *asked: found)
    images = SOURCES["universal"](network, Config()).make(KEY, start, rows, ())
    assert np.all(np.asarray(images) == 0.5)


def test_a_perturbation_stays_in_its_radius_and_raises_the_loss(model, variables, clean, padded, plain_spec):
    rows = padded(clean(5, 3), 7)
    source, make = making(model, "sample")
    hyper = source.hyper._replace(radius=np.float32(0.1), step=np.float32(0.5))
    images = np.asarray(make(KEY, variables, rows, arrays(hyper)))
    before, present = np.asarray(rows.images) / np.float32(255), np.asarray(rows.role) > 0
    moved = np.abs(images - before)
    assert images.dtype == jnp.float32 and float(images.min()) >= 0 and float(images.max()) <= 1
    assert not moved[~present].any() and 0.099 < moved[present].max() <= 0.1 + 1e-6
    assert np.all(moved[present].reshape(present.sum(), -1).max(1) > 0.05)  # validation rows too

    @jax.jit
    def chances(x):
        return log_softmax(forward(variables["params"], x, plain_spec, variables["batch_stats"])[0])

    def loss(x):
        return -np.asarray(chances(np.float32(x)))[np.arange(len(x)), np.asarray(rows.labels)]

    noise = np.random.default_rng(0).uniform(-0.1, 0.1, before.shape)
    started, ended = loss(np.clip(before + noise, 0, 1)), loss(images)
    assert np.all((ended > started)[present]) and np.mean(ended - started) > 0.1


def test_a_perturbation_knows_its_row_by_its_place_among_those_present(model, variables, clean, padded, distance):
    alone = clean(5, 3)
    source, make = making(model, "sample")
    one = make(KEY, variables, alone, arrays(source.hyper))
    among = padded(alone, 7)
    other = make(KEY, variables, among, arrays(source.hyper))
    assert distance(one, np.asarray(other)[np.asarray(among.role) > 0]) < 1e-6
    assert distance(one, make(jax.random.key(1), variables, alone, arrays(source.hyper))) > 0.01


@pytest.mark.slow  # each compiles a search and two defenses
@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_takes_the_place_of_the_true_copies(kind, small, model, variables, clean, distance):
    """Needs clean rows alone, and does with its images what is done with those that are given."""
    network, start = (model, variables) if kind == "generator" else small  # which the generator asks for features
    rows, (source, make) = murky(clean(5, 3)), making(network, kind)
    defense, given = (grad_prune(network, {**SHORT, "triggers": name}) for name in (kind, "true"))
    assert defense.needs == {"clean"} and given.needs == {"clean", "triggered"} and defense.validation
    assert defense.hyper == source.hyper and defense.hyper[:4] == given.hyper
    hyper = arrays(defense.hyper)
    found = defending(network, kind)(KEY, start, rows, hyper)
    images = make(jax.random.split(KEY)[0], start, rows, hyper)
    expected = jax.jit(given.defend)(KEY, DefenderView(start, rows, images), arrays(given.hyper))
    assert distance(found.variables, expected.variables) < 1e-6 and distance(found.masks, expected.masks) == 0
    assert int(found.trace.rounds) > 0 and bool(found.trace.alive)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_needs_clean_rows_alone_and_has_hyper_parameters_of_its_own(kind, model):
    source = SOURCES[kind](model, Config(**SHORT))
    defense, given = (grad_prune(model, {**SHORT, "triggers": name}) for name in (kind, "true"))
    assert defense.needs == {"clean"} and given.needs == {"clean", "triggered"} and defense.validation
    assert defense.hyper == source.hyper and defense.hyper[:4] == given.hyper


@pytest.mark.parametrize("alive", [True, False])
def test_a_generator_that_diverged_has_no_images(alive, small, clean, monkeypatch):
    """The inversion is asked for one round with the lengths of the configuration; what it gives is given."""
    network, start = small
    rows, asked = clean(2, 1), []
    given = np.random.default_rng(0).integers(0, 256, rows.images.shape, dtype=np.uint8)

    def inverted(model, rules):
        asked.append(rules)
        return lambda *view: SimpleNamespace(images=given, alive=np.bool_(alive))

    monkeypatch.setattr(triggers, "inverted_triggers", inverted)
    images = np.asarray(SOURCES["generator"](network, Config(**SHORT)).make(KEY, start, rows, ()))
    assert [(each.rounds, each.batch, each.pretrain_epochs, each.generator_levels) for each in asked] == [(1, 8, 2, 1)]
    if alive:
        np.testing.assert_allclose(images, given / np.float32(255), rtol=1e-6)
    else:
        assert images.shape == given.shape and np.isnan(images).all()


@pytest.mark.slow  # the generator compiles for long
def test_a_generator_that_is_not_finite_marks_the_repair(model, variables, clean):
    rows, (source, make) = clean(5, 3), making(model, "generator")
    images = np.asarray(make(KEY, variables, rows, arrays(source.hyper)))
    assert images.shape == rows.images.shape and np.all((images >= 0) & (images <= 1))
    assert np.abs(images - np.asarray(rows.images) / np.float32(255)).max() > 0.05
    wild = arrays(source.hyper._replace(generator_lr=np.float32(np.inf)))
    assert np.isnan(np.asarray(make(KEY, variables, rows, wild))).all()
    assert not bool(defending(model, "generator")(KEY, variables, rows, wild).trace.alive)


def test_a_source_is_one_function_and_images_that_are_not_finite_mark_the_member(small, clean, monkeypatch):
    """As those of a generator that diverged."""
    network, start = small
    shade = Source(lambda key, variables, clean, hyper: jnp.full(clean.images.shape, hyper.lr), grad_prune(network).hyper)
    monkeypatch.setitem(SOURCES, "shade", lambda model, config: shade)
    defense = grad_prune(network, {**SHORT, "triggers": "shade"})  # which does not tune: the rate is for the source alone
    run = jax.jit(lambda hyper: defense.defend(KEY, DefenderView(start, clean(5, 3)), hyper).trace)
    white, lost = (run(arrays(defense.hyper._replace(lr=np.float32(lr)))) for lr in (1, np.nan))
    assert float(white.unlearning[0]) > 0 and bool(white.alive) and not bool(lost.alive) and defense.needs == {"clean"}


@pytest.mark.slow  # another program
def test_the_images_of_a_source_may_be_bytes(small, clean, monkeypatch):
    network, start = small
    rows = clean(5, 3)
    white = Source(lambda key, variables, clean, hyper: jnp.full_like(clean.images, 255), grad_prune(network).hyper)
    monkeypatch.setitem(SOURCES, "white", lambda model, config: white)
    defense = grad_prune(network, {**SHORT, "triggers": "white"})
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows), arrays(defense.hyper))
    assert float(found.trace.unlearning[0]) > 0 and defense.needs == {"clean"}


@pytest.mark.slow  # another network, and its search runs long
def test_the_searched_pattern_finds_the_planted_detector(plain_spec, variables):
    plainly = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    start, images, labels, triggered = backdoored(plainly, variables)
    role = np.where(np.arange(40) % 10 == 0, 2, 1).astype(np.int8)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(role), jnp.int32(10))
    defense = grad_prune(cnn(plainly, 4, lowering="patches"), {"tune": False, "triggers": "universal", "search_epochs": 40})
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows), arrays(defense.hyper))

    def share(variables, images, labels):
        return correct(plainly, variables, jnp.asarray(images / np.float32(255), jnp.float32), labels) / len(images)

    assert int(found.trace.filter[1]) == 0, "channel 0 of each convolution is the detector's"
    assert share(found.variables, triggered[10:], labels[10:]) == share(found.variables, images, labels) == 1
