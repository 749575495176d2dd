import functools
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.defenses.rnp.attempts import attempter
from bdjax.defenses.rnp.rnp import RNPHyper, chosen, rnp
from bdjax.errors import UserError
from bdjax.keys import step_key
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import (
    NORMS,
    backdoored,
    clipped,
    correct,
    levels,
    logits,
    murky,
    ones,
    plain,
    rest,
    under,
)
from tests.defenses.plain_network import EPS, batches, cross_entropies, descend, forward, pixels

KEY = jax.random.key(13)
SHORT = {"unlearn_epochs": 4, "recover_epochs": 3, "batch": 8, "attempts": 3}
LIVELY = {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.1, "stop": 0.0, "recover_lr": 2.0, "tolerance": 0.1}
LARGEST = 1.5  # a bias beyond it breaks the brittle network


def hyper64(**changed):
    return RNPHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def stacked(members):
    return jax.tree.map(lambda *x: np.stack(x), *members)


@pytest.fixture(scope="module")
def brittle(model):
    """The small network, but its logits are no numbers once a bias of the last layer is too large: it overflows early."""

    def apply(variables, images, **how):
        out = model.apply(variables, images, **how)
        broken = jnp.max(jnp.abs(variables["params"]["linear"]["bias"])) > LARGEST
        return out._replace(logits=jnp.where(broken, jnp.nan, out.logits))

    return model._replace(apply=apply)


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


# The choice of the threshold


choose = jax.jit(chosen)


def level(correct, rows, tolerance=0.02):
    found = choose(np.int32(correct), np.int32(rows), np.float32(tolerance))
    assert found.dtype == jnp.int32
    return int(found)


@pytest.mark.parametrize(
    ("correct", "expected"),
    [
        ([100, 100, 98, 97, 100, 100], 2),  # 97 fails; what comes later is not looked at, though it passes
        ([50, 50, 48, 47], 2),  # a drop of exactly 0.02, of all rows and not of the right ones
        ([50, 47, 50], 0),
        ([20, 30, 10, 30], 1),  # being better is fine
        ([60, 60, 60], 2),  # none fails: the last
        ([0, 0], 1),
    ],
)
def test_pruning_stops_at_the_first_failure(correct, expected):
    assert level(correct, 100) == expected


@settings(deadline=None, max_examples=60)
@given(
    correct=st.lists(st.integers(0, 20_000), min_size=6, max_size=6),
    tolerance=st.sampled_from([0.0, 0.01, 0.02, 0.1, 0.25, 0.3333, 1.0]),
)
def test_the_rule_is_exact(correct, tolerance):
    best = 0
    for k, c in enumerate(correct):
        if Fraction(c, 20_000) < Fraction(correct[0], 20_000) - Fraction(str(tolerance)):
            break
        best = k
    assert level(correct, 20_000, tolerance) == best


# The whole method


@functools.cache
def slopes(spec):
    """Gradients of what is unlearned and of what is learned again, with the right rows and the loss beside them."""

    def loss(network, masks, x, y, eps):
        logits = forward(under(network, masks), x, spec, eps=eps)[0]
        return cross_entropies(logits, y).mean(), (logits.argmax(1).astype(y.dtype) == y).sum()

    def lost(free, x, y, eps):
        value, right = loss(*free, x, y, eps)
        return -value, right

    return jax.jit(jax.grad(lost, has_aux=True)), jax.jit(jax.value_and_grad(lambda m, n, *rest: loss(n, m, *rest)[0]))


def by_hand(spec, start, images, labels, key, hyper, *, attempt=0, masked=True, eps=EPS, unlearn=4, recover=3, batch=8):
    """One attempt: the masks, the accuracies of its unlearning, the losses of its recovery, the largest last bias it saw.

    Without ``masked`` the masks stay 1 while the network unlearns.
    """
    _, forgetting, learning = jax.random.split(step_key(jax.random.split(key)[0], attempt), 3)
    lr, momentum, decay = float(hyper.lr) / 10**attempt, float(hyper.momentum), float(hyper.weight_decay)

    forget_slope, learn_slope = slopes(spec)
    start, images, labels = plain(start, images, labels)
    free = start["params"], ones(start["params"])
    buffer, accuracies, largest = jax.tree.map(np.zeros_like, free), [], 0.0
    for e, epoch in enumerate(batches(forgetting, len(labels), batch, unlearn)):
        right = 0
        for rows in epoch:
            slope, hits = plain(*forget_slope(free, images[rows], labels[rows], eps))
            free, buffer = descend(free, buffer, slope, lr * (1 + np.cos(np.pi * e / unlearn)) / 2, momentum, decay)
            if not masked:
                free = free[0], ones(start["params"])
            right += int(hits)
            largest = max(largest, float(np.abs(free[0]["linear"]["bias"]).max()))
        accuracies.append(right / len(labels))
        if accuracies[-1] <= float(hyper.stop):
            break
    network, masks = free
    buffer, losses = jax.tree.map(np.zeros_like, masks), []
    for epoch in batches(learning, len(labels), batch, recover):
        of_epoch = []
        for rows in epoch:
            value, slope = plain(*learn_slope(masks, network, images[rows], labels[rows], eps))
            masks, buffer = descend(masks, buffer, slope, float(hyper.recover_lr), momentum, 0.0)
            masks = clipped(masks)
            of_epoch.append(float(value))
        losses.append(np.mean(of_epoch))
    return masks, accuracies, losses, largest


@pytest.fixture(scope="module")
def defend(brittle):
    """``defend(variables, rows, hyper) -> (masks before they are rounded, Defended)`` of the corrected method."""

    def with_masks(*built):  # the masks go out beside the accuracies
        attempt = attempter(*built)

        def attempt_with_masks(*asked):
            masks, (accuracy, *others), *rest = attempt(*asked)
            return masks, ((accuracy, masks), *others), *rest

        return attempt_with_masks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["bdjax.defenses.rnp.rnp"], "attempter", with_masks)
        method = rnp(brittle, SHORT).defend
    run = jax.jit(lambda variables, rows, hyper: method(KEY, DefenderView(variables, rows), hyper))

    def defended(variables, rows, hyper):
        found = plain(run(variables, rows, hyper))
        accuracy, masks = found.trace.unlearned
        return masks, found._replace(trace=found.trace._replace(unlearned=accuracy))

    return defended


@pytest.mark.parametrize(
    ("changed", "epochs", "attempts"),
    [({}, 4, 1), ({"stop": 0.3}, 3, 1), ({"lr": 2.0}, 4, 2)],
    ids=["all epochs", "stopped early", "second attempt"],
)
def test_masks_are_those_written_out(changed, epochs, attempts, defend, known, clean, padded, wide, distance, plain_spec):
    rows, start, hyper = murky(clean(5)), wide(known), hyper64(**changed)  # 20 rows: batches of 8, 8 and 4
    masks, found = defend(start, padded(rows, 13), hyper)
    images, labels = plain(pixels(rows), rows.labels)
    hand = functools.partial(by_hand, plain_spec, start, images, labels, KEY, hyper)
    expected, accuracies, recovered, largest = hand(attempt=attempts - 1)
    assert distance(masks, expected) < 1e-10
    every = np.concatenate([expected[n] for n in NORMS])
    assert len(np.unique(every.round(2))) > 8 and largest < LARGEST, "the case must be one in which masks move"
    trace = found.trace
    np.testing.assert_allclose(trace.unlearned[: len(accuracies)], accuracies, rtol=1e-6)
    assert np.isnan(trace.unlearned[len(accuracies) :]).all()
    assert len(accuracies) == epochs
    np.testing.assert_allclose(trace.recovered, recovered, rtol=1e-6)
    np.testing.assert_allclose(trace.masks, every, atol=0.51e-4)
    assert (int(trace.attempts), bool(trace.alive), int(trace.stopped)) == (attempts, True, -1)
    if attempts > 1:
        assert hand(attempt=0)[3] > LARGEST  # that is what broke the first one
    # And what is pruned.
    keeps, counts, right = levels(plain_spec, start, masks, [200 * k for k in range(50)], True, images, labels)
    failures = [k for k, c in enumerate(right) if c < right[0] - 2]  # a tenth of 20 rows
    last = failures[0] - 1 if failures else 50
    assert trace.pruned.tolist() == counts and trace.correct.tolist() == right and counts[-1] > 0
    assert int(trace.level) == last and int(trace.validation) == 20 and distance(found.masks, keeps[last]) == 0
    assert distance(found.variables["params"], under(start["params"], keeps[last])) == 0
    assert distance(rest(found.variables), rest(start)) == 0


@pytest.mark.slow  # another program
def test_a_random_start_has_no_masks_while_it_unlearns(model, known, clean, wide, distance, plain_spec):
    rows, start, hyper = murky(clean(5)), wide(known), hyper64()
    # Its key is the first half of the method's.
    attempt = attempter(model, rnp(model, {**SHORT, "unlearn_from": "random"}).config)
    masks, (accuracy, losses, _), *_ = jax.jit(functools.partial(attempt, jax.random.split(KEY)[0]))(start, rows, hyper)
    fresh = wide(model.init(jax.random.split(step_key(jax.random.split(KEY)[0], 0), 3)[0]))
    hand = by_hand(plain_spec, fresh, *plain(pixels(rows), rows.labels), KEY, hyper, masked=False)
    assert distance(masks, hand[0]) < 1e-10
    np.testing.assert_allclose(accuracy, hand[1], rtol=1e-6)
    np.testing.assert_allclose(losses, hand[2], rtol=1e-6)


@pytest.mark.slow  # another program
def test_published_code_prunes_what_is_written_out(plain_spec, known, clean, padded, wide, distance):
    """All of it, in a network whose own norms have another ε."""
    network = cnn(plain_spec, 4, norm_eps=1e-3, lowering="patches")
    logits_of = jax.jit(lambda variables, images: network.apply(variables, images).logits)
    rows, start, hyper = murky(clean(5)), wide(known), hyper64()
    defense = rnp(network, SHORT, profile="reference")
    defend = jax.jit(lambda rows: defense.defend(KEY, DefenderView(start, rows), hyper))
    more = padded(rows, 13)
    found, images = plain(defend(more)), np.asarray(pixels(rows))
    masks, _, losses, _ = by_hand(plain_spec, start, images, rows.labels, KEY, hyper)
    every = np.concatenate([masks[n] for n in NORMS])
    np.testing.assert_allclose(found.trace.masks, every, atol=0.51e-4)
    np.testing.assert_allclose(found.trace.recovered, losses, rtol=1e-6)

    keeps, counts, right = levels(plain_spec, start, masks, [200 * k for k in range(50)], True, images, rows.labels)
    last = 0
    for k, c in enumerate(right):
        if c < right[0] - 2:  # a tenth of 20 rows
            break
        last = k
    assert every.min() == 0 and counts[1] == 0 < counts[last] < counts[-1] and last < 50, "the case must be one that stops"
    assert found.trace.pruned.tolist() == counts and found.trace.correct.tolist() == right
    assert int(found.trace.level) == last and int(found.trace.validation) == 20
    assert distance(found.masks, keeps[last]) == 0
    assert distance(rest(found.variables), rest(start)) == 0  # biases and statistics are untouched
    # The network under its own ε computes what the pruned one does under the published one.
    pruned = under(start["params"], keeps[last])
    expected = logits(plain_spec, pruned, start["batch_stats"], images, 1e-5)
    assert distance(logits_of(found.variables, images), expected) < 1e-10
    assert distance(logits_of({**start, "params": pruned}, images), expected) > 1e-4

    empty = plain(defend(more._replace(role=np.zeros_like(more.role))))
    assert bool(empty.trace.alive) and empty.trace.masks.tolist() == [1] * 28 and int(empty.trace.validation) == 0
    published = jax.jit(lambda variables, images: network.rebuild(norm_eps=1e-5).apply(variables, images).logits)
    assert distance(logits_of(empty.variables, images), published(start, images)) < 1e-10


HALVES = {leaf: LIVELY[leaf] / 2 for leaf in ("lr", "momentum", "weight_decay", "recover_lr")}
CHANGES = [{}, {"stop": 0.3}, {"lr": 2.0}, {"lr": 5e4}, {"tolerance": 1.0}, *({k: v} for k, v in HALVES.items())]


@pytest.fixture(scope="module")
def alone(defend, known, clean, padded):
    """What becomes of members with these hyper-parameters: masks before they are rounded, and what the defense returns."""
    with jax.enable_x64(True):
        start = jax.tree.map(np.float64, plain(known))
        return [defend(start, padded(murky(clean(5)), 13), hyper64(**changed)) for changed in CHANGES]


def test_every_hyper_parameter_counts_and_where_all_attempts_fail_nothing_is_pruned(alone, known, distance):
    traces = [found.trace for _, found in alone]
    assert [int(trace.attempts) for trace in traces] == [1, 1, 2, 3] + [1] * 5
    assert [bool(trace.alive) for trace in traces] == [True, True, True, False] + [True] * 5
    failed = traces[3]
    assert 0 <= int(failed.stopped) < 12 and failed.masks.tolist() == [1] * 28 and failed.pruned.tolist() == [0] * 51
    assert distance(alone[3][1].variables, known) == 0
    masks = [trace.masks for trace in traces]
    assert np.array_equal(masks[4], masks[0]) and traces[4].level == 50 > traces[0].level
    assert all(np.abs(masks[i] - masks[0]).max() > 1e-3 for i in (1, 2, 3, 5, 6, 7, 8))


@pytest.mark.slow  # another program
def test_members_of_other_lengths_go_their_own_way(alone, brittle, known, clean, padded, wide, distance):
    rows, start = padded(murky(clean(5)), 13), wide(known)
    members = [hyper64(**changed) for changed in CHANGES]
    defense = rnp(brittle, SHORT)
    together = jax.jit(jax.vmap(lambda hyper: defense.defend(KEY, DefenderView(start, rows), hyper)))
    found = plain(together(stacked(members)))
    trace = found.trace
    assert (~np.isnan(trace.unlearned)).sum(1).tolist()[:3] == [4, 3, 4]
    for i, (_, one) in enumerate(alone):
        assert (trace.attempts[i], trace.alive[i], trace.level[i]) == (one.trace.attempts, one.trace.alive, one.trace.level)
        np.testing.assert_allclose(trace.masks[i], one.trace.masks, atol=1.1e-4)
    for i in (0, 1, 2):
        raw = np.concatenate([alone[i][0][n] for n in NORMS])
        np.testing.assert_allclose(trace.masks[i], raw, atol=0.51e-4)
        np.testing.assert_allclose(trace.unlearned[i], alone[i][1].trace.unlearned, rtol=1e-6)
        np.testing.assert_allclose(trace.recovered[i], alone[i][1].trace.recovered, rtol=1e-6)
    # Where all attempts fail nothing is pruned.
    assert 0 <= int(trace.stopped[3]) < 12 and trace.masks[3].tolist() == [1] * 28 and trace.pruned[3].tolist() == [0] * 51
    assert distance(jax.tree.map(lambda x: x[3], found.variables), start) == 0
    # The others do not notice one that fails.
    well = plain(together(stacked([*members[:3], members[0], *members[4:]])))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(np.delete(a, 3, 0), np.delete(b, 3, 0))


def test_absent_rows_change_nothing(defend, known, clean, padded, wide, distance):
    """Wherever they are and whatever is in them; without any, the masks written out are the same too."""
    rows, start, hyper = murky(clean(5)), wide(known), hyper64(stop=0.3)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((13, *a.shape[1:]), 3, a.dtype)]), rows._replace(spc=rows.role))
    behind = behind._replace(role=np.where(np.arange(33) < 20, behind.role, np.int8(0)), spc=rows.spc)
    (masks, found), (others, other) = (defend(start, r, hyper) for r in (padded(rows, 13), behind))
    assert distance(masks, others) < 1e-12
    for a, b in zip(jax.tree.leaves(found.trace), jax.tree.leaves(other.trace), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_thresholds_leave_out_the_masks_that_lie_at_them(model, known, clean, monkeypatch, distance):
    """What is trained and counted is given: 10 of 12 right at the level 4, 6 at 5 and 12 from then on."""
    whole = {"bn1": [0, 199, 200, 201], "bn2": [9799, 9800, 9801, 9999] + [10_000] * 4, "bn3": [5000] * 16}
    given, right = {norm: np.int32(q) for norm, q in whole.items()}, np.int32([12, 12, 12, 12, 11, 6, *[12] * 45])
    module, course = sys.modules["bdjax.defenses.rnp.rnp"], (np.zeros(1), np.zeros(1), np.int32(1))
    monkeypatch.setattr(module, "rounded", lambda masks: given)
    monkeypatch.setattr(module, "curve", lambda *built: lambda *asked: right)
    monkeypatch.setattr(module, "attempter", lambda *built: lambda *asked: ({}, course, np.bool_(True), np.int32(-1)))
    found = rnp(model).defend(KEY, DefenderView(known, clean(3)), RNPHyper(tolerance=np.float32(0.1)))
    # The network as it is, 0, 0.02 (0 and 199 go), 0.04 (200 and 201 too) ... 0.52 (5000 too) ... 0.98 (9799 too, 9800 stays).
    assert found.trace.pruned.tolist() == [0, 0, 2, *[4] * 24, *[20] * 23, 21] and len(found.trace.pruned) == 51
    assert int(found.trace.level) == 4 and found.masks["bn1"].tolist() == [0] * 4 and found.masks["bn3"].all()
    assert distance(found.variables["params"], under(known["params"], found.masks)) == 0


def test_profiles_say_how_accuracy_is_measured(plain_spec, monkeypatch):
    network, asked = cnn(plain_spec, 4, norm_eps=1e-3), []
    published = network.rebuild(norm_eps=1e-5, norm_momentum=0.1)
    monkeypatch.setattr(sys.modules["bdjax.defenses.rnp.rnp"], "curve", lambda *given: asked.append(given))
    for profile, changed in (("corrected", {}), ("reference", {}), ("corrected", {"augment_validation": True, "batch": 9})):
        rnp(network, changed, profile=profile)
    assert asked == [(network, 256, False), (published, 256, True), (network, 9, True)]


def test_defaults(model):
    assert rnp(model).config == (20, 20, 256, 10, "backdoored", False, False)
    assert rnp(model, profile="reference").config == (20, 20, 256, 10, "backdoored", True, True)
    assert [round(float(x), 6) for x in rnp(model).hyper] == [0.001, 0.9, 0.05, 0.2, 0.2, 0.02]
    assert rnp(model).needs == {"clean"} and not rnp(model).validation


@pytest.mark.slow  # another network, and its epochs run long
def test_it_finds_a_planted_detector(plain_spec, variables):
    # With the survey's own hyper-parameters; but two batches per epoch.
    spec = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    start, images, labels, triggered = backdoored(spec, variables)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(40, jnp.int8), jnp.int32(10))
    defense = rnp(cnn(spec, 4, lowering="patches"), {"batch": 32})
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows), RNPHyper())

    def share(variables, images, labels):
        return correct(spec, variables, jnp.asarray(images / np.float32(255), jnp.float32), labels) / len(images)

    zeros = np.zeros(30, np.int32)
    assert share(start, images, labels) == share(start, triggered[10:], zeros) == 1
    gone = {norm: np.flatnonzero(np.asarray(keep) == 0).tolist() for norm, keep in found.masks.items()}
    assert 0 in gone["bn1"] + gone["bn2"] + gone["bn3"], "channel 0 of each norm is the detector's"
    assert sum(len(channels) for channels in gone.values()) <= 3
    assert share(found.variables, images, labels) == 1 and share(found.variables, triggered[10:], zeros) == 0


def test_mistakes_are_named(model):
    for field in ("unlearn_epochs", "recover_epochs", "batch", "attempts"):
        with pytest.raises(UserError, match=rf"rnp\.{field} must be at least 1; given 0"):
            rnp(model, {field: 0})
    with pytest.raises(UserError, match=r"rnp\.unlearn_from"):
        rnp(model, {"unlearn_from": "fresh"})
    with pytest.raises(UserError, match="Did you mean 'unlearn_epochs'"):
        rnp(model, {"unlearn_epoch": 3})
