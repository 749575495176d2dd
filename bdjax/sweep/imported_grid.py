"""Whether a grid fits the imported networks that it names."""

from bdjax.attacks.table import IMAGES_ONLY
from bdjax.data import spec
from bdjax.errors import UserError
from bdjax.models import by_name
from bdjax.sweep import imported
from bdjax.sweep.grid import Grid

TRAINING = ("epochs", "batch", "recipe", "attack_recipe")  # fields of a grid that say how networks are trained


def check(grid: Grid) -> None:
    """Refuse a grid that asks imported networks to be something else.

    Raises:
      UserError: another model, width, depth or data set, seeds or ratios that are not in the folder, settings of a training that
        does not take place or of an attack that has none, or no attack to measure them with.
    """
    path = str(grid.imported)
    found = imported.opened(path)
    if grid.model != (found.model,):
        raise UserError(f"{path} holds networks {found.model}; given {', '.join(grid.model)}")
    for dataset in grid.dataset:
        facts = spec(dataset)
        imported.check(found, facts, path)
        given = by_name(found.model, facts, width=grid.width, depth=grid.depth)
        for field in ("width", "depth"):
            ours, theirs = (_size(getattr(network, field)) for network in (given, found))
            if ours != theirs:
                raise UserError(f"{path} holds networks of {field} {theirs}; given {ours}")
    for field in TRAINING:
        if getattr(grid, field):
            raise UserError(f"imported networks are not trained: {field} has no effect")
    missing = [(s, r) for s in grid.seeds for r in grid.poison_ratio if (s, r) not in found.points]
    if missing:
        there = ", ".join(f"seed {seed} ratio {ratio:g}" for seed, ratio in found.points)
        raise UserError(f"{path} holds no network with seed {missing[0][0]} and poison ratio {missing[0][1]:g}; it holds {there}")
    for attack in (name for name in grid.attack if name in IMAGES_ONLY):
        imported.stored_images(path)
        settings = {"target": grid.target, "attack_config": grid.attack_config.get(attack)}
        for field in (name for name, value in settings.items() if value):
            raise UserError(f"the stored images of {path} have their attack labels: {field} has no effect")


def _size(value: int | None) -> int | str:
    return "whole" if value is None else value
