import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan, masked_mean
from bdjax.defenses.tuning import Hyper, cross_entropy_gradient, tuner
from bdjax.models.cnn import cnn
from bdjax.train.schedules import Schedule, cosine, cosine_by_epoch
from bdjax.types import Loop
from tests.defenses.plain_network import plain

KEY = jax.random.key(7)
planned = jax.jit(epoch_plan, static_argnums=2)


def test_cosine_is_periodic_and_not_clamped():
    run = jax.jit(cosine, static_argnums=2)

    def rate(t):
        return float(run(np.float32(0.01), np.int32(t), 100))

    assert rate(0) == pytest.approx(0.01, rel=1e-6)
    assert rate(50) == pytest.approx(0.005, rel=1e-6)
    assert rate(99) == pytest.approx(0.005 * (1 + np.cos(np.pi * 0.99)), rel=1e-4) == pytest.approx(2.467e-6, rel=1e-3)
    assert rate(100) == pytest.approx(0, abs=1e-12)
    assert rate(200) == pytest.approx(0.01, rel=1e-6)
    assert rate(399) == pytest.approx(0.0099975, rel=1e-5)
    assert rate(7900) == pytest.approx(0.005 * (1 + np.cos(np.pi * 79)), abs=1e-12)


def test_masked_mean():
    mean = jax.jit(masked_mean)
    assert float(mean(np.float32([1, 2, 50]), np.float32([1, 1, 0]))) == 1.5
    assert float(mean(np.float32([1, 2, 5]), np.zeros(3, np.float32))) == 0


@pytest.mark.parametrize(("rows", "batch", "sizes"), [(20, 256, [20]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1])])
def test_plan_shuffles_and_keeps_the_last_batch(rows, batch, sizes):
    order, mask = map(np.asarray, planned(KEY, np.ones(rows, bool), batch))
    assert mask.sum(1).tolist() == sizes and order.dtype == np.int32
    assert sorted(order[mask > 0]) == list(range(rows))
    if rows == 20:
        assert np.any(order[0] != np.arange(20))
        assert np.any(np.asarray(planned(jax.random.key(8), np.ones(rows, bool), batch)[0]) != order)


def test_plan_takes_the_same_order_whatever_lies_between():
    present = np.zeros(30, bool)
    present[[1, 2, 5, 9, 12, 20, 21, 28, 29]] = True
    order, mask = map(np.asarray, planned(KEY, present, 4))
    alone, alone_mask = map(np.asarray, planned(KEY, np.ones(9, bool), 4))
    assert mask.sum(1).tolist() == [4, 4, 1, 0, 0, 0, 0, 0] and alone_mask.sum(1).tolist() == [4, 4, 1]
    found, expected = order[mask > 0], alone[alone_mask > 0]
    np.testing.assert_array_equal(found, np.flatnonzero(present)[expected])


@functools.cache
def built(model, epochs=3, batch=8):
    """The plain loop as ``f(key, variables, clean, hyper)``, built once so that it compiles once."""
    run = tuner(model, epochs=epochs, batch=batch, schedule=cosine_by_epoch(epochs))
    return lambda key, variables, clean, hyper: run(key, variables, clean, clean.role == 1, hyper)


@functools.cache
def compiled(model, epochs=3, batch=8):
    return jax.jit(built(model, epochs, batch))


def tune(model, clean, variables, *, epochs=3, batch=8, hyper=None, extra=(), **hooks):
    run = tuner(model, epochs=epochs, batch=batch, **{"schedule": cosine_by_epoch(epochs), **hooks})
    return jax.jit(run)(KEY, variables, clean, np.asarray(clean.role) == 1, hyper or Hyper(), extra)


def float64_hyper(*values):
    return Hyper(*(np.float64(v) for v in values))


def by_hand(variables, images, labels, batches, lrs, momentum, decay, eps, spec):
    """The same training in plain loops: shifted products for the convolutions, norms, cross-entropy and SGD written out."""

    def convolve(x, kernel, stride):
        side = x.shape[1]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        total = 0.0
        for i in range(3):
            for j in range(3):
                total = total + jnp.einsum("bhwc,cd->bhwd", x[:, i : i + side : stride, j : j + side : stride], kernel[i, j])
        return total

    def loss(params, x, y):
        means, variances = {}, {}
        x = (x - jnp.asarray(spec.mean).reshape(1, 1, 1, 3)) / jnp.asarray(spec.std).reshape(1, 1, 1, 3)
        for layer, stride in ((1, 1), (2, 2), (3, 2)):
            x = convolve(x, params[f"conv{layer}"]["kernel"], stride)
            flat = x.reshape(-1, x.shape[-1])
            n = flat.shape[0]
            mean = flat.sum(0) / n
            square = ((flat - mean[None]) ** 2).sum(0)
            means[layer], variances[layer] = mean, square / (n - 1)
            norm = params[f"bn{layer}"]
            flat = (flat - mean[None]) / jnp.sqrt(square / n + eps)[None] * norm["scale"][None] + norm["bias"][None]
            x = jnp.where(flat > 0, flat, 0.0).reshape(x.shape)
        logits = x.sum((1, 2)) / (x.shape[1] * x.shape[2]) @ params["linear"]["kernel"] + params["linear"]["bias"][None]
        picked = jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
        return jnp.mean(jnp.log(jnp.exp(logits).sum(1)) - picked), (means, variances)

    slope_of = jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = plain(variables["params"])
    running = {i: plain(variables["batch_stats"][f"bn{i}"]) for i in (1, 2, 3)}
    buffer = jax.tree.map(np.zeros_like, params)
    losses = []
    for epoch, lr in zip(batches, lrs, strict=True):
        of_epoch = []
        for rows in epoch:
            (value, (means, variances)), slope = plain(slope_of(params, images[rows], labels[rows]))
            buffer = jax.tree.map(lambda b, g, p: momentum * b + (g + decay * p), buffer, slope, params)
            params = jax.tree.map(lambda p, b, lr=lr: p - lr * b, params, buffer)
            for i in (1, 2, 3):
                old = running[i]
                running[i] = {"mean": 0.9 * old["mean"] + 0.1 * means[i], "var": 0.9 * old["var"] + 0.1 * variances[i]}
            of_epoch.append(float(value))
        losses.append(np.mean(of_epoch))
    return {"params": params, "batch_stats": {f"bn{i}": running[i] for i in (1, 2, 3)}}, losses


def test_the_update_is_the_one_written_out_by_hand(model, variables, clean, wide, distance, plain_spec):
    seen = []

    def watching(found, batch, extra, key):  # the rows of each batch, distinguished by their pixels
        jax.debug.callback(lambda i, m: seen.append((np.array(i), np.array(m))), batch.images, batch.mask, ordered=True)
        return cross_entropy_gradient(model)(found, batch, extra, key)

    rows = clean(5)  # 20 rows: batches of 8, 8 and 4
    hyper = Hyper(np.float64(0.05), np.float64(0.8), np.float64(1e-2))
    found = tune(model, rows, wide(variables), hyper=hyper, gradient=watching)
    jax.effects_barrier()
    images = np.asarray(rows.images).astype(np.float32) / np.float32(255)
    batches = [
        [np.argmax((images[None] == i[m > 0][:, None]).all((2, 3, 4)), 1) for i, m in seen[3 * e : 3 * e + 3]] for e in range(3)
    ]
    assert [len(b) for b in batches[0]] == [8, 8, 4] and all(sorted(np.concatenate(e)) == list(range(20)) for e in batches)
    lrs = [0.05 * (1 + np.cos(np.pi * e / 3)) / 2 for e in range(3)]
    expected, losses = by_hand(
        wide(variables), images.astype(np.float64), np.asarray(rows.labels), batches, lrs, 0.8, 1e-2, 1e-5, plain_spec
    )
    assert distance(found.variables, expected) < 1e-10
    assert distance(expected["params"], variables["params"]) > 1e-2  # it moved
    np.testing.assert_allclose(np.asarray(found.loss), losses, rtol=1e-6)
    assert bool(found.alive) and int(found.stopped) == -1 and int(found.steps) == 9


@pytest.mark.parametrize(("batch", "absent"), [(8, 20), pytest.param(256, 13, marks=pytest.mark.slow)])
def test_absent_rows_change_nothing(model, variables, clean, padded, wide, distance, batch, absent):
    rows, hyper, run = clean(5), float64_hyper(0.05, 0.9, 5e-4), compiled(model, 3, batch)
    alone = run(KEY, wide(variables), rows, hyper)
    more = padded(rows, absent)
    among = run(KEY, wide(variables), more, hyper)
    assert distance(among.variables, alone.variables) < 1e-12
    assert distance(among.loss, alone.loss) < 1e-6 and int(among.steps) == int(alone.steps) == 3 * -(-20 // batch)
    # With no row at all nothing is touched.
    empty = run(KEY, wide(variables), more._replace(role=np.zeros_like(more.role)), hyper)
    assert distance(empty.variables, variables) == 0 and int(empty.steps) == 0 and bool(empty.alive)


def test_running_variance_takes_n_over_n_minus_one(plain_spec, variables, clean, wide):
    # 4x4 images: the last norm sees 1x1 maps, so n is the number of rows.
    model = cnn(plain_spec._replace(image_shape=(4, 4, 3)), 4, lowering="unrolled")
    rows = clean(5)._replace(images=np.asarray(clean(5).images)[:, 2:6, 2:6])
    before = wide(variables)
    found = compiled(model, 1, 256)(KEY, before, rows, float64_hyper(0, 0, 0))
    look = jax.jit(lambda images: model.apply(before, images, train=True, record=("bn3/in",)).taps["bn3/in"])
    tap = np.asarray(look(rows.images.astype(np.float32) / np.float32(255)))
    assert tap.shape == (20, 1, 1, 16)
    expected = 0.9 * np.asarray(before["batch_stats"]["bn3"]["var"]) + 0.1 * np.var(tap, (0, 1, 2)) * 20 / 19
    np.testing.assert_allclose(np.asarray(found.variables["batch_stats"]["bn3"]["var"]), expected, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(found.variables["params"]), jax.tree.leaves(before["params"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # rate 0


@pytest.mark.slow  # another program
def test_members_together_equal_members_alone(model, clean, wide, distance):
    rows = clean(5)
    start, keys = (
        wide(jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(1), 3))),
        jax.random.split(jax.random.key(2), 3),
    )
    hyper = Hyper(np.array([0.01, 0.1, 0.03]), np.array([0.9, 0.5, 0.0]), np.array([0.0, 1e-2, 5e-4]))
    together = plain(jax.jit(jax.vmap(built(model), in_axes=(0, 0, None, 0)))(keys, start, rows, hyper))
    for i in range(3):
        member, leaves, found = jax.tree.map(lambda x, i=i: x[i], (plain(start), hyper, together))
        assert distance(found.variables, compiled(model)(keys[i], member, rows, leaves).variables) < 1e-10


@pytest.mark.slow  # compiles the parts around its steps too
def test_a_dispatched_loop_is_the_same_loop(model, variables, clean, distance):
    rows, loop = clean(5), Loop("dispatch")
    hyper = Hyper(np.float32([0.01, 0.1]), *(np.full(2, x) for x in Hyper()[1:]))
    both = jax.tree.map(lambda x: jnp.asarray(np.stack([x, x])), variables)
    found = plain(jax.vmap(built(model.rebuild(loop=loop)), in_axes=(None, 0, None, 0))(KEY, both, rows, hyper))
    for i in range(2):
        member, leaves = jax.tree.map(lambda x, i=i: x[i], (found, hyper))
        assert distance(member, compiled(model)(KEY, variables, rows, leaves)) < 1e-5


def test_a_member_that_is_not_finite_is_frozen_and_marked(model, variables, clean, wide):
    found = plain(compiled(model)(KEY, wide(variables), clean(5), float64_hyper(1e300, 0.9, 5e-4)))
    assert not found.alive and 0 < found.stopped < 9 and found.steps == 9
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.variables))


@pytest.mark.slow  # another program
def test_a_member_that_is_not_finite_is_frozen_and_marked_while_others_go_on(model, variables, clean, distance):
    run = jax.jit(jax.vmap(lambda lr: built(model)(KEY, variables, clean(5), Hyper(lr))))
    found, well = (plain(run(np.float32([0.01, lr]))) for lr in (1e30, 0.01))
    assert found.alive.tolist() == [True, False] and found.stopped[0] == -1 and 0 < found.stopped[1] < 9
    assert found.steps.tolist() == [9, 9]
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    assert distance(*(jax.tree.map(lambda x: x[0], f.variables) for f in (found, well))) == 0


def test_hooks_see_what_they_should(model, variables, clean, distance):
    """A schedule with a state that watches the loss, a projection and a gradient of one's own."""
    rows = clean(2)  # one batch of 8 rows per epoch
    halving = Schedule(
        lambda hyper: (hyper.lr, jnp.float32(0)),
        lambda hyper, state, epoch, step: state[0],
        lambda state, loss: (state[0] / 2, loss),
    )

    def ones(found, batch, extra, key):
        return jax.tree.map(jnp.ones_like, found["params"]), found["batch_stats"], jnp.sum(batch.mask) + extra

    found = tune(
        model,
        rows,
        variables,
        epochs=3,
        hyper=Hyper(np.float32(0.5), np.float32(0), np.float32(0)),
        extra=np.float32(2),
        schedule=halving,
        gradient=ones,
        project=lambda params, extra: jax.tree.map(lambda p: p + extra, params),
    )
    moved = 3 * 2 - 0.5 * (1 + 0.5 + 0.25)
    assert distance(found.variables["params"], jax.tree.map(lambda p: p + np.float32(moved), plain(variables["params"]))) < 1e-5
    assert found.loss.tolist() == [10, 10, 10]


def test_augmentation_draws_anew_for_each_step(tiny_spec, variables, clean):
    seen = []

    def watching(found, batch, extra, key):
        jax.debug.callback(lambda i: seen.append(np.array(i)), batch.images, ordered=True)
        return jax.tree.map(jnp.zeros_like, found["params"]), found["batch_stats"], jnp.float32(0)

    rows = clean(1)
    rows = rows._replace(images=jnp.asarray(np.tile(np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1), (4, 1, 1, 3))))
    model = cnn(tiny_spec, 4, lowering="patches")  # which the gradient does not ask
    tune(model, rows, variables, epochs=3, gradient=watching)
    tune(model, rows, variables, epochs=1, gradient=watching, augment=False)
    jax.effects_barrier()
    assert np.any(seen[0] != seen[1]) and np.any(seen[0] != seen[0][:1])  # per step and per image
    np.testing.assert_array_equal(seen[3], np.asarray(rows.images, np.float32) / np.float32(255))
