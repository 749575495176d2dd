"""The scenario flags of the command line, and the grid they stand for."""

import ast
import dataclasses
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from bdjax.attacks.stored import STORED
from bdjax.errors import UserError, unknown
from bdjax.plugins.load import spelled
from bdjax.population import Execution
from bdjax.store.hashing import canonical
from bdjax.sweep import imported
from bdjax.sweep.grid import Grid

SETTINGS = ("attack_config", "defense_config", "recipe", "attack_recipe", "hyper", "about")  # no flags of their own
CONFIG = (
    'Static settings METHOD.FIELD=VALUE, e.g. fp.epochs=10; METHOD "recipe" is the training of the attack. Of '
    "path/to/file.py:factory the name of the factory is enough, here and in --hyper."
)
HYPER = "Traced hyper-parameters METHOD.LEAF=V1,V2, e.g. ft.lr=0.01,0.001; every value is a member."


def _documented(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass, {field: text}."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    pairs = itertools.pairwise(body.body)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _flags() -> type:
    """The fields of a grid as flags, none of which has to be given, with the settings of methods."""
    types, texts = get_type_hints(Grid), _documented(Grid)
    fields: list[Any] = [
        (field.name, Annotated[types[field.name] | None, tyro.conf.arg(help=texts[field.name])], dataclasses.field(default=None))
        for field in dataclasses.fields(Grid)
        if field.name not in SETTINGS
    ]
    fields += [
        (name, Annotated[tuple[str, ...], tyro.conf.arg(help=text)], dataclasses.field(default=()))
        for name, text in (("config", CONFIG), ("hyper", HYPER))
    ]
    return dataclasses.make_dataclass("Scenario", fields, frozen=True)


if TYPE_CHECKING:
    Scenario = Any
else:
    Scenario = _flags()  # what to run; None: as the grid has it, which the flags change


@dataclasses.dataclass(frozen=True)
class Executed:
    """How populations run; the default is what was tuned on this machine, else the one measured for this platform."""

    strategy: str | None = None
    """vmap, map, unrolled or sequential."""
    lowering: str | None = None
    """Of convolutions: native, unrolled, mixed or patches."""
    loop: str | None = None
    """Of training steps: scan or dispatch."""
    chunk: int | None = None
    """Members at once; 0 = as many as fit."""
    devices: int | None = None
    """Local devices that share the members."""
    tuned: bool = True
    """Start from what `bdjax plan` measured; a field given here replaces one of it."""


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
    """The defended network, which is made again from its key; default: as it was trained."""
    spc: int | None = None
    """Clean samples per class the defender held."""
    hyper: str | None = None
    """Traced hyper-parameters of the defense as its record has them, e.g. '{"lr":0.01}'."""
    seed: int | None = None
    """Of the member."""
    poison_ratio: float | None = None
    """Of the member."""
    profile: str | None = None
    """corrected or reference."""
    cell: str | None = None
    """Hash of the cell, as the records have it."""

    def facts(self) -> dict[str, Any]:
        """What a record has to say, {fact: value} as :func:`bdjax.results.member.record` takes it; None = anything.

        Raises:
          UserError: an unknown data set, or hyper-parameters in another form than a record's.
        """
        from bdjax.data import spec

        facts = dataclasses.asdict(self)
        ratio, name = facts.pop("poison_ratio"), None if self.dataset is None else spec(self.dataset).name
        return {**facts, "ratio": ratio, "dataset": name, "hyper": _hyper_text(self.hyper)}


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
            recipes = ["recipe", *(f"{attack}.recipe" for attack in grid.attack)]
            raise unknown("method of --config", method, [*grid.attack, *grid.defense, *recipes])
    return {"attack_config": attack, "defense_config": defense, "recipe": recipe, "attack_recipe": own}


def _traced(grid: Grid, items: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The hyper-parameters of a grid with those of --hyper."""
    hyper = _deep(grid.hyper)
    for method, leaf, text in (_split(item, "hyper") for item in items):
        method = spelled(method, grid.defense, "--hyper")
        if method not in grid.defense:
            raise unknown("method of --hyper", method, grid.defense)
        hyper.setdefault(method, {})[leaf] = tuple(_number(part, f"{method}.{leaf}") for part in text.split(","))
    return hyper


def _deep(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: dict(fields) for name, fields in tree.items()}


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


def _hyper_text(text: str | None) -> str | None:
    """Hyper-parameters in the form of a record."""
    try:
        values = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        values = text
    if values is not None and not isinstance(values, dict):
        raise UserError(f"--hyper takes what a record tells, e.g. '{{\"lr\":0.01}}'; given {text!r}")
    return None if values is None else canonical(values)
