import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.data.augment import to_float
from bdjax.defenses.fmp.fmp import PRESETS, FMPHyper, _executed, _kept, _registered_norms, fmp, rules_of
from bdjax.defenses.fmp.stimulation import measurer
from bdjax.defenses.tuning import Tuned
from bdjax.errors import UserError
from bdjax.keys import Stream, stream
from bdjax.models import MODELS
from bdjax.types import ArchSpec, CleanSet, DataSpec, DefenderView, Loop, Model, Output
from tests.defenses.plain_eval import knowing, planted
from tests.defenses.plain_maps import CONVS, stimulated_scores
from tests.defenses.plain_masks import murky
from tests.defenses.plain_network import batches, cross_entropies, descend, follow, forward, pixels, plain, shuffled
from tests.later import some_later
from tests.models.test_defended import clean as clean_rows
from tests.models.test_defended import network as published
from tests.networks import INVERTED, PUBLISHED, SLOWEST, drawn, reduced, shapes, spec

KEY = jax.random.key(13)
SCORING, TUNING = jax.random.split(KEY)
SHORT = {"epochs": 2, "batch": 8, "images": 12, "prune_one_in": 4}
LIVELY = {"lr": 0.05, "last_lr": 0.02, "momentum": 0.8, "weight_decay": 0.01, "epsilon": 0.18}
GONE = {"conv1": 1, "conv2": 2, "conv3": 4}  # of 4, 8 and 16 channels


def hyper(dtype=np.float64, **changed):
    return FMPHyper(**{name: dtype(value) for name, value in {**LIVELY, **changed}.items()})


def compiled(model, profile="corrected", **config):
    return _compiled(model, profile, **config)


@functools.cache
def _compiled(model, profile, **config):
    defense = fmp(model, {**SHORT, **config}, profile=profile)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


def scored_rows(rows, images):
    """The rows that are scored and the signs of the random start: the method's draws."""
    drawn = stream(SCORING, Stream.DEFENSE)
    signs = jax.jit(lambda key, i: jax.random.rademacher(jax.random.fold_in(key, i), (8, 8, 3), jnp.float64))
    return shuffled(SCORING, len(rows.labels), images)[0], np.stack(
        [np.asarray(signs(drawn, np.int32(i))) for i in range(images)]
    )


def tuned(variables, images, labels, plan, spec, lrs, keep):
    """Pruned channels stay at 0."""

    def loss(params, x, y):
        logits, _, measured = forward(params, x, spec)
        return cross_entropies(logits, y).mean(), measured

    slope_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    variables, images, labels = plain(variables, images, labels)
    params, running = cut(variables["params"], keep), variables["batch_stats"]
    buffer, losses = jax.tree.map(np.zeros_like, params), []
    for lr, epoch in zip(lrs, plan, strict=True):
        seen = []
        for rows in epoch:
            (value, measured), slope = plain(slope_of(params, images[rows], labels[rows]))
            params, buffer = descend(params, buffer, slope, lr, LIVELY["momentum"], LIVELY["weight_decay"])
            params, running = cut(params, keep), follow(running, measured)
            seen.append(float(value))
        losses.append(np.mean(seen))
    return {"params": params, "batch_stats": running}, losses


def cut(params, keep):
    """Without the kernels of channels, and without scale and bias of their norm."""
    changed = dict(params)
    for conv, k in keep.items():
        norm = conv.replace("conv", "bn")
        changed[conv] = {"kernel": params[conv]["kernel"] * k[None, None, None]}
        changed[norm] = {name: params[norm][name] * k for name in ("scale", "bias")}
    return changed


def ranked(correct, entropy):
    """Keep factors: of every four channels the one goes that is least accurate, among equals that of the larger loss."""
    keep, at = {}, 0
    for conv, gone in GONE.items():
        d = 4 * gone
        order = sorted(range(d), key=lambda c, at=at: (correct[at + c], 0 if entropy is None else -entropy[at + c], c))
        keep[conv] = np.array([float(c not in order[:gone]) for c in range(d)])
        at += d
    return keep


@pytest.fixture
def start(known, wide):
    return wide(known)


@pytest.fixture
def among(clean, padded):
    """20 rows among garbage."""
    return padded(murky(clean(5)), 25)


@pytest.mark.parametrize("profile", some_later(["corrected", "reference"], ["reference"]))
def test_scores_pruning_and_tuning_are_those_written_out(profile, model, start, clean, among, distance, plain_spec):
    # 20 rows among garbage, of which 12 are scored; or all of them, and garbage fills the batch of 32.
    rows, variables, count = murky(clean(5)), start, {"corrected": 12, "reference": 20}[profile]
    found = compiled(model, profile, **({} if count == 12 else {"images": 32}))(variables, among, hyper())
    chosen, signs = scored_rows(rows, count)
    mean, std = (np.array(v) for v in (plain_spec.mean, plain_spec.std))
    normalised = profile == "reference"
    low, high, unit = (mean, mean + std, std) if normalised else (np.zeros(3), np.ones(3), np.ones(3))
    images, labels = plain(pixels(rows), rows.labels)
    correct, entropy = stimulated_scores(
        variables, images[chosen], labels[chosen], signs, plain_spec,
        epsilon=LIVELY["epsilon"] * unit, low=low, high=high, train=normalised,
    )  # fmt: skip
    assert found.trace.correct.tolist() == correct and len(set(correct)) > 2
    np.testing.assert_allclose(found.trace.entropy, entropy, rtol=1e-10)
    assert int(found.trace.scored) == count and len(set(np.round(entropy, 8))) > 20

    keep = ranked(correct, None if normalised else entropy)
    assert {conv: np.asarray(k).tolist() for conv, k in found.masks.items()} == {c: k.tolist() for c, k in keep.items()}
    assert found.trace.pruned.tolist() == [1, 2, 4]
    other = ranked(correct, entropy if normalised else None)
    assert any(not np.array_equal(keep[conv], other[conv]) for conv in CONVS), "the case must have ties that matter"

    # In this network a channel without kernel, scale and bias gets no gradient: frozen or not is the same.
    lrs = [0.02 + 0.03 * (1 + np.cos(np.pi * e / 2)) / 2 for e in range(2)]
    expected, losses = tuned(variables, images, labels, batches(TUNING, 20, 8, 2), plain_spec, lrs, keep)
    assert distance(found.variables, expected) < 1e-10
    np.testing.assert_allclose(found.trace.loss, losses, rtol=1e-6)
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1


def test_without_a_row_nothing_is_pruned(model, start, among, distance):
    found = compiled(model)(start, among._replace(role=np.zeros_like(among.role)), hyper())
    assert distance(found.variables, start) == 0 and found.trace.pruned.tolist() == [0, 0, 0]
    assert int(found.trace.scored) == 0 and bool(found.trace.alive)


def test_scores_that_are_not_finite_prune_nothing_and_mark_the_member(model, start, among):
    broken = tree.replace(start["params"], {"linear/bias": np.full(4, np.nan)})
    found = compiled(model)({**start, "params": broken}, among, hyper())
    assert found.trace.pruned.tolist() == [0, 0, 0] and not bool(found.trace.alive)


def test_a_divergence_while_tuning_is_marked(model, start, among):
    found = compiled(model)(start, among, hyper(lr=1e300, last_lr=1e300))
    assert not bool(found.trace.alive) and int(found.trace.stopped) >= 0 and found.trace.pruned.tolist() == [1, 2, 4]
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))


def test_every_number_matters(model, start, among, distance):
    run = compiled(model)
    usual = run(start, among, hyper())
    for leaf, value in LIVELY.items():
        moved = run(start, among, hyper(**{leaf: value / 2}))
        assert distance(moved.variables, usual.variables) > 1e-6, leaf
        assert (distance(moved.trace.entropy, usual.trace.entropy) > 0) == (leaf == "epsilon"), leaf


def test_pruned_channels_say_nothing_after_their_norm(model, start, among, clean):
    found = compiled(model)(start, among, hyper())
    acts = tuple(f"bn{i}/act" for i in (1, 2, 3))
    taps = jax.jit(lambda variables, x: model.apply(variables, x, record=acts).taps)(found.variables, pixels(clean(5)))
    for conv, keep in found.masks.items():
        quiet = np.abs(np.asarray(taps[conv.replace("conv", "bn") + "/act"])).max((0, 1, 2)) == 0
        assert np.all(quiet[np.asarray(keep) == 0]) and not np.all(quiet)
        assert not np.any(np.asarray(found.variables["params"][conv]["kernel"])[..., np.asarray(keep) == 0])


# What a hook on a convolution finds in published networks


def one_pixel():
    """A network of two convolutions of a channel each, on one pixel: b, and r, over which g - 2 r is written in place."""
    facts = DataSpec("pixel", (1, 1, 3), 3, (0.0,) * 3, (1.0,) * 3, False, 0)
    registered = (("conv", "first"), ("conv", "last"))
    arch = ArchSpec(registered, (), (), (), (), "", in_place=(("last", "block"),))

    def apply(variables, images, *, record=(), **options):
        r, g, b = (images[..., k : k + 1] for k in range(3))
        maps = {"first": b, "last": r, "block": g - 2 * r}
        return Output(8 * images.mean((1, 2)), variables, {address: maps[address] for address in record})

    network = Model(lambda key: None, apply, lambda **fields: network, facts, arch, "pixel", 1, Loop())
    kernel = {"kernel": np.zeros((1, 1, 3, 1), np.float32)}
    return network, {"params": {"first": kernel, "last": kernel}}


@pytest.mark.parametrize("profile", ["corrected", "reference"])
def test_published_code_stimulates_the_sum_that_is_written_over_a_last_convolution(profile):
    """By hand: a map's difference d = z(x0) - z(x) pulls pixels along sign(d ∂z/∂x), for x0 = x + epsilon s.

    Of b that is (0, 0, s_b); of r (s_r, 0, 0). Of g - 2 r, whose difference epsilon (s_g - 2 s_r) has the sign of -s_r, it is
    (s_r, -s_r, 0).
    """
    network, variables = one_pixel()
    fields = {"score_bn": "eval", "clip_space": "pixel", "augment_scored": False, "images": 1}
    measure = measurer(network, ("first", "last"), rules_of(PRESETS[profile]._replace(**fields)))
    x, label, epsilon = np.array([128, 153, 51]), 1, 0.04
    rows = CleanSet(np.uint8(x).reshape(1, 1, 1, 3), np.int32([label]), np.ones(1, np.int8), np.int32(1))
    signs_seen = set()
    for seed in range(4):
        key = jax.random.key(seed)
        s = np.asarray(jax.random.rademacher(jax.random.fold_in(stream(key, Stream.DEFENSE), 0), (1, 1, 3), jnp.float32)).ravel()
        last = (s[0], 0, 0) if profile == "corrected" else (s[0], -s[0], 0)
        stimulated = [x / 255 + epsilon * s + epsilon * np.array(step) for step in ((0, 0, s[2]), last)]
        correct, entropy, scored = jax.jit(measure)(key, variables, rows, np.float32(epsilon))
        want = [np.log(np.exp(8 * z).sum()) - 8 * z[label] for z in stimulated]
        np.testing.assert_allclose(np.asarray(entropy), want, rtol=1e-5)
        assert np.asarray(correct).tolist() == [int(z.argmax() == label) for z in stimulated] and int(scored) == 1
        signs_seen.add(float(s[0]))
    assert len(signs_seen) == 2


@pytest.mark.slow  # two more programs
def test_sums_that_are_written_over_convolutions_change_the_scores_of_these_alone(wide):
    """On a PreActResNet in 64 bits, against gradients of the sum written out as last convolution plus shortcut."""
    model = reduced("preactresnet18", size=16)
    variables = wide(drawn(model))
    convs = tuple(address for kind, address in model.arch.registered if kind == "conv")
    generator = np.random.default_rng(0)
    rows = CleanSet(
        generator.integers(0, 256, (6, 16, 16, 3), np.uint8), np.arange(6, dtype=np.int32) % 5, np.ones(6, np.int8), 2
    )
    fields = {"score_bn": "eval", "clip_space": "pixel", "augment_scored": False, "images": 6}
    found = {}
    for in_place in (False, True):
        measure = measurer(model, convs, rules_of(PRESETS["reference"]._replace(**fields, in_place=in_place)))
        found[in_place] = np.asarray(jax.jit(measure)(SCORING, variables, rows, np.float64(0.02))[1])
    sizes = [tree.get(variables["params"], conv)["kernel"].shape[-1] for conv in convs]
    start = dict(zip(convs, np.cumsum([0, *sizes[:-1]]), strict=True))
    last = dict(model.arch.in_place)
    for conv, d in zip(convs, sizes, strict=True):
        before, after = (found[in_place][start[conv] : start[conv] + d] for in_place in (False, True))
        assert np.array_equal(before, after) == (conv not in last), conv

    order = shuffled(SCORING, 6, 6)[0]
    drawn_signs = jax.jit(lambda i: jax.random.rademacher(jax.random.fold_in(stream(SCORING, Stream.DEFENSE), i), (16, 16, 3)))
    signs = np.stack([np.asarray(drawn_signs(np.int32(i))) for i in range(6)])
    images, labels = rows.images[order] / 255.0, rows.labels[order]
    started = np.clip(images + 0.02 * signs, 0, 1)
    for conv, shortcut in (("layer1_0/conv2", "conv1"), ("layer3_0/conv2", "layer3_0/shortcut_0")):

        @jax.jit
        def judged(x0, x, channel, conv=conv, shortcut=shortcut):
            def total(x):
                taps = model.apply(variables, x, record=(conv, shortcut)).taps
                return (taps[conv] + taps[shortcut])[..., channel]

            slope = jax.grad(lambda x0: ((total(x0) - total(x)) ** 2).mean())(x0)
            logits = model.apply(variables, jnp.clip(x0 + 0.02 * jnp.sign(slope), 0, 1)).logits
            return cross_entropies(logits, labels).mean()

        for channel in range(3):
            want = float(judged(started, images, np.int32(channel)))
            assert found[True][start[conv] + channel] == pytest.approx(want, rel=1e-9)


@pytest.mark.slow  # compiling
def test_it_finds_a_planted_detector(plain_spec, variables):
    # With steps as large as a trigger is bright the detector's map sends every image to its class; colours harm one class each.
    network = MODELS["cnn"](plain_spec._replace(mean=(0.0,) * 3, std=(1.0,) * 3), 4, lowering="patches")
    start, images, labels = planted(variables)
    rows = CleanSet(jnp.asarray(images), jnp.asarray(labels), jnp.ones(40, jnp.int8), jnp.int32(10))
    found = compiled(network, images=40)(start, rows, hyper(np.float32, epsilon=0.5, lr=0, last_lr=0, weight_decay=0))
    assert found.masks["conv1"].tolist() == [0, 1, 1, 1]
    # Without it alone the trigger is nothing.
    triggered = images.copy()[10:]
    triggered[:, 3:6, 3:6] = 255
    pruned = {**start, "params": cut(plain(start["params"]), {"conv1": np.asarray(found.masks["conv1"])})}
    logits = jax.jit(lambda v, x: network.apply(v, to_float(x)).logits)
    before, after = (np.argmax(logits(v, triggered), -1) for v in (start, pruned))
    assert np.all(before == 0) and np.all(after == labels[10:])


# What is judged by which scores, and what goes with a convolution


def faked(monkeypatch, model, profile, scores, **config):
    """(what is returned, the convolutions that were measured, what the tuning was built with); ``scores(sizes)`` is measured."""
    module, seen = sys.modules["bdjax.defenses.fmp.fmp"], {}

    def measurer_of(network, convs, rules):
        seen["convs"] = convs
        return lambda key, variables, clean, epsilon: (*map(jnp.asarray, scores(variables, convs)), jnp.int32(7))

    def tuner(network, **built):
        seen.update(built)
        none = jnp.zeros(config.get("epochs", 10), jnp.float32)
        return lambda key, variables, *rest: Tuned(variables, none, (), jnp.bool_(True), jnp.int32(-1), jnp.int32(0))

    monkeypatch.setattr(module, "measurer", measurer_of)
    monkeypatch.setattr(module, "tuner", tuner)
    defense = fmp(model, config, profile=profile)
    rows = CleanSet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32), np.ones(1, np.int8), np.int32(1))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes(model))
    return variables, jax.jit(defense.defend)(KEY, DefenderView(variables, rows), defense.hyper), seen


def rising(variables, convs):
    """Every convolution's first channels are the least accurate."""
    sizes = [tree.get(variables["params"], conv)["kernel"].shape[-1] for conv in convs]
    return np.concatenate([np.arange(d, dtype=np.int32) for d in sizes]), np.zeros(sum(sizes), np.float32)


# Filters pruned; convolutions of fewer than 64 channels; convolutions whose norm goes too, in either profile.
FULL = {
    "preactresnet18": (75, 0, 8, 9),
    "vgg19_bn": (86, 0, 16, 16),
    "efficientnet_b3": (940, 38, 78, 78),
    "mobilenet_v3_large": (242, 11, 46, 46),
}


@pytest.mark.parametrize("name", FULL)
def test_filters_and_norms_of_the_networks_of_the_survey(name):
    model = MODELS[name](spec())
    pruned, small, registered, fed = FULL[name]
    params = shapes(model)["params"]
    sizes = [tree.get(params, address)["kernel"].shape[-1] for kind, address in model.arch.registered if kind == "conv"]
    scores = np.random.default_rng(0).integers(0, 32, sum(sizes)).astype(np.int32)
    keep = np.asarray(jax.jit(lambda s, e: _kept(s, e, sizes, fmp(model).config))(scores, np.zeros(len(scores), np.float32)))
    assert np.sum(~keep) == pruned and sum(d < 64 for d in sizes) == small
    assert len(_registered_norms(model)) == registered and len(model.arch.feeds) == fed
    for part, score in zip(np.split(keep, np.cumsum(sizes)[:-1]), np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
        order = sorted(range(len(score)), key=lambda c, score=score: (score[c], c))
        assert sorted(np.flatnonzero(~part)) == sorted(order[: len(part) // 64])


def test_published_code_reads_scores_of_projections_in_the_wrong_place(monkeypatch):
    model = reduced("preactresnet18", depth=None)
    convs = tuple(address for kind, address in model.arch.registered if kind == "conv")
    executed = _executed(convs)
    assert sorted(executed) == sorted(convs) and executed[:5] == convs[:5]

    blocks = [conv.rpartition("/")[0] for conv in executed if conv.endswith("shortcut_0")]
    assert blocks == ["layer2_0", "layer3_0", "layer4_0"]
    for block in blocks:
        i = executed.index(f"{block}/shortcut_0")
        assert executed[i : i + 3] == (f"{block}/shortcut_0", f"{block}/conv1", f"{block}/conv2")
        assert convs[i : i + 3] == (f"{block}/conv1", f"{block}/conv2", f"{block}/shortcut_0")
    for name in PUBLISHED[1:]:
        other = tuple(address for kind, address in reduced(name).arch.registered if kind == "conv")
        assert _executed(other) == other

    # In each measured convolution another channel is the least accurate one: the number of its place among those measured.
    def marked(variables, measured):
        sizes = [tree.get(variables["params"], conv)["kernel"].shape[-1] for conv in measured]
        scores = [np.where(np.arange(d) == i % d, 0, 1).astype(np.int32) for i, d in enumerate(sizes)]
        return np.concatenate(scores), np.zeros(sum(sizes), np.float32)

    for profile in ("corrected", "reference"):
        _, found, seen = faked(monkeypatch, model, profile, marked, prune_one_in=1000)
        assert seen["convs"] == (convs if profile == "corrected" else executed)
        assert not any(np.any(np.asarray(keep) == 0) for keep in found.masks.values())
        _, found, _ = faked(monkeypatch, model, profile, marked, prune_one_in=4)
        for i, conv in enumerate(convs):
            keep = found.masks[conv]
            assert float(keep[i % len(keep)]) == 0


def test_published_code_keeps_norms_beyond_a_block_and_lets_channels_grow_back(monkeypatch):
    model = reduced("preactresnet18", depth=None)
    for profile in ("corrected", "reference"):
        _, found, seen = faked(monkeypatch, model, profile, rising, prune_one_in=4)
        params, keep = found.variables["params"], np.asarray(found.masks["conv1"])
        assert keep.tolist() == [0, 1, 1, 1]  # the stem's, which feeds a norm of the first block
        expected = keep if profile == "corrected" else np.ones(4)
        np.testing.assert_array_equal(params["layer1_0"]["bn1"]["scale"], expected)
        np.testing.assert_array_equal(params["layer2_0"]["bn2"]["bias"], np.asarray(found.masks["layer2_0/conv1"]))
        np.testing.assert_array_equal(params["layer2_0"]["bn1"]["scale"], np.ones(4))  # of a residual sum
        if profile == "corrected":
            grown = jax.tree.map(lambda x: np.asarray(x) + 1, params)
            again = jax.jit(seen["project"])(grown, found.masks)
            np.testing.assert_array_equal(again["conv1"]["kernel"][0, 0, 0], 2 * keep)
            np.testing.assert_array_equal(again["layer1_0"]["bn1"]["bias"], 2 * keep)
            np.testing.assert_array_equal(again["layer2_0"]["bn1"]["bias"], np.full(4, 2))
        else:
            assert seen["project"] is None


def test_of_equally_accurate_channels_the_one_with_the_larger_loss_goes_or_the_first(monkeypatch, model):
    def level(variables, convs):
        right = np.int32([3, 2, 2, 2] + [5] * 8 + [1] * 16)
        return right, np.float32([9, 1, 4, 4] + [0, 2, 1, 2, 3, 3, 0, 0] + [1] * 16)

    for rule, gone in (("cross_entropy", [[2], [4, 5], [0, 1, 2, 3]]), ("index", [[1], [0, 1], [0, 1, 2, 3]])):
        _, found, _ = faked(monkeypatch, model, "corrected", level, prune_one_in=4, tie_break=rule)
        assert [np.flatnonzero(np.asarray(keep) == 0).tolist() for keep in found.masks.values()] == gone


def test_defaults(model):
    assert fmp(model).config == (10, 256, 10, 32, 64, "eval", "pixel", False, "cross_entropy", False, False, True, False)
    found = fmp(model, profile="reference").config
    assert found == (10, 256, 10, 32, 64, "train", "normalised", True, "index", True, True, False, True)
    assert fmp(model, {"epochs": 4}).config.period == 4
    defense = fmp(model)
    assert [round(float(x), 7) for x in defense.hyper] == [0.01, 1e-4, 0.9, 0, round(1 / 255, 7)]
    assert defense.needs == {"clean"} and not defense.validation


def test_mistakes_are_named(model):
    for field in ("epochs", "batch", "period", "images", "prune_one_in"):
        with pytest.raises(UserError, match=rf"fmp\.{field} must be at least 1; given 0"):
            fmp(model, {field: 0})
    for field, near in (("score_bn", "train"), ("clip_space", "pixel"), ("tie_break", "index")):
        with pytest.raises(UserError, match=rf"unknown fmp\.{field} '{near}s'.*'{near}'"):
            fmp(model, {field: f"{near}s"})


@pytest.mark.slow  # every step is compiled on its own
def test_a_dispatched_loop_is_the_same_loop(model, start, among, distance):
    there = compiled(model)(start, among, hyper())
    defense = fmp(model.rebuild(loop=Loop("dispatch")), SHORT)
    found = defense.defend(KEY, DefenderView(start, among), hyper())
    assert distance(found.variables, there.variables) < 1e-10 and distance(found.masks, there.masks) == 0
    assert distance(found.trace, there.trace) < 1e-6


@pytest.mark.slow  # compiling: half a minute each; on the one that compiles longest, tests/models/test_defended.py traces it
@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, "corrected") for name in PUBLISHED if name not in SLOWEST),
        *((name, "reference") for name in PUBLISHED if name not in INVERTED),
    ],
)
def test_it_runs_on_every_network(name, profile):
    """Depthwise convolutions, squeeze-and-excitation, projections; the pruned channels stay silent where they are frozen."""
    model = published(name)
    before, rows = drawn(model), clean_rows()
    defense = fmp(model, {"epochs": 2, "batch": 15, "prune_one_in": 4}, profile=profile)
    hyper = jax.tree.map(jnp.asarray, defense.hyper)
    found = jax.jit(defense.defend)(KEY, DefenderView(before, rows), hyper)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    assert bool(found.trace.alive) and int(found.trace.scored) == 10
    norms = {conv: norm for norm, conv in model.arch.feeds}
    grown = 0
    for conv, keep in found.masks.items():
        gone, after = np.asarray(keep) == 0, tree.get(found.variables["params"], conv)
        assert gone.sum() == len(keep) // 4
        assert np.any(np.asarray(after["kernel"]) != np.asarray(tree.get(before["params"], conv)["kernel"]))
        grown += np.count_nonzero(np.abs(np.asarray(after["kernel"])).sum((0, 1, 2))[gone])
        if profile == "corrected":
            zero = [after["kernel"], *(after[leaf] for leaf in after.keys() & {"bias"})]
            zero += [tree.get(found.variables["params"], norms[conv])[leaf] for leaf in ("scale", "bias") if conv in norms]
            assert not any(np.any(np.asarray(x)[..., gone]) for x in zero)
    # Behind ReLU what has no kernel, scale and bias stays silent; all other kinds come back.
    assert (grown > 0) == (profile == "reference" and name != "vgg19_bn")
