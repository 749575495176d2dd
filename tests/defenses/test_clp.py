import functools
import itertools

import jax
import numpy as np
import pytest

from bdjax.defenses.clp import Hyper, clp, largest_singular_value, limit, pairs
from bdjax.models.cnn import cnn
from bdjax.models.preact_resnet import preactresnet18
from bdjax.types import DefenderView
from tests.later import some_later

KEY = jax.random.key(0)


@functools.cache
def built(model, profile):
    return jax.jit(clp(model, profile=profile).defend)


def defend(model, variables, u=3.0, profile="corrected"):
    return built(model, profile)(KEY, DefenderView(variables), Hyper(np.float32(u)))


def fresh(model):
    """The network before training, in NumPy."""
    return jax.tree.map(np.asarray, jax.jit(model.init)(KEY))


@pytest.fixture(scope="module")
def homogeneous(plain_spec):
    """A network of 16, 32 and 64 channels whose channels all have the same score within a layer."""
    model = cnn(plain_spec, 16)
    variables = fresh(model)
    params = {**variables["params"]}
    for i in (1, 2, 3):
        kernel = params[f"conv{i}"]["kernel"]
        params[f"conv{i}"] = {"kernel": np.broadcast_to(kernel[..., :1], kernel.shape)}
    return model, {**variables, "params": params}


def scaled(variables, norm, channel, factor):
    scale = variables["params"][norm]["scale"].copy()
    scale[channel] *= np.float32(factor)
    return {**variables, "params": {**variables["params"], norm: {"scale": scale, "bias": np.ones_like(scale)}}}


@pytest.mark.parametrize("profile", ["corrected", "reference"])
def test_one_loud_channel_is_pruned_and_no_other(homogeneous, profile):
    model, variables = homogeneous
    found = defend(model, scaled(variables, "bn1", 5, -100.0), profile=profile)
    kept = {norm: np.asarray(keep) for norm, keep in found.masks.items()}
    assert np.flatnonzero(kept["bn1"] == 0).tolist() == [5] and kept["bn2"].all() and kept["bn3"].all()
    norm = jax.tree.map(np.asarray, found.variables["params"]["bn1"])
    assert norm["scale"][5] == 0 and norm["bias"][5] == 0 and np.all(np.delete(np.asarray(norm["bias"]), 5) == 1)
    assert found.trace.pruned.tolist() == [1, 0, 0]
    for a, b in zip(jax.tree.leaves(found.variables["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("channels", [4, 10])
def test_small_layers_are_never_pruned_at_three_deviations(plain_spec, channels):
    model = cnn(plain_spec, channels)
    variables = scaled(fresh(model), "bn1", 0, 1e6)
    assert np.all(defend(model, variables).masks["bn1"])
    assert not np.all(defend(model, variables, u=0.4).masks["bn1"])  # the largest z-score, (n - 1) / sqrt(n), is more than that


@pytest.mark.parametrize(("n", "z"), [(10, 2.85), (16, 3.75), (24, 4.69)])
def test_the_largest_possible_deviation(n, z):
    scores, limited = (np.arange(n) == 0).astype(np.float32), jax.jit(limit, static_argnums=2)
    assert float(limited(scores, np.float32(z - 0.01), True)) < 1 < float(limited(scores, np.float32(z + 0.01), True))


def test_pairs_of_the_residual_network(plain_spec):
    expected = {"layer1_0/bn1": "conv1"}
    blocks = [f"layer{s}_{b}" for s in (1, 2, 3, 4) for b in (0, 1)]
    for before, block in itertools.pairwise(blocks):
        expected[f"{block}/bn1"] = f"{before}/conv2"
    for stage in (2, 3, 4):
        expected[f"layer{stage}_1/bn1"] = f"layer{stage}_0/shortcut_0"
    for block in blocks:
        expected[f"{block}/bn2"] = f"{block}/conv1"
    found = pairs(preactresnet18(plain_spec, 4).arch)
    assert dict(found) == expected and len(found) == 16
    unseen = {c for kind, c in preactresnet18(plain_spec, 4).arch.registered if kind == "conv"} - set(dict(found).values())
    assert unseen == {f"layer{s}_{b}/conv2" for s, b in ((2, 0), (3, 0), (4, 0), (4, 1))}


@pytest.mark.parametrize("shape", [(3, 3, 3, 6), (3, 3, 20, 6), (1, 1, 12, 6), (3, 3, 1, 6), (5, 5, 4, 6)])
def test_spectral_norms_are_those_of_the_decomposition(shape, wide):
    kernel = np.random.default_rng(1).normal(size=shape)
    expected = [np.linalg.svd(kernel[..., k].reshape(-1, shape[2]), compute_uv=False)[0] for k in range(shape[3])]
    np.testing.assert_allclose(np.asarray(jax.jit(largest_singular_value)(kernel)), expected, rtol=1e-10)


@pytest.mark.parametrize("profile", some_later(["corrected", "reference"], ["reference"]))
def test_scores_thresholds_and_masks_in_numpy(plain_spec, profile):
    model = preactresnet18(plain_spec, 8, norm_eps=1e-2)  # an eps that is seen
    generator = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: x * generator.lognormal(0, 0.8, x.shape).astype(x.dtype), fresh(model))
    found = defend(model, variables, u=1.5, profile=profile)
    for i, (norm, conv) in enumerate(pairs(model.arch)):
        block, name = norm.split("/")
        gamma = np.asarray(variables["params"][block][name]["scale"], np.float64)
        variance = np.asarray(variables["batch_stats"][block][name]["var"], np.float64)
        kernel = variables["params"]
        for part in conv.split("/"):
            kernel = kernel[part]
        kernel = np.asarray(kernel["kernel"], np.float64)
        sigma = [np.linalg.svd(kernel[..., k].reshape(-1, kernel.shape[2]), compute_uv=False)[0] for k in range(kernel.shape[3])]
        scores = np.abs(gamma / np.sqrt(variance + (1e-2 if profile == "corrected" else 0))) * sigma
        threshold = scores.mean() + 1.5 * scores.std(ddof=1)
        np.testing.assert_allclose(float(found.trace.threshold[i]), threshold, rtol=1e-4)
        np.testing.assert_allclose(float(found.trace.largest[i]), scores.max(), rtol=1e-4)
        assert found.masks[norm].tolist() == (scores <= threshold).astype(float).tolist()
    assert int(np.sum(found.trace.pruned)) > 5


def test_a_running_variance_of_zero(homogeneous):
    model, variables = homogeneous
    variables = scaled(variables, "bn1", 5, 100.0)
    dead = {**variables["batch_stats"], "bn1": {**variables["batch_stats"]["bn1"]}}
    dead["bn1"]["var"] = np.where(np.arange(16) == 3, np.float32(0), dead["bn1"]["var"])
    variables = {**variables, "batch_stats": dead}
    # "reference": one infinite score keeps the whole layer. "corrected": eps makes it a number, here the largest of all.
    assert np.all(defend(model, variables, profile="reference").masks["bn1"])
    assert np.flatnonzero(np.asarray(defend(model, variables).masks["bn1"]) == 0).tolist() == [3]


def test_a_channel_that_is_not_finite_is_left_out(homogeneous):
    model, variables = homogeneous
    variables = scaled(scaled(variables, "bn1", 5, 100.0), "bn1", 3, np.nan)
    found = defend(model, variables)
    assert np.flatnonzero(np.asarray(found.masks["bn1"]) == 0).tolist() == [5]
    assert np.all(defend(model, variables, profile="reference").masks["bn1"])
    assert not np.isfinite(found.trace.scores[3])
