import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.ims.ims import BY_ROUND, IMSHyper, ims
from bdjax.defenses.ims.networks import agree, disagree, factors
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import Adam, knowing, log_softmax
from tests.defenses.plain_masks import correct, murky, plain
from tests.defenses.plain_network import EPS, filled, forward, pixels

KEY = jax.random.key(31)
CHANNELS = {"conv1": 4, "conv2": 8, "conv3": 16}
LENGTHS = (7, 6, 7)
SHORT = {"start_rounds": 7, "search_rounds": 6, "settle_rounds": 7, "batch": 8, "inner_steps": 4, "patience": 2}
START = {"search_rounds": 0, "settle_rounds": 0}
LIVELY = {"lr": 0.15, "perturbation_lr": 0.05, "weight_decay": 0.3, "slope": 6.0, "l1": 3.0, "bound": 0.12, "progress": 0.9}


def hyper64(**changed):
    return IMSHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def hyper32(**changed):
    return jax.tree.map(np.float32, hyper64(**changed))


def stacked(members):
    return jax.tree.map(lambda *x: np.stack(x), *members)


@functools.cache
def compiled(model, **config):
    """``defend(variables, rows, hyper)``."""
    defend = ims(model, {**SHORT, **config}).defend
    return jax.jit(lambda variables, rows, hyper: defend(KEY, DefenderView(variables, rows), hyper))


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


# The whole method


def parted(flat):
    """A vector over channels as one per convolution."""
    split = np.split if isinstance(flat, np.ndarray) else jnp.split
    return dict(zip(CHANNELS, split(flat, np.cumsum(list(CHANNELS.values()))[:-1]), strict=True))


@functools.cache
def slopes(spec):
    """Gradients of the perturbation and of masks and selections, without the pull; networks scale what convolutions give."""

    def chances(start, x, c=None):
        z = forward(start["params"], x, spec, start["batch_stats"], factors=None if c is None else parted(c))[0]
        return jnp.exp(log_softmax(z))

    def h(t, k):
        return 1 / (1 + jnp.exp(-k * (t - 0.5)))

    def both(m, s, k):
        return h(m, k) + s * (1 - h(m, k)), h(1 - m, k) + s * (1 - h(1 - m, k))

    def near(p, q):
        return -jnp.log((p * q).sum(1) + 1e-8).mean()

    def far(p, q):
        return -jnp.log(1 - (p * q).sum(1) + 1e-8).mean()

    def shaken(delta, start, x, m, s, k):
        there = chances(start, x + delta)
        return near(chances(start, x + delta, both(m, s, k)[1]), there) + far(there, chances(start, x))

    def clear(free, start, x, k):
        keep, invert = both(*free, k)
        seen = chances(start, x)
        parts = near(chances(start, x, keep), seen), far(chances(start, x, invert), seen)
        return sum(parts), (*parts, 0.0, keep.mean())

    def searched(free, start, x, delta, k):
        keep, invert = both(*free, k)
        seen, there = chances(start, x), chances(start, x + delta)
        value, (close, apart, _, mean) = clear(free, start, x, k)
        inverse = chances(start, x + delta, invert)
        more = near(chances(start, x + delta, keep), seen) + near(inverse, there) + far(inverse, seen)
        return value + more, (close, apart, more, mean)

    def logits(start, x, c):
        return forward(start["params"], x, spec, start["batch_stats"], factors=parted(c))[0]

    gradient = functools.partial(jax.value_and_grad, has_aux=True)
    return jax.jit(jax.grad(shaken)), jax.jit(gradient(clear)), jax.jit(gradient(searched)), jax.jit(both), jax.jit(logits)


planned = jax.jit(epoch_plan, static_argnums=2)


def decayed(adam, params, gradient, lr, decay):
    """AdamW: the parameters shrink, then Adam steps."""
    return plain(adam.step(jax.tree.map(lambda p: p * (1 - lr * decay), params), gradient, lr))


def by_hand(spec, start, images, key, hyper, lengths=LENGTHS, batch=8, inner=4, patience=2):
    """Masks and selections f64[28], what is recorded of each round [7, rounds], and how many rounds each stage had."""
    h = {name: float(value) for name, value in hyper._asdict().items()}
    start, images = plain(start, images)
    uphill, clear, searched, *_ = slopes(spec)
    free, recorded, made, first = (np.ones(28), np.ones(28)), [], [], 0
    for stage, length in enumerate(lengths):
        adam, best, missed = Adam(free, largest=False), np.inf, 0
        rounds = []
        while len(rounds) < length and missed <= patience:
            plan = planned(step_key(stream(key, Stream.ORDER), first + len(rounds)), np.ones(len(images), bool), batch)
            x = images[filled(*plan)[0]]
            assert len(x) == min(batch, len(images))
            if stage == 0:
                (value, parts), slope = plain(clear(free, start, x, h["slope"]))
                size = 0.0
            else:
                delta = np.zeros(x.shape)
                own = Adam(delta, largest=False)
                for _ in range(inner):
                    up = plain(uphill(delta, start, x, *free, h["slope"]))
                    delta = np.clip(decayed(own, delta, up, h["perturbation_lr"], h["weight_decay"]), -h["bound"], h["bound"])
                (value, parts), slope = plain(searched(free, start, x, delta, h["slope"]))
                size = np.abs(delta).max()
            s = free[1]
            pull = 0.0 if stage == 1 else h["l1"]
            value = float(value) + pull * np.abs(1 - s).mean()
            slope = slope[0], slope[1] - np.where(s == 1, 0, pull / 28)  # the slope of |1 - s| is 0 at 1
            rounds.append([value, *parts[:3], size, s.mean(), parts[3]])
            free = tuple(np.clip(p, 0, 1) for p in decayed(adam, free, slope, h["lr"], h["weight_decay"]))
            best, missed = (value, 0) if value < h["progress"] * best else (best, missed + 1)
        recorded += rounds + [[np.nan] * 7] * (length - len(rounds))
        made.append(len(rounds))
        first += length
    return *free, np.array(recorded).T, made


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(8, [6, 4, 7]), pytest.param(32, [5, 4, 7], marks=pytest.mark.slow)],
    ids=["batches", "one batch with absent rows"],
)
def test_masks_are_those_written_out(batch, expected, model, known, clean, padded, wide, distance, plain_spec):
    rows, start, hyper = murky(clean(5)), wide(known), hyper64()
    found, images = plain(compiled(model, batch=batch)(start, padded(rows, 13), hyper)), np.asarray(pixels(rows))
    m, s, recorded, made = by_hand(plain_spec, start, images, KEY, hyper, batch=batch)
    *_, both, logits = slopes(plain_spec)
    keep, _ = plain(*both(m, s, LIVELY["slope"]))
    assert distance(found.masks, parted(keep)) < 1e-9
    np.testing.assert_allclose(found.trace.masks, m, atol=1e-6)
    np.testing.assert_allclose(found.trace.selections, s, atol=1e-6)
    np.testing.assert_allclose([getattr(found.trace, name) for name in BY_ROUND], recorded, rtol=2e-6, atol=1e-7)
    assert found.trace.rounds.tolist() == made and bool(found.trace.alive) and int(found.trace.stopped) == -1
    assert made == expected, "stages must end early, but not all"
    assert np.nanmax(recorded[4]) == LIVELY["bound"] and s.min() < 0.7 and np.any(s == 1) and m.min() < 0.7
    assert len(np.unique(np.asarray(keep).round(3))) > 10, "the case must have factors of all sizes"
    # Folded into the kernels they do what they do behind the convolutions; nothing else has changed.
    masked, apply = logits(start, images, keep), jax.jit(lambda variables: model.apply(variables, images).logits)
    assert distance(apply(found.variables), masked) < 1e-9
    assert distance(apply(start), masked) > 1e-2
    rest = [{k: {n: x for n, x in v.items() if k not in CHANNELS} for k, v in one["params"].items()} for one in (found[0], start)]
    assert distance(*rest) == 0 == distance(found.variables["batch_stats"], start["batch_stats"])


@pytest.mark.slow  # two more programs
def test_hard_masks_are_soft_ones_rounded(model, known, clean):
    rows, hyper = murky(clean(5)), hyper32(l1=0, weight_decay=0.9, lr=0.3)
    soft, hard = (compiled(model, hard_mask=hard, **START)(known, rows, hyper) for hard in (False, True))
    for conv in CHANNELS:
        np.testing.assert_array_equal(np.asarray(hard.masks[conv]), np.round(np.asarray(soft.masks[conv])))
        kernel = np.asarray(known["params"][conv]["kernel"]) * np.asarray(hard.masks[conv])
        np.testing.assert_array_equal(np.asarray(hard.variables["params"][conv]["kernel"]), kernel)
    every = np.concatenate([np.asarray(hard.masks[conv]) for conv in CHANNELS])
    assert set(every.tolist()) == {0.0, 1.0}


# The start


def test_at_the_start_all_networks_are_the_same(wide):
    start = {"masks": np.ones(3), "selections": np.ones(3)}

    def weighed(free):
        found = factors(free, jnp.float64(20))
        return jnp.sum(jnp.stack(found) * np.arange(6.0).reshape(2, 3)), found

    slope, (keep, invert) = plain(jax.jit(jax.grad(weighed, has_aux=True))(start))
    assert keep.tolist() == invert.tolist() == [1, 1, 1]
    assert slope["masks"].tolist() == [0, 0, 0] and np.all(slope["selections"][1:] > 0)


def test_factors_give_channels_to_one_network_or_to_both(wide):
    free = {"masks": np.array([1, 0, 0.5, 0.5, 0.7]), "selections": np.array([0, 0, 0, 0.5, 0.25])}
    keep, invert = jax.jit(factors)(free, np.float64(20))
    high, low, part = 1 / (1 + np.exp(-10)), 1 / (1 + np.exp(10)), 1 / (1 + np.exp(-4))
    np.testing.assert_allclose(keep, [high, low, 0.5, 0.75, part + 0.25 * (1 - part)], rtol=1e-11)
    np.testing.assert_allclose(invert, [low, high, 0.5, 0.75, (1 - part) + 0.25 * part], rtol=1e-11)
    assert (round(high, 5), round(low, 7)) == (0.99995, 4.54e-05)


@pytest.mark.slow  # another program
def test_the_first_round_moves_masks_by_decay_alone_and_selections_without_the_pull(model, known, clean):
    rows = murky(clean(5))
    light, heavy = (compiled(model, start_rounds=1, **START)(known, rows, hyper32(l1=l1)) for l1 in (0, 50))
    for found in (light, heavy):
        np.testing.assert_allclose(found.trace.masks, np.full(28, 1 - 0.15 * 0.3), rtol=1e-6)
        assert found.trace.rounds.tolist() == [1, 0, 0] and found.trace.kept.tolist() == [1]
    np.testing.assert_array_equal(light.trace.selections, heavy.trace.selections)
    assert np.asarray(light.trace.selections).min() < 0.9


def test_agreement_is_the_chance_to_draw_the_same_class(wide):
    p, q = np.array([[0.7, 0.2, 0.1], [1, 0, 0], [1, 0, 0]]), np.array([[0.1, 0.3, 0.6], [1, 0, 0], [0, 0, 1]])
    alike, apart = jax.jit(lambda p, q: (agree(p, q), disagree(p, q)))(p, q)
    np.testing.assert_allclose(alike, [-np.log(0.19 + 1e-8), -np.log(1 + 1e-8), -np.log(1e-8)], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(apart, [-np.log(0.81 + 1e-8), -np.log(1e-8), -np.log(1 + 1e-8)], rtol=1e-12, atol=1e-15)
    # Chances that add up to more than 1 by rounding leave nothing, and a number; at 1 the loss keeps its slope.
    above = np.float32([[1.0000001, 0]])
    assert float(np.asarray(jax.jit(disagree)(above, above))[0]) == pytest.approx(-np.log(1e-8))
    slope = jax.jit(jax.grad(lambda p: disagree(p, jnp.asarray(q))[1]))(p)
    assert float(np.asarray(slope)[1, 0]) == pytest.approx(1e8)


# Rounds, members, rows


HALVES = [{leaf: LIVELY[leaf] / 2} for leaf in IMSHyper._fields]
CHANGES = [{}, *HALVES, {"progress": 1e9}, {"progress": 1e-9}, {"lr": 0.0}, {"perturbation_lr": np.inf}]


@pytest.fixture(scope="module")
def alone(model, known, clean, padded):
    """What becomes of members with these hyper-parameters."""
    with jax.enable_x64(True):
        start = jax.tree.map(np.float64, plain(known))
        run = compiled(model, batch=8)
        return [plain(run(start, padded(murky(clean(5)), 13), hyper64(**changed))) for changed in CHANGES]


def test_every_hyper_parameter_counts(alone, known, distance):
    masks = [np.concatenate([found.masks[n] for n in CHANNELS]) for found in alone]
    assert all(np.abs(masks[i] - masks[0]).max() > 1e-4 for i in range(1, 1 + len(HALVES)))
    every, few, still, broken = alone[-4:]
    assert distance(still.variables, known) == 0  # a rate of 0 gives back the network
    # A stage ends after more rounds without progress than the patience, 2; where a loss must fall to a billionth to make any,
    # these are the three after its first.
    assert every.trace.rounds.tolist() == list(LENGTHS) and few.trace.rounds.tolist() == [4, 4, 4]
    for name in BY_ROUND:
        recorded = [r < 4 for length in LENGTHS for r in range(length)]
        assert np.isfinite(getattr(few.trace, name)).tolist() == recorded
        assert np.isfinite(getattr(every.trace, name)).all()
    # What is not finite is noticed in the first round with perturbations, and leaves what the first stage has found.
    assert [bool(found.trace.alive) for found in alone] == [True] * (len(alone) - 1) + [False]
    first = int(broken.trace.rounds[0])
    assert broken.trace.rounds.tolist() == [first, 1, 0] and first == int(alone[0].trace.rounds[0])
    assert [int(found.trace.stopped) for found in alone] == [-1] * (len(alone) - 1) + [first]
    assert all(np.isfinite(m).all() for m in masks) and masks[-1].min() < 0.99


@pytest.mark.slow  # another program
def test_members_go_their_own_way(model, alone, known, clean, padded, wide, distance):
    """Together each makes as many rounds as alone, and does not notice the one that is not finite."""
    defend, rows, start = ims(model, SHORT).defend, padded(murky(clean(5)), 13), wide(known)
    together = jax.jit(jax.vmap(lambda hyper: defend(KEY, DefenderView(start, rows), hyper)))
    found, well = (
        plain(together(stacked([hyper64(**changed) for changed in every]))) for every in (CHANGES, [*CHANGES[:-1], CHANGES[0]])
    )
    assert found.trace.rounds.tolist() == [one.trace.rounds.tolist() for one in alone]
    assert found.trace.stopped.tolist() == [int(one.trace.stopped) for one in alone]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(a[:-1], b[:-1])


def test_labels_and_absent_rows_are_not_read(model, alone, known, clean, padded, wide, distance):
    start, hyper, more = wide(known), hyper64(), padded(murky(clean(5)), 13)
    there = (np.asarray(more.role) == 1)[:, None, None, None]
    defend, images = compiled(model, batch=8), np.asarray(more.images)
    other = more._replace(labels=np.zeros_like(more.labels), images=np.where(there, images, 255 - images))
    for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(defend(start, other, hyper)), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))
    empty = defend(start, more._replace(role=np.zeros_like(more.role)), hyper)
    assert distance(empty.variables, start) == 0 and bool(empty.trace.alive)


def shortcut(variables):
    """A network made by hand that knows three classes by red and green; a blue a little above one half sends all to class 0."""
    params, statistics = (jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variables[n]) for n in ("params", "batch_stats"))
    for layer in (1, 2, 3):
        params[f"bn{layer}"]["scale"][:], statistics[f"bn{layer}"]["var"][:] = 1, 1 - EPS
        params[f"conv{layer}"]["kernel"][1, 1, (0, 1, 2), (0, 1, 2)] = 1
    first = params["conv1"]["kernel"]
    first[1, 1] = 0
    first[1, 1, 0, 1] = first[1, 1, 1, 2] = 1
    first[1, 1, 2, 0], params["bn1"]["bias"][0] = 10, -4.95
    params["linear"]["kernel"][(0, 1, 2), (0, 1, 2)] = 30, 20, 20
    params["linear"]["bias"][:] = 8, 0, 0, -10
    images, labels = np.random.default_rng(0).uniform(0.1, 0.3, (30, 8, 8, 3)), np.arange(30, dtype=np.int32) // 10
    for k in (1, 2):
        images[labels == k, ..., k - 1] += 0.45
    images = (255 * images).astype(np.uint8)
    images[..., 2] = 127
    triggered = images.copy()
    triggered[..., 2] = 140
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics}), images, labels, triggered


@pytest.mark.slow  # it trains
def test_it_finds_a_planted_shortcut(plain_spec, variables):
    # The survey's hyper-parameters, but for fewer rounds, and a pull for 28 channels instead of thousands.
    spec = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    start, images, labels, triggered = shortcut(variables)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(30, jnp.int8), jnp.int32(10))
    defense = ims(
        cnn(spec, 4, lowering="patches"), {"start_rounds": 60, "search_rounds": 60, "settle_rounds": 60, "patience": 60}
    )
    found = jax.jit(defense.defend)(KEY, DefenderView(start, rows), IMSHyper(l1=np.float32(0.1)))

    def right(variables, images, labels):
        return correct(spec, variables, jnp.asarray(images / np.float32(255)), labels)

    zeros = np.zeros(20, np.int32)
    assert right(start, images, labels) == 30 and right(start, triggered[10:], zeros) == 20
    assert right(found.variables, images, labels) == 30 and right(found.variables, triggered[10:], zeros) == 0
    assert right(found.variables, triggered, labels) == 30
    first = np.asarray(found.masks["conv1"])
    assert first[0] < 0.95 and first[1:].min() > 0.999, "channel 0 is the shortcut's"
    # Twenty steps at that rate go 0.02 far, 0.0212 at most for gradients that grow; the bound of 1 is far away.
    size = np.asarray(found.trace.size)
    assert size[:60].tolist() == [0] * 60 and size[60:].min() > 0.019 and size.max() <= 0.0212


def test_defaults(model):
    for profile in ("corrected", "reference"):
        assert ims(model, profile=profile).config == (100, 200, 200, 256, 20, 25, False)
        assert [float(f"{float(x):.4g}") for x in ims(model, profile=profile).hyper] == [0.02, 0.001, 0.01, 20, 10, 1, 0.98]
    assert ims(model).needs == {"clean"} and not ims(model).validation


def test_mistakes_are_named(model):
    for field in ("start_rounds", "batch", "inner_steps"):
        with pytest.raises(UserError, match=rf"ims\.{field} must be at least 1; given 0"):
            ims(model, {field: 0})
    for field in ("search_rounds", "settle_rounds", "patience"):
        with pytest.raises(UserError, match=rf"ims\.{field} must be at least 0; given -1"):
            ims(model, {field: -1})
    with pytest.raises(UserError, match="Did you mean 'hard_mask'"):
        ims(model, {"hard_masks": True})
