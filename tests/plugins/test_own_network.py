"""A network of the user's own, the example of CONTRIBUTING.md, promises what those of the table do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError
from bdjax.models import PRECISIONS
from bdjax.models.build import shapes
from bdjax.plugins.load import source_digest
from bdjax.plugins.networks import network
from bdjax.population.autotune.cache import tuning_key
from bdjax.train.trainer import cross_entropy
from bdjax.types import ArchSpec, Loop
from tests.examples import written
from tests.networks import drawn

IMAGES = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)
LABELS = np.arange(6, dtype=np.int32) % 4
NAMED = ArchSpec(
    registered=(("conv", "conv1"), ("norm", "bn1"), ("conv", "conv2"), ("norm", "bn2")),
    norms=("bn1", "bn2"),
    feeds=(("bn1", "conv1"), ("bn2", "conv2")),
    heads=("linear",),
    stages=("stage1", "stage2"),
    plug_site="features",
    activations=("bn1/act", "bn2/act"),
)
EVERY = ("conv1", "bn1/in", "bn1", "bn1/act", "stage1", "conv2", "bn2/in", "bn2", "bn2/act", "stage2", "features", "head")


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return f"{written(tmp_path_factory.mktemp('networks'), 'tiny')}/tiny.py:tiny"


@pytest.fixture(scope="module")
def model(name, tiny_spec):
    return network(name, tiny_spec, width=4)


@functools.cache
def compiled(model, **static):
    return jax.jit(functools.partial(model.apply, **static))


@functools.cache
def step(model):
    """``f(variables) -> ((loss, variables), gradient)`` in train mode."""

    @jax.jit
    def run(variables):
        def loss(params):
            out = model.apply({**variables, "params": params}, IMAGES, train=True)
            return jnp.mean(cross_entropy(out.logits, LABELS)), out.variables

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    return run


def stacked(*trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_its_addresses_are_read_off_a_traced_pass(model):
    assert model.arch == NAMED


def test_it_starts_by_its_key_alone_or_together(model):
    init, keys = jax.jit(model.init), jax.random.split(jax.random.key(0))
    one, again, other = (jax.device_get(init(key)) for key in (keys[0], keys[0], keys[1]))
    close(one, again)
    assert np.all(one["params"]["conv1"]["kernel"] != other["params"]["conv1"]["kernel"])
    assert np.abs(one["params"]["conv1"]["kernel"]).max() <= 1 / np.sqrt(27)
    close(jax.jit(jax.vmap(model.init))(keys), stacked(one, other))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes(model)) == jax.tree.map(lambda x: (x.shape, x.dtype), one)


def test_a_pass_taps_every_address_and_statistics_move_in_train_mode_alone(model):
    variables = drawn(model)
    out = compiled(model, record=EVERY)(variables, IMAGES)
    assert set(out.taps) == set(EVERY) and out.logits.shape == (6, 4) and out.taps["stage2"].shape == (6, 4, 4, 8)
    np.testing.assert_array_equal(out.taps["bn2/in"], out.taps["conv2"])
    close(out.variables, variables)
    after = compiled(model, train=True)(variables, IMAGES).variables
    assert all(
        np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (after["batch_stats"], variables["batch_stats"])), strict=True)
    )
    close(after["params"], variables["params"])
    measured = jax.eval_shape(lambda v: model.apply(v, IMAGES, record=(("conv2", lambda x, mask: jnp.max(x)),)).taps, variables)
    assert measured["conv2"].shape == ()
    with pytest.raises(UserError, match=r"unknown tap address 'stage3'.*Did you mean 'stage"):
        jax.eval_shape(lambda v: model.apply(v, IMAGES, record=("stage3",)).logits, variables)


def test_a_pass_can_start_at_the_features_or_at_the_head(model):
    variables = drawn(model)
    out = compiled(model, record=("features", "head"))(variables, IMAGES)
    for start in ("features", "head"):
        np.testing.assert_allclose(compiled(model, start=start)(variables, out.taps[start]).logits, out.logits, atol=1e-6)


def test_rows_that_do_not_count_change_nothing(model):
    variables, mask = drawn(model), np.repeat(np.float32([1, 0]), len(IMAGES))
    alone = compiled(model, train=True)(variables, IMAGES)
    masked = compiled(model, train=True)(variables, np.concatenate([IMAGES, 9 + IMAGES]), mask=mask)
    np.testing.assert_allclose(masked.logits[: len(IMAGES)], alone.logits, atol=1e-4)
    close(masked.variables, alone.variables)


def test_two_members_learn_together_as_each_alone(model):
    members = [drawn(model, seed) for seed in (0, 1)]
    alone = stacked(*(jax.device_get(step(model)(one)) for one in members))
    together = jax.jit(jax.vmap(step(model.rebuild(lowering="patches"))))(stacked(*members))
    close(together, alone)
    assert all(np.any(slope != 0) for slope in jax.tree.leaves(alone[1]))


def test_bounds_and_a_plug_act_where_its_addresses_say(model):
    variables = drawn(model)
    want = compiled(model)(variables, IMAGES).logits
    shut = {"bn1/act": np.zeros(4, np.float32)}
    assert np.any(compiled(model)({**variables, "bounds": shut}, IMAGES).logits != want)
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    plug = {"kernel": np.eye(8, dtype=np.float32)[None, None], "scale": ones, "bias": zeros}
    same = {**variables, "plug": plug, "plug_stats": {"mean": zeros, "var": np.float32(1 - 1e-5) * ones}}
    np.testing.assert_allclose(compiled(model)(same, IMAGES).logits, want, atol=1e-5)


def test_built_again_it_has_other_fields_and_is_the_same_otherwise(model, name, tiny_spec):
    other = model.rebuild(norm_eps=1e-2, loop=Loop("dispatch"))
    assert (other.norm_eps, other.loop.kind, other.width, other.arch) == (1e-2, "dispatch", 4, model.arch)
    assert other.name == model.name == name and other.source == model.source == source_digest(name)
    assert other.rebuild(norm_eps=1e-5, loop=Loop()) is model is network(name, tiny_spec, width=4)
    variables = drawn(model)
    assert np.any(compiled(other)(variables, IMAGES).logits != compiled(model)(variables, IMAGES).logits)
    with pytest.raises(UserError, match="tiny has no depth to reduce"):
        network(name, tiny_spec, depth=1)
    with pytest.raises(UserError, match=r"unknown static field of tiny 'norm_esp'.*Did you mean 'norm_eps'"):
        model.rebuild(norm_esp=1)


def test_dtypes_follow_the_parameters_or_the_precision(model):
    variables = drawn(model)
    half = model.rebuild(dtype=PRECISIONS["bfloat16"])
    found = jax.eval_shape(lambda v: half.apply(v, IMAGES, train=True, record=("conv2", "features", "head")), variables)
    assert {found.taps[address].dtype for address in ("conv2", "features")} == {jnp.dtype(jnp.bfloat16)}
    assert found.logits.dtype == found.taps["head"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.variables))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), dict(variables))
        out = jax.jit(lambda v, x: model.apply(v, x, train=True))(wide, IMAGES.astype(np.float64))
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(out))
        np.testing.assert_allclose(out.logits, compiled(model, train=True)(variables, IMAGES).logits, atol=1e-4)


PLAIN = """
import flax.linen as nn
from bdjax.models.build import build
from bdjax.nn.layers import dropout, tap


class Plain(nn.Module):
    classes: int
    width: int
    drop: float

    @nn.compact
    def __call__(self, x, run, start):
        if start is None:
            x = nn.relu(tap(nn.Conv(self.width, (3, 3), strides=2, name="first")(x), "first", run))
            x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
        if start != "head":
            x = tap(x, "features", run).mean((1, 2))
        x = dropout(tap(x, "head", run), self.drop, run, "drop")
        return nn.Dense(self.classes)(nn.relu(nn.Dense(16)(x)))


def plain(spec, width=8, *, depth=None, drop=0.0, **how):
    how = {**how, "depth": depth, "drop": drop}
    return build(Plain(spec.classes, width * (depth or 2), drop), factory=plain, spec=spec, width=width, how=how)
"""


def test_flaxs_own_layers_start_as_flax_starts_them_and_have_the_addresses_that_are_tapped(tmp_path, tiny_spec):
    (tmp_path / "plain.py").write_text(PLAIN)
    model = network(f"{tmp_path}/plain.py:plain", tiny_spec, width=4, depth=1)
    assert model.arch == ArchSpec(registered=(("conv", "first"),), heads=("Dense_1", "Dense_0"), plug_site="features")
    assert (model.width, model.depth) == (4, 1) and model.rebuild(drop=0.5).depth == 1
    variables = model.init(jax.random.key(0))
    assert variables["batch_stats"] == {} and tree.get(variables["params"], "first/kernel").shape == (3, 3, 3, 4)
    assert float(jnp.std(variables["params"]["Dense_0"]["kernel"])) > 0
    out = compiled(model, train=True)(variables, IMAGES)
    assert out.logits.shape == (6, 4) and out.variables["batch_stats"] == {}
    dropping = compiled(model.rebuild(drop=0.5), train=True)
    first, second = (dropping(variables, IMAGES, key=jax.random.key(seed)).logits for seed in (0, 1))
    assert np.any(first != second)


def test_an_edit_of_its_file_is_another_network(tmp_path, tiny_spec):
    file = written(tmp_path, "tiny") / "tiny.py"
    before = network(f"{file}:tiny", tiny_spec)
    file.write_text(file.read_text().replace("stride=i", "stride=2"))
    after = network(f"{file}:tiny", tiny_spec)
    assert before.source != after.source == source_digest(f"{file}:tiny")
    assert tuning_key(before, 8, None) != tuning_key(after, 8, None)
    sides = [jax.eval_shape(lambda v, m=m: m.apply(v, IMAGES, record=("head", "stage2")).taps, drawn(m)) for m in (before, after)]
    assert [taps["stage2"].shape[1] for taps in sides] == [4, 2]
