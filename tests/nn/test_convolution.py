"""Every lowering equals the native convolution, in values and in derivatives, alone and for a population."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.nn.convolution import LOWERINGS, convolve

# height, width, window, stride
SHAPES = [(8, 8, 3, 1), (7, 5, 3, 2), (6, 6, 1, 2)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.slow) for shape in ((4, 4, 5, 1), (1, 1, 3, 1), (8, 6, 1, 1), (6, 8, 3, 1))]
OTHERS = [lowering for lowering in LOWERINGS if lowering != "native"]


def arrays(height, width, window, members, dtype=np.float32):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(members, 2, height, width, 3)).astype(dtype)
    kernel = generator.normal(size=(members, window, window, 3, 4)).astype(dtype)
    return x, kernel


def run(lowering, window, stride):
    return lambda x, k: convolve(x, k, stride=stride, padding=window // 2, lowering=lowering)


def gradients(lowering, window, stride):
    def loss(x, k):
        return jnp.sum(jnp.sin(run(lowering, window, stride)(x, k)))

    return jax.grad(loss, argnums=(0, 1))


@functools.cache
def computed(lowering, height, width, window, stride):
    """Values and gradients of members with images and kernels of their own, with shared images and with shared kernels."""
    x, kernel = arrays(height, width, window, 3)

    @jax.jit
    def program(*both):
        found = []
        for axes in ((0, 0), (None, 0), (0, None)):
            args = [v if axis == 0 else v[0] for v, axis in zip(both, axes, strict=True)]
            found += [jax.vmap(make(lowering, window, stride), axes)(*args) for make in (run, gradients)]
        return found

    return jax.device_get(program(x, kernel))


@pytest.mark.parametrize("lowering", OTHERS)
@pytest.mark.parametrize(("height", "width", "window", "stride"), SHAPES)
def test_values_and_gradients(lowering, height, width, window, stride):
    shape = (height, width, window, stride)
    got, want = computed(lowering, *shape), computed("native", *shape)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("lowering", OTHERS)
def test_reverse_over_reverse(lowering):
    """I-BAU differentiates a gradient: mixed second derivatives of a two-layer network, different kernels per member."""

    def mixed(lowering):
        def loss(x, k, k2):
            h = jnp.tanh(convolve(x, k, stride=2, padding=1, lowering=lowering))
            return jnp.sum(jnp.sin(convolve(h, k2, stride=1, padding=1, lowering=lowering)))

        def norm(x, k, k2):
            return jnp.sum(jnp.square(jax.grad(loss)(x, k, k2)))

        return jax.jit(jax.vmap(jax.grad(norm, argnums=(0, 1, 2))))

    with jax.enable_x64(True):
        x, kernel = arrays(6, 6, 3, 2, np.float64)
        second = np.random.default_rng(5).normal(size=(2, 3, 3, 4, 2))
        for g, w in zip(mixed(lowering)(x, kernel, second), mixed("native")(x, kernel, second), strict=True):
            assert np.max(np.abs(w)) > 0.1
            np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lowering", OTHERS)
def test_bfloat16(lowering):
    x, kernel = arrays(8, 8, 3, 2, jnp.bfloat16)
    got, want = (np.asarray(jax.jit(jax.vmap(run(name, 3, 1)))(x, kernel)) for name in (lowering, "native"))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=0.05, atol=0.1)


def test_members_unrolled_makes_no_grouped_convolution():
    x, kernel = arrays(8, 8, 3, 4)
    text = {name: jax.jit(jax.vmap(gradients(name, 3, 1))).lower(x, kernel).as_text() for name in ("native", "unrolled")}
    grouped = {name: "feature_group_count = 4" in t or "batch_group_count = 4" in t for name, t in text.items()}
    assert grouped == {"native": True, "unrolled": False}


def test_an_unknown_lowering_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'patches'"):
        convolve(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 4)), stride=1, padding=1, lowering="patchs")


@pytest.mark.parametrize(("stride", "channels"), [(1, 3), (1, 32), (2, 3)])
def test_mixed_keeps_to_the_layout_that_is_fast_in_loops_on_a_cpu(stride, channels):
    x = jax.ShapeDtypeStruct((2, 2, 8, 8, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 3, 3, channels, 32), jnp.float32)
    canonical = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"

    def others(lowering):
        text = jax.jit(jax.vmap(gradients(lowering, 3, stride))).lower(x, kernel).as_text()
        layouts = re.findall(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", text)
        assert layouts
        return [layout for layout in layouts if layout != canonical]

    assert others("unrolled") and not others("mixed")
