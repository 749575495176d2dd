import functools

import jax
import numpy as np
import pytest

from bdjax.defenses.bnp import BNPHyper, Moments, bnp, divergence
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.types import DefenderView
from tests.defenses.plain_eval import knowing, planted
from tests.defenses.plain_inserts import rows_of
from tests.defenses.plain_network import EPS, forward, pixels, plain, shuffled

KEY = jax.random.key(3)
NORMS = ("bn1", "bn2", "bn3")


@functools.partial(jax.jit, static_argnums=(2, 3))
def inputs(variables, images, spec, eps=EPS):
    """Mean and unbiased variance at the input of every norm, in eval mode."""
    return forward(variables["params"], images, spec, variables["batch_stats"], eps)[2]


@functools.cache
def compiled(model, profile, config=(("batch", 8),)):
    defense = bnp(model, dict(config), profile=profile)
    return jax.jit(lambda variables, rows, u: defense.defend(KEY, DefenderView(variables, rows), BNPHyper(u)))


def scores(statistics, measured, factor):
    """The score of every channel of every norm, in NumPy."""
    recorded = {}
    for norm in NORMS:
        (m1, v1), (m2, v2) = (tuple(np.asarray(s[norm][name]) for name in ("mean", "var")) for s in (measured, statistics))
        recorded[norm] = factor * np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / (2 * v2) - 0.5
    return recorded


def agree(found, expected, u):
    """The scores' limits, the largest ones and the masks."""
    limits = np.array([d.mean() + u * d.std(ddof=1) for d in expected.values()])
    np.testing.assert_allclose(np.asarray(found.trace.threshold), limits, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.asarray(found.trace.largest), [d.max() for d in expected.values()], rtol=1e-12, atol=1e-13)
    keep = [(d <= limit).astype(float) for d, limit in zip(expected.values(), limits, strict=True)]
    for norm, mask in zip(NORMS, keep, strict=True):
        np.testing.assert_array_equal(np.asarray(found.masks[norm]), mask)
    assert found.trace.pruned.tolist() == [int((k == 0).sum()) for k in keep]
    return found.trace.pruned.tolist()


@pytest.mark.parametrize(("profile", "factor"), [("corrected", 0.5), ("reference", 1.0)])
def test_the_scores_are_those_written_out_by_hand(model, variables, clean, padded, wide, plain_spec, profile, factor):
    """All rows with 1/2; or the last batch, of four rows, with 1. Absent rows, and empty batches after the last, say nothing."""
    rows, before = clean(5), wide(variables)
    last = shuffled(KEY, 20, 8)[-1]
    assert len(last) == 4
    images = pixels(rows) if profile == "corrected" else np.asarray(pixels(rows))[last]
    expected = scores(before["batch_stats"], inputs(before, images, plain_spec), factor)
    counts = set()
    for u in (0, 0.5, 1.2, 2.0):
        found = compiled(model, profile)(before, padded(rows, 23), np.float64(u))
        counts.add(tuple(agree(found, expected, u)))
    assert len(counts) > 2, "the limit must lie between the scores"


def test_the_score_is_the_divergence_of_two_normal_distributions(wide):
    generator = np.random.default_rng(0)
    x, m2, v2 = generator.normal(3, 2, (50, 4)), generator.normal(3, 1, 4), generator.uniform(1, 9, 4)
    away = x - m2
    moments = Moments(np.float64(50), away.sum(0), (away**2).sum(0), away.min(0), away.max(0))
    running, scored = {"mean": m2, "var": v2}, jax.jit(divergence)
    m1, s1, s2 = x.mean(0), x.std(0, ddof=1), np.sqrt(v2)
    expected = np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5
    np.testing.assert_allclose(np.asarray(scored(moments, running, 0.5)), expected, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(scored(moments, running, 1.0)), expected + np.log(s2 / s1), rtol=1e-12)


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network whose running statistics are those of the clean rows in train mode, or nearly."""
    return knowing(plain_spec, variables, clean(8))


def moved(variables, norm, channel, deviations):
    """One running mean shifted by so many standard deviations."""
    seen = plain(variables["batch_stats"][norm])
    mean = seen["mean"] + (np.arange(len(seen["mean"])) == channel) * np.float32(deviations) * np.sqrt(seen["var"])
    return {**variables, "batch_stats": {**variables["batch_stats"], norm: {**seen, "mean": mean}}}


@pytest.mark.parametrize(("norm", "u"), [("bn3", 3), ("bn2", 2)])  # among 8 channels none is 3 deviations above the mean
def test_a_shifted_channel_and_no_other_is_pruned(model, known, clean, norm, u):
    before, rows, run = moved(known, norm, 5, 10), clean(8), compiled(model, "corrected")
    found, before = plain(run(before, rows, np.float32(u)), before)
    assert np.flatnonzero(found.masks[norm] == 0).tolist() == [5]
    assert float(found.variables["params"][norm]["scale"][5]) == float(found.variables["params"][norm]["bias"][5]) == 0
    earlier = NORMS[: NORMS.index(norm)]  # later ones see what the shift does to them
    assert all(np.all(found.masks[other] == 1) for other in earlier)
    assert not np.any(run(known, rows, np.float32(3)).trace.pruned), "nothing else stands out"
    for name in ("conv1", "conv2", "conv3", "linear", *earlier):
        for a, b in zip(*(jax.tree.leaves(v["params"][name]) for v in (found.variables, before)), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    kept = found.masks[norm] == 1
    for leaf in ("scale", "bias"):
        np.testing.assert_array_equal(found.variables["params"][norm][leaf][kept], before["params"][norm][leaf][kept])
    for a, b in zip(*(jax.tree.leaves(v["batch_stats"]) for v in (found.variables, before)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("mean", [0.1, 0.3, 0.7, 1.1, 3.3])
def test_a_channel_without_variance_is_left_out_or_keeps_its_layer(model, known, clean, mean):
    """Its input is constant on clean images, far from the running mean: rounding must not make a variance of that."""
    before = moved(known, "bn3", 5, 10)
    kernel, seen = plain(before["params"]["conv3"]["kernel"], before["batch_stats"]["bn3"])
    kernel, seen = kernel.copy(), jax.tree.map(np.copy, seen)
    kernel[..., 9], seen["mean"][9], seen["var"][9] = 0, mean, 0.5
    params = {**before["params"], "conv3": {"kernel": kernel}}
    before = {"params": params, "batch_stats": {**before["batch_stats"], "bn3": seen}}
    found = plain(compiled(model, "corrected")(before, clean(8), np.float32(3)))
    assert np.flatnonzero(found.masks["bn3"] == 0).tolist() == [5] and np.isfinite(found.trace.threshold[2])
    published = plain(compiled(model, "reference")(before, clean(8), np.float32(3)))
    assert np.all(published.masks["bn3"] == 1) and np.isnan(published.trace.threshold[2])
    assert np.isfinite(published.trace.threshold[:2]).all(), "other layers are as they were"


def test_a_last_batch_of_one_value_prunes_nothing_in_that_layer(plain_spec, variables, clean):
    """4x4 images, so that the last norm sees one position; the last batch is one row."""
    model, rows = cnn(plain_spec._replace(image_shape=(4, 4, 3)), 4, lowering="unrolled"), clean(5)
    role = np.where(np.isin(np.arange(20), (3, 7, 11)), 0, rows.role).astype(np.int8)  # 17 are left
    rows = rows._replace(images=np.asarray(rows.images)[:, 2:6, 2:6], role=role)
    found = plain(compiled(model, "reference")(variables, rows, np.float32(0)))
    assert np.isnan(found.trace.threshold[2]) and np.isfinite(found.trace.threshold[:2]).all()
    assert found.trace.pruned[2] == 0 and found.trace.pruned[:2].all()


def test_without_rows_nothing_is_pruned(model, known, clean, distance):
    rows = clean(8)
    for profile in ("corrected", "reference"):
        found = compiled(model, profile)(known, rows._replace(role=np.zeros_like(rows.role)), np.float32(0))
        assert distance(found.variables, known) == 0 and not np.any(found.trace.pruned)


def test_validation_rows_are_not_measured(model, variables, clean):
    rows, run = clean(8), compiled(model, "corrected")
    third = np.arange(len(rows.role)) == 3
    other = rows._replace(role=np.where(third, np.int8(2), rows.role))
    limits = [run(variables, r, np.float32(1)).trace.threshold.tolist() for r in (rows, other)]
    changed = other._replace(images=np.where(third[:, None, None, None], np.uint8(255), rows.images))
    assert limits[0] != limits[1] == run(variables, changed, np.float32(1)).trace.threshold.tolist()


@pytest.mark.slow
def test_each_switch_does_what_it_says(plain_spec, tiny_spec, variables, clean, wide):
    rows, before = clean(5), wide(variables)

    def limits(spec, eps, **config):
        run = compiled(
            cnn(spec, 4, lowering="unrolled", norm_eps=eps), "corrected", tuple(sorted({"batch": 7, **config}.items()))
        )
        return np.asarray(run(before, rows, np.float64(1)).trace.threshold)

    def by_hand(images, factor=0.5, eps=EPS):
        recorded = scores(before["batch_stats"], inputs(before, images, plain_spec, eps), factor)
        return np.array([d.mean() + d.std(ddof=1) for d in recorded.values()])

    images, large = np.asarray(pixels(rows)), 1e-1
    np.testing.assert_allclose(limits(plain_spec, large), by_hand(images, eps=large), rtol=1e-12)
    last = images[shuffled(KEY, 20, 7)[-1]]
    found = limits(plain_spec, large, all_rows=False, log_factor=0.8, published_eps=True)
    np.testing.assert_allclose(found, by_hand(last, 0.8), rtol=1e-12)
    for other in (by_hand(last, 0.8, large), by_hand(images, 0.8), by_hand(last)):
        assert np.all(np.abs(found - other)[1:] > 1e-6)  # the first norm sees the same at any ε
    assert np.all(np.abs(limits(tiny_spec, EPS, augment=True) - by_hand(images)) > 1e-6)  # cropped at random


def test_profiles_and_defaults(model, plain_spec):
    assert bnp(model).config == (256, True, False, 0.5, True, False)
    assert bnp(model, profile="reference").config == (256, False, True, 1.0, False, True)
    assert float(bnp(model).hyper.u) == 3 and bnp(model).needs == {"clean"} and not bnp(model).validation
    assert float(bnp(cnn(plain_spec._replace(name="tiny_imagenet"), 4)).hyper.u) == 4


def test_mistakes_are_named(model):
    with pytest.raises(UserError, match=r"bnp\.batch must be at least 1; given 0"):
        bnp(model, {"batch": 0})
    with pytest.raises(UserError, match=r"bnp\.log_factor takes float; given 'half'"):
        bnp(model, {"log_factor": "half"})


def test_a_planted_backdoor_is_pruned(plain_spec):
    """The detector's channel stands out in every layer, where the running statistics come from poisoned images.

    u = 1, as among four channels none lies more than 1.5 standard deviations above the mean. The detector also sees a little of
    the colours: a channel that is silent on clean images has no variance there and is left out.
    """
    spec = plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3)
    model = cnn(spec, 4, lowering="unrolled")
    variables, images, labels = planted(jax.eval_shape(model.init, jax.random.key(0)))
    variables, rows = plain(variables), rows_of(images, labels)
    params = variables["params"]
    for layer in ("conv2", "conv3"):
        kernel = params[layer]["kernel"].copy()
        kernel[1, 1, 1:4, 0] = 0.01
        params[layer] = {"kernel": kernel}
    images = images / np.float32(255)
    patched = images.copy()
    patched[:, 5:, 5:] = 1
    # The statistics of a set with every tenth row poisoned, beside the same function of the images.
    statistics = plain(inputs(variables, np.concatenate([images, patched[::10]]), spec))
    for norm, seen in statistics.items():
        params[norm] = {"scale": np.sqrt(seen["var"] + np.float32(EPS)), "bias": params[norm]["bias"] + seen["mean"]}
    variables = {"params": params, "batch_stats": statistics}
    logits = jax.jit(lambda variables, x: model.apply(variables, x).logits)

    def calls(variables, images):
        return np.argmax(logits(variables, images), -1)

    assert np.array_equal(calls(variables, images), labels), "the network must know the clean rows"
    assert not np.any(calls(variables, patched)), "and the patch must work"
    found = compiled(model, "corrected")(variables, rows, np.float32(1))
    pruned = {norm: np.flatnonzero(np.asarray(keep) == 0).tolist() for norm, keep in found.masks.items()}
    assert pruned == {"bn1": [0], "bn2": [0], "bn3": [0]}
    assert np.array_equal(calls(found.variables, images), labels) and np.array_equal(calls(found.variables, patched), labels)
