"""Strategies agree, chunks fit, bad executions are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import population
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.population import (
    Execution,
    adapt,
    check,
    default_execution,
    execute,
    fit,
    footprint,
    members,
    memory,
    resolve,
    run,
    take,
)
from bdjax.train.trainer import trainer
from bdjax.types import Split
from tests.later import some_later
from tests.toy import patch_attack

EXECUTIONS = {
    "vmap patches scan": Execution("vmap", "patches", "scan"),
    "vmap unrolled dispatch": Execution("vmap", "unrolled", "dispatch"),
    "vmap native dispatch": Execution("vmap", "native", "dispatch"),
    "map dispatch": Execution("map", "unrolled", "dispatch", chunk=2),
    "map scan": Execution("map", "patches", "scan", chunk=2),
    "unrolled dispatch": Execution("unrolled", "native", "dispatch"),
    "unrolled scan": Execution("unrolled", "native", "scan"),
    "unrolled patches scan": Execution("unrolled", "patches", "scan"),
    "loop dispatch": Execution("sequential", "native", "dispatch"),
    "loop scan": Execution("sequential", "patches", "scan"),
    "one for each device": Execution("sequential", "native", "scan", devices=2),
    "chunks of dispatched steps": Execution("vmap", "unrolled", "dispatch", unroll=2, chunk=2),
}
FIRST = ("vmap patches scan", "map scan", "unrolled scan", "loop dispatch")  # each strategy, and dispatched steps


def setting(dataset, execution):
    model = adapt(cnn(dataset.spec, 2), execution)
    train = trainer(model, patch_attack(), 160)
    data = Split(jax.device_put(dataset.train.images), jax.device_put(dataset.train.labels))
    return (lambda member, split: train(member, split, None, None)), data


STACK = members([0, 5, 9], [0.1], 160)[0]


@pytest.fixture(scope="module")
def plain(tiny_dataset):
    """Every member on its own, jitted, native convolutions."""
    function, data = setting(tiny_dataset, Execution("sequential", "native", "scan"))
    return jax.device_get(jax.jit(function)(jax.tree.map(lambda x: x[1], STACK), data))


@pytest.mark.parametrize("name", some_later(EXECUTIONS, EXECUTIONS.keys() - FIRST))
def test_every_strategy_equals_a_member_alone(name, tiny_dataset, plain):
    function, data = setting(tiny_dataset, check(EXECUTIONS[name]))
    out = jax.device_get(run(function, STACK, (data,), EXECUTIONS[name]))
    assert out.loss.shape == (3, 2)
    np.testing.assert_allclose(out.loss[1], plain.loss, rtol=1e-4)
    for many, alone in zip(jax.tree.leaves(out.variables), jax.tree.leaves(plain.variables), strict=True):
        np.testing.assert_allclose(many[1], alone, rtol=1e-3, atol=1e-5)
    assert not np.allclose(out.loss[0], out.loss[1], rtol=1e-4)


def test_the_last_chunk_is_filled_up_and_cut():
    ratios = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    seen = run(lambda m, s: m.ratio + s, members([0], ratios, 10)[0], (jnp.float32(1),), Execution("map", chunk=4))
    np.testing.assert_allclose(seen, 1 + np.array(ratios), rtol=1e-6)


def test_out_of_memory_halves_the_chunk_and_keeps_what_was_finished(monkeypatch, capsys):
    sizes = []
    real = execute.call

    def call(function, stacked, shared, execution):
        sizes.append(population.size(stacked))
        if sizes[-1] > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return real(function, stacked, shared, execution)

    monkeypatch.setattr(execute, "call", call)
    out = run(lambda m: m.spc, members(range(6), [0.5], 10, spc=7)[0], (), Execution("vmap"))
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(out, [7] * 6)
    assert "3 members" in capsys.readouterr().err
    monkeypatch.setattr(execute, "call", lambda *a: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")))
    with pytest.raises(jax.errors.JaxRuntimeError):
        run(lambda m: m.spc, members([0], [0.5], 10)[0], (), Execution("vmap"))


def test_the_compiler_says_how_many_members_fit(tiny_dataset, monkeypatch):
    def build(model):
        train = trainer(model, patch_attack(), 160)
        return lambda member, split: train(member, split, None, None)

    data = setting(tiny_dataset, Execution())[1]
    model = cnn(tiny_dataset.spec, 2)
    execution = Execution("vmap", "patches", "scan")
    need = footprint(build, model, STACK, (data,), execution)
    parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.init.shapes()))
    assert need.per_member > 2 * parameters
    asked = []
    monkeypatch.setattr(memory, "footprint", lambda *what: asked.append(what) or need)  # asked once: it compiles two programs
    monkeypatch.setattr(memory, "device_memory", lambda: need.fixed + 2 * need.per_member + 1)
    assert fit(build, model, STACK, (data,), execution).chunk == 2
    assert fit(build, model, STACK, (data,), execution._replace(chunk=3)).chunk == 3
    monkeypatch.setattr(memory, "device_memory", lambda: need.fixed)
    with pytest.raises(UserError, match="one member needs"):
        fit(build, model, STACK, (data,), execution)
    assert asked == [(build, model, STACK, (data,), execution)] * 2


def test_members_are_a_product_with_host_counts():
    stack, points = members([3, 1], [0.0, 0.1], 39_209, spc=10, hyper={"lr": 0.5})
    assert points == [(3, 0.0), (3, 0.1), (1, 0.0), (1, 0.1)]
    assert stack.count.tolist() == [0, 3921, 0, 3921]
    assert stack.hyper["lr"].tolist() == [0.5] * 4
    keys = np.asarray(jax.random.key_data(stack.key))
    assert (keys[0] == keys[1]).all() and (keys[0] != keys[2]).any()
    assert take(stack, [2, 2]).count.tolist() == [0, 0]


@pytest.mark.parametrize(
    "execution",
    [
        Execution(strategy="vmaps"),
        Execution(lowering="im2col"),
        Execution(loop="for"),
        Execution(chunk=-1),
        Execution(unroll=0),
        Execution(devices=99),
        Execution(loop="dispatch", devices=2),
    ],
)
def test_executions_that_cannot_run_are_refused(execution):
    with pytest.raises(UserError):
        check(execution)


def test_defaults_can_run_here(tiny_dataset):
    assert check(default_execution()) == Execution("sequential", "mixed", "scan")
    assert check(default_execution(model="cnn")) == default_execution()
    for platform, lowering in (("tpu", "native"), ("gpu", "unrolled")):
        narrow, wide = (default_execution(platform, cnn(tiny_dataset.spec, width)) for width in (16, 64))
        assert narrow == Execution("vmap", lowering, devices=jax.local_device_count()) == default_execution(platform, "cnn")
        assert wide == Execution("sequential", "native", devices=jax.local_device_count())
    assert resolve(None, "cnn") == default_execution(model="cnn")
    assert resolve({"chunk": 3}, "cnn") == default_execution(model="cnn")._replace(chunk=3)
    assert resolve(Execution(), "cnn") == Execution()
    with pytest.raises(UserError):
        resolve({"lowering": "im2col"}, "cnn")
