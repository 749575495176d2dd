"""Max-pooling against windows written out and against PyTorch, ties and derivatives included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.nn.pooling import max_pool


@jax.jit
def pulled(x, cotangent):
    """(pooled, gradient)."""
    value, pull = jax.vjp(max_pool, x)
    return value, pull(cotangent)[0]


def first_maximum(x):
    """(pooled, 0/1 at the place of each window's first maximum), in loops."""
    b, h, w, c = x.shape
    out, place = np.zeros((b, h // 2, w // 2, c), x.dtype), np.zeros_like(x)
    for n, i, j, k in np.ndindex(out.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, k].ravel()
        best = int(np.argmax(window))  # the first
        out[n, i, j, k] = window[best]
        place[n, 2 * i + best // 2, 2 * j + best % 2, k] = 1
    return out, place


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 2, 2, 4), (2, 5, 7, 2)])
@pytest.mark.parametrize("levels", [2, 1000])  # two levels: most windows have ties
def test_the_first_maximum_wins_and_takes_the_gradient(shape, levels):
    x = np.random.default_rng(0).integers(-levels, levels, shape).astype(np.float32) / levels
    want, place = first_maximum(x)
    cotangent = np.random.default_rng(1).normal(size=want.shape).astype(np.float32)
    got, slope = pulled(x, cotangent)
    np.testing.assert_array_equal(got, want)
    spread = np.zeros_like(x)
    h, w = 2 * want.shape[1], 2 * want.shape[2]
    spread[:, :h, :w] = np.repeat(np.repeat(cotangent, 2, 1), 2, 2)
    np.testing.assert_array_equal(slope, spread * place)


@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_pytorchs(seed):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(seed)
    x = np.maximum(generator.integers(-3, 3, (2, 6, 5, 4)), 0).astype(np.float32)  # as after a ReLU: zeros and ties
    if seed == 2:
        x[0, 0, 0, 0], x[0, 3, 3, 1], x[1, 4, 1, 2] = np.nan, np.nan, np.inf
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(theirs, 2)
    cotangent = generator.normal(size=pooled.shape).astype(np.float32)
    pooled.backward(torch.tensor(cotangent))
    got, slope = pulled(x, cotangent.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(got, pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(slope, theirs.grad.numpy().transpose(0, 2, 3, 1))


def test_reverse_over_reverse_and_vmap():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 2))
        towards, step = np.random.default_rng(1).normal(size=x.shape[1:]), 1e-6

        def slope(x):
            return jnp.sum(jnp.cos(jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x * x))))(x)))

        alone = jax.jit(jax.value_and_grad(slope))
        second = np.sum(np.asarray(alone(x[0])[1]) * towards)
        ends = [float(alone(x[0] + sign * step * towards)[0]) for sign in (1, -1)]
        np.testing.assert_allclose(second, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.value_and_grad(slope)))(x)[1][1], alone(x[1])[1])


def test_it_keeps_the_dtype_and_scatters_nothing():
    x = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16)
    assert jax.eval_shape(max_pool, x).dtype == jnp.bfloat16
    text = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x).astype(jnp.float32)))).lower(x).as_text()
    assert "select_and_scatter" not in text and "scatter" not in text


@pytest.mark.parametrize("shape", [(1, 1, 4, 2), (1, 2, 1, 2)])
def test_maps_without_a_window_are_refused(shape):
    with pytest.raises(UserError, match="at least 2x2 positions; given"):
        max_pool(np.zeros(shape, np.float32))
