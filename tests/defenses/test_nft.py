import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import bits_by_index
from bdjax.defenses.nft import NFTHyper, nft, partners
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView
from tests.defenses.plain_eval import knowing
from tests.defenses.plain_masks import NORMS, backdoored, correct, logits, murky, ones, plain, under
from tests.defenses.plain_network import batches, cross_entropies, follow, forward, pixels

KEY = jax.random.key(21)
EPS, MOMENTUM = 1e-3, 0.03  # of the network's norms; published networks have others
SHORT = {"epochs": 3, "batch": 8}
LIVELY = {"lr": 4.0, "last_lr": 1.0, "momentum": 0.7, "l1": 0.02, "alpha": 0.95, "beta": 0.15, "weight_decay": 0.02}


def hyper64(**changed):
    return NFTHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


def stacked(members):
    return jax.tree.map(lambda *x: np.stack(x), *members)


@functools.cache
def compiled(network, profile="corrected"):
    """``defend(variables, rows, hyper)``."""
    defend = nft(network, SHORT, profile=profile).defend
    return jax.jit(lambda variables, rows, hyper: defend(KEY, DefenderView(variables, rows), hyper))


@pytest.fixture(scope="module")
def network(plain_spec):
    return cnn(plain_spec, 4, norm_eps=EPS, norm_momentum=MOMENTUM, lowering="patches")


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


@functools.cache
def slope_of(spec):
    """Gradient of the mixed cross-entropy in the masks, and the statistics of the batch, in train mode."""

    def loss(masks, params, x, y, other, share, eps):
        z, _, measured = forward(under(params, masks), x, spec, eps=eps)
        one, two = (cross_entropies(z, labels).mean() for labels in (y, other))
        return share * one + (1 - share) * two, measured

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


bits, uniform = jax.jit(bits_by_index), jax.jit(lambda key: jax.random.uniform(key, (), jnp.float32))


def drawn(key, step, count):
    """The permutation and the weight of a batch of ``count`` rows."""
    _, pairing, sharing = jax.random.split(step_key(stream(key, Stream.NETWORK), step), 3)
    return np.argsort(np.asarray(bits(pairing, np.arange(count, dtype=np.int32)))), float(uniform(sharing))


def by_hand(spec, start, images, labels, key, hyper, per_class, eps, momentum, epochs=3, batch=8):
    """The masks, the statistics, and per epoch the mean loss, cross-entropy and mask."""
    h = {name: float(value) for name, value in hyper._asdict().items()}
    start, images, labels = plain(start, images, labels)
    masks, statistics, recorded, step = ones(start["params"]), start["batch_stats"], [], 0
    buffer = {norm: np.zeros_like(m) for norm, m in masks.items()}
    floors = {norm: h["alpha"] * np.exp(-h["beta"] * i) for i, norm in enumerate(NORMS, 1)}
    for e, epoch in enumerate(batches(key, len(labels), batch, epochs)):
        assert [len(rows) for rows in epoch] == [8, 8, 4]
        lr = h["last_lr"] + (h["lr"] - h["last_lr"]) * (1 + np.cos(np.pi * e / epochs)) / 2
        of_epoch = []
        for rows in epoch:
            order, share = drawn(key, step, len(rows))
            x, y = share * images[rows] + (1 - share) * images[rows[order]], labels[rows]
            (mixed, measured), slope = plain(*slope_of(spec)(masks, start["params"], x, y, y[order], share, eps))
            every = np.concatenate([masks[n] for n in NORMS])
            of_epoch.append([mixed + h["l1"] / per_class * np.abs(1 - every).sum(), mixed, every.mean()])
            for norm in NORMS:
                m = masks[norm]
                pull = np.where(m == 1, 0, -h["l1"] / per_class)  # the slope of |1 - m|, 0 at 1
                buffer[norm] = h["momentum"] * buffer[norm] + slope[norm] + pull + h["weight_decay"] * m
                masks[norm] = np.clip(m - lr * buffer[norm], floors[norm], 1)
            statistics = follow(statistics, measured, momentum)
            step += 1
        recorded.append(np.mean(of_epoch, 0))
    return masks, statistics, np.array(recorded).T


@pytest.mark.parametrize(
    ("profile", "inside", "momentum"),
    [("corrected", EPS, MOMENTUM), pytest.param("reference", 1e-5, 0.1, marks=pytest.mark.slow)],
    ids=["corrected", "reference"],
)
def test_masks_are_those_written_out(profile, inside, momentum, network, known, clean, padded, wide, distance, plain_spec):
    rows, start, hyper = murky(clean(5)), wide(known), hyper64()
    found, images = plain(compiled(network, profile)(start, padded(rows, 13), hyper)), np.asarray(pixels(rows))
    masks, statistics, recorded = by_hand(plain_spec, start, images, rows.labels, KEY, hyper, 5, inside, momentum)
    assert distance(found.masks, masks) < 1e-10 and distance(found.variables["batch_stats"], statistics) < 1e-10
    for i, norm in enumerate(NORMS, 1):
        floor = 0.95 * np.exp(-0.15 * i)
        assert np.all((np.asarray(found.masks[norm]) >= floor - 1e-12) & (np.asarray(found.masks[norm]) <= 1))
        assert np.any(masks[norm] == floor) and np.any(masks[norm] > floor), "masks must reach the end of their range"
    every = np.concatenate([masks[n] for n in NORMS])
    assert every.max() == 1 and len(np.unique(every.round(2))) > 8, "the case must have masks of all sizes"
    np.testing.assert_allclose([found.trace.loss, found.trace.mixed, found.trace.kept], recorded, rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1
    # Convolutions, linear layer and biases are what they were, to the bit; the folded network computes what the masked one does.
    for layer, leaves in start["params"].items():
        for name in leaves.keys() - {"scale"}:
            np.testing.assert_array_equal(np.asarray(found.variables["params"][layer][name]), np.asarray(leaves[name]))
    if inside == EPS:
        assert distance(found.variables["params"], under(start["params"], masks)) < 1e-10
    expected = logits(plain_spec, under(start["params"], masks), statistics, images, inside)
    assert distance(jax.jit(network.apply)(found.variables, images).logits, expected) < 1e-9


HALVES = [hyper64(**{leaf: LIVELY[leaf] / 2}) for leaf in NFTHyper._fields]


def flat(masks):
    return np.concatenate([masks[norm] for norm in NORMS], -1)


def test_every_hyper_parameter_counts_and_a_member_that_is_not_finite_is_frozen(network, known, clean, padded, wide, distance):
    rows, start = padded(murky(clean(5)), 13), wide(known)
    members = [hyper64(), *HALVES, hyper64(lr=0, last_lr=0), hyper64(l1=np.nan)]
    found = [plain(compiled(network)(start, rows, hyper)) for hyper in members]
    masks = [flat(one.masks) for one in found]
    assert all(np.abs(masks[i] - masks[0]).max() > 1e-4 for i in range(1, 1 + len(HALVES)))
    assert np.any((masks[0] > 0.7) & (masks[0] < 0.99))  # soft
    # A rate of 0 leaves the masks at 1, a loss that is not finite freezes all, statistics too.
    assert masks[-2].tolist() == masks[-1].tolist() == [1] * 28
    still, last = (one.variables for one in found[-2:])
    assert distance(last, start) == 0 == distance(still["params"], start["params"])
    assert distance(still["batch_stats"], start["batch_stats"]) > 0.01
    assert [bool(one.trace.alive) for one in found] == [True] * (len(members) - 1) + [False]
    assert [int(one.trace.stopped) for one in found] == [-1] * (len(members) - 1) + [0]


@pytest.mark.slow  # another program
def test_members_do_not_notice_one_that_is_not_finite(network, known, clean):
    view, defend = DefenderView(known, murky(clean(5))), nft(network, SHORT).defend
    together = jax.jit(jax.vmap(lambda hyper: defend(KEY, view, hyper)))
    members = [*HALVES, hyper64(l1=np.nan)]
    found, well = (plain(together(jax.tree.map(np.float32, stacked(m)))) for m in (members, [*HALVES, HALVES[0]]))
    assert found.trace.alive.tolist() == [True] * len(HALVES) + [False]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(well), strict=True):
        np.testing.assert_array_equal(a[:-1], b[:-1])


@pytest.mark.slow  # another program
def test_a_mask_of_one_is_not_pulled(network, known, clean):
    """However heavy, the pull changes nothing in the first step: masks start at 1, where |1 - m| has the slope 0."""
    defend = jax.jit(nft(network, {"epochs": 1, "batch": 20}).defend)  # one step
    view = DefenderView(known, murky(clean(5)))
    heavy, light = (plain(defend(KEY, view, jax.tree.map(np.float32, hyper64(l1=l1)))) for l1 in (50, 0))
    assert any(np.any(m < 1) for m in heavy.masks.values())
    for norm in NORMS:
        np.testing.assert_array_equal(heavy.masks[norm], light.masks[norm])
    np.testing.assert_array_equal(heavy.trace.loss, heavy.trace.mixed)  # nor does it weigh anything yet


def test_the_pull_is_shared_by_the_rows_of_a_class(network, known, clean, padded, wide, distance):
    rows, start = padded(murky(clean(5)), 13), wide(known)
    five, ten, one, none = (
        compiled(network)(start, rows._replace(spc=jnp.int32(spc)), hyper64(l1=l1))
        for spc, l1 in ((5, 0.02), (10, 0.04), (1, 0.004), (5, 0.0))
    )
    assert distance(five.masks, ten.masks) < 1e-12 and distance(five.masks, one.masks) < 1e-12
    assert distance(five.masks, none.masks) > 1e-3


def test_absent_rows_change_nothing(network, known, clean, padded, wide, distance):
    """Wherever they are and whatever is in them; without any, the masks written out are the same too."""
    rows, start, hyper = murky(clean(5)), wide(known), hyper64()
    more = padded(rows, 13)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((13, *a.shape[1:]), 3, a.dtype)]), rows._replace(spc=rows.role))
    behind = behind._replace(role=np.where(np.arange(33) < 20, behind.role, np.int8(0)), spc=rows.spc)
    one, among = (compiled(network)(start, r, hyper) for r in (behind, more))
    assert distance(among.masks, one.masks) < 1e-12 and distance(among.variables, one.variables) < 1e-12
    for a, b in zip(one.trace, among.trace, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)
    empty = compiled(network)(start, more._replace(role=np.zeros_like(more.role)), hyper)
    assert distance(empty.variables, start) == 0 and bool(empty.trace.alive)


paired = jax.jit(partners)


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_rows_that_count_pair_among_themselves(count):
    mask = (np.arange(8) < count).astype(np.float32)
    pairs = np.array([paired(jax.random.key(i), mask) for i in range(60)])
    assert np.all(np.sort(pairs, 1) == np.arange(8)) and np.all(np.sort(pairs[:, :count], 1) == np.arange(count))
    assert len({tuple(p[:count]) for p in pairs}) > min(count, 50) - 1
    # Neither more nor fewer absent rows change the pairs.
    fewer = np.array([paired(jax.random.key(i), mask[: max(count, 1)]) for i in range(5)])
    np.testing.assert_array_equal(fewer[:, :count], pairs[:5, :count])


@pytest.mark.slow  # another network
def test_a_planted_detector_is_held_down_as_far_as_the_bound_allows(plain_spec, variables):
    # With the survey's own hyper-parameters; but two batches per epoch.
    spec = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    start, images, labels, _ = backdoored(spec, variables)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(40, jnp.int8), jnp.int32(10))
    found = jax.jit(nft(cnn(spec, 4, lowering="patches"), {"batch": 32}).defend)(KEY, DefenderView(start, rows), NFTHyper())
    last = np.asarray(found.masks["bn3"])
    assert 0.8 * np.exp(-1.5) <= last[0] < 0.19, "channel 0 is the detector's"
    assert last[1:].min() > 0.9
    assert correct(spec, found.variables, jnp.asarray(images / np.float32(255)), labels) == 40


def test_defaults(network):
    assert nft(network).config == (100, 256, False)
    assert nft(network, profile="reference").config == (100, 256, True)
    assert [float(f"{float(x):.4g}") for x in nft(network).hyper] == [0.1, 0.02, 0.95, 0.001, 0.8, 0.5, 0]
    assert nft(network).needs == {"clean"} and not nft(network).validation


def test_mistakes_are_named(network):
    for field in ("epochs", "batch"):
        with pytest.raises(UserError, match=rf"nft\.{field} must be at least 1; given 0"):
            nft(network, {field: 0})
    with pytest.raises(UserError, match="Did you mean 'published_eps'"):
        nft(network, {"published_ep": True})
