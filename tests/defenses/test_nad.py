import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.ft import ft
from bdjax.defenses.nad import NADHyper, _last_stages, _published_taps, _updates, attention, nad
from bdjax.defenses.tuning import Hyper
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.nn.folded_linear import pool
from bdjax.types import DefenderView
from tests.defenses.plain_network import batches, cross_entropies, dense, descend, follow, forward, pixels, plain
from tests.later import some_later
from tests.networks import SLOWEST, reduced, spec

KEY = jax.random.key(9)
TEACHING, LEARNING = jax.random.split(KEY)
SHORT = {"teacher_epochs": 2, "epochs": 2, "batch": 8}


@functools.cache
def compiled(model, profile="corrected", **config):
    defense = nad(model, {**SHORT, **config}, profile=profile)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


def hyper(dtype=np.float64, **fields):
    return jax.tree.map(dtype, NADHyper()._replace(**fields))


built = functools.cache(dense)  # one object, so that what is compiled for it is found again


def plain_attention(features, power):
    energy = sum(jnp.abs(features[..., c]) ** power for c in range(features.shape[-1]))
    return energy / (jnp.sqrt((energy**2).sum((1, 2))) + 1e-6)[:, None, None]


def written_out(variables, images, labels, plans, spec, lrs, momentum, decay, betas, power, times):
    """The method's section of the specification in plain loops; ``betas`` {number of the stage: weight}."""

    def entropy(params, x, y):
        logits, stages, measured = forward(params, x, spec)
        return cross_entropies(logits, y).mean(), (measured, stages)

    def distilled(params, x, y, teacher):
        loss, (measured, stages) = entropy(params, x, y)
        _, goals, _ = forward(teacher["params"], x, spec, teacher["batch_stats"])
        apart = 0.0
        for stage, beta in betas.items():
            found, goal = (plain_attention(maps[stage - 1], power) for maps in (stages, goals))
            apart = apart + beta * jnp.mean((found - goal) ** 2)
        return loss + apart, (measured, loss, apart)

    def run(loss, plan, lrs, times, *more):
        slope_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
        params, running = plain(variables["params"], variables["batch_stats"])
        buffer, traces = jax.tree.map(np.zeros_like, params), []
        for lr, epoch in zip(lrs, plan, strict=True):
            of_epoch = []
            for rows in epoch:
                (value, (measured, *parts)), slope = plain(slope_of(params, images[rows], labels[rows], *more))
                params, buffer = descend(params, buffer, slope, lr, momentum, decay)
                running = follow(running, measured, times=times)
                of_epoch.append([float(x) for x in parts] if more else [float(value)])
            traces.append(np.mean(of_epoch, 0))
        return {"params": params, "batch_stats": running}, np.array(traces)

    teacher, losses = run(entropy, plans[0], lrs[0], ())
    student, traces = run(distilled, plans[1], lrs[1], times.items(), teacher)
    return student, (losses[:, 0], traces[:, 0], traces[:, 1])


@pytest.mark.parametrize(
    ("profile", "config", "period", "betas", "times"),
    [
        ("corrected", {"epochs": 3}, 20, {1: 30, 2: 70, 3: 50}, {}),
        pytest.param(
            *("reference", {"period": 3, "power": 3}, 3, {2: 30, 3: 70}, {"bn1": 2, "bn2": 2, "bn3": 2}), marks=pytest.mark.slow
        ),
    ],
    ids=["corrected", "reference"],
)
def test_the_update_is_the_one_written_out(
    model, variables, clean, padded, wide, distance, plain_spec, profile, config, period, betas, times
):
    rows = clean(5)  # batches of 8, 8 and 4 among rows of garbage
    given = hyper(lr=0.05, momentum=0.8, weight_decay=1e-2, beta1=30, beta2=70, beta3=50)
    found = compiled(model, profile, **config)(wide(variables), padded(rows, 20), given)
    epochs = config.get("epochs", 2)
    plans = batches(TEACHING, 20, 8, 2), batches(LEARNING, 20, 8, epochs)
    lrs = [0.05 * (1 + np.cos(np.pi * e / period)) / 2 for e in range(2)], [0.05] * epochs
    images, labels = np.asarray(pixels(rows)), np.asarray(rows.labels)
    expected, traces = written_out(
        wide(variables), images, labels, plans, plain_spec, lrs, 0.8, 1e-2, betas, config.get("power", 2), times
    )
    assert distance(found.variables, expected) < 1e-9
    assert distance(expected["params"], variables["params"]) > 1e-2  # it moved
    for name, trace in zip(("teacher_loss", "loss", "attention"), traces, strict=True):
        np.testing.assert_allclose(getattr(found.trace, name), trace, rtol=1e-5)
    assert traces[2].min() > 1e-3  # the attention says something
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1 and found.masks is None


def test_absent_rows_change_nothing(model, variables, clean, padded, wide, distance):
    """Wherever they are and whatever is in them; without any, the update written out is the same too."""
    # Weights of 1000 on the attention enlarge what rounds differently in another order of the sums.
    run, rows = compiled(model, "corrected", epochs=3), clean(5)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((20, *a.shape[1:]), 3, a.dtype)]), rows._replace(spc=rows.role))
    behind = behind._replace(role=np.where(np.arange(40) < 20, behind.role, np.int8(0)), spc=rows.spc)
    found, among = (run(wide(variables), r, hyper()) for r in (behind, padded(rows, 20)))
    assert distance(among.variables, found.variables) < 1e-11 and distance(among.trace, found.trace) < 1e-4


def moves(run, start, rows, distance):
    """{hyper-parameter: whether half of it makes another network}."""
    plainly = run(start, rows, hyper()).variables
    others = {leaf: run(start, rows, hyper(**{leaf: getattr(hyper(), leaf) / 2})).variables for leaf in NADHyper._fields}
    return {leaf: distance(other, plainly) > 1e-6 for leaf, other in others.items()}


def test_every_number_matters(model, variables, clean, padded, wide, distance):
    found = moves(compiled(model, "corrected", epochs=3), wide(variables), padded(clean(5), 20), distance)
    assert found == dict.fromkeys(NADHyper._fields, True)


@pytest.mark.slow  # another program
def test_every_number_but_the_last_weight_matters_to_the_published_code(model, variables, clean, padded, wide, distance):
    """Its taps in this network are the last two stages, with the first two weights."""
    found = moves(compiled(model, "reference", period=3, power=3), wide(variables), padded(clean(5), 20), distance)
    assert found == {**dict.fromkeys(NADHyper._fields, True), "beta3": False}


@pytest.mark.slow  # a program each
@pytest.mark.parametrize(
    "field", [{"teacher_epochs": 3}, {"epochs": 3}, {"batch": 16}, {"period": 2}, {"power": 1}, {"all_taps": False}]
)
def test_every_field_matters(field, plain_spec, clean, distance):
    # Lengths, power and taps here; repeated statistics are in the update written out.
    network, rows, given = built(plain_spec), clean(5), hyper(np.float32)
    start = network.init(jax.random.key(0))
    plainly = compiled(network)(start, rows, given).variables
    assert distance(compiled(network, **field)(start, rows, given).variables, plainly) > 1e-6


def test_a_divergence_of_teacher_or_student_is_marked(model, variables, clean, padded, wide):
    run, rows = compiled(model, "corrected", epochs=3), padded(clean(5), 20)
    for broken in ({"lr": 1e300}, {"beta2": np.inf}):
        found = run(wide(variables), rows, hyper(**broken))
        assert not bool(found.trace.alive) and int(found.trace.stopped) >= 0
        assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))


def test_a_dead_map_teaches_nothing_and_breaks_nothing(wide):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(3, 4, 4, 2))
    features[1] = 0
    goal = generator.uniform(size=(3, 4, 4))

    def apart(x, power):
        maps = attention(x, power)
        return jnp.sum((maps - goal) ** 2), (maps, plain_attention(x, power))

    recorded = jax.jit(jax.grad(apart, has_aux=True), static_argnums=1)
    for power in (1, 2, 3):
        slope, (found, expected) = recorded(features, power)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert np.isfinite(np.asarray(slope)).all() and np.any(np.asarray(slope)[0] != 0)
        # With power 1 the map has a kink there, and any number between the slopes is as good.
        assert power == 1 or np.all(np.asarray(slope)[1] == 0)


def test_one_position_says_nothing(wide):
    generator = np.random.default_rng(0)
    student, teacher = (generator.uniform(1, 2, (5, 1, 1, 6)) for _ in range(2))

    @jax.jit
    def maps(x):  # on VGG's pooling the one position is copied 49 times
        return attention(x, 2), attention(pool(x, folded=False).reshape(5, 7, 7, 6), 2)

    for a, b in zip(maps(student), maps(teacher), strict=True):
        assert np.mean((np.asarray(a) - np.asarray(b)) ** 2) < 1e-12


# Numbers of the stages, from 1, at 32 pixels.
LAST = {
    "cnn": (1, 2, 3),
    "preactresnet18": (2, 3, 4),
    "vgg19_bn": (2, 3, 4),
    "efficientnet_b3": (3, 4, 5),
    "mobilenet_v3_large": (2, 3, 4),
}
FIRST_WEIGHTS = {"cnn": (2, 3), "preactresnet18": (3, 4)}


@pytest.mark.parametrize("name", some_later(MODELS, SLOWEST))
def test_taps_of_every_network(name):
    model = reduced(name)
    taps = _last_stages(model)
    assert [model.arch.stages.index(tap.address) + 1 for tap in taps] == list(LAST[name])
    assert [tap.beta for tap in taps] == [0, 1, 2] and all(tap.grid is None for tap in taps)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    found = jax.eval_shape(lambda v, x: model.apply(v, x, record=model.arch.stages).taps, shapes, images)
    informative = [stage for stage in model.arch.stages if min(found[stage].shape[1:3]) >= 2]
    assert [tap.address for tap in taps] == informative[-3:]
    published = [(model.arch.stages.index(tap.address) + 1, tap.beta) for tap in _published_taps(model)]
    assert published == [(stage, i) for i, stage in enumerate(FIRST_WEIGHTS.get(name, ()))]


def test_vggs_pooling_says_something_from_64_pixels_on():
    (tap,) = _published_taps(MODELS["vgg19_bn"](spec(size=64), 2))
    assert (tap.address, tap.beta, tap.grid) == ("features", 2, 7)


def test_with_one_or_two_maps_the_last_one_has_the_last_weight(plain_spec):
    (tap,) = _last_stages(dense(plain_spec))
    assert (tap.address, tap.beta) == ("stage1", 2)


def test_the_published_code_moves_statistics_twice_and_in_preactresnet_thrice_or_four_times():
    model = reduced("preactresnet18")
    for norm in model.arch.norms:
        assert _updates(model, norm) == (3 if norm.split("_")[0] == "layer4" else 4)
    assert any(norm.startswith("layer4") for norm in model.arch.norms)
    for name in ("vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"):
        model = reduced(name)
        assert {_updates(model, norm) for norm in model.arch.norms} == {2}


@pytest.mark.slow  # three more programs
def test_where_nothing_has_two_positions_the_teacher_has_no_influence(plain_spec, clean, distance):
    # A network of which "reference" takes no tap, as of EfficientNet and MobileNet.
    network, rows, given = built(plain_spec), clean(5), hyper(np.float32, lr=0.05)
    assert _published_taps(network) == ()
    start = network.init(jax.random.key(0))
    one, two = (compiled(network, "reference", epochs=1, teacher_epochs=n)(start, rows, given) for n in (1, 2))
    assert distance(one.variables, two.variables) == 0 and one.trace.attention.tolist() == [0]
    # One epoch of plain fine-tuning at that rate.
    tuned = ft(network, {"epochs": 1, "batch": 8}).defend(LEARNING, DefenderView(start, rows), Hyper(lr=np.float32(0.05)))
    assert distance(one.variables, tuned.variables) < 1e-6 < 1e-2 < distance(one.variables, start)


@pytest.mark.slow  # two more programs
def test_the_teacher_has_influence_otherwise(plain_spec, clean, distance):
    # A batch of all rows, so that the student's own order does not matter; one weight, which is the teacher's alone.
    network, rows = built(plain_spec), clean(5)
    start = network.init(jax.random.key(0))

    def student(teacher_epochs, beta):
        run = compiled(network, teacher_epochs=teacher_epochs, period=100)
        return run(start, rows, hyper(np.float32, beta3=beta)).variables

    assert distance(student(1, 0), student(3, 0)) == 0
    assert distance(student(1, 1000), student(3, 1000)) > 1e-4


def test_defaults_follow_the_profile_and_the_data_set(plain_spec):
    network = dense(plain_spec)
    assert nad(network).config == (10, 10, 256, 100, 2, True, False)
    assert nad(network, profile="reference").config == (10, 10, 256, 100, 2, False, True)
    assert nad(network, {"teacher_epochs": 3}).config.period == 30  # a shortened run shortens the cosine
    assert nad(network, {"teacher_epochs": 3}, profile="reference").config.period == 100
    assert nad(network, {"batch": 64}).config.batch == 64
    tiny = network._replace(spec=plain_spec._replace(name="tiny_imagenet"))
    assert nad(tiny).config.batch == nad(tiny, profile="reference").config.batch == 128
    defense = nad(network)
    assert [round(float(x), 6) for x in defense.hyper] == [0.01, 0.9, 0.0005, 500, 1000, 1000]
    assert defense.needs == {"clean"} and not defense.validation


@pytest.mark.slow  # four more programs
def test_on_tiny_imagenet_the_teachers_rate_waits_for_a_plateau(plain_spec, clean):
    network, rows, given = built(plain_spec), clean(5), hyper(np.float32, lr=0.1)
    start = network.init(jax.random.key(0))
    tiny = network._replace(spec=plain_spec._replace(name="tiny_imagenet"))
    constant, cosine, waiting, chosen = (
        np.asarray(compiled(m, teacher_epochs=3, epochs=1, **p)(start, rows, given).trace.teacher_loss)
        for m, p in ((network, {"period": 10**6}), (network, {"period": 3}), (tiny, {}), (tiny, {"period": 3}))
    )
    assert nad(tiny).config.period == nad(tiny, profile="reference").config.period == 0
    np.testing.assert_allclose(waiting, constant, rtol=1e-6)
    np.testing.assert_allclose(chosen, cosine, rtol=1e-6)
    assert np.abs(cosine - constant).max() > 1e-4


def test_mistakes_are_named(model):
    for field in ("teacher_epochs", "epochs", "batch", "power"):
        with pytest.raises(UserError, match=rf"nad\.{field} must be at least 1; given 0"):
            nad(model, {field: 0})
