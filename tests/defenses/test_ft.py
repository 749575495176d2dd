import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.ft import ft
from bdjax.defenses.tuning import Hyper
from bdjax.errors import UserError
from bdjax.types import DefenderView


def test_period_of_the_cosine_follows_the_profile(model):
    assert ft(model).config == (100, 256, 100) == ft(model, profile="reference").config
    assert ft(model, {"epochs": 5}).config.period == 5  # a shortened run shortens the cosine
    assert ft(model, {"epochs": 5}, profile="reference").config.period == 100
    assert ft(model, {"epochs": 5, "period": 7}, profile="reference").config.period == 7


def test_defaults(model):
    defense = ft(model)
    assert [round(float(x), 6) for x in defense.hyper] == [0.01, 0.9, 0.0005]
    assert defense.needs == {"clean"} and not defense.validation


def test_it_learns_the_clean_rows_and_ignores_validation_rows(model, variables, clean, distance):
    rows = clean(8, 2)
    defense = ft(model, {"epochs": 20, "batch": 16})
    defend = jax.jit(lambda rows: defense.defend(jax.random.key(0), DefenderView(variables, rows), Hyper(np.float32(0.1))))
    found = defend(rows)
    assert found.masks is None and found.trace.loss.shape == (20,) and bool(found.trace.alive)
    assert float(found.trace.loss[-1]) < 0.5 * float(found.trace.loss[0])
    validation = np.asarray(rows.role == 2)[:, None, None, None]
    other = defend(rows._replace(images=jnp.asarray(np.where(validation, np.uint8(0), rows.images))))
    assert distance(found.variables, other.variables) == 0


@pytest.mark.parametrize("field", ["epochs", "batch", "period"])
def test_mistakes_are_named(model, field):
    with pytest.raises(UserError, match=rf"ft\.{field} must be at least 1; given 0"):
        ft(model, {field: 0})
