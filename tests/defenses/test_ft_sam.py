import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.ft import ft
from bdjax.defenses.ft_sam import FTSAMHyper, ft_sam, perturbation, smoothed_divergence
from bdjax.defenses.tuning import Hyper, tuner
from bdjax.errors import UserError
from bdjax.train.schedules import cosine_by_step
from bdjax.types import DefenderView, Output
from tests.defenses.plain_network import batches, dense, descend, follow, forward, pixels, plain

KEY = jax.random.key(3)


def compiled(model, profile="corrected", **config):
    return _compiled(model, profile, **config)


@functools.cache
def _compiled(model, profile, **config):
    defense = ft_sam(model, {"epochs": 3, "batch": 8, **config}, profile=profile)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


def hyper64(**fields):
    return FTSAMHyper(*(np.float64(x) for x in FTSAMHyper()))._replace(**{k: np.float64(v) for k, v in fields.items()})


@functools.cache
def slope_of(spec):
    """Gradient of the divergence from the smoothed target."""
    classes = spec.classes

    def loss(params, x, y, smoothing):
        logits, _, measured = forward(params, x, spec)
        rest = smoothing / (classes - 1)
        target = jnp.where(y[:, None] == jnp.arange(classes, dtype=y.dtype)[None], 1 - smoothing, rest)
        logs = logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))
        return jnp.mean((target * (jnp.log(target) - logs)).sum(1)), measured

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def written_out(variables, images, labels, plan, spec, rate, hyper, adaptive):
    """The method's section of the specification in plain loops: two gradients per batch, one step."""
    variables, images, labels = plain(variables, images, labels)
    params, running = variables["params"], variables["batch_stats"]
    buffer, step = jax.tree.map(np.zeros_like, params), 0
    losses, perturbed = [], []
    for e, epoch in enumerate(plan):
        first, second = [], []
        for rows in epoch:
            (value, measured), g = plain(slope_of(spec)(params, images[rows], labels[rows], hyper.smoothing))
            weight = jax.tree.map(np.abs if adaptive else np.ones_like, params)
            norm = np.sqrt(sum(float(np.sum((w * s) ** 2)) for w, s in zip(*map(jax.tree.leaves, (weight, g)), strict=True)))
            radius = hyper.rho / (norm + 1e-12)
            there = jax.tree.map(lambda p, w, s, radius=radius: p + radius * w**2 * s, params, weight, g)
            (worse, _), g = plain(slope_of(spec)(there, images[rows], labels[rows], hyper.smoothing))
            lr = hyper.lr * (1 + np.cos(np.pi * rate(e, step))) / 2
            params, buffer = descend(params, buffer, g, lr, hyper.momentum, hyper.weight_decay)
            running = follow(running, measured)
            step += 1
            first.append(float(value))
            second.append(float(worse))
        losses.append(np.mean(first))
        perturbed.append(np.mean(second))
    return {"params": params, "batch_stats": running}, losses, perturbed


@pytest.mark.parametrize(
    ("profile", "config", "rate"),
    [
        pytest.param("corrected", {}, lambda epoch, step: epoch / 3, id="corrected"),
        # 9 steps: down to 0 and up again.
        pytest.param("reference", {"period": 4}, lambda epoch, step: step / 4, id="reference", marks=pytest.mark.slow),
        pytest.param(
            *("corrected", {"adaptive": False, "period": 5}, lambda epoch, step: epoch / 5),
            id="not-adaptive",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_update_is_the_one_written_out(model, variables, clean, padded, wide, distance, plain_spec, profile, config, rate):
    # 20 rows: batches of 8, 8 and 4 among rows of garbage, whose empty batches move neither weights nor the rate.
    rows, hyper = clean(5), hyper64(lr=0.05, momentum=0.8, weight_decay=1e-2, rho=0.5, smoothing=0.2)
    found = compiled(model, profile, **config)(wide(variables), padded(rows, 20), hyper)
    expected, losses, perturbed = written_out(
        wide(variables), pixels(rows), rows.labels, batches(KEY, 20, 8, 3), plain_spec, rate, hyper, config.get("adaptive", True)
    )
    assert distance(found.variables, expected) < 1e-10
    assert distance(expected["params"], variables["params"]) > 1e-2  # it moved
    np.testing.assert_allclose(found.trace.loss, losses, rtol=1e-6)
    np.testing.assert_allclose(found.trace.perturbed, perturbed, rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1 and found.masks is None


@pytest.mark.slow  # compiling four methods
def test_without_a_radius_and_smoothing_it_is_fine_tuning(model, variables, clean, wide, distance):
    rows, start, off = clean(5), wide(variables), hyper64(rho=0, smoothing=0)
    same = Hyper(*(np.float64(x) for x in Hyper()))
    short = {"epochs": 3, "batch": 8}
    expected = jax.jit(ft(model, short).defend)(KEY, DefenderView(start, rows), same)
    found = compiled(model)(start, rows, off)
    assert distance(found.variables, expected.variables) < 1e-12 and distance(found.trace.loss, expected.trace.loss) < 1e-6
    by_step = jax.jit(tuner(model, **short, schedule=cosine_by_step(4)))(KEY, start, rows, np.asarray(rows.role) == 1, same)
    found = compiled(model, "reference", period=4)(start, rows, off)
    assert distance(found.variables, by_step.variables) < 1e-12


@pytest.mark.slow
def test_every_number_and_field_matters(plain_spec, clean, distance):
    model, rows, hyper = dense(plain_spec), clean(5), FTSAMHyper()
    variables = model.init(jax.random.key(0))
    usual = compiled(model)(variables, rows, hyper).variables
    for leaf in hyper._fields:
        moved = hyper._replace(**{leaf: getattr(hyper, leaf) / np.float32(2)})
        assert distance(compiled(model)(variables, rows, moved).variables, usual) > 1e-6, leaf
    for field in ({"cosine_per": "step"}, {"adaptive": False}):
        assert distance(compiled(model, **field)(variables, rows, hyper).variables, usual) > 1e-6, field


@pytest.mark.slow  # each is a program of its own
def test_every_length_matters(plain_spec, clean, distance):
    model, rows, hyper = dense(plain_spec), clean(5), FTSAMHyper()
    variables = model.init(jax.random.key(0))
    usual = compiled(model)(variables, rows, hyper).variables
    for field in ({"epochs": 4}, {"batch": 16}, {"period": 7}):
        assert distance(compiled(model, **field)(variables, rows, hyper).variables, usual) > 1e-6, field


def test_the_profiles_differ_in_the_schedule(model):
    assert ft_sam(model).config == (100, 256, 100, "epoch", True)
    assert ft_sam(model, profile="reference").config == (100, 256, 100, "step", True)
    assert ft_sam(model, {"epochs": 5}).config.period == 5  # a shortened run shortens the cosine
    assert ft_sam(model, {"epochs": 5}, profile="reference").config.period == 100
    hyper = [round(float(x), 6) for x in ft_sam(model).hyper]
    assert hyper == [0.01, 0.9, 0.0005, 2.0, 0.1]


def test_the_loss_is_the_divergence_from_the_smoothed_target(wide):
    generator, divergence = np.random.default_rng(0), jax.jit(smoothed_divergence)
    slope = jax.jit(jax.grad(lambda x, y, s: smoothed_divergence(x, y, s).sum()))
    logits, labels = generator.normal(size=(6, 5)), np.array([0, 1, 4, 2, 2, 3])
    for smoothing in (0.0, 0.1, 0.5):
        target = np.full((6, 5), smoothing / 4)
        target[np.arange(6), labels] = 1 - smoothing
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.nansum(target * np.log(target / chances), 1)
        found = divergence(logits, labels, np.float64(smoothing))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        if smoothing:  # at the target itself nothing is left
            best = divergence(np.log(target), labels, np.float64(smoothing))
            np.testing.assert_allclose(best, 0, atol=1e-14)
        np.testing.assert_allclose(slope(logits, labels, np.float64(smoothing)), chances - target, atol=1e-12)
    assert np.isfinite(slope(1e4 * logits, labels, np.float64(0))).all()


def test_the_perturbation_has_the_radius_over_all_parameters_together(wide):
    params = {"a": np.array([[3.0, -2.0]]), "b": {"c": np.array([0.5, 0.0, -1.0])}}
    slope = {"a": np.array([[0.1, 0.4]]), "b": {"c": np.array([-2.0, 5.0, 0.3])}}
    perturbed, radius = jax.jit(perturbation, static_argnums=3), np.float64(0.7)
    found = perturbed(params, slope, radius, True)
    norm = np.sqrt(0.3**2 + 0.8**2 + 1.0**2 + 0.3**2)
    np.testing.assert_allclose(found["a"], 0.7 * np.array([[9 * 0.1, 4 * 0.4]]) / norm, rtol=1e-10)
    np.testing.assert_allclose(found["b"]["c"], 0.7 * np.array([0.25 * -2, 0, 0.3]) / norm, rtol=1e-10)
    found = plain(perturbed(params, slope, radius, False))
    assert np.sqrt(sum(float(np.sum(x**2)) for x in jax.tree.leaves(found))) == pytest.approx(0.7)
    for adaptive in (True, False):  # no gradient, no perturbation
        nothing = perturbed(params, jax.tree.map(np.zeros_like, slope), radius, adaptive)
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(nothing))


def test_both_gradients_see_the_batch_and_draw_on_their_own(plain_spec, clean):
    network, seen = dense(plain_spec), []

    def watched(variables, images, *, train=False, mask=None, key=None, **rest):
        jax.debug.callback(lambda *x: seen.append([np.array(y) for y in x]), jax.random.key_data(key), images, mask, ordered=True)
        assert train
        out = network.apply(variables, images)
        # Statistics that show which pass they come from: they follow the weights.
        return Output(out.logits, {**variables, "batch_stats": {"w": jnp.sum(variables["params"]["last"]["kernel"])}}, {})

    start = {**network.init(jax.random.key(0)), "batch_stats": {"w": jnp.float32(0)}}
    rows, hyper = clean(2), FTSAMHyper(rho=np.float32(0.5))
    watching = ft_sam(network._replace(apply=watched), {"epochs": 2, "batch": 8})
    one = ft_sam(network._replace(apply=watched), {"epochs": 1, "batch": 8})
    after = jax.jit(one.defend)(KEY, DefenderView(start, rows), hyper)
    assert float(after.variables["batch_stats"]["w"]) == pytest.approx(
        float(np.sum(np.asarray(start["params"]["last"]["kernel"]))), rel=1e-5
    )
    jax.effects_barrier()
    seen.clear()
    jax.jit(watching.defend)(KEY, DefenderView(start, rows), hyper)
    jax.effects_barrier()
    assert len(seen) == 4
    for first, second in (seen[:2], seen[2:]):
        np.testing.assert_array_equal(first[1], second[1])
        np.testing.assert_array_equal(first[2], second[2])
    assert len({tuple(x[0].tolist()) for x in seen}) == 4


def test_mistakes_are_named(model):
    for field in ("epochs", "batch", "period"):
        with pytest.raises(UserError, match=rf"ft_sam\.{field} must be at least 1; given 0"):
            ft_sam(model, {field: 0})
    with pytest.raises(UserError, match=r"ft_sam\.cosine_per 'batch'"):
        ft_sam(model, {"cosine_per": "batch"})
