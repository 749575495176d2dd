"""From a grid to its cells: checked, built once, selected.

A *training cell* is one compilation of the training of (data set, model, attack); a *defense cell* reads its trained members.
Seeds, poison ratios and traced hyper-parameters are members: they live in the rows of a cell, so that a grid can be extended.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bdjax.attacks.table import IMAGES_ONLY
from bdjax.errors import UserError, choose, quoted, unknown
from bdjax.plugins.load import factory, is_path, spelled
from bdjax.store.hashing import canonical
from bdjax.sweep import build, imported_grid, misplaced
from bdjax.sweep.cell import DefenseCell, TrainCell
from bdjax.sweep.grid import AXES as GRID_AXES
from bdjax.sweep.grid import Grid
from bdjax.types import PROFILES, Attack, Defense, Model, Recipe

AXES = ("dataset", "model", "attack", "defense", "spc")  # what `only` can select


class Branch(NamedTuple):
    """A training cell and the defense cells that read it, with what was built for them."""

    train: TrainCell
    defenses: tuple[DefenseCell, ...]
    model: Model  # not yet adapted to an execution
    attack: Attack
    built: tuple[Defense, ...]  # for `model`, in the order of `defenses`


def check(grid: Grid) -> Grid:
    """Return the grid if everything in it exists and lies in its range.

    Raises:
      UserError: the first mistake, with what is allowed.
    """
    from bdjax.data import known
    from bdjax.models import MODELS, PRECISIONS

    for axis in ("dataset", "model", "attack", "poison_ratio", "seeds"):
        values = getattr(grid, axis)
        if not values:
            raise UserError(f"{axis} is empty; a grid needs at least one")
        _distinct(axis, values)
    _distinct("defense", grid.defense)
    _distinct("spc", grid.spc)
    for kind in ("dataset", "model", "attack", "defense"):
        for name in getattr(grid, kind):
            misplaced.named(kind, name)
    for dataset in grid.dataset:
        known(dataset)
    for model in grid.model:
        if not is_path(model):
            factory("model", model, MODELS)
    choose("precision", grid.precision, PRECISIONS)
    choose("profile", grid.profile, PROFILES)
    for ratio in grid.poison_ratio:
        if not 0.0 <= ratio <= 1.0 or math.isnan(ratio):
            raise UserError(f"poison ratio {ratio} is not a fraction of the training rows; allowed: 0 … 1")
    for seed in grid.seeds:
        _whole("seed", seed, 0)
        if seed >= 2**32:
            raise UserError(f"seed {seed} is too large; allowed: 0 … {2**32 - 1}")
    for count in grid.spc:
        _whole("spc (clean samples per class)", count, 1)
    for field in ("width", "depth", "epochs", "batch", "train_images", "test_images"):
        if getattr(grid, field) is not None:
            _whole(field.replace("_", " "), getattr(grid, field), 1)
    _whole("root", grid.root, 0)
    _named("attack_config", grid.attack_config, grid.attack)
    _named("defense_config", grid.defense_config, grid.defense)
    _named("hyper", grid.hyper, grid.defense)
    _named("attack_recipe", grid.attack_recipe, grid.attack)
    for field in (*grid.recipe, *(field for given in grid.attack_recipe.values() for field in given)):
        choose("recipe field", field, Recipe._fields)
    for field in grid.recipe:
        if field in ("epochs", "batch"):
            raise UserError(f"{field} of the training is a field of the grid (--{field}), not of its recipe")
    if grid.imported is not None:
        imported_grid.check(grid)
    elif without := [name for name in grid.attack if name in IMAGES_ONLY]:
        raise UserError(f"the attack {without[0]!r} is that of an import folder: name the folder with --imported")
    return grid


def cells(grid: Grid) -> list[Branch]:
    """All cells of a grid, in the order they run; each method is built once here, so that a wrong configuration shows at once.

    Raises:
      UserError: the grid is not valid, or a method refuses its configuration.
    """
    check(grid)
    branches: list[Branch] = []
    built: dict[Any, Defense] = {}  # cells that differ in attack or clean samples alone share a defense
    for dataset in grid.dataset:
        for name in grid.model:
            for attack in grid.attack:
                train = TrainCell(
                    dataset=dataset,
                    train_images=grid.train_images,
                    test_images=grid.test_images,
                    model=name,
                    width=grid.width,
                    attack=attack,
                    attack_config=dict(grid.attack_config.get(attack, {})),
                    recipe=_recipe(grid, attack),
                    profile=grid.profile,
                    target=grid.target,
                    root=grid.root,
                    precision=grid.precision,
                    depth=grid.depth,
                    imported=grid.imported,
                )
                model, made = build.attacked(train)
                train = build.pinned(train, made)
                _ratios_fit(train, model, made, grid)
                defenses = _defenses(grid, train, model, made, built)
                branches.append(
                    Branch(train, tuple(cell for cell, _ in defenses), model, made, tuple(defense for _, defense in defenses))
                )
    return branches


def select(branches: Sequence[Branch], only: Mapping[str, str], limit: int | None = None) -> list[Branch]:
    """The branches that match ``only`` ({axis: value}), cut after ``limit`` cells (a training cell counts as one).

    Raises:
      UserError: an unknown axis, or nothing is left.
    """
    for axis in only:
        if axis not in AXES and (field := axis.replace("-", "_")) in GRID_AXES:
            flag = f"--{field.replace('_', '-')}"
            raise UserError(f"{axis} is no axis of only, as a cell holds all its values: say with {flag} which of them run")
        if axis not in AXES:
            raise unknown("axis of only", axis, AXES)
    only = {**only, **_spelled(branches, only)}
    _held(branches, only)
    wanted = {axis: value for axis, value in only.items() if axis not in ("defense", "spc")}
    left = math.inf if limit is None else limit
    chosen = []
    for branch in branches:
        if left < 1 or any(getattr(branch.train, axis) != value for axis, value in wanted.items()):
            continue
        defenses = [pair for pair in zip(branch.defenses, branch.built, strict=True) if _matches(pair[0], only)]
        if {"defense", "spc"} & only.keys() and not defenses and only.get("defense") != "none":
            continue
        left -= 1
        kept = defenses[: int(min(left, len(defenses)))]
        left -= len(kept)
        chosen.append(branch._replace(defenses=tuple(cell for cell, _ in kept), built=tuple(defense for _, defense in kept)))
    if not chosen:
        asked = " ".join(f"{axis}={value}" for axis, value in only.items())
        raise UserError(f"no cell of this grid is left by only {asked or '(nothing)'} and limit {limit}")
    return chosen


def _spelled(branches: Sequence[Branch], only: Mapping[str, str]) -> dict[str, str]:
    """The network, the attack and the defense that are meant, where the name of a user's factory was given."""
    names = {
        "model": [branch.train.model for branch in branches],
        "attack": [branch.train.attack for branch in branches],
        "defense": [cell.defense for branch in branches for cell in branch.defenses],
    }
    return {axis: spelled(only[axis], known, "--only") for axis, known in names.items() if axis in only}


def _held(branches: Sequence[Branch], only: Mapping[str, str]) -> None:
    """Raise :class:`UserError` for a value that no cell of the grid has."""
    defenses = [cell for branch in branches for cell in branch.defenses]
    held: dict[str, list[str]] = {axis: [getattr(branch.train, axis) for branch in branches] for axis in AXES[:3]}
    held["defense"] = ["none", *(cell.defense for cell in defenses)]
    held["spc"] = [str(cell.spc) for cell in defenses if cell.spc is not None]
    for axis, value in only.items():
        if held[axis] and value not in held[axis]:
            raise unknown(f"{axis} of this grid", value, dict.fromkeys(held[axis]))


def _matches(cell: DefenseCell, only: Mapping[str, str]) -> bool:
    if "defense" in only and cell.defense != only["defense"]:
        return False
    return "spc" not in only or cell.spc is None or str(cell.spc) == only["spc"]


def _recipe(grid: Grid, attack: str) -> dict[str, Any]:
    given = {"epochs": grid.epochs, "batch": grid.batch, **grid.recipe, **grid.attack_recipe.get(attack, {})}
    return {field: value for field, value in given.items() if value is not None}


def _ratios_fit(train: TrainCell, model: Model, attack: Attack, grid: Grid) -> None:
    if not 0 <= grid.target < model.spec.classes:
        raise UserError(f"target {grid.target} is not a class of {train.dataset}; allowed: 0 … {model.spec.classes - 1}")
    most = getattr(attack.config, "max_ratio", 1)  # attacks that poison inside the batch make room for so much and no more
    over = [ratio for ratio in grid.poison_ratio if ratio > most]
    if over:
        raise UserError(
            f"poison ratio {over[0]} is above the {most} that {train.attack} makes room for in a batch; "
            f"raise it with {quoted('--config', f'{train.attack}.max_ratio={over[0]}')}"
        )


def _defenses(
    grid: Grid, train: TrainCell, model: Model, attack: Attack, built: dict[Any, Defense]
) -> list[tuple[DefenseCell, Defense]]:
    """The defense cells of a training cell, each with its defense; ``built`` keeps those that other branches share."""
    network = (train.dataset, train.model, train.width, train.depth, train.precision, train.imported, train.profile)
    found = []
    for name in grid.defense:
        if name == "none":  # every training cell has its rows without a defense
            continue
        cell = DefenseCell(train, name, dict(grid.defense_config.get(name, {})), None)
        if (key := (*network, name, canonical(cell.config))) not in built:
            built[key] = build.defended(cell, model)
        defense = built[key]
        if attack.triggered is not None and "triggered" in defense.needs:
            raise UserError(f"{name} sees triggered images: name the attack of the imported networks with --attack")
        build.hyper_points(defense, grid.hyper.get(name, {}), name)
        if defense.needs & {"clean", "triggered"}:
            if not grid.spc:
                raise UserError(f"{name} needs clean samples; spc is empty")
            found += [(cell._replace(spc=spc), defense) for spc in grid.spc]
        else:
            found.append((cell, defense))
    return found


def _distinct(axis: str, values: Sequence[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"{axis} holds {value!r} twice")
        seen.add(value)


def _named(field: str, given: Mapping[str, Any], methods: Sequence[str]) -> None:
    for name in given:
        if name not in methods:
            raise unknown(f"method of {field}", name, methods)


def _whole(what: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{what} {value!r} is not allowed; it is a whole number of at least {least}")
