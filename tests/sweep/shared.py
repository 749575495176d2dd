"""Runs of one process share the programs of what they have in common.

A run builds its networks, attacks and defenses anew, and JAX keeps compiled programs by the functions they were built from: a
second run of the same cell traces and compiles everything again. Here everything is built as always, mistakes included, and where
the same was built before, by its whole configuration, that takes its place. Methods out of files are never shared.
"""

import contextlib

import pytest

from bdjax import population
from bdjax.attacks.stored import STORED
from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.models import MODELS
from bdjax.results import curves, recreate
from bdjax.store.hashing import canonical
from bdjax.sweep import build, defend_cell, imported_cells, train_cell

_kept = {}  # {configuration: what was built first}
_names = {}  # {id: configuration} of these
_active = []


def _first(key, made):
    """What was built first with this configuration."""
    kept = _kept.setdefault(key, made)
    _names[id(kept)] = key
    return kept


def _attack(name, profile, spec, attack):
    if name not in ATTACKS and name != STORED:
        return attack
    return _first((name, profile, spec, canonical(attack.config), canonical(attack.recipe), attack.edition), attack)


def _attacked(original):
    def attacked(cell):
        model, attack = original(cell)
        return model, _attack(cell.attack, cell.profile, model.spec, attack)

    return attacked


def _adapt(original):
    def adapt(model, execution):
        adapted = original(model, execution)
        settings = (model.width, model.depth, str(model.dtype), model.norm_eps, model.norm_momentum, model.edition)
        how = (execution.lowering, adapted.loop)
        return _first((model.name, model.spec, *settings, *how), adapted) if model.name in MODELS else adapted

    return adapt


def _defense(name, profile, model, defense):
    network = _names.get(id(model))
    if network is None or name not in DEFENSES:
        return defense
    return _first((name, profile, network, canonical(defense.config), defense.edition), defense)


def _defended(original):
    def defended(cell, model):
        return _defense(cell.defense, cell.train.profile, model, original(cell, model))

    return defended


def _defended_again(original):
    def defended(row, model):
        model, defense, execution = original(row, model)
        return model, _defense(row["defense"], row["profile"], model, defense), execution

    return defended


def _staged(original):
    def staged(row, dataset, folder):
        attack, data = original(row, dataset, folder)
        return _attack(row["attack"], row["profile"], dataset.spec, attack), data

    return staged


def _made(original):
    """A function that is made of networks, attacks, defenses and plain values."""

    def make(*parts, **options):
        key = (original.__name__, *(_names.get(id(part), part) for part in parts), *options.items())
        shared = all(id(part) in _names or isinstance(part, (int, bool)) for part in parts)
        return _first(key, original(*parts, **options)) if shared else original(*parts, **options)

    return make


def _trained(original):
    """The training of a member tells whoever runs it now of its epochs."""
    heard = {}

    def attack_member(model, attack, rows, report=None):
        key = (_names.get(id(model)), _names.get(id(attack)), rows, report is None)
        if None in key:
            return original(model, attack, rows, report)
        heard[key] = report
        return _first(key, original(model, attack, rows, report and (lambda *told: heard[key](*told))))

    return attack_member


PLACES = (
    (build, "attacked", _attacked), (build, "defended", _defended), (population, "adapt", _adapt), (recreate, "adapt", _adapt),
    (recreate, "prepared", _defended_again), (recreate, "staged", _staged), (train_cell, "attack_member", _trained),
    (defend_cell, "defend_member", _made), (recreate, "defend_member", _made), (imported_cells, "evaluator", _made),
    (curves, "along", _made),
)  # fmt: skip


@contextlib.contextmanager
def programs():
    """Share programs between all runs meanwhile."""
    if _active:  # within a wider one
        yield
        return
    _active.append(True)
    with pytest.MonkeyPatch.context() as patch:
        for module, name, wrap in PLACES:
            patch.setattr(module, name, wrap(getattr(module, name)))
        yield
    _active.clear()
