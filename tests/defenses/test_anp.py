import functools
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.defenses.anp import ANPHyper, anp, chosen, shake
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import NORMS, backdoored, clipped, correct, levels, murky, ones, overhear, plain, rest, under
from tests.defenses.plain_network import cross_entropies, descend, forward, pixels
from tests.later import some_later

KEY = jax.random.key(11)
SHORT = {"iterations": 6, "batch": 10}
LIVELY = {"lr": 3.0, "momentum": 0.8, "eps": 0.4, "alpha": 0.3, "tolerance": 0.1, "weight_decay": 0.02}
EPS = 1e-3  # of the network's norms; published networks have another
INNER_STEPS = {"corrected": 1, "reference": 2}


def hyper64(**changed):
    return ANPHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def hyper32(**changed):
    return jax.tree.map(np.float32, hyper64(**changed))


@pytest.fixture(scope="module")
def network(plain_spec):
    return cnn(plain_spec, 4, norm_eps=EPS, lowering="patches")


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


# The perturbation


def test_noise_is_uniform_and_every_norm_and_part_has_its_own():
    masks = {"a": np.ones(2000, np.float32), "b": np.ones(2000, np.float32)}
    found = np.concatenate([np.stack([part["a"], part["b"]]) for part in jax.jit(shake)(KEY, masks, np.float32(0.4))])
    assert found.dtype == np.float32 and np.abs(found).max() <= np.float32(0.4) and np.abs(found).max() > 0.399
    np.testing.assert_allclose(found.mean(1), 0, atol=0.02)
    np.testing.assert_allclose(found.std(1), 0.8 / np.sqrt(12), rtol=0.05)
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 0.08  # d and e, and both norms, are drawn apart


# The choice of the threshold


choice = jax.jit(chosen)


def level(correct, rows, test=None, tolerance=0.1):
    """Among 8 thresholds: levels that are not there get nothing right."""
    counts = np.array([*correct, *[-1] * (8 - len(correct))], np.int32)
    found = choice(counts, np.int32(rows), None if test is None else np.float32(test), np.float32(tolerance))
    assert found.dtype == jnp.int32
    return int(found)


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([10, 10, 9, 8, 9, 8], 4),  # 8 of 10 fails in between: the largest that passes wins all the same
        ([10, 9, 8, 7], 1),  # a drop of exactly a tenth passes
        ([10, 8, 8, 8], 0),
        ([100, 89, 90, 89], 2),
        ([10, 12, 12], 2),  # being better is fine
        ([10, 10, 10], 2),
        ([0, 0, 0], 0),  # there is nothing to keep
    ],
)
def test_the_largest_threshold_that_keeps_the_accuracy_wins(correct, expected):
    assert level(correct, 100) == expected


@pytest.mark.parametrize(
    ("correct", "test", "expected"),
    [
        ([100, 100, 95, 70, 97, 60], 0.9, 4),  # 100 of 100 is too good for 0.9 ± 0.09, in between 70 is too bad
        ([100, 100, 100], 0.9, 0),  # too good throughout: nothing is pruned, although nothing was lost
        ([90, 50, 50], 0.5, 2),
        ([90, 50, 28], 0.5, 1),
        ([62, 37, 0], 0.5, 0),  # the network itself is refused as well, and yet remains
        ([40, 75, 90], 1.0, 0),  # 0.9 deviates by exactly a tenth
        ([40, 91, 75], 1.0, 1),
        ([0, 0, 0], 0.0, 0),
    ],
)
def test_published_code_keeps_the_accuracy_of_the_test_set_from_both_sides(correct, test, expected):
    assert level(correct, 100, test) == expected


def test_a_deviation_of_exactly_the_tolerance_is_refused_by_the_published_code():
    assert level([8, 6], 8, 0.5, 0.5) == level([8, 2], 8, 0.5, 0.5) == 0 != level([8, 5], 8, 0.5, 0.5)


@settings(deadline=None, max_examples=60)
@given(
    correct=st.lists(st.integers(0, 20_000), min_size=6, max_size=6),
    tolerance=st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.3333, 1.0]),
)
def test_the_rule_is_exact(correct, tolerance):
    least = (1 - Fraction(str(tolerance))) * correct[0]
    expected = max(k for k, c in enumerate(correct) if c >= least) if correct[0] else 0
    assert level(correct, 20_000, None, tolerance) == expected


# The whole method


@functools.cache
def slopes(spec):
    """Gradients of the perturbation and of the masks, with both losses beside these."""

    def loss(params, scales, biases, x, y, eps):
        return cross_entropies(forward(under(params, scales, biases), x, spec, eps=eps)[0], y).mean()

    def worst(masks, d, e, params, *rest):
        return loss(params, {n: masks[n] + d[n] for n in NORMS}, {n: 1 + e[n] for n in NORMS}, *rest)

    def both(masks, d, e, params, *rest, alpha):
        recorded = loss(params, masks, None, *rest), worst(masks, d, e, params, *rest)
        return alpha * recorded[0] + (1 - alpha) * recorded[1], recorded

    return jax.jit(jax.grad(worst, (1, 2))), jax.jit(jax.grad(both, has_aux=True))


def by_hand(spec, variables, images, labels, key, hyper, iterations, batch, inner_steps, eps):
    """The masks after the iterations, both losses of each, and the largest |d| and |e|. Only the draws are the method's."""
    drawing = jax.random.split(key, 3)[0]
    alpha, half = float(hyper.alpha), float(hyper.eps)

    @jax.jit
    def draws(drawing, i, masks):
        choosing, _, shaking = jax.random.split(step_key(drawing, i), 3)
        return jax.random.randint(choosing, (batch,), 0, len(labels), jnp.int32), shake(shaking, masks, hyper.eps)

    uphill, slope_of = slopes(spec)
    params, images, labels = plain(variables["params"], images, labels)
    masks = ones(params)
    buffer, history, peak = {n: np.zeros_like(m) for n, m in masks.items()}, [], 0
    for i in range(iterations):
        rows, (d, e) = plain(draws(drawing, np.int32(i), masks))
        x, y = images[rows], labels[rows]
        for _ in range(inner_steps):
            rising = plain(*uphill(masks, d, e, params, x, y, eps))
            d, e = ({n: a[n] + half / inner_steps * np.sign(g[n]) for n in NORMS} for a, g in zip((d, e), rising, strict=True))
        peak = max(peak, *(float(np.abs(a).max()) for part in (d, e) for a in part.values()))
        slope, recorded = plain(*slope_of(masks, d, e, params, x, y, eps, alpha=alpha))
        masks, buffer = descend(masks, buffer, slope, float(hyper.lr), float(hyper.momentum), float(hyper.weight_decay))
        masks = clipped(masks)
        history.append([float(x) for x in recorded])
    return masks, np.array(history).T, peak


@pytest.fixture(scope="module")
def listened():
    """The compiled method of a profile, and a list that gets the masks which it rounds."""
    with pytest.MonkeyPatch.context() as patch:
        heard = overhear(patch, "anp")

        @functools.cache
        def compiled(network, profile):
            defend = anp(network, {**SHORT, "inner_steps": INNER_STEPS[profile]}, profile=profile).defend
            return jax.jit(lambda view, hyper: defend(KEY, view, hyper))

        yield compiled, heard


@pytest.fixture
def view(known, clean, padded, wide):
    """36 rows among rows of garbage. "corrected" must not look at the accuracy."""
    return DefenderView(wide(known), padded(murky(clean(5, 4)), 4), test_accuracy=np.float32(0.75))


@pytest.mark.parametrize("profile", some_later(["corrected", "reference"], ["reference"]))
def test_trained_masks_and_pruning_are_those_written_out(profile, network, clean, view, listened, distance, plain_spec):
    (compiled, heard), rows, variables, hyper = listened, murky(clean(5, 4)), view.variables, hyper64()
    heard.clear()
    found = compiled(network, profile)(view, hyper)
    jax.effects_barrier()
    images, labels, train, held = *plain(pixels(rows), rows.labels), np.asarray(rows.role) == 1, np.asarray(rows.role) == 2
    steps, inside = INNER_STEPS[profile], {"corrected": EPS, "reference": 1e-5}[profile]
    masks, history, peak = by_hand(plain_spec, variables, images[train], labels[train], KEY, hyper, 6, 10, steps, inside)
    assert distance(heard[0], masks) < 1e-10
    every = np.concatenate([masks[n] for n in NORMS])
    assert 0.4 < peak <= 0.8, "within twice the half-width of the draw, and not cut to it"
    assert every.min() == 0 and every.max() == 1 and len(np.unique(every.round(2))) > 8, "the case must have masks of all sizes"
    np.testing.assert_allclose(found.trace.masks, every, atol=0.51e-4)
    np.testing.assert_allclose([found.trace.natural, found.trace.perturbed], history, rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1

    # The pruning, in the network as it came, with its own norms.
    thresholds = [500 * k for k in range(19)]
    keeps, counts, right = levels(plain_spec, variables, masks, thresholds, False, images[held], labels[held], EPS)
    accepted = [abs(c / 16 - 0.75) < 0.075 if profile == "reference" else c >= 0.9 * right[0] for c in right]
    last = max(k for k, a in enumerate(accepted) if a or k == 0)
    assert 0 < last < 19 and 0 < counts[last] < counts[-1], "the case must be one that prunes some"
    assert found.trace.pruned.tolist() == counts and found.trace.correct.tolist() == right
    assert int(found.trace.level) == last and int(found.trace.validation) == 16
    assert distance(found.masks, keeps[last]) == 0
    assert distance(found.variables["params"], under(variables["params"], keeps[last])) == 0
    assert distance(rest(found.variables), rest(variables)) == 0  # biases and statistics among them


def test_thresholds_include_the_masks_that_lie_at_them(network, known, clean, monkeypatch, distance):
    """What is trained and counted is given: of 12 rows 11 are right at the level 7, but 9 before and after it."""
    whole = {"bn1": [0, 0, 1, 500], "bn2": [501, 1000, 8999, 9000, 9001, 9999, 10_000, 10_000], "bn3": [4500] * 16}
    given, right = {norm: np.int32(q) for norm, q in whole.items()}, np.int32([12, 12, *[9] * 5, 11, *[9] * 12])
    module = sys.modules["bdjax.defenses.anp"]
    monkeypatch.setattr(module, "rounded", lambda masks: given)
    monkeypatch.setattr(module, "curve", lambda *built: lambda *asked: jnp.asarray(right))
    monkeypatch.setattr(module, "run_rounds", lambda step, carry, *rest: carry)
    found = jax.jit(anp(network, SHORT).defend)(KEY, DefenderView(known, clean(3, 3)), ANPHyper())
    # The network as it is, 0, 0.05 (500 goes), 0.1 (501 and 1000 too) ... 0.45 (4500 too) ... 0.9 (9000 too, 9001 stays).
    assert found.trace.pruned.tolist() == [0, 2, 4, *[6] * 7, *[22] * 9, 24] and len(found.trace.pruned) == 20
    assert int(found.trace.level) == 7 and found.masks["bn2"].tolist() == [0, 0, *[1] * 6]
    assert distance(found.variables["params"], under(known["params"], found.masks)) == 0


def test_profiles_say_how_accuracy_is_measured(network, monkeypatch):
    asked = []
    monkeypatch.setattr(sys.modules["bdjax.defenses.anp"], "curve", lambda *given: asked.append(given))
    for profile, changed in (("corrected", {}), ("reference", {}), ("corrected", {"augment_validation": True, "batch": 9})):
        anp(network, changed, profile=profile)
    # With the network's own norms in both: only the masks are trained with the published ones.
    assert asked == [(network, 256, False), (network, 256, True), (network, 9, True)]
    assert anp(network).needs == {"clean"} and anp(network, profile="reference").needs == {"clean", "test_accuracy"}
    assert anp(network).validation and anp(network, {"judged_by_test": True}).needs == {"clean", "test_accuracy"}


def test_defaults(network):
    assert anp(network).config == (2000, 256, 1, False, False, False)
    assert anp(network, profile="reference").config == (2000, 256, 1, True, True, True)
    assert [round(float(x), 6) for x in anp(network).hyper] == [0.01, 0.9, 0.4, 0.2, 0.1, 0]


def test_every_hyper_parameter_counts_and_a_network_that_is_not_finite_is_frozen(network, view, listened):
    def run(**changed):
        found = plain(listened[0](network, "corrected")(view, hyper64(**changed)))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.variables))
        return found.trace

    usual = run()
    assert bool(usual.alive) and int(usual.stopped) == -1
    for leaf in ANPHyper._fields:
        if leaf != "tolerance":
            assert np.abs(run(**{leaf: LIVELY[leaf] / 2}).masks - usual.masks).max() > 1e-3, leaf
    tolerant, broken = run(tolerance=0.9), run(eps=1.7e308)
    assert np.array_equal(tolerant.masks, usual.masks) and usual.level < tolerant.level == 19
    assert not bool(broken.alive) and int(broken.stopped) == 0
    assert broken.masks.tolist() == [1] * 28 and broken.pruned.tolist() == [0] * 20  # as it was before


def test_without_a_row_to_train_on_nothing_goes(network, view, listened, distance):
    role = np.asarray(view.clean.role)
    none = view._replace(clean=view.clean._replace(role=jnp.asarray(np.where(role == 1, 0, role).astype(np.int8))))
    found = listened[0](network, "corrected")(none, hyper64())
    assert distance(found.variables, view.variables) == 0 and found.trace.masks.tolist() == [1] * 28 and bool(found.trace.alive)


@functools.cache
def several(network):
    defend = anp(network, SHORT).defend
    return jax.jit(jax.vmap(lambda view, hyper: defend(KEY, view, hyper), in_axes=(None, 0)))


@pytest.mark.slow  # compiling a second program
def test_every_hyper_parameter_counts_and_a_member_that_is_not_finite_is_frozen(network, known, clean):
    rows = murky(clean(5, 4))
    halves = [hyper32(**{leaf: LIVELY[leaf] / 2}) for leaf in ANPHyper._fields if leaf != "tolerance"]
    members = [hyper32(), *halves, hyper32(tolerance=0.9), hyper32(eps=1e38)]
    view = DefenderView(known, rows)
    found = several(network)(view, jax.tree.map(lambda *x: np.stack(x), *members))
    masks, others = np.asarray(found.trace.masks), len(halves)
    assert all(np.abs(masks[i] - masks[0]).max() > 1e-3 for i in range(1, 1 + others))
    assert np.array_equal(masks[0], masks[1 + others]) and found.trace.level[0] < found.trace.level[1 + others] == 19
    assert found.trace.alive.tolist() == [True] * (len(members) - 1) + [False]
    assert found.trace.stopped.tolist() == [-1] * (len(members) - 1) + [0]
    assert masks[-1].tolist() == [1] * 28 and found.trace.pruned[-1].tolist() == [0] * 20  # as it was before
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    well = several(network)(view, jax.tree.map(lambda *x: np.stack(x), *members[:-1], members[0]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(np.asarray(a[:-1]), np.asarray(b[:-1]))


@pytest.mark.slow  # it trains, and BNP's is as good a detector
def test_it_finds_a_planted_detector(plain_spec, variables, clean):
    # So small a network needs the rate of the paper, 0.2, and shows within 60 iterations which channel the noise goes for.
    spec = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    network = cnn(spec, 4, lowering="patches")
    start, images, labels, triggered = backdoored(spec, variables)
    role = np.where(np.arange(40) % 10 < 2, 2, 1).astype(np.int8)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(role), jnp.int32(10))
    defense = anp(network, {"iterations": 60, "batch": 32})
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows), ANPHyper(lr=np.float32(0.2)))

    def share(variables, images, labels):
        return correct(spec, variables, images / np.float32(255), labels) / len(images)

    zeros = np.zeros(30, np.int32)
    assert share(start, images, labels) == share(start, triggered[10:], zeros) == 1
    gone = {norm: np.flatnonzero(np.asarray(keep) == 0).tolist() for norm, keep in found.masks.items()}
    assert 0 in gone["bn1"] + gone["bn2"] + gone["bn3"], "channel 0 of each norm is the detector's"
    assert sum(len(channels) for channels in gone.values()) <= 3
    assert share(found.variables, images, labels) == 1 and share(found.variables, triggered[10:], zeros) == 0


def test_mistakes_are_named(network):
    for field in ("iterations", "batch", "inner_steps"):
        with pytest.raises(UserError, match=rf"anp\.{field} must be at least 1; given 0"):
            anp(network, {field: 0})
    with pytest.raises(UserError, match="Did you mean 'judged_by_test'"):
        anp(network, {"judged_by_tests": True})
    with pytest.raises(UserError, match="corrected"):
        anp(network, profile="fixed")
