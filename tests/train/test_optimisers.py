import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax.defenses.tuning import Hyper, tuner
from bdjax.nn.folded_linear import fold
from bdjax.train.optimisers import DECAYS, EPS, adam, adamw, amsgrad, fixed, sgd, unfolded
from bdjax.train.schedules import constant
from tests.defenses.plain_network import batches, cross_entropies, dense, dense_logits, pixels, plain

# A large gradient first: from then on the largest second moment is not the present one.
GRADIENTS = np.array(
    [[4.0, -3, 0.5], [0.1, 0.2, -0.5], [-0.3, 2, 0], [0.2, 0.1, 0], [1, 0, 0], [0.01, 0.1, 5], [0, 1, 1], [2, -1, 0.1]]
)


RULE = amsgrad()
direction, start_of = jax.jit(RULE.update), jax.jit(RULE.init)


def written_out(gradients, lr, eps, bias_corrected_first=False):
    """The parameters after every step, from zero, in NumPy."""
    p, m, v, largest, trace = 0.0, 0.0, 0.0, 0.0, []
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        first, second = 1 - 0.9**t, 1 - 0.999**t
        if bias_corrected_first:  # what optax does
            largest = np.maximum(largest, v / second)
            p = p - lr * (m / first) / (np.sqrt(largest) + eps)
        else:
            largest = np.maximum(largest, v)
            p = p - lr * (m / first) / (np.sqrt(largest) / np.sqrt(second) + eps)
        trace.append(p)
    return np.array(trace)


def test_eight_steps_are_those_of_the_formula_and_not_those_of_optax(wide):
    with jax.numpy_dtype_promotion("standard"):
        rule, theirs = optax.amsgrad(0.1), np.zeros(3)
        update, memory = jax.jit(rule.update), jax.jit(rule.init)(theirs)
        params, state = {"w": np.zeros(3)}, start_of({"w": np.zeros(3)})
        found, others = [], []
        for g in GRADIENTS:
            step, state = direction({"w": g}, state)
            params = {"w": params["w"] - 0.1 * np.asarray(step["w"])}
            change, memory = update(g, memory, theirs)
            theirs = theirs + np.asarray(change)
            found.append(params["w"])
            others.append(theirs)
    expected = written_out(GRADIENTS, 0.1, 1e-8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(others, written_out(GRADIENTS, 0.1, 1e-8, True), rtol=0, atol=1e-8)
    assert np.max(np.abs(np.array(found) - np.array(others))) > 0.1, "more than one learning rate apart"
    assert int(state.count) == 8 and state.largest["w"].dtype == np.float64


def test_epsilon_and_decays_are_taken_where_the_formula_has_them(wide):
    # Gradients of the size of epsilon: were it under the root or divided by the correction the steps would be others.
    gradients, coarse = 1e-3 * GRADIENTS, jax.jit(amsgrad((0.9, 0.999), 1e-3).update)
    state, p, found = start_of(np.zeros(3)), np.zeros(3), []
    for g in gradients:
        step, state = coarse(g, state)
        p = p - 0.1 * np.asarray(step)
        found.append(p)
    np.testing.assert_allclose(found, written_out(gradients, 0.1, 1e-3), rtol=0, atol=1e-13)
    step, _ = jax.jit(amsgrad((0.5, 0.75), 0.25).update)(np.ones(3), start_of(np.zeros(3)))
    np.testing.assert_allclose(step, 1 / 1.25, rtol=1e-12)  # m and v corrected are 1
    step, _ = direction(np.zeros(3), start_of(np.zeros(3)))
    assert step.tolist() == [0, 0, 0]


def test_adam_is_optaxs_but_for_rounding(wide):
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.scale_by_adam()
        params = {"w": np.zeros(3)}
        ours, state, memory = jax.jit(adam().update), adam().init(params), theirs.init(params)
        for g in GRADIENTS:
            step, state = ours({"w": g}, state)
            other, memory = theirs.update({"w": g}, memory, params)
            np.testing.assert_allclose(step["w"], other["w"], rtol=1e-7, atol=1e-12)


def test_adamw_adds_its_share_of_the_parameters_to_the_direction_of_adam():
    params, g = np.float32([1, -2, 4]), np.float32([0.5, 0.1, -3])
    plain_step, _ = adam().update(g, adam().init(params))
    for decay in (0.25, np.float32(0.25)):
        rule = adamw(decay)
        step, state = jax.jit(rule.update)(g, rule.init(params), params)
        np.testing.assert_allclose(step, np.asarray(plain_step) + 0.25 * params, rtol=1e-6)
        assert int(state.count) == 1


def test_decays_of_sgd_may_be_traced_and_of_another_precision_and_it_goes_into_an_optax_chain(wide):
    params, gradients = np.array([1.0, -2.0]), [np.array([0.5, 0.25]), np.array([-1.0, 2.0])]

    @jax.jit
    def run(momentum, decay):
        rule, p = optax.chain(sgd(momentum, decay), optax.scale(-0.5)), jnp.asarray(params)
        state = rule.init(p)
        for g in gradients:
            change, state = rule.update(g, state, p)
            p = optax.apply_updates(p, change)
        return p

    buffer, expected = 0.0, params
    for g in gradients:
        buffer = 0.75 * buffer + (g + 0.5 * expected)
        expected = expected - 0.5 * buffer
    np.testing.assert_allclose(run(np.float32(0.75), np.float32(0.5)), expected, rtol=1e-12)


def plain_loop(params, images, labels, plan, lr):
    """AMSGrad on the dense network's cross-entropy, everything in NumPy but the gradient."""

    def loss(params, x, y):
        return cross_entropies(dense_logits(params, x)[0], y).mean()

    slope_of = jax.jit(jax.grad(loss))
    leaves, structure = jax.tree.flatten(plain(params))
    m, v, largest = ([0.0] * len(leaves) for _ in range(3))
    for t, rows in enumerate((rows for epoch in plan for rows in epoch), 1):
        slopes = jax.tree.leaves(slope_of(jax.tree.unflatten(structure, leaves), images[rows], labels[rows]))
        for i, g in enumerate(np.asarray(g) for g in slopes):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g * g
            largest[i] = np.maximum(largest[i], v[i])
            leaves[i] = leaves[i] - lr * (m[i] / (1 - 0.9**t)) / (np.sqrt(largest[i]) / np.sqrt(1 - 0.999**t) + 1e-8)
    return jax.tree.unflatten(structure, leaves)


def by_amsgrad(model):
    return fixed(unfolded(amsgrad(), model))


def tuned(model, variables, rows, lr, epochs=3, batch=8):
    run = jax.jit(tuner(model, epochs=epochs, batch=batch, schedule=constant(), optimiser=by_amsgrad(model), augment=False))
    return run(jax.random.key(1), variables, rows, np.asarray(rows.role) == 1, Hyper(np.float64(lr)))


def test_the_loop_with_it_is_the_one_written_out(plain_spec, clean, padded, wide, distance):
    assert DECAYS == (0.9, 0.999) and EPS == 1e-8
    model, rows = dense(plain_spec), clean(5)
    start = wide(model.init(jax.random.key(0)))
    found = tuned(model, start, padded(rows, 20), 0.02)  # its empty batches count no step
    plan = batches(jax.random.key(1), 20, 8, 3)
    assert [len(b) for b in plan[0]] == [8, 8, 4]
    expected = plain_loop(start["params"], *plain(pixels(rows), rows.labels), plan, 0.02)
    assert distance(found.variables["params"], expected) < 1e-12
    assert distance(expected, start["params"]) > 0.05  # it moved


@pytest.mark.slow
def test_on_vggs_folded_layer_it_does_to_the_function_what_it_does_on_the_whole_one(plain_spec, clean, wide, distance):
    whole, folded = dense(plain_spec, folded=False), dense(plain_spec, folded=True)
    assert (whole.arch.copies, folded.arch.copies) == (1, 49)
    start = wide(whole.init(jax.random.key(0)))["params"]

    @jax.jit
    def coordinates(params):  # of the whole layer, whose row 3 t + c is position t and channel c
        kernel = params["first"]["kernel"]
        return fold(kernel.reshape(49, 3, -1).transpose(2, 1, 0), 1).transpose(2, 1, 0).reshape(-1, kernel.shape[1])

    small, rows = {**start, "first": {**start["first"], "kernel": coordinates(start)}}, clean(5)
    images = np.asarray(rows.images) / 255
    networks = [(jax.jit(lambda p, x, m=m: m.apply({"params": p}, x).logits), p) for m, p in ((whole, start), (folded, small))]
    before = [logits(p, images) for logits, p in networks]
    a, b = (
        tuned(m, {"params": p, "batch_stats": {}}, rows, 0.01).variables["params"] for m, p in ((whole, start), (folded, small))
    )
    after = [logits(p, images) for (logits, _), p in zip(networks, (a, b), strict=True)]
    assert distance(*before) < 1e-12 and distance(*after) < 1e-10
    assert distance(before[0], after[0]) > 0.05  # it moved
    assert distance(b["first"]["kernel"], coordinates(a)) < 1e-10 and distance(a["last"], b["last"]) < 1e-10


def compiled(rule):
    return optax.GradientTransformation(jax.jit(rule.init), jax.jit(rule.update))


def test_on_vggs_folded_layer_epsilon_grows_as_the_steps_do(plain_spec, wide):
    # Gradients of the size of epsilon: each of the 49 copies gets a seventh of the folded weight's.
    model, slopes = dense(plain_spec, folded=True), 1e-8 * np.random.default_rng(0).normal(size=(4, 3, 3))
    rule = compiled(unfolded(amsgrad(), model))
    params = plain(wide(model.init(jax.random.key(0))))["params"]
    state, whole = rule.init(params), []
    for slope in slopes:
        gradient = jax.tree.map(lambda x: np.full_like(x, 1e-8), params)
        gradient["first"]["kernel"] = slope
        step, state = rule.update(gradient, state, params)
        whole.append(slope / 7)
        trace = np.concatenate([np.zeros((1, 3, 3)), written_out(whole, -1.0, 1e-8)])
        np.testing.assert_allclose(step["first"]["kernel"], 7 * (trace[-1] - trace[-2]), rtol=1e-10)
        np.testing.assert_allclose(step["first"]["bias"], 0.5, rtol=1e-10)  # other layers' are as they were


def test_adam_without_the_largest_moment_does_the_same_to_the_folded_layer(plain_spec, wide):
    model, slopes = dense(plain_spec, folded=True), 1e-8 * np.random.default_rng(1).normal(size=(4, 3, 3))
    params = plain(wide(model.init(jax.random.key(0))))["params"]
    rule, other = (compiled(unfolded(adam(), each)) for each in (model, dense(plain_spec)))
    alone = compiled(adam())
    state, same, expected = rule.init(params), other.init(params), alone.init(np.zeros((3, 3)))
    for slope in slopes:
        gradient = jax.tree.map(lambda x: np.full_like(x, 1e-8), params)
        gradient["first"]["kernel"] = slope
        step, state = rule.update(gradient, state, params)
        as_it_is, same = other.update(gradient, same, params)
        one, expected = alone.update(slope / 7, expected)  # of each of the 49 copies
        np.testing.assert_allclose(step["first"]["kernel"], 7 * np.asarray(one), rtol=1e-12)
        np.testing.assert_allclose(step["first"]["bias"], as_it_is["first"]["bias"], rtol=1e-12)
        assert np.abs(np.asarray(step["first"]["kernel"]) - np.asarray(as_it_is["first"]["kernel"])).max() > 0.03
