"""VGG's first linear layer: folded on import, and exported without losing what only the full weights know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.errors import UserError
from bdjax.interop import from_state, to_state
from bdjax.interop.pooled import fold_weight, unfold_weight
from bdjax.nn.folded_linear import GRID, fold, pool_matrix
from tests.interop.checkpoints import random_state, reduced, same_bits

OUT, C = 70, 3  # more rows than are folded at a time


def weights(seed, shape=(OUT, C * GRID**2)):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("h", [1, 2, 3])
def test_the_kernel_is_the_folded_one(h):
    w = weights(0)
    want = fold(w.reshape(OUT, C, -1).astype(np.float64), h).transpose(2, 1, 0).reshape(-1, OUT)
    np.testing.assert_allclose(fold_weight(w, h * h * C), want, atol=1e-6)


def test_without_folding_it_is_a_permutation():
    w = weights(0)
    kernel = fold_weight(w, GRID**2 * C)
    assert kernel[5 * C + 2, 7] == w[7, 2 * GRID**2 + 5]
    np.testing.assert_array_equal(unfold_weight(kernel, C), w)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), h=st.integers(1, 4), size=st.sampled_from([1e-3, 1.0]))
def test_an_export_of_changed_weights_has_the_function_of_the_folded_ones(seed, h, size):
    """For every map z: W' P z + b = U (M^(1/2) z) + b; and what the data cannot see of W stays."""
    w = weights(seed)
    kernel = fold_weight(w, h * h * C)
    change = np.random.default_rng(seed + 1).standard_normal(kernel.shape, np.float32) * np.float32(size)
    change[:, ::2] = 0
    exported = unfold_weight(kernel + change, C, w)
    np.testing.assert_array_equal(exported[::2], w[::2])
    assert (exported[1::2] != w[1::2]).any()

    p = np.kron(pool_matrix(h), pool_matrix(h))
    values, vectors = np.linalg.eigh(p.T @ p)
    root, z = (vectors * values**0.5) @ vectors.T, np.random.default_rng(seed + 2).standard_normal((C, h * h))
    theirs = exported.reshape(OUT, C, -1).astype(np.float64) @ p
    ours = (kernel + change).astype(np.float64).reshape(h * h, C, OUT).transpose(2, 1, 0) @ root
    np.testing.assert_allclose((theirs * z).sum((1, 2)), (ours * z).sum((1, 2)), atol=1e-4)
    unseen = lambda v: v.reshape(OUT, C, -1) - v.reshape(OUT, C, -1) @ p @ np.linalg.pinv(p)  # noqa: E731
    np.testing.assert_allclose(unseen(exported.astype(np.float64)), unseen(w.astype(np.float64)), atol=1e-5)


def test_weights_that_nobody_changed_keep_every_bit_even_of_zeros():
    w = weights(1)
    w[3, ::5] = -0.0
    assert unfold_weight(fold_weight(w, 4 * C), C, w).tobytes() == w.tobytes()


def test_a_fine_tuned_network_changes_in_the_file_only_where_it_changed():
    model = reduced("vgg19_bn", size=64)
    state = random_state(model)
    imported = from_state(model, state)
    imported.variables["params"]["classifier_0"]["kernel"][:, 3] += np.float32(0.5)
    back = to_state(model, imported.variables, imported.kept)
    changed = [name for name in state if back[name].tobytes() != state[name].tobytes()]
    assert changed == ["classifier.0.weight"]
    rows = np.flatnonzero((back["classifier.0.weight"] != state["classifier.0.weight"]).any(1))
    np.testing.assert_array_equal(rows, [3])
    again = from_state(model, back)
    kernel = imported.variables["params"]["classifier_0"]["kernel"]
    np.testing.assert_allclose(again.variables["params"]["classifier_0"]["kernel"], kernel, atol=1e-6)
    assert same_bits(to_state(model, again.variables, again.kept), back)


def test_a_network_without_folding_needs_nothing_kept_for_it():
    model = reduced("vgg19_bn", fold=False)
    state = random_state(model)
    imported = from_state(model, state)
    assert "classifier.0.weight" not in imported.kept
    assert same_bits(to_state(model, imported.variables, imported.kept), state)


def test_rows_that_belong_to_no_square_map():
    with pytest.raises(UserError, match="a kernel of 9 rows does not belong"):
        fold_weight(weights(0), 3 * C)
