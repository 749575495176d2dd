"""Vectors side by side: the same tree comes back, its gradient is packed like itself, and little is left to treat on its own."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.train.vectors import Packed, pack

TREE = {
    "conv": {"kernel": jnp.arange(8.0).reshape(2, 4)},
    "bn": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])},
    "count": jnp.int32(7),
    "none": {},
}


def test_the_tree_comes_back():
    packed = pack(TREE)
    assert {dtype: buffer.shape for dtype, buffer in packed.vectors.items()} == {"float32": (3,), "int32": (1,)}
    assert [leaf.shape for leaf in packed.others] == [(2, 4)]
    assert jax.tree.structure(packed.tree) == jax.tree.structure(TREE)
    jax.tree.map(np.testing.assert_array_equal, packed.tree, TREE)


def test_it_is_a_pytree_for_maps_transformations_and_loops():
    twice = jax.vmap(lambda factor: jax.tree.map(lambda x: x * factor.astype(x.dtype), pack(TREE)))(jnp.array([1.0, 2.0]))
    second = jax.tree.map(lambda x: x[1], twice)
    assert isinstance(second, Packed)
    np.testing.assert_array_equal(second.tree["bn"]["scale"], [2, 4])
    carried, _ = jax.lax.scan(lambda one, _: (pack(one.tree), None), pack(TREE), None, length=3)
    jax.tree.map(np.testing.assert_array_equal, carried.tree, TREE)


def test_its_gradient_is_the_packed_gradient():
    floating = {name: TREE[name] for name in ("conv", "bn")}

    def loss(tree):
        return jnp.sum(tree["conv"]["kernel"] ** 3) + jnp.prod(tree["bn"]["scale"]) * tree["bn"]["bias"][0]

    mine, plain = jax.grad(lambda packed: loss(packed.tree))(pack(floating)), jax.grad(loss)(floating)
    jax.tree.map(np.testing.assert_array_equal, mine.tree, plain)
    jax.tree.map(np.testing.assert_array_equal, mine, pack(plain))
