"""A scan, dispatched steps and unrolled members compute the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.train.loops import epochs, host_callback, leading, steps
from bdjax.types import Loop
from tests.later import some_later

LOOPS = [Loop(kind, unroll, who) for kind in ("scan", "dispatch") for unroll, who in ((1, "batched"), (3, "unrolled"))]
LATER = [Loop(kind, unroll, who) for kind in ("scan", "dispatch") for unroll, who in ((3, "batched"), (1, "unrolled"))]


def body(shared, carry, x):
    total, count = carry
    return total * shared + x, count + jnp.int32(1)


def reference(start, factor, xs):
    for x in xs:
        start = start * factor + x
    return start


@pytest.mark.parametrize("loop", some_later([*LOOPS, *LATER], LATER))
def test_steps_equal_a_plain_loop_alone_and_under_vmap(loop):
    xs = np.arange(1, 8, dtype=np.float32) / 7
    run = functools.partial(steps, body, xs=jax.device_put(xs), loop=loop)
    alone, count = run((jnp.float32(2), jnp.int32(0)), shared=jnp.float32(0.5))
    assert float(alone) == pytest.approx(reference(2.0, 0.5, xs), rel=1e-6)
    assert int(count) == 7
    factors = np.float32([0.5, 0.25, 2.0])
    many, counts = jax.vmap(lambda f: run((jnp.float32(2), jnp.int32(0)), shared=f))(factors)
    np.testing.assert_allclose(many, [reference(2.0, float(f), xs) for f in factors], rtol=1e-6)
    np.testing.assert_array_equal(counts, [7, 7, 7])


@pytest.mark.parametrize("who", ["batched", "unrolled"])
def test_leading_steps_stop_at_a_count_of_their_own(who):
    xs, loop = np.arange(1, 8, dtype=np.float32) / 7, Loop(members=who)

    def run(count, factor, body=body):
        return leading(body, (jnp.float32(2), jnp.int32(0)), jax.device_put(xs), count, factor, loop)

    counts, factors = np.int32([3, 0, 7]), np.float32([0.5, 0.25, 2.0])
    many, made = jax.jit(jax.vmap(run))(counts, factors)
    np.testing.assert_allclose(many, [reference(2.0, float(f), xs[:n]) for f, n in zip(factors, counts, strict=True)], rtol=1e-6)
    np.testing.assert_array_equal(made, counts)
    received = []

    def recorded(shared, carry, x):
        host_callback(lambda value: received.append(float(value)), x)
        return body(shared, carry, x)

    jax.block_until_ready(jax.jit(functools.partial(run, body=recorded))(jnp.int32(3), jnp.float32(0.5)))
    jax.effects_barrier()
    np.testing.assert_array_equal(received, xs[:3])  # the others are not computed at all


def test_dispatch_keeps_the_callers_arrays_and_traces_once_per_population():
    traces = []

    def counted(shared, carry, x):
        traces.append(1)
        return carry + shared * x

    start = jnp.ones((3, 4))
    xs = jnp.arange(6, dtype=jnp.float32)
    for _ in range(2):
        out = jax.vmap(lambda f, s: steps(counted, s, xs, f, Loop("dispatch")))(jnp.arange(3.0), start)
    assert len(traces) == 1
    np.testing.assert_array_equal(start, np.ones((3, 4)))
    np.testing.assert_allclose(out[:, 0], 1 + 15 * np.arange(3.0))


@pytest.mark.parametrize("kind", ["scan", "dispatch"])
def test_epochs_stack_what_each_returns(kind):
    def epoch(carry, e):
        carry = steps(lambda s, c, x: c + x, carry, jnp.ones(2), jnp.float32(0), Loop(kind))
        return carry, (carry, e)

    last, (seen, numbers) = epochs(epoch, jnp.float32(1), 3, Loop(kind))
    assert float(last) == 7
    np.testing.assert_array_equal(seen, [3, 5, 7])
    np.testing.assert_array_equal(numbers, [0, 1, 2])


def test_a_host_callback_runs_once_for_the_whole_population():
    received = []

    def one(x):
        host_callback(lambda a, b: received.append((np.asarray(a), np.asarray(b))), x, jnp.float32(5))
        return x

    jax.block_until_ready(jax.jit(jax.vmap(one))(jnp.arange(3.0)))
    jax.effects_barrier()
    assert len(received) == 1
    np.testing.assert_array_equal(received[0][0], [0, 1, 2])
    np.testing.assert_array_equal(received[0][1], [5, 5, 5])


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="dispatch"):
        steps(body, (jnp.float32(0), jnp.int32(0)), jnp.ones(2), jnp.float32(1), Loop("while"))
    with pytest.raises(ValueError, match="unrolled"):
        steps(body, (jnp.float32(0), jnp.int32(0)), jnp.ones(2), jnp.float32(1), Loop("scan", 1, "grouped"))
