"""The scenario flags of the command line, and the grid they stand for."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bdjax.attacks.stored import STORED
from bdjax.errors import UserError, unknown
from bdjax.plugins.load import spelled
from bdjax.population import Execution
from bdjax.store.hashing import canonical
from bdjax.sweep import imported
from bdjax.sweep.grid import Grid


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What to run. Flags that take several values are axes: every combination becomes a member or a cell."""

    dataset: str | None = None
    """Data set, see `bdjax ls datasets`."""
    model: str | None = None
    """Model, see `bdjax ls models`."""
    attack: str | None = None
    """Attack, see `bdjax ls attacks`, or path/to/file.py:factory."""
    defense: tuple[str, ...] | None = None
    """Defenses, see `bdjax ls defenses`, or path/to/file.py:factory; "none" only trains."""
    poison_ratio: tuple[float, ...] | None = None
    """Shares of all training rows, 0 … 1; 0 is a model that was never attacked."""
    spc: tuple[int, ...] | None = None
    """Clean samples per class the defender holds."""
    seeds: tuple[int, ...] | None = None
    """Seeds by name, e.g. 0 1 2 3."""
    profile: str | None = None
    """corrected (the method as its paper describes it) or reference (as the published code behaves)."""
    width: int | None = None
    """Channels of the model's first stage."""
    depth: int | None = None
    """At most so many blocks per stage of the model; default: the whole network."""
    precision: str | None = None
    """float32, or bfloat16 for activations and convolutions (parameters, statistics and losses stay float32)."""
    epochs: int | None = None
    """Epochs of the attack's training."""
    batch: int | None = None
    """Batch size of the attack's training."""
    train_images: int | None = None
    """Size of a reduced training set, balanced by class."""
    test_images: int | None = None
    """Size of a reduced test set, balanced by class."""
    target: int | None = None
    """Target class of the attack."""
    config: tuple[str, ...] = ()
    """Static settings METHOD.FIELD=VALUE, e.g. fp.epochs=10; METHOD "recipe" is the attack's training. Of path/to/file.py:factory
    the factory's name is enough, here and in --hyper."""
    hyper: tuple[str, ...] = ()
    """Traced hyper-parameters METHOD.LEAF=V1,V2, e.g. ft.lr=0.01,0.001; every value is a member."""
    root: int | None = None
    """Root of all random draws."""
    imported: str | None = None
    """Folder that `bdjax import-torch` wrote: its networks are defended instead of trained ones."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """How populations run; the default is what was tuned on this machine, else the one measured for this platform."""

    strategy: str | None = None
    """vmap, map, unrolled or loop."""
    lowering: str | None = None
    """Of convolutions: native, unrolled, mixed or patches."""
    loop: str | None = None
    """Of training steps: scan or dispatch."""
    chunk: int | None = None
    """Members at once; 0 = as many as fit."""
    devices: int | None = None
    """Local devices that share the members."""
    tuned: bool = True
    """Start from what `bdjax plan` measured and remembered; a field given here replaces one of it."""


@dataclasses.dataclass(frozen=True)
class Picked:
    """Which record of a folder; a flag is needed only as far as the folder holds several."""

    dataset: str | None = None
    """Data set of the network, or the path of a folder with it."""
    model: str | None = None
    """Network."""
    width: int | None = None
    """Channels of its first stage."""
    attack: str | None = None
    """Attack it was trained with."""
    defense: str | None = None
    """The repaired network, which is made again from its key; default: as it was trained."""
    spc: int | None = None
    """Clean samples per class the defender held."""
    hyper: str | None = None
    """Traced hyper-parameters of the repair as its record tells them, e.g. '{"lr":0.01}'."""
    seed: int | None = None
    """Of the member."""
    poison_ratio: float | None = None
    """Of the member."""
    profile: str | None = None
    """corrected or reference."""
    cell: str | None = None
    """Hash of the cell, as the records tell it."""

    def facts(self) -> dict[str, Any]:
        """What a record has to say, {fact: value} as :func:`bdjax.results.member.record` takes it; None = anything.

        Raises:
          UserError: an unknown data set, or hyper-parameters that no record tells so.
        """
        from bdjax.data import spec

        told = dataclasses.asdict(self)
        ratio, name = told.pop("poison_ratio"), None if self.dataset is None else spec(self.dataset).name
        return {**told, "ratio": ratio, "dataset": name, "hyper": _hyper_text(self.hyper)}


_AXES = {"dataset": "datasets", "model": "models", "attack": "attacks", "defense": "defenses", "poison_ratio": "poison_ratios"}


def grid_of(scenario: Scenario, base: Grid | None = None) -> Grid:
    """The grid a command line stands for: ``base`` (None: the defaults) with what was given replaced.

    Raises:
      UserError: a setting that is not METHOD.FIELD=VALUE, or that names a method which does not run; an import folder that
        cannot be read, or that holds no triggered images where no attack is named.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(scenario):
        value = getattr(scenario, field.name)
        if value is None or field.name in ("config", "hyper"):
            continue
        axis = _AXES.get(field.name, field.name)
        given[axis] = (value,) if field.name in ("dataset", "model", "attack") else value
    if scenario.imported is not None:
        given = {**_of_import(scenario.imported), **given}
        if base is None and "attacks" not in given:  # the default attack is no answer to a network of an unknown one
            imported.stored_images(scenario.imported)  # raises
    grid = dataclasses.replace(base or Grid(), **given)
    # What the base says of methods that the command line took out goes with them.
    attacks, defenses = (base.attacks, base.defenses) if base is not None else ((), ())
    attack, defense = _copy(grid.attack_config, grid.attacks, attacks), _copy(grid.defense_config, grid.defenses, defenses)
    recipe, own = dict(grid.recipe), _copy(grid.attack_recipe, grid.attacks, attacks)
    hyper = _copy(grid.hyper, grid.defenses, defenses)
    methods = (*grid.attacks, *grid.defenses)
    for method, field_name, text in (_split(item, "config") for item in scenario.config):
        value, ending = _value(text), ".recipe" * method.endswith(".recipe")
        known = grid.attacks if ending else methods
        method = spelled(method.removesuffix(".recipe"), known, "--config") + ending
        if method == "recipe":
            recipe[field_name] = value
        elif method.removesuffix(".recipe") in grid.attacks and method.endswith(".recipe"):
            own.setdefault(method.removesuffix(".recipe"), {})[field_name] = value
        elif method in grid.attacks:
            attack.setdefault(method, {})[field_name] = value
        elif method in grid.defenses:
            defense.setdefault(method, {})[field_name] = value
        else:
            recipes = ["recipe", *(f"{attack}.recipe" for attack in grid.attacks)]
            raise unknown("method of --config", method, [*grid.attacks, *grid.defenses, *recipes])
    for method, leaf, text in (_split(item, "hyper") for item in scenario.hyper):
        method = spelled(method, grid.defenses, "--hyper")
        if method not in grid.defenses:
            raise unknown("method of --hyper", method, grid.defenses)
        hyper.setdefault(method, {})[leaf] = tuple(_number(part, f"{method}.{leaf}") for part in text.split(","))
    return dataclasses.replace(grid, attack_config=attack, defense_config=defense, recipe=recipe, attack_recipe=own, hyper=hyper)


def execution_of(executed: Executed) -> dict[str, Any]:
    """The fields of an execution that a command line sets; what was tuned, or the model's default, gives the others."""
    return {name: value for name in Execution._fields if (value := getattr(executed, name, None)) is not None}


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
    fixed: dict[str, Any] = {"models": (found.model,), "width": found.width, "depth": found.depth}
    fixed["seeds"] = tuple(dict.fromkeys(seed for seed, _ in found.points))
    fixed["poison_ratios"] = tuple(dict.fromkeys(ratio for _, ratio in found.points))
    if found.dataset is not None:
        fixed["datasets"] = (found.dataset,)
    if found.triggered is not None:
        fixed["attacks"] = (STORED,)
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


def _hyper_text(text: str | None) -> str | None:
    """Hyper-parameters in the form of a record."""
    try:
        told = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        told = text
    if told is not None and not isinstance(told, dict):
        raise UserError(f"--hyper takes what a record tells, e.g. '{{\"lr\":0.01}}'; given {text!r}")
    return None if told is None else canonical(told)
