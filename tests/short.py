"""Methods cut short for tests: few epochs, rounds and steps, and narrow networks of their own."""

import functools

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.types import PROFILES, DataSpec
from tests.later import some_later

LENGTHS = {
    "epochs": 2,
    "batch": 8,
    "teacher_epochs": 2,
    "search_epochs": 3,
    "rounds": 2,
    "attack_steps": 2,
    "iterations": 2,
    "unlearn_epochs": 2,
    "recover_epochs": 2,
    "warmup_epochs": 1,
    "pretrain_epochs": 2,
    "mask_epochs": 2,
    "generator_epochs": 2,
    "generator_width": 2,
    "generator_levels": 1,
    "prune_one_in": 4,  # small convolutions have fewer channels than are pruned one in
    "start_rounds": 2,
    "search_rounds": 2,
    "settle_rounds": 2,
}
OF_ATTACKS = {
    "width": 4,
    "bits": 1,
    "epochs": 40,
    "batch": 16,
    "lr": 4e-3,
    "mask_epochs": 1,
    "mask_batch": 32,
}  # enough for SSBA to learn its bit
TINY = DataSpec("tiny", (8, 8, 3), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), False, 1)


def _kept(fields, config):
    return {name: value for name, value in fields.items() if name in config._fields}


def shortened(make, model, profile="corrected", **changed):
    """The defense of a factory with short lengths; of :data:`LENGTHS` and ``changed`` those fields that it has."""
    return make(model, _kept({**LENGTHS, **changed}, make(model, profile=profile).config), profile=profile)


def shortened_attack(make, spec, profile="corrected", **recipe):
    """The attack of a factory with the network it prepares cut short, and its training too."""
    made = make(spec, _kept(OF_ATTACKS, make(spec, profile=profile).config), profile=profile)
    return made._replace(recipe=made.recipe._replace(**{"epochs": 1, "batch": 32, **recipe}))


@functools.cache
def offered(name, profile):
    """Whether a defense can be had in a profile; where its published code cannot run, the factory says so."""
    try:
        DEFENSES[name](cnn(TINY, 4), profile=profile)
    except UserError as error:
        assert profile in str(error), error
        return False
    return True


def prepares(name):
    """Whether an attack trains a network before the population, which takes long; its own tests have fast ones."""
    return ATTACKS[name](TINY).prepare is not None


def profiles(names, later=lambda name: False):
    """`NAME-PROFILE` as parameters; the `reference` profiles, and names for which ``later`` says so, come with the slow tests."""
    pairs = [(name, profile) for profile in PROFILES for name in names if names is not DEFENSES or offered(name, profile)]
    waiting = {"-".join(pair) for pair in pairs if pair[1] != "corrected" or later(pair[0])}
    return some_later(["-".join(pair) for pair in pairs], waiting)
