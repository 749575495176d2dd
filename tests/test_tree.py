"""Addresses, masks and their algebra."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError

PARAMS = {
    "conv1": {"kernel": jnp.arange(2 * 3, dtype=jnp.float32).reshape(1, 1, 2, 3)},
    "layer1_0": {"bn1": {"scale": jnp.asarray([1.0, 2.0, 3.0]), "bias": jnp.asarray([4.0, 5.0, 6.0])}},
    "linear": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
    "fc1": {"kernel": jnp.asarray([[[[1.0, 2.0], [3.0, 4.0]]]]), "bias": jnp.asarray([5.0, 6.0])},
}
KEEP = {"layer1_0/bn1": jnp.asarray([1.0, 0.0, 1.0])}


def test_flatten_get_replace_leave_the_original_alone():
    assert list(tree.flatten(PARAMS)) == [
        "conv1/kernel", "layer1_0/bn1/scale", "layer1_0/bn1/bias", "linear/kernel", "linear/bias",
        "fc1/kernel", "fc1/bias",
    ]  # fmt: skip
    new = tree.replace(PARAMS, {"layer1_0/bn1/scale": jnp.zeros(3)})
    np.testing.assert_array_equal(tree.get(new, "layer1_0/bn1/scale"), [0, 0, 0])
    np.testing.assert_array_equal(tree.get(PARAMS, "layer1_0/bn1/scale"), [1, 2, 3])
    assert tree.get(new, "linear") is PARAMS["linear"]
    doubled = tree.map_at(lambda x: 2 * x, PARAMS, ("linear/kernel",))
    np.testing.assert_array_equal(tree.get(doubled, "linear/kernel"), 2 * np.ones((3, 2)))


@pytest.mark.parametrize("address", ["layer1_0/bn2", "linear/kernel/x", "nothing"])
def test_a_missing_address_is_named(address):
    with pytest.raises(UserError, match="unknown address"):
        tree.get(PARAMS, address)
    with pytest.raises(UserError, match="unknown address"):
        tree.replace(PARAMS, {address: jnp.zeros(3)})


class MaskTest(chex.TestCase):
    """With and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_scores_become_masks_and_masks_prune(self):
        scores = {"a": jnp.asarray([1.0, 5.0, jnp.nan, jnp.inf]), "b": jnp.asarray([3.0, 2.0])}
        masks = self.variant(tree.keep_below)(scores, jnp.float32(2.5))
        np.testing.assert_array_equal(masks["a"], [1, 0, 1, 1])
        np.testing.assert_array_equal(masks["b"], [0, 1])
        each = self.variant(tree.keep_below)(scores, {"a": jnp.float32(9), "b": jnp.float32(0)})
        np.testing.assert_array_equal(each["a"], [1, 1, 1, 1])
        np.testing.assert_array_equal(each["b"], [0, 0])
        ranked = self.variant(tree.keep_ranked)({"a": jnp.asarray([2.0, 1.0]), "b": jnp.asarray([1.0, 3.0])}, jnp.int32(2))
        np.testing.assert_array_equal(np.concatenate([ranked["a"], ranked["b"]]), [1, 0, 0, 1])

    @chex.variants(with_jit=True, without_jit=True)
    def test_masked_parameters(self):
        both = self.variant(lambda p, m: tree.mask_norms(p, m, bias=True))(PARAMS, KEEP)
        np.testing.assert_array_equal(tree.get(both, "layer1_0/bn1/scale"), [1, 0, 3])
        np.testing.assert_array_equal(tree.get(both, "layer1_0/bn1/bias"), [4, 0, 6])
        scale = self.variant(lambda p, m: tree.mask_norms(p, m, bias=False))(PARAMS, KEEP)
        np.testing.assert_array_equal(tree.get(scale, "layer1_0/bn1/bias"), [4, 5, 6])
        out = self.variant(tree.mask_outputs)(PARAMS, {"conv1": jnp.asarray([1.0, 1.0, 0.0])})
        np.testing.assert_array_equal(tree.get(out, "conv1/kernel")[0, 0], [[0, 1, 0], [3, 4, 0]])
        halved = self.variant(tree.scale_convs)(PARAMS, {"conv1": jnp.asarray([1.0, 0.5, 0.0]), "fc1": jnp.asarray([0.5, 2.0])})
        np.testing.assert_array_equal(tree.get(halved, "conv1/kernel")[0, 0], [[0, 0.5, 0], [3, 2, 0]])
        np.testing.assert_array_equal(tree.get(halved, "fc1/kernel")[0, 0], [[0.5, 4], [1.5, 8]])
        np.testing.assert_array_equal(tree.get(halved, "fc1/bias"), [2.5, 12])
        assert "bias" not in halved["conv1"]
        into = self.variant(tree.mask_inputs)(PARAMS, {"conv1": jnp.asarray([0.0, 1.0]), "linear": jnp.asarray([1.0, 0.0, 1.0])})
        np.testing.assert_array_equal(tree.get(into, "conv1/kernel")[0, 0], [[0, 0, 0], [3, 4, 5]])
        np.testing.assert_array_equal(tree.get(into, "linear/kernel"), [[1, 1], [0, 0], [1, 1]])

    @chex.variants(with_jit=True, without_jit=True)
    def test_algebra(self):
        a, b = {"x": jnp.asarray([1.0, 0.0, 1.0])}, {"x": jnp.asarray([0.0, 1.0, 1.0]), "y": jnp.zeros(2)}
        both = self.variant(tree.mask_and)(a, b)
        np.testing.assert_array_equal(both["x"], [0, 0, 1])
        np.testing.assert_array_equal(both["y"], [0, 0])
        assert {k: int(v) for k, v in self.variant(tree.pruned_count)(both).items()} == {"x": 2, "y": 2}
        assert float(self.variant(tree.sparsity)(both)["x"]) == pytest.approx(2 / 3)


def test_masks_map_over_members_and_a_full_mask_is_the_identity():
    full = tree.full_masks(PARAMS, ("layer1_0/bn1",))
    chex.assert_trees_all_equal(tree.mask_norms(PARAMS, full, bias=True), PARAMS)
    many = jax.vmap(lambda t: tree.keep_below({"a": jnp.asarray([1.0, 2.0, 3.0])}, t))(jnp.asarray([0.5, 2.5]))
    np.testing.assert_array_equal(many["a"], [[0, 0, 0], [1, 1, 0]])


def test_unflatten_undoes_flatten():
    nested = {"a": {"b": {"kernel": 1}, "c": 2}, "d": 3}
    assert tree.flatten(nested) == {"a/b/kernel": 1, "a/c": 2, "d": 3}
    assert tree.unflatten(tree.flatten(nested)) == nested
