"""While a member trains, is measured or repaired, nothing crosses between host and device.

One check per direction. JAX's guard refuses transfers *to* the device (a Python number or a NumPy array among the operands), on
a CPU too. Reading a CPU's memory is nothing it guards, so the same code is traced with abstract values: whatever asks for a value
then fails.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses import tuning
from bdjax.defenses.ft import ft
from bdjax.models.cnn import cnn
from bdjax.population import members
from bdjax.train import trainer as training
from bdjax.train.evaluate import EvalSet, evaluator
from bdjax.train.trainer import trainer
from bdjax.types import CleanSet, DefenderView, Loop
from tests.later import some_later
from tests.toy import data, patch_attack

LOOPS = {"scan": Loop(), "dispatch": Loop("dispatch"), "chunks": Loop("dispatch", 3), "unrolled": Loop("dispatch", 1, "unrolled")}
KINDS = ("train", "evaluate", "ft")
POPULATIONS = [
    ("train", "dispatch"),
    ("evaluate", "dispatch"),
    ("evaluate", "unrolled"),
    pytest.param("ft", "dispatch", marks=pytest.mark.slow),
    pytest.param("train", "chunks", marks=pytest.mark.slow),
    pytest.param("ft", "scan", marks=pytest.mark.slow),  # a scan is one program, which sends nothing or all: one kind shows it
]


@pytest.fixture(scope="module")
def build(tiny_dataset):
    """``build(kind, loop) -> (function, stacked arguments of two members, shared arguments)``; all arrays on the device."""
    split = data(tiny_dataset)
    test = jax.tree.map(jnp.asarray, tiny_dataset.test)
    stacked = members([0, 1], [0.1], 160)[0]

    def make(kind, loop):
        model = cnn(tiny_dataset.spec, 2, lowering="patches", loop=loop)
        if kind == "train":  # five steps per epoch, so that chunks of three leave two
            return trainer(model, patch_attack(batch=32), 160), (stacked,), (split, None, None)
        variables = jax.vmap(model.init)(stacked.key)
        if kind == "evaluate":
            return evaluator(model, batch=32), (variables,), (EvalSet(*test, test.images, jnp.zeros_like(test.labels)),)
        defense = ft(model, {"epochs": 2, "batch": 8})
        clean = CleanSet(split.images[:16], split.labels[:16], jnp.ones(16, jnp.int8), jnp.int32(4))

        def defend(key, variables, clean, hyper):
            return defense.defend(key, DefenderView(variables, clean), hyper)

        return defend, (stacked.key, variables), (clean, jax.tree.map(jnp.asarray, defense.hyper))

    return make


def population(function, stacked, shared):
    return jax.vmap(function, in_axes=(*(0,) * len(stacked), *(None,) * len(shared)))


def guarded(call):
    """Run it once to compile, then where no transfer is allowed, not even an explicit one."""
    want = jax.block_until_ready(call())
    with jax.transfer_guard("disallow_explicit"):
        got = jax.block_until_ready(call())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(("kind", "loop"), POPULATIONS)
def test_nothing_is_sent_to_the_device_for_a_population(kind, loop, build):
    function, stacked, shared = build(kind, LOOPS[loop])
    run = population(function, stacked, shared)
    run = jax.jit(run) if loop == "scan" else run
    guarded(lambda: run(*stacked, *shared))


@pytest.mark.parametrize("kind", some_later(KINDS, {"train", "ft"}))  # as a population they are tested above
def test_nothing_is_sent_to_the_device_for_one_member(kind, build):
    function, stacked, shared = build(kind, LOOPS["dispatch"])
    alone = jax.tree.map(lambda x: x[0], stacked)
    guarded(lambda: function(*alone, *shared))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_from_the_device(kind, loop, build):
    function, stacked, shared = build(kind, LOOPS[loop])
    alone = jax.tree.map(lambda x: x[0], stacked)
    jax.eval_shape(function, *alone, *shared)


def meddling(monkeypatch, module, name, meddle):
    """Let ``meddle(carry)`` run between the steps of an epoch."""
    steps = getattr(module, name)

    def with_it(body, carry, xs, shared, loop):
        return steps(body, meddle(carry), xs, shared, loop)

    monkeypatch.setattr(module, name, with_it)


def read(carry):
    np.asarray(carry.step)
    return carry


def send(carry):
    return carry._replace(step=carry.step + np.int32(0))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "module", "name"), [("train", training, "steps"), ("ft", tuning, "run_steps")])
def test_a_transfer_inside_an_epoch_is_caught(kind, module, name, build, monkeypatch):
    function, stacked, shared = build(kind, LOOPS["dispatch"])
    alone = jax.tree.map(lambda x: x[0], stacked)
    with monkeypatch.context() as patch:
        meddling(patch, module, name, read)
        with pytest.raises(jax.errors.TracerArrayConversionError):
            jax.eval_shape(function, *alone, *shared)
    with monkeypatch.context() as patch:
        meddling(patch, module, name, send)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            guarded(lambda: population(function, stacked, shared)(*stacked, *shared))
