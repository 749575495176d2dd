"""The activations against PyTorch's, in values and slopes, where they bend too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.nn.activations import hard_sigmoid, hard_swish, leaky_relu

POINTS = np.float32([-4, -3, np.nextafter(np.float32(-3), np.float32(0)), -1.5, 0, 1.5, 2.999, 3, 4, 100])


@functools.partial(jax.jit, static_argnums=0)
def slope(f, x):
    return jax.vmap(jax.grad(f))(x)


def test_values_and_slopes_worked_by_hand():
    x = np.float32([-4, -3, 0, 1, 3, 4])
    np.testing.assert_allclose(jax.jit(hard_sigmoid)(x), [0, 0, 1 / 2, 4 / 6, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(hard_swish)(x), [0, 0, 0, 4 / 6, 3, 4], rtol=1e-6)
    slopes = [slope(f, x) for f in (hard_sigmoid, hard_swish)]
    np.testing.assert_allclose(slopes, [[0, 0, 1 / 6, 1 / 6, 0, 0], [0, 0, 1 / 2, 5 / 6, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(leaky_relu)(x), [-0.04, -0.03, 0, 1, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(slope(leaky_relu, x), [0.01, 0.01, 0.01, 1, 1, 1], rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(("ours", "name"), [(hard_sigmoid, "hardsigmoid"), (hard_swish, "hardswish"), (nn.silu, "silu"),
                                            (nn.relu, "relu"), (nn.sigmoid, "sigmoid"), (leaky_relu, "leaky_relu")])  # fmt: skip
def test_values_and_slopes_are_pytorchs(ours, name):
    torch = pytest.importorskip("torch")
    x = torch.tensor(POINTS, requires_grad=True)
    y = getattr(torch.nn.functional, name)(x)
    y.sum().backward()
    np.testing.assert_allclose(jax.jit(ours)(POINTS), y.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope(ours, POINTS), x.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_they_keep_the_dtype_and_pass_on_what_is_no_number():
    for f in (hard_sigmoid, hard_swish, leaky_relu):
        assert jax.eval_shape(f, jax.ShapeDtypeStruct((2,), jnp.bfloat16)).dtype == jnp.bfloat16
        x = np.float32([np.nan, 1e38])
        assert np.isnan(jax.jit(f)(x)[0])
        assert np.isfinite(slope(f, x)[1])
