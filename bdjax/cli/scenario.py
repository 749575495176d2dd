"""The grid that the flags of a command line stand for."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bdjax.attacks.stored import STORED
from bdjax.cli.flags import Scenario
from bdjax.errors import UserError, quoted, unknown
from bdjax.plugins.load import spelled
from bdjax.sweep import imported
from bdjax.sweep.grid import Grid


def grid_of(scenario: Scenario, base: Grid | None = None) -> Grid:
    """The grid a command line stands for: ``base`` (None: the defaults) with what was given replaced.

    Raises:
      UserError: a setting that is not METHOD.FIELD=VALUE, or that names a method which does not run; an import folder that
        cannot be read, or that holds no triggered images where no attack is named.
    """
    fields = {field.name: getattr(scenario, field.name) for field in dataclasses.fields(scenario)}
    given = {name: value for name, value in fields.items() if name not in ("config", "hyper") and value is not None}
    if scenario.imported is not None:
        given = {**_of_import(scenario.imported), **given}
        if base is None and "attack" not in given:  # the default attack is no answer to a network of an unknown one
            imported.stored_images(scenario.imported)  # raises
    grid = dataclasses.replace(base or Grid(), **given)
    # What the base says of methods that the command line took out goes with them.
    attacks, defenses = (base.attack, base.defense) if base is not None else ((), ())
    grid = dataclasses.replace(
        grid,
        attack_config=_copy(grid.attack_config, grid.attack, attacks),
        defense_config=_copy(grid.defense_config, grid.defense, defenses),
        attack_recipe=_copy(grid.attack_recipe, grid.attack, attacks),
        recipe=dict(grid.recipe),
        hyper=_copy(grid.hyper, grid.defense, defenses),
    )
    return dataclasses.replace(grid, **_static(grid, scenario.config), hyper=_traced(grid, scenario.hyper))


def _static(grid: Grid, items: Sequence[str]) -> dict[str, Any]:
    """The settings of a grid with those of --config, by the grid's field."""
    attack, defense, own = (_deep(tree) for tree in (grid.attack_config, grid.defense_config, grid.attack_recipe))
    recipe = dict(grid.recipe)
    for method, field, text in (_split(item, "config") for item in items):
        value, ending = _value(text), ".recipe" * method.endswith(".recipe")
        known = grid.attack if ending else (*grid.attack, *grid.defense)
        method = spelled(method.removesuffix(".recipe"), known, "--config") + ending
        if method == "recipe":
            recipe[field] = value
        elif ending and method.removesuffix(ending) in grid.attack:
            own.setdefault(method.removesuffix(ending), {})[field] = value
        elif method in grid.attack:
            attack.setdefault(method, {})[field] = value
        elif method in grid.defense:
            defense.setdefault(method, {})[field] = value
        else:
            raise unknown("method of --config", method, [*grid.attack, *grid.defense, *_trainings(grid)])
    return {"attack_config": attack, "defense_config": defense, "recipe": recipe, "attack_recipe": own}


def _traced(grid: Grid, items: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The hyper-parameters of a grid with those of --hyper."""
    hyper = _deep(grid.hyper)
    for method, leaf, text in (_split(item, "hyper") for item in items):
        method = spelled(method, grid.defense, "--hyper")
        if method not in grid.defense:
            raise _without_hyper(grid, method, f"{method}.{leaf}", text)
        hyper.setdefault(method, {})[leaf] = tuple(_number(part, f"{method}.{leaf}") for part in text.split(","))
    return hyper


def _without_hyper(grid: Grid, method: str, name: str, text: str) -> UserError:
    """The error for a method of --hyper that has no hyper-parameters, or is none of the grid's."""
    if spelled(method, grid.attack, "--hyper") in grid.attack or method in _trainings(grid):
        setting = quoted("--config", f"{name}={text}")
        return UserError(f"{name} is no hyper-parameter of a defense, but a setting, the same for all members: {setting}")
    return unknown("method of --hyper", method, grid.defense)


def _trainings(grid: Grid) -> list[str]:
    """What --config calls the training of all attacks, and that of each."""
    return ["recipe", *(f"{attack}.recipe" for attack in grid.attack)]


def _deep(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(fields) for name, fields in tree.items()}


def pairs(items: Sequence[str], flag: str) -> dict[str, str]:
    """``AXIS=VALUE`` items as a dictionary.

    Raises:
      UserError: an item of another form, or one axis twice.
    """
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise UserError(f"{flag} {item!r} is not of the form AXIS=VALUE, e.g. attack=badnets")
        if name in found:
            raise UserError(f"{flag} names {name} twice")
        found[name] = value
    return found


def _copy(tree: Mapping[str, Mapping[str, Any]], methods: Sequence[str], before: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Settings by method without those of methods that ran ``before`` and do not any more; of unknown ones the grid complains."""
    named = {spelled(name, (*methods, *before), "the grid's settings of"): dict(fields) for name, fields in tree.items()}
    return {name: fields for name, fields in named.items() if name in methods or name not in before}


def _of_import(path: str) -> dict[str, Any]:
    """The axes that an import folder fixes, or gives where the command line says nothing."""
    found = imported.opened(path)
    fixed: dict[str, Any] = {"model": (found.model,), "width": found.width, "depth": found.depth}
    fixed["seeds"] = tuple(dict.fromkeys(seed for seed, _ in found.points))
    fixed["poison_ratio"] = tuple(dict.fromkeys(ratio for _, ratio in found.points))
    if found.dataset is not None:
        fixed["dataset"] = (found.dataset,)
    if found.triggered is not None:
        fixed["attack"] = (STORED,)
    return fixed


def _split(item: str, flag: str) -> tuple[str, str, str]:
    left, equals, value = item.partition("=")
    method, dot, field = left.rpartition(".")
    if not (method and dot and field and equals and value):
        example = "fp.epochs=10" if flag == "config" else "ft.lr=0.1"
        raise UserError(f"--{flag} {item!r} is not of the form METHOD.FIELD=VALUE, e.g. {example}")
    return method, field, value


def _value(text: str) -> Any:
    """A JSON value, or the text itself; a list becomes a tuple, as configurations hold them."""
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--hyper {name} takes numbers separated by commas; given {text!r}") from None
