"""Checks of a user's own attack or defense before any of its functions is called."""

from typing import Any

import numpy as np

from bdjax.store.hashing import plain
from bdjax.types import Attack, Recipe

HOOKS = ("init", "select", "stamp", "relabel", "prepare", "batch", "update", "train_stamp", "defend")
NEEDS = frozenset({"clean", "triggered", "test_accuracy"})


def problem_of(built: Any) -> str:
    """Return why a user's attack or defense cannot be used, whatever its functions do; empty if it can."""
    required = ("init", "select", "stamp", "relabel") if isinstance(built, Attack) else ("defend",)
    for hook in HOOKS:
        value = getattr(built, hook, None)
        if not callable(value) and (hook in required or value is not None):
            return f"{hook} has to be a function and is {described(value)}"
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


def described(value: Any) -> str:
    """Return the type of a value with its article, for messages."""
    if value is None:
        return "nothing"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
