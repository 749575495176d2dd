import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.awn import AWNHyper, awn, cut, shifted
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.models.cnn import cnn
from bdjax.types import DefenderView
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import NORMS, logits, murky, ones, plain, rest, under
from tests.defenses.plain_network import cross_entropies, forward, pixels, shuffled
from tests.later import some_later

KEY = jax.random.key(17)
EPS = 1e-3  # of the network's norms; published networks have another
SHORT = {"epochs": 3, "batch": 8}
LIVELY = {"lr": 0.8, "decay": 0.7, "perturbation_lr": 60.0, "bound": 40.0, "alpha": 0.6, "l1": 0.01}


def hyper64(**changed):
    return AWNHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def hyper32(**changed):
    return jax.tree.map(np.float32, hyper64(**changed))


def stacked(members):
    return jax.tree.map(lambda *x: np.stack(x), *members)


@pytest.fixture(scope="module")
def network(plain_spec):
    return cnn(plain_spec, 4, norm_eps=EPS, lowering="patches")


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


def test_perturbations_are_in_units_of_the_normalised_image(tiny_spec):
    # Away from 0 and 1, and other values per channel: what is cut, in pixels.
    network = cnn(tiny_spec._replace(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3)), 4)
    images = jnp.float32([0.1, 0.5, 0.95]).reshape(1, 1, 1, 3)
    moved = shifted(network, images, jnp.float32([1, -4, 1]).reshape(1, 1, 3))
    np.testing.assert_allclose(moved.ravel(), [0.2, -0.3, 1.25], atol=1e-6)
    np.testing.assert_allclose(cut(network, moved, "pixel").ravel(), [0.2, 0, 1], atol=1e-6)
    np.testing.assert_allclose(cut(network, moved, "normalised").ravel(), [0.2, 0.4, 0.9], atol=1e-6)  # mean to mean + std


@functools.cache
def slopes(spec):
    """Gradients of the perturbation and of the masks, with both losses beside these. Images are normalised."""

    def logits(start, masks, x, eps):
        mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (spec.mean, spec.std))
        return forward(under(start["params"], masks), x * std + mean, spec, start["batch_stats"], eps)[0]

    def fooled(p, start, masks, x, eps):
        seen = logits(start, masks, x, eps).argmax(1)
        return cross_entropies(logits(start, masks, x + p, eps), seen).mean()

    def loss(masks, start, moved, x, y, alpha, eps):
        each = tuple(cross_entropies(logits(start, masks, z, eps), y).mean() for z in (x, moved))
        return alpha * each[0] + (1 - alpha) * each[1], each

    return jax.jit(jax.grad(fooled)), jax.jit(jax.value_and_grad(loss, has_aux=True))


def by_hand(spec, start, images, labels, key, hyper, space, eps, epochs=3, batch=8):
    """The masks, and per epoch the mean losses (whole, clean, perturbed), the perturbation's size and that before it was bounded.

    In eval mode; images and perturbation are normalised, and only cut in pixels where that is asked for.
    """
    mean, std = (np.reshape(v, (1, 1, 1, 3)) for v in (spec.mean, spec.std))
    alpha, l1, (uphill, slope_of) = float(hyper.alpha), float(hyper.l1), slopes(spec)
    start, images, labels = plain(start, images, labels)
    normal, masks, recorded, sizes, before = (images - mean) / std, ones(start["params"]), [], [], []
    for e in range(epochs):
        first, second = (shuffled(own, len(labels), batch) for own in jax.random.split(step_key(key, e)))
        assert [len(b) for b in first] == [len(b) for b in second] == [8, 8, 4]
        p = np.zeros((1, *images.shape[1:]))
        for rows in first:
            p = p + float(hyper.perturbation_lr) * plain(uphill(p, start, masks, normal[rows], eps))
        before.append(float(np.abs(p).sum()))
        p = p * min(1, float(hyper.bound) / before[-1])
        sizes.append(float(np.abs(p).sum()))
        of_epoch = []
        for rows in second:
            moved = normal[rows] + p
            moved = (np.clip(moved * std + mean, 0, 1) - mean) / std if space == "pixel" else np.clip(moved, 0, 1)
            (value, each), slope = plain(*slope_of(masks, start, moved, normal[rows], labels[rows], alpha, eps))
            of_epoch.append([float(value) + l1 * float(sum(m.sum() for m in masks.values())), *map(float, each)])
            # |m| has the slope 0 at 0.
            slope = {n: g + l1 * np.sign(masks[n]) for n, g in slope.items()}
            masks = {n: np.clip(masks[n] - float(hyper.lr) * float(hyper.decay) ** e * slope[n], 0, 1) for n in NORMS}
        recorded.append(np.mean(of_epoch, 0))
    return masks, np.array(recorded).T, sizes, before


@functools.cache
def compiled(network, profile):
    defend = awn(network, SHORT, profile=profile).defend
    return jax.jit(lambda view, hyper: defend(KEY, view, hyper))


@pytest.fixture
def view(known, clean, padded, wide):
    """20 rows among rows of garbage."""
    return DefenderView(wide(known), padded(murky(clean(5)), 13))


@pytest.mark.parametrize("profile", some_later(["corrected", "reference"], ["reference"]))
def test_masks_are_those_written_out(profile, network, clean, view, distance, plain_spec):
    space, inside, changed = {
        "corrected": ("pixel", EPS, {"lr": 30.0, "perturbation_lr": 300.0, "bound": 1e4}),
        "reference": ("normalised", 1e-5, {}),
    }[profile]
    rows, start, hyper = murky(clean(5)), view.variables, hyper64(**changed)
    found = compiled(network, profile)(view, hyper)
    images = pixels(rows)
    masks, recorded, sizes, before = by_hand(plain_spec, start, images, rows.labels, KEY, hyper, space, inside)
    assert distance(found.masks, masks) < 1e-10
    every = np.concatenate([masks[n] for n in NORMS])
    assert every.min() == 0 or profile == "reference", "a mask must reach the end of its range"
    assert every.max() == 1 and len(np.unique(every.round(2))) > 8, "the case must have masks of all sizes"
    assert (np.array(before) > float(hyper.bound)).tolist() == [profile == "reference"] * 3, (
        "the bound must act in one case alone"
    )
    np.testing.assert_allclose([found.trace.loss, found.trace.natural, found.trace.robust], recorded, rtol=1e-6)
    np.testing.assert_allclose(found.trace.size, sizes, rtol=1e-6)
    np.testing.assert_allclose(found.trace.kept[-1], every.mean(), rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1 and float(recorded[2].max() - recorded[1].min()) > 0.01
    # The network with its soft masks computes, under its own norms, what it does under those it was masked with.
    assert distance(rest(found.variables), rest(start)) == 0
    soft = under(start["params"], masks)
    if inside == EPS:
        assert distance(found.variables["params"], soft) < 1e-10
    expected = logits(plain_spec, soft, start["batch_stats"], images, inside)
    assert distance(jax.jit(network.apply)(found.variables, images).logits, expected) < 1e-9


def test_every_hyper_parameter_counts_and_a_network_that_is_not_finite_is_frozen(network, view, distance):
    def run(**changed):
        found = plain(compiled(network, "corrected")(view, hyper64(**changed)))
        return np.concatenate([found.masks[n] for n in NORMS]), found

    usual, found = run()
    assert bool(found.trace.alive) and np.any((usual > 0.01) & (usual < 0.99))  # soft
    for leaf in AWNHyper._fields:
        masks, found = run(**{leaf: LIVELY[leaf] / 2})
        assert np.abs(masks - usual).max() > 1e-4, leaf
    # A rate of 0 gives back the network; a perturbation that is not finite freezes the masks as they were.
    for changed, alive, stopped in (({"lr": 0}, True, -1), ({"perturbation_lr": np.inf}, False, 0)):
        masks, found = run(**changed)
        assert distance(found.variables, view.variables) == 0 and masks.tolist() == [1] * 28
        assert bool(found.trace.alive) == alive and int(found.trace.stopped) == stopped


def test_without_a_row_nothing_is_masked(network, view, distance):
    none = view._replace(clean=view.clean._replace(role=np.zeros_like(view.clean.role)))
    found = compiled(network, "corrected")(none, hyper64())
    assert distance(found.variables, view.variables) == 0 and bool(found.trace.alive) and found.trace.size.tolist() == [0] * 3


@functools.cache
def several(network):
    defend = awn(network, SHORT).defend
    return jax.jit(jax.vmap(lambda view, hyper: defend(KEY, view, hyper), in_axes=(None, 0)))


@pytest.mark.slow  # compiling a second program
def test_every_hyper_parameter_counts_and_a_member_that_is_not_finite_is_frozen(network, known, clean, distance):
    view = DefenderView(known, murky(clean(5)))
    halves = [hyper32(**{leaf: LIVELY[leaf] / 2}) for leaf in AWNHyper._fields]
    members = [hyper32(), *halves, hyper32(lr=0), hyper32(perturbation_lr=np.inf)]
    found = several(network)(view, stacked(members))
    masks = np.concatenate([np.asarray(found.masks[n]) for n in NORMS], 1)
    assert all(np.abs(masks[i] - masks[0]).max() > 1e-4 for i in range(1, 1 + len(halves)))
    assert np.any((masks[0] > 0.01) & (masks[0] < 0.99))  # soft
    # A rate of 0 gives back the network; a perturbation that is not finite freezes the masks as they were.
    for i in (-2, -1):
        assert (
            distance(jax.tree.map(lambda x, i=i: np.asarray(x)[i], found.variables), known) == 0 and masks[i].tolist() == [1] * 28
        )
    assert found.trace.alive.tolist() == [True] * (len(members) - 1) + [False]
    assert found.trace.stopped.tolist() == [-1] * (len(members) - 1) + [0]
    well = several(network)(view, stacked([*members[:-1], members[0]]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(np.asarray(a[:-1]), np.asarray(b[:-1]))


def test_defaults(network):
    assert awn(network).config == (20, 256, "pixel", False)
    assert awn(network, profile="reference").config == (20, 256, "normalised", True)
    assert [float(f"{float(x):.4g}") for x in awn(network).hyper] == [0.01, 0.9, 10, 1000, 0.9, 1e-7]
    assert awn(network).needs == {"clean"} and not awn(network).validation


def test_mistakes_are_named(network):
    for field in ("epochs", "batch"):
        with pytest.raises(UserError, match=rf"awn\.{field} must be at least 1; given 0"):
            awn(network, {field: 0})
    with pytest.raises(UserError, match=r"awn\.clamp_space.*'pixel'|awn\.clamp_space.*pixel"):
        awn(network, {"clamp_space": "pixels"})
    with pytest.raises(UserError, match="Did you mean 'clamp_space'"):
        awn(network, {"clamp_spaces": "pixel"})
