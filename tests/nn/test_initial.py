"""Initial parameters: laws by shape, one draw for all, keyed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.nn.initial import Drawer, Law, constant, he_fan_out, normal, parameter, uniform_fan_in
from bdjax.nn.layers import NormAct, Pass


class Two(nn.Module):
    """Kernels of every law, one of them inside another module, and a norm."""

    @nn.compact
    def __call__(self, x):
        first = parameter(self, "kernel", he_fan_out, (3, 3, 8, 50))
        second = parameter(self, "bias", constant(2), (7,))
        third = parameter(self, "square", normal(0.01), (60, 60))
        NormAct(1e-5, 0.1, name="norm")(x, Pass())
        return Inner(name="inner")(x) + jnp.sum(first) + jnp.sum(second) + jnp.sum(third)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.sum(x) + sum(jnp.sum(parameter(self, name, uniform_fan_in, (40, 50))) for name in ("kernel", "twin"))


@functools.cache
def init():
    return Drawer(lambda key, mutable: Two().init(key, jnp.zeros((1, 2, 2, 3)), mutable=mutable))


@functools.cache
def drawn():
    """Compiled, in NumPy."""
    return jax.device_get(jax.jit(init())(jax.random.key(0)))


def test_laws_follow_the_shape():
    assert uniform_fan_in((3, 3, 16, 64)) == Law("uniform", pytest.approx(1 / 12))
    assert he_fan_out((5, 5, 1, 8)) == Law("normal", pytest.approx(0.1))


def test_every_parameter_starts_by_its_law():
    flat, statistics = tree.flatten(drawn()["params"]), drawn()["batch_stats"]
    shapes = {"bias": (7,), "kernel": (3, 3, 8, 50), "square": (60, 60), "inner/kernel": (40, 50), "inner/twin": (40, 50)}
    assert {path: x.shape for path, x in flat.items()} == {**shapes, "norm/scale": (3,), "norm/bias": (3,)}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(drawn()))
    np.testing.assert_array_equal(flat["bias"], np.full(7, 2, np.float32))
    np.testing.assert_array_equal(flat["norm/scale"], np.ones(3))
    np.testing.assert_array_equal(statistics["norm"]["var"], np.ones(3))
    np.testing.assert_array_equal(statistics["norm"]["mean"], np.zeros(3))
    assert float(flat["kernel"].std()) == pytest.approx(np.sqrt(2 / 450), rel=0.05)
    assert float(flat["square"].std()) == pytest.approx(0.01, rel=0.05)
    bound = 1 / np.sqrt(40)
    for path in ("inner/kernel", "inner/twin"):
        assert 0.98 * bound < float(np.max(np.abs(flat[path]))) <= bound and abs(float(flat[path].mean())) < 0.05 * bound


def test_no_number_is_used_twice():
    flat = tree.flatten(drawn()["params"])
    uniform = np.concatenate([flat[p].ravel() for p in ("inner/kernel", "inner/twin")])
    assert len(np.unique(uniform)) > 0.999 * len(uniform)
    rest = np.concatenate([flat["kernel"].ravel() / np.sqrt(2 / 450), flat["square"].ravel() / 0.01])
    assert len(np.unique(rest)) > 0.995 * len(rest)


def test_the_key_decides_compiled_or_not_alone_or_together():
    draw, compiled, keys = init(), jax.jit(init()), jax.random.split(jax.random.key(3))
    one, again, other, together = jax.device_get(
        (draw(keys[0]), compiled(keys[0]), compiled(keys[1]), jax.jit(jax.vmap(draw))(keys))
    )
    for a, b, c, both in zip(*map(jax.tree.leaves, (one, again, other, together)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        np.testing.assert_allclose(both, np.stack([a, c]), rtol=1e-6)
    assert np.all(one["params"]["kernel"] != other["params"]["kernel"])


def test_a_module_alone_starts_by_the_same_laws_with_other_numbers():
    variables = jax.jit(Two().init)(jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32))
    assert variables.keys() == {"params", "batch_stats"}
    alone, ours = (tree.flatten(params) for params in (variables["params"], drawn()["params"]))
    np.testing.assert_array_equal(alone["bias"], ours["bias"])
    np.testing.assert_array_equal(alone["norm/scale"], ours["norm/scale"])
    for path, scale in (("kernel", np.sqrt(2 / 450)), ("square", 0.01), ("inner/kernel", 1 / np.sqrt(120)), ("inner/twin", None)):
        assert np.mean(alone[path] == ours[path]) < 1e-3
        assert float(alone[path].std()) == pytest.approx(scale or 1 / np.sqrt(120), rel=0.05)
