"""Checks of a user's own attack, defense or network before any of its functions is called."""

from collections.abc import Hashable
from typing import Any

import numpy as np

from bdjax.store.hashing import plain
from bdjax.types import ArchSpec, Attack, Defense, Model, Recipe

REQUIRED = {Attack: ("init", "select", "stamp", "relabel"), Defense: ("defend",), Model: ("init", "apply", "rebuild")}
HOOKS = ("init", "select", "stamp", "relabel", "prepare", "batch", "update", "train_stamp", "defend")
NEEDS = frozenset({"clean", "triggered", "test_accuracy"})


def problem_of(built: Any) -> str:
    """Return why a user's attack, defense or network cannot be used, whatever its functions do; empty if it can."""
    required = next(hooks for kind, hooks in REQUIRED.items() if isinstance(built, kind))
    for hook in dict.fromkeys((*required, *HOOKS)):
        value = getattr(built, hook, None)
        if not callable(value) and (hook in required or value is not None):
            return f"{hook} has to be a function and is {described(value)}"
    if isinstance(built, Model):
        return _problem_of_network(built)
    try:
        plain(built.config)
    except TypeError as error:
        return f"a configuration is part of every record and holds plain values alone, and {error}"
    if isinstance(built, Attack):
        return "" if isinstance(built.recipe, Recipe) else f"recipe is {described(built.recipe)} and no bdjax.types.Recipe"
    allowed = f"a frozenset of {', '.join(sorted(NEEDS))}"
    if not isinstance(built.needs, (set, frozenset)):
        return f"needs is {described(built.needs)} and has to be {allowed}"
    unknown_names = ", ".join(sorted(map(repr, built.needs - NEEDS)))
    if unknown_names:
        return f"needs names {unknown_names}; allowed: {allowed}"
    leaves = built.hyper._asdict() if hasattr(built.hyper, "_asdict") else {}
    odd = [name for name, leaf in leaves.items() if np.asarray(leaf).dtype.kind not in "fiub"]
    return f"hyper-parameters are numbers, and {odd[0]} is {described(leaves[odd[0]])}" if odd else ""


def _problem_of_network(model: Model) -> str:
    if not isinstance(model.arch, ArchSpec):
        return f"arch is {described(model.arch)} and no bdjax.types.ArchSpec"
    lists = [field for field, value in model.arch._asdict().items() if not isinstance(value, Hashable)]
    return f"ArchSpec.{lists[0]} is {described(getattr(model.arch, lists[0]))}; addresses are tuples" if lists else ""


def described(value: Any) -> str:
    """Return the type of a value with its article, for messages."""
    if value is None:
        return "nothing"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
