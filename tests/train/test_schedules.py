import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.nft import NFTHyper
from bdjax.defenses.tuning import Hyper
from bdjax.train.schedules import constant, cosine_between, cosine_by_epoch, cosine_by_step, plateau

LR = Hyper(np.float32(0.01))


def rate(schedule, epoch=0, step=0, lr=0.01):
    hyper = jax.tree.map(jnp.asarray, Hyper(np.float32(lr)))
    return float(schedule.rate(hyper, schedule.init(hyper), jnp.int32(epoch), jnp.int32(step)))


def test_the_cosine_follows_the_epoch_or_the_step_and_neither_stops_at_its_period():
    published = {0: 0.01, 50: 0.005, 99: 2.467e-6, 100: 0, 200: 0.01, 399: 0.0099975}
    for t, expected in published.items():
        for found in (rate(cosine_by_epoch(100), t, 7), rate(cosine_by_step(100), 7, t)):
            assert found == pytest.approx(expected, rel=2e-4, abs=1e-12)
    for t in range(30):
        closed = 0.3 * (1 + np.cos(np.pi * t / 7)) / 2
        assert rate(cosine_by_epoch(7), t, 3, 0.3) == pytest.approx(closed, rel=1e-5, abs=1e-8)
        assert rate(cosine_by_step(7), 3, t, 0.3) == pytest.approx(closed, rel=1e-5, abs=1e-8)


def test_the_cosine_between_two_rates_goes_from_the_first_to_the_last():
    hyper = jax.tree.map(jnp.asarray, NFTHyper(lr=np.float32(0.1), last_lr=np.float32(0.02)))
    schedule = cosine_between(100)
    found = [float(schedule.rate(hyper, schedule.init(hyper), jnp.int32(e), jnp.int32(7))) for e in (0, 50, 99, 100)]
    np.testing.assert_allclose(found, [0.1, 0.06, 0.02001974, 0.02], rtol=1e-6)


def test_the_constant_rate_is_constant():
    schedule = constant()
    assert [rate(schedule, e, s, 0.25) for e, s in ((0, 0), (5, 70), (100, 400))] == [0.25] * 3
    assert schedule.observe(schedule.init(LR), jnp.float32(np.nan)) == schedule.init(LR)


def expected_rates(losses, lr, patience, factor, threshold):
    """The rate of every epoch, before its loss is known."""
    best, bad, rates = np.inf, 0, []
    for loss in losses:
        rates.append(lr)
        if loss < best * (1 - threshold):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            lr, bad = lr * factor, 0
    return rates


def found_rates(losses, lr, **fields):
    schedule = plateau(**fields)
    hyper = Hyper(jnp.float32(lr))

    @jax.jit
    @jax.vmap
    def run(losses):
        def epoch(state, loss):
            return schedule.observe(state, loss), schedule.rate(hyper, state, jnp.int32(0), jnp.int32(0))

        return jax.lax.scan(epoch, schedule.init(hyper), losses)[1]

    return np.asarray(run(jnp.asarray(losses, jnp.float32)))


def test_the_plateau_is_the_loop_written_out():
    generator = np.random.default_rng(0)
    losses = np.concatenate(
        [
            generator.uniform(0.5, 1, (40, 120)),  # falls seldom
            np.cumprod(
                generator.choice([0.9, 0.999, 0.99996, 1, 1.001], (40, 120)), 1
            ),  # falls by much, by little and not at all
            np.ones((1, 120)),
        ]
    ).astype(np.float32)
    for patience, factor, threshold in ((10, 0.1, 1e-4), (2, 0.5, 0.01), (0, 0.5, 0.0)):
        found = found_rates(losses, 0.01, patience=patience, factor=factor, threshold=threshold)
        expected = [expected_rates(trace, 0.01, patience, factor, threshold) for trace in losses]
        # Where the limit best (1 - threshold) rounds differently the rates are a factor apart: there is no such trace here.
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert len(np.unique(np.round(np.log(found), 3))) > 3, "the traces must lower the rate"


def test_the_plateau_waits_for_more_than_ten_epochs_unless_told_otherwise():
    found = found_rates(np.ones((1, 30)), 1.0)[0]
    # The first epoch is the best one; epochs 1 to 11 are bad, and the twelfth after it takes a tenth.
    np.testing.assert_allclose(found, [1.0] * 12 + [0.1] * 11 + [0.01] * 7, rtol=1e-5)


def test_the_plateau_ignores_a_fall_by_less_than_the_threshold():
    creeping = (1 - 4e-5) ** np.arange(14)  # each within a ten-thousandth of the last, but not of the best
    found = found_rates(np.stack([creeping, 0.9 ** np.arange(14), np.full(14, np.nan)]), 1.0, patience=2)
    np.testing.assert_allclose(found[0], 1.0)  # every third one lies below best (1 - 1e-4)
    np.testing.assert_allclose(found[1], 1.0)
    np.testing.assert_allclose(found[2][:4], [1, 1, 1, 0.1], rtol=1e-5)  # a loss that is no number is never better
