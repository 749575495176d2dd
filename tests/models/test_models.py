"""What every network of the table promises, on reduced ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError
from bdjax.models import MODELS, preactresnet18, vgg19_bn
from bdjax.training import cross_entropy
from tests.later import some_later
from tests.networks import DROPPING, PUBLISHED, SLOWEST, activated, drawn, reduced, spec

IMAGES = jax.random.uniform(jax.random.key(2), (6, 32, 32, 3))
LABELS = jnp.arange(6, dtype=jnp.int32) % 5


@pytest.fixture(params=MODELS)
def model(request):
    return reduced(request.param)


@pytest.fixture
def variables(model):
    return drawn(model)


@functools.cache
def compiled(model, **static):
    return jax.jit(functools.partial(model.apply, **static))


def leaves_equal(a, b):
    return [bool(np.array_equal(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def test_addresses_exist_and_the_static_description_is_complete(model, variables):
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    norms = [address for kind, address in model.arch.registered if kind == "norm"]
    paths = tree.flatten(variables["params"])
    assert sorted(norms) == sorted(model.arch.norms) == sorted(p.removesuffix("/scale") for p in paths if p.endswith("/scale"))
    kernels = {p.removesuffix("/kernel") for p in paths if p.endswith("/kernel")}
    assert kernels == {*convs, *model.arch.heads}
    assert {conv for _, conv in model.arch.feeds} <= set(convs) and len(dict(model.arch.feeds)) == len(model.arch.feeds)
    inside = (*convs, *norms, *(f"{n}/in" for n in norms), *activated(model))
    wanted = (*inside, *model.arch.stages, model.arch.plug_site, "features", "head")
    taps = compiled(model, record=wanted)(variables, IMAGES).taps
    assert set(taps) == set(wanted)
    assert all(bool(jnp.any(taps[act] != taps[act.removesuffix("/act")])) for act in activated(model))
    for norm, conv in model.arch.feeds:
        np.testing.assert_array_equal(taps[f"{norm}/in"], taps[conv])
        assert taps[norm].shape[-1] == tree.get(variables["params"], f"{norm}/scale").shape[0]
    for address in convs:
        assert taps[address].shape[-1] == tree.get(variables["params"], f"{address}/kernel").shape[-1]
    head = tree.get(variables["params"], f"{model.arch.heads[0]}/kernel")
    assert taps["head"].shape == (6, head.shape[0]) and taps["head"].dtype == jnp.float32


def test_norms_are_listed_in_the_order_they_run(model):
    """The order of the taps of a traced pass, convolutions and squeeze-and-excitation included."""
    order = []
    watch = tuple((a, functools.partial(lambda a, x, mask: order.append(a), a)) for _, a in model.arch.registered)
    jax.eval_shape(lambda v, x: model.apply(v, x, record=watch).logits, drawn(model), IMAGES)
    assert [a for a in order if a in model.arch.norms] == list(model.arch.norms)
    registered = [a for _, a in model.arch.registered]
    assert sorted(order) == sorted(registered)
    if model.name != "preactresnet18":  # its projections run first and are registered last
        assert order == registered


def test_a_pass_can_start_at_the_features_or_at_the_head(model, variables):
    out = compiled(model, record=("features", "head"))(variables, IMAGES)
    for start in ("features", "head"):
        again = compiled(model, start=start)(variables, out.taps[start])
        np.testing.assert_allclose(again.logits, out.logits, atol=1e-6)
    with pytest.raises(UserError, match="features, head"):
        model.apply(variables, IMAGES, start="heads")
    with pytest.raises(UserError, match="unknown tap address"):
        jax.eval_shape(lambda v: model.apply(v, IMAGES, record=("bn9",)), variables)


def test_training_updates_statistics_and_evaluation_does_not(model, variables):
    out = compiled(model)(variables, IMAGES)
    assert all(leaves_equal(out.variables, variables))
    train = compiled(model, train=True)
    masked = train(variables, jnp.concatenate([IMAGES, 9 + IMAGES]), mask=jnp.asarray([1.0] * 6 + [0.0] * 6))
    plain = train(variables, IMAGES)
    np.testing.assert_allclose(masked.logits[:6], plain.logits, atol=5e-4)
    for a, b in zip(jax.tree.leaves(masked.variables), jax.tree.leaves(plain.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not any(leaves_equal(plain.variables["batch_stats"], variables["batch_stats"]))
    assert all(leaves_equal(plain.variables["params"], variables["params"]))


def test_bounds_and_the_identity_plug_leave_logits_alone_and_tight_bounds_do_not(model, variables):
    run = compiled(model)
    want = run(variables, IMAGES).logits
    norm, site = f"{model.arch.norms[0]}/act", model.arch.plug_site
    d = compiled(model, record=(norm, site))(variables, IMAGES).taps
    open_, shut = ({norm: jnp.full(d[norm].shape[-1], v)} for v in (jnp.inf, 0.0))
    np.testing.assert_array_equal(run({**variables, "bounds": open_}, IMAGES).logits, want)
    assert bool(jnp.any(run({**variables, "bounds": shut}, IMAGES).logits != want))
    c = d[site].shape[-1]
    plug = {"kernel": jnp.eye(c)[None, None], "scale": jnp.ones(c), "bias": jnp.zeros(c)}
    with_plug = {**variables, "plug": plug, "plug_stats": {"mean": jnp.zeros(c), "var": jnp.full(c, 1 - 1e-5)}}
    np.testing.assert_allclose(run(with_plug, IMAGES).logits, want, atol=1e-5)
    after = compiled(model, plug_train=True)(with_plug, IMAGES).variables
    assert bool(jnp.any(after["plug_stats"]["mean"] != 0))
    assert all(leaves_equal(after["batch_stats"], variables["batch_stats"]))
    with pytest.raises(UserError, match="plug"):
        model.apply(variables, IMAGES, plug_train=True)


def test_dtypes_follow_the_parameters_or_the_compute_dtype(model, variables):
    half = model.rebuild(dtype=jnp.bfloat16)
    convs = tuple(address for kind, address in model.arch.registered if kind == "conv")
    found = jax.eval_shape(lambda v: half.apply(v, IMAGES, train=True, record=(*convs, "features", "head")), variables)
    assert {found.taps[address].dtype for address in (*convs, "features")} == {jnp.dtype(jnp.bfloat16)}
    assert found.logits.dtype == found.taps["head"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.variables))
    want = compiled(model)(variables, IMAGES).logits
    got = compiled(half)(variables, IMAGES).logits
    assert 0 < float(jnp.max(jnp.abs(got - want))) < 0.1 * float(jnp.max(jnp.abs(want)))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: x.astype(jnp.float64), dict(variables))
        out = jax.eval_shape(lambda v: model.apply(v, IMAGES.astype(jnp.float64), train=True), double)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(out))


def test_factories_are_cached_and_rebuild_keeps_the_rest(model, variables):
    fields = {"depth": 1} if model.name in PUBLISHED else {}
    assert MODELS[model.name](model.spec, model.width, **fields) is MODELS[model.name](model.spec, model.width, **fields)
    other = model.rebuild(norm_eps=1e-2).rebuild(lowering="patches")
    assert other is not model and (other.name, other.width, other.depth) == (model.name, model.width, model.depth)
    assert (other.norm_eps, other.arch) == (1e-2, model.arch)
    back = other.rebuild(norm_eps=model.norm_eps, lowering="native")
    assert back is model.rebuild(norm_eps=model.norm_eps, lowering="native")
    assert bool(jnp.any(compiled(other)(variables, IMAGES).logits != compiled(model)(variables, IMAGES).logits))


def stack(*trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def close(both, alone):
    for i, one in enumerate(alone):
        for a, b in zip(jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], both)), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))) + 1e-5)


@pytest.mark.parametrize("name", some_later(MODELS, SLOWEST))
def test_two_members_learn_together_as_each_alone(name):
    """Loss, gradient and new statistics of a step in train mode; every parameter has a gradient."""
    model = reduced(name, lowering="mixed")

    @jax.jit
    def step(variables):
        def loss(params):
            out = model.apply({**variables, "params": params}, IMAGES, train=True)
            return jnp.mean(cross_entropy(out.logits, LABELS)), out.variables["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    alone = [step(drawn(model, seed)) for seed in (0, 1)]
    close(jax.jit(jax.vmap(step))(stack(drawn(model, 0), drawn(model, 1))), alone)
    slopes = tree.flatten(alone[0][1])
    assert all(bool(jnp.any(g != 0)) and bool(jnp.all(jnp.isfinite(g))) for g in slopes.values())


@pytest.mark.parametrize(("name", "train"), [*((name, False) for name in MODELS), ("vgg19_bn", True)])  # it alone pools by size
def test_two_members_see_64_pixels_together_as_each_alone(name, train):
    model = reduced(name, 64, lowering="mixed")
    images = jax.random.uniform(jax.random.key(3), (4, 64, 64, 3))
    run = compiled(model, train=train)
    alone = [run(drawn(model, seed), images) for seed in (0, 1)]
    close(jax.jit(jax.vmap(lambda v: run(v, images)))(stack(drawn(model, 0), drawn(model, 1))), alone)
    assert alone[0].logits.shape == (4, 5) and bool(jnp.any(alone[0].logits != alone[1].logits))


@pytest.mark.parametrize("name", some_later(MODELS, SLOWEST))
def test_reverse_over_reverse_is_the_slope_of_the_gradient(name):
    """d/dw of <gradient in the images, v> against a difference of gradients, in float64, batch-norm in train mode."""
    with jax.enable_x64(True):
        model = reduced(name)
        wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float64))
        variables, images = wide(drawn(model)), IMAGES.astype(jnp.float64)
        generator = np.random.default_rng(1)
        towards = jax.tree.map(lambda x: jnp.asarray(generator.normal(size=x.shape)), variables["params"])
        v = jnp.asarray(generator.normal(size=images.shape))

        def along(params):
            def loss(x):
                return jnp.mean(cross_entropy(model.apply({**variables, "params": params}, x, train=True).logits, LABELS))

            return jnp.sum(jax.grad(loss)(images) * v)

        both, step = jax.jit(jax.value_and_grad(along)), 1e-7
        moved = [both(jax.tree.map(lambda p, t, s=s: p + s * t, variables["params"], towards))[0] for s in (step, -step)]
        slope = both(variables["params"])[1]
        found = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(towards), strict=True))
        assert abs(float(found)) > 1e-3
        np.testing.assert_allclose(float(found), float(moved[0] - moved[1]) / (2 * step), rtol=1e-4)


def test_without_jit_it_is_the_same():
    model = reduced("vgg19_bn")
    variables = drawn(model)
    np.testing.assert_allclose(compiled(model)(variables, IMAGES).logits, model.apply(variables, IMAGES).logits, atol=1e-5)


def test_mistakes_are_named():
    for make in (MODELS[name] for name in PUBLISHED):
        with pytest.raises(UserError, match="width of at least 1, and a depth of at least 1"):
            make(spec(), 0)
        with pytest.raises(UserError, match="depth 0"):
            make(spec(), 4, depth=0)
    with pytest.raises(UserError, match="needs 32x32 pixels; given 16x16"):
        vgg19_bn(spec(size=16))
    assert preactresnet18(spec(size=16)).depth is None
    for name in DROPPING:
        with pytest.raises(UserError, match="drop=False"):
            model = reduced(name, drop=True)
            jax.eval_shape(functools.partial(model.apply, train=True), drawn(model), IMAGES)
