"""Training one member: the update, the hooks, frozen members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.population import members, take
from bdjax.train.optimisers import sgd
from bdjax.train.schedules import cosine
from bdjax.train.trainer import poison_count, trainer
from bdjax.types import Loop
from tests.toy import data, one, patch_attack

DISPATCH = Loop("dispatch")


@pytest.mark.parametrize(
    ("ratio", "rows", "count"),
    [(0.1, 39_209, 3921), (0.05, 39_209, 1960), (0.01, 39_209, 392), (0.1, 50_000, 5000), (0.5, 5, 2), (0.0, 9, 0)],
)
def test_poison_counts_round_half_to_even(ratio, rows, count):
    assert poison_count(ratio, rows) == count


def test_sgd_is_pytorchs_and_the_cosine_is_not_clamped():
    p, g = {"w": jnp.asarray([1.0, -2.0])}, [{"w": jnp.asarray([0.5, 0.25])}, {"w": jnp.asarray([-1.0, 2.0])}]
    rule, buffer, w = sgd(0.9, 0.1), np.zeros(2), np.asarray([1.0, -2.0])
    state = rule.init(p)
    for gradient in g:
        d, state = rule.update(gradient, state, p)
        p = jax.tree.map(lambda a, b: a - 0.01 * b, p, d)
        buffer = 0.9 * buffer + (np.asarray(gradient["w"]) + 0.1 * w)
        w = w - 0.01 * buffer
    np.testing.assert_allclose(p["w"], w, rtol=1e-6)
    lr = [float(cosine(jnp.float32(0.01), jnp.int32(t), 100)) for t in (0, 99, 100, 200, 399)]
    np.testing.assert_allclose(lr, [0.01, 2.467e-6, 0, 0.01, 0.0099975], rtol=1e-3, atol=1e-9)


def test_an_epoch_equals_a_plain_loop(tiny_dataset):
    """Same order, no augmentation, no poison: parameters agree with hand-written SGD on the same batches."""
    from bdjax.keys import Stream, step_key, stream
    from bdjax.train.trainer import cross_entropy

    spec = tiny_dataset.spec._replace(pad=0)
    model, attack, member = cnn(spec, 2), patch_attack(), one(ratio=0.0)
    trained = jax.jit(lambda m, d: trainer(model, attack, 160)(m, d, None, None))(member, data(tiny_dataset))
    variables = jax.jit(model.init)(stream(member.key, Stream.INIT))
    params, stats = variables["params"], variables["batch_stats"]
    buffer, losses = jax.tree.map(np.zeros_like, params), []

    @jax.jit
    def slope(params, stats, x, y):
        def loss(p):
            out = model.apply({"params": p, "batch_stats": stats}, x, train=True)
            return jnp.mean(cross_entropy(out.logits, y)), out.variables["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    for epoch in range(2):
        order = jax.random.permutation(step_key(stream(member.key, Stream.ORDER), epoch), 160)
        lr = np.float32(0.005 * (1 + np.cos(np.pi * epoch / 2)))
        for batch in np.asarray(order).reshape(4, 40):
            x, y = tiny_dataset.train.images[batch] / np.float32(255), tiny_dataset.train.labels[batch]
            (value, stats), g = jax.device_get(slope(params, stats, x, y))
            params = jax.device_get(params)
            buffer = jax.tree.map(lambda b, g, p: np.float32(0.9) * b + g + np.float32(5e-4) * p, buffer, g, params)
            params = jax.tree.map(lambda p, b, lr=lr: p - lr * b, params, buffer)
            losses.append(float(value))
    np.testing.assert_allclose(trained.loss, np.reshape(losses, (2, 4)).mean(1), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(trained.variables), jax.tree.leaves({"params": params, "batch_stats": stats}), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    assert bool(trained.alive) and int(trained.stopped) == -1


def test_a_member_that_diverges_is_frozen_finite_and_named_and_the_others_go_on(tiny_dataset):
    """An in-batch attack whose loss turns infinite at ratio 1 only."""
    attack = patch_attack(epochs=3, augment="own")

    def explode(trigger, key, images, labels, ratio, other):
        return images, labels, jnp.where((ratio > 0.5) & (trigger["step"] >= 5), jnp.inf, 0.0), {"step": trigger["step"] + 1}

    def weighted(trigger, key, images, labels, ratio, other):
        images, labels, extra, trigger = explode(trigger, key, images, labels, ratio, other)
        return images * jnp.where(jnp.isinf(extra), jnp.nan, 1.0), labels, jnp.float32(0), trigger

    attack = attack._replace(batch=weighted, init=lambda key, assets: {"step": jnp.int32(0)})
    heard = []
    run = trainer(cnn(tiny_dataset.spec, 2, loop=DISPATCH), attack, 160, lambda e, loss, alive: heard.append((e, loss, alive)))
    stack, split = members([0], [0.0, 1.0], 160)[0], data(tiny_dataset)
    out = jax.device_get(jax.vmap(lambda m: run(m, split, None, None))(stack))
    jax.effects_barrier()
    assert out.alive.tolist() == [True, False]
    assert out.stopped.tolist() == [-1, 5]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out.variables))
    well = jax.device_get(jax.vmap(lambda m: run(m, split, None, None))(take(stack, [0, 0])))  # of the same programs
    for a, b in zip(jax.tree.leaves(well.variables), jax.tree.leaves(out.variables), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-3, atol=1e-5)
    assert [int(np.atleast_1d(e)[0]) for e, _, _ in heard[:3]] == [0, 1, 2]
    assert heard[2][2].tolist() == [True, False]


def test_the_in_batch_hooks_get_a_second_batch_and_their_own_optimiser(tiny_dataset):
    seen = {}

    def batch(trigger, key, images, labels, ratio, other):
        seen["other"] = other[0].shape
        stamped = jnp.clip(images + trigger["pattern"][None], 0, 1)
        return jnp.where(ratio > 0, stamped, images), labels, 0.1 * jnp.mean(jnp.square(trigger["pattern"])), trigger

    def update(trigger, gradient):
        return {"pattern": trigger["pattern"] - 0.5 * gradient["pattern"], "steps": trigger["steps"] + 1}

    attack = patch_attack(augment="before", second_batch=True)._replace(
        batch=batch, update=update, init=lambda key, assets: {"pattern": jnp.full((8, 8, 3), 0.2), "steps": jnp.int32(0)}
    )
    out = jax.jit(lambda m, d: trainer(cnn(tiny_dataset.spec, 2), attack, 160)(m, d, None, None))(one(), data(tiny_dataset))
    assert seen["other"] == (40, 8, 8, 3)
    assert int(out.trigger["steps"]) == 8
    assert np.any(np.asarray(out.trigger["pattern"]) != np.float32(0.2))


def test_recipes_that_cannot_run_are_refused(tiny_dataset):
    model = cnn(tiny_dataset.spec, 2)
    for recipe in ({"epochs": 0}, {"augment": "during"}):
        with pytest.raises(UserError):
            trainer(model, patch_attack(**recipe), 160)
    with pytest.raises(UserError, match="schedule"):
        trainer(model, patch_attack(schedule="step"), 160)(one(), data(tiny_dataset), None, None)
    with pytest.raises(UserError, match="80 rows"):
        trainer(model, patch_attack(), 80)(one(), data(tiny_dataset), None, None)
