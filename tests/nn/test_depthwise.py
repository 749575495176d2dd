"""The depthwise convolution over live taps equals the native one, in values and all reverse derivatives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bdjax.errors import UserError
from bdjax.nn import depthwise as forms
from bdjax.nn.depthwise import DepthwiseConv, depthwise, live_taps
from bdjax.nn.initial import Drawer
from bdjax.nn.layers import Pass

# height, width, window, stride, padding: odd sizes, maps smaller than the kernel, strides that end before the data, no padding
FIRST = [(7, 5, 3, 2, 1), (6, 9, 5, 2, 2), (2, 2, 5, 1, 2), (1, 1, 5, 1, 2), (8, 7, 3, 3, 0), (1, 2, 3, 2, 2)]
LATER = [(8, 8, 3, 1, 1), (4, 4, 5, 1, 2), (2, 2, 5, 2, 2), (1, 1, 3, 2, 1), (3, 1, 5, 1, 2), (5, 5, 1, 2, 0), (4, 4, 2, 1, 1)]
LATER = [pytest.param(*shape, marks=pytest.mark.slow) for shape in LATER]

# Where the two networks meet maps smaller than their kernels: size, window, stride -> live taps in one direction (32 pixels),
# and the same layer at 64 pixels, where maps are twice as large.
SPEC = [
    ("EfficientNet features.5.0-5.4", 2, 5, 1, (1, 4), (0, 5)),
    ("EfficientNet features.6.0", 2, 5, 2, (2, 4), (0, 5)),
    ("EfficientNet features.6.1-6.5", 1, 5, 1, (2, 3), (1, 4)),
    ("EfficientNet features.7.0-7.1", 1, 3, 1, (1, 2), (0, 3)),
    ("MobileNet features.13", 2, 5, 2, (2, 4), (0, 5)),
    ("MobileNet features.14-15", 1, 5, 1, (2, 3), (1, 4)),
]
# (layers, channels, window, stride, map at 32 pixels) of every depthwise convolution
EFFICIENTNET = [(1, 40, 3, 1, 16), (1, 24, 3, 1, 16), (1, 144, 3, 2, 16), (2, 192, 3, 1, 8), (1, 192, 5, 2, 8), (2, 288, 5, 1, 4)]
EFFICIENTNET += [(1, 288, 3, 2, 4), (4, 576, 3, 1, 2), (1, 576, 5, 1, 2), (4, 816, 5, 1, 2), (1, 816, 5, 2, 2)]
EFFICIENTNET += [(5, 1392, 5, 1, 1), (1, 1392, 3, 1, 1), (1, 2304, 3, 1, 1)]
MOBILENET = [(1, 16, 3, 1, 16), (1, 64, 3, 2, 16), (1, 72, 3, 1, 8), (1, 72, 5, 2, 8), (2, 120, 5, 1, 4), (1, 240, 3, 2, 4)]
MOBILENET += [(1, 200, 3, 1, 2), (2, 184, 3, 1, 2), (1, 480, 3, 1, 2), (1, 672, 3, 1, 2), (1, 672, 5, 2, 2), (2, 960, 5, 1, 1)]


def native(x, kernel, stride, padding):
    pads, layout = [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=x.shape[-1])


def ours(x, kernel, stride, padding):
    return depthwise(x, kernel, stride=stride, padding=padding)


def arrays(height, width, window, members=2, dtype=np.float64):
    generator = np.random.default_rng(height * width + window)
    x = generator.normal(size=(members, 3, height, width, 4)).astype(dtype)
    return x, generator.normal(size=(members, window, window, 1, 4)).astype(dtype)


@pytest.mark.parametrize(("layer", "size", "window", "stride", "small", "large"), SPEC)
def test_live_taps_of_the_two_networks(layer, size, window, stride, small, large):
    for factor, (start, stop) in ((1, small), (2, large)):
        assert live_taps(factor * size, window, stride, window // 2) == slice(start, stop), (layer, factor)


@pytest.mark.parametrize(
    ("network", "all_weights", "dead"), [(EFFICIENTNET, 371_520, (275_184, 111_360)), (MOBILENET, 91_608, (60_192, 30_720))]
)
def test_dead_weights_add_up_to_the_published_counts(network, all_weights, dead):
    assert sum(count * c * window**2 for count, c, window, _, _ in network) == all_weights
    for factor, want in zip((1, 2), dead, strict=True):
        found = 0
        for count, c, window, stride, size in network:
            taps = live_taps(factor * size, window, stride, window // 2)
            found += count * c * (window**2 - (taps.stop - taps.start) ** 2)
        assert found == want


def both(f, stride, padding, axes=(0, 0)):
    """Values and gradients of a population."""

    def one(x, k):
        y, vjp = jax.vjp(lambda x, k: f(x, k, stride, padding), x, k)
        return y, vjp(jnp.cos(y))

    return jax.jit(jax.vmap(one, axes))


@pytest.mark.parametrize(("height", "width", "window", "stride", "padding"), FIRST + LATER)
def test_values_and_gradients_equal_the_native_convolution(height, width, window, stride, padding):
    with jax.enable_x64(True):
        program = jax.jit(lambda x, k: [both(f, stride, padding)(x, k) for f in (ours, native)])
        got, want = program(*arrays(height, width, window))
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize("axes", [(None, 0), (0, None)])
def test_members_may_share_the_images_or_the_kernel(axes):
    with jax.enable_x64(True):
        args = [v if axis == 0 else v[0] for v, axis in zip(arrays(5, 4, 3), axes, strict=True)]
        got, want = jax.jit(lambda *args: [both(f, 2, 1, axes)(*args) for f in (ours, native)])(*args)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12), got, want)


@pytest.mark.parametrize(
    ("height", "width", "window", "stride", "padding"), [(5, 4, 3, 2, 1), pytest.param(2, 2, 5, 1, 2, marks=pytest.mark.slow)]
)
def test_reverse_over_reverse_for_a_population(height, width, window, stride, padding):
    def mixed(f):
        def loss(x, k):
            return jnp.sum(jnp.sin(f(jnp.tanh(f(x, k, stride, padding)), k, 1, padding)))

        def norm(x, k):
            return sum(jnp.sum(jnp.square(g)) for g in jax.grad(loss, argnums=(0, 1))(x, k))

        return jax.jit(jax.vmap(jax.grad(norm, argnums=(0, 1))))

    with jax.enable_x64(True):
        x, kernel = arrays(height, width, window)
        for got, want in zip(mixed(ours)(x, kernel), mixed(native)(x, kernel), strict=True):
            assert np.max(np.abs(want)) > 0.1
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_dead_taps_have_gradient_exactly_0_and_live_ones_do_not():
    for size, stride in ((1, 1), (2, 1), (2, 2)):
        x, kernel = (v[0] for v in arrays(size, size, 5, dtype=np.float32))
        gradient = np.asarray(jax.jit(jax.grad(lambda k, x=x, s=stride: jnp.sum(jnp.square(ours(x, k, s, 2)))))(kernel))
        taps, dead = live_taps(size, 5, stride, 2), np.ones((5, 5), bool)
        dead[taps, taps] = False
        assert np.all(gradient[dead] == 0) and np.all(gradient[~dead] != 0)


def test_a_1x1_map_costs_one_multiplication_per_channel():
    x, kernel = (v[0] for v in arrays(1, 1, 5, dtype=np.float32))
    program = jax.jit(lambda x, k: ours(x, k, 1, 2))
    np.testing.assert_array_equal(program(x, kernel), x * kernel[2:3, 2:3, 0][None])
    text = program.lower(x, kernel).as_text()
    assert text.count("stablehlo.multiply") == 1 and "convolution" not in text and "stablehlo.add" not in text


def test_a_population_makes_no_convolution_at_all():
    x, kernel = arrays(4, 4, 5, dtype=np.float32)
    texts = {f: both(f, 1, 2).lower(x, kernel).as_text() for f in (ours, native)}
    assert {f: "convolution" in text for f, text in texts.items()} == {ours: False, native: True}


def test_bfloat16_adds_up_in_float32():
    x, kernel = (v[0].astype(jnp.bfloat16) for v in arrays(4, 4, 5, dtype=np.float32))

    @jax.jit
    def program(x, k):
        value, vjp = jax.vjp(lambda x, k: ours(x, k, 1, 2), x, k)
        return value, vjp(jnp.ones_like(value))

    _, exact = program(x.astype(np.float32), kernel.astype(np.float32))
    value, slopes = program(x, kernel)
    assert value.dtype == jnp.bfloat16
    for got, want in zip(slopes, exact, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, np.asarray(want).astype(jnp.bfloat16))  # one rounding, at the end


def test_the_layer_draws_he_fan_out_without_groups_and_records_its_output():
    layer = DepthwiseConv(5, 2)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 960)).astype(np.float32)
    draw = Drawer(lambda key, mutable: layer.init(key, x, Pass(), mutable=mutable))
    kernel = np.asarray(jax.jit(draw)(jax.random.key(1))["params"]["kernel"])
    assert kernel.shape == (5, 5, 1, 960)
    assert float(np.std(kernel)) == pytest.approx(math.sqrt(2 / (960 * 25)), rel=0.02)

    @jax.jit
    def program(kernel, x):
        run = Pass(record={"": None})
        y = layer.apply({"params": {"kernel": kernel}}, x, run)
        assert run.seen == [""] and run.taps[""] is y
        return y, native(x, kernel, 2, 2)

    y, want = program(kernel, x)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    half = jax.eval_shape(lambda k: DepthwiseConv(5, dtype=jnp.bfloat16).apply({"params": {"kernel": k}}, x, Pass()), kernel)
    assert half.dtype == jnp.bfloat16


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"kernel \[kh kw 1 c\]"):
        ours(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 1, 4)), 1, 1)
    for size, window, stride, padding in ((2, 5, 1, 1), (4, 3, 1, 3), (0, 3, 1, 1), (4, 3, 0, 1)):
        with pytest.raises(UserError, match="window"):
            live_taps(size, window, stride, padding)


@pytest.mark.parametrize(("height", "width", "window", "stride", "padding"), FIRST)
def test_the_kernel_gradients_of_a_cpu_and_of_an_accelerator_agree(height, width, window, stride, padding):
    axes = tuple(forms._axis(size, window, stride, padding) for size in (height, width))
    with jax.enable_x64(True):
        x, kernel = (v[0] for v in arrays(height, width, window))
        g = jnp.asarray(np.random.default_rng(1).normal(size=ours(x, kernel, stride, padding).shape))
        np.testing.assert_allclose(forms._taps_at_once(axes, x, g), forms._taps_by_rows(axes, jnp.asarray(x), g), rtol=1e-12)
