"""Every defense runs on a network that names no more than the defense says it reads, and refuses one that names less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import clean_subset
from bdjax.defenses.reads import ADDRESSES
from bdjax.defenses.table import DEFENSES
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.types import ArchSpec, CleanSet, Defended, DefenderView
from tests.networks import drawn
from tests.short import TINY, shortened

SPC = 4


def reads(name):
    return getattr(DEFENSES[name], "reads", ())


def naming(*fields):
    """The small network, which names these addresses and no other."""
    model = cnn(TINY, 4)
    kinds = {kind for kind, field in (("conv", "convs"), ("norm", "norms")) if field in fields}
    registered = tuple(item for item in model.arch.registered if item[0] in kinds)
    named = {field: getattr(model.arch, field) for field in fields if field != "convs"}
    return model._replace(name="mine.py:mine", arch=ArchSpec(registered=registered, **named))


@functools.cache
def clean(validation):
    labels = jnp.arange(40, dtype=jnp.int32) % 4
    index, role = clean_subset.draw(jax.random.key(0), labels, 4, SPC, validation)
    return CleanSet(np.zeros((len(index), 8, 8, 3), np.uint8), labels[index], role, np.int32(SPC))


@pytest.mark.parametrize("name", DEFENSES)
def test_what_it_reads_is_all_it_needs(name):
    model = naming(*reads(name))
    defense, variables = shortened(DEFENSES[name], model), drawn(model)
    view = DefenderView(variables, clean(defense.validation), np.zeros_like(clean(defense.validation).images), np.float32(0.5))
    found = jax.eval_shape(defense.defend, jax.random.key(0), view, defense.hyper)
    assert isinstance(found, Defended)


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in DEFENSES for field in reads(name)])
def test_without_it_one_line_says_what_is_missing_and_how_a_network_names_it(name, field):
    model = naming(*(other for other in reads(name) if other != field))
    with pytest.raises(UserError, match=rf"^{name} needs .*, and mine\.py:mine names none in ArchSpec\.{field}: .*\S$"):
        DEFENSES[name](model)


def test_every_address_is_read_by_some_defense():
    assert {field for name in DEFENSES for field in reads(name)} == set(ADDRESSES)
