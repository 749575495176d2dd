"""The folded pooling and linear layer trains like the unfolded one, step by step, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax.errors import UserError
from bdjax.models.vgg import vgg19_bn
from bdjax.nn.folded_linear import fold, pool, pool_matrix, unfold
from bdjax.types import DataSpec
from tests.later import some_later

C, HIDDEN, CLASSES, BATCH = 3, 6, 4, 5


def rates(t):
    return 0.05 * jnp.square(jnp.cos(t.astype(jnp.float64) * (np.pi / 40)))


def pooled(z, xp=jnp):
    """Adaptive pooling written out with its definition, f[b h w c] -> f[b, c, 49]; no function of the package."""
    h = z.shape[1]
    bins = [slice(i * h // 7, -(-(i + 1) * h // 7)) for i in range(7)]
    return xp.stack([xp.mean(z[:, r, s], (1, 2)) for r in bins for s in bins], -1)


def head(params, z, keep):
    """Features, pooling, linear, ReLU, dropout by a given mask, linear; "full" is W [out, c, 49], "kernel" the folded layer's."""
    z = jnp.tanh(jnp.einsum("bhwc,cd->bhwd", z, params["features"]))
    if "full" in params:
        y = jnp.einsum("bcs,ocs->bo", pooled(z), params["full"]) + params["bias"][None]
    else:
        y = pool(z) @ params["kernel"] + params["bias"][None]
    return jax.nn.relu(y) * keep @ params["last"]


def loss(params, batch):
    z, keep, labels = batch
    logits = head(params, z, keep)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), logits


def kernel_of(full, h):
    return np.asarray(fold(full, h)).transpose(2, 1, 0).reshape(-1, full.shape[0])


def start(h):
    """The same network twice: {"full"} and {"kernel"}; weights of size 0.1, so that decay and gradient both matter."""
    generator = np.random.default_rng(100 + h)
    full = 0.1 * generator.normal(size=(HIDDEN, C, 49))
    rest = {
        "features": generator.normal(size=(C, C)),
        "last": generator.normal(size=(HIDDEN, CLASSES)),
        "bias": np.full(HIDDEN, 0.1),
    }
    return {"full": full, **rest}, {"kernel": kernel_of(full, h), **rest}


def batches(h, count):
    """(features, dropout masks, labels), a step on axis 0."""
    generator = np.random.default_rng(h)
    z = generator.normal(size=(count, BATCH, h, h, C))
    keep = 2.0 * generator.integers(0, 2, (count, BATCH, HIDDEN))
    return z, keep, generator.integers(0, CLASSES, (count, BATCH)).astype(np.int32)


def one(data, step):
    return tuple(x[step] for x in data)


def trained(rule):
    """``f(params, data) -> logits of every step, last parameters``, to be compiled."""

    def run(params, data):
        def step(carry, batch):
            params, state = carry
            gradient, logits = jax.grad(loss, has_aux=True)(params, batch)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes its counters with floats
                change, state = rule.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), logits

        (params, _), logits = jax.lax.scan(step, (params, rule.init(params)), data)
        return logits, params

    return run


def train(params, data, rule):
    """Logits of every step, and the last parameters, in NumPy."""
    return jax.device_get(jax.jit(trained(rule))(params, data))


def sgd(nesterov, clip=None):
    first = [optax.clip_by_global_norm(clip)] if clip is not None else []
    return optax.chain(
        *first,
        optax.add_decayed_weights(0.05),
        optax.trace(0.9, nesterov),
        optax.scale_by_learning_rate(rates),
    )


@pytest.mark.parametrize("h", [1, 2, 3, 4, 5, 6, 7, 9])
def test_the_pooling_matrix_averages_the_bins_of_the_definition(h):
    p, z = pool_matrix(h), np.random.default_rng(0).normal(size=(2, h, h, C))
    ours = np.einsum("sh,tw,bhwc->bcst", p, p, z).reshape(2, C, 49)
    np.testing.assert_allclose(ours, pooled(z, np), rtol=0, atol=1e-14)


@pytest.mark.parametrize("h", [1, 2, 3, 4, 5, 6, 7, 9])
def test_the_pooling_matrix_is_pytorchs(h):
    torch = pytest.importorskip("torch")
    eye = torch.nn.functional.adaptive_avg_pool1d(torch.eye(h, dtype=torch.float64)[None], 7)[0]
    np.testing.assert_allclose(pool_matrix(h), eye.numpy().T, rtol=0, atol=1e-15)


def test_the_matrices_written_out():
    assert pool_matrix(1).tolist() == [[1.0]] * 7
    assert pool_matrix(2).tolist() == [[1, 0]] * 3 + [[0.5, 0.5]] + [[0, 1]] * 3
    assert (pool_matrix(2).T @ pool_matrix(2)).tolist() == [[3.25, 0.25], [0.25, 3.25]]
    assert pool_matrix(7).tolist() == np.eye(7).tolist()
    ones = np.ones((1, 1, 49))
    np.testing.assert_allclose(fold(ones, 1), [[[7.0]]], rtol=1e-14)  # U = 49 / 7
    np.testing.assert_allclose(unfold(np.ones((1, 1, 1)), 1), ones / 7, rtol=1e-14)


@pytest.mark.parametrize("h", [1, 2, 3, 4, 5, 6])
def test_export_and_import(h):
    """Q is an isometry onto what the data see: U -> W -> U is the identity, W -> U -> W the projection on P's columns."""
    generator = np.random.default_rng(h)
    folded = generator.normal(size=(HIDDEN, C, h * h))
    full = generator.normal(size=(HIDDEN, C, 49))
    np.testing.assert_allclose(fold(unfold(folded, h), h), folded, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.sum(unfold(folded, h) ** 2), np.sum(folded**2), rtol=1e-13)
    p = np.kron(pool_matrix(h), pool_matrix(h))
    np.testing.assert_allclose(unfold(fold(full, h), h), full @ p @ np.linalg.pinv(p), rtol=0, atol=1e-12)
    np.testing.assert_allclose(unfold(fold(full, h), h) @ p, full @ p, rtol=0, atol=1e-12)
    assert fold(full.astype(np.float32), h).dtype == np.float32 == unfold(folded.astype(np.float32), h).dtype


@pytest.mark.parametrize("h", [7, 9])
def test_maps_of_7_and_more_keep_all_weights(h):
    full = np.random.default_rng(0).normal(size=(HIDDEN, C, 49))
    assert fold(full, h) is full and unfold(full, h) is full
    with jax.enable_x64(True):
        whole, other = start(h)
        assert other["kernel"].shape == (49 * C, HIDDEN)
        batch = one(batches(h, 1), 0)
        got, want = jax.jit(lambda *both: [loss(params, batch)[1] for params in both])(other, whole)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("nesterov", some_later([False, True], [True]))
@pytest.mark.parametrize("h", some_later([1, 2, 3, 4], [3, 4]))
def test_20_steps_of_sgd_with_momentum_and_decay_give_the_same_logits(h, nesterov):
    with jax.enable_x64(True):
        (full, folded), data = start(h), batches(h, 20)
        want, last_full = train(full, data, sgd(nesterov))
        got, last_folded = train(folded, data, sgd(nesterov))
        assert np.max(np.abs(want[-1] - want[0])) > 0.1  # it moved
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
        np.testing.assert_allclose(last_folded["kernel"], kernel_of(last_full["full"], h), rtol=0, atol=1e-12)


def test_the_sgd_of_this_package_too():
    from bdjax.train.optimisers import sgd as ours

    with jax.enable_x64(True):
        rule = optax.chain(ours(0.9, 0.05), optax.scale(-0.05))
        want, got = (train(params, batches(2, 20), rule)[0] for params in start(2))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("h", some_later([1, 2, 3, 4], [1, 3, 4]))
def test_gradient_norms_are_equal_so_clipping_and_sharpness_aware_steps_are_exact(h):
    with jax.enable_x64(True):
        (full, folded), data = start(h), batches(h, 20)

        def sharp(params, g, radius=0.5, rate=0.1):
            up = jax.tree.map(lambda p, d: p + radius * d / optax.tree.norm(g), params, g)
            return jax.tree.map(lambda p, d: p - rate * d, params, jax.grad(loss, has_aux=True)(up, one(data, 0))[0])

        @jax.jit
        def program(params, clip):
            g = jax.grad(loss, has_aux=True)(params, one(data, 0))[0]
            stepped = sharp(params, g)
            logits = loss(stepped, one(data, 1))[1]
            rule = sgd(False, clip * optax.tree.norm(g))
            return g, optax.tree.norm(g), stepped, logits, trained(rule)(params, data)[0]

        g_full, norm_full, one_full, logits_full, want = jax.device_get(program(full, 0.3))
        g_folded, norm_folded, one_folded, logits_folded, got = jax.device_get(program(folded, 0.3))
        np.testing.assert_allclose(np.linalg.norm(g_folded["kernel"]), np.linalg.norm(g_full["full"]), rtol=1e-12)
        np.testing.assert_allclose(norm_folded, norm_full, rtol=1e-12)
        np.testing.assert_allclose(g_folded["kernel"], kernel_of(g_full["full"], h), rtol=0, atol=1e-13)
        np.testing.assert_allclose(unfold(fold(g_full["full"], h), h), g_full["full"], rtol=0, atol=1e-13)  # in the row space
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
        np.testing.assert_allclose(one_folded["kernel"], kernel_of(one_full["full"], h), rtol=0, atol=1e-13)
        np.testing.assert_allclose(logits_folded, logits_full, rtol=0, atol=1e-12)


def adam(rate, eps, decay=0.0, seven=False, coupled=False):
    """AMSGrad on everything; where ``seven``, the folded layer's kernel takes rate and eps times 7 and decay / 7."""

    def rule(rate, eps, decay):
        first = [optax.add_decayed_weights(decay)] if coupled else []
        last = [] if coupled else [optax.add_decayed_weights(decay)]
        return optax.chain(*first, optax.scale_by_amsgrad(eps=eps), *last, optax.scale(-rate))

    rules = {"others": rule(rate, eps, decay), "kernel": rule(7 * rate, 7 * eps, decay / 7) if seven else rule(rate, eps, decay)}
    return optax.multi_transform(rules, lambda params: {name: "kernel" if name == "kernel" else "others" for name in params})


@functools.cache
def under_adam(h, seven=False, coupled=False):
    """``f(params, decay) -> logits`` of 20 steps."""
    data = batches(h, 20)
    return jax.jit(lambda params, decay: trained(adam(0.01, 1e-3, decay, seven, coupled))(params, data)[0])


def test_adam_on_1x1_maps_needs_7_times_the_rate_and_epsilon():
    with jax.enable_x64(True):
        full, folded = start(1)
        for decay in (0.0, 0.1):  # decoupled
            want, got = under_adam(1)(full, decay), under_adam(1, seven=True)(folded, decay)
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
        assert np.max(np.abs(np.asarray(under_adam(1)(folded, 0.0)) - under_adam(1)(full, 0.0))) > 1e-3


@pytest.mark.parametrize(("h", "decay"), [(1, 0.1), pytest.param(2, 0.0, marks=pytest.mark.slow)])
def test_adam_with_coupled_decay_or_on_larger_maps_does_not_fold(h, decay):
    """The limits that the docstring states are real."""
    with jax.enable_x64(True):
        full, folded = start(h)
        want, got = under_adam(h, coupled=True)(full, decay), under_adam(h, True, True)(folded, decay)
        assert np.max(np.abs(np.asarray(got) - want)) > 1e-4


@pytest.mark.parametrize("h", [1, 2, 3, 7, 8])
def test_pooled_values_are_the_pooling_or_its_coordinates(h):
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(2, h, h, C))
        by_position = pooled(z, np).transpose(0, 2, 1)  # row t C + c of the kernel belongs to position t and channel c
        whole, found = jax.device_get(jax.jit(lambda z: (pool(z, folded=False), pool(z)))(z))
        np.testing.assert_allclose(whole, by_position.reshape(2, -1), rtol=0, atol=1e-14)
        assert found.shape == (2, min(h, 7) ** 2 * C)
        # An isometry: the coordinates have the pooled values' length and products.
        np.testing.assert_allclose(found @ found.T, whole @ whole.T, rtol=1e-12)
    assert jax.eval_shape(pool, jax.ShapeDtypeStruct((1, h, h, C), jnp.bfloat16)).dtype == jnp.float32


def test_independent_weights_stay_independent_in_the_coordinates():
    full = 0.01 * np.random.default_rng(0).normal(size=(64, 128, 49))
    assert np.std(fold(full, 1)) == pytest.approx(0.01, rel=0.03)
    np.testing.assert_allclose(np.cov(fold(full, 2).reshape(-1, 4).T), 1e-4 * np.eye(4), atol=6e-6)


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_20_steps_of_the_folded_network_are_those_of_the_whole_one(size):
    """VGG itself, its convolutions frozen: features through pooling, linear layers and dropout by the same keys."""
    from bdjax.train.optimisers import sgd as ours

    spec, h = DataSpec("x", (size, size, 3), CLASSES, (0.5,) * 3, (0.25,) * 3, False, 0), size // 32
    with jax.enable_x64(True):
        networks = [vgg19_bn(spec, 2, depth=1, fold=fold) for fold in (False, True)]
        generator = np.random.default_rng(0)
        shapes = {"classifier_0": (49 * 16, 128), "classifier_3": (128, 128), "classifier_6": (128, CLASSES)}
        whole = {n: {"kernel": generator.normal(0, 0.05, shape), "bias": np.zeros(shape[1])} for n, shape in shapes.items()}
        first = fold(whole["classifier_0"]["kernel"].reshape(49, 16, 128).transpose(2, 1, 0), h)
        folded = {**whole, "classifier_0": {**whole["classifier_0"], "kernel": first.transpose(2, 1, 0).reshape(-1, 128)}}
        rule, found = optax.chain(ours(0.9, 0.05), optax.scale(-0.003)), []
        z, labels = generator.normal(size=(BATCH, h, h, 16)), np.arange(BATCH, dtype=np.int32) % CLASSES
        keys = jax.random.split(jax.random.key(3), 20)
        for network, params in zip(networks, (whole, folded), strict=True):

            def step(carry, key, network=network):
                params, state = carry

                def loss(params):
                    variables = {"params": params, "batch_stats": {}}
                    logits = network.apply(variables, z, train=True, key=key, start="features").logits
                    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), logits

                gradient, logits = jax.grad(loss, has_aux=True)(params)
                change, state = rule.update(gradient, state, params)
                return (optax.apply_updates(params, change), state), logits

            found.append(np.asarray(jax.jit(lambda p, step=step: jax.lax.scan(step, (p, rule.init(p)), keys)[1])(params)))
        assert np.max(np.abs(found[0][-1] - found[0][0])) > 0.1
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-10)


def test_no_eigenvalues_are_computed_by_the_program():
    text = jax.jit(pool).lower(jax.ShapeDtypeStruct((2, 3, 3, C), jnp.float32)).as_text()
    assert "eigh" not in text and "custom_call" not in text


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="square"):
        pool(np.zeros((1, 1, 2, 3), np.float32))
    with pytest.raises(UserError, match=r"\[out, c, 49\]"):
        fold(np.zeros((2, 3 * 49)), 1)
    with pytest.raises(UserError, match=r"\[out, c, 4\]"):
        unfold(np.zeros((2, 3, 49)), 2)
    for call in (lambda: pool_matrix(0), lambda: fold(np.zeros((2, 3, 49)), 0)):
        with pytest.raises(UserError, match="at least 1"):
            call()
