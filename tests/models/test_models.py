"""The networks against the specification's facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError
from bdjax.models import MODELS, preactresnet18
from bdjax.types import DataSpec


def spec(classes=10, size=32):
    return DataSpec("x", (size, size, 3), classes, (0.5,) * 3, (0.25,) * 3, False, 4)


@pytest.mark.parametrize(("classes", "count"), [(10, 11_171_146), (43, 11_188_075), (200, 11_268_616)])
def test_parameters_of_preactresnet18(classes, count):
    model = preactresnet18(spec(classes))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])) == count
    assert len(jax.tree.leaves(shapes["params"])) == 54
    assert len(model.arch.norms) == 16
    norms = tree.flatten(shapes["batch_stats"])
    assert sum(leaf.shape[0] for path, leaf in norms.items() if path.endswith("mean")) == 3392
    widths = [tree.get(shapes["params"], f"{n}/scale").shape[0] for n in model.arch.norms]
    assert widths == [64, 64, 64, 64, 64, 128, 128, 128, 128, 256, 256, 256, 256, 512, 512, 512]


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return MODELS[request.param](spec(5, 16), 4)


@pytest.fixture
def variables(model):
    return model.init(jax.random.key(1))


IMAGES = jax.random.uniform(jax.random.key(2), (6, 16, 16, 3))


def test_addresses_exist_and_the_static_description_is_complete(model, variables):
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    norms = [address for kind, address in model.arch.registered if kind == "norm"]
    paths = tree.flatten(variables["params"])
    assert sorted(norms) == sorted(model.arch.norms) == sorted(p.removesuffix("/scale") for p in paths if p.endswith("/scale"))
    kernels = {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}
    assert kernels == {*convs, *model.arch.heads}
    wanted = (*convs, *norms, *(f"{n}/in" for n in norms), *(f"{n}/act" for n in norms), *model.arch.stages, "features", "head")
    taps = model.apply(variables, IMAGES, record=wanted).taps
    assert set(taps) == set(wanted)
    for norm, conv in model.arch.feeds:
        np.testing.assert_array_equal(taps[f"{norm}/in"], taps[conv])
        assert taps[norm].shape[-1] == tree.get(variables["params"], f"{norm}/scale").shape[0]


def test_a_pass_can_start_at_the_features_or_at_the_head(model, variables):
    out = model.apply(variables, IMAGES, record=("features", "head"))
    for start in ("features", "head"):
        np.testing.assert_allclose(model.apply(variables, out.taps[start], start=start).logits, out.logits, atol=1e-6)
    with pytest.raises(UserError, match="features, head"):
        model.apply(variables, IMAGES, start="heads")
    with pytest.raises(UserError, match="unknown tap address"):
        model.apply(variables, IMAGES, record=("bn9",))


def test_training_updates_statistics_and_evaluation_does_not(model, variables):
    out = model.apply(variables, IMAGES)
    assert all(a is b for a, b in zip(jax.tree.leaves(out.variables), jax.tree.leaves(variables), strict=True))
    masked = model.apply(variables, jnp.concatenate([IMAGES, 9 + IMAGES]), train=True, mask=jnp.asarray([1.0] * 6 + [0.0] * 6))
    plain = model.apply(variables, IMAGES, train=True)
    np.testing.assert_allclose(masked.logits[:6], plain.logits, atol=2e-5)
    for a, b in zip(jax.tree.leaves(masked.variables), jax.tree.leaves(plain.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), plain.variables["batch_stats"], dict(variables["batch_stats"]))
    assert all(jax.tree.leaves(changed))


def test_bounds_and_the_identity_plug_leave_logits_alone_and_tight_bounds_do_not(model, variables):
    want = model.apply(variables, IMAGES).logits
    norm = f"{model.arch.norms[0]}/act"
    d = model.apply(variables, IMAGES, record=(norm, "features")).taps
    open_, shut = ({norm: jnp.full(d[norm].shape[-1], v)} for v in (jnp.inf, 0.0))
    np.testing.assert_array_equal(model.apply({**variables, "bounds": open_}, IMAGES).logits, want)
    assert bool(jnp.any(model.apply({**variables, "bounds": shut}, IMAGES).logits != want))
    c = d["features"].shape[-1]
    plug = {"kernel": jnp.eye(c)[None, None], "scale": jnp.ones(c), "bias": jnp.zeros(c)}
    with_plug = {**variables, "plug": plug, "plug_stats": {"mean": jnp.zeros(c), "var": jnp.full(c, 1 - 1e-5)}}
    np.testing.assert_allclose(model.apply(with_plug, IMAGES).logits, want, atol=1e-5)
    after = model.apply(with_plug, IMAGES, plug_train=True).variables
    assert bool(jnp.any(after["plug_stats"]["mean"] != 0))
    np.testing.assert_array_equal(jax.tree.leaves(after["batch_stats"])[0], jax.tree.leaves(variables["batch_stats"])[0])
    with pytest.raises(UserError, match="plug"):
        model.apply(variables, IMAGES, plug_train=True)


def test_dtypes_follow_the_parameters_or_the_compute_dtype(model, variables):
    half = model.rebuild(dtype=jnp.bfloat16).apply(variables, IMAGES, train=True, record=("features",))
    assert half.taps["features"].dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.variables))
    np.testing.assert_allclose(half.logits, model.apply(variables, IMAGES, train=True).logits, atol=0.1)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), dict(variables))
        assert model.apply(double, IMAGES.astype(jnp.float64), train=True).logits.dtype == jnp.float64


def test_factories_are_cached_and_rebuild_keeps_the_rest(model):
    again = MODELS[model.name](model.spec, model.width)
    assert again is model
    other = model.rebuild(norm_eps=1e-3).rebuild(lowering="patches")
    assert other is not model
    assert other.rebuild(norm_eps=1e-5, lowering="native") is model.rebuild(norm_eps=1e-5, lowering="native")
    v = model.init(jax.random.key(0))
    assert bool(jnp.any(other.apply(v, IMAGES).logits != model.apply(v, IMAGES).logits))
