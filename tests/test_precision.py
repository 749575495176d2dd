"""bfloat16 activations and convolutions over float32 parameters, momentum, statistics and losses."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.cli.flags import Scenario
from bdjax.cli.scenario import grid_of
from bdjax.defenses.table import DEFENSES
from bdjax.errors import UserError
from bdjax.keys import Stream, stream
from bdjax.models import MODELS, PRECISIONS
from bdjax.models.cnn import cnn
from bdjax.nn.convolution import LOWERINGS
from bdjax.nn.normalisation import batch_norm
from bdjax.population import Execution
from bdjax.reporting.tables import markdown
from bdjax.results.pool import table
from bdjax.store import records
from bdjax.sweep import build, expand
from bdjax.sweep import run as sweep
from bdjax.sweep.grid import Grid
from bdjax.train.evaluate import EvalSet, evaluator
from bdjax.train.trainer import cross_entropy, trainer
from bdjax.types import CleanSet, DefenderView
from tests.later import some_later
from tests.networks import SLOWEST, activated, reduced, shapes
from tests.programs import equations
from tests.short import shortened
from tests.toy import data, one, patch_attack

BF16 = jnp.dtype(jnp.bfloat16)
ROWS = 7  # no layer is as wide: a tensor that starts with 7 holds activations
BOTH = tuple(PRECISIONS.values())


def dtypes(tree):
    return {x.dtype for x in jax.tree.leaves(tree)}


@pytest.fixture(params=some_later(MODELS, SLOWEST))
def network(request):
    """A network in bfloat16, its variables and a batch, all abstract."""
    model = reduced(request.param, dtype=BF16)
    images = jax.ShapeDtypeStruct((ROWS, *model.spec.image_shape), jnp.float32)
    return model, shapes(model), images, jax.ShapeDtypeStruct((ROWS,), jnp.int32)


def loss(model, params, variables, images, labels):
    out = model.apply({**variables, "params": params}, images, train=True)
    return jnp.mean(cross_entropy(out.logits, labels)), out


@pytest.mark.parametrize("train", [False, True])
def test_every_tensor_between_the_images_and_the_pooling_is_bfloat16(network, train):
    """Convolutions, norms and what they are given (in a residual network the sums), activations, stages."""
    model, variables, images, _ = network
    norms = [f"{norm}{end}" for norm in model.arch.norms for end in ("/in", "")] + activated(model)
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    body = (*convs, *norms, *model.arch.stages, "features")
    out = jax.eval_shape(lambda v, x: model.apply(v, x, train=train, record=(*body, "head")), variables, images)
    assert {address: out.taps[address].dtype for address in body} == dict.fromkeys(body, BF16)
    assert out.taps["head"].dtype == out.logits.dtype == jnp.float32
    assert dtypes(out.variables) == {jnp.dtype(jnp.float32)}


def test_convolutions_take_and_give_bfloat16_in_all_three_maps_and_nothing_is_float64(network):
    model, variables, images, labels = network
    slope = jax.grad(functools.partial(loss, model), has_aux=True)
    program = jax.make_jaxpr(slope)(variables["params"], variables, images, labels)
    seen = list(equations(program.jaxpr))
    convolutions = [e for e in seen if e.primitive.name == "conv_general_dilated"]
    count = len(convolutions_of(model))
    assert len(convolutions) == 3 * count - 1  # nobody asks for the images' gradient
    assert {v.aval.dtype for e in convolutions for v in (*e.invars, *e.outvars)} == {BF16}
    assert not any(getattr(v.aval, "dtype", None) == jnp.float64 for e in seen for v in e.outvars)


def convolutions_of(model):
    """All but the depthwise ones, which are sums of products."""
    params = shapes(model)["params"]
    every = [address for kind, address in model.arch.registered if kind == "conv"]
    return [address for address in every if "block_" not in address or tree.get(params, f"{address}/kernel").shape[0] == 1]


@pytest.mark.parametrize("lowering", some_later(LOWERINGS, set(LOWERINGS) - {"unrolled"}))
def test_what_the_backward_pass_keeps_is_bfloat16(network, lowering):
    """No float32 copy of an activation waits for the backward pass; gradients and losses are float32."""
    model, variables, images, labels = network
    model = model.rebuild(lowering=lowering)

    def forward(variables, images, labels):
        value, pull, out = jax.vjp(lambda p: loss(model, p, variables, images, labels), variables["params"], has_aux=True)
        return value, pull, out, pull(jnp.float32(1))[0]

    value, pull, _, gradient = jax.eval_shape(forward, variables, images, labels)
    assert value.dtype == jnp.float32 and dtypes(gradient) == {jnp.dtype(jnp.float32)}
    kept = [x for x in jax.tree.leaves(pull) if x.ndim == 4 and x.shape[0] == ROWS]
    assert kept and {x.dtype for x in kept} <= {BF16, jnp.dtype(bool)}


@pytest.fixture(scope="module")
def trained(tiny_dataset):
    """``trained(dtype, **recipe)``: one member of the toy task."""

    @functools.cache
    def run(dtype, **recipe):
        model = cnn(tiny_dataset.spec, 4, lowering="patches", dtype=dtype)
        train = trainer(model, patch_attack(**{"batch": 20, "augment": "none", **recipe}), 160)
        found = jax.jit(lambda m, d: train(m, d, None, None))(one(ratio=0.0), data(tiny_dataset))
        return model, jax.device_get(found)

    return run


def test_it_learns_as_well_as_in_float32(trained, tiny_dataset):
    found = []
    for dtype in BOTH:
        model, member = trained(dtype, epochs=5, lr=0.05)
        test = EvalSet(*map(jnp.asarray, tiny_dataset.test), *map(jnp.asarray, tiny_dataset.test))
        counts = jax.jit(evaluator(model))(member.variables, test)
        found.append((member.loss, int(counts.correct) / int(counts.clean)))
        assert dtypes(member.variables) == {np.dtype(np.float32)} and bool(member.alive)
    (full, full_accuracy), (half, half_accuracy) = found
    assert full[-1] < 0.5 * full[0] and full_accuracy > 0.9
    np.testing.assert_allclose(half, full, rtol=0.05, atol=0.02)
    assert half_accuracy > full_accuracy - 0.05
    assert not np.array_equal(half, full)  # it is another arithmetic


def test_updates_too_small_for_bfloat16_are_not_lost(trained, tiny_dataset):
    """Eight steps that change a weight by about 1e-4 of itself in all, where bfloat16 tells 4e-3 apart."""
    moved = []
    for dtype in BOTH:
        model, member = trained(dtype, epochs=1, lr=1e-5, schedule="constant", weight_decay=0.0)
        start = jax.device_get(model.init(stream(one().key, Stream.INIT)))["params"]
        params = member.variables["params"]
        layers = [name for name in params if "kernel" in params[name]]
        before, after = (np.concatenate([tree[name]["kernel"].ravel() for name in layers]) for tree in (start, params))
        assert 1e-6 < np.median(np.abs(after - before) / np.abs(before)) < 1e-3
        assert np.mean(after != before) > 0.9
        assert np.mean(after.astype(BF16) == before.astype(BF16)) > 0.9
        moved.append(after - before)
    assert np.corrcoef(*moved)[0, 1] > 0.98


@pytest.fixture(scope="module")
def repaired(trained, tiny_dataset):
    """``repaired(name, dtype)``: what a defense makes of the trained member, as NumPy arrays."""

    @functools.cache
    def run(name, dtype):
        model, _ = trained(dtype, epochs=5, lr=0.05)
        defense = shortened(DEFENSES[name], model, epochs=3, batch=16)
        split = data(tiny_dataset)
        clean = CleanSet(split.images[:32], split.labels[:32], jnp.where(jnp.arange(32) < 8, 2, 1).astype(jnp.int8), jnp.int32(8))
        triggered = clean.images.at[:, :3, :3].set(255) if "triggered" in defense.needs else None
        variables = trained(None, epochs=5, lr=0.05)[1].variables
        view = DefenderView(variables, clean if "clean" in defense.needs else None, triggered)
        # With a weight of a thousand rounding would decide.
        hyper = jax.tree.map(lambda x: np.where(x > 100, 1, x).astype(np.asarray(x).dtype), defense.hyper)
        return jax.device_get(jax.jit(defense.defend)(jax.random.key(0), view, hyper))

    return run


# Two programs each, so one of each kind: tuned, distilled, by second derivatives, by masks, with a plug, bounded, in rounds. That
# all others compute in bfloat16 and keep float32 variables, tests/contract shows.
KINDS = ("ft", "nad", "i_bau", "anp", "npd", "mm_bd", "grad_prune")


@pytest.mark.parametrize("name", some_later(KINDS, KINDS[1:]))
def test_defenses_repair_in_bfloat16_as_in_float32(name, repaired):
    full, half = (repaired(name, dtype) for dtype in BOTH)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((full.variables, half.variables)))
    for a, b in zip(jax.tree.leaves(full.variables["params"]), jax.tree.leaves(half.variables["params"]), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.05, atol=0.02)


def test_fine_tuning_loses_as_much_in_bfloat16(repaired):
    full, half = (repaired("ft", dtype).trace.loss for dtype in BOTH)
    np.testing.assert_allclose(half, full, rtol=0.1, atol=0.02)


SMALL = Grid(defense=("ft",), poison_ratio=(0.1,), spc=(2,), width=4, epochs=1, batch=25, train_images=100, test_images=50)
SMALL = dataclasses.replace(SMALL, defense_config={"ft": {"epochs": 1}})


def test_the_flag_reaches_the_model_and_the_hash():
    cells = {}
    for precision in PRECISIONS:
        (branch,) = expand.cells(grid_of(Scenario(precision=precision), SMALL))
        model, _ = build.attacked(branch.train)
        images = jnp.zeros((1, *model.spec.image_shape))
        out = jax.eval_shape(lambda model=model, x=images: model.apply(model.init(jax.random.key(0)), x, record=("conv1",)))
        assert out.taps["conv1"].dtype == jnp.dtype(precision)
        assert build.describe(branch.train, "data")["model"]["precision"] == precision
        cells[precision] = [build.cell_hash(cell, "data") for cell in (branch.train, *branch.defenses)]
    (plain,) = expand.cells(SMALL)
    assert cells["float32"] == [build.cell_hash(cell, "data") for cell in (plain.train, *plain.defenses)]
    assert not set(cells["float32"]) & set(cells["bfloat16"])


def test_a_precision_that_does_not_exist_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown precision 'bfloat'.*'bfloat16'"):
        expand.cells(grid_of(Scenario(precision="bfloat"), SMALL))


@pytest.mark.slow  # two trainings
def test_records_and_tables_tell_the_precision(tmp_path):
    how = Execution("sequential", "patches", "dispatch")
    for precision in PRECISIONS:
        grid = dataclasses.replace(SMALL, precision=precision, defense=("none",), defense_config={})
        frame = sweep.run(grid, tmp_path, execution=how)
        assert set(frame["status"]) == {"ok"}
    frame = records.read(tmp_path)
    assert sorted(json.loads(config)["model"]["precision"] for config in frame["config"]) == ["bfloat16", "float32"]
    pooled = table(frame)
    assert sorted(pooled["precision"]) == ["bfloat16", "float32"] and set(pooled["runs"]) == {1}
    printed = markdown(frame)
    assert "| precision |" in printed and "| bfloat16 |" in printed


def test_batch_norm_of_bfloat16_is_as_near_to_exact_as_its_inputs_allow():
    """Moments and gradients without a pivot, and with two factors per channel, lose no more than bfloat16 itself rounds."""
    generator = np.random.default_rng(3)
    x = jnp.asarray(generator.normal(5, 2, (16, 8, 8, 4)), BF16)  # a mean that is far from 0
    g, scale, bias = generator.normal(size=x.shape), np.array([0.5, 1, 2, 3]), np.zeros(4)

    def slope(x, dtype):
        running = {"mean": jnp.zeros(4, dtype), "var": jnp.ones(4, dtype)}

        def y(x):
            return batch_norm(x, None, running, jnp.asarray(scale, dtype), jnp.asarray(bias, dtype), 1e-5, 0.1)[0]

        value, back = jax.vjp(y, x)
        return value, back(jnp.asarray(jnp.asarray(g, BF16), x.dtype))[0]

    narrow = slope(x, jnp.float32)
    with jax.enable_x64(True):
        exact = slope(x.astype(jnp.float64), jnp.float64)
    for mine, true in zip(narrow, exact, strict=True):
        assert mine.dtype == BF16
        np.testing.assert_allclose(np.asarray(mine, np.float64), true, rtol=2**-8, atol=2**-9)
