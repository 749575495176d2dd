import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.defenses.fst import FSTHyper, fst, redrawn
from bdjax.defenses.ft import ft
from bdjax.defenses.tuning import Hyper
from bdjax.errors import UserError
from bdjax.types import DefenderView, Output
from tests.defenses.plain_network import batches, cross_entropies, dense, dense_logits, descend, follow, forward, pixels, plain
from tests.networks import reduced, shapes

KEY = jax.random.key(5)
DRAWING, TUNING = jax.random.split(KEY)


@functools.cache
def compiled(model, **config):
    defense = fst(model, {"epochs": 3, "batch": 8, **config})
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


def hyper(dtype=np.float32, **fields):
    given = {"lr": 0.01, "alpha": 0.2, "momentum": 0.9, "weight_decay": 0.0, **fields}
    return FSTHyper(**{name: dtype(value) for name, value in given.items()})


drawn_anew = jax.jit(redrawn, static_argnums=(2, 3, 4))


def fresh(key, params, heads):
    """New layers at ``heads``, the same draws as the method's."""
    return plain(drawn_anew(key, params, heads, 1.0, heads[0]))


@functools.cache
def slope_of(spec):
    """Gradient of the loss with its penalty, which is linear in the last layer's kernel."""

    def loss(params, x, y, old, alpha):
        logits, _, measured = forward(params, x, spec)
        return cross_entropies(logits, y).mean() + alpha * jnp.sum(old * params["linear"]["kernel"]), measured

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def written_out(variables, images, labels, plan, spec, lr, alpha, momentum, decay=0.0):
    """The method's section of the specification in plain loops, for one linear layer."""

    variables, images, labels = plain(variables, images, labels)
    old = variables["params"]["linear"]["kernel"]
    params, running = fresh(DRAWING, variables["params"], ("linear",)), variables["batch_stats"]
    buffer, losses = jax.tree.map(np.zeros_like, params), []
    for e, epoch in enumerate(plan):
        of_epoch = []
        for rows in epoch:
            overlap = float(np.sum(old * params["linear"]["kernel"]))
            (value, measured), slope = plain(slope_of(spec)(params, images[rows], labels[rows], old, alpha))
            rate = lr * (1 + np.cos(np.pi * e / len(plan))) / 2
            params, buffer = descend(params, buffer, slope, rate, momentum, decay)
            kernel = params["linear"]["kernel"]
            kernel = kernel * np.sqrt(np.sum(np.square(old))) / np.sqrt(np.sum(np.square(kernel)))
            params = {**params, "linear": {**params["linear"], "kernel": kernel}}
            running = follow(running, measured)
            of_epoch.append((float(value) - alpha * overlap, overlap))
        losses.append(np.mean(of_epoch, 0))
    return {"params": params, "batch_stats": running}, np.array(losses)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_update_is_the_one_written_out(model, variables, clean, padded, wide, distance, plain_spec, decay):
    rows = clean(5)  # batches of 8, 8 and 4 among rows of garbage
    given = hyper(np.float64, lr=0.05, alpha=0.3, momentum=0.8, weight_decay=decay)
    found = compiled(model)(wide(variables), padded(rows, 20), given)
    expected, losses = written_out(
        wide(variables), pixels(rows), rows.labels, batches(TUNING, 20, 8, 3), plain_spec, 0.05, 0.3, 0.8, decay
    )
    assert distance(found.variables, expected) < 1e-10
    assert distance(expected["params"]["conv2"], variables["params"]["conv2"]) > 1e-3  # the features moved
    np.testing.assert_allclose(np.stack([found.trace.loss, found.trace.overlap], 1), losses, rtol=1e-5, atol=1e-6)
    assert losses[-1, 1] < losses[0, 1], "the new weights are driven away from the old ones"
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1 and found.masks is None


@pytest.mark.slow  # compiling two methods
def test_without_penalty_redrawing_and_rescaling_it_is_fine_tuning_without_decay(
    model, variables, clean, wide, distance, monkeypatch
):
    module = sys.modules["bdjax.defenses.fst"]
    monkeypatch.setattr(module, "redrawn", lambda key, params, *rest: params)
    monkeypatch.setattr(module, "rescaled", lambda params, old: params)
    rows, start, short = clean(5), wide(variables), {"epochs": 3, "batch": 8}
    found = jax.jit(fst(model, short).defend)(KEY, DefenderView(start, rows), hyper(np.float64, alpha=0))
    same = Hyper(np.float64(0.01), np.float64(0.9), np.float64(0))
    expected = jax.jit(ft(model, short).defend)(TUNING, DefenderView(start, rows), same)
    assert distance(found.variables, expected.variables) < 1e-12
    assert distance(found.variables, start) > 1e-3


def test_after_every_step_each_layer_has_its_old_norm_and_before_the_first_it_is_as_drawn(plain_spec, clean):
    network, seen = dense(plain_spec), []

    def watched(variables, images, **rest):
        kernels = [variables["params"][name]["kernel"] for name in ("first", "last")]
        jax.debug.callback(lambda *x: seen.append([np.array(y) for y in x]), *kernels, ordered=True)
        return Output(network.apply(variables, images).logits, variables, {})

    start, rows = network.init(jax.random.key(0)), clean(5)
    old = [np.asarray(start["params"][name]["kernel"]) for name in ("first", "last")]
    run = fst(network._replace(apply=watched), {"epochs": 2, "batch": 8})
    found = jax.jit(run.defend)(KEY, DefenderView(start, rows), hyper(lr=0.3))
    jax.effects_barrier()
    drawn, *steps = seen
    assert len(steps) == 5
    new = fresh(DRAWING, start["params"], ("first", "last"))
    for i, name in enumerate(("first", "last")):
        np.testing.assert_allclose(drawn[i], new[name]["kernel"], rtol=1e-6)
        assert abs(np.linalg.norm(drawn[i]) / np.linalg.norm(old[i]) - 1) > 0.05
        last = np.asarray(found.variables["params"][name]["kernel"])
        for kernel in (*(s[i] for s in steps), last):
            assert np.linalg.norm(kernel) == pytest.approx(np.linalg.norm(old[i]), rel=1e-5)
            assert np.sum(kernel * old[i]) < 0.99 * np.linalg.norm(old[i]) ** 2  # of that norm, but not the old weights
    overlap = np.sum([np.sum(o * d) for o, d in zip(old, drawn, strict=True)])
    overlaps = [overlap, *(np.sum([np.sum(o * d) for o, d in zip(old, s, strict=True)]) for s in steps)]
    np.testing.assert_allclose(found.trace.overlap, np.mean(np.reshape(overlaps, (2, 3)), 1), rtol=1e-4)
    # Biases are drawn too, and are free.
    bias = np.asarray(found.variables["params"]["last"]["bias"])
    assert abs(np.linalg.norm(bias) / np.linalg.norm(start["params"]["last"]["bias"]) - 1) > 0.01


def test_new_layers_are_uniform_within_one_over_the_root_of_the_fan_in():
    params = {
        "a": {"kernel": np.zeros((400, 50), np.float32), "bias": np.zeros(3000, np.float32)},
        "b": {"kernel": np.zeros((9, 900), np.float32), "bias": np.ones(2, np.float32)},
    }
    params["other"] = {"kernel": np.ones(3, np.float32)}
    found = plain(drawn_anew(jax.random.key(0), params, ("a", "b"), 1.0, "a"))
    assert found["other"]["kernel"].tolist() == [1, 1, 1]
    for name, fan_in in (("a", 400), ("b", 9)):
        bound = 1 / np.sqrt(fan_in)
        for leaf in ("kernel", "bias"):
            x = np.asarray(found[name][leaf]).ravel()
            assert np.abs(x).max() <= bound and len(np.unique(x)) > 0.9 * len(x)
            if len(x) > 1000:
                assert np.abs(x).max() > 0.99 * bound and abs(x.mean()) < 0.05 * bound
                assert np.quantile(x, [0.25, 0.5, 0.75]) == pytest.approx([-bound / 2, 0, bound / 2], abs=0.06 * bound)
    both = found["a"]["kernel"].ravel()[:1000], found["b"]["kernel"].ravel()[:1000]
    assert abs(np.corrcoef(*both)[0, 1]) < 0.15 and not np.allclose(found["b"]["bias"], found["a"]["bias"][:2])
    assert np.any(drawn_anew(jax.random.key(1), params, ("a", "b"), 1.0, "a")["a"]["kernel"] != found["a"]["kernel"])


def test_vggs_folded_layer_is_drawn_with_the_fan_in_of_the_whole_one():
    model = reduced("vgg19_bn")
    assert model.arch.copies == 49 and model.arch.heads == ("classifier_0", "classifier_3", "classifier_6")
    generator = np.random.default_rng(0)
    params = {
        name: {leaf: generator.normal(size=x.shape).astype(np.float32) for leaf, x in shapes(model)["params"][name].items()}
        for name in model.arch.heads
    }
    params["classifier_0"] = {"kernel": np.zeros((512, 400), np.float32), "bias": np.zeros(4096, np.float32)}
    found = plain(drawn_anew(jax.random.key(0), params, model.arch.heads, model.arch.copies, model.arch.heads[0]))
    bound = 1 / np.sqrt(512 * 49)
    kernel, bias = (np.asarray(found["classifier_0"][leaf]).ravel() for leaf in ("kernel", "bias"))
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.01) and abs(np.mean(kernel)) < 0.01 * bound
    assert np.mean(kernel**4) / np.mean(kernel**2) ** 2 == pytest.approx(3, rel=0.05)  # normal: sums of 49 uniform draws
    assert 0.99 * bound < np.abs(bias).max() <= bound
    for name in model.arch.heads[1:]:
        inputs = params[name]["kernel"].shape[0]
        assert np.abs(found[name]["kernel"]).max() <= 1 / np.sqrt(inputs)
        assert np.abs(found[name]["kernel"]).max() > 0.8 / np.sqrt(inputs)
    whole = {"a": {"kernel": np.zeros((49 * 8, 50), np.float32), "bias": np.zeros(9, np.float32)}}
    whole = plain(drawn_anew(jax.random.key(0), whole, ("a",), 1.0, "a"))
    assert np.abs(whole["a"]["kernel"]).max() <= 1 / np.sqrt(49 * 8)  # fold=False: nothing to make up for


@pytest.mark.parametrize("name", ["preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"])
def test_all_linear_layers_of_the_head_are_treated(name):
    # Which ones these are is the architecture's description; the convolutions and norms are no part of it.
    model = reduced(name)
    expected = {
        "preactresnet18": 1,
        "vgg19_bn": 3,
        "efficientnet_b3": 1,
        "mobilenet_v3_large": 2,
    }[name]
    assert len(model.arch.heads) == expected
    assert all(len(tree.get(shapes(model)["params"], f"{head}/kernel").shape) == 2 for head in model.arch.heads)


def test_the_diagnostic_variant_tunes_the_last_layer_alone(plain_spec, clean, padded, wide, distance):
    rows = clean(5)
    # Two layers in the head: the first is backbone here.
    network = dense(plain_spec)
    start = plain(wide(network.init(jax.random.key(0))))
    run = compiled(network, variant="head_only")
    found = run(start, padded(rows, 20), hyper(np.float64, lr=0.1))
    assert distance(found.variables["params"]["first"], start["params"]["first"]) == 0
    new = fresh(DRAWING, start["params"], ("last",))
    assert distance(new["last"], start["params"]["last"]) > 0.1  # drawn anew

    def loss(last, x, y):
        return cross_entropies(dense_logits({**start["params"], "last": last}, x)[0], y).mean()

    last, images, labels = new["last"], *plain(pixels(rows), rows.labels)
    buffer, slope_of = jax.tree.map(np.zeros_like, last), jax.jit(jax.grad(loss))
    for e, epoch in enumerate(batches(TUNING, 20, 8, 3)):
        for b in epoch:
            rate = 0.1 * (1 + np.cos(np.pi * e / 3)) / 2
            last, buffer = descend(last, buffer, plain(slope_of(last, images[b], labels[b])), rate, 0.9, 0.0)
    assert distance(found.variables["params"]["last"], last) < 1e-10  # no penalty, no rescaling
    # Weight decay leaves the frozen backbone alone.
    found = run(start, padded(rows, 20), hyper(np.float64, weight_decay=0.1, alpha=5.0))
    assert distance(found.variables["params"]["first"], start["params"]["first"]) == 0


@pytest.mark.slow  # compiling
def test_the_diagnostic_variant_moves_the_running_statistics(clean, wide, distance, model, variables, plain_spec):
    rows, before = clean(5), plain(wide(variables))
    defend = jax.jit(fst(model, {"epochs": 1, "variant": "head_only"}).defend)
    found = defend(KEY, DefenderView(before, rows), hyper(np.float64))
    for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"):
        assert distance(found.variables["params"][layer], variables["params"][layer]) < 1e-8
    measured = plain(jax.jit(lambda params, x: forward(params, x, plain_spec)[2])(before["params"], pixels(rows)))
    assert distance(found.variables["batch_stats"], follow(before["batch_stats"], measured)) < 1e-10


PRESETS = {  # epochs, lr, alpha
    "cifar10": (10, 0.01, 0.2),
    "gtsrb": (15, 0.01, 0.1),
    "tiny_imagenet": (15, 0.001, 0.001),
    "digits": (10, 0.01, 0.2),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_follow_the_data_set(plain_spec, name):
    network = dense(plain_spec)
    network = network._replace(spec=plain_spec._replace(name=name))
    epochs, lr, alpha = PRESETS[name]
    defense = fst(network)
    assert defense.config.epochs == epochs and defense.config.batch == 256 and defense.config.variant == "full"
    assert [round(float(x), 6) for x in defense.hyper] == [lr, alpha, 0.9, 0]
    defense = fst(network, profile="reference")  # the option defaults override them
    assert defense.config.epochs == 15 and [round(float(x), 6) for x in defense.hyper] == [0.01, 0.2, 0.9, 0]
    assert defense.needs == {"clean"} and not defense.validation
    assert fst(network, {"epochs": 4}).config.epochs == 4


def test_every_number_matters(plain_spec, clean, distance):
    model, rows, given = dense(plain_spec), clean(5), hyper(weight_decay=0.1)
    variables = model.init(jax.random.key(0))
    usual = compiled(model)(variables, rows, given).variables
    for leaf in given._fields:
        moved = given._replace(**{leaf: getattr(given, leaf) / np.float32(2)})
        assert distance(compiled(model)(variables, rows, moved).variables, usual) > 1e-5, leaf


@pytest.mark.slow  # each is a program of its own
def test_every_field_matters(plain_spec, clean, distance):
    model, rows, given = dense(plain_spec), clean(5), hyper(weight_decay=0.1)
    variables = model.init(jax.random.key(0))
    usual = compiled(model)(variables, rows, given).variables
    for field in ({"epochs": 4}, {"batch": 16}, {"variant": "head_only"}):
        assert distance(compiled(model, **field)(variables, rows, given).variables, usual) > 1e-5, field


def test_mistakes_are_named(model):
    for field in ("epochs", "batch"):
        with pytest.raises(UserError, match=rf"fst\.{field} must be at least 1; given 0"):
            fst(model, {field: 0})
    with pytest.raises(UserError, match=r"fst\.variant 'head'.*head_only"):
        fst(model, {"variant": "head"})
