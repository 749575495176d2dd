import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.i_bau import Config, IBAUHyper, fixed_point, i_bau, patched
from bdjax.errors import UserError
from bdjax.keys import Stream, step_key, stream
from bdjax.types import DefenderView, Loop
from tests.defenses.plain_eval import Adam, network
from tests.defenses.plain_network import cross_entropies, dense, dense_logits, filled, pixels
from tests.later import some_later

KEY = jax.random.key(11)
# Far from the defaults, so that a few steps show every term.
LIVELY = {"lr": 0.02, "perturbation_lr": 3.0, "inner_lr": 0.7, "penalty": 0.05}
CASES = {
    "corrected": ("corrected", {"rounds": 2, "batch": 8}),
    "reference": ("reference", {"rounds": 2, "batch": 8, "share": 0.3, "iterations": 3, "optimiser": "adam"}),
}


def hyper64(**changed):
    return IBAUHyper(**{name: np.float64(value) for name, value in {**LIVELY, **changed}.items()})


@functools.cache
def built(model, profile, *config):
    defense = i_bau(model, dict(config), profile=profile)
    return jax.jit(lambda variables, rows, hyper: defense.defend(KEY, DefenderView(variables, rows), hyper))


def defended(model, name, variables, rows, hyper):
    """All tests of a case share its program."""
    profile, config = CASES[name]
    return jax.tree.map(np.asarray, built(model, profile, *config.items())(variables, rows, hyper))


@functools.cache
def written(spec, space):
    """The losses of the method and their derivatives, compiled once per shape."""
    scale = jnp.asarray(spec.std if space == "normalised" else (1.0,) * 3).reshape(1, 1, 1, 3)

    def logits(params, statistics, images, delta, where):
        images = images + jnp.asarray(where, delta.dtype).reshape(-1, 1, 1, 1) * delta[None] * scale
        return network(spec, params, statistics, images)[0]

    def perturbing(delta, params, statistics, images, penalty):
        everywhere = np.ones(len(images))
        own = logits(params, statistics, images, delta, 0 * everywhere).argmax(1)
        return -cross_entropies(logits(params, statistics, images, delta, everywhere), own).mean() + penalty * (delta**2).sum()

    def outer(delta, params, statistics, images, labels, where):
        return cross_entropies(logits(params, statistics, images, delta, where), labels).mean()

    def moved(delta, params, statistics, images, labels, inner_lr, penalty):  # the map whose fixed point is sought
        def inner(delta):
            z = logits(params, statistics, images, delta, np.ones(len(images)))
            return -cross_entropies(z, labels).mean() + penalty * (delta**2).sum()

        return delta - inner_lr * jax.grad(inner)(delta)

    def pulled(v, *arguments):
        return jax.vjp(lambda d, p: moved(d, p, *arguments[2:]), *arguments[:2])[1](v)

    return (*map(jax.jit, (jax.grad(perturbing), jax.value_and_grad(outer, (0, 1)), pulled)), moved)


planned, drawn = jax.jit(epoch_plan, static_argnums=2), jax.jit(patched, static_argnums=2)


def by_hand(spec, variables, images, labels, present, config, hyper):
    """I-BAU in plain loops; the draws are those of the keys that the method names."""
    perturbing, outer, pulled, _ = written(spec, config.space)
    params, statistics = variables["params"], variables["batch_stats"]
    kept_key, fresh_key, patch_key = jax.random.split(KEY, 3)
    kept_order = jax.tree.map(np.asarray, planned(stream(kept_key, Stream.ORDER), present, config.batch))
    kept = filled(*kept_order)
    adam = Adam(params, largest=config.optimiser == "amsgrad")
    losses, sizes, residuals, counts = [], [], [], []
    for number in range(config.rounds):
        delta = np.zeros(spec.image_shape)
        for rows in filled(*planned(stream(step_key(fresh_key, number), Stream.ORDER), present, config.batch)):
            slope = np.asarray(perturbing(delta, params, statistics, images[rows], hyper.penalty))
            delta = delta - hyper.perturbation_lr * slope
        first = images[kept[0]], labels[kept[0]]
        of_round, rest = [], []
        for trip, rows in enumerate(kept):
            mask = kept_order[1][trip]
            where = np.asarray(drawn(step_key(step_key(patch_key, number), trip), mask, config))[mask > 0]
            counts.append(int(where.sum()))
            loss, (slope, gradient) = outer(delta, params, statistics, images[rows], labels[rows], where)
            v = np.zeros_like(delta)
            for _ in range(config.iterations):
                new = np.asarray(pulled(v, delta, params, statistics, *first, hyper.inner_lr, hyper.penalty)[0]) + slope
                change, v = np.sqrt(((new - v) ** 2).sum()), new
                if change < 1e-10:
                    break
            through = pulled(v, delta, params, statistics, *first, hyper.inner_lr, hyper.penalty)[1]
            total = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), gradient, through)
            params = adam.step(params, total, float(hyper.lr))
            of_round.append(float(loss))
            rest.append(change)
        losses.append(np.mean(of_round))
        sizes.append(np.sqrt(np.sum(delta**2)))
        residuals.append(np.mean(rest))
    return {"params": params, "batch_stats": statistics}, losses, sizes, residuals, counts


@pytest.fixture(scope="module")
def lively(model, variables, clean, padded):
    """What the corrected method makes of rows among absent ones."""
    with jax.enable_x64(True):
        start = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        return defended(model, "corrected", start, padded(clean(5), 6), hyper64())


@pytest.mark.parametrize("name", some_later(CASES, ("reference",)))
def test_the_method_is_the_one_written_out(name, lively, model, variables, clean, padded, wide, distance, plain_spec):
    rows = padded(clean(5), 6)  # 20 rows that count: batches of 8, 8 and 4, and an empty one
    profile, config = CASES[name]
    config = i_bau(model, config, profile=profile).config
    found = lively if name == "corrected" else defended(model, name, wide(variables), rows, hyper64())
    expected, losses, sizes, residuals, counts = by_hand(
        plain_spec, wide(variables), *map(np.asarray, (pixels(rows), rows.labels)), np.asarray(rows.role) == 1, config, hyper64()
    )
    assert counts == ([1] * 6 if name == "corrected" else [2, 2, 1] * 2)
    assert distance(found.variables["params"], expected["params"]) < 1e-9
    assert distance(found.variables["batch_stats"], variables["batch_stats"]) == 0
    assert distance(expected["params"], variables["params"]) > 0.05  # it moved
    np.testing.assert_allclose(np.asarray(found.trace.loss), losses, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found.trace.size), sizes, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found.trace.residual), residuals, rtol=1e-4, atol=1e-9)
    assert min(sizes) > 1e-2 and min(residuals) > 1e-9
    assert bool(found.trace.alive) and int(found.trace.stopped) == -1


@pytest.mark.parametrize("field", IBAUHyper._fields)
def test_each_hyper_parameter_matters(field, lively, model, variables, clean, padded, wide, distance):
    changed = hyper64(**{field: LIVELY[field] / 2})
    other = defended(model, "corrected", wide(variables), padded(clean(5), 6), changed)
    assert distance(lively.variables, other.variables) > 1e-6


def test_absent_rows_change_nothing(lively, model, variables, clean, padded, wide, distance):
    among, alone = padded(clean(5), 6), clean(5)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((6, *a.shape[1:]), 3, a.dtype)]), alone._replace(spc=alone.role))
    behind = behind._replace(role=np.where(np.arange(26) < 20, behind.role, np.int8(0)), spc=alone.spc)
    run = functools.partial(defended, model, "corrected", wide(variables))
    other = run(behind, hyper64())
    assert distance(lively, other) < 1e-12
    validation = behind._replace(role=np.where(np.arange(26) < 20, behind.role, np.int8(2)))
    assert distance(run(validation, hyper64()), other) == 0
    empty = run(among._replace(role=np.zeros_like(among.role)), hyper64())
    assert distance(empty.variables, variables) == 0 and bool(empty.trace.alive)


def test_a_member_that_is_not_finite_is_frozen_and_marked(model, variables, clean, padded, wide):
    rows = padded(clean(5), 6)
    ill = defended(model, "corrected", wide(variables), rows, hyper64(lr=1e200))
    assert not bool(ill.trace.alive) and 0 < int(ill.trace.stopped) < 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ill.variables))


@pytest.mark.slow  # another program
def test_a_member_that_is_not_finite_is_frozen_and_marked_while_others_go_on(
    lively, model, variables, clean, padded, wide, distance
):
    rows, defense = padded(clean(5), 6), i_bau(model, dict(CASES["corrected"][1]))
    together = jax.jit(jax.vmap(lambda hyper: defense.defend(KEY, DefenderView(wide(variables), rows), hyper)))

    def run(*hypers):
        return jax.tree.map(np.asarray, together(jax.tree.map(lambda *x: np.stack(x), *hypers)))

    found, well = run(hyper64(), hyper64(lr=1e200)), run(hyper64(), hyper64())
    assert found.trace.alive.tolist() == [True, False] and found.trace.stopped[0] == -1 and 0 < found.trace.stopped[1] < 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.variables))
    assert distance(*(jax.tree.map(lambda x: x[0], f.variables) for f in (found, well))) == 0
    assert distance(jax.tree.map(lambda x: x[0], found.variables), lively.variables) < 1e-11


@pytest.mark.slow  # compiles every step of it
def test_a_dispatched_loop_is_the_same_loop(lively, model, variables, clean, padded, wide, distance):
    rows = padded(clean(5), 6)
    defense = i_bau(model.rebuild(loop=Loop("dispatch")), dict(CASES["corrected"][1]))
    found = defense.defend(KEY, DefenderView(wide(variables), rows), hyper64())
    assert distance(found, lively) < 1e-6 and distance(found.variables, lively.variables) < 1e-11


# Eight rows of one batch: below 100, so that "reference" patches none.
PLAIN = ("reference", ("rounds", 2))


@pytest.mark.slow  # a program each
@pytest.mark.parametrize("name", ["dense", "cnn"])
def test_without_patched_images_it_is_amsgrad_on_the_clean_loss(name, model, variables, clean, wide, distance, plain_spec):
    rows, hyper, small = clean(2), hyper64(), dense(plain_spec)
    chosen, start = (small, small.init(jax.random.key(0))) if name == "dense" else (model, variables)
    images, start = pixels(rows), wide(start)

    def logits(params):
        if name == "dense":
            return dense_logits(params, images)[0]
        return network(plain_spec, params, start["batch_stats"], images)[0]

    slope = jax.jit(jax.grad(lambda params: cross_entropies(logits(params), rows.labels).mean()))
    params, adam = start["params"], Adam(start["params"])
    for _ in range(2):
        params = adam.step(params, slope(params), hyper.lr)
    assert distance(params, start["params"]) > 0.01
    run = built(chosen, *PLAIN)
    for perturbing in ({}, {"perturbation_lr": 0.1, "inner_lr": 3}):  # whatever the perturbation does
        found = run(start, rows, hyper64(**perturbing))
        assert distance(found.variables["params"], params) < 1e-11
        assert np.all(np.asarray(found.trace.residual) == 0) and np.all(np.asarray(found.trace.size) > 0)


@pytest.mark.slow
def test_the_batches_of_the_loss_are_augmented_once_and_those_of_the_perturbation_in_every_round(
    tiny_spec, plain_spec, clean, wide
):
    rows, hyper = clean(2), hyper64(lr=0)  # the network stays, so only the images can differ
    start = wide(dense(plain_spec).init(jax.random.key(0)))
    same, found = (
        jax.tree.map(np.asarray, built(dense(spec), *PLAIN)(start, rows, hyper).trace) for spec in (plain_spec, tiny_spec)
    )
    assert same.loss[0] == same.loss[1] and abs(same.size[0] - same.size[1]) < 1e-6
    assert found.loss[0] == found.loss[1] != same.loss[0]
    assert abs(found.size[0] - found.size[1]) > 1e-4


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_the_fixed_point_iteration_sums_powers_of_the_jacobian(iterations, wide):
    generator = np.random.default_rng(3)
    jacobian, slope = generator.normal(size=(6, 6)), generator.normal(size=6)
    expected = sum((np.linalg.matrix_power(jacobian.T, i) @ slope for i in range(iterations)), np.zeros(6))
    change = np.linalg.matrix_power(jacobian.T, max(iterations - 1, 0)) @ slope if iterations else np.zeros(6)
    for loop in (Loop(), Loop("dispatch")):
        v, residual = fixed_point(lambda v: jnp.asarray(jacobian.T) @ v, jnp.asarray(slope), iterations, loop)
        np.testing.assert_allclose(np.asarray(v), expected, rtol=1e-12)
        np.testing.assert_allclose(float(residual), np.linalg.norm(change), rtol=1e-12)


def test_the_fixed_point_iteration_stops_once_it_has_converged(wide):
    slope = np.full(4, 0.5)  # of length 1
    v, residual = fixed_point(lambda v: 2**-40 * v, jnp.asarray(slope), 5, Loop())
    np.testing.assert_allclose(float(residual), 2**-40, rtol=1e-3)  # of the second change, the first below 1e-10
    np.testing.assert_array_equal(np.asarray(v), slope * (1 + 2**-40))


@pytest.mark.slow  # of mathematics more than of the package
def test_forward_over_reverse_gives_the_same_hypergradient(variables, clean, wide, distance, plain_spec):
    """The two forms of the implicit gradient, and the sum of powers of the whole Jacobian, on the network written out."""
    images, labels, start = pixels(clean(1)), clean(1).labels, wide(variables)
    _, outer, pulled, moved = written(plain_spec, "pixel")
    delta = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, plain_spec.image_shape))
    params, rest = start["params"], (start["batch_stats"], images, labels, 0.7, 0.05)
    _, (slope, gradient) = outer(delta, params, start["batch_stats"], images, labels, np.array([1, 0, 1, 0]))

    def inner_slope(d, p):  # of the inner loss, from the map d - 0.7 slope
        return (d - moved(d, p, *rest)) / 0.7

    v, _ = fixed_point(lambda v: pulled(v, delta, params, *rest)[0], slope, 5, Loop())
    jacobian = np.asarray(jax.jit(jax.jacrev(moved))(delta, params, *rest)).reshape(192, 192)
    powers = sum(np.linalg.matrix_power(jacobian.T, i) @ np.asarray(slope).ravel() for i in range(5))
    np.testing.assert_allclose(np.asarray(v).ravel(), powers, rtol=1e-9, atol=1e-12)

    forward = jax.jit(lambda v: jax.jvp(lambda d: inner_slope(d, params), (delta,), (v,))[1])
    w = jnp.zeros_like(delta)
    for _ in range(5):
        w = w - 0.7 * forward(w) + slope
    np.testing.assert_allclose(np.asarray(v), np.asarray(w), rtol=1e-9, atol=1e-12)
    mixed = jax.jit(jax.grad(lambda p: (inner_slope(delta, p) * w).sum()))(params)
    through = pulled(v, delta, params, *rest)[1]
    assert distance(through, jax.tree.map(lambda m: -0.7 * m, mixed)) < 1e-10
    assert distance(gradient, jax.tree.map(jnp.add, gradient, through)) > 1e-4  # the second term is there


@pytest.mark.parametrize(
    ("present", "rule", "share", "count"),
    [
        # the survey's numbers per batch
        (20, "floor", 0.01, 0),
        (86, "floor", 0.01, 0),
        (100, "floor", 0.01, 1),
        (174, "floor", 0.01, 1),
        (232, "floor", 0.01, 2),
        (256, "floor", 0.01, 2),
        (32, "at_least_one", 0.01, 1),
        (256, "at_least_one", 0.01, 2),
        (100, "floor", 0.29, 29),  # 0.29 * 100 is 28.999... in floating point
        (100, "floor", 1, 100),
        (100, "at_least_one", 0, 1),
        (0, "at_least_one", 0.5, 0),
    ],
)
def test_the_patched_rows_are_a_share_of_the_present_ones(present, rule, share, count):
    config = Config(share=share, patch_rule=rule)
    found, more = (np.asarray(drawn(KEY, (np.arange(n) < present).astype(np.float32), config)) for n in (256, 300))
    assert set(found.tolist()) <= {0, 1} and found.sum() == count and not np.any(found[present:])
    np.testing.assert_array_equal(more, np.r_[found, np.zeros(44)])  # whatever room there is behind the present rows


def test_every_row_is_patched_as_often_as_any_other():
    config = Config(share=0.25, patch_rule="floor")
    mask = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], np.float32)
    draws = jax.jit(lambda key: jax.vmap(lambda k: patched(k, mask, config))(jax.random.split(key, 2000)))(KEY)
    often = np.asarray(draws).mean(0)
    assert np.all(np.abs(often[:8] - 0.25) < 0.05) and not often[8:].any()  # five standard deviations


def test_profiles_differ_in_the_rule_and_the_space(model):
    corrected, reference = i_bau(model).config, i_bau(model, profile="reference").config
    assert corrected == (5, 5, 256, 0.01, "at_least_one", "pixel", "amsgrad")
    assert reference == corrected._replace(patch_rule="floor", space="normalised")
    assert i_bau(model).needs == {"clean"} and not i_bau(model).validation
    np.testing.assert_allclose(i_bau(model).hyper, [1e-4, 10, 0.1, 1e-3], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rounds": 0}, r"i_bau\.rounds must be at least 1; given 0"),
        ({"iterations": -1}, r"i_bau\.iterations must be at least 0; given -1"),
        ({"batch": 0}, r"i_bau\.batch must be at least 1; given 0"),
        ({"share": 1.5}, r"i_bau\.share must lie in \[0, 1\], in steps of 1e-4; given 1\.5"),
        ({"share": 0.00003}, r"i_bau\.share must lie in \[0, 1\], in steps of 1e-4; given 3e-05"),
        ({"patch_rule": "flor"}, r"'flor'.*Did you mean 'floor'"),
        ({"space": "pixels"}, r"'pixels'.*Did you mean 'pixel'"),
        ({"optimiser": "adm"}, r"'adm'.*Did you mean 'adam'"),
    ],
)
def test_mistakes_are_named(model, config, message):
    with pytest.raises(UserError, match=message):
        i_bau(model, config)
