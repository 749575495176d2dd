"""What every network of the table promises, on reduced ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.models.preact_resnet import preactresnet18
from bdjax.models.vgg import vgg19_bn
from bdjax.train.trainer import cross_entropy
from tests.golden import numbers
from tests.later import some_later
from tests.networks import DROPPING, EXACT, INVERTED, PUBLISHED, SLOWEST, activated, drawn, reduced, spec

IMAGES = np.random.default_rng(2).random((6, 32, 32, 3), np.float32)
LABELS = np.arange(6, dtype=np.int32) % 5


@pytest.fixture(params=MODELS)
def model(request):
    return reduced(request.param)


@pytest.fixture
def variables(model):
    return drawn(model)


@functools.cache
def compiled(model, **static):
    return jax.jit(functools.partial(model.apply, **static))


@functools.cache
def seen(model):
    """One pass in evaluation mode, with a tap at every address that the tests look at; in NumPy."""
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    inside = (*convs, *model.arch.norms, *(f"{n}/in" for n in model.arch.norms), *activated(model))
    written_over = (address for _, address in model.arch.in_place)
    wanted = (*inside, *model.arch.stages, *written_over, model.arch.plug_site, "features", "head")
    out = jax.device_get(compiled(model, record=wanted)(drawn(model), IMAGES))
    assert set(out.taps) == set(wanted)
    return out


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
    taps = seen(model).taps
    assert all(np.any(taps[act] != taps[act.removesuffix("/act")]) for act in activated(model))
    for norm, conv in model.arch.feeds:
        np.testing.assert_array_equal(taps[f"{norm}/in"], taps[conv])
        assert taps[norm].shape[-1] == tree.get(variables["params"], f"{norm}/scale").shape[0]
    for address in convs:
        assert taps[address].shape[-1] == tree.get(variables["params"], f"{address}/kernel").shape[-1]
    head = tree.get(variables["params"], f"{model.arch.heads[0]}/kernel")
    assert taps["head"].shape == (6, head.shape[0]) and taps["head"].dtype == jnp.float32


def test_a_preactresnet_adds_its_shortcuts_to_the_last_convolutions_where_they_lie():
    """What a hook on such a convolution finds is the sum with the projection, or with the input of the block."""
    model = reduced("preactresnet18")
    taps, pairs = seen(model).taps, dict(model.arch.in_place)
    assert pairs == {f"layer{s}_0/conv2": f"layer{s}_0" for s in (1, 2, 3, 4)}
    for conv, address in pairs.items():
        shortcut = "conv1" if address == "layer1_0" else f"{address}/shortcut_0"
        np.testing.assert_allclose(taps[address], taps[conv] + taps[shortcut], atol=1e-6)
        assert np.abs(taps[shortcut]).max() > 0.1
    whole = reduced("preactresnet18", depth=None).arch.in_place
    assert whole == tuple((f"layer{s}_{b}/conv2", f"layer{s}_{b}") for s in (1, 2, 3, 4) for b in (0, 1))


def test_efficientnet_writes_the_activation_over_its_first_squeezing_convolutions_and_no_other_network_does():
    arch = reduced("efficientnet_b3").arch
    squeezing = [address for kind, address in arch.registered if kind == "conv" and address.endswith("/fc1")]
    assert squeezing and arch.in_place == tuple((conv, f"{conv}/act") for conv in squeezing)
    others = [name for name in MODELS if name not in ("preactresnet18", "efficientnet_b3")]
    assert not any(reduced(name).arch.in_place for name in others)


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
    out = seen(model)
    for start in ("features", "head"):
        again = compiled(model, start=start)(variables, out.taps[start])
        np.testing.assert_allclose(again.logits, out.logits, atol=1e-6)
    with pytest.raises(UserError, match="features, head"):
        model.apply(variables, IMAGES, start="heads")
    with pytest.raises(UserError, match="unknown tap address"):
        jax.eval_shape(lambda v: model.apply(v, IMAGES, record=("bn9",)), variables)


@functools.cache
def step(name):
    """``f(variables) -> ((loss, (logits, variables)), gradient)`` in train mode."""
    model = reduced(name, lowering="mixed")

    @jax.jit
    def run(variables):
        def loss(params):
            out = model.apply({**variables, "params": params}, IMAGES, train=True)
            return jnp.mean(cross_entropy(out.logits, LABELS)), (out.logits, out.variables)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return run


@functools.cache
def alone(name, seed=0):
    """That step of one member, in NumPy."""
    return jax.device_get(step(name)(drawn(reduced(name), seed)))


@pytest.mark.parametrize("model", some_later(MODELS, INVERTED), indirect=True)
def test_training_updates_statistics_and_evaluation_does_not(model, variables):
    assert all(leaves_equal(seen(model).variables, variables))
    after = alone(model.name)[0][1][1]
    assert not any(leaves_equal(after["batch_stats"], variables["batch_stats"]))
    assert all(leaves_equal(after["params"], variables["params"]))


@pytest.mark.parametrize("model", some_later(MODELS, SLOWEST), indirect=True)
def test_every_parameter_has_a_gradient(model):
    slopes = tree.flatten(alone(model.name)[1])
    assert all(np.any(g != 0) and np.all(np.isfinite(g)) for g in slopes.values())


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_passes_results_are_those_of_the_edition(model):
    """What changes a network's results raises its edition: records of the edition before are then made again."""
    numbers.check(f"network/{model.name}-pass", model.edition, logits=seen(model).logits, features=seen(model).taps["features"])


@pytest.mark.parametrize("model", some_later(MODELS, SLOWEST), indirect=True)
def test_steps_results_are_those_of_the_edition(model):
    (loss, (logits, after)), slopes = alone(model.name)
    parts = dict(loss=loss, logits=logits, statistics=after["batch_stats"], gradient=slopes)
    numbers.check(f"network/{model.name}-step", model.edition, **parts)


@pytest.mark.parametrize("name", some_later(MODELS, INVERTED))
def test_rows_that_do_not_count_change_nothing(name):
    model, (logits, after) = reduced(name), alone(name)[0][1]
    images, mask = np.concatenate([IMAGES, 9 + IMAGES]), np.repeat(np.float32([1, 0]), len(IMAGES))
    masked = compiled(model, train=True)(drawn(model), images, mask=mask)
    np.testing.assert_allclose(masked.logits[:6], logits, atol=5e-4)
    for a, b in zip(jax.tree.leaves(masked.variables), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", some_later(MODELS, (*INVERTED, "vgg19_bn")))
def test_open_bounds_and_an_identity_plug_leave_logits_alone_and_tight_bounds_do_not(name):
    model, variables = reduced(name), drawn(reduced(name))
    norm, site = f"{model.arch.norms[0]}/act", model.arch.plug_site
    want, taps = seen(model).logits, seen(model).taps
    exact = jax.jit(model.apply, compiler_options=EXACT)
    open_, shut = ({norm: np.full(taps[norm].shape[-1], v, np.float32)} for v in (np.inf, 0))
    np.testing.assert_array_equal(exact({**variables, "bounds": open_}, IMAGES).logits, exact(variables, IMAGES).logits)
    assert np.any(exact({**variables, "bounds": shut}, IMAGES).logits != want)
    c = taps[site].shape[-1]
    ones, zeros = np.ones(c, np.float32), np.zeros(c, np.float32)
    plug = {"kernel": np.eye(c, dtype=np.float32)[None, None], "scale": ones, "bias": zeros}
    with_plug = {**variables, "plug": plug, "plug_stats": {"mean": zeros, "var": np.float32(1 - 1e-5) * ones}}
    np.testing.assert_allclose(compiled(model)(with_plug, IMAGES).logits, want, atol=1e-5)
    after = compiled(model, plug_train=True)(with_plug, IMAGES).variables
    assert np.any(after["plug_stats"]["mean"] != 0)
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
    with jax.enable_x64(True):
        double, images = widened(variables), jax.ShapeDtypeStruct(IMAGES.shape, jnp.float64)
        out = jax.eval_shape(lambda v, x: model.apply(v, x, train=True), double, images)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize("name", some_later(MODELS, INVERTED))
def test_in_bfloat16_the_logits_are_nearly_the_same(name):
    model = reduced(name)
    want, got = seen(model).logits, compiled(model.rebuild(dtype=jnp.bfloat16))(drawn(model), IMAGES).logits
    assert 0 < np.max(np.abs(got - want)) < 0.1 * np.max(np.abs(want))


def widened(variables):
    """In float64 and NumPy."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), dict(variables))


def test_factories_are_cached_and_rebuild_keeps_the_rest(model, variables):
    fields = {"depth": 1} if model.name in PUBLISHED else {}
    assert MODELS[model.name](model.spec, model.width, **fields) is MODELS[model.name](model.spec, model.width, **fields)
    other = model.rebuild(norm_eps=1e-2).rebuild(lowering="patches")
    assert other is not model and (other.name, other.width, other.depth) == (model.name, model.width, model.depth)
    assert (other.norm_eps, other.arch) == (1e-2, model.arch)
    back = other.rebuild(norm_eps=model.norm_eps, lowering="native")
    assert back is model.rebuild(norm_eps=model.norm_eps, lowering="native")
    norm, taps = model.arch.norms[0], seen(model).taps
    learned, known = (jax.device_get(tree.get(variables[name], norm)) for name in ("params", "batch_stats"))
    found = jax.jit(lambda v: other.apply(v, IMAGES, record=(norm,)).taps[norm])(variables)  # the compiler leaves out the rest
    want = (taps[f"{norm}/in"] - known["mean"]) / np.sqrt(known["var"] + 1e-2) * learned["scale"] + learned["bias"]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(want - taps[norm])) > 1e-3


def stacked(*trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def close(both, alone):
    for i, one in enumerate(alone):
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-3 * float(np.max(np.abs(b))) + 1e-5)


@pytest.mark.parametrize("name", some_later(MODELS, (*INVERTED, "vgg19_bn")))
def test_two_members_learn_together_as_each_alone(name):
    """Loss, gradient and new statistics of a step in train mode."""
    both = stacked(*(drawn(reduced(name), seed) for seed in (0, 1)))
    close(jax.device_get(jax.jit(jax.vmap(step(name)))(both)), [alone(name, seed) for seed in (0, 1)])


SIZED = [pytest.param(name, False, marks=[pytest.mark.slow] * (name in (*INVERTED, "vgg19_bn"))) for name in MODELS]


@pytest.mark.parametrize(("name", "train"), [*SIZED, ("vgg19_bn", True)])  # it alone pools by size
def test_two_members_see_64_pixels_together_as_each_alone(name, train):
    model = reduced(name, 64, lowering="mixed")
    images = np.random.default_rng(3).random((4, 64, 64, 3), np.float32)
    run, members = compiled(model, train=train), [drawn(model, seed) for seed in (0, 1)]
    alone = [jax.device_get(run(variables, images)) for variables in members]
    close(jax.device_get(jax.jit(jax.vmap(lambda v: run(v, images)))(stacked(*members))), alone)
    assert alone[0].logits.shape == (4, 5) and np.any(alone[0].logits != alone[1].logits)


@pytest.mark.parametrize("name", some_later(MODELS, PUBLISHED))
def test_reverse_over_reverse_is_the_slope_of_the_gradient(name):
    """d/dw of <gradient in the images, v> against a difference of gradients, in float64, batch-norm in train mode."""
    with jax.enable_x64(True):
        model = reduced(name)
        variables, images = widened(drawn(model)), IMAGES.astype(np.float64)
        generator = np.random.default_rng(1)
        towards = jax.tree.map(lambda x: generator.normal(size=x.shape), variables["params"])
        v = generator.normal(size=images.shape)

        @jax.jit
        @jax.value_and_grad
        def both(params):
            def loss(x):
                return jnp.mean(cross_entropy(model.apply({**variables, "params": params}, x, train=True).logits, LABELS))

            return jnp.sum(jax.grad(loss)(images) * v)

        moved = [both(jax.tree.map(lambda p, t, s=s: p + s * t, variables["params"], towards))[0] for s in (1e-7, -1e-7)]
        slope = jax.device_get(both(variables["params"])[1])
        found = sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(towards), strict=True))
        assert abs(found) > 1e-3
        np.testing.assert_allclose(found, float(moved[0] - moved[1]) / 2e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["cnn", pytest.param("vgg19_bn", marks=pytest.mark.slow)])
def test_without_jit_it_is_the_same(name):
    model = reduced(name)
    np.testing.assert_allclose(seen(model).logits, model.apply(drawn(model), IMAGES).logits, atol=1e-5)


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
